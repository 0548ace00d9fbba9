//! Figures for people.

use std::fmt;
use std::time::Duration;

/// How long something took, again and again.
#[derive(Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut times = self.0.clone();
        times.sort();
        let ms = |at: usize| times.get(at).map_or(0, Duration::as_millis);
        let (median, max) = (ms(times.len() / 2), ms(times.len().saturating_sub(1)));
        write!(f, "{median} ms (median of {}), {max} ms (the longest)", times.len())
    }
}

/// Prints `rows` below `title`, in aligned columns; the first row is the heading.
pub fn print(title: &str, rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| rows.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    println!("{title}");
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        println!("  {}", cells.collect::<Vec<_>>().join("  "));
    }
}

/// A row of a table.
pub fn row(cells: &[&dyn ToString]) -> Vec<String> {
    cells.iter().map(|cell| cell.to_string()).collect()
}
