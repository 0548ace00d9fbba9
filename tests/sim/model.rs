//! The reference model: what a volume may hold after any crash.
//!
//! Every change writes a **stamp** of its own, so that contents tell which change wrote them. The
//! model keeps, for each owner's term, the image it began with and its changes, in **lanes**:
//! disjoint stripes of the volume, in each of which one request is made after the other.
//!
//! **The prefix rule.** What is recovered is, in each lane, the first so many changes (the next
//! one possibly in part), such that
//! 1. a change is there, even in part, only if all changes are there, in whole, that had completed
//!    before it was issued;
//! 2. everything is there that had completed before a flush was issued that was acknowledged.
//!
//! A flush is acknowledged by the **store**, and then (2) binds every later owner, or by a
//! **journal**, and then it binds those who go on from that journal: the *heirs* of the term. Who
//! comes from elsewhere finds at least what the store was ever seen to hold.
//!
//! Solutions of (1) are closed under the lane-wise maximum, so there is a greatest one, found by
//! taking changes away from the end; (2) holds for some solution if it holds for the greatest.

use std::ops::Range;
use std::sync::Arc;

/// What a sector holds: the number of the change that wrote it, 0 for zeros.
pub type Stamp = u32;

/// Contents of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Sectors there are; the others are zeros.
    pub size: usize,
    pub stamps: Vec<Stamp>,
}

/// A change.
#[derive(Clone, Debug)]
pub struct Change {
    pub sectors: Range<usize>,
    pub stamp: Stamp,
    /// The size is this from here on.
    pub resize: Option<usize>,
    /// The sectors hold this instead of the stamp: all sectors of the volume.
    pub contents: Option<Arc<Vec<Stamp>>>,
    pub issued: u64,
    pub done: Option<u64>,
}

impl Change {
    /// It may be there in part.
    fn can_tear(&self) -> bool {
        self.resize.is_none() && self.contents.is_none()
    }

    /// What `sector` holds after it.
    fn at(&self, sector: usize) -> Stamp {
        self.contents.as_ref().map_or(self.stamp, |contents| contents[sector])
    }
}

/// What happens in one stripe.
#[derive(Clone, Debug)]
pub struct Lane {
    pub stripe: Range<usize>,
    pub changes: Vec<Change>,
}

/// What a flush was acknowledged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    Store,
    Journal,
}

/// One owner's time with the volume, from the moment it had read what there is, and that of its
/// heirs: to them everything it left is their own history.
#[derive(Debug)]
pub struct Term {
    pub epoch: u64,
    base: Image,
    /// After all changes that completed.
    pub now: Image,
    pub lanes: Vec<Lane>,
    /// Changes of each lane that the store holds: flushes say so, or it was seen.
    stored: Vec<usize>,
    /// Changes of each lane that flushes cover which the journal acknowledged.
    journaled: Vec<usize>,
    /// Changes of each lane that a later owner found.
    found: Option<Vec<usize>>,
}

/// A way to explain a lane's contents: this many changes whole, and touched.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    whole: usize,
    touched: usize,
}

/// All terms, and the time: a counter of events.
#[derive(Debug)]
pub struct Model {
    terms: Vec<Term>,
    now: u64,
    stamps: Stamp,
}

impl Term {
    fn new(epoch: u64, base: Image, lanes: usize) -> Term {
        let len = base.stamps.len();
        let cut = |i: usize| len * i / lanes;
        let lane = |i| Lane { stripe: cut(i)..cut(i + 1), changes: Vec::new() };
        Term {
            epoch,
            now: base.clone(),
            base,
            lanes: (0..lanes).map(lane).collect(),
            stored: vec![0; lanes],
            journaled: vec![0; lanes],
            found: None,
        }
    }

    /// Changes of each lane that had completed before `time`.
    fn done_before(&self, time: u64) -> Vec<usize> {
        let done = |change: &Change| change.done.is_some_and(|done| done < time);
        self.lanes.iter().map(|lane| lane.changes.partition_point(done)).collect()
    }

    fn candidates(&self, lane: &Lane, found: &Image) -> Vec<Candidate> {
        let stripe = lane.stripe.clone();
        let mut now: Vec<Stamp> = self.base.stamps[stripe.clone()].to_vec();
        let mut size = self.base.size;
        let there = &found.stamps[stripe.clone()];
        let mut wrong = now.iter().zip(there).filter(|(a, b)| a != b).count();
        let mut candidates = Vec::new();
        for at in 0..=lane.changes.len() {
            let next = lane.changes.get(at);
            let sized = self.lanes.len() > 1 || size == found.size;
            if sized && wrong == 0 {
                candidates.push(Candidate { whole: at, touched: at });
            } else if let Some(next) = next.filter(|next| sized && next.can_tear()) {
                let inside = next.sectors.start - stripe.start..next.sectors.end - stripe.start;
                let whole = inside.clone().all(|s| there[s] == next.stamp);
                let torn = inside.filter(|s| now[*s] != there[*s] && there[*s] == next.stamp);
                if torn.count() == wrong && !whole {
                    candidates.push(Candidate { whole: at, touched: at + 1 });
                }
            }
            let Some(next) = next else { break };
            for s in next.sectors.start - stripe.start..next.sectors.end - stripe.start {
                wrong -= usize::from(now[s] != there[s]);
                now[s] = next.at(stripe.start + s);
                wrong += usize::from(now[s] != there[s]);
            }
            size = next.resize.unwrap_or(size);
        }
        candidates
    }

    /// The greatest prefix that explains what a successor `found`, which had this term's journal
    /// or only the store: whole changes of each lane.
    fn explain(&self, found: &Image, from: Keeper) -> Result<Vec<usize>, String> {
        let mut lanes = self.explanations(found)?;
        self.settle(&mut lanes)?;
        let whole: Vec<usize> = lanes.iter().map(|c| c.last().expect("not empty").whole).collect();
        let promises = [
            (&self.stored, "the store held it"),
            (&self.journaled, "a flush was acknowledged by the journal that covers it"),
        ];
        let binding = if from == Keeper::Journal { &promises[..] } else { &promises[..1] };
        for (promised, why) in binding {
            if let Some(i) = (0..whole.len()).find(|i| whole[*i] < promised[*i]) {
                let lost = &self.lanes[i].changes[whole[i]];
                return Err(format!("epoch {}: {lost:?} is not there: {why}", self.epoch));
            }
        }
        Ok(whole)
    }

    /// All that explains what was found, lane by lane.
    fn explanations(&self, found: &Image) -> Result<Vec<Vec<Candidate>>, String> {
        let mut lanes = Vec::new();
        for (i, lane) in self.lanes.iter().enumerate() {
            let candidates = self.candidates(lane, found);
            if candidates.is_empty() {
                return Err(self.unexplained(i, found));
            }
            lanes.push(candidates);
        }
        Ok(lanes)
    }

    /// Takes explanations away from the end until the rest is a prefix of the whole history.
    fn settle(&self, lanes: &mut [Vec<Candidate>]) -> Result<(), String> {
        let mut settled = false;
        while !settled {
            settled = true;
            for i in 0..lanes.len() {
                let Candidate { touched, .. } = *lanes[i].last().expect("never emptied");
                let Some(last) = touched.checked_sub(1) else { continue };
                let needed = self.done_before(self.lanes[i].changes[last].issued);
                let has = |j: usize| lanes[j].last().expect("never emptied").whole;
                let Some(j) = (0..lanes.len()).find(|j| *j != i && has(*j) < needed[*j]) else {
                    continue;
                };
                let (change, missing) = (&self.lanes[i].changes[last], has(j));
                lanes[i].pop();
                settled = false;
                if lanes[i].is_empty() {
                    let lost = &self.lanes[j].changes[missing];
                    return Err(format!(
                        "epoch {}: change {} is there although change {}, complete before it was \
                         issued, is not",
                        self.epoch, change.stamp, lost.stamp
                    ));
                }
            }
        }
        Ok(())
    }

    /// The term goes on in epoch `next` with `image`, which has `whole` changes of each lane: what
    /// was not found has never been, and what was found is complete.
    fn go_on(&mut self, next: u64, image: &Image, whole: &[usize], now: u64) {
        self.epoch = next;
        self.now = image.clone();
        for (promised, whole) in self.journaled.iter_mut().zip(whole) {
            *promised = (*promised).min(*whole);
        }
        for (lane, whole) in self.lanes.iter_mut().zip(whole) {
            let torn = lane.changes.get(*whole).cloned();
            lane.changes.truncate(*whole);
            for change in &mut lane.changes {
                change.done.get_or_insert(now);
            }
            let Some(torn) = torn.filter(Change::can_tear) else { continue };
            // It is there as far as it came, wherever that is: a change of its own for each run.
            let is_there = |s: &usize| image.stamps[*s] == torn.stamp;
            let mut at = torn.sectors.start;
            while let Some(start) = (at..torn.sectors.end).find(is_there) {
                at = (start..torn.sectors.end).find(|s| !is_there(s)).unwrap_or(torn.sectors.end);
                lane.changes.push(Change { sectors: start..at, done: Some(now), ..torn.clone() });
            }
        }
    }

    fn unexplained(&self, lane: usize, found: &Image) -> String {
        let lane = &self.lanes[lane];
        let of = |s: usize| (s, self.now.stamps[s], found.stamps[s]);
        let differ: Vec<_> =
            lane.stripe.clone().map(of).filter(|(_, a, b)| a != b).take(8).collect();
        format!(
            "epoch {}: no prefix of the lane {:?} with {} changes explains what is there; size {} \
             for {}; (sector, newest, found): {differ:?}; stored and journaled {:?}",
            self.epoch,
            lane.stripe,
            lane.changes.len(),
            found.size,
            self.now.size,
            (&self.stored, &self.journaled)
        )
    }

    /// Whether `stamp` is something `sector` held between the events `from` and now.
    fn held(&self, sector: usize, stamp: Stamp, from: u64) -> bool {
        let lane = self.lanes.iter().find(|lane| lane.stripe.contains(&sector));
        let changes = lane.map_or(&[][..], |lane| &lane.changes);
        for change in changes.iter().rev().filter(|change| change.sectors.contains(&sector)) {
            if change.at(sector) == stamp {
                return true;
            }
            if change.done.is_some_and(|done| done < from) {
                return false;
            }
        }
        self.base.stamps[sector] == stamp
    }
}

impl Model {
    /// A new volume of `size` sectors, all zeros, of at most `max`.
    pub fn new(size: usize, max: usize) -> Model {
        let base = Image { size, stamps: vec![0; max] };
        Model { terms: vec![Term::new(0, base, 1)], now: 0, stamps: 0 }
    }

    pub fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    pub fn next_stamp(&mut self) -> Stamp {
        self.stamps += 1;
        self.stamps
    }

    pub fn term(&mut self, epoch: u64) -> &mut Term {
        let at = self.terms.iter().position(|term| term.epoch == epoch);
        &mut self.terms[at.expect("only owners that read the volume go on")]
    }

    /// The newest term of at most `epoch`.
    fn at_most(&self, epoch: u64) -> usize {
        self.terms.partition_point(|term| term.epoch <= epoch) - 1
    }

    /// The owner of `epoch` found this when it came: checks it, and begins its term.
    pub fn begin(&mut self, epoch: u64, image: Image, lanes: usize) -> Result<(), String> {
        let at = self.at_most(epoch);
        let before = &mut self.terms[at];
        if before.epoch == epoch {
            return Err(format!("two owners have epoch {epoch}"));
        }
        let found = before.explain(&image, Keeper::Store)?;
        if before.found.is_some() {
            // A later owner was here first: this one has been superseded, and can add nothing.
            let later = &self.terms[at + 1];
            if later.base != image {
                return Err(format!(
                    "epochs {epoch} and {} found different contents behind epoch {}",
                    later.epoch, self.terms[at].epoch
                ));
            }
        } else {
            before.found = Some(found);
        }
        let mut term = Term::new(epoch, image, lanes);
        if at + 1 < self.terms.len() {
            term.found = Some(vec![0; lanes]);
        }
        self.terms.insert(at + 1, term);
        Ok(())
    }

    /// The device of the term of `epoch` goes on in epoch `next`, with these contents: everything
    /// that had completed must be there, flushed or not. It stays one history.
    pub fn resume(&mut self, epoch: u64, next: u64, image: &Image) -> Result<(), String> {
        let now = self.tick();
        let term = self.term(epoch);
        let whole = term.explain(image, Keeper::Journal)?;
        let done = term.done_before(now);
        if let Some(i) = (0..done.len()).find(|i| whole[*i] < done[*i]) {
            return Err(format!(
                "epoch {next}: change {:?} had completed and was not recovered",
                term.lanes[i].changes[whole[i]]
            ));
        }
        term.go_on(next, image, &whole, now);
        Ok(())
    }

    /// The owner of epoch `next` found `image` when it came with the journal of the term before
    /// it, which it continues. `whole_journal`: no part of the journal was lost.
    pub fn inherit(&mut self, next: u64, image: Image, whole_journal: bool) -> Result<(), String> {
        let now = self.tick();
        let at = self.at_most(next);
        let term = &mut self.terms[at];
        if term.epoch == next {
            return Err(format!("two owners have epoch {next}"));
        }
        let from = if whole_journal { Keeper::Journal } else { Keeper::Store };
        let whole = term.explain(&image, from)?;
        if term.found.is_none() {
            term.go_on(next, &image, &whole, now);
            return Ok(());
        }
        // A later owner was here first and knew nothing of the journal: this one is superseded.
        let lanes = term.lanes.len();
        let mut dead_end = Term::new(next, image, lanes);
        dead_end.found = Some(vec![0; lanes]);
        self.terms.insert(at + 1, dead_end);
        Ok(())
    }

    /// The epoch of the term that an owner of `epoch` comes after.
    pub fn before(&self, epoch: u64) -> u64 {
        self.terms[self.at_most(epoch)].epoch
    }

    /// Whether the owner after that of `epoch` lacks what the journal acknowledged, if there is one.
    pub fn has_lost(&self, epoch: u64) -> bool {
        let term = self.terms.iter().find(|term| term.epoch == epoch);
        let found = term.and_then(|term| Some((term.found.as_ref()?, &term.journaled)));
        found.is_some_and(|(found, kept)| found.iter().zip(kept).any(|(f, k)| f < k))
    }

    /// Whether no later owner than that of `epoch` has read the volume.
    pub fn is_newest(&self, epoch: u64) -> bool {
        self.terms.last().is_some_and(|term| term.epoch == epoch)
    }

    /// Checks what would be recovered now if everybody died and no journal were left: `image`,
    /// which ends in `epoch`. The store will never hold less.
    pub fn check(&mut self, epoch: u64, image: &Image) -> Result<(), String> {
        let at = self.at_most(epoch);
        let term = &mut self.terms[at];
        term.explain(image, Keeper::Store)?;
        let lanes = term.explanations(image)?;
        for (stored, lane) in term.stored.iter_mut().zip(lanes) {
            *stored = (*stored).max(lane[0].whole);
        }
        Ok(())
    }

    /// A change is issued. Returns its index in the lane.
    pub fn issue(&mut self, epoch: u64, lane: usize, mut change: Change) -> usize {
        change.issued = self.tick();
        let changes = &mut self.term(epoch).lanes[lane].changes;
        changes.push(change);
        changes.len() - 1
    }

    /// The change completed.
    pub fn complete(&mut self, epoch: u64, lane: usize, index: usize) {
        let now = self.tick();
        let term = self.term(epoch);
        let change = &mut term.lanes[lane].changes[index];
        change.done = Some(now);
        for sector in change.sectors.clone() {
            term.now.stamps[sector] = change.at(sector);
        }
        term.now.size = change.resize.unwrap_or(term.now.size);
    }

    /// A flush that was issued at `issued` was acknowledged; `change` was durable on completion.
    pub fn flushed(
        &mut self,
        epoch: u64,
        by: Keeper,
        issued: u64,
        change: Option<(usize, usize)>,
    ) -> Result<(), String> {
        let term = self.term(epoch);
        let mut covered = term.done_before(issued);
        if let Some((lane, index)) = change {
            covered[lane] = covered[lane].max(index + 1);
        }
        let promised = match by {
            Keeper::Store => &mut term.stored,
            Keeper::Journal => &mut term.journaled,
        };
        for (promised, covered) in promised.iter_mut().zip(&covered) {
            *promised = (*promised).max(*covered);
        }
        // A journal promises nothing to those who come without it.
        match term.found.as_ref().filter(|_| by == Keeper::Store) {
            Some(found) if found.iter().zip(&covered).any(|(found, covered)| found < covered) => {
                Err(format!(
                    "epoch {epoch}: a flush is acknowledged for changes {covered:?} of which the \
                     next owner found {found:?}"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Checks what a read gave that began after `from`.
    pub fn read(
        &mut self,
        epoch: u64,
        from: u64,
        start: usize,
        got: &[Stamp],
    ) -> Result<(), String> {
        let term = self.term(epoch);
        for (sector, stamp) in (start..).zip(got) {
            if term.now.stamps[sector] != *stamp && !term.held(sector, *stamp, from) {
                return Err(format!(
                    "epoch {epoch}: a read of sector {sector} gave {stamp}, not {}",
                    term.now.stamps[sector]
                ));
            }
        }
        Ok(())
    }
}

#[path = "model_tests.rs"]
mod tests;
