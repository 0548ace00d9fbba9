//! Verbs about the stores of a pool.

use super::args::Stores;
use super::confirm::confirm;
use super::{Context, render, replace_store, size, volume};
use crate::daemon::RunDir;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::placement::WEIGHT;
use crate::format::stores::{StoreEntry, StoreId, StoresObject};
use crate::host::Host;
use crate::pool::VolumeName;
use crate::pool::backend::Backend;
use crate::pool::several::{Held, Moved, NewStore, Progress, Rescued, Several, State, Writer};
use crate::settings::Endpoints;
use crate::store::paths::spec::PathSpec;
use crate::store::url::StoreUrl;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

/// Time between two looks at how far it is.
const TICK: Duration = Duration::from_millis(250);
/// Volumes that are named where there are many.
pub(super) const NAMED: usize = 8;

pub(super) async fn dispatch(context: &Context, verb: Stores) -> Result<()> {
    match verb {
        Stores::AddStore { url, weight, store_endpoint_url, store_region, rate, later } => {
            let endpoints = Endpoints(store_endpoint_url);
            let new = new_store(&url, endpoints, store_region, weight)?;
            add(context, new, self::rate(rate)?, later).await
        }
        Stores::DrainStore { id, rate } => drain(context, self::id(&id)?, self::rate(rate)?).await,
        Stores::WeighStore { id, weight, rate } => {
            let (id, rate) = (self::id(&id)?, self::rate(rate)?);
            if weight == 0 {
                return Err(Error::usage("a store that weighs 0 takes nothing")
                    .hint(format!("use `objblk pool drain-store {id}`")));
            }
            weigh(context, id, weight, rate).await
        }
        Stores::Rescue { url, name, store_endpoint_url, store_region, yes } => {
            let left = new_store(&url, Endpoints(store_endpoint_url), store_region, WEIGHT)?;
            rescue(context, left, &name, yes).await
        }
        Stores::ReplaceStore { id, with, store_endpoint_url, store_region, yes } => {
            let new = new_store(&with, Endpoints(store_endpoint_url), store_region, WEIGHT)?;
            replace_store::replace(context, (self::id(&id)?, new), yes).await
        }
        Stores::RemoveStore { id } => remove(context, self::id(&id)?).await,
        Stores::Rebalance { rate } => {
            let rate = self::rate(rate)?;
            let backend = context.open().await?;
            let several = backend.several()?;
            let moved = rebalance(&several, rate).await?;
            show(context, &backend, &several, (None, &moved)).await
        }
    }
}

async fn rescue(context: &Context, left: NewStore, names: &[String], yes: bool) -> Result<()> {
    let mut called = BTreeMap::new();
    for text in names {
        let wrong = || Error::usage(format!("--name {text} is not ID=NAME"));
        let (id, name) = text.split_once('=').ok_or_else(wrong)?;
        let id: VolumeId = id.parse().map_err(|e| wrong().because(e))?;
        let name: VolumeName = name.parse()?;
        if called.values().any(|other| *other == name) {
            return Err(Error::usage(format!("two volumes cannot be called {name}")));
        }
        called.insert(id, name);
    }
    let (url, s3) = context.location()?.parts()?;
    let what = format!("going on with what {} has, without the home store", left.url);
    confirm(&what, yes)?;
    let rescued = Backend::rescue(&url, &s3, &left, &called).await?;
    let row = |volume: &Rescued| {
        let name = volume.name.clone().unwrap_or_else(|| "(no complete copy)".into());
        vec![name, size::show(volume.size), volume.id.to_string()]
    };
    let table = || render::table(&["NAME", "SIZE", "ID"], &[1], rescued.iter().map(row).collect());
    context.show(&rescued, table)
}

fn id(text: &str) -> Result<StoreId> {
    text.parse().map_err(|e| {
        Error::usage(format!("{text:?} is no id of a store: {e}"))
            .hint("`objblk pool status` shows them")
    })
}

fn rate(text: Option<String>) -> Result<Option<u64>> {
    let rate = text.map(|text| size::parse("--rate", &text)).transpose()?;
    match rate {
        Some(0) => {
            let error = Error::usage("--rate 0 leaves nothing to move");
            Err(error.hint("leave it out for no limit"))
        }
        rate => Ok(rate),
    }
}

fn new_store(
    url: &str,
    Endpoints(endpoints): Endpoints,
    region: Option<String>,
    weight: u32,
) -> Result<NewStore> {
    let parsed: StoreUrl = url.parse()?;
    match parsed {
        StoreUrl::S3(_) => {}
        StoreUrl::Memory => {
            return Err(Error::usage(format!("{url} ends with this command"))
                .hint("write s3://bucket/prefix or file:///dir"));
        }
        StoreUrl::Dir(_) if !endpoints.is_empty() || region.is_some() => {
            return Err(Error::usage(format!("{url} has no endpoint and no region"))
                .hint("drop --store-endpoint-url and --store-region, or name a bucket"));
        }
        StoreUrl::Dir(_) => {}
    }
    endpoints.iter().try_for_each(|text| text.parse::<PathSpec>().map(drop))?;
    Ok(NewStore { url: parsed.to_string(), endpoints, region, weight })
}

async fn add(context: &Context, new: NewStore, rate: Option<u64>, later: bool) -> Result<()> {
    let backend = context.open().await?;
    let several = backend.several()?;
    let entry = several.add(&new).await?;
    let moved = if later { Moved::default() } else { rebalance(&several, rate).await? };
    if !context.global.json && moved.objects > 0 {
        eprintln!("objblk: moved {} objects, {}", moved.objects, size::show(moved.bytes));
    }
    show(context, &backend, &several, (Some(entry.id), &moved)).await
}

async fn weigh(context: &Context, id: StoreId, weight: u32, rate: Option<u64>) -> Result<()> {
    let backend = context.open().await?;
    let several = backend.several()?;
    several.weigh(id, weight).await?;
    let moved = rebalance(&several, rate).await?;
    show(context, &backend, &several, (None, &moved)).await
}

/// Ends well only if nothing is left.
async fn drain(context: &Context, id: StoreId, rate: Option<u64>) -> Result<()> {
    let backend = context.open().await?;
    let several = backend.several()?;
    several.weigh(id, 0).await?;
    let moved = rebalance(&several, rate).await?;
    let census = several.census().await?;
    let left = census.iter().find(|held| held.entry.id == id).map(|held| held.to_move);
    if let Some(left) = left.filter(|left| left.objects > 0) {
        let waiting = waiting(&backend, &moved).await?;
        let text = format!(
            "store {id} is not empty yet, {} of {} are left{waiting}",
            size::show(left.bytes),
            size::show(left.bytes + moved.bytes)
        );
        return Err(Error::new(ErrorKind::Busy, text).hint(
            "an owner makes a checkpoint within a minute or when it is detached; then drain again",
        ));
    }
    for writer in several.writers(id, false).await? {
        let name = name_of(&backend, writer.volume).await?;
        eprintln!(
            "objblk: {name} writes to store {id} by an older version until it is attached anew"
        );
    }
    show(context, &backend, &several, (None, &moved)).await
}

async fn remove(context: &Context, id: StoreId) -> Result<()> {
    let backend = context.open().await?;
    let several = backend.several()?;
    let closed = several.writers(id, true).await?.into_iter().filter(|writer| writer.is_closed);
    for Writer { volume, .. } in closed {
        renew(&backend, volume).await?;
    }
    // Fences that are only there are copied.
    rebalance(&several, None).await?;
    several.remove(id, &Host::local()?).await?;
    let version = several.spread().version();
    context.show(&json!({ "removed": id, "version": version.object.number }), || id.to_string())
}

/// Owns a volume for a moment, so that its next owner finds nothing to do in older stores. Those in the trash are left
/// alone.
async fn renew(backend: &Backend, id: VolumeId) -> Result<()> {
    let names = backend.pool.names().await?;
    let Some((name, _)) = names.into_iter().find(|(_, named)| *named == id) else { return Ok(()) };
    let name: VolumeName = name.parse()?;
    let held = RunDir::open()?.take(&[(id, name.clone().into())])?;
    let renewed = async {
        let volume = volume::own(backend, id, &name).await?;
        volume.close().await
    };
    let renewed = renewed.await;
    held.release();
    renewed
}

async fn rebalance(several: &Several, rate: Option<u64>) -> Result<Moved> {
    let (by, progress) = (Host::local()?.owner(), Progress::default());
    let moving = several.rebalance(&by, rate, &progress);
    let terminal = std::io::stderr().is_terminal();
    let mut tick = tokio::time::interval(TICK);
    tokio::pin!(moving);
    loop {
        tokio::select! {
            moved = &mut moving => {
                if terminal {
                    eprint!("\r\x1b[K");
                }
                return moved;
            }
            _ = tick.tick(), if terminal => eprint!("\r{progress}\x1b[K"),
        }
    }
}

/// Prints what was done, and what could not be.
async fn show(
    context: &Context,
    backend: &Backend,
    several: &Several,
    (added, moved): (Option<StoreId>, &Moved),
) -> Result<()> {
    let object = &several.spread().version().object;
    let waiting = waiting(backend, moved).await?;
    if !waiting.is_empty() {
        eprintln!("objblk: objects stay for now{waiting}; rebalance again later");
    }
    let document = json!({
        "store": added, "version": object.number, "digest": object.digest(), "moved": moved,
    });
    context.show(&document, || {
        added.map_or_else(
            || format!("moved {} objects, {}", moved.objects, size::show(moved.bytes)),
            |id| id.to_string(),
        )
    })?;
    match moved.damaged.first() {
        None => Ok(()),
        Some(first) => {
            let text = format!("{} objects are damaged and stay: {first}", moved.damaged.len());
            Err(Error::corrupt(text).hint("look with `objblk check --data`"))
        }
    }
}

/// Which volumes have objects that cannot be moved yet; empty where none has.
async fn waiting(backend: &Backend, moved: &Moved) -> Result<String> {
    let mut names = Vec::new();
    for waiting in moved.waiting.iter().take(NAMED) {
        names.push(name_of(backend, waiting.volume).await?);
    }
    let more = if moved.waiting.len() > NAMED { " and others" } else { "" };
    Ok(match names.is_empty() {
        true => String::new(),
        false => format!(
            ", of {}{more}, which have no checkpoint of their newest owner",
            names.join(", ")
        ),
    })
}

pub(super) async fn name_of(backend: &Backend, id: VolumeId) -> Result<String> {
    let names: BTreeMap<VolumeId, String> =
        backend.pool.names().await?.into_iter().map(|(name, id)| (id, name)).collect();
    Ok(names.get(&id).map_or_else(|| format!("volume {id}"), |name| format!("volume {name}")))
}

/// Refuses a pool that has one store only.
pub(super) fn refuse_alone(backend: &Backend) -> Result<()> {
    let version = backend.several()?.spread().version();
    let is_other = |store: &&StoreEntry| store.id != StoreId::HOME && !store.removed;
    match version.object.stores.iter().find(is_other) {
        Some(_) => Ok(()),
        None => Err(Error::usage("--replicas 2 needs a pool of two stores or more")
            .hint("add one with `objblk pool add-store`")),
    }
}

/// The stores of a pool as `pool status` shows them; `None` where there has only ever been one.
pub(super) async fn status(backend: &Backend) -> Result<Option<(StoresObject, Vec<Held>)>> {
    let Ok(several) = backend.several() else { return Ok(None) };
    let object = several.spread().version().object.clone();
    if object.number == 0 {
        return Ok(None);
    }
    Ok(Some((object, several.census().await?)))
}

/// The parts of all bytes that the store has, and that it should have.
fn shares(census: &[Held], held: &Held) -> (f64, f64) {
    let part = |n: u64, all: u64| if all == 0 { 0.0 } else { n as f64 / all as f64 };
    let bytes = census.iter().map(Held::bytes).sum();
    let weight = census.iter().map(|held| u64::from(held.weight)).sum();
    (part(held.bytes(), bytes), part(held.weight.into(), weight))
}

/// As JSON.
pub(super) fn document(census: &[Held]) -> Value {
    let one = |held: &Held| {
        let (share, ideal) = shares(census, held);
        let mut one = json!(held);
        one["share"] = json!(share);
        one["ideal_share"] = json!(ideal);
        one
    };
    census.iter().map(one).collect()
}

/// As a table.
pub(super) fn table(object: &StoresObject, census: &[Held]) -> String {
    let header =
        ["STORE", "STATE", "WEIGHT", "SHARE", "IDEAL", "OBJECTS", "BYTES", "TO MOVE", "URL"];
    let row = |held: &Held| {
        let (share, ideal) = shares(census, held);
        let state = match &held.state {
            State::Ok => "ok".to_owned(),
            State::Draining if held.to_move.objects == 0 => "drained".to_owned(),
            State::Draining => "draining".to_owned(),
            State::Unreachable(why) => format!("unreachable: {why}"),
        };
        vec![
            held.entry.id.to_string(),
            state,
            held.weight.to_string(),
            format!("{:.1} %", share * 100.0),
            format!("{:.1} %", ideal * 100.0),
            (held.settled.objects + held.to_move.objects).to_string(),
            size::show(held.bytes()),
            size::show(held.to_move.bytes),
            held.entry.url.clone(),
        ]
    };
    let rows = census.iter().map(row).collect();
    let version = format!("stores, version {}, digest {}:", object.number, object.digest());
    format!("{version}\n{}", render::table(&header, &[2, 3, 4, 5, 6, 7], rows))
}
