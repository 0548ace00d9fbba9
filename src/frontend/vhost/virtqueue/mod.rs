//! A ring in the guest's memory, in one of the two shapes that virtio has.
//!
//! A ring's thread (`queue`) knows no more of it than [`Virtqueue`]: what is asked next, where an
//! answer goes, who wants to be woken. Each shape notes by itself what is in flight, as the notes
//! of it have another shape too (`inflight`).
//!
//! Invariants, of either: a request has a number below the ring's size, which no other one in
//! flight has; it is answered once, or noted; nothing outside of the shared memory is read or
//! written; every look is bounded by the ring's size and [`LINKS_MAX`], whatever the guest wrote.

mod entries;
mod packed;
mod place;
mod split;

pub(super) use packed::Packed;
pub(super) use place::Place;
pub(super) use split::Split;

use super::chain::{Broken, Link};
use super::memory::Memory;
use super::ring::Spec;
use std::sync::Arc;

/// The most descriptors of a request.
const LINKS_MAX: usize = 1024;

/// How a ring lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Descriptors in a table, and two rings of their indices.
    Split,
    /// One ring of descriptors, which both sides write.
    Packed,
}

/// A ring, as the thread that serves it sees it.
pub(super) trait Virtqueue: Sized {
    /// The ring, as it stands. The error is for people.
    fn open(spec: &Spec, memory: &Arc<Memory>) -> Result<Self, String>;

    /// The numbers of the requests that a predecessor was serving, oldest first. To be called once,
    /// before anything is taken.
    fn left(&mut self) -> Vec<u16>;

    /// Appends the descriptors of a request that was left.
    fn again(&self, number: u16, links: &mut Vec<Link>) -> Result<(), Broken>;

    /// The number of the next request, whose descriptors are appended; none where the guest has
    /// asked for no more.
    fn next(&mut self, links: &mut Vec<Link>) -> Result<Option<u16>, Broken>;

    /// Takes the request that [`next`](Virtqueue::next) has just found, and notes that.
    fn take(&mut self);

    /// Answers a request, of which so many bytes were written.
    fn answer(&mut self, number: u16, written: u32) -> Result<(), Broken>;

    /// It lies in another mapping of the same memory from now on.
    fn remap(&mut self, memory: &Arc<Memory>) -> Result<(), Broken>;

    /// Asks to be kicked; true where requests came before that.
    fn want_kicks(&mut self) -> Result<bool, Broken>;

    /// Asks not to be kicked, which the guest may ignore.
    fn spare_kicks(&mut self);

    /// True where the guest wants to hear of the answers since the last call of this.
    fn wants_call(&mut self) -> bool;

    /// Where it stands, as the protocol has it.
    fn base(&self) -> u32;
}
