//! `objblk delete`: into the trash, or at once.

use super::{Context, args, confirm, duration, render, size};
use crate::daemon::{RunDir, environment};
use crate::error::{ErrorKind, Result};
use crate::host::Host;
use crate::pool::backend::Backend;
use crate::pool::{Deleted, Executioner, KEEP, VolumeName};
use serde_json::json;
use std::time::Duration;

pub(super) async fn delete(context: &Context, delete: args::Delete) -> Result<()> {
    let name: VolumeName = delete.name.parse()?;
    let keep = match delete.keep.as_deref() {
        Some(text) => duration::parse_some("--keep", text)?,
        None => KEEP,
    };
    let backend = context.open().await?;
    let by = executioner(&backend, delete.force)?;
    if let Some(begun) = backend.pool.left_over(&name).await? {
        confirm::confirm(&format!("removing what is left of volume {name}"), delete.yes)?;
        let deleted = backend.pool.purge(&begun, &by).await?;
        return show_removed(context, &name, deleted);
    }
    if let Some(import) = backend.pool.import_to_delete(&name).await? {
        confirm::confirm(&format!("removing what was imported of volume {name}"), delete.yes)?;
        let deleted = backend.pool.delete_import(&name, &import, &by).await?;
        return show_removed(context, &name, deleted);
    }
    let id = match backend.pool.lookup(&name).await {
        Ok((id, _)) => Some(id),
        Err(e) if matches!(e.kind(), ErrorKind::Store | ErrorKind::NotFound) => return Err(e),
        // What is damaged can still be deleted.
        Err(_) => None,
    };
    let how = if delete.now { " with all its data, at once" } else { "" };
    confirm::confirm(&format!("deleting volume {name}{how}"), delete.yes)?;
    let held = match id.map(|id| RunDir::open()?.take(&[(id, name.clone().into())])).transpose() {
        Err(e) if !delete.force || e.kind() != ErrorKind::Busy => return Err(e),
        held => held.ok().flatten(),
    };
    let done = match delete.now {
        true => now(context, &backend, &name, &by).await,
        false => to_trash(context, &backend, &name, keep, &by).await,
    };
    if let Some(held) = held {
        held.release();
    }
    done
}

/// What a deletion is done with.
pub(super) fn executioner(backend: &Backend, force: bool) -> Result<Executioner> {
    let (env, stores, host) = (environment(), backend.stores.clone(), Host::local()?);
    Ok(Executioner { env, stores, host, force })
}

async fn now(
    context: &Context,
    backend: &Backend,
    name: &VolumeName,
    by: &Executioner,
) -> Result<()> {
    let deleted = backend.pool.delete_now(name, by).await?;
    show_removed(context, name, deleted)
}

async fn to_trash(
    context: &Context,
    backend: &Backend,
    name: &VolumeName,
    keep: Duration,
    by: &Executioner,
) -> Result<()> {
    let discarded = backend.pool.delete(name, keep, by).await?;
    let document = json!({
        "name": name,
        "id": discarded.id,
        "trash": true,
        "expires_at_ms": discarded.expires_at_ms,
    });
    context.show(&document, || {
        format!("{name}: in the trash, until {} at least", render::time(discarded.expires_at_ms))
    })
}

fn show_removed(context: &Context, name: &VolumeName, deleted: Deleted) -> Result<()> {
    let document = json!({
        "name": name,
        "trash": false,
        "objects": deleted.objects,
        "bytes": deleted.bytes,
    });
    context.show(&document, || removed(name.as_str(), deleted))
}

/// What was removed, for people.
pub(super) fn removed(label: &str, deleted: Deleted) -> String {
    format!("{label}: {} objects, {} removed", deleted.objects, size::show(deleted.bytes))
}
