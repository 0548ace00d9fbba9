//! The past of volumes that are made of each other, rolled back, flattened and deleted: every moment that is
//! kept reads as it was, clones are made of it, and the doctor finds nothing wrong, unless something is.

use crate::clones::{Family, Image, Member, check, name};
use crate::schedule::watch;
use objblk::doctor::{Doctor, Kind, VolumeReport};
use objblk::format::checkpoint::{Checkpoint, Garbage};
use objblk::format::{VolumeId, keys};
use objblk::log::Terms;
use objblk::store::fault::{Fault, Moment as When, Rule};
use objblk::store::{Key, Op, Store, list_all};
use objblk::transfer::stream::put_back;
use objblk::units::Seq;
use objblk::volume::{Moment, Volume, VolumeOptions, find_snapshot, past};
use rand::Rng;
use rand::seq::{IndexedRandom, IteratorRandom};
use std::collections::BTreeMap;
use std::time::Duration;

const LONG: Option<Duration> = Some(Duration::from_secs(3600));

/// A family, and what its members were at moments that are kept.
struct Story {
    family: Family,
    moments: BTreeMap<String, Vec<(Seq, Image)>>,
    looked: u32,
    cloned: u32,
}

impl Story {
    async fn new(seed: u64) -> Story {
        let family = Family::by(seed, watch()).await;
        let mut story = Story { family, moments: BTreeMap::new(), looked: 0, cloned: 0 };
        story.retain("v0").await;
        story
    }

    /// Longer than what points are apart at least.
    async fn wait(&self) {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }

    async fn retain(&mut self, of: &str) {
        self.family.members[of].volume.retain(LONG).await.unwrap();
        self.moments.insert(of.into(), Vec::new());
    }

    /// Notes what there is now.
    async fn note(&mut self) {
        self.moments.retain(|of, _| self.family.members.contains_key(of));
        for (of, moments) in &mut self.moments {
            let member = &self.family.members[of];
            objblk::device::BlockDevice::flush(&member.volume).await.unwrap();
            let slot = Seq(member.volume.status().next_seq);
            if moments.last().is_none_or(|(last, _)| *last < slot) {
                moments.push((slot, member.now.clone()));
            }
        }
    }

    async fn view(&self, id: VolumeId, slot: Seq) -> Volume {
        let at = Some(Moment::Slot(slot));
        let options = VolumeOptions { at, ..self.family.rig.options.clone() };
        self.family.open_with(id, 9, options).await.unwrap()
    }

    fn pick(&mut self) -> Option<(String, Seq, Image)> {
        let rng = &mut self.family.rng;
        let (of, moments) = self.moments.iter().choose(rng)?;
        let (slot, image) = moments.choose(rng)?;
        Some((of.clone(), *slot, image.clone()))
    }

    async fn look(&mut self) {
        for _ in 0..4 {
            let Some((of, slot, image)) = self.pick() else { return };
            let view = self.view(self.family.members[&of].id, slot).await;
            check(&view, &image, &format!("{of} before slot {slot}")).await;
            self.looked += 1;
        }
    }

    /// A clone of a moment, as `objblk clone --at` makes it.
    async fn clone_past(&mut self) {
        let Some((of, slot, image)) = self.pick() else { return };
        self.family.snapshot(&of).await;
        self.cloned += 1;
        let (called, id) = (format!("past{}", self.cloned), self.family.members[&of].id);
        let entry = self.family.members[&of].volume.snapshots().last().unwrap().clone();
        let begun = self.family.pool.begin_clone(&name(&of), &entry.name, &name(&called)).await;
        let begun = begun.unwrap();
        let store = &*self.family.rig.store;
        let snapshot = find_snapshot(store, id, &entry.name).await.unwrap();
        let options = VolumeOptions {
            snapshot: Some(snapshot.entry.name),
            ..self.family.rig.options.clone()
        };
        let now = self.family.open_with(id, 9, options).await.unwrap();
        let view = self.view(id, slot).await;
        let volume = self.family.open(begun.id, 1, false).await.unwrap();
        put_back(&view, &now, &volume, &|_| {}).await.unwrap();
        self.family.pool.name_clone(&begun, &name(&called)).await.unwrap();
        check(&volume, &image, &format!("{called}, of {of} before slot {slot}")).await;
        let member = Member { id: begun.id, volume, now: image, snapshots: BTreeMap::new() };
        self.family.members.insert(called, member);
    }

    async fn step(&mut self) {
        match self.family.rng.random_range(0..10) {
            0 => self.look().await,
            1 if self.family.members.len() < 6 => self.clone_past().await,
            2 => {
                let of = self.family.pick();
                if !self.moments.contains_key(&of) {
                    self.retain(&of).await;
                } else if self.family.rng.random_bool(0.3) {
                    self.family.members[&of].volume.retain(None).await.unwrap();
                    self.moments.remove(&of);
                }
            }
            3 => self.wait().await,
            _ => self.family.step().await,
        }
        self.note().await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_moment_of_a_family_reads_as_it_was() {
    let (mut looked, mut cloned) = (0, 0);
    let first = std::env::var("OBJBLK_SEED").ok().map(|seed| seed.parse().unwrap());
    for seed in first.map_or(0..8, |first| first..first + 1) {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test engine every_moment_of_a_family");
        let mut story = Story::new(seed).await;
        for _ in 0..60 {
            story.step().await;
        }
        story.look().await;
        story.family.verify().await;
        looked += story.looked;
        cloned += story.cloned;
        story.family.close().await;
    }
    eprintln!("{looked} moments were looked at, {cloned} were cloned");
    assert!(first.is_some() || looked > 60 && cloned > 8, "{looked} {cloned}");
}

async fn examine(story: &Story) -> VolumeReport {
    let report = Doctor::new(&story.family.pool, true, None).check_all().await.unwrap();
    report.volumes.into_iter().find(|volume| volume.name == "v0").unwrap()
}

/// The newest checkpoint of `v0` and the points that are there.
async fn points(story: &Story) -> (Checkpoint, Vec<Checkpoint>) {
    let (store, id) = (&*story.family.rig.store, story.family.members["v0"].id);
    let mut found = Vec::new();
    for object in list_all(store, &keys::checkpoints(id)).await.unwrap() {
        let body = store.get(&object.key, objblk::store::GetRange::All).await.unwrap();
        found.push(Checkpoint::parse(&body).unwrap());
    }
    (found.remove(0), found)
}

/// What only the past needs is counted as such, and told to be lost when it is.
#[tokio::test(start_paused = true)]
async fn the_doctor_knows_what_the_past_needs() {
    let mut story = Story::new(3).await;
    for _ in 0..8 {
        story.family.change("v0", 150).await;
        story.wait().await;
        story.family.members["v0"].volume.collect(Some(100)).await.unwrap();
    }
    story.family.crash("v0").await;
    story.family.change("v0", 10).await;
    story.family.flush().await;
    let sound = examine(&story).await;
    let space = sound.space.unwrap();
    assert!(sound.damages.is_empty() && space.past.objects > 8, "{space:?}");
    assert_eq!((space.orphans.objects, space.past.bytes < space.stored.bytes), (0, true));
    let (newest, there) = points(&story).await;
    let id = newest.volume;
    let info = past(&*story.family.rig.store, id).await.unwrap();
    assert_eq!(info.oldest.unwrap().0, there.last().unwrap().next);
    assert!(info.chunks > 4 && info.chunks < space.past.objects, "{} {space:?}", info.chunks);

    // A slot that the newest state has lost, and states of the past need.
    let slot = newest.garbage.iter().find_map(|garbage| match garbage {
        Garbage::Slots { first, .. } => Some(*first),
        _ => None,
    });
    let chunk = Terms::new(newest.terms.clone()).slot_key(id, slot.unwrap());
    let lost = without(&story, &chunk).await;
    assert!(lost.damages.iter().any(|damage| damage.object.as_deref() == Some(chunk.as_str())));
    assert!(lost.affected.iter().all(|affected| affected.name != "v0"), "{lost:#?}");
    // A point in the middle: one older than it is there, so it has not expired.
    let middle = &there[there.len() / 2];
    let point = keys::checkpoint(id, middle.next, middle.epoch);
    let lost = without(&story, &point).await;
    let named = format!("v0 at slot {}", middle.next);
    assert_eq!(lost.affected.iter().map(|of| &of.name).collect::<Vec<_>>(), [&named]);
    assert!(lost.damages.iter().all(|damage| damage.kind == Kind::Missing), "{lost:#?}");
    // The oldest may have expired.
    let oldest = there.last().unwrap();
    let oldest = keys::checkpoint(id, oldest.next, oldest.epoch);
    assert_eq!(without(&story, &oldest).await.damages, []);
    story.family.examine().await;
}

/// What the doctor says while an object is not there.
async fn without(story: &Story, key: &Key) -> VolumeReport {
    let store = &story.family.rig.memory;
    let body = store.get(key, objblk::store::GetRange::All).await.unwrap();
    store.delete(std::slice::from_ref(key)).await.unwrap();
    let report = examine(story).await;
    store.put(key, body).await.unwrap();
    report
}

/// What expires while it is looked at is no damage.
#[tokio::test(start_paused = true)]
async fn what_expires_meanwhile_is_no_damage() {
    let (mut examined, mut gone) = (0, 0);
    for seed in 0..6 {
        let mut story = Story::new(seed).await;
        for _ in 0..6 {
            story.family.change("v0", 120).await;
            story.wait().await;
        }
        let before = points(&story).await.1;
        let (from, to) = (Duration::ZERO, Duration::from_millis(30));
        let slow = Rule::new(Fault::Delay { at: When::Before, from, to });
        story.family.rig.faults.add(slow.on(&[Op::Get, Op::List, Op::Head]));
        let doctor = Doctor::new(&story.family.pool, true, None);
        let examination = async {
            let mut sound = 0;
            for _ in 0..3 {
                let report = doctor.check_all().await.unwrap();
                let busy = report.volumes.iter().any(|volume| volume.error.is_some());
                assert!(report.clean || busy && report.damage_count() == 0, "{report:#?}");
                sound += u32::from(report.clean);
            }
            sound
        };
        let work = async {
            loop {
                story.family.change("v0", 60).await;
                // All that there was expires with the next checkpoint, or nothing does for long.
                let time = [Some(Duration::from_secs(1)), LONG, None];
                let time = time.choose(&mut story.family.rng).unwrap();
                story.family.members["v0"].volume.retain(*time).await.unwrap();
                let pause = story.family.rng.random_range(0..8000);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        };
        tokio::select! {
            sound = examination => examined += sound,
            () = work => {}
        }
        for point in before {
            let key = keys::checkpoint(point.volume, point.next, point.epoch);
            gone += u32::from(story.family.rig.memory.head(&key).await.is_err());
        }
    }
    eprintln!("{examined} of 18 were whole, {gone} points went meanwhile");
    assert!(examined > 9 && gone > 6, "{examined} {gone}");
}
