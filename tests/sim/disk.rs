//! A simulated local disk: what a journal is written to.
//!
//! The [`Medium`] belongs to a host and outlives processes and power cuts; a [`SimDisk`] is one
//! process's way to it. A write takes time and is durable when it returns. Until then it is **in
//! flight**: if its process ends meanwhile, by a kill or with its host, it has happened whole, not
//! at all, or to any of its sectors, and this is settled before anybody reads.

use crate::heritage::Heritage;
use crate::process::Process;
use crate::sites::{Fault, What};
use crate::world::{Fate, World};
use async_trait::async_trait;
use objblk::journal::disk::{BLOCK, Blocks, Disk, check_place};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::future::pending;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

const SECTOR: usize = 512;

/// What holds the bytes.
#[derive(Debug)]
pub struct Medium {
    size: u64,
    /// Whose journal is on it.
    pub heritage: Heritage,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Sectors that were ever written.
    sectors: BTreeMap<u64, [u8; SECTOR]>,
    flights: BTreeMap<u64, Flight>,
    launched: u64,
    /// Every access fails from now on.
    gone: bool,
    /// A read was damaged, so that the reader may have missed something.
    doubtful: bool,
    /// Of so many writes it loses one after it has said that it is durable: a disk that breaks its
    /// contract.
    loses_every: Option<u64>,
}

/// A write under way.
#[derive(Debug)]
struct Flight {
    pid: u32,
    offset: u64,
    bytes: Vec<u8>,
    /// Decides what becomes of it if it is cut off.
    draw: u64,
}

impl State {
    fn put(&mut self, flight: &Flight, mut taken: impl FnMut() -> bool) {
        let first = flight.offset / SECTOR as u64;
        for (at, sector) in (first..).zip(flight.bytes.as_chunks::<SECTOR>().0) {
            if taken() {
                self.sectors.insert(at, *sector);
            }
        }
    }

    /// The flight ends before its time.
    fn cut_off(&mut self, id: u64) {
        let Some(flight) = self.flights.remove(&id) else { return };
        let mut rng = StdRng::seed_from_u64(flight.draw);
        match rng.random_range(0..4) {
            0 => {}
            1 => self.put(&flight, || true),
            2 => {
                let mut left = rng.random_range(0..flight.bytes.len() / SECTOR);
                self.put(&flight, || {
                    let more = left > 0;
                    left -= usize::from(more);
                    more
                });
            }
            _ => self.put(&flight, || rng.random()),
        }
    }
}

impl Medium {
    pub fn new(size: u64) -> Medium {
        assert!(size.is_multiple_of(BLOCK as u64), "a disk is made of blocks");
        Medium { size, heritage: Heritage::default(), state: Mutex::default() }
    }

    /// One that loses one of so many writes that it said were durable.
    pub fn forgetful(size: u64, every: u64) -> Medium {
        let medium = Medium::new(size);
        medium.state().loses_every = Some(every);
        medium
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    fn launch(&self, flight: Flight) -> u64 {
        let mut state = self.state();
        state.launched += 1;
        let id = state.launched;
        state.flights.insert(id, flight);
        id
    }

    /// The write is whole and durable; unless it was cut off before.
    fn land(&self, id: u64) {
        let mut state = self.state();
        let Some(flight) = state.flights.remove(&id) else { return };
        if state.loses_every.is_none_or(|every| !id.is_multiple_of(every)) {
            state.put(&flight, || true);
        }
    }

    fn is_in_flight(&self, id: u64) -> bool {
        self.state().flights.contains_key(&id)
    }

    fn cut_off(&self, id: u64) {
        self.state().cut_off(id);
    }

    /// The process has ended: what it had in flight has come as far as it has.
    pub fn settle(&self, pid: u32) {
        let mut state = self.state();
        let of = |(id, flight): (&u64, &Flight)| (flight.pid == pid).then_some(*id);
        let ids: Vec<u64> = state.flights.iter().filter_map(of).collect();
        ids.into_iter().for_each(|id| state.cut_off(id));
    }

    fn bytes(&self, offset: u64, len: usize) -> Blocks {
        let mut blocks = Blocks::zeroed(len);
        let state = self.state();
        let first = offset / SECTOR as u64;
        let there = state.sectors.range(first..first + (len / SECTOR) as u64);
        let bytes = blocks.bytes_mut();
        for (at, sector) in there {
            let from = (at - first) as usize * SECTOR;
            bytes[from..from + SECTOR].copy_from_slice(sector);
        }
        blocks
    }

    pub fn is_gone(&self) -> bool {
        self.state().gone
    }

    /// Whether nothing was ever written.
    pub fn is_blank(&self) -> bool {
        self.state().sectors.is_empty()
    }

    /// Whether all that was read since the last call was right.
    pub fn was_read_well(&self) -> bool {
        !std::mem::take(&mut self.state().doubtful)
    }
}

/// A process's way to its journal.
#[derive(Debug)]
pub struct SimDisk {
    world: Arc<World>,
    process: Arc<Process>,
    medium: Arc<Medium>,
    /// A write failed: there must be no other.
    failed: AtomicBool,
}

fn eio() -> io::Error {
    io::Error::other("simulated: the disk failed")
}

impl SimDisk {
    pub fn new(world: Arc<World>, process: Arc<Process>, medium: Arc<Medium>) -> SimDisk {
        SimDisk { world, process, medium, failed: AtomicBool::new(false) }
    }

    /// Whether it has failed, or misled, the process.
    pub fn had_trouble(&self) -> bool {
        self.process.had_disk_trouble()
    }

    /// Goes on while the process runs; never, once it has ended.
    async fn pass(&self) {
        self.process.pass().await;
        if self.process.is_ended() {
            pending().await
        }
    }

    fn fail<T>(&self) -> io::Result<T> {
        self.process.has_disk_trouble();
        Err(eio())
    }

    async fn draw(&self, what: What, offset: u64, len: usize) -> Fate {
        self.pass().await;
        let fate = self.world.draw(&self.process, what);
        self.world.trace(|| format!("{} {what:?} {len} at {offset} {fate:?}", self.process.pid));
        for _ in 0..fate.turns {
            tokio::task::yield_now().await;
        }
        fate
    }

    /// Time that an access takes.
    async fn travel(&self, fate: &Fate) {
        match fate.fault {
            Some(Fault::SlowRequest) => tokio::time::sleep(fate.slow).await,
            Some(Fault::Stuck) => {
                while !self.world.state().calm {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                }
            }
            _ => tokio::time::sleep(fate.travel / 16).await,
        }
    }

    /// The write flies, whatever becomes of the one who waits for it.
    async fn fly(&self, flight: u64, fate: &Fate) {
        let (medium, fate) = (self.medium.clone(), fate.clone());
        let disk = SimDisk::new(self.world.clone(), self.process.clone(), medium);
        let task = tokio::spawn(async move {
            disk.travel(&fate).await;
            disk.medium.land(flight);
        });
        task.await.expect("a landing does not panic");
    }

    async fn write_as(&self, flight: Flight, fate: &Fate) -> io::Result<()> {
        let id = self.medium.launch(flight);
        match fate.fault {
            Some(Fault::KilledOnTheWire) => self.end(|| self.world.kill(&self.process)).await,
            Some(Fault::PowerCut) => self.end(|| self.world.cut_power(&self.process.host)).await,
            Some(Fault::KilledAfter) => {
                self.medium.land(id);
                self.end(|| self.world.kill(&self.process)).await
            }
            Some(Fault::DiskFailed) => {
                self.travel(fate).await;
                self.medium.cut_off(id);
                self.host_may_follow(fate);
                return self.fail();
            }
            Some(Fault::PausedAfter) => {
                self.fly(id, fate).await;
                self.world.pause(&self.process, fate.slow);
            }
            _ => self.fly(id, fate).await,
        }
        match self.medium.is_gone() {
            true => self.fail(),
            false => Ok(()),
        }
    }

    /// Every other time the host loses power soon after its disk has failed, before the store can
    /// have what the disk has not.
    fn host_may_follow(&self, fate: &Fate) {
        if fate.draw & 1 == 0 {
            return;
        }
        let (world, host, soon) = (self.world.clone(), self.process.host.clone(), fate.reply);
        tokio::spawn(async move {
            tokio::time::sleep(soon).await;
            if !world.state().calm {
                world.cut_power(&host);
            }
        });
    }

    async fn end(&self, how: impl FnOnce()) {
        how();
        pending().await
    }

    /// What happens before an access begins.
    async fn begin(&self, fate: &Fate) {
        match fate.fault {
            Some(Fault::KilledBefore) => self.end(|| self.world.kill(&self.process)).await,
            Some(Fault::PausedBefore) => {
                self.world.pause(&self.process, fate.slow);
                self.pass().await;
            }
            Some(Fault::DiskGone) => self.medium.state().gone = true,
            _ => {}
        }
    }
}

#[async_trait]
impl Disk for SimDisk {
    fn name(&self) -> String {
        format!("the disk of host {}", self.process.host.number)
    }

    fn size(&self) -> u64 {
        self.medium.size
    }

    async fn write(&self, offset: u64, blocks: Blocks) -> io::Result<Blocks> {
        check_place(self.medium.size, offset, blocks.bytes().len())?;
        if self.failed.load(Relaxed) {
            self.world.violated("the journal is written although a write to it has failed");
            return Err(eio());
        }
        if let Some(vault) = &self.world.vault {
            self.world.check(vault.journals(offset, blocks.bytes()));
        }
        let fate = self.draw(What::local_write(blocks.bytes()), offset, blocks.bytes().len()).await;
        self.begin(&fate).await;
        let (pid, bytes) = (self.process.pid, blocks.bytes().to_vec());
        let written = match self.medium.is_gone() {
            true => self.fail(),
            false => self.write_as(Flight { pid, offset, bytes, draw: fate.draw }, &fate).await,
        };
        self.pass().await;
        self.failed.fetch_or(written.is_err(), Relaxed);
        written.map(|()| blocks)
    }

    async fn read(&self, offset: u64, len: usize) -> io::Result<Blocks> {
        check_place(self.medium.size, offset, len)?;
        let fate = self.draw(What::DiskRead, offset, len).await;
        self.begin(&fate).await;
        self.travel(&fate).await;
        let mut blocks = self.medium.bytes(offset, len);
        if fate.fault == Some(Fault::Flipped) && len > 0 {
            blocks.bytes_mut()[(fate.draw % len as u64) as usize] ^= 1 << (fate.draw >> 61);
            self.medium.state().doubtful = true;
            self.process.has_disk_trouble();
        }
        if fate.fault == Some(Fault::PausedAfter) {
            self.world.pause(&self.process, fate.slow);
        }
        self.pass().await;
        if fate.fault == Some(Fault::DiskFailed) || self.medium.is_gone() {
            self.process.could_not_read();
            return Err(eio());
        }
        Ok(blocks)
    }
}

mod tests {
    use super::*;

    fn flight(medium: &Medium, offset: u64, fill: u8, draw: u64) -> u64 {
        medium.launch(Flight { pid: 1, offset, bytes: vec![fill; 2 * BLOCK], draw })
    }

    /// Writes numbered blocks, is killed now and then, and says what is not as it was promised.
    fn use_hard(medium: &Medium) -> Result<(), String> {
        let mut rng = StdRng::seed_from_u64(1);
        let blocks = medium.size / BLOCK as u64 - 1;
        let mut durable = vec![0u8; blocks as usize + 1];
        for round in 0..200 {
            let (at, fill) = (rng.random_range(0..blocks), round % 255 + 1);
            let id = flight(medium, at * BLOCK as u64, fill, rng.random());
            if rng.random_bool(0.3) {
                medium.settle(1);
                // Nobody knows what is there: it is written once more.
                let id = flight(medium, at * BLOCK as u64, fill, 0);
                medium.land(id);
            } else {
                medium.land(id);
            }
            durable[at as usize..at as usize + 2].fill(fill);
            for (at, fill) in durable.iter().enumerate() {
                let there = medium.bytes((at * BLOCK) as u64, BLOCK);
                if there.bytes().iter().any(|byte| byte != fill) {
                    return Err(format!("block {at} is not what was written in round {round}"));
                }
            }
        }
        Ok(())
    }

    #[test]
    fn disk_keeps_what_landed() {
        let size = 16 * BLOCK as u64;
        assert_eq!(use_hard(&Medium::new(size)), Ok(()));
        assert!(use_hard(&Medium::forgetful(size, 50)).is_err(), "a disk that loses is noticed");
    }

    #[test]
    fn disk_flights_end_in_every_way() {
        let (mut none, mut whole, mut prefix, mut any) = (0, 0, 0, 0);
        for draw in 0..200 {
            let medium = Medium::new(4 * BLOCK as u64);
            let id = flight(&medium, BLOCK as u64, 7, draw);
            assert!(medium.is_blank() && medium.is_in_flight(id));
            medium.settle(2);
            assert!(medium.is_in_flight(id), "it is another process's");
            medium.settle(1);
            medium.land(id);
            let there = medium.bytes(0, 4 * BLOCK);
            let sectors = there.bytes().chunks(SECTOR).map(|sector| {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is never torn");
                sector[0] == 7
            });
            let sectors: Vec<bool> = sectors.collect();
            let (outside, inside) = (&sectors[..8], &sectors[8..24]);
            assert!(!outside.contains(&true) && !sectors[24..].contains(&true));
            match inside.iter().filter(|taken| **taken).count() {
                0 => none += 1,
                16 => whole += 1,
                n if inside[..n].contains(&false) => any += 1,
                _ => prefix += 1,
            }
        }
        assert!(none > 20 && whole > 20 && prefix > 20 && any > 20, "{none} {whole} {any}");
    }
}
