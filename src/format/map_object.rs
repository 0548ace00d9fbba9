//! Map objects: many leaves and pages in one object, so that a checkpoint costs few requests.
//!
//! ```text
//!  0  8 magic "OBJBLKMP"     16 16 volume id
//!  8  2 version              32  8 epoch
//! 10  2 zero                 40  4 number
//! 12  4 zero                 44  4 crc32c of the 44 bytes before
//! 48    items, back to back, each verified by the crc in its reference
//!       directory: {kind u8, 3 zero, offset u32, index u64, len u32} each, in order of offset
//!       trailer: 4 number of items, 8 zero, 4 crc32c of directory and trailer before it
//! ```
//!
//! Kinds: 1 leaf, 2 map page, 3 chunk page; `index` says which one. The last crc covers the directory and
//! the 12 bytes before itself. Items are found by [`ItemRef`]; the directory serves the one who moves the items that are
//! still referenced out of a mostly dead object.

use super::VolumeId;
use super::codec::{FormatResult, Reader, Writer, check_trailing_crc};
use super::keys::MapObjectId;
use super::page::ItemRef;

/// First bytes of a map object.
pub const MAGIC: &[u8; 8] = b"OBJBLKMP";
const VERSION: u16 = 1;
const OBJECT: &str = "map object";
const FIXED: usize = 48;
const ENTRY_LEN: usize = 20;
const TRAILER_LEN: usize = 16;

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ItemKind {
    /// The leaf of that index.
    Leaf,
    /// The map page of that index.
    MapPage,
    /// The chunk page of that index.
    ChunkPage,
}

/// An item's entry in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// What it is.
    pub kind: ItemKind,
    /// Which one.
    pub index: u64,
    /// First byte in the object.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

/// Builds a map object.
#[derive(Debug)]
pub struct MapObjectBuilder {
    object: MapObjectId,
    body: Writer,
    directory: Vec<DirectoryEntry>,
}

impl MapObjectBuilder {
    /// An object without items.
    pub fn new(volume: VolumeId, object: MapObjectId) -> MapObjectBuilder {
        let mut body = Writer::default();
        body.put(MAGIC).u16(VERSION).zeros(6).put(&volume.bytes());
        body.u64(object.epoch.0).u32(object.number).crc();
        MapObjectBuilder { object, body, directory: Vec::new() }
    }

    /// Adds an item and says where it is.
    pub fn add(&mut self, kind: ItemKind, index: u64, bytes: &[u8]) -> ItemRef {
        let (offset, len) = (self.body.len() as u32, bytes.len() as u32);
        self.directory.push(DirectoryEntry { kind, index, offset, len });
        self.body.put(bytes);
        ItemRef { object: self.object, offset, len, crc: crc32c::crc32c(bytes) }
    }

    /// Bytes of the items so far.
    pub fn len(&self) -> usize {
        self.body.len() - FIXED
    }

    /// True where no item was added.
    pub fn is_empty(&self) -> bool {
        self.directory.is_empty()
    }

    /// Which object this is.
    pub fn object(&self) -> MapObjectId {
        self.object
    }

    /// The object's bytes.
    pub fn finish(mut self) -> Vec<u8> {
        let mut tail = Writer::with_capacity(self.directory.len() * ENTRY_LEN + TRAILER_LEN);
        for entry in &self.directory {
            let kind = match entry.kind {
                ItemKind::Leaf => 1,
                ItemKind::MapPage => 2,
                ItemKind::ChunkPage => 3,
            };
            tail.u8(kind).zeros(3).u32(entry.offset).u64(entry.index).u32(entry.len);
        }
        tail.u32(self.directory.len() as u32).zeros(8).crc();
        self.body.put(&tail.finish());
        self.body.finish()
    }
}

/// Checks that `bytes` is what `item` refers to, by its crc.
pub fn check_item(item: ItemRef, bytes: &[u8]) -> FormatResult<()> {
    let r = Reader::new(OBJECT, bytes);
    if bytes.len() != item.len as usize {
        return Err(r.error("item", super::codec::Problem::Truncated));
    }
    if crc32c::crc32c(bytes) != item.crc {
        return Err(r.error("item", super::codec::Problem::Checksum));
    }
    Ok(())
}

/// Parses a whole map object's directory.
pub fn parse_directory(
    volume: VolumeId,
    object: MapObjectId,
    bytes: &[u8],
) -> FormatResult<Vec<DirectoryEntry>> {
    let mut r = Reader::new(OBJECT, bytes);
    r.magic(MAGIC)?;
    r.version(VERSION)?;
    let mut r = Reader::new(OBJECT, bytes);
    let head = check_trailing_crc(OBJECT, r.take("fixed header", FIXED)?)?;
    let mut h = Reader::new(OBJECT, head);
    h.take("magic and version", 10)?;
    h.reserved("reserved", 6)?;
    let is_this = h.bytes16("volume")? == volume.bytes()
        && h.u64("epoch")? == object.epoch.0
        && h.u32("number")? == object.number;
    if !is_this {
        return Err(h.bad("volume, epoch and number", "those of another object"));
    }
    let Some(at) = bytes.len().checked_sub(TRAILER_LEN).filter(|at| *at >= FIXED) else {
        return Err(r.error("trailer", super::codec::Problem::Truncated));
    };
    let count = Reader::new(OBJECT, &bytes[at..]).u32("item count")? as usize;
    let start = count.checked_mul(ENTRY_LEN).and_then(|len| at.checked_sub(len));
    let Some(start) = start.filter(|start| *start >= FIXED) else {
        return Err(r.bad("item count", count));
    };
    let tail = check_trailing_crc(OBJECT, &bytes[start..])?;
    let mut r = Reader::new(OBJECT, tail);
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(parse_entry(&mut r, start)?);
    }
    r.take("item count", 4)?;
    r.reserved("reserved", 8)?;
    Ok(entries)
}

fn parse_entry(r: &mut Reader<'_>, end: usize) -> FormatResult<DirectoryEntry> {
    let kind = match r.u8("item kind")? {
        1 => ItemKind::Leaf,
        2 => ItemKind::MapPage,
        3 => ItemKind::ChunkPage,
        other => return Err(r.bad("item kind", other)),
    };
    r.reserved("reserved", 3)?;
    let (offset, index, len) = (r.u32("item offset")?, r.u64("item index")?, r.u32("item len")?);
    if (offset as usize) < FIXED || offset as usize + len as usize > end {
        return Err(r.bad("item offset", format!("{offset}+{len} of {end}")));
    }
    Ok(DirectoryEntry { kind, index, offset, len })
}
