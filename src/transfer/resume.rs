//! How far an export to a file is, written beside it, so that another process can go on with it.
//!
//! What is exported never changes: a slot of a volume's log names one state of it for ever. So a note that names
//! the volume, the slot and the size says all there is to know of what is in the file. Its offset is true after
//! a power cut too: the file is made durable first, then the note. What lies behind the offset may be written or
//! not; it is written again, with the same bytes.

use super::partial::Partial;
use crate::error::{Error, Result};
use crate::format::VolumeId;
use crate::units::Seq;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes after which there is another note.
const EVERY: u64 = 64 << 20;
/// No note is longer.
const LENGTH_MAX: u64 = 4096;
const VERSION: u32 = 1;

/// What is exported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// The volume.
    pub volume: VolumeId,
    /// The first slot of its log that the state does not have.
    pub slot: Seq,
    /// Bytes of the image.
    pub size: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    #[serde(rename = "objblk-export")]
    version: u32,
    of: Exported,
    /// All bytes before it are in the file.
    done: u64,
}

/// Writes notes of an export while it goes on.
#[derive(Debug)]
pub struct Notes {
    path: PathBuf,
    note: Note,
    writing: Option<JoinHandle<io::Result<()>>>,
    /// Nothing is noted any more.
    over: Arc<Mutex<bool>>,
}

impl Notes {
    /// Those of an export to `partial`. It begins where the last one ended that is noted there; the file is all
    /// holes behind that, but for what this export would write there.
    ///
    /// Errors: usage, where that was an export of something else, or its note cannot be understood; failed.
    pub fn begin(partial: &Partial, of: Exported) -> Result<Notes> {
        let path = partial.note();
        let done = match read(&path)? {
            Some(note) if note.of == of && partial.length()? == of.size && note.done <= of.size => {
                note.done
            }
            Some(_) => {
                let text = format!(
                    "{} is not what the export was begun with: the volume has changed since, or it is another",
                    partial.unfinished().display()
                );
                return Err(Error::usage(text).hint(
                    "begin anew without --resume; an export of a snapshot can always be gone on with",
                ));
            }
            None => {
                // What is in it is nothing that is known.
                partial.sized(0)?;
                0
            }
        };
        let note = Note { version: VERSION, of, done };
        Ok(Notes { path, note, writing: None, over: Arc::default() })
    }

    /// Where the export goes on.
    pub fn done(&self) -> u64 {
        self.note.done
    }

    /// Everything before `done` was written to `file`. It is noted in the background, now and then. Errors: failed.
    pub async fn reached(&mut self, file: &Arc<File>, done: u64) -> Result<()> {
        let is_writing = self.writing.as_ref().is_some_and(|task| !task.is_finished());
        if is_writing || done < self.note.done.saturating_add(EVERY) {
            return Ok(());
        }
        self.written().await?;
        self.note.done = done;
        let (file, path, note) = (Arc::clone(file), self.path.clone(), self.note.clone());
        let over = Arc::clone(&self.over);
        self.writing = Some(spawn_blocking(move || {
            file.sync_data()?;
            match over.lock().unwrap_or_else(PoisonError::into_inner) {
                over if *over => Ok(()),
                _noting => write(&path, &note),
            }
        }));
        Ok(())
    }

    /// Waits for the last note. Errors: failed.
    pub async fn written(&mut self) -> Result<()> {
        let Some(task) = self.writing.take() else { return Ok(()) };
        let failed = || Error::failed(format!("cannot write {}", self.path.display()));
        task.await.map_err(|e| failed().because(e))?.map_err(|e| failed().because(e))
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        // The file may be removed now: no note is to come after that.
        *self.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

/// Errors: usage, where it is no note; failed.
fn read(path: &Path) -> Result<Option<Note>> {
    let failed = |e| Error::failed(format!("cannot read {}", path.display())).because(e);
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(LENGTH_MAX).read_to_end(&mut bytes).map_err(failed)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let unknown = |why: String| {
        let text = format!("the note {} cannot be understood", path.display());
        Error::usage(text).because(why).hint("begin anew without --resume")
    };
    let note: Note = serde_json::from_slice(&bytes).map_err(|e| unknown(e.to_string()))?;
    match note.version {
        VERSION => Ok(Some(note)),
        version => Err(unknown(format!("its version is {version}"))),
    }
}

/// Replaces the note by another one, as a whole.
fn write(path: &Path, note: &Note) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = File::create(&new)?;
    file.write_all(&serde_json::to_vec(note)?)?;
    file.sync_data()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn exported(slot: u64) -> Exported {
        Exported { volume: VolumeId::from_random([7; 16]), slot: Seq(slot), size: 3 * EVERY }
    }

    #[tokio::test]
    async fn an_export_goes_on_where_it_is_known_to_be_and_only_that_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        let begin = |slot: u64| {
            let partial = Partial::go_on(&path, false).unwrap();
            let notes = Notes::begin(&partial, exported(slot));
            (partial, notes)
        };
        let (partial, notes) = begin(9);
        let mut notes = notes.unwrap();
        assert_eq!(notes.done(), 0);
        let file = Arc::new(partial.sized(3 * EVERY).unwrap());
        notes.reached(&file, EVERY - 1).await.unwrap();
        assert!(!partial.note().exists());
        notes.reached(&file, EVERY + 512).await.unwrap();
        notes.written().await.unwrap();
        let note = partial.note();
        drop(partial);
        let (partial, notes) = begin(9);
        assert_eq!(notes.unwrap().done(), EVERY + 512);
        drop(partial);
        let (partial, notes) = begin(10);
        assert_eq!(notes.unwrap_err().kind(), ErrorKind::Usage);
        // Somebody else made it shorter.
        partial.sized(EVERY).unwrap();
        assert_eq!(read(&note).unwrap().unwrap().of, exported(9));
        assert_eq!(Notes::begin(&partial, exported(9)).unwrap_err().kind(), ErrorKind::Usage);
        drop(partial);
        for text in ["", "{}", "{\"objblk-export\":2}", &"x".repeat(10_000)] {
            fs::write(&note, text).unwrap();
            assert_eq!(begin(9).1.unwrap_err().kind(), ErrorKind::Usage, "{text}");
        }
        // Begun anew, nothing is left of it.
        drop(Partial::begin(&path, false).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
