//! Objects of which another copy had to be read, until somebody looks after them.

use crate::store::Key;
use std::collections::BTreeSet;
use std::sync::Mutex;

/// More than this are not remembered: a scrub finds the rest.
const MOST: usize = 4096;

/// See the module above. Each object is told once.
#[derive(Debug, Default)]
pub struct Suspects(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    seen: BTreeSet<Key>,
    waiting: Vec<Key>,
}

impl Suspects {
    /// One copy of the object is damaged, and another one is not.
    pub fn note(&self, key: Key) {
        let mut told = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if told.seen.len() < MOST && told.seen.insert(key.clone()) {
            told.waiting.push(key);
        }
    }

    /// Those that nobody looks after yet.
    pub fn take(&self) -> Vec<Key> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(|e| e.into_inner()).waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once() {
        let suspects = Suspects::default();
        let [a, b] = ["a", "b"].map(|name| Key::new(name).unwrap());
        suspects.note(a.clone());
        suspects.note(b.clone());
        suspects.note(a.clone());
        assert_eq!(suspects.take(), [a.clone(), b]);
        suspects.note(a);
        assert!(suspects.take().is_empty());
    }
}
