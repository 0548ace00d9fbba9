//! A volume that begins as an image outside the pool, in a simulated world: somebody works with it now and
//! then, one request after the other, while the rest of the image is fetched in the background or not.
//!
//! What each sector may hold is a list: what it is known to hold for good, and what was written to it
//! since. A sector is known once a flush covers it or an owner has read what it found. So what is read says
//! whether a block came from the image once too often, over a newer write, or was taken for fetched when it
//! was not. Once an owner was told that the volume has all of it, the image is gone.
//!
//! Images are slow, and now and then not to be reached; their bytes are always right.

use crate::actor::Actor;
use crate::layout;
use crate::model::Stamp;
use crate::process::Process;
use crate::world::World;
use async_trait::async_trait;
use futures::FutureExt;
use objblk::device::{BlockDevice, DeviceError, WriteFlags};
use objblk::error::Error;
use objblk::format::features::Features;
use objblk::format::source::SourceObject;
use objblk::format::volume::VolumeObject;
use objblk::format::{VolumeId, keys, pool};
use objblk::image::{Image, ImageError, ImageResult, Images};
use objblk::store::Store;
use objblk::units::{Sector, SectorCount, SectorRange};
use objblk::volume::{Mode, Volume, VolumeOptions};
use rand::Rng;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Sectors of a block of the image, of the image, and of the volume.
const BLOCK: usize = 128;
const IMAGE: usize = 5 * BLOCK - 37;
const SECTORS: usize = 5 * BLOCK + 60;
/// What the image holds, where it is not zeros: no change has this number.
const FROM_IMAGE: Stamp = 1 << 31;
/// Requests of one who works with it.
const REQUESTS: usize = 14;
/// Sectors of one read of all there is.
const STRIDE: usize = 90;

/// The volume, and what is known of it.
#[derive(Debug)]
pub struct SourcedModel {
    pub id: VolumeId,
    /// What each sector may hold; the last of them unless somebody dies.
    allowed: Vec<Vec<Stamp>>,
    /// Of who owns it: nobody with an older one knows anything of it.
    epoch: u64,
    /// The image is needed no more.
    complete: bool,
}

/// What the sector holds in the beginning. One block is zeros.
fn of_image(sector: usize) -> Stamp {
    if sector < IMAGE && sector / BLOCK != 2 { FROM_IMAGE } else { 0 }
}

fn range_of(sectors: &Range<usize>) -> SectorRange {
    SectorRange::between(Sector(sectors.start as u64), Sector(sectors.end as u64))
}

impl SourcedModel {
    fn new(id: VolumeId) -> SourcedModel {
        let allowed = (0..SECTORS).map(|sector| vec![of_image(sector)]).collect();
        SourcedModel { id, allowed, epoch: 0, complete: false }
    }
}

impl World {
    /// The volume, made by who comes first. Its description comes at once, without faults.
    fn sourced_volume(&self) -> VolumeId {
        if let Some(sourced) = &self.state().sourced {
            return sourced.id;
        }
        let id = VolumeId::from_random([8; 16]);
        let size = IMAGE as u64 * 512;
        let description = VolumeObject {
            version: 1,
            id,
            size: SectorCount(SECTORS as u64).bytes(),
            block_size: 512,
            chunk_size: 256 << 10,
            features: Features { incompat: Features::SOURCE, ..Features::default() },
            created_at_ms: 0,
            ancestors: Vec::new(),
            source: Some(SourceObject::new("sim".into(), size, "first".into())),
            mac: None,
        };
        let body = pool::encode_json(&description).into();
        let put = self.memory.put_if_absent(&keys::volume(id), body).now_or_never();
        put.expect("a memory store answers at once").expect("nobody else has made it");
        self.state().sourced = Some(SourcedModel::new(id));
        id
    }
}

/// The image as one process sees it.
#[derive(Clone, Debug)]
struct SimImage {
    world: Arc<World>,
    process: Arc<Process>,
}

impl SimImage {
    async fn travel(&self) -> ImageResult<()> {
        self.process.pass().await;
        let (lost, time) = self.world.random(|rng| {
            let time = 2000f64.powf(rng.random::<f64>());
            (rng.random_bool(0.1), Duration::from_secs_f64(time / 1000.0))
        });
        tokio::time::sleep(time).await;
        self.process.pass().await;
        let state = self.world.state();
        if state.sourced.as_ref().is_some_and(|sourced| sourced.complete) {
            return Err(ImageError::Refused("the image is gone".into()));
        }
        match lost && !state.calm {
            true => Err(ImageError::Unreachable("nobody answers".into())),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Images for SimImage {
    async fn open(&self, _: &str) -> ImageResult<Arc<dyn Image>> {
        self.travel().await?;
        Ok(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Image for SimImage {
    fn size(&self) -> u64 {
        IMAGE as u64 * 512
    }

    fn identity(&self) -> &str {
        "first"
    }

    async fn read(&self, offset: u64, len: usize) -> ImageResult<Vec<u8>> {
        self.travel().await?;
        let first = offset as usize / 512;
        let sectors = first..first + len / 512;
        self.world.state().counts.fetched += sectors.len() as u64;
        let fill = |sector| match of_image(sector) {
            0 => vec![0; 512],
            stamp => layout::fill(sector..sector + 1, stamp),
        };
        Ok(sectors.flat_map(fill).collect())
    }
}

impl Actor {
    /// Works with the volume. `Ok(false)`: it came to an end before; whether that is right is not judged,
    /// only what the volume holds is.
    pub async fn use_sourced(&self, to_the_end: bool) -> Result<bool, String> {
        let id = self.world.sourced_volume();
        let hydrate = self.world.random(|rng| rng.random_bool(0.5));
        let image = SimImage { world: self.world.clone(), process: self.process.clone() };
        let options = VolumeOptions {
            mode: Mode::ReadWrite { takeover: true },
            images: Some(Arc::new(image)),
            hydrate,
            ..self.options.clone()
        };
        let volume = match self.open_plainly(id, options).await {
            Ok(volume) => volume,
            Err(error) => {
                self.world.trace(|| format!("{} cannot open {id}: {error}", self.process.pid));
                return Ok(false);
            }
        };
        let epoch = volume.status().epoch;
        let Some(alone) = self.begin_sourced(epoch) else {
            volume.abandon();
            return Ok(false);
        };
        self.world.trace(|| format!("{} has volume {id}, epoch {epoch}", self.process.pid));
        let (knows, fresh) = (vec![None; SECTORS], BTreeSet::new());
        let mut session = Session { actor: self, volume, epoch, alone, knows, fresh };
        let worked = match to_the_end {
            true => session.finish().await,
            false => session.work().await,
        };
        session.end(worked).await
    }

    /// Whether the image was gone before; `None`: superseded meanwhile.
    fn begin_sourced(&self, epoch: u64) -> Option<bool> {
        let mut state = self.world.state();
        let sourced = state.sourced.as_mut().expect("it was made");
        if epoch < sourced.epoch {
            return None;
        }
        sourced.epoch = epoch;
        let alone = sourced.complete;
        state.counts.sourced += 1;
        Some(alone)
    }
}

/// Why somebody stops.
enum Stop {
    /// Whatever it is.
    Failed(String),
    /// What must not be.
    Wrong(String),
}

impl From<DeviceError> for Stop {
    fn from(error: DeviceError) -> Stop {
        Stop::Failed(error.to_string())
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error.to_string())
    }
}

/// Somebody at work with the volume.
struct Session<'a> {
    actor: &'a Actor,
    volume: Volume,
    epoch: u64,
    /// The image was gone before.
    alone: bool,
    /// What it has read or written.
    knows: Vec<Option<Stamp>>,
    /// Sectors that it has written and not flushed.
    fresh: BTreeSet<usize>,
}

impl Session<'_> {
    async fn work(&mut self) -> Result<(), Stop> {
        let world = self.actor.world.clone();
        for _ in 0..world.random(|rng| rng.random_range(1..REQUESTS)) {
            self.actor.process.pass().await;
            let sectors = self.pick();
            match world.random(|rng| rng.random_range(0..20)) {
                0..6 => self.read(sectors).await?,
                6..14 => self.change(sectors).await?,
                14..17 => self.flush().await?,
                17 => drop(self.volume.collect(Some(100)).await?),
                18 => self.flatten().await?,
                _ => tokio::time::sleep(Duration::from_secs(3)).await,
            }
        }
        Ok(())
    }

    /// Everything, in a world without faults.
    async fn finish(&mut self) -> Result<(), Stop> {
        for first in (0..SECTORS).step_by(STRIDE) {
            self.read(first..SECTORS.min(first + STRIDE)).await?;
        }
        self.flatten().await?;
        for first in (0..SECTORS).step_by(STRIDE) {
            self.read(first..SECTORS.min(first + STRIDE)).await?;
        }
        Ok(())
    }

    /// Some sectors: few, or about whole blocks.
    fn pick(&self) -> Range<usize> {
        self.actor.world.random(|rng| {
            let start = match rng.random_bool(0.3) {
                true => rng.random_range(0..5) * BLOCK,
                false => rng.random_range(0..SECTORS),
            };
            let len = match rng.random_range(0..4) {
                0 => BLOCK,
                1 => rng.random_range(1..3 * BLOCK),
                _ => rng.random_range(1..20),
            };
            start..SECTORS.min(start + len)
        })
    }

    /// Tells what is known now, unless somebody else has it by now.
    fn model(&self, tell: impl FnOnce(&mut SourcedModel)) {
        let mut state = self.actor.world.state();
        let sourced = state.sourced.as_mut().expect("it was made");
        if sourced.epoch == self.epoch {
            tell(sourced);
        }
    }

    async fn read(&mut self, sectors: Range<usize>) -> Result<(), Stop> {
        let range = range_of(&sectors);
        let mut data = vec![0xee; range.len().bytes() as usize];
        self.volume.read(range.start(), &mut data).await?;
        let got = layout::stamps(sectors.start, &data).map_err(Stop::Wrong)?;
        for (sector, got) in sectors.zip(got) {
            let mut allowed = self.knows[sector].map(|stamp| vec![stamp]);
            if allowed.is_none() {
                self.model(|sourced| {
                    allowed = Some(sourced.allowed[sector].clone());
                    sourced.allowed[sector] = vec![got];
                });
            }
            if let Some(allowed) = allowed.filter(|allowed| !allowed.contains(&got)) {
                let text = format!("sector {sector} holds {got}, allowed are {allowed:?}");
                return Err(Stop::Wrong(text));
            }
            self.knows[sector] = Some(got);
        }
        Ok(())
    }

    /// Writes or trims.
    async fn change(&mut self, sectors: Range<usize>) -> Result<(), Stop> {
        let world = self.actor.world.clone();
        let trim = world.random(|rng| rng.random_bool(0.2));
        let stamp = if trim { 0 } else { world.state().model.next_stamp() };
        self.model(|sourced| sectors.clone().for_each(|s| sourced.allowed[s].push(stamp)));
        let range = range_of(&sectors);
        match trim {
            true => self.volume.discard(range).await?,
            false => {
                let data = layout::fill(sectors.clone(), stamp);
                self.volume.write(range.start(), &data, WriteFlags::default()).await?;
            }
        }
        for sector in sectors {
            self.knows[sector] = Some(stamp);
            self.fresh.insert(sector);
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        self.volume.flush().await?;
        self.is_durable();
        Ok(())
    }

    /// All that was done is durable.
    fn is_durable(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        self.model(|sourced| {
            for sector in fresh {
                sourced.allowed[sector] = self.knows[sector].into_iter().collect();
            }
        });
    }

    /// Has it do without its image, which is gone then.
    async fn flatten(&mut self) -> Result<(), Stop> {
        self.volume.flatten(&mut |_| ()).await?;
        self.is_durable();
        let world = &self.actor.world;
        world.trace(|| format!("{} needs no image any more", self.volume.status().epoch));
        let mut state = world.state();
        state.counts.hydrated += 1;
        state.sourced.as_mut().expect("it was made").complete = true;
        Ok(())
    }

    /// Closes it, or just leaves it.
    async fn end(mut self, worked: Result<(), Stop>) -> Result<bool, String> {
        let leaves = self.actor.world.random(|rng| rng.random_bool(0.3));
        let ended = match worked {
            Ok(()) if leaves => Ok(false),
            Ok(()) => self.volume.close().await.map(|()| true).map_err(Stop::from),
            Err(stop) => Err(stop),
        };
        if let Ok(true) = ended {
            self.is_durable();
            return Ok(true);
        }
        self.volume.abandon();
        let text = match ended {
            Ok(_) => return Ok(true),
            Err(Stop::Wrong(text)) => {
                return Err(format!("a volume with a source, epoch {}: {text}", self.epoch));
            }
            Err(Stop::Failed(text)) => text,
        };
        self.actor.world.trace(|| format!("{} leaves its source: {text}", self.actor.process.pid));
        match self.alone && text.contains("the source") {
            true => Err(format!("a source is missed that is needed no more: {text}")),
            false => Ok(false),
        }
    }
}
