//! Listing a tree in byte order of keys, reading only the directories that a page needs.
//!
//! A directory counts as the name `dir/`, so sorting the entries of each directory and descending
//! in that order gives the byte order of whole keys: `a-b`, `a.b`, `a/b`, although the entry `a`
//! alone would sort first. A subtree is left out where it lies outside `prefix` or wholly at or
//! before `after`.

use crate::store::{Key, ListPage, ObjectInfo};
use std::fs;
use std::io;
use std::path::Path;

/// At most `limit` objects below `root`; see [`crate::store::Store::list`].
pub(super) fn page(
    root: &Path,
    prefix: &str,
    after: Option<&Key>,
    limit: usize,
) -> io::Result<ListPage> {
    let mut walk =
        Walk { root, prefix, after: after.map_or("", Key::as_str), limit, found: vec![] };
    // Whatever lies above the last slash of the prefix is one directory, or there is nothing.
    let base = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
    let plain = base.is_empty() || Key::new(base.trim_end_matches('/')).is_some();
    if plain {
        fs::metadata(root)?;
        walk.directory(base)?;
    }
    let more = walk.found.len() > limit;
    walk.found.truncate(limit);
    Ok(ListPage { objects: walk.found, more })
}

struct Walk<'a> {
    root: &'a Path,
    prefix: &'a str,
    /// Empty where the listing starts at the beginning.
    after: &'a str,
    limit: usize,
    /// One more than `limit` at most, which tells that there is more.
    found: Vec<ObjectInfo>,
}

impl Walk<'_> {
    /// Lists what is below `base`, a path relative to the root that is empty or ends in a slash.
    fn directory(&mut self, base: &str) -> io::Result<()> {
        for name in self.names(base)? {
            if self.found.len() > self.limit {
                break;
            }
            if name.ends_with('/') {
                self.directory(&name)?;
                continue;
            }
            let Some(key) = Key::new(&name) else { continue };
            match fs::metadata(self.root.join(&name)) {
                Ok(meta) => self.found.push(ObjectInfo { key, size: meta.len() }),
                // Deleted since the directory was read.
                Err(e) if gone(&e) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The entries of a directory that the page may need, sorted; directories end in a slash.
    fn names(&self, base: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.join(base)) {
            Ok(entries) => entries,
            Err(e) if gone(&e) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry?;
            let (Ok(kind), Some(name)) =
                (entry.file_type(), entry.file_name().to_str().map(|n| format!("{base}{n}")))
            else {
                continue;
            };
            // A name that is no key is not ours: temporary files, `lost+found`.
            if Key::new(&name).is_none() {
                continue;
            }
            if kind.is_dir() {
                let name = format!("{name}/");
                let in_prefix = name.starts_with(self.prefix) || self.prefix.starts_with(&name);
                if in_prefix && (name.as_str() > self.after || self.after.starts_with(&name)) {
                    names.push(name);
                }
            } else if kind.is_file() && name.starts_with(self.prefix) && name.as_str() > self.after
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

fn gone(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
