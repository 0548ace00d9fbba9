//! Volumes of a pool: create, look up, list, rename.

use super::imports::under_way;
use super::{PARALLEL, Pool, VolumeName, damaged, get};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::features::{Access, Features};
use crate::format::frame::Compression;
use crate::format::keys;
use crate::format::pool::{NameObject, TombstoneObject, encode_json, parse_json};
use crate::format::source::SourceObject;
use crate::format::volume::{self, VOLUME_SIZE_MAX, VOLUME_VERSION, VolumeObject};
use crate::seal::Material;
use crate::store::{Store, StoreErrorKind, list_all};
use crate::units::BlockSize;
use crate::volume::{Ownership, ownership};
use futures::future::try_join;
use futures::stream::{self, StreamExt, TryStreamExt};

/// What a volume is made with.
#[derive(Clone, Copy, Debug)]
pub struct NewVolume {
    /// Size, in bytes.
    pub size: u64,
    /// Logical block size.
    pub block_size: BlockSize,
    /// Payload of a full chunk, in bytes.
    pub chunk_size: u64,
    /// How what is written is compressed.
    pub compression: Compression,
    /// Every object of it is in two stores of the pool.
    pub mirrored: bool,
}

/// A volume and its present state.
#[derive(Clone, Debug)]
pub struct Info {
    /// What never changes about it.
    pub volume: VolumeObject,
    /// Who owns it, and what its newest checkpoint says.
    pub ownership: Ownership,
}

/// One line of a listing.
#[derive(Debug)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The volume.
    pub id: VolumeId,
    /// What was found under the name.
    pub health: Health,
}

/// What a listing found under a name.
#[derive(Debug)]
pub enum Health {
    /// A volume.
    Good(Box<Info>),
    /// A volume that is encrypted, and its key was not given, or another one.
    Locked(Box<VolumeObject>),
    /// A volume whose removal was begun and not finished.
    Deleting,
    /// An import that is not finished, from that source.
    Importing(String),
    /// Something that cannot be read.
    Damaged(Error),
}

impl Entry {
    /// It can be opened, as far as the catalogue knows.
    pub fn is_usable(&self) -> bool {
        matches!(self.health, Health::Good(_))
    }
}

impl NewVolume {
    /// One of `size` bytes, with the defaults for all else.
    pub fn of_size(size: u64) -> NewVolume {
        NewVolume {
            size,
            block_size: BlockSize::default(),
            chunk_size: 4 << 20,
            compression: Compression::Lz4,
            mirrored: false,
        }
    }

    /// Refuses what no volume may be. Errors: usage.
    pub fn validate(&self) -> Result<()> {
        let block = u64::from(self.block_size.bytes());
        if self.size == 0 {
            return Err(Error::usage("a volume cannot have size 0").hint("give it a size, as 10G"));
        }
        if self.size > VOLUME_SIZE_MAX {
            return Err(Error::usage(format!("{} bytes are too many for a volume", self.size))
                .hint("use at most 1P"));
        }
        if !volume::is_valid_size(self.size, self.block_size) {
            let message = format!("{} bytes are not whole blocks of {block} bytes", self.size);
            let near = self.size.next_multiple_of(block);
            return Err(Error::usage(message).hint(format!("use a multiple, as {near}")));
        }
        if !volume::is_valid_chunk_size(self.chunk_size) {
            let message = format!("a chunk cannot have {} bytes", self.chunk_size);
            return Err(Error::usage(message).hint("use a power of two from 256K to 64M"));
        }
        Ok(())
    }
}

impl NewVolume {
    /// Refuses a source that is larger. Errors: usage.
    pub fn can_begin_as(&self, source: &SourceObject) -> Result<()> {
        if source.size <= self.size {
            return Ok(());
        }
        let text = format!("the source has {} bytes, more than the volume", source.size);
        Err(Error::usage(text).hint("make the volume larger, or leave out its size"))
    }

    /// Its description, made now.
    pub(super) fn described(&self, id: VolumeId, source: Option<SourceObject>) -> VolumeObject {
        let mut incompat = if source.is_some() { Features::SOURCE } else { 0 };
        if self.mirrored {
            incompat |= Features::MIRRORED;
        }
        VolumeObject {
            version: VOLUME_VERSION,
            id,
            size: self.size,
            block_size: self.block_size.bytes(),
            chunk_size: self.chunk_size,
            features: Features { incompat, ..Features::default() }.compressed(self.compression),
            created_at_ms: SystemClock.now_ms(),
            ancestors: Vec::new(),
            source,
            mac: None,
        }
    }
}

impl Pool {
    /// Makes a volume called `name`. Returns its id.
    ///
    /// Errors: usage for impossible sizes; exists, and then nothing is left behind.
    pub async fn create(&self, name: &VolumeName, new: NewVolume) -> Result<VolumeId> {
        self.create_from(name, new, None).await
    }

    /// As [`Pool::create`], of a volume that begins as an image.
    ///
    /// Errors: those; usage, where the image is larger than the volume.
    pub async fn create_from(
        &self,
        name: &VolumeName,
        new: NewVolume,
        source: Option<SourceObject>,
    ) -> Result<VolumeId> {
        self.create_locked(name, new, source, None).await
    }

    /// As [`Pool::create_from`], of a volume that is encrypted if there is a `lock`, which opens the first slot
    /// of its key.
    ///
    /// Errors: those.
    pub async fn create_locked(
        &self,
        name: &VolumeName,
        new: NewVolume,
        source: Option<SourceObject>,
        lock: Option<&Material>,
    ) -> Result<VolumeId> {
        new.validate()?;
        source.iter().try_for_each(|source| new.can_begin_as(source))?;
        if get(&*self.store, &name.key()).await?.is_some() {
            return Err(name_taken(name));
        }
        let id = VolumeId::from_random(rand::random());
        let mut volume = new.described(id, source);
        match lock {
            None => put_description(&*self.store, &volume).await?,
            Some(material) => {
                volume.features.incompat |= Features::ENCRYPTED;
                let key = self.new_key(id, material).await?;
                // The description of a mirrored volume is what has everything of it put twice.
                if new.mirrored {
                    put_description(&*self.store, &volume).await?;
                    self.lay_key(id, key, material).await?;
                } else {
                    self.lay_key(id, key, material).await?;
                    put_description(&*self.store, &volume).await?;
                }
            }
        }
        let named = self.give_name(name, id).await;
        // After any other error the name may be there, or may come yet: it needs its volume.
        if named.as_ref().is_err_and(|e| e.kind() == ErrorKind::Exists)
            && let Err(e) = self.store.delete(&[keys::volume(id), keys::key_set(id, 0)]).await
        {
            tracing::warn!("{} stays behind: {e}", keys::volume(id));
        }
        named.map(|_| id)
    }

    /// The volume called `name`. Where it is encrypted and something was given to open it, it is opened.
    /// Errors: not found; busy while it is being deleted; corrupt and unsupported by its description; those of
    /// [`Pool::unlock`].
    pub async fn lookup(&self, name: &VolumeName) -> Result<(VolumeId, VolumeObject)> {
        let Some(id) = self.resolve(name).await? else {
            if let Some(import) = self.import_of(name).await? {
                let e = Error::not_found(format!("there is no volume called {name} yet"));
                return Err(e.because(under_way(name, &import)));
            }
            return Err(self.no_volume(name).await);
        };
        if self.removal_is_decided(id).await? {
            return Err(deletion_begun(name));
        }
        let volume = self.volume_object(name.as_str(), id).await?;
        self.unlock(name.as_str(), &volume).await?;
        Ok((id, volume))
    }

    /// Description and state of the volume called `name`. Errors: as [`Pool::lookup`]; corrupt
    /// where what is needed to use it cannot be read.
    pub async fn info(&self, name: &VolumeName) -> Result<Info> {
        let (id, volume) = self.lookup(name).await?;
        let ownership = ownership(&*self.store, id).await?;
        Ok(Info { volume, ownership })
    }

    /// Every name of the pool, sorted, those of unfinished deletions and imports included. Errors: the store's
    /// only; what is wrong with one volume is said in its entry.
    pub async fn list(&self) -> Result<Vec<Entry>> {
        let (names, trash) =
            try_join(async { Ok(list_all(&*self.store, keys::NAMES).await?) }, self.tombstones())
                .await?;
        let names = names.iter().filter_map(|o| o.key.as_str().strip_prefix(keys::NAMES));
        let names: Vec<VolumeName> = names.filter_map(|name| name.parse().ok()).collect();
        let deleting = |id| trash.iter().any(|(dead, _)| *dead == id);
        let entries = stream::iter(&names).map(|name| self.entry(name, deleting));
        let entries: Vec<Option<Entry>> = entries.buffered(PARALLEL).try_collect().await?;
        let mut entries: Vec<Entry> = entries.into_iter().flatten().collect();
        for (id, tombstone) in &trash {
            if !entries.iter().any(|entry| entry.id == *id) {
                let (name, id) = (tombstone.name.clone(), *id);
                entries.push(Entry { name, id, health: Health::Deleting });
            }
        }
        for (name, import) in self.imports().await? {
            if !entries.iter().any(|entry| entry.name == name.as_str()) {
                let health = Health::Importing(import.source);
                entries.push(Entry { name: name.to_string(), id: import.volume, health });
            }
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    async fn entry(
        &self,
        name: &VolumeName,
        deleting: impl Fn(VolumeId) -> bool,
    ) -> Result<Option<Entry>> {
        let found = |id, health| Some(Entry { name: name.to_string(), id, health });
        let id = match self.resolve(name).await {
            Ok(None) => return Ok(None),
            Ok(Some(id)) => id,
            Err(e) if e.kind() == ErrorKind::Store => return Err(e),
            Err(e) => return Ok(found(VolumeId::from_bytes([0; 16]), Health::Damaged(e))),
        };
        if deleting(id) {
            return Ok(found(id, Health::Deleting));
        }
        match self.look(name.as_str(), id).await {
            Ok(info) => Ok(found(id, Health::Good(Box::new(info)))),
            Err(e) if matches!(e.kind(), ErrorKind::Usage | ErrorKind::Failed) => {
                let volume = self.volume_object(name.as_str(), id).await?;
                Ok(found(
                    id,
                    match volume.is_encrypted() {
                        true => Health::Locked(Box::new(volume)),
                        false => Health::Damaged(e),
                    },
                ))
            }
            Err(e) if e.kind() == ErrorKind::Store => {
                // One that is in two stores needs both, the others do not.
                match self.volume_object(name.as_str(), id).await {
                    Ok(volume) if volume.is_mirrored() => Ok(found(id, Health::Damaged(e))),
                    _ => Err(e),
                }
            }
            Err(e) => Ok(found(id, Health::Damaged(e))),
        }
    }

    /// Description and state of a volume with or without a name; `label` is what errors call it. Errors:
    /// corrupt and unsupported by its description; usage or failed, where it is encrypted and cannot be opened
    /// without asking anybody; the store's.
    pub async fn look(&self, label: &str, id: VolumeId) -> Result<Info> {
        let volume = self.volume_object(label, id).await?;
        self.unlock_quietly(label, &volume).await?;
        let ownership = ownership(&*self.store, id).await?;
        Ok(Info { volume, ownership })
    }

    /// Gives the volume called `from` the name `to`. Errors: not found; exists; busy, where it is deleted and
    /// removed meanwhile.
    pub async fn rename(&self, from: &VolumeName, to: &VolumeName) -> Result<()> {
        let (id, _) = self.lookup(from).await?;
        if from == to {
            return Err(name_taken(to));
        }
        self.give_name(to, id).await?;
        self.drop_name(from, id).await
    }

    /// Gives a volume a name. Errors: exists, where a volume has it, or an import of another one is to get it.
    pub(super) async fn put_name(&self, name: &VolumeName, id: VolumeId) -> Result<()> {
        if let Some(import) = self.import_of(name).await?.filter(|import| import.volume != id) {
            return Err(under_way(name, &import));
        }
        let body = encode_json(&NameObject { volume: id });
        self.store.put_if_absent(&name.key(), body.into()).await.map_err(|e| match e.kind {
            StoreErrorKind::AlreadyExists => name_taken(name),
            _ => e.into(),
        })
    }

    /// The id that `name` stands for; `None` where nobody has that name.
    pub(super) async fn resolve(&self, name: &VolumeName) -> Result<Option<VolumeId>> {
        let key = name.key();
        let Some(bytes) = get(&*self.store, &key).await? else { return Ok(None) };
        let object: NameObject =
            parse_json("name", &bytes).map_err(|e| damaged(&*self.store, &key, e))?;
        Ok(Some(object.volume))
    }

    pub(super) async fn volume_object(&self, name: &str, id: VolumeId) -> Result<VolumeObject> {
        let key = keys::volume(id);
        let Some(bytes) = get(&*self.store, &key).await? else {
            let address = crate::store::address(&self.store.url(), key.as_str());
            return Err(Error::corrupt(format!("volume {name} is damaged: {address} is missing"))
                .hint(format!("remove what is left with `objblk delete {name} --force`")));
        };
        let object = VolumeObject::parse(&bytes).map_err(|e| damaged(&*self.store, &key, e))?;
        if object.id != id {
            let message = format!("{key} describes another volume, {}", object.id);
            return Err(Error::corrupt(message));
        }
        if object.features.access() == Access::None {
            let unknown = object.features.unknown();
            let message = format!("volume {name} uses features of a newer objblk: {unknown}");
            return Err(Error::new(ErrorKind::Unsupported, message).hint("upgrade objblk"));
        }
        Ok(object)
    }

    /// There is no such volume; where one of that name is in the trash, it says so.
    pub(super) async fn no_volume(&self, name: &VolumeName) -> Error {
        let text = format!("there is no volume called {name} in {}", self.store.url());
        let hint = match self.trash().await {
            Ok(trash) if trash.iter().any(|t| t.name.as_deref() == Some(name.as_str())) => {
                format!("one is in the trash: `objblk trash restore {name}` brings it back")
            }
            _ => "`objblk list` shows what there is".into(),
        };
        Error::not_found(text).hint(hint)
    }

    /// Volumes whose removal was begun and not finished.
    pub(super) async fn tombstones(&self) -> Result<Vec<(VolumeId, TombstoneObject)>> {
        let found = list_all(&*self.store, keys::TRASH).await?;
        let read = stream::iter(found).map(|object| async move {
            let id = object.key.as_str().strip_prefix(keys::TRASH).and_then(|id| id.parse().ok());
            let Some(id) = id else { return Ok::<_, Error>(None) };
            let Some(bytes) = get(&*self.store, &object.key).await? else { return Ok(None) };
            let tombstone = parse_json("tombstone", &bytes)
                .map_err(|e| damaged(&*self.store, &object.key, e))?;
            Ok(Some((id, tombstone)))
        });
        let read: Vec<Option<_>> = read.buffered(PARALLEL).try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }
}

/// Stores the description of a new volume.
pub(super) async fn put_description(store: &dyn Store, volume: &VolumeObject) -> Result<()> {
    Ok(store.put_if_absent(&keys::volume(volume.id), encode_json(volume).into()).await?)
}

pub(super) fn name_taken(name: &VolumeName) -> Error {
    Error::new(ErrorKind::Exists, format!("there is a volume called {name} already"))
        .hint("choose another name, or delete or rename that one")
}

pub(super) fn deletion_begun(name: &VolumeName) -> Error {
    let message = format!("the deletion of volume {name} was begun and not finished");
    Error::new(ErrorKind::Busy, message).hint(format!("finish it with `objblk delete {name}`"))
}
