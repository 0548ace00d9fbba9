//! What a VMM has told so far, and the rings that follow from it.
//!
//! Invariant: whatever a message says, it takes effect as a whole or the connection ends. A ring
//! runs from its kick to the question where it stands, as the protocol has it.

use super::config::{self, QUEUE_SIZE_MAX, QUEUES_MAX};
use super::inflight::{Identity, Region};
use super::memory::{Memory, REGIONS_MAX};
use super::request::ID_LEN;
use super::ring::{Layout, Ring, Spec};
use super::virtqueue::Shape;
use super::{Common, DRAIN};
use crate::device::{BlockDevice, Checked};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
    VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures,
};
use virtio_bindings::{virtio_blk, virtio_config, virtio_ring};

/// Rings may be enabled and disabled, and more.
const PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// A ring's places, in the VMM's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Places {
    table: u64,
    avail: u64,
    used: u64,
}

/// A queue, as far as it is known.
#[derive(Debug, Default)]
struct Queue {
    size: u16,
    places: Option<Places>,
    base: u32,
    enabled: bool,
    call: Option<File>,
    error: Option<File>,
    ring: Option<Ring>,
}

/// A connection's state.
pub(super) struct Session<D> {
    device: Arc<Checked<D>>,
    common: Arc<Common>,
    identity: Identity,
    id: [u8; ID_LEN],
    features: u64,
    memory: Arc<Memory>,
    queues: Vec<Queue>,
    region: Option<Arc<Region>>,
}

/// An error of this side, with what is wrong.
fn wrong(why: impl Into<String>) -> Error {
    Error::ReqHandlerError(io::Error::other(why.into()))
}

impl<D: BlockDevice> Session<D> {
    pub(super) fn new(
        device: Arc<Checked<D>>,
        common: Arc<Common>,
        identity: Identity,
        id: [u8; ID_LEN],
    ) -> Session<D> {
        let queues = (0..QUEUES_MAX).map(|_| Queue::default()).collect();
        let (memory, features, region) = (Arc::default(), 0, None);
        Session { device, common, identity, id, features, memory, queues, region }
    }

    /// Ends all rings, giving requests in flight so long.
    pub(super) fn end(&mut self, patience: Duration) {
        for index in 0..self.queues.len() {
            if let Err(e) = self.stop(index, patience) {
                tracing::error!("{e}");
            }
        }
    }

    fn queue(&mut self, index: u32) -> Result<&mut Queue> {
        let queue = usize::try_from(index).ok().and_then(|index| self.queues.get_mut(index));
        queue.ok_or_else(|| wrong(format!("there is no queue {index}")))
    }

    fn idle_queue(&mut self, index: u32) -> Result<&mut Queue> {
        let queue = self.queue(index)?;
        match queue.ring {
            Some(_) => Err(wrong(format!("queue {index} is changed while it runs"))),
            None => Ok(queue),
        }
    }

    fn offered(&self) -> u64 {
        config::features(&self.device.geometry()) | PROTOCOL
    }

    fn has(&self, feature: u32) -> bool {
        self.features & config::bit(feature) != 0
    }

    fn shape(&self) -> Shape {
        match self.has(virtio_config::VIRTIO_F_RING_PACKED) {
            true => Shape::Packed,
            false => Shape::Split,
        }
    }

    fn remap(&mut self, memory: std::result::Result<Memory, String>) -> Result<()> {
        self.memory = Arc::new(memory.map_err(wrong)?);
        for ring in self.queues.iter().filter_map(|queue| queue.ring.as_ref()) {
            ring.shared().remap(self.memory.clone());
        }
        Ok(())
    }

    fn start(&mut self, index: usize, kick: File) -> Result<()> {
        let shape = self.shape();
        let part = match &self.region {
            None => None,
            Some(region) => {
                let part = region.part(shape, index, self.queues[index].size);
                Some(part.ok_or_else(|| wrong(format!("nothing is noted of queue {index}")))?)
            }
        };
        let (event_idx, durable) = (
            self.has(virtio_ring::VIRTIO_RING_F_EVENT_IDX),
            !self.has(virtio_blk::VIRTIO_BLK_F_FLUSH),
        );
        let queue = &mut self.queues[index];
        let places = queue.places.ok_or_else(|| wrong(format!("queue {index} has no ring")))?;
        let place = |user| {
            let place = self.memory.of_user(user);
            place.ok_or_else(|| wrong(format!("queue {index} lies outside of the memory")))
        };
        let layout = Layout {
            size: queue.size,
            table: place(places.table)?,
            avail: place(places.avail)?,
            used: place(places.used)?,
        };
        let (base, id) = (queue.base, self.id);
        let spec = Spec { number: index, shape, layout, base, event_idx, durable, kick, part, id };
        let (device, counters) = (self.device.clone(), self.common.counters.clone());
        let enabled = queue.enabled || self.features & PROTOCOL == 0;
        let events = (queue.call.take(), queue.error.take());
        let ring = Ring::start(device, spec, self.memory.clone(), events, (enabled, counters));
        let ring = ring.map_err(Error::ReqHandlerError)?;
        self.common.begin_ring(ring.shared());
        queue.ring = Some(ring);
        Ok(())
    }

    /// Ends a ring, if it runs.
    fn stop(&mut self, index: usize, patience: Duration) -> Result<()> {
        let queue = &mut self.queues[index];
        let Some(ring) = queue.ring.take() else { return Ok(()) };
        let shared = ring.shared().clone();
        let base = ring.stop(patience);
        self.common.end_ring(&shared);
        (queue.call, queue.error) = shared.take_events();
        queue.base = base.ok_or_else(|| wrong(format!("the thread of queue {index} is stuck")))?;
        Ok(())
    }
}

/// Without it a guest that does not read its counter would hold a ring up.
fn never_block(file: &File) -> Result<()> {
    let changed = fcntl(file, FcntlArg::F_GETFL).and_then(|flags| {
        let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
        fcntl(file, FcntlArg::F_SETFL(flags))
    });
    changed.map(drop).map_err(|e| wrong(format!("an event that cannot be used: {e}")))
}

impl<D: BlockDevice> VhostUserBackendReqHandlerMut for Session<D> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        (0..self.queues.len()).try_for_each(|index| self.stop(index, DRAIN))
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(wrong(format!("features {unknown:#x} that were not offered")));
        }
        self.features = features;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<Protocol> {
        Ok(Protocol::MQ
            | Protocol::CONFIG
            | Protocol::BACKEND_REQ
            | Protocol::INFLIGHT_SHMFD
            | Protocol::CONFIGURE_MEM_SLOTS
            | Protocol::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let offered = self.get_protocol_features()? | Protocol::REPLY_ACK;
        match features & !offered.bits() {
            0 => Ok(()),
            unknown => Err(wrong(format!("protocol features {unknown:#x} that were not offered"))),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES_MAX.into())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let none = Ok(Memory::default());
        let all = regions
            .iter()
            .zip(files)
            .fold(none, |memory, (told, file)| memory.and_then(|memory| memory.with(told, file)));
        self.remap(all).map(|()| None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let memory = self.memory.with(region, file);
        self.remap(memory).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let memory = self.memory.without(region);
        self.remap(memory)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let any = self.shape() == Shape::Packed;
        let size = u16::try_from(num).ok().filter(|n| (1..=QUEUE_SIZE_MAX).contains(n));
        let size = size.filter(|n| any || n.is_power_of_two());
        let size = size.ok_or_else(|| wrong(format!("a ring of {num} entries")))?;
        self.idle_queue(index)?.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        table: u64,
        used: u64,
        avail: u64,
        _log: u64,
    ) -> Result<()> {
        let places = Places { table, avail, used };
        if self.queue(index)?.places == Some(places) {
            return Ok(());
        }
        self.idle_queue(index)?.places = Some(places);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.idle_queue(index)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.queue(index)?;
        self.stop(index as usize, DRAIN)?;
        let queue = self.queue(index)?;
        queue.enabled = false;
        Ok(VhostUserVringState::new(index, queue.base))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.queue(index.into())?;
        let kick = file.ok_or_else(|| wrong("a ring without a kick, to be polled"))?;
        never_block(&kick)?;
        self.stop(index.into(), DRAIN)?;
        self.start(index.into(), kick)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        file.iter().try_for_each(never_block)?;
        let queue = self.queue(index.into())?;
        match &queue.ring {
            Some(ring) => ring.shared().set_call(file),
            None => queue.call = file,
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        file.iter().try_for_each(never_block)?;
        let queue = self.queue(index.into())?;
        match &queue.ring {
            Some(ring) => ring.shared().set_error(file),
            None => queue.error = file,
        }
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let queue = self.queue(index)?;
        queue.enabled = enable;
        if let Some(ring) = &queue.ring {
            ring.shared().enable(enable);
        }
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let read = config::read(&self.device.geometry(), offset, size);
        read.ok_or_else(|| wrong(format!("{size} bytes of configuration at {offset}")))
    }

    /// Nothing of it can be written; a guest that tries is not worth a connection.
    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Ok(())
    }

    fn get_inflight_fd(&mut self, told: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let size = (told.num_queues, told.queue_size);
        let made = Region::create(self.shape(), size, &self.identity);
        let (region, told, file) = made.map_err(wrong)?;
        self.region = Some(Arc::new(region));
        Ok((told, file))
    }

    fn set_inflight_fd(&mut self, told: &VhostUserInflight, file: File) -> Result<()> {
        let region = Region::open(self.shape(), told, file, &self.identity).map_err(|why| {
            self.common.refuse(&why);
            wrong(why)
        })?;
        self.region = Some(Arc::new(region));
        Ok(())
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidOperation("live migration is not offered"))
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("this is a disk"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("this is a disk"))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("live migration is not offered"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("live migration is not offered"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("this is a disk"))
    }
}
