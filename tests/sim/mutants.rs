//! The control arm: an engine with a mistake in it must be caught. `OBJBLK_MUTANT=Journal` makes only
//! those with that in their names.

use crate::{rings, run};
use objblk::mutant::{self, Mutant};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Seeds within which every mistake must be noticed. All but one are by 1,300; damage to a header that
/// still makes sense is rare.
const LIMIT: u64 = 4000;

#[test]
fn every_mutant_is_caught() {
    println!("{:<28} {:>8}  by", "mutant", "seeds");
    let mut survivors = Vec::new();
    let only = std::env::var("OBJBLK_MUTANT").ok();
    for made in Mutant::ALL {
        if only.as_ref().is_some_and(|only| !format!("{made:?}").contains(only)) {
            continue;
        }
        let caught = std::sync::Mutex::new(None);
        let earliest = AtomicU64::new(u64::MAX);
        run::spread(0..LIMIT, |number| {
            if number > earliest.load(Relaxed) {
                return false;
            }
            let violation = mutant::with(Some(made), || {
                run::quietly(number).violation.or_else(|| match made {
                    // So much is seldom written in a world with an engine.
                    Mutant::SegmentReusedEarly => rings::ring(number).err(),
                    _ => None,
                })
            });
            if let Some(what) = violation {
                let mut caught = caught.lock().unwrap();
                if earliest.fetch_min(number, Relaxed) > number {
                    *caught = Some((number, what));
                }
            }
            true
        });
        match caught.into_inner().unwrap() {
            Some((number, what)) => {
                let what: String = what.chars().take(110).collect();
                println!("{:<28} {:>8}  {what}", format!("{made:?}"), number + 1);
            }
            None => {
                println!("{:<28} {:>8}", format!("{made:?}"), "survives");
                survivors.push(made);
            }
        }
    }
    assert!(survivors.is_empty(), "not caught within {LIMIT} seeds: {survivors:?}");
}
