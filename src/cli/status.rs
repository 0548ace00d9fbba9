//! What is attached on this host.

use super::{Context, render, size};
use crate::daemon::client;
use crate::daemon::{Attached, KnownTarget, RunDir, TargetStatus, VolumeReport};
use crate::error::Result;
use crate::pool::backend::Pace;
use crate::store::paths::PathsReport;
use crate::store::paths::state::Condition;
use crate::volume::{
    DiskCacheStatus, JournalStatus, MapStatus, ScrubStatus, SourceStatus, SpaceStatus,
};
use serde::Serialize;

/// An attached volume.
#[derive(Debug, Serialize)]
struct Line {
    #[serde(flatten)]
    attached: Attached,
    frontend: &'static str,
    pid: u32,
    since_ms: u64,
    store: String,
    /// attached, flushing, stopping, closing, failed, dead, silent
    state: &'static str,
    size: Option<u64>,
    epoch: Option<u64>,
    dirty_bytes: Option<u64>,
    /// What a flush promises.
    durability: Option<String>,
    commit_lag: Option<Lag>,
    journal: Option<JournalStatus>,
    recoverable: Option<bool>,
    failure: Option<String>,
    cache: Option<Cache>,
    disk_cache: Option<DiskCacheStatus>,
    /// What the log holds, and what was collected.
    map: Option<MapStatus>,
    space: Option<SpaceStatus>,
    /// Its scrub, where it is scrubbed.
    scrub: Option<ScrubStatus>,
    source: Option<SourceStatus>,
    requests: serde_json::Value,
    store_requests: serde_json::Value,
    /// The paths to the store, where it has some.
    paths: Option<PathsReport>,
    /// The copies of a mirrored volume, and how they have answered.
    copies: Option<Vec<Pace>>,
}

/// What would be lost if this host vanished now, and the most that it was.
#[derive(Debug, Serialize)]
struct Lag {
    bytes: u64,
    ms: u64,
    max_bytes: u64,
    max_ms: u64,
}

#[derive(Debug, Serialize)]
struct Cache {
    hits: u64,
    misses: u64,
    bytes: u64,
    hit_rate: Option<f64>,
}

pub(super) async fn status(context: &Context, name: Option<&str>) -> Result<()> {
    let run_dir = RunDir::open()?;
    let store = context.named_store()?;
    let targets = match name {
        Some(name) => vec![client::find(&run_dir, name, store.as_deref())?],
        None => run_dir.targets()?,
    };
    let wanted = |line: &Line| {
        name.is_none_or(|name| {
            // A device stands for all volumes of its server, a name for itself.
            line.attached.name.as_str() == name || name.contains('/')
        }) && store.as_ref().is_none_or(|store| *store == line.store)
    };
    let mut lines = Vec::new();
    for target in &targets {
        lines.extend(lines_of(target).await.into_iter().filter(&wanted));
    }
    match (name, context.global.json) {
        (Some(_), true) if lines.len() == 1 => render::json(&lines[0]),
        (_, true) => render::json(&lines),
        (None, false) if lines.is_empty() => {
            eprintln!("objblk: nothing is attached on this host");
            Ok(())
        }
        (None, false) => render::print(&table(&lines)),
        (Some(_), false) => {
            let blocks: Vec<String> = lines.iter().map(details).collect();
            render::print(&blocks.join("\n\n"))
        }
    }
}

async fn lines_of(target: &KnownTarget) -> Vec<Line> {
    let told = match target.alive {
        true => client::status(target).await.map(Some),
        false => Ok(None),
    };
    let lines = target.state.volumes.iter();
    lines.map(|volume| line(target, volume, &told)).collect()
}

fn line(target: &KnownTarget, volume: &Attached, told: &Result<Option<TargetStatus>>) -> Line {
    let state = &target.state;
    let report: Option<&VolumeReport> = match told {
        Ok(Some(status)) => status.volumes.iter().find(|report| report.id == volume.id),
        _ => None,
    };
    Line {
        attached: volume.clone(),
        frontend: state.frontend.name(),
        pid: state.pid,
        since_ms: state.since_ms,
        store: state.store.clone(),
        state: match (told, report) {
            (Ok(None), _) => "dead",
            (Err(_), _) | (Ok(Some(_)), None) => "silent",
            (_, Some(report)) if report.failure.is_some() => "failed",
            (Ok(Some(status)), _) => status.phase.name(),
        },
        size: report.map(|r| r.size),
        epoch: report.map(|r| r.epoch),
        dirty_bytes: report.map(|r| r.dirty_bytes),
        durability: report.map(durability),
        commit_lag: report.map(|r| Lag {
            bytes: r.dirty_bytes,
            ms: r.lag_ms,
            max_bytes: r.max_dirty_bytes,
            max_ms: r.max_lag_ms,
        }),
        journal: report.and_then(|r| r.journal.clone()),
        recoverable: report.map(|r| r.recoverable),
        failure: match told {
            Err(e) => Some(e.to_string()),
            Ok(_) => report.and_then(|r| r.failure.clone()),
        },
        cache: report.map(cache),
        disk_cache: report.and_then(|r| r.disk_cache.clone()),
        map: report.map(|r| r.map.clone()),
        space: report.map(|r| r.space.clone()),
        scrub: report.and_then(|r| r.scrub),
        source: report.and_then(|r| r.source.clone()),
        requests: report.map(|r| r.frontend.clone()).unwrap_or_default(),
        store_requests: match told {
            Ok(Some(status)) => status.store.clone(),
            _ => serde_json::Value::Null,
        },
        paths: match told {
            Ok(Some(status)) => status.paths.clone(),
            _ => None,
        },
        copies: report.and_then(|r| r.copies.clone()),
    }
}

fn durability(report: &VolumeReport) -> String {
    let failure = report.journal.as_ref().and_then(|journal| journal.failure.as_ref());
    match (report.durable_locally, failure) {
        (true, _) => "local".into(),
        (false, Some(why)) => format!("object ({why})"),
        (false, None) => "object".into(),
    }
}

fn cache(report: &VolumeReport) -> Cache {
    let (hits, misses) = (report.cache_hits, report.cache_misses);
    let all = hits + misses;
    let hit_rate = (all > 0).then(|| hits as f64 / all as f64);
    Cache { hits, misses, bytes: report.cache_bytes, hit_rate }
}

fn disk_cache(cache: &DiskCacheStatus) -> String {
    let (hits, all) = (cache.hits, cache.hits + cache.misses);
    match &cache.failure {
        Some(why) => format!("off ({why})"),
        None => format!("{}, {}, {hits} of {all} frames", cache.path, size::show(cache.size)),
    }
}

/// How many there are, and those that are not used.
fn paths(report: &PathsReport) -> String {
    let used = report.paths.iter().filter(|path| path.state == Condition::Active).count();
    let others = report.paths.iter().filter(|path| path.state != Condition::Active);
    let others: String =
        others.map(|path| format!("; {} is {}", path.name, path.state.name())).collect();
    format!("{used} of {} work, {}{others}", report.paths.len(), report.selector)
}

fn copy_of(pace: &Pace) -> String {
    let state = if pace.in_sync { "in sync" } else { "not in sync" };
    let ms = |mean: Option<f64>| or_dash(mean, |ms| format!("{ms:.1} ms"));
    let (small, large) = (ms(pace.small_ms), ms(pace.large_ms));
    let answered = pace.answered;
    format!(
        "store {} {state}, {answered} reads, {small} for a small one, {large} for a large one",
        pace.store
    )
}

fn or_dash<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".into(), show)
}

fn hit_rate(line: &Line) -> String {
    let rate = line.cache.as_ref().and_then(|cache| cache.hit_rate);
    or_dash(rate, |rate| format!("{:.0} %", rate * 100.0))
}

fn map_in_use(map: &MapStatus) -> String {
    let (cached, budget) = (size::show(map.cached_bytes), size::show(map.budget_bytes));
    let written = size::show(map.written_bytes);
    format!("{cached} of {budget}, {} changes, {written} of checkpoints stored", map.changes)
}

fn stored(space: &SpaceStatus) -> String {
    let Some(bytes) = space.stored_bytes else { return "-".into() };
    let ratio = space.ratio.map(|ratio| format!(", {ratio:.2} x what is live"));
    let bound = space.bound.map(|bound| format!(" (at most {bound:.2})"));
    let wait = if space.writers_wait { ", writers wait for collection" } else { "" };
    let [ratio, bound] = [ratio, bound].map(Option::unwrap_or_default);
    format!("{}{ratio}{bound}{wait}", size::show(bytes))
}

fn collected(space: &SpaceStatus) -> String {
    let moved = size::show(space.moved_bytes);
    let amplified =
        space.write_amplification.map(|x| format!(", {x:.2} bytes stored a byte written"));
    let chunks = space.collected_chunks;
    format!("{chunks} chunks, {moved} moved{}", amplified.unwrap_or_default())
}

fn source_of(source: &SourceStatus) -> String {
    let lacking = match source.absent_bytes {
        0 => "needed no more".into(),
        bytes => format!("{} to be fetched", size::show(bytes)),
    };
    let trouble = source.trouble.as_ref().map(|why| format!(" ({why})"));
    format!("{}, {lacking}{}", source.url, trouble.unwrap_or_default())
}

fn scrub_of(scrub: &ScrubStatus) -> String {
    let now = scrub.next_seq.map(|next| {
        let (read, rate) = (size::show(scrub.now.bytes), size::show(scrub.rate));
        let (end, left) = (scrub.end_seq, scrub.now.left());
        format!("at slot {next} of {end}, {read} read, at most {rate}/s, {left} damaged; ")
    });
    format!("{}{}", now.unwrap_or_default(), render::scrubbed(scrub.last.as_ref()))
}

fn table(lines: &[Line]) -> String {
    let header = ["NAME", "DEVICE", "FRONTEND", "PID", "STATE", "SIZE", "DIRTY", "CACHE HITS"];
    let rows = lines.iter().map(|line| {
        vec![
            line.attached.name.to_string(),
            line.attached.device.clone(),
            line.frontend.into(),
            line.pid.to_string(),
            line.state.into(),
            or_dash(line.size, size::show),
            or_dash(line.dirty_bytes, size::show),
            hit_rate(line),
        ]
    });
    render::table(&header, &[3, 5, 6, 7], rows.collect())
}

fn details(line: &Line) -> String {
    let attached = &line.attached;
    let mut fields = vec![
        ("name", attached.name.to_string()),
        ("id", attached.id.to_string()),
        ("device", attached.device.clone()),
        ("link", or_dash(attached.link.clone(), |link| link)),
        ("frontend", line.frontend.into()),
        ("process", line.pid.to_string()),
        ("since", render::time(line.since_ms)),
        ("store", line.store.clone()),
        ("state", line.state.into()),
        ("access", if attached.read_only { "read-only" } else { "read-write" }.into()),
        ("size", or_dash(line.size, size::show)),
        ("epoch", or_dash(line.epoch, |epoch| epoch.to_string())),
        ("dirty", or_dash(line.dirty_bytes, size::show)),
        ("recovery", or_dash(line.recoverable, |yes| if yes { "yes" } else { "no" }.into())),
        ("cache hits", hit_rate(line)),
        ("cached", or_dash(line.cache.as_ref(), |cache| size::show(cache.bytes))),
    ];
    if let Some(lag) = &line.commit_lag {
        let show = |bytes, ms: u64| format!("{}, {:.1} s", size::show(bytes), ms as f64 / 1000.0);
        fields.push(("durability", or_dash(line.durability.clone(), |class| class)));
        fields.push(("commit lag", show(lag.bytes, lag.ms)));
        fields.push(("at most", show(lag.max_bytes, lag.max_ms)));
    }
    if let Some(map) = &line.map {
        fields.push(("map", map_in_use(map)));
    }
    if let Some(space) = &line.space {
        fields.push(("stored", stored(space)));
        fields.push(("collected", collected(space)));
    }
    if let Some(scrub) = &line.scrub {
        fields.push(("scrub", scrub_of(scrub)));
    }
    if let Some(source) = &line.source {
        fields.push(("source", source_of(source)));
    }
    if let Some(journal) = &line.journal {
        let (used, size) = (size::show(journal.used_bytes), size::show(journal.size));
        fields.push(("journal", format!("{}, {used} of {size} used", journal.path)));
    }
    if let Some(cache) = &line.disk_cache {
        fields.push(("disk cache", disk_cache(cache)));
    }
    if let Some(report) = &line.paths {
        fields.push(("paths", paths(report)));
    }
    for pace in line.copies.iter().flatten() {
        fields.push(("copy", copy_of(pace)));
    }
    if let Some(failure) = &line.failure {
        fields.push(("failure", failure.clone()));
    }
    render::fields(&fields)
}
