//! The stores of a pool that spans several, and what says which of them a log is in. JSON.
//!
//! ```text
//! stores/<n>                        version (1), pool: the id, number: n, stores [{id, url, endpoints [..],
//!                                   region (may be missing), removed}], weights [[..], ..]
//! objblk-store.json                 in each store but the home store: kind ("objblk-store"), version (1), pool, id
//! volumes/<id>/placement/<epoch>    version (1), volume, epoch, stores: n
//! ```
//!
//! `stores/<n>` is version `n` of the pool's stores, `n` from 1 on; the greatest number counts, and 0 is the home store
//! alone. It has all that went before: `weights[v][i]` is what store `i` weighs at version `v`, missing ones
//! at the end weigh nothing, and `weights[0]` is `[100]`. The first store is `home`. What the numbers mean is
//! in [`placement`](super::placement).
//!
//! `placement/<epoch>` says by which version the slots of that term are placed; where there is none, by version 0.

use super::VolumeId;
use super::codec::{FormatError, FormatResult, Problem};
use super::placement::{Placement, WEIGHT, WEIGHT_MAX};
use super::pool::{JSON_MAX, encode_json, parse_json};
use crate::units::Epoch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

const VERSION: u32 = 1;
const OBJECT: &str = "stores";
const HOME: &str = "home";

/// The most stores that a pool has had.
pub const STORES_MAX: usize = 16;
/// The most versions that there are of a pool's stores.
pub const VERSIONS_MAX: usize = 65;
/// The most endpoints of a store.
pub const ENDPOINTS_MAX: usize = 8;
/// Longest address or endpoint of a store, in bytes.
pub const URL_MAX: usize = 1024;

/// A store of a pool: `home`, or eight lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct StoreId(u32);

impl StoreId {
    /// The one that the pool was made in.
    pub const HOME: StoreId = StoreId(0);

    /// The store of this number; 0 is the home store.
    pub fn of_number(number: u32) -> StoreId {
        StoreId(number)
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == StoreId::HOME { f.write_str(HOME) } else { write!(f, "{:08x}", self.0) }
    }
}

impl From<StoreId> for String {
    fn from(id: StoreId) -> String {
        id.to_string()
    }
}

/// Why a text is no id of a store.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("not home or eight digits of 0-9 and a-f")]
pub struct NotAStore;

impl FromStr for StoreId {
    type Err = NotAStore;

    fn from_str(text: &str) -> Result<StoreId, NotAStore> {
        if text == HOME {
            return Ok(StoreId::HOME);
        }
        let plain = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let number = u32::from_str_radix(text, 16).ok().filter(|_| plain && text.len() == 8);
        number.filter(|number| *number != 0).map(StoreId).ok_or(NotAStore)
    }
}

impl TryFrom<String> for StoreId {
    type Error = NotAStore;

    fn try_from(text: String) -> Result<StoreId, NotAStore> {
        text.parse()
    }
}

/// A store, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreEntry {
    /// Which one.
    pub id: StoreId,
    /// Its address. Of the home store it is what it was when this was written, for people.
    pub url: String,
    /// The endpoints of a bucket, if they are not those of the home store.
    pub endpoints: Vec<String>,
    /// The region of a bucket, if it is not that of the home store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Nothing is looked for there any more.
    pub removed: bool,
}

/// `stores/<n>`: the stores of a pool, as of version `n`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoresObject {
    version: u32,
    /// The pool.
    pub pool: VolumeId,
    /// The version.
    pub number: u32,
    /// All that there are or were; the home store is the first.
    pub stores: Vec<StoreEntry>,
    weights: Vec<Vec<u32>>,
}

impl StoresObject {
    /// Version 0 of a pool whose home store is at `url`, which is never written.
    pub fn initial(pool: VolumeId, url: String) -> StoresObject {
        let home = StoreEntry {
            id: StoreId::HOME,
            url,
            endpoints: Vec::new(),
            region: None,
            removed: false,
        };
        StoresObject {
            version: VERSION,
            pool,
            number: 0,
            stores: vec![home],
            weights: vec![vec![WEIGHT]],
        }
    }

    /// The version that follows this one, with these stores and weights.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn next(&self, stores: Vec<StoreEntry>, weights: Vec<u32>) -> FormatResult<StoresObject> {
        let mut next = StoresObject { number: self.number + 1, stores, ..self.clone() };
        next.weights.push(weights);
        next.check()?;
        Ok(next)
    }

    /// Parses it and checks every value.
    pub fn parse(bytes: &[u8]) -> FormatResult<StoresObject> {
        let stores: StoresObject = parse_json(OBJECT, bytes)?;
        if stores.version != VERSION {
            return Err(error("version", Problem::Unsupported(stores.version.to_string())));
        }
        stores.check()?;
        Ok(stores)
    }

    fn check(&self) -> FormatResult<()> {
        let bad = |field, why: String| Err(error(field, Problem::Value(why)));
        let (count, versions) = (self.stores.len(), self.weights.len());
        if !(2..=VERSIONS_MAX).contains(&versions) || self.number as usize != versions - 1 {
            return bad("number", format!("{} with {versions} versions", self.number));
        }
        if count > STORES_MAX || self.stores.first().is_none_or(|home| home.id != StoreId::HOME) {
            return bad("stores", format!("{count} of them, or the first is not {HOME}"));
        }
        let mut known = BTreeSet::new();
        for store in &self.stores {
            let texts = store.endpoints.iter().chain(&store.region).chain([&store.url]);
            if store.endpoints.len() > ENDPOINTS_MAX
                || texts.clone().any(|text| text.len() > URL_MAX)
            {
                return bad("url", format!("that of store {} is too long", store.id));
            }
            if !known.insert(store.id) {
                return bad("id", format!("there are two stores {}", store.id));
            }
        }
        let is_sound = |row: &Vec<u32>| {
            row.len() <= count && row.iter().any(|w| *w > 0) && row.iter().all(|w| *w <= WEIGHT_MAX)
        };
        if self.weights[0] != [WEIGHT] || !self.weights.iter().all(is_sound) {
            return bad("weights", "no store weighs anything, or one too much".into());
        }
        let len = encode_json(self).len();
        if len > JSON_MAX {
            return bad("length", format!("{len} bytes are too many"));
        }
        let placement = self.placement();
        let weighs = |store: &&StoreEntry| placement.weight(self.number, store.id) > 0;
        match self.stores.iter().filter(|store| store.removed).find(weighs) {
            Some(store) => bad("removed", format!("store {} still weighs something", store.id)),
            None => Ok(()),
        }
    }

    /// Where objects go.
    pub fn placement(&self) -> Placement {
        let ids = self.stores.iter().map(|store| store.id).collect();
        Placement::new(ids, self.weights.clone())
    }

    /// The weights of this version, one for each store.
    pub fn present_weights(&self) -> Vec<u32> {
        let placement = self.placement();
        self.stores.iter().map(|store| placement.weight(self.number, store.id)).collect()
    }

    /// What tells this version from another one of the same number: a crc32c of the object.
    pub fn digest(&self) -> String {
        format!("{:08x}", crc32c::crc32c(&encode_json(self)))
    }
}

fn error(field: &'static str, problem: Problem) -> FormatError {
    FormatError { object: OBJECT, field, offset: 0, problem }
}

/// `objblk-store.json`: which store of which pool this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreObject {
    kind: StoreKind,
    version: u32,
    /// The pool.
    pub pool: VolumeId,
    /// The store.
    pub id: StoreId,
}

/// The `kind` of a [`StoreObject`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum StoreKind {
    #[serde(rename = "objblk-store")]
    Store,
}

impl StoreObject {
    /// Says that it is store `id` of `pool`.
    pub fn new(pool: VolumeId, id: StoreId) -> StoreObject {
        StoreObject { kind: StoreKind::Store, version: VERSION, pool, id }
    }

    /// Parses it and checks its version.
    pub fn parse(bytes: &[u8]) -> FormatResult<StoreObject> {
        let store: StoreObject = parse_json("store", bytes)?;
        match store.version {
            VERSION => Ok(store),
            other => Err(error("version", Problem::Unsupported(other.to_string()))),
        }
    }
}

/// `volumes/<id>/placement/<epoch>`: by which version the slots of a term are placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TermPlacement {
    version: u32,
    /// The volume.
    pub volume: VolumeId,
    /// The term.
    pub epoch: Epoch,
    /// The version of the pool's stores.
    pub stores: u32,
}

impl TermPlacement {
    /// The slots of this term are placed by version `stores`.
    pub fn new(volume: VolumeId, epoch: Epoch, stores: u32) -> TermPlacement {
        TermPlacement { version: VERSION, volume, epoch, stores }
    }

    /// Parses it and checks its version.
    pub fn parse(bytes: &[u8]) -> FormatResult<TermPlacement> {
        let term: TermPlacement = parse_json("placement", bytes)?;
        match term.version {
            VERSION => Ok(term),
            other => Err(error("version", Problem::Unsupported(other.to_string()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u32) -> StoreEntry {
        let (id, url) = (StoreId::of_number(id), format!("file:///{id}"));
        StoreEntry { id, url, endpoints: Vec::new(), region: None, removed: false }
    }

    #[test]
    fn ids() {
        for text in ["home", "0000000a", "ffffffff"] {
            assert_eq!(text.parse::<StoreId>().unwrap().to_string(), text);
        }
        for text in ["", "00000000", "a", "0000000A", "+000000a", "000000000a", "Home"] {
            assert!(text.parse::<StoreId>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be() {
        let none = StoresObject::initial(VolumeId::from_bytes([1; 16]), "file:///0".into());
        let one = none.next(vec![entry(0), entry(7)], vec![100, 50]).unwrap();
        assert_eq!((one.number, one.present_weights()), (1, vec![100, 50]));
        let two = one.next(vec![entry(0), entry(7)], vec![100]).unwrap();
        assert_eq!((two.number, two.present_weights()), (2, vec![100, 0]));
        assert_ne!(one.digest(), two.digest());
        let gone = StoreEntry { removed: true, ..entry(7) };
        let long = StoreEntry { url: "x".repeat(URL_MAX + 1), ..entry(7) };
        for (stores, weights, field) in [
            (vec![entry(7), entry(0)], vec![1, 1], "stores"),
            ((0..17).map(entry).collect(), vec![1], "stores"),
            (vec![entry(0), entry(7), entry(7)], vec![1], "id"),
            (vec![entry(0), long], vec![1], "url"),
            (vec![entry(0), gone], vec![1, 1], "removed"),
            (vec![entry(0), entry(7)], vec![0, 0], "weights"),
            (vec![entry(0), entry(7)], vec![1, WEIGHT_MAX + 1], "weights"),
            (vec![entry(0)], vec![1, 1], "weights"),
        ] {
            assert_eq!(none.next(stores, weights).unwrap_err().field, field);
        }
        let mut last = one;
        while last.number < VERSIONS_MAX as u32 - 1 {
            last = last.next(last.stores.clone(), vec![last.number, 7]).unwrap();
        }
        let more = last.next(last.stores.clone(), vec![1]).unwrap_err();
        assert_eq!(more.field, "number");
    }
}
