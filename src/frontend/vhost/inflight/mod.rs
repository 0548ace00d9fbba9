//! What a backend was doing, in memory that outlives it.
//!
//! The VMM keeps this memory and hands it to the backend's successor, which so knows which requests
//! the guest waits for. It is laid out as the vhost-user specification shows it for rings of either
//! shape, one part for each queue ([`split`], [`packed`]), with a label of ours behind the last:
//!
//! ```text
//! label   magic, token u64, epoch u64, volume [16]
//! ```
//!
//! A process may be killed between any two instructions; what it has stored until then is there for
//! its successor, so all that counts is the order of the stores: each is a release.
//!
//! **The label** is why a guest never loses writes without noticing. It says who served it last. A
//! guest that comes back with the label of a process that died, to one that does not have what that
//! had acknowledged, is not let in: it would go on with a disk that forgot. See [`Identity`].
//!
//! Invariant: the memory cannot shrink (it is sealed), so that nobody is killed for touching it.

mod packed;
mod split;

pub(super) use packed::PackedNotes;
pub(super) use split::SplitNotes;

use super::config::{QUEUE_SIZE_MAX, QUEUES_MAX};
use super::virtqueue::Shape;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{AtomicAccess, Bytes, FileOffset, MmapRegion, VolatileMemory};

/// Parts begin at multiples of this.
const ALIGN: usize = 64;

/// The version of a queue's part, once there is something in it.
const VERSION: u16 = 1;

/// Where things are in a part of either shape.
const VERSION_AT: usize = 8;
const ENTRIES_AT: usize = 10;

/// Of the label.
const LABEL: usize = 64;
const MAGIC: u64 = u64::from_le_bytes(*b"objblkVU");
const TOKEN_AT: usize = 8;
const EPOCH_AT: usize = 16;
const VOLUME_AT: usize = 24;

/// Who serves a guest, and whom it goes on for.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The volume.
    pub volume: [u8; 16],
    /// What all processes have in common that took over from one another with everything that was
    /// acknowledged.
    pub token: u64,
    /// The present owner's term; of a volume that is only read, the last one's.
    pub epoch: u64,
    /// The last term before this process that ended, if it did so in order.
    pub closed: Option<u64>,
    /// It never changes: a snapshot.
    pub unchanging: bool,
}

/// The memory of all queues.
#[derive(Debug)]
pub(super) struct Region {
    memory: MmapRegion,
    shape: Shape,
    queues: u16,
    entries: u16,
}

/// The part of one queue.
#[derive(Clone, Debug)]
pub(super) struct Part {
    region: Arc<Region>,
    at: usize,
}

fn stride(shape: Shape, entries: u16) -> usize {
    let (head, entry) = match shape {
        Shape::Split => (split::HEAD, split::ENTRY),
        Shape::Packed => (packed::HEAD, packed::ENTRY),
    };
    (head + entry * usize::from(entries)).next_multiple_of(ALIGN)
}

fn len(shape: Shape, (queues, entries): (u16, u16)) -> usize {
    stride(shape, entries) * usize::from(queues) + LABEL
}

fn check_shape(queues: u16, entries: u16) -> Result<(), String> {
    let sane = (1..=QUEUES_MAX).contains(&queues) && (1..=QUEUE_SIZE_MAX).contains(&entries);
    sane.then_some(()).ok_or_else(|| format!("{queues} queues of {entries} entries in flight"))
}

impl Region {
    /// Memory for a guest that begins. What to tell the VMM of it. The error is for people.
    pub(super) fn create(
        shape: Shape,
        (queues, entries): (u16, u16),
        identity: &Identity,
    ) -> Result<(Region, VhostUserInflight, File), String> {
        check_shape(queues, entries)?;
        let size = len(shape, (queues, entries));
        let failed = |e: nix::errno::Errno| format!("no memory to share: {e}");
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"objblk-inflight", flags).map_err(failed)?);
        file.set_len(size as u64).map_err(|e| format!("no memory to share: {e}"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(failed)?;
        let ours = file.try_clone().map_err(|e| e.to_string())?;
        let memory = MmapRegion::from_file(FileOffset::new(ours, 0), size);
        let memory = memory.map_err(|e| format!("no memory to share: {e}"))?;
        let region = Region { memory, shape, queues, entries };
        for queue in 0..queues {
            let at = stride(shape, entries) * usize::from(queue);
            region.put(at + ENTRIES_AT, entries);
            // Where a packed ring stands is in its part, once that is known; until then, in nothing.
            if shape == Shape::Split {
                region.put(at + VERSION_AT, VERSION);
            }
        }
        region.label(identity);
        Ok((region, VhostUserInflight::new(size as u64, 0, queues, entries), file))
    }

    /// The memory of a guest that comes back, if what it waits for is known here. The error is for
    /// people.
    pub(super) fn open(
        shape: Shape,
        told: &VhostUserInflight,
        file: File,
        identity: &Identity,
    ) -> Result<Region, String> {
        let (size, offset) = (told.mmap_size, told.mmap_offset);
        let (queues, entries) = (told.num_queues, told.queue_size);
        check_shape(queues, entries)?;
        if size != len(shape, (queues, entries)) as u64 || offset != 0 {
            return Err("memory of requests in flight that is not as objblk makes it".into());
        }
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
        if !seals.is_ok_and(|seals| seals.contains(SealFlag::F_SEAL_SHRINK)) {
            return Err("memory of requests in flight that objblk did not make".into());
        }
        if !file.metadata().is_ok_and(|meta| meta.len() >= size) {
            return Err("memory of requests in flight that is too short".into());
        }
        let memory = MmapRegion::from_file(FileOffset::new(file, 0), size as usize);
        let memory = memory.map_err(|e| format!("memory that cannot be mapped: {e}"))?;
        let region = Region { memory, shape, queues, entries };
        region.check_label(identity)?;
        for queue in 0..queues {
            let at = stride(shape, entries) * usize::from(queue);
            let (version, there): (u16, u16) =
                (region.get(at + VERSION_AT), region.get(at + ENTRIES_AT));
            let known = version == VERSION || version == 0 && shape == Shape::Packed;
            if !known || there != entries {
                return Err(format!("version {version} of requests in flight, {there} entries"));
            }
        }
        region.label(identity);
        Ok(region)
    }

    fn label(&self, identity: &Identity) {
        let at = len(self.shape, (self.queues, self.entries)) - LABEL;
        self.put(at, MAGIC.to_le());
        self.put(at + TOKEN_AT, identity.token);
        self.put(at + EPOCH_AT, identity.epoch);
        let halves = identity.volume.chunks_exact(8).enumerate();
        for (i, half) in halves {
            self.put(at + VOLUME_AT + 8 * i, half.iter().fold(0, |n, b| n << 8 | u64::from(*b)));
        }
    }

    fn check_label(&self, identity: &Identity) -> Result<(), String> {
        let at = len(self.shape, (self.queues, self.entries)) - LABEL;
        let volume = |i: usize| {
            let half = &identity.volume[8 * i..8 * i + 8];
            half.iter().fold(0, |n, b| n << 8 | u64::from(*b))
        };
        let same = (0..2).all(|i| self.get::<u64>(at + VOLUME_AT + 8 * i) == volume(i));
        if self.get::<u64>(at) != MAGIC.to_le() || !same {
            return Err("requests in flight of another volume".into());
        }
        let (token, epoch) = (self.get::<u64>(at + TOKEN_AT), self.get::<u64>(at + EPOCH_AT));
        match token == identity.token || identity.closed == Some(epoch) || identity.unchanging {
            true => Ok(()),
            false => Err(format!(
                "the guest ran on the term {epoch} of this volume, and what that had acknowledged \
                 and not stored is lost: it is not let in; reset it, as after a power cut"
            )),
        }
    }

    /// The part of a queue of `size` entries; none where there is no such.
    pub(super) fn part(self: &Arc<Region>, shape: Shape, queue: usize, size: u16) -> Option<Part> {
        let there = queue < usize::from(self.queues) && size <= self.entries;
        let at = stride(self.shape, self.entries) * queue;
        (there && shape == self.shape).then(|| Part { region: self.clone(), at })
    }

    fn get<T: AtomicAccess + Default>(&self, at: usize) -> T {
        let memory = self.memory.as_volatile_slice();
        // Every place is inside and aligned, as the shape was checked.
        memory.load(at, Acquire).unwrap_or_default()
    }

    fn put<T: AtomicAccess>(&self, at: usize, value: T) {
        let stored = self.memory.as_volatile_slice().store(value, at, Release);
        debug_assert!(stored.is_ok(), "every place is inside and aligned");
    }
}

impl Part {
    fn get<T: AtomicAccess + Default>(&self, at: usize) -> T {
        self.region.get(self.at + at)
    }

    fn put<T: AtomicAccess>(&self, at: usize, value: T) {
        self.region.put(self.at + at, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(token: u64, epoch: u64, closed: Option<u64>) -> Identity {
        Identity { volume: *b"0123456789abcdef", token, epoch, closed, unchanging: false }
    }

    fn comes_back(told: &VhostUserInflight, file: &File, to: &Identity) -> Result<Region, String> {
        Region::open(Shape::Split, told, file.try_clone().unwrap(), to)
    }

    #[test]
    fn a_guest_comes_back_only_to_those_who_have_its_writes() {
        let (_, told, file) =
            Region::create(Shape::Split, (1, 128), &identity(7, 3, None)).unwrap();
        let lost = comes_back(&told, &file, &identity(8, 4, None)).unwrap_err();
        assert!(lost.contains("reset it"), "{lost}");
        assert!(comes_back(&told, &file, &identity(8, 5, Some(4))).is_err());
        assert!(
            comes_back(&told, &file, &Identity { unchanging: true, ..identity(8, 0, None) })
                .is_ok()
        );
        let (_, told, file) =
            Region::create(Shape::Split, (1, 128), &identity(7, 3, None)).unwrap();
        comes_back(&told, &file, &identity(7, 4, None)).unwrap();
        comes_back(&told, &file, &identity(9, 5, Some(4))).unwrap();
        comes_back(&told, &file, &identity(9, 6, None)).unwrap();
        let other = Identity { volume: [1; 16], ..identity(9, 6, None) };
        assert!(comes_back(&told, &file, &other).unwrap_err().contains("another volume"));
    }

    #[test]
    fn memory_of_another_kind_is_refused() {
        let me = identity(7, 3, None);
        let (_, told, file) = Region::create(Shape::Split, (1, 8), &me).unwrap();
        let shaped = |size, offset, queues, entries| {
            let told = VhostUserInflight::new(size, offset, queues, entries);
            comes_back(&told, &file, &me)
        };
        assert!(shaped(told.mmap_size, 0, 1, 8).is_ok());
        for (size, offset, queues, entries) in [
            (told.mmap_size, 4096, 1, 8),
            (u64::MAX, 0, 1, 8),
            (told.mmap_size, 0, 2, 8),
            (told.mmap_size, 0, 1, 0),
            (told.mmap_size, 0, u16::MAX, u16::MAX),
        ] {
            assert!(shaped(size, offset, queues, entries).is_err(), "{size} {offset} {queues}");
        }
        let bare = File::from(memfd_create(c"bare", MFdFlags::MFD_CLOEXEC).unwrap());
        bare.set_len(told.mmap_size).unwrap();
        assert!(comes_back(&told, &bare, &me).unwrap_err().contains("did not make"));
        let other = Region::open(Shape::Packed, &told, file, &me).unwrap_err();
        assert!(other.contains("not as objblk makes it"), "{other}");
        assert!(
            Region::create(Shape::Split, (0, 8), &me).is_err()
                && Region::create(Shape::Split, (1, 2048), &me).is_err()
        );
    }
}
