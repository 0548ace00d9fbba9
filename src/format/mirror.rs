//! What says which copies of a mirrored volume are complete. JSON.
//!
//! ```text
//! mirror/<id>/state/<~n>   version (1), volume: the id, number: n, term, replicas [store, store], before [copy ..],
//!                          in_sync [copy ..], joining: a copy (may be missing); a copy is {store, generation}
//! ```
//!
//! The states of a volume are numbered from 1 on. `in_sync` are the copies that have everything, the first of
//! them decides; `before` are those of the state before. `joining` is being made complete. `generation` is the number of the
//! state by which that copy was begun. `term` tells who wrote it from anybody else.

use super::VolumeId;
use super::codec::{FormatError, FormatResult, Problem};
use super::pool::parse_json;
use super::stores::StoreId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const VERSION: u32 = 1;
const OBJECT: &str = "mirror state";

/// How many stores hold a mirrored volume.
pub const REPLICAS: usize = 2;

/// A copy of a mirrored volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Twin {
    /// Where it is.
    pub store: StoreId,
    /// The number of the state by which it was begun.
    pub generation: u32,
}

/// `mirror/<id>/state/<~n>`: which copies of a volume are complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MirrorState {
    version: u32,
    /// The volume.
    pub volume: VolumeId,
    /// Its number.
    pub number: u32,
    /// Who wrote it.
    pub term: Uuid,
    /// The stores that it is to be in.
    pub replicas: Vec<StoreId>,
    /// The complete ones of the state before.
    pub before: Vec<Twin>,
    /// The complete ones; the first decides.
    pub in_sync: Vec<Twin>,
    /// The one that is being made complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joining: Option<Twin>,
}

impl MirrorState {
    /// The first state of a volume, in these stores.
    pub fn first(volume: VolumeId, replicas: [StoreId; REPLICAS], term: Uuid) -> MirrorState {
        let twins = replicas.map(|store| Twin { store, generation: 1 }).to_vec();
        MirrorState {
            version: VERSION,
            volume,
            number: 1,
            term,
            replicas: replicas.to_vec(),
            before: twins.clone(),
            in_sync: twins,
            joining: None,
        }
    }

    fn next(&self, term: Uuid) -> MirrorState {
        MirrorState {
            number: self.number.saturating_add(1),
            term,
            before: self.in_sync.clone(),
            joining: None,
            ..self.clone()
        }
    }

    /// The same, of a new writer. What was joining begins again.
    pub fn taken(&self, term: Uuid) -> MirrorState {
        self.next(term)
    }

    /// Without a store; `None`, where no other one is complete.
    pub fn without(&self, store: StoreId, term: Uuid) -> Option<MirrorState> {
        let mut next = self.next(term);
        next.in_sync.retain(|twin| twin.store != store);
        next.joining = self.joining.filter(|twin| twin.store != store);
        (!next.in_sync.is_empty()).then_some(next)
    }

    /// The store begins to be made complete; `None`, where none is missing.
    pub fn joining(&self, term: Uuid) -> Option<MirrorState> {
        let mut next = self.next(term);
        let missing = self.missing()?;
        next.joining = Some(Twin { store: missing, generation: next.number });
        Some(next)
    }

    /// What was joining is complete.
    pub fn joined(&self, term: Uuid) -> Option<MirrorState> {
        let mut next = self.next(term);
        next.in_sync.push(self.joining?);
        Some(next)
    }

    /// With another store in the place of one that has no complete copy.
    pub fn replaced(&self, lost: StoreId, by: StoreId, term: Uuid) -> MirrorState {
        let mut next = self.next(term);
        for store in next.replicas.iter_mut().filter(|store| **store == lost) {
            *store = by;
        }
        next
    }

    /// The store that has no complete copy.
    pub fn missing(&self) -> Option<StoreId> {
        let has = |store: &StoreId| self.in_sync.iter().any(|twin| twin.store == *store);
        self.replicas.iter().copied().find(|store| !has(store))
    }

    /// The stores that all have to have this state before it counts.
    pub fn decided_by(&self) -> impl Iterator<Item = StoreId> {
        let was = |twin: &&Twin| self.before.iter().any(|before| before.store == twin.store);
        self.in_sync.iter().filter(was).map(|twin| twin.store)
    }

    /// Every copy that is written to, in this order.
    pub fn written(&self) -> impl DoubleEndedIterator<Item = Twin> {
        self.in_sync.iter().chain(&self.joining).copied()
    }

    /// Parses it and checks every value.
    pub fn parse(bytes: &[u8]) -> FormatResult<MirrorState> {
        let state: MirrorState = parse_json(OBJECT, bytes)?;
        if state.version != VERSION {
            return Err(error("version", Problem::Unsupported(state.version.to_string())));
        }
        state.check()?;
        Ok(state)
    }

    fn check(&self) -> FormatResult<()> {
        let bad = |field, why: String| Err(error(field, Problem::Value(why)));
        if self.number == 0 {
            return bad("number", "0".into());
        }
        let differ = |stores: &[StoreId]| stores.iter().is_sorted_by(|a, b| a != b);
        if self.replicas.len() != REPLICAS || !differ(&self.replicas) {
            return bad("replicas", format!("{} of them, or one twice", self.replicas.len()));
        }
        let is_sound = |twins: &[Twin]| {
            let stores: Vec<StoreId> = twins.iter().map(|twin| twin.store).collect();
            let fits = |t: &Twin| {
                self.replicas.contains(&t.store) && (1..=self.number).contains(&t.generation)
            };
            (1..=REPLICAS).contains(&twins.len()) && differ(&stores) && twins.iter().all(fits)
        };
        if !is_sound(&self.before) || self.decided_by().next().is_none() {
            return bad("before", format!("{} copies, or others", self.before.len()));
        }
        let written: Vec<Twin> = self.written().collect();
        if !is_sound(&self.in_sync) || !is_sound(&written) {
            return bad("in_sync", format!("{} copies, or others", written.len()));
        }
        Ok(())
    }
}

fn error(field: &'static str, problem: Problem) -> FormatError {
    FormatError { object: OBJECT, field, offset: 0, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: StoreId = StoreId::HOME;

    fn first() -> (MirrorState, StoreId, Uuid) {
        let b = StoreId::of_number(7);
        let term = Uuid::from_bytes([3; 16]);
        (MirrorState::first(VolumeId::from_bytes([1; 16]), [A, b], term), b, term)
    }

    #[test]
    fn a_store_leaves_and_comes_back_as_another_copy() {
        let (first, b, term) = first();
        assert_eq!(first.decided_by().collect::<Vec<_>>(), [A, b]);
        let alone = first.without(A, term).unwrap();
        assert_eq!((alone.missing(), alone.decided_by().collect::<Vec<_>>()), (Some(A), vec![b]));
        assert_eq!(alone.without(b, term), None);
        let joining = alone.joining(term).unwrap();
        assert_eq!(joining.written().map(|twin| twin.generation).collect::<Vec<_>>(), [1, 3]);
        let joined = joining.joined(term).unwrap();
        assert_eq!((joined.in_sync[0].store, joined.in_sync[1].store), (b, A));
        assert_eq!(joined.decided_by().collect::<Vec<_>>(), [b]);
        let c = StoreId::of_number(9);
        let replaced = joining.replaced(A, c, term);
        assert_eq!((replaced.missing(), replaced.replicas.len()), (Some(c), 2));
        assert_eq!((replaced.in_sync.clone(), replaced.joining), (joining.in_sync.clone(), None));
        for state in [&first, &alone, &joining, &joined, &joining.taken(term), &replaced] {
            state.check().unwrap();
        }
    }

    #[test]
    fn what_cannot_be() {
        let (first, b, _) = first();
        let twin = |store, generation| Twin { store, generation };
        for (change, field) in [
            (MirrorState { number: 0, ..first.clone() }, "number"),
            (MirrorState { replicas: vec![A, A], ..first.clone() }, "replicas"),
            (MirrorState { in_sync: Vec::new(), ..first.clone() }, "before"),
            (MirrorState { in_sync: vec![twin(A, 2)], ..first.clone() }, "in_sync"),
            (
                MirrorState {
                    before: vec![twin(b, 1)],
                    in_sync: vec![twin(A, 1)],
                    ..first.clone()
                },
                "before",
            ),
            (MirrorState { joining: Some(twin(A, 1)), ..first.clone() }, "in_sync"),
            (
                MirrorState { before: vec![twin(StoreId::of_number(9), 1)], ..first.clone() },
                "before",
            ),
        ] {
            assert_eq!(change.check().unwrap_err().field, field);
        }
    }
}
