//! The memory that a queue shares with the driver: request buffers and request descriptors.

use libublk::sys;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

const PAGE: usize = 4096;

struct Mapping {
    base: NonNull<c_void>,
    len: NonZeroUsize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this base and length and is unmapped only here; what
        // points into it borrows from the owner of `self`.
        if let Err(errno) = unsafe { munmap(self.base, self.len.get()) } {
            tracing::error!(%errno, "munmap of a queue's memory");
        }
    }
}

/// A page-aligned buffer for each tag of a queue. Memory is taken on first use.
pub(super) struct Buffers {
    mapping: Mapping,
    size: usize,
    depth: u16,
}

impl Buffers {
    /// `depth` buffers of `size` bytes (whole pages).
    pub(super) fn new(depth: u16, size: usize) -> Result<Buffers, Errno> {
        let len = size.checked_mul(usize::from(depth)).ok_or(Errno::ENOMEM)?;
        let len = NonZeroUsize::new(len).ok_or(Errno::EINVAL)?;
        // SAFETY: a new private anonymous mapping, placed by the kernel, aliases nothing.
        let base = unsafe {
            mmap_anonymous(
                None,
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
            )?
        };
        Ok(Buffers { mapping: Mapping { base, len }, size, depth })
    }

    /// Bytes in each buffer.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// The start of a tag's buffer, as the driver is told it.
    pub(super) fn address(&self, tag: u16) -> u64 {
        self.start(tag).as_ptr() as u64
    }

    fn start(&self, tag: u16) -> NonNull<u8> {
        assert!(tag < self.depth, "tags are below the depth");
        // SAFETY: `tag < depth`, so the offset is inside the mapping of `depth * size` bytes.
        unsafe { self.mapping.base.cast().add(usize::from(tag) * self.size) }
    }

    /// The buffer of `tag`.
    ///
    /// # Safety
    /// No other reference to this tag's buffer is alive, and the driver does not use it: the
    /// tag's request was delivered and its result has not been committed.
    #[expect(clippy::mut_from_ref, reason = "tags partition the mapping; see the contract")]
    pub(super) unsafe fn get(&self, tag: u16) -> &mut [u8] {
        // SAFETY: the bytes lie inside the mapping, which lives as long as `self`, and were
        // zeroed by the kernel; the caller vouches for exclusiveness.
        unsafe { std::slice::from_raw_parts_mut(self.start(tag).as_ptr(), self.size) }
    }
}

/// The driver's read-only array of request descriptors, indexed by tag.
pub(super) struct Descriptors {
    mapping: Mapping,
    depth: u16,
}

impl Descriptors {
    /// Maps the descriptors of queue `qid` from the device's character device.
    pub(super) fn map(cdev: impl AsFd, qid: u16, depth: u16) -> Result<Descriptors, Errno> {
        let bytes =
            |depth: usize| (depth * size_of::<sys::ublksrv_io_desc>()).next_multiple_of(PAGE);
        let stride = bytes(sys::UBLK_MAX_QUEUE_DEPTH as usize);
        let offset = sys::UBLKSRV_CMD_BUF_OFFSET as usize + usize::from(qid) * stride;
        let offset = i64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        let len = NonZeroUsize::new(bytes(usize::from(depth))).ok_or(Errno::EINVAL)?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping placed by the kernel aliases no memory of this program.
        let base = unsafe { mmap(None, len, ProtFlags::PROT_READ, flags, cdev, offset)? };
        Ok(Descriptors { mapping: Mapping { base, len }, depth })
    }

    /// The descriptor of the request that was delivered for `tag`.
    pub(super) fn get(&self, tag: u16) -> sys::ublksrv_io_desc {
        assert!(tag < self.depth, "tags are below the depth");
        let first = self.mapping.base.cast::<sys::ublksrv_io_desc>();
        // SAFETY: `tag < depth` descriptors are mapped and page-aligned. The driver wrote this one
        // before it posted the completion that was read, and leaves it alone until the commit;
        // the read is volatile because the memory is shared.
        unsafe { first.add(usize::from(tag)).read_volatile() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_apart_and_page_aligned() {
        let buffers = Buffers::new(3, 8192).unwrap();
        // SAFETY: one reference per tag, and no driver.
        let (a, b) = unsafe { (buffers.get(0), buffers.get(2)) };
        a.fill(1);
        b.fill(2);
        assert_eq!((a.len(), b.len()), (8192, 8192));
        assert!(a.iter().all(|x| *x == 1));
        assert_eq!(buffers.address(1) - buffers.address(0), 8192);
        assert_eq!(buffers.address(0) % PAGE as u64, 0);
    }
}
