//! Space: what a checkpoint says about chunks and map objects, against a recount.
//!
//! A store that remembers every slot of the log that was ever put gives a second reading of the
//! volume: all records, in the order of the log, in a range map. The checkpoint's tree must say
//! the same, its live counts must be the recount's, and what nobody needs must be garbage or gone.

use crate::extents::{Extents, Place, live};
use crate::rig::{Rig, pattern, range, write};
use async_trait::async_trait;
use bytes::Bytes;
use objblk::device::{BlockDevice, ZeroFlags};
use objblk::format::checkpoint::{Checkpoint, Garbage};
use objblk::format::chunk::ChunkHeader;
use objblk::format::fence::{self, Fence};
use objblk::format::keys::{self, MapObjectId};
use objblk::format::map_object::{check_item, parse_directory};
use objblk::format::page::{
    CHUNKS_PER_PAGE, ItemRef, LEAF_SECTORS, LEAVES_PER_PAGE, Location, parse_chunk_page,
    parse_leaf, parse_map_page,
};
use objblk::format::record::Record;
use objblk::gc::Limits;
use objblk::log::Terms;
use objblk::store::{GetRange, Key, ListPage, ObjectInfo, Store, StoreResult};
use objblk::units::{Epoch, Seq};
use objblk::volume::Volume;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

/// A store that remembers the slots of the log, and counts reads of the items of map objects.
#[derive(Clone, Debug)]
pub struct Keeper {
    inner: Arc<dyn Store>,
    slots: Arc<Mutex<BTreeMap<Key, Bytes>>>,
    items: Arc<Mutex<HashMap<(Key, u64), u64>>>,
}

impl Keeper {
    pub fn new(inner: Arc<dyn Store>) -> Keeper {
        Keeper { inner, slots: Arc::default(), items: Arc::default() }
    }

    /// Items that were read, and how often one was that had been read before.
    pub fn item_reads(&self) -> (u64, u64) {
        let items = self.items.lock().unwrap();
        (items.len() as u64, items.values().map(|reads| reads - 1).sum())
    }
}

#[async_trait]
impl Store for Keeper {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        if let GetRange::Part { offset, .. } = range
            && key.as_str().contains("/map/")
        {
            *self.items.lock().unwrap().entry((key.clone(), offset)).or_default() += 1;
        }
        self.inner.get(key, range).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.inner.put_if_absent(key, body.clone()).await?;
        if key.as_str().contains("/log/") {
            self.slots.lock().unwrap().insert(key.clone(), body);
        }
        Ok(())
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.inner.put(key, body).await
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        self.inner.delete(keys).await
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        self.inner.head(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        self.inner.list(prefix, after, limit).await
    }
}

/// Sectors of the volume: it spans three leaves, the last one in part.
const SECTORS: u64 = 2 * LEAF_SECTORS + 5000;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    Discard(u64, u64),
    Zero(u64, u64),
    Flush,
    /// Waits until a checkpoint was made because of its age.
    Age,
    Reopen,
    /// The owner dies, another takes over.
    Die,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = prop_oneof![
        0..400u64,
        LEAF_SECTORS - 200..LEAF_SECTORS + 200,
        2 * LEAF_SECTORS - 100..SECTORS - 1,
    ];
    let run = (at, prop_oneof![4 => 1u64..64, 1 => 1u64..700])
        .prop_map(|(at, len)| (at, len.min(SECTORS - at)));
    let long = prop_oneof![3 => run.clone(), 1 => (0..SECTORS).prop_map(|at| (at, SECTORS - at))];
    let step = prop_oneof![
        24 => run.prop_map(|(at, len)| Step::Write(at, len)),
        4 => long.clone().prop_map(|(at, len)| Step::Discard(at, len)),
        2 => long.prop_map(|(at, len)| Step::Zero(at, len)),
        3 => Just(Step::Flush),
        2 => Just(Step::Age),
        2 => Just(Step::Reopen),
        1 => Just(Step::Die),
    ];
    prop::collection::vec(step, 1..70)
}

/// A volume whose checkpoints are audited.
struct Audited {
    rig: Rig,
    keeper: Keeper,
    volume: Volume,
    /// Sectors that hold data, by what the host did.
    host: rangemap::RangeSet<u64>,
}

impl Audited {
    async fn new(collected: bool) -> Audited {
        let mut rig = Rig::new(1, SECTORS * 512).await;
        (rig.options.checkpoint_extents, rig.options.checkpoint_slots) = (100_000, 100_000);
        // Whatever can be moved is moved.
        let eager = Limits { bound_percent: 100, slack_bytes: 0, ..Limits::default() };
        rig.options.collection = collected.then_some(eager);
        let keeper = Keeper::new(rig.store.clone());
        rig.store = Arc::new(keeper.clone());
        let volume = rig.open().await;
        Audited { rig, keeper, volume, host: rangemap::RangeSet::new() }
    }

    async fn step(&mut self, step: &Step, stamp: u64) {
        match *step {
            Step::Write(at, len) => {
                write(&self.volume, at, &pattern(at, len, stamp)).await.unwrap();
                self.host.insert(at..at + len);
            }
            Step::Discard(at, len) => {
                self.volume.discard(range(at, len)).await.unwrap();
                self.host.remove(at..at + len);
            }
            Step::Zero(at, len) => {
                let flags = ZeroFlags { may_unmap: true, fua: false };
                self.volume.write_zeroes(range(at, len), flags).await.unwrap();
                self.host.remove(at..at + len);
            }
            Step::Flush => self.volume.flush().await.unwrap(),
            Step::Age => {
                tokio::time::sleep(self.rig.options.checkpoint_after * 2).await;
                self.audit(true).await;
            }
            Step::Reopen => {
                self.volume.close().await.unwrap();
                self.audit(true).await;
                self.volume = self.rig.open().await;
                self.audit(true).await;
            }
            Step::Die => {
                // Flushed, so that the host's view stays what the volume is.
                self.volume.flush().await.unwrap();
                self.volume.abandon();
                self.audit(false).await;
                self.volume = self.rig.take_over(2).await;
            }
        }
    }

    /// Checks the newest checkpoint. `current`: it must hold all that the host did.
    async fn audit(&self, current: bool) {
        let names = self.rig.objects("checkpoints/").await;
        let Some(newest) = names.first() else { return };
        let checkpoint = Checkpoint::parse(&self.rig.object(newest).await).unwrap();
        let extents = self.second_reading(checkpoint.next);
        let mut uses = Uses::default();
        assert_eq!(self.tree(&checkpoint, &mut uses).await, extents, "the map");
        let counts = live(&extents);
        assert_eq!(self.census(&checkpoint, &mut uses).await, counts, "live sectors of slots");
        assert_eq!(checkpoint.live.0, counts.values().sum::<u64>(), "live sectors");
        if current {
            let held: u64 = self.host.iter().map(|run| run.end - run.start).sum();
            assert_eq!(checkpoint.live.0, held, "live sectors by what the host did");
        }
        self.check_slots(&checkpoint, &counts).await;
        self.check_map_objects(&checkpoint, uses).await;
    }

    /// The log up to `next`, from the slots that were put.
    fn second_reading(&self, next: Seq) -> Extents {
        let slots = self.keeper.slots.lock().unwrap();
        let (mut extents, mut epoch) = (Extents::new(), Epoch(0));
        for seq in (0..next.0).map(Seq) {
            let bytes = &slots[&keys::slot(self.rig.id, seq, epoch)];
            if bytes.starts_with(fence::MAGIC) {
                epoch = Fence::parse(bytes).unwrap().next_epoch;
                continue;
            }
            for record in ChunkHeader::parse(bytes).unwrap().records {
                match record {
                    Record::Data { range, offset } => {
                        let place = Place::new(range.start().0, Location { seq, offset });
                        extents.insert(range.start().0..range.end().0, place);
                    }
                    Record::Zero(range) | Record::Trim(range) => {
                        extents.remove(range.start().0..range.end().0);
                    }
                    Record::EpochStart | Record::Close => {}
                    Record::Resize(_)
                    | Record::SnapshotMade(_)
                    | Record::SnapshotDeleted(_)
                    | Record::RolledBack(_) => {
                        panic!("nobody does that to this volume")
                    }
                }
            }
        }
        extents
    }

    async fn item(&self, item: ItemRef, uses: &mut Uses) -> Bytes {
        *uses.entry(item.object).or_default() += u64::from(item.len);
        let object = self.rig.object(keys::map_object(self.rig.id, item.object).as_str()).await;
        let at = item.offset as usize;
        let bytes = object.slice(at..at + item.len as usize);
        check_item(item, &bytes).unwrap();
        bytes
    }

    async fn tree(&self, checkpoint: &Checkpoint, uses: &mut Uses) -> Extents {
        let mut extents = Extents::new();
        for (page, item) in &checkpoint.map_root {
            let leaves = parse_map_page(&self.item(*item, uses).await).unwrap();
            assert!(!leaves.is_empty(), "an empty page");
            for (leaf, item) in leaves {
                let first = (u64::from(*page) * LEAVES_PER_PAGE + u64::from(leaf)) * LEAF_SECTORS;
                let leaf = parse_leaf(&self.item(item, uses).await).unwrap();
                assert!(!leaf.is_empty(), "an empty leaf");
                for extent in leaf {
                    let run = first + u64::from(extent.start())..first + u64::from(extent.end());
                    extents.insert(run.clone(), Place::new(run.start, extent.location()));
                }
            }
        }
        extents
    }

    async fn census(&self, checkpoint: &Checkpoint, uses: &mut Uses) -> BTreeMap<u64, u64> {
        let (mut live, terms) = (BTreeMap::new(), Terms::new(checkpoint.terms.clone()));
        for (page, item) in &checkpoint.chunk_root {
            let slots = parse_chunk_page(&self.item(*item, uses).await).unwrap();
            for (slot, used) in &slots {
                let seq = Seq(page * CHUNKS_PER_PAGE + u64::from(*slot));
                let chunk =
                    self.keeper.slots.lock().unwrap()[&terms.slot_key(self.rig.id, seq)].clone();
                let payload = ChunkHeader::parse(&chunk).unwrap().payload_sectors();
                assert_eq!(used.payload, payload, "sectors in slot {seq}");
            }
            assert!(!slots.is_empty(), "an empty page");
            let first = page * CHUNKS_PER_PAGE;
            live.extend(
                slots.iter().map(|(slot, used)| (first + u64::from(*slot), u64::from(used.live))),
            );
        }
        live
    }

    /// The slots before `next` that hold fences.
    fn fences(&self, next: Seq) -> BTreeSet<u64> {
        let slots = self.keeper.slots.lock().unwrap();
        let fences = slots.values().filter_map(|bytes| Fence::parse(bytes).ok());
        fences.map(|fence| fence.seq.0).filter(|seq| *seq < next.0).collect()
    }

    /// Every slot that is needed is there, and every fence; of the others none is there that is not
    /// garbage.
    async fn check_slots(&self, checkpoint: &Checkpoint, live: &BTreeMap<u64, u64>) {
        let mut garbage = BTreeSet::new();
        for entry in &checkpoint.garbage {
            if let Garbage::Slots { first, count } = entry {
                garbage.extend(first.0..first.0 + count);
            }
        }
        let number = |name: &String| {
            let (seq, _) = name.rsplit('/').next()?.split_once('-')?;
            u64::from_str_radix(seq, 16).ok()
        };
        let names = self.rig.objects("log/").await;
        let there: BTreeSet<u64> = names.iter().map(|name| number(name).unwrap()).collect();
        let fences = self.fences(checkpoint.next);
        for seq in 0..checkpoint.next.0 {
            if fences.contains(&seq) {
                assert!(there.contains(&seq), "the fence in slot {seq} is gone");
                assert!(!garbage.contains(&seq), "the fence in slot {seq} is garbage");
                continue;
            }
            let is_live = live.get(&seq).is_some_and(|n| *n > 0);
            assert!(!is_live || there.contains(&seq), "slot {seq} is needed and gone");
            assert!(!is_live || !garbage.contains(&seq), "slot {seq} is needed and garbage");
            let leaked = !is_live && there.contains(&seq) && !garbage.contains(&seq);
            assert!(!leaked, "slot {seq} is not needed, and nobody will delete it");
        }
        assert!(garbage.iter().all(|seq| *seq < checkpoint.next.0), "garbage after the end");
    }

    /// The account of map objects equals what is referenced in them.
    async fn check_map_objects(&self, checkpoint: &Checkpoint, uses: Uses) {
        let mut account = Uses::default();
        for used in &checkpoint.map_objects {
            let bytes = self.rig.object(keys::map_object(self.rig.id, used.object).as_str()).await;
            let entries = parse_directory(self.rig.id, used.object, &bytes).unwrap();
            let total: u64 = entries.iter().map(|entry| u64::from(entry.len)).sum();
            assert_eq!(u64::from(used.total), total, "bytes of {:?}", used.object);
            account.insert(used.object, used.live.into());
        }
        assert_eq!(account, uses, "bytes of map objects that are referenced");
        let garbage = checkpoint.garbage.iter();
        let dead = garbage.filter(|g| matches!(g, Garbage::Map(id) if account.contains_key(id)));
        assert_eq!(dead.count(), 0, "map objects that are needed and garbage");
    }
}

/// Bytes of each map object that are referenced.
type Uses = BTreeMap<MapObjectId, u64>;

async fn run(steps: Vec<Step>, collected: bool) {
    let mut audited = Audited::new(collected).await;
    for (stamp, step) in (1..).zip(&steps) {
        audited.step(step, stamp).await;
    }
    audited.volume.close().await.unwrap();
    audited.audit(true).await;
    audited.volume = audited.rig.open().await;
    audited.volume.discard(range(0, SECTORS)).await.unwrap();
    audited.volume.close().await.unwrap();
    audited.host.clear();
    audited.audit(true).await;
    // What is left is the volume's description, its epochs, one checkpoint.
    assert!(audited.rig.objects("map/").await.is_empty(), "the map of an empty volume");
}

proptest! {
    #![proptest_config(crate::config(100))]

    #[test]
    fn checkpoints_account_for_all_space(steps in steps(), collected in any::<bool>()) {
        crate::block_on(run(steps, collected));
    }
}
