//! Verbs that show the volumes of the pool.

use super::replicate::Shown;
use super::{Context, damaged, render, retain, schedule, size};
use crate::daemon::{KnownTarget, RunDir};
use crate::error::Result;
use crate::format::VolumeId;
use crate::format::scrub::ScrubPass;
use crate::format::stores::StoreId;
use crate::format::volume::{EpochObject, VolumeObject};
use crate::host::Host;
use crate::pool::{Entry, Health, Info, Standing, VolumeName, standing};
use crate::volume::compression_sample;
use crate::volume::{past, scrubbed};
use serde::Serialize;
use std::time::Duration;

/// A volume of the pool, as far as it can be told.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    id: VolumeId,
    /// free, in-use, unclean (its owner died), replica, locked (encrypted, without its key), deleting, importing, damaged
    state: &'static str,
    health: String,
    size: Option<u64>,
    used: Option<u64>,
    snapshots: Option<usize>,
    block_size: Option<u32>,
    chunk_size: Option<u64>,
    epoch: Option<u64>,
    owner: Option<Owner>,
    device: Option<String>,
    parent: Option<String>,
    source: Option<String>,
    features: Option<crate::format::features::Features>,
    compression: Option<Compressed>,
    /// Of a mirrored volume, in `info` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    mirror: Option<Mirrored>,
    /// Of one that is shipped from another pool, or was.
    #[serde(skip_serializing_if = "Option::is_none")]
    replica: Option<Shown>,
    /// aes-256-gcm, where it is encrypted
    encryption: Option<&'static str>,
    created_at_ms: Option<u64>,
    checkpoint_at_ms: Option<u64>,
    schedule: Option<Vec<schedule::Shown>>,
    /// The last scrub that came to its end, in `info` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    scrub: Option<ScrubPass>,
    /// How long the past is kept.
    retention_ms: Option<u64>,
    /// The oldest moment of it that can be read; this and what follows is in `info` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    oldest_at_ms: Option<u64>,
    /// Chunks that are stored for its sake alone, and how many bytes they are at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    past_chunks: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    past_bytes_at_most: Option<u64>,
}

/// How the volume compresses, and in `info` what came of that in some of its chunks.
#[derive(Debug, Serialize)]
struct Compressed {
    how: String,
    ratio: Option<f64>,
    looked_at_chunks: Option<u64>,
}

/// Which copies of a mirrored volume are complete.
#[derive(Debug, Serialize)]
struct Mirrored {
    /// The number of the state that says so.
    state: u32,
    replicas: Vec<StoreId>,
    in_sync: Vec<StoreId>,
    joining: Option<StoreId>,
}

#[derive(Debug, Serialize)]
struct Owner {
    host: String,
    pid: u32,
    claimed_at_ms: u64,
}

/// What is attached on this host; nothing where the run directory cannot be read.
fn attached() -> Vec<KnownTarget> {
    RunDir::open().and_then(|run_dir| run_dir.targets()).unwrap_or_default()
}

fn device(targets: &[KnownTarget], id: VolumeId) -> Option<String> {
    let alive = targets.iter().filter(|target| target.alive);
    let mut volumes = alive.flat_map(|target| &target.state.volumes);
    volumes.find(|volume| volume.id == id).map(|volume| volume.device.clone())
}

fn bare(name: String, id: VolumeId, state: &'static str, health: String) -> Line {
    Line {
        name,
        id,
        state,
        health,
        size: None,
        used: None,
        snapshots: None,
        block_size: None,
        chunk_size: None,
        epoch: None,
        owner: None,
        device: None,
        parent: None,
        source: None,
        features: None,
        compression: None,
        mirror: None,
        replica: None,
        encryption: None,
        created_at_ms: None,
        checkpoint_at_ms: None,
        schedule: None,
        scrub: None,
        retention_ms: None,
        oldest_seq: None,
        oldest_at_ms: None,
        past_chunks: None,
        past_bytes_at_most: None,
    }
}

fn known(name: String, info: &Info, host: &Host, targets: &[KnownTarget]) -> Line {
    let (volume, ownership) = (&info.volume, &info.ownership);
    let standing = standing(ownership, host);
    let replica = ownership.replica.as_ref().map(|state| Shown::of(&name, state));
    let state = match &standing {
        Standing::Free if replica.as_ref().is_some_and(|of| !of.is_promoted()) => "replica",
        Standing::Free => "free",
        Standing::Orphaned(_) => "unclean",
        Standing::OwnedHere(_) | Standing::OwnedElsewhere(_) => "in-use",
    };
    let owner = |owner: &EpochObject| Owner {
        host: owner.host.clone(),
        pid: owner.pid,
        claimed_at_ms: owner.claimed_at_ms,
    };
    let owned = standing != Standing::Free;
    Line {
        size: Some(ownership.size.bytes()),
        used: Some(ownership.live.bytes()),
        snapshots: Some(ownership.snapshots),
        epoch: Some(ownership.epoch.0),
        owner: ownership.owner.as_ref().filter(|_| owned).map(owner),
        checkpoint_at_ms: Some(ownership.checkpoint_at_ms).filter(|ms| *ms > 0),
        retention_ms: Some(ownership.retention_ms).filter(|ms| *ms > 0),
        replica,
        ..described(name, volume, targets, (state, "ok"))
    }
}

/// What the description alone tells.
fn described(
    name: String,
    volume: &VolumeObject,
    targets: &[KnownTarget],
    (state, health): (&'static str, &str),
) -> Line {
    Line {
        block_size: Some(volume.block_size),
        chunk_size: Some(volume.chunk_size),
        device: device(targets, volume.id),
        source: volume.source.as_ref().map(|source| source.url.clone()),
        features: Some(volume.features),
        compression: Some(Compressed {
            how: volume.features.compression().to_string(),
            ratio: None,
            looked_at_chunks: None,
        }),
        encryption: volume.is_encrypted().then_some("aes-256-gcm"),
        created_at_ms: Some(volume.created_at_ms),
        ..bare(name, volume.id, state, health.into())
    }
}

/// One whose key is not known.
fn locked(name: String, volume: &VolumeObject, targets: &[KnownTarget]) -> Line {
    described(name, volume, targets, ("locked", "it is encrypted, and was not opened"))
}

fn line(entry: &Entry, host: &Host, targets: &[KnownTarget]) -> Line {
    let name = entry.name.clone();
    match &entry.health {
        Health::Good(info) => known(name, info, host, targets),
        Health::Locked(volume) => locked(name, volume, targets),
        Health::Deleting => bare(name, entry.id, "deleting", "its deletion was begun".into()),
        Health::Importing(source) => {
            bare(name, entry.id, "importing", format!("its import from {source} is not finished"))
        }
        Health::Damaged(e) => bare(name, entry.id, "damaged", e.to_string()),
    }
}

fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".into(), show)
}

pub(super) async fn list(context: &Context) -> Result<()> {
    let pool = context.open().await?.pool;
    let entries = pool.list().await?;
    let (host, targets) = (Host::local()?, attached());
    let mut lines: Vec<Line> = entries.iter().map(|entry| line(entry, &host, &targets)).collect();
    let good = entries.iter().filter_map(|entry| match &entry.health {
        Health::Good(info) => Some(&info.volume),
        Health::Locked(volume) => Some(&**volume),
        _ => None,
    });
    let names: Vec<_> = entries.iter().map(|entry| (entry.name.clone(), entry.id)).collect();
    let origins = pool.origins(good, &names).await?;
    lines.iter_mut().for_each(|line| line.parent = origins.get(&line.id).cloned());
    context.show(&lines, || table(&lines))?;
    let deleting = lines.iter().filter(|line| line.state == "deleting");
    for line in deleting {
        eprintln!("objblk: finish the deletion of {} with `objblk delete {0}`", line.name);
    }
    let bad = entries.iter().find_map(|entry| match &entry.health {
        Health::Damaged(e) => Some(damaged(&entry.name, e)),
        _ => None,
    });
    bad.map_or(Ok(()), Err)
}

fn table(lines: &[Line]) -> String {
    let rows = lines.iter().map(|line| {
        vec![
            line.name.clone(),
            or_dash(line.size, size::show),
            or_dash(line.used, size::show),
            line.state.into(),
            or_dash(line.owner.as_ref(), |owner| format!("{}:{}", owner.host, owner.pid)),
            or_dash(line.device.clone(), |device| device),
        ]
    });
    render::table(&["NAME", "SIZE", "USED", "STATE", "OWNER", "DEVICE"], &[1, 2], rows.collect())
}

pub(super) async fn info(context: &Context, name: &VolumeName) -> Result<()> {
    let backend = context.open().await?;
    let pool = &backend.pool;
    let (id, volume) = pool.lookup(name).await?;
    if !pool.is_open(&volume) {
        let line = locked(name.to_string(), &volume, &attached());
        return context.show(&line, || details(&line));
    }
    let info = pool.look(name.as_str(), id).await?;
    let rules = crate::volume::schedule(&**pool.store(), info.volume.id).await;
    let past = past(&**pool.store(), info.volume.id).await?;
    let mut line = known(name.to_string(), &info, &Host::local()?, &attached());
    if info.volume.origin().is_some() {
        let origins = pool.origins([&info.volume].into_iter(), &pool.names().await?).await?;
        line.parent = origins.get(&info.volume.id).cloned();
    }
    if let Some(compressed) = line.compression.as_mut().filter(|c| c.how != "none") {
        let sample = compression_sample(&**pool.store(), info.volume.id).await?;
        compressed.ratio = sample.ratio();
        compressed.looked_at_chunks = Some(sample.chunks);
    }
    line.mirror = backend.mirror_state(id).await?.map(|state| Mirrored {
        state: state.number,
        replicas: state.replicas.clone(),
        in_sync: state.in_sync.iter().map(|twin| twin.store).collect(),
        joining: state.joining.map(|twin| twin.store),
    });
    let scrub = scrubbed(&**pool.store(), info.volume.id).await;
    line.scrub = scrub.unwrap_or_default().and_then(|note| note.last);
    line.retention_ms = past.retention.map(|time| time.as_millis() as u64);
    if let Some((seq, at_ms)) = past.oldest.filter(|_| past.retention.is_some()) {
        (line.oldest_seq, line.oldest_at_ms) = (Some(seq.0), Some(at_ms));
        line.past_chunks = Some(past.chunks);
        let bytes = past.chunks.saturating_mul(info.volume.chunk_size);
        line.past_bytes_at_most = Some(bytes);
    }
    let trouble = rules.map(|rules| line.schedule = Some(schedule::shown(&rules))).err();
    context.show(&line, || details(&line))?;
    trouble.map_or(Ok(()), Err)
}

fn compressed(of: &Compressed) -> String {
    match (of.ratio, of.looked_at_chunks) {
        (Some(ratio), Some(1)) => format!("{}, {ratio:.2}x in the chunk there is", of.how),
        (Some(ratio), Some(chunks)) => {
            format!("{}, {ratio:.2}x in {chunks} chunks that were looked at", of.how)
        }
        _ => of.how.clone(),
    }
}

fn mirrored(of: &Mirrored) -> String {
    let state = |store: &StoreId| match of {
        of if of.in_sync.contains(store) => format!("store {store} in sync"),
        of if of.joining == Some(*store) => format!("store {store} is being made complete"),
        _ => format!("store {store} lacks what was written since it was away"),
    };
    of.replicas.iter().map(state).collect::<Vec<_>>().join(", ")
}

fn details(line: &Line) -> String {
    let bits = |f: crate::format::features::Features| {
        let named = [("compat", f.compat), ("ro-compat", f.ro_compat), ("incompat", f.incompat)];
        let set = named.iter().filter(|(_, bits)| *bits != 0);
        let set: Vec<String> = set.map(|(name, bits)| format!("{name} {bits:#x}")).collect();
        if set.is_empty() { "none".into() } else { set.join(", ") }
    };
    let owner = or_dash(line.owner.as_ref(), |owner| {
        let since = render::time(owner.claimed_at_ms);
        format!("process {} on host {} since {since}", owner.pid, owner.host)
    });
    let mut past = retain::words(line.retention_ms.map(Duration::from_millis));
    if let (Some(seq), Some(at_ms)) = (line.oldest_seq, line.oldest_at_ms) {
        past += &format!(", from slot {seq}, {} on", render::time(at_ms));
    }
    if let (Some(chunks), Some(bytes)) = (line.past_chunks, line.past_bytes_at_most) {
        past += &format!("; {chunks} chunks for it, {} at most", size::show(bytes));
    }
    let mut fields = vec![
        ("name", line.name.clone()),
        ("id", line.id.to_string()),
        ("size", or_dash(line.size, size::show)),
        ("used", or_dash(line.used, size::show)),
        ("snapshots", or_dash(line.snapshots, |count| count.to_string())),
        ("schedule", or_dash(line.schedule.as_deref(), schedule::words)),
        ("past", past),
        ("block size", or_dash(line.block_size, |bytes| size::show(bytes.into()))),
        ("chunk size", or_dash(line.chunk_size, size::show)),
        ("state", line.state.into()),
        ("owner", owner),
        ("epoch", or_dash(line.epoch, |epoch| epoch.to_string())),
        ("device", or_dash(line.device.clone(), |device| device)),
        ("parent", or_dash(line.parent.clone(), |parent| parent)),
        ("compressed", or_dash(line.compression.as_ref(), compressed)),
        ("encrypted", line.encryption.unwrap_or("no").into()),
        ("features", or_dash(line.features, bits)),
        ("health", line.health.clone()),
        ("scrub", render::scrubbed(line.scrub.as_ref())),
        ("made", or_dash(line.created_at_ms, render::time)),
        ("checkpoint", or_dash(line.checkpoint_at_ms, render::time)),
    ];
    if let Some(mirror) = &line.mirror {
        fields.push(("mirror", mirrored(mirror)));
    }
    if let Some(replica) = &line.replica {
        fields.push(("replica", replica.words()));
    }
    if let Some(source) = &line.source {
        fields.push(("began as", source.clone()));
    }
    render::fields(&fields)
}
