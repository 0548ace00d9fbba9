//! Groups, failback, stalls and checks over all paths, without any I/O.

use objblk::store::paths::policy::{Failback, NoPathRetry, PathPolicy};
use objblk::store::paths::selector::Size;
use objblk::store::paths::state::{Condition, Outcome};
use objblk::store::paths::switch::{PathId, Switch, Wish};
use std::time::Duration;

const S: Duration = Duration::from_secs(1);

fn wish(tried: &[PathId]) -> Wish<'_> {
    Wish { tried, asked: &[], size: Size(4096), patience: S, race: false }
}

fn switch(policy: PathPolicy, priorities: &[u32]) -> Switch {
    let mut switch = Switch::new(policy);
    for priority in priorities {
        switch.add(*priority, 1, Duration::ZERO, Ok(()));
    }
    switch
}

fn failed() -> Outcome {
    Outcome::Failed("refused".into())
}

fn fail(switch: &mut Switch, path: u32, now: Duration) {
    switch.fail(PathId(path), "refused", now);
}

fn readmit(switch: &mut Switch, path: u32, now: Duration) {
    (0..3).for_each(|_| switch.checked(PathId(path), Ok(()), now));
}

fn goes_by(switch: &mut Switch, now: Duration) -> u32 {
    let leg = switch.send(wish(&[]), now).unwrap();
    switch.ended(leg, &Outcome::Answered, now);
    leg.path.0
}

#[test]
fn what_failed_is_tried_by_every_other_path_once() {
    let mut switch = switch(PathPolicy::default(), &[1, 1, 0]);
    let mut tried = Vec::new();
    while let Some(leg) = switch.send(wish(&tried), S) {
        switch.ended(leg, &failed(), S);
        tried.push(leg.path);
    }
    // The lower group last.
    assert_eq!(tried.len(), 3);
    assert_eq!(tried[2], PathId(3));
}

#[test]
fn the_highest_group_that_works_is_used() {
    let group = |failback, after: u32| {
        let mut switch = switch(PathPolicy { failback, ..PathPolicy::default() }, &[5, 1, 1]);
        assert_eq!(goes_by(&mut switch, S), 1);
        fail(&mut switch, 1, 2 * S);
        let below: Vec<u32> = (0..4).map(|_| goes_by(&mut switch, 3 * S)).collect();
        assert!(below.contains(&2) && below.contains(&3), "{below:?}");
        readmit(&mut switch, 1, 10 * S);
        goes_by(&mut switch, (10 + after) * S) == 1
    };
    assert!(group(Failback::Immediate, 0));
    assert!(!group(Failback::Manual, 1000));
    assert!(!group(Failback::After(20 * S), 19));
    assert!(group(Failback::After(20 * S), 20));
    // Manual ends with the group in use.
    let policy = PathPolicy { failback: Failback::Manual, ..PathPolicy::default() };
    let mut switch = switch(policy, &[5, 1]);
    fail(&mut switch, 1, S);
    readmit(&mut switch, 1, 2 * S);
    assert_eq!(goes_by(&mut switch, 3 * S), 2);
    fail(&mut switch, 2, 4 * S);
    assert_eq!(goes_by(&mut switch, 5 * S), 1);
}

#[test]
fn where_none_works_all_are_tried_and_the_first_answer_counts() {
    let mut switch = switch(PathPolicy::default(), &[1, 0]);
    fail(&mut switch, 1, S);
    fail(&mut switch, 2, S);
    let first = switch.send(wish(&[]), S).unwrap();
    let second = switch.send(wish(&[first.path]), S).unwrap();
    assert_ne!(first.path, second.path);
    switch.ended(second, &Outcome::Answered, 2 * S);
    switch.ended(first, &failed(), 2 * S);
    assert_eq!(goes_by(&mut switch, 3 * S), second.path.0);
    // The other one has to be readmitted.
    assert!(switch.send(wish(&[second.path]), 3 * S).is_none());
}

#[test]
fn a_quiet_path_is_left_and_fails_once_another_one_was_faster() {
    let mut switch = switch(PathPolicy::default(), &[1, 1]);
    let stuck = switch.send(wish(&[]), S).unwrap();
    assert!(!switch.is_given_up(stuck, S, S + S / 2));
    assert!(switch.is_given_up(stuck, S, 2 * S));
    let tried = [stuck.path];
    let race = Wish { race: true, ..wish(&tried) };
    let other = switch.send(race, 2 * S).unwrap();
    for second in 3..6 {
        assert_eq!(goes_by(&mut switch, second * S), other.path.0, "nothing goes by a quiet path");
    }
    switch.ended(other, &Outcome::Answered, 6 * S);
    switch.abandoned(stuck, S, 6 * S);
    let changes = switch.take_changes();
    assert_eq!((changes[0].0, changes[0].1.to), (stuck.path, Condition::Failed));
    // One that is slow, but answers, has not stalled; a request that is lost goes elsewhere all the same.
    readmit(&mut switch, stuck.path.0, 7 * S);
    let slow = switch.send(wish(&[other.path]), 8 * S).unwrap();
    let quick = switch.send(wish(&[other.path]), 8 * S).unwrap();
    switch.ended(quick, &Outcome::Answered, 9 * S);
    switch.take_changes();
    assert!(!switch.is_given_up(slow, S, 9 * S + S / 2));
    let chatty = switch.send(wish(&[other.path]), 10 * S + S / 2).unwrap();
    switch.ended(chatty, &Outcome::Answered, 10 * S + S / 2);
    assert!(!switch.is_given_up(slow, S, 11 * S - S / 10));
    assert!(switch.is_given_up(slow, S, 11 * S));
    switch.abandoned(slow, S, 11 * S);
    assert!(switch.take_changes().is_empty());
}

#[test]
fn a_stall_of_all_fails_none() {
    let mut switch = switch(PathPolicy::default(), &[1, 1]);
    let one = switch.send(wish(&[]), S).unwrap();
    let two = switch.send(wish(&[one.path]), S).unwrap();
    assert!(switch.send(Wish { race: true, ..wish(&[]) }, 5 * S).is_none());
    switch.abandoned(one, S, 5 * S);
    switch.abandoned(two, S, 5 * S);
    assert!(switch.members().any(|(_, member)| member.health.condition() == Condition::Active));
}

#[test]
fn hope_ends_as_the_policy_says() {
    let hopeless = |no_path_retry, seconds: u32| {
        let mut switch = switch(PathPolicy { no_path_retry, ..PathPolicy::default() }, &[1, 1]);
        fail(&mut switch, 1, S);
        assert!(!switch.is_hopeless(1000 * S));
        fail(&mut switch, 2, S);
        assert_eq!(switch.begin_checks(S).len(), 2);
        assert_eq!(switch.next_due(2000 * S), None, "nothing is due again and again");
        let hopeless = switch.is_hopeless(S + seconds * S);
        readmit(&mut switch, 2, 1000 * S);
        assert!(!switch.is_hopeless(2000 * S));
        hopeless
    };
    assert!(!hopeless(NoPathRetry::Queue, 900));
    assert!(hopeless(NoPathRetry::Fail, 0));
    assert!(!hopeless(NoPathRetry::Times(2), 9));
    assert!(hopeless(NoPathRetry::Times(2), 10));
}

#[test]
fn checks_are_made_one_at_a_time_and_never_of_a_single_path() {
    let mut switch = switch(PathPolicy::default(), &[1, 1]);
    fail(&mut switch, 1, S);
    assert_eq!(switch.next_due(S), Some(S));
    assert_eq!(switch.begin_checks(S), [PathId(1)]);
    assert!(switch.begin_checks(2 * S).is_empty());
    switch.checked(PathId(1), Err("refused".into()), 3 * S);
    assert!(switch.begin_checks(7 * S).is_empty());
    assert_eq!(switch.begin_checks(8 * S), [PathId(1)]);
    // One that works and has nothing to do is looked at now and then.
    assert_eq!(switch.begin_checks(20 * S), [PathId(2)]);
    switch.checked(PathId(1), Ok(()), 21 * S);
    switch.remove(PathId(2), 21 * S);
    assert!(switch.begin_checks(1000 * S).is_empty());
    assert_eq!(switch.next_due(S), None);
}

#[test]
fn a_path_that_is_disabled_takes_nothing() {
    let mut switch = switch(PathPolicy::default(), &[1, 1]);
    switch.enable(PathId(1), false, S);
    assert!((0..8).all(|_| goes_by(&mut switch, S) == 2));
    fail(&mut switch, 2, S);
    assert_eq!(goes_by(&mut switch, S), 2, "rather a failed one");
    switch.enable(PathId(1), true, 2 * S);
    readmit(&mut switch, 1, 2 * S);
    assert!((0..8).any(|_| goes_by(&mut switch, 3 * S) == 1));
}
