//! Encrypted volumes: nothing of what they hold is below the layer that seals, no damage and no exchange of
//! objects is ever read as data, and without the key nothing is touched.

use crate::compressed::{fails, noise, sample_in, verdict};
use crate::rig::{Rig, pattern, range, read, write};
use objblk::clock::SystemClock;
use objblk::device::BlockDevice;
use objblk::error::ErrorKind;
use objblk::format::frame::Compression;
use objblk::format::sealed::{self, is_sealed};
use objblk::format::volume::VolumeObject;
use objblk::format::{VolumeId, keys};
use objblk::host::Host;
use objblk::pool::{Executioner, NewVolume, Pool, VolumeName};
use objblk::seal::{KeyGiven, KeyPlace, Keyring, SealStore, Secret};
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Key, Op, Store, list_all};
use objblk::volume::{Env, Mode, Stores, Volume, VolumeOptions};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Every object below the layer that seals.
async fn below(memory: &MemoryStore) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for object in list_all(memory, "").await.unwrap() {
        let body = memory.get(&object.key, GetRange::All).await.unwrap();
        all.insert(object.key.to_string(), body.to_vec());
    }
    all
}

#[tokio::test(start_paused = true)]
async fn nothing_of_what_is_written_is_below() {
    for compression in [Compression::None, Compression::Lz4] {
        let rig = Rig::encrypted(1, 16 << 20, compression).await;
        let secret = b"what nobody else may read, at any price";
        let text: Vec<u8> = secret.iter().copied().cycle().take(1 << 20).collect();
        let volume = rig.open().await;
        write(&volume, 0, &text).await.unwrap();
        volume
            .make_snapshot(objblk::format::SnapshotId::from_bytes([4; 16]), "payday")
            .await
            .unwrap();
        let mut rng = StdRng::seed_from_u64(3);
        for at in (0..2048).step_by(24) {
            write(&volume, at, &noise(&mut rng, 8)).await.unwrap();
        }
        volume.collect(Some(100)).await.unwrap();
        volume.close().await.unwrap();
        let all = below(&rig.memory).await;
        for (name, body) in &all {
            let key = Key::new(name).unwrap();
            assert_eq!(body.starts_with(sealed::MAGIC), is_sealed(&key), "{name}");
            for plain in [&secret[..12], &b"payday"[..], &b"OBJBLKCH"[..]] {
                let found = body.windows(plain.len()).any(|bytes| bytes == plain);
                assert!(!found, "{name} holds {:?}", String::from_utf8_lossy(plain));
            }
        }
        let kinds = ["/log/", "/map/", "/checkpoints/", "/snapshots/"];
        assert!(kinds.iter().all(|kind| all.keys().any(|name| name.contains(kind))), "{all:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cold_read_is_one_request() {
    for compression in [Compression::None, Compression::Lz4] {
        let mut rig = Rig::encrypted(1, 16 << 20, compression).await;
        rig.options.cache_bytes = 0;
        let volume = rig.open().await;
        write(&volume, 0, &pattern(0, 2048, 1)).await.unwrap();
        volume.close().await.unwrap();
        let volume = rig.open().await;
        // The headers are known from here on.
        assert!(read(&volume, 0, 2048).await.unwrap() == pattern(0, 2048, 1));
        let gets = Fault::Delay { at: Moment::Before, from: Duration::ZERO, to: Duration::ZERO };
        let gets = rig.faults.add(Rule::new(gets).on(&[Op::Get]));
        for at in (0..16).map(|n| n * 128 + 8) {
            assert!(read(&volume, at, 8).await.unwrap() == pattern(at, 8, 1));
        }
        assert_eq!(gets.hits(), 16, "{compression}");
        volume.close().await.unwrap();
    }
}

/// Any one bit of any object: nobody ever reads a wrong byte, and every flip in what is sealed is told.
/// `OBJBLK_FLIPS` is how many there are.
#[tokio::test(start_paused = true)]
async fn no_flipped_bit_of_a_sealed_object_is_read() {
    let flips = std::env::var("OBJBLK_FLIPS").map_or(2000, |flips| flips.parse().unwrap());
    let (rig, pool, data) = sample_in(Rig::encrypted(1, 1 << 20, Compression::Lz4).await).await;
    assert!(!fails(&rig, &data, "before").await);
    assert_eq!(verdict(&pool).await, (true, true));
    let objects = list_all(&rig.memory, "").await.unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    let (mut failed, mut told, mut missed) = (0, 0, Vec::new());
    for flip in 0..flips {
        let key = &objects.choose(&mut rng).unwrap().key;
        let whole = rig.object(key.as_str()).await;
        if whole.is_empty() {
            continue;
        }
        let (mut body, bit) = (whole.to_vec(), rng.random_range(0..whole.len() * 8));
        body[bit / 8] ^= 1 << (bit % 8);
        rig.replace(key.as_str(), body).await;
        let what = format!("flip {flip}: bit {bit} of {key}");
        let fails = fails(&rig, &data, &what).await;
        let (sound, intact) = verdict(&pool).await;
        missed.extend(intact.then(|| what.clone()));
        let found = !sound;
        assert!(found || !fails, "{what} harms, and is told as harmless");
        // Nobody needs a chunk of which all is dead, or older checkpoints.
        let needed = ["/map/", "/keys/", "/volume.json", "/epochs/", "names/"];
        assert!(found || !needed.iter().any(|part| key.as_str().contains(part)), "{what}");
        failed += u32::from(fails);
        told += u32::from(found);
        rig.replace(key.as_str(), whole.to_vec()).await;
    }
    println!("{flips} flips: {failed} fail reads, {told} are told by a check, 0 wrong bytes");
    assert!(missed.is_empty(), "{} are not told: {missed:#?}", missed.len());
    assert!(failed > 0 && told >= failed);
    assert!(!fails(&rig, &data, "after").await);
    assert_eq!(verdict(&pool).await, (true, true));
}

/// Objects that take the place of others, lose segments, or get those of others: an error or the right bytes.
#[tokio::test(start_paused = true)]
async fn exchanged_and_cut_objects_are_never_read() {
    let (rig, _, mut data) = sample_in(Rig::encrypted(1, 1 << 20, Compression::None).await).await;
    let (volume, mut rng) = (rig.open().await, StdRng::seed_from_u64(5));
    for start in [600, 900, 1200] {
        let more = noise(&mut rng, 300);
        write(&volume, start, &more).await.unwrap();
        volume.flush().await.unwrap();
        data[start as usize * 512..][..more.len()].copy_from_slice(&more);
    }
    volume.close().await.unwrap();
    let objects = list_all(&rig.memory, "volumes/").await.unwrap();
    let sealed: Vec<&str> =
        objects.iter().filter(|o| is_sealed(&o.key)).map(|o| o.key.as_str()).collect();
    assert!(sealed.len() > 4);
    let (stride, header) = (sealed::STRIDE as usize, sealed::HEADER_LEN);
    let mut refused = 0;
    for &one in &sealed {
        let whole = rig.object(one).await.to_vec();
        let mut changed = Vec::new();
        for &other in sealed.iter().filter(|other| **other != one) {
            let other = rig.object(other).await.to_vec();
            changed.push(other.clone());
            // A segment of another object, where both have it.
            if whole.len().min(other.len()) >= header + stride {
                let mut mixed = whole.clone();
                mixed[header..header + stride].copy_from_slice(&other[header..header + stride]);
                changed.push(mixed);
            }
        }
        let cuts = (0..).map(|n| header + n * stride).take_while(|cut| *cut < whole.len());
        changed.extend(cuts.map(|cut| whole[..cut].to_vec()));
        if whole.len() >= header + 2 * stride {
            let mut swapped = whole.clone();
            let (first, second) = swapped[header..header + 2 * stride].split_at_mut(stride);
            first.swap_with_slice(second);
            changed.push(swapped);
        }
        for body in changed {
            rig.replace(one, body).await;
            refused += u32::from(fails(&rig, &data, one).await);
        }
        rig.replace(one, whole).await;
    }
    assert!(refused > 20, "{refused}");
    assert!(!fails(&rig, &data, "after").await);
}

/// A damaged segment hurts the frames that are in it, and no others.
#[tokio::test(start_paused = true)]
async fn a_damaged_segment_hurts_its_frames() {
    let mut rig = Rig::encrypted(1, 16 << 20, Compression::None).await;
    rig.options.cache_bytes = 0;
    let volume = rig.open().await;
    write(&volume, 0, &pattern(0, 512, 1)).await.unwrap();
    volume.close().await.unwrap();
    let mut chunks = rig.objects("log/").await;
    chunks.sort_by_key(|name| name.rsplit('/').next().map(str::to_owned));
    let mut body = rig.object(&chunks[1]).await.to_vec();
    // In the middle of the third frame of four.
    let at = sealed::HEADER_LEN + 20 * sealed::STRIDE as usize + 100;
    body[at] ^= 1;
    rig.replace(&chunks[1], body).await;
    let volume = rig.open().await;
    for frame in 0..4 {
        let found = read(&volume, frame * 128, 128).await;
        match frame {
            2 => drop(found.unwrap_err()),
            _ => assert!(found.unwrap() == pattern(frame * 128, 128, 1), "frame {frame}"),
        }
    }
    volume.close().await.unwrap();
}

/// A pool over one memory, for who has what is `given`.
async fn pool(memory: &MemoryStore, given: Option<KeyGiven>) -> (Pool, Stores) {
    let ring = Arc::new(Keyring::default());
    let random = StdRng::seed_from_u64(9);
    let store: Arc<dyn Store> =
        Arc::new(SealStore::new(Arc::new(memory.clone()), ring.clone(), random));
    let opened = match memory.head(&keys::pool()).await {
        Ok(_) => Pool::open(store.clone()).await.unwrap(),
        Err(_) => Pool::init(store.clone(), false).await.unwrap(),
    };
    (opened.with_ring(ring).with_given(given), Stores::one(store))
}

async fn open(stores: &Stores, id: VolumeId) -> objblk::error::Result<Volume> {
    let env = Env { runtime: tokio::runtime::Handle::current(), clock: Arc::new(SystemClock) };
    let options = VolumeOptions::default();
    Volume::open(env, stores.clone(), id, crate::rig::owner(1), options).await
}

fn key_file(folder: &tempfile::TempDir, name: &str, byte: u8) -> (PathBuf, KeyGiven) {
    let path = folder.path().join(name);
    std::fs::write(&path, [byte; 32]).unwrap();
    (path.clone(), KeyGiven::from_place(KeyPlace::File(path)))
}

#[tokio::test]
async fn who_has_no_key_touches_nothing() {
    let (memory, folder) = (MemoryStore::new(), tempfile::tempdir().unwrap());
    let (_, right) = key_file(&folder, "right", 1);
    let (_, wrong) = key_file(&folder, "wrong", 2);
    let passphrase = KeyGiven::answered(Secret::new(b"correct horse".to_vec()));
    let name: VolumeName = "v".parse().unwrap();
    let (owner, stores) = pool(&memory, None).await;
    let lock = right.material("v").unwrap();
    let new = NewVolume::of_size(1 << 20);
    let id = owner.create_locked(&name, new, None, Some(&lock)).await.unwrap();
    // Even one to which nothing was ever written, of which nothing is sealed yet.
    for written in [false, true] {
        if written {
            let volume = open(&stores, id).await.unwrap();
            write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
            volume.close().await.unwrap();
        }
        let before = below(&memory).await;
        for (given, kind) in [
            (None, ErrorKind::Usage),
            (Some(wrong.clone()), ErrorKind::Failed),
            (Some(passphrase.clone()), ErrorKind::Failed),
        ] {
            let (pool, stores) = pool(&memory, given.clone()).await;
            let looked = pool.lookup(&name).await;
            assert_eq!(looked.is_ok(), given.is_none());
            let opened = open(&stores, id).await.unwrap_err();
            assert_eq!(opened.kind(), ErrorKind::Usage, "{opened}");
            assert!(opened.to_string().contains("--key-file"), "{opened}");
            let by = Executioner {
                env: Env {
                    runtime: tokio::runtime::Handle::current(),
                    clock: Arc::new(SystemClock),
                },
                stores,
                host: Host::local().unwrap(),
                force: false,
            };
            let refused = pool.delete(&name, Duration::ZERO, &by).await.unwrap_err();
            assert_eq!(refused.kind(), kind, "{refused}");
            assert!(!pool.list().await.unwrap()[0].is_usable());
            assert!(below(&memory).await == before, "something was touched");
        }
    }
    let (pool, stores) = pool(&memory, Some(right)).await;
    pool.lookup(&name).await.unwrap();
    let volume = open(&stores, id).await.unwrap();
    assert!(read(&volume, 0, 8).await.unwrap() == pattern(0, 8, 1));
    volume.discard(range(0, 8)).await.unwrap();
    volume.close().await.unwrap();
}

/// Slots are added, changed and removed; who has one opens the volume, and its clone by those of that time.
#[tokio::test]
async fn slots_open_the_volume_for_as_long_as_they_are_there() {
    let (memory, folder) = (MemoryStore::new(), tempfile::tempdir().unwrap());
    let ((_, first), (_, second)) = (key_file(&folder, "a", 1), key_file(&folder, "b", 2));
    let (name, clone): (VolumeName, VolumeName) = ("v".parse().unwrap(), "c".parse().unwrap());
    let (owner, stores) = pool(&memory, None).await;
    let lock = first.material("v").unwrap();
    let new = NewVolume::of_size(1 << 20);
    let id = owner.create_locked(&name, new, None, Some(&lock)).await.unwrap();
    let volume = open(&stores, id).await.unwrap();
    write(&volume, 0, &pattern(0, 8, 1)).await.unwrap();
    volume.make_snapshot(objblk::format::SnapshotId::from_bytes([4; 16]), "s").await.unwrap();
    volume.close().await.unwrap();
    let copied = owner.clone_volume(&name, "s", &clone).await.unwrap();
    let begun = open(&stores, copied).await.unwrap();
    write(&begun, 8, &pattern(8, 8, 2)).await.unwrap();
    begun.close().await.unwrap();
    // From `first` to `second`.
    let slots = owner.key_slots("v", id).await.unwrap();
    let (key, number) = owner.open_slots("v", &slots, lock.clone()).await.unwrap();
    let what = (key, slots.set.key);
    let slot = owner.make_slot(what, (7, "b".into()), second.material("v").unwrap()).await;
    let mut set = slots.set.clone();
    set.slots.push(slot.unwrap());
    set.slots.retain(|slot| slot.number != number);
    owner.set_slots(("v", id), &slots, &set).await.unwrap();
    let late = owner.set_slots(("v", id), &slots, &set).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Busy, "{late}");
    let left = list_all(&memory, &keys::key_sets(id)).await.unwrap();
    assert_eq!(left.len(), 1, "what was removed is gone: {left:?}");
    for (given, of, opens) in [
        (&first, &name, false),
        (&second, &name, true),
        (&first, &clone, true),
        (&second, &clone, false),
    ] {
        let (pool, stores) = pool(&memory, Some(given.clone())).await;
        let found = pool.lookup(of).await;
        assert_eq!(found.is_ok(), opens, "{of} by {given:?}: {found:?}");
        let Ok((id, _)) = found else { continue };
        let volume = open(&stores, id).await.unwrap();
        assert!(read(&volume, 0, 8).await.unwrap() == pattern(0, 8, 1));
        volume.close().await.unwrap();
    }
}

/// A pool whose description of an encrypted volume lost the bit that says so: its objects are no plain ones.
#[tokio::test(start_paused = true)]
async fn a_volume_that_hides_its_encryption_is_refused() {
    let (rig, _, _) = sample_in(Rig::encrypted(1, 1 << 20, Compression::None).await).await;
    let name = keys::volume(rig.id);
    let mut description = VolumeObject::parse(&rig.object(name.as_str()).await).unwrap();
    description.features.incompat = 0;
    rig.replace(name.as_str(), objblk::format::pool::encode_json(&description)).await;
    // One without the key.
    let ring = Arc::new(Keyring::default());
    let inner = Arc::new(rig.memory.clone());
    let store = Arc::new(SealStore::new(inner, ring, StdRng::seed_from_u64(1)));
    let rig = Rig { store, ..rig };
    let mode = Mode::ReadWrite { takeover: true };
    let before = rig.objects("log/").await;
    let e = rig.open_as(3, mode).await.unwrap_err();
    assert!(e.to_string().contains("it is sealed"), "{e}");
    assert_eq!(rig.objects("log/").await, before, "no fence was put into it");
}
