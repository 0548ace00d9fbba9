//! Names of a pool's objects: made and parsed here, and nowhere else.
//!
//! ```text
//! objblk.json                                 the pool
//! names/<name>                                name -> volume id
//! imports/<name>                              an import that is not finished
//! trash/<id>-<number>                         a step of a volume's way through the trash
//! trash/<id>                                  a volume whose objects are being removed
//! bench/<run>/<number>                        a load on the bare store, for as long as it runs
//! stores/<n>                                  the stores of the pool, version n
//! moving/<run>                                who moves objects between the stores; as epochs/<epoch>
//! objblk-store.json                           which store of which pool it is, in all but the home store
//! at/<generation>/<chunk or fence>            one that has moved, see `placement`
//! mirror/<id>/state/<~n>                      which copies of a mirrored volume are complete, the newest first
//! mirror/<id>/log/.., /map/.., /<generation>/..  of a copy: as below volumes/<id>/, see `mirror`
//! volumes/<id>/volume.json                    the volume, immutable
//! volumes/<id>/keys/<~n>                      the slots of its key, if it is encrypted, the newest first
//! volumes/<id>/epochs/<epoch>                 who owns an epoch
//! volumes/<id>/placement/<epoch>              in which stores the slots of that term are
//! volumes/<id>/profile                        what is read first, a hint
//! volumes/<id>/log/<hh>/<seq>-<epoch>         chunk or fence: a slot of the log
//! volumes/<id>/map/<epoch>-<object>           packed map leaves and pages
//! volumes/<id>/checkpoints/<~seq>-<epoch>     newest first in a listing
//! volumes/<id>/snapshots/<snapshot>           a checkpoint that is kept
//! volumes/<id>/received/<snapshot>            what a snapshot is a copy of
//! volumes/<id>/kept/<snapshot>                a snapshot that expires is kept
//! volumes/<id>/replica/<~n>                   which state of a replica is complete, the newest first
//! volumes/<id>/schedules/<~n>                 which snapshots are made by themselves, the newest first
//! volumes/<id>/scrubs/<~n>                    how far the scrub is, the newest first
//! volumes/<id>/requests/<epoch>-<n>           what somebody asks the owner of that term for; see `request`
//! volumes/<id>/children/<snapshot>/<id>       a clone was made of it, and needs it
//! volumes/<id>/children/<snapshot>/closed-<epoch>-<n>  none can be made any more
//! ```
//!
//! Numbers are lower-case hexadecimal of fixed width (16 digits; numbers of map objects, of the trash, of mirrors
//! and `<n>` 8, of `stores` and `at/<generation>` 4), so byte order is numeric order; ids are UUIDs as hyphenated
//! text. `<hh>` is the low byte of the sequence number: a log spreads over 256 prefixes. `<~seq>` is `u64::MAX - seq`.

mod copies;
mod replicas;
mod requests;

pub use copies::{
    MIRROR, behind_mirror, mirror, mirror_generation, mirror_state, mirror_states, parse_mirror,
    parse_mirror_generation, parse_mirror_state,
};
pub(super) use replicas::REPLICA_STATES;
pub use replicas::{parse_replica_state, replica_state, replica_states};
pub use requests::{RequestId, RequestPart, parse_request, request, requests, requests_of};

use crate::format::{SnapshotId, VolumeId};
use crate::store::Key;
use crate::units::{Epoch, Seq};
use uuid::Uuid;

/// A map object of one owner's term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapObjectId {
    /// The term it was written in.
    pub epoch: Epoch,
    /// Its number, unique within the volume's history as seen by that owner.
    pub number: u32,
}

/// A chunk: a slot of a volume's log and the term it was written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId {
    /// The volume it was written for.
    pub volume: VolumeId,
    /// The owner's term.
    pub epoch: Epoch,
    /// The slot.
    pub seq: Seq,
}

impl ChunkId {
    /// The object's name.
    pub fn key(self) -> Key {
        slot(self.volume, self.seq, self.epoch)
    }
}

fn key(name: String) -> Key {
    Key::new(&name).expect("object names are built from plain characters")
}

/// The pool's own object.
pub fn pool() -> Key {
    key("objblk.json".into())
}

/// Prefix of the versions of the pool's stores.
pub const STORES: &str = "stores/";

/// Version `number` of the pool's stores.
pub fn stores(number: u32) -> Key {
    key(format!("{STORES}{number:04x}"))
}

/// The version that a key made by [`stores`] names.
pub fn parse_stores(key: &Key) -> Option<u32> {
    let number = u32::from_str_radix(key.as_str().strip_prefix(STORES)?, 16).ok()?;
    (stores(number) == *key).then_some(number)
}

/// Prefix of what says who moves objects between the pool's stores.
pub const MOVING: &str = "moving/";

/// Somebody moves objects between the pool's stores.
pub fn moving(run: Uuid) -> Key {
    key(format!("{MOVING}{run}"))
}

/// What says which store it is.
pub fn store() -> Key {
    key("objblk-store.json".into())
}

/// Prefix of the objects of a generation in their store.
pub fn generation(number: u32) -> String {
    if number == 0 { String::new() } else { format!("at/{number:04x}/") }
}

/// Prefix of all names.
pub const NAMES: &str = "names/";

/// Prefix of all imports that are not finished.
pub const IMPORTS: &str = "imports/";

/// Prefix of all volumes that are in the trash or being removed.
pub const TRASH: &str = "trash/";

/// Prefix of everything that belongs to a volume.
pub const VOLUMES: &str = "volumes/";

/// Length of an id as text.
const UUID_LEN: usize = 36;

/// Longest name of a volume or a snapshot, in bytes.
pub const NAME_MAX: usize = 128;

/// True for a name that a volume or a snapshot may have: 1 to 128 of `[A-Za-z0-9._-]`, the first a letter or digit.
pub fn is_valid_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    name.len() <= NAME_MAX
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(plain)
}

/// The object that gives a name to a volume; `None` where the name is not a valid one.
pub fn name(name: &str) -> Option<Key> {
    is_valid_name(name).then(|| key(format!("{NAMES}{name}")))
}

/// The import that is to get a name; `None` where the name is not a valid one.
pub fn import(name: &str) -> Option<Key> {
    is_valid_name(name).then(|| key(format!("{IMPORTS}{name}")))
}

/// The tombstone of a volume.
pub fn trash(id: VolumeId) -> Key {
    key(format!("{TRASH}{id}"))
}

/// Prefix of the volume's tombstone and of its steps through the trash.
pub fn trash_of(id: VolumeId) -> String {
    format!("{TRASH}{id}")
}

/// Step `number` of the volume's way through the trash.
pub fn trash_step(id: VolumeId, number: u32) -> Key {
    key(format!("{TRASH}{id}-{number:08x}"))
}

/// The volume and the number that a key made by [`trash_step`] names.
pub fn parse_trash_step(key: &Key) -> Option<(VolumeId, u32)> {
    let (id, number) = key.as_str().strip_prefix(TRASH)?.rsplit_once('-')?;
    let id = Some(id).filter(|id| id.len() == UUID_LEN)?;
    Some((id.parse().ok()?, hex8(number)?))
}

/// The volume that a key made by [`trash`] names.
pub fn parse_trash(key: &Key) -> Option<VolumeId> {
    let id = key.as_str().strip_prefix(TRASH)?;
    if id.len() == UUID_LEN { id.parse().ok() } else { None }
}

/// The volume that an object belongs to.
pub fn parse_volume(key: &Key) -> Option<VolumeId> {
    key.as_str().strip_prefix(VOLUMES)?.split_once('/')?.0.parse().ok()
}

/// Behind all objects of the volume in a listing, and before those of the next one.
pub fn behind_volume(id: VolumeId) -> Key {
    // '0' is the character behind '/'.
    key(format!("{VOLUMES}{id}0"))
}

/// Object `number` of a load on the bare store, which ends with it.
pub fn bench(run: Uuid, number: u64) -> Key {
    key(format!("bench/{run}/{number:016x}"))
}

/// Prefix of everything a volume owns.
pub fn volume_prefix(id: VolumeId) -> String {
    format!("volumes/{id}/")
}

/// The volume's description.
pub fn volume(id: VolumeId) -> Key {
    key(format!("volumes/{id}/volume.json"))
}

/// What is read first after an attach.
pub fn profile(id: VolumeId) -> Key {
    key(format!("volumes/{id}/profile"))
}

/// Where the slots of a volume's key are, below its prefix.
pub(super) const KEY_SETS: &str = "keys/";

/// Prefix of the slots of the volume's key.
pub fn key_sets(id: VolumeId) -> String {
    format!("volumes/{id}/{KEY_SETS}")
}

/// The slots of the volume's key, as they were set for the time `number`.
pub fn key_set(id: VolumeId, number: u64) -> Key {
    key(format!("{}{:016x}", key_sets(id), u64::MAX - number))
}

/// The number that a key made by [`key_set`] names.
pub fn parse_key_set(id: VolumeId, key: &Key) -> Option<u64> {
    Some(u64::MAX - hex16(key.as_str().strip_prefix(&key_sets(id))?)?)
}

/// Prefix of the volume's epochs.
pub fn epochs(id: VolumeId) -> String {
    format!("volumes/{id}/epochs/")
}

/// Who owns `epoch`.
pub fn epoch(id: VolumeId, epoch: Epoch) -> Key {
    key(format!("volumes/{id}/epochs/{:016x}", epoch.0))
}

/// The epoch that a key made by [`epoch`] names.
pub fn parse_epoch(id: VolumeId, key: &Key) -> Option<Epoch> {
    hex16(key.as_str().strip_prefix(&epochs(id))?).map(Epoch)
}

/// In which stores the slots of a term are.
pub fn placement(id: VolumeId, epoch: Epoch) -> Key {
    key(format!("{}{:016x}", placements(id), epoch.0))
}

/// Prefix of what says in which stores the slots of a volume's terms are.
fn placements(id: VolumeId) -> String {
    format!("volumes/{id}/placement/")
}

/// The term that a key made by [`placement`] names.
pub fn parse_placement(id: VolumeId, key: &Key) -> Option<Epoch> {
    hex16(key.as_str().strip_prefix(&placements(id))?).map(Epoch)
}

/// A slot of the log.
pub fn slot(id: VolumeId, seq: Seq, epoch: Epoch) -> Key {
    key(format!("volumes/{id}/log/{:02x}/{:016x}-{:016x}", seq.0 & 0xff, seq.0, epoch.0))
}

/// Prefix of the volume's log.
pub fn log(id: VolumeId) -> String {
    format!("volumes/{id}/log/")
}

/// Position and epoch that a key made by [`slot`] names.
pub fn parse_slot(id: VolumeId, key: &Key) -> Option<(Seq, Epoch)> {
    let (_, name) = key.as_str().rsplit_once('/')?;
    let (seq, epoch) = name.split_once('-')?;
    let (seq, epoch) = (Seq(hex16(seq)?), Epoch(hex16(epoch)?));
    (slot(id, seq, epoch) == *key).then_some((seq, epoch))
}

/// A map object.
pub fn map_object(id: VolumeId, object: MapObjectId) -> Key {
    key(format!("volumes/{id}/map/{:016x}-{:08x}", object.epoch.0, object.number))
}

/// The map object that a key made by [`map_object`] names.
pub fn parse_map_object(id: VolumeId, key: &Key) -> Option<MapObjectId> {
    let (_, name) = key.as_str().rsplit_once('/')?;
    let (epoch, number) = name.split_once('-')?;
    let number = u32::from_str_radix(number, 16).ok()?;
    let object = MapObjectId { epoch: Epoch(hex16(epoch)?), number };
    (map_object(id, object) == *key).then_some(object)
}

/// Prefix of the volume's checkpoints.
pub fn checkpoints(id: VolumeId) -> String {
    format!("volumes/{id}/checkpoints/")
}

/// The checkpoint whose next slot is `seq`, written in `epoch`.
pub fn checkpoint(id: VolumeId, seq: Seq, epoch: Epoch) -> Key {
    key(format!("volumes/{id}/checkpoints/{:016x}-{:016x}", u64::MAX - seq.0, epoch.0))
}

/// Position and epoch that a key made by [`checkpoint`] names.
pub fn parse_checkpoint(id: VolumeId, key: &Key) -> Option<(Seq, Epoch)> {
    let (seq, epoch) = key.as_str().strip_prefix(&checkpoints(id))?.split_once('-')?;
    Some((Seq(u64::MAX - hex16(seq)?), Epoch(hex16(epoch)?)))
}

/// Prefix of the volume's snapshots.
pub fn snapshots(id: VolumeId) -> String {
    format!("volumes/{id}/snapshots/")
}

/// A snapshot of the volume.
pub fn snapshot(id: VolumeId, snapshot: SnapshotId) -> Key {
    key(format!("{}{snapshot}", snapshots(id)))
}

/// Prefix of what is said of copies.
pub fn all_received(id: VolumeId) -> String {
    format!("volumes/{id}/received/")
}

/// What a snapshot of the volume is a copy of.
pub fn received(id: VolumeId, snapshot: SnapshotId) -> Key {
    key(format!("{}{snapshot}", all_received(id)))
}

/// The snapshot that a key made by [`received`] names.
pub fn parse_received(id: VolumeId, key: &Key) -> Option<SnapshotId> {
    key.as_str().strip_prefix(&all_received(id))?.parse().ok()
}

/// Prefix of what says which snapshots are kept.
pub fn all_kept(id: VolumeId) -> String {
    format!("volumes/{id}/kept/")
}

/// A snapshot that expires is kept.
pub fn kept(id: VolumeId, snapshot: SnapshotId) -> Key {
    key(format!("{}{snapshot}", all_kept(id)))
}

/// The snapshot that a key made by [`kept`] names.
pub fn parse_kept(id: VolumeId, key: &Key) -> Option<SnapshotId> {
    key.as_str().strip_prefix(&all_kept(id))?.parse().ok()
}

/// Prefix of the volume's schedules.
pub fn schedules(id: VolumeId) -> String {
    format!("volumes/{id}/schedules/")
}

/// The schedule `number` of the volume.
pub fn schedule(id: VolumeId, number: u64) -> Key {
    key(format!("{}{:016x}", schedules(id), u64::MAX - number))
}

/// The number that a key made by [`schedule`] names.
pub fn parse_schedule(id: VolumeId, key: &Key) -> Option<u64> {
    Some(u64::MAX - hex16(key.as_str().strip_prefix(&schedules(id))?)?)
}

/// Prefix of how far the scrubs of the volume are.
pub fn scrubs(id: VolumeId) -> String {
    format!("volumes/{id}/scrubs/")
}

/// How far the scrub of the volume is, as noted for the time `number`.
pub fn scrub(id: VolumeId, number: u64) -> Key {
    key(format!("{}{:016x}", scrubs(id), u64::MAX - number))
}

/// The number that a key made by [`scrub`] names.
pub fn parse_scrub(id: VolumeId, key: &Key) -> Option<u64> {
    Some(u64::MAX - hex16(key.as_str().strip_prefix(&scrubs(id))?)?)
}

/// The snapshot that a key made by [`snapshot`] names.
pub fn parse_snapshot(id: VolumeId, key: &Key) -> Option<SnapshotId> {
    let of: SnapshotId = key.as_str().strip_prefix(&snapshots(id))?.parse().ok()?;
    (snapshot(id, of) == *key).then_some(of)
}

/// Prefix of the clones of a volume's snapshots.
pub fn children(id: VolumeId) -> String {
    format!("volumes/{id}/children/")
}

/// Prefix of the clones of one snapshot.
pub fn children_of(id: VolumeId, snapshot: SnapshotId) -> String {
    format!("{}{snapshot}/", children(id))
}

/// `child` is a clone of the snapshot.
pub fn child(id: VolumeId, snapshot: SnapshotId, child: VolumeId) -> Key {
    key(format!("{}{child}", children_of(id, snapshot)))
}

const CLOSED: &str = "closed-";

/// No clones of the snapshot can be made any more: the owner of `epoch` is deleting it, in its attempt
/// `number`. Each has a name of its own, so that none is taken away for another one, however late.
pub fn closed(id: VolumeId, snapshot: SnapshotId, (epoch, number): (Epoch, u32)) -> Key {
    key(format!("{}{CLOSED}{:016x}-{number:08x}", children_of(id, snapshot), epoch.0))
}

/// True for a key made by [`closed`].
pub fn is_closed(id: VolumeId, snapshot: SnapshotId, key: &Key) -> bool {
    let rest = key.as_str().strip_prefix(&children_of(id, snapshot));
    rest.is_some_and(|rest| rest.starts_with(CLOSED))
}

/// The snapshot and the clone that a key made by [`child`] names.
pub fn parse_child(id: VolumeId, key: &Key) -> Option<(SnapshotId, VolumeId)> {
    let (snapshot, child) = key.as_str().strip_prefix(&children(id))?.split_once('/')?;
    Some((snapshot.parse().ok()?, child.parse().ok()?))
}

fn hex8(text: &str) -> Option<u32> {
    if text.len() == 8 && is_hex(text) { u32::from_str_radix(text, 16).ok() } else { None }
}

fn hex16(text: &str) -> Option<u64> {
    if text.len() == 16 && is_hex(text) { u64::from_str_radix(text, 16).ok() } else { None }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trash() {
        let id = VolumeId::from_bytes([7; 16]);
        for number in [0, 1, u32::MAX] {
            let step = trash_step(id, number);
            assert_eq!(parse_trash_step(&step), Some((id, number)));
            assert_eq!(parse_trash(&step), None);
            assert!(step.as_str().starts_with(&trash_of(id)));
        }
        assert_eq!(parse_trash(&trash(id)), Some(id));
        assert_eq!(parse_trash_step(&trash(id)), None);
        assert!(trash_step(id, 9) < trash_step(id, 16));
        assert_eq!(parse_volume(&volume(id)), Some(id));
        let next = VolumeId::from_bytes([8; 16]);
        assert!(slot(id, Seq(1), Epoch(1)) < behind_volume(id) && behind_volume(id) < volume(next));
    }

    #[test]
    fn round_trips() {
        let id = VolumeId::from_bytes([7; 16]);
        for n in [0, 1, 255, 256, u64::MAX >> 1, u64::MAX] {
            assert_eq!(parse_epoch(id, &epoch(id, Epoch(n))), Some(Epoch(n)));
            assert_eq!(parse_placement(id, &placement(id, Epoch(n))), Some(Epoch(n)));
            assert_eq!(parse_stores(&stores(n as u32)), Some(n as u32));
            let key = checkpoint(id, Seq(n), Epoch(3));
            assert_eq!(parse_checkpoint(id, &key), Some((Seq(n), Epoch(3))));
            assert_eq!(parse_schedule(id, &schedule(id, n)), Some(n));
            assert_eq!(parse_scrub(id, &scrub(id, n)), Some(n));
            assert_eq!(parse_replica_state(id, &replica_state(id, n)), Some(n));
            assert_eq!(parse_key_set(id, &key_set(id, n)), Some(n));
            let of = super::key(format!("{}epochs/1", mirror_generation(id, n as u32)));
            assert_eq!(parse_mirror_generation(id, &of), Some(n as u32));
            assert_eq!(parse_mirror_generation(id, &mirror_state(id, n as u32)), None);
            assert_eq!(parse_mirror_state(id, &mirror_state(id, n as u32)), Some(n as u32));
            assert_eq!(parse_slot(id, &slot(id, Seq(n), Epoch(4))), Some((Seq(n), Epoch(4))));
            let object = MapObjectId { epoch: Epoch(n), number: n as u32 };
            assert_eq!(parse_map_object(id, &map_object(id, object)), Some(object));
            assert_eq!(parse_slot(id, &map_object(id, object)), None);
        }
        let of = SnapshotId::from_bytes([9; 16]);
        assert_eq!(parse_snapshot(id, &snapshot(id, of)), Some(of));
        assert!(checkpoint(id, Seq(2), Epoch(1)) < checkpoint(id, Seq(1), Epoch(1)));
        assert!(schedule(id, 2) < schedule(id, 1));
        assert_eq!(
            slot(id, Seq(0x1234), Epoch(2)).as_str(),
            "volumes/07070707-0707-0707-0707-070707070707/log/34/0000000000001234-0000000000000002"
        );
    }

    #[test]
    fn names() {
        for good in ["a", "0", "data-1.img", "A_b"] {
            assert!(name(good).is_some(), "{good}");
        }
        for bad in ["", "a/b", ".a", "-a", "a b", "a@b", "ü", &"x".repeat(129)] {
            assert!(name(bad).is_none(), "{bad}");
        }
    }
}
