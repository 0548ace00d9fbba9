//! Stores: named immutable objects, and the one primitive all shared state is built on.
//!
//! A [`Store`] keeps byte strings under [`Key`]s. It knows nothing of volumes, chunks or epochs.
//! The primitive is [`Store::put_if_absent`]: of any number of callers that race for one key,
//! exactly one succeeds, and the object it wrote is never overwritten (but by a repair, where it is
//! damaged, with what it was). Everything else that objblk needs (ownership, fencing, ordering) is made of it.
//!
//! Contract of every implementation:
//! * **Atomic**: an object is there whole or not at all, to `get`, `head` and `list` alike.
//! * **Read after write**: a `get`, `head` or `list` that starts after a `put_if_absent` or
//!   `delete` returned sees its effect.
//! * **Durable**: a put that returned `Ok` survives the loss of this host (for a directory: of
//!   this process and, after its fsyncs, of power).
//! * **Ambiguity**: an error other than [`StoreErrorKind::AlreadyExists`],
//!   [`StoreErrorKind::Denied`] and [`StoreErrorKind::Invalid`] leaves open whether the request took effect, or will.
//!   The `retry` layer settles that for creates by reading the object back.
//! * **Cancellation**: dropping a future abandons the request; it may still take effect.
//!
//! Layers wrap a store and are stores themselves: `retry`, `metrics`, `paths`, `fault`. From the outside
//! in, the order is retry, metrics, paths, store: metrics count attempts, each by one or more paths. All that reach one store share a
//! [`limit::Limiter`], which gives each attempt its turn.

pub mod dir;
pub mod fault;
pub mod hedge;
pub mod limit;
pub mod memory;
pub mod merge;
pub mod metrics;
pub mod paths;
pub mod probe;
pub mod retry;
pub mod s3;
pub mod unfenced;
pub mod url;

use crate::cipher::LocalKey;
use crate::error::{Error, ErrorKind};
use async_trait::async_trait;
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;

/// The name of an object, relative to the store's root: `/`-separated, never empty, no leading
/// slash, only `[A-Za-z0-9._/-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// The key `name`, or `None` where `name` is not of the form above.
    pub fn new(name: &str) -> Option<Key> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-');
        let segment = |s: &str| !s.is_empty() && s != "." && s != "..";
        let ok = name.len() <= 900 && name.bytes().all(plain) && name.split('/').all(segment);
        ok.then(|| Key(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which bytes of an object to get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GetRange {
    /// The whole object.
    All,
    /// `len` bytes (at least one) from `offset`; fewer where the object ends before.
    Part {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
}

impl GetRange {
    /// The byte positions this names in an object of `size` bytes; `None` where it starts at or
    /// past the end.
    pub fn within(self, size: u64) -> Option<std::ops::Range<u64>> {
        match self {
            GetRange::All => Some(0..size),
            GetRange::Part { offset, len } => {
                (offset < size).then(|| offset..size.min(offset.saturating_add(len)))
            }
        }
    }

    /// The most bytes this can return, where it says so.
    pub fn max_len(self) -> Option<u64> {
        match self {
            GetRange::All => None,
            GetRange::Part { len, .. } => Some(len),
        }
    }
}

/// The operations of a store, as errors, counters and fault rules name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// [`Store::get`].
    Get,
    /// [`Store::put_if_absent`] and [`Store::put`].
    Put,
    /// [`Store::delete`].
    Delete,
    /// [`Store::head`].
    Head,
    /// [`Store::list`].
    List,
}

impl Op {
    /// Every operation, in the order of their discriminants.
    pub const ALL: [Op; 5] = [Op::Get, Op::Put, Op::Delete, Op::Head, Op::List];

    /// Its name in [`StoreError::op`].
    pub fn name(self) -> &'static str {
        match self {
            Op::Get => "get",
            Op::Put => "put",
            Op::Delete => "delete",
            Op::Head => "head",
            Op::List => "list",
        }
    }
}

/// What `head` and `list` tell of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name.
    pub key: Key,
    /// Its size in bytes.
    pub size: u64,
}

/// One page of a listing, in ascending byte order of keys.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// The objects of this page.
    pub objects: Vec<ObjectInfo>,
    /// True where further keys follow the last one of this page.
    pub more: bool,
}

/// What went wrong, in the terms a caller acts upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// No object (or no bucket) of that name.
    NotFound,
    /// `put_if_absent` lost: an object of that name is there.
    AlreadyExists,
    /// A range that starts at or beyond the object's end.
    Range,
    /// Credentials are missing, wrong or do not allow this.
    Denied,
    /// The store understood the request and refuses it for good (bad name, too large, ...).
    Invalid,
    /// The store asks to slow down (503 SlowDown, 429).
    Throttled,
    /// No answer, a broken connection, a 5xx: trying again may help.
    Unavailable,
    /// The object is sealed, and its bytes are not those that were sealed under this name.
    Damaged,
    /// The object is sealed, and its key was not given.
    Locked,
}

impl StoreErrorKind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [StoreErrorKind; 9] = [
        StoreErrorKind::NotFound,
        StoreErrorKind::AlreadyExists,
        StoreErrorKind::Range,
        StoreErrorKind::Denied,
        StoreErrorKind::Invalid,
        StoreErrorKind::Throttled,
        StoreErrorKind::Unavailable,
        StoreErrorKind::Damaged,
        StoreErrorKind::Locked,
    ];

    /// Its name in counters: lower case, words joined by `_`.
    pub fn name(self) -> &'static str {
        match self {
            StoreErrorKind::NotFound => "not_found",
            StoreErrorKind::AlreadyExists => "already_exists",
            StoreErrorKind::Range => "range",
            StoreErrorKind::Denied => "denied",
            StoreErrorKind::Invalid => "invalid",
            StoreErrorKind::Throttled => "throttled",
            StoreErrorKind::Unavailable => "unavailable",
            StoreErrorKind::Damaged => "damaged",
            StoreErrorKind::Locked => "locked",
        }
    }

    /// True where the same request may succeed later.
    pub fn is_transient(self) -> bool {
        matches!(self, StoreErrorKind::Throttled | StoreErrorKind::Unavailable)
    }
}

/// A failed store request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{op} {object}: {detail}")]
pub struct StoreError {
    /// What to do about it.
    pub kind: StoreErrorKind,
    /// The operation: `get`, `put`, `list`, `delete`, `head`.
    pub op: &'static str,
    /// The object or prefix, with the store's address.
    pub object: String,
    /// Why, in the store's words.
    pub detail: String,
}

impl StoreError {
    /// A failure of `op` on `object` (see the fields).
    pub fn new(
        kind: StoreErrorKind,
        op: Op,
        object: impl Into<String>,
        detail: impl Into<String>,
    ) -> StoreError {
        StoreError { kind, op: op.name(), object: object.into(), detail: detail.into() }
    }
}

/// The address of `name` (a key or a prefix) in the store at `url`.
pub fn address(url: &str, name: &str) -> String {
    match url.ends_with('/') {
        true => format!("{url}{name}"),
        false => format!("{url}/{name}"),
    }
}

/// The largest page that [`Store::list`] returns, and the most keys of one batch.
pub const MAX_PAGE: usize = 1000;

/// Result of a store request.
pub type StoreResult<T> = Result<T, StoreError>;

/// What to do where a key is missing.
pub const KEY_HINT: &str = "name its key with --key-file, --key-command or --passphrase-file";

impl From<StoreError> for Error {
    fn from(e: StoreError) -> Error {
        if e.kind == StoreErrorKind::Damaged {
            return Error::corrupt(format!("object {} is damaged", e.object)).because(e.detail);
        }
        let kind = match e.kind {
            StoreErrorKind::NotFound => ErrorKind::NotFound,
            StoreErrorKind::AlreadyExists => ErrorKind::Exists,
            StoreErrorKind::Range | StoreErrorKind::Damaged => ErrorKind::Corrupt,
            StoreErrorKind::Locked => ErrorKind::Usage,
            StoreErrorKind::Denied
            | StoreErrorKind::Invalid
            | StoreErrorKind::Throttled
            | StoreErrorKind::Unavailable => ErrorKind::Store,
        };
        let hint = match e.kind {
            StoreErrorKind::Denied => Some("check the credentials and what they allow"),
            StoreErrorKind::Unavailable => Some("check the endpoint and the network"),
            StoreErrorKind::Locked => Some(KEY_HINT),
            _ => None,
        };
        let error = Error::new(kind, format!("the store failed to {} {}", e.op, e.object));
        let error = error.because(e.detail);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// A namespace of immutable objects. See the module's contract.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug + 'static {
    /// The store's address, as a user would type it (`s3://bucket/prefix`).
    fn url(&self) -> String;

    /// Bytes of an object. Errors: `NotFound`; `Range` where `offset` is at or past the end.
    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes>;

    /// Creates the object, or fails with `AlreadyExists` and changes nothing.
    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()>;

    /// Creates or replaces the object. For stores without create-if-absent only
    /// (`--unsafe-no-fencing`); nothing else may call it.
    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()>;

    /// Removes the objects. A key that does not exist is no error. On an error some may be gone.
    async fn delete(&self, keys: &[Key]) -> StoreResult<()>;

    /// Whether the object is there, and its size. Errors: `NotFound`.
    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo>;

    /// One page of the keys that begin with the string `prefix` (may be empty, may end inside a
    /// name) and, where given, come after `after` in byte order; at most `limit` (1..=1000).
    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage>;

    /// Says that a user of this store waits for what somebody else is asking of the object `key`,
    /// for as long as the returned value lives. Of use where the other's requests may have to wait.
    fn hurry(&self, _key: &Key) -> Option<limit::Urgent> {
        None
    }

    /// Whether it opens and seals what is sealed of the volume that the object `key` is of: then nobody above
    /// it sees anything sealed.
    fn unseals(&self, _key: &Key) -> bool {
        false
    }

    /// What seals the local files of the volume that the object `key` is of, where it [unseals](Store::unseals) that.
    fn local_key(&self, _key: &Key) -> Option<Arc<LocalKey>> {
        None
    }

    /// Says that the owner by the epoch object `claim` has opened its volume: who had it before has met its fence, and can change
    /// nothing any more. Of use where a copy of the volume has to be made complete. Errors: those of the stores.
    async fn opened(&self, _claim: &Key) -> StoreResult<()> {
        Ok(())
    }

    /// The complete copies of the volume that the object `key` is of, each by itself, where there are several:
    /// for who was given something damaged.
    fn copies(&self, _key: &Key) -> Vec<Arc<dyn Store>> {
        Vec::new()
    }

    /// Of one of the [copies](Store::copies): puts `body`, which was read from this one and is proved, in the
    /// place of what the others have, where that is something else. Whether it was. Errors: `Invalid`: it is no copy.
    async fn restore(&self, key: &Key, _body: Bytes) -> StoreResult<bool> {
        let object = address(&self.url(), key.as_str());
        Err(StoreError::new(StoreErrorKind::Invalid, Op::Put, object, "this is no copy of several"))
    }
}

/// Reads an object. One that does not parse is read once more: damage on the way and damage in the
/// store look the same once. Then its other copies are read, where it has any.
///
/// # Errors
/// Those of the store; the inner one is what is wrong with the object.
pub async fn get_parsed<T, E>(
    store: &dyn Store,
    key: &Key,
    parse: impl Fn(&[u8]) -> std::result::Result<T, E>,
) -> StoreResult<std::result::Result<T, E>> {
    let mut found = read_parsed(store, key, &parse).await;
    if let Ok(Err(_)) = found {
        found = read_parsed(store, key, &parse).await;
    }
    match &found {
        Ok(Err(_)) => {}
        Err(e) if e.kind == StoreErrorKind::Damaged => {}
        _ => return found,
    }
    for copy in store.copies(key) {
        if let Ok(Ok(whole)) = read_parsed(&*copy, key, &parse).await {
            return Ok(Ok(whole));
        }
    }
    found
}

async fn read_parsed<T, E>(
    store: &dyn Store,
    key: &Key,
    parse: &impl Fn(&[u8]) -> std::result::Result<T, E>,
) -> StoreResult<std::result::Result<T, E>> {
    Ok(parse(&store.get(key, GetRange::All).await?))
}

/// Every key that begins with `prefix`, page after page.
pub async fn list_all(store: &dyn Store, prefix: &str) -> StoreResult<Vec<ObjectInfo>> {
    let mut all: Vec<ObjectInfo> = Vec::new();
    loop {
        let page = store.list(prefix, all.last().map(|o| &o.key), MAX_PAGE).await?;
        let empty = page.objects.is_empty();
        all.extend(page.objects);
        if !page.more || empty {
            return Ok(all);
        }
    }
}

/// Tells by reading an object whether it is the one that was put. Damage on the way and somebody
/// else's object look the same once: a reply that differs counts when the next one is the same.
#[derive(Debug)]
pub struct ReadBack<'a> {
    key: &'a Key,
    ours: &'a Bytes,
    last: Option<Bytes>,
}

impl<'a> ReadBack<'a> {
    /// For the object at `key`, where `ours` was put.
    pub fn new(key: &'a Key, ours: &'a Bytes) -> ReadBack<'a> {
        ReadBack { key, ours, last: None }
    }

    /// Takes a reply. What is there, or `None`: read again.
    ///
    /// # Errors
    /// Unavailable: two replies differ, and neither is the object; read again later.
    pub fn hears(&mut self, reply: Bytes) -> StoreResult<Option<Bytes>> {
        if reply == *self.ours || self.last.as_ref() == Some(&reply) {
            return Ok(Some(reply));
        }
        if self.last.replace(reply).is_none() {
            return Ok(None);
        }
        let detail = "two reads of the object gave different bytes";
        Err(StoreError::new(StoreErrorKind::Unavailable, Op::Get, self.key.to_string(), detail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_in_discriminant_order() {
        assert!(Op::ALL.iter().enumerate().all(|(i, op)| *op as usize == i));
        assert!(StoreErrorKind::ALL.iter().enumerate().all(|(i, kind)| *kind as usize == i));
    }

    #[test]
    fn ranges_end_with_the_object() {
        let part = |offset, len| GetRange::Part { offset, len };
        assert_eq!(GetRange::All.within(0), Some(0..0));
        assert_eq!(part(0, 1).within(0), None);
        assert_eq!(part(3, u64::MAX).within(5), Some(3..5));
        assert_eq!(part(5, 1).within(5), None);
    }

    #[test]
    fn keys_are_plain_paths() {
        for good in ["a", "volumes/0f/log/00/1-2", "objblk.json"] {
            assert!(Key::new(good).is_some(), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "a/../b", ".", "a b", "ä", "a\\b"] {
            assert!(Key::new(bad).is_none(), "{bad}");
        }
    }
}
