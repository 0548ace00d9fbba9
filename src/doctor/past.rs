//! What is kept of a volume's past: its points, and the log from the oldest of them on.
//!
//! The owner deletes the oldest point first, and only then what that one alone needs. So as long as the oldest
//! point that was seen is there, nothing has gone that any of them needs: what is missing then is lost.

use super::flaw::{Affected, Damage, Flaw, Found, read};
use super::gather::{Gathered, is_damage, is_there, named_in};
use super::state::State;
use super::trace::BadChunks;
use super::used::Used;
use crate::error::Result;
use crate::format::VolumeId;
use crate::format::checkpoint::{Checkpoint, Garbage, Point};
use crate::format::keys::{self, ChunkId};
use crate::format::record::Record;
use crate::format::volume::VolumeObject;
use crate::log::Terms;
use crate::log::replay::Replay;
use crate::store::{Key, Store, list_all};
use crate::units::Seq;
use crate::volume::replica_cut;
use std::collections::BTreeSet;

/// The past of a volume, as far as it is there.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// The oldest point.
    oldest: Option<Key>,
    /// Chunks of the log from there on, to the newest checkpoint, and the sectors in them.
    pub chunks: Vec<(ChunkId, u32)>,
    /// What only points need.
    pub kept: Vec<Garbage>,
    /// What nobody needs, and the owner deletes.
    pub dead: Vec<Garbage>,
    /// Checkpoints that are needed.
    pub points: BTreeSet<Key>,
}

impl Past {
    /// Every chunk of the log is needed, for states between two points.
    pub fn note(&self, used: &mut Used) {
        for (chunk, sectors) in self.chunks.iter().filter(|(_, sectors)| *sectors > 0) {
            used.note(*chunk, *sectors);
        }
    }

    /// Damaged chunks that it needs.
    pub fn damaged(&self, bad: &BadChunks) -> impl Iterator<Item = Damage> {
        let chunks = self.chunks.iter().filter_map(|(chunk, _)| Some((chunk, bad.get(chunk)?)));
        chunks.map(|(chunk, bad)| Damage::of(&chunk.key(), &bad.flaw, "a chunk"))
    }

    /// Nothing of it has expired since it was looked at.
    ///
    /// # Errors
    /// Store.
    pub async fn is_there(&self, store: &dyn Store) -> Result<bool> {
        match &self.oldest {
            Some(oldest) => is_there(store, oldest).await,
            None => Ok(true),
        }
    }
}

impl Gathered {
    /// Looks at the past of the volume called `name`.
    ///
    /// # Errors
    /// Those of the store that tell nothing of an object.
    pub(super) async fn look_back(
        &mut self,
        store: &dyn Store,
        name: &str,
        description: &VolumeObject,
    ) -> Result<()> {
        let Some(newest) = self.checkpoint.clone() else { return Ok(()) };
        if newest.retention_ms == 0 {
            // Points that are left go as soon as their owner comes to it, and nobody reads them.
            self.past.dead = newest.garbage;
            return Ok(());
        }
        let (id, lineage) = (description.id, description.lineage());
        // The newest come first: one that is not there, with an older one behind it, has not expired.
        let listed = list_all(store, &keys::checkpoints(id)).await?;
        let listed: BTreeSet<Key> = listed.into_iter().map(|object| object.key).collect();
        let key = |point: &Point| keys::checkpoint(id, point.next, point.epoch);
        let gone = newest.points.iter().take_while(|point| !listed.contains(&key(point))).count();
        let mut first = None;
        let mut garbage = Vec::new();
        for point in &newest.points[gone..] {
            let (called, key) = (format!("{name} at slot {}", point.next), key(point));
            match read_point(store, &key, (id, point)).await? {
                Ok(found) => {
                    self.states.push(State::of(called, lineage.clone(), &found));
                    garbage.push(found.garbage.clone());
                    first.get_or_insert(found);
                }
                // It has expired since the listing.
                Err(Flaw::Missing) if first.is_none() && listed.contains(&key) => continue,
                Err(flaw) => {
                    self.lost.push(Affected::all(called.clone(), newest.size.0));
                    self.damages.push(Damage::of(
                        &key,
                        &flaw,
                        &format!("what is kept of {called}"),
                    ));
                    garbage.push(Vec::new());
                }
            }
            self.past.oldest.get_or_insert_with(|| key.clone());
            self.past.points.insert(key);
        }
        garbage.push(newest.garbage.clone());
        let mut garbage = garbage.into_iter();
        self.past.dead = garbage.next().unwrap_or_default();
        self.past.kept = garbage.flatten().collect();
        self.states.sort_by_key(|state| state.next);
        match first {
            Some(first) => self.follow_log(store, name, (&first, newest.next)).await,
            None => Ok(()),
        }
    }

    /// The log from a point on, as who reads a moment behind it does.
    async fn follow_log(
        &mut self,
        store: &dyn Store,
        name: &str,
        (from, to): (&Checkpoint, Seq),
    ) -> Result<()> {
        let id = from.volume;
        let mut terms = Terms::new(from.terms.clone());
        let cut = self.replica.as_ref().and_then(|state| replica_cut(state, from.epoch));
        let mut replay = Replay::new(store, id, from.next, from.epoch).cut(cut);
        while replay.next_slot() < to {
            let slot = replay.next_slot();
            let found = replay.next_chunk(&mut |first, epoch| terms.begin(first, epoch)).await;
            let chunk = match found {
                Ok(Some(chunk)) if chunk.seq < to => chunk,
                Ok(Some(_)) => return Ok(()),
                Ok(None) if replay.next_slot() >= to => return Ok(()),
                Ok(None) => {
                    let slot = replay.next_slot();
                    let key = keys::slot(id, slot, replay.epoch());
                    let what = format!("the log that is kept of {name} ends before slot {to}");
                    self.damages.push(Damage::of(&key, &Flaw::Missing, &what));
                    return Ok(());
                }
                Err(e) if is_damage(&e) => {
                    let what = format!("what is kept of {name} ends at slot {slot}: {e}");
                    let (object, kind) = (named_in(&what, id), super::flaw::Kind::Damaged);
                    self.damages.push(Damage { object, kind, what });
                    return Ok(());
                }
                Err(e) => return Err(e),
            };
            let object = ChunkId { volume: id, epoch: terms.epoch_of(chunk.seq), seq: chunk.seq };
            self.past.chunks.push((object, chunk.payload_sectors()));
            for record in &chunk.records {
                let Record::RolledBack(snapshot) = record else { continue };
                replay.restart();
                let key = keys::snapshot(id, *snapshot);
                if !is_there(store, &key).await? {
                    let what = format!("what {name} was rolled back to in slot {}", chunk.seq);
                    self.damages.push(Damage::of(&key, &Flaw::Missing, &what));
                }
            }
        }
        Ok(())
    }
}

async fn read_point(
    store: &dyn Store,
    key: &Key,
    (id, point): (VolumeId, &Point),
) -> Result<Found<Checkpoint>> {
    let found = read(store, key, Checkpoint::parse).await?;
    Ok(found.and_then(|found| match (found.volume, found.point()) == (id, *point) {
        true => Ok(found),
        false => {
            Err(Flaw::Inconsistent("it is another checkpoint than the newest one names".into()))
        }
    }))
}
