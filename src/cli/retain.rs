//! How long the past of a volume is kept.

use super::snapshot::go_there;
use super::{Context, duration, owner, volume};
use crate::daemon::{Request, RunDir};
use crate::error::Result;
use crate::pool::VolumeName;
use crate::pool::backend::Backend;
use serde_json::json;
use std::time::Duration;

pub(super) async fn retain(context: &Context, name: &VolumeName, time: &str) -> Result<()> {
    let time = duration::parse_or_off("the time", time)?;
    let backend = context.open().await?;
    set(context, &backend, name, time).await?;
    let retention_ms = time.map(millis);
    let document = json!({ "name": name, "retention_ms": retention_ms });
    context.show(&document, || format!("{name}: {}", words(time)))
}

/// Has the owner do it, or owns the volume for that time.
pub(super) async fn set(
    context: &Context,
    backend: &Backend,
    name: &VolumeName,
    time: Option<Duration>,
) -> Result<()> {
    let (id, _) = backend.pool.lookup(name).await?;
    let request = Request::Retain { volume: id, time_ms: time.map(millis) };
    if let Some(reply) = owner::ask(context, backend, (id, name), request).await? {
        return reply.set();
    }
    let held = RunDir::open()?.take(&[(id, name.clone().into())])?;
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

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
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
