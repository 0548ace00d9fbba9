//! Single flight: one lead per key at a time, and an answer or a closed channel for everybody else.

use crate::flight::{Flights, Lead, Turn};
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// The leads that there are, and the answers given. Looked at between two steps only, so a plain
/// lock is never contended.
#[derive(Default)]
struct Record {
    leads: BTreeMap<u32, u32>,
    /// The number of the last answer of all.
    answers: u32,
    /// The number of the last answer, by key, of those that everybody has been given.
    given: BTreeMap<u32, u32>,
}

#[derive(Clone, Default)]
struct World {
    flights: Arc<Flights<u32, (u32, u32)>>,
    record: Arc<Mutex<Record>>,
}

impl World {
    fn begin(&self, key: u32) {
        let mut record = self.record.lock().unwrap();
        let leads = record.leads.entry(key).or_default();
        *leads += 1;
        assert_eq!(*leads, 1, "two leads for key {key} at a time");
    }

    /// The number of the answer.
    fn end(&self, key: u32) -> u32 {
        let mut record = self.record.lock().unwrap();
        *record.leads.entry(key).or_default() -= 1;
        record.answers += 1;
        record.answers
    }

    /// The last answer that whoever asks from now on must not get.
    fn given(&self, key: u32) -> u32 {
        self.record.lock().unwrap().given.get(&key).copied().unwrap_or(0)
    }

    /// Answers, after a while in which others may run.
    fn fly(&self, lead: Lead<u32, (u32, u32)>) -> u32 {
        let key = *lead.key();
        self.begin(key);
        thread::yield_now();
        let number = self.end(key);
        lead.done((key, number));
        let mut record = self.record.lock().unwrap();
        let given = record.given.entry(key).or_default();
        *given = number.max(*given);
        number
    }
}

/// No lead fails: everybody gets an answer that was given after he asked.
fn all_get_an_answer() {
    let world = World::default();
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let world = world.clone();
            thread::spawn(move || {
                for key in [caller % 2, 0] {
                    let before = world.given(key);
                    match world.flights.join(key) {
                        Turn::Lead(lead) => {
                            world.fly(lead);
                        }
                        Turn::Follow(wait) => {
                            let (of, number) = block_on(wait).expect("no lead failed");
                            assert_eq!(of, key, "an answer to another question");
                            assert!(number > before, "an answer of the past");
                        }
                    }
                }
            })
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    for key in [0, 1] {
        assert!(matches!(world.flights.join(key), Turn::Lead(_)), "a flight was left over");
    }
}

#[test]
fn every_follower_gets_the_leads_answer() {
    crate::explore(all_get_an_answer);
}

/// Leads are dropped midway now and then: followers see a closed channel and ask again.
fn some_leads_are_dropped() {
    let world = World::default();
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let world = world.clone();
            thread::spawn(move || {
                loop {
                    match world.flights.join(7) {
                        Turn::Lead(lead) if thread_rng().gen_bool(0.4) => {
                            world.begin(7);
                            thread::yield_now();
                            world.end(7);
                            drop(lead);
                        }
                        Turn::Lead(lead) => {
                            world.fly(lead);
                            return;
                        }
                        Turn::Follow(wait) => {
                            if let Ok((key, _)) = block_on(wait) {
                                return assert_eq!(key, 7);
                            }
                        }
                    }
                }
            })
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    assert!(matches!(world.flights.join(7), Turn::Lead(_)), "a flight was left over");
}

#[test]
fn a_dropped_lead_hangs_nobody() {
    crate::explore(some_leads_are_dropped);
}

/// As reads do it: whoever leads hands the work to somebody else and follows it; some followers
/// lose interest.
fn leads_follow_themselves() {
    let world = World::default();
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let world = world.clone();
            thread::spawn(move || {
                let wait = match world.flights.join(1) {
                    Turn::Follow(wait) => wait,
                    Turn::Lead(lead) => {
                        let wait = lead.follow();
                        let world = world.clone();
                        thread::spawn(move || world.fly(lead));
                        wait
                    }
                };
                if caller == 3 && thread_rng().gen_bool(0.5) {
                    return drop(wait);
                }
                assert_eq!(block_on(wait).expect("no lead failed").0, 1);
            })
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
}

#[test]
fn a_lead_may_follow_itself() {
    crate::explore(leads_follow_themselves);
}
