//! One object decoded; where a sector is.

use super::{Context, render, size};
use crate::doctor::inspect::{Inspected, object};
use crate::doctor::locate::{Finding, Item, Located, locate as look};
use crate::error::{Error, Result};
use crate::format::keys;
use crate::format::volume::VolumeObject;
use crate::pool::VolumeSpec;
use crate::store::{Key, Store};
use crate::units::SECTOR_SHIFT;
use crate::volume::{find_snapshot, ownership};
use serde::Serialize;
use serde_json::{Value, json};

/// Prints the object that is called `what`, or those that say what the volume or the snapshot of that name is.
pub(super) async fn inspect(context: &Context, what: &str) -> Result<()> {
    let backend = context.open().await?;
    let store = &**backend.pool.store();
    let url = format!("{}/", store.url().trim_end_matches('/'));
    let what = what.strip_prefix(&url).unwrap_or(what);
    let is_key = what.contains('/') || *what == *keys::pool().as_str();
    let keys: Vec<Key> = if is_key {
        let key = Key::new(what).ok_or_else(|| {
            Error::usage(format!("{what:?} is no name of an object"))
                .hint("name it as `objblk check` does, from the pool's prefix on")
        })?;
        if let Some(id) = keys::parse_volume(&key) {
            backend.pool.unlock_id(&id.to_string(), id).await?;
        }
        vec![key]
    } else {
        let spec: VolumeSpec = what.parse()?;
        let (id, description) = backend.pool.lookup(&spec.volume()).await?;
        match spec.snapshot() {
            Some(name) => vec![keys::snapshot(id, find_snapshot(store, id, name).await?.entry.id)],
            None => of_volume(store, &description).await?,
        }
    };
    let mut found = Vec::new();
    for key in &keys {
        found.push(object(store, key).await?);
    }
    let text = || found.iter().map(tell).collect::<Vec<_>>().join("\n\n");
    match found.as_slice() {
        [one] if is_key => context.show(one, text)?,
        all => context.show(&all, text)?,
    }
    let bad = found.iter().find_map(|found| Some((&found.object, found.damage.as_ref()?)));
    match bad {
        Some((object, why)) => Err(Error::corrupt(format!("{object} is damaged: {why}"))),
        None => Ok(()),
    }
}

/// What the volume is, who had it last, and its newest checkpoint.
async fn of_volume(store: &dyn Store, description: &VolumeObject) -> Result<Vec<Key>> {
    let id = description.id;
    let mut keys = vec![keys::volume(id)];
    let owned = ownership(store, id).await?;
    if owned.owner.is_some() {
        keys.push(keys::epoch(id, owned.epoch));
    }
    let state = store.list(&keys::replica_states(id), None, 1).await?.objects;
    keys.extend(state.into_iter().map(|object| object.key));
    let newest = store.list(&keys::checkpoints(id), None, 1).await?.objects;
    keys.extend(newest.into_iter().map(|object| object.key));
    Ok(keys)
}

fn tell(found: &Inspected) -> String {
    let (kind, bytes) = (found.kind, found.bytes);
    let mut lines = vec![format!("{}: {kind}, {bytes} bytes", found.object)];
    lines.extend(found.damage.as_ref().map(|why| format!("  DAMAGED: {why}")));
    if !found.contents.is_null() {
        outline(&found.contents, 1, &mut lines);
    }
    lines.join("\n")
}

/// Says where a sector of a volume or of a snapshot is stored. `at` is the number of a sector of 512 bytes, or
/// a byte with its unit.
pub(super) async fn locate(context: &Context, name: &VolumeSpec, at: &str) -> Result<()> {
    let byte = match at.parse::<u64>() {
        Ok(sector) => sector.checked_mul(1 << SECTOR_SHIFT),
        Err(_) => Some(size::parse("the position", at)?),
    };
    let byte = byte.ok_or_else(|| Error::usage(format!("sector {at} is too large")))?;
    let backend = context.open().await?;
    let found = look(&backend.pool, name, byte).await?;
    let object = found.stored.as_ref().and_then(|stored| Key::new(&stored.object));
    let place = match (object, backend.several()) {
        (Some(object), Ok(several)) => several.place_of(&object).await?,
        _ => None,
    };
    let (store, name_there) = place.map(|(store, name)| (store, name.to_string())).unzip();
    let document = Placed { located: &found, store, name_there };
    context.show(&document, || tell_place(&document))?;
    match &found.problem {
        Some(why) => {
            let sector = found.sector;
            Err(Error::corrupt(format!("sector {sector} of {name} cannot be read: {why}")))
        }
        None => Ok(()),
    }
}

/// Where a sector is, and in which of the pool's stores.
#[derive(Serialize)]
struct Placed<'a> {
    #[serde(flatten)]
    located: &'a Located,
    /// The store that has the chunk, where the pool has several or could have.
    store: Option<String>,
    /// The chunk's name in that store.
    name_there: Option<String>,
}

fn tell_place(placed: &Placed<'_>) -> String {
    let found = placed.located;
    let item = |item: &Item| {
        format!("{} at {}, {} bytes, crc32c {}", item.object, item.offset, item.length, item.crc32c)
    };
    let what = match found.found {
        Finding::Hole => "nowhere: it reads as zeros",
        Finding::Data => "in a chunk",
        Finding::Damaged => "DAMAGED",
    };
    let mut fields = vec![
        ("sector", format!("{}, byte {} of {}", found.sector, found.byte, found.name)),
        ("is", what.to_owned()),
    ];
    if found.in_log {
        fields.push(("said by", "the log, behind the newest checkpoint".into()));
    }
    fields.extend(found.map_page.as_ref().map(|page| ("map page", item(page))));
    fields.extend(found.leaf.as_ref().map(|leaf| ("leaf", item(leaf))));
    if let (Some(start), Some(count)) = (found.extent_sector, found.extent_count) {
        fields.push(("stored as", format!("sectors {start}..{}", start + count)));
    }
    if let Some(stored) = &found.stored {
        fields.push(("chunk", stored.object.clone()));
        fields.extend(placed.store.as_ref().map(|store| ("store", store.clone())));
        let name = placed.name_there.as_ref().filter(|name| **name != stored.object);
        fields.extend(name.map(|name| ("there called", name.clone())));
        let (seq, epoch) = (stored.seq, stored.epoch);
        fields.push(("log", format!("slot {seq}, epoch {epoch} of volume {}", stored.volume)));
        fields
            .push(("payload", format!("sector {}, frame {}", stored.payload_sector, stored.frame)));
        fields.extend(stored.offset.map(|at| ("offset", format!("byte {at} of the object"))));
        let state = if stored.ok { "right" } else { "WRONG" };
        fields
            .extend(stored.crc32c.as_ref().map(|crc| ("frame crc32c", format!("{crc}, {state}"))));
    }
    fields.extend(found.problem.as_ref().map(|why| ("problem", why.clone())));
    if found.in_use {
        fields.push((
            "note",
            "the volume is in use: what its owner has not stored is not seen".into(),
        ));
    }
    render::fields(&fields)
}

/// Lines of a JSON value: one a field, one an element.
fn outline(value: &Value, depth: usize, lines: &mut Vec<String>) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::Array(all) => {
                        lines.push(format!("{indent}{name} ({})", all.len()));
                        all.iter().for_each(|one| outline_element(one, depth + 1, lines));
                    }
                    Value::Object(_) => {
                        lines.push(format!("{indent}{name}"));
                        outline(value, depth + 1, lines);
                    }
                    other => lines.push(format!("{indent}{name}  {}", plain(other))),
                }
            }
        }
        other => lines.push(format!("{indent}{}", plain(other))),
    }
}

/// One line, and what is in it below.
fn outline_element(value: &Value, depth: usize, lines: &mut Vec<String>) {
    let Some(fields) = value.as_object() else { return outline(value, depth, lines) };
    let is_plain = |value: &Value| !value.is_array() && !value.is_object();
    let said = fields.iter().filter(|(_, value)| is_plain(value) && !value.is_null());
    let said: Vec<String> = said.map(|(name, value)| format!("{name} {}", plain(value))).collect();
    lines.push(format!("{}{}", "  ".repeat(depth), said.join(", ")));
    for (name, inner) in fields.iter().filter(|(_, value)| !is_plain(value)) {
        outline(&json!({ name: inner }), depth + 1, lines);
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
