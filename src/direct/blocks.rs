//! Whole blocks in memory, and places on a disk.

use std::fmt;
use std::io;

/// Alignment and granularity of all access, in bytes.
pub const BLOCK: usize = 4096;

/// Whole blocks in memory, aligned for direct I/O.
pub struct Blocks {
    memory: Vec<u8>,
    /// Where the first block begins.
    from: usize,
    len: usize,
}

impl Blocks {
    /// Zeros, for at least `bytes` bytes.
    pub fn zeroed(bytes: usize) -> Blocks {
        let len = bytes.next_multiple_of(BLOCK);
        let memory = vec![0; len + BLOCK - 1];
        // The vector is never resized, so its place is fixed.
        let from = memory.as_ptr().align_offset(BLOCK);
        Blocks { memory, from, len }
    }

    /// Keeps the blocks of the first `bytes` bytes; what is behind them comes back with
    /// [`Blocks::grow`], as it was.
    pub fn truncate(&mut self, bytes: usize) {
        self.len = self.len.min(bytes.next_multiple_of(BLOCK));
    }

    /// Makes it at least `bytes` bytes long.
    pub fn grow(&mut self, bytes: usize) {
        let len = bytes.next_multiple_of(BLOCK);
        if self.memory.len() - self.from >= len {
            self.len = self.len.max(len);
        } else if self.len < len {
            let mut grown = Blocks::zeroed(len);
            grown.bytes_mut()[..self.len].copy_from_slice(self.bytes());
            *self = grown;
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.from..self.from + self.len]
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..self.from + self.len]
    }
}

impl AsRef<[u8]> for Blocks {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blocks({} bytes)", self.len)
    }
}

/// Checks a place against the size of a disk.
///
/// # Errors
/// InvalidInput: it is not made of whole blocks, or not inside.
pub fn check_place(disk_size: u64, offset: u64, len: usize) -> io::Result<()> {
    let whole = offset.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK);
    let inside = offset.checked_add(len as u64).is_some_and(|end| end <= disk_size);
    if whole && inside {
        return Ok(());
    }
    let message = format!("{len} bytes at {offset} are no place of a disk of {disk_size} bytes");
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_whole() {
        for bytes in [0, 1, BLOCK, BLOCK + 1, 10 * BLOCK - 1] {
            let mut blocks = Blocks::zeroed(bytes);
            assert_eq!(blocks.bytes().len(), bytes.next_multiple_of(BLOCK));
            assert!((blocks.bytes().as_ptr() as usize).is_multiple_of(BLOCK));
            blocks.bytes_mut().fill(1);
            assert!(blocks.bytes().iter().all(|byte| *byte == 1));
        }
    }

    #[test]
    fn places_are_checked() {
        assert!(check_place(8192, 4096, 4096).is_ok());
        for (offset, len) in [(4096, 8192), (1, 4096), (0, 1), (u64::MAX - 4095, 4096)] {
            assert!(check_place(8192, offset, len).is_err(), "{len} at {offset}");
        }
    }
}
