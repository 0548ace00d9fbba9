//! Keys of encrypted volumes: what opens them.

use super::args::{Key, NewKey};
use super::{Context, confirm, render};
use crate::error::{Error, Result};
use crate::format::VolumeId;
use crate::format::key_slots::{KeySlot, KeySlots};
use crate::pool::{Pool, Slots, VolumeName};
use crate::seal::{Material, VolumeKey, ask, has_terminal};
use serde::Serialize;
use serde_json::json;

/// A slot, as it is shown.
#[derive(Debug, Serialize)]
struct Line {
    number: u32,
    opened_by: &'static str,
    label: String,
    made_at_ms: u64,
}

/// A volume whose key's slots are looked at.
struct Locked {
    pool: Pool,
    name: VolumeName,
    id: VolumeId,
    slots: Slots,
}

pub(super) async fn dispatch(context: &Context, verb: Key) -> Result<()> {
    match verb {
        Key::List { name } => {
            let locked = Locked::find(context, &name).await?;
            show(context, &locked.slots.set)
        }
        Key::Add { name, new } => {
            let locked = Locked::find(context, &name).await?;
            let (key, _) = locked.open(context).await?;
            let number = locked.slots.set.free_number();
            let slot = locked.new_slot(key, number, &new).await?;
            locked.set(context, |slots| slots.push(slot)).await
        }
        Key::Change { name, new } => {
            let locked = Locked::find(context, &name).await?;
            let (key, number) = locked.open(context).await?;
            let slot = locked.new_slot(key, number, &new).await?;
            let put = |slots: &mut Vec<KeySlot>| {
                slots.retain(|slot| slot.number != number);
                slots.push(slot);
            };
            locked.set(context, put).await
        }
        Key::Remove { name, slot, yes } => remove(context, &name, slot, yes).await,
    }
}

/// What opens the first slot of a new volume's key, if it is to be encrypted.
///
/// Errors: usage, where a key is given and not wanted, or wanted and there is nobody to ask.
pub(super) async fn lock(context: &Context, encrypt: bool, name: &str) -> Result<Option<Material>> {
    match (encrypt, context.global.key.key()?) {
        (false, None) => Ok(None),
        (false, Some(_)) => Err(Error::usage("a key is given for a volume that is not encrypted")
            .hint("add --encrypt, or leave the key out")),
        (true, Some(given)) => {
            let name = name.to_owned();
            let got = tokio::task::spawn_blocking(move || given.material(&name)).await;
            got.map_err(|e| Error::failed("cannot get the key").because(e))?.map(Some)
        }
        (true, None) => ask_twice(name).map(Some),
    }
}

fn ask_twice(name: &str) -> Result<Material> {
    if !has_terminal() {
        return Err(Error::usage("an encrypted volume needs something that opens it")
            .hint(crate::store::KEY_HINT));
    }
    let (once, again) = (
        ask(&format!("New passphrase of {name}: "))?,
        ask(&format!("New passphrase of {name}, again: "))?,
    );
    match once == again {
        true => Ok(Material::Passphrase(once)),
        false => Err(Error::usage("the two passphrases are not the same")),
    }
}

async fn remove(context: &Context, name: &str, number: u32, yes: bool) -> Result<()> {
    let mut locked = Locked::find(context, name).await?;
    let has = |slots: &Slots| slots.set.slots.iter().any(|slot| slot.number == number);
    if !has(&locked.slots) {
        let text = format!("the key of volume {name} has no slot {number}");
        return Err(Error::not_found(text).hint(format!("`objblk key list {name}` shows them")));
    }
    let before = locked.slots.clone();
    locked.slots.set.slots.retain(|slot| slot.number != number);
    if locked.slots.set.slots.is_empty() {
        let text = format!("slot {number} is the last one: nobody could open volume {name} again");
        return Err(Error::usage(text).hint("add another one first, or delete the volume"));
    }
    confirm::confirm(&format!("removing slot {number} of the key of {name}"), yes)?;
    // So that somebody who is here can open it afterwards.
    locked.open(context).await.map_err(|e| e.context("nothing is removed"))?;
    locked.slots = before;
    locked.set(context, |slots| slots.retain(|slot| slot.number != number)).await
}

impl Locked {
    async fn find(context: &Context, name: &str) -> Result<Locked> {
        let name: VolumeName = name.parse()?;
        let pool = context.open().await?.pool.with_given(None);
        let (id, volume) = pool.lookup(&name).await?;
        if !volume.is_encrypted() {
            let text = format!("volume {name} is not encrypted");
            return Err(Error::usage(text)
                .hint("copy it into one that was made with --encrypt, to have it encrypted"));
        }
        let slots = pool.key_slots(name.as_str(), id).await?;
        Ok(Locked { pool, name, id, slots })
    }

    async fn open(&self, context: &Context) -> Result<(VolumeKey, u32)> {
        let given = context.given()?.ok_or_else(|| {
            Error::usage(format!("what opens volume {} is not given", self.name))
                .hint(crate::store::KEY_HINT)
        })?;
        let material = given.material(self.name.as_str())?;
        self.pool.open_slots(self.name.as_str(), &self.slots, material).await
    }

    async fn new_slot(&self, key: VolumeKey, number: u32, new: &NewKey) -> Result<KeySlot> {
        let material = match new.key()? {
            Some(given) => given.material(self.name.as_str())?,
            None => ask_twice(self.name.as_str())?,
        };
        let what = (key, self.slots.set.key);
        self.pool.make_slot(what, (number, new.label.clone()), material).await
    }

    async fn set(&self, context: &Context, change: impl FnOnce(&mut Vec<KeySlot>)) -> Result<()> {
        let mut set = self.slots.set.clone();
        change(&mut set.slots);
        set.slots.sort_by_key(|slot| slot.number);
        self.pool.set_slots((self.name.as_str(), self.id), &self.slots, &set).await?;
        show(context, &set)
    }
}

fn show(context: &Context, set: &KeySlots) -> Result<()> {
    let line = |slot: &KeySlot| Line {
        number: slot.number,
        opened_by: slot.kdf.opened_by(),
        label: slot.label.clone(),
        made_at_ms: slot.made_at_ms,
    };
    let lines: Vec<Line> = set.slots.iter().map(line).collect();
    let row = |line: &Line| {
        let made = render::time(line.made_at_ms);
        vec![line.number.to_string(), line.opened_by.to_owned(), made, line.label.clone()]
    };
    let table = || {
        let header = ["SLOT", "OPENED BY", "MADE", "LABEL"];
        render::table(&header, &[0], lines.iter().map(row).collect())
    };
    context.show(&json!(lines), table)
}
