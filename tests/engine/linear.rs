//! Is there an order of what several hosts did in which each was told the truth? A search as Wing and Gong's, with
//! the states that it has seen remembered (Lowe), for histories of at most 64 events.

use std::collections::HashSet;

/// What a host did. Snapshots are called by numbers below 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Make(u8),
    Delete(u8),
    List,
    Grow(u64),
    Size,
}

/// What it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Done,
    /// There is one of that name already.
    Exists,
    NotFound,
    /// It is larger already.
    Larger,
    /// The size before.
    Grown(u64),
    /// The names, a bit each.
    Names(u16),
    Size(u64),
    /// Nothing that counts: it happened at any time from then on, or never.
    Unknown,
}

/// An operation with the moments at which it began and ended.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub op: Op,
    pub told: Told,
    pub from: u64,
    pub to: u64,
}

/// A volume, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub names: u16,
    pub size: u64,
}

impl State {
    /// What comes of `op`, and what is told.
    fn after(self, op: Op) -> (State, Told) {
        let State { names, size } = self;
        match op {
            Op::Make(name) if names >> name & 1 == 1 => (self, Told::Exists),
            Op::Make(name) => (State { names: names | 1 << name, size }, Told::Done),
            Op::Delete(name) if names >> name & 1 == 0 => (self, Told::NotFound),
            Op::Delete(name) => (State { names: names & !(1 << name), size }, Told::Done),
            Op::List => (self, Told::Names(names)),
            Op::Grow(to) if to < size => (self, Told::Larger),
            Op::Grow(to) => (State { names, size: to }, Told::Grown(size)),
            Op::Size => (self, Told::Size(size)),
        }
    }
}

/// Whether there is such an order.
pub fn is_linearizable(events: &[Event], initial: State) -> bool {
    assert!(events.len() <= 64, "{} events", events.len());
    let known = events.iter().enumerate().filter(|(_, event)| event.told != Told::Unknown);
    let known = known.fold(0u64, |mask, (at, _)| mask | 1 << at);
    let mut seen = HashSet::new();
    let mut open = vec![(0u64, initial)];
    while let Some((done, state)) = open.pop() {
        if done & known == known {
            return true;
        }
        if !seen.insert((done, state)) {
            continue;
        }
        let left = |at: usize| done >> at & 1 == 0;
        // What began after another one had ended comes after that.
        let must = events.iter().enumerate().filter(|(at, _)| left(*at) && known >> at & 1 == 1);
        let first_end = must.map(|(_, event)| event.to).min().unwrap_or(u64::MAX);
        for (at, event) in events.iter().enumerate().filter(|(at, _)| left(*at)) {
            if event.from > first_end {
                continue;
            }
            let (next, told) = state.after(event.op);
            if event.told == Told::Unknown || event.told == told {
                open.push((done | 1 << at, next));
            }
        }
    }
    false
}

#[test]
fn the_checker_tells_good_histories_from_bad_ones() {
    let event = |op, told, from, to| Event { op, told, from, to };
    let initial = State { names: 0, size: 10 };
    let made = event(Op::Make(1), Told::Done, 0, 9);
    let seen = event(Op::List, Told::Names(2), 3, 4);
    let unseen = |from, to| event(Op::List, Told::Names(0), from, to);
    let good: [&[Event]; 5] = [
        &[made, seen, unseen(1, 2)],
        &[made, unseen(1, 20)],
        &[event(Op::Make(1), Told::Unknown, 0, 1), seen],
        &[event(Op::Make(1), Told::Unknown, 0, 1), unseen(5, 6)],
        &[event(Op::Grow(20), Told::Grown(10), 0, 5), event(Op::Grow(15), Told::Larger, 1, 2)],
    ];
    for events in good {
        assert!(is_linearizable(events, initial), "{events:?}");
    }
    let twice = event(Op::Make(1), Told::Done, 11, 12);
    let bad: [&[Event]; 6] = [
        // Seen, then not.
        &[made, seen, unseen(5, 6)],
        // Acknowledged and not there.
        &[made, unseen(10, 11)],
        // Nobody made it.
        &[seen],
        &[made, twice],
        &[event(Op::Delete(1), Told::Done, 0, 1)],
        &[event(Op::Grow(20), Told::Grown(10), 0, 1), event(Op::Size, Told::Size(10), 2, 3)],
    ];
    for events in bad {
        assert!(!is_linearizable(events, initial), "{events:?}");
    }
}
