//! A file in memory: what is stored there outlives the process at once, without a call for it.
//!
//! Contract: all of its memory is reserved before it can be touched, so that a full file system is an error and no
//! signal. Durable it is not.

use nix::errno::Errno;
use nix::fcntl::posix_fallocate;
use nix::sys::mman::{MRemapFlags, MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mremap, munmap};
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a new file, and what sizes are multiples of.
const GRANULE: usize = 64 << 10;
/// A file gets twice as long, or longer by so much.
const STEP: usize = 256 << 10;
/// Bytes of a word.
const WORD: usize = 8;

/// A file that is written through memory. Nobody else writes it as long as this is there.
#[derive(Debug)]
pub struct MappedFile {
    file: File,
    base: NonNull<c_void>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone and is changed through `&mut` only.
unsafe impl Send for MappedFile {}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this base and length; no reference into it outlives `self`.
        if let Err(errno) = unsafe { munmap(self.base, self.len) } {
            tracing::error!(%errno, "munmap of a file");
        }
    }
}

impl MappedFile {
    /// A file of zeros at `path`, in place of what is there, for this user alone.
    ///
    /// # Errors
    /// It cannot be made, there is no room for it, or it cannot be mapped.
    pub fn create(path: &Path) -> io::Result<MappedFile> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).read(true).write(true).mode(0o600);
        let file = options.open(path)?;
        reserve(&file, 0, GRANULE)?;
        let len = NonZeroUsize::new(GRANULE).ok_or(Errno::EINVAL)?;
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, placed by the kernel, aliases nothing of this process; the file is as long.
        let base = unsafe { mmap(None, len, both, MapFlags::MAP_SHARED, &file, 0)? };
        let mapped = MappedFile { file, base, len: GRANULE };
        mapped.populate(0);
        Ok(mapped)
    }

    /// Bytes of it.
    pub fn size(&self) -> usize {
        self.len
    }

    /// Its bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping has `len` bytes, all of them in the file, which belongs to this user alone; whoever
        // goes on from it reads it when this process is no more.
        unsafe { std::slice::from_raw_parts_mut(self.base.cast().as_ptr(), self.len) }
    }

    /// Stores 8 bytes in one step, and when all that was stored before is there.
    ///
    /// # Panics
    /// `at` is no multiple of 8, or behind the end.
    pub fn publish(&mut self, at: usize, word: [u8; WORD]) {
        assert!(at.is_multiple_of(WORD), "a word is at its multiple");
        let place = &mut self.bytes_mut()[at..at + WORD];
        // SAFETY: these are 8 bytes of the mapping, aligned as `at` and the mapping are, and borrowed by nobody else.
        let place = unsafe { AtomicU64::from_ptr(place.as_mut_ptr().cast()) };
        place.store(u64::from_ne_bytes(word), Ordering::Release);
    }

    /// Makes it `bytes` bytes long, or somewhat longer. After an error it is as it was.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn grow(&mut self, bytes: usize) -> io::Result<()> {
        let before = self.len;
        if bytes <= before {
            return Ok(());
        }
        let len = bytes.max(before + before.min(STEP)).next_multiple_of(GRANULE);
        reserve(&self.file, before, len)?;
        // SAFETY: the mapping is this value's, and no reference into it is alive; the file is as long.
        self.base = unsafe { mremap(self.base, before, len, MRemapFlags::MREMAP_MAYMOVE, None)? };
        self.len = len;
        self.populate(before);
        Ok(())
    }

    /// Asks for the memory from byte `from` on now, not page by page; a kernel that cannot do that does without.
    fn populate(&self, from: usize) {
        // SAFETY: the part is inside the mapping, and what is in it stays.
        let _ = unsafe {
            madvise(self.base.byte_add(from), self.len - from, MmapAdvise::MADV_POPULATE_WRITE)
        };
    }
}

fn reserve(file: &File, from: usize, to: usize) -> io::Result<()> {
    loop {
        match posix_fallocate(file, from as i64, (to - from) as i64) {
            Err(Errno::EINTR) => {}
            done => return Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_stored_is_in_the_file_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, vec![9; 2 * GRANULE]).unwrap();
        let mut mapped = MappedFile::create(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), vec![0; GRANULE], "in place of what was there");
        for size in [GRANULE + 1, 5 * GRANULE, 40 * GRANULE] {
            mapped.grow(size).unwrap();
            assert!(mapped.size() >= size && mapped.size() < 2 * size + STEP);
            mapped.bytes_mut()[size - 1] = 7;
            mapped.publish(size / 8 * 8 - 16, *b"a word.\n");
            let bytes = fs::read(&path).unwrap();
            assert_eq!((bytes.len(), bytes[size - 1]), (mapped.size(), 7));
            assert_eq!(&bytes[size / 8 * 8 - 16..][..8], b"a word.\n");
        }
    }

    #[test]
    fn a_file_that_cannot_grow_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut mapped = MappedFile::create(&path).unwrap();
        mapped.bytes_mut().fill(3);
        mapped.file = File::open(&path).unwrap();
        let error = mapped.grow(GRANULE + 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EBADF as i32));
        assert_eq!(mapped.size(), GRANULE);
        assert!(mapped.bytes_mut().iter().all(|byte| *byte == 3));
    }
}
