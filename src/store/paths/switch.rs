//! All paths of a store, and which one takes a request. Pure: time comes from the caller.
//!
//! Paths of one priority are a group. Requests go by the group in use, the highest one with a path
//! that works (when a higher one comes back is for the failback policy); in it, by the selector. What is
//! tried again goes by a path that it was not sent by before, of any group. Where none works, requests
//! go by failed paths: the first answer shows that there is one again.
//!
//! A path is *quiet* when it owes an answer and has given none for as long as the caller is patient.

use super::policy::{Failback, PathPolicy};
use super::selector::{Load, Selector, Size, choose};
use super::state::{Change, Condition, Health, Outcome, Sample};
use std::collections::BTreeMap;
use std::time::Duration;

/// A request is lost after so many times what a path is given for an answer.
const LOST: u32 = 3;

/// Which path, for as long as the store is open; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId(pub u32);

/// A request by a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// By which path.
    pub path: PathId,
    /// What it moves.
    pub size: Size,
    number: u64,
    begun: Duration,
}

/// What a request wants of a path.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Paths that it was sent by already.
    pub tried: &'a [PathId],
    /// Paths that are asked the same by somebody else: others are better.
    pub asked: &'a [PathId],
    /// What it moves.
    pub size: Size,
    /// How long an answer may take before a path counts as quiet.
    pub patience: Duration,
    /// It is under way: only a path that is not quiet will do.
    pub race: bool,
}

/// One path.
#[derive(Debug)]
pub struct Member {
    /// Its group.
    pub priority: u32,
    /// Its state.
    pub health: Health,
    /// What it has to do.
    pub load: Load,
    /// Requests under way by number, and when they began.
    under_way: BTreeMap<u64, Duration>,
    answered: Duration,
    checking: bool,
}

impl Member {
    fn is_quiet(&self, now: Duration, patience: Duration) -> bool {
        let oldest = self.under_way.first_key_value().map(|(_, begun)| *begun);
        oldest.is_some_and(|begun| now.saturating_sub(begun.max(self.answered)) > patience)
    }

    fn is(&self, condition: Condition) -> bool {
        self.health.condition() == condition
    }
}

/// All paths.
#[derive(Debug)]
pub struct Switch {
    policy: PathPolicy,
    members: BTreeMap<PathId, Member>,
    /// The group in use.
    group: Option<u32>,
    /// Since when a higher one has a path that works.
    better_since: Option<Duration>,
    /// Since when no path works.
    none_since: Option<Duration>,
    choices: u64,
    legs: u64,
    added: u32,
    changes: Vec<(PathId, Change)>,
}

impl Switch {
    /// Without any path.
    pub fn new(policy: PathPolicy) -> Switch {
        Switch {
            policy,
            members: BTreeMap::new(),
            group: None,
            better_since: None,
            none_since: None,
            choices: 0,
            legs: 0,
            added: 0,
            changes: Vec::new(),
        }
    }

    /// How paths are used.
    pub fn policy(&self) -> &PathPolicy {
        &self.policy
    }

    /// Selects otherwise from now on.
    pub fn set_selector(&mut self, selector: Selector) {
        self.policy.selector = selector;
    }

    /// The paths, in the order in which they were added.
    pub fn members(&self) -> impl Iterator<Item = (PathId, &Member)> {
        self.members.iter().map(|(id, member)| (*id, member))
    }

    /// The group in use.
    pub fn group(&self) -> Option<u32> {
        self.group
    }

    /// Adds a path; one that is not `proven` has to pass its checks first.
    pub fn add(
        &mut self,
        priority: u32,
        weight: u32,
        now: Duration,
        proven: Result<(), &str>,
    ) -> PathId {
        self.added += 1;
        let id = PathId(self.added);
        let mut health = Health::new(now);
        if let Err(why) = proven {
            health.fail(why, now);
        }
        let member = Member {
            priority,
            health,
            load: Load::new(weight),
            under_way: BTreeMap::new(),
            answered: now,
            checking: false,
        };
        self.members.insert(id, member);
        self.regroup(now);
        id
    }

    /// Removes a path. What is under way by it goes on.
    pub fn remove(&mut self, id: PathId, now: Duration) {
        self.members.remove(&id);
        self.regroup(now);
    }

    /// Has a path (not) be used.
    pub fn enable(&mut self, id: PathId, enable: bool, now: Duration) {
        let alone = !self.any_other(id, |member| member.is(Condition::Active));
        let Some(member) = self.members.get_mut(&id) else { return };
        let change = member.health.enable(enable, now, alone);
        self.note(id, change, now);
    }

    /// Takes a path out of use, as one whose checks fail.
    pub fn fail(&mut self, id: PathId, why: &str, now: Duration) {
        let Some(member) = self.members.get_mut(&id) else { return };
        let change = member.health.fail(why, now);
        self.note(id, change, now);
    }

    /// What has changed since this was asked for last.
    pub fn take_changes(&mut self) -> Vec<(PathId, Change)> {
        std::mem::take(&mut self.changes)
    }

    /// True where requests have waited for a path that works for longer than the policy has them wait.
    pub fn is_hopeless(&self, now: Duration) -> bool {
        self.hopeless_at().is_some_and(|at| at <= now)
    }

    fn hopeless_at(&self) -> Option<Duration> {
        let patience = self.policy.no_path_retry.patience(self.policy.check_every)?;
        Some(self.none_since? + patience)
    }

    /// Sends a request by the path that suits it best; `None` where none will do.
    pub fn send(&mut self, wish: Wish<'_>, now: Duration) -> Option<Leg> {
        self.regroup(now);
        let Wish { tried, asked, size, patience, race } = wish;
        let group = self.group;
        let (works, again) = (self.none_since.is_none(), !tried.is_empty());
        let rank = |id: &PathId, member: &Member| -> Option<(u32, u32)> {
            let quiet = member.is_quiet(now, patience) || asked.contains(id);
            if tried.contains(id) || member.is(Condition::Disabled) || (race && quiet) {
                return None;
            }
            let (mine, down) = (group == Some(member.priority), u32::MAX - member.priority);
            Some(match member.health.condition() {
                Condition::Active if mine && !quiet => (0, 0),
                Condition::Active if !quiet && again => (1, down),
                Condition::Active if mine => (2, 0),
                Condition::Active if !quiet => (3, down),
                Condition::Active => (4, down),
                Condition::Marginal => (5, down),
                _ if works => return None,
                _ => (6, down),
            })
        };
        let ranked: BTreeMap<PathId, (u32, u32)> =
            self.members.iter().filter_map(|(id, m)| Some((*id, rank(id, m)?))).collect();
        let best = *ranked.values().min()?;
        let fit = |id: &PathId| ranked.get(id) == Some(&best);
        let (ids, mut loads): (Vec<PathId>, Vec<&mut Load>) = self
            .members
            .iter_mut()
            .filter(|(id, _)| fit(id))
            .map(|(id, member)| (*id, &mut member.load))
            .unzip();
        let selector = self.policy.selector;
        let chosen = choose(selector, &mut loads, size, now, &mut self.choices)?;
        self.legs += 1;
        let leg = Leg { path: ids[chosen], size, number: self.legs, begun: now };
        let member = self.members.get_mut(&leg.path)?;
        member.load.begin(size);
        member.under_way.insert(leg.number, now);
        Some(leg)
    }

    /// A request by a path has ended.
    pub fn ended(&mut self, leg: Leg, outcome: &Outcome, now: Duration) {
        let alone = !self.any_other(leg.path, |member| member.is(Condition::Active));
        let better = self.others_fare_better(leg.path);
        let Some(member) = self.members.get_mut(&leg.path) else { return };
        member.load.end(leg.size);
        member.under_way.remove(&leg.number);
        if matches!(outcome, Outcome::Answered | Outcome::Throttled) {
            member.answered = now;
        }
        if *outcome == Outcome::Answered {
            member.load.learn(leg.size, now.saturating_sub(leg.begun), now);
        }
        let change = member.health.ended(outcome, &self.policy, now, (alone, better));
        self.note(leg.path, change, now);
    }

    /// Nobody waits for a request any more. A path that had been quiet since it began has stalled, if
    /// another one works.
    pub fn abandoned(&mut self, leg: Leg, patience: Duration, now: Duration) {
        let others = self.any_other(leg.path, |member| {
            member.is(Condition::Active) && !member.is_quiet(now, patience)
        });
        let Some(member) = self.members.get_mut(&leg.path) else { return };
        let quiet = now.saturating_sub(leg.begun.max(member.answered));
        if others && quiet >= patience && member.answered <= leg.begun {
            let why = format!("no answer within {quiet:.1?}");
            return self.ended(leg, &Outcome::Stalled(why), now);
        }
        member.load.end(leg.size);
        member.under_way.remove(&leg.number);
    }

    /// True where another path is to be preferred to that of a request under way: it is out of use, or
    /// has been quiet since; or the request has waited so long that it must have been lost on its way,
    /// whatever others are told.
    pub fn is_given_up(&self, leg: Leg, patience: Duration, now: Duration) -> bool {
        let Some(member) = self.members.get(&leg.path) else { return true };
        let silent = now.saturating_sub(leg.begun.max(member.answered)) >= patience;
        let out_of_use =
            !matches!(member.health.condition(), Condition::Active | Condition::Marginal);
        let lost = now.saturating_sub(leg.begun) >= LOST * patience;
        // Where no path works, all are tried, but not all at once.
        silent || lost || (out_of_use && self.none_since.is_none())
    }

    /// The paths to check now; they count as being checked until that has ended.
    pub fn begin_checks(&mut self, now: Duration) -> Vec<PathId> {
        let policy = &self.policy;
        // Of one path alone, the requests say enough.
        if self.members.len() < 2 {
            return Vec::new();
        }
        let due = |member: &Member| {
            let due = member.health.check_due(policy, member.answered);
            !member.checking && due.is_some_and(|due| due <= now)
        };
        let due = self.members.iter_mut().filter(|(_, member)| due(member));
        let begin = |(id, member): (&PathId, &mut Member)| {
            member.checking = true;
            *id
        };
        due.map(begin).collect()
    }

    /// When something is to be done without a request: a check, failback, or giving up hope.
    pub fn next_due(&self, now: Duration) -> Option<Duration> {
        let checks = self.members.values().filter(|member| !member.checking);
        let checks =
            checks.filter_map(|member| member.health.check_due(&self.policy, member.answered));
        let checks = checks.min().filter(|_| self.members.len() > 1);
        let failback = match (self.policy.failback, self.better_since) {
            (Failback::After(time), Some(since)) => Some(since + time),
            _ => None,
        };
        let hopeless = self.hopeless_at().filter(|at| *at > now);
        [checks, failback, hopeless].into_iter().flatten().min()
    }

    /// A check has ended.
    pub fn checked(&mut self, id: PathId, result: Result<(), String>, now: Duration) {
        let alone = !self.any_other(id, |member| member.is(Condition::Active));
        let Some(member) = self.members.get_mut(&id) else { return };
        member.checking = false;
        if result.is_ok() {
            member.answered = now;
        }
        let change = member.health.checked(result, &self.policy, now, alone);
        self.note(id, change, now);
    }

    /// Brings the group in use up to date.
    pub fn regroup(&mut self, now: Duration) {
        let active = self.members.values().filter(|member| member.is(Condition::Active));
        let best = active.clone().map(|member| member.priority).max();
        let still = active.clone().any(|member| Some(member.priority) == self.group);
        let usable = best.is_some() || self.members.values().any(|m| m.is(Condition::Marginal));
        self.none_since = if usable { None } else { self.none_since.or(Some(now)) };
        if !still || best <= self.group {
            self.better_since = None;
            if !still {
                self.group = best;
            }
            return;
        }
        let since = *self.better_since.get_or_insert(now);
        let over = match self.policy.failback {
            Failback::Immediate => true,
            Failback::Manual => false,
            Failback::After(time) => now.saturating_sub(since) >= time,
        };
        if over {
            (self.group, self.better_since) = (best, None);
        }
    }

    fn note(&mut self, id: PathId, change: Option<Change>, now: Duration) {
        if let Some(change) = change {
            self.changes.push((id, change));
            self.regroup(now);
        }
    }

    /// True where a path other than this one is such.
    pub fn any_other(&self, id: PathId, such: impl Fn(&Member) -> bool) -> bool {
        self.members.iter().any(|(other, member)| *other != id && such(member))
    }

    fn others_fare_better(&self, id: PathId) -> bool {
        let others =
            self.members.iter().filter(|(other, m)| **other != id && m.is(Condition::Active));
        let samples = others.map(|(_, member)| member.health.sample());
        let all = samples.fold(Sample::default(), |sum, sample| Sample {
            requests: sum.requests + sample.requests,
            errors: sum.errors + sample.errors,
        });
        all.requests > 0 && !all.exceeds(self.policy.marginal_percent)
    }
}
