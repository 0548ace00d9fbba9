//! Snapshots that owners make by themselves, in some worlds: rules come and go, owners die between the
//! snapshot and the deletion of older ones.
//!
//! Which ones there are in between is not judged, as it depends on who died when; but those are never
//! deleted that somebody else made (`shelf.rs`), none ever changes, and in a world without faults an owner
//! comes to have what its rules say, and no more.

use crate::actor::Actor;
use crate::client::{Client, Next};
use crate::world::World;
use objblk::error::ErrorKind;
use objblk::format::schedule::Rule;
use objblk::volume::{Volume, schedule};
use rand::Rng;
use std::time::Duration;

const MINUTE: u64 = 60_000;

impl World {
    /// Whether owners have schedules in this world.
    pub fn is_scheduled(seed: u64) -> bool {
        seed % 5 == 1
    }

    fn rules(&self) -> Vec<Rule> {
        self.random(|rng| {
            let periods = [&[1][..], &[2], &[1, 3], &[]][rng.random_range(0..4)];
            let rule =
                |minutes: &u64| Rule { every_ms: minutes * MINUTE, keep: rng.random_range(1..4) };
            periods.iter().map(rule).collect()
        })
    }
}

impl Client {
    /// Makes snapshots as the schedule says, after a change of it now and then.
    pub async fn keep_schedule(&self) -> Next {
        if !self.world.scheduled {
            return Next::GoOn;
        }
        let mut next = Next::GoOn;
        if self.world.random(|rng| rng.random_bool(0.5)) {
            let (rules, calm) = (self.world.rules(), self.world.state().calm);
            self.world.trace(|| format!("{} wants snapshots by {rules:?}", self.process.pid));
            let _waits = self.process.begins("a change of the schedule");
            if let Err(error) = self.volume.set_schedule(rules).await {
                next = self.judge_refusal("a change of the schedule", &error, calm);
            }
        }
        if next == Next::GoOn {
            next = self.keep_one().await;
        }
        self.volume.keep_schedule();
        next
    }
}

impl Actor {
    /// In a world without faults: the owner comes to have what its rules say.
    pub async fn comes_to_its_schedule(&self, volume: &Volume) -> Result<(), String> {
        if !self.world.scheduled {
            return Ok(());
        }
        let (_, stores) = self.environment();
        let rules = match schedule(&*stores.setup, self.world.id).await {
            Ok(rules) => rules,
            Err(e) if e.kind() == ErrorKind::Corrupt && self.world.state().damaged => return Ok(()),
            Err(e) => return Err(format!("the schedule: {e}")),
        };
        volume.keep_schedule();
        tokio::time::sleep(Duration::from_millis(3 * MINUTE + MINUTE / 2)).await;
        for rule in rules {
            let prefix = format!("auto-{}-", rule.period());
            let there = volume.snapshots();
            let made = there.iter().filter(|entry| entry.name.starts_with(&prefix));
            let made: Vec<u64> = made.map(|entry| entry.made_at_ms / rule.every_ms).collect();
            self.world.state().counts.scheduled += made.len() as u64;
            // That of a period may just be on its way, and the one too many be there still.
            let now = self.world.now_ms();
            let due = [now, now - 10_000].map(|ms| ms / rule.every_ms);
            let most = rule.keep as usize + usize::from(due[0] != due[1]);
            if made.len() > most || !due.iter().any(|due| made.contains(due)) {
                return Err(format!("{made:?} were made by {rule:?} at {now} ms"));
            }
        }
        self.world.nothing_is_overdue(&volume.snapshots())
    }
}
