//! What is wrong with an object.

use super::runs::Run;
use crate::error::Result;
use crate::format::{FormatError, FormatResult};
use crate::log::fetch::unsealed;
use crate::store::{Key, Store, StoreErrorKind, get_parsed};
use serde::Serialize;

/// Why an object, or a part of it, is not what it should be.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Flaw {
    #[error("it is missing")]
    Missing,
    #[error("{0}")]
    Damaged(#[from] FormatError),
    #[error("it has {is} bytes and should have {should}")]
    Size { is: u64, should: u64 },
    #[error("{0}")]
    Inconsistent(String),
}

impl Flaw {
    pub fn kind(&self) -> Kind {
        match self {
            Flaw::Missing => Kind::Missing,
            Flaw::Damaged(_) => Kind::Damaged,
            Flaw::Size { .. } => Kind::Size,
            Flaw::Inconsistent(_) => Kind::Inconsistent,
        }
    }
}

/// An object, or what is wrong with it.
pub(super) type Found<T> = std::result::Result<T, Flaw>;

/// Kinds of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An object that something names is not there.
    Missing,
    /// Its bytes are not what was written, or no object of its kind.
    Damaged,
    /// It is shorter or longer than it says.
    Size,
    /// Two objects contradict each other.
    Inconsistent,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Damage {
    /// The object, where it is a single one.
    pub object: Option<String>,
    /// What kind of damage it is.
    pub kind: Kind,
    /// What is wrong, and what it is good for.
    pub what: String,
}

impl Damage {
    pub(super) fn of(key: &Key, flaw: &Flaw, what: &str) -> Damage {
        let what = format!("{what}: {flaw}");
        Damage { object: Some(key.to_string()), kind: flaw.kind(), what }
    }

    pub(super) fn contradiction(what: String) -> Damage {
        Damage { object: None, kind: Kind::Inconsistent, what }
    }
}

/// What cannot be read of a volume or of one of its snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Affected {
    /// NAME or NAME@SNAP.
    pub name: String,
    /// It cannot be attached at all.
    pub whole: bool,
    /// Sectors of 512 bytes that cannot be read; none where nothing tells how many there are.
    pub sectors: u64,
    /// Where they are, ascending.
    pub runs: Vec<Run>,
}

/// Reads a whole object; one that does not parse once more.
///
/// # Errors
/// Those of the store that tell nothing of the object.
pub(super) async fn read<T>(
    store: &dyn Store,
    key: &Key,
    parse: impl Fn(&[u8]) -> FormatResult<T>,
) -> Result<Found<T>> {
    match get_parsed(store, key, parse).await {
        Ok(parsed) => Ok(parsed.map_err(Flaw::from)),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(Err(Flaw::Missing)),
        Err(e) if e.kind == StoreErrorKind::Damaged => {
            Ok(Err(Flaw::Damaged(unsealed("sealed object", e))))
        }
        Err(e) => Err(e.into()),
    }
}
