//! What an examination tells.

use super::flaw::{Affected, Damage};
use super::space::{Amount, Space};
use crate::format::VolumeId;
use serde::Serialize;

/// Damages of a volume that are told one by one.
pub(super) const DAMAGES_MAX: usize = 10_000;

/// Of everything that was examined.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Address of the store.
    pub store: String,
    /// Every byte of data was verified, not only what names it.
    pub data: bool,
    /// Nothing is damaged, and everything could be examined.
    pub clean: bool,
    /// What is wrong with the pool itself.
    pub damages: Vec<Damage>,
    /// The volumes.
    pub volumes: Vec<VolumeReport>,
    /// What is left of volumes without a name.
    pub nameless: Vec<Nameless>,
    /// What is odd, and harms nothing.
    pub notes: Vec<String>,
    /// Requests to the store.
    pub requests: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
}

/// Of a volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeReport {
    /// Its name.
    pub name: String,
    /// The volume.
    pub id: VolumeId,
    /// Why it could not be examined.
    pub error: Option<String>,
    /// What is wrong.
    pub damages: Vec<Damage>,
    /// Damages beyond those.
    pub more_damages: u64,
    /// What cannot be read: of the volume, of its snapshots and, where only this volume was asked for, of
    /// its clones.
    pub affected: Vec<Affected>,
    /// How many of its snapshots were followed.
    pub snapshots: u64,
    /// Parts of the map that were verified.
    pub map_items: u64,
    /// Chunks that were verified, less those that a volume before had as well.
    pub chunks: u64,
    /// Its objects; nothing where that cannot be told.
    pub space: Option<Space>,
    /// What is odd, and harms nothing.
    pub notes: Vec<String>,
}

/// A volume without a name.
#[derive(Clone, Debug, Serialize)]
pub struct Nameless {
    /// The volume.
    pub id: VolumeId,
    /// Its deletion was begun, when it had this name.
    pub deleting: Option<String>,
    /// Its objects.
    pub stored: Amount,
}

impl VolumeReport {
    pub(super) fn new(name: &str, id: VolumeId) -> VolumeReport {
        VolumeReport {
            name: name.into(),
            id,
            error: None,
            damages: Vec::new(),
            more_damages: 0,
            affected: Vec::new(),
            snapshots: 0,
            map_items: 0,
            chunks: 0,
            space: None,
            notes: Vec::new(),
        }
    }

    /// Adds damages.
    pub(super) fn tell(&mut self, damages: impl IntoIterator<Item = Damage>) {
        for damage in damages {
            match self.damages.len() < DAMAGES_MAX {
                true => self.damages.push(damage),
                false => self.more_damages += 1,
            }
        }
    }

    /// Nothing is wrong with it, as far as could be seen.
    pub fn is_sound(&self) -> bool {
        self.damages.is_empty()
    }
}

impl Report {
    /// How many damages there are.
    pub fn damage_count(&self) -> u64 {
        let of = |volume: &VolumeReport| volume.damages.len() as u64 + volume.more_damages;
        self.damages.len() as u64 + self.volumes.iter().map(of).sum::<u64>()
    }
}
