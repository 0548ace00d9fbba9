//! Compressed volumes: what they take, what reading them asks of the store, and that no damage to them is
//! ever read as data.

use crate::rig::{CHUNK, Rig, pattern, range, read, write};
use objblk::device::{BlockDevice, BlockState};
use objblk::doctor::Doctor;
use objblk::format::chunk::ChunkHeader;
use objblk::format::frame::{Codec, Compression};
use objblk::format::pool::{NameObject, encode_json};
use objblk::format::record::Record;
use objblk::pool::Pool;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::{Key, Op, Store, list_all};
use objblk::volume::{Mode, Volume, VolumeOptions, compression_sample};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore, SeedableRng};
use std::time::Duration;

const ALL: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd(3)];
/// Sectors of a full chunk, and of a frame.
const FULL: u64 = CHUNK / 512;
const FRAME: u64 = 128;

/// The headers of the volume's chunks, in the order of the log.
async fn headers(rig: &Rig) -> Vec<ChunkHeader> {
    let mut headers = Vec::new();
    for name in rig.objects("log/").await {
        headers.extend(ChunkHeader::parse(&rig.object(&name).await).ok());
    }
    headers.sort_by_key(|header| header.seq);
    headers
}

pub fn noise(rng: &mut StdRng, sectors: u64) -> Vec<u8> {
    let mut data = vec![0; sectors as usize * 512];
    rng.fill_bytes(&mut data);
    data
}

/// Frames of text and of noise in turn.
fn mixed(rng: &mut StdRng, start: u64, frames: u64) -> Vec<u8> {
    let frame = |n: u64| match n % 2 {
        0 => pattern(start + n * FRAME, FRAME, 7 + n),
        _ => noise(rng, FRAME),
    };
    (0..frames).map(frame).collect::<Vec<_>>().concat()
}

#[tokio::test(start_paused = true)]
async fn what_gets_smaller_is_stored_so_and_read_by_one_request_each() {
    for compression in ALL {
        let mut rig = Rig::with(1, 16 << 20, compression).await;
        rig.options.cache_bytes = 0;
        let mut rng = StdRng::seed_from_u64(4);
        let data = mixed(&mut rng, 0, 16);
        let volume = rig.open().await;
        write(&volume, 0, &data).await.unwrap();
        volume.close().await.unwrap();
        for header in headers(&rig).await.iter().filter(|header| header.payload_sectors() > 0) {
            assert_eq!(header.frames.codec, compression.codec());
            let lens: Vec<u32> = header.frames.entries.iter().map(|e| e.encoded_len).collect();
            assert_eq!(
                (lens.len(), lens[1], lens[3]),
                (4, 65536, 65536),
                "{compression}: {lens:?}"
            );
            let is_small = lens[0] < 65536 / 3 && lens[2] < 65536 / 3;
            assert_eq!(is_small, compression != Compression::None, "{compression}: {lens:?}");
        }
        let sample = compression_sample(&rig.memory, rig.id).await.unwrap();
        assert_eq!((sample.chunks, sample.payload_bytes), (4, data.len() as u64));
        let ratio = sample.ratio().unwrap();
        let expected = if compression == Compression::None { 1.0..1.01 } else { 1.5..2.0 };
        assert!(expected.contains(&ratio), "{compression}: {ratio}");

        let gets = Fault::Delay { at: Moment::Before, from: Duration::ZERO, to: Duration::ZERO };
        let volume = rig.open().await;
        // The headers are known from here on.
        for chunk in 0..4 {
            read(&volume, chunk * FULL, 8).await.unwrap();
        }
        let gets = rig.faults.add(Rule::new(gets).on(&[Op::Get]));
        for frame in (0..16).rev() {
            let at = frame * FRAME + 40;
            let found = read(&volume, at, 8).await.unwrap();
            assert!(found == data[at as usize * 512..][..4096], "{compression}: frame {frame}");
        }
        assert_eq!(gets.hits(), 16, "{compression}");
        assert!(read(&volume, 0, 16 * FRAME).await.unwrap() == data, "{compression}");
        volume.close().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn zeros_that_are_written_take_no_space() {
    for compression in ALL {
        let rig = Rig::with(1, 16 << 20, compression).await;
        let volume = rig.open().await;
        write(&volume, 0, &pattern(0, 2 * FULL, 1)).await.unwrap();
        // Over what is stored, over what is not yet, and over nothing.
        volume.flush().await.unwrap();
        write(&volume, 8, &pattern(8, 8, 2)).await.unwrap();
        for at in (8..FULL).step_by(8) {
            write(&volume, at, &vec![0; 4096]).await.unwrap();
        }
        write(&volume, 4 * FULL, &vec![0; 1 << 20]).await.unwrap();
        // One byte is none of it.
        let mut last = vec![0; 4096];
        last[4095] = 1;
        write(&volume, 9 * FULL, &last).await.unwrap();
        let volume = match compression {
            Compression::Lz4 => volume,
            _ => {
                volume.close().await.unwrap();
                rig.open().await
            }
        };
        let mut expected = vec![0; 16 << 20];
        expected[..4096].copy_from_slice(&pattern(0, 8, 1));
        expected[CHUNK as usize..][..CHUNK as usize].copy_from_slice(&pattern(FULL, FULL, 1));
        expected[9 * CHUNK as usize + 4095] = 1;
        assert!(read(&volume, 0, 16 << 11).await.unwrap() == expected, "{compression}");
        let status = volume.block_status(range(0, 16 << 11), 100).await.unwrap();
        let data = status.iter().filter(|e| e.state == BlockState::Data);
        let data: u64 = data.map(|extent| extent.len.0).sum();
        let is_hole = compression != Compression::None;
        let expected = 8 + FULL + 8 + if is_hole { 0 } else { FULL - 8 + (2 << 10) };
        assert_eq!(data, expected, "{compression}: {status:?}");
        volume.close().await.unwrap();
        let headers = headers(&rig).await;
        let zeros = headers.iter().flat_map(|header| &header.records);
        let zeros: Vec<_> = zeros.filter(|record| matches!(record, Record::Zero(_))).collect();
        // Neighbours are one record.
        assert_eq!(zeros.len(), if is_hole { 2 } else { 0 }, "{compression}: {zeros:?}");
    }
}

/// What was written with one compression, or none, and goes on with another: each chunk says what it is.
#[tokio::test(start_paused = true)]
async fn a_volume_may_hold_chunks_of_every_codec() {
    let mut rng = StdRng::seed_from_u64(9);
    let rig = Rig::with(1, 16 << 20, Compression::None).await;
    let key = Key::new(&format!("volumes/{}/volume.json", rig.id)).unwrap();
    let mut written = Vec::new();
    for (at, compression) in (0..).zip(ALL) {
        let other = Rig::with(1, 16 << 20, compression).await;
        rig.memory.put(&key, other.object(key.as_str()).await).await.unwrap();
        let volume = rig.open().await;
        written.extend(mixed(&mut rng, at * FULL, 4));
        write(&volume, at * FULL, &written[(at * CHUNK) as usize..]).await.unwrap();
        volume.close().await.unwrap();
    }
    let codecs: std::collections::BTreeSet<u8> =
        headers(&rig).await.iter().map(|header| header.frames.codec.id()).collect();
    assert_eq!(codecs.into_iter().collect::<Vec<_>>(), [0, 1, 2]);
    // The collector moves what is left of all of them.
    let volume = rig.open().await;
    for at in (0..3 * FULL).step_by(64) {
        volume.discard(range(at, 48)).await.unwrap();
        written[at as usize * 512..][..48 * 512].fill(0);
    }
    volume.collect(Some(100)).await.unwrap();
    volume.close().await.unwrap();
    let volume = rig.open().await;
    assert!(read(&volume, 0, 3 * FULL).await.unwrap() == written);
    let codecs = headers(&rig).await.into_iter().filter(|header| header.payload_sectors() > 0);
    assert!(codecs.map(|header| header.frames.codec).all(|codec| codec == Codec::Zstd));
    volume.close().await.unwrap();
}

/// A closed volume with a snapshot, known to a pool by its name, and what it holds.
async fn sample(compression: Compression) -> (Rig, Pool, Vec<u8>) {
    sample_in(Rig::with(1, 1 << 20, compression).await).await
}

/// The same of a volume of 1 MiB.
pub async fn sample_in(rig: Rig) -> (Rig, Pool, Vec<u8>) {
    rig.memory.delete(&[Key::new("objblk.json").unwrap()]).await.unwrap();
    let pool = Pool::init(rig.store.clone(), false).await.unwrap();
    let body = encode_json(&NameObject { volume: rig.id });
    rig.memory.put(&Key::new("names/v").unwrap(), body.into()).await.unwrap();
    let volume = rig.open().await;
    let mut rng = StdRng::seed_from_u64(2);
    let mut data = mixed(&mut rng, 0, 3);
    // Short, so that as many bits as possible are of something else than noise.
    data.truncate(data.len() - 50 * 512);
    write(&volume, 0, &data).await.unwrap();
    volume.flush().await.unwrap();
    volume.discard(range(16, 8)).await.unwrap();
    data[16 * 512..24 * 512].fill(0);
    volume.close().await.unwrap();
    data.resize(1 << 20, 0);
    (rig, pool, data)
}

/// What a reader gets of the volume: right bytes or an error. True: an error.
pub async fn fails(rig: &Rig, data: &[u8], what: &str) -> bool {
    let options = VolumeOptions { mode: Mode::ReadOnly, ..rig.options.clone() };
    let Ok(volume) = rig.open_with(9, options).await else { return true };
    let mut failed = false;
    for (at, right) in (0..).step_by(FRAME as usize).zip(data.chunks(FRAME as usize * 512)) {
        match read(&volume, at, FRAME).await {
            Ok(found) => assert!(found == right, "{what}: wrong bytes from sector {at} on"),
            Err(_) => failed = true,
        }
    }
    Volume::abandon(&volume);
    failed
}

/// What the doctor says of a pool: nothing that is needed is damaged, and nothing at all is.
pub async fn verdict(pool: &Pool) -> (bool, bool) {
    // Whoever uses the pool opens it first.
    let report = match Pool::open(pool.store().clone()).await {
        Ok(_) => Doctor::new(pool, true, None).check_all().await,
        Err(e) => Err(e),
    };
    let Ok(report) = report else { return (false, false) };
    let mut spaces = report.volumes.iter().filter_map(|volume| volume.space.as_ref());
    (report.clean, report.clean && spaces.all(|space| space.damaged.objects == 0))
}

/// Whether the doctor finds every byte of a pool whole.
pub async fn examined(pool: &Pool) -> bool {
    Doctor::new(pool, true, None).check_all().await.is_ok_and(|report| report.clean)
}

/// What was overwritten and waits for its deletion is needed by nobody: damage to it is told, and is no harm.
#[tokio::test(start_paused = true)]
async fn damage_to_what_nobody_needs_is_told_as_such() {
    let mut rig = Rig::with(3, 1 << 20, Compression::None).await;
    rig.options.collection = None;
    rig.memory.delete(&[Key::new("objblk.json").unwrap()]).await.unwrap();
    let pool = Pool::init(rig.store.clone(), false).await.unwrap();
    let body = encode_json(&NameObject { volume: rig.id });
    rig.memory.put(&Key::new("names/v").unwrap(), body.into()).await.unwrap();
    let volume = rig.open().await;
    for stamp in [1, 2] {
        write(&volume, 0, &pattern(0, 128, stamp)).await.unwrap();
        volume.flush().await.unwrap();
    }
    Volume::abandon(&volume);
    assert_eq!(verdict(&pool).await, (true, true));
    let slots = list_all(&rig.memory, &objblk::format::keys::log(rig.id)).await.unwrap();
    let dead = slots.iter().find(|slot| slot.size > 64 << 10).unwrap().key.as_str();
    let mut body = rig.object(dead).await.to_vec();
    let middle = body.len() / 2;
    body[middle] ^= 1;
    rig.replace(dead, body).await;
    assert_eq!(verdict(&pool).await, (true, false));
    let unread = Doctor::new(&pool, false, None).check_all().await.unwrap();
    assert_eq!(
        unread.volumes[0].space.as_ref().unwrap().damaged.objects,
        0,
        "data was not asked for"
    );
}

/// Any one bit of any object: nobody ever reads a wrong byte, and what the volume needs is told to be
/// damaged. `OBJBLK_FLIPS` is how many there are.
#[tokio::test(start_paused = true)]
async fn no_flipped_bit_is_ever_read() {
    let flips = std::env::var("OBJBLK_FLIPS").map_or(3000, |flips| flips.parse().unwrap());
    for compression in ALL {
        let (rig, pool, data) = sample(compression).await;
        assert!(!fails(&rig, &data, "before").await);
        assert_eq!(verdict(&pool).await, (true, true));
        let objects = list_all(&rig.memory, "").await.unwrap();
        let mut rng = StdRng::seed_from_u64(7);
        let (mut read, mut checked, mut harmless, mut missed) = (0, 0, 0, Vec::new());
        for flip in 0..flips / ALL.len() {
            let key = objects.choose(&mut rng).unwrap().key.as_str();
            let whole = rig.object(key).await;
            if whole.is_empty() {
                continue;
            }
            let (mut body, bit) = (whole.to_vec(), rng.random_range(0..whole.len() * 8));
            body[bit / 8] ^= 1 << (bit % 8);
            rig.replace(key, body).await;
            let what = format!("{compression}, flip {flip}: bit {bit} of {key}");
            let failed = fails(&rig, &data, &what).await;
            let (sound, intact) = verdict(&pool).await;
            missed.extend(intact.then(|| what.clone()));
            let found = !sound;
            assert!(found || !failed, "{what} harms, and is told as harmless");
            // Every bit of these is needed, or covered by a checksum that is verified.
            let needed = ["/volume.json", "/checkpoints/", "/map/", "/epochs/", "names/"];
            let needed = needed.iter().any(|part| key.contains(part));
            assert!(found || !needed, "{what} is needed, and not told");
            read += u32::from(failed);
            checked += u32::from(found && !failed);
            harmless += u32::from(!found);
            rig.replace(key, whole.to_vec()).await;
        }
        println!(
            "{compression}: {read} fail reads, {checked} only a check tells, {harmless} harmless"
        );
        assert!(missed.is_empty(), "{} are not told: {missed:#?}", missed.len());
        assert!(read > checked / 4 && checked > 0, "{read} {checked} {harmless}");
        assert!(!fails(&rig, &data, "after").await);
        assert_eq!(verdict(&pool).await, (true, true));
    }
}
