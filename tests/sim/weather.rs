//! How bad a simulated world is: which faults its requests suffer, and how often.

use crate::sites::{self, Fault, Site, What};
use rand::Rng;
use rand::rngs::StdRng;

/// How bad a world is.
#[derive(Clone, Debug)]
pub struct Weather {
    /// Share of requests that suffer some fault.
    pub rate: f64,
    /// Sites that suffer more often.
    pub targets: Vec<(Site, f64)>,
    /// Replies may be damaged.
    pub damage: bool,
}

/// Kinds of requests that few worlds have many of.
const RARE: [What; 4] =
    [What::WriteSegment, What::GetMapObject, What::PutClosed, What::ListChildren];

impl Weather {
    /// One of the many there are.
    pub fn new(rng: &mut StdRng) -> Weather {
        let rate = [0.0, 0.01, 0.05, 0.15][rng.random_range(0..4)];
        let sites = sites::all();
        let mut targets = Vec::new();
        for _ in 0..rng.random_range(0..5) {
            let site = sites[rng.random_range(0..sites.len())];
            targets.push((site, if site.1.disturbs() { 0.2 } else { 0.3 }));
            // A whole slot is read only where it is not clear who put what is in it.
            if site.0 == What::GetSlot {
                targets.push(((What::PutChunk, Fault::LostReply), 0.3));
            }
        }
        if rng.random_bool(0.1) {
            targets.push(((What::GetHeader, Fault::Flipped), 0.2));
        }
        // There are few of these.
        if rng.random_bool(0.4) {
            let rare = RARE[rng.random_range(0..RARE.len())];
            let of: Vec<Site> = sites.iter().filter(|(what, _)| *what == rare).copied().collect();
            targets.push((of[rng.random_range(0..of.len())], 0.4));
            // A disk that fails, seldom enough for flushes to wait for it.
            if rare == What::WriteSegment {
                targets.push(((What::WriteBatch, Fault::DiskFailed), 0.03));
            }
        }
        let damage = rng.random_bool(0.15) || targets.iter().any(|((_, fault), _)| fault.damages());
        Weather { rate, targets, damage }
    }

    /// What a request of that kind suffers.
    pub fn fault(&self, rng: &mut StdRng, what: What) -> Option<Fault> {
        for ((target, fault), share) in &self.targets {
            if *target == what && rng.random_bool(*share) {
                return Some(*fault);
            }
        }
        if !rng.random_bool(self.rate) {
            return None;
        }
        let faults = &Fault::ALL;
        let fault = faults[rng.random_range(0..faults.len())];
        let spared = fault.disturbs() && rng.random_bool(0.8);
        let known = sites::applies(what, fault) && !spared && (self.damage || !fault.damages());
        known.then_some(fault)
    }
}
