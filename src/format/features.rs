//! Feature bits of pools and volumes.

use serde::{Deserialize, Serialize};

/// What an objblk must know to use an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Features {
    /// May be ignored.
    pub compat: u64,
    /// Unknown bits forbid writing.
    pub ro_compat: u64,
    /// Unknown bits forbid any use.
    pub incompat: u64,
}

/// What an object's features allow this objblk to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write.
    Full,
    /// Read only: it has ro-compat features that are not known here.
    ReadOnly,
    /// Nothing: it has incompat features that are not known here.
    None,
}

impl Features {
    /// Incompat bit: the volume is a clone, whose map names objects of other volumes.
    pub const CLONE: u64 = 1;

    /// Incompat bit: the volume began as an image outside the pool, and may lack parts of it.
    pub const SOURCE: u64 = 2;

    /// The features this objblk knows.
    pub const KNOWN: Features =
        Features { compat: 0, ro_compat: 0, incompat: Features::CLONE | Features::SOURCE };

    /// What may be done with an object that has these features.
    pub fn access(&self) -> Access {
        if self.incompat & !Features::KNOWN.incompat != 0 {
            Access::None
        } else if self.ro_compat & !Features::KNOWN.ro_compat != 0 {
            Access::ReadOnly
        } else {
            Access::Full
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_decide() {
        let none = Features::default();
        assert_eq!(none.access(), Access::Full);
        assert_eq!(Features { compat: 1, ..none }.access(), Access::Full);
        assert_eq!(Features { ro_compat: 1, ..none }.access(), Access::ReadOnly);
        assert_eq!(Features { ro_compat: 1, incompat: 1 << 63, ..none }.access(), Access::None);
    }
}
