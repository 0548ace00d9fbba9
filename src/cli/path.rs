//! The paths by which attached volumes reach their store.

use super::args::Path;
use super::{Context, render, size};
use crate::daemon::client::{self, find};
use crate::daemon::{KnownTarget, PathChange, RunDir};
use crate::error::Result;
use crate::store::paths::state::Condition;
use crate::store::paths::{PathReport, PathsReport};
use serde::Serialize;

/// The paths of one process.
#[derive(Debug, Serialize)]
struct Line {
    /// Its volumes.
    volumes: Vec<String>,
    pid: u32,
    store: String,
    #[serde(flatten)]
    report: PathsReport,
}

pub(super) async fn dispatch(context: &Context, verb: Path) -> Result<()> {
    let (name, wanted) = match verb {
        Path::List { name } => return list(context, name.as_deref()).await,
        Path::Add { name, path } => (name, PathChange::Add(path.parse()?)),
        Path::Remove { name, path } => (name, PathChange::Remove(path)),
        Path::Enable { name, path } => (name, PathChange::Enable(path)),
        Path::Disable { name, path } => (name, PathChange::Disable(path)),
        Path::SetSelector { name, selector } => (name, PathChange::Select(selector.parse()?)),
    };
    change(context, &name, wanted).await
}

async fn list(context: &Context, name: Option<&str>) -> Result<()> {
    let targets = match name {
        Some(name) => vec![target(context, name)?],
        None => {
            let all = RunDir::open()?.targets()?;
            let has_paths = |target: &KnownTarget| target.state.store.starts_with("s3://");
            all.into_iter().filter(|target| target.alive && has_paths(target)).collect()
        }
    };
    let mut lines = Vec::new();
    for target in &targets {
        lines.push(line(target, client::paths(target, None).await?));
    }
    if lines.is_empty() && !context.global.json {
        eprintln!("objblk: no volume of a bucket is attached on this host");
        return Ok(());
    }
    match (name, lines.as_slice()) {
        (Some(_), [line]) => context.show(line, || text(line)),
        _ => context.show(&lines, || lines.iter().map(text).collect::<Vec<_>>().join("\n\n")),
    }
}

/// Has the owner change its paths; shows what they are then.
async fn change(context: &Context, name: &str, change: PathChange) -> Result<()> {
    let target = target(context, name)?;
    let line = line(&target, client::paths(&target, Some(change)).await?);
    context.show(&line, || text(&line))
}

fn target(context: &Context, name: &str) -> Result<KnownTarget> {
    find(&RunDir::open()?, name, context.named_store()?.as_deref())
}

fn line(target: &KnownTarget, report: PathsReport) -> Line {
    let volumes = target.state.volumes.iter().map(|volume| volume.name.to_string()).collect();
    Line { volumes, pid: target.state.pid, store: target.state.store.clone(), report }
}

fn text(line: &Line) -> String {
    let Line { volumes, store, report, .. } = line;
    let PathsReport { selector, failback, no_path_retry, paths, .. } = report;
    let header = [
        "ID", "PATH", "PRIORITY", "WEIGHT", "STATE", "FOR", "REQUESTS", "FAULTS", "NOW", "MOVED",
        "P50", "P99",
    ];
    let table =
        render::table(&header, &[0, 2, 3, 5, 6, 7, 8, 9, 10, 11], paths.iter().map(row).collect());
    let troubles = paths.iter().filter(|path| path.state != Condition::Active);
    let troubles = troubles.filter_map(|path| {
        let why = path.last_error.as_ref()?;
        Some(format!("\n{}: {why}", path.name))
    });
    let troubles: String = troubles.collect();
    let names = volumes.join(", ");
    format!(
        "{names} at {store}: {selector}, failback {failback}, without a path {no_path_retry}\n{table}{troubles}"
    )
}

fn row(path: &PathReport) -> Vec<String> {
    let ms =
        |us: Option<u64>| us.map_or_else(|| "-".into(), |us| format!("{:.1} ms", us as f64 / 1e3));
    let seconds = path.for_ms / 1000;
    vec![
        path.id.to_string(),
        path.name.clone(),
        path.priority.to_string(),
        path.weight.to_string(),
        match path.in_use || path.state != Condition::Active {
            true => path.state.name().into(),
            false => "standby".into(),
        },
        format!("{seconds} s"),
        path.requests.to_string(),
        path.faults().to_string(),
        path.in_flight.to_string(),
        size::show(path.bytes),
        ms(path.p50_us),
        ms(path.p99_us),
    ]
}
