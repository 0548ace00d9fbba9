//! Differences between states: whatever happened in between, what differs is told, and little else is; a
//! stream of them makes one volume what another one was.

use crate::rig::{CHUNK, Rig, pattern, range, write};
use futures::stream::StreamExt;
use objblk::device::BlockDevice;
use objblk::error::{Error, ErrorKind, Result};
use objblk::format::keys;
use objblk::format::pool::encode_json;
use objblk::format::received::ReceivedObject;
use objblk::format::snapshot::SnapshotEntry;
use objblk::format::stream::{StreamHeader, StreamState};
use objblk::format::{SnapshotId, VolumeId};
use objblk::store::Op;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::transfer::stream::{Incoming, Piece, Received, pieces, receive, send};
use objblk::units::{BlockSize, Epoch, Sector, SectorCount};
use objblk::volume::{Mode, Volume, VolumeOptions, as_receiver};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

const SECTORS: u64 = 8 << 11;

/// A volume and the bytes of all its states.
struct Story {
    rig: Rig,
    rng: StdRng,
    volume: Volume,
    now: Vec<u8>,
    states: BTreeMap<String, Vec<u8>>,
    stamp: u64,
}

impl Story {
    async fn new(seed: u64) -> Story {
        let rig = Rig::new(seed, SECTORS * 512).await;
        let volume = rig.open().await;
        let now = vec![0; SECTORS as usize * 512];
        let rng = StdRng::seed_from_u64(seed);
        Story { rig, rng, volume, now, states: BTreeMap::new(), stamp: 0 }
    }

    async fn change(&mut self, times: usize) {
        for _ in 0..times {
            let sectors = self.now.len() as u64 / 512;
            let start = self.rng.random_range(0..sectors);
            let len = self.rng.random_range(1..=40.min(sectors - start));
            let span = start as usize * 512..(start + len) as usize * 512;
            self.stamp += 1;
            match self.rng.random_range(0..10) {
                0 => {
                    self.volume.discard(range(start, len)).await.unwrap();
                    self.now[span].fill(0);
                }
                // What was there before, and zeros that are written: nothing differs.
                1 => {
                    let same = self.now[span].to_vec();
                    write(&self.volume, start, &same).await.unwrap();
                }
                _ => {
                    let data = pattern(start, len, self.stamp);
                    write(&self.volume, start, &data).await.unwrap();
                    self.now[span].copy_from_slice(&data);
                }
            }
        }
    }

    async fn snapshot(&mut self) -> String {
        let name = format!("s{}", self.states.len());
        self.volume.make_snapshot(new_id(&mut self.rng), &name).await.unwrap();
        self.states.insert(name.clone(), self.now.clone());
        name
    }

    async fn resize(&mut self) {
        let sectors = self.rng.random_range(SECTORS / 2..=SECTORS * 3 / 2);
        self.volume.resize(SectorCount(sectors)).await.unwrap();
        self.now.resize(sectors as usize * 512, 0);
    }

    async fn roll_back(&mut self) {
        let Some(name) = self.states.keys().choose(&mut self.rng).cloned() else { return };
        let kept = format!("k{}", self.stamp);
        let id = new_id(&mut self.rng);
        self.volume.roll_back(&name, (id, &kept)).await.unwrap();
        self.states.insert(kept, self.now.clone());
        self.now = self.states[&name].clone();
        self.volume = self.rig.open().await;
    }

    async fn reopen(&mut self) {
        self.volume.close().await.unwrap();
        self.volume = self.rig.open().await;
    }
}

fn new_id(rng: &mut StdRng) -> SnapshotId {
    SnapshotId::from_random(rng.random())
}

fn sector(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at * 512..(at + 1) * 512).unwrap_or(&[0; 512])
}

/// Sectors that are told by the maps and by the bytes. The latter's contents are checked.
async fn told(new: &Volume, base: Option<&Volume>, image: &[u8]) -> (Vec<bool>, Vec<bool>) {
    let sectors = image.len() / 512;
    let (mut by_map, mut by_bytes) = (vec![false; sectors], vec![false; sectors]);
    let mut end = Sector(0);
    let mut changes = new.changes_since(base).await.unwrap();
    while let Some(changed) = changes.next().await.unwrap() {
        for changed in changed {
            assert!(changed.range.start() >= end && !changed.range.is_empty());
            end = changed.range.end();
            by_map[changed.range.start().0 as usize..end.0 as usize].fill(true);
        }
    }
    let mut end = Sector(0);
    let mut pieces = pin!(pieces(new, base));
    while let Some(piece) = pieces.next().await {
        let (range, data) = match piece.unwrap() {
            Piece::Data(range, data) => (range, data.to_vec()),
            Piece::Zeros(range) => (range, vec![0; range.len().bytes() as usize]),
        };
        assert!(range.start() >= end && !range.is_empty());
        end = range.end();
        let span = range.start().bytes() as usize..end.bytes() as usize;
        assert!(image[span] == data, "{range}");
        by_bytes[range.start().0 as usize..end.0 as usize].fill(true);
    }
    (by_map, by_bytes)
}

/// Of each sector that differs it is told; of one that does not only the maps may say so, unless it became
/// zeros that may have been written.
async fn compare(story: &Story, from: Option<&str>, to: &str) {
    let view = story.volume.view(to).await.unwrap();
    let base = match from {
        Some(from) => Some(story.volume.view(from).await.unwrap()),
        None => None,
    };
    let image = &story.states[to];
    let none = Vec::new();
    let before = from.map_or(&none, |from| &story.states[from]);
    let (by_map, by_bytes) = told(&view, base.as_ref(), image).await;
    for at in 0..image.len() / 512 {
        let differs = sector(image, at) != sector(before, at);
        let what = format!("sector {at} of {from:?} to {to}");
        assert!(!differs || (by_map[at] && by_bytes[at]), "{what} differs and is not told");
        let is_zero = sector(image, at).iter().all(|byte| *byte == 0);
        assert!(differs || is_zero || !by_bytes[at], "{what} does not differ and is told");
    }
}

#[tokio::test(start_paused = true)]
async fn what_differs_is_told_whatever_happened_in_between() {
    let first = std::env::var("OBJBLK_SEED").ok().map(|seed| seed.parse().unwrap());
    for seed in first.map_or(0..6, |first| first..first + 1) {
        eprintln!("replay: OBJBLK_SEED={seed} cargo test --test engine what_differs_is_told");
        let mut story = Story::new(seed).await;
        for _ in 0..24 {
            let times = story.rng.random_range(0..60);
            story.change(times).await;
            match story.rng.random_range(0..10) {
                0..4 => drop(story.snapshot().await),
                4 => drop(story.volume.collect(Some(100)).await.unwrap()),
                5 => story.reopen().await,
                6 => story.resize().await,
                7 => story.roll_back().await,
                _ => {}
            }
        }
        story.snapshot().await;
        for to in story.states.keys() {
            compare(&story, None, to).await;
            let from = story.states.keys().choose(&mut story.rng).unwrap();
            compare(&story, Some(from), to).await;
        }
        story.volume.close().await.unwrap();
    }
}

/// One changed sector is told as such, whatever the size of the volume, and takes few requests.
#[tokio::test(start_paused = true)]
async fn what_is_shared_is_neither_told_nor_read() {
    let rig = Rig::new(0, 1 << 40).await;
    let volume = rig.open().await;
    for leaf in 0..200 {
        write(&volume, leaf << 17, &pattern(0, 8, 1)).await.unwrap();
    }
    let mut rng = StdRng::seed_from_u64(0);
    volume.make_snapshot(new_id(&mut rng), "a").await.unwrap();
    write(&volume, (77 << 17) + 3, &pattern(0, 1, 2)).await.unwrap();
    volume.make_snapshot(new_id(&mut rng), "b").await.unwrap();
    let (a, b) = (volume.view("a").await.unwrap(), volume.view("b").await.unwrap());
    let mut changes = b.changes_since(Some(&a)).await.unwrap();
    let found = changes.next().await.unwrap().unwrap();
    let ranges: Vec<_> = found.iter().map(|changed| changed.range).collect();
    assert_eq!(ranges, [range((77 << 17) + 3, 1)]);
    assert!(changes.next().await.unwrap().is_none());
    assert_eq!(changes_of(&a, None).await, 200);
    // Everything is moved: the maps differ, the bytes do not.
    volume.collect(Some(100)).await.unwrap();
    for leaf in 0..200 {
        write(&volume, (leaf << 17) + 1, &pattern(1, 1, 1)).await.unwrap();
    }
    volume.make_snapshot(new_id(&mut rng), "c").await.unwrap();
    let c = volume.view("c").await.unwrap();
    assert!(changes_of(&c, Some(&b)).await >= 200);
    assert!(pin!(pieces(&c, Some(&b))).next().await.is_none());
}

async fn changes_of(new: &Volume, base: Option<&Volume>) -> usize {
    let mut changes = new.changes_since(base).await.unwrap();
    let mut found = 0;
    while let Some(changed) = changes.next().await.unwrap() {
        found += changed.len();
    }
    found
}

/// The stream that leads from one snapshot to another.
async fn stream(volume: &Volume, from: Option<&str>, to: &str) -> Vec<u8> {
    let state = async |name: &str| {
        let entry = volume.snapshots().into_iter().find(|entry| entry.name == name).unwrap();
        let snapshot = volume.original(entry.id).await.unwrap();
        let SnapshotEntry { name, size, made_at_ms, .. } = entry;
        StreamState { snapshot, name, size, made_at_ms }
    };
    let base = match from {
        Some(from) => Some(state(from).await),
        None => None,
    };
    let header = StreamHeader {
        volume: VolumeId::from_bytes([1; 16]),
        block_size: BlockSize::B512,
        chunk_size: CHUNK,
        to: state(to).await,
        base,
    };
    let (view, mut out) = (volume.view(to).await.unwrap(), Vec::new());
    let base = match from {
        Some(from) => Some(volume.view(from).await.unwrap()),
        None => None,
    };
    let sent = send(&header, (&view, base.as_ref()), &mut out, &|_| {}).await.unwrap();
    assert_eq!(sent.stream_bytes, out.len() as u64);
    out
}

async fn take(volume: &Volume, stream: &[u8], rng: &mut StdRng) -> Result<Received> {
    let incoming = Incoming::begin(stream).await?;
    receive(volume, incoming, new_id(rng), &|_| {}).await
}

async fn open_to_receive(rig: &Rig, pid: u32, takeover: bool) -> Volume {
    let options = VolumeOptions { mode: Mode::ReadWrite { takeover }, ..rig.options.clone() };
    let env = objblk::volume::Env {
        runtime: tokio::runtime::Handle::current(),
        clock: std::sync::Arc::new(objblk::clock::SystemClock),
    };
    let stores = objblk::volume::Stores::one(rig.store.clone());
    let owner = as_receiver(crate::rig::owner(pid));
    Volume::open(env, stores, rig.id, owner, options).await.unwrap()
}

async fn image(volume: &Volume) -> Vec<u8> {
    let sectors = volume.geometry().size.0;
    crate::rig::read(volume, 0, sectors).await.unwrap()
}

fn refused(received: Result<Received>, kind: ErrorKind, words: &str) {
    let e: Error = received.unwrap_err();
    assert!(e.kind() == kind && e.to_string().contains(words), "{e}");
}

/// Each stream leads where it says, only from where it says, and a copy's copy is one of the original.
#[tokio::test(start_paused = true)]
async fn streams_lead_on_from_their_base_only() {
    let mut story = Story::new(5).await;
    let copy = Rig::new(6, 1 << 20).await;
    let mut rng = StdRng::seed_from_u64(7);
    let mut streams = Vec::new();
    for step in 0..4 {
        story.change(50).await;
        if step == 2 {
            story.resize().await;
        }
        let name = story.snapshot().await;
        let before = (step > 0).then(|| format!("s{}", step - 1));
        streams.push(stream(&story.volume, before.as_deref(), &name).await);
    }
    let target = open_to_receive(&copy, 1, false).await;
    refused(take(&target, &streams[1], &mut rng).await, ErrorKind::Failed, "the volume has none");
    for (step, bytes) in streams.iter().enumerate() {
        let got = take(&target, bytes, &mut rng).await.unwrap();
        assert!(!got.was_there && !got.resumed, "{got:?}");
        assert!(image(&target).await == story.states[&format!("s{step}")]);
        let again = take(&target, bytes, &mut rng).await.unwrap();
        assert!(again.was_there && again.snapshot.id == got.snapshot.id, "{again:?}");
    }
    for (name, wanted) in &story.states {
        assert!(image(&target.view(name).await.unwrap()).await == *wanted, "{name}");
    }
    assert_eq!(copy.objects("received/").await.len(), 4);
    // From the copy's snapshots on, as from the original's; and back again.
    write(&target, 9, &pattern(9, 9, 99)).await.unwrap();
    target.make_snapshot(new_id(&mut rng), "theirs").await.unwrap();
    let back = stream(&target, Some("s3"), "theirs").await;
    story.reopen().await;
    take(&story.volume, &back, &mut rng).await.unwrap();
    assert!(image(&story.volume).await == image(&target).await);
    // A snapshot of the same name is not the same snapshot.
    let other = Rig::new(8, 1 << 20).await;
    let stranger = open_to_receive(&other, 1, false).await;
    stranger.make_snapshot(new_id(&mut rng), "s0").await.unwrap();
    let not_the_one = "is not the one that the stream leads from";
    refused(take(&stranger, &streams[1], &mut rng).await, ErrorKind::Failed, not_the_one);
    let another = "has another snapshot s0";
    refused(take(&stranger, &streams[0], &mut rng).await, ErrorKind::Exists, another);
    // Written to since, or gone on.
    let not_empty = Rig::new(9, 1 << 20).await;
    let written = open_to_receive(&not_empty, 1, false).await;
    write(&written, 0, &pattern(0, 1, 1)).await.unwrap();
    refused(take(&written, &streams[0], &mut rng).await, ErrorKind::Exists, "is not empty");
    written.discard(range(0, 1)).await.unwrap();
    take(&written, &streams[0], &mut rng).await.unwrap();
    // What is only moved, or written as it was, is not changed; nor do snapshots of its own harm.
    let same = crate::rig::read(&written, 0, 64).await.unwrap();
    write(&written, 0, &same).await.unwrap();
    written.collect(Some(100)).await.unwrap();
    written.make_snapshot(new_id(&mut rng), "own").await.unwrap();
    take(&written, &streams[1], &mut rng).await.unwrap();
    write(&written, 0, &pattern(0, 1, 1)).await.unwrap();
    refused(take(&written, &streams[2], &mut rng).await, ErrorKind::Failed, "was written to since");
    written.make_snapshot(new_id(&mut rng), "own2").await.unwrap();
    refused(take(&written, &streams[2], &mut rng).await, ErrorKind::Failed, "has gone on from s1");
    let kept = (new_id(&mut rng), "kept");
    written.roll_back("s1", kept).await.unwrap();
    let written = open_to_receive(&not_empty, 2, false).await;
    take(&written, &streams[2], &mut rng).await.unwrap();
    assert!(image(&written).await == story.states["s2"]);
}

/// Whichever request is the last one: the same stream, received again, leads to the same; another one is
/// refused, and so is the same one once somebody else had the volume.
#[tokio::test(start_paused = true)]
async fn a_receipt_that_is_cut_off_is_done_again() {
    let mut story = Story::new(1).await;
    story.change(40).await;
    story.snapshot().await;
    story.change(80).await;
    story.snapshot().await;
    story.change(40).await;
    story.snapshot().await;
    let base = stream(&story.volume, None, "s0").await;
    let next = stream(&story.volume, Some("s0"), "s1").await;
    let other = stream(&story.volume, Some("s0"), "s2").await;
    let (mut resumed, mut begun_anew, mut done) = (0, 0, 0);
    // A third of them, somebody else has the volume in between.
    for request in 0..42 {
        let copy = Rig::new(request, 1 << 20).await;
        let mut rng = StdRng::seed_from_u64(request);
        let target = open_to_receive(&copy, 1, false).await;
        take(&target, &base, &mut rng).await.unwrap();
        let dies = Rule::new(Fault::Hold(Moment::Before)).on(&[Op::Put]).skip(request / 3);
        let held = copy.faults.add(dies);
        let cut_off = take(&target, &next, &mut rng);
        let cut_off = tokio::time::timeout(Duration::from_secs(30), cut_off).await;
        target.abandon();
        copy.faults.clear();
        drop(held);
        let by_others = request % 3 == 2;
        if by_others {
            copy.take_over(2).await.close().await.unwrap();
        }
        let target = open_to_receive(&copy, 3, true).await;
        let between = image(&target).await != story.states["s0"];
        let finished = target.snapshots().iter().any(|entry| entry.name == "s1");
        if between && !finished {
            let e = take(&target, &other, &mut rng).await.unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Failed, "{e}");
            target.abandon();
            let target = open_to_receive(&copy, 4, true).await;
            let again = take(&target, &next, &mut rng).await;
            if by_others {
                refused(again, ErrorKind::Failed, "was written to since its snapshot s0");
                target.roll_back("s0", (new_id(&mut rng), "kept")).await.unwrap();
                let target = open_to_receive(&copy, 5, false).await;
                take(&target, &next, &mut rng).await.unwrap();
                assert!(image(&target).await == story.states["s1"]);
                continue;
            }
            assert!(again.unwrap().resumed);
            resumed += 1;
            assert!(image(&target).await == story.states["s1"], "request {request}");
            assert_eq!(copy.objects("received/").await.len(), 2);
            continue;
        }
        let again = take(&target, &next, &mut rng).await.unwrap();
        assert_eq!(again.was_there, finished);
        assert!(cut_off.is_err() || finished, "request {request}");
        begun_anew += usize::from(!finished);
        done += usize::from(finished);
        assert!(image(&target).await == story.states["s1"], "request {request}");
        assert!(image(&target.view("s0").await.unwrap()).await == story.states["s0"]);
    }
    eprintln!("{resumed} resumed, {begun_anew} begun anew, {done} were done");
    assert!(resumed > 2 && begun_anew > 2 && done > 2, "{resumed} {begun_anew} {done}");
}

/// What an owner notes that was deposed by then says nothing of what its successor received.
#[tokio::test(start_paused = true)]
async fn a_note_that_comes_late_is_void() {
    let mut story = Story::new(2).await;
    story.change(40).await;
    story.snapshot().await;
    story.change(40).await;
    story.snapshot().await;
    let base = stream(&story.volume, None, "s0").await;
    let next = stream(&story.volume, Some("s0"), "s1").await;
    let (copy, mut rng) = (Rig::new(2, 1 << 20).await, StdRng::seed_from_u64(2));
    let target = open_to_receive(&copy, 1, false).await;
    take(&target, &base, &mut rng).await.unwrap();
    let s0 = target.snapshots()[0].id;
    target.close().await.unwrap();
    let deposed = open_to_receive(&copy, 2, false).await;
    let begun_in = Epoch(2);
    deposed.abandon();
    let target = open_to_receive(&copy, 3, true).await;
    take(&target, &next, &mut rng).await.unwrap();
    target.close().await.unwrap();
    let source = VolumeId::from_bytes([1; 16]);
    for (base, begun_in) in [(Some(s0), begun_in), (None, begun_in), (Some(s0), Epoch(3))] {
        let note = ReceivedObject { source, snapshot: new_id(&mut rng), base, begun_in };
        let key = keys::received(copy.id, new_id(&mut rng));
        copy.store.put_if_absent(&key, encode_json(&note).into()).await.unwrap();
        let target = open_to_receive(&copy, 4, false).await;
        let found = target.interrupted_receipt().await.unwrap();
        assert!(found.is_none(), "{note:?}: {found:?}");
        target.close().await.unwrap();
        copy.store.delete(&[key]).await.unwrap();
    }
    assert!(image(&open_to_receive(&copy, 5, false).await).await == story.states["s1"]);
}

/// A stream that is damaged or cut short makes no snapshot, and the whole one repairs what it did.
#[tokio::test(start_paused = true)]
async fn a_damaged_stream_makes_no_snapshot() {
    let mut story = Story::new(3).await;
    story.change(6).await;
    story.snapshot().await;
    let whole = stream(&story.volume, None, "s0").await;
    let copy = Rig::new(4, 1 << 20).await;
    let mut rng = StdRng::seed_from_u64(4);
    let target = open_to_receive(&copy, 1, false).await;
    for at in (0..whole.len()).step_by(whole.len() / 60) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        for bad in [&flipped[..], &whole[..at]] {
            let e = take(&target, bad, &mut rng).await.unwrap_err();
            let kinds = [ErrorKind::Corrupt, ErrorKind::Usage, ErrorKind::Unsupported];
            assert!(kinds.contains(&e.kind()), "byte {at}: {e}");
            assert!(target.snapshots().is_empty(), "byte {at}");
        }
    }
    let long = [&whole[..], b"x"].concat();
    refused(take(&target, &long, &mut rng).await, ErrorKind::Corrupt, "something follows it");
    assert!(take(&target, &whole, &mut rng).await.unwrap().resumed);
    assert!(image(&target).await == story.states["s0"]);
}
