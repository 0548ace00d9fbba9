//! The driver's side of a ring, of either shape.

use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::sync::atomic::fence;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITABLE: u16 = 2;
pub const INDIRECT: u16 = 4;
pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;

/// What a driver or a device wishes of a packed ring.
pub const WISH_NONE: u32 = 1 << 16;
pub const WISH_PLACE: u32 = 2 << 16;

/// Requests in flight on a ring, each with so many descriptors.
pub const SLOTS: u16 = 16;
pub const LINKS: u16 = 16;

/// A packed ring that nobody has used yet.
pub const PACKED_START: u32 = 0x8000_8000;

/// One descriptor: where, how long, flags.
pub type Link = (u64, u32, u16);

/// A place in a packed ring, and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub index: u16,
    pub wrap: bool,
}

impl Place {
    /// From the lower 16 bits.
    pub fn of(bits: u32) -> Place {
        Place { index: bits as u16 & 0x7fff, wrap: bits & 0x8000 != 0 }
    }

    pub fn bits(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }

    pub fn next(self, size: u16) -> Place {
        match self.index + 1 >= size {
            true => Place { index: 0, wrap: !self.wrap },
            false => Place { index: self.index + 1, ..self },
        }
    }

    /// The flags of what is available here.
    pub fn available(self) -> u16 {
        if self.wrap { AVAIL } else { USED }
    }

    fn used(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
}

/// What a driver knows of its ring.
enum Shape {
    Split {
        avail: u16,
        used: u16,
    },
    Packed {
        avail: Place,
        used: Place,
        /// Descriptors of the requests in flight, by slot.
        links: Vec<u16>,
        /// Descriptors that are free.
        free: u16,
        /// Descriptors since the device's wish was looked at.
        added: u16,
    },
}

pub struct Ring {
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
    pub entries: u16,
    base: u64,
    /// Slots in flight.
    busy: Vec<bool>,
    event_idx: bool,
    shape: Shape,
    /// Where the VMM thinks that the device stands.
    pub told: u32,
}

impl Ring {
    pub fn new(index: usize, entries: u16, event_idx: bool, packed: bool) -> Ring {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let start = Place::of(PACKED_START);
        let links = vec![0; usize::from(SLOTS)];
        let (shape, told) = match packed {
            true => (
                Shape::Packed { avail: start, used: start, links, free: entries, added: 0 },
                PACKED_START,
            ),
            false => (Shape::Split { avail: 0, used: 0 }, 0),
        };
        Ring {
            kick: event(),
            call: event(),
            error: event(),
            entries,
            base: 0x1_0000 * index as u64,
            busy: vec![false; usize::from(SLOTS)],
            event_idx,
            shape,
            told,
        }
    }

    /// Where the descriptors are.
    pub fn table(&self) -> u64 {
        self.base
    }

    /// The driver's part.
    pub fn avail(&self) -> u64 {
        self.base + 0x2000
    }

    /// The device's part.
    pub fn used(&self) -> u64 {
        self.base + 0x4000
    }

    /// What a VMM tells the next backend when the one before has died.
    pub fn base_after_a_death(&self, memory: &GuestMemoryMmap) -> u32 {
        match self.shape {
            Shape::Split { .. } => self.used_index(memory).into(),
            // It cannot know more.
            Shape::Packed { .. } => self.told,
        }
    }

    /// Where the device stands when it has answered all there is.
    pub fn end(&self) -> u32 {
        match self.shape {
            Shape::Split { avail, .. } => avail.into(),
            Shape::Packed { avail, .. } => u32::from(avail.bits()) << 16 | u32::from(avail.bits()),
        }
    }

    fn used_index(&self, memory: &GuestMemoryMmap) -> u16 {
        u16::from_le(memory.load(GuestAddress(self.used() + 2), Acquire).unwrap())
    }

    /// A slot that is free, and is not any more.
    pub fn take_slot(&mut self) -> u16 {
        let slot = self.busy.iter().position(|busy| !busy).expect("a free slot");
        self.busy[slot] = true;
        slot as u16
    }

    /// Hands a request to the device: in the ring, or in a table at that place.
    pub fn put(&mut self, memory: &GuestMemoryMmap, slot: u16, links: &[Link], table: Option<u64>) {
        assert!(links.len() <= usize::from(LINKS) || table.is_some());
        let packed = matches!(self.shape, Shape::Packed { .. });
        let head = slot * LINKS;
        let indirect = table.map(|table| {
            chain(memory, table, links, if packed { None } else { Some(0) });
            [(table, 16 * links.len() as u32, INDIRECT)]
        });
        let direct = indirect.as_ref().map_or(links, |one| &one[..]);
        if packed {
            return self.put_packed(memory, slot, direct);
        }
        match indirect {
            Some([(at, len, flags)]) => descriptor(memory, self.table(), head, (at, len), flags, 0),
            None => chain(memory, self.table(), links, Some(head)),
        }
        self.offer(memory, head);
    }

    /// Puts `head` into a split ring of available requests; the device may see it.
    pub fn offer(&mut self, memory: &GuestMemoryMmap, head: u16) {
        let (at, entries) = (self.avail(), self.entries);
        let Shape::Split { avail, .. } = &mut self.shape else { panic!("a packed ring") };
        let place = at + 4 + 2 * u64::from(*avail % entries);
        memory.write_slice(&head.to_le_bytes(), GuestAddress(place)).unwrap();
        *avail = avail.wrapping_add(1);
        memory.store(avail.to_le(), GuestAddress(at + 2), Release).unwrap();
    }

    fn put_packed(&mut self, memory: &GuestMemoryMmap, slot: u16, request: &[Link]) {
        let (table, size) = (self.table(), self.entries);
        let Shape::Packed { avail, links, free, added, .. } = &mut self.shape else { return };
        let count = request.len() as u16;
        assert!(count <= *free, "no room for {count} descriptors");
        let (mut place, mut first) = (*avail, 0);
        for (i, (at, len, flags)) in request.iter().enumerate() {
            let more = if i + 1 < request.len() { NEXT } else { 0 };
            let mut all = flags | more | place.available();
            if i == 0 {
                // Not available yet.
                (first, all) = (all, place.used());
            }
            packed_descriptor(memory, table, place.index, (*at, *len), slot, all);
            place = place.next(size);
        }
        let at = GuestAddress(table + 16 * u64::from(avail.index) + 14);
        memory.store(first.to_le(), at, Release).unwrap();
        links[usize::from(slot)] = count;
        (*avail, *free, *added) = (place, *free - count, *added + count);
    }

    /// True where the device asks to be kicked for what came since the last call.
    pub fn wants_kick(&mut self, memory: &GuestMemoryMmap) -> bool {
        fence(SeqCst);
        let (at, size) = (self.used(), self.entries);
        match &mut self.shape {
            Shape::Split { avail, .. } if self.event_idx => {
                let at = GuestAddress(at + 4 + 8 * u64::from(size));
                let event = u16::from_le(memory.load(at, Acquire).unwrap());
                avail.wrapping_sub(event).wrapping_sub(1) < size
            }
            Shape::Split { .. } => memory.load::<u16>(GuestAddress(at), Acquire).unwrap() == 0,
            Shape::Packed { avail, added, .. } => {
                let wish = u32::from_le(memory.load(GuestAddress(at), Acquire).unwrap());
                let added = std::mem::take(added);
                match wish & !0xffff {
                    WISH_NONE => false,
                    WISH_PLACE => {
                        // As Linux has it.
                        let event = Place::of(wish);
                        let round = if event.wrap == avail.wrap { 0 } else { size };
                        let event = event.index.wrapping_sub(round);
                        avail.index.wrapping_sub(event).wrapping_sub(1) < added
                    }
                    other => {
                        assert_eq!(other, 0, "a wish that there is not");
                        true
                    }
                }
            }
        }
    }

    /// Wishes to hear of an answer when so many answers have come, each to so many descriptors.
    pub fn wish_call(&self, memory: &GuestMemoryMmap, answers: u16, links: u16) {
        let at = GuestAddress(self.avail());
        match self.shape {
            Shape::Split { .. } => {
                let at = GuestAddress(at.0 + 4 + 2 * u64::from(self.entries));
                memory.write_slice(&(answers - 1).to_le_bytes(), at).unwrap();
            }
            Shape::Packed { .. } => {
                let place = Place { index: (answers - 1) * links, wrap: true };
                let wish = WISH_PLACE | u32::from(place.bits());
                memory.store(wish.to_le(), at, SeqCst).unwrap();
            }
        }
    }

    /// The next answer, if there is one: its slot, and what the device says it wrote.
    pub fn poll(&mut self, memory: &GuestMemoryMmap) -> Option<(u16, u32)> {
        let (table, answers, size) = (self.table(), self.used(), self.entries);
        let index = self.used_index(memory);
        let word = |at: u64| {
            let mut raw = [0; 4];
            memory.read_slice(&mut raw, GuestAddress(at)).unwrap();
            u32::from_le_bytes(raw)
        };
        let (slot, written) = match &mut self.shape {
            Shape::Split { used, .. } => {
                if *used == index {
                    return None;
                }
                let at = answers + 4 + 8 * u64::from(*used % size);
                *used = used.wrapping_add(1);
                let head = word(at);
                assert!(head.is_multiple_of(u32::from(LINKS)), "head {head}");
                (head as u16 / LINKS, word(at + 4))
            }
            Shape::Packed { used, links, free, .. } => {
                let at = table + 16 * u64::from(used.index);
                let flags = u16::from_le(memory.load(GuestAddress(at + 14), Acquire).unwrap());
                if flags & (AVAIL | USED) != used.used() {
                    return None;
                }
                let (slot, written) = (word(at + 12) as u16, word(at + 8));
                let count = std::mem::take(&mut links[usize::from(slot)]);
                *free += count;
                (0..count).for_each(|_| *used = used.next(size));
                (slot, written)
            }
        };
        assert!(slot < SLOTS, "slot {slot}");
        assert!(std::mem::take(&mut self.busy[usize::from(slot)]), "answered twice: {slot}");
        Some((slot, written))
    }
}

/// Writes a chain into a table, from an index on; without one, as a packed ring's tables are.
fn chain(memory: &GuestMemoryMmap, table: u64, links: &[Link], first: Option<u16>) {
    for (i, (at, len, flags)) in (0..).zip(links) {
        let Some(first) = first else {
            packed_descriptor(memory, table, i, (*at, *len), 0, *flags);
            continue;
        };
        let more = if usize::from(i) + 1 < links.len() { NEXT } else { 0 };
        descriptor(memory, table, first + i, (*at, *len), flags | more, first + i + 1);
    }
}

/// Writes a descriptor of a table.
pub fn descriptor(
    memory: &GuestMemoryMmap,
    table: u64,
    index: u16,
    (at, len): (u64, u32),
    flags: u16,
    next: u16,
) {
    put(memory, table, index, (at, len), [flags, next]);
}

/// Writes a descriptor of a packed ring.
pub fn packed_descriptor(
    memory: &GuestMemoryMmap,
    table: u64,
    index: u16,
    (at, len): (u64, u32),
    id: u16,
    flags: u16,
) {
    put(memory, table, index, (at, len), [id, flags]);
}

fn put(memory: &GuestMemoryMmap, table: u64, index: u16, (at, len): (u64, u32), rest: [u16; 2]) {
    let mut raw = Vec::new();
    raw.extend(at.to_le_bytes());
    raw.extend(len.to_le_bytes());
    rest.iter().for_each(|word| raw.extend(word.to_le_bytes()));
    memory.write_slice(&raw, GuestAddress(table + 16 * u64::from(index))).unwrap();
}
