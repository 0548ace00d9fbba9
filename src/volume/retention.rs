//! What is kept of the past, so that the volume can be read as of any moment of it.
//!
//! With a retention time older checkpoints stay: they are **points**, which the newest checkpoint names. A state
//! between two points needs the first of them, its map, and the log from there on. What the volume loses
//! between a point and the next one is the garbage of the next one, written into that object and nowhere
//! else. So the points are the queue of what is to be deleted, and nothing grows with it but their number.
//!
//! **Order.** The oldest point goes when the next one is older than the retention time: every state before the
//! next one is then. First the oldest is deleted; once that is known to be done, the garbage of the next
//! one, which is the oldest now. Then the next one may go. Hence
//! * what is in the garbage of a point is gone only if all older points are: a point that is there is
//!   whole, and so is the log behind it;
//! * of the points that there are, only the oldest one's garbage may be gone, in part or wholly. So whoever
//!   comes after a crash deletes that again, and needs to know no more.
//!
//! **Which checkpoints are points** is said by name. Others in the store are of a deposed owner, who wrote them
//! when a new one had begun from an older one: their garbage may be needed now. They are deleted, and their
//! garbage is never looked at.
//!
//! **Few enough.** Points nearer to each other than a part of the retention time are of little use. The
//! newest one is replaced by the next checkpoint then, which takes over its garbage: that is kept longer, no
//! shorter. Without a retention time it is always so, and there are no points.
//!
//! **Clocks** decide when something is deleted that nothing reachable names, and nothing else. One that is
//! wrong makes the past shorter or longer.

use crate::format::VolumeId;
use crate::format::checkpoint::{Checkpoint, Garbage, Point};
use crate::format::keys;
use crate::log::Terms;
use crate::mutant::{self, Mutant};
use crate::store::Key;
use std::collections::{BTreeSet, VecDeque};

/// Points that a retention time is divided by, at most about.
const POINTS_MAX: u64 = 1024;
/// Slots between points that are not replaced: how much is to be replayed for a state between them.
const SLOTS_MAX: u64 = 16 << 10;

/// Objects that may be deleted, and the names of their slots.
#[derive(Clone, Debug)]
pub(super) struct Doomed {
    pub terms: Terms,
    pub garbage: Vec<Garbage>,
}

impl Doomed {
    pub fn of(checkpoint: &Checkpoint) -> Doomed {
        let garbage = checkpoint.garbage.clone();
        Doomed { terms: Terms::new(checkpoint.terms.clone()), garbage }
    }

    /// Nothing.
    pub fn none() -> Doomed {
        Doomed { terms: Terms::new(Vec::new()), garbage: Vec::new() }
    }
}

/// What is kept of the past, before the last checkpoint.
#[derive(Debug)]
pub(super) struct Retention {
    /// How long: 0 is not at all.
    pub time_ms: u64,
    /// The oldest first.
    points: VecDeque<Point>,
    /// What may be deleted: the garbage of the oldest point, or of the last checkpoint where there is none.
    /// `None`: it has to be read.
    pub doomed: Option<Doomed>,
}

/// What a checkpoint becomes when the next one is made.
#[derive(Clone, Debug)]
pub(super) enum Next {
    /// It is deleted, and this is garbage of the next one as well.
    Replaces(Vec<Garbage>),
    /// It is a point.
    Follows,
}

impl Retention {
    /// That of `last`; of the other checkpoints that were `found`, those that are no points are left there.
    pub fn of(last: &Checkpoint, found: &mut Vec<Key>) -> Retention {
        let there: BTreeSet<Key> = found.iter().cloned().collect();
        let key = |point: &Point| keys::checkpoint(last.volume, point.next, point.epoch);
        let points = last.points_there(|point| there.contains(&key(point)));
        let points: VecDeque<Point> = points.iter().copied().collect();
        let names: BTreeSet<Key> = points.iter().map(key).collect();
        found.retain(|key| !names.contains(key));
        let doomed = points.is_empty().then(|| Doomed::of(last));
        Retention { time_ms: last.retention_ms, points, doomed }
    }

    /// What becomes of `last` when the next one is made.
    pub fn next(&self, last: &Checkpoint) -> Next {
        match self.points.back() {
            None if self.time_ms > 0 => Next::Follows,
            None => {
                let doomed = self.doomed.as_ref().map(|doomed| doomed.garbage.clone());
                Next::Replaces(doomed.unwrap_or_else(|| last.garbage.clone()))
            }
            Some(before) => {
                let time = last.made_at_ms.saturating_sub(before.made_at_ms);
                let near = time < self.time_ms / POINTS_MAX;
                match near && last.next.0 - before.next.0 < SLOTS_MAX {
                    true => Next::Replaces(last.garbage.clone()),
                    false => Next::Follows,
                }
            }
        }
    }

    /// Whether there is something of it.
    pub fn has_points(&self) -> bool {
        !self.points.is_empty()
    }

    /// The points of the checkpoint that comes after `last`.
    pub fn points_after(&self, last: &Checkpoint, next: &Next) -> Vec<Point> {
        let own = matches!(next, Next::Follows).then(|| last.point());
        self.points.iter().copied().chain(own).collect()
    }

    /// `made` was made after `last`. Returns what took no part in the past and has no use any more.
    pub fn advance(&mut self, last: &Checkpoint, made: &Checkpoint) -> Option<Key> {
        // It may be one of an earlier attempt: it says itself what it is.
        if made.points.last() == Some(&last.point()) {
            if self.points.is_empty() && self.doomed.is_none() {
                self.doomed = Some(Doomed::of(last));
            }
            self.points.push_back(last.point());
            return None;
        }
        if self.points.is_empty() {
            self.doomed = Some(Doomed::of(made));
        }
        Some(keys::checkpoint(last.volume, last.next, last.epoch))
    }

    /// Whether something may be deleted at this time.
    pub fn is_due(&self, last: &Checkpoint, now_ms: u64) -> bool {
        let doomed = self.doomed.as_ref().is_none_or(|doomed| !doomed.garbage.is_empty());
        doomed || self.expired(last, now_ms).is_some()
    }

    /// The oldest point, if it is not kept any longer.
    pub fn expired(&self, last: &Checkpoint, now_ms: u64) -> Option<Point> {
        let after = self.points.get(1).copied().unwrap_or_else(|| last.point());
        let kept = now_ms <= after.made_at_ms.saturating_add(self.time_ms);
        let kept = kept && self.time_ms > 0 && !mutant::on(Mutant::RetentionIgnored);
        self.points.front().copied().filter(|_| !kept)
    }

    /// The oldest point was deleted.
    pub fn expire(&mut self, last: &Checkpoint) {
        self.points.pop_front();
        self.doomed = self.points.is_empty().then(|| Doomed::of(last));
    }

    /// The oldest point, whose garbage has to be read.
    pub fn unread(&self, volume: VolumeId) -> Option<Key> {
        let oldest = self.points.front().filter(|_| self.doomed.is_none());
        oldest.map(|point| keys::checkpoint(volume, point.next, point.epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, SectorCount, Seq};

    fn checkpoint(next: u64, made_at_ms: u64, points: Vec<Point>) -> Checkpoint {
        let id = VolumeId::from_bytes([7; 16]);
        let slots = Garbage::Slots { first: Seq(next), count: 1 };
        Checkpoint {
            next: Seq(next),
            epoch: Epoch(1),
            made_at_ms,
            retention_ms: 1000,
            garbage: vec![slots],
            points,
            ..Checkpoint::initial(id, SectorCount(1))
        }
    }

    fn key(of: &Checkpoint) -> Key {
        keys::checkpoint(of.volume, of.next, of.epoch)
    }

    #[test]
    fn the_oldest_goes_when_the_next_one_is_old() {
        let first = checkpoint(1, 0, Vec::new());
        let mut past = Retention::of(&first, &mut Vec::new());
        assert!(matches!(past.next(&first), Next::Follows));
        let second = checkpoint(9, 500, past.points_after(&first, &Next::Follows));
        assert_eq!(past.advance(&first, &second), None);
        assert_eq!(past.doomed.as_ref().unwrap().garbage, first.garbage, "of the oldest one");
        assert_eq!(past.expired(&second, 1500), None);
        assert_eq!(past.expired(&second, 1501), Some(first.point()));
        past.expire(&second);
        assert_eq!(past.doomed.as_ref().unwrap().garbage, second.garbage);
        assert!(!past.has_points() && past.expired(&second, u64::MAX).is_none());
    }

    #[test]
    fn whoever_comes_later_knows_the_points_by_name() {
        let (first, stray) = (checkpoint(1, 0, Vec::new()), checkpoint(5, 0, Vec::new()));
        let gone = checkpoint(2, 0, Vec::new()).point();
        let again = checkpoint(0, 0, Vec::new());
        let last = checkpoint(9, 500, vec![again.point(), gone, first.point()]);
        let mut found = vec![key(&stray), key(&first), key(&again)];
        let past = Retention::of(&last, &mut found);
        // One that is stored again after it was deleted is none.
        assert_eq!(found, [key(&stray), key(&again)]);
        assert_eq!(past.points, [first.point()]);
        assert_eq!(past.unread(last.volume), Some(key(&first)));
        assert!(past.is_due(&last, 0), "what it freed is deleted again");
    }

    #[test]
    fn points_near_to_each_other_are_replaced_and_forget_nothing() {
        let first = checkpoint(1, 0, Vec::new());
        let mut past = Retention::of(&first, &mut Vec::new());
        past.time_ms = 100 * POINTS_MAX;
        let second = checkpoint(9, 99, past.points_after(&first, &Next::Follows));
        past.advance(&first, &second);
        let next = past.next(&second);
        assert!(matches!(&next, Next::Replaces(garbage) if *garbage == second.garbage));
        let third = checkpoint(10, 150, past.points_after(&second, &next));
        assert_eq!(past.advance(&second, &third), Some(key(&second)));
        assert!(matches!(past.next(&third), Next::Follows));
        // So much is not replayed for one state.
        let far = checkpoint(1 + SLOTS_MAX, 99, second.points.clone());
        assert!(matches!(past.next(&far), Next::Follows));
    }
}
