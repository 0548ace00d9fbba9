//! A device that outlives its server: the mirror that one process leaves to the next.

use crate::heritage::Heritage;
use std::path::{Path, PathBuf};

/// A folder for the mirrors of one world: in memory, where there is such a place.
pub fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    made.expect("a folder for mirrors can be made")
}

/// One block device, served by one process after the other.
#[derive(Debug)]
pub struct Device {
    pub mirror: PathBuf,
    pub heritage: Heritage,
}

impl Device {
    /// The device `number` of a world.
    pub fn new(folder: &Path, number: u32) -> Device {
        Device { mirror: folder.join(number.to_string()), heritage: Heritage::default() }
    }

    /// Its host lost power: the mirror was in memory.
    pub fn lose(&self) {
        self.heritage.remove();
        match std::fs::remove_dir_all(&self.mirror) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                panic!("{}: {e}", self.mirror.display())
            }
            _ => {}
        }
    }
}
