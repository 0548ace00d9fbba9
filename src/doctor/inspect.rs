//! One object of a pool, decoded. Pure but for [`object`].

use super::gather::is_damage;
use crate::error::{Error, Result};
use crate::format::checkpoint::{self, Checkpoint, Garbage, Point};
use crate::format::chunk::{self, ChunkHeader};
use crate::format::fence::{self, Fence};
use crate::format::frame::frame_payload_len;
use crate::format::key_slots::KeySlots;
use crate::format::keys::{self, RequestPart};
use crate::format::map_object::{self, ItemKind, parse_directory};
use crate::format::page::{ItemRef, LEAF_SECTORS, parse_chunk_page, parse_leaf, parse_map_page};
use crate::format::pool::{
    ImportObject, NameObject, PoolObject, TombstoneObject, TrashEntry, parse_json,
};
use crate::format::profile::{self, Profile};
use crate::format::received::ReceivedObject;
use crate::format::record::Record;
use crate::format::replica::ReplicaObject;
use crate::format::request::{AnswerObject, DecisionObject, RequestObject};
use crate::format::schedule::ScheduleObject;
use crate::format::scrub::ScrubObject;
use crate::format::sealed;
use crate::format::snapshot::{self, SnapshotEntry, SnapshotObject};
use crate::format::stores::{StoresObject, TermPlacement};
use crate::format::volume::{EpochObject, VolumeObject};
use crate::format::{FormatResult, VolumeId};
use crate::store::{GetRange, Key, Store};
use crate::units::{Sector, SectorRange};
use serde::Serialize;
use serde_json::{Value, json};

/// No object of a pool is longer, in bytes.
const OBJECT_MAX: u64 = chunk::CHUNK_SIZE_MAX + chunk::HEADER_MAX as u64;

/// An object as it was found.
#[derive(Clone, Debug, Serialize)]
pub struct Inspected {
    /// Its name.
    pub object: String,
    /// What it is, or by its name should be.
    pub kind: &'static str,
    /// Its size in bytes.
    pub bytes: u64,
    /// What is wrong with it.
    pub damage: Option<String>,
    /// What it says, where it can be read.
    pub contents: Value,
}

/// Reads an object and decodes it. One that is damaged is told, and is no error.
///
/// # Errors
/// NotFound. Store. Corrupt: it is longer than any object is.
pub async fn object(store: &dyn Store, key: &Key) -> Result<Inspected> {
    let address = || crate::store::address(&store.url(), key.as_str());
    let size = match store.head(key).await {
        Ok(info) => info.size,
        Err(e) => {
            let e = Error::from(e);
            return match is_damage(&e) {
                true => Err(Error::not_found(format!("there is no object {}", address()))),
                false => Err(e),
            };
        }
    };
    if size > OBJECT_MAX {
        return Err(Error::corrupt(format!(
            "{} has {size} bytes, more than any object",
            address()
        )));
    }
    Ok(decode(key, &store.get(key, GetRange::All).await?))
}

/// Decodes the object called `key`. Any bytes give an answer.
pub fn decode(key: &Key, bytes: &[u8]) -> Inspected {
    let id = volume_of(key);
    let (kind, decoded) = match bytes.get(..8).and_then(|magic| magic.try_into().ok()) {
        Some(chunk::MAGIC) => ("chunk", decode_chunk(key, id, bytes)),
        Some(fence::MAGIC) => ("fence", decode_fence(key, id, bytes)),
        Some(checkpoint::MAGIC) => ("checkpoint", decode_checkpoint(key, id, bytes)),
        Some(snapshot::MAGIC) => ("snapshot", decode_snapshot(key, id, bytes)),
        Some(map_object::MAGIC) => ("map object", decode_map(key, id, bytes)),
        Some(profile::MAGIC) => ("profile", decode_profile(key, id, bytes)),
        Some(sealed::MAGIC) => ("sealed object", decode_sealed(bytes)),
        _ => decode_by_name(key, id, bytes),
    };
    let (contents, damage) = match decoded {
        Ok((contents, damage)) => (contents, damage),
        Err(why) => (Value::Null, Some(why.to_string())),
    };
    Inspected { object: key.to_string(), kind, bytes: bytes.len() as u64, damage, contents }
}

/// What it says, and what is wrong with parts of it.
type Decoded = FormatResult<(Value, Option<String>)>;

fn volume_of(key: &Key) -> Option<VolumeId> {
    let mut parts = key.as_str().split('/');
    (parts.next() == Some("volumes")).then(|| parts.next()?.parse().ok())?
}

/// All that can be said of one without its key.
fn decode_sealed(bytes: &[u8]) -> Decoded {
    sealed::check_header(bytes)?;
    let len = sealed::plain_len(bytes.len() as u64);
    let damage = len.is_none().then(|| "no sealed object has so many bytes".to_owned());
    Ok((json!({ "bytes_when_opened": len }), damage))
}

/// That the object is the one that its name says.
fn placed(key: &Key, own: &Key) -> Option<String> {
    (key != own).then(|| format!("it is {own}, and not what its name says"))
}

fn decode_chunk(key: &Key, _: Option<VolumeId>, bytes: &[u8]) -> Decoded {
    let header = ChunkHeader::parse(bytes)?;
    let mut offset = header.header_len as usize;
    let mut broken = Vec::new();
    let mut frames = Vec::new();
    for (index, frame) in header.frames.entries.iter().enumerate() {
        let end = offset + frame.encoded_len as usize;
        let stored = bytes.get(offset.min(bytes.len())..end.min(bytes.len())).unwrap_or_default();
        let why = header.frames.open(index, stored).err();
        frames.push(json!({
            "frame": index, "offset": offset, "length": frame.encoded_len,
            "payload": frame_payload_len(header.payload_sectors(), index),
            "crc32c": hex(frame.crc), "ok": why.is_none(),
        }));
        broken.extend(why);
        offset = end;
    }
    let own = keys::slot(header.volume, header.seq, header.epoch);
    let mut damage = placed(key, &own).or_else(|| broken.first().map(ToString::to_string));
    if damage.is_none() && header.object_len() != bytes.len() as u64 {
        damage =
            Some(format!("it has {} bytes and should have {}", bytes.len(), header.object_len()));
    }
    let records: Vec<Value> = header.records.iter().map(record).collect();
    let contents = json!({
        "volume": header.volume, "epoch": header.epoch, "seq": header.seq,
        "committed": header.committed, "sealed_at_ms": header.sealed_at_ms,
        "payload_sectors": header.payload_sectors(),
        "codec": header.frames.codec.name(), "header_bytes": header.header_len,
        "records": records, "frames": frames,
    });
    Ok((contents, damage))
}

fn record(record: &Record) -> Value {
    let run = |kind: &str, range: &SectorRange| json!({ "record": kind, "sector": range.start(), "count": range.len() });
    match record {
        Record::Data { range, offset } => json!({
            "record": "data", "sector": range.start(), "count": range.len(), "offset": offset,
        }),
        Record::Zero(range) => run("zero", range),
        Record::Trim(range) => run("trim", range),
        Record::EpochStart => json!({ "record": "epoch-start" }),
        Record::Resize(size) => json!({ "record": "resize", "sectors": size }),
        Record::Close => json!({ "record": "close" }),
        Record::SnapshotMade(id) => json!({ "record": "snapshot-made", "snapshot": id }),
        Record::SnapshotDeleted(id) => json!({ "record": "snapshot-deleted", "snapshot": id }),
        Record::RolledBack(id) => json!({ "record": "rolled-back", "snapshot": id }),
    }
}

fn decode_fence(key: &Key, _: Option<VolumeId>, bytes: &[u8]) -> Decoded {
    let fence = Fence::parse(bytes)?;
    let own = keys::slot(fence.volume, fence.seq, fence.epoch);
    let contents = json!({
        "volume": fence.volume, "epoch": fence.epoch, "seq": fence.seq,
        "next_epoch": fence.next_epoch, "owner": fence.owner,
    });
    Ok((contents, placed(key, &own)))
}

fn decode_checkpoint(key: &Key, _: Option<VolumeId>, bytes: &[u8]) -> Decoded {
    let checkpoint = Checkpoint::parse(bytes)?;
    let own = keys::checkpoint(checkpoint.volume, checkpoint.next, checkpoint.epoch);
    Ok((tell_checkpoint(&checkpoint), placed(key, &own)))
}

fn tell_checkpoint(checkpoint: &Checkpoint) -> Value {
    let garbage = |garbage: &Garbage| match garbage {
        Garbage::Slots { first, count } => json!({ "first_slot": first, "slots": count }),
        Garbage::Map(object) => json!({ "map_epoch": object.epoch, "number": object.number }),
        Garbage::Snapshot(id) => json!({ "snapshot": id }),
    };
    let page = |index: u64, reference: &ItemRef| {
        let mut told = tell_item(reference);
        told["page"] = json!(index);
        told
    };
    let of = checkpoint;
    let map_root = of.map_root.iter().map(|(index, item)| page((*index).into(), item));
    let chunk_root = of.chunk_root.iter().map(|(index, item)| page(*index, item));
    let map_objects = of.map_objects.iter().map(|used| {
        let (epoch, number) = (used.object.epoch, used.object.number);
        json!({ "epoch": epoch, "number": number, "total": used.total, "live": used.live })
    });
    let point = |point: &Point| {
        json!({
            "next": point.next, "epoch": point.epoch, "made_at_ms": point.made_at_ms,
            "freed_slots": point.freed,
        })
    };
    let terms = of.terms.iter().map(|term| json!({ "first": term.first, "epoch": term.epoch }));
    json!({
        "volume": of.volume, "epoch": of.epoch, "next": of.next, "closed": of.closed,
        "size_sectors": of.size, "live_sectors": of.live, "made_at_ms": of.made_at_ms,
        "terms": terms.collect::<Vec<_>>(),
        "map_objects": map_objects.collect::<Vec<_>>(),
        "map_root": map_root.collect::<Vec<_>>(),
        "chunk_root": chunk_root.collect::<Vec<_>>(),
        "garbage": of.garbage.iter().map(garbage).collect::<Vec<_>>(),
        "snapshots": of.snapshots.iter().map(tell_snapshot).collect::<Vec<_>>(),
        "retention_ms": of.retention_ms,
        "points": of.points.iter().map(point).collect::<Vec<_>>(),
    })
}

fn tell_item(item: &ItemRef) -> Value {
    json!({
        "map_epoch": item.object.epoch, "number": item.object.number,
        "offset": item.offset, "length": item.len, "crc32c": hex(item.crc),
    })
}

fn tell_snapshot(entry: &SnapshotEntry) -> Value {
    json!({
        "name": entry.name, "id": entry.id, "next": entry.next, "made_at_ms": entry.made_at_ms,
        "size_sectors": entry.size, "live_sectors": entry.live, "oldest": entry.oldest,
        "before": entry.before, "deleted": entry.deleted, "base": entry.base,
    })
}

fn decode_snapshot(key: &Key, _: Option<VolumeId>, bytes: &[u8]) -> Decoded {
    let object = SnapshotObject::parse(bytes)?;
    let own = keys::snapshot(object.checkpoint.volume, object.entry.id);
    let (snapshot, state) = (tell_snapshot(&object.entry), tell_checkpoint(&object.checkpoint));
    Ok((json!({ "snapshot": snapshot, "state": state }), placed(key, &own)))
}

fn decode_map(key: &Key, id: Option<VolumeId>, bytes: &[u8]) -> Decoded {
    let named = id.and_then(|id| Some((id, keys::parse_map_object(id, key)?)));
    let Some((id, object)) = named else {
        return Ok((Value::Null, Some("it is a map object, and not what its name says".into())));
    };
    let mut damage = None;
    let mut items = Vec::new();
    for entry in parse_directory(id, object, bytes)? {
        let (offset, len) = (entry.offset as usize, entry.len as usize);
        let part = bytes.get(offset..offset + len).unwrap_or_default();
        let (kind, contents) = match entry.kind {
            ItemKind::Leaf => ("leaf", tell_leaf(entry.index, part)),
            ItemKind::MapPage => ("map-page", tell_map_page(part)),
            ItemKind::ChunkPage => ("chunk-page", tell_chunk_page(part)),
        };
        let problem = contents.as_ref().err().map(ToString::to_string);
        items.push(json!({
            "item": kind, "index": entry.index, "offset": offset, "length": len,
            "crc32c": hex(crc32c::crc32c(part)), "problem": problem,
            "entries": contents.unwrap_or_default(),
        }));
        damage = damage.or(problem);
    }
    let (epoch, number) = (object.epoch, object.number);
    Ok((json!({ "volume": id, "epoch": epoch, "number": number, "items": items }), damage))
}

fn tell_leaf(index: u64, bytes: &[u8]) -> FormatResult<Vec<Value>> {
    let first = index.saturating_mul(LEAF_SECTORS);
    let tell = |extent: crate::format::page::Extent| {
        let place = extent.location();
        let sector = Sector(first.saturating_add(extent.start().into()));
        json!({ "sector": sector, "count": extent.len(), "slot": place.seq, "offset": place.offset })
    };
    Ok(parse_leaf(bytes)?.into_iter().map(tell).collect())
}

fn tell_map_page(bytes: &[u8]) -> FormatResult<Vec<Value>> {
    let tell = |(index, item): &(u32, ItemRef)| {
        let mut told = tell_item(item);
        told["leaf"] = json!(index);
        told
    };
    Ok(parse_map_page(bytes)?.iter().map(tell).collect())
}

fn tell_chunk_page(bytes: &[u8]) -> FormatResult<Vec<Value>> {
    let page = parse_chunk_page(bytes)?;
    let tell = page.iter().map(|(slot, used)| {
        json!({ "slot_in_page": slot, "live_sectors": used.live, "payload_sectors": used.payload })
    });
    Ok(tell.collect())
}

fn decode_profile(_: &Key, id: Option<VolumeId>, bytes: &[u8]) -> Decoded {
    let profile = Profile::parse(bytes)?;
    let foreign = id != Some(profile.volume);
    let damage = foreign.then(|| format!("it is of volume {}", profile.volume));
    let runs = profile.runs.iter().map(|run| json!({ "block": run.first, "count": run.count }));
    Ok((json!({ "volume": profile.volume, "runs": runs.collect::<Vec<_>>() }), damage))
}

fn decode_volume(id: VolumeId, bytes: &[u8]) -> Decoded {
    let foreign = |volume: &VolumeObject| {
        (volume.id != id).then(|| format!("it describes volume {}", volume.id))
    };
    let parsed = VolumeObject::parse(bytes);
    let damage = parsed.as_ref().ok().and_then(foreign);
    plain(parsed).map(|(contents, _)| (contents, damage))
}

fn decode_by_name(key: &Key, id: Option<VolumeId>, bytes: &[u8]) -> (&'static str, Decoded) {
    let name = key.as_str();
    if *key == keys::pool() {
        return ("pool", plain(PoolObject::parse(bytes)));
    }
    if name.starts_with(keys::NAMES) {
        return ("name", plain(parse_json::<NameObject>("name", bytes)));
    }
    if keys::parse_stores(key).is_some() {
        return ("stores", plain(StoresObject::parse(bytes)));
    }
    if name.starts_with(keys::MOVING) {
        return ("mover", plain(EpochObject::parse(bytes)));
    }
    if name.starts_with(keys::IMPORTS) {
        return ("import", plain(parse_json::<ImportObject>("import", bytes)));
    }
    if keys::parse_trash_step(key).is_some() {
        return ("trash", plain(TrashEntry::parse(bytes)));
    }
    if name.starts_with(keys::TRASH) {
        return ("tombstone", plain(parse_json::<TombstoneObject>("tombstone", bytes)));
    }
    let Some(id) = id else { return ("unknown", unknown()) };
    if *key == keys::volume(id) {
        return ("volume", decode_volume(id, bytes));
    }
    if keys::parse_epoch(id, key).is_some() {
        return ("epoch", plain(EpochObject::parse(bytes)));
    }
    if keys::parse_placement(id, key).is_some() {
        return ("placement", plain(TermPlacement::parse(bytes)));
    }
    if keys::parse_received(id, key).is_some() {
        return ("received", plain(ReceivedObject::parse(bytes)));
    }
    if keys::parse_key_set(id, key).is_some() {
        return ("key slots", plain(KeySlots::parse(bytes)));
    }
    if keys::parse_schedule(id, key).is_some() {
        return ("schedule", plain(ScheduleObject::parse(bytes)));
    }
    if keys::parse_scrub(id, key).is_some() {
        return ("scrub", plain(ScrubObject::parse(bytes)));
    }
    if keys::parse_replica_state(id, key).is_some() {
        return ("replica", plain(ReplicaObject::parse(bytes)));
    }
    if let Some((snapshot, child)) = keys::parse_child(id, key) {
        return ("child", Ok((json!({ "snapshot": snapshot, "clone": child }), None)));
    }
    // Its first bytes do not say what it is: by its name.
    if keys::parse_slot(id, key).is_some() {
        return ("chunk", decode_chunk(key, Some(id), bytes));
    }
    if keys::parse_map_object(id, key).is_some() {
        return ("map object", decode_map(key, Some(id), bytes));
    }
    if keys::parse_checkpoint(id, key).is_some() {
        return ("checkpoint", decode_checkpoint(key, Some(id), bytes));
    }
    if keys::parse_snapshot(id, key).is_some() {
        return ("snapshot", decode_snapshot(key, Some(id), bytes));
    }
    if *key == keys::profile(id) {
        return ("profile", decode_profile(key, Some(id), bytes));
    }
    decode_request(key, id, bytes)
}

fn decode_request(key: &Key, id: VolumeId, bytes: &[u8]) -> (&'static str, Decoded) {
    let Some((_, part)) = keys::parse_request(id, key) else { return ("unknown", unknown()) };
    let with = |parsed: Decoded, own: Option<Key>| {
        parsed.map(|(contents, _)| (contents, own.and_then(|own| placed(key, &own))))
    };
    match part {
        RequestPart::Asked => {
            let parsed = RequestObject::parse(bytes);
            let own = parsed.as_ref().ok().map(RequestObject::key);
            ("request", with(plain(parsed), own))
        }
        RequestPart::Decision => {
            let parsed = DecisionObject::parse(bytes);
            let own = parsed.as_ref().ok().map(DecisionObject::key);
            ("decision", with(plain(parsed), own))
        }
        RequestPart::Answer => {
            let parsed = AnswerObject::parse(bytes);
            let own = parsed.as_ref().ok().map(AnswerObject::key);
            ("answer", with(plain(parsed), own))
        }
    }
}

fn unknown() -> Decoded {
    Ok((Value::Null, None))
}

fn plain<T: Serialize>(parsed: FormatResult<T>) -> Decoded {
    let value = serde_json::to_value(parsed?).unwrap_or_default();
    Ok((value, None))
}

fn hex(crc: u32) -> String {
    format!("{crc:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::keys::MapObjectId;
    use crate::format::map_object::MapObjectBuilder;
    use crate::format::page::{Extent, Location, encode_leaf};
    use crate::units::{Epoch, Seq};
    use proptest::prelude::*;

    fn volume() -> VolumeId {
        VolumeId::from_bytes([7; 16])
    }

    fn map() -> (Key, Vec<u8>) {
        let object = MapObjectId { epoch: Epoch(1), number: 2 };
        let mut builder = MapObjectBuilder::new(volume(), object);
        let leaf = encode_leaf(&[Extent::new(8, 8, Location { seq: Seq(3), offset: 1 })]);
        builder.add(ItemKind::Leaf, 1, &leaf);
        // No volume has it; its bytes are right.
        builder.add(ItemKind::Leaf, u64::MAX, &leaf);
        builder.add(ItemKind::ChunkPage, 0, &[1, 2, 3]);
        (keys::map_object(volume(), object), builder.finish())
    }

    #[test]
    fn a_map_object_is_decoded_as_far_as_it_is_whole() {
        let (key, bytes) = map();
        let found = decode(&key, &bytes);
        assert_eq!(found.kind, "map object");
        assert!(found.damage.is_some_and(|why| why.contains("chunk page ends inside")));
        let entries = &found.contents["items"][0]["entries"];
        assert_eq!(entries[0], json!({ "sector": 131_080, "count": 8, "slot": 3, "offset": 1 }));
        let elsewhere = decode(&keys::profile(volume()), &bytes);
        assert!(elsewhere.damage.is_some_and(|why| why.contains("not what its name says")));
    }

    proptest! {
        /// Whatever the bytes are, and whatever the name.
        #[test]
        fn decoding_is_total(
            which in 0usize..13,
            magic in 0usize..8,
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let id = volume();
            let names = [
                keys::pool(), keys::volume(id), keys::profile(id), keys::trash(id),
                keys::epoch(id, Epoch(1)), keys::slot(id, Seq(1), Epoch(1)), map().0,
                keys::checkpoint(id, Seq(1), Epoch(1)),
                keys::snapshot(id, crate::format::SnapshotId::from_bytes([1; 16])),
                keys::child(id, crate::format::SnapshotId::from_bytes([1; 16]), id),
                keys::key_set(id, 1), keys::name("a").unwrap(), Key::new("bench/a").unwrap(),
            ];
            let magics = [
                chunk::MAGIC, fence::MAGIC, checkpoint::MAGIC, snapshot::MAGIC, map_object::MAGIC,
                profile::MAGIC, sealed::MAGIC,
            ];
            if let Some(magic) = magics.get(magic) {
                bytes.splice(0..0, magic.iter().copied());
            }
            let found = decode(&names[which], &bytes);
            prop_assert_eq!(found.bytes, bytes.len() as u64);
        }

        /// One bit of a whole object.
        #[test]
        fn no_flip_stops_it(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let (key, mut bytes) = map();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            decode(&key, &bytes);
        }
    }
}
