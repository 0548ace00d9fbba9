//! One request as its descriptors show it: a chain of runs of memory, read first, written then.
//!
//! Parsing is total, and nothing outside of the guest's memory is touched. A chain has a place for
//! its status, whatever else is wrong with it.

use super::memory::{Memory, Piece};
use vm_memory::{Address, GuestAddress};

/// Bytes of the header of a request.
pub(super) const HEADER: usize = 16;

/// Why there is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(pub(super) &'static str);

/// One run of memory that a request refers to, as its descriptor has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) at: GuestAddress,
    pub(super) len: usize,
    /// By the device; otherwise it reads.
    pub(super) writable: bool,
}

/// A chain, found in memory.
#[derive(Debug)]
pub(super) struct Chain {
    /// Where its status goes.
    pub(super) status: Piece,
    /// What it asks for; none where that cannot be told.
    pub(super) asked: Option<Asked>,
}

/// What lies in front of the status.
#[derive(Debug)]
pub(super) struct Asked {
    /// Its header.
    pub(super) header: [u8; HEADER],
    /// Bytes that the device is to read, behind the header; the first of `pieces`.
    pub(super) readable: usize,
    /// Bytes that it is to write, without the status.
    pub(super) writable: usize,
}

impl Chain {
    /// The chain of these descriptors, whose data go to `pieces`.
    pub(super) fn parse(
        memory: &Memory,
        links: &mut [Link],
        pieces: &mut Vec<Piece>,
    ) -> Result<Chain, Broken> {
        pieces.clear();
        let Some(last) = links.last_mut().filter(|last| last.writable && last.len > 0) else {
            return Err(Broken("a request without a place for its status"));
        };
        last.len -= 1;
        let at = last.at.checked_add(last.len as u64);
        let found = at.is_some_and(|at| memory.pieces(at, 1, pieces));
        let Some(status) = pieces.pop().filter(|_| found) else {
            return Err(Broken("a request whose status lies outside of the memory"));
        };
        let asked = Asked::gather(memory, links, pieces);
        Ok(Chain { status, asked })
    }
}

impl Asked {
    fn gather(memory: &Memory, links: &[Link], pieces: &mut Vec<Piece>) -> Option<Asked> {
        let first_writable = links.iter().position(|link| link.writable).unwrap_or(links.len());
        let (readable, writable) = links.split_at(first_writable);
        if writable.iter().any(|link| !link.writable) {
            return None;
        }
        let mut total = [0usize; 2];
        for (side, total) in [readable, writable].into_iter().zip(&mut total) {
            for link in side.iter().filter(|link| link.len > 0) {
                *total = total.checked_add(link.len)?;
                if !memory.pieces(link.at, link.len, pieces) {
                    return None;
                }
            }
        }
        let header = take_header(pieces, total[0])?;
        Some(Asked { header, readable: total[0] - HEADER, writable: total[1] })
    }
}

/// Takes the header out of `pieces`, whose first `readable` bytes the device may read.
fn take_header(pieces: &mut Vec<Piece>, readable: usize) -> Option<[u8; HEADER]> {
    if readable < HEADER {
        return None;
    }
    let mut header = [0; HEADER];
    let mut done = 0;
    for piece in pieces.iter_mut() {
        let (taken, rest) = piece.split(HEADER - done);
        // SAFETY: the memory outlives this call, in whose course the piece was found.
        unsafe { taken.copy_to(&mut header[done..]) };
        done += taken.len();
        *piece = rest;
    }
    pieces.retain(|piece| piece.len() > 0);
    Some(header)
}
