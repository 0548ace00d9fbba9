//! The reference model of snapshots: which there must be, which there must not, and that none changes.

use crate::model::Image;
use objblk::format::SnapshotId;
use std::collections::{BTreeMap, BTreeSet};

/// What is known of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// It was asked for, and may be there.
    Wanted,
    /// It was acknowledged: it is there.
    Made,
    /// Its deletion was asked for: it may be gone.
    Doomed,
    /// Its deletion was acknowledged: it is not there.
    Deleted,
}

/// All snapshots that were ever asked for.
#[derive(Debug, Default)]
pub struct Shelf {
    known: BTreeMap<SnapshotId, Known>,
    images: BTreeMap<SnapshotId, Image>,
    /// Of those that are deleted at a time: somebody has asked to keep them, ...
    keeping: BTreeSet<SnapshotId>,
    /// ... and was told that they are kept.
    kept: BTreeSet<SnapshotId>,
}

impl Shelf {
    /// The id of one that is asked for now.
    pub fn wanted(&mut self) -> SnapshotId {
        let number = self.known.len() as u128 + 1;
        let id = SnapshotId::from_bytes(number.to_le_bytes());
        self.known.insert(id, Known::Wanted);
        id
    }

    /// The id of one that is asked for now, and is deleted at that time.
    pub fn wanted_until(&mut self, at_ms: u64) -> SnapshotId {
        let [_, number @ ..] = (self.known.len() as u64).to_be_bytes();
        let id = SnapshotId::expiring(at_ms, number);
        self.known.insert(id, Known::Wanted);
        id
    }

    /// Somebody asks to keep one.
    pub fn keeping(&mut self, id: SnapshotId) {
        self.keeping.insert(id);
    }

    /// It was acknowledged.
    pub fn kept(&mut self, id: SnapshotId) {
        self.kept.insert(id);
    }

    /// Whether its owner deletes it, at that time or later.
    pub fn is_over(&self, id: SnapshotId, now_ms: u64) -> bool {
        id.expires_at_ms().is_some_and(|at| at <= now_ms) && !self.keeping.contains(&id)
    }

    /// What a snapshot that nobody has deleted holds, if that is known.
    pub fn image(&self, id: SnapshotId) -> Option<&Image> {
        self.images.get(&id).filter(|_| self.known.get(&id) == Some(&Known::Made))
    }

    /// One was acknowledged. False: somebody has deleted it since, or tries to.
    pub fn made(&mut self, id: SnapshotId) -> bool {
        let known = self.known.get_mut(&id).expect("it was asked for");
        if *known == Known::Wanted {
            *known = Known::Made;
        }
        *known == Known::Made
    }

    /// The deletion of one is asked for.
    pub fn doomed(&mut self, id: SnapshotId) {
        let known = self.known.get_mut(&id).expect("it was asked for");
        if *known != Known::Deleted {
            *known = Known::Doomed;
        }
    }

    /// It was acknowledged.
    pub fn deleted(&mut self, id: SnapshotId) {
        self.known.insert(id, Known::Deleted);
    }

    /// Checks which snapshots would be found if everybody died now.
    pub fn check<T>(&mut self, found: &BTreeMap<SnapshotId, T>, now_ms: u64) -> Result<(), String> {
        for (id, known) in &mut self.known {
            let expired = id.expires_at_ms().is_some_and(|at| at <= now_ms);
            if expired && !self.kept.contains(id) && !found.contains_key(id) {
                // Or it never was; it does not come back.
                if *known != Known::Wanted {
                    *known = Known::Deleted;
                }
                continue;
            }
            match (&*known, found.contains_key(id)) {
                (Known::Made, false) => return Err(format!("snapshot {id} was made and is lost")),
                (Known::Deleted, true) => return Err(format!("snapshot {id} is back")),
                _ => {}
            }
        }
        // Those of schedules come and go.
        let mut others = found.keys().filter(|id| !id.is_scheduled());
        match others.find(|id| !self.known.contains_key(id)) {
            Some(id) => Err(format!("nobody asked for snapshot {id}")),
            None => Ok(()),
        }
    }

    /// A snapshot holds this now, and so it did before.
    pub fn seen(&mut self, id: SnapshotId, image: Image) -> Result<(), String> {
        let first = self.images.entry(id).or_insert_with(|| image.clone());
        if *first == image {
            return Ok(());
        }
        let differ = first.stamps.iter().zip(&image.stamps).filter(|(a, b)| a != b).count();
        Err(format!(
            "snapshot {id} has changed: {differ} sectors, size {} for {}",
            image.size, first.size
        ))
    }
}
