//! Records of the log, done again.

use crate::error::{Error, Result};
use crate::format::page::Location;
use crate::format::record::Record;
use crate::format::{SnapshotId, source};
use crate::map::{Map, Target};
use crate::mutant::{self, Mutant};
use crate::units::{Sector, SectorCount, SectorRange, Seq};

/// The last state among `records` that the volume went back to, and what came after that.
pub(super) fn rolled_back(records: &[Record]) -> Option<(SnapshotId, &[Record])> {
    let back = records.iter().enumerate().rev().find_map(|(at, record)| match record {
        Record::RolledBack(id) => Some((*id, &records[at + 1..])),
        _ => None,
    });
    back.filter(|_| !mutant::on(Mutant::RollbackNotReplayed))
}

/// Does the records of a slot again, but for those of the table of snapshots.
///
/// # Errors
/// Corrupt: a record writes what the volume has not.
pub(super) fn apply(
    seq: Seq,
    records: &[Record],
    map: &mut Map,
    size: &mut SectorCount,
) -> Result<()> {
    let missed = usize::from(mutant::on(Mutant::RecordNotReplayed) && records.len() > 1);
    for record in &records[..records.len() - missed] {
        match *record {
            Record::Data { range, offset } => {
                check_inside(seq, range, *size)?;
                map.insert(range, Target::Data(Location { seq, offset }));
            }
            Record::Zero(range) | Record::Trim(range) => {
                check_inside(seq, range, *size)?;
                map.insert(range, Target::Zero);
            }
            Record::Resize(new) => {
                map.insert(SectorRange::between(Sector(new.0), Sector(size.0)), Target::Zero);
                *size = new;
            }
            Record::EpochStart | Record::Close => {}
            // Of the table of snapshots, not of the map.
            Record::SnapshotMade(_) | Record::SnapshotDeleted(_) | Record::RolledBack(_) => {}
        }
    }
    Ok(())
}

fn check_inside(slot: Seq, range: SectorRange, size: SectorCount) -> Result<()> {
    if range.end().0 <= size.0 || source::is_of_marks(range) {
        return Ok(());
    }
    Err(Error::corrupt(format!("log slot {slot} writes {range} of a volume of {size} sectors")))
}
