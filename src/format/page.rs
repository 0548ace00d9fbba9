//! Items of map objects: leaves, map pages, chunk pages.
//!
//! * A **leaf** is the sorted extents of a fixed span of 64 MiB: count u32, then 16 bytes each.
//! * A **map page** is the references to the leaves of 1024 spans (64 GiB): count u32, then
//!   {index in the page u32, item} each, ascending.
//! * A **chunk page** is the use of 4096 consecutive slots: count u32, then {from the low end index in
//!   the page (12 bits) and sectors in the chunk (20 bits; 0: not known), live sectors u32} each,
//!   ascending. A slot that is not in it holds nothing that is needed.
//!
//! Leaf `n` covers the sectors from `n << 17` on and is entry `n & 1023` of map page `n >> 10`; slot `n` is
//! entry `n & 4095` of chunk page `n >> 12`. What no leaf has is zeros.
//!
//! An **item** is where a leaf or page is: {epoch u64 and number u32 of the map object, offset in it u32,
//! length in bytes u32, crc32c of those bytes u32} ([`ItemRef`]).
//!
//! An extent packs into two words: `seq` in the low 48 bits of the first (the other 16 are zero,
//! kept for the origin of cloned data); in the second, from the low end, start in the leaf (17
//! bits), length less one (17), offset in the chunk's payload (17), zeros.

use super::codec::{FormatResult, Problem, Reader, Writer};
use super::keys::MapObjectId;
use crate::units::{Epoch, Seq};

/// Sectors of a volume that one leaf covers: 64 MiB.
pub const LEAF_SECTORS: u64 = 1 << 17;
/// Leaves that one map page covers: 64 GiB of a volume.
pub const LEAVES_PER_PAGE: u64 = 1 << 10;
/// Slots that one chunk page covers.
pub const CHUNKS_PER_PAGE: u64 = 1 << 12;

const SEQ_BITS: u32 = 48;
/// Largest slot that a checkpoint may begin at: half of what an extent can name, so that no owner
/// can write as far as the end of it.
pub const SEQ_MAX: u64 = 1 << (SEQ_BITS - 1);
const FIELD_BITS: u32 = 17;
const FIELD_MASK: u64 = (1 << FIELD_BITS) - 1;

/// Where an item is stored: enough to fetch and verify it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemRef {
    /// The map object.
    pub object: MapObjectId,
    /// First byte in it.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
    /// crc32c of those bytes.
    pub crc: u32,
}

/// Encoded length of an [`ItemRef`].
pub const ITEM_REF_LEN: usize = 24;

impl ItemRef {
    /// Appends the reference to `w`.
    pub fn encode(&self, w: &mut Writer) {
        w.u64(self.object.epoch.0).u32(self.object.number);
        w.u32(self.offset).u32(self.len).u32(self.crc);
    }

    /// Parses the next reference of `r`.
    pub fn parse(r: &mut Reader<'_>) -> FormatResult<ItemRef> {
        let object = MapObjectId {
            epoch: Epoch(r.u64("map object epoch")?),
            number: r.u32("map object number")?,
        };
        let (offset, len) = (r.u32("item offset")?, r.u32("item length")?);
        Ok(ItemRef { object, offset, len, crc: r.u32("item crc")? })
    }
}

/// Where a run of sectors is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The chunk's slot.
    pub seq: Seq,
    /// First sector in the chunk's payload.
    pub offset: u32,
}

impl Location {
    /// The location `sectors` further in the same chunk.
    pub fn advance(self, sectors: u64) -> Location {
        Location { seq: self.seq, offset: self.offset + sectors as u32 }
    }
}

/// A run of sectors of a leaf that is stored in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    place: u64,
    shape: u64,
}

impl Extent {
    /// `len` sectors (1..=131072) at `start` of the leaf, stored at `location`.
    ///
    /// # Panics
    /// Where a number exceeds its field: the caller has split by leaf and by chunk.
    pub fn new(start: u32, len: u32, location: Location) -> Extent {
        let (start, len) = (u64::from(start), u64::from(len));
        let offset = u64::from(location.offset);
        assert!(len > 0 && start + len <= LEAF_SECTORS, "extent outside its leaf");
        assert!(offset + len <= 1 << FIELD_BITS, "extent outside its chunk");
        assert!(location.seq.0 >> SEQ_BITS == 0, "sequence number above 48 bits");
        let shape = start | (len - 1) << FIELD_BITS | offset << (2 * FIELD_BITS);
        Extent { place: location.seq.0, shape }
    }

    /// First sector, from the leaf's start.
    pub fn start(self) -> u32 {
        (self.shape & FIELD_MASK) as u32
    }

    /// Number of sectors.
    pub fn len(self) -> u32 {
        (self.shape >> FIELD_BITS & FIELD_MASK) as u32 + 1
    }

    /// An extent is never empty.
    pub fn is_empty(self) -> bool {
        false
    }

    /// The sector after the last one, from the leaf's start.
    pub fn end(self) -> u32 {
        self.start() + self.len()
    }

    /// Where it is stored.
    pub fn location(self) -> Location {
        let offset = (self.shape >> (2 * FIELD_BITS) & FIELD_MASK) as u32;
        Location { seq: Seq(self.place), offset }
    }
}

/// The bytes of a leaf. `extents` ascend and do not overlap.
pub fn encode_leaf(extents: &[Extent]) -> Vec<u8> {
    let mut w = Writer::with_capacity(4 + extents.len() * 16);
    w.u32(extents.len() as u32);
    for extent in extents {
        w.u64(extent.place).u64(extent.shape);
    }
    w.finish()
}

/// Parses a leaf.
pub fn parse_leaf(bytes: &[u8]) -> FormatResult<Vec<Extent>> {
    let mut r = Reader::new("leaf", bytes);
    let count = r.count("extent count", 16)?;
    let mut extents = Vec::with_capacity(count);
    let mut end = 0;
    for _ in 0..count {
        let extent = Extent { place: r.u64("extent seq")?, shape: r.u64("extent shape")? };
        if extent.place >> SEQ_BITS != 0 || extent.shape >> (3 * FIELD_BITS) != 0 {
            return Err(r.error("extent", Problem::Unsupported("a reserved bit".into())));
        }
        let fits = u64::from(extent.end()) <= LEAF_SECTORS
            && u64::from(extent.location().offset + extent.len()) <= 1 << FIELD_BITS;
        if extent.start() < end || !fits {
            return Err(r.bad("extent", format!("{}..{}", extent.start(), extent.end())));
        }
        end = extent.end();
        extents.push(extent);
    }
    r.end()?;
    Ok(extents)
}

/// Leaf references of a map page: index of the leaf in the page, where the leaf is.
pub type MapPage = Vec<(u32, ItemRef)>;

/// The bytes of a map page, whose entries ascend.
pub fn encode_map_page(page: &[(u32, ItemRef)]) -> Vec<u8> {
    let mut w = Writer::with_capacity(4 + page.len() * (4 + ITEM_REF_LEN));
    w.u32(page.len() as u32);
    for (index, item) in page {
        w.u32(*index);
        item.encode(&mut w);
    }
    w.finish()
}

/// Parses a map page.
pub fn parse_map_page(bytes: &[u8]) -> FormatResult<MapPage> {
    let mut r = Reader::new("map page", bytes);
    let count = r.count("leaf count", 4 + ITEM_REF_LEN)?;
    let mut page = Vec::with_capacity(count);
    for _ in 0..count {
        let index = ascending(&mut r, page.last().map(|(i, _)| *i), LEAVES_PER_PAGE)?;
        page.push((index, ItemRef::parse(&mut r)?));
    }
    r.end()?;
    Ok(page)
}

/// How much of a chunk is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkUse {
    /// Sectors that the map points at.
    pub live: u32,
    /// Sectors in it; 0 where that is not known, as on volumes of older versions.
    pub payload: u32,
}

/// Use by slot: index of the slot in the page, the use of its chunk.
pub type ChunkPage = Vec<(u32, ChunkUse)>;

const SLOT_BITS: u32 = CHUNKS_PER_PAGE.trailing_zeros();

/// The bytes of a chunk page, whose entries ascend.
pub fn encode_chunk_page(page: &[(u32, ChunkUse)]) -> Vec<u8> {
    let mut w = Writer::with_capacity(4 + page.len() * 8);
    w.u32(page.len() as u32);
    for (index, used) in page {
        w.u32(*index | used.payload << SLOT_BITS).u32(used.live);
    }
    w.finish()
}

/// Parses a chunk page.
pub fn parse_chunk_page(bytes: &[u8]) -> FormatResult<ChunkPage> {
    let mut r = Reader::new("chunk page", bytes);
    let count = r.count("slot count", 8)?;
    let mut page: ChunkPage = Vec::with_capacity(count);
    for _ in 0..count {
        let word = r.u32("index")?;
        let (index, payload) = (word & (CHUNKS_PER_PAGE as u32 - 1), word >> SLOT_BITS);
        if page.last().is_some_and(|(last, _)| *last >= index) {
            return Err(r.bad("index", index));
        }
        if payload > 1 << FIELD_BITS {
            return Err(r.bad("sectors of a chunk", payload));
        }
        page.push((index, ChunkUse { live: r.u32("live sectors")?, payload }));
    }
    r.end()?;
    Ok(page)
}

fn ascending(r: &mut Reader<'_>, last: Option<u32>, limit: u64) -> FormatResult<u32> {
    let index = r.u32("index")?;
    if u64::from(index) < limit && last.is_none_or(|last| last < index) {
        Ok(index)
    } else {
        Err(r.bad("index", index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_pack_at_their_limits() {
        let at = |seq, offset| Location { seq: Seq(seq), offset };
        for (start, len, loc) in [
            (0, 1, at(0, 0)),
            (0, 1 << 17, at((1 << 48) - 1, 0)),
            ((1 << 17) - 1, 1, at(5, (1 << 17) - 1)),
        ] {
            let e = Extent::new(start, len, loc);
            assert_eq!((e.start(), e.len(), e.location()), (start, len, loc));
            assert_eq!(parse_leaf(&encode_leaf(&[e])).unwrap(), [e]);
        }
        assert_eq!(size_of::<Extent>(), 16);
    }

    #[test]
    fn chunk_pages_pack_at_their_limits() {
        let used = |live, payload| ChunkUse { live, payload };
        let page = vec![(0, used(1, 1 << 17)), (7, used(u32::MAX, 0)), (4095, used(8, 9))];
        assert_eq!(parse_chunk_page(&encode_chunk_page(&page)).unwrap(), page);
        let too_long = encode_chunk_page(&[(0, used(1, (1 << 17) + 1))]);
        let error = parse_chunk_page(&too_long).unwrap_err().to_string();
        assert!(error.contains("sectors of a chunk"), "{error}");
        assert!(parse_chunk_page(&encode_chunk_page(&[page[1], page[0]])).is_err());
    }

    #[test]
    fn overlapping_extents_are_refused() {
        let loc = Location { seq: Seq(1), offset: 0 };
        let bytes = encode_leaf(&[Extent::new(0, 8, loc), Extent::new(4, 8, loc)]);
        assert_eq!(
            parse_leaf(&bytes).unwrap_err().to_string(),
            "leaf has a bad `extent` at byte 36: 4..12"
        );
    }
}
