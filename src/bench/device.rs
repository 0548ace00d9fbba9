//! Load on an open device.

use super::{Dice, Effort, Figures, Worker, sum};
use crate::device::{BlockDevice, DeviceResult, WriteFlags};
use crate::units::{SECTOR_SIZE, Sector};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;
use tokio::task::JoinSet;

/// What requests do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, and one flush at the end that counts.
    Write,
    /// Seven reads for three writes, and the flush.
    Mixed,
}

/// Where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Anywhere, in units of their size.
    Random,
    /// One behind the other, from the beginning again behind the end.
    Sequential,
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// What requests do.
    pub kind: Kind,
    /// Where they go.
    pub pattern: Pattern,
    /// How many, how large, how long.
    pub effort: Effort,
    /// A flush follows every so many writes of each in flight.
    pub flush_every: Option<u64>,
}

impl Load {
    fn name(&self) -> &'static str {
        match (self.pattern, self.kind) {
            (Pattern::Random, Kind::Read) => "random reads",
            (Pattern::Random, Kind::Write) => "random writes",
            (Pattern::Random, Kind::Mixed) => "random reads and writes",
            (Pattern::Sequential, Kind::Read) => "reads in order",
            (Pattern::Sequential, Kind::Write) => "writes in order",
            (Pattern::Sequential, Kind::Mixed) => "reads and writes in order",
        }
    }
}

/// Noise that writes are cut from.
const NOISE: usize = 4 << 20;

/// Puts `load` on `device`, which it overwrites where it writes.
///
/// # Errors
/// The first error of a request. A device of fewer bytes than one request has: Invalid, from the
/// device itself.
pub async fn run<D: BlockDevice>(device: &Arc<D>, load: Load, seed: u64) -> DeviceResult<Figures> {
    let size = device.geometry().size.bytes();
    let places = (size / load.effort.io_size).max(1);
    let noise = Arc::new(Dice::new(seed).noise(NOISE.max(load.effort.io_size as usize)));
    let (next, begun) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut workers = JoinSet::new();
    for number in 0..load.effort.depth {
        let (device, noise, next) = (device.clone(), noise.clone(), next.clone());
        let dice = Dice::new(seed ^ (number as u64 + 1) << 32);
        let one = One { load, places, noise, next, dice, begun };
        workers.spawn(one.work(device));
    }
    let mut done = Vec::new();
    while let Some(worker) = workers.join_next().await {
        done.push(worker.expect("a worker neither panics nor is aborted")?);
    }
    if load.kind != Kind::Read {
        device.flush().await?;
    }
    Ok(sum(load.name(), done, begun.elapsed()))
}

/// One of those who keep a request in flight.
struct One {
    load: Load,
    places: u64,
    noise: Arc<Vec<u8>>,
    next: Arc<AtomicU64>,
    dice: Dice,
    begun: Instant,
}

impl One {
    async fn work<D: BlockDevice>(mut self, device: Arc<D>) -> DeviceResult<Worker> {
        let (mut worker, len) = (Worker::new(), self.load.effort.io_size as usize);
        let (mut buf, mut writes) = (vec![0; len], 0u64);
        while self.begun.elapsed() < self.load.effort.time {
            let at = Sector(self.place() * self.load.effort.io_size / SECTOR_SIZE);
            let begun = Instant::now();
            let reads = match self.load.kind {
                Kind::Read => true,
                Kind::Write => false,
                Kind::Mixed => self.dice.below(10) < 7,
            };
            if reads {
                device.read(at, &mut buf).await?;
            } else {
                let from =
                    self.dice.below((self.noise.len() - len) as u64 / 512 + 1) as usize * 512;
                device.write(at, &self.noise[from..from + len], WriteFlags::default()).await?;
                writes += 1;
                if self.load.flush_every.is_some_and(|every| writes.is_multiple_of(every)) {
                    device.flush().await?;
                }
            }
            worker.done(begun, len as u64);
            // What is answered at once would otherwise keep the others from their turn.
            tokio::task::coop::consume_budget().await;
        }
        Ok(worker)
    }

    fn place(&mut self) -> u64 {
        match self.load.pattern {
            Pattern::Random => self.dice.below(self.places),
            Pattern::Sequential => self.next.fetch_add(1, Relaxed) % self.places,
        }
    }
}
