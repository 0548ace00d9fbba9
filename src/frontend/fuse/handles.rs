//! What programs have open: files, and directories as they were when they were read.

use super::image::Lease;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

/// An open file.
#[derive(Debug)]
pub(super) struct Open<D> {
    pub(super) image: Lease<D>,
    /// It was changed through this handle, and not flushed since.
    pub(super) written: AtomicBool,
}

/// One entry of a directory.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) directory: bool,
}

/// An open directory.
#[derive(Debug)]
pub(super) struct OpenDirectory {
    pub(super) number: u64,
    /// As it was when its beginning was read the last time.
    pub(super) entries: Mutex<Arc<Vec<Listed>>>,
}

/// What the kernel knows by a number.
#[derive(Debug)]
pub(super) struct Handles<T> {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<T>>>,
}

impl<T> Handles<T> {
    pub(super) fn new() -> Handles<T> {
        Handles { next: AtomicU64::new(1), open: Mutex::default() }
    }

    pub(super) fn add(&self, what: T) -> u64 {
        let number = self.next.fetch_add(1, Relaxed);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(what));
        number
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<T>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    pub(super) fn remove(&self, number: u64) {
        let removed = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        // Outside of the lock: the last lease of an image has others do something.
        drop(removed);
    }
}
