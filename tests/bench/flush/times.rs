//! Times of one kind of operation, and a table of several kinds.

use std::time::{Duration, Instant};

/// Sorted when asked.
#[derive(Default)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn add(&mut self, begun: Instant) {
        self.0.push(begun.elapsed());
    }

    pub fn percentile(&self, percent: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        let at = (sorted.len() as f64 * percent / 100.0) as usize;
        sorted[at.min(sorted.len() - 1)]
    }
}

/// Prints rows of times with their ratios to the first row.
pub fn print(title: &str, rows: &[(&str, &Times)]) {
    println!("\n{title}");
    println!(
        "{:<44} {:>8} {:>9} {:>9} {:>9} {:>9}",
        "", "count", "p50 us", "ratio", "p99 us", "ratio"
    );
    let micros = |times: &Times, percent| times.percentile(percent).as_secs_f64() * 1e6;
    let base = rows[0].1;
    for (name, times) in rows {
        let (p50, p99) = (micros(times, 50.0), micros(times, 99.0));
        let (r50, r99) = (p50 / micros(base, 50.0), p99 / micros(base, 99.0));
        let count = times.0.len();
        println!("{name:<44} {count:>8} {p50:>9.0} {r50:>9.2} {p99:>9.0} {r99:>9.2}");
    }
}
