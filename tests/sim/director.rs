//! What happens in a world: processes come, open the volume, are killed, paused and cut off, until
//! all is well again and a last owner has to find everything in order.

use crate::client::Client;
use crate::device::Device;
use crate::model::Image;
use crate::process::Process;
use crate::wire::Wire;
use crate::world::World;
use bytes::Bytes;
use objblk::clock::Clock;
use objblk::error::{Error, ErrorKind};
use objblk::format::volume::{EpochObject, VolumeObject};
use objblk::format::{features::Features, keys, pool};
use objblk::store::Store;
use objblk::store::limit::{Bounds, Class, Limiter};
use objblk::store::retry::{RetryPolicy, RetryStore};
use objblk::volume::{Env, Mode, Stores, Volume, VolumeOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::time::Duration;

/// Time after which nothing that was ever sent is still on its way, and every owner that was
/// deposed has noticed.
const CALM: Duration = Duration::from_secs(400);
/// Time in which a healthy world must answer.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct SimClock;

impl Clock for SimClock {
    fn now_ms(&self) -> u64 {
        0
    }
}

pub struct Director {
    world: Arc<World>,
    options: VolumeOptions,
    processes: Vec<Arc<Process>>,
    lanes: usize,
    /// Devices outlive the processes that serve them.
    devices: bool,
}

fn options(rng: &mut StdRng) -> VolumeOptions {
    fn one<T: Copy>(rng: &mut StdRng, of: &[T]) -> T {
        of[rng.random_range(0..of.len())]
    }
    VolumeOptions {
        mode: Mode::ReadOnly,
        mirror: None,
        cache_bytes: one(rng, &[0, 64 << 10, 1 << 20]),
        map_bytes: 0,
        dirty_bytes: one(rng, &[64 << 10, 256 << 10, 1 << 20]),
        uploads: one(rng, &[1, 2, 4, 8]),
        seal_after: Duration::from_millis(one(rng, &[5, 200, 2000])),
        watch_every: Some(Duration::from_secs(one(rng, &[1, 10]))),
        checkpoint_extents: one(rng, &[4, 64, 1000]),
        checkpoint_slots: one(rng, &[1, 4, 16, 64]),
        checkpoint_after: Duration::from_millis(one(rng, &[100, 5_000, 60_000])),
        io_timeout: None,
    }
}

impl Director {
    pub fn new(world: Arc<World>) -> Director {
        let options = world.random(options);
        let lanes = world.random(|rng| [1, 1, 2, 3][rng.random_range(0..4)]);
        let devices = world.random(|rng| rng.random_bool(0.4));
        Director { world, options, processes: Vec::new(), lanes, devices }
    }

    /// The whole story.
    pub async fn run(mut self) {
        self.tell().await;
        self.processes.iter().for_each(|process| process.forget());
    }

    async fn tell(&mut self) {
        self.create().await;
        let steps = self.world.random(|rng| rng.random_range(4..24));
        for _ in 0..steps {
            if self.world.violation().is_some() {
                return;
            }
            self.step();
            let pause = self.world.random(|rng| {
                let longest = [200.0f64, 5_000.0, 60_000.0][rng.random_range(0..3)];
                longest.powf(rng.random::<f64>())
            });
            tokio::time::sleep(Duration::from_secs_f64(pause / 1000.0)).await;
        }
        self.heal().await;
    }

    async fn create(&self) {
        let world = &self.world;
        let description = VolumeObject {
            version: 1,
            id: world.id,
            size: world.layout.size(world.layout.sectors()).bytes(),
            block_size: 512,
            chunk_size: 256 << 10,
            features: Features::default(),
            created_at_ms: 0,
        };
        let body = Bytes::from(pool::encode_json(&description));
        let stored = world.memory.put_if_absent(&keys::volume(world.id), body).await;
        stored.expect("the store is empty");
    }

    fn live(&self) -> Vec<Arc<Process>> {
        self.processes.iter().filter(|process| !process.is_ended()).cloned().collect()
    }

    fn step(&mut self) {
        let live = self.live();
        let (what, which, time) = self.world.random(|rng| {
            let which = rng.random_range(0..live.len().max(1));
            let time = 1000f64.powf(rng.random_range(0.3..1.7));
            (rng.random_range(0..100), which, Duration::from_secs_f64(time / 1000.0))
        });
        if let Some(orphan) = self.orphan().filter(|_| what % 2 == 0) {
            return self.boot(Mode::Recover, Some(orphan));
        }
        let (polite, takeover) =
            (Mode::ReadWrite { takeover: false }, Mode::ReadWrite { takeover: true });
        let Some(process) = live.get(which).cloned() else {
            let mode = if what < 80 { takeover } else { polite };
            return self.boot(mode, None);
        };
        self.world.trace(|| format!("step {what} for {}", process.pid));
        match what {
            0..30 if live.len() < 3 => self.boot(takeover, None),
            30..36 if live.len() < 3 => self.boot(polite, None),
            36..50 => self.world.kill(&process),
            50..64 => self.world.pause(&process, time * 10),
            64..68 => process.resume(),
            68..78 => process.close_soon(),
            78..85 => self.during(time, move |world, on| world.cut_off(&process, on)),
            85..90 => self.during(time, |world, on| world.state().down = on),
            _ => {}
        }
    }

    fn during(&self, time: Duration, set: impl Fn(&World, bool) + Send + 'static) {
        let world = self.world.clone();
        tokio::spawn(async move {
            set(&world, true);
            tokio::time::sleep(time).await;
            set(&world, false);
        });
    }

    /// A device whose server was killed and that nobody serves.
    fn orphan(&self) -> Option<Arc<Device>> {
        let dead = self.processes.iter().filter(|process| process.is_dead());
        let devices = dead.filter_map(|process| process.device.clone());
        devices.into_iter().find(|device| {
            let served = self
                .processes
                .iter()
                .any(|process| !process.is_ended() && device.is_of(process.pid));
            !served && !device.is_gone() && device.last_term().is_some()
        })
    }

    /// Starts a process that opens the volume and works with it, on a device of its own or on one
    /// that another process left.
    fn boot(&mut self, mode: Mode, device: Option<Arc<Device>>) {
        let pid = self.processes.len() as u32 + 1;
        let new = || Arc::new(Device::new(&self.world.folder, pid));
        let device = device.or_else(|| self.devices.then(new));
        let process = Arc::new(Process::new(pid, device));
        self.processes.push(process.clone());
        let host = Host {
            world: self.world.clone(),
            process: process.clone(),
            options: VolumeOptions { mode, ..self.options.clone() },
            lanes: self.lanes,
        };
        self.world.trace(|| format!("{} boots, {mode:?}", process.pid));
        let task = tokio::spawn(host.live());
        process.owns(task.abort_handle());
    }

    /// No more faults: whoever lives must come to an end or own the volume, and the last owner
    /// must find everything that was acknowledged.
    async fn heal(&mut self) {
        let world = self.world.clone();
        world.trace(|| "calm".to_owned());
        world.calm_down();
        for process in &self.processes {
            process.resume();
            world.cut_off(process, false);
        }
        tokio::time::sleep(CALM).await;
        let busy: Vec<u32> = self.live().iter().filter(|p| p.is_opening()).map(|p| p.pid).collect();
        if !busy.is_empty() {
            world.violated(format!("processes {busy:?} are still opening the volume"));
        }
        let owners: Vec<u32> =
            self.live().iter().filter(|p| p.is_healthy()).map(|p| p.pid).collect();
        if owners.len() > 1 {
            world.violated(format!("processes {owners:?} all believe that they own the volume"));
        }
        world.audit(true, || "all is calm".to_owned());
        if world.violation().is_none() {
            self.finish(world).await;
        }
    }

    async fn finish(&mut self, world: Arc<World>) {
        let mut found = None;
        for takeover in [true, false] {
            let process = Arc::new(Process::new(1000 + u32::from(takeover), None));
            self.processes.push(process.clone());
            let lanes = self.lanes;
            let mode = Mode::ReadWrite { takeover };
            let options = VolumeOptions { mode, ..self.options.clone() };
            let host = Host { world: world.clone(), process, options, lanes };
            match tokio::time::timeout(PATIENCE, host.last()).await {
                Err(_) => world.violated("the last owner got stuck"),
                Ok(Err(what)) => world.violated(format!("the last owner: {what}")),
                Ok(Ok((before, after))) => {
                    if found.is_some_and(|found| found != before) {
                        world.violated("contents changed between a close and the next open");
                    }
                    found = Some(after);
                }
            }
            if world.violation().is_some() {
                return;
            }
        }
        world.audit(true, || "the last owner has closed".to_owned());
    }
}

/// What one process does.
struct Host {
    world: Arc<World>,
    process: Arc<Process>,
    options: VolumeOptions,
    lanes: usize,
}

impl Host {
    async fn open(&self) -> Result<Volume, Error> {
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
            live: store(None, Class::Foreground),
            background: store(None, Class::Background),
        };
        let env = Env { runtime: tokio::runtime::Handle::current(), clock: Arc::new(SimClock) };
        let pid = self.process.pid;
        let owner = EpochObject {
            host: "sim".into(),
            boot_id: "boot".into(),
            pid,
            pid_start: 0,
            claimed_at_ms: 0,
            nonce: format!("{pid:x}"),
            journal: None,
        };
        let mirror = self.process.device.as_ref().map(|device| device.mirror.clone());
        let options = VolumeOptions { mirror, ..self.options.clone() };
        Volume::open(env, stores, self.world.id, owner, options).await
    }

    /// Whether an open may end with this error.
    fn judge(&self, error: &Error, began_calm: bool) {
        let right = match error.kind() {
            ErrorKind::Busy => true,
            ErrorKind::Store => !began_calm,
            // A description has no checksum: what is wrong in it may be anything.
            ErrorKind::Corrupt | ErrorKind::Unsupported => self.world.state().damaged,
            // Refused to recover: somebody else had the volume.
            ErrorKind::Fenced => self.has_rival(),
            _ => false,
        };
        let pid = self.process.pid;
        self.world.trace(|| format!("{pid} cannot open: {error}"));
        if !right {
            self.world.violated(format!("process {pid} cannot open the volume: {error}"));
        }
    }

    /// Whether an epoch was claimed for something else since this device was last served.
    fn has_rival(&self) -> bool {
        let Some(device) = &self.process.device else { return false };
        let since = device.last_term().unwrap_or(0);
        self.world.claims().iter().any(|(epoch, pid)| *epoch > since && !device.is_of(*pid))
    }

    async fn live(self) {
        let calm = self.world.state().calm;
        match self.open().await {
            Ok(volume) => {
                self.process.pass().await;
                self.use_volume(volume).await;
            }
            Err(error) => self.judge(&error, calm),
        }
        if let Some(device) = self.process.device.as_ref().filter(|_| self.has_rival()) {
            device.remove();
        }
        self.process.end();
    }

    async fn use_volume(&self, volume: Volume) {
        self.process.has(&volume);
        let epoch = volume.status().epoch;
        self.world.state().counts.opened += 1;
        self.world.trace(|| format!("{} has opened, epoch {epoch}", self.process.pid));
        let (world, process) = (self.world.clone(), self.process.clone());
        let client = Client { world, process, volume, epoch };
        let Some(image) = client.survey().await else { return };
        let lanes = self.lanes;
        match self.begin(epoch, image) {
            Ok(true) => {}
            Ok(false) => return,
            Err(what) => return self.world.violated(what),
        }
        if let Some(device) = &self.process.device {
            device.served_in(epoch);
        }
        let mut tasks = tokio::task::JoinSet::new();
        for lane in 0..lanes {
            let stripe = self.world.state().model.term(epoch).lanes[lane].stripe.clone();
            tasks.spawn(client.clone().lane(lane, stripe));
        }
        while tasks.join_next().await.is_some() {}
        self.process.until_closing().await;
        self.close(&client).await;
    }

    /// The volume has been read: a new term, or that of the device's last server goes on. False: it
    /// was superseded meanwhile.
    fn begin(&self, epoch: u64, image: Image) -> Result<bool, String> {
        let last = self.process.device.as_ref().and_then(|device| device.last_term());
        let mut state = self.world.state();
        let Some(last) = last else {
            return state.model.begin(epoch, image, self.lanes).map(|()| true);
        };
        if state.model.is_newest(last) {
            state.counts.recovered += 1;
            return state.model.resume(last, epoch, &image).map(|()| true);
        }
        if self.world.is_fenced(epoch) {
            return Ok(false);
        }
        Err(format!("epoch {last} is recovered although somebody had the volume since"))
    }

    async fn close(&self, client: &Client) {
        let (pid, calm) = (self.process.pid, self.world.state().calm);
        let outcome = client.volume.close().await;
        if let Some(device) = &self.process.device {
            device.remove();
        }
        match outcome {
            Ok(()) => self.world.trace(|| format!("{pid} has closed")),
            Err(error) => {
                self.world.trace(|| format!("{pid} cannot close: {error}"));
                let right = match error.kind() {
                    ErrorKind::Fenced => true,
                    ErrorKind::Store | ErrorKind::Failed => !calm,
                    ErrorKind::Corrupt => self.world.state().damaged,
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

    /// A life without faults. Returns what it found, and what it left.
    async fn last(&self) -> Result<(Image, Image), String> {
        let volume = self.open().await.map_err(|e| e.to_string())?;
        let epoch = volume.status().epoch;
        let (world, process) = (self.world.clone(), self.process.clone());
        let client = Client { world, process, volume, epoch };
        let found = client.survey().await.ok_or("the volume cannot be read")?;
        self.world.state().model.begin(epoch, found.clone(), 1)?;
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
