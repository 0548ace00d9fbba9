//! Imports: volumes that are being filled, and get their name when that is done.
//!
//! ```text
//! begin     imports/<name>, which says the id, then volume.json under that id
//! finish    names/<name>                                       <- the name is the commit point
//!           then imports/<name> goes
//! delete    the volume is purged, as what is in the trash is; then imports/<name> goes
//! ```
//!
//! Whoever finishes looks, after the name is there, whether the volume is being purged or gone; whoever
//! purges looks for names after saying so: one of the two notices the other. What a crash leaves of an import is found by its
//! name: another one goes on with it, or `delete` removes it.

use super::catalogue::{name_taken, put_description};
use super::delete::Executioner;
use super::purge::Deleted;
use super::trash::{TrashState, bare};
use super::{NewVolume, PARALLEL, Pool, VolumeName, damaged, get};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::Features;
use crate::format::pool::{ImportObject, encode_json, parse_json};
use crate::format::volume::VolumeObject;
use crate::format::{VolumeId, keys};
use crate::seal::Material;
use crate::store::{StoreErrorKind, list_all};
use futures::stream::{self, StreamExt, TryStreamExt};

impl Pool {
    /// Begins an import that is to be called `name`, of the `source` that the `fingerprint` tells from
    /// others. There is no volume yet: [`Pool::import_volume`] makes it.
    ///
    /// Errors: exists, where a volume or another import has the name; the store's.
    pub async fn begin_import(
        &self,
        name: &VolumeName,
        source: String,
        fingerprint: Option<String>,
    ) -> Result<ImportObject> {
        if get(&*self.store, &name.key()).await?.is_some() {
            return Err(name_taken(name));
        }
        let import = ImportObject {
            volume: VolumeId::from_random(rand::random()),
            source,
            fingerprint,
            begun_at_ms: SystemClock.now_ms(),
        };
        let body = encode_json(&import);
        match self.store.put_if_absent(&name.import_key(), body.into()).await {
            Ok(()) => Ok(import),
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                match self.import_of(name).await? {
                    Some(import) => Err(under_way(name, &import)),
                    None => Err(Error::new(
                        ErrorKind::Busy,
                        format!("an import of {name} has just ended"),
                    )),
                }
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The import that is to be gone on with: it was begun under this name, and its volume has no name yet, or
    /// that name. `None`: a new one may begin.
    ///
    /// Errors: exists, where a volume has the name, or an import and `resume` is not wanted; corrupt; the
    /// store's.
    pub async fn import_to_resume(
        &self,
        name: &VolumeName,
        resume: bool,
    ) -> Result<Option<ImportObject>> {
        let (named, import) = (self.resolve(name).await?, self.import_of(name).await?);
        let Some(import) = import else {
            return if named.is_some() { Err(name_taken(name)) } else { Ok(None) };
        };
        match named {
            Some(id) if !resume || id != import.volume => return Err(name_taken(name)),
            None if !resume => return Err(under_way(name, &import)),
            _ => {}
        }
        let names = self.names().await?;
        let other = names.iter().find(|(n, id)| *id == import.volume && n != name.as_str());
        if let Some((other, _)) = other {
            self.forget_import(name).await?;
            let text =
                format!("the import of {name} was finished, and {name} is called {other} now");
            return Err(
                Error::new(ErrorKind::Exists, text).hint("import it anew, without --resume")
            );
        }
        Ok(Some(import))
    }

    /// The import that was begun under this name and is not finished. Errors: corrupt; the store's.
    pub async fn import_of(&self, name: &VolumeName) -> Result<Option<ImportObject>> {
        let key = name.import_key();
        let Some(bytes) = get(&*self.store, &key).await? else { return Ok(None) };
        let parsed = parse_json("import", &bytes);
        parsed.map(Some).map_err(|e| damaged(&*self.store, &key, e))
    }

    /// The volume of an import, made where it is missing; encrypted, if there is a `lock` to open the first slot
    /// of its key. It is as large as it was made at first.
    ///
    /// Errors: usage, for impossible sizes, or where it was made with others; corrupt; the store's.
    pub async fn import_volume(
        &self,
        id: VolumeId,
        new: NewVolume,
        lock: Option<&Material>,
    ) -> Result<VolumeObject> {
        new.validate()?;
        let key = keys::volume(id);
        if let Some(bytes) = get(&*self.store, &key).await? {
            let found = VolumeObject::parse(&bytes).map_err(|e| damaged(&*self.store, &key, e))?;
            let (found_is, is) = (found.features.compression(), new.compression);
            let made = (found.size, found.block_size, found.chunk_size, found_is);
            if found.is_encrypted() != lock.is_some() {
                let was = if found.is_encrypted() { "with" } else { "without" };
                return Err(Error::usage(format!("the import was begun {was} --encrypt"))
                    .hint("resume it with the same flags"));
            }
            return match made == (new.size, new.block_size.bytes(), new.chunk_size, is) {
                true => self.unlock(&id.to_string(), &found).await.map(|()| found),
                false => Err(Error::usage(format!(
                    "the import was begun with a size of {} bytes, --block-size {}, --chunk-size {} and \
                     --compress {found_is}",
                    found.size, found.block_size, found.chunk_size
                ))
                .hint("resume it with the same flags")),
            };
        }
        let mut volume = new.described(id, None);
        if let Some(material) = lock {
            volume.features.incompat |= Features::ENCRYPTED;
            let key = self.new_key(id, material).await?;
            self.lay_key(id, key, material).await?;
        }
        put_description(&*self.store, &volume).await?;
        Ok(volume)
    }

    /// Gives the volume `id`, which is complete and closed, the name that it was imported for. May be called
    /// again as long as the import is there.
    ///
    /// Errors: exists, where another volume has got the name; busy, where it was deleted meanwhile; the
    /// store's.
    pub async fn finish_import(&self, name: &VolumeName, id: VolumeId) -> Result<()> {
        match self.give_name(name, id).await {
            Err(e) if e.kind() == ErrorKind::Exists => {
                if self.resolve(name).await? != Some(id) {
                    return Err(e);
                }
            }
            done => drop(done?),
        }
        // Whoever removed it wholly has left no step in the trash that says so.
        let gone = get(&*self.store, &keys::volume(id)).await?.is_none();
        if gone || self.import_of(name).await?.is_none_or(|import| import.volume != id) {
            self.drop_name(name, id).await?;
            return Err(Error::new(ErrorKind::Busy, format!("{name} was deleted meanwhile")));
        }
        Ok(self.store.delete(&[name.import_key()]).await?)
    }

    /// The import that `delete` of this name removes. One that is complete, or whose name another volume has
    /// got, is forgotten: nobody will go on with it.
    ///
    /// Errors: corrupt; the store's.
    pub async fn import_to_delete(&self, name: &VolumeName) -> Result<Option<ImportObject>> {
        let Some(import) = self.import_of(name).await? else { return Ok(None) };
        if self.resolve(name).await?.is_none() {
            return Ok(Some(import));
        }
        self.forget_import(name).await?;
        Ok(None)
    }

    /// Removes an import that is not finished, with what it has stored.
    ///
    /// Errors: as [`Pool::purge`].
    pub async fn delete_import(
        &self,
        name: &VolumeName,
        import: &ImportObject,
        by: &Executioner,
    ) -> Result<Deleted> {
        let deleted = self.purge(&bare(import.volume, TrashState::Unfinished), by).await?;
        self.forget_import(name).await?;
        Ok(deleted)
    }

    /// Forgets an import that left nothing but its own object, or whose volume has a name by now. Errors:
    /// the store's.
    pub async fn forget_import(&self, name: &VolumeName) -> Result<()> {
        Ok(self.store.delete(&[name.import_key()]).await?)
    }

    /// Every import that is not finished, by name. What cannot be read is passed over. Errors: the store's.
    pub async fn imports(&self) -> Result<Vec<(VolumeName, ImportObject)>> {
        let found = list_all(&*self.store, keys::IMPORTS).await?;
        let names = found.iter().filter_map(|o| o.key.as_str().strip_prefix(keys::IMPORTS));
        let names: Vec<VolumeName> = names.filter_map(|name| name.parse().ok()).collect();
        let read = stream::iter(names).map(|name| async move {
            match self.import_of(&name).await {
                Err(e) if e.kind() == ErrorKind::Store => Err(e),
                found => Ok(found.ok().flatten().map(|import| (name, import))),
            }
        });
        let read: Vec<Option<_>> = read.buffered(PARALLEL).try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }
}

/// The refusal for a name that an import is to get.
pub(super) fn under_way(name: &VolumeName, import: &ImportObject) -> Error {
    let text = format!("an import of {name} from {} was begun and is not finished", import.source);
    let remove = format!("remove what it left with `objblk delete {name}`");
    Error::new(ErrorKind::Exists, text).hint(match import.fingerprint.is_some() {
        true => format!("go on with it with `objblk import --resume`, or {remove}"),
        false => format!("it cannot be resumed: {remove}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::frame::Compression;
    use crate::store::Store;
    use crate::store::memory::MemoryStore;
    use crate::units::BlockSize;
    use std::sync::Arc;

    const NEW: NewVolume = NewVolume {
        size: 1 << 20,
        block_size: BlockSize::B512,
        chunk_size: 4 << 20,
        compression: Compression::Lz4,
        mirrored: false,
    };

    async fn pool() -> (Pool, VolumeName) {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        (Pool::init(store, false).await.unwrap(), "a".parse().unwrap())
    }

    async fn begun(pool: &Pool, name: &VolumeName) -> VolumeId {
        let import = pool.begin_import(name, "x".into(), Some("y".into())).await.unwrap();
        pool.import_volume(import.volume, NEW, None).await.unwrap();
        import.volume
    }

    fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
        result.err().map(|e| e.kind())
    }

    #[tokio::test]
    async fn the_name_is_kept_for_it_and_comes_last() {
        let (pool, name) = pool().await;
        let id = begun(&pool, &name).await;
        assert_eq!(kind(pool.lookup(&name).await), Some(ErrorKind::NotFound));
        assert_eq!(kind(pool.create(&name, NEW).await), Some(ErrorKind::Exists));
        let again = pool.begin_import(&name, "z".into(), None).await;
        assert_eq!(kind(again), Some(ErrorKind::Exists));
        assert_eq!(kind(pool.import_to_resume(&name, false).await), Some(ErrorKind::Exists));
        assert_eq!(pool.import_to_resume(&name, true).await.unwrap().unwrap().volume, id);
        // Of what was made with other sizes nothing goes on.
        let other = NewVolume { size: 2 << 20, ..NEW };
        assert_eq!(kind(pool.import_volume(id, other, None).await), Some(ErrorKind::Usage));
        pool.finish_import(&name, id).await.unwrap();
        assert_eq!(pool.lookup(&name).await.unwrap().0, id);
        assert!(pool.imports().await.unwrap().is_empty());
    }

    /// Cut off between the name and the end of the import, and then renamed.
    #[tokio::test]
    async fn what_has_a_name_is_never_filled_again() {
        let (pool, name) = pool().await;
        let id = begun(&pool, &name).await;
        pool.put_name(&name, id).await.unwrap();
        assert_eq!(pool.import_to_resume(&name, true).await.unwrap().unwrap().volume, id);
        pool.rename(&name, &"b".parse().unwrap()).await.unwrap();
        let e = pool.import_to_resume(&name, true).await.unwrap_err();
        assert!(e.kind() == ErrorKind::Exists && e.to_string().contains("is called b now"), "{e}");
        assert!(pool.import_to_resume(&name, true).await.unwrap().is_none());
        assert_eq!(pool.lookup(&"b".parse().unwrap()).await.unwrap().0, id);
    }

    #[tokio::test]
    async fn what_was_deleted_gets_no_name() {
        let (pool, name) = pool().await;
        let id = begun(&pool, &name).await;
        pool.forget_import(&name).await.unwrap();
        assert_eq!(kind(pool.finish_import(&name, id).await), Some(ErrorKind::Busy));
        assert_eq!(kind(pool.lookup(&name).await), Some(ErrorKind::NotFound));
        let id = begun(&pool, &name).await;
        pool.store.put_if_absent(&keys::trash(id), bytes::Bytes::new()).await.unwrap();
        assert_eq!(kind(pool.finish_import(&name, id).await), Some(ErrorKind::Busy));
        assert!(pool.resolve(&name).await.unwrap().is_none());
    }
}
