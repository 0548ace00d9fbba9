//! The chunk that writes go to, until it is sealed.

use super::order::{Payload, in_order};
use crate::format::chunk::RECORDS_MAX;
use crate::format::page::Location;
use crate::format::record::{self, Record};
use crate::units::{SECTOR_SIZE, SectorCount, SectorRange, Seq};

/// Bytes of memory that is kept for the payloads of coming chunks: fresh memory costs a page fault
/// every 4 KiB, as much as the copy itself.
const SPARE_BYTES: usize = 32 << 20;
/// A payload that is smaller than one part in so many of a full one is kept in memory of its own.
const SMALL_PART: usize = 8;

/// Records and payload of the slot after the last sealed one. Pure.
#[derive(Debug)]
pub struct OpenChunk {
    seq: Seq,
    capacity: usize,
    payload: Vec<u8>,
    records: Vec<Record>,
    changed: bool,
    spares: Vec<Vec<u8>>,
}

/// A chunk that no longer changes and is on its way to the store.
#[derive(Debug)]
pub struct SealedChunk {
    /// Its slot.
    pub seq: Seq,
    /// Commit point at sealing.
    pub committed: Seq,
    /// What it does.
    pub records: Vec<Record>,
    /// Its data.
    pub payload: Payload,
    /// The data has other places than those at which it was appended: those in the records.
    pub moved: bool,
}

impl SealedChunk {
    /// What it counts for in memory that waits for the store.
    pub fn weight(&self) -> u64 {
        weight(&self.records, self.payload.weight())
    }
}

fn weight(records: &[Record], payload: usize) -> u64 {
    (std::mem::size_of_val(records) + payload) as u64
}

impl OpenChunk {
    /// An empty chunk for `seq` with room for `capacity` bytes of payload.
    pub fn new(seq: Seq, capacity: u64) -> OpenChunk {
        let capacity = capacity as usize;
        let (payload, records, spares) = (Vec::new(), Vec::new(), Vec::new());
        OpenChunk { seq, capacity, payload, records, changed: false, spares }
    }

    /// An empty chunk that begins an owner's term.
    pub fn first_of_term(seq: Seq, capacity: u64) -> OpenChunk {
        let mut chunk = OpenChunk::new(seq, capacity);
        chunk.records.push(Record::EpochStart);
        chunk
    }

    /// Its slot.
    pub fn seq(&self) -> Seq {
        self.seq
    }

    /// True where something in it changes the volume.
    pub fn is_changed(&self) -> bool {
        self.changed
    }

    /// What it counts for in memory that waits for the store.
    pub fn weight(&self) -> u64 {
        weight(&self.records, self.payload.len())
    }

    /// Sectors that may still be appended.
    pub fn room(&self) -> SectorCount {
        if self.records.len() + 1 >= RECORDS_MAX / 4 {
            return SectorCount(0);
        }
        self.payload_room()
    }

    /// As [`OpenChunk::room`], however many records there are: for what was in a chunk before. (The
    /// first one of a term may have one record more than it had.)
    pub fn payload_room(&self) -> SectorCount {
        SectorCount((self.capacity - self.payload.len()) as u64 / SECTOR_SIZE)
    }

    /// Where in the payload the next data goes, in sectors.
    pub fn next_offset(&self) -> u32 {
        (self.payload.len() as u64 / SECTOR_SIZE) as u32
    }

    /// Appends `data`, the new contents of `range` (not more than [`OpenChunk::room`]).
    pub fn append(&mut self, range: SectorRange, data: &[u8]) -> Location {
        debug_assert_eq!(range.len().bytes(), data.len() as u64);
        if self.payload.capacity() == 0 {
            self.payload = self.spares.pop().unwrap_or_default();
            self.payload.reserve_exact(self.capacity);
        }
        let offset = self.next_offset();
        self.payload.extend_from_slice(data);
        self.changed = true;
        match self.records.last_mut() {
            Some(Record::Data { range: last, offset: from })
                if last.end() == range.start() && *from + last.len().0 as u32 == offset =>
            {
                *last = SectorRange::between(last.start(), range.end());
            }
            _ => self.records.push(Record::Data { range, offset }),
        }
        Location { seq: self.seq, offset }
    }

    /// Replaces the payload at `offset` (sectors), which was appended before.
    pub fn overwrite(&mut self, offset: u32, data: &[u8]) {
        let at = offset as usize * SECTOR_SIZE as usize;
        self.payload[at..at + data.len()].copy_from_slice(data);
    }

    /// Appends a record without payload.
    pub fn push(&mut self, record: Record) {
        self.changed = true;
        if let (Some(Record::Zero(last)), Record::Zero(range)) = (self.records.last_mut(), record)
            && last.end() == range.start()
        {
            *last = SectorRange::between(last.start(), range.end());
            return;
        }
        self.records.push(record);
    }

    /// The payload so far.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Ends the chunk, whose data is [in order](super::order) from now on; writes go on in an empty one in the
    /// next slot.
    pub fn seal(&mut self, committed: Seq) -> SealedChunk {
        let seq = self.seq;
        self.seq = seq.next();
        self.changed = false;
        let records = std::mem::take(&mut self.records);
        let bytes = std::mem::take(&mut self.payload);
        let (moved, records, mut payload) = match in_order(&records) {
            Some((sorted, moves)) => (true, sorted, Payload::moved(bytes, moves)),
            None => (false, records, Payload::new(bytes)),
        };
        if payload.len() < self.capacity / SMALL_PART {
            let small = Payload::new(payload.contiguous());
            self.reuse(std::mem::replace(&mut payload, small).into_memory());
        }
        SealedChunk { seq, committed, records, payload, moved }
    }

    /// Takes the memory of a payload that nobody needs any more for one to come.
    pub fn reuse(&mut self, mut payload: Vec<u8>) {
        let room = (self.spares.len() + 1) * self.capacity <= SPARE_BYTES;
        if room && payload.capacity() >= self.capacity {
            payload.clear();
            self.spares.push(payload);
        }
    }

    /// Gives back the memory for payloads to come: the volume is idle.
    pub fn take_spares(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.spares)
    }
}

const _: () = assert!(
    (RECORDS_MAX / 4) * record::MAX_LEN + (128 << 10) < crate::format::chunk::HEADER_MAX,
    "a full chunk's header fits its bound"
);
