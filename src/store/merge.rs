//! One listing of several. Pure.
//!
//! Contract: what [`Merge::page`] gives is in the order of keys, each once, and nothing is missing between two of
//! its keys: where one of the listings goes on, nothing behind the last key that it told is given.

use super::{Key, ListPage, ObjectInfo};
use std::collections::BTreeMap;

/// Pages of several listings, of what lies behind one and the same key.
#[derive(Debug, Default)]
pub struct Merge {
    found: BTreeMap<Key, u64>,
    /// Up to here every listing is complete; `None`: each of them is, to its end.
    complete: Option<Key>,
}

impl Merge {
    /// Adds a page of one of them. `plain` is the key by which an object goes in the merged one, if it is of it.
    pub fn add(&mut self, page: ListPage, plain: impl Fn(&Key) -> Option<Key>) {
        let objects = page.objects.into_iter();
        let objects: Vec<(Key, u64)> =
            objects.filter_map(|object| Some((plain(&object.key)?, object.size))).collect();
        if let (true, Some((last, _))) = (page.more, objects.last())
            && self.complete.as_ref().is_none_or(|complete| last < complete)
        {
            self.complete = Some(last.clone());
        }
        self.found.extend(objects);
    }

    /// The first page of all of them, of at most `limit` objects.
    pub fn page(mut self, limit: usize) -> ListPage {
        let mut more = self.complete.is_some();
        if let Some(complete) = self.complete {
            self.found.retain(|key, _| *key <= complete);
        }
        more |= self.found.len() > limit;
        let objects = self.found.into_iter().take(limit);
        ListPage { objects: objects.map(|(key, size)| ObjectInfo { key, size }).collect(), more }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(keys: &str, more: bool) -> ListPage {
        let object = |key: char| ObjectInfo { key: Key::new(&key.to_string()).unwrap(), size: 1 };
        ListPage { objects: keys.chars().map(object).collect(), more }
    }

    fn merged(pages: &[(&str, bool)], limit: usize) -> (String, bool) {
        let mut merge = Merge::default();
        pages.iter().for_each(|(keys, more)| merge.add(page(keys, *more), |key| Some(key.clone())));
        let page = merge.page(limit);
        (page.objects.iter().map(|object| object.key.as_str()).collect(), page.more)
    }

    #[test]
    fn nothing_is_missing_between_two_keys() {
        assert_eq!(merged(&[("ace", false), ("bd", false)], 9), ("abcde".into(), false));
        assert_eq!(merged(&[("ace", false), ("ab", true)], 9), ("ab".into(), true));
        assert_eq!(merged(&[("xy", true), ("ab", true)], 9), ("ab".into(), true));
        assert_eq!(merged(&[("ac", false), ("bd", false)], 3), ("abc".into(), true));
        assert_eq!(merged(&[("ab", false), ("ab", false)], 2), ("ab".into(), false));
        assert_eq!(merged(&[], 2), (String::new(), false));
    }
}
