//! Objects that nobody needs: whether their bytes are what was written, so that no damage in a bucket goes unnoticed.

use super::inspect;
use super::space::{NAMED, Space};
use crate::error::Result;
use crate::format::chunk::{CHUNK_SIZE_MAX, HEADER_MAX};
use crate::store::{GetRange, Key, ObjectInfo, Store, StoreErrorKind};
use futures::stream::{self, StreamExt, TryStreamExt};

/// Objects that are read at the same time: each may be a chunk.
const AT_ONCE: usize = 4;

/// Reads objects that nobody needs, and counts the damaged ones.
///
/// # Errors
/// Those of the store that tell nothing of an object.
pub(super) async fn verify(
    store: &dyn Store,
    objects: Vec<ObjectInfo>,
    space: &mut Space,
) -> Result<()> {
    let look = |object: ObjectInfo| async move {
        let is_damaged = is_damaged(store, &object).await?;
        Ok::<_, crate::error::Error>(is_damaged.then_some(object))
    };
    let mut looked = stream::iter(objects).map(look).buffered(AT_ONCE).boxed();
    while let Some(damaged) = looked.try_next().await? {
        let Some(object) = damaged else { continue };
        space.damaged.add(&object);
        if space.damaged_named.len() < NAMED {
            space.damaged_named.push(object.key.to_string());
        }
    }
    Ok(())
}

async fn is_damaged(store: &dyn Store, object: &ObjectInfo) -> Result<bool> {
    if object.size > CHUNK_SIZE_MAX + HEADER_MAX as u64 {
        return Ok(true);
    }
    let looks_damaged = |key: &Key, bytes: &[u8]| inspect::decode(key, bytes).damage.is_some();
    // Damage on the way and damage in the store look the same once.
    for _ in 0..2 {
        match store.get(&object.key, GetRange::All).await {
            Ok(bytes) if !looks_damaged(&object.key, &bytes) => return Ok(false),
            Ok(_) => {}
            // Its owner has deleted it meanwhile.
            Err(e) if e.kind == StoreErrorKind::NotFound => return Ok(false),
            Err(e) if matches!(e.kind, StoreErrorKind::Damaged | StoreErrorKind::Range) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(true)
}
