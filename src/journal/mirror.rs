//! The mirror: what an owner has acknowledged and not yet made durable, in files that outlive the
//! owner's process.
//!
//! A block device that keeps running while its server is replaced must not lose what the server
//! held in memory: whoever uses the device would not notice, as it would notice a crash of the
//! host. So every change is appended here before it is acknowledged, and the server's successor
//! makes all of them again. In the run directory (a tmpfs) this survives the process and not the
//! host; a flush means what it always means, the store has it. That of an encrypted volume is sealed, change by
//! change: what is in a tmpfs may be swapped out, and a run directory may be elsewhere.
//!
//! ```text
//! claims               the nonces of all epochs claimed for this device, one a line
//! <epoch>/<slot>       segments of one owner: one for each slot of the log, the last one open
//! <epoch>/<slot>.new   one that is being made
//! <epoch>/<slot>.spare one that is not needed any more, and will be another one
//! <epoch>/journaled    slots before the first segment may be in its journal only
//! <epoch>.old          given up: being removed
//! ```
//!
//! Contract: after the death of the writer at any instant, [`Recorded::read`] gives every change
//! that was acknowledged and is neither committed nor in the owner's journal, in order, possibly
//! after some that are and before one that was not acknowledged; or an error, where that is not
//! sure. Making these changes again in order gives the volume as it was, whatever prefix of them is
//! there already.
//!
//! Invariants:
//! * the segments of an owner are dense, from the first slot that is neither committed nor whole in
//!   a journal at work to the open one; a segment says that the next one is there, so that none can
//!   be missed;
//! * without a note of the journal they begin at the first slot that is not committed, at the latest;
//! * the *oldest* epoch that is there is the one that counts: a successor mirrors what it takes
//!   over in its own epoch and then removes the older one, in one step.

mod mapped;
mod recorded;
pub mod sealed;
mod segment;

pub use crate::journal::entry::Change;
pub use recorded::Recorded;
pub use segment::{Ending, HEADER_LEN, Header, Segment};

use crate::cipher::Run;
use crate::error::{Error, Result};
use crate::journal::entry;
use crate::units::{Epoch, Seq};
use mapped::Mapped;
use sealed::Sealer;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Suffix of what is being removed.
const OLD: &str = "old";

/// File that holds the nonces.
const CLAIMS: &str = "claims";

/// File that says that there is a journal.
const JOURNALED: &str = "journaled";

/// Suffixes of a segment that is being made, and of one that waits to be used again.
const NEW: &str = "new";
const SPARE: &str = "spare";

/// Bytes of the files that wait to be used again, at most.
const SPARE_BYTES: u64 = 32 << 20;

fn epoch_folder(root: &Path, epoch: Epoch) -> PathBuf {
    root.join(format!("{:016x}", epoch.0))
}

fn parse_number(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str().filter(|name| name.len() == 16)?;
    u64::from_str_radix(name, 16).ok()
}

fn failed(what: &str, path: &Path, e: io::Error) -> Error {
    Error::failed(format!("cannot {what} the mirror {}", path.display())).because(e)
}

fn damaged(path: &Path, why: String) -> Error {
    Error::failed(format!("the mirror {} is damaged", path.display())).because(why)
}

/// Makes an empty mirror at `root`, in place of what is there.
///
/// # Errors
/// Failed: the folder cannot be made.
pub fn create(root: &Path) -> Result<()> {
    remove(root)?;
    let made = DirBuilder::new().mode(0o700).create(root);
    made.map_err(|e| failed("make", root, e).hint("make room there, or attach with --no-recovery"))
}

/// Removes the mirror at `root`, if there is one.
///
/// # Errors
/// Failed: it cannot be removed.
pub fn remove(root: &Path) -> Result<()> {
    match fs::remove_dir_all(root) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", root, e)),
        _ => Ok(()),
    }
}

/// Notes that an epoch is going to be claimed with this nonce, for the device of this mirror.
///
/// # Errors
/// Failed: it cannot be written.
pub fn note_claim(root: &Path, nonce: &str) -> Result<()> {
    let path = root.join(CLAIMS);
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
    // The line feed first: it ends a line that was cut off.
    let written = file.and_then(|mut file| file.write_all(format!("\n{nonce}\n").as_bytes()));
    written.map_err(|e| failed("write", &path, e))
}

/// The mirror of one owner, being written.
#[derive(Debug)]
pub struct Mirror {
    folder: PathBuf,
    header: Header,
    /// What seals the changes of an encrypted volume.
    sealer: Option<Sealer>,
    segment: Mapped,
    /// Bytes of changes in the open segment.
    open: u64,
    complete: BTreeMap<Seq, Complete>,
    bytes: u64,
    spares: Vec<Unneeded>,
    /// Slots before the first segment may be in the journal only, and the folder says so.
    journaled: bool,
    /// What went wrong while there was nobody to tell.
    trouble: Option<io::Error>,
}

/// A segment to which nothing is added.
#[derive(Debug)]
struct Complete {
    segment: Mapped,
    /// Bytes of changes in it.
    bytes: u64,
}

/// The file of a segment that is not needed any more.
#[derive(Debug)]
pub struct Unneeded {
    path: PathBuf,
    segment: Mapped,
}

impl Mirror {
    /// Begins the mirror of `header`'s epoch below `root`, with the slot `header.seq`. `journaled`:
    /// slots before that may be in the journal only. `run`: seals that of an encrypted volume.
    ///
    /// # Errors
    /// Failed: it cannot be written.
    pub fn begin(root: &Path, header: Header, journaled: bool, run: Option<Run>) -> Result<Mirror> {
        let sealer = run.map(|run| Sealer::new(run, header));
        let folder = epoch_folder(root, header.epoch);
        let begun = DirBuilder::new().mode(0o700).create(&folder);
        let noted = begun.and_then(|()| match journaled {
            true => File::create_new(folder.join(JOURNALED)).map(drop),
            false => Ok(()),
        });
        let first = sealer.as_ref().map_or_else(|| header.encode(), |s| s.header().to_vec());
        let segment = noted.and_then(|()| new_segment(&folder, header.seq, &first));
        let segment = segment.map_err(|e| {
            failed("begin", &folder, e).hint("make room there, or attach with --no-recovery")
        })?;
        Ok(Mirror {
            folder,
            header,
            sealer,
            segment,
            open: 0,
            complete: BTreeMap::new(),
            bytes: 0,
            spares: Vec::new(),
            journaled,
            trouble: None,
        })
    }

    /// Bytes of changes that are there.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of them that belong to the open slot.
    pub fn open_bytes(&self) -> u64 {
        self.open
    }

    /// Whether a successor needs the journal besides.
    pub fn is_journaled(&self) -> bool {
        self.journaled
    }

    /// Appends a change; it is safe from the end of this process on return. After an error the
    /// mirror must be given up before anything more is acknowledged.
    ///
    /// # Errors
    /// It cannot be written, or an earlier step failed.
    pub fn append(&mut self, change: Change<'_>) -> io::Result<()> {
        if let Some(trouble) = self.trouble.take() {
            return Err(trouble);
        }
        let len = match &mut self.sealer {
            Some(sealer) => {
                let many = || io::Error::other("the segment has too many changes");
                let (head, sealed) = sealer.seal(change).ok_or_else(many)?;
                self.segment.append(head, sealed)?;
                (head.len() + sealed.len()) as u64
            }
            None => {
                let (head, payload) = change.encode();
                self.segment.append(&head, payload)?;
                (head.len() + payload.len()) as u64
            }
        };
        self.open += len;
        self.bytes += len;
        Ok(())
    }

    /// Goes on in the segment of the next slot. A failure is reported by the next append.
    pub fn rotate(&mut self) {
        let next = Header { seq: self.header.seq.next(), ..self.header };
        // The next one is there before this one says so.
        let sealer = self.sealer.as_ref();
        let first = sealer.map_or_else(|| next.encode(), |sealer| sealer.header_of(next));
        let rotated = self.next_segment(next.seq, &first).and_then(|segment| {
            self.segment.append(&entry::continued(), &[])?;
            Ok(std::mem::replace(&mut self.segment, segment))
        });
        match rotated {
            Ok(segment) => {
                let complete = Complete { segment, bytes: std::mem::take(&mut self.open) };
                self.complete.insert(self.header.seq, complete);
                self.header = next;
                if let Some(sealer) = &mut self.sealer {
                    sealer.go_on(next);
                }
            }
            Err(e) => self.trouble = Some(e),
        }
    }

    /// The journal takes no more, and slots before `committed` are in the store: from the moment
    /// that nothing else was forgotten, a successor needs no journal. A failure is reported by the
    /// next append.
    pub fn stand_alone(&mut self, committed: Seq) {
        let first = self.complete.first_key_value().map_or(self.header.seq, |(seq, _)| *seq);
        if self.journaled && first <= committed {
            self.journaled = false;
            if let Err(e) = fs::remove_file(self.folder.join(JOURNALED)) {
                self.trouble = Some(e);
            }
        }
    }

    fn next_segment(&mut self, seq: Seq, header: &[u8]) -> io::Result<Mapped> {
        let Some(Unneeded { path, mut segment }) = self.spares.pop() else {
            return new_segment(&self.folder, seq, header);
        };
        segment.begin(header)?;
        fs::rename(path, segment_path(&self.folder, seq))?;
        Ok(segment)
    }

    /// Forgets the segments of slots before `kept`: the store has them, or a journal at work. The caller
    /// [removes](Unneeded::retire) their files in this order.
    pub fn forget_before(&mut self, kept: Seq) -> Vec<Unneeded> {
        let mut unneeded = Vec::new();
        while let Some(first) = self.complete.first_entry().filter(|e| *e.key() < kept) {
            let path = segment_path(&self.folder, *first.key());
            let Complete { segment, bytes } = first.remove();
            self.bytes -= bytes;
            unneeded.push(Unneeded { path, segment });
        }
        unneeded
    }

    /// Takes files for segments to come, up to a part of the `budget` of bytes of changes. Gives back those that
    /// are too many.
    pub fn keep(&mut self, spares: Vec<Unneeded>, budget: u64) -> Vec<Unneeded> {
        self.spares.extend(spares);
        let mut room = (budget / 4).min(SPARE_BYTES);
        let is_too_much = |spare: &mut Unneeded| {
            let rest = room.checked_sub(spare.segment.size());
            room = rest.unwrap_or(room);
            rest.is_none()
        };
        self.spares.extract_if(.., is_too_much).collect()
    }

    /// Gives back the files for segments to come: the volume is idle.
    pub fn take_spares(&mut self) -> Vec<Unneeded> {
        std::mem::take(&mut self.spares)
    }

    /// Gives the mirror up: a successor will find none.
    ///
    /// # Errors
    /// It is still there, and no longer complete.
    pub fn give_up(self) -> io::Result<()> {
        retire(&self.folder)
    }
}

fn segment_path(folder: &Path, seq: Seq) -> PathBuf {
    folder.join(format!("{:016x}", seq.0))
}

/// A segment with its header, put in its place whole.
fn new_segment(folder: &Path, seq: Seq, header: &[u8]) -> io::Result<Mapped> {
    let path = segment_path(folder, seq);
    let new = path.with_extension(NEW);
    let mut segment = Mapped::create(&new)?;
    segment.begin(header)?;
    fs::rename(&new, &path)?;
    Ok(segment)
}

impl Unneeded {
    /// Takes the segment out of the mirror. What comes back may be one to come. `None`: the mirror was given up
    /// meanwhile.
    pub fn retire(self) -> Option<Unneeded> {
        let spare = self.path.with_extension(SPARE);
        match fs::rename(&self.path, &spare) {
            Ok(()) => Some(Unneeded { path: spare, ..self }),
            Err(e) => {
                if e.kind() != io::ErrorKind::NotFound {
                    tracing::warn!("cannot remove {}: {e}", self.path.display());
                }
                None
            }
        }
    }

    /// Removes its file.
    pub fn remove(self) {
        match fs::remove_file(&self.path) {
            // The mirror may have been given up meanwhile.
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {e}", self.path.display());
            }
            _ => {}
        }
    }
}

/// Takes an epoch's folder out of sight in one step, then removes it.
fn retire(folder: &Path) -> io::Result<()> {
    let old = folder.with_extension(OLD);
    fs::rename(folder, &old)?;
    if let Err(e) = fs::remove_dir_all(&old) {
        // It counts no more; it goes with the whole mirror.
        tracing::warn!("cannot remove {}: {e}", old.display());
    }
    Ok(())
}

/// Removes the segments of older epochs: what they held is in the mirror of `epoch` or in the
/// log. The oldest goes last, so that it counts until then.
///
/// # Errors
/// Failed: one is still there.
pub fn retire_before(root: &Path, epoch: Epoch) -> Result<()> {
    let mut older = epochs(root)?;
    older.retain(|other| *other < epoch);
    for other in older.into_iter().rev() {
        let folder = epoch_folder(root, other);
        retire(&folder).map_err(|e| failed("retire", &folder, e))?;
    }
    Ok(())
}

/// Whether the owner whose mirror is at `root` left something that may be in its journal only.
///
/// # Errors
/// Failed: the mirror cannot be read.
pub fn is_journaled(root: &Path) -> Result<bool> {
    let Some(epoch) = epochs(root)?.into_iter().next() else { return Ok(false) };
    let note = epoch_folder(root, epoch).join(JOURNALED);
    note.try_exists().map_err(|e| failed("read", &note, e))
}

/// The epochs below `root`, ascending.
fn epochs(root: &Path) -> Result<Vec<Epoch>> {
    numbers(root).map(|found| found.into_iter().map(Epoch).collect())
}

fn numbers(folder: &Path) -> Result<Vec<u64>> {
    let entries = fs::read_dir(folder).map_err(|e| failed("read", folder, e))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| failed("read", folder, e))?.path();
        found.extend(parse_number(&path));
    }
    found.sort_unstable();
    Ok(found)
}
