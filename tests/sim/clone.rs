//! Clones in a simulated world: somebody works with one now and then, one request after the other.
//!
//! What a clone may hold is a list: what it held when a flush was last acknowledged, and what it held after
//! each change since. The description and the child's name come at once, without faults; that others
//! may be quicker is not simulated here.

use crate::actor::Actor;
use crate::layout;
use crate::model::Image;
use futures::FutureExt;
use objblk::device::{BlockDevice, WriteFlags};
use objblk::error::Error;
use objblk::format::features::Features;
use objblk::format::lineage::Ancestor;
use objblk::format::snapshot::SnapshotObject;
use objblk::format::volume::VolumeObject;
use objblk::format::{SnapshotId, VolumeId, keys, pool};
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Store};
use objblk::volume::{Mode, Volume, VolumeOptions};
use rand::Rng;

/// Requests of one who works with a clone.
const REQUESTS: usize = 10;

/// A clone, and what is known of it.
#[derive(Debug)]
pub struct CloneModel {
    pub id: VolumeId,
    /// The snapshot that it was made of.
    pub of: SnapshotId,
    /// It may hold one of these; the last one unless somebody dies.
    allowed: Vec<Image>,
    /// Of who owns it: nobody with an older one knows anything of it.
    epoch: u64,
    /// It needs its origin no more.
    flat: bool,
    /// Whoever made it never came to its end: it has no name, and pins its snapshot.
    pub nameless: bool,
}

/// Makes a clone of a snapshot, unless that is being deleted.
pub fn make(
    memory: &MemoryStore,
    origin: VolumeId,
    of: SnapshotId,
    image: Image,
) -> Option<CloneModel> {
    let now = "a memory store answers at once";
    let get = |key| memory.get(&key, GetRange::All).now_or_never().expect(now).ok();
    let prefix = keys::children_of(origin, of);
    let children = memory.list(&prefix, None, 100);
    let children = children.now_or_never().expect(now).ok()?.objects;
    if children.iter().any(|object| keys::is_closed(origin, of, &object.key)) {
        return None;
    }
    let object = SnapshotObject::parse(&get(keys::snapshot(origin, of))?).ok()?;
    let parent = VolumeObject::parse(&get(keys::volume(origin))?).ok()?;
    let mut id = of.bytes();
    id[15] = 1 + children.len() as u8;
    let id = VolumeId::from_bytes(id);
    let (next, epoch) = (object.checkpoint.next, object.checkpoint.epoch);
    let description = VolumeObject {
        id,
        size: object.entry.size.bytes(),
        features: Features {
            incompat: Features::CLONE | parent.features.incompat,
            ..parent.features
        },
        ancestors: vec![Ancestor { volume: origin, snapshot: of, next, epoch }],
        ..parent
    };
    let put = |key, body: Vec<u8>| {
        memory.put_if_absent(&key, body.into()).now_or_never().expect(now).ok()
    };
    put(keys::volume(id), pool::encode_json(&description))?;
    put(keys::child(origin, of, id), Vec::new())?;
    Some(CloneModel { id, of, allowed: vec![image], epoch: 0, flat: false, nameless: false })
}

impl CloneModel {
    /// It needs the snapshot.
    pub fn needs(&self, snapshot: SnapshotId) -> bool {
        self.of == snapshot && !self.flat
    }

    /// It was made this.
    pub fn becomes(&mut self, image: Image) {
        self.allowed = vec![image];
    }

    /// The owner of `epoch` found this. False: it was superseded meanwhile.
    fn begin(&mut self, epoch: u64, found: &Image) -> Result<bool, String> {
        if epoch < self.epoch {
            return Ok(false);
        }
        if !self.allowed.contains(found) {
            let last = self.allowed.last().expect("never empty");
            let differ = last.stamps.iter().zip(&found.stamps).enumerate();
            let differ: Vec<_> = differ.filter(|(_, (a, b))| a != b).take(8).collect();
            return Err(format!(
                "clone {} is none of {} states; size {} for {}; (sector, (newest, found)): {differ:?}",
                self.id,
                self.allowed.len(),
                found.size,
                last.size
            ));
        }
        self.allowed = vec![found.clone()];
        self.epoch = epoch;
        Ok(true)
    }
}

impl Actor {
    /// Works with a clone, old or new. `Ok(false)`: it came to an end before; whether that is right is not
    /// judged, only what the clone holds is.
    pub async fn use_clone(&self) -> Result<bool, String> {
        let count = self.world.state().clones.len();
        let which = self.world.random(|rng| rng.random_range(0..count + 1));
        let which = if which < count { Some(which) } else { self.world.new_clone() };
        match which {
            Some(which) => self.use_clone_at(which).await,
            None => Ok(true),
        }
    }

    /// Works with the clone at that place.
    pub async fn use_clone_at(&self, which: usize) -> Result<bool, String> {
        let (id, nameless) = {
            let clone = &self.world.state().clones[which];
            (clone.id, clone.nameless)
        };
        if nameless {
            return Ok(true);
        }
        let mode = Mode::ReadWrite { takeover: true };
        let options = VolumeOptions { mode, ..self.options.clone() };
        let volume = match self.open_plainly(id, options).await {
            Ok(volume) => volume,
            Err(error) => return self.called_off(id, &error),
        };
        let Some(found) = self.survey_clone(&volume).await? else {
            volume.abandon();
            return Ok(false);
        };
        let epoch = volume.status().epoch;
        if !self.world.state().clones[which].begin(epoch, &found)? {
            volume.abandon();
            return Ok(false);
        }
        self.world.state().counts.clones_used += 1;
        let mut clone = Session { actor: self, volume, which, epoch, image: found };
        let worked = clone.work().await;
        let closed = match worked {
            Ok(()) => clone.volume.close().await,
            Err(error) => Err(error),
        };
        match closed {
            Ok(()) => {
                clone.is_durable();
                Ok(true)
            }
            Err(error) => {
                clone.volume.abandon();
                self.called_off(id, &error)
            }
        }
    }

    /// All there is; `None` where it cannot be read to the end.
    pub async fn survey_clone(&self, volume: &Volume) -> Result<Option<Image>, String> {
        let layout = &self.world.layout;
        let size = self.world.size_of(volume);
        let mut stamps = vec![0; layout.sectors()];
        let mut at = 0;
        while at < size {
            let sectors = layout.clip(at..size);
            let range = layout.range(&sectors);
            let mut data = vec![0xee; range.len().bytes() as usize];
            if let Err(error) = volume.read(range.start(), &mut data).await {
                self.world.trace(|| format!("{} cannot read a clone: {error}", self.process.pid));
                return Ok(None);
            }
            stamps[sectors.clone()].copy_from_slice(&layout::stamps(sectors.start, &data)?);
            at = sectors.end;
        }
        Ok(Some(Image { size, stamps }))
    }

    fn called_off(&self, id: VolumeId, error: &Error) -> Result<bool, String> {
        self.world.trace(|| format!("{} leaves clone {id}: {error}", self.process.pid));
        Ok(false)
    }
}

/// Somebody at work with a clone.
struct Session<'a> {
    actor: &'a Actor,
    volume: Volume,
    which: usize,
    epoch: u64,
    /// What it holds.
    image: Image,
}

impl Session<'_> {
    async fn work(&mut self) -> Result<(), Error> {
        let world = self.actor.world.clone();
        for _ in 0..world.random(|rng| rng.random_range(0..REQUESTS)) {
            self.actor.process.pass().await;
            match world.random(|rng| rng.random_range(0..20)) {
                0..14 => self.change().await?,
                14..17 => {
                    self.volume.flush().await.map_err(failed)?;
                    self.is_durable();
                }
                17 => drop(self.volume.collect(Some(100)).await?),
                _ => self.flatten().await?,
            }
        }
        Ok(())
    }

    /// Writes or trims a sector.
    async fn change(&mut self) -> Result<(), Error> {
        let world = &self.actor.world;
        let sector = world.random(|rng| rng.random_range(0..self.image.size.max(1)));
        if self.image.size == 0 {
            return Ok(());
        }
        let trim = world.random(|rng| rng.random_bool(0.2));
        let stamp = if trim { 0 } else { world.state().model.next_stamp() };
        self.image.stamps[sector] = stamp;
        self.model(|clone, image| clone.allowed.push(image));
        let range = world.layout.range(&(sector..sector + 1));
        let volume = &self.volume;
        let done = match trim {
            true => volume.discard(range).await,
            false => {
                let data = layout::fill(sector..sector + 1, stamp);
                volume.write(range.start(), &data, WriteFlags::default()).await
            }
        };
        done.map_err(failed)
    }

    async fn flatten(&mut self) -> Result<(), Error> {
        let flattened = self.volume.flatten(&mut |_| ()).await?;
        if flattened.done {
            let world = &self.actor.world;
            let (id, of) = {
                let mut state = world.state();
                state.counts.flattened += 1;
                let clone = &mut state.clones[self.which];
                clone.flat = true;
                (clone.id, clone.of)
            };
            world.trace(|| format!("clone {id} is flat"));
            let child = keys::child(world.id, of, id);
            world.memory.delete(&[child]).await.expect("a memory store takes it");
        }
        Ok(())
    }

    /// All that was done is durable.
    fn is_durable(&self) {
        self.model(|clone, image| clone.allowed = vec![image]);
    }

    /// Tells what is known now, unless somebody else has it by now.
    fn model(&self, tell: impl FnOnce(&mut CloneModel, Image)) {
        let mut state = self.actor.world.state();
        let clone = &mut state.clones[self.which];
        if clone.epoch == self.epoch {
            tell(clone, self.image.clone());
        }
    }
}

fn failed(error: objblk::device::DeviceError) -> Error {
    Error::failed(error.to_string())
}
