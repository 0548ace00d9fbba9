//! Objects of the pool: its description, names, imports under way, the trash and tombstones. JSON.
//!
//! ```text
//! objblk.json   kind ("objblk-pool"), version (1), id, features {compat, ro_compat, incompat: bits, as
//!               numbers}, fencing (true or false), created_at_ms
//! names/<name>  volume: the id
//! imports/<name>  volume: the id, source, fingerprint (may be missing), begun_at_ms
//! trash/<id>-<number>  version (1), step (deleted, restored, purging, removing), name (or null),
//!               deleted_at_ms, expires_at_ms, cut_off
//! trash/<id>    name: the one it had, deleted_at_ms
//! ```
//!
//! Every JSON object of a pool or volume is an object at the top, at most 64 KiB long, whose last member is
//! `crc32c`. It ends with exactly `,\n  "crc32c": "` + eight lower-case digits + `"\n}\n`: the crc32c of all that
//! is before this, and `\n}\n`. A member that is not known is refused.

use super::VolumeId;
use super::codec::{FormatError, FormatResult, Problem};
use super::features::{self, Features};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of the pool's layout.
pub const POOL_VERSION: u32 = 1;

/// `objblk.json`: what makes a store a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolObject {
    /// Always `objblk-pool`.
    pub kind: PoolKind,
    /// Layout version.
    pub version: u32,
    /// A random UUID.
    pub id: VolumeId,
    /// Feature bits.
    pub features: Features,
    /// The store was found to honour create-if-absent. False: made with `--unsafe-no-fencing`.
    pub fencing: bool,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: u64,
}

/// The `kind` of a [`PoolObject`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolKind {
    /// A pool.
    #[serde(rename = "objblk-pool")]
    Pool,
}

/// `names/<name>`: which volume a name means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameObject {
    /// The volume.
    pub volume: VolumeId,
}

/// `trash/<id>`: a volume whose objects are being removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TombstoneObject {
    /// The name it had.
    pub name: String,
    /// When it was deleted, in milliseconds since 1970.
    pub deleted_at_ms: u64,
}

/// `imports/<name>`: an import that was begun and is not finished. Its volume gets the name when it is
/// complete, and has none before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportObject {
    /// The volume that is being filled.
    pub volume: VolumeId,
    /// What it is filled from, for people.
    pub source: String,
    /// What tells that source from another one; without it the import cannot be resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// When it was begun, in milliseconds since 1970.
    pub begun_at_ms: u64,
}

/// The version of [`TrashEntry`].
pub const TRASH_VERSION: u32 = 1;

/// `trash/<id>-<number>`: one step of a volume's way through the trash. The one with the highest number
/// counts; a step is decided by who creates the next number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrashEntry {
    /// Version of this object.
    pub version: u32,
    /// How far it is.
    pub step: TrashStep,
    /// The name the volume had; what never had one has none.
    pub name: Option<String>,
    /// When it was deleted, in milliseconds since 1970.
    pub deleted_at_ms: u64,
    /// Until when it was to be kept, in milliseconds since 1970.
    pub expires_at_ms: u64,
    /// An owner that may have been alive was cut off, and may not have noticed yet.
    pub cut_off: bool,
}

/// How far a volume in the trash is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrashStep {
    /// It was deleted. Where it has a name all the same, it is in use, and this means nothing.
    Deleted,
    /// It was given a name again. Where it has none all the same, it has lost it.
    Restored,
    /// Somebody wants to remove it, and looks whether anything needs it. No name is given to it and no
    /// clone made of it from now on.
    Purging,
    /// Its objects are being removed; nothing brings it back.
    Removing,
}

/// Longest JSON object that is parsed, in bytes.
pub const JSON_MAX: usize = 64 << 10;

/// The checksum that ends a JSON object, a crc32c of the object without it in eight digits.
const CRC_FIELD: &str = ",\n  \"crc32c\": \"";
const CRC_END: &str = "\"\n}\n";
const CRC_DIGITS: usize = 8;
/// What a JSON object ends with that has no checksum yet.
const OPEN_END: &str = "\n}\n";

/// Verifies the checksum and returns the object without it.
pub fn check_json<'a>(object: &'static str, bytes: &'a [u8]) -> FormatResult<&'a [u8]> {
    let error = |offset, problem| FormatError { object, field: "crc32c", offset, problem };
    let sealed = bytes.strip_suffix(CRC_END.as_bytes());
    let digits = sealed.and_then(|bytes| bytes.split_last_chunk::<CRC_DIGITS>());
    let parts = digits.and_then(|(body, crc)| {
        let body = body.strip_suffix(CRC_FIELD.as_bytes())?;
        // Of the digits there is one way to write them, so that no bit of them may be another one.
        if !crc.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        Some((body, u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?))
    });
    let Some((body, crc)) = parts else {
        return Err(error(bytes.len(), Problem::Value("no checksum ends the object".into())));
    };
    if crc32c::crc32c_append(crc32c::crc32c(body), OPEN_END.as_bytes()) != crc {
        return Err(error(body.len(), Problem::Checksum));
    }
    Ok(body)
}

/// Parses one of the JSON objects; `object` is its kind for the error.
pub fn parse_json<T: DeserializeOwned>(object: &'static str, bytes: &[u8]) -> FormatResult<T> {
    let error = |field, offset, problem| FormatError { object, field, offset, problem };
    if bytes.len() > JSON_MAX {
        let problem = Problem::Value(format!("{} bytes are too many", bytes.len()));
        return Err(error("length", JSON_MAX, problem));
    }
    let body = check_json(object, bytes)?;
    let text = [body, OPEN_END.as_bytes()].concat();
    serde_json::from_slice(&text)
        .map_err(|e| error("json", offset_of(&text, &e), Problem::Value(e.to_string())))
}

fn offset_of(bytes: &[u8], e: &serde_json::Error) -> usize {
    let before = bytes.split(|b| *b == b'\n').take(e.line().saturating_sub(1));
    before.map(|line| line.len() + 1).sum::<usize>() + e.column().saturating_sub(1)
}

/// The bytes of one of the JSON objects, for people to read too: a structure with at least one
/// field, and its checksum.
pub fn encode_json<T: Serialize>(object: &T) -> Vec<u8> {
    let mut text = serde_json::to_string_pretty(object)
        .expect("plain structures with string keys always serialise");
    text.push('\n');
    text.truncate(text.len() - OPEN_END.len());
    end_json(text.into_bytes())
}

/// Ends a JSON object, of which `body` lacks only the closing brace, with its checksum.
pub fn end_json(mut body: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&body), OPEN_END.as_bytes());
    body.extend_from_slice(format!("{CRC_FIELD}{crc:08x}{CRC_END}").as_bytes());
    body
}

impl TrashEntry {
    /// Parses an entry of the trash and checks its version.
    pub fn parse(bytes: &[u8]) -> FormatResult<TrashEntry> {
        let entry: TrashEntry = parse_json("trash entry", bytes)?;
        if entry.version != TRASH_VERSION {
            let problem = Problem::Unsupported(entry.version.to_string());
            return Err(FormatError {
                object: "trash entry",
                field: "version",
                offset: 0,
                problem,
            });
        }
        Ok(entry)
    }
}

impl PoolObject {
    /// Parses the pool's object and checks its version.
    pub fn parse(bytes: &[u8]) -> FormatResult<PoolObject> {
        let newer = |e| features::newer("pool", bytes).unwrap_or(e);
        let pool: PoolObject = parse_json("pool", bytes).map_err(newer)?;
        if pool.version != POOL_VERSION {
            let problem = Problem::Unsupported(pool.version.to_string());
            return Err(FormatError { object: "pool", field: "version", offset: 0, problem });
        }
        Ok(pool)
    }
}
