//! The states of a mirrored volume in one store, and what may come of asking there.

use crate::format::VolumeId;
use crate::format::keys;
use crate::format::mirror::MirrorState;
use crate::format::stores::StoreId;
use crate::store::{
    GetRange, Key, Op, Store, StoreError, StoreErrorKind, StoreResult, address, get_parsed,
};
use bytes::Bytes;

/// Why a request at a copy has no answer.
#[derive(Debug)]
pub(super) enum Halt {
    /// The store has failed for longer than a volume waits for it.
    Away(StoreId, StoreError),
    Failed(StoreError),
}

impl Halt {
    pub fn into_error(self) -> StoreError {
        match self {
            Halt::Failed(e) => e,
            Halt::Away(store, e) => {
                StoreError { detail: format!("store {store}: {}", e.detail), ..e }
            }
        }
    }
}

/// A place that is missing as a whole is away.
pub(super) fn missing_is_away(e: StoreError) -> StoreError {
    match e.kind {
        StoreErrorKind::NotFound => StoreError { kind: StoreErrorKind::Unavailable, ..e },
        _ => e,
    }
}

/// The newest state of a volume in one store.
pub(super) async fn newest(store: &dyn Store, id: VolumeId) -> StoreResult<Option<MirrorState>> {
    let Some(number) = newest_number(store, id).await? else { return Ok(None) };
    let key = keys::mirror_state(id, number);
    let parsed = get_parsed(store, &key, MirrorState::parse).await.map_err(missing_is_away)?;
    let invalid = |why: String| {
        let object = address(&store.url(), key.as_str());
        StoreError::new(StoreErrorKind::Invalid, Op::Get, object, why)
    };
    let state = parsed.map_err(|e| invalid(e.to_string()))?;
    match (state.volume, state.number) == (id, number) {
        true => Ok(Some(state)),
        false => Err(invalid("it is of another volume or number than its name says".into())),
    }
}

pub(super) async fn newest_number(store: &dyn Store, id: VolumeId) -> StoreResult<Option<u32>> {
    let page = store.list(&keys::mirror_states(id), None, 1).await.map_err(missing_is_away)?;
    Ok(page.objects.first().and_then(|object| keys::parse_mirror_state(id, &object.key)))
}

/// Puts an object; what is there instead, if that is something else.
pub(super) async fn offer(
    store: &dyn Store,
    key: &Key,
    body: &Bytes,
) -> StoreResult<Option<Bytes>> {
    match store.put_if_absent(key, body.clone()).await {
        Ok(()) => Ok(None),
        Err(e) if e.kind == StoreErrorKind::AlreadyExists => {
            let there = store.get(key, GetRange::All).await.map_err(missing_is_away)?;
            Ok((there != *body).then_some(there))
        }
        Err(e) => Err(missing_is_away(e)),
    }
}
