//! The paths of a target's store, changed while it serves.
//!
//! What is changed holds for as long as the target lives, and for its successor: the state file has the
//! paths as they are.

use super::control::PathChange;
use super::rundir::RunDir;
use super::shared::Shared;
use super::state::TargetState;
use crate::error::{Error, Result};
use crate::settings::{Endpoints, Location};
use crate::store::paths::PathsReport;
use crate::store::paths::s3::S3Paths;

impl Shared {
    /// The paths, after a change if one is wanted. Errors: usage, where the store has none; those of the
    /// change.
    pub(super) async fn paths(&self, change: Option<PathChange>) -> Result<PathsReport> {
        let store = self.store();
        let paths = store.paths().ok_or_else(|| {
            let url = store.pool.store().url();
            Error::usage(format!("{url} has no paths")).hint("only buckets have")
        })?;
        if let Some(change) = change {
            apply(paths, change).await?;
            self.remember(paths)?;
        }
        Ok(paths.store().report())
    }

    /// Tells whoever comes after the death of this process how the store is reached now.
    fn remember(&self, paths: &S3Paths) -> Result<()> {
        let file = RunDir::open()?.state_file(self.first());
        let Some(mut state) = TargetState::read(&file)? else { return Ok(()) };
        let Some(successor) = &mut state.successor else { return Ok(()) };
        follow(&mut successor.location, paths);
        state.write(&file)
    }
}

async fn apply(paths: &S3Paths, change: PathChange) -> Result<()> {
    let store = paths.store();
    match change {
        PathChange::Add(spec) => paths.add(spec).await.map(drop),
        PathChange::Remove(what) => paths.remove(&what),
        PathChange::Enable(what) => store.enable(store.find(&what)?, true),
        PathChange::Disable(what) => store.enable(store.find(&what)?, false),
        PathChange::Select(selector) => {
            store.set_selector(selector);
            Ok(())
        }
    }
}

fn follow(location: &mut Location, paths: &S3Paths) {
    // One without an endpoint has none here either, and is a path all the same.
    location.endpoint_url = Endpoints(paths.specs().iter().map(ToString::to_string).collect());
    location.paths.selector = paths.store().report().selector;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::keys;
    use crate::store::paths::selector::Selector;
    use crate::store::url::StoreUrl;

    #[tokio::test]
    async fn a_successor_finds_the_paths_as_they_are() {
        let text = r#"{"url":"s3://bucket/a","endpoint_url":["http://127.0.0.1:1",
            "http://127.0.0.1:2,weight=3","http://127.0.0.1:3"],"region":"r"}"#;
        let mut location: Location = serde_json::from_str(text).unwrap();
        let (url, options) = location.parts().unwrap();
        let StoreUrl::S3(bucket) = url else { panic!("it is a bucket") };
        let paths = S3Paths::open(bucket, &options, keys::pool()).await.unwrap();
        apply(&paths, PathChange::Remove("1".into())).await.unwrap();
        apply(&paths, PathChange::Select(Selector::QueueLength)).await.unwrap();
        follow(&mut location, &paths);
        let written = serde_json::to_string(&location).unwrap();
        let next: Location = serde_json::from_str(&written).unwrap();
        let (_, options) = next.parts().unwrap();
        assert_eq!(options.paths.policy.selector, Selector::QueueLength);
        assert_eq!(options.paths.specs, paths.specs());
        assert_eq!(paths.specs().len(), 2);
    }
}
