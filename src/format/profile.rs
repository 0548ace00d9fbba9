//! The profile: what was read first after an attach, so that the next one can fetch it ahead.
//!
//! ```text
//!  0  8 magic "OBJBLKPF"      32  4 number of runs
//!  8  2 version               36 12 each: first block u64, number of blocks u32 (at least 1)
//! 10  6 zero                      4 crc32c of all before
//! 16 16 volume id
//! ```
//!
//! A block is 64 KiB of the disk. Runs are in the order in which they were first read; a volume has one
//! profile at most, and nothing depends on it.

use super::VolumeId;
use super::codec::{FormatResult, Reader, Writer, check_trailing_crc};
use super::volume::VOLUME_SIZE_MAX;

/// First bytes of a profile.
pub const MAGIC: &[u8; 8] = b"OBJBLKPF";
const VERSION: u16 = 1;
const OBJECT: &str = "profile";
const RUN_LEN: usize = 12;

/// Bytes of the disk in a block.
pub const BLOCK_SIZE: u64 = 64 << 10;
/// The most blocks that a profile holds: 1 GiB.
pub const BLOCKS_MAX: u64 = 1 << 14;

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The first one.
    pub first: u64,
    /// How many.
    pub count: u32,
}

/// What was read first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The volume.
    pub volume: VolumeId,
    /// In the order in which they were first read: at most [`BLOCKS_MAX`] blocks.
    pub runs: Vec<BlockRun>,
}

impl Profile {
    /// A profile of `blocks`, of which those beyond [`BLOCKS_MAX`] are left out.
    pub fn new(volume: VolumeId, blocks: &[u64]) -> Profile {
        let mut runs: Vec<BlockRun> = Vec::new();
        for block in blocks.iter().take(BLOCKS_MAX as usize) {
            match runs.last_mut() {
                Some(run) if run.first + u64::from(run.count) == *block => run.count += 1,
                _ => runs.push(BlockRun { first: *block, count: 1 }),
            }
        }
        Profile { volume, runs }
    }

    /// The blocks, one by one.
    pub fn blocks(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().flat_map(|run| run.first..run.first + u64::from(run.count))
    }

    /// The object's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(40 + self.runs.len() * RUN_LEN);
        w.put(MAGIC).u16(VERSION).zeros(6).put(&self.volume.bytes());
        w.u32(self.runs.len() as u32);
        for run in &self.runs {
            w.u64(run.first).u32(run.count);
        }
        w.crc();
        w.finish()
    }

    /// Parses a whole profile.
    pub fn parse(bytes: &[u8]) -> FormatResult<Profile> {
        let mut r = Reader::new(OBJECT, bytes);
        r.magic(MAGIC)?;
        r.version(VERSION)?;
        let mut r = Reader::new(OBJECT, check_trailing_crc(OBJECT, bytes)?);
        r.take("magic and version", 10)?;
        r.reserved("reserved", 6)?;
        let volume = VolumeId::from_bytes(r.bytes16("volume")?);
        let count = r.count("run count", RUN_LEN)?;
        let (mut runs, mut blocks) = (Vec::with_capacity(count), 0);
        for _ in 0..count {
            let run = BlockRun { first: r.u64("first block")?, count: r.u32("block count")? };
            let end = run.first.checked_add(run.count.into());
            if run.count == 0 || end.is_none_or(|end| end > VOLUME_SIZE_MAX / BLOCK_SIZE) {
                return Err(r.bad("block count", format!("{} at {}", run.count, run.first)));
            }
            blocks += u64::from(run.count);
            if blocks > BLOCKS_MAX {
                return Err(r.bad("block count", format!("{blocks} in all")));
            }
            runs.push(run);
        }
        r.end()?;
        Ok(Profile { volume, runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> VolumeId {
        VolumeId::from_bytes([7; 16])
    }

    #[test]
    fn blocks_in_order_make_runs() {
        let blocks = [5, 6, 7, 2, 3, 9, 8];
        let profile = Profile::new(id(), &blocks);
        assert_eq!(profile.runs.len(), 4);
        assert_eq!(profile.blocks().collect::<Vec<_>>(), blocks);
        assert_eq!(Profile::parse(&profile.encode()).unwrap(), profile);
        let all: Vec<u64> = (0..2 * BLOCKS_MAX).map(|n| n * 2).collect();
        let profile = Profile::new(id(), &all);
        assert_eq!(profile.blocks().count() as u64, BLOCKS_MAX);
        assert_eq!(Profile::parse(&profile.encode()).unwrap(), profile);
    }

    #[test]
    fn impossible_runs_are_refused() {
        for (first, count) in
            [(0, 0), (u64::MAX, 1), (VOLUME_SIZE_MAX / BLOCK_SIZE, 1), (0, 1 << 15)]
        {
            let profile = Profile { volume: id(), runs: vec![BlockRun { first, count }] };
            let error = Profile::parse(&profile.encode()).unwrap_err().to_string();
            assert!(error.contains("bad `block count`"), "{error}");
        }
    }
}
