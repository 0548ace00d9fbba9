//! Copies of the volume's snapshots in other volumes, by streams of changes, in a simulated world: somebody
//! exports what leads from one snapshot to another and imports it into a copy, and is killed on the way, or
//! the stream is cut short; now and then somebody writes to a copy, or rolls it back.
//!
//! What is judged:
//! * what was received is what the snapshot is, every sector of it, whatever the copy was before: so a copy
//!   that is not what a stream leads from is never taken for it;
//! * a snapshot of a copy never changes, and one that is there already is not received again;
//! * while only receivers have a copy, the stream that was cut off is taken once more, and so is
//!   any that leads from what the copy is.

use crate::actor::Actor;
use crate::layout;
use crate::model::Image;
use crate::world::World;
use futures::FutureExt;
use objblk::device::{BlockDevice, WriteFlags};
use objblk::error::{Error, ErrorKind};
use objblk::format::features::Features;
use objblk::format::snapshot::SnapshotEntry;
use objblk::format::stream::{StreamHeader, StreamState};
use objblk::format::volume::{EpochObject, VolumeObject};
use objblk::format::{SnapshotId, VolumeId, keys, pool};
use objblk::store::{GetRange, Store};
use objblk::transfer::stream::{Incoming, receive, send};
use objblk::units::{BlockSize, Epoch};
use objblk::volume::{Mode, Volume, VolumeOptions, as_receiver, list_snapshots};
use rand::Rng;
use std::collections::BTreeMap;

/// Copies of one world.
const COPIES: usize = 3;
/// Times that one process has a copy, at most.
const TURNS: usize = 5;
/// Streams that it tries to import each time, at most.
const STREAMS: usize = 4;
const CHUNK: u64 = 256 << 10;

/// What a copy is, as far as that is known, by snapshots of the original; `None`: empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    At(Option<SnapshotId>),
    /// On the way between two, since this epoch at the latest.
    Between {
        to: SnapshotId,
        base: Option<SnapshotId>,
        since: u64,
    },
    Unknown,
}

impl Standing {
    /// Whether a receipt of `to` from `base` must begin, and what the copy is if it does.
    fn leads(self, (to, base): (SnapshotId, Option<SnapshotId>), epoch: u64) -> (bool, Standing) {
        match self {
            Standing::At(at) if at == base => (true, Standing::Between { to, base, since: epoch }),
            Standing::Between { to: was_to, base: was_base, .. }
                if (was_to, was_base) == (to, base) =>
            {
                (true, self)
            }
            _ => (false, Standing::Unknown),
        }
    }
}

/// A copy, and what is known of it.
#[derive(Debug)]
pub struct CopyModel {
    id: VolumeId,
    standing: Standing,
    /// Receipts, their ends and bases, that were begun and did not come to an end.
    tried: Vec<(SnapshotId, Option<SnapshotId>)>,
    /// What its snapshots hold.
    held: BTreeMap<SnapshotId, Image>,
    /// Of who owns it: nobody with an older one knows anything of it.
    epoch: u64,
    /// The last in which something was received: nothing else that was begun in it is gone on with.
    done_in: u64,
}

/// A stream, and what it leads to.
struct Export {
    bytes: Vec<u8>,
    to: SnapshotId,
    base: Option<SnapshotId>,
    image: Image,
    /// Not all of it.
    cut: bool,
}

/// What a receipt says where it does not begin.
fn is_refusal(error: &Error) -> bool {
    let text = error.to_string();
    let words = ["was written to since", "was cut off", "has gone on from", "is not empty"];
    matches!(error.kind(), ErrorKind::Failed | ErrorKind::Exists)
        && words.iter().any(|words| text.contains(words))
}

impl World {
    /// A copy, made by who comes first. Its description comes at once, without faults.
    fn copy(&self) -> usize {
        let count = self.state().copies.len();
        let which = self.random(|rng| rng.random_range(0..count + 1));
        if which < count || count == COPIES {
            return which.min(count - 1);
        }
        let id = VolumeId::from_random([9 + which as u8; 16]);
        let description = VolumeObject {
            version: 1,
            id,
            size: self.initial().bytes(),
            block_size: 512,
            chunk_size: CHUNK,
            features: Features::default(),
            created_at_ms: 0,
            ancestors: Vec::new(),
            source: None,
            mac: None,
        };
        let body = pool::encode_json(&description).into();
        let put = self.memory.put_if_absent(&keys::volume(id), body).now_or_never();
        put.expect("a memory store answers at once").expect("nobody else has made it");
        let (standing, held) = (Standing::At(None), BTreeMap::new());
        let tried = Vec::new();
        self.state().copies.push(CopyModel { id, standing, tried, held, epoch: 0, done_in: 0 });
        count
    }

    /// Whether somebody has claimed the copy after `since` who does not only receive.
    fn is_claimed_by_others(&self, id: VolumeId, since: u64) -> bool {
        let now = "a memory store answers at once";
        let owner = |epoch| {
            let key = keys::epoch(id, Epoch(epoch));
            let body = self.memory.get(&key, GetRange::All).now_or_never().expect(now);
            EpochObject::parse(&body.ok()?).ok()
        };
        let mut later = (since + 1..).map_while(owner);
        later.any(|owner| !owner.nonce.ends_with("-receiver"))
    }
}

impl Actor {
    /// Imports something into a copy, or does something else to it. What comes to an end early is right.
    pub async fn use_copy(&self) -> Result<(), String> {
        let which = self.world.copy();
        for _ in 0..self.world.random(|rng| rng.random_range(1..=TURNS)) {
            self.process.pass().await;
            match self.world.random(|rng| rng.random_bool(0.7)) {
                true => self.receive_some(which).await?,
                false => self.meddle(which).await,
            }
        }
        Ok(())
    }

    fn writable(&self) -> VolumeOptions {
        VolumeOptions { mode: Mode::ReadWrite { takeover: true }, ..self.options.clone() }
    }

    fn copy_id(&self, which: usize) -> VolumeId {
        self.world.state().copies[which].id
    }

    /// The owner of `epoch` has the copy now. False: it was superseded meanwhile.
    fn begin_copy(&self, which: usize, epoch: u64) -> bool {
        let copy = &mut self.world.state().copies[which];
        copy.epoch = copy.epoch.max(epoch);
        copy.epoch == epoch
    }

    /// Tells what a copy is now, unless somebody else has it by now.
    fn stands(&self, which: usize, epoch: u64, standing: Standing) {
        let copy = &mut self.world.state().copies[which];
        if copy.epoch == epoch {
            copy.standing = standing;
        }
    }

    async fn receive_some(&self, which: usize) -> Result<(), String> {
        let owner = as_receiver(self.owner(false));
        let opened = self.open_as(self.copy_id(which), owner, self.writable()).await;
        let Ok(volume) = opened else { return Ok(()) };
        let epoch = volume.status().epoch;
        let mut done = Ok(());
        if self.begin_copy(which, epoch) {
            for _ in 0..self.world.random(|rng| rng.random_range(1..STREAMS)) {
                self.process.pass().await;
                if let Some(export) = self.export(which, &volume).await {
                    done = self.import(which, &volume, export).await;
                }
                if done.is_err() || volume.status().failure.is_some() {
                    break;
                }
            }
        }
        let leaves = self.world.random(|rng| rng.random_bool(0.3));
        if leaves || volume.close().await.is_err() {
            volume.abandon();
        }
        done
    }

    /// The stream that leads to some snapshot from one that the copy has, or from nothing.
    async fn export(&self, which: usize, copy: &Volume) -> Option<Export> {
        let (_, stores) = self.environment();
        let theirs = list_snapshots(&*stores.setup, self.world.id).await.ok()?;
        let ours = copy.snapshots();
        let bases = theirs.iter().filter(|entry| ours.iter().any(|own| own.name == entry.name));
        let bases: Vec<&SnapshotEntry> = bases.collect();
        let (to, at, how, cut) = self.world.random(|rng| {
            let to = rng.random_range(0..theirs.len().max(1));
            (to, rng.random_range(0..120), rng.random_range(0..10), rng.random_bool(0.2))
        });
        let to = theirs.get(to)?;
        let entry = |id| theirs.iter().find(|entry| entry.id == id);
        let (standing, tried) = {
            let copy = &self.world.state().copies[which];
            (copy.standing, copy.tried.get(at % copy.tried.len().max(1)).copied())
        };
        let (to, base) = match (standing, tried) {
            // For the most part that which was begun, what leads on, or what was begun once.
            (Standing::Between { to, base, .. }, _) if how < 4 => {
                (entry(to)?, base.and_then(entry))
            }
            (Standing::At(base), _) if how < 4 => (to, base.and_then(entry)),
            (_, Some((to, base))) if how < 8 => (entry(to)?, base.and_then(entry)),
            _ => (to, bases.get(at % bases.len().max(1)).copied()),
        };
        let base = base.filter(|base| base.id != to.id);
        let image = self.world.state().shelf.image(to.id)?.clone();
        let mut bytes = self.write_stream(to, base).await.ok()?;
        if cut {
            // Half of the time so early that nothing of it is written.
            let most = if at % 2 == 0 { bytes.len() } else { bytes.len().min(300) };
            bytes.truncate(self.world.random(|rng| rng.random_range(0..most)));
        }
        let base = base.map(|base| base.id);
        Some(Export { bytes, to: to.id, base, image, cut })
    }

    async fn write_stream(
        &self,
        to: &SnapshotEntry,
        base: Option<&SnapshotEntry>,
    ) -> Result<Vec<u8>, Error> {
        let state = |entry: &SnapshotEntry| StreamState {
            snapshot: entry.id,
            name: entry.name.clone(),
            size: entry.size,
            made_at_ms: entry.made_at_ms,
        };
        let header = StreamHeader {
            volume: self.world.id,
            block_size: BlockSize::B512,
            chunk_size: CHUNK,
            to: state(to),
            base: base.map(state),
        };
        let view = self.view(self.world.id, &to.name).await?;
        let base = match base {
            Some(base) => Some(self.view(self.world.id, &base.name).await?),
            None => None,
        };
        let mut bytes = Vec::new();
        send(&header, (&view, base.as_ref()), &mut bytes, &|_| ()).await?;
        Ok(bytes)
    }

    /// A snapshot, to be read.
    async fn view(&self, of: VolumeId, name: &str) -> Result<Volume, Error> {
        let snapshot = Some(name.to_owned());
        self.open_plainly(of, VolumeOptions { snapshot, ..self.options.clone() }).await
    }

    async fn import(&self, which: usize, volume: &Volume, export: Export) -> Result<(), String> {
        let Ok(incoming) = Incoming::begin(&export.bytes[..]).await else { return Ok(()) };
        let (world, epoch) = (&self.world, volume.status().epoch);
        let Export { to, base, image, cut, .. } = export;
        let before = world.state().copies[which].standing;
        let (must_begin, begun) = before.leads((to, base), epoch);
        self.stands(which, epoch, begun);
        world.state().copies[which].tried.push((to, base));
        let id = SnapshotId::from_random(world.random(|rng| rng.random()));
        world.trace(|| format!("epoch {epoch} receives {base:?} to {to}, {before:?}, cut {cut}"));
        let received = receive(volume, incoming, id, &|_| ()).await;
        world.trace(|| format!("epoch {epoch} has received: {received:?}"));
        let damaged = world.state().damaged;
        let received = match received {
            Ok(received) => received,
            Err(error) if is_refusal(&error) => {
                self.stands(which, epoch, before);
                world.state().counts.refused += 1;
                return match must_begin && !self.may_refuse(which, before, epoch) {
                    true => Err(format!("a copy at {before:?} refuses {base:?} to {to}: {error}")),
                    false => Ok(()),
                };
            }
            Err(_) => return Ok(()),
        };
        let found = match received.was_there {
            true => {
                self.stands(which, epoch, if cut { before } else { there(before, to) });
                match self.view(self.copy_id(which), &received.snapshot.name).await {
                    Ok(view) => self.survey_clone(&view).await?,
                    Err(_) => None,
                }
            }
            false => {
                self.stands(which, epoch, Standing::At(Some(to)));
                {
                    let mut state = world.state();
                    state.counts.received += 1;
                    state.counts.resumed += u64::from(received.resumed);
                    let copy = &mut state.copies[which];
                    copy.done_in = copy.done_in.max(epoch);
                    copy.held.insert(received.snapshot.id, image.clone());
                }
                self.survey_clone(volume).await?
            }
        };
        match found {
            _ if cut && !received.was_there => Err("half a stream was taken".to_owned()),
            Some(found) if found != image && !damaged => {
                let differ = found.stamps.iter().zip(&image.stamps).filter(|(a, b)| a != b).count();
                let (size, wanted) = (found.size, image.size);
                Err(format!(
                    "a copy of {to}, from {base:?} at {before:?}, differs in {differ} sectors, size {size} for {wanted}"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Whether the owner of `epoch` may refuse what leads on from what the copy is: others have it by now, or
    /// have had it meanwhile.
    fn may_refuse(&self, which: usize, before: Standing, epoch: u64) -> bool {
        let (id, done_in, newest, damaged) = {
            let state = self.world.state();
            let copy = &state.copies[which];
            (copy.id, copy.done_in, copy.epoch, state.damaged)
        };
        let (since, is_over) = match before {
            Standing::Between { since, .. } => (since.min(epoch), done_in >= since),
            _ => (epoch, false),
        };
        damaged || is_over || newest != epoch || self.world.is_claimed_by_others(id, since)
    }

    /// Somebody who does not receive has a copy.
    async fn meddle(&self, which: usize) {
        // From the claim on.
        self.world.state().copies[which].standing = Standing::Unknown;
        let opened = self.open_plainly(self.copy_id(which), self.writable()).await;
        let Ok(volume) = opened else { return };
        let epoch = volume.status().epoch;
        if self.begin_copy(which, epoch) {
            self.stands(which, epoch, Standing::Unknown);
            let back = self.world.random(|rng| rng.random_bool(0.6));
            if back && self.roll_copy_back(which, &volume).await.is_some() {
                return;
            }
            let size = self.world.size_of(&volume);
            let sector = self.world.random(|rng| rng.random_range(0..size.max(1)));
            let stamp = self.world.state().model.next_stamp();
            let range = self.world.layout.range(&(sector..sector + 1));
            let data = layout::fill(sector..sector + 1, stamp);
            // What becomes of it is of no interest: nobody may rely on anything from here on.
            let _ = volume.write(range.start(), &data, WriteFlags::default()).await;
        }
        if volume.close().await.is_err() {
            volume.abandon();
        }
    }

    /// Makes the copy what one of its snapshots is; that closes it. `None`: it has none.
    async fn roll_copy_back(&self, which: usize, volume: &Volume) -> Option<()> {
        let there = volume.snapshots();
        let at = self.world.random(|rng| rng.random_range(0..there.len().max(1)));
        let entry = there.get(at)?;
        let epoch = volume.status().epoch;
        let kept = SnapshotId::from_random(self.world.random(|rng| rng.random()));
        let original = volume.original(entry.id).await;
        match volume.roll_back(&entry.name, (kept, &format!("kept-{kept}"))).await {
            Ok(_) => {
                let known = original.ok().filter(|original| *original != entry.id);
                let standing = known.map_or(Standing::Unknown, |known| Standing::At(Some(known)));
                self.stands(which, epoch, standing);
            }
            Err(_) => {
                volume.abandon();
            }
        }
        Some(())
    }

    /// In a world without faults: every snapshot that was received is there and is what it was.
    pub async fn look_at_copies(&self) -> Result<(), String> {
        let copies = self.world.state().copies.len();
        for which in 0..copies {
            let (id, options) = (self.copy_id(which), self.writable());
            let volume =
                self.open_plainly(id, options).await.map_err(|e| format!("a copy: {e}"))?;
            let held = self.world.state().copies[which].held.clone();
            for (snapshot, image) in held {
                let entry = volume.snapshots().into_iter().find(|entry| entry.id == snapshot);
                let entry = entry.ok_or("what was received is lost")?;
                let view = self.view(id, &entry.name).await.map_err(|e| format!("a copy: {e}"))?;
                let damaged = self.world.state().damaged;
                if self.survey_clone(&view).await?.as_ref() != Some(&image) && !damaged {
                    return Err(format!("snapshot {} of a copy has changed", entry.name));
                }
            }
            volume.close().await.map_err(|e| format!("a copy: {e}"))?;
        }
        Ok(())
    }
}

/// What a copy is that turns out to have the snapshot `to`: it may have been made just now, or long ago.
fn there(before: Standing, to: SnapshotId) -> Standing {
    match before {
        Standing::Between { to: was_to, .. } if was_to == to => Standing::Unknown,
        _ => before,
    }
}
