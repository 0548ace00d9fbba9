//! Another store in the place of one that a volume had a copy in, and that is gone for good.
//!
//! Two states follow the newest one: without the lost store, and with the other one instead of it. Both count by being in the
//! home store alone, which is the only one that is left, so a create-if-absent decides there what comes after what. They are of the term of
//! the state before: whoever owns the volume goes on by them, and makes the new copy complete. That they are not its own does no harm:
//! the first is the state that it would have written itself, had it missed the store, and one that it wrote in the lost store is lost with that.

use super::chain::{newest, offer};
use crate::format::VolumeId;
use crate::format::keys;
use crate::format::mirror::MirrorState;
use crate::format::pool::encode_json;
use crate::format::stores::StoreId;
use crate::store::{Op, Store, StoreError, StoreErrorKind, StoreResult};

/// Has a volume be in `home` and in `new`, which is `there`, instead of `lost`. Goes on from wherever that was cut off. False: it has
/// nothing to do with either, or has been in `new` for longer.
///
/// # Errors
/// Those of the stores; invalid, where a state is damaged, or the home store has no complete copy.
pub async fn replace(
    home: &dyn Store,
    there: &dyn Store,
    id: VolumeId,
    (lost, new): (StoreId, StoreId),
) -> StoreResult<bool> {
    loop {
        let Some(state) = newest(home, id).await? else { return Ok(false) };
        if !state.replicas.contains(&lost) {
            return match state.replicas.contains(&new) {
                true => begin(there, &state, new).await,
                false => Ok(false),
            };
        }
        let (key, is_alone) = (keys::mirror_state(id, state.number), state.in_sync.len() == 1);
        if state.in_sync.iter().all(|twin| twin.store == lost) {
            let text = format!("store {lost}, which is gone, has the only complete copy");
            return Err(StoreError::new(StoreErrorKind::Invalid, Op::Put, key.to_string(), text));
        }
        let without = state.without(lost, state.term).filter(|_| !is_alone);
        let next = without.unwrap_or_else(|| state.replaced(lost, new, state.term));
        // Whatever came first is gone on from.
        offer(home, &keys::mirror_state(id, next.number), &encode_json(&next).into()).await?;
    }
}

/// Tells the new store of the volume, so that it does not count as away. One that had something before and has it no more was
/// wiped, and is told nothing.
async fn begin(there: &dyn Store, state: &MirrorState, new: StoreId) -> StoreResult<bool> {
    let is_new = state.written().all(|twin| twin.store != new);
    if is_new && newest(there, state.volume).await?.is_none() {
        let key = keys::mirror_state(state.volume, state.number);
        offer(there, &key, &encode_json(state).into()).await?;
    }
    Ok(is_new)
}
