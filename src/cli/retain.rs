//! How long the past of a volume is kept.

use super::snapshot::{go_there, serving};
use super::{Context, duration, volume};
use crate::daemon::{RunDir, client};
use crate::error::Result;
use crate::pool::VolumeName;
use crate::pool::backend::Backend;
use serde_json::json;
use std::time::Duration;

pub(super) async fn retain(context: &Context, name: &VolumeName, time: &str) -> Result<()> {
    let time = duration::parse_or_off("the time", time)?;
    let backend = context.open().await?;
    set(&backend, name, time).await?;
    let retention_ms = time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let document = json!({ "name": name, "retention_ms": retention_ms });
    context.show(&document, || format!("{name}: {}", words(time)))
}

/// Has the owner do it, or owns the volume for that time.
pub(super) async fn set(
    backend: &Backend,
    name: &VolumeName,
    time: Option<Duration>,
) -> Result<()> {
    let (id, _) = backend.pool.lookup(name).await?;
    let run_dir = RunDir::open()?;
    if let Some(target) = serving(&run_dir, id)? {
        return client::retain(&target, id, time).await;
    }
    let held = run_dir.take(&[(id, name.clone().into())])?;
    let done = async {
        let volume = volume::own(backend, id, name).await.map_err(go_there)?;
        let done = volume.retain(time).await;
        let closed = volume.close().await;
        done.and(closed)
    };
    let done = done.await;
    held.release();
    done
}

/// How long the past is kept, in words.
pub(super) fn words(time: Option<Duration>) -> String {
    let Some(time) = time else { return "the past is not kept".into() };
    let seconds = time.as_secs();
    let units = [("d", 86_400), ("h", 3600), ("m", 60)];
    let unit = units.into_iter().find(|(_, unit)| seconds > 0 && seconds.is_multiple_of(*unit));
    let shown = match unit {
        Some((name, unit)) => format!("{}{name}", seconds / unit),
        None => format!("{time:?}"),
    };
    format!("the past is kept for {shown}")
}
