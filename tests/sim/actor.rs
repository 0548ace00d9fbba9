//! What one process does: it opens the volume, works with it, and closes it; and whether what it is
//! told meanwhile is right.

use crate::client::{Client, Lag, Next};
use crate::disk::SimDisk;
use crate::model::{Image, Keeper};
use crate::process::Process;
use crate::wire::Wire;
use crate::world::World;
use objblk::clock::Clock;
use objblk::error::{Error, ErrorKind};
use objblk::format::VolumeId;
use objblk::format::volume::EpochObject;
use objblk::store::Store;
use objblk::store::hedge::HedgeStore;
use objblk::store::limit::{Bounds, Class, Limiter};
use objblk::store::retry::{RetryPolicy, RetryStore};
use objblk::units::Seq;
use objblk::volume::{Env, JournalOptions, Moment, Stores, Volume, VolumeOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug)]
struct SimClock(Arc<World>);

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        self.0.now_ms()
    }
}

/// What one process does.
pub struct Actor {
    pub world: Arc<World>,
    pub process: Arc<Process>,
    pub options: VolumeOptions,
    pub lanes: usize,
    /// Of what the store lacks: bytes, and age.
    pub limits: (Option<u64>, Option<Duration>),
}

impl Actor {
    async fn open(&self) -> Result<Volume, Error> {
        self.open_with(self.options.clone()).await
    }

    async fn open_with(&self, options: VolumeOptions) -> Result<Volume, Error> {
        let mirror = self.process.device.as_ref().map(|device| device.mirror.clone());
        let (max_lag_bytes, max_lag) = self.limits;
        let journal = self.process.journal.clone().map(|medium| {
            let disk = SimDisk::new(self.world.clone(), self.process.clone(), medium);
            JournalOptions { disk: Arc::new(disk), max_lag_bytes, max_lag }
        });
        let owner = self.owner(self.process.journal.is_some());
        let options = VolumeOptions { mirror, journal, ..options };
        let (env, stores) = self.environment();
        Volume::open(env, stores, self.world.id, owner, options).await
    }

    /// Without mirror or journal.
    pub async fn open_plainly(
        &self,
        id: VolumeId,
        options: VolumeOptions,
    ) -> Result<Volume, Error> {
        self.open_as(id, self.owner(false), options).await
    }

    /// As [`Actor::open_plainly`], by this owner.
    pub async fn open_as(
        &self,
        id: VolumeId,
        owner: EpochObject,
        options: VolumeOptions,
    ) -> Result<Volume, Error> {
        let (env, stores) = self.environment();
        Volume::open(env, stores, id, owner, options).await
    }

    pub fn owner(&self, journaled: bool) -> EpochObject {
        let pid = self.process.pid;
        EpochObject {
            host: "sim".into(),
            boot_id: "boot".into(),
            pid,
            pid_start: 0,
            claimed_at_ms: 0,
            nonce: format!("{pid:x}"),
            journal: journaled.then(|| "on its disk".into()),
        }
    }

    pub fn environment(&self) -> (Env, Stores) {
        let wire = Wire { world: self.world.clone(), process: self.process.clone() };
        let limiter = Arc::new(Limiter::new(Bounds { total: 12, writes: 6 }));
        let store = |deadline, class| {
            let policy = RetryPolicy {
                first_delay: Duration::from_millis(20),
                max_delay: Duration::from_secs(5),
                deadline,
                attempt_timeout: Duration::from_secs(5),
            };
            let rng = StdRng::seed_from_u64(self.world.random(|rng| rng.random()));
            let retry = RetryStore::new(Arc::new(wire.clone()), policy, rng);
            Arc::new(retry.through(limiter.clone(), class)) as Arc<dyn Store>
        };
        let stores = Stores {
            setup: store(Some(Duration::from_secs(90)), Class::Foreground),
            live: Arc::new(HedgeStore::new(store(None, Class::Foreground))),
            background: store(None, Class::Background),
        };
        let clock = Arc::new(SimClock(self.world.clone()));
        let env = Env { runtime: tokio::runtime::Handle::current(), clock };
        (env, stores)
    }

    /// Whether an open may end with this error.
    fn judge(&self, error: &Error, began_calm: bool) {
        let pid = self.process.pid;
        self.world.trace(|| format!("{pid} cannot open: {error}"));
        if !self.is_right(error, began_calm) {
            self.world.violated(format!("process {pid} cannot open the volume: {error}"));
        }
        // What was refused is discarded now and then, as people do.
        let discards = self.process.journal.is_some() && error.kind() != ErrorKind::Busy;
        if discards && self.world.random(|rng| rng.random_bool(0.5)) {
            self.world
                .trace(|| format!("the journal of {} is discarded", self.process.host.number));
            self.world.state().counts.discarded += 1;
            self.process.host.gets(self.world.new_medium());
        }
    }

    fn is_right(&self, error: &Error, began_calm: bool) -> bool {
        match error.kind() {
            ErrorKind::Busy => true,
            ErrorKind::Store => !began_calm,
            // A description has no checksum: what is wrong in it may be anything.
            ErrorKind::Corrupt | ErrorKind::Unsupported => {
                self.world.state().damaged || self.process.had_disk_trouble()
            }
            // Refused to go on: somebody else had the volume.
            ErrorKind::Fenced => self.has_rival(),
            ErrorKind::Failed => {
                let damaged = error.to_string().contains(" is damaged: ");
                self.process.had_disk_trouble()
                    || self.has_lost_its_journal()
                    || damaged && self.world.state().damaged
            }
            _ => false,
        }
    }

    /// Whether the journal of the device that it serves was discarded.
    fn has_lost_its_journal(&self) -> bool {
        let journal = self.process.journal.as_ref().map(|disk| disk.heritage.last_term());
        let device = self.process.device.as_ref().map(|device| device.heritage.last_term());
        device.zip(journal).is_some_and(|(device, journal)| journal < device)
    }

    /// Whether somebody else had the volume since this process's device, or what is in its journal,
    /// was last served.
    fn has_rival(&self) -> bool {
        let device = self.process.device.as_ref().map(|device| &device.heritage);
        let journal = self.process.journal.as_ref().filter(|disk| !disk.is_blank());
        let journal = journal.map(|disk| &disk.heritage);
        device.is_some_and(|device| device.has_rival(&self.world.claims()))
            || journal.is_some_and(|journal| journal.has_rival(&self.world.claims_by_journal()))
    }

    pub async fn live(self) {
        let calm = self.world.state().calm;
        match self.open().await {
            Ok(volume) => {
                self.process.pass().await;
                self.use_volume(volume).await;
            }
            Err(error) => self.judge(&error, calm),
        }
        let device = self.process.device.as_ref().map(|device| &device.heritage);
        if let Some(device) = device.filter(|device| device.has_rival(&self.world.claims())) {
            device.remove();
        }
        self.process.end();
    }

    pub fn client(&self, volume: Volume) -> Client {
        let (status, (bytes, age)) = (volume.status(), self.limits);
        // What was taken over may be more.
        let bytes = bytes.map(|most| most.max(status.dirty_bytes));
        let (world, process) = (self.world.clone(), self.process.clone());
        Client { world, process, volume, epoch: status.epoch, bounds: Lag { bytes, age } }
    }

    async fn use_volume(&self, volume: Volume) {
        self.process.has(&volume);
        let epoch = volume.status().epoch;
        self.world.state().counts.opened += 1;
        self.world.trace(|| format!("{} has opened, epoch {epoch}", self.process.pid));
        let client = self.client(volume);
        let Some(image) = client.survey().await else { return };
        let lanes = self.lanes;
        let journaled = client.volume.status().journal.is_some();
        match self.begin(epoch, image, journaled) {
            Ok(true) => {}
            Ok(false) => return,
            Err(what) => return self.world.violated(what),
        }
        if let Some(plan) = self.world.plan {
            client.retain(Some(plan.time)).await;
        }
        if client.keep_schedule().await == Next::End {
            return;
        }
        let mut tasks = tokio::task::JoinSet::new();
        for lane in 0..lanes {
            let stripe = self.world.state().model.term(epoch).lanes[lane].stripe.clone();
            tasks.spawn(client.clone().lane(lane, stripe));
        }
        while tasks.join_next().await.is_some() {}
        if self.world.random(|rng| rng.random_bool(0.2)) {
            let used = self.use_clone().await;
            self.world.check(used.map(drop));
        }
        if self.world.plan.is_some() && self.world.random(|rng| rng.random_bool(0.4)) {
            let made = self.clone_the_past(&client).await;
            self.world.check(made);
        }
        if self.world.random(|rng| rng.random_bool(0.15)) {
            let used = self.use_sourced(false).await;
            self.world.check(used.map(drop));
        }
        if self.world.random(|rng| rng.random_bool(0.25)) {
            let used = self.use_copy().await;
            self.world.check(used);
        }
        self.process.until_closing().await;
        self.close(&client).await;
    }

    /// The volume has been read: a new term, or that of the device's last server or of the journal
    /// goes on. False: it was superseded meanwhile.
    fn begin(&self, epoch: u64, image: Image, journaled: bool) -> Result<bool, String> {
        let device = self.process.device.as_ref().map(|device| &device.heritage);
        let journal = self.process.journal.as_ref();
        let alone = journal.is_some() && !journaled;
        let journal = journal.filter(|_| journaled);
        let whole = journal.is_none_or(|journal| journal.was_read_well());
        let mut claims = self.world.claims_by_journal();
        claims.retain(|(claimed, _)| *claimed < epoch);
        let mut state = self.world.state();
        let before = state.model.before(epoch);
        let journal = journal.map(|journal| &journal.heritage);
        let left = journal.and_then(|journal| journal.last_term());
        let is_heir = left == Some(before) && journal.is_some_and(|j| !j.has_rival(&claims));
        if let Some(last) = device.and_then(|device| device.last_term()) {
            if !state.model.is_newest(last) {
                drop(state);
                return match self.world.is_fenced(epoch) {
                    true => Ok(false),
                    false => Err(format!("epoch {last} is recovered although it was superseded")),
                };
            }
            state.counts.recovered += 1;
            state.counts.recovered_journaled += u64::from(journal.is_some());
            state.counts.recovered_alone += u64::from(alone);
            state.model.resume(last, epoch, &image)?;
        } else if is_heir {
            state.counts.inherited += 1;
            state.model.inherit(epoch, image, whole)?;
        } else {
            state.model.begin(epoch, image, self.lanes)?;
            if let Some(left) = left.filter(|left| whole && state.model.has_lost(*left)) {
                return Err(format!("the journal of epoch {left} was dropped without a word"));
            }
        }
        let things = device.into_iter().chain(journal);
        things.for_each(|thing| thing.served_in(epoch));
        Ok(true)
    }

    async fn close(&self, client: &Client) {
        let (pid, calm) = (self.process.pid, self.world.state().calm);
        let _waits = self.process.begins("the close");
        let outcome = match self.roll_back(client).await {
            Some(outcome) => outcome,
            None => client.volume.close().await,
        };
        self.world.state().counts.collected += client.volume.status().space.collected_chunks;
        if let Some(device) = &self.process.device {
            device.heritage.remove();
        }
        match outcome {
            Ok(()) => {
                self.world.trace(|| format!("{pid} has closed"));
                let mut state = self.world.state();
                let now = state.model.tick();
                let outcome = state.model.flushed(client.epoch, Keeper::Store, now, None);
                drop(state);
                self.world.check(outcome);
            }
            Err(error) => {
                self.world.trace(|| format!("{pid} cannot close: {error}"));
                let right = match error.kind() {
                    ErrorKind::Fenced => true,
                    ErrorKind::Failed if self.process.had_disk_trouble() => true,
                    ErrorKind::Store | ErrorKind::Failed => !calm,
                    ErrorKind::Corrupt => self.world.state().damaged || self.has_lost(&error),
                    _ => false,
                };
                let deposed = self.world.is_fenced(client.epoch);
                if !right && !deposed {
                    self.world.violated(format!("process {pid} cannot close: {error}"));
                }
                client.volume.abandon();
            }
        }
    }

    /// Sometimes rolls back to a snapshot, which closes the volume.
    async fn roll_back(&self, client: &Client) -> Option<Result<(), Error>> {
        let alone = self.process.journal.is_none() && self.process.device.is_none();
        let wanted = alone && self.world.random(|rng| rng.random_bool(0.5));
        if wanted { client.roll_back().await } else { None }
    }

    /// Whether a chunk was in the journal only, and its disk did not give it back.
    fn has_lost(&self, error: &Error) -> bool {
        self.process.has_lost_chunks()
            && error.to_string().contains("cannot be read from the journal")
    }

    /// Every snapshot reads as it was when it was made.
    async fn look_at_snapshots(&self, volume: &Volume) -> Result<(), String> {
        for entry in volume.snapshots() {
            let options = VolumeOptions { snapshot: Some(entry.name), ..self.options.clone() };
            let view = self.open_with(options).await.map_err(|e| format!("a snapshot: {e}"))?;
            let found = self.client(view).survey().await.ok_or("a snapshot cannot be read")?;
            self.world.state().shelf.seen(entry.id, found)?;
        }
        Ok(())
    }

    /// Moments of the past read as they were.
    async fn look_at_the_past(&self) -> Result<(), String> {
        let now = self.world.steady_ms();
        let gone = self.world.state().archive.gone();
        let Some(kept) = self.world.auditor().kept(&gone, now)? else { return Ok(()) };
        if kept.newest.retention_ms == 0 {
            // What is left goes meanwhile.
            return Ok(());
        }
        let Some(oldest) = kept.points.first() else { return Ok(()) };
        self.world.state().counts.retained += kept.points.len() as u64;
        for _ in 0..3 {
            let slot =
                self.world.random(|rng| rng.random_range(oldest.next.0..=kept.newest.next.0));
            let Some(expected) = self.world.auditor().image_at(&gone, Seq(slot))? else { continue };
            let options =
                VolumeOptions { at: Some(Moment::Slot(Seq(slot))), ..self.options.clone() };
            let view = self.open_with(options).await;
            let view = view.map_err(|e| format!("the volume at slot {slot}: {e}"))?;
            let found = self.client(view).survey().await.ok_or("the past cannot be read")?;
            if found != expected {
                return Err(format!("at slot {slot} the volume is not what it was"));
            }
            self.world.state().counts.views += 1;
        }
        Ok(())
    }

    /// A life without faults. Returns what it found, and what it left.
    pub async fn last(&self) -> Result<(Image, Image), String> {
        let volume = self.open().await.map_err(|e| e.to_string())?;
        let client = self.client(volume);
        let epoch = client.epoch;
        let found = client.survey().await.ok_or("the volume cannot be read")?;
        self.world.state().model.begin(epoch, found.clone(), 1)?;
        self.look_at_snapshots(&client.volume).await?;
        // What is kept shorter may expire meanwhile.
        if self.world.plan.is_some_and(|plan| plan.time.as_secs() > 1000) {
            self.look_at_the_past().await?;
        }
        let clones = self.world.state().clones.len();
        for which in 0..clones {
            if !self.use_clone_at(which).await? {
                return Err("a clone cannot be used".to_owned());
            }
        }
        let sourced = self.world.state().sourced.is_some();
        if sourced && !self.use_sourced(true).await? {
            return Err("a volume with a source cannot be used".to_owned());
        }
        self.look_at_copies().await?;
        self.comes_to_its_schedule(&client.volume).await?;
        self.world.allow(12);
        client.clone().lane(0, 0..self.world.layout.sectors()).await;
        let left = client.survey().await.ok_or("the volume cannot be read in the end")?;
        if left != self.world.state().model.term(epoch).now {
            return Err("the volume is not what was written".to_owned());
        }
        client.volume.close().await.map_err(|e| e.to_string())?;
        Ok((found, left))
    }
}
