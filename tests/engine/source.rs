//! Volumes that begin as an image: at once what the image is, whatever happens on the way.

use crate::recover::Host;
use crate::rig::{CHUNK, Rig, pattern, range, read, write};
use async_trait::async_trait;
use bytes::Bytes;
use objblk::device::{BlockDevice, BlockState, ZeroFlags};
use objblk::error::ErrorKind;
use objblk::format::features::Features;
use objblk::format::source::SourceObject;
use objblk::format::volume::VolumeObject;
use objblk::format::{SnapshotId, keys, pool};
use objblk::image::{Image, ImageError, ImageResult, Images};
use objblk::store::{GetRange, Store};
use objblk::units::SectorCount;
use objblk::volume::{Mode, Volume, VolumeOptions};
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const BLOCK: u64 = 64 << 10;
/// Not whole sectors, nor whole blocks.
const IMAGE: u64 = 40 * BLOCK - 300;
const SECTORS: u64 = 42 * BLOCK / 512;

#[derive(Debug, Default)]
struct State {
    reads: Vec<(u64, usize)>,
    failing: Option<ImageError>,
    delay: Duration,
}

/// An image in memory.
#[derive(Clone, Debug)]
struct Fake {
    bytes: Arc<Vec<u8>>,
    identity: &'static str,
    state: Arc<Mutex<State>>,
}

impl Fake {
    /// Some blocks of zeros among random ones.
    fn new(seed: u64) -> Fake {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = vec![0; IMAGE as usize];
        for block in bytes.chunks_mut(BLOCK as usize) {
            if rng.random_bool(0.7) {
                rng.fill_bytes(block);
            }
        }
        Fake { bytes: Arc::new(bytes), identity: "first", state: Arc::default() }
    }

    fn fails(&self, with: Option<ImageError>) {
        self.state.lock().unwrap().failing = with;
    }

    fn read_bytes(&self) -> usize {
        self.state.lock().unwrap().reads.iter().map(|(_, len)| len).sum()
    }

    /// What a volume is that begins as this.
    fn contents(&self) -> Vec<u8> {
        let mut all = self.bytes.to_vec();
        all.resize(SECTORS as usize * 512, 0);
        all
    }
}

#[async_trait]
impl Image for Fake {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn identity(&self) -> &str {
        self.identity
    }

    async fn read(&self, offset: u64, len: usize) -> ImageResult<Vec<u8>> {
        let delay = {
            let mut state = self.state.lock().unwrap();
            if let Some(failing) = &state.failing {
                return Err(failing.clone());
            }
            state.reads.push((offset, len));
            state.delay
        };
        tokio::time::sleep(delay).await;
        Ok(self.bytes[offset as usize..][..len].to_vec())
    }
}

#[async_trait]
impl Images for Fake {
    async fn open(&self, url: &str) -> ImageResult<Arc<dyn Image>> {
        assert_eq!(url, "fake");
        match &self.state.lock().unwrap().failing {
            Some(failing) => Err(failing.clone()),
            None => Ok(Arc::new(self.clone())),
        }
    }
}

/// The rig's volume begins as `image` instead.
async fn begin(rig: &mut Rig, image: &Fake) {
    let key = keys::volume(rig.id);
    let body = rig.memory.get(&key, GetRange::All).await.unwrap();
    let before = VolumeObject::parse(&body).unwrap();
    let incompat = before.features.incompat | Features::SOURCE;
    let description = VolumeObject {
        size: SECTORS * 512,
        features: Features { incompat, ..before.features },
        source: Some(SourceObject::new("fake".into(), IMAGE, "first".into())),
        ..before
    };
    rig.memory.put(&key, Bytes::from(pool::encode_json(&description))).await.unwrap();
    rig.options.images = Some(Arc::new(image.clone()));
}

async fn rig(seed: u64, image: &Fake) -> Rig {
    let mut rig = Rig::any(seed, SECTORS * 512).await;
    begin(&mut rig, image).await;
    rig
}

async fn all(volume: &Volume) -> Vec<u8> {
    let sectors = volume.geometry().size.0;
    read(volume, 0, sectors).await.unwrap()
}

/// Whether `state` is one of these states, each of which came from the one before it, or part of the way to the
/// next: a change that a crash cuts off is applied to some of its sectors.
fn is_one_of(states: &[Vec<u8>], state: &[u8]) -> bool {
    let between = |a: &[u8], b: &[u8]| {
        let sectors = a.chunks(512).zip(b.chunks(512)).zip(state.chunks(512));
        sectors.into_iter().all(|((a, b), now)| now == a || now == b)
    };
    let last = states.last().unwrap();
    states.windows(2).any(|two| between(&two[0], &two[1])) || last == state
}

/// A random change, made on the volume and on the model.
async fn step(volume: &Volume, model: &mut [u8], rng: &mut StdRng, stamp: u64) {
    let start = rng.random_range(0..SECTORS);
    let longest = if rng.random_bool(0.2) { 1000 } else { 40 };
    let len = rng.random_range(1..=longest.min(SECTORS - start));
    let span = start as usize * 512..(start + len) as usize * 512;
    match rng.random_range(0..10) {
        0..5 => {
            let data = pattern(start, len, stamp);
            write(volume, start, &data).await.unwrap();
            model[span].copy_from_slice(&data);
        }
        5 => {
            volume.discard(range(start, len)).await.unwrap();
            model[span].fill(0);
        }
        6 => {
            let flags = ZeroFlags { may_unmap: true, fua: false };
            volume.write_zeroes(range(start, len), flags).await.unwrap();
            model[span].fill(0);
        }
        _ => assert!(read(volume, start, len).await.unwrap() == model[span], "a read at {stamp}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_its_source_and_what_was_written() {
    let seeds = match std::env::var("OBJBLK_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..24).collect::<Vec<u64>>(),
    };
    for seed in seeds {
        println!("OBJBLK_SEED={seed} cargo test --test engine a_volume_is_its_source");
        let mut rng = StdRng::seed_from_u64(seed);
        let image = Fake::new(seed);
        let mut rig = rig(seed, &image).await;
        let mut model = image.contents();
        for life in 0..6 {
            rig.options.hydrate = rng.random_bool(0.3);
            let volume = rig.take_over(life).await;
            assert!(rng.random_bool(0.5) || all(&volume).await == model, "life {life}");
            // What the volume may be after a crash: what it was at some moment since the last flush.
            let mut allowed = vec![model.clone()];
            for stamp in 0..rng.random_range(1..30) {
                step(&volume, &mut model, &mut rng, life as u64 * 1000 + stamp).await;
                if rng.random_bool(0.1) {
                    volume.flush().await.unwrap();
                    allowed.clear();
                }
                allowed.push(model.clone());
            }
            match rng.random_range(0..3) {
                0 => {
                    volume.close().await.unwrap();
                    allowed = vec![model.clone()];
                }
                1 => {
                    volume.flush().await.unwrap();
                    volume.abandon();
                    allowed = vec![model.clone()];
                }
                _ => {
                    volume.abandon();
                }
            }
            drop(volume);
            rig.options.hydrate = false;
            let volume = rig.take_over(100 + life).await;
            model = all(&volume).await;
            assert!(is_one_of(&allowed, &model), "seed {seed}: life {life} left another state");
            volume.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn only_what_is_needed_is_fetched_and_once() {
    let image = Fake::new(1);
    let rig = rig(1, &image).await;
    let volume = rig.open().await;
    let expected = image.contents();
    let at = |block: u64| block * BLOCK / 512;
    for sector in [at(3), at(3) + 5, at(7) + 127, at(39) + 127] {
        let read = read(&volume, sector, 1).await.unwrap();
        assert!(read == expected[sector as usize * 512..][..512]);
    }
    let blocks: BTreeSet<u64> =
        image.state.lock().unwrap().reads.iter().map(|(at, _)| at / BLOCK).collect();
    assert_eq!(blocks, BTreeSet::from([3, 7, 39]));
    assert_eq!(image.read_bytes() as u64, 3 * BLOCK - 300);
    // What is covered is not fetched; its edges are.
    write(&volume, at(10), &pattern(at(10), 256, 1)).await.unwrap();
    volume.discard(range(at(20), 128)).await.unwrap();
    assert_eq!(image.read_bytes() as u64, 3 * BLOCK - 300);
    write(&volume, at(30) - 1, &pattern(at(30) - 1, 2, 1)).await.unwrap();
    assert_eq!(image.read_bytes() as u64, 5 * BLOCK - 300);
    let source = volume.status().source.unwrap();
    assert_eq!(source.fetched_bytes, 5 * BLOCK - 300);
    assert_eq!(source.absent_bytes, (40 - 5 - 3) * BLOCK);
    // A status request fetches nothing either.
    let status = volume.block_status(range(0, SECTORS), 10).await.unwrap();
    assert_eq!((status[0].state, status[0].len), (BlockState::Data, SectorCount(at(3))));
    volume.close().await.unwrap();
    let volume = rig.open().await;
    read(&volume, at(3), 128).await.unwrap();
    assert_eq!(image.read_bytes() as u64, 5 * BLOCK - 300);
    volume.close().await.unwrap();
}

#[tokio::test]
async fn once_everything_is_there_the_source_may_go() {
    let image = Fake::new(2);
    let mut rig = rig(2, &image).await;
    let volume = rig.open().await;
    read(&volume, 0, 300).await.unwrap();
    let mut left = Vec::new();
    volume.hydrate(&mut |bytes| left.push(bytes)).await.unwrap();
    assert_eq!(left.last(), Some(&0));
    assert_eq!(image.read_bytes() as u64, IMAGE, "each byte once");
    volume.abandon();
    rig.options.images = None;
    let volume = rig.take_over(2).await;
    assert!(all(&volume).await == image.contents());
    assert!(volume.status().source.is_none());
    volume.check_source().await.unwrap();
    volume.close().await.unwrap();
}

#[tokio::test]
async fn the_background_fetches_all_and_goes_on_after_an_outage() {
    let image = Fake::new(3);
    let mut rig = rig(3, &image).await;
    rig.options.hydrate = true;
    image.fails(Some(ImageError::Unreachable("nobody is there".into())));
    let volume = rig.open().await;
    let reader = tokio::spawn({
        let volume = volume.clone();
        async move { read(&volume, 0, 8).await }
    });
    while volume.status().source.unwrap().trouble.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!reader.is_finished());
    image.fails(None);
    assert!(reader.await.unwrap().unwrap() == image.contents()[..4096]);
    while volume.status().source.unwrap().absent_bytes > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(volume.status().source.unwrap().trouble.is_none());
    assert!(all(&volume).await == image.contents());
    volume.close().await.unwrap();
}

#[tokio::test]
async fn a_source_that_is_another_one_is_never_read() {
    let image = Fake::new(4);
    let mut rig = rig(4, &image).await;
    let other = Fake { identity: "second", ..Fake::new(5) };
    rig.options.images = Some(Arc::new(other.clone()));
    let volume = rig.open().await;
    let refused = volume.check_source().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused}");
    let refused = read(&volume, 0, 1).await.unwrap_err();
    assert!(refused.to_string().contains("changed"), "{refused}");
    assert_eq!(other.read_bytes(), 0);
    // What needs no source goes on.
    write(&volume, 0, &pattern(0, 128, 9)).await.unwrap();
    assert!(read(&volume, 0, 128).await.unwrap() == pattern(0, 128, 9));
    volume.close().await.unwrap();
    rig.options.images = None;
    let volume = rig.open().await;
    assert_eq!(volume.check_source().await.unwrap_err().kind(), ErrorKind::Failed);
    assert!(read(&volume, 200, 1).await.is_err());
    assert!(read(&volume, 0, 128).await.unwrap() == pattern(0, 128, 9));
    volume.close().await.unwrap();
}

#[tokio::test]
async fn snapshots_and_readers_see_the_source_too() {
    let image = Fake::new(6);
    let rig = rig(6, &image).await;
    let volume = rig.open().await;
    write(&volume, 100, &pattern(100, 100, 1)).await.unwrap();
    let mut then = image.contents();
    then[100 * 512..200 * 512].copy_from_slice(&pattern(100, 100, 1));
    volume.make_snapshot(SnapshotId::from_bytes([1; 16]), "early").await.unwrap();
    write(&volume, 0, &pattern(0, SECTORS, 2)).await.unwrap();
    let fetched = image.read_bytes();
    let options = VolumeOptions { snapshot: Some("early".into()), ..rig.options.clone() };
    let view = rig.open_with(9, options).await.unwrap();
    assert!(all(&view).await == then);
    assert!(read(&view, 127, 3).await.unwrap() == then[127 * 512..130 * 512]);
    assert!(image.read_bytes() > fetched, "nobody writes down what a view reads");
    view.close().await.unwrap();
    volume.close().await.unwrap();
    let reader = rig.open_as(10, Mode::ReadOnly).await.unwrap();
    assert!(all(&reader).await == pattern(0, SECTORS, 2));
    reader.close().await.unwrap();
}

#[tokio::test]
async fn a_volume_that_needs_its_source_cannot_be_cut() {
    let image = Fake::new(7);
    let rig = rig(7, &image).await;
    let volume = rig.open().await;
    let refused = volume.resize(SectorCount(IMAGE / 512 - 8)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy);
    volume.resize(SectorCount(IMAGE / 512 + 9)).await.unwrap();
    volume.resize(SectorCount(SECTORS + 64)).await.unwrap();
    let mut expected = image.contents();
    expected.resize((SECTORS as usize + 64) * 512, 0);
    assert!(all(&volume).await == expected);
    volume.resize(SectorCount(8)).await.unwrap();
    volume.resize(SectorCount(SECTORS)).await.unwrap();
    expected[8 * 512..].fill(0);
    volume.close().await.unwrap();
    let volume = rig.open().await;
    assert!(all(&volume).await == expected[..SECTORS as usize * 512]);
    volume.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_fetch_each_block_once_and_lose_no_write() {
    let image = Fake::new(8);
    image.state.lock().unwrap().delay = Duration::from_millis(3);
    let mut rig = rig(8, &image).await;
    rig.options.hydrate = true;
    let volume = rig.open().await;
    // Each task has every 16th run of 8 sectors for itself, so all of them meet in every block.
    let tasks = (0..16u64).map(|mine| {
        let (volume, then) = (volume.clone(), image.contents());
        tokio::spawn(async move {
            let mut rng = StdRng::seed_from_u64(mine);
            for _ in 0..40 {
                let run = rng.random_range(0..SECTORS / 128) * 128 + mine * 8;
                let now = read(&volume, run, 8).await.unwrap();
                let was = then[run as usize * 512..][..4096].to_vec();
                assert!(now == was || now == pattern(run, 8, mine), "{run}");
                write(&volume, run, &pattern(run, 8, mine)).await.unwrap();
                assert!(read(&volume, run, 8).await.unwrap() == pattern(run, 8, mine));
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    volume.hydrate(&mut |_| {}).await.unwrap();
    let mut reads = image.state.lock().unwrap().reads.clone();
    reads.sort();
    let twice = reads.windows(2).find(|two| two[0].0 + two[0].1 as u64 > two[1].0);
    assert_eq!(twice, None);
    volume.close().await.unwrap();
}

#[tokio::test]
async fn a_successor_on_this_host_goes_on() {
    for seed in 0..6 {
        let image = Fake::new(seed);
        let mut host = Host::new(seed).await;
        begin(&mut host.rig, &image).await;
        let mut model = image.contents();
        let mut rng = StdRng::seed_from_u64(seed);
        let mut volume = host.rig.open().await;
        for life in 0..5u64 {
            for stamp in 0..rng.random_range(1..25) {
                step(&volume, &mut model, &mut rng, life * 1000 + stamp).await;
            }
            volume.abandon();
            drop(volume);
            volume = host.recover(2 + life as u32).await.unwrap();
            assert!(all(&volume).await == model, "seed {seed}, life {life}");
        }
        volume.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_holds_the_marks_is_collected_too() {
    let image = Fake::new(9);
    let rig = rig(9, &image).await;
    let mut volume = rig.open().await;
    // Each block is marked in a chunk of its own, which then is mostly dead.
    for block in 0..20u64 {
        read(&volume, block * 128, 1).await.unwrap();
        let whole = CHUNK / 512;
        write(&volume, 36 * 128, &pattern(36 * 128, whole, block)).await.unwrap();
        volume.flush().await.unwrap();
    }
    volume.collect(None).await.unwrap();
    volume.close().await.unwrap();
    let fetched = image.read_bytes();
    volume = rig.open().await;
    assert!(read(&volume, 0, 20 * 128).await.unwrap() == image.contents()[..20 * 65536]);
    assert_eq!(image.read_bytes(), fetched);
    volume.close().await.unwrap();
}
