//! What other hosts have asked the owner of a volume for.

use super::{Context, render, size};
use crate::daemon::control::decode;
use crate::daemon::{Reply, Request, SnapshotAction};
use crate::error::{Error, Result};
use crate::format::VolumeId;
use crate::format::keys::RequestId;
use crate::format::request::RequestObject;
use crate::pool::VolumeName;
use crate::requests::{self, State};
use crate::store::Store;
use serde_json::{Value, json};

/// Shows one request, or all that are there.
pub(super) async fn request(context: &Context, name: &VolumeName, id: Option<&str>) -> Result<()> {
    let wanted = match id {
        Some(text) => Some(text.parse::<RequestId>().map_err(|e| {
            Error::usage(format!("{text:?} is no request"))
                .because(e)
                .hint("write it as it was told, as in 3-0")
        })?),
        None => None,
    };
    let backend = context.open().await?;
    let (volume, _) = backend.pool.lookup(name).await?;
    let store = &*backend.stores.setup;
    let mut all = requests::all(store, volume).await?;
    all.retain(|(id, _)| wanted.is_none_or(|wanted| wanted == *id));
    if let (Some(id), true) = (wanted, all.is_empty()) {
        return Err(Error::not_found(format!("there is no request {id} to the owner of {name}"))
            .hint("they are deleted an hour after they were answered"));
    }
    let mut shown = Vec::new();
    for (id, asked) in &all {
        shown.push(document(store, volume, *id, asked.as_ref()).await?);
    }
    match (wanted, shown.pop()) {
        (Some(_), Some(one)) => context.show(&one, || {
            let text = |field: &str| one[field].as_str().unwrap_or("-").to_owned();
            format!("{}: {}, {}", text("request"), text("what"), text("outcome"))
        }),
        (_, last) => {
            shown.extend(last);
            context.show(&shown, || {
                let rows = shown.iter().map(|one| {
                    let text = |field: &str| one[field].as_str().unwrap_or("-").to_owned();
                    ["request", "what", "by", "outcome"].map(text).to_vec()
                });
                render::table(&["REQUEST", "WHAT", "ASKED BY", "OUTCOME"], &[], rows.collect())
            })
        }
    }
}

async fn document(
    store: &dyn Store,
    volume: VolumeId,
    id: RequestId,
    asked: Option<&RequestObject>,
) -> Result<Value> {
    let state = requests::state(store, volume, id).await?;
    let (name, outcome) = match &state {
        State::Waiting => ("waiting", "not heard yet".to_owned()),
        State::Taken => ("taken", "begun, not answered yet".into()),
        State::Withdrawn => ("withdrawn", "withdrawn: not done".into()),
        State::PassedOver(by) => {
            ("passed-over", format!("passed over by the owner of epoch {}: not done", by.0))
        }
        State::Answered(answer) => match decode::<Reply>(answer.reply.as_bytes()) {
            Ok(Reply::Refused(refusal)) => ("refused", Error::from(refusal).to_string()),
            Ok(_) => ("done", "done".into()),
            Err(e) => ("answered", e.to_string()),
        },
    };
    Ok(json!({
        "request": id.to_string(),
        "what": asked.map(|asked| words(&asked.order)),
        "by": asked.map(|asked| format!("process {} on host {}", asked.pid, asked.host)),
        "asked_at_ms": asked.map(|asked| asked.asked_at_ms),
        "state": name,
        "outcome": outcome,
    }))
}

/// An order in words.
fn words(order: &str) -> String {
    match decode::<Request>(order.as_bytes()) {
        Ok(Request::Snapshots { action, .. }) => match action {
            SnapshotAction::Make(name) => format!("snapshot create {name}"),
            SnapshotAction::Delete(name) => format!("snapshot delete {name}"),
            SnapshotAction::Keep(name) => format!("snapshot keep {name}"),
            SnapshotAction::List => "snapshot list".into(),
        },
        Ok(Request::Grow { size, .. }) => format!("resize to {}", size::show(size)),
        Ok(Request::Collect { .. }) => "gc".into(),
        Ok(Request::Flatten { .. }) => "flatten".into(),
        Ok(Request::Schedule { .. }) => "snapshot schedule".into(),
        Ok(Request::Retain { .. }) => "retain".into(),
        _ => "something else".into(),
    }
}
