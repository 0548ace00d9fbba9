//! The index of a disk cache at work: an ordinary file, which the kernel's page cache shares between
//! all processes of the host.
//!
//! Every call but [`Index::look`] may wait for the disk. Within a process they take turns; with other processes there is
//! no lock: whoever changes an entry at the same time may undo a change or leave an entry that does
//! not fit its slot, and whoever reads the slot finds that out by the checksum.

use super::entry::{ENTRY_LEN, Entry, FrameKey, Geometry, SET_LEN, USES_MAX, WAYS, victim};
use crate::direct::read_from_memory;
use nix::fcntl::Flock;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A place for a payload, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(pub(super) u64);

#[derive(Debug)]
pub(super) struct Index {
    /// Locked for as long as this process uses the cache.
    file: Flock<File>,
    geometry: Geometry,
    /// Where the next victim is looked for. Held by whoever is at the file.
    hand: Mutex<usize>,
}

impl Index {
    pub(super) fn new(file: Flock<File>, geometry: Geometry) -> Index {
        Index { file, geometry, hand: Mutex::default() }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// As [`Index::find`], but without waiting, and not counted: `None` where the kernel would have to
    /// ask the disk.
    pub(super) fn look(&self, key: &FrameKey, sealed: bool) -> Option<Option<(Slot, Entry)>> {
        let set = key.set(self.geometry.sets);
        let mut bytes = [0; SET_LEN];
        let is_there = read_from_memory(&self.file, &mut bytes, place(slot(set, 0)));
        is_there.then(|| position(&parse(&bytes), set, (key, sealed)))
    }

    /// Where the payload of `key` should be, which is counted as a use.
    pub(super) fn find(&self, key: &FrameKey, sealed: bool) -> io::Result<Option<(Slot, Entry)>> {
        let _turn = self.turn();
        let set = key.set(self.geometry.sets);
        let entries = self.read_set(set)?;
        let found = position(&entries, set, (key, sealed));
        let Some((slot, entry)) = found else { return Ok(None) };
        if entry.uses < USES_MAX {
            self.write(slot, &Entry { uses: entry.uses + 1, ..entry }.encode())?;
        }
        Ok(Some((slot, entry)))
    }

    /// Takes a slot for the payload of `key` from whatever was there; `None` where that payload is
    /// there already.
    pub(super) fn claim(&self, key: &FrameKey, sealed: bool) -> io::Result<Option<Slot>> {
        let mut hand = self.turn();
        let set = key.set(self.geometry.sets);
        let entries = self.read_set(set)?;
        if entries.iter().flatten().any(|entry| entry.is_of(key, sealed)) {
            return Ok(None);
        }
        *hand = (*hand + 1) % WAYS;
        let way = victim(&entries, *hand);
        // What was popular long ago goes too, in the end.
        if let Some(entry) = entries[*hand].filter(|entry| entry.uses > 0 && *hand != way) {
            self.write(slot(set, *hand), &Entry { uses: entry.uses - 1, ..entry }.encode())?;
        }
        let slot = slot(set, way);
        self.write(slot, &[0; ENTRY_LEN])?;
        Ok(Some(slot))
    }

    /// The slot holds what the entry says.
    pub(super) fn publish(&self, slot: Slot, entry: &Entry) -> io::Result<()> {
        let _turn = self.turn();
        self.write(slot, &entry.encode())
    }

    /// The slot does not hold what the entry said.
    pub(super) fn forget(&self, slot: Slot, entry: &Entry) -> io::Result<()> {
        let _turn = self.turn();
        let mut bytes = [0; ENTRY_LEN];
        self.file.read_exact_at(&mut bytes, place(slot))?;
        match Entry::parse(&bytes) {
            Ok(Some(now)) if now.is_same(entry) => self.write(slot, &[0; ENTRY_LEN]),
            _ => Ok(()),
        }
    }

    fn turn(&self) -> MutexGuard<'_, usize> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_set(&self, set: u64) -> io::Result<[Option<Entry>; WAYS]> {
        let mut bytes = [0; SET_LEN];
        self.file.read_exact_at(&mut bytes, place(slot(set, 0)))?;
        Ok(parse(&bytes))
    }

    fn write(&self, slot: Slot, bytes: &[u8; ENTRY_LEN]) -> io::Result<()> {
        self.file.write_all_at(bytes, place(slot))
    }
}

/// The entries of a set; one that is damaged is none.
fn parse(set: &[u8; SET_LEN]) -> [Option<Entry>; WAYS] {
    let mut entries = [None; WAYS];
    for (entry, bytes) in entries.iter_mut().zip(set.chunks(ENTRY_LEN)) {
        *entry = Entry::parse(bytes).ok().flatten();
    }
    entries
}

fn position(
    entries: &[Option<Entry>],
    set: u64,
    (key, sealed): (&FrameKey, bool),
) -> Option<(Slot, Entry)> {
    let its = |(way, entry): (usize, &Option<Entry>)| {
        entry.filter(|entry| entry.is_of(key, sealed)).map(|entry| (slot(set, way), entry))
    };
    entries.iter().enumerate().find_map(its)
}

fn slot(set: u64, way: usize) -> Slot {
    Slot(set * WAYS as u64 + way as u64)
}

/// Where the entry of a slot is.
fn place(slot: Slot) -> u64 {
    SET_LEN as u64 + slot.0 * ENTRY_LEN as u64
}
