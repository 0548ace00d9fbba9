//! How long things took.

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
