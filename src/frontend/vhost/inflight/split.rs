//! The notes of a split ring, one entry for each descriptor.
//!
//! ```text
//! queue   features u64, version u16, entries u16, last u16, used u16, then for each entry:
//!         in flight u8, 0 [5], next u16, counter u64
//! ```

use super::Part;

/// Bytes in front of the entries, and of each entry.
pub(super) const HEAD: usize = 16;
pub(super) const ENTRY: usize = 16;

/// Where things are.
const LAST_AT: usize = 12;
const USED_AT: usize = 14;
const COUNTER_AT: usize = 8;

/// What is in flight on a split ring.
#[derive(Clone, Debug)]
pub(in super::super) struct SplitNotes(pub(in super::super) Part);

impl SplitNotes {
    fn entry(head: u16) -> usize {
        HEAD + ENTRY * usize::from(head)
    }

    /// Notes that the request at `head` is being served, the `counter`-th of its queue.
    pub(in super::super) fn begin(&self, head: u16, counter: u64) {
        let entry = SplitNotes::entry(head);
        self.0.put(entry + COUNTER_AT, counter);
        self.0.put(entry, 1u8);
    }

    /// Notes that the request at `head` is going to be answered.
    pub(in super::super) fn answering(&self, head: u16) {
        self.0.put(LAST_AT, head);
    }

    /// Notes that it was, and how many have been.
    pub(in super::super) fn answered(&self, head: u16, used: u16) {
        self.0.put(SplitNotes::entry(head), 0u8);
        self.0.put(USED_AT, used);
    }

    /// What was being served when the queue's ring showed `used` answers, oldest first, and the
    /// number of the next request.
    pub(in super::super) fn left(&self, used: u16, size: u16) -> (Vec<u16>, u64) {
        let part = &self.0;
        if part.get::<u16>(USED_AT) != used {
            // It died between an answer and the note of it.
            let last: u16 = part.get(LAST_AT);
            if last < size {
                part.put(SplitNotes::entry(last), 0u8);
            }
            part.put(USED_AT, used);
        }
        let open = (0..size).filter(|head| part.get::<u8>(SplitNotes::entry(*head)) == 1);
        let counter = |head: u16| part.get::<u64>(SplitNotes::entry(head) + COUNTER_AT);
        let mut open: Vec<(u64, u16)> = open.map(|head| (counter(head), head)).collect();
        open.sort_unstable();
        let next = open.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        (open.into_iter().map(|(_, head)| head).collect(), next)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Identity, Region};
    use super::*;
    use crate::frontend::vhost::virtqueue::Shape;
    use std::sync::Arc;

    #[test]
    fn what_was_open_is_found_again_in_order() {
        let me = Identity { volume: [1; 16], token: 7, epoch: 3, closed: None, unchanging: false };
        let (region, told, file) = Region::create(Shape::Split, (2, 8), &me).unwrap();
        let region = Arc::new(region);
        let part =
            |region: &Arc<Region>, queue| SplitNotes(region.part(Shape::Split, queue, 8).unwrap());
        assert!(region.part(Shape::Split, 2, 8).is_none());
        assert!(region.part(Shape::Split, 0, 16).is_none());
        assert!(region.part(Shape::Packed, 0, 8).is_none());
        let notes = part(&region, 1);
        for (counter, head) in [5, 2, 7].into_iter().enumerate() {
            notes.begin(head, counter as u64);
        }
        notes.answering(2);
        notes.answered(2, 1);
        // Another one is answered, and the process dies before it says so.
        notes.answering(5);
        let back = Arc::new(Region::open(Shape::Split, &told, file, &me).unwrap());
        assert_eq!(part(&back, 1).left(2, 8), (vec![7], 3));
        assert_eq!(part(&back, 0).left(0, 8), (vec![], 0));
        // It dies before the ring shows the answer.
        notes.begin(5, 9);
        assert_eq!(part(&back, 1).left(2, 8), (vec![7, 5], 10));
    }
}
