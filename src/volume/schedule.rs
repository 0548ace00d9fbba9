//! Snapshots that the owner makes by itself, and deletes again when there are newer ones.
//!
//! A rule wants one snapshot in each period of its length. What is due follows from the snapshots that
//! there are and from the clock, so nothing is lost with an owner: the next one goes on, and makes up for the
//! period in which it comes, not for those in which nobody had the volume. Which ones stay follows from their
//! positions, not from the clock. A clock that is wrong costs snapshots that come early or late, no more.
//!
//! Only those are deleted that a schedule made, as their ids say, by a rule that the volume has now; not those
//! with clones.
//!
//! The owner alone changes the schedule: a new numbered object, and the older ones go.

use super::Volume;
use super::aging::{self, Staying};
use super::shared::Shared;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::keys;
use crate::format::pool::encode_json;
use crate::format::schedule::{Rule, ScheduleObject, problem};
use crate::format::snapshot::SnapshotEntry;
use crate::format::{SnapshotId, VolumeId};
use crate::store::{Key, Store, StoreErrorKind, get_parsed, list_all};
use crate::sync::Notify;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Longest sleep: the clock may have been set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Wait after a snapshot that could not be made.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// How often the newest schedule is looked for again when it vanishes under the reader.
const LOOKUPS: usize = 5;

/// What all parts know of the schedule.
#[derive(Debug)]
pub(super) struct Schedule {
    changed: Notify,
    /// Snapshots that were begun in this term.
    made: AtomicU64,
    /// Held by who decides whether a snapshot is too old.
    pub deciding: tokio::sync::Mutex<()>,
}

impl Schedule {
    pub fn new() -> Schedule {
        Schedule {
            changed: Notify::new(),
            made: AtomicU64::new(0),
            deciding: tokio::sync::Mutex::default(),
        }
    }
}

impl Volume {
    /// Begins to make and delete snapshots as the volume's schedule says, as long as it is open.
    /// Nothing happens where it is open read-only.
    pub fn keep_schedule(&self) {
        if !self.shared.is_read_only() {
            self.shared.start_task(task(self.shared.clone()));
        }
    }

    /// The volume has this schedule from now on; without rules, none. It is durable on return.
    ///
    /// # Errors
    /// Usage: read-only, or no rules that a volume can have. Fenced: another owner has the volume. Store.
    ///
    /// Cancellation: it is set or not.
    pub async fn set_schedule(&self, rules: Vec<Rule>) -> Result<()> {
        let shared = &self.shared;
        shared.check_owner()?;
        if let Some(problem) = problem(&rules) {
            return Err(Error::usage(format!("this is no schedule: {problem}")));
        }
        // A deposed owner does not get past this.
        let probed = shared.state().probe();
        let target = probed.map_err(|_| shared.failure())?;
        shared.wait_committed(target).await?;
        put(&*shared.stores.background, shared.id, rules).await?;
        shared.schedule.changed.notify_one();
        Ok(())
    }
}

/// The rules of a volume, whoever owns it.
///
/// # Errors
/// Corrupt: they are damaged. Unsupported: a newer objblk made them. Store.
pub async fn schedule(store: &dyn Store, id: VolumeId) -> Result<Vec<Rule>> {
    for _ in 0..LOOKUPS {
        let found = store.list(&keys::schedules(id), None, 1).await?.objects;
        let Some(newest) = found.into_iter().next() else { return Ok(Vec::new()) };
        match get_parsed(store, &newest.key, ScheduleObject::parse).await {
            Ok(Ok(object)) if keys::schedule(object.volume, object.number) == newest.key => {
                return Ok(object.rules);
            }
            Ok(Ok(_)) => {
                let text = format!("the schedule {} is another one than its name says", newest.key);
                return Err(Error::corrupt(text));
            }
            Ok(Err(e)) => {
                let text = format!("the schedule {} is damaged", newest.key);
                return Err(Error::corrupt(text)
                    .because(e)
                    .hint("set it again with `objblk snapshot schedule`"));
            }
            // A newer one has just taken its place.
            Err(e) if e.kind == StoreErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Error::new(ErrorKind::Busy, format!("the schedule of volume {id} keeps changing")))
}

async fn put(store: &dyn Store, id: VolumeId, rules: Vec<Rule>) -> Result<()> {
    let listed = list_all(store, &keys::schedules(id)).await?;
    let old: Vec<Key> = listed.into_iter().map(|object| object.key).collect();
    let mut number = old.iter().find_map(|key| keys::parse_schedule(id, key)).unwrap_or(0);
    loop {
        number += 1;
        let body = encode_json(&ScheduleObject::new(id, number, rules.clone()));
        match store.put_if_absent(&keys::schedule(id, number), Bytes::from(body)).await {
            Ok(()) => break,
            // Another owner's, who had the volume since the listing, or an earlier attempt's.
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {}
            Err(e) => return Err(e.into()),
        }
    }
    if !old.is_empty()
        && let Err(e) = store.delete(&old).await
    {
        tracing::debug!("older schedules are left in the store: {e}");
    }
    Ok(())
}

async fn task(shared: Arc<Shared>) {
    let mut staying = Staying::new();
    loop {
        // Asked before anything is read, so that no change is missed.
        let mut changed = std::pin::pin!(shared.schedule.changed.notified());
        let rules = match schedule(&*shared.stores.background, shared.id).await {
            Ok(rules) => rules,
            Err(why) => {
                tracing::error!(volume = %shared.id, "no snapshots are made: {why}");
                Vec::new()
            }
        };
        let mut fresh = true;
        loop {
            let Some(wait) = turn(&shared, &rules, fresh).await else { return };
            if !aging::age(&shared, &mut staying).await {
                return;
            }
            if tokio::time::timeout(wait, changed.as_mut()).await.is_ok() {
                break;
            }
            fresh = false;
        }
    }
}

/// Does what is due; `fresh` rules may keep less. How long nothing will be due; `None`: it is over.
async fn turn(shared: &Arc<Shared>, rules: &[Rule], fresh: bool) -> Option<Duration> {
    let mut wait = LOOK_EVERY;
    for rule in rules {
        let now = shared.env.clock.now_ms();
        let due = is_due(*rule, shared.snapshots().entries(), now);
        if due {
            match make(shared, *rule, now).await {
                Ok(entry) => {
                    tracing::info!(volume = %shared.id, "made the snapshot {}", entry.name)
                }
                Err(e) if e.kind() == ErrorKind::Fenced => return None,
                Err(e) => {
                    tracing::warn!(volume = %shared.id, "no snapshot every {}: {e}", rule.period());
                    wait = wait.min(RETRY_AFTER);
                    continue;
                }
            }
        }
        if due || fresh {
            prune(shared, *rule).await;
        }
        let now = shared.env.clock.now_ms();
        wait = wait.min(Duration::from_millis(rule.every_ms - now % rule.every_ms));
    }
    Some(wait)
}

async fn make(shared: &Arc<Shared>, rule: Rule, now: u64) -> Result<SnapshotEntry> {
    let number = shared.schedule.made.fetch_add(1, Relaxed);
    let id = SnapshotId::scheduled(shared.epoch, number);
    let task = shared.clone();
    shared.to_its_end(task.make_snapshot(id, name(rule, now))).await
}

async fn prune(shared: &Arc<Shared>, rule: Rule) {
    let spare: Vec<String> = {
        let snapshots = shared.snapshots();
        spare(rule, snapshots.entries()).map(|entry| entry.name.clone()).collect()
    };
    for name in spare {
        let task = shared.clone();
        match shared.to_its_end(task.delete_snapshot(name.clone())).await {
            Ok(_) => tracing::info!(volume = %shared.id, "deleted the snapshot {name}"),
            // Its clones keep it; it is tried again when the next one was made.
            Err(e) => tracing::info!(volume = %shared.id, "the snapshot {name} stays: {e}"),
        }
    }
}

/// The name of a snapshot that `rule` makes.
fn name(rule: Rule, now_ms: u64) -> String {
    let digits: String = clock::show(now_ms).chars().filter(char::is_ascii_digit).collect();
    let (day, time) = digits.split_at(digits.len() - 6);
    format!("auto-{}-{day}T{time}Z", rule.period())
}

/// Whether a snapshot was made by a rule with that period.
fn is_of(rule: Rule, entry: &SnapshotEntry) -> bool {
    entry.id.is_scheduled() && entry.name.starts_with(&format!("auto-{}-", rule.period()))
}

fn is_due<'a>(
    rule: Rule,
    mut entries: impl Iterator<Item = &'a SnapshotEntry>,
    now_ms: u64,
) -> bool {
    let period = |ms: u64| ms / rule.every_ms;
    !entries.any(|entry| is_of(rule, entry) && period(entry.made_at_ms) == period(now_ms))
}

/// Those of a rule that are more than it keeps, of `entries` by position: the oldest first.
fn spare<'a>(
    rule: Rule,
    entries: impl Iterator<Item = &'a SnapshotEntry>,
) -> impl Iterator<Item = &'a SnapshotEntry> {
    let of: Vec<_> = entries.filter(|entry| is_of(rule, entry)).collect();
    let spare = of.len().saturating_sub(rule.keep as usize);
    of.into_iter().take(spare)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, SectorCount, Seq};

    const HOUR: u64 = 3_600_000;
    const RULE: Rule = Rule { every_ms: HOUR, keep: 2 };

    fn entry(id: SnapshotId, name: String, made_at_ms: u64) -> SnapshotEntry {
        SnapshotEntry {
            id,
            name,
            next: Seq(0),
            made_at_ms,
            size: SectorCount(1),
            live: SectorCount(0),
            oldest: Seq(0),
            before: None,
            deleted: false,
            base: false,
        }
    }

    fn made(number: u64, ms: u64) -> SnapshotEntry {
        entry(SnapshotId::scheduled(Epoch(1), number), name(RULE, ms), ms)
    }

    #[test]
    fn one_is_due_in_each_period_whatever_the_clock_did() {
        let due = |entries: &[SnapshotEntry], now| is_due(RULE, entries.iter(), now);
        assert!(due(&[], 5 * HOUR));
        let there = [made(0, 5 * HOUR), made(1, 90_000 * HOUR)];
        assert!(!due(&there, 5 * HOUR) && !due(&there, 6 * HOUR - 1));
        assert!(due(&there, 6 * HOUR) && due(&there, 4 * HOUR));
        // What a user has made does not count, whatever its name.
        let other = entry(SnapshotId::from_random([1; 16]), name(RULE, 5 * HOUR), 5 * HOUR);
        let daily = entry(SnapshotId::scheduled(Epoch(1), 7), "auto-1d-x".into(), 5 * HOUR);
        assert!(due(&[other, daily], 5 * HOUR));
    }

    #[test]
    fn the_oldest_by_position_go() {
        let other = entry(SnapshotId::from_random([1; 16]), name(RULE, HOUR), HOUR);
        let there = [made(0, 9 * HOUR), other, made(1, HOUR), made(2, 2 * HOUR), made(3, 3 * HOUR)];
        let gone: Vec<_> = spare(RULE, there.iter()).map(|entry| entry.made_at_ms / HOUR).collect();
        assert_eq!(gone, [9, 1]);
        assert_eq!(spare(Rule { keep: 9, ..RULE }, there.iter()).count(), 0);
        assert_eq!(name(RULE, 1_795_230_245_999), "auto-1h-20261121T030405Z");
    }
}
