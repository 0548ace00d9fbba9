//! Schedules: which snapshots a volume's owner makes by itself, and how many of them stay. JSON.
//!
//! `schedules/<~n>` has the rules from number `n` on; the greatest number counts. None, or one
//! without rules: no snapshots are made.

use super::VolumeId;
use super::codec::{FormatError, FormatResult, Problem};
use super::pool::parse_json;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

const VERSION: u32 = 1;
const OBJECT: &str = "schedule";
const MINUTE: u64 = 60_000;
/// Longest time between two snapshots of a rule: ten years.
const EVERY_MAX: u64 = 3650 * 24 * 60 * MINUTE;

/// The most rules of a volume.
pub const RULES_MAX: usize = 8;
/// The most snapshots that all rules of a volume keep together: half of what it may have.
pub const KEEP_MAX: u32 = 2048;

/// One snapshot in each period, and how many of them stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Length of a period in milliseconds: whole minutes. Periods are counted from 1970 on, UTC.
    pub every_ms: u64,
    /// How many stay, the newest.
    pub keep: u32,
}

/// A time in the largest unit of m, h and d that fits.
fn period(ms: u64) -> String {
    let units = [("d", 24 * 60 * MINUTE), ("h", 60 * MINUTE), ("m", MINUTE)];
    let unit = units.into_iter().find(|(_, unit)| ms.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{ms}ms"), |(name, unit)| format!("{}{name}", ms / unit))
}

impl Rule {
    /// The period in words: `1h`, `7d`, `90m`.
    pub fn period(&self) -> String {
        period(self.every_ms)
    }

    fn problem(&self) -> Option<String> {
        let Rule { every_ms, keep } = *self;
        if every_ms == 0 || !every_ms.is_multiple_of(MINUTE) {
            return Some(format!("{every_ms} ms is not a number of whole minutes"));
        }
        if every_ms > EVERY_MAX {
            return Some(format!("a period of {} is longer than ten years", self.period()));
        }
        let none = || format!("a rule that keeps no snapshots (every {})", self.period());
        (keep == 0).then(none)
    }
}

/// What is wrong with these rules of one volume, if something is.
pub fn problem(rules: &[Rule]) -> Option<String> {
    if rules.len() > RULES_MAX {
        return Some(format!("{} rules, and {RULES_MAX} are the most", rules.len()));
    }
    if let Some(problem) = rules.iter().find_map(Rule::problem) {
        return Some(problem);
    }
    let mut known = BTreeSet::new();
    if let Some(twice) = rules.iter().find(|rule| !known.insert(rule.every_ms)) {
        return Some(format!("two rules for every {}", twice.period()));
    }
    let keep = rules.iter().fold(0u32, |sum, rule| sum.saturating_add(rule.keep));
    let many = || format!("the rules keep {keep} snapshots, and {KEEP_MAX} are the most");
    (keep > KEEP_MAX).then(many)
}

/// `schedules/<~n>`: the rules of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleObject {
    /// Layout version.
    version: u32,
    /// The volume.
    pub volume: VolumeId,
    /// Its number, as its name says.
    pub number: u64,
    /// The rules.
    pub rules: Vec<Rule>,
}

impl ScheduleObject {
    /// The rules of `volume` from `number` on.
    pub fn new(volume: VolumeId, number: u64, rules: Vec<Rule>) -> ScheduleObject {
        ScheduleObject { version: VERSION, volume, number, rules }
    }

    /// Parses a schedule and checks every value.
    pub fn parse(bytes: &[u8]) -> FormatResult<ScheduleObject> {
        let schedule: ScheduleObject = parse_json(OBJECT, bytes)?;
        let error = |field, problem| FormatError { object: OBJECT, field, offset: 0, problem };
        if schedule.version != VERSION {
            return Err(error("version", Problem::Unsupported(schedule.version.to_string())));
        }
        match problem(&schedule.rules) {
            Some(problem) => Err(error("rules", Problem::Value(problem))),
            None => Ok(schedule),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_cannot_be() {
        let rule = |minutes, keep| Rule { every_ms: minutes * MINUTE, keep };
        assert_eq!(problem(&[rule(60, 24), rule(1440, 7)]), None);
        let odd = Rule { every_ms: 1, keep: 1 };
        let many: Vec<Rule> = (1..=9).map(|n| rule(n, 1)).collect();
        for (rules, words) in [
            (&[odd][..], "whole minutes"),
            (&[rule(0, 1)], "whole minutes"),
            (&[rule(6_000_000, 1)], "ten years"),
            (&[rule(60, 0)], "keeps no snapshots (every 1h)"),
            (&[rule(60, 1), rule(60, 2)], "two rules for every 1h"),
            (&[rule(60, 2000), rule(90, 49)], "2049 snapshots"),
            (&[rule(60, u32::MAX), rule(90, u32::MAX)], "snapshots"),
            (&many, "9 rules"),
        ] {
            let problem = problem(rules).unwrap();
            assert!(problem.contains(words), "{problem}");
        }
        assert_eq!(rule(90, 1).period(), "90m");
        assert_eq!(rule(2880, 1).period(), "2d");
    }
}
