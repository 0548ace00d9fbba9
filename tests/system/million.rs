//! A volume of 16 TiB in a million chunks, its map at random: what it costs to attach and to use.
//!
//! Its map is made here, by the format alone; its chunks do not exist, so only what is a hole, and
//! what is written, can be read. The short version has a sixteenth of the chunks.

use crate::client::Client;
use crate::table::{print, row};
use crate::world::{Served, World, full, seed};
use objblk::format::VolumeId;
use objblk::format::checkpoint::{Checkpoint, MapObjectUse, Term};
use objblk::format::keys::{self, MapObjectId};
use objblk::format::map_object::{ItemKind, MapObjectBuilder};
use objblk::format::page::{
    CHUNKS_PER_PAGE, ChunkUse, Extent, ItemRef, LEAF_SECTORS, LEAVES_PER_PAGE, Location,
    encode_chunk_page, encode_leaf, encode_map_page,
};
use objblk::format::pool::encode_json;
use objblk::format::volume::EpochObject;
use objblk::store::Store;
use objblk::store::dir::DirStore;
use objblk::units::{Epoch, SectorCount, Seq};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::time::{Duration, Instant};

const SIZE: u64 = 16 << 40;
/// Sectors of an extent, and of the hole that its place is drawn from together with it.
const EXTENT: u64 = 128;
const GROUP: u64 = 4 * EXTENT;
const CHUNK_SECTORS: u64 = 8192;
const EPOCH: Epoch = Epoch(1);

/// A volume that is mapped from its start on: one extent in each group of four places, in chunks
/// and at offsets that have nothing to do with where it is.
struct Maker<'a> {
    world: &'a World,
    store: DirStore,
    id: VolumeId,
    builder: MapObjectBuilder,
    uses: Vec<MapObjectUse>,
    bytes: u64,
}

impl Maker<'_> {
    fn add(&mut self, kind: ItemKind, index: u64, bytes: &[u8]) -> ItemRef {
        if self.builder.len() + bytes.len() > 4 << 20 {
            self.put();
        }
        self.builder.add(kind, index, bytes)
    }

    fn put(&mut self) {
        let object = self.builder.object();
        let next = MapObjectId { epoch: EPOCH, number: object.number + 1 };
        let full = std::mem::replace(&mut self.builder, MapObjectBuilder::new(self.id, next));
        let total = full.len() as u32;
        self.uses.push(MapObjectUse { object, total, live: total });
        let body = full.finish();
        self.bytes += body.len() as u64;
        let key = keys::map_object(self.id, object);
        self.world.wait(self.store.put_if_absent(&key, body.into())).unwrap();
    }
}

/// Where in its group of four the extent of `group` is.
fn place(group: u64) -> u64 {
    (group.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 4 * EXTENT
}

/// Makes the map of `pages` pages of the volume. Returns its size.
fn make(world: &World, id: VolumeId, pages: u64) -> u64 {
    let store = DirStore::open(world.path("store")).unwrap();
    let builder = MapObjectBuilder::new(id, MapObjectId { epoch: EPOCH, number: 0 });
    let mut maker = Maker { world, store, id, builder, uses: Vec::new(), bytes: 0 };
    let groups = LEAF_SECTORS / GROUP;
    let extents = pages * LEAVES_PER_PAGE * groups;
    let chunks = extents * EXTENT / CHUNK_SECTORS;
    let leaf = |index: u64| -> Vec<Extent> {
        let extent = |group: u64| {
            // An odd factor: every place of every chunk is used once.
            let at = (index * groups + group).wrapping_mul(0x5851_f42d) % extents;
            let per_chunk = CHUNK_SECTORS / EXTENT;
            let offset = (at % per_chunk * EXTENT) as u32;
            let start = group * GROUP + place(index * groups + group);
            Extent::new(start as u32, EXTENT as u32, Location { seq: Seq(at / per_chunk), offset })
        };
        (0..groups).map(extent).collect()
    };
    let mut map_root = Vec::new();
    for page in 0..pages {
        let mut leaves = Vec::new();
        for slot in 0..LEAVES_PER_PAGE {
            let index = page * LEAVES_PER_PAGE + slot;
            let bytes = encode_leaf(&leaf(index));
            leaves.push((slot as u32, maker.add(ItemKind::Leaf, index, &bytes)));
        }
        let item = maker.add(ItemKind::MapPage, page, &encode_map_page(&leaves));
        map_root.push((page as u32, item));
    }
    let used = ChunkUse { live: CHUNK_SECTORS as u32, payload: CHUNK_SECTORS as u32 };
    let chunk_root = (0..chunks / CHUNKS_PER_PAGE).map(|page| {
        let chunks: Vec<_> = (0..CHUNKS_PER_PAGE as u32).map(|slot| (slot, used)).collect();
        (page, maker.add(ItemKind::ChunkPage, page, &encode_chunk_page(&chunks)))
    });
    let chunk_root = chunk_root.collect();
    maker.put();
    let checkpoint = Checkpoint {
        epoch: EPOCH,
        next: Seq(chunks),
        live: SectorCount(chunks * CHUNK_SECTORS),
        terms: vec![Term { first: Seq(0), epoch: EPOCH }],
        map_objects: maker.uses,
        map_root,
        chunk_root,
        ..Checkpoint::initial(id, SectorCount(SIZE / 512))
    };
    let owner = encode_json(&EpochObject {
        host: "nowhere".into(),
        boot_id: "none".into(),
        pid: 1,
        pid_start: 1,
        claimed_at_ms: 1,
        nonce: "00".into(),
        journal: None,
    });
    let body = checkpoint.encode();
    maker.bytes += body.len() as u64;
    let key = keys::checkpoint(id, checkpoint.next, EPOCH);
    world.wait(maker.store.put_if_absent(&key, body.into())).unwrap();
    world.wait(maker.store.put_if_absent(&keys::epoch(id, EPOCH), owner.into())).unwrap();
    maker.bytes
}

fn content(at: u64, round: u8) -> Vec<u8> {
    let mut bytes = vec![round; 4096];
    bytes[..8].copy_from_slice(&at.to_be_bytes());
    bytes
}

struct Figures(Vec<Vec<String>>);

impl Figures {
    /// What `work` took, and what the server has needed so far.
    fn add(&mut self, what: &str, count: usize, took: Duration, server: &Served) {
        let each = took.as_micros() / count.max(1) as u128;
        self.0.push(row(&[&what, &count, &took.as_millis(), &each, &(server.peak_kib() >> 10)]));
    }
}

fn check(client: &mut Client, places: &[u64], round: u8) {
    for at in places {
        let found = client.read(*at, 4096).unwrap();
        assert!(found == content(*at, round), "what is at {at} is not what was written");
    }
}

#[test]
fn a_million_chunks_take_little_memory_and_no_time() {
    let (pages, writes) = if full() { (256, 300_000) } else { (16, 20_000) };
    let world = World::directory();
    world.run(&["create", "disk", "--size", "16T"]);
    let id: VolumeId = world.id("disk").parse().unwrap();
    let map = make(&world, id, pages);
    let mut rng = StdRng::seed_from_u64(seed());
    let mapped = pages * LEAVES_PER_PAGE * LEAF_SECTORS * 512;
    let header = ["what", "times", "ms", "us each", "peak MiB"].map(str::to_owned).to_vec();
    let mut figures = Figures(vec![header]);

    let server = world.serve("disk", &[]);
    figures.add("attach", 1, server.took, &server);
    assert!(server.took < Duration::from_secs(1), "ready after {:?}", server.took);
    let mut client = server.connect();
    let begun = Instant::now();
    for _ in 0..writes / 10 {
        let group = rng.random_range(0..mapped / 512 / GROUP);
        let hole = group * GROUP + (place(group) + EXTENT * rng.random_range(1..4)) % GROUP;
        assert!(client.read(hole * 512, 4096).unwrap() == [0; 4096], "sector {hole} is a hole");
    }
    figures.add("read of a hole", writes / 10, begun.elapsed(), &server);
    let mut places: Vec<u64> =
        (0..writes).map(|_| rng.random_range(0..mapped / 4096) * 4096).collect();
    let begun = Instant::now();
    for at in &places {
        client.write(*at, &content(*at, 1)).unwrap();
    }
    client.flush().unwrap();
    figures.add("random write, flush", writes, begun.elapsed(), &server);
    places.shuffle(&mut rng);
    let begun = Instant::now();
    check(&mut client, &places[..writes / 10], 1);
    figures.add("read of what was written", writes / 10, begun.elapsed(), &server);
    drop(client);
    let (peak, begun) = (server.peak_kib(), Instant::now());
    let status = world.json(&["status", "disk"]);
    server.stop();
    let took = begun.elapsed().as_millis();
    figures.0.push(row(&[&"detach, with its checkpoint", &1, &took, &(took * 1000), &"-"]));

    let server = world.serve("disk", &[]);
    figures.add("attach", 1, server.took, &server);
    let begun = Instant::now();
    check(&mut server.connect(), &places[..writes / 10], 1);
    figures.add("cold read", writes / 10, begun.elapsed(), &server);
    let peak = peak.max(server.peak_kib());
    print(&format!("16 TiB, {} MiB of map, default budgets", map >> 20), &figures.0);
    println!("map: {}", status["map"]);
    server.stop();
    assert!(peak < 256 << 10, "{peak} KiB of memory were used");
}
