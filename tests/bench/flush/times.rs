//! Times of one kind of operation, and a table of several kinds.

use crate::table;
use std::time::{Duration, Instant};

/// In the order in which they were taken.
#[derive(Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Times a piece of work.
    pub fn of<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.0.push(begun.elapsed());
        done
    }

    fn micros(&self, percent: usize) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)].as_secs_f64() * 1e6
    }
}

/// Prints rows of times with their ratios to the first row.
pub fn print(title: &str, rows: &[(&str, &Times)]) {
    let mut cells = vec![
        ["", "count", "p10 us", "ratio", "p50 us", "ratio", "p99 us", "ratio"]
            .map(String::from)
            .to_vec(),
    ];
    for (name, times) in rows {
        let mut row = vec![(*name).to_owned(), times.0.len().to_string()];
        for percent in [10, 50, 99] {
            let micros = times.micros(percent);
            row.push(format!("{micros:.0}"));
            row.push(format!("{:.2}", micros / rows[0].1.micros(percent)));
        }
        cells.push(row);
    }
    table::print(&format!("\n{title}"), &cells);
}
