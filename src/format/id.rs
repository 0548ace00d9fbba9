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
/// The byte that says which kind of an id of version 8 it is: zero for scheduled ones.
const KIND_AT: usize = 7;
/// Of one that expires.
const EXPIRING: u8 = 1;

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
        self.0.get_version_num() == 8 && self.bytes()[KIND_AT] == 0
    }

    /// The id of a snapshot that its volume's owner deletes at that time, in milliseconds since 1970.
    pub fn expiring(at_ms: u64, random: [u8; NUMBER_LEN]) -> SnapshotId {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&at_ms.min((1 << 48) - 1).to_be_bytes()[2..]);
        bytes[KIND_AT] = EXPIRING;
        bytes[16 - NUMBER_LEN..].copy_from_slice(&random);
        SnapshotId(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }

    /// When it is deleted, if it was made by [`SnapshotId::expiring`].
    pub fn expires_at_ms(self) -> Option<u64> {
        let bytes = self.bytes();
        let expires = self.0.get_version_num() == 8 && bytes[KIND_AT] == EXPIRING;
        expires.then(|| bytes[..6].iter().fold(0, |ms, byte| ms << 8 | u64::from(*byte)))
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
        assert!(ids.iter().all(|id| id.expires_at_ms().is_none()));
        let expires = SnapshotId::expiring(1_795_230_245_999, [0xff; 7]);
        assert_eq!(expires.expires_at_ms(), Some(1_795_230_245_999));
        assert!(!expires.is_scheduled());
        assert_eq!(SnapshotId::expiring(u64::MAX, [0; 7]).expires_at_ms(), Some((1 << 48) - 1));
        assert_eq!(SnapshotId::from_random([1; 16]).expires_at_ms(), None);
    }
}
