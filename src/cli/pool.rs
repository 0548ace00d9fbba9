//! Verbs about the pool itself.

use super::{Context, render, size, stores};
use crate::error::Result;
use crate::pool::Health;
use crate::pool::backend::{Backend, Creation};
use serde_json::json;

pub(super) async fn init(context: &Context, bucket: bool, unsafe_no_fencing: bool) -> Result<()> {
    let (url, s3) = context.location()?.parts()?;
    let how = Creation { bucket, unsafe_no_fencing };
    let backend = Backend::create(&url, &s3, how).await?;
    if unsafe_no_fencing {
        eprintln!(
            "objblk: this pool works without create-if-absent: make sure yourself that a volume is \
             never attached twice"
        );
    }
    let pool = backend.pool.object();
    let document = json!({ "store": url.to_string(), "id": pool.id, "fencing": pool.fencing });
    context.show(&document, || url.to_string())
}

pub(super) async fn status(context: &Context) -> Result<()> {
    let backend = context.open().await?;
    let (pool, url) = (backend.pool.object(), backend.pool.store().url());
    let (entries, trash) = (backend.pool.list().await?, backend.pool.trash().await?);
    let expired = trash.iter().filter(|trashed| trashed.is_expired()).count();
    let good = entries.iter().filter_map(|entry| match &entry.health {
        Health::Good(info) => Some(&info.ownership),
        _ => None,
    });
    let (mut size, mut used, mut volumes) = (0, 0, 0);
    for ownership in good {
        volumes += 1;
        size += ownership.size.bytes();
        used += ownership.live.bytes();
    }
    let others = entries.len() - volumes;
    let several = stores::status(&backend).await?;
    let mut document = json!({
        "store": url, "id": pool.id, "version": pool.version, "fencing": pool.fencing,
        "features": pool.features, "created_at_ms": pool.created_at_ms,
        "volumes": volumes, "damaged_or_deleting": others, "size": size, "used": used,
        "trash": trash.len(), "trash_expired": expired,
    });
    if let Some((object, census)) = &several {
        document["stores"] = stores::document(census);
        document["stores_version"] = json!(object.number);
        document["stores_digest"] = json!(object.digest());
    }
    context.show(&document, || {
        let fields = render::fields(&[
            ("store", url.clone()),
            ("id", pool.id.to_string()),
            ("fencing", if pool.fencing { "yes" } else { "NO (--unsafe-no-fencing)" }.into()),
            ("made", render::time(pool.created_at_ms)),
            ("volumes", volumes.to_string()),
            ("damaged or deleting", others.to_string()),
            ("size of all", size::show(size)),
            ("used", size::show(used)),
            ("in the trash", format!("{}, {expired} of them expired", trash.len())),
        ]);
        match &several {
            None => fields,
            Some((object, census)) => format!("{fields}\n\n{}", stores::table(object, census)),
        }
    })
}
