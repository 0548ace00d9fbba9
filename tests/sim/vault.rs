//! Worlds whose volume is encrypted, as are its clones: what travels is sealed, and what is written to journals.
//! The world looks into it, so that everybody who judges sees plain objects, and says when a key and a nonce are
//! used for two different segments or batches. What is written to a journal it opens by the words of the format
//! alone, not by the engine's code: a batch that is sealed otherwise is noticed.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk};
use bytes::Bytes;
use futures::FutureExt;
use objblk::cipher::{LocalKey, Tag};
use objblk::format::VolumeId;
use objblk::format::keys;
use objblk::format::sealed::{HEADER_LEN, SALT_LEN, is_sealed, sealed_len};
use objblk::journal::ring::{BATCH_HEADER_LEN, BatchHeader, SegmentHeader};
use objblk::seal::{Keyring, SealStore, VolumeKey};
use objblk::store::memory::MemoryStore;
use objblk::store::{GetRange, Key, Store, StoreResult};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const KEY: [u8; 32] = *b"the key of a volume in the world";

/// What tells a key, and a nonce.
type Used = (Vec<u8>, [u8; 12]);

#[derive(Debug)]
pub struct Vault {
    volume: VolumeId,
    /// Its family, which has one key.
    family: Mutex<BTreeSet<VolumeId>>,
    key: VolumeKey,
    /// What is stored, as it came.
    sealed: MemoryStore,
    /// What was sealed, by name and salt.
    seen: Mutex<HashMap<(Key, [u8; SALT_LEN]), Bytes>>,
    /// What was sealed for journals and mirrors, by what tells their keys, and nonce: header and body.
    runs: Mutex<HashMap<Used, Vec<u8>>>,
}

impl Vault {
    pub fn new(volume: VolumeId) -> Vault {
        let (sealed, seen, runs) = (MemoryStore::new(), Mutex::default(), Mutex::default());
        let family = Mutex::new(BTreeSet::from([volume]));
        Vault { volume, family, key: VolumeKey::new(KEY), sealed, seen, runs }
    }

    /// A clone of one of the family.
    pub fn adopt(&self, clone: VolumeId) {
        self.family.lock().expect("no holder of this lock panics").insert(clone);
    }

    fn family(&self) -> BTreeSet<VolumeId> {
        self.family.lock().expect("no holder of this lock panics").clone()
    }

    /// What seals a journal of the volume, for those who work without an engine.
    pub fn local_key(&self, seed: u64) -> Arc<LocalKey> {
        let random = StdRng::seed_from_u64(seed);
        Arc::new(LocalKey::new(self.volume.bytes(), Prk::new_less_safe(HKDF_SHA256, &KEY), random))
    }

    /// Something is about to be written to a journal, at this offset. Err: what must not be.
    pub fn journals(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let at = |what: &str| format!("what is written to a journal at {offset} {what}");
        let part = match bytes.get(..8) {
            Some(b"OBJBLKBA") => Part::batch(bytes),
            Some(b"OBJBLKSG") => Part::segment(bytes),
            // A superblock is clear.
            _ => return Ok(()),
        };
        let part = part.ok_or_else(|| at("is not sealed"))?;
        self.is_new(&part).map_err(at)?;
        let info = [&b"objblk journal run 1"[..], &self.volume.bytes(), &part.ring, &part.salt];
        match part.opens(&info, &[&part.header[..], &offset.to_le_bytes()].concat()) {
            true => Ok(()),
            false => Err(at("is not sealed as the format says")),
        }
    }

    fn is_new(&self, part: &Part) -> Result<(), &'static str> {
        let sealed = [&part.header[..], &part.body].concat();
        let mut runs = self.runs.lock().expect("no holder of this lock panics");
        match *runs.entry((part.key(), part.nonce)).or_insert_with(|| sealed.clone()) == sealed {
            true => Ok(()),
            false => Err("is sealed with a key and a nonce that were used before"),
        }
    }

    /// What a dead owner has left in its mirror. Err: what must not be there.
    pub fn mirrors(&self, root: &Path) -> Result<(), String> {
        for folder in entries(root).into_iter().filter(|path| path.is_dir()) {
            for path in entries(&folder) {
                let bytes = std::fs::read(&path).expect("a mirror is readable");
                let at = |what: &str| format!("{} {what}", path.display());
                if bytes.is_empty() || path.extension().is_some() {
                    continue;
                }
                let parts = Part::changes(&bytes).ok_or_else(|| at("is not sealed"))?;
                for part in parts {
                    self.is_new(&part).map_err(at)?;
                    let info = [&b"objblk mirror run 1"[..], &self.volume.bytes(), &part.salt];
                    if !part.opens(&info, &part.header) {
                        return Err(at("is not sealed as the format says"));
                    }
                }
            }
        }
        Ok(())
    }

    /// A process's way to the store: it has the key.
    pub fn over(&self, store: Arc<dyn Store>, seed: u64) -> Arc<dyn Store> {
        let ring = Arc::new(Keyring::default());
        ring.add(self.family(), VolumeKey::new(KEY));
        Arc::new(SealStore::new(store, ring, StdRng::seed_from_u64(seed)))
    }

    pub fn seals(&self, key: &Key) -> bool {
        is_sealed(key) && keys::parse_volume(key).is_some_and(|id| self.family().contains(&id))
    }

    /// The object that is put. Err: what must not be put.
    pub fn open(&self, key: &Key, body: &Bytes) -> Result<Bytes, String> {
        let salt = body.get(HEADER_LEN..HEADER_LEN + SALT_LEN);
        let salt = salt.and_then(|salt| salt.try_into().ok());
        let salt = salt.ok_or_else(|| format!("{key} is put and is not sealed"))?;
        let mut seen = self.seen.lock().expect("no holder of this lock panics");
        let before = seen.entry((key.clone(), salt)).or_insert_with(|| body.clone());
        if before != body {
            return Err(format!("{key} is sealed twice with one key and one nonce"));
        }
        self.key.open(key, body).map_err(|e| format!("{key} is put and does not open: {e}"))
    }

    /// An object was stored as it came.
    pub fn keep(&self, key: &Key, body: &Bytes) {
        let kept = self.sealed.put(key, body.clone()).now_or_never();
        kept.expect("a memory store answers at once").expect("it takes everything");
    }

    /// A part of an object that is there; one that the world itself has put is sealed now.
    pub fn give(&self, key: &Key, plain: &Bytes, range: GetRange) -> StoreResult<Bytes> {
        let now = "a memory store answers at once";
        if self.sealed.head(key).now_or_never().expect(now).is_err() {
            self.keep(key, &self.key.seal(key, plain, [1; SALT_LEN]));
        }
        self.sealed.get(key, range).now_or_never().expect(now)
    }

    /// The size of an object as it is stored.
    pub fn size(&self, key: &Key, plain: u64) -> u64 {
        if self.seals(key) { sealed_len(plain) } else { plain }
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let found = std::fs::read_dir(folder).into_iter().flatten();
    found.map(|entry| entry.expect("a mirror is readable").path()).collect()
}

/// A sealed part of a journal or mirror.
struct Part {
    ring: Vec<u8>,
    salt: Vec<u8>,
    nonce: [u8; 12],
    /// What is authenticated besides, but for the offset.
    header: Vec<u8>,
    body: Vec<u8>,
    tag: Tag,
}

fn nonce(number: u64, kind: u8) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    nonce[8] = kind;
    nonce
}

impl Part {
    fn batch(bytes: &[u8]) -> Option<Part> {
        let (header, entries) = BatchHeader::parse(bytes).ok()?;
        let (seal, _) = header.seal?;
        Some(Part {
            ring: bytes[16..32].to_vec(),
            salt: seal.salt.to_vec(),
            nonce: nonce(header.number.0, 0),
            header: [&bytes[..BATCH_HEADER_LEN - 4], &bytes[BATCH_HEADER_LEN..136]].concat(),
            body: entries.to_vec(),
            tag: seal.tag,
        })
    }

    fn segment(bytes: &[u8]) -> Option<Part> {
        let header = SegmentHeader::parse(bytes).ok()?;
        let seal = header.seal?;
        Some(Part {
            ring: bytes[16..32].to_vec(),
            salt: seal.salt.to_vec(),
            nonce: nonce(header.number.0, 1),
            header: bytes[..96].to_vec(),
            body: Vec::new(),
            tag: seal.tag,
        })
    }

    /// What tells its key from all others: a mirror is of no ring.
    fn key(&self) -> Vec<u8> {
        [&self.ring[..], &self.salt].concat()
    }

    /// The whole changes of a segment of a mirror.
    fn changes(bytes: &[u8]) -> Option<Vec<Part>> {
        let header = bytes.get(..96).filter(|header| header.starts_with(b"OBJBLKMS\x05"))?;
        let (slot, salt) = (u64::from_le_bytes(header[40..48].try_into().ok()?), &header[60..92]);
        let (mut parts, mut rest) = (Vec::new(), &bytes[96..]);
        // Up to the word behind the last one, or to the entry that says that the next segment is there.
        while !matches!(rest.first_chunk::<8>()?, [0 | 5, ..]) {
            let (head, behind) = rest.split_at_checked(32)?;
            let len = u32::from_le_bytes(head[4..8].try_into().ok()?) as usize;
            let (body, more) = behind.split_at_checked(len)?;
            let mut nonce = nonce(slot, 0);
            nonce[8..].copy_from_slice(&(parts.len() as u32).to_le_bytes());
            parts.push(Part {
                ring: Vec::new(),
                salt: salt.to_vec(),
                nonce,
                header: header.to_vec(),
                body: body.to_vec(),
                tag: head[8..24].try_into().ok()?,
            });
            rest = more;
        }
        Some(parts)
    }

    fn opens(&self, info: &[&[u8]], header: &[u8]) -> bool {
        let derives = Prk::new_less_safe(HKDF_SHA256, &KEY);
        let key = derives.expand(info, &AES_256_GCM).expect("32 bytes can be derived");
        let cipher = LessSafeKey::new(UnboundKey::from(key));
        let mut plain = vec![0; self.body.len()];
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        let aad = Aad::from(header);
        cipher.open_separate_gather(nonce, aad, &self.body, &self.tag, &mut plain).is_ok()
    }
}
