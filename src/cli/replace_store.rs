//! A store is gone for good, and another one takes its place.

use super::Context;
use super::confirm::confirm;
use super::stores::{NAMED, name_of};
use crate::doctor::Doctor;
use crate::error::Result;
use crate::format::VolumeId;
use crate::format::stores::StoreId;
use crate::pool::VolumeName;
use crate::pool::backend::Backend;
use crate::pool::several::{Losing, NewStore, Several};
use crate::store::Store;
use serde_json::json;
use std::sync::Arc;

pub(super) async fn replace(
    context: &Context,
    (id, new): (StoreId, NewStore),
    yes: bool,
) -> Result<()> {
    let backend = context.open().await?;
    let several = backend.several()?;
    let losing = several.losing(id).await?;
    let losses = losses(&backend, &several, id, &losing).await?;
    // Without it, they are in the question.
    for loss in losses.iter().filter(|_| yes) {
        eprintln!("objblk: {loss}");
    }
    if losing.rest.is_some() {
        let what = match losses.len() {
            0 => format!("going on without store {id}, which loses nothing"),
            1 => format!("going on without store {id}, which loses data: {}", losses[0]),
            n => {
                let named = losses.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
                let more = if n > NAMED { "; and others" } else { "" };
                format!(
                    "going on without store {id}, which loses data of {n} volumes: {named}{more}"
                )
            }
        };
        confirm(&what, yes)?;
    }
    let done = several.replace(id, &new).await?;
    let volumes = named(&backend, &done.volumes).await?;
    if !volumes.is_empty() && !context.global.json {
        eprintln!(
            "objblk: {} will be complete in store {} once attached for a while",
            volumes.join(", "),
            done.store
        );
    }
    let object = &several.spread().version().object;
    let document = json!({
        "removed": id, "store": done.store, "version": object.number, "digest": object.digest(),
        "volumes": done.volumes, "losses": losses,
    });
    context.show(&document, || done.store.to_string())
}

async fn named(backend: &Backend, ids: &[VolumeId]) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for id in ids {
        names.push(name_of(backend, *id).await?);
    }
    Ok(names)
}

/// What is lost with the store, a sentence for each volume.
async fn losses(
    backend: &Backend,
    several: &Several,
    id: StoreId,
    losing: &Losing,
) -> Result<Vec<String>> {
    let mut losses = Vec::new();
    let Some(rest) = &losing.rest else { return Ok(losses) };
    let writers = several.writers_by(&**rest, id, false).await?;
    for (name, volume) in backend.pool.names().await? {
        if losing.mirrored.contains(&volume) {
            continue;
        }
        if let Some(lacks) = lacks(backend, rest, &name.parse()?).await? {
            losses.push(format!("volume {name} {lacks} without store {id}"));
        } else if writers.iter().any(|writer| writer.volume == volume && !writer.is_closed) {
            losses.push(format!("volume {name} may lack what was written last without store {id}"));
        }
    }
    Ok(losses)
}

/// What would be wrong with a volume; `None`: nothing.
async fn lacks(
    backend: &Backend,
    rest: &Arc<dyn Store>,
    name: &VolumeName,
) -> Result<Option<String>> {
    let pool = backend.supposing(rest);
    let report = match Doctor::new(&pool, false, None).check(name).await {
        Ok(report) => report,
        Err(e) => return Ok(Some(format!("cannot be examined ({e})"))),
    };
    let error = report.volumes.iter().find_map(|volume| volume.error.clone());
    Ok(match (report.damage_count(), error) {
        (0, None) => None,
        (0, Some(why)) => Some(format!("cannot be examined ({why})")),
        (1, _) => Some("lacks an object".into()),
        (n, _) => Some(format!("lacks {n} objects")),
    })
}
