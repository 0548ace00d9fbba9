//! Which descriptors of a packed ring are being served, by whom and since when.
//!
//! The ring forgets: an answer is written over a descriptor of some other request, and the guest
//! fills what was answered anew. So a request has entries of its own here, as many as it has
//! descriptors, taken from a list of free ones; the first of them is its number. Where there are
//! notes ([`PackedNotes`]), they have the same entries in the same list.
//!
//! Invariant: an entry is in the list of free ones or belongs to one request.

use super::super::chain::Broken;
use super::super::inflight::PackedNotes;
use super::place::Place;
use virtio_queue::desc::packed::Descriptor;

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// What the guest calls it: any number, also one that another request has.
    pub(super) id: u16,
    /// Its descriptors.
    pub(super) links: u16,
    /// The last of its entries.
    last: u16,
}

#[derive(Debug)]
pub(super) struct Entries {
    /// By number.
    held: Vec<Option<Held>>,
    /// Behind each entry, the next one: of the same request, or free.
    next: Vec<u16>,
    free: u16,
    /// Entries that are not free.
    busy: u16,
    counter: u64,
    notes: Option<PackedNotes>,
}

/// What was found when a ring was opened.
pub(super) struct Found {
    pub(super) entries: Entries,
    /// The numbers of the requests in flight, oldest first, and their descriptors.
    pub(super) left: Vec<(u16, Vec<Descriptor>)>,
    /// Where the next answer goes.
    pub(super) used: Place,
}

impl Entries {
    /// Those of a ring of `size`, whose next answer goes to `used` if the notes do not know better.
    /// `is_answered` tells whether the guest has an answer at a place. The error is for people.
    pub(super) fn open(
        size: u16,
        notes: Option<PackedNotes>,
        used: Place,
        is_answered: impl Fn(Place) -> bool,
    ) -> Result<Found, String> {
        let found = notes.as_ref().map(|notes| notes.resume(size, used, is_answered));
        let (used, requests) = found.transpose()?.unwrap_or((used, Vec::new()));
        let mut entries = Entries {
            held: vec![None; size.into()],
            next: (1..=size).collect(),
            free: 0,
            busy: 0,
            counter: requests.last().map_or(0, |request| request.counter.wrapping_add(1)),
            notes,
        };
        let mut is_free = vec![true; size.into()];
        let mut left = Vec::new();
        for request in requests {
            let (first, last) = (request.entries[0], request.entries[request.entries.len() - 1]);
            for pair in request.entries.windows(2) {
                entries.next[usize::from(pair[0])] = pair[1];
            }
            request.entries.iter().for_each(|entry| is_free[usize::from(*entry)] = false);
            let links = request.entries.len() as u16;
            let id = request.descriptors.last().map_or(0, Descriptor::id);
            entries.held[usize::from(first)] = Some(Held { id, links, last });
            entries.busy += links;
            left.push((first, request.descriptors));
        }
        entries.free = size;
        for entry in (0..size).rev().filter(|entry| is_free[usize::from(*entry)]) {
            entries.next[usize::from(entry)] = entries.free;
            entries.free = entry;
        }
        if let Some(notes) = &entries.notes {
            notes.set_list(&entries.next, entries.free, used);
        }
        Ok(Found { entries, left, used })
    }

    /// Entries that are free.
    pub(super) fn room(&self) -> usize {
        self.held.len() - usize::from(self.busy)
    }

    /// All descriptors in flight.
    pub(super) fn busy(&self) -> u16 {
        self.busy
    }

    /// The number that the next request gets.
    pub(super) fn next_number(&self) -> u16 {
        self.free
    }

    /// Gives entries to a request of these descriptors: some, and no more than there is room for.
    pub(super) fn hold(&mut self, chain: &[Descriptor]) {
        let Some(id) = chain.last().map(Descriptor::id) else { return };
        debug_assert!(chain.len() <= self.room());
        let first = self.free;
        let mut last = first;
        for descriptor in chain {
            last = self.free;
            if let Some(notes) = &self.notes {
                notes.set_descriptor(last, descriptor);
            }
            self.free = self.next[usize::from(last)];
        }
        let held = Held { id, links: chain.len() as u16, last };
        self.held[usize::from(first)] = Some(held);
        self.busy += held.links;
        if let Some(notes) = &self.notes {
            notes.begin(first, (held.links, last), self.counter, self.free);
            self.counter = self.counter.wrapping_add(1);
        }
    }

    /// A request that is in flight.
    pub(super) fn get(&self, number: u16) -> Option<Held> {
        self.held.get(usize::from(number)).copied().flatten()
    }

    /// Answers a request: `write` puts the answer at `used`, and the one after it goes to `next`.
    pub(super) fn release(
        &mut self,
        number: u16,
        (used, next): (Place, Place),
        write: impl FnOnce(Held) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        let held = self.get(number).ok_or(Broken("an answer to no request"))?;
        if let Some(notes) = &self.notes {
            notes.answering((number, held.last), self.free, (used, next));
        }
        write(held)?;
        if let Some(notes) = &self.notes {
            notes.answered(number, next);
        }
        self.held[usize::from(number)] = None;
        self.next[usize::from(held.last)] = self.free;
        self.free = number;
        self.busy -= held.links;
        Ok(())
    }
}
