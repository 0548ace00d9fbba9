//! Who may go next, and how many at once. Pure: no time, no waiting, no chance; fed with events.
//!
//! **Concurrency adapts.** Reads and writes each have a *window*, the number of them that may be
//! under way. An answer widens it: by one as long as it is below the size that was known to work
//! (which doubles it each round trip), beyond that by one a round trip. A request that is told to
//! slow down halves it, from what really was under way; once a round trip, since all that were sent
//! before the cut were sent into the same congestion. Windows stay within their [`Bounds`].
//!
//! **Outage.** After [`SILENT`] requests in a row without an answer of any kind the store counts as
//! unreachable: only [`PROBES`] requests are under way then, and who probes keeps its place while
//! it pauses, so that those who wait are not spent on a store that is not there. The first answer
//! ends the outage; windows begin again at [`PROBES`] and double until they are as wide as before.
//!
//! **Order.** Foreground before background; within a class the oldest ticket first, whatever it
//! asks for. A ticket is drawn once for a request and kept over all its attempts. Liveness: of
//! [`SHARE`] turns one is the background's, where it waits; and it holds at most half of a window,
//! so that the foreground finds a place at once.
//!
//! Invariants: no more is under way than the bounds say; a ticket that waits gets its turn once
//! enough of those under way have ended.

use std::collections::BTreeSet;

/// Requests without an answer, one after the other, that make an outage.
pub const SILENT: u32 = 4;
/// Requests under way at once during an outage.
pub const PROBES: usize = 2;
/// One turn in so many is the background's.
pub const SHARE: u32 = 8;

/// The most requests under way at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of all kinds.
    pub total: usize,
    /// Of those that change something.
    pub writes: usize,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Get, head, list.
    Read,
    /// Put, delete.
    Write,
}

/// Who waits for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Somebody who uses a device.
    Foreground,
    /// Nobody yet: checkpoints, deletion, read-ahead.
    Background,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The store did it, or said why not.
    Answered,
    /// The store asks to slow down.
    Throttled,
    /// No answer, or none that says anything.
    Silent,
}

/// What an outcome meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing out of the ordinary.
    Usual,
    /// The store is out, and this request is one of those that find out when it is back: it keeps
    /// its place until it has an answer.
    Probe,
    /// The store is back.
    Healed,
}

/// A place in the line, kept by a request until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The right to one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Turns are numbered in the order they begin.
    number: u64,
    kind: Kind,
    class: Class,
}

#[derive(Debug)]
struct Window {
    size: usize,
    max: usize,
    /// Below this size it doubles each round trip.
    known: usize,
    /// Answers since it last grew.
    credit: usize,
    /// Turns before this one were sent into a congestion that was reacted to.
    cut_at: u64,
}

impl Window {
    fn new(max: usize) -> Window {
        Window { size: max, max, known: max, credit: 0, cut_at: 0 }
    }

    fn grow(&mut self) {
        if self.size >= self.max {
            return;
        }
        self.credit += 1;
        if self.size < self.known || self.credit >= self.size {
            (self.size, self.credit) = (self.size + 1, 0);
        }
    }

    fn shrink(&mut self, under_way: usize) {
        self.size = (self.size.min(under_way) / 2).max(1);
        (self.known, self.credit) = (self.size, 0);
    }

    /// Begins again after an outage.
    fn restart(&mut self) {
        self.known = self.size;
        self.size = PROBES.min(self.size);
        self.credit = 0;
    }
}

/// The state of a store's traffic.
#[derive(Debug)]
pub struct Admission {
    total: usize,
    /// By kind.
    windows: [Window; 2],
    /// By kind and class.
    under_way: [[usize; 2]; 2],
    /// By kind and class.
    waiting: [[BTreeSet<Ticket>; 2]; 2],
    /// Requests in a row without an answer.
    silent: u32,
    out: bool,
    tickets: u64,
    turns: u64,
    /// Turns of the foreground since the background had one, while it waited.
    passed_over: u32,
}

const KINDS: [Kind; 2] = [Kind::Read, Kind::Write];

impl Admission {
    /// Nothing under way. Bounds are at least one; more writes than the total is the total.
    pub fn new(bounds: Bounds) -> Admission {
        let total = bounds.total.max(1);
        let writes = bounds.writes.clamp(1, total);
        Admission {
            total,
            windows: [Window::new(total), Window::new(writes)],
            under_way: [[0; 2]; 2],
            waiting: Default::default(),
            silent: 0,
            out: false,
            tickets: 0,
            turns: 0,
            passed_over: 0,
        }
    }

    /// A ticket for a new request.
    pub fn draw(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// The request wants to make an attempt.
    pub fn wait(&mut self, ticket: Ticket, kind: Kind, class: Class) {
        self.waiting[kind as usize][class as usize].insert(ticket);
    }

    /// The request no longer waits.
    pub fn give_up(&mut self, ticket: Ticket, kind: Kind, class: Class) {
        self.waiting[kind as usize][class as usize].remove(&ticket);
    }

    /// Whose turn it is now, if anybody's.
    pub fn admit(&mut self) -> Option<(Ticket, Turn)> {
        let first = self.first(Class::Foreground);
        let second = self.first(Class::Background);
        let (found, class) = match (first, second) {
            (Some(_), Some(second)) if self.passed_over + 1 >= SHARE => (second, Class::Background),
            (Some(first), second) => {
                self.passed_over += u32::from(second.is_some());
                (first, Class::Foreground)
            }
            (None, second) => (second?, Class::Background),
        };
        if class == Class::Background {
            self.passed_over = 0;
        }
        let (ticket, kind) = found;
        self.waiting[kind as usize][class as usize].remove(&ticket);
        self.under_way[kind as usize][class as usize] += 1;
        self.turns += 1;
        Some((ticket, Turn { number: self.turns, kind, class }))
    }

    /// The oldest of a class that may go.
    fn first(&self, class: Class) -> Option<(Ticket, Kind)> {
        let oldest = |kind: &Kind| {
            let ticket = self.waiting[*kind as usize][class as usize].first()?;
            self.has_room(*kind, class).then_some((*ticket, *kind))
        };
        KINDS.iter().filter_map(oldest).min_by_key(|(ticket, _)| *ticket)
    }

    fn has_room(&self, kind: Kind, class: Class) -> bool {
        let under_way = self.under_way[kind as usize];
        let size = self.windows[kind as usize].size;
        let total = if self.out { PROBES.min(self.total) } else { self.total };
        let share = match class {
            Class::Foreground => size,
            Class::Background => (size / 2).max(1),
        };
        self.under_way() < total
            && under_way.iter().sum::<usize>() < size
            && under_way[class as usize] < share
    }

    /// Requests under way.
    pub fn under_way(&self) -> usize {
        self.under_way.iter().flatten().sum()
    }

    /// The width of a window.
    pub fn window(&self, kind: Kind) -> usize {
        self.windows[kind as usize].size
    }

    /// The store counts as unreachable.
    pub fn is_out(&self) -> bool {
        self.out
    }

    /// An attempt has ended like that; its turn has not.
    pub fn report(&mut self, turn: Turn, outcome: Outcome) -> Meaning {
        let under_way = self.under_way[turn.kind as usize].iter().sum();
        let window = &mut self.windows[turn.kind as usize];
        match outcome {
            Outcome::Answered => {
                self.silent = 0;
                if std::mem::replace(&mut self.out, false) {
                    return Meaning::Healed;
                }
                // An answer to what was sent before a cut says nothing of the width after it.
                if turn.number >= window.cut_at {
                    window.grow();
                }
            }
            Outcome::Throttled if !self.out => {
                self.silent = 0;
                if turn.number >= window.cut_at {
                    window.shrink(under_way);
                    window.cut_at = self.turns + 1;
                }
            }
            Outcome::Throttled => {}
            Outcome::Silent => {
                self.silent = self.silent.saturating_add(1);
                if self.silent == SILENT {
                    self.out = true;
                    self.windows.iter_mut().for_each(Window::restart);
                }
            }
        }
        match self.out && self.under_way() <= PROBES {
            true => Meaning::Probe,
            false => Meaning::Usual,
        }
    }

    /// The turn is over, with or without an outcome.
    pub fn end(&mut self, turn: Turn) {
        let count = &mut self.under_way[turn.kind as usize][turn.class as usize];
        *count = count.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const BOUNDS: Bounds = Bounds { total: 64, writes: 32 };
    use Class::{Background, Foreground};
    use Kind::{Read, Write};

    fn enqueue(admission: &mut Admission, kind: Kind, class: Class, count: usize) -> Vec<Ticket> {
        let draw = |_| {
            let ticket = admission.draw();
            admission.wait(ticket, kind, class);
            ticket
        };
        (0..count).map(draw).collect()
    }

    fn all(admission: &mut Admission) -> Vec<(Ticket, Turn)> {
        std::iter::from_fn(|| admission.admit()).collect()
    }

    fn end(admission: &mut Admission, turns: &[(Ticket, Turn)], outcome: Outcome) -> Vec<Meaning> {
        let end = |(_, turn): &(Ticket, Turn)| {
            let meaning = admission.report(*turn, outcome);
            admission.end(*turn);
            meaning
        };
        turns.iter().map(end).collect()
    }

    #[test]
    fn writes_leave_room_for_reads() {
        let mut admission = Admission::new(BOUNDS);
        enqueue(&mut admission, Write, Foreground, 100);
        assert_eq!(all(&mut admission).len(), 32);
        enqueue(&mut admission, Read, Foreground, 100);
        assert_eq!(all(&mut admission).len(), 32);
        assert_eq!(admission.under_way(), 64);
    }

    #[test]
    fn throttling_halves_once_a_round_trip_and_answers_win_it_back() {
        let mut admission = Admission::new(BOUNDS);
        for expected in [16, 8, 4, 2, 1, 1] {
            enqueue(&mut admission, Write, Foreground, 32);
            let round = all(&mut admission);
            end(&mut admission, &round, Outcome::Throttled);
            assert_eq!(admission.window(Write), expected);
        }
        assert_eq!(admission.window(Read), 64, "reads were not throttled");
        let mut rounds = 0;
        while admission.window(Write) < 32 {
            enqueue(&mut admission, Write, Foreground, 32);
            let round = all(&mut admission);
            assert_eq!(round.len(), admission.window(Write));
            end(&mut admission, &round, Outcome::Answered);
            rounds += 1;
        }
        assert_eq!(rounds, 31, "one more each round trip");
    }

    #[test]
    fn a_cut_begins_from_what_is_under_way() {
        let mut admission = Admission::new(BOUNDS);
        enqueue(&mut admission, Write, Foreground, 8);
        let round = all(&mut admission);
        end(&mut admission, &round[..1], Outcome::Throttled);
        assert_eq!(admission.window(Write), 4);
    }

    #[test]
    fn an_outage_leaves_two_probes_and_ends_in_doubling_rounds() {
        let mut admission = Admission::new(BOUNDS);
        enqueue(&mut admission, Write, Foreground, 500);
        let first = all(&mut admission);
        let meanings = end(&mut admission, &first[2..], Outcome::Silent);
        assert!(admission.is_out());
        assert_eq!(meanings.iter().filter(|m| **m == Meaning::Probe).count(), 0);
        assert_eq!(admission.admit(), None, "two are under way already");
        let probes = &first[..2];
        for (_, turn) in probes {
            assert_eq!(admission.report(*turn, Outcome::Silent), Meaning::Probe);
            assert_eq!(admission.report(*turn, Outcome::Throttled), Meaning::Probe);
        }
        assert_eq!(admission.admit(), None, "who probes keeps its place");
        assert_eq!(admission.report(probes[0].1, Outcome::Answered), Meaning::Healed);
        probes.iter().for_each(|(_, turn)| admission.end(*turn));
        let mut sizes = Vec::new();
        while sizes.last() != Some(&32) {
            let round = all(&mut admission);
            sizes.push(round.len());
            end(&mut admission, &round, Outcome::Answered);
        }
        assert_eq!(sizes, [2, 4, 8, 16, 32]);
    }

    #[test]
    fn single_failures_are_no_outage() {
        let mut admission = Admission::new(BOUNDS);
        for _ in 0..100 {
            enqueue(&mut admission, Read, Foreground, 4);
            let round = all(&mut admission);
            end(&mut admission, &round[..3], Outcome::Silent);
            end(&mut admission, &round[3..], Outcome::Answered);
        }
        assert!(!admission.is_out());
        assert_eq!(admission.window(Read), 64);
    }

    #[test]
    fn the_foreground_goes_first_and_the_background_goes() {
        let mut admission = Admission::new(Bounds { total: 1, writes: 1 });
        let background = enqueue(&mut admission, Write, Background, 4);
        let mut foreground = enqueue(&mut admission, Read, Foreground, 7);
        foreground.extend(enqueue(&mut admission, Write, Foreground, 21));
        let mut order = Vec::new();
        while let Some((ticket, turn)) = admission.admit() {
            order.push(ticket);
            admission.end(turn);
        }
        let eighth: Vec<Ticket> = order.iter().copied().skip(7).step_by(8).collect();
        assert_eq!(eighth, background, "one turn in eight is the background's");
        order.retain(|ticket| !background.contains(ticket));
        assert_eq!(order, foreground, "the oldest first");
    }

    #[test]
    fn the_background_takes_half_at_most() {
        let mut admission = Admission::new(BOUNDS);
        enqueue(&mut admission, Write, Background, 100);
        assert_eq!(all(&mut admission).len(), 16);
        enqueue(&mut admission, Write, Foreground, 100);
        assert_eq!(all(&mut admission).len(), 16);
    }

    proptest! {
        #[test]
        fn bounds_hold_and_everybody_gets_a_turn(
            total in 1..12_usize,
            writes in 1..12_usize,
            // A request comes, gives up, or its attempt ends in one of four ways.
            events in proptest::collection::vec((0..9_u8, any::<usize>()), 0..400),
        ) {
            let mut admission = Admission::new(Bounds { total, writes });
            let mut waiting = BTreeMap::new();
            let mut under_way = Vec::new();
            for (what, which) in events {
                let kind = KINDS[which & 1];
                let class = [Foreground, Background][which >> 1 & 1];
                match what {
                    0..=3 => {
                        let ticket = admission.draw();
                        admission.wait(ticket, kind, class);
                        waiting.insert(ticket, (kind, class));
                    }
                    4 => {
                        if let Some((ticket, (kind, class))) = waiting.pop_first() {
                            admission.give_up(ticket, kind, class);
                        }
                    }
                    outcome => {
                        if !under_way.is_empty() {
                            let turn: Turn = under_way.remove(which % under_way.len());
                            match outcome {
                                5 => drop(admission.report(turn, Outcome::Answered)),
                                6 => drop(admission.report(turn, Outcome::Throttled)),
                                7 => drop(admission.report(turn, Outcome::Silent)),
                                _ => {}
                            }
                            admission.end(turn);
                        }
                    }
                }
                let before = under_way.len();
                while let Some((ticket, turn)) = admission.admit() {
                    prop_assert_eq!(waiting.remove(&ticket), Some((turn.kind, turn.class)));
                    under_way.push(turn);
                }
                let began = under_way.len() > before;
                prop_assert_eq!(admission.under_way(), under_way.len());
                prop_assert!(under_way.len() <= total);
                let writing = under_way.iter().filter(|turn| turn.kind == Write).count();
                prop_assert!(writing <= writes.min(total));
                prop_assert!(!began || !admission.is_out() || under_way.len() <= PROBES);
                for kind in KINDS {
                    prop_assert!((1..=total).contains(&admission.window(kind)));
                }
                prop_assert!(waiting.is_empty() || !under_way.is_empty(), "nobody goes");
            }
            // Whatever happened: once the store answers, everybody who waits is served.
            let mut rounds = 0;
            while !waiting.is_empty() {
                for turn in std::mem::take(&mut under_way) {
                    admission.report(turn, Outcome::Answered);
                    admission.end(turn);
                }
                while let Some((ticket, turn)) = admission.admit() {
                    waiting.remove(&ticket);
                    under_way.push(turn);
                }
                rounds += 1;
                prop_assert!(rounds < 1000, "{} wait for ever", waiting.len());
            }
        }
    }
}
