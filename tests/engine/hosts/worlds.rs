//! Several hosts that do things at once, in seeded worlds: whatever they were told has an order.

use super::{MIB, Node, SIZE, delete, make, question, runtime};
use crate::linear::{Event, Op, State as Now, Told, is_linearizable};
use crate::rig::Rig;
use objblk::daemon::control::decode;
use objblk::daemon::{Reply, Request};
use objblk::error::{Error, ErrorKind, Result};
use objblk::format::SnapshotId;
use objblk::mutant::{self, Mutant};
use objblk::requests::{State, ask};
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::{Op as StoreOp, StoreErrorKind};
use objblk::volume::{Mode, list_snapshots, ownership};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::sleep;

/// Several hosts, a volume, and what they were told.
struct World {
    rig: Rig,
    node: Mutex<Option<Node>>,
    clock: AtomicU64,
    history: Mutex<Vec<Event>>,
    hasty: bool,
}

const WORLDS: u64 = 300;

const NAMES: [&str; 3] = ["s0", "s1", "s2"];

impl World {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, SeqCst)
    }

    fn node(&self) -> Option<Node> {
        self.node.lock().unwrap().clone()
    }

    fn note(&self, op: Op, told: Told, from: u64) {
        let to = if told == Told::Unknown { u64::MAX } else { self.tick() };
        self.history.lock().unwrap().push(Event { op, told, from, to });
    }

    fn request(&self, op: Op) -> Request {
        match op {
            Op::Make(name) => make(&self.rig, NAMES[usize::from(name)]),
            Op::Delete(name) => delete(&self.rig, NAMES[usize::from(name)]),
            Op::Grow(size) => Request::Grow { volume: self.rig.id, size },
            Op::List | Op::Size => unreachable!("it is read from the store"),
        }
    }

    /// What a reader of the store is told.
    async fn read(&self, op: Op) -> Told {
        let store = &*self.rig.store;
        match op {
            Op::Size => match ownership(store, self.rig.id).await {
                Ok(ownership) => Told::Size(ownership.size.bytes()),
                Err(_) => Told::Unknown,
            },
            _ => match list_snapshots(store, self.rig.id).await {
                Ok(entries) => Told::Names(entries.iter().fold(0, |names, entry| {
                    names | 1 << NAMES.iter().position(|name| *name == entry.name).unwrap()
                })),
                Err(_) => Told::Unknown,
            },
        }
    }

    /// Has the owner do it, as a verb on another host does. `None`: it is sure that it was not done.
    async fn ask(&self, op: Op, patience: Duration, random: u64) -> Option<Told> {
        let store = &*self.rig.store;
        for attempt in 0..3 {
            let term = ownership(store, self.rig.id).await.ok()?.epoch;
            let question = question(&self.rig, self.request(op), random + attempt);
            match ask(store, question, term, patience).await {
                Ok((_, State::Answered(answer))) => {
                    return Some(heard(decode(answer.reply.as_bytes())));
                }
                Ok((_, State::Withdrawn | State::PassedOver(_))) => {}
                Ok(_) | Err(_) => return Some(Told::Unknown),
            }
        }
        None
    }
}

/// What a reply tells; what may have happened all the same tells nothing.
fn heard(reply: Result<Reply>) -> Told {
    let kind = match reply {
        Ok(Reply::Snapshots(_)) => return Told::Done,
        Ok(Reply::Grown { old_size }) => return Told::Grown(old_size),
        Ok(Reply::Refused(refusal)) => Error::from(refusal).kind(),
        Ok(_) => panic!("another reply"),
        Err(e) => e.kind(),
    };
    match kind {
        ErrorKind::Exists => Told::Exists,
        ErrorKind::NotFound => Told::NotFound,
        ErrorKind::Usage => Told::Larger,
        _ => Told::Unknown,
    }
}

fn any_op(rng: &mut StdRng) -> Op {
    let name = rng.random_range(0..NAMES.len()) as u8;
    match rng.random_range(0..10) {
        0..3 => Op::Make(name),
        3..5 => Op::Delete(name),
        5..8 => Op::List,
        8 => Op::Grow(SIZE + rng.random_range(1..20) * MIB),
        _ => Op::Size,
    }
}

/// A host that owns nothing.
async fn asker(world: Arc<World>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..6 {
        sleep(Duration::from_millis(rng.random_range(0..3000))).await;
        let (op, from) = (any_op(&mut rng), world.tick());
        let patience = Duration::from_millis(rng.random_range(300..6000));
        let told = match op {
            Op::List | Op::Size => Some(world.read(op).await),
            _ => world.ask(op, patience, rng.random()).await,
        };
        if let Some(told) = told {
            world.note(op, told, from);
        }
    }
}

/// Somebody on the host of the owner.
async fn local(world: Arc<World>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..6 {
        sleep(Duration::from_millis(rng.random_range(0..4000))).await;
        let (Some(node), op) = (world.node(), any_op(&mut rng)) else { continue };
        if matches!(op, Op::List | Op::Size) {
            continue;
        }
        let (from, token) = (world.tick(), SnapshotId::from_random(rng.random()));
        let done = Node::carry_out(&node, world.request(op), token).await;
        // One that is deposed and does not know it may be wrong; it commits nothing.
        let told = match (&done, node.volume.confirm().await) {
            (Err(_), Err(_)) => Told::Unknown,
            _ => heard(done),
        };
        world.note(op, told, from);
    }
}

/// Owners come and go: killed, closed in order, or superseded and still there.
async fn owners(world: Arc<World>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut zombies = Vec::new();
    for pid in 1..5 {
        let volume = loop {
            match world.rig.open_as(pid, Mode::ReadWrite { takeover: true }).await {
                Ok(volume) => break volume,
                Err(e) => assert_ne!(e.kind(), ErrorKind::Corrupt, "{e}"),
            }
            sleep(Duration::from_millis(10)).await;
        };
        let node = Node { hasty: world.hasty, ..Node::new(volume) };
        *world.node.lock().unwrap() = Some(node.clone());
        let every = Duration::from_millis(rng.random_range(200..2500));
        let (ending, mut serving) = node.serve(&world.rig, every);
        sleep(Duration::from_millis(rng.random_range(2000..7000))).await;
        if pid == 4 {
            zombies.push((ending, node, serving));
            break;
        }
        match rng.random_range(0..4) {
            0 => {
                ending.send_replace(true);
                let _ = (&mut serving).await;
                let _ = node.volume.close().await;
            }
            1 => zombies.push((ending, node, serving)),
            kind => {
                // Best in the middle of something.
                for _ in 0..100 * (kind - 2) {
                    let all = world.rig.objects("requests/").await;
                    let ends = |suffix| all.iter().filter(|name| name.ends_with(suffix)).count();
                    if ends("-decision") > ends("-answer") {
                        break;
                    }
                    sleep(Duration::from_millis(20)).await;
                }
                sleep(Duration::from_millis(rng.random_range(0..120))).await;
                serving.abort();
                node.volume.abandon();
            }
        }
    }
    // Longer than anybody asks.
    sleep(Duration::from_secs(130)).await;
    drop(zombies);
}

/// Runs a world. Returns whether its history is linearizable, and how many of it heard something.
fn run(seed: u64, made: Option<Mutant>, hasty: bool) -> (bool, usize) {
    let world = async {
        let rig = Rig::new(seed, SIZE).await;
        let delay = |at| {
            Rule::new(Fault::Delay { at, from: Duration::ZERO, to: Duration::from_millis(40) })
        };
        let lost = Fault::Fail(Moment::After, StoreErrorKind::Unavailable);
        rig.faults.add(delay(Moment::Before));
        rig.faults.add(delay(Moment::After));
        rig.faults.add(Rule::new(lost).on(&[StoreOp::Put]).with_probability(0.03));
        let late = Rule::new(Fault::Duplicate(Duration::from_secs(4))).on(&[StoreOp::Put]);
        rig.faults.add(late.with_probability(0.03));
        let world = Arc::new(World {
            rig,
            node: Mutex::default(),
            clock: AtomicU64::default(),
            history: Mutex::default(),
            hasty,
        });
        let mut tasks = vec![tokio::spawn(owners(world.clone(), seed))];
        tasks.extend((1..4).map(|n| tokio::spawn(asker(world.clone(), seed << 8 | n))));
        tasks.push(tokio::spawn(local(world.clone(), seed << 8 | 9)));
        for task in tasks {
            task.await.unwrap();
        }
        // What there is at the end.
        for op in [Op::List, Op::Size] {
            let from = world.tick();
            world.note(op, world.read(op).await, from);
        }
        let history = world.history.lock().unwrap().clone();
        let heard = history.iter().filter(|event| event.told != Told::Unknown).count();
        let good = is_linearizable(&history, Now { names: 0, size: SIZE });
        if !good && made.is_none() && !hasty {
            let mut told = history;
            told.sort_by_key(|event| event.from);
            told.iter().for_each(|event| eprintln!("{event:?}"));
        }
        (good, heard)
    };
    mutant::with(made, || runtime().block_on(world))
}

#[test]
fn what_several_hosts_do_at_once_has_an_order() {
    let first: u64 = std::env::var("OBJBLK_SEED").map_or(1, |seed| seed.parse().unwrap());
    let worlds: u64 = std::env::var("OBJBLK_CASES").map_or(WORLDS, |cases| cases.parse().unwrap());
    let mut heard = 0;
    for seed in first..first + worlds {
        let (good, events) = run(seed, None, false);
        assert!(good, "no order explains this history: OBJBLK_SEED={seed}");
        heard += events;
    }
    eprintln!("{worlds} worlds, {heard} outcomes");
    assert!(heard > worlds as usize * 10, "{heard} outcomes are few");
}

#[test]
fn mistakes_are_noticed_by_the_histories_that_they_make() {
    let noticed = |made, hasty| (1..200).find(|seed| !run(*seed, made, hasty).0);
    for made in [Mutant::RequestWithdrawnServed, Mutant::RequestServedAgain] {
        let seed = noticed(Some(made), false);
        eprintln!("{made:?}: {seed:?}");
        assert!(seed.is_some(), "{made:?} is not noticed");
    }
    let seed = noticed(None, true);
    eprintln!("answers before it is done: {seed:?}");
    assert!(seed.is_some(), "an owner that answers too early is not noticed");
}
