//! A disk in memory for journals, with what may become of it.

use async_trait::async_trait;
use objblk::journal::disk::{Blocks, Disk, check_place};
use std::io;
use std::sync::{Arc, Mutex};

/// Where, and what.
type Written = (u64, Vec<u8>);

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    writes: u64,
    /// No write comes to an end.
    hangs: bool,
    /// Writes left until all fail.
    fails_after: Option<u64>,
    /// What it held once, and every write since, if that is kept.
    history: Option<(Vec<u8>, Vec<Written>)>,
}

#[derive(Clone, Debug)]
pub struct MemoryDisk(Arc<Mutex<State>>);

impl MemoryDisk {
    pub fn new(size: u64) -> MemoryDisk {
        MemoryDisk::with(vec![0; size as usize])
    }

    pub fn with(bytes: Vec<u8>) -> MemoryDisk {
        MemoryDisk(Arc::new(Mutex::new(State { bytes, ..State::default() })))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }

    pub fn writes(&self) -> u64 {
        self.0.lock().unwrap().writes
    }

    /// All but the next `writes` fail.
    pub fn fail_after(&self, writes: u64) {
        self.0.lock().unwrap().fails_after = Some(writes);
    }

    /// No write happens any more, or returns.
    pub fn hang(&self) {
        self.0.lock().unwrap().hangs = true;
    }

    /// From now on every content is kept.
    pub fn keep_history(&self) {
        let mut state = self.0.lock().unwrap();
        state.history = Some((state.bytes.clone(), Vec::new()));
    }

    /// What it held after some of the writes since, `choose` says how many of so many.
    pub fn held(&self, choose: impl FnOnce(usize) -> usize) -> Vec<u8> {
        let (mut bytes, writes) = self.0.lock().unwrap().history.take().unwrap();
        let some = choose(writes.len());
        for (offset, data) in &writes[..some] {
            bytes[*offset as usize..*offset as usize + data.len()].copy_from_slice(data);
        }
        bytes
    }
}

#[async_trait]
impl Disk for MemoryDisk {
    fn name(&self) -> String {
        "memory".into()
    }

    fn size(&self) -> u64 {
        self.0.lock().unwrap().bytes.len() as u64
    }

    async fn write(&self, offset: u64, blocks: Blocks) -> io::Result<Blocks> {
        tokio::task::yield_now().await;
        if self.0.lock().unwrap().hangs {
            std::future::pending::<()>().await;
        }
        let mut state = self.0.lock().unwrap();
        check_place(state.bytes.len() as u64, offset, blocks.bytes().len())?;
        if state.fails_after == Some(0) {
            return Err(io::Error::other("the disk is broken"));
        }
        state.fails_after = state.fails_after.map(|left| left - 1);
        state.writes += 1;
        let at = offset as usize;
        state.bytes[at..at + blocks.bytes().len()].copy_from_slice(blocks.bytes());
        if let Some((_, writes)) = &mut state.history {
            writes.push((offset, blocks.bytes().to_vec()));
        }
        Ok(blocks)
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<Blocks> {
        let state = self.0.lock().unwrap();
        check_place(state.bytes.len() as u64, offset, len)?;
        let mut blocks = Blocks::zeroed(len);
        blocks.bytes_mut().copy_from_slice(&state.bytes[offset as usize..offset as usize + len]);
        Ok(blocks)
    }
}
