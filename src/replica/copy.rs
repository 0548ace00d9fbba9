//! Objects from the source to the replica, as they are stored.
//!
//! What is there already is left as it is: names are never used twice, so it is the same. A chunk that is not
//! sealed is verified on the way, frame by frame; one that is damaged twice is damaged in the source. Of a mirrored volume
//! the other copy is shipped then. Where there is none, it is shipped like that, since the rest of it may be all that is
//! left: the log says so.

use super::Way;
use crate::error::Result;
use crate::format::chunk::ChunkHeader;
use crate::format::fence;
use crate::format::keys;
use crate::mutant::{self, Mutant};
use crate::store::{GetRange, Key, Store, StoreErrorKind, list_all};
use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;

/// Bytes of chunks that are under way at once, as long as that is more than a few.
const UNDER_WAY: u64 = 64 << 20;
/// Objects that one request deletes.
const DELETE_BATCH: usize = 1000;

/// What there is of a volume, by name, with the size that it is stored with.
pub(super) type Listing = BTreeMap<Key, u64>;

/// What was copied.
#[derive(Debug, Default)]
pub(super) struct Copied {
    pub objects: u64,
    pub bytes: u64,
    /// What was listed and is not in the source any more.
    pub vanished: BTreeSet<Key>,
    /// Chunks that are damaged in the source.
    pub damaged: u64,
}

enum One {
    There,
    Copied { bytes: u64, is_damaged: bool },
    Vanished,
}

impl Way {
    /// Everything that is shipped, and the states of the replica: what says who has the volume, what is read first
    /// and which snapshots are made by themselves is of the source alone.
    pub(super) async fn listing(&self, store: &dyn Store) -> Result<Listing> {
        let id = self.id();
        let all = list_all(store, &keys::volume_prefix(id)).await?;
        let prefixes = [
            keys::checkpoints(id),
            keys::log(id),
            format!("{}map/", keys::volume_prefix(id)),
            keys::snapshots(id),
            keys::all_received(id),
            keys::all_kept(id),
            keys::key_sets(id),
        ];
        let is_shipped = |key: &Key| prefixes.iter().any(|p| key.as_str().starts_with(p));
        Ok(all.into_iter().filter(|o| is_shipped(&o.key)).map(|o| (o.key, o.size)).collect())
    }

    /// Copies what `wanted` has and `there` has not, but for checkpoints; what names others comes last.
    pub(super) async fn copy_all(&self, wanted: &Listing, there: &Listing) -> Result<Copied> {
        let id = self.id();
        let lacks =
            |key: &&Key| !there.contains_key(*key) && keys::parse_checkpoint(id, key).is_none();
        let (mut chunks, others): (Vec<&Key>, Vec<&Key>) =
            wanted.keys().filter(lacks).partition(|key| keys::parse_slot(id, key).is_some());
        chunks.sort_by_key(|key| keys::parse_slot(id, key));
        let at_once = (UNDER_WAY / self.volume.chunk_size).clamp(2, 16) as usize;
        let mut copied = Copied::default();
        // What belongs to the map goes soonest, so it is first.
        for some in [others, chunks] {
            let one = |key: &Key| {
                let key = key.clone();
                async move { Ok::<_, crate::error::Error>((self.copy_one(&key).await?, key)) }
            };
            // Boxed, as the compiler cannot tell otherwise that it may be sent.
            let mut done = stream::iter(some).map(one).buffer_unordered(at_once).boxed();
            while let Some((one, key)) = done.try_next().await? {
                copied.count(one, key);
            }
        }
        Ok(copied)
    }

    /// Copies one object, whatever is listed. False: it is not in the source any more.
    pub(super) async fn copy_if_there(&self, key: &Key, copied: &mut Copied) -> Result<bool> {
        let one = self.copy_one(key).await?;
        let is_there = !matches!(one, One::Vanished);
        if is_there {
            copied.count(one, key.clone());
        }
        Ok(is_there)
    }

    async fn copy_one(&self, key: &Key) -> Result<One> {
        let Some(mut body) = self.get(key).await? else { return Ok(One::Vanished) };
        let mut damage = self.damage(key, &body);
        if damage.is_some() {
            // It may have come about on the way.
            let Some(again) = self.get(key).await? else { return Ok(One::Vanished) };
            (damage, body) = (self.damage(key, &again), again);
        }
        if damage.is_some()
            && let Some(whole) = self.get_copy(key, |body| self.damage(key, body).is_none()).await
        {
            tracing::warn!("{key} is damaged in one copy of the source: the other one is shipped");
            (damage, body) = (None, whole);
        }
        if let Some(what) = &damage {
            tracing::error!("{key} is damaged in the source, and is shipped like that: {what}");
        }
        self.pace.charge(body.len() as u64).await;
        let bytes = body.len() as u64;
        match self.target.raw.put_if_absent(key, body).await {
            Ok(()) => {}
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => return Ok(One::There),
            Err(e) => return Err(e.into()),
        }
        self.shipped.fetch_add(bytes, Relaxed);
        Ok(One::Copied { bytes, is_damaged: damage.is_some() })
    }

    /// An object of the source; `None`: no copy of it is there.
    async fn get(&self, key: &Key) -> Result<Option<Bytes>> {
        match self.source.raw.get(key, GetRange::All).await {
            Ok(body) => Ok(Some(body)),
            Err(e) if e.kind == StoreErrorKind::NotFound => Ok(self.get_copy(key, |_| true).await),
            Err(e) => Err(e.into()),
        }
    }

    /// It from one of several copies, if one that is complete will do.
    async fn get_copy(&self, key: &Key, will_do: impl Fn(&Bytes) -> bool) -> Option<Bytes> {
        for copy in self.source.raw.copies(key) {
            if let Ok(body) = copy.get(key, GetRange::All).await
                && will_do(&body)
            {
                return Some(body);
            }
        }
        None
    }

    /// Puts a checkpoint that was read before.
    pub(super) async fn put(&self, key: &Key, body: Bytes) -> Result<()> {
        match self.target.raw.put_if_absent(key, body).await {
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => Ok(()),
            put => Ok(put?),
        }
    }

    /// What is wrong with a chunk, as far as can be told without its key.
    fn damage(&self, key: &Key, body: &Bytes) -> Option<String> {
        keys::parse_slot(self.id(), key).filter(|_| !self.volume.is_encrypted())?;
        if body.starts_with(fence::MAGIC) {
            return fence::Fence::parse(body).err().map(|e| e.to_string());
        }
        let header = match ChunkHeader::parse(body) {
            Ok(header) => header,
            Err(e) => return Some(e.to_string()),
        };
        if header.object_len() != body.len() as u64 {
            return Some(format!("it has {} bytes instead of {}", body.len(), header.object_len()));
        }
        let mut rest = &body[header.header_len as usize..];
        for (number, frame) in header.frames.entries.iter().enumerate() {
            let (encoded, behind) = rest.split_at_checked(frame.encoded_len as usize)?;
            if crc32c::crc32c(encoded) != frame.crc {
                return Some(format!("frame {number} has another checksum"));
            }
            rest = behind;
        }
        None
    }

    /// Deletes of what the replica has `there` what is not `wanted`: checkpoints first, as who reads the past expects.
    pub(super) async fn delete_extra(&self, there: &Listing, wanted: &Listing) -> Result<u64> {
        let id = self.id();
        let extra = there.keys().filter(|key| !wanted.contains_key(*key)).cloned();
        let (checkpoints, others): (Vec<Key>, Vec<Key>) =
            extra.partition(|key| keys::parse_checkpoint(id, key).is_some());
        for batch in checkpoints.chunks(DELETE_BATCH).chain(others.chunks(DELETE_BATCH)) {
            self.target.raw.delete(batch).await?;
        }
        Ok((checkpoints.len() + others.len()) as u64)
    }
}

impl Copied {
    fn count(&mut self, one: One, key: Key) {
        match one {
            One::There => {}
            One::Copied { bytes, is_damaged } => {
                self.objects += 1;
                self.bytes += bytes;
                self.damaged += u64::from(is_damaged);
            }
            One::Vanished => {
                self.vanished.insert(key);
            }
        }
    }

    /// Whether nothing that was listed is missing.
    pub fn is_all(&self) -> bool {
        self.vanished.is_empty() || mutant::on(Mutant::ShippedLossIgnored)
    }
}
