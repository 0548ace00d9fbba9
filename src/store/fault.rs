//! Faults on purpose: what a store and the network before it can do to a request.
//!
//! # The fault model
//!
//! * **Fail before**: the request never takes effect and the caller gets an error of a chosen
//!   kind ([`Fault::Fail`] with [`Moment::Before`]; with `NotFound` a vanished object).
//! * **Lost reply**: the request takes effect and the caller gets an error
//!   ([`Fault::Fail`] with [`Moment::After`]).
//! * **Delay** and **hold**, before or after the effect: for a drawn time, or until released. The
//!   request goes on when its caller stops waiting, so a PUT that was given up can still land
//!   later, after whatever its caller did next.
//! * **Duplicate**: the request arrives once more, a set time after its first effect; the caller
//!   gets the first reply.
//! * **Truncated body**, **flipped bit**: `get` returns damaged bytes, as success.
//! * **Stale list**: `list` leaves out objects created within the last while. (What was created
//!   before the rule was added is always listed.)
//! * **Down**: while the switch is on, requests that arrive fail before; those that are under
//!   way go on.
//!
//! Not in the model: objects that change, a create that lets two callers win, a list in wrong
//! order. A store that does such things is refused by the `probe`.
//!
//! Which requests are hit depends on the rules, the seed and the order of arrival only; time is
//! tokio's. Several rules that fire for one request act in the order they were added.

mod inject;

pub use inject::FaultStore;

use super::{Key, Op, StoreErrorKind};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// Before the request takes effect, or after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The store has not seen the request yet.
    Before,
    /// The request has taken effect, the reply is on its way.
    After,
}

/// What happens to a request. See the module's fault model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller gets an error of this kind.
    Fail(Moment, StoreErrorKind),
    /// The request, or its reply, waits for a time drawn from `from..=to`.
    Delay {
        /// What waits.
        at: Moment,
        /// Shortest wait.
        from: Duration,
        /// Longest wait.
        to: Duration,
    },
    /// The request, or its reply, waits for [`ActiveRule::release`].
    Hold(Moment),
    /// The request takes effect a second time, this much later.
    Duplicate(Duration),
    /// `get` returns a part of the bytes, cut at a drawn place.
    Truncate,
    /// `get` returns the bytes with one drawn bit flipped.
    FlipBit,
    /// `list` leaves out objects created less than this ago.
    StaleList(Duration),
}

impl Fault {
    /// Its name in [`FaultHandle::counts`].
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Fail(Moment::Before, _) => "fail_before",
            Fault::Fail(Moment::After, _) => "lost_reply",
            Fault::Delay { .. } => "delay",
            Fault::Hold(_) => "hold",
            Fault::Duplicate(_) => "duplicate",
            Fault::Truncate => "truncate",
            Fault::FlipBit => "flip_bit",
            Fault::StaleList(_) => "stale_list",
        }
    }

    fn applies_to(&self, op: Op) -> bool {
        match self {
            Fault::Truncate | Fault::FlipBit => op == Op::Get,
            Fault::StaleList(_) => op == Op::List,
            _ => true,
        }
    }

    /// The request must go on when its caller stops waiting.
    fn outlives_caller(&self) -> bool {
        matches!(self, Fault::Delay { .. } | Fault::Hold(_) | Fault::Duplicate(_))
    }
}

/// A fault and the requests that it hits: all, unless narrowed.
#[derive(Clone, Debug)]
pub struct Rule {
    fault: Fault,
    ops: Vec<Op>,
    prefix: String,
    probability: f64,
    skip: u64,
    times: u64,
}

impl Rule {
    /// Hits every request that the fault can apply to.
    pub fn new(fault: Fault) -> Rule {
        let (ops, prefix) = (Op::ALL.to_vec(), String::new());
        Rule { fault, ops, prefix, probability: 1.0, skip: 0, times: u64::MAX }
    }

    /// Only these operations.
    pub fn on(mut self, ops: &[Op]) -> Rule {
        self.ops = ops.to_vec();
        self
    }

    /// Only requests for keys that begin with `prefix`; for a list, prefixes that overlap it.
    pub fn below(mut self, prefix: impl Into<String>) -> Rule {
        self.prefix = prefix.into();
        self
    }

    /// Only this share of the requests (0 to 1), drawn from the seed.
    pub fn with_probability(mut self, probability: f64) -> Rule {
        self.probability = probability;
        self
    }

    /// Spares the first `count` requests.
    pub fn skip(mut self, count: u64) -> Rule {
        self.skip = count;
        self
    }

    /// Hits at most `count` requests.
    pub fn times(mut self, count: u64) -> Rule {
        self.times = count;
        self
    }

    fn matches(&self, op: Op, names: &[&str]) -> bool {
        let hit = |name: &&str| {
            name.starts_with(&self.prefix) || (op == Op::List && self.prefix.starts_with(*name))
        };
        self.ops.contains(&op) && self.fault.applies_to(op) && names.iter().any(hit)
    }
}

#[derive(Debug)]
struct Active {
    rule: Rule,
    seen: AtomicU64,
    hits: AtomicU64,
    held: watch::Sender<usize>,
    /// A permit lets one held request go; closed, it lets all go.
    gate: Semaphore,
}

impl Active {
    async fn hold(&self) {
        self.held.send_modify(|held| *held += 1);
        if let Ok(permit) = self.gate.acquire().await {
            permit.forget();
        }
        self.held.send_modify(|held| *held -= 1);
    }
}

/// A rule in force.
#[derive(Clone, Debug)]
pub struct ActiveRule {
    active: Arc<Active>,
}

impl ActiveRule {
    /// Requests hit so far.
    pub fn hits(&self) -> u64 {
        self.active.hits.load(Relaxed)
    }

    /// Waits until `count` requests are held by this rule.
    pub async fn held(&self, count: usize) {
        let mut held = self.active.held.subscribe();
        held.wait_for(|held| *held >= count).await.expect("this handle keeps the sender");
    }

    /// Lets one held request go, or the next one if none is held.
    pub fn release_one(&self) {
        self.active.gate.add_permits(1);
    }

    /// Lets all held requests go, and those that this rule would hold from now on.
    pub fn release(&self) {
        self.active.gate.close();
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rng: StdRng,
    rules: Vec<Arc<Active>>,
    down: bool,
    counts: BTreeMap<&'static str, u64>,
    /// When objects were created, kept while a rule makes lists stale.
    created: BTreeMap<Key, Instant>,
}

/// A fault that a request will suffer, with the randomness drawn for it.
struct Hit {
    active: Arc<Active>,
    fault: Fault,
    draw: u64,
}

impl Shared {
    fn new(seed: u64) -> Shared {
        let rng = StdRng::seed_from_u64(seed);
        let (rules, counts, created) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Shared { state: Mutex::new(State { rng, rules, down: false, counts, created }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// The faults of a request that arrives now; `None` while the store is down.
    fn arrive(&self, op: Op, names: &[&str]) -> Option<Vec<Hit>> {
        let mut state = self.state();
        let State { rng, rules, down, counts, .. } = &mut *state;
        if *down {
            *counts.entry("down").or_default() += 1;
            return None;
        }
        let mut hits = Vec::new();
        for active in rules.iter().filter(|active| active.rule.matches(op, names)) {
            let rule = &active.rule;
            let (chance, draw) = (rng.random::<f64>(), rng.random::<u64>());
            let spared = active.seen.fetch_add(1, Relaxed) < rule.skip;
            if spared || chance >= rule.probability || active.hits.load(Relaxed) >= rule.times {
                continue;
            }
            active.hits.fetch_add(1, Relaxed);
            *counts.entry(rule.fault.name()).or_default() += 1;
            hits.push(Hit { active: active.clone(), fault: rule.fault.clone(), draw });
        }
        Some(hits)
    }

    fn note_created(&self, key: &Key) {
        let mut state = self.state();
        if state.rules.iter().any(|active| matches!(active.rule.fault, Fault::StaleList(_))) {
            state.created.insert(key.clone(), Instant::now());
        }
    }

    fn is_hidden(&self, key: &Key, window: Duration) -> bool {
        self.state().created.get(key).is_some_and(|created| created.elapsed() < window)
    }
}

/// The controls of a [`FaultStore`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct FaultHandle {
    shared: Arc<Shared>,
}

impl FaultHandle {
    /// Puts a rule in force for requests that arrive from now on.
    pub fn add(&self, rule: Rule) -> ActiveRule {
        let active = Arc::new(Active {
            rule,
            seen: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            held: watch::Sender::new(0),
            gate: Semaphore::new(0),
        });
        self.shared.state().rules.push(active.clone());
        ActiveRule { active }
    }

    /// Removes all rules and lets held requests go. Down stays down.
    pub fn clear(&self) {
        let rules = std::mem::take(&mut self.shared.state().rules);
        rules.iter().for_each(|active| active.gate.close());
    }

    /// Turns an outage on or off.
    pub fn set_down(&self, down: bool) {
        self.shared.state().down = down;
    }

    /// Requests hit since the store was wrapped, by the name of the fault; outages as `down`.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.shared.state().counts.clone()
    }
}
