//! Objects of a volume that people may want to read: its description and its owners. JSON.
//!
//! ```text
//! volume.json  version (1), id, size (at creation, in bytes), block_size, chunk_size (in bytes), features (as
//!              those of the pool), created_at_ms; of a clone ancestors: [{volume, snapshot,
//!              next, epoch}, ...], the oldest first (see `lineage`); of an encrypted one mac, hexadecimal
//! epochs/<n>   host, boot_id, pid, pid_start, claimed_at_ms, nonce; journal, a path, if there is one
//! ```
//!
//! How the text is checked is told in [`pool`](super::pool). The size now is in checkpoint and log.

use super::VolumeId;
use super::chunk::{CHUNK_SIZE_MAX, CHUNK_SIZE_MIN};
use super::codec::{FormatError, FormatResult, Problem};
use super::features::{self, Features};
use super::lineage::{Ancestor, Lineage};
use super::pool::{encode_json, parse_json};
use super::source::SourceObject;
use crate::units::{BlockSize, SECTOR_SIZE, SectorCount};
use serde::{Deserialize, Serialize};

/// The version of a volume's layout.
pub const VOLUME_VERSION: u32 = 1;

/// Largest volume, in bytes: 1 PiB.
pub const VOLUME_SIZE_MAX: u64 = 1 << 50;

/// `volume.json`: what never changes about a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeObject {
    /// Layout version.
    pub version: u32,
    /// The volume.
    pub id: VolumeId,
    /// Size at creation, in bytes.
    pub size: u64,
    /// Logical block size, in bytes.
    pub block_size: u32,
    /// Payload of a full chunk, in bytes.
    pub chunk_size: u64,
    /// Feature bits.
    pub features: Features,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// Where a clone comes from: the oldest first, its origin last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<Ancestor>,
    /// The image that it began as, unless it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceObject>,
    /// Of an encrypted volume: what only who has its key can make of [`VolumeObject::signed`], in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// Digits of a [`VolumeObject::mac`].
pub const MAC_DIGITS: usize = 64;

impl VolumeObject {
    /// Parses a volume's description and checks every value.
    pub fn parse(bytes: &[u8]) -> FormatResult<VolumeObject> {
        let newer = |e| features::newer("volume", bytes).unwrap_or(e);
        let volume: VolumeObject = parse_json("volume", bytes).map_err(newer)?;
        let error = |field, problem| FormatError { object: "volume", field, offset: 0, problem };
        if volume.version != VOLUME_VERSION {
            return Err(error("version", Problem::Unsupported(volume.version.to_string())));
        }
        let bad = |field, value: u64| error(field, Problem::Value(value.to_string()));
        let Some(block) = BlockSize::from_bytes(volume.block_size) else {
            return Err(bad("block_size", volume.block_size.into()));
        };
        if !is_valid_size(volume.size, block) {
            return Err(bad("size", volume.size));
        }
        if !is_valid_chunk_size(volume.chunk_size) {
            return Err(bad("chunk_size", volume.chunk_size));
        }
        let is_clone = volume.features.incompat & Features::CLONE != 0;
        if is_clone == volume.ancestors.is_empty() || !Lineage::is_valid(&volume.ancestors) {
            let count = volume.ancestors.len();
            return Err(error("ancestors", Problem::Value(format!("{count}, or out of order"))));
        }
        let has_source = volume.features.incompat & Features::SOURCE != 0;
        if has_source != volume.source.is_some() {
            return Err(error("source", Problem::Value("not as the features say".into())));
        }
        volume.source.as_ref().map(SourceObject::check).transpose()?;
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let is_mac = |mac: &String| mac.len() == MAC_DIGITS && mac.bytes().all(is_digit);
        let is_signed = volume.features.incompat & Features::SIGNED != 0;
        if is_signed != volume.mac.is_some() || !volume.mac.iter().all(is_mac) {
            return Err(error("mac", Problem::Value("not as the features say".into())));
        }
        Ok(volume)
    }

    /// Whose objects its map may name.
    pub fn lineage(&self) -> Lineage {
        Lineage::new(self.id, self.ancestors.clone())
    }

    /// The volume and the snapshot that a clone was made of.
    pub fn origin(&self) -> Option<&Ancestor> {
        self.ancestors.last()
    }

    /// Whether most of its objects are sealed, so that nobody can use it without its key.
    pub fn is_encrypted(&self) -> bool {
        self.features.incompat & Features::ENCRYPTED != 0
    }

    /// What its `mac` is of: the object without it. Whether it is a replica is left out: who ships it need not have its key.
    pub fn signed(&self) -> Vec<u8> {
        self.signed_with(0)
    }

    /// The same of the mirrored volume that a replica may be of, as whose it was signed then.
    pub fn signed_mirrored(&self) -> Option<Vec<u8>> {
        self.is_replica().then(|| self.signed_with(Features::MIRRORED))
    }

    fn signed_with(&self, more: u64) -> Vec<u8> {
        let incompat = self.features.incompat & !Features::REPLICA | more;
        let features = Features { incompat, ..self.features };
        encode_json(&VolumeObject { mac: None, features, ..self.clone() })
    }

    /// Whether it is in two stores of its pool.
    pub fn is_mirrored(&self) -> bool {
        self.features.incompat & Features::MIRRORED != 0
    }

    /// Whether it is shipped from another pool, or was.
    pub fn is_replica(&self) -> bool {
        self.features.incompat & Features::REPLICA != 0
    }

    /// Size at creation.
    pub fn sectors(&self) -> SectorCount {
        SectorCount(self.size / SECTOR_SIZE)
    }

    /// Logical block size.
    pub fn block(&self) -> BlockSize {
        BlockSize::from_bytes(self.block_size).unwrap_or_default()
    }
}

/// True for a size (in bytes) a volume may have.
pub fn is_valid_size(size: u64, block: BlockSize) -> bool {
    size > 0 && size <= VOLUME_SIZE_MAX && size.is_multiple_of(u64::from(block.bytes()))
}

/// True for a chunk size (in bytes) a volume may have: a power of two, 256 KiB to 64 MiB.
pub fn is_valid_chunk_size(size: u64) -> bool {
    size.is_power_of_two() && (CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&size)
}

/// `epochs/<n>`: who claimed an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochObject {
    /// Host name.
    pub host: String,
    /// Boot of that host, so that a process id is not taken for one of another boot.
    pub boot_id: String,
    /// Process id.
    pub pid: u32,
    /// When the process started, in clock ticks since boot.
    pub pid_start: u64,
    /// When the epoch was claimed, in milliseconds since 1970.
    pub claimed_at_ms: u64,
    /// Random bytes in hexadecimal: tells two claims of one process apart.
    pub nonce: String,
    /// Where on that host the owner keeps what it acknowledged as durable before the store has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<String>,
}

impl EpochObject {
    /// Parses an epoch's object.
    pub fn parse(bytes: &[u8]) -> FormatResult<EpochObject> {
        parse_json("epoch", bytes)
    }

    /// The owner in words.
    pub fn owner(&self) -> String {
        format!("process {} on host {}", self.pid, self.host)
    }
}
