//! What happens in a world: processes come, open the volume, are killed, paused and cut off, until
//! all is well again and a last owner has to find everything in order.

use crate::actor::Actor;
use crate::device::Device;
use crate::host::Host;
use crate::process::Process;
use crate::world::World;
use bytes::Bytes;
use objblk::format::volume::VolumeObject;
use objblk::format::{features::Features, keys, pool};
use objblk::gc::{Choice, Limits};
use objblk::journal::mirror;
use objblk::store::Store;
use objblk::volume::{Mode, VolumeOptions};
use rand::Rng;
use rand::rngs::StdRng;
use std::sync::Arc;
use std::time::Duration;

/// Time after which nothing that was ever sent is still on its way, and every owner that was
/// deposed has noticed.
const CALM: Duration = Duration::from_secs(400);
/// Time in which every request to a device ends in a world without faults, however long it has
/// waited before.
const WAIT: Duration = Duration::from_secs(300);
/// Hosts on which processes run.
const HOSTS: u32 = 2;
/// Time in which a healthy world must answer.
const PATIENCE: Duration = Duration::from_secs(600);

pub struct Director {
    world: Arc<World>,
    options: VolumeOptions,
    processes: Vec<Arc<Process>>,
    hosts: Vec<Arc<Host>>,
    lanes: usize,
    /// Devices outlive the processes that serve them.
    devices: bool,
    /// Flushes are acknowledged by journals.
    journals: bool,
    /// Servers die often, and somebody recovers their devices before anything else is done.
    devoted: bool,
    limits: (Option<u64>, Option<Duration>),
}

fn options(rng: &mut StdRng) -> VolumeOptions {
    fn one<T: Copy>(rng: &mut StdRng, of: &[T]) -> T {
        of[rng.random_range(0..of.len())]
    }
    VolumeOptions {
        mode: Mode::ReadOnly,
        mirror: None,
        journal: None,
        cache_bytes: one(rng, &[0, 64 << 10, 1 << 20]),
        disk_cache: None,
        map_bytes: 0,
        profile: None,
        scrub: None,
        snapshot: None,
        at: None,
        dirty_bytes: one(rng, &[64 << 10, 256 << 10, 1 << 20]),
        uploads: one(rng, &[1, 2, 4, 8]),
        seal_after: Duration::from_millis(one(rng, &[5, 200, 2000])),
        watch_every: Some(Duration::from_secs(one(rng, &[1, 10]))),
        checkpoint_extents: one(rng, &[4, 64, 1000]),
        checkpoint_slots: one(rng, &[1, 4, 16, 64]),
        checkpoint_after: Duration::from_millis(one(rng, &[100, 5_000, 60_000])),
        collection: collection(rng),
        io_timeout: None,
        images: None,
        hydrate: false,
        hopeless: None,
    }
}

/// So eager in many worlds that whatever can be moved is moved.
fn collection(rng: &mut StdRng) -> Option<Limits> {
    let bound_percent = [100, 100, 110, 140][rng.random_range(0..4)];
    let slack_bytes = [0, 0, 64 << 10][rng.random_range(0..3)];
    let choice = [Choice::Greedy, Choice::CostBenefit][rng.random_range(0..2)];
    rng.random_bool(0.6).then_some(Limits { bound_percent, slack_bytes, choice })
}

impl Director {
    pub fn new(world: Arc<World>) -> Director {
        let options = world.random(options);
        let lanes = world.random(|rng| [1, 1, 2, 3][rng.random_range(0..4)]);
        let devices = world.random(|rng| rng.random_bool(0.4));
        let journals = world.random(|rng| rng.random_bool(0.5));
        let limits = world.random(|rng| {
            let bytes = [None, None, Some(16 << 10), Some(256 << 10)][rng.random_range(0..4)];
            let age = [None, None, None, Some(3)][rng.random_range(0..4)];
            (bytes, age.map(Duration::from_secs))
        });
        let devoted = devices && world.random(|rng| rng.random_bool(0.5));
        let host = |number| Arc::new(Host::new(number, world.new_medium()));
        let hosts = (0..HOSTS).map(host).collect();
        let processes = Vec::new();
        Director { world, options, processes, hosts, lanes, devices, journals, devoted, limits }
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
            features: Features::default().compressed(world.compression),
            created_at_ms: 0,
            ancestors: Vec::new(),
            source: None,
            mac: None,
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
        if let Some(orphan) = self.orphan().filter(|_| self.devoted || what % 2 == 0) {
            return self.recover(orphan);
        }
        let (polite, takeover) =
            (Mode::ReadWrite { takeover: false }, Mode::ReadWrite { takeover: true });
        let Some(process) = live.get(which).cloned() else {
            return self.boot(if what < 70 { takeover } else { polite });
        };
        self.world.trace(|| format!("step {what} for {}", process.pid));
        match what {
            0..45 if self.devoted => self.world.kill(&process),
            0..28 if live.len() < 3 => self.boot(takeover),
            28..34 if live.len() < 3 => self.boot(polite),
            34..45 => self.world.kill(&process),
            45..50 => self.world.cut_power(&process.host),
            50..52 => self.lose(&process.host),
            52..64 => self.world.pause(&process, time * 10),
            64..68 => process.resume(),
            68..78 => process.close_soon(),
            78..85 => self.during(time, move |world, on| world.cut_off(&process, on)),
            85..91 => self.during(time, |world, on| world.state().down = on),
            _ => {}
        }
    }

    /// The host is lost for good, and another one comes in its place.
    fn lose(&self, host: &Host) {
        self.world.cut_power(host);
        self.world.trace(|| format!("host {} is lost with its disk", host.number));
        host.gets(self.world.new_medium());
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
            let device = &device.heritage;
            let of = |process: &Arc<Process>| !process.is_ended() && device.is_of(process.pid);
            let served = self.processes.iter().any(of);
            !served && !device.is_gone() && device.last_term().is_some()
        })
    }

    /// A process on some host opens the volume, with the journal there if nobody has it.
    fn boot(&mut self, mode: Mode) {
        let (at, bare) = self.world.random(|rng| {
            (rng.random_range(0..self.hosts.len()), !self.journals || rng.random_bool(0.1))
        });
        let host = self.hosts[at].clone();
        let journal = if bare { None } else { host.free_medium() };
        let pid = self.next_pid();
        let device = self.devices.then(|| Arc::new(Device::new(&self.world.folder, pid)));
        if let Some(device) = &device {
            host.has(device);
        }
        self.start(mode, Process::new(pid, host, journal, device));
    }

    /// A process goes on with a device that another one left.
    fn recover(&mut self, device: Arc<Device>) {
        let of = |process: &&Arc<Process>| device.heritage.is_of(process.pid);
        let last = self.processes.iter().rev().find(of).expect("somebody served it");
        let host = last.host.clone();
        if let Some(vault) = &self.world.vault {
            self.world.check(vault.mirrors(&device.mirror));
        }
        // As the daemon does: a journal that had failed is left alone.
        let journaled = mirror::is_journaled(&device.mirror).expect("the mirror is readable");
        let journal = host.free_medium();
        if journaled && journal.is_none() {
            return;
        }
        let journal = journal.filter(|_| journaled);
        let mut state = self.world.state();
        state.counts.recoveries += 1;
        state.counts.recoveries_journaled += u64::from(journaled);
        drop(state);
        self.start(Mode::Recover, Process::new(self.next_pid(), host, journal, Some(device)));
    }

    fn next_pid(&self) -> u32 {
        self.processes.len() as u32 + 1
    }

    fn start(&mut self, mode: Mode, process: Arc<Process>) {
        self.processes.push(process.clone());
        self.world.trace(|| {
            let journal = if process.journal.is_some() { "with the" } else { "without a" };
            let host = process.host.number;
            format!("{} boots on host {host} {journal} journal, {mode:?}", process.pid)
        });
        let actor = self.actor(mode, process.clone());
        let task = tokio::spawn(actor.live());
        process.owns(task.abort_handle());
    }

    fn actor(&self, mode: Mode, process: Arc<Process>) -> Actor {
        let options = VolumeOptions { mode, ..self.options.clone() };
        Actor {
            world: self.world.clone(),
            process,
            options,
            lanes: self.lanes,
            limits: self.limits,
        }
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
        for process in self.live() {
            if let Some((what, time)) = process.waits_for().filter(|(_, time)| *time > WAIT) {
                let pid = process.pid;
                world.violated(format!("{what} of process {pid} has not ended for {time:?}"));
            }
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
        self.heirs().await;
        let mut found = None;
        for takeover in [true, false] {
            let host = Arc::new(Host::new(HOSTS, world.new_medium()));
            let process = Process::new(1000 + u32::from(takeover), host, None, None);
            self.processes.push(process.clone());
            let actor = self.actor(Mode::ReadWrite { takeover }, process);
            match tokio::time::timeout(PATIENCE, actor.last()).await {
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

    /// On every host, somebody goes on from the journal there, or is refused. Every second time,
    /// those who work now are not asked to stop.
    async fn heirs(&mut self) {
        let killed = self.world.random(|rng| rng.random_bool(0.5));
        for (host, pid) in self.hosts.clone().into_iter().zip(900..) {
            if killed && self.journals {
                self.world.cut_power(&host);
            }
            let Some(journal) = host.free_medium().filter(|journal| !journal.is_blank()) else {
                continue;
            };
            let process = Process::new(pid, host, Some(journal), None);
            self.processes.push(process.clone());
            process.close_soon();
            let mode = Mode::ReadWrite { takeover: false };
            let heir = self.actor(mode, process).live();
            if tokio::time::timeout(PATIENCE, heir).await.is_err() {
                self.world.violated(format!("heir {pid} got stuck"));
            }
        }
    }
}
