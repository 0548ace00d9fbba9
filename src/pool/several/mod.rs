//! Pools of several stores: adding, weighing and removing stores, and moving what lies elsewhere than it should.
//!
//! ```text
//! add      objblk-store.json in the new store, probe, objblk.json once more, with a feature bit
//!          that an objblk which knows of one store only refuses, stores/<n>   <- the version is the commit point
//! weigh    objblk.json if it lacks the bit, stores/<n>                 <- the same
//! move     moving/<id>, then for each slot: copy, read back, delete the old one; moving/<id> goes
//! rescue   a new home store, where the first one is gone (`rescue`)
//! replace  another store in the place of one that is gone, and is not the home store (`replace`)
//! remove   nothing but fences is left there, no term writes there, nobody moves, stores/<n>
//! ```
//!
//! Whatever step a crash cuts off, every slot is found at one of its stays, and the same command goes on from there.
//!
//! `objblk.json` is the one object that is ever overwritten: older versions of objblk read nothing else that could tell them.
//! Whoever does so writes the same, and the bit never goes; so it does not matter who does it how often and how late.
//!
//! A store is removed only when nothing can come to it any more. Terms that are placed by a version in which it weighed something
//! may still write there, or need their fence there. Who moves by an old version may still copy to it, and delete the
//! original: so everybody who moves says so first (`moving/<id>`) and looks for the newest version second.

mod census;
mod change;
mod moving;
mod remove;
mod replace;
mod rescue;

pub use census::{Amount, Held, State, Waiting};
pub use moving::{Moved, Progress};
pub use remove::Writer;
pub use replace::{Losing, Replacement};
pub use rescue::{Rescued, rescue};

use super::Pool;
use crate::error::Result;
use crate::format::stores::{StoreEntry, StoreId};
use crate::spread::{Asker, Spread, name_in};
use crate::store::{Key, StoreErrorKind};
use std::sync::Arc;

/// The stores of a pool, to be changed and looked at.
#[derive(Clone, Debug)]
pub struct Several {
    pool: Pool,
    spread: Arc<Spread>,
    /// How long what is not an answer to a user waits.
    patience: Asker,
}

/// A store to be added.
#[derive(Clone, Debug)]
pub struct NewStore {
    /// Its address.
    pub url: String,
    /// The endpoints of a bucket, if they are not those of the home store.
    pub endpoints: Vec<String>,
    /// The region of a bucket, if it is not that of the home store.
    pub region: Option<String>,
    /// What it weighs.
    pub weight: u32,
}

impl NewStore {
    pub(super) fn entry(&self, id: StoreId) -> StoreEntry {
        let NewStore { url, endpoints, region, .. } = self.clone();
        StoreEntry { id, url, endpoints, region, removed: false }
    }
}

impl Several {
    /// The stores of `pool`, which lies in `spread`.
    pub fn new(pool: Pool, spread: Arc<Spread>) -> Several {
        Several { pool, spread, patience: Asker::Background }
    }

    /// It as somebody uses it who wants an error rather than to wait for a store that is away.
    pub fn impatient(self) -> Several {
        Several { patience: Asker::Setup, ..self }
    }

    /// All stores.
    pub fn spread(&self) -> &Arc<Spread> {
        &self.spread
    }

    /// The address of the store that has the slot `key`, and what it is called there; `None` where none has it.
    ///
    /// # Errors
    /// Store.
    pub async fn place_of(&self, key: &Key) -> Result<Option<(String, Key)>> {
        for stay in self.spread.version().stays(key) {
            let store = self.spread.member(Asker::Setup, stay.store).await?;
            let name = name_in(stay.generation, key)?;
            match store.head(&name).await {
                Ok(_) => return Ok(Some((store.url(), name))),
                Err(e) if e.kind == StoreErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }
}
