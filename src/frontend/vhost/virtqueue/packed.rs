//! A packed ring: one ring of descriptors, which both sides write.
//!
//! Source: the virtio specification 1.2, "Packed Virtqueues". The guest fills descriptors from its
//! place on and turns their flags; the device, at its own place, writes over them which request (by
//! the guest's number for it) it has finished, in whatever order, and goes on by as many descriptors
//! as that request had. Between the two places lies what is in flight.
//!
//! **Order of memory accesses.** A descriptor's flags are read first (acquire), then its other
//! fields: the guest writes the flags of a request's first descriptor last. An answer's fields are
//! written first, then its flags (release). Both wishes to be woken are one 32-bit word each. Whoever
//! goes to sleep writes its wish and then looks once more; whoever might have to wake the other
//! writes what there is and then looks at the wish: a full fence lies between the two, on both sides.
//! All stores to the notes are releases, too, so that they and the answers reach memory in the order
//! of the code, wherever this process is killed.
//!
//! Every descriptor of a request must be available, and all requests in flight fit into the ring,
//! as the specification has it. What a guest calls its requests is nobody's business: it is repeated.

use super::super::chain::{Broken, Link};
use super::super::inflight::PackedNotes;
use super::super::memory::{Area, Memory};
use super::super::ring::{Layout, Spec};
use super::entries::{Entries, Found};
use super::place::Place;
use super::{LINKS_MAX, Virtqueue};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use virtio_bindings::virtio_ring::{
    VRING_DESC_F_WRITE, VRING_PACKED_EVENT_FLAG_DESC, VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE,
};
use virtio_queue::desc::packed::Descriptor;
use vm_memory::{Address, Bytes};

/// Bytes of a descriptor, and where its fields are.
const DESCRIPTOR: usize = size_of::<Descriptor>();
const LEN_AT: usize = 8;
const ID_AT: usize = 12;
const FLAGS_AT: usize = 14;

/// Bytes of a wish to be woken: a place, and what is wanted.
const WISH: usize = 4;

const OUTSIDE: Broken = Broken("a ring outside of the memory");

/// A packed ring.
pub(in super::super) struct Packed {
    size: u16,
    areas: Areas,
    /// Where the next request is, and where the next answer goes.
    avail: Place,
    used: Place,
    entries: Entries,
    /// Requests of a predecessor, with their descriptors.
    left: Vec<(u16, Vec<Descriptor>)>,
    /// The descriptors of the request that was found and not taken yet.
    found: Vec<Descriptor>,
    event_idx: bool,
    /// Descriptors that were used since the guest's wish was looked at.
    untold: u32,
}

/// Where it lies.
struct Areas {
    memory: Arc<Memory>,
    layout: Layout,
    ring: Area,
    /// What the guest wishes, and what the device does.
    driver: Area,
    device: Area,
}

impl Areas {
    fn of(layout: Layout, memory: &Arc<Memory>) -> Option<Areas> {
        let bytes = DESCRIPTOR * usize::from(layout.size);
        Some(Areas {
            memory: memory.clone(),
            layout,
            ring: Area::of::<u64>(memory, layout.table, bytes)?,
            driver: Area::of::<u32>(memory, layout.avail, WISH)?,
            device: Area::of::<u32>(memory, layout.used, WISH)?,
        })
    }

    fn flags(&self, index: u16) -> Option<u16> {
        let at = DESCRIPTOR * usize::from(index) + FLAGS_AT;
        self.ring.load(at, Acquire).map(u16::from_le)
    }

    /// The descriptor at `index`, whose flags were read before.
    fn descriptor(&self, index: u16, flags: u16) -> Option<Descriptor> {
        let at = DESCRIPTOR * usize::from(index);
        let addr = self.ring.load(at, Relaxed).map(u64::from_le)?;
        let len = self.ring.load(at + LEN_AT, Relaxed).map(u32::from_le)?;
        let id = self.ring.load(at + ID_AT, Relaxed).map(u16::from_le)?;
        Some(Descriptor::new(addr, len, id, flags))
    }

    fn put_answer(&self, place: Place, id: u16, written: u32) -> Option<()> {
        let at = DESCRIPTOR * usize::from(place.index);
        let flags = place.used_flags() | VRING_DESC_F_WRITE as u16;
        self.ring.store(written.to_le(), at + LEN_AT, Relaxed)?;
        self.ring.store(id.to_le(), at + ID_AT, Relaxed)?;
        self.ring.store(flags.to_le(), at + FLAGS_AT, Release)
    }

    /// Appends the descriptors of a request to `links`.
    fn follow(&self, chain: &[Descriptor], links: &mut Vec<Link>) -> Result<(), Broken> {
        for descriptor in chain {
            if !descriptor.refers_to_indirect_table() {
                links.push(link(descriptor));
                continue;
            }
            let (len, entry) = (descriptor.len() as usize, DESCRIPTOR);
            let sane = chain.len() == 1 && len > 0 && len % entry == 0 && len / entry <= LINKS_MAX;
            if !sane {
                return Err(Broken("a table of descriptors that is none"));
            }
            for i in 0..len / entry {
                let place = descriptor.addr().checked_add((i * entry) as u64);
                let guest = self.memory.guest();
                let read = place.and_then(|at| guest.read_obj::<Descriptor>(at).ok());
                links.push(link(&read.ok_or(Broken("a descriptor outside of the memory"))?));
            }
        }
        Ok(())
    }
}

/// In a table, all flags but one mean nothing.
fn link(descriptor: &Descriptor) -> Link {
    let writable = descriptor.is_write_only();
    Link { at: descriptor.addr(), len: descriptor.len() as usize, writable }
}

/// The two places that a VMM tells.
fn places(base: u32, size: u16) -> Option<(Place, Place)> {
    let (avail, used) = (Place::from_bits(base as u16), Place::from_bits((base >> 16) as u16));
    let inside = avail.index < size && used.index < size;
    (inside && (0..=i32::from(size)).contains(&avail.since(used, size))).then_some((avail, used))
}

impl Virtqueue for Packed {
    fn open(spec: &Spec, memory: &Arc<Memory>) -> Result<Packed, String> {
        let size = spec.layout.size;
        let areas = Areas::of(spec.layout, memory);
        let areas = areas.ok_or("it lies outside of the memory, or across its words")?;
        let base = places(spec.base, size);
        let (avail, used) =
            base.ok_or_else(|| format!("it begins at {:#x} of {size}", spec.base))?;
        let notes = spec.part.clone().map(PackedNotes);
        let is_noted = notes.is_some();
        let is_answered =
            |place: Place| !areas.flags(place.index).is_some_and(|flags| place.is_available(flags));
        let Found { entries, left, used } = Entries::open(size, notes, used, is_answered)?;
        // A VMM whose backend died does not know how far that came: the notes do.
        let avail = if is_noted { used.after(entries.busy(), size) } else { avail };
        let (found, event_idx) = (Vec::new(), spec.event_idx);
        Ok(Packed { size, areas, avail, used, entries, left, found, event_idx, untold: 0 })
    }

    fn left(&mut self) -> Vec<u16> {
        self.left.iter().map(|(number, _)| *number).collect()
    }

    fn again(&self, number: u16, links: &mut Vec<Link>) -> Result<(), Broken> {
        let found = self.left.iter().find(|(other, _)| *other == number);
        let (_, chain) = found.ok_or(Broken("a request that was not left"))?;
        self.areas.follow(chain, links)
    }

    fn next(&mut self, links: &mut Vec<Link>) -> Result<Option<u16>, Broken> {
        self.found.clear();
        let mut place = self.avail;
        loop {
            let flags = self.areas.flags(place.index).ok_or(OUTSIDE)?;
            match (place.is_available(flags), self.found.len()) {
                (true, links) if links < self.entries.room() => {}
                (true, _) => return Err(Broken("more descriptors than the ring has")),
                (false, 0) => return Ok(None),
                (false, _) => return Err(Broken("a request that is available in part")),
            }
            let descriptor = self.areas.descriptor(place.index, flags).ok_or(OUTSIDE)?;
            self.found.push(descriptor);
            if !descriptor.has_next() {
                break;
            }
            place = place.after(1, self.size);
        }
        self.areas.follow(&self.found, links)?;
        Ok(Some(self.entries.next_number()))
    }

    fn take(&mut self) {
        self.entries.hold(&self.found);
        self.avail = self.avail.after(self.found.len() as u16, self.size);
    }

    fn answer(&mut self, number: u16, written: u32) -> Result<(), Broken> {
        let (areas, used) = (&self.areas, self.used);
        let links = self.entries.get(number).map_or(0, |held| held.links);
        let next = used.after(links, self.size);
        self.entries.release(number, (used, next), |held| {
            areas.put_answer(used, held.id, written).ok_or(OUTSIDE)
        })?;
        self.used = next;
        self.untold = self.untold.saturating_add(links.into());
        Ok(())
    }

    fn remap(&mut self, memory: &Arc<Memory>) -> Result<(), Broken> {
        self.areas = Areas::of(self.areas.layout, memory).ok_or(OUTSIDE)?;
        Ok(())
    }

    fn want_kicks(&mut self) -> Result<bool, Broken> {
        let wish = match self.event_idx {
            true => VRING_PACKED_EVENT_FLAG_DESC << 16 | u32::from(self.avail.bits()),
            false => VRING_PACKED_EVENT_FLAG_ENABLE << 16,
        };
        self.areas.device.store(wish.to_le(), 0, Release).ok_or(OUTSIDE)?;
        fence(SeqCst);
        let flags = self.areas.flags(self.avail.index).ok_or(OUTSIDE)?;
        Ok(self.avail.is_available(flags))
    }

    fn spare_kicks(&mut self) {
        // With event indices, the place that was wished for last lies behind.
        if !self.event_idx {
            let wish = VRING_PACKED_EVENT_FLAG_DISABLE << 16;
            // A hint; where it cannot be given, the next look at the ring tells.
            let _ = self.areas.device.store(wish.to_le(), 0, Relaxed);
        }
    }

    fn wants_call(&mut self) -> bool {
        let untold = std::mem::take(&mut self.untold);
        fence(SeqCst);
        let wish = self.areas.driver.load(0, Relaxed).map_or(0, u32::from_le);
        match (wish >> 16) & 3 {
            VRING_PACKED_EVENT_FLAG_DISABLE => false,
            VRING_PACKED_EVENT_FLAG_DESC if self.event_idx => {
                let since = self.used.since(Place::from_bits(wish as u16), self.size);
                u32::try_from(since).is_ok_and(|since| (1..=untold).contains(&since))
            }
            _ => true,
        }
    }

    fn base(&self) -> u32 {
        u32::from(self.used.bits()) << 16 | u32::from(self.avail.bits())
    }
}
