//! One request as it lies in a ring: a chain of descriptors, perhaps in a table of its own.
//!
//! Parsing is total, and bounded whatever the guest wrote: at most [`LINKS_MAX`] descriptors are
//! looked at, and none outside of its memory. A chain that does not end is no chain; one that ends
//! properly has a place for its status, whatever else is wrong with it.

use super::memory::{Memory, Piece};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress};

/// Bytes of the header of a request.
pub(super) const HEADER: usize = 16;

/// The most descriptors of a chain.
const LINKS_MAX: usize = 1024;

/// Why there is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(pub(super) &'static str);

/// Memory that chains are parsed into, used again for each.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    at: GuestAddress,
    len: usize,
    writable: bool,
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
    /// The chain that begins at `head` of the table at `table`, whose data go to `pieces`.
    pub(super) fn parse(
        memory: &Memory,
        (table, size): (GuestAddress, u16),
        head: u16,
        (scratch, pieces): (&mut Scratch, &mut Vec<Piece>),
    ) -> Result<Chain, Broken> {
        let links = &mut scratch.links;
        links.clear();
        pieces.clear();
        follow(memory, (table, size), head, links)?;
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

/// Appends the descriptors of a chain to `links`.
fn follow(
    memory: &Memory,
    (mut table, size): (GuestAddress, u16),
    head: u16,
    links: &mut Vec<Link>,
) -> Result<(), Broken> {
    let (mut size, mut at, mut indirect) = (u32::from(size), head, false);
    for _ in 0..LINKS_MAX {
        if u32::from(at) >= size {
            return Err(Broken("a descriptor beyond its table"));
        }
        let offset = u64::from(at) * size_of::<Descriptor>() as u64;
        let place = table.checked_add(offset);
        let read = place.and_then(|at| memory.guest().read_obj::<Descriptor>(at).ok());
        let link = read.ok_or(Broken("a descriptor outside of the memory"))?;
        if link.refers_to_indirect_table() {
            let entry = size_of::<Descriptor>() as u32;
            if indirect || link.has_next() || link.len() == 0 || link.len() % entry != 0 {
                return Err(Broken("a table of descriptors that is none"));
            }
            (table, size, at, indirect) = (link.addr(), link.len() / entry, 0, true);
            continue;
        }
        let writable = link.is_write_only();
        links.push(Link { at: link.addr(), len: link.len() as usize, writable });
        if !link.has_next() {
            return Ok(());
        }
        at = link.next();
    }
    Err(Broken("a chain of descriptors that does not end"))
}
