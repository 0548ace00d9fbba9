//! Lineage: whose objects a volume's map may name.
//!
//! A clone's log goes on where the log of its origin was when the snapshot was made: its slots and its
//! epochs are numbered behind those of the snapshot. So a slot number, or the epoch of a map object, says
//! by itself which volume's object is meant; extents, pages and terms of a clone are those of any other
//! volume, and a chain of clones is read like a flat volume, however long it is.
//!
//! A slot is of the first ancestor whose `next` is greater than its number, a map object of the first whose
//! `epoch` is not less than its epoch; what is of no ancestor is of the volume. So are all its checkpoints and
//! snapshots. The object itself names the volume that it is of. The volume begins at its last ancestor's
//! `next`, in the epoch after that ancestor's, which nobody claims, and no fence lies between the two.
//!
//! Invariant: ancestors are ordered, the oldest first; each ends (in slots and in epochs) behind the one
//! before it. A volume owns what comes behind its last ancestor, and deletes nothing else.

use super::keys::{self, ChunkId, MapObjectId};
use super::{SnapshotId, VolumeId};
use crate::store::Key;
use crate::units::{Epoch, Seq};
use serde::{Deserialize, Serialize};

/// The longest chain of clones: ancestors of a volume.
pub const ANCESTORS_MAX: usize = 64;

/// A volume that a clone comes from, directly or not, and how much of it is the clone's as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ancestor {
    /// The volume.
    pub volume: VolumeId,
    /// Its snapshot, of which the next one was made.
    pub snapshot: SnapshotId,
    /// The first slot that is not its own any more.
    pub next: Seq,
    /// The last epoch that is its own.
    pub epoch: Epoch,
}

/// A volume and its ancestors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    volume: VolumeId,
    ancestors: Vec<Ancestor>,
}

impl Lineage {
    /// Of `volume`, which comes from these.
    pub fn new(volume: VolumeId, ancestors: Vec<Ancestor>) -> Lineage {
        Lineage { volume, ancestors }
    }

    /// True where `ancestors` could be those of a volume.
    pub fn is_valid(ancestors: &[Ancestor]) -> bool {
        let ordered = |pair: &[Ancestor]| {
            pair[0].next < pair[1].next
                && pair[0].epoch < pair[1].epoch
                && pair[0].volume != pair[1].volume
        };
        let bounded = |a: &Ancestor| a.next.0 <= super::page::SEQ_MAX && a.epoch.0 < u64::MAX / 2;
        ancestors.len() <= ANCESTORS_MAX
            && ancestors.iter().all(bounded)
            && ancestors.windows(2).all(ordered)
    }

    /// The first slot of the volume's own log.
    pub fn first_slot(&self) -> Seq {
        self.ancestors.last().map_or(Seq(0), |origin| origin.next)
    }

    /// The epoch that the volume begins in, which nobody claims.
    pub fn first_epoch(&self) -> Epoch {
        self.ancestors.last().map_or(Epoch(0), |origin| origin.epoch.next())
    }

    /// True where the volume may delete the chunk in this slot.
    pub fn owns_slot(&self, seq: Seq) -> bool {
        seq >= self.first_slot()
    }

    /// True where the volume may delete the map object.
    pub fn owns_map_object(&self, object: MapObjectId) -> bool {
        object.epoch >= self.first_epoch()
    }

    /// The chunk in a slot that was written in `epoch`.
    pub fn chunk(&self, seq: Seq, epoch: Epoch) -> ChunkId {
        ChunkId { volume: self.slot_volume(seq), epoch, seq }
    }

    /// The volume of the chunk in a slot.
    pub fn slot_volume(&self, seq: Seq) -> VolumeId {
        match self.owns_slot(seq) {
            true => self.volume,
            false => self.ancestor(|ancestor| seq < ancestor.next),
        }
    }

    /// The oldest volume that it comes from.
    pub fn root(&self) -> VolumeId {
        self.ancestors.first().map_or(self.volume, |oldest| oldest.volume)
    }

    /// The volume of a map object.
    pub fn map_volume(&self, object: MapObjectId) -> VolumeId {
        match self.owns_map_object(object) {
            true => self.volume,
            false => self.ancestor(|ancestor| object.epoch <= ancestor.epoch),
        }
    }

    /// The name of a map object.
    pub fn map_object(&self, object: MapObjectId) -> Key {
        keys::map_object(self.map_volume(object), object)
    }

    fn ancestor(&self, is_its: impl Fn(&Ancestor) -> bool) -> VolumeId {
        let found = self.ancestors.iter().find(|ancestor| is_its(ancestor));
        found.map_or(self.volume, |ancestor| ancestor.volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(number: u8) -> VolumeId {
        VolumeId::from_bytes([number; 16])
    }

    fn ancestor(number: u8, next: u64, epoch: u64) -> Ancestor {
        let snapshot = SnapshotId::from_bytes([number; 16]);
        Ancestor { volume: volume(number), snapshot, next: Seq(next), epoch: Epoch(epoch) }
    }

    #[test]
    fn numbers_tell_the_volume() {
        let lineage = Lineage::new(volume(9), vec![ancestor(1, 10, 2), ancestor(2, 30, 7)]);
        let slots = [0, 9, 10, 29, 30, 99].map(|seq| lineage.chunk(Seq(seq), Epoch(1)).volume);
        assert_eq!(slots, [1, 1, 2, 2, 9, 9].map(volume));
        let map = |epoch| lineage.map_volume(MapObjectId { epoch: Epoch(epoch), number: 0 });
        assert_eq!([1, 2, 3, 7, 8, 9].map(map), [1, 1, 2, 2, 9, 9].map(volume));
        assert_eq!((lineage.first_slot(), lineage.first_epoch()), (Seq(30), Epoch(8)));
        assert!(lineage.owns_slot(Seq(30)) && !lineage.owns_slot(Seq(29)));
        let flat = Lineage::new(volume(3), Vec::new());
        assert_eq!(flat.chunk(Seq(0), Epoch(0)).volume, volume(3));
        assert!(flat.owns_slot(Seq(0)));
    }

    #[test]
    fn ancestors_are_ordered() {
        assert!(Lineage::is_valid(&[ancestor(1, 10, 2), ancestor(2, 30, 7)]));
        assert!(!Lineage::is_valid(&[ancestor(1, 10, 2), ancestor(2, 10, 7)]));
        assert!(!Lineage::is_valid(&[ancestor(1, 10, 2), ancestor(2, 30, 2)]));
        assert!(!Lineage::is_valid(&[ancestor(1, 10, 2), ancestor(1, 30, 7)]));
        assert!(!Lineage::is_valid(&[ancestor(1, u64::MAX, 2)]));
        let long =
            (0..=ANCESTORS_MAX as u64).map(|n| ancestor(n as u8, n + 1, n)).collect::<Vec<_>>();
        assert!(!Lineage::is_valid(&long) && Lineage::is_valid(&long[1..]));
    }
}
