//! Scrubbing: the owner reads all that the volume and its snapshots need, again and again, and verifies it,
//! so that damage is found while its bytes may still be found elsewhere.
//!
//! A pass goes through the slots of the log that a state names, in their order; the store is read, never a cache.
//! How far it is, and what the last one found, is noted in the store now and then, so that the next owner goes
//! on where this one was. What is damaged is told and [mended](super::mend), as far as that is possible.
//!
//! A pass begins once the last one is older than the options say. It reads at most at its rate, as background work
//! of the store's limiter: users go first. What is written while a pass goes on is for the next one.
//!
//! Hints only: a note that is lost costs a pass from the beginning.

use super::checkpoint::RETRY_AFTER;
use super::mend::{self, Mending};
use super::shared::Shared;
use super::snapshots;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::keys::{self, ChunkId};
use crate::format::page::{CHUNKS_PER_PAGE, ItemRef};
use crate::format::pool::encode_json;
use crate::format::scrub::{ScrubObject, ScrubPass};
use crate::log::fetch::FetchError;
use crate::log::verify;
use crate::store::{Key, Store, StoreErrorKind, get_parsed, list_all};
use crate::sync::Mutex;
use crate::units::Seq;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Longest sleep: the clock may have been set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Time between two notes of how far it is.
const NOTE_EVERY: Duration = Duration::from_secs(60);
/// Frames that are read at once: 1 MiB.
const RUN: u32 = 16;
/// How often the newest note is looked for again when it vanishes under the reader.
const LOOKUPS: usize = 5;

/// Whether and how a volume is scrubbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrubOptions {
    /// Bytes a second that are read, at most; at least one.
    pub rate: u64,
    /// Time from the end of a pass to the beginning of the next one.
    pub every: Duration,
}

/// The scrub of a volume at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Bytes a second that are read, at most.
    pub rate: u64,
    /// Every slot of the log before this one is done; `None`: no pass is under way.
    pub next_seq: Option<u64>,
    /// Where the pass will end.
    pub end_seq: u64,
    /// What the pass has done.
    pub now: ScrubPass,
    /// The last pass that came to its end.
    pub last: Option<ScrubPass>,
}

/// What all parts know of it.
#[derive(Debug, Default)]
pub(super) struct Scrub(Mutex<Option<ScrubStatus>>);

impl Scrub {
    pub fn status(&self) -> Option<ScrubStatus> {
        *self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn show(&self, options: &ScrubOptions, note: &ScrubObject, end: Seq) {
        *self.0.lock().unwrap_or_else(|e| e.into_inner()) = Some(ScrubStatus {
            rate: options.rate,
            next_seq: note.next.map(|next| next.0),
            end_seq: end.0,
            now: note.now,
            last: note.last,
        });
    }
}

/// Begins with what the options say.
pub(super) fn start(shared: &Arc<Shared>) {
    if let (Some(options), false) = (shared.options.scrub, shared.is_read_only()) {
        shared.scrub.show(&options, &ScrubObject::new(shared.id), Seq(0));
        shared.start_task(task(shared.clone(), options));
    }
}

/// What is noted of the scrub of a volume, whoever owns it.
///
/// # Errors
/// Corrupt: the note is damaged. Busy: it keeps changing. Store.
pub async fn scrubbed(store: &dyn Store, id: VolumeId) -> Result<Option<ScrubObject>> {
    for _ in 0..LOOKUPS {
        let found = store.list(&keys::scrubs(id), None, 1).await?.objects;
        let Some(newest) = found.into_iter().next() else { return Ok(None) };
        let damaged = || Error::corrupt(format!("the note of a scrub {} is damaged", newest.key));
        match get_parsed(store, &newest.key, ScrubObject::parse).await {
            Ok(Ok(note)) if keys::scrub(note.volume, note.number) == newest.key => {
                return Ok(Some(note));
            }
            Ok(Ok(_)) => return Err(damaged().because("it is another one than its name says")),
            Ok(Err(e)) => return Err(damaged().because(e)),
            Err(e) if e.kind == StoreErrorKind::Damaged => return Err(damaged().because(e)),
            // A newer one has just taken its place.
            Err(e) if e.kind == StoreErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
    }
    Err(Error::new(ErrorKind::Busy, format!("the scrub of volume {id} keeps being noted")))
}

async fn task(shared: Arc<Shared>, options: ScrubOptions) {
    let mut note = match scrubbed(&*shared.stores.background, shared.id).await {
        Ok(found) => found,
        Err(why) => {
            tracing::warn!(volume = %shared.id, "the scrub begins anew: {why}");
            None
        }
    }
    .unwrap_or_else(|| ScrubObject::new(shared.id));
    loop {
        shared.scrub.show(&options, &note, Seq(0));
        if let Some(rest) = rest(&options, &note, shared.env.clock.now_ms()) {
            tokio::time::sleep(rest.min(LOOK_EVERY)).await;
            continue;
        }
        match pass(&shared, &options, &mut note).await {
            Ok(()) => {}
            Err(_) if shared.state().check().is_err() => return,
            Err(why) => {
                tracing::warn!(volume = %shared.id, "the scrub stops for now: {why}");
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// How long nothing is to be done; `None`: there is.
fn rest(options: &ScrubOptions, note: &ScrubObject, now_ms: u64) -> Option<Duration> {
    let last = note.last.filter(|_| note.next.is_none())?;
    // A clock that went back does not put it off for ever.
    let since = Duration::from_millis(now_ms.checked_sub(last.ended_at_ms)?);
    options.every.checked_sub(since).filter(|rest| !rest.is_zero())
}

/// Goes on with a pass, to its end.
async fn pass(shared: &Arc<Shared>, options: &ScrubOptions, note: &mut ScrubObject) -> Result<()> {
    let now = || shared.env.clock.now_ms();
    if note.next.is_none() {
        (note.next, note.now) = (Some(Seq(0)), ScrubPass::default());
        note.now.begun_at_ms = now();
    }
    let mut meter = Meter { rate: options.rate.max(1), paid: Instant::now() };
    let mut noted = Instant::now();
    while let Some(from) = note.next {
        let roots = Roots::of(shared).await?;
        let Some(page) = roots.page_at(from) else { break };
        let slots = match roots.slots(shared, page).await {
            Ok(slots) => slots,
            Err(e) if e.kind() == ErrorKind::Store => return Err(e),
            Err(why) => {
                let now = Roots::of(shared).await?;
                if now.items(page) != roots.items(page) {
                    // A checkpoint has replaced it meanwhile.
                    continue;
                }
                tracing::error!(volume = %shared.id, "the scrub cannot read chunk page {page}: {why}");
                note.now.damaged += 1;
                BTreeSet::new()
            }
        };
        for seq in slots.range(from..) {
            look(shared, *seq, &mut meter, &mut note.now).await?;
            note.next = Some(seq.next());
            shared.scrub.show(options, note, roots.end);
            if noted.elapsed() >= NOTE_EVERY {
                note.now.ended_at_ms = now().max(note.now.begun_at_ms);
                put(shared, note).await?;
                noted = Instant::now();
            }
        }
        note.next = Some(Seq((page + 1) * CHUNKS_PER_PAGE));
    }
    let ended_at_ms = now().max(note.now.begun_at_ms);
    let done = ScrubPass { ended_at_ms, ..note.now };
    (note.next, note.now, note.last) = (None, ScrubPass::default(), Some(done));
    shared.scrub.show(options, note, Seq(0));
    let ScrubPass { chunks, bytes, damaged, mended, .. } = done;
    tracing::info!(
        volume = %shared.id, chunks, bytes, damaged, mended, "the scrub came to its end"
    );
    put(shared, note).await
}

/// Notes how far it is.
async fn put(shared: &Shared, note: &mut ScrubObject) -> Result<()> {
    let (store, id) = (&*shared.stores.background, shared.id);
    let listed = list_all(store, &keys::scrubs(id)).await?;
    let old: Vec<Key> = listed.into_iter().map(|object| object.key).collect();
    let newest = old.iter().find_map(|key| keys::parse_scrub(id, key));
    note.number = note.number.max(newest.unwrap_or(0));
    loop {
        note.number += 1;
        let body = Bytes::from(encode_json(note));
        match store.put_if_absent(&keys::scrub(id, note.number), body).await {
            Ok(()) => break,
            // Another owner's, or an earlier attempt's.
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => {}
            Err(e) => return Err(e.into()),
        }
    }
    if !old.is_empty()
        && let Err(e) = store.delete(&old).await
    {
        tracing::debug!("older notes of a scrub are left in the store: {e}");
    }
    Ok(())
}

/// Verifies the chunk in a slot; tells and mends it where it is damaged.
async fn look(
    shared: &Arc<Shared>,
    seq: Seq,
    meter: &mut Meter,
    pass: &mut ScrubPass,
) -> Result<()> {
    let id = shared.chunk_id(&shared.state(), seq);
    let Some(why) = examine(shared, id, meter, pass).await? else { return Ok(()) };
    // The owner may have emptied and deleted it meanwhile.
    if !Roots::of(shared).await?.name(shared, seq).await? {
        return Ok(());
    }
    let key = id.key();
    tracing::error!(volume = %shared.id, "the scrub found {key} damaged: {why}");
    let mended = mend::mend(shared, std::slice::from_ref(&key)).await;
    let how = match &mended {
        Ok(mended) => mended.first().map(|mended| mended.how),
        Err(why) => {
            tracing::error!(volume = %shared.id, "{key} is not mended: {why}");
            None
        }
    };
    if how != Some(Mending::Whole) {
        pass.damaged += 1;
        pass.mended += u64::from(matches!(how, Some(Mending::PutBack | Mending::Moved)));
    }
    Ok(())
}

/// What is wrong with a chunk, if something is: with any of its copies, where there are several.
async fn examine(
    shared: &Shared,
    id: ChunkId,
    meter: &mut Meter,
    pass: &mut ScrubPass,
) -> Result<Option<String>> {
    pass.chunks += 1;
    let copies = shared.stores.background.copies(&id.key());
    if copies.is_empty() {
        return examine_copy(&*shared.stores.background, shared, id, (meter, pass)).await;
    }
    let mut problem = None;
    for copy in copies {
        problem = problem.or(examine_copy(&*copy, shared, id, (meter, pass)).await?);
    }
    Ok(problem)
}

async fn examine_copy(
    store: &dyn Store,
    shared: &Shared,
    id: ChunkId,
    (meter, pass): (&mut Meter, &mut ScrubPass),
) -> Result<Option<String>> {
    let header = match verify::header(store, id).await {
        Ok(header) => header,
        Err(FetchError::Store(e)) => return Err(e.into()),
        Err(FetchError::Abandoned) => return Err(shared.failure()),
        Err(why) => return Ok(Some(why.to_string())),
    };
    pass.bytes += u64::from(header.header_len);
    meter.pay(header.header_len.into()).await;
    let count = header.frames.entries.len() as u32;
    let mut problem = None;
    for first in (0..count).step_by(RUN as usize) {
        let run = first..(first + RUN).min(count);
        let bad = verify::broken_frames(store, id, &header, run.clone()).await?;
        let bytes = header.frames.before(run.end as usize) - header.frames.before(first as usize);
        pass.bytes += bytes;
        meter.pay(bytes).await;
        if let Some((index, why)) = bad.into_iter().next() {
            problem.get_or_insert(format!("frame {index}: {why}"));
        }
    }
    Ok(problem)
}

/// Keeps to the rate.
struct Meter {
    /// Bytes a second.
    rate: u64,
    /// When what was read so far is paid for.
    paid: Instant,
}

impl Meter {
    async fn pay(&mut self, bytes: u64) {
        let takes = Duration::from_micros(bytes.saturating_mul(1_000_000) / self.rate);
        self.paid = self.paid.max(Instant::now()) + takes;
        tokio::time::sleep_until(self.paid).await;
    }
}

/// The chunk pages of the volume as of its newest checkpoint, and of its snapshots.
#[derive(Debug)]
struct Roots {
    roots: Vec<BTreeMap<u64, ItemRef>>,
    end: Seq,
}

impl Roots {
    async fn of(shared: &Shared) -> Result<Roots> {
        let (mut roots, end) = {
            let checkpointer = shared.checkpointer.lock().await;
            let last = checkpointer.last();
            (vec![last.chunk_root.iter().copied().collect()], last.next)
        };
        let entries: Vec<_> = shared.snapshots().all().to_vec();
        for entry in entries {
            match snapshots::read(&*shared.stores.background, shared.id, entry.id).await {
                Ok(object) => roots.push(object.checkpoint.chunk_root.iter().copied().collect()),
                Err(e) if e.kind() == ErrorKind::Store => return Err(e),
                // It was deleted meanwhile; or it is damaged, which a check tells.
                Err(why) => {
                    tracing::warn!(volume = %shared.id, "the scrub passes over a snapshot: {why}");
                }
            }
        }
        Ok(Roots { roots, end })
    }

    /// The first page that has slots from `from` on.
    fn page_at(&self, from: Seq) -> Option<u64> {
        let first = from.0 / CHUNKS_PER_PAGE;
        let next =
            |root: &BTreeMap<u64, ItemRef>| root.range(first..).next().map(|(page, _)| *page);
        self.roots.iter().filter_map(next).min()
    }

    fn items(&self, page: u64) -> BTreeSet<ItemRef> {
        self.roots.iter().filter_map(|root| root.get(&page)).copied().collect()
    }

    /// The slots of a page that hold what is needed.
    async fn slots(&self, shared: &Shared, page: u64) -> Result<BTreeSet<Seq>> {
        let mut slots = BTreeSet::new();
        for item in self.items(page) {
            let entries = shared.items.chunk_page(item).await?;
            let seqs = entries.iter().map(|(slot, _)| page * CHUNKS_PER_PAGE + u64::from(*slot));
            slots.extend(seqs.map(Seq));
        }
        Ok(slots)
    }

    /// Whether a state names this slot, as far as can be told.
    async fn name(&self, shared: &Shared, seq: Seq) -> Result<bool> {
        match self.slots(shared, seq.0 / CHUNKS_PER_PAGE).await {
            Ok(slots) => Ok(slots.contains(&seq)),
            Err(e) if e.kind() == ErrorKind::Store => Err(e),
            Err(_) => Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_begins_when_the_last_one_is_old_enough() {
        let options = ScrubOptions { rate: 1, every: Duration::from_secs(10) };
        let mut note = ScrubObject::new(VolumeId::from_bytes([1; 16]));
        assert_eq!(rest(&options, &note, 5), None, "it was never scrubbed");
        note.last = Some(ScrubPass { ended_at_ms: 1000, ..ScrubPass::default() });
        assert_eq!(rest(&options, &note, 4000), Some(Duration::from_secs(7)));
        assert_eq!(rest(&options, &note, 11_000), None);
        assert_eq!(rest(&options, &note, 999), None, "the clock went back");
        note.next = Some(Seq(3));
        assert_eq!(rest(&options, &note, 4000), None, "one is under way");
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_is_kept() {
        let mut meter = Meter { rate: 1000, paid: Instant::now() };
        let begun = Instant::now();
        for _ in 0..10 {
            meter.pay(300).await;
        }
        assert_eq!(begun.elapsed().as_millis(), 3000);
    }
}
