use crate::units::Epoch;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(uuid::Uuid);

        impl $name {
            /// The id of these 16 bytes.
            pub fn from_bytes(bytes: [u8; 16]) -> $name {
                $name(uuid::Uuid::from_bytes(bytes))
            }

            /// A random id (UUID version 4) from 16 random bytes.
            pub fn from_random(bytes: [u8; 16]) -> $name {
                $name(uuid::Builder::from_random_bytes(bytes).into_uuid())
            }

            /// Its bytes.
            pub fn bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<$name, uuid::Error> {
                text.parse().map($name)
            }
        }
    };
}

id! {
    /// Identity of a volume: a random UUID, never reused.
    VolumeId
}

id! {
    /// Identity of a snapshot: a random UUID, never reused.
    SnapshotId
}

/// Bytes of a number that a scheduled id has.
const NUMBER_LEN: usize = 7;

impl SnapshotId {
    /// The id of the snapshot `number` that the owner of `epoch` makes by its schedule: a UUID of version 8,
    /// so that no snapshot that somebody asked for is taken for one of these.
    pub fn scheduled(epoch: Epoch, number: u64) -> SnapshotId {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&epoch.0.to_be_bytes()[2..]);
        bytes[16 - NUMBER_LEN..].copy_from_slice(&number.to_be_bytes()[8 - NUMBER_LEN..]);
        SnapshotId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// Whether it was made by [`SnapshotId::scheduled`].
    pub fn is_scheduled(self) -> bool {
        self.0.get_version_num() == 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheduled_snapshots_are_told_apart() {
        let ids = [(1, 0), (1, 1), (2, 0), (1 << 40, 1 << 50)];
        let ids = ids.map(|(epoch, number)| SnapshotId::scheduled(Epoch(epoch), number));
        assert!(ids.iter().all(|id| id.is_scheduled()));
        assert!((1..ids.len()).all(|at| !ids[..at].contains(&ids[at])));
        assert!(!SnapshotId::from_random([0xff; 16]).is_scheduled());
    }
}
