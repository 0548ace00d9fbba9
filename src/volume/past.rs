//! The volume as of a moment of its past, read-only; and how long the past is kept.
//!
//! A moment is a slot of the log or a time. The state begins with the newest point (or checkpoint) that is not
//! after the moment, and goes on with the log from there on: up to the slot, or to the first chunk that was sealed
//! after the time. So it is a prefix of what the host did, to the chunk: it has everything that a flush
//! covered which had ended by then, and nothing that was written later, by the clocks of the owners.
//!
//! Nothing is claimed, fenced or pinned. What expires while it is read turns into I/O errors; while it is
//! opened, into an error that names the oldest moment.

use super::Volume;
use super::checkpoint;
use super::hydrate;
use super::look::{LOOKUPS, is_newest, newest_checkpoint, read_description};
use super::open::{self, find_snapshot};
use super::options::{Env, Mode, Stores, VolumeOptions};
use super::redo::{apply, rolled_back};
use super::replica;
use super::rollback;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::format::checkpoint::{Checkpoint, Point};
use crate::format::volume::VolumeObject;
use crate::format::{VolumeId, keys};
use crate::log::Terms;
use crate::log::replay::{Cut, Replay};
use crate::map::Map;
use crate::store::{Key, Store, StoreErrorKind, get_parsed};
use crate::units::{SectorCount, Seq};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A moment of a volume's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// After every slot before this one.
    Slot(Seq),
    /// A time, in milliseconds since 1970.
    Time(u64),
}

/// What is kept of a volume's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Past {
    /// How long it is kept; `None`: it is not.
    pub retention: Option<Duration>,
    /// The oldest state that can be read: its position and its time.
    pub oldest: Option<(Seq, u64)>,
    /// Chunks that nothing else needs.
    pub chunks: u64,
}

/// A state that is only read.
pub(super) struct View {
    pub checkpoint: Checkpoint,
    pub map: Map,
    pub size: SectorCount,
    pub terms: Terms,
    /// The first slot that is not in it.
    pub end: Seq,
}

impl View {
    /// The state of a checkpoint.
    pub fn of(checkpoint: Checkpoint) -> View {
        View {
            map: rollback::map_of(&checkpoint),
            size: checkpoint.size,
            terms: Terms::new(checkpoint.terms.clone()),
            end: checkpoint.next,
            checkpoint,
        }
    }
}

impl Volume {
    /// A state to be read: a volume of its own that owns nothing.
    pub(super) async fn open_view(
        env: Env,
        stores: Stores,
        description: VolumeObject,
        view: View,
        options: VolumeOptions,
    ) -> Result<Volume> {
        let options = VolumeOptions { mode: Mode::ReadOnly, ..options };
        let volume = open::start(env, stores, options, description, None, (view.into(), None))?;
        hydrate::start(&volume.shared).await?;
        Ok(volume)
    }

    /// From now on the past is kept that long; `None`: it is not, and what was kept is deleted. The past begins
    /// with this call. It is durable on return; after an error it may be so, or may be with the next
    /// checkpoint.
    ///
    /// # Errors
    /// Usage: read-only. Those of a checkpoint, and of the log.
    ///
    /// Cancellation: it is done all the same.
    pub async fn retain(&self, time: Option<Duration>) -> Result<()> {
        let shared = self.shared.clone();
        let work = async move {
            shared.check_owner()?;
            let mut checkpointer = shared.checkpointer.lock().await;
            checkpoint::complete(&shared, &mut checkpointer).await?;
            let ms = time.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            checkpointer.retention.time_ms = ms;
            // A checkpoint needs a position of its own.
            let probed = shared.state().probe();
            let target = probed.map_err(|_| shared.failure())?;
            shared.wait_committed(target).await?;
            checkpoint::complete(&shared, &mut checkpointer).await?;
            shared.checkpoint_due.notify_one();
            Ok(())
        };
        self.shared.to_its_end(work).await
    }
}

/// What is kept of a volume's past, whoever owns it.
///
/// # Errors
/// Corrupt: an object that is needed is damaged or missing. Store.
pub async fn past(store: &dyn Store, id: VolumeId) -> Result<Past> {
    let description = read_description(store, id).await?;
    let (newest, listed) = newest_checkpoint(store, &description).await?;
    let points = points(&newest, &listed);
    // What the oldest of them has lost nobody needs any more.
    let chunks = points.iter().skip(1).fold(0, |sum: u64, point| sum.saturating_add(point.freed));
    let oldest = points.first().map(|point| (point.next, point.made_at_ms));
    let time = newest.retention_ms;
    Ok(Past { retention: (time > 0).then(|| Duration::from_millis(time)), oldest, chunks })
}

/// The points that are there, the oldest first; the last one is the newest checkpoint itself.
fn points(newest: &Checkpoint, listed: &[Key]) -> Vec<Point> {
    let key = |point: &Point| keys::checkpoint(newest.volume, point.next, point.epoch);
    let there = newest.points_there(|point| listed.contains(&key(point)));
    // Without a retention time they go as soon as their owner comes to it.
    let there = there.iter().filter(|_| newest.retention_ms > 0);
    there.copied().chain([newest.point()]).collect()
}

/// The state that is to be read instead of the volume as it is, if there is one.
///
/// # Errors
/// Those of [`find_snapshot`] and [`view`].
pub(super) async fn asked_for(
    store: &dyn Store,
    description: &VolumeObject,
    options: &mut VolumeOptions,
) -> Result<Option<View>> {
    Ok(match (options.snapshot.take(), options.at.take()) {
        (Some(name), _) => {
            Some(View::of(find_snapshot(store, description.id, &name).await?.checkpoint))
        }
        (None, Some(moment)) => Some(view(store, description, moment).await?),
        (None, None) => None,
    })
}

/// The state of the volume at `moment`.
///
/// # Errors
/// NotFound: that moment is not kept, or has not come. Corrupt: an object that is needed is damaged or missing.
/// Busy: its owner is too quick. Store.
async fn view(store: &dyn Store, description: &VolumeObject, moment: Moment) -> Result<View> {
    let id = description.id;
    for _ in 0..LOOKUPS {
        let (newest, listed) = newest_checkpoint(store, description).await?;
        let points = points(&newest, &listed);
        let Some(from) = points.iter().rev().find(|point| moment.is_after(point)) else {
            return Err(too_old(&newest, points[0], moment));
        };
        let base = if *from == newest.point() {
            newest.clone()
        } else {
            let key = keys::checkpoint(id, from.next, from.epoch);
            match get_parsed(store, &key, Checkpoint::parse).await {
                Ok(Ok(base)) => base,
                Ok(Err(e)) => {
                    return Err(Error::corrupt(format!("checkpoint {key} is damaged")).because(e));
                }
                // It has expired since the listing.
                Err(e) if e.kind == StoreErrorKind::NotFound => continue,
                Err(e) => return Err(e.into()),
            }
        };
        let cut = replica::worth(store, description).await?.and_then(|worth| worth.cut(base.epoch));
        let (view, reached) = match replay(store, base, cut, moment).await {
            // What looks like damage may be what has expired.
            Err(e) if e.kind() == ErrorKind::Corrupt && !is_there(store, &newest, from).await? => {
                continue;
            }
            replayed => replayed?,
        };
        match (view, reached) {
            (view, true) => return Ok(view),
            // Slots before the newest checkpoint are missing only because they have expired; its owner may have
            // deleted others that a newer one has no need of.
            (view, false) if view.end < newest.next || !is_newest(store, &newest).await? => {}
            (view, false) => match moment {
                Moment::Time(_) => return Ok(view),
                Moment::Slot(_) => return Err(too_new(view.end, moment)),
            },
        }
    }
    let text = format!("what is kept of volume {id} keeps changing");
    Err(Error::new(ErrorKind::Busy, text).hint("try again"))
}

/// Whether nothing that a state behind the point needs can have been deleted.
async fn is_there(store: &dyn Store, newest: &Checkpoint, point: &Point) -> Result<bool> {
    if *point == newest.point() {
        return is_newest(store, newest).await;
    }
    let key = keys::checkpoint(newest.volume, point.next, point.epoch);
    match store.head(&key).await {
        Ok(_) => Ok(true),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Goes on from `base` to `moment`. False: the log ended before.
async fn replay(
    store: &dyn Store,
    base: Checkpoint,
    cut: Option<Cut>,
    moment: Moment,
) -> Result<(View, bool)> {
    let mut view = View::of(base);
    let id = view.checkpoint.volume;
    let mut replay = Replay::new(store, id, view.end, view.checkpoint.epoch).cut(cut);
    loop {
        if moment.is_reached(view.end) {
            return Ok((view, true));
        }
        let terms = &mut view.terms;
        let chunk = replay.next_chunk(&mut |first, epoch| terms.begin(first, epoch)).await?;
        let Some(chunk) = chunk else {
            let Some(end) = replay.verify_end().await? else { continue };
            view.end = end.slot;
            let reached = moment.is_reached(view.end);
            return Ok((view, reached));
        };
        if moment.is_reached(chunk.seq) || moment.is_before(chunk.sealed_at_ms) {
            return Ok((view, true));
        }
        let mut records = &*chunk.records;
        if let Some((to, later)) = rolled_back(records) {
            replay.restart();
            let to = rollback::state_of(store, id, to).await?;
            rollback::go_back(&mut view.checkpoint, &to);
            (view.map, view.size, records) = (rollback::map_of(&to), to.size, later);
        }
        apply(chunk.seq, records, &mut view.map, &mut view.size)?;
        view.end = chunk.seq.next();
    }
}

impl Moment {
    fn is_after(self, point: &Point) -> bool {
        match self {
            Moment::Slot(slot) => point.next <= slot,
            Moment::Time(ms) => point.made_at_ms <= ms,
        }
    }

    fn is_reached(self, end: Seq) -> bool {
        matches!(self, Moment::Slot(slot) if slot <= end)
    }

    fn is_before(self, sealed_at_ms: u64) -> bool {
        matches!(self, Moment::Time(ms) if ms < sealed_at_ms)
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Moment::Slot(slot) => write!(f, "slot {slot}"),
            Moment::Time(ms) => f.write_str(&clock::show(*ms)),
        }
    }
}

fn too_old(newest: &Checkpoint, oldest: Point, moment: Moment) -> Error {
    if newest.retention_ms == 0 {
        return Error::not_found(format!("nothing is kept of the past, and {moment} is past"))
            .hint("`objblk retain` keeps it from then on");
    }
    let since = clock::show(oldest.made_at_ms);
    Error::not_found(format!("{moment} is not kept"))
        .hint(format!("the oldest moment is slot {}, {since}", oldest.next))
}

fn too_new(end: Seq, moment: Moment) -> Error {
    Error::not_found(format!("{moment} has not come: the log ends at slot {end}"))
}
