//! The mirror of a dead owner: read, verified, and gone on from.

use super::segment::{Ending, Header, Segment};
use super::{
    CLAIMS, Change, JOURNALED, damaged, epoch_folder, epochs, failed, is_journaled, numbers,
    sealed, segment_path,
};
use crate::cipher::LocalKey;
use crate::error::{Error, Result};
use crate::format::VolumeId;
use crate::units::{Epoch, Seq};
use std::fs;
use std::path::Path;

/// The mirror of a dead owner, read and verified.
#[derive(Debug)]
pub struct Recorded {
    epoch: Epoch,
    segments: Vec<(Seq, Vec<u8>)>,
    claims: Vec<String>,
    journaled: bool,
}

impl Recorded {
    /// Reads the mirror of `volume` at `root`, whose writer is dead. `key`: that of an encrypted volume.
    ///
    /// # Errors
    /// Failed: there is none, or it does not hold all that its owner acknowledged.
    pub fn read(root: &Path, volume: VolumeId, key: Option<&LocalKey>) -> Result<Recorded> {
        let claims = fs::read_to_string(root.join(CLAIMS));
        let claims = claims.map_err(|e| failed("read", root, e))?;
        let claims = claims.lines().filter(|line| !line.is_empty()).map(Into::into).collect();
        let Some(epoch) = epochs(root)?.into_iter().next() else {
            return Err(Error::failed(format!("the mirror {} is empty", root.display())));
        };
        let folder = epoch_folder(root, epoch);
        let mut segments = Vec::new();
        for seq in numbers(&folder)? {
            let path = segment_path(&folder, Seq(seq));
            let bytes = fs::read(&path).map_err(|e| failed("read", &path, e))?;
            let opened = sealed::open(bytes, key).map_err(|e| damaged(&path, e.to_string()))?;
            segments.push((Seq(seq), opened));
        }
        let journaled = is_journaled(root)?;
        let recorded = Recorded { epoch, segments, claims, journaled };
        recorded.verify(&folder, volume)?;
        Ok(recorded)
    }

    fn verify(&self, folder: &Path, volume: VolumeId) -> Result<()> {
        let damaged = |seq: Seq, why: String| damaged(&segment_path(folder, seq), why);
        let mut left = self.segments.len();
        let mut place = self.first();
        for (seq, bytes) in &self.segments {
            let segment = Segment::parse(bytes).map_err(|e| damaged(*seq, e.to_string()))?;
            let wanted = Header { volume, epoch: self.epoch, seq: *seq };
            if segment.header != wanted || *seq != place {
                return Err(damaged(place, "a segment is out of place or missing".into()));
            }
            (left, place) = (left - 1, seq.next());
            match (segment.ending, left) {
                (Ending::Continued, 0) => return Err(damaged(place, "it is missing".into())),
                (Ending::Continued, _) | (_, 0) => {}
                // The next one was made, and this one was about to say so.
                (_, 1) if self.is_empty_at_its_end() => {}
                _ => return Err(damaged(*seq, "it ends before the next one begins".into())),
            }
        }
        match self.segments.is_empty() {
            true => Err(damaged(Seq(0), "there is no segment".into())),
            false => Ok(()),
        }
    }

    /// Whether nothing was put into the last segment.
    fn is_empty_at_its_end(&self) -> bool {
        let last = self.segments.last().and_then(|(_, bytes)| Segment::parse(bytes).ok());
        last.is_some_and(|last| last.changes.is_empty() && last.ending == Ending::Open)
    }

    /// The epoch of the owner that wrote it.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The first slot whose changes are there.
    pub fn first(&self) -> Seq {
        self.segments.first().map_or(Seq(0), |(seq, _)| *seq)
    }

    /// Whether slots before the first one may be in the journal only.
    pub fn is_journaled(&self) -> bool {
        self.journaled
    }

    /// The log has every slot before the first one: no successor needs the journal from now on.
    ///
    /// # Errors
    /// Failed: that cannot be noted.
    pub fn stand_alone(&mut self, root: &Path) -> Result<()> {
        let note = epoch_folder(root, self.epoch).join(JOURNALED);
        fs::remove_file(&note).map_err(|e| failed("write", &note, e))?;
        self.journaled = false;
        Ok(())
    }

    /// Whether the epoch that was claimed with `nonce` was claimed for this device.
    pub fn is_own_claim(&self, nonce: &str) -> bool {
        self.claims.iter().any(|claim| claim == nonce)
    }

    /// The slots from `first` on, each with its changes in order; all but the last one are complete.
    pub fn slots_from(&self, first: Seq) -> impl Iterator<Item = Vec<Change<'_>>> {
        let segments = self.segments.iter().filter(move |(seq, _)| *seq >= first);
        let parsed = segments.filter_map(|(_, bytes)| Segment::parse(bytes).ok());
        parsed.map(|segment| segment.changes)
    }
}
