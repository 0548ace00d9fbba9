//! The notes of a packed ring: where it stands, and a copy of every descriptor in flight.
//!
//! ```text
//! queue   features u64, version u16, entries u16, free u16, old free u16, used u16, old used u16,
//!         wrap u8, old wrap u8, 0 [10], then for each entry:
//!         in flight u8, 0, next u16, last u16, num u16, counter u64, id u16, flags u16, len u32,
//!         address u64
//! ```
//!
//! An answer has two halves, as it is one store in the guest's ring and several here: the place
//! behind it is noted as the present one, the guest gets it, then the place is noted as the old one,
//! too. A successor that finds the two apart looks into the ring which half was reached, and the free
//! list's head says of which request the answer was.
//!
//! Other than the specification says, a request is noted as in flight when all of its descriptors are
//! noted, and a successor makes the list of free entries anew: so there is no moment at which half a
//! request is served. The two pairs of places are stored as one word each, for the same reason.

use super::super::virtqueue::Place;
use super::{Part, VERSION, VERSION_AT};
use virtio_queue::desc::packed::Descriptor;

/// Bytes in front of the entries, and of each entry.
pub(super) const HEAD: usize = 32;
pub(super) const ENTRY: usize = 32;

/// Where things are.
const FREE_AT: usize = 12;
const USED_AT: usize = 16;
const NEXT_AT: usize = 2;
const LAST_AT: usize = 4;
const NUM_AT: usize = 6;
const COUNTER_AT: usize = 8;
const ID_AT: usize = 16;
const FLAGS_AT: usize = 18;
const LEN_AT: usize = 20;
const ADDRESS_AT: usize = 24;

/// What is in flight on a packed ring.
#[derive(Clone, Debug)]
pub(in super::super) struct PackedNotes(pub(in super::super) Part);

/// A request that was in flight.
#[derive(Debug)]
pub(in super::super) struct Request {
    /// One for each of its descriptors.
    pub(in super::super) entries: Vec<u16>,
    pub(in super::super) descriptors: Vec<Descriptor>,
    /// The how-many-th of its queue it was.
    pub(in super::super) counter: u64,
}

impl PackedNotes {
    fn entry(index: u16) -> usize {
        HEAD + ENTRY * usize::from(index)
    }

    fn put_free(&self, free: u16, old: u16) {
        let ([a, b], [c, d]) = (free.to_ne_bytes(), old.to_ne_bytes());
        self.0.put(FREE_AT, u32::from_ne_bytes([a, b, c, d]));
    }

    fn put_used(&self, used: Place, old: Place) {
        let ([a, b], [c, d]) = (used.index.to_ne_bytes(), old.index.to_ne_bytes());
        let word = [a, b, c, d, used.wrap.into(), old.wrap.into(), 0, 0];
        self.0.put(USED_AT, u64::from_ne_bytes(word));
    }

    /// The place of the next answer, and the one before the last change.
    fn used(&self) -> (Place, Place) {
        let [a, b, c, d, wrap, old, ..] = self.0.get::<u64>(USED_AT).to_ne_bytes();
        let place = |index, wrap| Place { index: u16::from_ne_bytes(index), wrap: wrap != 0 };
        (place([a, b], wrap), place([c, d], old))
    }

    /// Notes the descriptor that an entry is for.
    pub(in super::super) fn set_descriptor(&self, entry: u16, descriptor: &Descriptor) {
        let at = PackedNotes::entry(entry);
        self.0.put(at + ID_AT, descriptor.id());
        self.0.put(at + FLAGS_AT, descriptor.flags());
        self.0.put(at + LEN_AT, descriptor.len());
        self.0.put(at + ADDRESS_AT, descriptor.addr().0);
    }

    /// Notes that the request whose first entry is `first` is being served, the `counter`-th of its
    /// queue, and that `free` is the first free entry behind it.
    pub(in super::super) fn begin(
        &self,
        first: u16,
        (links, last): (u16, u16),
        counter: u64,
        free: u16,
    ) {
        let at = PackedNotes::entry(first);
        self.0.put(at + LAST_AT, last);
        self.0.put(at + NUM_AT, links);
        self.0.put(at + COUNTER_AT, counter);
        self.0.put(at, 1u8);
        self.put_free(free, free);
    }

    /// Notes that a request, of this first and this last entry, is going to be answered at
    /// `used.0`, and that the next answer goes to `used.1`. Its entries come before `free`.
    pub(in super::super) fn answering(
        &self,
        (first, last): (u16, u16),
        free: u16,
        used: (Place, Place),
    ) {
        self.0.put(PackedNotes::entry(last) + NEXT_AT, free);
        self.put_free(first, free);
        self.put_used(used.1, used.0);
    }

    /// Notes that it was.
    pub(in super::super) fn answered(&self, first: u16, next: Place) {
        self.0.put(PackedNotes::entry(first), 0u8);
        self.put_used(next, next);
        self.put_free(first, first);
    }

    /// Notes the list of free entries and the place of the next answer.
    pub(in super::super) fn set_list(&self, next: &[u16], free: u16, used: Place) {
        for (entry, next) in (0..).zip(next) {
            self.0.put(PackedNotes::entry(entry) + NEXT_AT, *next);
        }
        self.put_free(free, free);
        self.put_used(used, used);
        self.0.put(VERSION_AT, VERSION);
    }

    /// The place of the next answer and the requests in flight, oldest first, of a ring of `size`;
    /// where nothing is noted yet, `used`. `is_answered` tells whether the guest has an answer at a
    /// place. The error is for people: whoever keeps this memory has written to it.
    pub(in super::super) fn resume(
        &self,
        size: u16,
        used: Place,
        is_answered: impl Fn(Place) -> bool,
    ) -> Result<(Place, Vec<Request>), String> {
        if self.0.get::<u16>(VERSION_AT) == 0 {
            return Ok((used, Vec::new()));
        }
        let (mut used, old) = self.used();
        let nonsense = || "the notes of its requests in flight make no sense".to_owned();
        if used.index >= size || old.index >= size {
            return Err(nonsense());
        }
        let answered: u16 = self.0.get(FREE_AT);
        if used != old && is_answered(old) {
            // It died between an answer and the note of it.
            if answered < size {
                self.0.put(PackedNotes::entry(answered), 0u8);
            }
        } else {
            used = old;
        }
        let mut is_seen = vec![false; size.into()];
        let mut requests = Vec::new();
        for first in (0..size).filter(|first| self.0.get::<u8>(PackedNotes::entry(*first)) == 1) {
            let request = self.request(first, &mut is_seen).ok_or_else(nonsense)?;
            requests.push(request);
        }
        requests.sort_by_key(|request| request.counter);
        Ok((used, requests))
    }

    /// A request in flight, of entries that belong to no other one.
    fn request(&self, first: u16, is_seen: &mut [bool]) -> Option<Request> {
        let at = PackedNotes::entry(first);
        let (links, counter) = (self.0.get::<u16>(at + NUM_AT), self.0.get(at + COUNTER_AT));
        let mut request = Request { entries: Vec::new(), descriptors: Vec::new(), counter };
        let mut entry = first;
        for _ in 0..links {
            let seen = is_seen.get_mut(usize::from(entry)).filter(|seen| !**seen)?;
            *seen = true;
            let at = PackedNotes::entry(entry);
            let get = |at| self.0.get::<u16>(at);
            let (id, flags) = (get(at + ID_AT), get(at + FLAGS_AT));
            let (address, len) = (self.0.get(at + ADDRESS_AT), self.0.get(at + LEN_AT));
            request.entries.push(entry);
            request.descriptors.push(Descriptor::new(address, len, id, flags));
            entry = get(at + NEXT_AT);
        }
        (links > 0).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Identity, Region};
    use super::*;
    use crate::frontend::vhost::virtqueue::Shape;
    use std::sync::Arc;

    const START: Place = Place { index: 0, wrap: true };

    fn at(index: u16) -> Place {
        Place { index, ..START }
    }

    fn region() -> Arc<Region> {
        let me = Identity { volume: [1; 16], token: 7, epoch: 3, closed: None, unchanging: false };
        Arc::new(Region::create(Shape::Packed, (2, 8), &me).unwrap().0)
    }

    fn notes(region: &Arc<Region>) -> PackedNotes {
        PackedNotes(region.part(Shape::Packed, 1, 8).unwrap())
    }

    fn descriptor(id: u16) -> Descriptor {
        Descriptor::new(0x1000 * u64::from(id), 512, id, 0)
    }

    /// Two requests, of the entries 0, 1, 2 and 3, 4.
    fn two_in_flight() -> PackedNotes {
        let notes = notes(&region());
        assert!(notes.resume(8, at(5), |_| panic!("nothing is noted yet")).unwrap().1.is_empty());
        notes.set_list(&[1, 2, 3, 4, 5, 6, 7, 8], 0, START);
        (0..5).for_each(|entry| notes.set_descriptor(entry, &descriptor(entry)));
        notes.begin(0, (3, 2), 40, 3);
        notes.begin(3, (2, 4), 39, 5);
        notes
    }

    fn heads(found: Result<(Place, Vec<Request>), String>) -> (Place, Vec<Vec<u16>>) {
        let (used, requests) = found.unwrap();
        (used, requests.into_iter().map(|request| request.entries).collect())
    }

    #[test]
    fn what_was_in_flight_is_found_again_in_order() {
        let notes = two_in_flight();
        let (used, requests) = notes.resume(8, at(7), |_| true).unwrap();
        assert_eq!(used, START, "the notes know better than the VMM");
        let entries: Vec<_> = requests.iter().map(|request| &request.entries[..]).collect();
        assert_eq!(entries, [&[3, 4][..], &[0, 1, 2]]);
        assert_eq!(requests[1].descriptors[2].addr().0, 0x2000);
        assert_eq!((requests[1].descriptors[1].id(), requests[1].descriptors[1].len()), (1, 512));
    }

    #[test]
    fn a_death_amid_an_answer_is_told_by_the_ring() {
        let notes = two_in_flight();
        notes.answering((0, 2), 5, (START, at(3)));
        let before = heads(notes.resume(8, START, |place| place != START));
        assert_eq!(before, (START, vec![vec![3, 4], vec![0, 1, 2]]), "the guest has no answer");
        let behind = heads(notes.resume(8, START, |place| place == START));
        assert_eq!(behind, (at(3), vec![vec![3, 4]]), "the guest has it");
        let notes = two_in_flight();
        notes.answering((0, 2), 5, (START, at(3)));
        notes.answered(0, at(3));
        let noted = heads(notes.resume(8, START, |_| panic!("the ring is not asked")));
        assert_eq!(noted, (at(3), vec![vec![3, 4]]));
    }

    /// A whole round at once: the places differ by their counters alone.
    #[test]
    fn a_death_amid_an_answer_that_fills_the_ring() {
        let notes = notes(&region());
        notes.set_list(&[1, 2, 3, 4, 5, 6, 7, 8], 0, START);
        (0..8).for_each(|entry| notes.set_descriptor(entry, &descriptor(entry)));
        notes.begin(0, (8, 7), 0, 8);
        let next = Place { index: 0, wrap: false };
        notes.answering((0, 7), 8, (START, next));
        assert_eq!(heads(notes.resume(8, START, |_| false)).1.len(), 1);
        assert_eq!(heads(notes.resume(8, START, |_| true)), (next, vec![]));
    }

    #[test]
    fn notes_that_were_tampered_with_are_refused() {
        let tamper = |change: &dyn Fn(&PackedNotes)| {
            let notes = two_in_flight();
            change(&notes);
            notes.resume(8, START, |_| true).map(|(_, requests)| requests.len())
        };
        assert_eq!(tamper(&|_| {}), Ok(2));
        let entry = PackedNotes::entry;
        for change in [
            &(|n: &PackedNotes| n.put_used(at(8), START)) as &dyn Fn(&PackedNotes),
            &|n| n.put_used(START, at(u16::MAX)),
            &|n| n.0.put(entry(0) + NUM_AT, 0u16),
            &|n| n.0.put(entry(0) + NUM_AT, u16::MAX),
            &|n| n.0.put(entry(0) + NEXT_AT, 0u16),
            &|n| n.0.put(entry(0) + NEXT_AT, 8u16),
            &|n| n.0.put(entry(1) + NEXT_AT, 3u16),
            &|n| n.0.put(entry(1), 1u8),
        ] {
            assert!(tamper(change).unwrap_err().contains("make no sense"));
        }
    }
}
