//! Which items of map objects one GET fetches. Pure.

use crate::format::page::ItemRef;

/// Bytes between two items that are fetched for nothing rather than by one more GET.
const GAP_MAX: u32 = 16 << 10;
/// Bytes that one GET fetches, but for one item that is larger.
const RUN_MAX: u32 = 4 << 20;

/// Splits `items`, in the order of their places, into runs that one GET fetches each.
pub(super) fn runs<T>(items: Vec<T>, place: impl Fn(&T) -> ItemRef) -> Vec<Vec<T>> {
    let mut runs: Vec<Vec<T>> = Vec::new();
    for item in items {
        let next = place(&item);
        let joins = |run: &&mut Vec<T>| match (run.first(), run.last()) {
            (Some(first), Some(last)) => belongs(place(first), place(last), next),
            _ => false,
        };
        match runs.last_mut().filter(joins) {
            Some(run) => run.push(item),
            None => runs.push(vec![item]),
        }
    }
    runs
}

/// True where `next` goes into the run from `first` to `last`.
fn belongs(first: ItemRef, last: ItemRef, next: ItemRef) -> bool {
    let gap = next.offset.checked_sub(last.offset.saturating_add(last.len));
    let end = next.offset.checked_add(next.len);
    let len = end.and_then(|end| end.checked_sub(first.offset));
    first.object == next.object
        && gap.is_some_and(|gap| gap <= GAP_MAX)
        && len.is_some_and(|len| len <= RUN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::keys::MapObjectId;
    use crate::units::Epoch;
    use proptest::prelude::*;

    fn item(number: u32, offset: u32, len: u32) -> ItemRef {
        ItemRef { object: MapObjectId { epoch: Epoch(1), number }, offset, len, crc: 0 }
    }

    #[test]
    fn neighbours_go_together_up_to_a_gap_and_a_length() {
        let near = [item(1, 48, 4096), item(1, 4144, 4096), item(1, 8240 + GAP_MAX, 8)];
        assert_eq!(runs(near.to_vec(), |item| *item), [near.to_vec()]);
        let far = [near[0], near[1], item(1, 8241 + GAP_MAX, 8), item(2, 8249 + GAP_MAX, 8)];
        let split = runs(far.to_vec(), |item| *item);
        assert_eq!(split, [far[..2].to_vec(), vec![far[2]], vec![far[3]]]);
        let long =
            [item(1, 0, RUN_MAX - 1), item(1, RUN_MAX - 1, 2), item(1, RUN_MAX + 1, u32::MAX)];
        assert_eq!(runs(long.to_vec(), |item| *item).len(), 3);
    }

    proptest! {
        /// Whatever references a damaged map holds, all of them are in the runs, once, in order.
        #[test]
        fn every_item_is_in_a_run(
            mut items in prop::collection::vec((0u32..3, any::<u32>(), any::<u32>()), 0..20),
        ) {
            items.sort_unstable();
            let items: Vec<ItemRef> = items.into_iter().map(|(n, at, len)| item(n, at, len)).collect();
            let split = runs(items.clone(), |item| *item);
            prop_assert!(split.iter().all(|run| !run.is_empty()));
            prop_assert_eq!(split.concat(), items);
        }
    }
}
