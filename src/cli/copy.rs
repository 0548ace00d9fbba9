//! A snapshot into another pool.
//!
//! What is copied is what changed since the newest snapshot that both have. So a copy that is repeated is
//! incremental, and one that was cut off begins again where the last whole one ended.

use super::view::View;
use super::{Context, args, export_diff, import_diff, render, snapshot};
use crate::clock::{Clock, SystemClock};
use crate::daemon::SnapshotAction;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::snapshot::SnapshotEntry;
use crate::format::stream::StreamHeader;
use crate::pool::backend::Backend;
use crate::pool::{VolumeName, VolumeSpec};
use crate::settings::{Endpoints, Location, Named};
use crate::store::url::StoreUrl;
use crate::transfer::progress::Progress;
use crate::transfer::stream::{Incoming, Received, receive, send};
use crate::volume::{Volume, list_snapshots, original, unfinished_receipt};

/// Bytes that are under way.
const PIPE: usize = 4 << 20;

pub(super) async fn copy(context: &Context, copy: args::Copy) -> Result<()> {
    let name: VolumeSpec = copy.name.parse()?;
    let new: VolumeName = match &copy.new {
        Some(new) => new.parse()?,
        None => name.volume(),
    };
    let source = context.open().await?;
    let (id, _) = source.pool.lookup(&name.volume()).await?;
    let other = (&*copy.to, &copy.to_endpoint_url, &copy.to_region);
    let target = super::volume::open_or_create(&destination(context, other)?).await?;
    let target = target.with_key(context.given()?);
    let there = There::look(&target, &new).await?;
    if there.as_ref().is_some_and(|there| there.id == id) {
        return Err(Error::usage(format!("{new} in {} is the volume itself", copy.to))
            .hint("give the copy another name, or name another pool"));
    }
    let name = match name.snapshot() {
        Some(_) => name,
        None => make_snapshot(context, &name).await?,
    };
    let way = Way { source: &source, target: &target, new: &new, copy: &copy };
    // What was begun and not finished comes first: the copy is between two states.
    let begun = match &there {
        Some(there) => there.begun(&way, (id, &name)).await?,
        None => None,
    };
    if let Some(begun) = begun.filter(|begun| *begun != name) {
        eprintln!("objblk: {begun} was not copied to its end before: that is done first");
        way.bring(&begun).await?;
    }
    let (header, received) = way.bring(&name).await?;
    import_diff::show(context, &new, &header, &received)
}

/// The other pool. What was said of S3 holds for both, unless it was said for this one.
pub(super) fn destination(
    context: &Context,
    (to, endpoint_url, own_region): (&str, &Option<String>, &Option<String>),
) -> Result<Location> {
    let global = &context.global;
    let is_s3 = matches!(to.parse()?, StoreUrl::S3(_));
    let unless = |own: &Option<String>, both: &Option<String>| {
        own.clone().or_else(|| both.clone().filter(|_| is_s3))
    };
    let named = Named {
        store: Some(to.to_owned()),
        endpoint_url: Endpoints(match endpoint_url {
            Some(own) => vec![own.clone()],
            None if is_s3 => global.endpoint_url.clone(),
            None => Vec::new(),
        }),
        region: unless(own_region, &global.region),
        ..Named::default()
    };
    Location::find(named, global.config.as_deref()).map_err(|e| e.context("--to"))
}

async fn make_snapshot(context: &Context, name: &VolumeSpec) -> Result<VolumeSpec> {
    let called = format!("copy-{}", render::stamp(SystemClock.now_ms()));
    let made = snapshot::run(context, &name.volume(), SnapshotAction::Make(called.clone())).await;
    made.map_err(|e| e.context(format!("cannot make {name}@{called}")))?;
    format!("{name}@{called}").parse()
}

/// The copy, as far as it is there.
struct There {
    id: VolumeId,
    snapshots: Vec<SnapshotEntry>,
}

impl There {
    async fn look(target: &Backend, name: &VolumeName) -> Result<Option<There>> {
        let id = match target.pool.lookup(name).await {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?.0,
        };
        let snapshots = list_snapshots(&*target.stores.setup, id).await?;
        Ok(Some(There { id, snapshots }))
    }

    /// The snapshot of the source that was being copied last and is not there.
    async fn begun(
        &self,
        way: &Way<'_>,
        (source, name): (VolumeId, &VolumeSpec),
    ) -> Result<Option<VolumeSpec>> {
        let (from, to) = (&*way.source.stores.setup, &*way.target.stores.setup);
        let Some(note) = unfinished_receipt(to, self.id, &self.snapshots).await? else {
            return Ok(None);
        };
        for entry in list_snapshots(from, source).await?.iter().rev() {
            if original(from, source, entry.id).await? == note.snapshot {
                return format!("{}@{}", name.volume(), entry.name).parse().map(Some);
            }
        }
        Ok(None)
    }

    /// The newest snapshot that both have and that is not newer than `view`, as the source has it and as the
    /// copy has it. `None`: the copy has none at all.
    async fn common(
        &self,
        way: &Way<'_>,
        view: &View,
    ) -> Result<Option<(VolumeSpec, &SnapshotEntry)>> {
        let (from, to) = (&*way.source.stores.setup, &*way.target.stores.setup);
        let entries = list_snapshots(from, view.id).await?;
        for copied in self.snapshots.iter().rev() {
            let named = entries.iter().find(|entry| entry.name == copied.name);
            let Some(named) = named.filter(|entry| entry.next <= view.entry.next) else { continue };
            let originals =
                (original(from, view.id, named.id).await?, original(to, self.id, copied.id).await?);
            if originals.0 == originals.1 {
                let name = format!("{}@{}", view.name.volume(), named.name).parse()?;
                return Ok(Some((name, copied)));
            }
        }
        match self.snapshots.is_empty() {
            true => Ok(None),
            false => {
                let text =
                    format!("{} and the copy have no snapshot in common", view.name.volume());
                Err(Error::failed(text).hint("copy to another name"))
            }
        }
    }
}

/// From where to where.
struct Way<'a> {
    source: &'a Backend,
    target: &'a Backend,
    new: &'a VolumeName,
    copy: &'a args::Copy,
}

impl Way<'_> {
    /// Has the copy be what the snapshot is.
    async fn bring(&self, name: &VolumeSpec) -> Result<(StreamHeader, Received)> {
        let view = View::open(self.source, name).await?;
        let there = There::look(self.target, self.new).await?;
        let common = match &there {
            Some(there) => there.common(self, &view).await?,
            None => None,
        };
        if let Some((_, copied)) = common.as_ref().filter(|(base, _)| base == name) {
            let header = view.header(self.source, None).await?;
            return Ok((header, Received::was_there((*copied).clone())));
        }
        let base = match (&self.copy.from, common) {
            (Some(from), _) => Some(export_diff::older(name, from)?),
            (None, common) => common.map(|(base, _)| base),
        };
        let base = match base {
            Some(base) => Some(View::open(self.source, &base).await?),
            None => None,
        };
        let header = view.header(self.source, base.as_ref()).await?;
        let progress = Progress::shown(None, format!("copying {name}"), self.copy.progress);
        let states = (&view.volume, base.as_ref().map(|base| &base.volume));
        let to = (self.target, self.new, self.copy.takeover);
        match transfer(&header, states, to, &progress).await {
            Ok(received) => {
                progress.finish();
                Ok((header, received))
            }
            Err(e) => {
                let e = view.explain(self.source, e).await;
                let (new, to) = (self.new, &self.copy.to);
                Err(e.context(format!("cannot copy {name} to {new} in {to}")))
            }
        }
    }
}

async fn transfer(
    header: &StreamHeader,
    states: (&Volume, Option<&Volume>),
    (target, name, takeover): (&Backend, &VolumeName, bool),
    progress: &Progress,
) -> Result<Received> {
    import_diff::into(target, header, (name, takeover), async |volume: &Volume| {
        let (mut out, input) = tokio::io::duplex(PIPE);
        let sending = async move { send(header, states, &mut out, &|_| {}).await };
        let receiving = async {
            let incoming = Incoming::begin(input).await?;
            receive(volume, incoming, import_diff::new_id(), &|bytes| progress.add(bytes)).await
        };
        match futures::join!(sending, receiving) {
            (Ok(_), received) => received,
            // The stream is cut short because it cannot be sent, or cannot be sent because nobody takes it.
            (Err(sent), Err(received)) if received.kind() == ErrorKind::Corrupt => {
                Err(Error::new(sent.kind(), format!("{sent}; {name} is between two states"))
                    .hint("copy the same snapshot again"))
            }
            (Err(_), received) => received,
        }
    })
    .await
}
