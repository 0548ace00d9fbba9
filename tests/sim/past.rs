//! The reference model of the past: what every checkpoint was when it was stored, and that as long as one is
//! kept, it is that, and so is every state behind it.

use crate::audit::{Audit, Auditor, Recovered};
use crate::model::Image;
use futures::FutureExt;
use objblk::format::checkpoint::{Checkpoint, Point};
use objblk::format::keys;
use objblk::store::{Key, list_all};
use objblk::units::{Epoch, Seq};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What this world does about the past.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long it is kept.
    pub time: Duration,
    /// Somebody has it not kept, now and then.
    pub wavers: bool,
}

/// What becomes of the past in the world of this seed: in most of them, nothing.
pub fn plan(seed: u64) -> Option<Plan> {
    // Of its own: what happens in the other worlds does not depend on it.
    let mut rng = StdRng::seed_from_u64(seed ^ 0x7061_7374);
    let times = [300, 5_000, 60_000, 2_000_000, u64::MAX];
    let time = Duration::from_millis(times[rng.random_range(0..times.len())]);
    let wavers = rng.random_bool(0.3);
    rng.random_bool(0.3).then_some(Plan { time, wavers })
}

/// Points at either end that are looked at: there may be many.
const EACH: usize = 2;

/// What checkpoints were when they were stored, by position.
#[derive(Debug, Default)]
pub struct Archive {
    stored: BTreeMap<(Seq, Epoch), Image>,
    /// Checkpoints that were deleted: one that comes late, or twice, and is there again, is none.
    gone: BTreeSet<Key>,
}

impl Archive {
    /// A checkpoint was stored, and holds this.
    pub fn stored(&mut self, point: Point, image: Image) {
        self.stored.entry((point.next, point.epoch)).or_insert(image);
    }

    /// These were deleted.
    pub fn deleted(&mut self, keys: &[Key]) {
        self.gone.extend(keys.iter().filter(|key| key.as_str().contains("/checkpoints/")).cloned());
    }

    /// What was deleted.
    pub fn gone(&self) -> BTreeSet<Key> {
        self.gone.clone()
    }

    /// What it held, if that is known.
    pub fn image(&self, point: &Point) -> Option<&Image> {
        self.stored.get(&(point.next, point.epoch))
    }
}

/// What the newest checkpoint keeps.
pub struct Kept {
    pub newest: Checkpoint,
    /// The points that are there, the oldest first.
    pub points: Vec<Point>,
}

impl Auditor<'_> {
    pub fn checkpoint(&self, key: &Key) -> Audit<Checkpoint> {
        Checkpoint::parse(&self.need(key)?).map_err(|e| format!("{key}: {e}"))
    }

    /// What the newest checkpoint keeps, at this time where that is to be verified; `None` where there is none
    /// yet.
    pub fn kept(&self, gone: &BTreeSet<Key>, now_ms: Option<u64>) -> Audit<Option<Kept>> {
        let listed = list_all(self.store, &keys::checkpoints(self.volume)).now_or_never();
        let listed: Vec<Key> =
            listed.and_then(Result::ok).unwrap_or_default().into_iter().map(|o| o.key).collect();
        let Some(newest) = listed.first() else { return Ok(None) };
        let newest = self.checkpoint(newest)?;
        let key = |point: &Point| keys::checkpoint(self.volume, point.next, point.epoch);
        let after = newest.points.iter().skip(1).copied().chain([newest.point()]);
        let mut points = Vec::new();
        for (point, after) in newest.points.iter().zip(after) {
            let until = after.made_at_ms.saturating_add(newest.retention_ms);
            let kept = now_ms.is_some_and(|now| newest.retention_ms > 0 && until >= now);
            match listed.contains(&key(point)) && !gone.contains(&key(point)) {
                true => points.push(*point),
                false if kept => return Err(format!("{point:?} is gone, kept until {until}")),
                false => {}
            }
        }
        Ok(Some(Kept { newest, points }))
    }

    /// The state of a checkpoint.
    pub fn state_of(&self, checkpoint: &Checkpoint) -> Audit<Recovered> {
        let mut found = Recovered::begin(checkpoint, self.layout);
        self.walk(checkpoint, &mut found)?;
        self.check_slots(&found)?;
        Ok(found)
    }

    /// Verifies that the oldest points and the newest are what they were, and that the log leads from each to the
    /// next.
    pub fn check_past(&self, archive: &Archive, now_ms: Option<u64>) -> Audit<()> {
        let Some(Kept { newest, points }) = self.kept(&archive.gone, now_ms)? else {
            return Ok(());
        };
        let ends = points.iter().skip(1).copied().chain([newest.point()]);
        let last = points.len().saturating_sub(EACH);
        let some = points.iter().zip(ends).enumerate();
        for (_, (point, end)) in some.filter(|(at, _)| *at < EACH || *at >= last) {
            let what = |what| format!("the point {point:?}: {what}");
            let key = keys::checkpoint(self.volume, point.next, point.epoch);
            let checkpoint = self.checkpoint(&key).map_err(what)?;
            let mut found = self.state_of(&checkpoint).map_err(what)?;
            if archive.image(point).is_some_and(|was| Ok(was) != self.image(&found).as_ref()) {
                return Err(what("is not what it was".into()));
            }
            self.replay_to(&mut found, end.next).map_err(what)?;
            let image = self.image(&found).map_err(what)?;
            if archive.image(&end).is_some_and(|was| *was != image) {
                return Err(what("the log does not lead to the next one".into()));
            }
        }
        Ok(())
    }

    /// The volume before `slot`, by the oldest point; `None` where nothing is kept.
    pub fn image_at(&self, gone: &BTreeSet<Key>, slot: Seq) -> Audit<Option<Image>> {
        self.state_at(gone, slot)?.map(|found| self.image(&found)).transpose()
    }

    /// The state of the volume before `slot`, by the oldest point; `None` where nothing is kept.
    pub fn state_at(&self, gone: &BTreeSet<Key>, slot: Seq) -> Audit<Option<Recovered>> {
        let Some(Kept { points, .. }) = self.kept(gone, None)? else { return Ok(None) };
        let Some(oldest) = points.first() else { return Ok(None) };
        let key = keys::checkpoint(self.volume, oldest.next, oldest.epoch);
        let mut found = self.state_of(&self.checkpoint(&key)?)?;
        self.replay_to(&mut found, slot)?;
        Ok(Some(found))
    }

    fn replay_to(&self, found: &mut Recovered, slot: Seq) -> Audit<()> {
        while found.end < slot {
            if !self.replay_one(found)? {
                return Err(format!("the log ends at {}, before {slot}", found.end));
            }
        }
        Ok(())
    }
}
