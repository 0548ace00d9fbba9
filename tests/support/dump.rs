//! A store of memory as a directory, as a directory store has it.

use futures::FutureExt;
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Store, list_all};
use std::path::Path;

/// Writes every object to a file below `to`.
pub fn dump(memory: &MemoryStore, to: &Path) {
    let now = "a memory store answers at once";
    for object in list_all(memory, "").now_or_never().expect(now).unwrap() {
        let body = memory.get(&object.key, GetRange::All).now_or_never().expect(now).unwrap();
        let path = to.join(object.key.as_str());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, body).unwrap();
    }
}
