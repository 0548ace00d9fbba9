//! One listing of several: the slots of a log, in the order of their keys, whichever stores they lie in.

use super::{Asker, Spread, name_in};
use crate::format::VolumeId;
use crate::format::keys;
use crate::store::merge::Merge;
use crate::store::{Key, ListPage, MAX_PAGE, StoreResult};

/// Whether slots of a volume's log may be listed by this prefix. Prefixes of several volumes list what
/// the home store has.
pub(super) fn has_slots(prefix: &str) -> bool {
    let of = |rest: &str| {
        let (id, rest) = rest.split_once('/')?;
        let id: VolumeId = id.parse().ok()?;
        let log = keys::log(id);
        let below = log.strip_prefix(&keys::volume_prefix(id))?;
        Some(below.starts_with(rest) || rest.starts_with(below))
    };
    prefix.strip_prefix(keys::VOLUMES).and_then(of).unwrap_or_default()
}

impl Spread {
    /// See [`crate::store::Store::list`]. Older generations are listed first: an object that moves meanwhile is
    /// found where it was or where it is.
    ///
    /// # Errors
    /// Those of any of the stores.
    pub(super) async fn merged(
        &self,
        asker: Asker,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> StoreResult<ListPage> {
        let limit = limit.clamp(1, MAX_PAGE);
        let version = self.refresh(asker).await?;
        let mut merge = Merge::default();
        for stay in version.all_stays() {
            let store = self.member(asker, stay.store).await?;
            let below = keys::generation(stay.generation);
            let after = after.map(|after| name_in(stay.generation, after)).transpose()?;
            let page = store.list(&format!("{below}{prefix}"), after.as_ref(), limit).await?;
            merge.add(page, |key| Key::new(key.as_str().strip_prefix(&below)?));
        }
        Ok(merge.page(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_that_slots_have() {
        let id = VolumeId::from_bytes([7; 16]);
        for part in ["", "l", "log", "log/", "log/07/", "log/07/0000"] {
            assert!(has_slots(&format!("volumes/{id}/{part}")), "{part}");
        }
        for prefix in
            ["", "volumes/", "names/", &format!("volumes/{id}"), &format!("volumes/{id}/map/")]
        {
            assert!(!has_slots(prefix), "{prefix}");
        }
    }
}
