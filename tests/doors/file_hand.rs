//! A user of a file or of a block device: system calls.

use crate::door::{Answer, Hand, Refusal};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Direct I/O wants memory that begins at such an address.
const ALIGNED: usize = 4096;

nix::ioctl_write_ptr_bad!(blkdiscard, 0x1277, [u64; 2]);
nix::ioctl_write_ptr_bad!(blkzeroout, 0x127f, [u64; 2]);

/// What is behind the file descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// Through the page cache.
    File,
    /// Past the page cache.
    BlockDevice,
}

pub struct FileHand {
    file: File,
    /// None where it can only be read: why.
    changing: Result<File, Refusal>,
    behind: Behind,
}

fn refusal(e: &io::Error) -> Refusal {
    e.raw_os_error().map_or(Refusal::Gone, Refusal::Errno)
}

fn refused(e: Errno) -> Refusal {
    Refusal::Errno(e as i32)
}

/// Memory for direct I/O.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let memory = vec![0; len + ALIGNED];
        let start = memory.as_ptr().align_offset(ALIGNED);
        Aligned { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl FileHand {
    pub fn open(path: &Path, behind: Behind) -> FileHand {
        let direct = if behind == Behind::BlockDevice { libc::O_DIRECT } else { 0 };
        let open =
            |write| OpenOptions::new().read(true).write(write).custom_flags(direct).open(path);
        let file = open(false).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let changing = open(true).map_err(|e| refusal(&e));
        FileHand { file, changing, behind }
    }

    fn changing(&self) -> Answer<&File> {
        self.changing.as_ref().map_err(|why| *why)
    }

    fn clear(&mut self, at: u64, len: u64, punch: bool) -> Answer<()> {
        let file = self.changing()?;
        if self.behind == Behind::BlockDevice {
            let (fd, range) = (file.as_raw_fd(), [at, len]);
            let done = match punch {
                // SAFETY: the file is open; two numbers are read from where it is told.
                true => unsafe { blkdiscard(fd, &range) },
                // SAFETY: as above.
                false => unsafe { blkzeroout(fd, &range) },
            };
            return done.map(drop).map_err(refused);
        }
        let how = match punch {
            true => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
            false => FallocateFlags::FALLOC_FL_ZERO_RANGE,
        };
        let how = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(file, how, at.cast_signed(), len.cast_signed()).map_err(refused)
    }
}

impl Hand for FileHand {
    fn read(&mut self, at: u64, len: usize) -> Answer<Vec<u8>> {
        let mut memory = Aligned::new(len);
        let mut done = 0;
        while done < len {
            match self.file.read_at(&mut memory.bytes()[done..], at + done as u64) {
                Ok(0) => return Err(Refusal::Short(done)),
                Ok(more) => done += more,
                Err(e) => return Err(refusal(&e)),
            }
        }
        Ok(memory.bytes().to_vec())
    }

    fn write(&mut self, at: u64, data: &[u8], fua: bool) -> Answer<()> {
        let file = self.changing()?;
        let mut memory = Aligned::new(data.len());
        memory.bytes().copy_from_slice(data);
        let mut done = 0;
        while done < data.len() {
            let rest = &memory.bytes()[done..];
            let part =
                libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
            let (offset, flags) =
                (at.cast_signed() + done as i64, if fua { libc::RWF_DSYNC } else { 0 });
            // SAFETY: one part, which lives until the call returns, and is only read.
            let more = unsafe { libc::pwritev2(file.as_raw_fd(), &part, 1, offset, flags) };
            match Errno::result(more) {
                Ok(0) => return Err(Refusal::Short(done)),
                Ok(more) => done += more as usize,
                Err(Errno::ENOSPC) if done > 0 => return Err(Refusal::Short(done)),
                Err(e) => return Err(refused(e)),
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Answer<()> {
        // One that can only be read has nothing to make durable.
        let file = self.changing.as_ref().unwrap_or(&self.file);
        file.sync_all().map_err(|e| refusal(&e))
    }

    fn discard(&mut self, at: u64, len: u64) -> Answer<()> {
        self.clear(at, len, true)
    }

    fn zero(&mut self, at: u64, len: u64) -> Answer<()> {
        self.clear(at, len, false)
    }

    fn size(&mut self) -> u64 {
        self.file.seek(SeekFrom::End(0)).unwrap()
    }
}
