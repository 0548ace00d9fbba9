//! The order of a chunk's data: by sectors, however it was written. Pure.
//!
//! What is written at random is read in order some day, by a backup for example. A chunk in the order of
//! writing has one block here and one there of what such a reader looks at; in the order of sectors it has
//! a run, which is one GET. (The volume's log stays a log: only what one chunk has is put in order, which
//! takes effect as a whole or not at all.)
//!
//! Contract: the records of [`in_order`] do what the given ones do. The data itself stays where it is in
//! memory: [`Payload`] knows what of it goes where.

use crate::format::record::Record;
use crate::units::{SECTOR_SIZE, SectorRange};

/// Records that are put in order at most: it happens while everybody waits, for less than a millisecond.
const RECORDS_MAX: usize = 4096;

/// Data that begins at sector `from` of the memory and at sector `to` of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    to: u32,
    from: u32,
}

/// The data of a chunk.
#[derive(Debug, Default)]
pub struct Payload {
    bytes: Vec<u8>,
    /// By where they go, without a gap; none where all is in its place.
    moves: Vec<Move>,
}

fn bytes_of(sectors: u32) -> usize {
    sectors as usize * SECTOR_SIZE as usize
}

fn range_of(record: &Record) -> Option<SectorRange> {
    match record {
        Record::Data { range, .. } | Record::Zero(range) | Record::Trim(range) => Some(*range),
        _ => None,
    }
}

/// `records` in the order of the sectors that they change, and what of their data moves for that. `None`:
/// they are in order, or cannot be put in order, because one of them says something of another one's
/// sectors or of the volume, or because there are too many.
pub fn in_order(records: &[Record]) -> Option<(Vec<Record>, Vec<Move>)> {
    // The first of a term comes before all others.
    let head = usize::from(records.first() == Some(&Record::EpochStart));
    let (head, rest) = records.split_at(head);
    if rest.len() > RECORDS_MAX {
        return None;
    }
    let mut rest: Vec<(SectorRange, Record)> =
        rest.iter().map(|record| Some((range_of(record)?, *record))).collect::<Option<_>>()?;
    if rest.is_sorted_by_key(|(range, _)| range.start()) {
        return None;
    }
    rest.sort_unstable_by_key(|(range, _)| range.start());
    if rest.windows(2).any(|pair| pair[0].0.end() > pair[1].0.start()) {
        return None;
    }
    let mut sorted = head.to_vec();
    let mut moves: Vec<Move> = Vec::with_capacity(rest.len());
    let mut to = 0;
    for (range, record) in rest {
        let Record::Data { offset: from, .. } = record else {
            sorted.push(record);
            continue;
        };
        moves.push(Move { to, from });
        match sorted.last_mut() {
            Some(Record::Data { range: last, .. }) if last.end() == range.start() => {
                *last = SectorRange::between(last.start(), range.end());
            }
            _ => sorted.push(Record::Data { range, offset: to }),
        }
        to += range.len().0 as u32;
    }
    Some((sorted, moves))
}

impl Payload {
    /// `bytes` as they are.
    pub fn new(bytes: Vec<u8>) -> Payload {
        Payload { bytes, moves: Vec::new() }
    }

    /// `bytes`, all of which `moves` put somewhere.
    pub fn moved(bytes: Vec<u8>, moves: Vec<Move>) -> Payload {
        Payload { bytes, moves }
    }

    /// Bytes of it.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True where there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// True where the data is not where it is in memory.
    pub fn is_moved(&self) -> bool {
        !self.moves.is_empty()
    }

    /// What it takes in memory.
    pub fn weight(&self) -> usize {
        self.bytes.len() + size_of_val(self.moves.as_slice())
    }

    /// Its memory.
    pub fn into_memory(self) -> Vec<u8> {
        self.bytes
    }

    /// Copies what begins at sector `offset`.
    pub fn copy(&self, offset: u32, out: &mut [u8]) {
        if !self.is_moved() {
            let from = bytes_of(offset);
            out.copy_from_slice(&self.bytes[from..from + out.len()]);
            return;
        }
        let mut at = self.moves.partition_point(|m| m.to <= offset) - 1;
        let (mut skip, mut done) = (bytes_of(offset - self.moves[at].to), 0);
        while done < out.len() {
            let piece = self.piece(at);
            let len = (piece.len() - skip).min(out.len() - done);
            out[done..done + len].copy_from_slice(&piece[skip..skip + len]);
            (at, skip, done) = (at + 1, 0, done + len);
        }
    }

    /// The data of a move.
    fn piece(&self, at: usize) -> &[u8] {
        let Move { to, from } = self.moves[at];
        let end = self.moves.get(at + 1).map_or(self.bytes.len(), |next| bytes_of(next.to));
        &self.bytes[bytes_of(from)..][..end - bytes_of(to)]
    }

    /// All of it.
    pub fn contiguous(&self) -> Vec<u8> {
        let mut memory = vec![0; self.len()];
        if !self.is_empty() {
            self.copy(0, &mut memory);
        }
        memory
    }

    /// One of its parts of so many bytes (whole sectors), or what there is of that; put together in `memory`
    /// where it must be, which the processor has at hand when it is asked again and again.
    pub fn part<'a>(&'a self, index: u32, size: usize, memory: &'a mut Vec<u8>) -> &'a [u8] {
        let from = (index as usize * size).min(self.len());
        let len = size.min(self.len() - from);
        if !self.is_moved() {
            return &self.bytes[from..from + len];
        }
        memory.resize(size, 0);
        let part = &mut memory[..len];
        if !part.is_empty() {
            self.copy((from as u64 / SECTOR_SIZE) as u32, part);
        }
        part
    }

    /// Tells `each` all of it in parts of `size` bytes (whole sectors), with their indexes.
    pub fn for_each_part(&self, size: usize, mut each: impl FnMut(u32, &[u8])) {
        let mut memory = Vec::new();
        for index in 0..self.len().div_ceil(size) as u32 {
            each(index, self.part(index, size, &mut memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Sector, SectorCount};
    use proptest::prelude::*;

    fn range(start: u64, len: u64) -> SectorRange {
        SectorRange::between(Sector(start), Sector(start + len))
    }

    fn data(start: u64, len: u64, offset: u32) -> Record {
        Record::Data { range: range(start, len), offset }
    }

    /// What the records leave of a disk of 64 sectors.
    fn disk(records: &[Record], payload: &Payload) -> Vec<u8> {
        let mut disk = vec![9; 64];
        for record in records {
            let Some(range) = range_of(record) else { continue };
            let mut sector = vec![0; SECTOR_SIZE as usize];
            for (at, n) in (range.start().0..range.end().0).zip(0..) {
                if let Record::Data { offset, .. } = record {
                    payload.copy(offset + n, &mut sector);
                }
                let is_data = matches!(record, Record::Data { .. });
                disk[at as usize] = if is_data { sector[0] } else { 0 };
            }
        }
        disk
    }

    #[test]
    fn what_belongs_together_is_joined() {
        let records = [Record::EpochStart, data(8, 4, 0), data(20, 2, 4), data(4, 4, 6)];
        let (sorted, moves) = in_order(&records).unwrap();
        assert_eq!(sorted, [Record::EpochStart, data(4, 8, 0), data(20, 2, 8)]);
        let expected = [(0, 6), (4, 0), (8, 4)].map(|(to, from)| Move { to, from });
        assert_eq!(moves, expected);
    }

    #[test]
    fn what_depends_on_its_place_stays_there() {
        let resize = Record::Resize(SectorCount(64));
        for records in [
            &[][..],
            &[Record::EpochStart],
            &[data(0, 4, 0), data(8, 4, 4)],
            &[data(8, 4, 0), data(0, 4, 4), data(10, 4, 8)],
            &[data(8, 4, 0), Record::Trim(range(0, 20)), data(0, 4, 4)],
            &[data(8, 4, 0), data(0, 4, 4), resize],
            &[data(8, 4, 0), data(0, 4, 4), Record::Close],
        ] {
            assert_eq!(in_order(records), None, "{records:?}");
        }
    }

    #[test]
    fn nobody_waits_for_the_order_of_many() {
        let records = |count: u32| -> Vec<Record> {
            (0..count).map(|n| data(u64::from(count - n) * 2, 1, n)).collect()
        };
        assert!(in_order(&records(RECORDS_MAX as u32)).is_some());
        assert_eq!(in_order(&records(RECORDS_MAX as u32 + 1)), None);
    }

    proptest! {
        #[test]
        fn order_changes_nothing_else(changes in prop::collection::vec((0_u64..60, 1_u64..5, 0..4), 0..24)) {
            let (mut records, mut bytes) = (Vec::new(), Vec::new());
            for (n, (start, len, kind)) in changes.into_iter().enumerate() {
                let offset = (bytes.len() as u64 / SECTOR_SIZE) as u32;
                match kind {
                    0 => records.push(Record::Zero(range(start, len))),
                    _ => {
                        records.push(data(start, len, offset));
                        for sector in 0..len {
                            bytes.extend([10 + n as u8 * 4 + sector as u8; SECTOR_SIZE as usize]);
                        }
                    }
                }
            }
            if let Some((sorted, moves)) = in_order(&records) {
                let before = Payload::new(bytes.clone());
                let after = Payload::moved(bytes, moves);
                prop_assert_eq!(disk(&records, &before), disk(&sorted, &after));
                let all = after.contiguous();
                prop_assert_eq!(all.len(), after.len());
                let mut parts = Vec::new();
                after.for_each_part(3 * SECTOR_SIZE as usize, |index, part| {
                    assert_eq!(index as usize * 3 * SECTOR_SIZE as usize, parts.len());
                    parts.extend_from_slice(part);
                });
                prop_assert!(parts == all);
                prop_assert_eq!(disk(&sorted, &Payload::new(all)), disk(&sorted, &after));
            }
        }
    }
}
