//! A place in a packed ring. Pure.
//!
//! Each side counts its rounds in one bit, the wrap counter: true in the first round, and turned
//! whenever a round ends. A descriptor's two flags tell in which round it was made available, and
//! in which it was used. 16 bits name a place, wherever the specification needs one: the highest is
//! the counter.

use virtio_bindings::virtio_ring::{
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_F_WRAP_CTR,
};

/// Flags of a descriptor.
const AVAIL: u16 = 1 << VRING_PACKED_DESC_F_AVAIL;
const USED: u16 = 1 << VRING_PACKED_DESC_F_USED;

/// Of a place's 16 bits.
const WRAP: u16 = 1 << VRING_PACKED_EVENT_F_WRAP_CTR;

/// Where one side of a ring stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Place {
    pub(in super::super) index: u16,
    /// The wrap counter.
    pub(in super::super) wrap: bool,
}

impl Place {
    pub(in super::super) fn from_bits(bits: u16) -> Place {
        Place { index: bits & !WRAP, wrap: bits & WRAP != 0 }
    }

    pub(super) fn bits(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// The place so many descriptors further on, of a ring of `size`: at most that many.
    pub(super) fn after(self, descriptors: u16, size: u16) -> Place {
        let index = u32::from(self.index) + u32::from(descriptors);
        match index.checked_sub(size.into()) {
            None => Place { index: index as u16, ..self },
            Some(index) => Place { index: index as u16, wrap: !self.wrap },
        }
    }

    /// How many descriptors lie between `other` and this place, which is less than two rounds
    /// ahead; negative where it is not ahead.
    pub(super) fn since(self, other: Place, size: u16) -> i32 {
        let round = if self.wrap == other.wrap { 0 } else { i32::from(size) };
        round + i32::from(self.index) - i32::from(other.index)
    }

    /// True of flags by which the guest makes a descriptor available here.
    pub(super) fn is_available(self, flags: u16) -> bool {
        (flags & AVAIL != 0) == self.wrap && (flags & USED != 0) != self.wrap
    }

    /// The flags by which the device says that a descriptor here is used.
    pub(super) fn used_flags(self) -> u16 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Place = Place { index: 0, wrap: true };

    #[test]
    fn places_go_round() {
        assert_eq!(START.after(3, 5), Place { index: 3, wrap: true });
        assert_eq!(START.after(5, 5), Place { index: 0, wrap: false });
        assert_eq!(START.after(4, 5).after(3, 5), Place { index: 2, wrap: false });
        for bits in [0, 0x8000, 0x7fff, 0xffff, 0x8005] {
            assert_eq!(Place::from_bits(bits).bits(), bits);
        }
        for steps in 0..10 {
            for more in 0..=5 {
                let (from, to) =
                    (START.after(steps.min(5), 5).after(steps.saturating_sub(5), 5), 0);
                let to = from.after(to + more, 5);
                assert_eq!(to.since(from, 5), i32::from(more), "{from:?} {to:?}");
            }
        }
    }

    #[test]
    fn flags_tell_the_round() {
        let second = START.after(5, 5);
        for (flags, first_round, second_round) in [
            (AVAIL, true, false),
            (USED, false, true),
            (AVAIL | USED, false, false),
            (0, false, false),
        ] {
            assert_eq!(START.is_available(flags), first_round);
            assert_eq!(second.is_available(flags | 7), second_round);
        }
        assert!(!START.is_available(START.used_flags()));
        assert!(!second.is_available(START.used_flags()), "what is used is not available again");
        assert!(!second.is_available(second.used_flags()));
    }
}
