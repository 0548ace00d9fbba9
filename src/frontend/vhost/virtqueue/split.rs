//! A split ring: the `virtio-queue` crate's, with the requests in flight noted.
//!
//! The number of a request is the index of the descriptor that heads it.

use super::super::chain::{Broken, Link};
use super::super::inflight::SplitNotes;
use super::super::memory::Memory;
use super::super::ring::{Layout, Spec};
use super::{LINKS_MAX, Virtqueue};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::fence;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

/// A split ring.
pub(in super::super) struct Split {
    memory: Arc<Memory>,
    layout: Layout,
    queue: Queue,
    event_idx: bool,
    notes: Option<SplitNotes>,
    /// By number.
    in_flight: Vec<bool>,
    /// What was found and not taken yet.
    found: u16,
    counter: u64,
}

impl Virtqueue for Split {
    fn open(spec: &Spec, memory: &Arc<Memory>) -> Result<Split, String> {
        let layout @ Layout { size, table, avail, used } = spec.layout;
        let wrong = |e: Error| e.to_string();
        let base = u16::try_from(spec.base).map_err(|_| "it begins where a packed one may")?;
        let mut queue = Queue::new(size).map_err(wrong)?;
        queue.try_set_size(size).map_err(wrong)?;
        queue.try_set_desc_table_address(table).map_err(wrong)?;
        queue.try_set_avail_ring_address(avail).map_err(wrong)?;
        queue.try_set_used_ring_address(used).map_err(wrong)?;
        queue.set_event_idx(spec.event_idx);
        queue.set_ready(true);
        if !queue.is_valid(memory.guest()) {
            return Err("it lies outside of the memory".into());
        }
        let used = queue.used_idx(memory.guest(), Acquire).map_err(wrong)?;
        queue.set_next_used(used.0);
        queue.set_next_avail(base);
        Ok(Split {
            memory: memory.clone(),
            layout,
            queue,
            event_idx: spec.event_idx,
            notes: spec.part.clone().map(SplitNotes),
            in_flight: vec![false; size.into()],
            found: 0,
            counter: 0,
        })
    }

    fn left(&mut self) -> Vec<u16> {
        let Some(notes) = &self.notes else { return Vec::new() };
        let used = self.queue.next_used();
        let (left, next) = notes.left(used, self.layout.size);
        self.counter = next;
        // The ring tells how many were answered, the notes how many were taken besides.
        self.queue.set_next_avail(used.wrapping_add(left.len() as u16));
        left.iter().for_each(|head| self.in_flight[usize::from(*head)] = true);
        left
    }

    fn again(&self, number: u16, links: &mut Vec<Link>) -> Result<(), Broken> {
        follow(&self.memory, (self.layout.table, self.layout.size), number, links)
    }

    fn next(&mut self, links: &mut Vec<Link>) -> Result<Option<u16>, Broken> {
        let mut chains = self.queue.iter(self.memory.guest()).map_err(broken)?;
        let Some(head) = chains.next().map(|chain| chain.head_index()) else { return Ok(None) };
        match self.in_flight.get(usize::from(head)) {
            None => return Err(Broken("a request beyond the ring")),
            Some(true) => return Err(Broken("a request twice at a time")),
            Some(false) => {}
        }
        self.again(head, links)?;
        self.found = head;
        Ok(Some(head))
    }

    fn take(&mut self) {
        self.in_flight[usize::from(self.found)] = true;
        if let Some(notes) = &self.notes {
            notes.begin(self.found, self.counter);
            self.counter = self.counter.wrapping_add(1);
        }
    }

    fn answer(&mut self, number: u16, written: u32) -> Result<(), Broken> {
        if let Some(notes) = &self.notes {
            notes.answering(number);
        }
        self.queue.add_used(self.memory.guest(), number, written).map_err(broken)?;
        self.in_flight[usize::from(number)] = false;
        if let Some(notes) = &self.notes {
            notes.answered(number, self.queue.next_used());
        }
        Ok(())
    }

    fn remap(&mut self, memory: &Arc<Memory>) -> Result<(), Broken> {
        // Whether it is still there shows at the next look.
        self.memory = memory.clone();
        Ok(())
    }

    fn want_kicks(&mut self) -> Result<bool, Broken> {
        self.queue.enable_notification(self.memory.guest()).map_err(broken)
    }

    fn spare_kicks(&mut self) {
        // A hint; errors show at the next look.
        let _ = self.queue.disable_notification(self.memory.guest());
    }

    fn wants_call(&mut self) -> bool {
        if self.event_idx {
            return self.queue.needs_notification(self.memory.guest()).unwrap_or(true);
        }
        // The answers must be seen before the guest's wish is looked at.
        fence(SeqCst);
        let flags = self.memory.guest().load::<u16>(self.layout.avail, Relaxed);
        let flags = flags.map_or(0, u16::from_le);
        u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
    }

    fn base(&self) -> u32 {
        self.queue.next_avail().into()
    }
}

fn broken(error: Error) -> Broken {
    tracing::debug!(%error, "a split ring");
    match error {
        Error::InvalidAvailRingIndex => Broken("more requests than the ring has places for"),
        Error::GuestMemory(_) | Error::AddressOverflow => Broken("it lies outside of the memory"),
        _ => Broken("a ring that is none"),
    }
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
