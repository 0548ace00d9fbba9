//! Single flight: concurrent requests for one key share one answer. Tests: `tests/schedules`.

use crate::sync::{Mutex, MutexGuard, PoisonError, oneshot};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

type Waiting<K, V> = Mutex<HashMap<K, Vec<oneshot::Sender<V>>>>;

/// Requests under way, by key.
///
/// Invariant: a key is in the table exactly while a [`Lead`] for it exists; when the lead ends
/// without an answer (its task was dropped), followers see their channel closed and never hang.
#[derive(Debug)]
pub struct Flights<K: Hash + Eq, V> {
    waiting: Arc<Waiting<K, V>>,
}

impl<K: Hash + Eq, V> Default for Flights<K, V> {
    fn default() -> Self {
        Flights { waiting: Arc::default() }
    }
}

/// What a caller has to do.
#[derive(Debug)]
pub enum Turn<K: Hash + Eq + Clone, V: Clone> {
    /// Get the answer and give it to [`Lead::done`].
    Lead(Lead<K, V>),
    /// Wait for somebody else's answer; a closed channel means there will be none.
    Follow(oneshot::Receiver<V>),
}

/// The duty to answer for a key.
#[derive(Debug)]
pub struct Lead<K: Hash + Eq + Clone, V: Clone> {
    key: K,
    waiting: Arc<Waiting<K, V>>,
    /// The key is no longer this lead's: somebody else may lead for it already.
    ended: bool,
}

impl<K: Hash + Eq + Clone, V: Clone> Flights<K, V> {
    /// Joins the request for `key`, or begins it.
    pub fn join(&self, key: K) -> Turn<K, V> {
        let mut waiting = lock(&self.waiting);
        match waiting.get_mut(&key) {
            Some(followers) => {
                let (answer, wait) = oneshot::channel();
                followers.push(answer);
                Turn::Follow(wait)
            }
            None => {
                waiting.insert(key.clone(), Vec::new());
                Turn::Lead(Lead { key, waiting: self.waiting.clone(), ended: false })
            }
        }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Lead<K, V> {
    /// Answers everybody who waits.
    pub fn done(mut self, answer: V) {
        for follower in self.end() {
            // A follower that went away needs no answer.
            let _ = follower.send(answer.clone());
        }
    }

    /// Also waits for the answer that this lead will give.
    pub fn follow(&self) -> oneshot::Receiver<V> {
        let (answer, wait) = oneshot::channel();
        if let Some(followers) = lock(&self.waiting).get_mut(&self.key) {
            followers.push(answer);
        }
        wait
    }

    /// The key.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Gives the key up, once. Returns who waits.
    fn end(&mut self) -> Vec<oneshot::Sender<V>> {
        if std::mem::replace(&mut self.ended, true) {
            return Vec::new();
        }
        lock(&self.waiting).remove(&self.key).unwrap_or_default()
    }
}

impl<K: Hash + Eq + Clone, V: Clone> Drop for Lead<K, V> {
    fn drop(&mut self) {
        drop(self.end());
    }
}

fn lock<K, V>(waiting: &Waiting<K, V>) -> MutexGuard<'_, HashMap<K, Vec<oneshot::Sender<V>>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
