//! The journal's ring alone, without an engine: one writer after the other on a simulated disk,
//! each killed sooner or later. So little happens besides that segments are used again many times.
//!
//! The rule: from what is not in the store, a successor finds a prefix of what was staged that has
//! everything whose write had returned, each change in its slot.

use crate::disk::{Medium, SimDisk};
use crate::host::Host;
use crate::process::Process;
use crate::run;
use crate::world::World;
use objblk::cipher::LocalKey;
use objblk::error::ErrorKind;
use objblk::journal::disk::Disk;
use objblk::journal::entry::Change;
use objblk::journal::ring::{
    Found, PIECE_MAX, SIZE_MIN, SlotIndex, Stage, Term, note_claim, read_slot,
};
use objblk::mutant::{self, Mutant};
use objblk::units::{Epoch, Sector, SectorCount, SectorRange, Seq};
use rand::Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Writers of one world.
const LIVES: u32 = 12;
/// Worlds.
const RINGS: u64 = 300;

/// A change as it is remembered: its number, and the sectors of payload it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Staged {
    number: u64,
    sectors: u32,
}

/// What was staged since the beginning, and what must not be forgotten.
#[derive(Debug, Default)]
struct History {
    /// By slot of the ring: the changes staged in it.
    slots: BTreeMap<SlotIndex, Vec<Staged>>,
    numbers: u64,
    /// Changes up to this one are in batches whose write has returned.
    durable: u64,
    /// Where the part of each term that is in the store ends.
    terms: BTreeMap<Epoch, Seq>,
    end: Seq,
}

type Outcome<T> = Result<T, String>;

/// One writer's time.
struct Writer {
    world: Arc<World>,
    disk: SimDisk,
    epoch: Epoch,
    /// Where the volume is encrypted.
    key: Option<Arc<LocalKey>>,
}

impl Writer {
    /// Reads the ring and compares. `None`: the disk failed.
    async fn open(&self, history: &mut History) -> Outcome<Option<Stage>> {
        let (disk, key) = (&self.disk as &dyn Disk, self.key.as_ref());
        let is_trouble = |kind| kind == ErrorKind::Failed && self.disk.had_trouble();
        let found = match Found::read(disk, key).await {
            Err(e) if is_trouble(e.kind()) => return Ok(None),
            found => found.map_err(|e| e.to_string())?,
        };
        let found = found.filter(|found| !self.gives_up(history, found));
        let nonce = format!("{:x}", self.epoch.0);
        let found = match note_claim(disk, (self.world.id, key), found, &nonce).await {
            Err(e) if is_trouble(e.kind()) => return Ok(None),
            found => found.map_err(|e| e.to_string())?,
        };
        let base = match found.term() {
            None => SlotIndex(0),
            Some(term) => term.index(history.terms[&term.epoch]),
        };
        if found.term().is_none() && history.durable > 0 {
            return Err("everything is lost".to_owned());
        }
        let next = found.next_slot().max(base);
        let term = Term { epoch: self.epoch, first: history.end.next(), base };
        let mut stage = found.resume(term);
        if !self.compare(history, &mut stage, next).await? {
            return Ok(None);
        }
        Ok(Some(stage))
    }

    /// Whether it begins a new ring where there is one that nobody needs any more.
    fn gives_up(&self, history: &mut History, found: &Found) -> bool {
        let Some(term) = found.term() else { return false };
        let end = term.index(history.terms[&term.epoch]);
        let gives_up = found.next_slot() <= end && self.world.random(|rng| rng.random_bool(0.5));
        if gives_up {
            (history.durable, history.slots) = (0, BTreeMap::new());
        }
        gives_up
    }

    /// Whether the slots from the term's first one on hold what they should; false: the disk
    /// failed.
    async fn compare(
        &self,
        history: &mut History,
        stage: &mut Stage,
        next: SlotIndex,
    ) -> Outcome<bool> {
        let term = stage.term();
        let mut there = BTreeMap::new();
        for index in term.base.0..next.0 {
            let index = SlotIndex(index);
            let places = stage.places(term.seq(index));
            let slots = match read_slot(&self.disk, places, self.key.as_deref()).await {
                Err(_) if self.disk.had_trouble() => return Ok(false),
                slots => slots.map_err(|e| e.to_string())?,
            };
            let changes = slots.changes().map_err(|e| e.to_string())?;
            there.insert(index, changes.iter().map(remember).collect::<Outcome<Vec<_>>>()?);
        }
        let flat = |slots: &BTreeMap<SlotIndex, Vec<Staged>>| {
            let all = slots.range(term.base..).flat_map(|(i, s)| s.iter().map(|s| (*i, *s)));
            all.collect::<Vec<_>>()
        };
        let (staged, found) = (flat(&history.slots), flat(&there));
        if !staged.starts_with(&found) {
            let at = staged.iter().zip(&found).take_while(|(a, b)| a == b).count();
            return Err(format!("staged {:?}, found {:?}", staged.get(at), found.get(at)));
        }
        match staged.get(found.len()) {
            Some((index, lost)) if lost.number <= history.durable => {
                Err(format!("slot {} has lost {lost:?}, which was durable", index.0))
            }
            _ => {
                history.slots.retain(|index, _| *index < term.base);
                history.slots.extend(there);
                Ok(true)
            }
        }
    }

    /// Stages, writes and commits until it is killed.
    async fn work(&self, history: &mut History, stage: &mut Stage) -> Outcome<()> {
        let first = stage.term().first;
        history.terms.insert(self.epoch, first);
        history.end = first;
        // A successor must know this term before anything of it is in the store.
        if !self.write(history, stage).await? {
            return Ok(());
        }
        let (steps, commits) = self
            .world
            .random(|rng| (rng.random_range(20..400), [0.001, 0.02, 0.2][rng.random_range(0..3)]));
        for _ in 0..steps {
            if self.world.random(|rng| rng.random_bool(commits)) {
                // Slots that wait for the disk, too: the store may be faster.
                let most = stage.seq().0 - history.end.0;
                let more = self.world.random(|rng| rng.random_range(0..=most));
                history.end = Seq(history.end.0 + more);
                history.terms.insert(self.epoch, history.end);
                stage.commit(history.end);
            }
            match self.world.random(|rng| rng.random_range(0..100)) {
                0..70 => self.stage(history, stage),
                70..80 => stage.end_slot(),
                _ => {
                    if !self.write(history, stage).await? {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn stage(&self, history: &mut History, stage: &mut Stage) {
        let sectors = self.world.random(|rng| {
            let longest: u32 = [8, 64, (PIECE_MAX / 512) as u32][rng.random_range(0..3)];
            rng.random_range(0..=longest)
        });
        let payload = vec![sectors as u8; sectors as usize * 512];
        if !stage.has_room(payload.len()) {
            return;
        }
        history.numbers += 1;
        let number = history.numbers;
        let index = stage.term().index(stage.seq());
        history.slots.entry(index).or_default().push(Staged { number, sectors });
        stage.push(match sectors {
            0 => Change::Zero(SectorRange::between(Sector(number), Sector(number + 1))),
            _ => Change::Data { start: Sector(number), offset: sectors, data: &payload },
        });
    }

    /// Writes one batch, if there is one. False: the disk failed.
    async fn write(&self, history: &mut History, stage: &mut Stage) -> Outcome<bool> {
        let all = history.numbers;
        stage.want_all();
        let Some(mut write) = stage.take() else { return Ok(true) };
        write.finish();
        if let Some((offset, header)) = write.segment.take()
            && self.disk.write(offset, header).await.is_err()
        {
            return Ok(false);
        }
        match self.disk.write(write.place.offset, write.blocks).await {
            Ok(blocks) => stage.written(blocks),
            Err(_) => return Ok(false),
        }
        if stage.durable() == stage.staged() {
            history.durable = all;
        }
        Ok(true)
    }
}

fn remember(change: &Change<'_>) -> Outcome<Staged> {
    match *change {
        Change::Zero(range) if range.len() == SectorCount(1) => {
            Ok(Staged { number: range.start().0, sectors: 0 })
        }
        Change::Data { start, offset, data }
            if data.len() == offset as usize * 512 && data.iter().all(|b| *b == offset as u8) =>
        {
            Ok(Staged { number: start.0, sectors: offset })
        }
        other => Err(format!("{other:?} was never staged")),
    }
}

async fn live(world: Arc<World>) -> Outcome<u64> {
    let host = Arc::new(Host::new(0, Medium::new(SIZE_MIN)));
    let mut history = History::default();
    for pid in 1..=LIVES {
        let process = Process::new(pid, host.clone(), Some(host.medium()), None);
        let disk = SimDisk::new(world.clone(), process.clone(), host.medium());
        let key = world.vault.as_ref().map(|vault| vault.local_key(u64::from(pid)));
        let writer = Writer { world: world.clone(), disk, epoch: Epoch(pid.into()), key };
        let life = async {
            match writer.open(&mut history).await? {
                Some(mut stage) => writer.work(&mut history, &mut stage).await,
                None => Ok(()),
            }
        };
        tokio::select! {
            biased;
            outcome = life => outcome?,
            () = process.dies() => {}
            // Its disk is stuck.
            () = tokio::time::sleep(Duration::from_secs(3600)) => process.kill(),
        }
        process.end();
        if host.medium().is_gone() {
            break;
        }
    }
    Ok(history.numbers)
}

/// What is wrong with the world of this seed, or the changes that were staged in it.
pub fn ring(seed: u64) -> Outcome<u64> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let world = Arc::new(World::new(seed, false, folder.path()).of_disks());
    let lived = run::in_virtual_time(live(world.clone()));
    world.violation().map_or(lived, Err)
}

#[test]
fn rings_keep_what_is_durable() {
    let staged = std::sync::atomic::AtomicU64::new(0);
    run::spread(0..RINGS, |seed| {
        match ring(seed) {
            Ok(changes) => staged.fetch_add(changes, std::sync::atomic::Ordering::Relaxed),
            Err(what) => panic!("ring {seed}: {what}"),
        };
        true
    });
    let staged = staged.into_inner();
    assert!(staged > 100_000, "{staged} changes are not enough to say anything");
}

#[test]
fn rings_with_mistakes_are_noticed() {
    for made in [
        Mutant::BatchCrcIgnored,
        Mutant::SegmentReusedEarly,
        Mutant::RunSaltReused,
        Mutant::BatchNonceStands,
        Mutant::BatchHeaderNotBound,
    ] {
        let caught = (0..RINGS).find(|seed| mutant::with(Some(made), || ring(*seed)).is_err());
        println!("{made:?} {caught:?}");
        assert!(caught.is_some(), "{made:?} is not noticed");
    }
}
