//! What `stat(2)` and `getxattr(2)` show.

use super::catalogue::Facts;
use super::tree::ROOT;
use fuser::{FileAttr, FileType, INodeNo};
use std::time::{Duration, UNIX_EPOCH};

/// What the names of the extended attributes begin with.
const PREFIX: &str = "user.objblk.";

/// Whose the files are, and who else may use them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Other users may, too.
    pub(super) others: bool,
}

impl Access {
    pub(super) fn directory(self, number: u64) -> FileAttr {
        FileAttr {
            kind: FileType::Directory,
            perm: if self.others { 0o555 } else { 0o500 },
            nlink: if number == ROOT { 3 } else { 2 },
            ..self.blank(number)
        }
    }

    pub(super) fn file(self, number: u64, facts: &Facts) -> FileAttr {
        let changed = UNIX_EPOCH + Duration::from_millis(facts.changed_at_ms);
        let perm = match (self.others, facts.read_only) {
            (false, false) => 0o600,
            (false, true) => 0o400,
            (true, false) => 0o666,
            (true, true) => 0o444,
        };
        FileAttr {
            size: facts.size,
            // Never none: to tar, for one, that means that there is nothing to read.
            blocks: facts.used.div_ceil(512).max(1),
            atime: changed,
            mtime: changed,
            ctime: changed,
            perm,
            ..self.blank(number)
        }
    }

    fn blank(self, number: u64) -> FileAttr {
        FileAttr {
            ino: INodeNo(number),
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0,
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// The value of the extended attribute `name`.
pub(super) fn value(facts: &Facts, name: &str) -> Option<String> {
    let wanted = name.strip_prefix(PREFIX)?;
    let found = facts.attributes.iter().find(|(name, _)| *name == wanted);
    found.map(|(_, value)| value.clone())
}

/// The names of all of them, each with its NUL.
pub(super) fn names(facts: &Facts) -> Vec<u8> {
    let names = facts.attributes.iter().map(|(name, _)| format!("{PREFIX}{name}\0"));
    names.collect::<String>().into_bytes()
}
