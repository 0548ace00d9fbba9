//! A store that is not the home store is gone for good, and another one takes its place; and owners that write nothing make
//! copies complete as well.

use super::damaged::{filled, is_right};
use super::*;
use objblk::pool::several::Replacement;

impl World {
    /// The same, whose other store has nothing any more.
    fn without_far(&self) -> World {
        let [home, _, third] = self.places.clone();
        World { places: [home, MemoryStore::new(), third], id: self.id }
    }

    async fn several(&self, reach: &Reach) -> Result<Several> {
        let home = self.link(HOME, reach);
        let pool = Pool::open(home.clone()).await?;
        let opener = Arc::new(Opens { world: self.clone(), reach: reach.clone() });
        let spread = Spread::open(pool.object().id, Layers::one(home), opener).await?;
        Ok(Several::new(pool, spread))
    }

    /// The store that is not the home store, as of a version of the pool that never changes.
    async fn far(&self) -> StoreId {
        self.several(&Reach::new()).await.unwrap().spread().version().object.stores[1].id
    }

    async fn replaced(&self, reach: &Reach) -> Result<Replacement> {
        let new = third();
        self.several(reach).await?.replace(self.far().await, &new).await
    }
}

fn third() -> NewStore {
    NewStore { url: URLS[THIRD].into(), endpoints: Vec::new(), region: None, weight: 100 }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_writes_nothing_makes_a_store_complete() {
    for lost in [HOME, FAR] {
        let world = World::new().await;
        let first = world.now().await;
        let volume = first.open(world.id, 1).await.unwrap();
        assert!(put(&volume, 0, 1, 5).await);
        first.reach.set(lost, false);
        assert!(put(&volume, 1, 1, 60).await);
        volume.abandon();
        first.reach.left.store(-1, SeqCst);
        let next = world.now().await;
        let volume = next.open(world.id, 2).await.unwrap();
        next.resynced(world.id).await;
        let check = async |volume: &Volume| {
            assert!(has(volume, 0, 1).await && has(volume, 1, 1).await);
        };
        world.each_alone(check).await;
        assert!(put(&volume, 2, 1, 5).await);
        volume.close().await.unwrap();
        world.is_twice(&world.now().await).await;
    }
}

/// Who has the volume meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owned {
    No,
    /// And has noticed nothing.
    Idle,
    /// And goes on without the store.
    Alone,
}

#[tokio::test(start_paused = true)]
async fn a_volume_whose_other_store_is_gone_has_two_copies_again() {
    for owned in [Owned::No, Owned::Idle, Owned::Alone] {
        let world = filled().await;
        let owner = world.now().await;
        let mut volume = None;
        if owned != Owned::No {
            volume = Some(owner.open(world.id, 9).await.unwrap());
        }
        owner.reach.set(FAR, false);
        if let (Owned::Alone, Some(volume)) = (owned, &volume) {
            assert!(put(volume, 0, 2, 60).await);
        }
        let lost = world.without_far();
        let losing = lost.several(&Reach::new()).await.unwrap().losing(lost.far().await).await;
        assert_eq!(losing.unwrap().mirrored, [world.id]);
        let done = lost.replaced(&Reach::new()).await.unwrap();
        assert_eq!(done.volumes, [world.id], "{owned:?}");
        let again = lost.replaced(&Reach::new()).await.unwrap();
        assert_eq!(again.store, done.store);
        // Nobody has it: the next one that opens it makes it complete, without a write.
        let (process, volume) = match volume {
            Some(volume) => {
                assert!(put(&volume, 0, 2, 60).await);
                (owner, volume)
            }
            None => {
                let process = lost.now().await;
                let volume = process.open(world.id, 10).await.unwrap();
                (process, volume)
            }
        };
        process.resynced(world.id).await;
        let state = process.mirror.state(world.id).await.unwrap().unwrap();
        assert_eq!(state.replicas, [StoreId::HOME, done.store], "{owned:?}");
        is_right(&volume).await;
        assert!(put(&volume, 1, 1, 5).await, "{owned:?}");
        volume.close().await.unwrap();
        lost.is_twice_in(&lost.now().await, THIRD).await;
        lost.each_alone_in(THIRD, async |volume| is_right(volume).await).await;
        let report = Doctor::new(&lost.now().await.pool, true, None).check_all().await.unwrap();
        assert!(report.clean, "{report:?}");
        // The new one may go and come back like any other.
        let process = lost.now().await;
        let volume = process.open(world.id, 11).await.unwrap();
        process.reach.set(HOME, false);
        assert!(put(&volume, 3, 1, 60).await, "{owned:?}");
        process.reach.set(HOME, true);
        process.resynced(world.id).await;
        volume.close().await.unwrap();
        lost.is_twice_in(&lost.now().await, THIRD).await;
    }
}

/// Somebody who knew the volume before it was replaced, and has slept since, finds the newest state, wherever that is.
#[tokio::test(start_paused = true)]
async fn who_knew_it_before_finds_it_in_its_other_store() {
    let world = filled().await;
    let sleeper = world.now().await;
    assert_eq!(sleeper.in_sync(world.id).await.len(), 2);
    sleeper.reach.set(FAR, false);
    let lost = world.without_far();
    lost.replaced(&Reach::new()).await.unwrap();
    let process = lost.now().await;
    let volume = process.open(world.id, 10).await.unwrap();
    process.resynced(world.id).await;
    process.reach.set(HOME, false);
    assert!(put(&volume, 1, 3, 60).await);
    volume.abandon();
    process.reach.left.store(-1, SeqCst);
    // The home store is not complete any more, and only the third one says so.
    assert_eq!(sleeper.in_sync(world.id).await.len(), 1);
    let volume = sleeper.open(world.id, 11).await.unwrap();
    assert!(has(&volume, 1, 3).await);
    volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn replacing_a_store_survives_death_at_every_request() {
    let whole = filled().await;
    let (mut deaths, mut step) = (0, 0);
    loop {
        let mut done = 0;
        for late in [false, true] {
            let at = format!("step {step}, late {late}");
            let world = whole.fork().await.without_far();
            let reach = Reach { late, ..Reach::new() };
            reach.left.store(step, SeqCst);
            let first = world.replaced(&reach).await;
            done += u32::from(first.is_ok());
            deaths += u32::from(first.is_err());
            // Somebody may have it before it is gone on with.
            if let (true, Ok(volume)) = (late, world.now().await.open(world.id, 4).await) {
                assert!(put(&volume, 0, 2, 60).await, "{at}");
                volume.abandon();
            }
            let again = world.replaced(&Reach::new()).await.unwrap_or_else(|e| panic!("{at}: {e}"));
            let process = world.now().await;
            let volume = process.open(world.id, 5).await.unwrap_or_else(|e| panic!("{at}: {e}"));
            is_right(&volume).await;
            process.resynced(world.id).await;
            volume.close().await.unwrap();
            let state = process.mirror.state(world.id).await.unwrap().unwrap();
            assert_eq!(state.replicas, [StoreId::HOME, again.store], "{at}");
            world.is_twice_in(&world.now().await, THIRD).await;
        }
        if done == 2 {
            break;
        }
        step += 1;
    }
    assert!(deaths > 20, "{deaths} deaths");
    eprintln!("{deaths} deaths");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_replaced_is_told() {
    let world = filled().await;
    let several = world.several(&Reach::new()).await.unwrap();
    let far = world.far().await;
    let answers = several.losing(far).await.unwrap_err();
    assert_eq!(answers.kind(), ErrorKind::Busy, "{answers}");
    for (id, kind) in
        [(StoreId::HOME, ErrorKind::Usage), (StoreId::of_number(1), ErrorKind::NotFound)]
    {
        assert_eq!(several.losing(id).await.unwrap_err().kind(), kind);
        assert_eq!(several.replace(id, &third()).await.unwrap_err().kind(), kind);
    }
    let home = NewStore { url: URLS[HOME].into(), ..third() };
    let lost = world.without_far();
    let several = lost.several(&Reach::new()).await.unwrap();
    assert_eq!(several.replace(far, &home).await.unwrap_err().kind(), ErrorKind::Exists);
    world.places[THIRD]
        .put(&objblk::store::Key::new("x").unwrap(), Bytes::from_static(b"x"))
        .await
        .unwrap();
    let full = several.replace(far, &third()).await.unwrap_err();
    assert_eq!(full.kind(), ErrorKind::Exists, "{full}");
    assert_eq!(several.spread().version().object.number, 1, "something was changed");
    let process = world.now().await;
    let volume = process.open(world.id, 3).await.unwrap();
    is_right(&volume).await;
    volume.close().await.unwrap();
}
