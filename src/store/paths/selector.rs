//! Which of several equally good paths takes the next request. Pure: time comes from the caller.
//!
//! The names and what they mean are those of Linux' dm-multipath:
//!
//! | selector | takes the path |
//! | --- | --- |
//! | `round-robin` | whose turn it is; one of weight 2 has two turns |
//! | `queue-length` | with the fewest requests under way |
//! | `service-time` | with the fewest bytes under way for its weight |
//! | `historical-service-time` | that is expected to be through first, by how long its requests took |
//!
//! Of equals, the one that was chosen longest ago.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Up to so many bytes a request counts as a small one.
const SMALL: u64 = 256 << 10;

/// What a request costs beyond its bytes, in bytes: the shortest are no burden of zero.
const BASE_COST: u64 = 16 << 10;

/// How far one answer moves the average.
const STEP: f64 = 0.1;

/// An average that is older says nothing: the path is given a request to learn anew.
const STALE: Duration = Duration::from_secs(10);

/// How paths are selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    /// Each in turn, by weight.
    RoundRobin,
    /// The fewest requests under way.
    QueueLength,
    /// The fewest bytes under way, by weight.
    #[default]
    ServiceTime,
    /// The shortest time that the requests under way and one more are expected to take.
    HistoricalServiceTime,
}

impl Selector {
    /// Every selector.
    pub const ALL: [Selector; 4] = [
        Selector::RoundRobin,
        Selector::QueueLength,
        Selector::ServiceTime,
        Selector::HistoricalServiceTime,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Selector::RoundRobin => "round-robin",
            Selector::QueueLength => "queue-length",
            Selector::ServiceTime => "service-time",
            Selector::HistoricalServiceTime => "historical-service-time",
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Selector {
    type Err = Error;

    fn from_str(text: &str) -> Result<Selector> {
        let found = Selector::ALL.into_iter().find(|selector| selector.name() == text);
        found.ok_or_else(|| {
            let names = Selector::ALL.map(Selector::name).join(", ");
            Error::usage(format!("{text:?} is no path selector"))
                .hint(format!("write one of {names}"))
        })
    }
}

/// What a request weighs: the bytes that it moves, as far as they are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl Size {
    /// The class in which its time is compared: 0 for small ones.
    pub(super) fn class(self) -> usize {
        usize::from(self.0 > SMALL)
    }

    fn cost(self) -> u64 {
        self.0.saturating_add(BASE_COST)
    }
}

/// What a path has to do, and how fast it was.
#[derive(Clone, Debug)]
pub struct Load {
    weight: u32,
    in_flight: [u32; 2],
    cost: u64,
    average_us: [Option<f64>; 2],
    measured: [Duration; 2],
    /// Of round-robin: turns that are due, in parts of a round.
    credit: i64,
    /// When it was chosen last, in choices.
    chosen: u64,
}

impl Load {
    /// Of an idle path. `weight` is its throughput, relative to that of others; at least 1.
    pub fn new(weight: u32) -> Load {
        Load {
            weight: weight.max(1),
            in_flight: [0; 2],
            cost: 0,
            average_us: [None; 2],
            measured: [Duration::ZERO; 2],
            credit: 0,
            chosen: 0,
        }
    }

    /// A request was sent.
    pub fn begin(&mut self, size: Size) {
        self.in_flight[size.class()] += 1;
        self.cost = self.cost.saturating_add(size.cost());
    }

    /// It is under way no more.
    pub fn end(&mut self, size: Size) {
        let in_flight = &mut self.in_flight[size.class()];
        *in_flight = in_flight.saturating_sub(1);
        self.cost = self.cost.saturating_sub(size.cost());
    }

    /// An answer took so long.
    pub fn learn(&mut self, size: Size, took: Duration, now: Duration) {
        let us = took.as_secs_f64() * 1e6;
        let stale = self.is_stale(size.class(), now);
        let average = &mut self.average_us[size.class()];
        *average = Some(match *average {
            Some(average) if !stale => average + STEP * (us - average),
            _ => us,
        });
        self.measured[size.class()] = now;
    }

    /// The moving average of what answers took: of small requests, and of large ones.
    pub fn average(&self) -> [Option<Duration>; 2] {
        self.average_us.map(|us| us.map(|us| Duration::from_secs_f64(us / 1e6)))
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.iter().sum()
    }

    fn is_stale(&self, class: usize, now: Duration) -> bool {
        now.saturating_sub(self.measured[class]) > STALE
    }

    /// When a new request is expected to be through; zero where nothing is known.
    fn expected_us(&self, size: Size, now: Duration) -> f64 {
        let known = |class: usize| match self.average_us[class] {
            // Not while one is under way to find out.
            Some(_) if self.in_flight() == 0 && self.is_stale(class, now) => 0.0,
            Some(us) => us,
            None => 0.0,
        };
        let under_way: f64 = (0..2).map(|i| f64::from(self.in_flight[i]) * known(i)).sum();
        under_way + known(size.class())
    }
}

/// Chooses one of `loads`, by its position, for a request of this size; `None` of none. `choices`
/// counts the choices so far.
pub fn choose(
    selector: Selector,
    loads: &mut [&mut Load],
    size: Size,
    now: Duration,
    choices: &mut u64,
) -> Option<usize> {
    let best = match selector {
        Selector::RoundRobin => take_turn(loads),
        Selector::QueueLength => least(loads, |load| f64::from(load.in_flight())),
        Selector::ServiceTime => {
            least(loads, |load| (load.cost + size.cost()) as f64 / f64::from(load.weight))
        }
        Selector::HistoricalServiceTime => least(loads, |load| load.expected_us(size, now)),
    }?;
    *choices += 1;
    loads[best].chosen = *choices;
    Some(best)
}

fn least(loads: &[&mut Load], burden: impl Fn(&Load) -> f64) -> Option<usize> {
    let rank = |load: &Load| (burden(load), load.in_flight(), load.chosen);
    let order = |a: usize, b: usize| {
        let (a, b) = (rank(loads[a]), rank(loads[b]));
        a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2))
    };
    (0..loads.len()).min_by(|a, b| order(*a, *b))
}

/// Smooth weighted round-robin: everybody earns its weight, who has most pays for the whole round.
fn take_turn(loads: &mut [&mut Load]) -> Option<usize> {
    let round: i64 = loads.iter().map(|load| i64::from(load.weight)).sum();
    for load in loads.iter_mut() {
        // Who was held out for long has not saved up for more than a round.
        load.credit = (load.credit + i64::from(load.weight)).clamp(-round, round);
    }
    let order = |i: &usize| (std::cmp::Reverse(loads[*i].credit), loads[*i].chosen);
    let best = (0..loads.len()).min_by_key(order)?;
    loads[best].credit -= round;
    Some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size(4096);
    const MS: Duration = Duration::from_millis(1);

    /// Who took how many of `count` requests, `depth` at a time, where path i takes `times[i]`.
    fn shares(selector: Selector, weights: &[u32], times: &[u32], depth: usize) -> Vec<usize> {
        let mut loads: Vec<Load> = weights.iter().map(|weight| Load::new(*weight)).collect();
        let mut shares = vec![0; loads.len()];
        // Each path does one request at a time, as a link with a queue does.
        let mut free = vec![Duration::ZERO; loads.len()];
        let mut under_way: Vec<(Duration, Duration, usize)> = Vec::new();
        let (mut now, mut choices) = (Duration::ZERO, 0);
        for _ in 0..2000 {
            if under_way.len() == depth {
                let next = (0..depth).min_by_key(|i| under_way[*i].0).unwrap();
                let (end, begun, path) = under_way.swap_remove(next);
                now = end;
                loads[path].end(SIZE);
                loads[path].learn(SIZE, end - begun, now);
            }
            let mut all: Vec<&mut Load> = loads.iter_mut().collect();
            let path = choose(selector, &mut all, SIZE, now, &mut choices).unwrap();
            loads[path].begin(SIZE);
            shares[path] += 1;
            free[path] = free[path].max(now) + times[path] * MS;
            under_way.push((free[path], now, path));
        }
        shares
    }

    #[test]
    fn equal_paths_share_equally() {
        for selector in Selector::ALL {
            let shares = shares(selector, &[1, 1, 1, 1], &[10, 10, 10, 10], 16);
            assert!(
                shares.iter().all(|share| (480..=520).contains(share)),
                "{selector}: {shares:?}"
            );
        }
    }

    #[test]
    fn a_slow_path_gets_what_it_can_do() {
        let of = |selector| shares(selector, &[1, 1, 1, 1], &[50, 10, 10, 10], 16);
        assert_eq!(of(Selector::RoundRobin), [500; 4]);
        // At most a fifth of what each of the others does: 2000 / 16 is 125. History counts what waits
        // twice, in its times and in what is under way.
        for selector in
            [Selector::QueueLength, Selector::ServiceTime, Selector::HistoricalServiceTime]
        {
            let shares = of(selector);
            assert!((10..=190).contains(&shares[0]), "{selector}: {shares:?}");
            assert!(shares[1..].iter().all(|share| *share > 550), "{selector}: {shares:?}");
        }
        // One at a time, only history tells them apart.
        let alone = |selector| shares(selector, &[1, 1, 1, 1], &[50, 10, 10, 10], 1)[0];
        assert_eq!(alone(Selector::QueueLength), 500);
        assert_eq!(alone(Selector::ServiceTime), 500);
        assert!(alone(Selector::HistoricalServiceTime) < 20);
    }

    #[test]
    fn weights_count() {
        let of = |selector| shares(selector, &[3, 1], &[10, 10], 1);
        assert_eq!(of(Selector::RoundRobin), [1500, 500]);
        let times = shares(Selector::ServiceTime, &[3, 1], &[1, 3], 32);
        assert!((1400..=1600).contains(&times[0]), "{times:?}");
    }

    #[test]
    fn an_old_average_is_learnt_anew() {
        let mut loads = [Load::new(1), Load::new(1)];
        loads[0].learn(SIZE, 100 * MS, Duration::ZERO);
        loads[1].learn(SIZE, MS, Duration::ZERO);
        let mut choose_at = |seconds| {
            let [a, b] = &mut loads;
            b.learn(SIZE, MS, Duration::from_secs(seconds));
            let now = Duration::from_secs(seconds);
            choose(Selector::HistoricalServiceTime, &mut [a, b], SIZE, now, &mut 0)
        };
        assert_eq!(choose_at(1), Some(1));
        assert_eq!(choose_at(11), Some(0));
    }

    #[test]
    fn names_round_trip() {
        for selector in Selector::ALL {
            assert_eq!(selector.name().parse::<Selector>().unwrap(), selector);
        }
        assert!("fastest".parse::<Selector>().is_err());
    }
}
