//! What the users of a volume do: lanes of random requests, each checked against the model.

use crate::layout;
use crate::model::{Change, Image, Keeper, Stamp};
use crate::process::Process;
use crate::world::World;
use objblk::device::{BlockDevice, DeviceError, WriteFlags, ZeroFlags};
use objblk::error::{Error, ErrorKind};
use objblk::format::SnapshotId;
use objblk::journal::ring::PIECE_MAX;
use objblk::volume::{Durability, Volume, VolumeStatus};
use rand::Rng;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Tries of a read whose replies are damaged now and then.
const TRIES: usize = 40;

/// What records may weigh: of changes of size, which do not wait, and of the last change.
const RECORDS: u64 = 4096;

/// A process's open volume.
#[derive(Clone)]
pub struct Client {
    pub world: Arc<World>,
    pub process: Arc<Process>,
    pub volume: Volume,
    pub epoch: u64,
    pub bounds: Lag,
}

/// How far the store may be behind while a journal is at work.
#[derive(Clone, Copy, Default)]
pub struct Lag {
    pub bytes: Option<u64>,
    pub age: Option<Duration>,
}

/// What becomes of a lane after a request.
#[derive(Clone, Copy, PartialEq)]
pub enum Next {
    GoOn,
    End,
}

type Done<T> = Result<T, DeviceError>;

impl Client {
    /// Whether a failure is as it should be; what is not, is a violation.
    fn judge(&self, what: &str, error: &DeviceError) -> Next {
        if self.process.is_dead() {
            return Next::End;
        }
        let status = self.volume.status();
        let damaged = self.world.state().damaged || self.process.had_disk_trouble();
        let next = if status.failure.is_some() { Next::End } else { Next::GoOn };
        if self.world.is_fenced(self.epoch) {
            return next;
        }
        if !damaged {
            let failure = status.failure.unwrap_or_default();
            let epoch = self.epoch;
            self.world.violated(format!("epoch {epoch}: {what} failed: {error}; {failure}"));
        } else if next == Next::End {
            self.process.kill();
        }
        next
    }

    async fn read(&self, sectors: Range<usize>) -> Done<Result<Vec<Stamp>, String>> {
        let range = self.world.layout.range(&sectors);
        let mut data = vec![0xee; range.len().bytes() as usize];
        let _waits = self.process.begins("a read");
        self.volume.read(range.start(), &mut data).await?;
        Ok(layout::stamps(sectors.start, &data))
    }

    /// All there is, or `None` where the volume cannot be read to the end.
    pub async fn survey(&self) -> Option<Image> {
        let world = &self.world;
        let size = world.size_of(&self.volume);
        let mut stamps = vec![0; world.layout.sectors()];
        let mut at = 0;
        let mut tries = 0;
        while at < size {
            self.process.pass().await;
            let sectors = world.layout.clip(at..size);
            match self.read(sectors.clone()).await {
                Ok(Ok(got)) => {
                    stamps[sectors.clone()].copy_from_slice(&got);
                    at = sectors.end;
                }
                Ok(Err(what)) => {
                    world.violated(format!("epoch {}: {what}", self.epoch));
                    return None;
                }
                Err(error) => {
                    tries += 1;
                    if self.judge("a read", &error) == Next::End || tries > TRIES {
                        return None;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        Some(Image { size, stamps })
    }

    /// Requests in one stripe, until the world's are spent or the process ends.
    pub async fn lane(self, lane: usize, stripe: Range<usize>) {
        let alone = stripe.len() == self.world.layout.sectors();
        let mut committed = 0;
        while !self.process.is_closing() && self.world.take_operation() {
            let think = self.world.random(|rng| {
                let brisk = rng.random_bool(0.7);
                if brisk { 0 } else { rng.random_range(0..40_000) }
            });
            tokio::time::sleep(Duration::from_micros(think)).await;
            self.process.pass().await;
            let next = match self.world.random(|rng| rng.random_range(0..100)) {
                0..52 => self.change(lane, &stripe).await,
                52..68 => self.flush().await,
                68..82 => self.look(stripe.clone()).await,
                82..95 => self.look(0..self.world.layout.sectors()).await,
                95..97 if alone => self.resize().await,
                97..99 => self.snapshots(lane).await,
                _ => self.check_status(stripe.clone()).await,
            };
            let status = self.volume.status();
            if status.next_seq < committed {
                self.world.violated(format!("the commit point fell to {}", status.next_seq));
            }
            committed = status.next_seq;
            self.check_lag(&status);
            if next == Next::End {
                return;
            }
        }
    }

    /// What the store lacks is bounded; what was written last may lie beyond the bound by itself.
    fn check_lag(&self, status: &VolumeStatus) {
        let change = (self.world.layout.sectors() * 512).min(PIECE_MAX);
        let most = self.bounds.bytes.map(|most| most + change as u64 + RECORDS);
        let (dirty, epoch) = (status.dirty_bytes, self.epoch);
        if status.durability == Durability::Local && most.is_some_and(|most| dirty > most) {
            self.world.violated(format!("epoch {epoch}: the store lacks {dirty} bytes"));
        }
    }

    /// A change was just taken: nothing older than the bound waits for the store.
    fn check_age(&self) {
        let status = self.volume.status();
        let most = self.bounds.age.filter(|_| status.durability == Durability::Local);
        let (lag, epoch) = (Duration::from_millis(status.lag_ms), self.epoch);
        if most.is_some_and(|most| lag > most) {
            self.world.violated(format!("epoch {epoch}: a write is taken at a lag of {lag:?}"));
        }
    }

    /// A range of `within` that exists; the same few places again and again.
    fn pick(&self, within: Range<usize>) -> Option<Range<usize>> {
        let size = self.world.state().model.term(self.epoch).now.size;
        let end = within.end.min(size);
        if within.start >= end {
            return None;
        }
        let len = end - within.start;
        Some(self.world.random(|rng| {
            let start = match rng.random_bool(0.5) {
                true => rng.random_range(0..len) / 8 * 8 % len.min(64),
                false => rng.random_range(0..len),
            };
            let longest = if rng.random_bool(0.15) { len } else { len.min(12) };
            let end = (start + rng.random_range(1..=longest)).min(len);
            within.start + start..within.start + end
        }))
    }

    async fn change(&self, lane: usize, stripe: &Range<usize>) -> Next {
        let Some(sectors) = self.pick(stripe.clone()) else { return Next::End };
        let _waits = self.process.begins("a change");
        let (kind, fua) = self.world.random(|rng| (rng.random_range(0..10), rng.random_bool(0.1)));
        let sectors = if kind < 7 { self.world.layout.clip(sectors) } else { sectors };
        let stamp = if kind < 7 { self.world.state().model.next_stamp() } else { 0 };
        let change = Change {
            sectors: sectors.clone(),
            stamp,
            resize: None,
            contents: None,
            issued: 0,
            done: None,
        };
        let index = self.world.state().model.issue(self.epoch, lane, change);
        let (range, by) = (self.world.layout.range(&sectors), self.keeper());
        self.trace(|| format!("change {stamp} kind {kind} {sectors:?} fua {fua}"));
        let outcome = match kind {
            0..7 => {
                let data = layout::fill(sectors, stamp);
                self.volume.write(range.start(), &data, WriteFlags { fua }).await
            }
            7..9 => self.volume.discard(range).await,
            _ => self.volume.write_zeroes(range, ZeroFlags { may_unmap: true, fua }).await,
        };
        if let Err(error) = outcome {
            // Whether it was done in part is not known: nothing can follow it.
            self.judge("a change", &error);
            return Next::End;
        }
        if !fua {
            self.check_age();
        }
        let fua = fua && !(7..9).contains(&kind);
        let mut state = self.world.state();
        state.model.complete(self.epoch, lane, index);
        if fua {
            state.counts.flushed(by);
            let outcome = state.model.flushed(self.epoch, by, 0, Some((lane, index)));
            drop(state);
            self.world.check(outcome);
        }
        Next::GoOn
    }

    /// What acknowledges the flushes that are issued now.
    fn keeper(&self) -> Keeper {
        match self.volume.status().durability {
            Durability::Local => Keeper::Journal,
            Durability::Object => Keeper::Store,
        }
    }

    async fn flush(&self) -> Next {
        let (issued, by) = (self.world.state().model.tick(), self.keeper());
        let _waits = self.process.begins("a flush");
        if let Err(error) = self.volume.flush().await {
            return self.judge("a flush", &error);
        }
        self.trace(|| format!("flushed {issued}"));
        let outcome = {
            let mut state = self.world.state();
            state.counts.flushed(by);
            state.model.flushed(self.epoch, by, issued, None)
        };
        self.world.check(outcome);
        if self.world.random(|rng| rng.random_bool(0.15)) {
            let epoch = self.epoch;
            self.world.audit(true, || format!("epoch {epoch} has flushed"));
        }
        Next::GoOn
    }

    async fn look(&self, within: Range<usize>) -> Next {
        let Some(sectors) = self.pick(within) else { return Next::End };
        let sectors = self.world.layout.clip(sectors);
        let from = self.world.state().model.tick();
        match self.read(sectors.clone()).await {
            Ok(Ok(got)) => {
                let outcome = self.world.state().model.read(self.epoch, from, sectors.start, &got);
                self.world.check(outcome);
                Next::GoOn
            }
            Ok(Err(what)) => {
                self.world.violated(format!("epoch {}: {what}", self.epoch));
                Next::End
            }
            Err(error) => self.judge("a read", &error),
        }
    }

    async fn check_status(&self, within: Range<usize>) -> Next {
        let Some(sectors) = self.pick(within) else { return Next::End };
        let range = self.world.layout.range(&sectors);
        match self.volume.block_status(range, 4).await {
            Ok(extents) if !extents.is_empty() => Next::GoOn,
            Ok(_) => {
                self.world.violated(format!("epoch {}: no status of {range}", self.epoch));
                Next::End
            }
            Err(error) => self.judge("block status", &error),
        }
    }

    /// A new size. Alone in the volume: there is one lane.
    async fn resize(&self) -> Next {
        let max = self.world.layout.sectors();
        let old = self.world.state().model.term(self.epoch).now.size;
        let size = self.world.random(|rng| rng.random_range(max / 2..=max));
        let sectors = size.min(old)..old;
        let (resize, contents) = (Some(size), None);
        let change = Change { sectors, stamp: 0, resize, contents, issued: 0, done: None };
        let index = self.world.state().model.issue(self.epoch, 0, change);
        let _waits = self.process.begins("a resize");
        self.trace(|| format!("resize {old} to {size}"));
        let by = self.keeper();
        if let Err(error) = self.volume.resize(self.world.layout.size(size)).await {
            let error = DeviceError::Io(error.to_string());
            self.judge("a resize", &error);
            return Next::End;
        }
        let mut state = self.world.state();
        state.model.complete(self.epoch, 0, index);
        let outcome = state.model.flushed(self.epoch, by, 0, Some((0, index)));
        drop(state);
        self.world.check(outcome);
        Next::GoOn
    }

    /// Makes a snapshot, or deletes one: those of one lane at a time.
    async fn snapshots(&self, lane: usize) -> Next {
        if let Some(plan) = self.world.plan.filter(|plan| plan.wavers)
            && self.world.random(|rng| rng.random_bool(0.3))
        {
            let off = self.world.random(|rng| rng.random_bool(0.6));
            return self.retain((!off).then_some(plan.time)).await;
        }
        let there = self.volume.snapshots();
        let mine = there.iter().filter(|entry| entry.name.starts_with(&format!("{lane}-")));
        let mine: Vec<_> = mine.collect();
        let which = self.world.random(|rng| rng.random_range(0..mine.len() + 2));
        match mine.get(which) {
            Some(entry) => self.delete_snapshot(entry.id, &entry.name).await,
            None => self.make_snapshot(lane).await,
        }
    }

    /// Has the past kept that long.
    pub async fn retain(&self, time: Option<Duration>) -> Next {
        let calm = self.world.state().calm;
        let _waits = self.process.begins("a change of retention");
        self.trace(|| format!("retains {time:?}"));
        match self.volume.retain(time).await {
            Ok(()) => Next::GoOn,
            Err(error) => self.judge_refusal("a change of retention", &error, calm),
        }
    }

    /// Makes the volume what a snapshot is, if there is one of which that is known; that closes it. All
    /// lanes have ended. Where there are several, the size must be the same.
    pub async fn roll_back(&self) -> Option<Result<(), Error>> {
        let there = self.volume.snapshots();
        let which = self.world.random(|rng| rng.random_range(0..there.len().max(1)));
        let entry = there.get(which).filter(|entry| !self.world.may_expire(entry.id))?;
        let kept = {
            let mut state = self.world.state();
            let image = state.shelf.image(entry.id)?.clone();
            let term = state.model.term(self.epoch);
            let alone = term.lanes.len() == 1;
            if !alone && term.now.size != image.size {
                return None;
            }
            let stripes: Vec<_> = term.lanes.iter().map(|lane| lane.stripe.clone()).collect();
            let (resize, contents) = (alone.then_some(image.size), Arc::new(image.stamps));
            for (lane, sectors) in stripes.into_iter().enumerate() {
                let contents = Some(contents.clone());
                let change = Change { sectors, stamp: 0, resize, contents, issued: 0, done: None };
                state.model.issue(self.epoch, lane, change);
            }
            drop(state);
            self.world.new_snapshot()
        };
        let from = self.world.state().model.tick();
        self.trace(|| format!("rolls back to {}, keeps {kept}", entry.id));
        let done = self.volume.roll_back(&entry.name, (kept, &format!("0-{kept}"))).await;
        if done.is_ok() {
            self.trace(|| "has rolled back".to_owned());
            self.world.check(self.world.snapshot_made(self.epoch, kept, from));
            let mut state = self.world.state();
            state.counts.rolled_back += 1;
            for lane in 0..state.model.term(self.epoch).lanes.len() {
                let last = state.model.term(self.epoch).lanes[lane].changes.len() - 1;
                state.model.complete(self.epoch, lane, last);
            }
        }
        Some(done.map(drop))
    }

    pub async fn make_snapshot(&self, lane: usize) -> Next {
        let (id, from) = (self.world.new_snapshot(), self.world.state().model.tick());
        let calm = self.world.state().calm;
        let _waits = self.process.begins("a snapshot");
        self.trace(|| format!("makes snapshot {id}"));
        if let Err(error) = self.volume.make_snapshot(id, &format!("{lane}-{id}")).await {
            return self.judge_refusal("a snapshot", &error, calm);
        }
        self.trace(|| format!("has made snapshot {id}"));
        self.world.check(self.world.snapshot_made(self.epoch, id, from));
        Next::GoOn
    }

    /// What waits for no device may fail where the store refuses it.
    pub fn judge_refusal(&self, what: &str, error: &Error, began_calm: bool) -> Next {
        self.trace(|| format!("{what} failed: {error}"));
        match error.kind() {
            ErrorKind::Store if !began_calm => Next::GoOn,
            _ => self.judge(what, &DeviceError::Io(error.to_string())),
        }
    }

    async fn delete_snapshot(&self, id: SnapshotId, name: &str) -> Next {
        self.world.state().shelf.doomed(id);
        let calm = self.world.state().calm;
        let _waits = self.process.begins("the deletion of a snapshot");
        self.trace(|| format!("deletes snapshot {id}"));
        let is_origin = || self.world.state().clones.iter().any(|clone| clone.needs(id));
        let was_origin = is_origin();
        if let Err(error) = self.volume.delete_snapshot(name).await {
            // Clones may have been made, or flattened, meanwhile.
            if error.kind() == ErrorKind::Busy && (was_origin || is_origin()) {
                return Next::GoOn;
            }
            if error.kind() == ErrorKind::NotFound && self.world.may_expire(id) {
                return Next::GoOn;
            }
            return self.judge_refusal("the deletion of a snapshot", &error, calm);
        }
        self.trace(|| format!("has deleted snapshot {id}"));
        if is_origin() {
            self.world.violated(format!("snapshot {id} is deleted, and clones need it"));
        }
        let mut state = self.world.state();
        state.counts.snapshots_deleted += 1;
        state.shelf.deleted(id);
        Next::GoOn
    }

    fn trace(&self, line: impl FnOnce() -> String) {
        self.world.trace(|| format!("{} (epoch {}): {}", self.process.pid, self.epoch, line()));
    }
}
