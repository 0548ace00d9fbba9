//! Encryption: what an encrypted volume stores cannot be read or changed unnoticed without its key.
//!
//! [`SealStore`] is a layer of the store, above all that retry a request: whoever uses it reads and writes
//! plain objects, and sees the sizes of those; below it there are only sealed ones ([`mod@sealed`] says which,
//! and what they look like). The engine, the collector and the doctor know nothing of it.
//!
//! | part | is |
//! | --- | --- |
//! | `secret` | bytes that are wiped, and not shown |
//! | `key` | a volume's key: seals and opens objects |
//! | `wrap` | a volume's key in its slots |
//! | `given` | what a user has to open a slot |
//! | `ring` | the keys that were given to this process, by volume |
//! | `store` | the layer |
//!
//! # Why no nonce is used twice
//!
//! Every object is sealed under a key of its own: HKDF-SHA256 of the volume's key, with the name of the object
//! and a salt of 16 random bytes. The nonce of a segment is its number, and whether it is the last one. So two
//! segments have a key and a nonce in common only if they are the same segment of two sealings of one name
//! that drew the same salt. A name is sealed again only where its first put failed and is tried anew, or where
//! what was put there is gone: a few times. That two of n sealings of one name draw the same 128 bits happens
//! with n²/2¹²⁹. It does not depend on epochs or slots never being used again: after a crash, or in a copy of
//! a pool, the same slot of the same epoch may be written with other bytes, and is sealed under another key.
//! A request that is repeated below this layer carries the same sealed bytes.
//!
//! # What is authenticated
//!
//! * The bytes of a segment, the header of the object, where the segment is, and whether it is the last one:
//!   an object that is cut off, or a segment that is moved, fails.
//! * The name of the object, with the volume's id in it: an object that is moved or swapped fails.
//! * All segments that a request gets are of one sealing.
//!
//! The description of the volume is clear, and signed: it has an HMAC of itself, by a key that is derived from the
//! volume's, which the layer makes when the description is put and verifies whenever it is read and the key is known. That it has to
//! be signed follows from the version of the key's slots, to which the wrapped key is bound: neither can be taken back. Volumes with
//! slots of version 1 are older, and have none. Whether it is a replica is not signed, nor is which state of that is complete: who
//! can change these can have it be what it was before, or nothing at all.
//!
//! Not authenticated are the other objects that are clear: who owned the volume, its children, the slots as a whole. Who
//! can change those can make it unusable, or have it lose what its clones need.
//!
//! What fails is read once more, then it is damage ([`StoreErrorKind::Damaged`]). Not noticed is what no
//! checksum notices: an object that is missing, or the list of all of them being an older one. The engine
//! notices missing objects that something names; a bucket that is as a whole put back to what it was is the
//! volume as it was.
//!
//! What a volume keeps on the disks of its host is sealed by [`crate::cipher`], with keys that are derived from the
//! volume's as well, for other purposes.
//!
//! # Keys
//!
//! A volume's key is 32 random bytes, made with the volume and never changed. Its slots hold it wrapped: with
//! AES-256-GCM by a key of a slot's own, made of a passphrase by Argon2id or of at least 32 bytes of a key file
//! or a command's output by HKDF-SHA256, with a salt of the slot; so its nonce is zero. Number of the slot and
//! id of the key are authenticated. Who has the volume's key has it for good: removing a slot keeps those out
//! who had only what opens it.
//!
//! A clone reads its origin's objects, so it has its origin's key, and slots of its own, copied when it is made.
//!
//! [`mod@sealed`]: crate::format::sealed
//! [`StoreErrorKind::Damaged`]: crate::store::StoreErrorKind::Damaged

mod given;
mod key;
mod ring;
mod secret;
mod store;
mod wrap;

pub use given::{KeyGiven, KeyPlace, Material, ask, has_terminal};
pub use key::{Salt, VolumeKey};
pub use ring::Keyring;
pub use secret::Secret;
pub use store::SealStore;
pub use wrap::{Cost, new_slot, unwrap};
