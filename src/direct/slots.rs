//! Pieces of memory of one size, in huge pages where the kernel has them.
//!
//! Reads of a large cache meet another place each time: with pages of 4 KiB the processor looks up
//! more page tables than it copies cache lines. Contract: a [`Slot`] is aligned to its size. One that
//! is dropped gives its memory back to the kernel and its place to the next one; so what is resident
//! is at most what the slots that live, or ever lived at the same time as a neighbour in its huge
//! page, hold.

use bytes::BytesMut;
use nix::libc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;
/// Bytes that are asked for at once; untouched ones cost addresses only.
const SLAB: usize = 4 * HUGE;

/// Where slots come from and return to.
#[derive(Debug)]
pub struct Slots {
    /// Bytes of a slot.
    size: usize,
    /// Places without a slot, the next one last.
    free: Mutex<Vec<BytesMut>>,
}

/// A piece of memory: what is in it at first is anything.
#[derive(Debug)]
pub struct Slot {
    memory: BytesMut,
    home: Arc<Slots>,
}

impl Slots {
    /// Slots of `size` bytes.
    ///
    /// # Panics
    /// `size` is no power of two, or more than a huge page.
    pub fn new(size: usize) -> Arc<Slots> {
        assert!(size.is_power_of_two() && size <= HUGE, "slots divide huge pages");
        Arc::new(Slots { size, free: Mutex::default() })
    }

    /// One that nobody has.
    pub fn take(self: &Arc<Slots>) -> Slot {
        let mut free = self.free();
        if free.is_empty() {
            *free = slab(self.size);
        }
        let memory = free.pop().unwrap_or_else(|| BytesMut::zeroed(self.size));
        Slot { memory, home: self.clone() }
    }

    fn free(&self) -> MutexGuard<'_, Vec<BytesMut>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The places of a new slab, the first one last.
fn slab(size: usize) -> Vec<BytesMut> {
    // Zeroed memory of this size is fresh from the kernel: none of it is there until it is touched.
    let mut memory = BytesMut::zeroed(SLAB + HUGE);
    drop(memory.split_to(memory.as_ptr().align_offset(HUGE).min(HUGE)));
    memory.truncate(SLAB);
    // SAFETY: it only tells the kernel how to page memory that `memory` owns; it changes no byte.
    // Where it is refused, pages are small.
    unsafe { libc::madvise(memory.as_mut_ptr().cast(), memory.len(), libc::MADV_HUGEPAGE) };
    let mut places: Vec<BytesMut> = (0..SLAB / size).map(|_| memory.split_to(size)).collect();
    places.reverse();
    places
}

impl Slot {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory
    }

    /// Its bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut memory = std::mem::take(&mut self.memory);
        // SAFETY: whole pages of anonymous memory that `memory` alone owns: the kernel takes what
        // was in them, they read as zeros, and nobody reads them before they are written anew.
        // The first is for memory that is locked, as a block device's server has it; kernels before 5.18 do
        // not know it.
        unsafe {
            let (at, len) = (memory.as_mut_ptr().cast(), memory.len());
            if libc::madvise(at, len, libc::MADV_DONTNEED_LOCKED) != 0 {
                libc::madvise(at, len, libc::MADV_DONTNEED);
            }
        }
        self.home.free().push(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 64 << 10;

    #[test]
    fn slots_are_aligned_apart_and_used_again() {
        let slots = Slots::new(SIZE);
        let mut held: Vec<Slot> = (0..SLAB / SIZE + 1).map(|_| slots.take()).collect();
        for (n, slot) in held.iter_mut().enumerate() {
            assert!((slot.bytes().as_ptr() as usize).is_multiple_of(SIZE));
            slot.bytes_mut().fill(n as u8);
        }
        assert!(held.iter().enumerate().all(|(n, slot)| slot.bytes() == [n as u8; SIZE]));
        let places = |held: &[Slot]| -> std::collections::BTreeSet<usize> {
            held.iter().map(|slot| slot.bytes().as_ptr() as usize).collect()
        };
        let before = places(&held);
        assert_eq!(before.len(), held.len());
        let len = held.len();
        held.clear();
        held.extend((0..len).map(|_| slots.take()));
        assert_eq!(places(&held), before);
    }

    #[test]
    fn what_is_dropped_is_no_longer_resident() {
        let resident = || {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let slots = Slots::new(SIZE);
        let before = resident();
        let mut held: Vec<Slot> = (0..(256 << 20) / SIZE).map(|_| slots.take()).collect();
        held.iter_mut().for_each(|slot| slot.bytes_mut().fill(1));
        assert!(resident() > before + (200 << 20));
        held.truncate(16);
        assert!(resident() < before + (64 << 20), "other tests of this process hold less");
    }
}
