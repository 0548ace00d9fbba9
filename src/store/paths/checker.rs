//! The background of a multipath store: checks, failback, and the end of hope.

use super::beacon::Sight;
use super::switch::PathId;
use super::{Inner, Way};
use crate::error::Result;
use futures::future::join_all;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The checker looks around at least so often: the store may be gone.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);

/// How long the other paths may take to show the beacon, once one has.
const STRAGGLERS: Duration = Duration::from_millis(500);

/// Checks the paths of a store for as long as it is in use.
pub(super) fn start(inner: &Arc<Inner>) {
    tokio::spawn(run(Arc::downgrade(inner)));
}

async fn run(store: Weak<Inner>) {
    loop {
        let Some(inner) = store.upgrade() else { return };
        let now = inner.now();
        let due: Vec<(PathId, Arc<Way>)> = inner.change(|state| {
            state.switch.regroup(now);
            let due = state.switch.begin_checks(now);
            let way = |id: PathId| Some((id, Arc::clone(state.ways.get(&id)?)));
            due.into_iter().filter_map(way).collect()
        });
        for (id, way) in due {
            tokio::spawn(check(Weak::clone(&store), id, way));
        }
        let next = inner.state().switch.next_due(now);
        let rest = next.map_or(LONGEST_SLEEP, |next| next.saturating_sub(inner.now()));
        let rest = rest.clamp(Duration::from_millis(1), LONGEST_SLEEP);
        // Not kept alive by whoever waits for it.
        let woken = async { inner.wake.notified().await };
        let _ = timeout(rest, woken).await;
    }
}

async fn check(store: Weak<Inner>, id: PathId, way: Arc<Way>) {
    let Some(inner) = store.upgrade() else { return };
    let sight = inner.beacon.look(&*way.bare).await;
    let (result, strange) = match sight {
        Sight::Shown(shown) => {
            let wrong = inner.beacon.judge(&shown);
            (wrong.clone().map_or(Ok(()), Err), wrong)
        }
        Sight::Busy => (Ok(()), None),
        Sight::Dark(why) => (Err(why), None),
    };
    let now = inner.now();
    inner.change(|state| {
        state.switch.checked(id, result, now);
        if let Some(why) = strange {
            state.switch.fail(id, &why, now);
        }
    });
    inner.wake.notify_one();
}

/// See [`super::MultipathStore::verify`].
pub(super) async fn verify(inner: &Arc<Inner>) -> Result<()> {
    let ways: Vec<(PathId, Arc<Way>)> =
        inner.state().ways.iter().map(|(id, way)| (*id, Arc::clone(way))).collect();
    if ways.len() < 2 {
        return Ok(());
    }
    let (one, told) = tokio::sync::watch::channel(false);
    let looks = ways.iter().map(|(_, way)| {
        let (one, mut told) = (&one, told.clone());
        async move {
            let look = async {
                let sight = inner.beacon.look(&*way.bare).await;
                if matches!(sight, Sight::Shown(_)) {
                    one.send_replace(true);
                }
                sight
            };
            let late = async {
                // Fails only without a sender, which is here.
                let _ = told.wait_for(|told| *told).await;
                sleep(STRAGGLERS).await;
            };
            tokio::select! {
                biased;
                sight = look => sight,
                () = late => Sight::Dark("it has not answered while others have".to_owned()),
            }
        }
    });
    let sights: Vec<Sight> = join_all(looks).await;
    let named = ways.iter().zip(&sights).map(|((_, way), sight)| (&way.spec, sight.clone()));
    inner.beacon.compare(&named.collect::<Vec<_>>())?;
    if !sights.iter().any(|sight| matches!(sight, Sight::Shown(_))) {
        return Ok(());
    }
    let now = inner.now();
    for ((id, way), sight) in ways.iter().zip(sights) {
        if let Sight::Dark(why) = sight {
            let mut state = inner.state();
            state.switch.fail(*id, &why, now);
            // No failure of what has worked: not worth a warning by every command.
            state.switch.take_changes();
            tracing::info!("path {} is not used yet: {why}", way.spec.name());
        }
    }
    inner.change(|_| ());
    inner.wake.notify_one();
    Ok(())
}
