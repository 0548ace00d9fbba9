//! What a server offers: devices by name, each with its counters.
//!
//! Invariant: names are unique, at most 4096 bytes and free of NUL, as the protocol demands.

use super::rights::{Access, Granted};
use super::wire::{MAX_STRING, export_flag};
use crate::device::{BlockDevice, Checked};
use crate::error::{Error, ErrorKind, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One device offered under a name.
#[derive(Debug)]
pub(super) struct Export<D> {
    pub(super) name: String,
    pub(super) description: String,
    pub(super) device: Arc<Checked<D>>,
    pub(super) counters: Counters,
}

impl<D: BlockDevice> Export<D> {
    /// Transmission flags, as of now, for a client that may use it like this.
    pub(super) fn flags(&self, structured: bool, access: Access) -> u16 {
        use export_flag::{
            CAN_MULTI_CONN, HAS_FLAGS, READ_ONLY, SEND_CACHE, SEND_DF, SEND_FAST_ZERO, SEND_FLUSH,
            SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES,
        };
        let common = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
        let structured = if structured { SEND_DF } else { 0 };
        // Zeroing is a record in a volume's log, so always faster than writing zeros.
        let writes = if self.device.geometry().read_only || access == Access::ReadOnly {
            READ_ONLY
        } else {
            SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO
        };
        common | structured | writes
    }
}

/// What happened on an export since the server began.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: AtomicU64,
    pub(super) connections_total: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) flushes: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Relaxed);
    }
}

/// State of one export at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExportStatus {
    /// Name of the export.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// Connections in the transmission phase now.
    pub connections: u64,
    /// Connections that ever reached the transmission phase.
    pub connections_total: u64,
    /// Requests answered, with success or error.
    pub requests: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Bytes read by successful requests.
    pub bytes_read: u64,
    /// Bytes written by successful requests; zeroed and trimmed ranges are not counted.
    pub bytes_written: u64,
    /// Successful flushes.
    pub flushes: u64,
}

/// The exports of a server.
///
/// The empty name means the default export: the only one that a client may use, where there is
/// exactly one.
#[derive(Debug)]
pub struct Exports<D> {
    by_name: BTreeMap<String, Arc<Export<D>>>,
}

impl<D> Default for Exports<D> {
    fn default() -> Exports<D> {
        Exports { by_name: BTreeMap::new() }
    }
}

impl<D: BlockDevice> Exports<D> {
    /// No exports yet.
    pub fn new() -> Exports<D> {
        Exports::default()
    }

    /// Offers `device` under `name`. The description may be empty; a long one is cut to the
    /// protocol's 4096 bytes.
    ///
    /// Errors: [`ErrorKind::Usage`] for a name that the protocol cannot carry,
    /// [`ErrorKind::Exists`] for one that is taken.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        description: impl Into<String>,
        device: Arc<Checked<D>>,
    ) -> Result<()> {
        let (name, mut description) = (name.into(), description.into());
        if name.len() > MAX_STRING || name.contains('\0') {
            let message = format!("{name:?} cannot be the name of an NBD export");
            return Err(Error::usage(message).hint("use at most 4096 bytes and no NUL"));
        }
        description.retain(|c| c != '\0');
        description.truncate(description.floor_char_boundary(MAX_STRING));
        match self.by_name.entry(name) {
            Entry::Occupied(taken) => {
                let message = format!("there are two NBD exports named {:?}", taken.key());
                Err(Error::new(ErrorKind::Exists, message).hint("name each export once"))
            }
            Entry::Vacant(free) => {
                let name = free.key().clone();
                let counters = Counters::default();
                free.insert(Arc::new(Export { name, description, device, counters }));
                Ok(())
            }
        }
    }

    /// State and counters of every export, by name.
    pub fn status(&self) -> Vec<ExportStatus> {
        self.iter().map(|export| export.status()).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Export<D>>> {
        self.by_name.values()
    }

    /// The exports that a client may use, in the order of their names, and how.
    pub(super) fn visible(
        &self,
        granted: &Granted,
    ) -> impl Iterator<Item = (&Arc<Export<D>>, Access)> {
        self.iter().filter_map(|export| Some((export, granted.access(&export.name)?)))
    }

    /// The export a client means by `name`, if it may use it.
    pub(super) fn find(&self, name: &str, granted: &Granted) -> Option<(&Arc<Export<D>>, Access)> {
        if let Some(export) = self.by_name.get(name) {
            return Some((export, granted.access(name)?));
        }
        let mut visible = self.visible(granted);
        let only = visible.next().filter(|_| name.is_empty())?;
        visible.next().is_none().then_some(only)
    }
}

impl<D: BlockDevice> Export<D> {
    fn status(&self) -> ExportStatus {
        let geometry = self.device.geometry();
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        ExportStatus {
            name: self.name.clone(),
            size: geometry.size.bytes(),
            read_only: geometry.read_only,
            connections: count(&self.counters.connections),
            connections_total: count(&self.counters.connections_total),
            requests: count(&self.counters.requests),
            errors: count(&self.counters.errors),
            bytes_read: count(&self.counters.bytes_read),
            bytes_written: count(&self.counters.bytes_written),
            flushes: count(&self.counters.flushes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rights::Rights;
    use super::*;
    use crate::device::ram::RamDisk;
    use crate::units::{BlockSize, SectorCount};

    fn device() -> Arc<Checked<RamDisk>> {
        Arc::new(Checked::new(RamDisk::new(SectorCount(8), BlockSize::B512)))
    }

    #[test]
    fn default_export_only_when_alone() {
        let mut exports = Exports::new();
        let find = |exports: &Exports<RamDisk>, name: &str, granted: &Granted| {
            exports.find(name, granted).map(|(export, access)| (export.name.clone(), access))
        };
        let all = &Granted::Everything;
        assert_eq!(find(&exports, "", all), None);
        exports.add("a", "first", device()).unwrap();
        assert_eq!(find(&exports, "", all), Some(("a".to_owned(), Access::Full)));
        assert_eq!(exports.add("a", "", device()).unwrap_err().kind(), ErrorKind::Exists);
        exports.add("b", "", device()).unwrap();
        assert_eq!(find(&exports, "", all), None);
        let mut rights = Rights::default();
        rights.add("c=b:ro").unwrap();
        let granted = rights.of(&["c".to_owned()]);
        let b = Some(("b".to_owned(), Access::ReadOnly));
        assert_eq!((find(&exports, "", &granted), find(&exports, "b", &granted)), (b.clone(), b));
        assert_eq!(find(&exports, "a", &granted), None);
        assert_eq!(find(&exports, "", &rights.of(&[])), None);
        assert_eq!(exports.add("x\0", "", device()).unwrap_err().kind(), ErrorKind::Usage);
        let status = serde_json::to_value(exports.status()).unwrap();
        assert_eq!(status[1]["name"], "b");
        assert_eq!(status[0]["size"], 4096);
    }
}
