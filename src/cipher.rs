//! What seals the bytes that an encrypted volume leaves outside of its process, on its host: its journal, its mirror,
//! and its frames in a cache. Pure, but for the salts.
//!
//! Contract: what was sealed opens by the same volume's key, in the same place, unchanged, or not at all.
//!
//! # Why no nonce is used twice
//!
//! **Journal.** Whoever writes a ring does so in a [`Run`]: a salt of 32 random bytes, drawn when it begins to
//! write and never kept for another one, and a key of its own, HKDF-SHA256 of the volume's key with the ids of
//! volume and ring and the salt. The nonce of a batch, or of the header of a segment, is its number in the ring and
//! which of both it is; a run never goes back in either. So a ring may be written over and over, by one process
//! after the other, and the number of a batch that was cut off is used again: under another key. That two of n runs
//! draw the same 256 bits happens with n²/2²⁵⁷. The salt is written beside what it seals: there is no moment at
//! which one of both is lost.
//!
//! **Mirror.** As the journal: a run for each owner's mirror. The nonce of a change is the slot of the log that it
//! goes to, and how many came before it there; slots and changes only follow each other.
//!
//! **Cache.** A frame is sealed by AES-256-GCM-SIV under a key for its name, the claim of its epoch and the slot that
//! it is put in. For one name and claim there are no other bytes ([`crate::cache::disk::FrameKey`]), so one key
//! seals one frame. Were it ever otherwise, this cipher would tell that two frames differ, and no more.
//!
//! # What is authenticated
//!
//! All bytes, and where they lie: whose volume and ring, the whole header of a batch or segment and its offset on
//! the disk; the header of a mirror's segment; the name of a frame and its slot in the cache. Not noticed is a disk that is as a whole put back to
//! what it was.

use crate::mutant::{self, Mutant};
use aws_lc_rs::aead::{
    AES_256_GCM, AES_256_GCM_SIV, Aad, Algorithm, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use aws_lc_rs::hkdf::Prk;
use rand::Rng;
use rand::rngs::StdRng;
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Bytes of a tag.
pub const TAG_LEN: usize = 16;
/// Bytes of the salt of a run.
pub const RUN_SALT_LEN: usize = 32;

/// What keys of runs are made for.
const RUN: &[u8] = b"objblk journal run 1";
/// What keys of mirrors are made for.
const MIRROR: &[u8] = b"objblk mirror run 1";
/// What keys of frames are made for.
const FRAME: &[u8] = b"objblk cached frame 1";

/// What shows that bytes were sealed.
pub type Tag = [u8; TAG_LEN];
/// What tells a run from all others.
pub type RunSalt = [u8; RUN_SALT_LEN];

/// Makes keys for what a volume keeps on local disks.
pub struct LocalKey {
    volume: [u8; 16],
    derives: Prk,
    salts: Mutex<StdRng>,
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LocalKey")
    }
}

/// What one writer of a ring seals with.
pub struct Run {
    salt: RunSalt,
    cipher: LessSafeKey,
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Run")
    }
}

/// A part of a ring or mirror that is sealed by itself, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A batch.
    Batch(u64),
    /// The header of a segment.
    Segment(u64),
    /// A change in a mirror: its slot, and its number there.
    Change(u64, u32),
}

impl Piece {
    fn nonce(self) -> Nonce {
        let (number, rest) = match self {
            Piece::Batch(_) if mutant::on(Mutant::BatchNonceStands) => (0, 0),
            Piece::Batch(number) => (number, 0),
            Piece::Segment(number) => (number, 1),
            // Of a key for mirrors, so that it cannot meet the others.
            Piece::Change(slot, number) => (slot, number),
        };
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        nonce[8..].copy_from_slice(&rest.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

impl LocalKey {
    /// Of the volume with this id, whose key `derives`; salts come from `random`, which nobody can foresee.
    pub fn new(volume: [u8; 16], derives: Prk, random: StdRng) -> LocalKey {
        LocalKey { volume, derives, salts: Mutex::new(random) }
    }

    /// The volume's id.
    pub fn volume(&self) -> [u8; 16] {
        self.volume
    }

    fn key(&self, info: &[&[u8]], algorithm: &'static Algorithm) -> LessSafeKey {
        let derived = self.derives.expand(info, algorithm);
        LessSafeKey::new(UnboundKey::from(derived.expect("32 bytes can always be derived")))
    }

    fn salt(&self) -> RunSalt {
        let salt = self.salts.lock().unwrap_or_else(PoisonError::into_inner).random();
        if mutant::on(Mutant::RunSaltReused) { [0; RUN_SALT_LEN] } else { salt }
    }

    /// A new run of the volume's ring with this id.
    pub fn begin_run(&self, ring: [u8; 16]) -> Run {
        self.run(ring, self.salt())
    }

    /// A new run for a mirror of the volume.
    pub fn begin_mirror(&self) -> Run {
        self.mirror(self.salt())
    }

    /// The run of a mirror with this salt.
    pub fn mirror(&self, salt: RunSalt) -> Run {
        let cipher = self.key(&[MIRROR, &self.volume, &salt], &AES_256_GCM);
        Run { salt, cipher }
    }

    /// The run with this salt.
    pub fn run(&self, ring: [u8; 16], salt: RunSalt) -> Run {
        // All of fixed lengths, so that none can be taken for another.
        let cipher = self.key(&[RUN, &self.volume, &ring, &salt], &AES_256_GCM);
        Run { salt, cipher }
    }

    fn frame(&self, place: &[u8]) -> LessSafeKey {
        let place = if mutant::on(Mutant::CachedNotBound) { b"" } else { place };
        self.key(&[FRAME, place], &AES_256_GCM_SIV)
    }

    /// Seals a frame for its place in a cache, which says what it is and where.
    pub fn seal_frame(&self, place: &[u8], frame: &mut [u8]) -> Tag {
        let (cipher, nonce) = (self.frame(place), Nonce::assume_unique_for_key([0; NONCE_LEN]));
        let tag = cipher.seal_in_place_separate_tag(nonce, Aad::empty(), frame);
        exact(tag.expect("a frame is short enough to be sealed").as_ref())
    }

    /// Opens it again. False: it was not sealed by this key for this place, or was changed; what is in `frame` then
    /// is of no use.
    pub fn open_frame(&self, place: &[u8], frame: &mut [u8], tag: &Tag) -> bool {
        let (cipher, nonce) = (self.frame(place), Nonce::assume_unique_for_key([0; NONCE_LEN]));
        let opened = cipher.open_in_place_separate_tag(nonce, Aad::empty(), tag, frame).is_ok();
        opened || mutant::on(Mutant::CachedTagIgnored)
    }
}

impl Run {
    /// Its salt.
    pub fn salt(&self) -> RunSalt {
        self.salt
    }

    fn bound(header: &[u8]) -> Aad<&[u8]> {
        Aad::from(if mutant::on(Mutant::BatchHeaderNotBound) { b"" } else { header })
    }

    /// Seals what is in `body`, and binds `header` to it. Once for each piece.
    pub fn seal(&self, piece: Piece, header: &[u8], body: &mut [u8]) -> Tag {
        let sealed =
            self.cipher.seal_in_place_separate_tag(piece.nonce(), Run::bound(header), body);
        exact(sealed.expect("a batch is short enough to be sealed").as_ref())
    }

    /// Opens it again. False: it was not sealed by this run as this piece with this header, or was changed; what is
    /// in `body` then is of no use.
    pub fn open(&self, piece: Piece, header: &[u8], body: &mut [u8], tag: &Tag) -> bool {
        let (nonce, bound) = (piece.nonce(), Run::bound(header));
        let opened = self.cipher.open_in_place_separate_tag(nonce, bound, tag, body).is_ok();
        opened || mutant::on(Mutant::BatchTagIgnored)
    }
}

fn exact(tag: &[u8]) -> Tag {
    let mut exact = [0; TAG_LEN];
    exact.copy_from_slice(tag);
    exact
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::hkdf::HKDF_SHA256;
    use rand::SeedableRng;

    fn key(bytes: u8, volume: u8) -> LocalKey {
        let derives = Prk::new_less_safe(HKDF_SHA256, &[bytes; 32]);
        LocalKey::new([volume; 16], derives, StdRng::seed_from_u64(5))
    }

    /// What must not open, or be the same twice.
    fn flaws() -> Vec<&'static str> {
        let (ours, other) = (key(1, 2), key(1, 3));
        let run = ours.begin_run([4; 16]);
        let mut body = *b"a change of the volume";
        let tag = run.seal(Piece::Batch(7), b"header", &mut body);
        let opens = |run: &Run, piece, header: &[u8], tag: &Tag| {
            run.open(piece, header, &mut body.clone(), tag)
        };
        let salt = run.salt();
        let mut changed = tag;
        changed[3] ^= 1;
        let mut frame = *b"a frame";
        let mark = ours.seal_frame(b"one", &mut frame);
        let gives =
            |key: &LocalKey, place: &[u8], tag| key.open_frame(place, &mut frame.clone(), tag);
        let mut damaged = mark;
        damaged[0] ^= 1;
        let mut second = *b"a change of the volume";
        run.seal(Piece::Batch(8), b"header", &mut second);
        let wrong = [
            ("right", !opens(&ours.run([4; 16], salt), Piece::Batch(7), b"header", &tag)),
            ("header", opens(&run, Piece::Batch(7), b"Header", &tag)),
            ("changed", opens(&run, Piece::Batch(7), b"header", &changed)),
            ("number", opens(&run, Piece::Batch(8), b"header", &tag) || second == body),
            ("kind", opens(&run, Piece::Segment(7), b"header", &tag)),
            ("ring", opens(&ours.run([5; 16], salt), Piece::Batch(7), b"header", &tag)),
            ("volume", opens(&other.run([4; 16], salt), Piece::Batch(7), b"header", &tag)),
            ("salt", ours.begin_run([4; 16]).salt() == salt),
            ("frame", !gives(&other, b"one", &mark)),
            ("moved", gives(&ours, b"two", &mark)),
            ("key", gives(&key(9, 2), b"one", &mark)),
            ("damaged", gives(&ours, b"one", &damaged)),
            ("plain", body.starts_with(b"a change") || frame.starts_with(b"a frame")),
        ];
        wrong.into_iter().filter(|(_, wrong)| *wrong).map(|(what, _)| what).collect()
    }

    /// Each of these mistakes shows in what must not be.
    #[test]
    fn the_checks_notice_every_mistake() {
        assert_eq!(flaws(), Vec::<&str>::new());
        for (mistake, shows) in [
            (Mutant::RunSaltReused, "salt"),
            (Mutant::BatchNonceStands, "number"),
            (Mutant::BatchHeaderNotBound, "header"),
            (Mutant::BatchTagIgnored, "changed"),
            (Mutant::CachedNotBound, "moved"),
            (Mutant::CachedTagIgnored, "damaged"),
        ] {
            let found = mutant::with(Some(mistake), flaws);
            assert!(found.contains(&shows), "{mistake:?}: {found:?}");
        }
    }

    #[test]
    fn every_length_opens_again_and_every_bit_counts() {
        let (key, mut rng) = (key(1, 2), StdRng::seed_from_u64(1));
        let run = key.begin_run([4; 16]);
        for (number, len) in [0usize, 1, 511, 4096, 70_000].into_iter().enumerate() {
            let piece = Piece::Batch(number as u64);
            let plain: Vec<u8> = (0..len).map(|_| rng.random()).collect();
            let (mut body, mut frame) = (plain.clone(), plain.clone());
            let (tag, mark) = (run.seal(piece, b"h", &mut body), key.seal_frame(b"p", &mut frame));
            for bit in (0..len * 8).step_by(len / 8 + 1) {
                let (mut one, mut two) = (body.clone(), frame.clone());
                one[bit / 8] ^= 1 << (bit % 8);
                two[bit / 8] ^= 1 << (bit % 8);
                assert!(!run.open(piece, b"h", &mut one, &tag), "{bit} of {len}");
                assert!(!key.open_frame(b"p", &mut two, &mark), "{bit} of {len}");
            }
            assert!(run.open(piece, b"h", &mut body, &tag) && body == plain, "{len}");
            assert!(key.open_frame(b"p", &mut frame, &mark) && frame == plain, "{len}");
        }
    }
}
