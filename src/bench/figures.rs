use serde::Serialize;
use std::time::Duration;

/// Parts of each power of two: an error of at most 6 %.
const PARTS: u64 = 16;
const SHIFT: u32 = PARTS.trailing_zeros();
/// Up to 2^40 us, about twelve days.
const BUCKETS: usize = 40 * PARTS as usize;

/// How long requests took, in buckets whose width grows with the time.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    max_us: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], max_us: 0 }
    }
}

impl Histogram {
    /// One took so long.
    pub fn add(&mut self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(us)] += 1;
        self.max_us = self.max_us.max(us);
    }

    /// Adds all of `other`.
    pub fn join(&mut self, other: &Histogram) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(sum, count)| *sum += count);
        self.max_us = self.max_us.max(other.max_us);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What a share `quantile` of them did not exceed, in microseconds; 0 where there was none.
    pub fn quantile_us(&self, quantile: f64) -> u64 {
        let rank = ((self.count() as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        });
        found.map_or(0, |bucket| upper(bucket).min(self.max_us))
    }
}

fn bucket(us: u64) -> usize {
    let at = match us {
        0..PARTS => us,
        _ => {
            let power = us.ilog2() - SHIFT;
            (u64::from(power) + 1) * PARTS + ((us >> power) & (PARTS - 1))
        }
    };
    (at as usize).min(BUCKETS - 1)
}

/// The largest time of a bucket.
fn upper(bucket: usize) -> u64 {
    let (power, part) = (bucket as u64 / PARTS, bucket as u64 % PARTS);
    match power {
        0 => part,
        _ => ((PARTS + part + 1) << (power - 1)) - 1,
    }
}

/// What a load came to.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Which one.
    pub work: &'static str,
    /// Requests that were answered.
    pub operations: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// How long it took, with the flush at its end if there is one.
    pub seconds: f64,
    /// Operations a second.
    pub ops_per_second: f64,
    /// Bytes a second, divided by 10^6.
    pub mb_per_second: f64,
    /// The median of how long a request took, in microseconds.
    pub p50_us: u64,
    /// What 99 of 100 did not exceed.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Figures {
    pub(super) fn new(
        work: &'static str,
        histogram: &Histogram,
        bytes: u64,
        took: Duration,
    ) -> Figures {
        let (operations, seconds) = (histogram.count(), took.as_secs_f64().max(1e-9));
        Figures {
            work,
            operations,
            bytes,
            seconds,
            ops_per_second: operations as f64 / seconds,
            mb_per_second: bytes as f64 / 1e6 / seconds,
            p50_us: histogram.quantile_us(0.5),
            p99_us: histogram.quantile_us(0.99),
            max_us: histogram.max_us,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_part_of_the_truth() {
        let mut halves = [Histogram::default(), Histogram::default()];
        for us in 1..=100_000u64 {
            halves[(us % 2) as usize].add(Duration::from_micros(us));
        }
        let [mut all, other] = halves;
        all.join(&other);
        assert_eq!(all.count(), 100_000);
        for (quantile, exact) in [(0.5, 50_000), (0.99, 99_000), (0.0001, 10), (1.0, 100_000)] {
            let found = all.quantile_us(quantile);
            assert!(found >= exact && found <= exact + exact / 16 + 1, "{found} for {exact}");
        }
        assert_eq!(Histogram::default().quantile_us(0.5), 0);
    }

    #[test]
    fn every_time_has_a_bucket_and_is_not_above_it() {
        for us in (0..10_000).chain([1 << 20, (1 << 39) + 7]) {
            assert!(upper(bucket(us)) >= us && (us == 0 || upper(bucket(us) - 1) < us), "{us}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }
}
