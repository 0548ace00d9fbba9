//! The guest's memory, as the VMM shares it.
//!
//! A VMM names places in two ways: the rings' by its own addresses, the data's by the guest's. Both
//! are looked up here, and nothing outside of what was shared is ever touched.
//!
//! A [`Memory`] is immutable: a change makes another one, and requests in flight keep the mappings
//! that theirs was made of.

use nix::sys::stat::{SFlag, fstat};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::{
    AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestRegionMmap,
    MmapRegion, Permissions, VolatileSlice,
};

/// The most regions that a VMM may share, as other backends have it.
pub(super) const REGIONS_MAX: usize = 509;

/// A region that the VMM shares.
#[derive(Clone, Debug)]
struct Region {
    /// Where the VMM has it.
    user: u64,
    guest: u64,
    len: u64,
    mapping: Arc<GuestRegionMmap>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Memory {
    regions: Vec<Region>,
    guest: GuestMemoryMmap,
}

/// A run of guest memory, mapped here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    at: *mut u8,
    len: usize,
}

/// A run of guest memory that both sides use at once, word by word; mapped as long as this lives.
#[derive(Debug)]
pub(super) struct Area {
    _memory: Arc<Memory>,
    piece: Piece,
}

impl Memory {
    /// This memory and one more region. The error is for people.
    pub(super) fn with(&self, told: &VhostUserMemoryRegion, file: File) -> Result<Memory, String> {
        if self.regions.len() >= REGIONS_MAX {
            return Err(format!("more than {REGIONS_MAX} regions of memory"));
        }
        // Packed structures: copied, not referred to.
        let (guest, len, user) = (told.guest_phys_addr, told.memory_size, told.user_addr);
        let offset = told.mmap_offset;
        let end = offset.checked_add(len).filter(|end| i64::try_from(*end).is_ok());
        let end = end.ok_or("a region of memory that has no end")?;
        if user.checked_add(len).is_none() {
            return Err("a region of memory beyond the VMM's address space".into());
        }
        let stat = fstat(&file).map_err(|e| format!("memory that is no file: {e}"))?;
        let regular = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        // Whoever touched what is not there would be killed for it.
        if regular && u64::try_from(stat.st_size).is_ok_and(|size| size < end) {
            return Err("a region of memory beyond the end of its file".into());
        }
        let size = usize::try_from(len).map_err(|e| e.to_string())?;
        let mapping = MmapRegion::from_file(FileOffset::new(file, offset), size);
        let mapping = mapping.map_err(|e| format!("memory that cannot be mapped: {e}"))?;
        let mapping = GuestRegionMmap::new(mapping, GuestAddress(guest));
        let mapping = Arc::new(mapping.ok_or("a region of memory beyond the address space")?);
        let mut regions = self.regions.clone();
        regions.push(Region { user, guest, len, mapping });
        Memory::of(regions)
    }

    /// This memory without a region. The error is for people.
    pub(super) fn without(&self, told: &VhostUserMemoryRegion) -> Result<Memory, String> {
        let (guest, len, user) = (told.guest_phys_addr, told.memory_size, told.user_addr);
        let mut regions = self.regions.clone();
        regions.retain(|r| (r.guest, r.len, r.user) != (guest, len, user));
        match regions.len() == self.regions.len() {
            true => Err("a region of memory that is not shared".into()),
            false => Memory::of(regions),
        }
    }

    fn of(mut regions: Vec<Region>) -> Result<Memory, String> {
        regions.sort_by_key(|region| region.guest);
        let mappings: Vec<_> = regions.iter().map(|region| region.mapping.clone()).collect();
        let guest = match mappings.is_empty() {
            true => GuestMemoryMmap::new(),
            false => GuestMemoryMmap::from_arc_regions(mappings)
                .map_err(|e| format!("regions of memory that overlap: {e}"))?,
        };
        Ok(Memory { regions, guest })
    }

    /// As the rings' code wants it.
    pub(super) fn guest(&self) -> &GuestMemoryMmap {
        &self.guest
    }

    /// The guest's name of what the VMM calls `user`.
    pub(super) fn of_user(&self, user: u64) -> Option<GuestAddress> {
        let holds = |r: &&Region| user >= r.user && user - r.user < r.len;
        let region = self.regions.iter().find(holds)?;
        Some(GuestAddress(region.guest + (user - region.user)))
    }

    /// Appends the runs that are `len` bytes at `at` to `pieces`; neighbours become one. False where
    /// some of it is not shared.
    #[must_use]
    pub(super) fn pieces(&self, at: GuestAddress, len: usize, pieces: &mut Vec<Piece>) -> bool {
        let Ok(slices) = self.guest.get_slices(at, len, Permissions::ReadWrite) else {
            return false;
        };
        for slice in slices {
            let Ok(slice) = slice else { return false };
            let piece = Piece { at: slice.ptr_guard_mut().as_ptr(), len: slice.len() };
            match pieces.last_mut() {
                Some(last) if last.at.wrapping_add(last.len) == piece.at => last.len += piece.len,
                _ => pieces.push(piece),
            }
        }
        true
    }
}

impl Piece {
    /// Its length in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Its first `len` bytes, and the rest.
    pub(super) fn split(self, len: usize) -> (Piece, Piece) {
        let len = len.min(self.len);
        let rest = Piece { at: self.at.wrapping_add(len), len: self.len - len };
        (Piece { len, ..self }, rest)
    }

    /// The bytes themselves.
    ///
    /// # Safety
    /// The memory that it is of lives for `'a`, and nothing else in this process refers to those
    /// bytes. The guest may change them at any time: whoever gets them writes, and believes nothing
    /// that is read back.
    pub(super) unsafe fn bytes_mut<'a>(self) -> &'a mut [u8] {
        // SAFETY: `Memory::pieces` took the run from a mapping; the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }

    /// Copies it to the start of `to`.
    ///
    /// # Safety
    /// The memory that it is of lives.
    pub(super) unsafe fn copy_to(self, to: &mut [u8]) {
        let to = &mut to[..self.len];
        // SAFETY: `to` is as long and private to this process, so it is apart from the mapping.
        unsafe { std::ptr::copy_nonoverlapping(self.at, to.as_mut_ptr(), self.len) }
    }

    /// Fills it from the start of `from`.
    ///
    /// # Safety
    /// The memory that it is of lives.
    pub(super) unsafe fn copy_from(self, from: &[u8]) {
        let from = &from[..self.len];
        // SAFETY: as in `copy_to`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.at, self.len) }
    }
}

impl Area {
    /// The `len` bytes at `at`; none where they are not one run that is shared, or do not begin where
    /// a `T` may.
    pub(super) fn of<T>(memory: &Arc<Memory>, at: GuestAddress, len: usize) -> Option<Area> {
        let mut pieces = Vec::new();
        let found = memory.pieces(at, len, &mut pieces);
        let [piece] = pieces[..] else { return None };
        let aligned = piece.at.cast::<T>().is_aligned();
        (found && aligned).then(|| Area { _memory: memory.clone(), piece })
    }

    fn slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the mapping lives as long as `self`. A guest may have named the same bytes as the
        // data of a request: then there are bytes of either, as in `Piece::bytes_mut`.
        unsafe { VolatileSlice::new(self.piece.at, self.piece.len) }
    }

    /// The word at byte `at`; none where there is no whole one.
    pub(super) fn load<T: AtomicAccess>(&self, at: usize, order: Ordering) -> Option<T> {
        self.slice().load(at, order).ok()
    }

    /// Stores a word at byte `at`; none where there is no place for a whole one.
    #[must_use]
    pub(super) fn store<T: AtomicAccess>(
        &self,
        value: T,
        at: usize,
        order: Ordering,
    ) -> Option<()> {
        self.slice().store(value, at, order).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::memfd::{MFdFlags, memfd_create};

    fn file(len: u64) -> File {
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        file
    }

    fn two_regions() -> Memory {
        let low = VhostUserMemoryRegion::new(0, 0x2000, 0x7000_0000, 0);
        let high = VhostUserMemoryRegion::new(0x2000, 0x1000, 0x9000_0000, 0);
        let memory = Memory::default().with(&high, file(0x1000)).unwrap();
        memory.with(&low, file(0x2000)).unwrap()
    }

    #[test]
    fn both_kinds_of_address_are_found() {
        let memory = two_regions();
        assert_eq!(memory.of_user(0x7000_1fff), Some(GuestAddress(0x1fff)));
        assert_eq!(memory.of_user(0x9000_0010), Some(GuestAddress(0x2010)));
        for outside in [0, 0x6fff_ffff, 0x7000_2000, 0x9000_1000, u64::MAX] {
            assert_eq!(memory.of_user(outside), None);
        }
        let mut pieces = Vec::new();
        assert!(memory.pieces(GuestAddress(0x1000), 0x800, &mut pieces));
        assert!(memory.pieces(GuestAddress(0x1800), 0x1000, &mut pieces));
        assert_eq!(pieces.iter().map(Piece::len).sum::<usize>(), 0x1800);
        assert!(pieces.len() <= 2, "what is side by side is one piece");
        for (at, len) in [(0x2fff, 2), (u64::MAX, 1), (0, usize::MAX), (u64::MAX - 1, 8)] {
            assert!(!memory.pieces(GuestAddress(at), len, &mut Vec::new()), "{at:x} {len:x}");
        }
    }

    #[test]
    fn areas_are_whole_and_aligned() {
        let memory = Arc::new(two_regions());
        let area = Area::of::<u64>(&memory, GuestAddress(0x1f0), 16).unwrap();
        area.store(7u64, 8, Ordering::Release).unwrap();
        assert_eq!(area.load::<u64>(8, Ordering::Acquire), Some(7));
        assert_eq!(area.load::<u16>(14, Ordering::Acquire), Some(0));
        for at in [1, 9, 12, 16, usize::MAX] {
            assert_eq!(area.load::<u64>(at, Ordering::Acquire), None, "{at}");
            assert_eq!(area.store(7u64, at, Ordering::Release), None, "{at}");
        }
        assert!(Area::of::<u64>(&memory, GuestAddress(0x1f4), 8).is_none());
        assert!(Area::of::<u32>(&memory, GuestAddress(0x1f4), 8).is_some());
        assert!(Area::of::<u32>(&memory, GuestAddress(0x2ffc), 8).is_none());
        assert!(Area::of::<u32>(&memory, GuestAddress(u64::MAX - 3), 8).is_none());
    }

    #[test]
    fn what_cannot_be_memory_is_refused() {
        let memory = two_regions();
        let refused = |guest, len, user, offset, size| {
            let told = VhostUserMemoryRegion::new(guest, len, user, offset);
            memory.with(&told, file(size)).unwrap_err()
        };
        assert!(refused(0x8000, 0x2000, 0, 0, 0x1000).contains("beyond the end of its file"));
        assert!(refused(0x8000, 0x1000, 0, u64::MAX, 0x1000).contains("has no end"));
        assert!(refused(0x8000, 0x1000, u64::MAX, 0, 0x1000).contains("address space"));
        assert!(refused(u64::MAX, 0x1000, 0, 0, 0x1000).contains("address space"));
        assert!(refused(0x1000, 0x1000, 0, 0, 0x1000).contains("overlap"));
        let gone = VhostUserMemoryRegion::new(0x2000, 0x1000, 0x9000_0000, 0);
        let less = memory.without(&gone).unwrap();
        assert_eq!(less.of_user(0x9000_0010), None);
        assert!(less.without(&gone).is_err());
    }
}
