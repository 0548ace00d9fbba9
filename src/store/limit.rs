//! Turns: a bound on the requests to a store that are under way at once, which adapts to what the
//! store can take, with the important ones first.
//!
//! All that reach one store share one [`Limiter`]. It is no layer of its own: `retry` asks it for
//! a turn before each attempt and tells it how the attempt ended. So it sees every refusal, an
//! attempt's time limit does not run while it waits, nobody holds a turn while it pauses (but those
//! that probe a dead store), and a request keeps its age over all its attempts. What it decides is
//! in [`policy`].
//!
//! One request may serve several that want the same. When somebody of the foreground joins one of the
//! background's, that goes with the foreground from then on ([`Limiter::hurry`]), as does what else
//! is asked of the same object meanwhile.
//!
//! Dropping a future gives its turn, or its place in the line, back.

pub mod policy;

use super::{StoreError, StoreErrorKind};
use policy::{Admission, Meaning, Outcome};
pub use policy::{Bounds, Class, Kind, Ticket, Turn};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

/// Gives turns; see the module.
#[derive(Debug)]
pub struct Limiter {
    state: Mutex<State>,
    /// Outages that are over.
    heals: AtomicU64,
    /// Another one is. Wakes in the order of asking, so that a simulated world replays exactly.
    healed: Notify,
}

#[derive(Debug)]
struct State {
    admission: Admission,
    waiting: BTreeMap<Ticket, InLine>,
    /// Objects that the foreground waits for, and how many of it do.
    urgent: HashMap<String, usize>,
    /// Why the last request had no answer.
    trouble: Option<String>,
}

/// Who waits.
#[derive(Debug)]
struct InLine {
    name: String,
    kind: Kind,
    class: Class,
    call: oneshot::Sender<Turn>,
}

/// As long as it lives, all requests for one object go with the foreground.
#[derive(Debug)]
pub struct Urgent {
    limiter: Arc<Limiter>,
    name: String,
}

/// The right to make an attempt, until it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    limiter: &'a Limiter,
    turn: Turn,
}

/// A place in the line.
struct Waiting<'a> {
    limiter: &'a Limiter,
    ticket: Ticket,
    turn: oneshot::Receiver<Turn>,
}

impl Limiter {
    /// A limiter within these bounds.
    pub fn new(bounds: Bounds) -> Limiter {
        let admission = Admission::new(bounds);
        let (waiting, urgent) = (BTreeMap::new(), HashMap::new());
        let state = State { admission, waiting, urgent, trouble: None };
        Limiter { state: Mutex::new(state), heals: AtomicU64::new(0), healed: Notify::new() }
    }

    /// A ticket for a new request.
    pub fn draw(&self) -> Ticket {
        self.state().admission.draw()
    }

    /// Waits for the turn of `ticket`, which is used by one request only: for the object `name`.
    pub async fn turn(&self, ticket: Ticket, kind: Kind, class: Class, name: &str) -> Place<'_> {
        let (call, turn) = oneshot::channel();
        let mut waiting = Waiting { limiter: self, ticket, turn };
        {
            let mut state = self.state();
            let is_urgent = state.urgent.contains_key(name);
            let class = if is_urgent { Class::Foreground } else { class };
            state.admission.wait(ticket, kind, class);
            state.waiting.insert(ticket, InLine { name: name.to_owned(), kind, class, call });
            state.call();
        }
        let turn = (&mut waiting.turn).await.expect("who waits is called, never dropped");
        Place { limiter: self, turn }
    }

    /// The foreground waits for what others have asked for of the object `name`.
    pub fn hurry(self: &Arc<Limiter>, name: &str) -> Urgent {
        let mut state = self.state();
        *state.urgent.entry(name.to_owned()).or_default() += 1;
        state.raise(name);
        state.call();
        Urgent { limiter: self.clone(), name: name.to_owned() }
    }

    /// The width of a window: how many of a kind may be under way.
    pub fn window(&self, kind: Kind) -> usize {
        self.state().admission.window(kind)
    }

    /// The store counts as unreachable.
    pub fn is_out(&self) -> bool {
        self.state().admission.is_out()
    }

    /// Why requests have no answer at present, where the store is out.
    pub fn trouble(&self) -> Option<String> {
        let state = self.state();
        state.trouble.clone().filter(|_| state.admission.is_out())
    }

    /// Outages that have ended so far.
    pub fn heals(&self) -> u64 {
        self.heals.load(Acquire)
    }

    /// Waits until more outages have ended than `seen`.
    pub async fn healed(&self, seen: u64) {
        loop {
            // Woken by `notify_waiters` from its creation on, polled or not.
            let healed = self.healed.notified();
            if self.heals() > seen {
                return;
            }
            healed.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl State {
    /// Calls everybody whose turn it is.
    fn call(&mut self) {
        while let Some((ticket, turn)) = self.admission.admit() {
            let waiting = self.waiting.remove(&ticket);
            if waiting.is_none_or(|waiting| waiting.call.send(turn).is_err()) {
                self.admission.end(turn);
            }
        }
    }

    /// Has those who wait with a request for `name` wait with the foreground.
    fn raise(&mut self, name: &str) {
        for (ticket, waiting) in &mut self.waiting {
            if waiting.class == Class::Background && waiting.name == name {
                self.admission.give_up(*ticket, waiting.kind, Class::Background);
                self.admission.wait(*ticket, waiting.kind, Class::Foreground);
                waiting.class = Class::Foreground;
            }
        }
    }
}

impl<'a> Place<'a> {
    /// Says how the attempt ended. The place is returned to who shall keep it over its pause.
    pub fn report(self, error: Option<&StoreError>) -> Option<Place<'a>> {
        let outcome = match error.map(|e| e.kind) {
            Some(StoreErrorKind::Throttled) => Outcome::Throttled,
            Some(StoreErrorKind::Unavailable) => Outcome::Silent,
            _ => Outcome::Answered,
        };
        let meaning = {
            let mut state = self.limiter.state();
            if outcome == Outcome::Silent {
                state.trouble = error.map(|e| e.detail.clone());
            }
            state.admission.report(self.turn, outcome)
        };
        if meaning == Meaning::Healed {
            self.limiter.heals.fetch_add(1, Release);
            self.limiter.healed.notify_waiters();
        }
        (meaning == Meaning::Probe).then_some(self)
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        let mut state = self.limiter.state();
        if let Entry::Occupied(mut waiters) = state.urgent.entry(std::mem::take(&mut self.name)) {
            *waiters.get_mut() -= 1;
            if *waiters.get() == 0 {
                waiters.remove();
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.limiter.state();
        state.admission.end(self.turn);
        state.call();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.limiter.state();
        if let Some(waiting) = state.waiting.remove(&self.ticket) {
            state.admission.give_up(self.ticket, waiting.kind, waiting.class);
        } else if let Ok(turn) = self.turn.try_recv() {
            // Called, and gone before it heard of it.
            state.admission.end(turn);
            state.call();
        }
    }
}
