//! So many bytes a second, and no more.

use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// What bounds a rate.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes a second.
    rate: Option<u64>,
    /// When what was charged so far is paid for.
    paid: Mutex<Option<Instant>>,
}

impl Pace {
    /// At most `rate` bytes a second.
    pub fn new(rate: Option<u64>) -> Pace {
        Pace { rate: rate.filter(|rate| *rate > 0), paid: Mutex::default() }
    }

    /// Waits until what was charged before is paid for, then charges `bytes`.
    pub async fn charge(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let now = Instant::now();
        let until = {
            let Ok(mut paid) = self.paid.lock() else { return };
            let begin = paid.filter(|paid| *paid > now).unwrap_or(now);
            *paid =
                begin.checked_add(Duration::from_micros(bytes.saturating_mul(1_000_000) / rate));
            begin
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_faster_and_never_slower_than_it_was_told() {
        let (pace, begun) = (Pace::new(Some(1000)), Instant::now());
        for _ in 0..6 {
            pace.charge(500).await;
        }
        // The last one has begun when those before it were paid for.
        assert_eq!(begun.elapsed().as_millis(), 2500);
        let begun = Instant::now();
        Pace::new(None).charge(u64::MAX).await;
        assert_eq!(begun.elapsed().as_millis(), 0);
    }
}
