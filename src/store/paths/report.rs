//! What the paths of a store are and do, for people and for the log.

use super::Inner;
use super::selector::Selector;
use super::state::{Change, Condition};
use crate::store::metrics::LatencySnapshot;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All paths of a store at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PathsReport {
    /// How one of several is selected.
    pub selector: Selector,
    /// When a higher group takes over.
    pub failback: String,
    /// What becomes of requests while no path works.
    pub no_path_retry: String,
    /// The priority of the group in use.
    pub group: Option<u32>,
    /// The paths, in the order in which they were added.
    pub paths: Vec<PathReport>,
}

/// A path at one moment. Counters begin with its addition; checks are not among them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PathReport {
    /// Its number.
    pub id: u32,
    /// Its name: the endpoint, and the address where that has several.
    pub name: String,
    /// Its group.
    pub priority: u32,
    /// Its share, relative to others.
    pub weight: u32,
    /// What can be expected of it.
    pub state: Condition,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// Its group is in use.
    pub in_use: bool,
    /// Requests begun.
    pub requests: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// Requests given up, most of them because another path was faster.
    pub cancelled: u64,
    /// Failures by kind. `not_found`, `already_exists` and `range` are answers, no fault of the path.
    pub errors: BTreeMap<String, u64>,
    /// Payload bytes moved.
    pub bytes: u64,
    /// The moving average of latencies, in microseconds: of requests up to 256 KiB, and of larger ones.
    pub average_us: [Option<u64>; 2],
    /// Half of the requests were answered within so many microseconds.
    pub p50_us: Option<u64>,
    /// 99 of 100 were.
    pub p99_us: Option<u64>,
    /// All latencies.
    pub latency: LatencySnapshot,
    /// Why a request or a check failed last.
    pub last_error: Option<String>,
}

impl PathReport {
    /// Failures that count against the path.
    pub fn faults(&self) -> u64 {
        let of = |kind: &str| self.errors.get(kind).copied().unwrap_or_default();
        of("unavailable") + of("throttled") + of("denied")
    }
}

pub(super) fn report(inner: &Inner) -> PathsReport {
    let now = inner.now();
    let state = inner.state();
    let (switch, policy) = (&state.switch, state.switch.policy());
    let paths = switch.members().filter_map(|(id, member)| {
        let way = state.ways.get(&id)?;
        let counted = way.counted.snapshot();
        let all = || counted.operations.values();
        let mut errors: BTreeMap<String, u64> = BTreeMap::new();
        let mut latency = LatencySnapshot::default();
        for operation in all() {
            operation.errors.iter().for_each(|(k, n)| *errors.entry(k.clone()).or_default() += n);
            latency.merge(&operation.latency);
        }
        let us = |d: std::time::Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        Some(PathReport {
            id: id.0,
            name: way.spec.name(),
            priority: member.priority,
            weight: way.spec.weight,
            state: member.health.condition(),
            for_ms: us(now.saturating_sub(member.health.since())) / 1000,
            in_use: switch.group() == Some(member.priority),
            requests: all().map(|operation| operation.requests).sum(),
            in_flight: all().map(|operation| operation.in_flight).sum(),
            cancelled: all().map(|operation| operation.cancelled).sum(),
            errors,
            bytes: all().map(|operation| operation.bytes).sum(),
            average_us: member.load.average().map(|average| average.map(us)),
            p50_us: latency.quantile(0.5).map(us),
            p99_us: latency.quantile(0.99).map(us),
            latency,
            last_error: member.health.last_error().map(str::to_owned),
        })
    });
    PathsReport {
        selector: policy.selector,
        failback: policy.failback.to_string(),
        no_path_retry: policy.no_path_retry.to_string(),
        group: switch.group(),
        paths: paths.collect(),
    }
}

/// Logs what became of a path. Of one that is alone, the outage of its store says enough.
pub(super) fn tell(name: &str, change: &Change, several: bool) {
    let Change { from, to, why } = change;
    let (from, to) = (from.name(), to.name());
    match change.to {
        _ if !several => tracing::debug!("path {name}: {from}, now {to}: {why}"),
        Condition::Failed if change.from == Condition::Checking => {
            tracing::debug!("path {name}: {from}, now {to}: {why}");
        }
        Condition::Failed | Condition::Marginal => {
            tracing::warn!("path {name}: {from}, now {to}: {why}");
        }
        Condition::Checking => tracing::debug!("path {name}: {from}, now {to}: {why}"),
        Condition::Active | Condition::Disabled => {
            tracing::info!("path {name}: {from}, now {to}: {why}");
        }
    }
}
