//! The home store is gone for good: another one takes its place, and the volumes of the store that is left have two
//! copies again.

use super::damaged::{filled, is_right};
use super::*;
use objblk::pool::VolumeName;
use objblk::pool::several::{Rescued, rescue};

fn left() -> NewStore {
    NewStore { url: URLS[FAR].into(), endpoints: Vec::new(), region: None, weight: 100 }
}

impl World {
    /// The same without its home store, and an empty one in its place; the other store is the same one.
    fn without_home(&self) -> World {
        let [_, far, third] = self.places.clone();
        World { places: [MemoryStore::new(), far, third], id: self.id }
    }

    async fn rescued(&self, reach: &Reach) -> Result<Vec<Rescued>> {
        let (home, there) = (self.link(HOME, reach), self.link(FAR, reach));
        let name: VolumeName = "data".parse().unwrap();
        rescue(&home, &there, &left(), &BTreeMap::from([(self.id, name)])).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_home_is_gone_has_another_one_and_two_copies_again() {
    let world = filled().await;
    // Somebody goes on using it, and does not know.
    let before = world.now().await;
    let former = before.open(world.id, 9).await.unwrap();
    assert!(put(&former, 0, 2, 5).await);
    let world_after = world.without_home();
    let rescued = world_after.rescued(&Reach::new()).await.unwrap();
    assert_eq!((rescued.len(), rescued[0].name.as_deref()), (1, Some("data")));
    let process = world_after.now().await;
    let volume = process.open(world.id, 10).await.unwrap();
    is_right(&volume).await;
    assert!(!put(&former, 1, 7, 60).await, "two owners acknowledge");
    former.abandon();
    // An owner makes the other copy complete, whether anything is written or not.
    process.resynced(world.id).await;
    assert!(put(&volume, 1, 1, 5).await && put(&volume, 3, 1, 5).await);
    volume.close().await.unwrap();
    world_after.is_twice(&world_after.now().await).await;
    world_after.each_alone(async |volume| is_right(volume).await).await;
    // The former pool does not get at it any more.
    assert!(world.now().await.open(world.id, 11).await.is_err());
    let again = world_after.rescued(&Reach::new()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Exists);
}

#[tokio::test(start_paused = true)]
async fn a_rescue_survives_death_at_every_request() {
    let whole = filled().await;
    let (mut deaths, mut step) = (0, 0);
    loop {
        let mut done = 0;
        for late in [false, true] {
            let world = whole.fork().await.without_home();
            let reach = Reach { late, ..Reach::new() };
            reach.left.store(step, SeqCst);
            let first = world.rescued(&reach).await;
            done += u32::from(first.is_ok());
            deaths += u32::from(first.is_err());
            match world.rescued(&Reach::new()).await {
                Ok(rescued) => assert_eq!(rescued.len(), 1, "step {step}, late {late}"),
                Err(e) => assert!(e.to_string().contains("a pool was made in it"), "{e}"),
            }
            let process = world.now().await;
            let volume = process.open(world.id, 5).await.unwrap();
            is_right(&volume).await;
            assert!(put(&volume, 0, 2, 5).await);
            process.resynced(world.id).await;
            volume.close().await.unwrap();
            world.is_twice(&world.now().await).await;
        }
        if done == 2 {
            break;
        }
        step += 1;
    }
    assert!(deaths > 20, "{deaths} deaths");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_rescued_is_told() {
    let world = filled().await;
    let reach = Reach::new();
    let names = BTreeMap::new();
    let home = world.link(HOME, &reach);
    let there = world.link(FAR, &reach);
    let taken = rescue(&home, &there, &left(), &names).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Exists);
    let empty: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let none = rescue(&empty, &home, &left(), &names).await.unwrap_err();
    assert_eq!(none.kind(), ErrorKind::NotFound);
    assert!(list_all(&*empty, "").await.unwrap().is_empty(), "something was put");
    // A copy that was left out is none to go on with.
    let process = world.now().await;
    let volume = process.open(world.id, 3).await.unwrap();
    process.reach.set(FAR, false);
    assert!(put(&volume, 0, 5, 60).await);
    volume.abandon();
    let world = world.without_home();
    let rescued = world.rescued(&Reach::new()).await.unwrap();
    // It has not heard of that: what was written since is not there, and nothing else is lost.
    assert_eq!(rescued[0].name.as_deref(), Some("data"));
    let volume = world.now().await.open(world.id, 4).await.unwrap();
    assert!(has(&volume, 0, 2).await);
    volume.abandon();
}
