//! Keys of encrypted volumes: giving them to the store's layer that seals, and changing their slots.
//!
//! ```text
//! create    keys/<0>, volume.json, then names/<name>
//! clone     keys/<0> with the slots of the origin, and all else as without
//! change    keys/<n+1> with all slots there are from then on, then keys/<n> and before go
//! ```
//!
//! Nothing of a volume is touched before its key is known to be the right one: a wrong key leaves no trace.

use super::{Pool, get};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::key_slots::{KEY_SLOTS_VERSION, KeySlot, KeySlots, SLOTS_MAX};
use crate::format::keys;
use crate::format::pool::encode_json;
use crate::format::volume::VolumeObject;
use crate::seal::{Cost, KeyGiven, KeyPlace, Keyring, Material, VolumeKey, new_slot, unwrap};
use crate::store::{Key, StoreErrorKind, list_all};
use std::sync::Arc;

/// How often the newest slots are looked for again when they vanish under the reader.
const LOOKS: usize = 5;

/// What a pool knows of keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Keys {
    ring: Arc<Keyring>,
    given: Option<Arc<KeyGiven>>,
    /// Making a key of a passphrase takes memory: one at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The slots of a volume's key, as they are now.
#[derive(Clone, Debug)]
pub struct Slots {
    /// How often they were changed.
    pub number: u64,
    /// The slots.
    pub set: KeySlots,
}

impl Pool {
    /// The same pool, whose store seals by the keys in `ring`.
    pub fn with_ring(self, ring: Arc<Keyring>) -> Pool {
        Pool { keys: Keys { ring, ..self.keys }, ..self }
    }

    /// The same pool, whose volumes are opened by what is `given`.
    pub fn with_given(self, given: Option<KeyGiven>) -> Pool {
        Pool { keys: Keys { given: given.map(Arc::new), ..self.keys }, ..self }
    }

    /// Whether the volume's objects can be read: it is not encrypted, or its key is known.
    pub fn is_open(&self, volume: &VolumeObject) -> bool {
        !volume.is_encrypted() || self.store.unseals(&keys::volume(volume.id))
    }

    /// Gets the key of an encrypted volume from what was given, if anything was; `label` is what it is called.
    /// From then on its objects can be used.
    ///
    /// Errors: failed, where that opens no slot; those of getting it; corrupt, where there are no slots.
    pub async fn unlock(&self, label: &str, volume: &VolumeObject) -> Result<()> {
        if self.is_open(volume) {
            return Ok(());
        }
        let Some(given) = self.keys.given.clone() else { return Ok(()) };
        let slots = self.key_slots(label, volume.id).await?.set;
        let _turn = self.keys.turn.lock().await;
        if self.is_open(volume) {
            return Ok(());
        }
        let what = label.to_owned();
        let (key, _) = blocking(move || {
            let material = given.material(&what)?;
            unwrap(&slots, &material)?.ok_or_else(|| wrong_key(&what))
        })
        .await?;
        // It was read when nobody could say whose it is.
        if !key.has_signed(volume) {
            let text = format!("the description of volume {label} is not what it was made with");
            return Err(Error::corrupt(text)
                .because("it was changed by somebody who has not the volume's key")
                .hint(format!("restore {} from a copy of the bucket", keys::volume(volume.id))));
        }
        let ancestors = volume.ancestors.iter().map(|ancestor| ancestor.volume);
        self.keys.ring.add(ancestors.chain([volume.id]), key);
        Ok(())
    }

    /// As [`Pool::unlock`], without asking anybody.
    pub(super) async fn unlock_quietly(&self, label: &str, volume: &VolumeObject) -> Result<()> {
        let given = self.keys.given.as_ref();
        match given
            .is_some_and(|given| *given.place() == KeyPlace::Asked && given.answer().is_none())
        {
            true => Ok(()),
            false => self.unlock(label, volume).await,
        }
    }

    /// Whether it is an encrypted volume that nothing that was given opens.
    pub(super) async fn is_locked(&self, label: &str, id: VolumeId) -> Result<bool> {
        let Some(bytes) = get(&*self.store, &keys::volume(id)).await? else { return Ok(false) };
        let Ok(volume) = VolumeObject::parse(&bytes) else { return Ok(false) };
        if let Err(e) = self.unlock_quietly(label, &volume).await {
            tracing::info!("{label} stays locked: {e}");
        }
        Ok(!self.is_open(&volume))
    }

    /// As [`Pool::unlock`], of a volume of which only the id is known. What has no description that can be read
    /// has nothing to unlock.
    ///
    /// Errors: those; the store's.
    pub async fn unlock_id(&self, label: &str, id: VolumeId) -> Result<()> {
        let Some(bytes) = get(&*self.store, &keys::volume(id)).await? else { return Ok(()) };
        match VolumeObject::parse(&bytes) {
            Ok(volume) if volume.id == id => self.unlock(label, &volume).await,
            _ => Ok(()),
        }
    }

    /// The slots of an encrypted volume's key. Errors: corrupt, where they are missing or damaged; the store's.
    pub async fn key_slots(&self, label: &str, id: VolumeId) -> Result<Slots> {
        for _ in 0..LOOKS {
            let found = list_all(&*self.store, &keys::key_sets(id)).await?;
            let newest = found
                .iter()
                .find_map(|object| Some((keys::parse_key_set(id, &object.key)?, &object.key)));
            let Some((number, key)) = newest else {
                let text =
                    format!("volume {label} is encrypted, and the slots of its key are gone");
                return Err(Error::corrupt(text)
                    .because(format!("nothing is below {}", keys::key_sets(id)))
                    .hint("restore them from a copy of the bucket: without, nobody can read it"));
            };
            // Somebody may have changed them since the listing.
            let Some(bytes) = get(&*self.store, key).await? else { continue };
            let set = KeySlots::parse(&bytes).map_err(|e| super::damaged(&*self.store, key, e))?;
            return Ok(Slots { number, set });
        }
        Err(Error::new(ErrorKind::Busy, format!("the slots of volume {label}'s key keep changing")))
    }

    /// The volume's key, by what opens one of its slots, and that slot's number. Errors: failed, where it opens
    /// none.
    pub async fn open_slots(
        &self,
        label: &str,
        slots: &Slots,
        material: Material,
    ) -> Result<(VolumeKey, u32)> {
        let (set, what) = (slots.set.clone(), label.to_owned());
        let _turn = self.keys.turn.lock().await;
        blocking(move || unwrap(&set, &material)?.ok_or_else(|| wrong_key(&what))).await
    }

    /// A slot for what opens it from now on. Errors: failed.
    pub async fn make_slot(
        &self,
        (key, id): (VolumeKey, [u8; 16]),
        (number, label): (u32, String),
        material: Material,
    ) -> Result<KeySlot> {
        let _turn = self.keys.turn.lock().await;
        let now_ms = SystemClock.now_ms();
        blocking(move || new_slot(&key, id, (number, label, now_ms), &material, Cost::default()))
            .await
    }

    /// Sets the slots of a volume's key, which were `before`. Errors: usage, for impossible ones; busy, where
    /// somebody else has changed them meanwhile; the store's.
    pub async fn set_slots(
        &self,
        (label, id): (&str, VolumeId),
        before: &Slots,
        set: &KeySlots,
    ) -> Result<()> {
        if set.slots.len() > SLOTS_MAX {
            return Err(Error::usage(format!("a key has at most {SLOTS_MAX} slots"))
                .hint("remove one with `objblk key remove`"));
        }
        set.check().map_err(|e| Error::usage("these are no slots of a key").because(e))?;
        let key = keys::key_set(id, before.number.saturating_add(1));
        match self.store.put_if_absent(&key, encode_json(set).into()).await {
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                let text = format!("somebody else has changed the key of volume {label} meanwhile");
                return Err(Error::new(ErrorKind::Busy, text).hint("try again"));
            }
            put => put?,
        }
        // From here on who opens only a slot that is no more is kept out.
        let all = list_all(&*self.store, &keys::key_sets(id)).await?;
        let is_older = |at: &Key| keys::parse_key_set(id, at).is_some_and(|n| n <= before.number);
        let older: Vec<Key> = all.into_iter().map(|object| object.key).filter(is_older).collect();
        match older.is_empty() {
            true => Ok(()),
            false => Ok(self.store.delete(&older).await?),
        }
    }

    /// A key for a new volume, and what its slots are to be. This process seals and signs with it from now on.
    /// Errors: failed.
    pub(super) async fn new_key(&self, id: VolumeId, material: &Material) -> Result<KeySlots> {
        let key = VolumeKey::generate().map_err(Error::failed)?;
        let key_id: [u8; 16] = rand::random();
        let copy = key.copy();
        let slot = self.make_slot((copy, key_id), (0, String::new()), material.clone()).await?;
        self.keys.ring.add([id], key);
        Ok(KeySlots { version: KEY_SLOTS_VERSION, key: key_id, slots: vec![slot] })
    }

    /// Stores them, or takes the key that an attempt before has made. Errors: failed, where `material` does not
    /// open that; the store's.
    pub(super) async fn lay_key(
        &self,
        id: VolumeId,
        set: KeySlots,
        material: &Material,
    ) -> Result<()> {
        match self.store.put_if_absent(&keys::key_set(id, 0), encode_json(&set).into()).await {
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
                let label = id.to_string();
                let slots = self.key_slots(&label, id).await?;
                let (key, _) = self.open_slots(&label, &slots, material.clone()).await?;
                self.keys.ring.add([id], key);
                Ok(())
            }
            put => Ok(put?),
        }
    }

    /// Gives a clone the slots and the key of its origin. Errors: as [`Pool::key_slots`].
    pub(super) async fn share_key(&self, origin: &VolumeObject, with: VolumeId) -> Result<()> {
        if !origin.is_encrypted() {
            return Ok(());
        }
        let slots = self.key_slots(&origin.id.to_string(), origin.id).await?;
        let body = encode_json(&slots.set);
        self.store.put_if_absent(&keys::key_set(with, 0), body.into()).await?;
        if let Some(key) = self.keys.ring.of(origin.id) {
            self.keys.ring.add([with], key.copy());
        }
        Ok(())
    }
}

fn wrong_key(label: &str) -> Error {
    Error::failed(format!("what was given opens no slot of the key of volume {label}"))
        .hint(format!("`objblk key list {label}` shows what does"))
}

/// Does what takes long on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::failed("making a key was cut off").because(e))?
}
