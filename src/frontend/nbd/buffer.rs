//! Buffers of a connection: one per request, for its payload and its reply, reused.
//!
//! A [`Buffer`] keeps [`HEADROOM`] bytes before its data, so that a reply's header and data are
//! one piece of memory and one element of a vectored write. A [`Pool`] belongs to one connection
//! and counts what it has lent, which is how a connection's memory is bounded.
//!
//! Invariant: `lent` is the sum of the sizes of all buffers taken and not given back.

/// Bytes before the data, enough for the longest header in front of data (28 bytes).
pub(super) const HEADROOM: usize = 32;

/// The smallest data area; every reply without data fits.
const SMALLEST: usize = 4096;

/// Size classes: powers of two from [`SMALLEST`] to 32 MiB.
const CLASSES: usize = 14;

/// Unused buffers that a connection keeps, in bytes.
const KEEP_BYTES: usize = 16 << 20;

/// Memory of one request.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
}

impl Buffer {
    /// The first `len` bytes of the data area.
    pub(super) fn data(&self, len: usize) -> &[u8] {
        &self.bytes[HEADROOM..HEADROOM + len]
    }

    /// The data area, `range` counted from its start.
    pub(super) fn data_mut(&mut self, range: std::ops::Range<usize>) -> &mut [u8] {
        &mut self.bytes[HEADROOM + range.start..HEADROOM + range.end]
    }

    /// All of it, headroom included.
    pub(super) fn all(&self) -> &[u8] {
        &self.bytes
    }

    /// All of it, headroom included.
    pub(super) fn all_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn capacity(&self) -> usize {
        self.bytes.len() - HEADROOM
    }
}

/// The buffers of one connection.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: [Vec<Buffer>; CLASSES],
    kept: usize,
    lent: usize,
}

impl Pool {
    /// A buffer with room for `len` bytes of data. Its contents are arbitrary.
    ///
    /// `len` must have been checked against the protocol's maximum.
    pub(super) fn take(&mut self, len: usize) -> Buffer {
        let capacity = len.max(SMALLEST).next_power_of_two();
        self.lent += capacity;
        if let Some(buffer) = self.free.get_mut(class(capacity)).and_then(Vec::pop) {
            self.kept -= capacity;
            return buffer;
        }
        Buffer { bytes: vec![0; HEADROOM + capacity].into_boxed_slice() }
    }

    /// Takes a buffer back.
    pub(super) fn give(&mut self, buffer: Buffer) {
        let capacity = buffer.capacity();
        self.lent -= capacity;
        if self.kept + capacity <= KEEP_BYTES
            && let Some(free) = self.free.get_mut(class(capacity))
        {
            self.kept += capacity;
            free.push(buffer);
        }
    }

    /// Bytes taken and not given back.
    pub(super) fn lent(&self) -> usize {
        self.lent
    }
}

fn class(capacity: usize) -> usize {
    (capacity / SMALLEST).trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuse_and_account() {
        let mut pool = Pool::default();
        let small = pool.take(16);
        let large = pool.take(32 << 20);
        assert_eq!(pool.lent(), SMALLEST + (32 << 20));
        assert_eq!(large.data(32 << 20).len(), 32 << 20);
        let address = small.all().as_ptr();
        pool.give(small);
        pool.give(large);
        assert_eq!((pool.lent(), pool.kept), (0, SMALLEST));
        assert_eq!(pool.take(SMALLEST).all().as_ptr(), address);
    }
}
