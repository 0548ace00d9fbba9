//! The condition of one path, by what its requests and its checks came to. Pure.
//!
//! ```text
//!            fail_after failures in a row, or a stall             a check fails
//!   active ────────────────────────────────────────> failed <──────────────── checking
//!    │  ^ ^                                             └── a check succeeds ────^ │
//!    │  │ └─────── readmit_after checks in a row succeed ─────────────────────────┘
//!    │  └── time is served, readmit_after checks in a row succeed ── marginal
//!    └───── a share of requests fails, and others fare better ───────^
//! ```
//!
//! A marginal path answers, but not reliably: it is held out for a time, twice as long whenever it is
//! soon back, and used where nothing better is left. `disabled` is what a user says, from any of them.

use super::policy::PathPolicy;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Requests by which a path's share of failures is told.
const SAMPLE: u32 = 40;

/// Failures longer ago say nothing.
const SAMPLE_AGE: Duration = Duration::from_secs(60);

/// How long a marginal path is held out at first, and at most.
const HOLD_MIN: Duration = Duration::from_secs(30);
const HOLD_MAX: Duration = Duration::from_secs(600);

/// Time between two checks of a path that begins to answer.
const QUICK: Duration = Duration::from_secs(1);

/// A path that works is checked when it has had no answer for so many check intervals.
const IDLE_CHECKS: u32 = 4;

/// What can be expected of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// It is used.
    Active,
    /// It failed, and begins to answer checks.
    Checking,
    /// It fails too often.
    Marginal,
    /// It does not work.
    Failed,
    /// A user wants it not to be used.
    Disabled,
}

impl Condition {
    /// Its name for users.
    pub fn name(self) -> &'static str {
        match self {
            Condition::Active => "active",
            Condition::Checking => "checking",
            Condition::Marginal => "marginal",
            Condition::Failed => "failed",
            Condition::Disabled => "disabled",
        }
    }
}

/// How a request by a path ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The store answered: what it said is no matter of the path.
    Answered,
    /// It asked to slow down.
    Throttled,
    /// It failed, and why.
    Failed(String),
    /// There was no answer for too long.
    Stalled(String),
}

/// A path is not what it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it was.
    pub from: Condition,
    /// What it is.
    pub to: Condition,
    /// Why.
    pub why: String,
}

/// Requests of late and how many of them failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Requests that ended.
    pub requests: u32,
    /// Failures among them.
    pub errors: u32,
}

impl Sample {
    /// True where more than so many percent failed.
    pub fn exceeds(self, percent: u32) -> bool {
        u64::from(self.errors) * 100 > u64::from(self.requests) * u64::from(percent)
    }
}

/// The state machine of one path.
#[derive(Clone, Debug)]
pub struct Health {
    condition: Condition,
    since: Duration,
    /// Failures in a row.
    failures: u32,
    /// Checks in a row that succeeded.
    passed: u32,
    sample: Sample,
    sampled: Duration,
    /// How long it was held out last, and when that ends.
    hold: Duration,
    held_until: Duration,
    next_check: Duration,
    last_error: Option<String>,
}

impl Health {
    /// Of a path that is expected to work.
    pub fn new(now: Duration) -> Health {
        Health {
            condition: Condition::Active,
            since: now,
            failures: 0,
            passed: 0,
            sample: Sample::default(),
            sampled: now,
            hold: Duration::ZERO,
            held_until: Duration::ZERO,
            next_check: now,
            last_error: None,
        }
    }

    /// What can be expected of it.
    pub fn condition(&self) -> Condition {
        self.condition
    }

    /// Since when.
    pub fn since(&self) -> Duration {
        self.since
    }

    /// Why a request or a check failed last.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// What became of its requests of late.
    pub fn sample(&self) -> Sample {
        self.sample
    }

    fn become_(&mut self, to: Condition, why: impl Into<String>, now: Duration) -> Option<Change> {
        let from = std::mem::replace(&mut self.condition, to);
        if from == to {
            return None;
        }
        self.since = now;
        (self.failures, self.passed) = (0, 0);
        (self.sample, self.sampled) = (Sample::default(), now);
        self.next_check = now;
        Some(Change { from, to, why: why.into() })
    }

    /// A request has ended. `alone`: no other path works. `better`: others that do fail less often.
    pub fn ended(
        &mut self,
        outcome: &Outcome,
        policy: &PathPolicy,
        now: Duration,
        (alone, better): (bool, bool),
    ) -> Option<Change> {
        if let Outcome::Failed(why) | Outcome::Stalled(why) = outcome {
            self.last_error = Some(why.clone());
        }
        match self.condition {
            Condition::Active => self.judge(outcome, policy, now, better),
            // What was sent for want of a better path shows as much as a check.
            Condition::Failed | Condition::Checking if alone && *outcome == Outcome::Answered => {
                self.become_(Condition::Active, "it answers again", now)
            }
            _ => None,
        }
    }

    fn judge(
        &mut self,
        outcome: &Outcome,
        policy: &PathPolicy,
        now: Duration,
        better: bool,
    ) -> Option<Change> {
        if now.saturating_sub(self.sampled) > SAMPLE_AGE {
            (self.sample, self.sampled) = (Sample::default(), now);
        }
        self.sample.requests += 1;
        self.sample.errors += u32::from(*outcome != Outcome::Answered);
        self.failures = match outcome {
            Outcome::Failed(_) => self.failures + 1,
            _ => 0,
        };
        match outcome {
            Outcome::Stalled(why) => return self.become_(Condition::Failed, why, now),
            Outcome::Failed(why) if self.failures >= policy.fail_after => {
                return self.become_(Condition::Failed, why, now);
            }
            _ => {}
        }
        if self.sample.requests < SAMPLE {
            return None;
        }
        let sample = std::mem::take(&mut self.sample);
        self.sampled = now;
        if !better || !sample.exceeds(policy.marginal_percent) {
            // Half of it goes on to count, so that a burst across the border of two is seen.
            self.sample = Sample { requests: SAMPLE / 2, errors: sample.errors / 2 };
            return None;
        }
        let soon = now.saturating_sub(self.held_until) < 10 * self.hold;
        self.hold = if soon { (2 * self.hold).min(HOLD_MAX) } else { HOLD_MIN };
        self.held_until = now + self.hold;
        let (errors, hold) = (sample.errors, self.hold.as_secs());
        let why = format!("{errors} of {SAMPLE} requests failed; held out for {hold} s");
        self.become_(Condition::Marginal, why, now)
    }

    /// When it is to be checked; `None` where it is not. `answered` is when it had an answer last.
    pub fn check_due(&self, policy: &PathPolicy, answered: Duration) -> Option<Duration> {
        match self.condition {
            Condition::Disabled => None,
            Condition::Active => {
                Some(self.next_check.max(answered + policy.check_every * IDLE_CHECKS))
            }
            Condition::Marginal => Some(self.next_check.max(self.held_until)),
            Condition::Failed | Condition::Checking => Some(self.next_check),
        }
    }

    /// A check has ended, well or with what was wrong. `alone`: no other path works.
    pub fn checked(
        &mut self,
        result: Result<(), String>,
        policy: &PathPolicy,
        now: Duration,
        alone: bool,
    ) -> Option<Change> {
        self.next_check = now + policy.check_every;
        if let Err(why) = &result {
            self.last_error = Some(why.clone());
            self.passed = 0;
        }
        match (self.condition, result) {
            (Condition::Disabled, _) => None,
            (Condition::Active, Ok(())) => {
                self.failures = 0;
                None
            }
            (Condition::Active, Err(why)) => {
                self.next_check = now + policy.check_every.min(QUICK);
                self.failures += 1;
                match self.failures >= policy.fail_after {
                    true => self.become_(Condition::Failed, why, now),
                    false => None,
                }
            }
            (Condition::Marginal, Err(_)) => None,
            (Condition::Failed | Condition::Checking, Err(why)) => {
                let change = self.become_(Condition::Failed, why, now);
                self.next_check = now + policy.check_every;
                change
            }
            (_, Ok(())) => {
                self.next_check = now + policy.check_every.min(QUICK);
                self.pass(policy, now, alone)
            }
        }
    }

    fn pass(&mut self, policy: &PathPolicy, now: Duration, alone: bool) -> Option<Change> {
        let passed = self.passed + 1;
        self.passed = passed;
        if alone || passed >= policy.readmit_after {
            let why = format!("{passed} checks in a row succeeded");
            return self.become_(Condition::Active, why, now);
        }
        if self.condition == Condition::Marginal {
            return None;
        }
        let (change, next) = (self.become_(Condition::Checking, "a check succeeded", now), now);
        (self.passed, self.next_check) = (passed, next + policy.check_every.min(QUICK));
        change
    }

    /// A path whose first check failed, or is still under way: it has to be readmitted.
    pub fn fail(&mut self, why: &str, now: Duration) -> Option<Change> {
        self.last_error = Some(why.to_owned());
        self.become_(Condition::Failed, why, now)
    }

    /// A user wants it (not) to be used. What is enabled has to be readmitted, unless `alone`.
    pub fn enable(&mut self, enable: bool, now: Duration, alone: bool) -> Option<Change> {
        match (enable, self.condition) {
            (false, _) => self.become_(Condition::Disabled, "a user said so", now),
            (true, Condition::Disabled) => {
                let to = if alone { Condition::Active } else { Condition::Checking };
                self.become_(to, "a user said so", now)
            }
            (true, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const OTHERS: (bool, bool) = (false, true);

    fn failed() -> Outcome {
        Outcome::Failed("refused".into())
    }

    fn policy() -> PathPolicy {
        PathPolicy::default()
    }

    #[test]
    fn failures_in_a_row_fail_a_path_and_checks_in_a_row_readmit_it() {
        let mut path = Health::new(Duration::ZERO);
        for outcome in [failed(), failed(), Outcome::Answered, failed(), failed()] {
            assert_eq!(path.ended(&outcome, &policy(), S, OTHERS), None);
        }
        let change = path.ended(&failed(), &policy(), S, OTHERS).unwrap();
        assert_eq!((change.to, change.why.as_str()), (Condition::Failed, "refused"));
        assert_eq!(path.check_due(&policy(), S), Some(S));
        // Late answers readmit nobody.
        assert_eq!(path.ended(&Outcome::Answered, &policy(), S, OTHERS), None);
        assert_eq!(path.checked(Err("no".into()), &policy(), 2 * S, false), None);
        assert_eq!(path.check_due(&policy(), S), Some(7 * S));
        let change = path.checked(Ok(()), &policy(), 7 * S, false).unwrap();
        assert_eq!(change.to, Condition::Checking);
        assert_eq!(path.check_due(&policy(), S), Some(8 * S));
        assert_eq!(path.checked(Ok(()), &policy(), 8 * S, false), None);
        let change = path.checked(Err("no".into()), &policy(), 9 * S, false).unwrap();
        assert_eq!(change.to, Condition::Failed);
        for second in 14..16 {
            path.checked(Ok(()), &policy(), second * S, false);
        }
        assert_eq!(path.condition(), Condition::Checking);
        assert_eq!(path.checked(Ok(()), &policy(), 16 * S, false).unwrap().to, Condition::Active);
    }

    #[test]
    fn the_only_path_is_back_with_its_first_answer() {
        let fail = |alone| {
            let mut path = Health::new(Duration::ZERO);
            let stall = Outcome::Stalled("silent".into());
            assert_eq!(
                path.ended(&stall, &policy(), S, (alone, false)).unwrap().to,
                Condition::Failed
            );
            path
        };
        let answered = fail(true).ended(&Outcome::Answered, &policy(), S, (true, false));
        assert_eq!(answered.unwrap().to, Condition::Active);
        assert_eq!(fail(true).checked(Ok(()), &policy(), S, true).unwrap().to, Condition::Active);
    }

    /// Requests of which one in `every` fails, until something changes.
    fn unreliable(path: &mut Health, every: u32, now: Duration, better: bool) -> Option<Change> {
        (0..200).find_map(|i| {
            let outcome = if i % every == 0 { failed() } else { Outcome::Answered };
            path.ended(&outcome, &policy(), now, (false, better))
        })
    }

    #[test]
    fn a_path_that_fails_often_is_held_out_for_longer_each_time() {
        let mut path = Health::new(Duration::ZERO);
        assert_eq!(unreliable(&mut path, 11, S, true), None);
        assert_eq!(unreliable(&mut path, 5, S, false), None, "all are as bad");
        let mut now = S;
        for hold in [30, 60, 120, 240, 480, 600, 600] {
            let change = unreliable(&mut path, 5, now, true).unwrap();
            assert_eq!(change.to, Condition::Marginal);
            assert!(change.why.ends_with(&format!("held out for {hold} s")), "{}", change.why);
            now += hold * S;
            assert_eq!(path.check_due(&policy(), now), Some(now));
            for _ in 0..2 {
                assert_eq!(path.checked(Ok(()), &policy(), now, false), None);
            }
            assert_eq!(path.checked(Ok(()), &policy(), now, false).unwrap().to, Condition::Active);
        }
        now += 6001 * S;
        assert!(unreliable(&mut path, 5, now, true).unwrap().why.ends_with("for 30 s"));
    }

    #[test]
    fn users_have_the_last_word() {
        let mut path = Health::new(Duration::ZERO);
        assert_eq!(path.enable(false, S, false).unwrap().to, Condition::Disabled);
        assert_eq!(path.check_due(&policy(), S), None);
        assert_eq!(path.ended(&Outcome::Answered, &policy(), S, (true, false)), None);
        assert_eq!(path.checked(Ok(()), &policy(), S, true), None);
        assert_eq!(path.enable(true, S, false).unwrap().to, Condition::Checking);
        assert_eq!(path.enable(true, S, false), None);
        path.enable(false, S, false);
        assert_eq!(path.enable(true, S, true).unwrap().to, Condition::Active);
    }
}
