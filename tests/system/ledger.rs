//! What was written to a disk, page by page, and what a crash may leave of it.
//!
//! Every write and every trim of a page has a new stamp; a page that was trimmed holds zeros. A page
//! must hold, whole, the newest stamp that an acknowledged flush covers, or a later one. And what one
//! connection did is kept in its order: where a page of a batch survived, all batches acknowledged
//! before it did.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

pub const PAGE: usize = 4096;

/// A change of a page: its stamp and the batch of its connection.
#[derive(Clone, Copy, Debug)]
struct Sent {
    stamp: u64,
    batch: u64,
    trim: bool,
}

#[derive(Clone)]
struct Page {
    /// Stamp of what must be there at least.
    flushed: u64,
    /// Newest stamp that was acknowledged.
    acked: u64,
    /// What the last recovery found, then the changes sent since, oldest first.
    sent: Vec<Sent>,
}

impl Page {
    fn holding(found: Sent) -> Page {
        Page { flushed: found.stamp, acked: found.stamp, sent: vec![Sent { batch: 0, ..found }] }
    }

    /// The changes that leave the page as `data`, without those that flushed ones have undone.
    fn explain(&self, number: usize, data: &[u8]) -> Vec<Sent> {
        let stamp = u64::from_le_bytes(data[..8].try_into().unwrap());
        let whole = match stamp {
            0 => data.iter().all(|byte| *byte == 0),
            stamp => data == content(number, stamp),
        };
        assert!(whole, "page {number} holds stamp {stamp} in part");
        let fits = |sent: &&Sent| if stamp == 0 { sent.trim } else { sent.stamp == stamp };
        let fitting: Vec<Sent> = self.sent.iter().filter(fits).copied().collect();
        let newest = fitting.last();
        let newest = newest.unwrap_or_else(|| panic!("page {number} never held stamp {stamp}"));
        assert!(
            newest.stamp >= self.flushed,
            "page {number} holds {newest:?}: stamp {} was flushed and is lost",
            self.flushed
        );
        fitting.into_iter().filter(|sent| sent.stamp >= self.flushed).collect()
    }
}

/// The ledger of a disk that several connections write at once, each to pages of its own.
pub struct Ledger {
    pages: Mutex<Vec<Page>>,
    stamps: AtomicU64,
    /// The connection that writes the page of this number.
    writer: fn(usize) -> usize,
}

/// What a flush covers, if it is sent after this was taken.
pub struct Covered(Vec<u64>);

/// What a recovery was found to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Findings {
    /// Pages whose flushed stamp was demanded.
    pub demanded: usize,
    /// Pages that hold a stamp no flush covered.
    pub beyond: usize,
    /// Pages whose newest stamp is gone, as it may be.
    pub gone: usize,
}

impl Ledger {
    pub fn new(pages: usize, writer: fn(usize) -> usize) -> Ledger {
        let empty = Page::holding(Sent { stamp: 0, batch: 0, trim: true });
        let pages = Mutex::new(vec![empty; pages]);
        Ledger { pages, stamps: AtomicU64::new(0), writer }
    }

    /// A write of `count` pages is about to be sent: its data. Every page has a stamp of its own.
    pub fn send_write(&self, first: usize, count: usize, batch: u64) -> Vec<u8> {
        let stamps = self.send(first, count, batch, false);
        (first..first + count).zip(stamps).flat_map(|(page, stamp)| content(page, stamp)).collect()
    }

    /// A trim of `count` pages is about to be sent.
    pub fn send_trim(&self, first: usize, count: usize, batch: u64) {
        self.send(first, count, batch, true);
    }

    fn send(&self, first: usize, count: usize, batch: u64, trim: bool) -> Vec<u64> {
        let mut stamps = Vec::with_capacity(count);
        for page in &mut self.pages.lock().unwrap()[first..first + count] {
            let stamp = self.stamps.fetch_add(1, Ordering::Relaxed) + 1;
            page.sent.push(Sent { stamp, batch, trim });
            stamps.push(stamp);
        }
        stamps
    }

    /// The newest change of these pages was acknowledged; with `fua` it is durable as well.
    pub fn acknowledge(&self, first: usize, count: usize, fua: bool) {
        for page in &mut self.pages.lock().unwrap()[first..first + count] {
            page.acked = page.sent.last().unwrap().stamp;
            if fua {
                page.flushed = page.acked;
            }
        }
    }

    pub fn covered(&self) -> Covered {
        Covered(self.pages.lock().unwrap().iter().map(|page| page.acked).collect())
    }

    /// A flush was acknowledged.
    pub fn flushed(&self, covered: &Covered) {
        for (page, covered) in self.pages.lock().unwrap().iter_mut().zip(&covered.0) {
            page.flushed = page.flushed.max(*covered);
        }
    }

    /// Judges what is on the disk now, after a recovery, and goes on from there: it must stay.
    pub fn judge(&self, disk: &[u8]) -> Findings {
        let mut pages = self.pages.lock().unwrap();
        let numbered = pages.iter().zip(disk.chunks(PAGE)).enumerate();
        let explained = numbered.map(|(number, (page, data))| page.explain(number, data));
        let explained: Vec<Vec<Sent>> = explained.collect();
        self.judge_order(&pages, &explained);
        let mut found = Findings::default();
        for (page, fitting) in pages.iter_mut().zip(explained) {
            let newest = *fitting.last().expect("every page is explained");
            found.demanded += usize::from(page.flushed > 0);
            found.beyond += usize::from(newest.stamp > page.flushed);
            found.gone += usize::from(newest.stamp < page.acked);
            *page = Page::holding(newest);
        }
        found
    }

    fn judge_order(&self, pages: &[Page], explained: &[Vec<Sent>]) {
        // The batch that each connection reached, at least.
        let mut reached = std::collections::BTreeMap::new();
        for (number, fitting) in explained.iter().enumerate() {
            let reached = reached.entry((self.writer)(number)).or_insert(0);
            *reached = fitting[0].batch.max(*reached);
        }
        for (number, (page, fitting)) in pages.iter().zip(explained).enumerate() {
            let (batch, newest) = (reached[&(self.writer)(number)], fitting[fitting.len() - 1]);
            let older = page.sent.iter().rfind(|sent| sent.batch < batch);
            assert!(
                older.is_none_or(|older| newest.stamp >= older.stamp),
                "page {number} holds {newest:?} although batch {batch}, sent after {older:?} was \
                 acknowledged, survived"
            );
        }
    }
}

/// The bytes of a page that was written.
fn content(page: usize, stamp: u64) -> Vec<u8> {
    let seed = (stamp ^ (page as u64) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = |at: u64| match at {
        0 => stamp,
        at => seed.rotate_left(at as u32 % 64).wrapping_add(at),
    };
    (0..PAGE as u64 / 8).flat_map(|at| word(at).to_le_bytes()).collect()
}
