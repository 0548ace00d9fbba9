//! Reads that do not wait for a disk.

use nix::libc;
use std::fs::File;
use std::os::fd::AsRawFd;

/// Reads `buf` from `offset` where the kernel has all of it in memory. False: it has not, or cannot
/// say, and what `buf` holds means nothing.
pub fn read_from_memory(file: &File, buf: &mut [u8], offset: u64) -> bool {
    let Ok(offset) = libc::off_t::try_from(offset) else { return false };
    let part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    // SAFETY: `part` is `buf`, which nobody else has for as long as the call takes.
    let read = unsafe { libc::preadv2(file.as_raw_fd(), &part, 1, offset, libc::RWF_NOWAIT) };
    usize::try_from(read).is_ok_and(|read| read == buf.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_was_just_written_is_in_memory() {
        // In the build folder: not every file system in memory can say.
        let program = std::env::current_exe().unwrap();
        let mut file = tempfile::tempfile_in(program.parent().unwrap()).unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let mut buf = [0; 4096];
        assert!(read_from_memory(&file, &mut buf, 4096) && buf == [7; 4096]);
        assert!(!read_from_memory(&file, &mut buf, 8191), "only a part of it is there");
        assert!(!read_from_memory(&file, &mut buf, u64::MAX));
    }
}
