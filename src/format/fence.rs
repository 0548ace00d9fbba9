//! The fence: what a new owner places in the old owner's next slot, so that the old one cannot
//! commit there. It names the epoch that the log continues in: terms form a linked list.
//!
//! ```text
//!  0  8 magic "OBJBLKFE"      32  8 epoch of the slot (the old owner's)
//!  8  2 version               40  8 seq of the slot
//! 10  6 zero                  48  8 next epoch (the new owner's), greater than epoch
//! 16 16 volume id             56  4 length of the owner's description (at most 512)
//!                             60  n the description, UTF-8;  4 crc32c of all before
//! ```

use super::VolumeId;
use super::codec::{FormatResult, Problem, Reader, Writer, check_trailing_crc};
use crate::units::{Epoch, Seq};

/// First bytes of a fence.
pub const MAGIC: &[u8; 8] = b"OBJBLKFE";
const VERSION: u16 = 1;
const OBJECT: &str = "fence";
/// Longest description of an owner, in bytes.
const OWNER_MAX: usize = 512;

/// The end of one owner's term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch whose term ends.
    pub epoch: Epoch,
    /// The slot it occupies. The log goes on in the slot after it.
    pub seq: Seq,
    /// The epoch in which the log goes on.
    pub next_epoch: Epoch,
    /// Who took over, for the message that the old owner prints.
    pub owner: String,
}

impl Fence {
    /// The object's bytes. A description that is too long is cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut end = self.owner.len().min(OWNER_MAX);
        while !self.owner.is_char_boundary(end) {
            end -= 1;
        }
        let mut w = Writer::with_capacity(64 + end);
        w.put(MAGIC).u16(VERSION).zeros(6).put(&self.volume.bytes());
        w.u64(self.epoch.0).u64(self.seq.0).u64(self.next_epoch.0);
        w.u32(end as u32).put(&self.owner.as_bytes()[..end]).crc();
        w.finish()
    }

    /// Parses a whole fence object.
    pub fn parse(bytes: &[u8]) -> FormatResult<Fence> {
        let mut r = Reader::new(OBJECT, bytes);
        r.magic(MAGIC)?;
        r.version(VERSION)?;
        let mut r = Reader::new(OBJECT, check_trailing_crc(OBJECT, bytes)?);
        r.take("magic and version", 10)?;
        r.reserved("reserved", 6)?;
        let volume = VolumeId::from_bytes(r.bytes16("volume")?);
        let (epoch, seq) = (Epoch(r.u64("epoch")?), Seq(r.u64("seq")?));
        let next_epoch = Epoch(r.u64("next epoch")?);
        if next_epoch <= epoch {
            return Err(r.bad("next epoch", format!("{next_epoch} does not follow {epoch}")));
        }
        let len = r.count("owner length", 1)?;
        if len > OWNER_MAX {
            return Err(r.bad("owner length", len));
        }
        let text = r.take("owner", len)?;
        let owner = std::str::from_utf8(text)
            .map_err(|_| r.error("owner", Problem::Value("not UTF-8".into())))?;
        r.end()?;
        Ok(Fence { volume, epoch, seq, next_epoch, owner: owner.into() })
    }
}
