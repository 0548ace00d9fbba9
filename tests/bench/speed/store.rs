//! The engine on a real S3 server against bare requests by the same client, to a server that is near
//! and to one that is 30 ms away; reads in order also to one that is 5 ms away.

use crate::contest::{Report, Settings, take_turns};
use crate::disk::{Dice, Ground, MIB, PAGE, noise};
use crate::fault_proxy::{Distance, FaultProxy, Profile};
use crate::s3::{Bucket, S3Lab, options};
use crate::world::{arg, tool};
use bytes::Bytes;
use objblk::device::{BlockDevice, WriteFlags};
use objblk::format::VolumeId;
use objblk::format::chunk::FRAME_SIZE;
use objblk::store::metrics::MetricsStore;
use objblk::store::s3::{S3Location, S3Store};
use objblk::store::{GetRange, Key, list_all};
use objblk::units::{SECTOR_SIZE, Sector};
use objblk::volume::VolumeOptions;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Written at random.
const DISK: u64 = 10 << 30;
/// Written in order, read cold.
const COLD: u64 = 512 * MIB;
pub const CHUNK: usize = 4 << 20;
/// What one turn writes at most: the test server's disk is small.
const TURN_MAX: u64 = 3 << 30;
/// Cold reads of 4 KiB in a turn: many times as many as there are chunks, of each of which something is
/// fetched once.
const READS: usize = 2000;
/// A turn that ends when its work is done.
const UNTIL_DONE: Duration = Duration::from_secs(3600);
/// PUTs in a GiB of chunks that are full.
const FULL: f64 = ((1 << 30) / CHUNK) as f64;

const MIDDLE: Profile = away("5 ms away", 5);
const FAR: Profile = away("30 ms away", 30);

const fn away(name: &'static str, ms: u64) -> Profile {
    let distance = Distance { trip: (ms, ms), tail: (u32::MAX, ms), rate: 1 << 40 };
    Profile { name, faults: &[], deck: 1, distance: Some(distance) }
}

/// The configuration of the cluster behind the S3 server.
pub fn server_settings() -> PathBuf {
    let lab = std::env::var_os("OBJBLK_LAB").map_or("/tmp/objblk-lab".into(), PathBuf::from);
    lab.join("ceph/ceph.conf")
}

/// A bucket, the way to it, and how often it is asked.
pub struct Place {
    pub ground: Ground,
    metrics: Arc<MetricsStore>,
    pub bucket: Bucket,
    _proxy: Option<FaultProxy>,
}

impl Place {
    pub fn new(profile: Option<&'static Profile>) -> Place {
        let (runtime, lab) = (Ground::runtime(), S3Lab::get());
        let bucket = runtime.block_on(lab.bucket());
        let start = |profile| FaultProxy::start(&lab.endpoint, "127.0.0.1", profile, 1);
        let proxy = profile.map(|profile| runtime.block_on(start(profile)));
        let endpoint = proxy.as_ref().map_or(lab.endpoint.clone(), FaultProxy::endpoint);
        let keys = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| lab.var(name));
        let location = S3Location::new(&bucket.name, "pool").unwrap();
        let options = options(&endpoint, keys[0], keys[1]);
        let store = runtime.block_on(S3Store::connect(location, &options)).unwrap();
        let metrics = Arc::new(MetricsStore::new(Arc::new(store)));
        let ground = Ground { runtime, store: metrics.clone() };
        Place { ground, metrics, bucket, _proxy: proxy }
    }

    pub fn count(&self, operation: &str) -> f64 {
        self.metrics.snapshot().operations[operation].requests as f64
    }

    /// Deletes everything, and has the server free its disk now.
    pub fn empty(&self) {
        self.ground.wait(self.bucket.empty());
        let settings = server_settings();
        let collect = ["-c", arg(&settings), "gc", "process", "--include-all"];
        tool("radosgw", "radosgw-admin", &collect);
    }

    /// Bytes that the server's disk has.
    pub fn room(&self) -> u64 {
        let settings = std::fs::read_to_string(server_settings()).unwrap();
        let size = settings.lines().find_map(|line| line.strip_prefix("bluestore block size = "));
        size.unwrap().trim().parse().unwrap()
    }

    /// A volume of `size` bytes full of noise, closed.
    pub fn filled(&self, size: u64) -> VolumeId {
        let id = self.ground.create(size);
        let volume = self.ground.open(id, VolumeOptions::default());
        self.ground.wait(async {
            for at in (0..size).step_by(CHUNK) {
                let data = noise(CHUNK);
                volume.write(Sector(at / SECTOR_SIZE), &data, WriteFlags::default()).await.unwrap();
            }
            volume.close().await.unwrap();
        });
        id
    }

    /// Its chunks.
    fn chunks(&self, id: VolumeId) -> Vec<Key> {
        let prefix = format!("volumes/{id}/log/");
        let objects = self.ground.wait(list_all(&*self.ground.store, &prefix)).unwrap();
        let chunks = objects.into_iter().filter(|object| object.size >= CHUNK as u64);
        let keys: Vec<Key> = chunks.map(|object| object.key).collect();
        assert!(keys.len() as u64 * CHUNK as u64 >= COLD / 2, "few chunks are full");
        keys
    }
}

/// Has work done as often as the engine has uploads at once, until there is none or the time is up:
/// how often a second, and how often.
async fn many<F>(
    turn: Duration,
    most: usize,
    one: impl Fn(usize) -> F + Send + Sync + 'static,
) -> (f64, f64)
where
    F: Future<Output = ()> + Send,
{
    let (next, one) = (Arc::new(AtomicUsize::new(0)), Arc::new(one));
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..VolumeOptions::default().uploads {
        let (next, one) = (next.clone(), one.clone());
        workers.spawn(async move {
            let mut done = 0;
            while begun.elapsed() < turn {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= most {
                    break;
                }
                one(number).await;
                done += 1;
            }
            done
        });
    }
    let done = workers.join_all().await.into_iter().sum::<usize>() as f64;
    (done / begun.elapsed().as_secs_f64(), done)
}

fn megabytes(bytes: f64) -> f64 {
    bytes / 1e6
}

/// MB/s of random writes and a flush, and PUTs per GiB.
fn write(place: &Place, turn: Duration) -> (f64, f64) {
    let ground = &place.ground;
    let volume = ground.open(ground.create(DISK), VolumeOptions::default());
    let (noise, mut dice) = (noise(16 << 20), Dice::new(4));
    let (puts, begun) = (place.count("put"), Instant::now());
    let mut written = 0;
    ground.wait(async {
        while begun.elapsed() < turn && written < TURN_MAX {
            let page = dice.below((noise.len() / PAGE) as u64) as usize * PAGE;
            let at = Sector(dice.below(DISK / PAGE as u64) * (PAGE as u64 / SECTOR_SIZE));
            volume.write(at, &noise[page..page + PAGE], WriteFlags::default()).await.unwrap();
            written += PAGE as u64;
        }
        volume.flush().await.unwrap();
    });
    let took = begun.elapsed().as_secs_f64();
    let puts = place.count("put") - puts;
    volume.abandon();
    place.empty();
    (megabytes(written as f64) / took, puts / (written as f64 / (1u64 << 30) as f64))
}

/// MB/s of objects as large as chunks.
pub fn put(place: &Place, turn: Duration) -> f64 {
    let (store, bodies) = (place.ground.store.clone(), noise(2 * CHUNK));
    let bodies = Bytes::from(bodies);
    let most = TURN_MAX as usize / CHUNK;
    let (rate, _) = place.ground.wait(many(turn, most, move |number| {
        let from = number * 4096 % CHUNK;
        let (store, body) = (store.clone(), bodies.slice(from..from + CHUNK));
        async move {
            let key = Key::new(&format!("bare/{number}")).unwrap();
            store.put_if_absent(&key, body).await.unwrap();
        }
    }));
    place.empty();
    megabytes(rate * CHUNK as f64)
}

/// MB/s of reading all of a volume in order, one request after the other.
fn read_in_order(place: &Place, id: VolumeId) -> f64 {
    let volume = place.ground.open(id, VolumeOptions::default());
    let mut data = vec![0; MIB as usize];
    let begun = Instant::now();
    place.ground.wait(async {
        for at in (0..COLD).step_by(data.len()) {
            volume.read(Sector(at / SECTOR_SIZE), &mut data).await.unwrap();
        }
    });
    let rate = megabytes(COLD as f64) / begun.elapsed().as_secs_f64();
    place.ground.wait(volume.close()).unwrap();
    rate
}

/// MB/s of reading all of its chunks.
fn get(place: &Place, chunks: &[Key]) -> f64 {
    let (store, chunks) = (place.ground.store.clone(), Arc::new(chunks.to_vec()));
    let (rate, _) = place.ground.wait(many(UNTIL_DONE, chunks.len(), move |number| {
        let (store, chunks) = (store.clone(), chunks.clone());
        async move {
            let body = store.get(&chunks[number], GetRange::All).await.unwrap();
            assert!(body.len() >= CHUNK);
        }
    }));
    megabytes(rate * CHUNK as f64)
}

/// Reads a second of 4 KiB, no two of them in one frame, and GETs for each of them.
fn read_at_random(place: &Place, id: VolumeId) -> (f64, f64) {
    let volume = place.ground.open(id, VolumeOptions::default());
    let frames = Arc::new(Dice::new(5).shuffled(COLD / FRAME_SIZE as u64));
    let (gets, reader) = (place.count("get"), volume.clone());
    let (rate, reads) = place.ground.wait(many(UNTIL_DONE, READS, move |number| {
        let (volume, frames) = (reader.clone(), frames.clone());
        async move {
            let at = Sector(frames[number] * FRAME_SIZE as u64 / SECTOR_SIZE);
            volume.read(at, &mut [0; PAGE]).await.unwrap();
        }
    }));
    let gets = place.count("get") - gets;
    place.ground.wait(volume.close()).unwrap();
    (rate, gets / reads)
}

/// GETs a second of as much as a frame.
fn get_at_random(place: &Place, chunks: &[Key]) -> f64 {
    let (store, chunks) = (place.ground.store.clone(), Arc::new(chunks.to_vec()));
    let frames = CHUNK / FRAME_SIZE;
    let order = Arc::new(Dice::new(6).shuffled((chunks.len() * frames) as u64));
    let (rate, _) = place.ground.wait(many(UNTIL_DONE, READS, move |number| {
        let (store, chunks, at) = (store.clone(), chunks.clone(), order[number] as usize);
        async move {
            let offset = (at % frames * FRAME_SIZE) as u64;
            let range = GetRange::Part { offset, len: FRAME_SIZE as u64 };
            store.get(&chunks[at / frames], range).await.unwrap();
        }
    }));
    rate
}

/// Returns what was read.
fn reads_in_order(
    place: &Place,
    name: &str,
    rounds: usize,
    report: &mut Report,
) -> (VolumeId, Vec<Key>) {
    let id = place.filled(COLD);
    let chunks = place.chunks(id);
    let rates = take_turns(rounds, [&mut || read_in_order(place, id), &mut || get(place, &chunks)]);
    report.add(&format!("cold reads in order{name}"), "MB/s", "GETs of 4 MiB", rates);
    (id, chunks)
}

fn contest(place: &Place, name: &str, settings: &Settings, report: &mut Report) {
    let (turn, rounds) = (settings.turn(30.0), settings.rounds);
    let mut puts = Vec::new();
    let ours = &mut || {
        let (rate, each) = write(place, turn);
        puts.push(each);
        rate
    };
    let rates = take_turns(rounds, [ours, &mut || put(place, turn)]);
    report.add(&format!("4 KiB random writes{name}"), "MB/s", "PUTs of 4 MiB", rates);
    let work = format!("PUTs for them{name}, less is better");
    report.add(&work, "/GiB", "full chunks", [puts, vec![FULL; rounds]]);

    let (id, chunks) = reads_in_order(place, name, rounds, report);
    let mut gets = Vec::new();
    let ours = &mut || {
        let (rate, each) = read_at_random(place, id);
        gets.push(each);
        rate
    };
    let rates = take_turns(rounds, [ours, &mut || get_at_random(place, &chunks)]);
    report.add(&format!("cold 4 KiB random reads{name}"), "/s", "GETs of 64 KiB", rates);
    let work = format!("GETs for each of them{name}, less is better");
    report.add(&work, "", "one GET", [gets, vec![1.0; rounds]]);
    place.empty();
}

pub fn run(settings: &Settings, report: &mut Report) {
    for (name, profile, is_whole) in [
        ("", None, true),
        (", 5 ms away", Some(&MIDDLE), false),
        (", 30 ms away", Some(&FAR), true),
    ] {
        let place = Place::new(profile);
        if is_whole {
            contest(&place, name, settings, report);
        } else {
            reads_in_order(&place, name, settings.rounds, report);
        }
        place.ground.wait(place.bucket.remove());
    }
}
