//! Journals that are left on this host: what they hold, and giving one up.

use super::{Context, confirm, render, size};
use crate::daemon::journals;
use crate::error::Result;
use serde_json::json;
use std::path::Path;

pub(super) async fn list(context: &Context, folder: &Path) -> Result<()> {
    let found = journals::list(folder).await?;
    if context.global.json {
        return render::json(&found);
    }
    if found.is_empty() {
        eprintln!("objblk: there is no journal in {}", folder.display());
        return Ok(());
    }
    let header = ["FILE", "SIZE", "VOLUME", "EPOCH", "SLOTS", "BYTES", "TROUBLE"];
    let dash = || "-".to_owned();
    let rows = found.iter().map(|file| {
        vec![
            file.path.display().to_string(),
            size::show(file.size),
            file.volume.map_or_else(dash, |id| id.to_string()),
            file.epoch.map_or_else(dash, |epoch| epoch.to_string()),
            file.slots.to_string(),
            size::show(file.bytes),
            file.trouble.clone().unwrap_or_else(dash),
        ]
    });
    render::print(&render::table(&header, &[1, 3, 4, 5], rows.collect()))
}

pub(super) async fn discard(context: &Context, name: &str, folder: &Path, yes: bool) -> Result<()> {
    let (id, _) = context.open().await?.pool.lookup(&name.parse()?).await?;
    let what = format!("giving up what only the journal of {name} in {} has", folder.display());
    confirm::confirm(&what, yes)?;
    let path = journals::discard(folder, id)?;
    context.show(&json!({ "name": name, "id": id, "path": path }), || {
        format!("{} is gone", path.display())
    })
}
