//! A simulated world: one store, one volume, any number of processes, and what is known of them.
//!
//! Everything runs on one thread in virtual time, and every choice is drawn from the seed: which
//! faults there are, how often, how long requests travel, how many turns of the scheduler they
//! wait. So a seed replays exactly.

use crate::audit::Auditor;
use crate::clone::{self, CloneModel};
use crate::counts::Counts;
use crate::disk::Medium;
use crate::host::Host;
use crate::layout::Layout;
use crate::model::Model;
use crate::past::{self, Archive, Plan};
use crate::process::{Life, Process};
use crate::shelf::Shelf;
use crate::sites::{self, Fault, Hits, Site, What};
use crate::source::SourcedModel;
use crate::stream::CopyModel;
use crate::vault::Vault;
use crate::weather::Weather;
use crate::wire::{Reply, Request};
use bytes::Bytes;
use futures::FutureExt;
use objblk::device::BlockDevice;
use objblk::format::checkpoint::Checkpoint;
use objblk::format::fence::Fence;
use objblk::format::frame::Compression;
use objblk::format::volume::EpochObject;
use objblk::format::{SnapshotId, VolumeId, keys};
use objblk::journal::ring::SIZE_MIN;
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Key, Store, StoreResult, list_all};
use objblk::units::{Sector, SectorCount, SectorRange};
use objblk::volume::Volume;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;
use tokio::time::Instant;

/// Processes that one world kills or pauses by a fault.
const DISTURBED_MAX: u32 = 24;

/// Requests after which a world is thought to run in circles.
const REQUESTS_MAX: u64 = 200_000;

/// No process has this number.
const NOBODY: u32 = 0;

/// What a request is dealt.
#[derive(Clone, Debug)]
pub struct Fate {
    pub fault: Option<Fault>,
    /// Turns of the scheduler before it goes.
    pub turns: u32,
    pub travel: Duration,
    pub reply: Duration,
    /// It is on the wire at once: it arrives whatever becomes of its process.
    pub detached: bool,
    pub slow: Duration,
    pub late: Duration,
    pub draw: u64,
}

pub struct State {
    pub rng: StdRng,
    pub weather: Weather,
    pub calm: bool,
    pub down: bool,
    pub model: Model,
    pub shelf: Shelf,
    pub clones: Vec<CloneModel>,
    pub archive: Archive,
    pub sourced: Option<SourcedModel>,
    pub copies: Vec<CopyModel>,
    pub hits: Hits,
    pub counts: Counts,
    /// Some reply was damaged: errors that say so are right.
    pub damaged: bool,
    /// Requests that clients may still make.
    operations: u64,
    disturbed: u32,
    violation: Option<String>,
    trace: Option<Vec<String>>,
}

pub struct World {
    pub id: VolumeId,
    pub layout: Layout,
    pub compression: Compression,
    pub memory: MemoryStore,
    /// The volume is encrypted.
    pub vault: Option<Vault>,
    /// For the mirrors of its devices.
    pub folder: PathBuf,
    /// Size of a journal here.
    journal_bytes: u64,
    /// What is done about the past.
    pub plan: Option<Plan>,
    /// Owners make snapshots by themselves.
    pub scheduled: bool,
    begun: OnceLock<Instant>,
    state: Mutex<State>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "World({})", self.id)
    }
}

impl World {
    pub fn new(seed: u64, traced: bool, folder: &Path) -> World {
        let mut rng = StdRng::seed_from_u64(seed);
        // So much is written in some worlds that a journal's segments are used again.
        let heavy = rng.random_bool(0.06);
        let sectors = if heavy { 1400 } else { [48, 160, 600, 1400][rng.random_range(0..4)] };
        let layout = Layout::new(sectors, rng.random_bool(0.4));
        let weather = Weather::new(&mut rng);
        let operations = rng.random_range(if heavy { 800..2000 } else { 20..400 });
        let journal_bytes = SIZE_MIN + ([0, 1, 8][rng.random_range(0..3)] << 20);
        let state = State {
            rng,
            weather,
            calm: false,
            down: false,
            model: Model::new(sectors, sectors),
            shelf: Shelf::default(),
            clones: Vec::new(),
            archive: Archive::default(),
            sourced: None,
            copies: Vec::new(),
            hits: Hits::new(),
            counts: Counts::default(),
            damaged: false,
            operations,
            disturbed: 0,
            violation: None,
            trace: traced.then(Vec::new),
        };
        World {
            id: VolumeId::from_random([7; 16]),
            layout,
            compression: [Compression::None, Compression::Lz4][(seed % 2) as usize],
            memory: MemoryStore::new(),
            // Every sixth world, whatever is drawn for all else.
            vault: (seed % 6 == 5).then(|| Vault::new(VolumeId::from_random([7; 16]))),
            folder: folder.to_owned(),
            journal_bytes,
            plan: past::plan(seed),
            scheduled: World::is_scheduled(seed),
            begun: OnceLock::new(),
            state: Mutex::new(state),
        }
    }

    /// With faults of disks only, none of which damages what is read: half of the time one that
    /// happens often.
    pub fn of_disks(self) -> World {
        let mut state = self.state();
        state.weather.targets.retain(|((what, _), _)| what.is_local());
        let sites: Vec<Site> =
            sites::all().into_iter().filter(|(what, _)| what.is_local()).collect();
        let site = sites[state.rng.random_range(0..sites.len())];
        state.weather.targets.push((site, 0.05));
        state.weather.targets.retain(|((_, fault), _)| !fault.damages());
        state.weather.damage = false;
        drop(state);
        self
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// The time since somebody first asked, in milliseconds, and an hour.
    pub fn now_ms(&self) -> u64 {
        3_600_000 + self.begun.get_or_init(Instant::now).elapsed().as_millis() as u64
    }

    /// The time, where the past must be kept as long as it says.
    pub fn steady_ms(&self) -> Option<u64> {
        self.plan.filter(|plan| !plan.wavers).map(|_| self.now_ms())
    }

    /// Draws from the seed.
    pub fn random<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.state().rng)
    }

    pub fn trace(&self, line: impl FnOnce() -> String) {
        let mut state = self.state();
        if let Some(trace) = &mut state.trace {
            trace.push(line());
        }
    }

    pub fn take_trace(&self) -> Vec<String> {
        self.state().trace.take().unwrap_or_default()
    }

    /// Something happened that must not.
    pub fn violated(&self, what: impl Into<String>) {
        let what = what.into();
        self.trace(|| format!("VIOLATION {what}"));
        self.state().violation.get_or_insert(what);
    }

    pub fn check(&self, outcome: Result<(), String>) {
        if let Err(what) = outcome {
            self.violated(what);
        }
    }

    pub fn violation(&self) -> Option<String> {
        self.state().violation.clone()
    }

    /// No faults from here on.
    pub fn calm_down(&self) {
        let mut state = self.state();
        (state.calm, state.down, state.operations) = (true, false, 0);
    }

    /// Lets clients make `more` requests.
    pub fn allow(&self, more: u64) {
        self.state().operations = more;
    }

    /// One more request of a client, if there may be one.
    pub fn take_operation(&self) -> bool {
        let mut state = self.state();
        let some = state.operations > 0 && state.violation.is_none();
        state.operations -= u64::from(some);
        state.counts.operations += u64::from(some);
        some
    }

    /// Sectors of the image that the volume has now.
    pub fn size_of(&self, volume: &Volume) -> usize {
        let end = Sector(volume.geometry().size.0);
        self.layout.indices(SectorRange::between(Sector(0), end)).end
    }

    /// Whether some claimant has put a fence into a slot of `epoch`, or of an epoch before it.
    pub fn is_fenced(&self, epoch: u64) -> bool {
        let log = format!("{}log/", keys::volume_prefix(self.id));
        let list = list_all(&self.memory, &log).now_or_never();
        let slots = list.and_then(Result::ok).unwrap_or_default().into_iter().map(|o| o.key);
        let ended = |key: Key| {
            let body = self.memory.get(&key, GetRange::All).now_or_never()?.ok()?;
            let fence = Fence::parse(&body).ok()?;
            Some(fence.epoch.0 <= epoch && fence.next_epoch.0 > epoch)
        };
        slots.filter_map(ended).any(|ended| ended)
    }

    /// Every epoch that was claimed, and by which process, as somebody sees it who goes on from a
    /// journal: [`NOBODY`] is one that goes on without.
    pub fn claims_by_journal(&self) -> Vec<(u64, u32)> {
        let claims = self.owners().into_iter();
        let alone = |owner: &EpochObject| owner.nonce.ends_with("-alone");
        claims.map(|(epoch, o)| (epoch, if alone(&o) { NOBODY } else { o.pid })).collect()
    }

    /// Every epoch that was claimed, and by which process.
    pub fn claims(&self) -> Vec<(u64, u32)> {
        self.owners().into_iter().map(|(epoch, owner)| (epoch, owner.pid)).collect()
    }

    fn owners(&self) -> Vec<(u64, EpochObject)> {
        let list = list_all(&self.memory, &keys::epochs(self.id)).now_or_never();
        let keys = list.and_then(Result::ok).unwrap_or_default().into_iter().map(|o| o.key);
        let claim = |key: Key| {
            let body = self.memory.get(&key, GetRange::All).now_or_never()?.ok()?;
            let owner = EpochObject::parse(&body).ok()?;
            Some((keys::parse_epoch(self.id, &key)?.0, owner))
        };
        keys.filter_map(claim).collect()
    }

    pub fn auditor(&self) -> Auditor<'_> {
        Auditor { store: &self.memory, volume: self.id, layout: &self.layout, light: false }
    }

    pub fn initial(&self) -> SectorCount {
        self.layout.size(self.layout.sectors())
    }

    /// Deals a fate to a request.
    pub fn draw(&self, process: &Process, what: What) -> Fate {
        let mut state = self.state();
        let state = &mut *state;
        state.counts.requests += 1;
        if state.counts.requests > REQUESTS_MAX {
            state.violation.get_or_insert_with(|| "the world runs in circles".to_owned());
        }
        let fault = match state.calm {
            true => None,
            false if state.down && !what.is_local() => Some(Fault::StoreDown),
            false if process.is_cut_off() && !what.is_local() => Some(Fault::CutOff),
            false => state.weather.fault(&mut state.rng, what),
        };
        let fault = fault.filter(|fault| !fault.disturbs() || state.disturbed < DISTURBED_MAX);
        if let Some(fault) = fault {
            *state.hits.entry((what, fault)).or_default() += 1;
            state.disturbed += u32::from(fault.disturbs());
            state.damaged |= fault.damages();
        }
        let rng = &mut state.rng;
        let ms = |rng: &mut StdRng, max: f64| {
            Duration::from_micros((1000.0 * max.powf(rng.random::<f64>())) as u64)
        };
        let brisk = rng.random_bool(0.5);
        Fate {
            fault,
            turns: rng.random_range(0..4),
            travel: if brisk { Duration::ZERO } else { ms(rng, 60.0) },
            reply: if brisk { Duration::ZERO } else { ms(rng, 20.0) },
            detached: rng.random_bool(0.3),
            slow: ms(rng, 100_000.0),
            late: ms(rng, 100_000.0),
            draw: rng.random(),
        }
    }

    /// The request reaches the store.
    pub fn effect(&self, request: &Request) -> StoreResult<Reply> {
        let Some(vault) = &self.vault else { return self.plain_effect(request) };
        match request {
            Request::Put(key, body) if vault.seals(key) => {
                let plain = match vault.open(key, body) {
                    Ok(plain) => plain,
                    Err(what) => {
                        self.violated(what);
                        return Ok(Reply::Done);
                    }
                };
                let done = self.plain_effect(&Request::Put(key.clone(), plain))?;
                vault.keep(key, body);
                Ok(done)
            }
            Request::Get(key, range) if vault.seals(key) => {
                let whole = Request::Get(key.clone(), GetRange::All);
                match self.plain_effect(&whole)? {
                    Reply::Bytes(plain) => vault.give(key, &plain, *range).map(Reply::Bytes),
                    other => Ok(other),
                }
            }
            _ => Ok(match self.plain_effect(request)? {
                Reply::Info(mut info) => {
                    info.size = vault.size(&info.key, info.size);
                    Reply::Info(info)
                }
                Reply::Page(mut page) => {
                    for info in &mut page.objects {
                        info.size = vault.size(&info.key, info.size);
                    }
                    Reply::Page(page)
                }
                reply => reply,
            }),
        }
    }

    /// What an object that is put says, where it can be told.
    pub fn opened(&self, key: &Key, body: &Bytes) -> Bytes {
        let vault = self.vault.as_ref().filter(|vault| vault.seals(key));
        vault.and_then(|vault| vault.open(key, body).ok()).unwrap_or_else(|| body.clone())
    }

    /// As [`World::effect`], of plain objects.
    fn plain_effect(&self, request: &Request) -> StoreResult<Reply> {
        let memory = &self.memory;
        let now = "a memory store answers at once";
        match request {
            Request::Get(key, range) => {
                memory.get(key, *range).now_or_never().expect(now).map(Reply::Bytes)
            }
            Request::Head(key) => memory.head(key).now_or_never().expect(now).map(Reply::Info),
            Request::List(prefix, after, limit) => {
                let page = memory.list(prefix, after.as_ref(), *limit).now_or_never().expect(now);
                page.map(Reply::Page)
            }
            Request::Put(key, body) => {
                memory.put_if_absent(key, body.clone()).now_or_never().expect(now)?;
                match What::put(key, body) {
                    What::PutCheckpoint if self.is_of_the_volume(key) => {
                        self.state().counts.checkpoints += 1;
                        // Nothing of a snapshot can have gone.
                        let auditor = Auditor { light: true, ..self.auditor() };
                        self.archive(&auditor, body);
                        self.state().counts.audits += 1;
                        if let Err(what) = self.audited(&auditor, false) {
                            self.violated(format!("when {key} is stored: {what}"));
                        }
                    }
                    What::PutFence => self.state().counts.fenced += 1,
                    _ => {}
                }
                Ok(Reply::Done)
            }
            Request::Delete(keys) => {
                memory.delete(keys).now_or_never().expect(now)?;
                self.state().counts.deletes += keys.len() as u64;
                self.state().archive.deleted(keys);
                self.audit(false, || format!("{keys:?} are deleted"));
                Ok(Reply::Done)
            }
        }
    }

    /// Notes what a checkpoint is, unless it is a deposed owner's of which something is gone already.
    fn archive(&self, auditor: &Auditor<'_>, body: &[u8]) {
        let Some(_) = self.plan else { return };
        let Ok(checkpoint) = Checkpoint::parse(body) else { return };
        let found = auditor.state_of(&checkpoint);
        if let Ok(image) = found.and_then(|found| auditor.image(&found)) {
            self.state().archive.stored(checkpoint.point(), image);
        }
    }

    /// Of the volume, and not of a clone of it.
    fn is_of_the_volume(&self, key: &Key) -> bool {
        key.as_str().starts_with(&keys::volume_prefix(self.id))
    }

    /// Verifies that what is reachable is there; with `data`, that if everybody died now, a
    /// permitted state of the volume would be recovered.
    pub fn audit(&self, data: bool, when: impl Fn() -> String) {
        self.state().counts.audits += 1;
        if let Err(what) = self.audited(&self.auditor(), data) {
            self.violated(format!("when {}: {what}", when()));
        }
    }

    fn audited(&self, auditor: &Auditor<'_>, data: bool) -> Result<(), String> {
        let found = auditor.recover(self.initial())?;
        self.state().shelf.check(&found.snapshots, self.now_ms())?;
        if data {
            for (id, snapshot) in &found.snapshots {
                let image = auditor.image(snapshot)?;
                self.state().shelf.seen(*id, image)?;
            }
            if self.plan.is_some() {
                let now = self.steady_ms();
                auditor.check_past(&self.state().archive, now)?;
            }
            let image = auditor.image(&found)?;
            return self.state().model.check(found.epoch.0, &image);
        }
        Ok(())
    }

    /// A snapshot that was begun at the event `from` is acknowledged: it is in the store, and holds what
    /// a read would have given meanwhile.
    pub fn snapshot_made(&self, epoch: u64, id: SnapshotId, from: u64) -> Result<(), String> {
        if !self.state().shelf.made(id) {
            return Ok(());
        }
        let auditor = self.auditor();
        let found = auditor.recover(self.initial())?;
        self.state().shelf.check(&found.snapshots, self.now_ms())?;
        // It may be too old by now.
        let Some(found) = found.snapshots.get(&id) else { return Ok(()) };
        let image = auditor.image(found)?;
        let mut state = self.state();
        state.counts.snapshots += 1;
        state.model.read(epoch, from, 0, &image.stamps[..image.size])?;
        state.shelf.seen(id, image)
    }

    /// Makes a clone of a snapshot that is known and that nobody deletes; its place among the clones.
    pub fn new_clone(&self) -> Option<usize> {
        let snapshots = self.auditor().recover(self.initial()).ok()?.snapshots;
        let which = self.random(|rng| rng.random_range(0..snapshots.len().max(1)));
        self.clone_of(*snapshots.keys().nth(which)?)
    }

    /// Makes a clone of this snapshot, if it is known and nobody deletes it; its place among the clones.
    pub fn clone_of(&self, id: SnapshotId) -> Option<usize> {
        let image = self.state().shelf.image(id)?.clone();
        let made = clone::make(&self.memory, self.id, id, image)?;
        self.vault.iter().for_each(|vault| vault.adopt(made.id));
        self.trace(|| format!("makes clone {} of snapshot {id}", made.id));
        let mut state = self.state();
        state.counts.clones += 1;
        state.clones.push(made);
        Some(state.clones.len() - 1)
    }

    /// A disk for a journal.
    pub fn new_medium(&self) -> Medium {
        Medium::new(self.journal_bytes)
    }

    /// Ends a process.
    pub fn kill(&self, process: &Process) {
        self.trace(|| format!("{} is killed", process.pid));
        let collected = process.collected();
        let mut state = self.state();
        state.counts.killed += 1;
        state.counts.collected += collected;
        drop(state);
        process.kill();
    }

    /// The host is off for a moment: its processes end, and what it has in memory is gone.
    pub fn cut_power(&self, host: &Host) {
        self.trace(|| format!("host {} loses power", host.number));
        self.state().counts.power_cuts += 1;
        for process in host.processes() {
            self.kill(&process);
        }
        for device in host.take_devices() {
            device.lose();
        }
    }

    /// Stops a process for a while.
    pub fn pause(self: &Arc<World>, process: &Arc<Process>, time: Duration) {
        if process.life() != Life::Running {
            return;
        }
        process.pause();
        self.state().counts.paused += 1;
        self.trace(|| format!("{} is paused for {time:?}", process.pid));
        let (world, process) = (self.clone(), process.clone());
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            world.trace(|| format!("{} is resumed", process.pid));
            process.resume();
        });
    }

    pub fn cut_off(&self, process: &Process, cut: bool) {
        process.cut_off.store(cut, Relaxed);
    }
}
