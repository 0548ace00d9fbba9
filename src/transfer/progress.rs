//! How a long transfer goes: bytes, rate and the time that is left, on standard error.
//!
//! [`Meter`] is the arithmetic, without clock or output. [`Progress`] shows it: on a terminal as one line
//! that is rewritten, elsewhere not at all, unless it is wanted: then as a line now and then.

use crate::size;
use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The present rate is that of this much time.
const WINDOW: Duration = Duration::from_secs(8);
/// How often a terminal is rewritten.
const REWRITE: Duration = Duration::from_millis(250);
/// How often a line is added to what is no terminal.
const ADD: Duration = Duration::from_secs(2);

/// Rate and remaining time of a transfer, from what was done when.
#[derive(Clone, Debug)]
pub struct Meter {
    total: Option<u64>,
    /// Times since the beginning and bytes done then, the oldest first.
    samples: VecDeque<(Duration, u64)>,
}

impl Meter {
    /// A transfer of `total` bytes, if that is known.
    pub fn new(total: Option<u64>) -> Meter {
        Meter { total, samples: VecDeque::from([(Duration::ZERO, 0)]) }
    }

    /// `done` bytes were done at `now`, a time since the beginning that does not go back.
    pub fn note(&mut self, now: Duration, done: u64) {
        self.samples.push_back((now, done));
        // One that is older than the window stays: the rate is that from it on.
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_sub(*at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Bytes a second of late; `None` before any time has passed.
    pub fn rate(&self) -> Option<u64> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let passed = last.0.saturating_sub(first.0).as_secs_f64();
        let bytes = last.1.saturating_sub(first.1);
        (passed > 0.0).then(|| (bytes as f64 / passed) as u64)
    }

    /// The time that is left at that rate; `None` where nothing can be said.
    pub fn remaining(&self) -> Option<Duration> {
        let left = self.total?.saturating_sub(self.samples.back()?.1);
        match self.rate()? {
            0 if left > 0 => None,
            rate => Some(Duration::from_secs(left.div_ceil(rate.max(1)))),
        }
    }

    /// Hundredths of it that are done, 100 only at the end.
    pub fn percent(&self) -> Option<u64> {
        let (total, done) = (self.total?, self.samples.back()?.1);
        match total {
            0 => Some(100),
            _ => Some((u128::from(done.min(total)) * 100 / u128::from(total)) as u64),
        }
    }

    /// All of it in words: `1.50 GiB of 6 GiB (25 %), 120 MiB/s, 38 s left`.
    pub fn show(&self) -> String {
        let done = self.samples.back().map_or(0, |(_, done)| *done);
        let mut text = size::show(done);
        if let (Some(total), Some(percent)) = (self.total, self.percent()) {
            text += &format!(" of {} ({percent} %)", size::show(total));
        }
        if let Some(rate) = self.rate() {
            text += &format!(", {}/s", size::show(rate));
        }
        if let Some(left) = self.remaining() {
            text += &format!(", {} left", time(left));
        }
        text
    }
}

/// A time for people: `42 s`, `3:07 min`, `2:05 h`.
fn time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        _ => format!("{}:{:02} h", seconds / 3600, seconds / 60 % 60),
    }
}

/// Shows how a transfer goes for as long as it lives. May be shared by all who work on it.
#[derive(Debug)]
pub struct Progress {
    done: Arc<AtomicU64>,
    begun: Instant,
    what: String,
    shower: Mutex<Option<Shower>>,
}

#[derive(Debug)]
struct Shower {
    end: Sender<()>,
    thread: JoinHandle<()>,
}

impl Progress {
    /// Shows `what` ("importing data") on a terminal, as a part of `total` bytes where that is known.
    pub fn new(total: Option<u64>, what: impl Into<String>) -> Progress {
        Progress::shown(total, what, false)
    }

    /// As [`Progress::new`]; with `always` also where standard error is no terminal, line by line.
    pub fn shown(total: Option<u64>, what: impl Into<String>, always: bool) -> Progress {
        let (done, begun, what) = (Arc::default(), Instant::now(), what.into());
        let terminal = std::io::stderr().is_terminal();
        let shower = (terminal || always).then(|| {
            let (end, ended) = channel();
            let (done, what): (Arc<AtomicU64>, _) = (Arc::clone(&done), what.clone());
            let mut meter = Meter::new(total);
            let thread = std::thread::spawn(move || {
                let every = if terminal { REWRITE } else { ADD };
                while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                    meter.note(begun.elapsed(), done.load(Ordering::Relaxed));
                    line(terminal, &format!("{what}: {}", meter.show()));
                }
                if terminal {
                    line(terminal, "");
                }
            });
            Shower { end, thread }
        });
        Progress { done, begun, what, shower: Mutex::new(shower) }
    }

    /// `bytes` more are done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that are done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// All is done: says so where the progress was shown.
    pub fn finish(self) {
        if self.stop() {
            let (done, passed) = (self.done(), self.begun.elapsed());
            let rate = (done as f64 / passed.as_secs_f64().max(0.001)) as u64;
            let (done, rate, passed) = (size::show(done), size::show(rate), time(passed));
            line(false, &format!("{}: {done} in {passed}, {rate}/s", self.what));
        }
    }

    /// Ends the display; true where there was one.
    fn stop(&self) -> bool {
        let shower = self.shower.lock().unwrap_or_else(PoisonError::into_inner).take();
        shower.is_some_and(|shower| {
            drop(shower.end);
            shower.thread.join().is_ok()
        })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop();
    }
}

fn line(rewrite: bool, text: &str) {
    let mut out = std::io::stderr().lock();
    let written = match rewrite {
        true => write!(out, "\r\x1b[K{text}"),
        false => writeln!(out, "{text}"),
    };
    // Progress that cannot be shown is none.
    let _ = written.and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_rate_is_that_of_late() {
        let mut meter = Meter::new(Some(100 * MIB));
        assert_eq!((meter.rate(), meter.remaining(), meter.percent()), (None, None, Some(0)));
        for second in 1..=10 {
            meter.note(seconds(second), second * MIB);
        }
        assert_eq!(meter.show(), "10 MiB of 100 MiB (10 %), 1 MiB/s, 1:30 min left");
        for second in 11..=20 {
            meter.note(seconds(second), (10 + (second - 10) * 4) * MIB);
        }
        assert_eq!(meter.rate(), Some(4 * MIB));
        assert_eq!(meter.remaining(), Some(Duration::from_millis(13_000)));
        for second in 21..=40 {
            meter.note(seconds(second), 50 * MIB);
        }
        assert_eq!((meter.rate(), meter.remaining()), (Some(0), None));
        assert_eq!(meter.show(), "50 MiB of 100 MiB (50 %), 0 B/s");
    }

    #[test]
    fn ends_and_unknown_ends() {
        let mut meter = Meter::new(None);
        meter.note(seconds(2), 3 * MIB);
        assert_eq!(meter.show(), "3 MiB, 1.50 MiB/s");
        let mut meter = Meter::new(Some(3 * MIB));
        meter.note(seconds(2), 3 * MIB - 1);
        assert_eq!(meter.percent(), Some(99));
        meter.note(seconds(3), 3 * MIB);
        assert_eq!((meter.percent(), meter.remaining()), (Some(100), Some(Duration::ZERO)));
        let empty = Meter::new(Some(0));
        assert_eq!(empty.percent(), Some(100));
        assert_eq!(time(seconds(3907)), "1:05 h");
    }
}
