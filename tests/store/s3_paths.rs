//! Several paths to a real S3 server, each through a proxy that is slow, unreliable or cut.

use crate::conformance::{self, key, pattern};
use crate::fault_proxy::{CALM, Distance, Fault, FaultProxy, Profile};
use crate::s3_lab::{Bucket, S3Lab};
use objblk::error::ErrorKind;
use objblk::store::paths::PathsReport;
use objblk::store::paths::policy::PathPolicy;
use objblk::store::paths::s3::{PathOptions, S3Paths};
use objblk::store::paths::selector::Selector;
use objblk::store::paths::spec::PathSpec;
use objblk::store::paths::state::Condition;
use objblk::store::retry::{RetryPolicy, RetryStore};
use objblk::store::s3::{S3Location, S3Options};
use objblk::store::{GetRange, Store, StoreErrorKind, list_all};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

const SECOND: Duration = Duration::from_secs(1);

/// A link of 1 MiB/s, 50 ms away: so slow that what this machine is busy with matters little.
const LINK: Distance = Distance { trip: (40, 60), tail: (10_000, 100), rate: 1 << 20 };
const GOOD: Profile = Profile { name: "a good path", faults: &[], deck: 1, distance: Some(LINK) };
/// Eight of them are no work for this machine.
const NARROW: Profile = Profile {
    name: "a good path, and narrow",
    faults: &[],
    deck: 1,
    distance: Some(Distance { rate: 1 << 19, ..LINK }),
};
/// Requests under way for each path of a throughput.
const LANES: usize = 6;
const SLOW: Profile = Profile {
    name: "a path five times as slow",
    faults: &[],
    deck: 1,
    distance: Some(Distance { trip: (200, 300), tail: (10_000, 500), rate: (1 << 20) / 5 }),
};
const FLAKY: Profile = Profile {
    name: "a path that fails one request in five",
    faults: &[Fault::Fails],
    deck: 5,
    distance: Some(LINK),
};
const WEATHER: Profile = Profile {
    name: "bad weather",
    faults: &[Fault::Fails, Fault::FailsLate, Fault::ResetBefore, Fault::ReplyLost, Fault::Twice],
    deck: 60,
    distance: Some(Distance { trip: (1, 10), tail: (200, 500), rate: 200 << 20 }),
};

/// Options with these paths.
pub fn options(paths: &[String]) -> S3Options {
    let specs = paths.iter().map(|text| text.parse().unwrap()).collect();
    let policy = PathPolicy { check_every: SECOND / 4, ..PathPolicy::default() };
    S3Options { paths: PathOptions { specs, policy }, ..S3Lab::get().options() }
}

/// The bucket, by the paths of the options.
pub async fn paths(bucket: &str, options: &S3Options) -> S3Paths {
    let location = S3Location::new(bucket, "a/pool").unwrap();
    S3Paths::open(location, options, key("objblk.json")).await.unwrap()
}

struct World {
    bucket: Bucket,
    proxies: Vec<FaultProxy>,
    paths: S3Paths,
}

async fn world(profiles: &[&'static Profile]) -> World {
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    let mut proxies = Vec::new();
    for (i, profile) in profiles.iter().enumerate() {
        proxies.push(FaultProxy::start(&lab.endpoint, "127.0.0.1", profile, i as u64).await);
    }
    let endpoints: Vec<String> = proxies.iter().map(FaultProxy::endpoint).collect();
    let paths = paths(&bucket.name, &options(&endpoints)).await;
    let beacon = key("objblk.json");
    paths.store().put_if_absent(&beacon, b"the pool".as_slice().into()).await.unwrap();
    paths.store().verify().await.unwrap();
    World { bucket, proxies, paths }
}

impl World {
    fn report(&self) -> PathsReport {
        self.paths.store().report()
    }

    fn states(&self) -> Vec<Condition> {
        self.report().paths.iter().map(|path| path.state).collect()
    }

    /// As the layers of a volume have it.
    fn retried(&self) -> Arc<dyn Store> {
        let store = Arc::new(self.paths.store().clone());
        Arc::new(RetryStore::new(store, RetryPolicy::default(), StdRng::seed_from_u64(1)))
    }

    async fn until(&self, what: &str, such: impl Fn(&PathsReport) -> bool) {
        let begun = Instant::now();
        while !such(&self.report()) {
            assert!(begun.elapsed() < 90 * SECOND, "still not {what}: {:?}", self.states());
            sleep(SECOND / 50).await;
        }
    }
}

/// What a load came to.
#[derive(Debug, Default)]
struct Figures {
    requests: AtomicU64,
    bytes: AtomicU64,
    longest_ms: AtomicU64,
}

/// Lanes that put objects and get them back, until they are told to end. Nothing may fail.
struct Load {
    lanes: JoinSet<()>,
    figures: Arc<Figures>,
    ends: tokio::sync::watch::Sender<bool>,
}

impl Load {
    fn start(store: Arc<dyn Store>, below: &str, lanes: usize, len: usize) -> Load {
        let (figures, ends) =
            (Arc::new(Figures::default()), tokio::sync::watch::Sender::new(false));
        let mut tasks = JoinSet::new();
        for lane in 0..lanes {
            let (store, figures, end) = (store.clone(), figures.clone(), ends.subscribe());
            let below = format!("{below}/{lane}");
            tasks.spawn(async move {
                for i in 0.. {
                    if *end.borrow() {
                        return;
                    }
                    let (name, body) = (key(&format!("{below}/{i}")), pattern(len, i));
                    let begun = Instant::now();
                    store.put_if_absent(&name, body.clone()).await.unwrap();
                    let put = begun.elapsed();
                    let there = store.get(&name, GetRange::Part { offset: 0, len: len as u64 });
                    assert!(there.await.unwrap() == body, "{name} differs");
                    let longest = put.max(begun.elapsed() - put);
                    figures.requests.fetch_add(2, Relaxed);
                    figures.bytes.fetch_add(2 * len as u64, Relaxed);
                    figures.longest_ms.fetch_max(longest.as_millis() as u64, Relaxed);
                }
            });
        }
        Load { lanes: tasks, figures, ends }
    }

    /// The longest that a request has taken since this was asked for last.
    fn longest(&self) -> Duration {
        Duration::from_millis(self.figures.longest_ms.swap(0, Relaxed))
    }

    async fn end(self) -> Arc<Figures> {
        self.ends.send_replace(true);
        self.lanes.join_all().await;
        self.figures
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_load_is_shared_as_the_selector_says() {
    println!("| selector | slow | 20 % errors, then held out | good | good | requests/s |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for selector in Selector::ALL {
        let world = world(&[&SLOW, &FLAKY, &GOOD, &GOOD]).await;
        world.paths.store().set_selector(selector);
        let load = Load::start(world.retried(), "load", 32, 4 << 10);
        world.until("held out", |now| now.paths[1].state == Condition::Marginal).await;
        let sent = || world.report().paths.iter().map(|path| path.requests).collect::<Vec<_>>();
        let (begun, first) = (Instant::now(), sent());
        sleep(2 * SECOND).await;
        let later: Vec<u64> = sent().iter().zip(&first).map(|(now, then)| now - then).collect();
        let rate = later.iter().sum::<u64>() as f64 / begun.elapsed().as_secs_f64();
        load.end().await;
        let share = |of: &[u64], i: usize| of[i] as f64 / of.iter().sum::<u64>().max(1) as f64;
        let percent = |of: &[u64], i: usize| format!("{:.0} %", share(of, i) * 100.0);
        println!(
            "| {selector} | {} | {}, then {} | {} | {} | {rate:.0} |",
            percent(&later, 0),
            percent(&first, 1),
            percent(&later, 1),
            percent(&later, 2),
            percent(&later, 3)
        );
        let shares: Vec<f64> = (0..4).map(|i| share(&later, i)).collect();
        let (slow, flaky, good) = (shares[0], shares[1], shares[2].min(shares[3]));
        assert!(flaky < 0.05, "{selector}: {shares:?}");
        match selector {
            Selector::RoundRobin => assert!(slow > 0.8 * good, "{shares:?}"),
            _ => assert!(slow < 0.6 * good, "{selector}: {shares:?}"),
        }
        world.bucket.empty().await;
    }
}

/// Four paths are used as one, and four like them each by itself, at the same time: what else this machine does slows
/// both down alike.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_throughput_is_that_of_all_paths_together() {
    let world = world(&[&NARROW; 4]).await;
    let (mut alone, mut proxies) = (Vec::new(), Vec::new());
    for seed in 4..8 {
        let target = &S3Lab::get().endpoint;
        let proxy = FaultProxy::start(target, "127.0.0.1", &NARROW, seed).await;
        let path = paths(&world.bucket.name, &options(&[proxy.endpoint()])).await;
        let (store, rng) = (Arc::new(path.store().clone()), StdRng::seed_from_u64(seed));
        let store = RetryStore::new(store, RetryPolicy::default(), rng);
        alone.push(Arc::new(store) as Arc<dyn Store>);
        proxies.push(proxy);
    }
    let mut parts = Vec::new();
    for round in 0..3 {
        let load = |store: &Arc<dyn Store>, name: &str, lanes| {
            Load::start(store.clone(), &format!("{round}/{name}"), lanes, 64 << 10)
        };
        let together = load(&world.retried(), "together", 4 * LANES);
        let each = alone.iter().enumerate().map(|(i, path)| load(path, &i.to_string(), LANES));
        let each: Vec<Load> = each.collect();
        let moved = || {
            let bytes = |load: &Load| load.figures.bytes.load(Relaxed) as f64;
            (bytes(&together), each.iter().map(bytes).sum::<f64>())
        };
        // Until all of them go at their own pace.
        sleep(SECOND).await;
        let (begun, before) = (Instant::now(), moved());
        sleep(2 * SECOND).await;
        let (now, took) = (moved(), begun.elapsed().as_secs_f64());
        let (all, sum) = (now.0 - before.0, now.1 - before.1);
        for load in each.into_iter().chain([together]) {
            load.end().await;
        }
        let mib = |bytes: f64| bytes / f64::from(1 << 20) / took;
        println!(
            "4 paths of 2 x 512 KiB/s: {:.2} MiB/s put and got, {:.2} each by itself: {:.2}",
            mib(all),
            mib(sum),
            all / sum
        );
        parts.push(all / sum);
    }
    parts.sort_by(f64::total_cmp);
    assert!(parts[1] >= 0.9, "{parts:?}");
    world.bucket.empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_a_path_that_is_cut_under_load_is_left_and_comes_back() {
    let world = world(&[&GOOD; 4]).await;
    let load = Load::start(world.retried(), "load", 16, 64 << 10);
    sleep(SECOND).await;
    let before = load.longest();
    let begun = Instant::now();
    world.proxies[0].silence(true);
    // How it is left depends on how many requests met it: some more, and it is marginal.
    world.until("left", |now| now.paths[0].state != Condition::Active).await;
    let noticed = begun.elapsed();
    sleep(SECOND).await;
    let stall = load.longest();
    world.proxies[0].silence(false);
    world.until("readmitted", |now| now.paths[0].state == Condition::Active).await;
    // The same, refused at once instead of dropped.
    world.proxies[1].cut(true);
    world.until("left", |now| now.paths[1].state != Condition::Active).await;
    sleep(SECOND / 2).await;
    let refused = load.longest();
    world.proxies[1].cut(false);
    world.until("readmitted", |now| now.paths[1].state == Condition::Active).await;
    let figures = load.end().await;
    println!(
        "{} requests, no error; longest before {before:?}, path cut {stall:?} (noticed after \
         {noticed:?}), path refused {refused:?}",
        figures.requests.load(Relaxed)
    );
    assert!(stall < 5 * SECOND && refused < 5 * SECOND, "{stall:?}, {refused:?}");
    world.bucket.empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_all_paths_are_cut_and_come_back() {
    let world = world(&[&CALM; 3]).await;
    let load = Load::start(world.retried(), "load", 8, 64 << 10);
    sleep(SECOND).await;
    for round in 0..2 {
        let cut = |cut: bool| {
            for proxy in &world.proxies {
                if round == 0 { proxy.cut(cut) } else { proxy.silence(cut) }
            }
        };
        cut(true);
        sleep(2 * SECOND).await;
        let before = load.figures.requests.load(Relaxed);
        sleep(SECOND / 2).await;
        assert_eq!(load.figures.requests.load(Relaxed), before, "nothing can be done");
        cut(false);
        let all = |now: &PathsReport| now.paths.iter().all(|p| p.state == Condition::Active);
        world.until("as before", all).await;
    }
    let figures = load.end().await;
    let longest = figures.longest_ms.load(Relaxed);
    println!("{} requests, no error; the longest {longest} ms", figures.requests.load(Relaxed));
    world.bucket.empty().await;
}

/// A chunk that the path held back arrives when its slot has long been taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_late_requests_of_a_dead_path_change_nothing() {
    let world = world(&[&CALM; 2]).await;
    let store = world.retried();
    let slot = |i: usize| key(&format!("log/00/{i:016x}-0000000000000001"));
    world.proxies[0].keep_changes();
    // By the other path, once this one has said nothing for a second: or at once.
    let mut chunks = JoinSet::new();
    for i in 0..16 {
        let store = store.clone();
        chunks.spawn(async move { store.put_if_absent(&slot(i), pattern(50_000, i as u64)).await });
    }
    chunks.join_all().await.into_iter().for_each(|done| done.unwrap());
    let kept = world.proxies[0].kept();
    assert!(kept > 0, "the path was not used");
    // An owner that dies while its chunk is under way; the next one puts a fence into the slot.
    let only = options(&[world.proxies[0].endpoint()]);
    let old = paths(&world.bucket.name, &only).await.store().clone();
    let last = tokio::spawn(async move { old.put_if_absent(&slot(16), pattern(9, 9)).await });
    while world.proxies[0].kept() == kept {
        sleep(SECOND / 50).await;
    }
    last.abort();
    store.put_if_absent(&slot(16), b"fence".as_slice().into()).await.unwrap();

    let delivered = world.proxies[0].deliver_kept().await;
    println!("{} requests of the dead path arrived late: {delivered:?}", delivered.len());
    assert!(delivered.iter().all(|(_, status)| *status == 412), "{delivered:?}");
    for i in 0..16 {
        let there = store.get(&slot(i), GetRange::All).await.unwrap();
        assert!(there == pattern(50_000, i as u64), "slot {i} differs");
    }
    assert_eq!(store.get(&slot(16), GetRange::All).await.unwrap(), "fence");
    assert_eq!(list_all(&*store, "log/").await.unwrap().len(), 17);
    world.bucket.empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_paths_conform_in_bad_weather() {
    let world = world(&[&WEATHER; 3]).await;
    let store = || world.retried();
    world.bucket.empty().await;
    conformance::create_read_delete(store()).await;
    world.bucket.empty().await;
    conformance::ranges(store()).await;
    world.bucket.empty().await;
    conformance::listing_agrees_with_a_model(store()).await;
    world.bucket.empty().await;
    conformance::many_keys(store()).await;
    conformance::racing_creators(store()).await;
    for proxy in &world.proxies {
        println!("{:?}", proxy.counts());
    }
    world.bucket.empty().await;
}

/// A server that passes on all it hears, and knows where each connection came from.
async fn listener(target: &str) -> (String, Arc<Mutex<Vec<IpAddr>>>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (peers, target) = (Arc::new(Mutex::new(Vec::new())), target.replace("http://", ""));
    let seen = peers.clone();
    tokio::spawn(async move {
        while let Ok((mut client, peer)) = listener.accept().await {
            seen.lock().unwrap().push(peer.ip());
            let target = target.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(target).await.unwrap();
                // Either side closes connections as it likes.
                copy_bidirectional(&mut client, &mut server).await.ok();
            });
        }
    });
    (endpoint, peers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_paths_go_from_the_addresses_that_they_are_given() {
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    let (endpoint, peers) = listener(&lab.endpoint).await;
    let from = |address: &str| format!("{endpoint},source={address}");
    let both = options(&[from("127.0.0.5"), from("127.0.0.6")]);
    let opened = paths(&bucket.name, &both).await;
    for i in 0..8 {
        let key = key(&format!("x{i}"));
        opened.store().put_if_absent(&key, pattern(70_000, i)).await.unwrap();
        let there = opened.store().get(&key, GetRange::All).await.unwrap();
        assert_eq!(there, pattern(70_000, i));
    }
    let added = opened.add(from("127.0.0.7").parse().unwrap()).await.unwrap();
    assert_eq!(added, [from("127.0.0.7")]);
    let seen: BTreeSet<IpAddr> = peers.lock().unwrap().iter().copied().collect();
    let expected = ["127.0.0.5", "127.0.0.6", "127.0.0.7"].map(|ip| ip.parse().unwrap());
    assert_eq!(seen, BTreeSet::from(expected));

    // An address that this host does not have.
    let location = || S3Location::new(&bucket.name, "a/pool").unwrap();
    let lost = from("192.0.2.7");
    let refused = opened.add(lost.parse().unwrap()).await.unwrap_err();
    let alone = S3Paths::open(location(), &options(std::slice::from_ref(&lost)), key("x"))
        .await
        .unwrap_err();
    for error in [refused, alone] {
        assert_eq!(error.kind(), ErrorKind::Failed);
        let text = error.to_string();
        assert!(text.contains(&format!("the path {lost} cannot go from 192.0.2.7")), "{text}");
    }
    // With another path beside it, it is one that does not work.
    let beside = paths(&bucket.name, &options(&[lost, from("127.0.0.5")])).await;
    for i in 0..8 {
        beside.store().head(&key(&format!("x{i}"))).await.unwrap();
    }
    let report = beside.store().report();
    assert_ne!(report.paths[0].state, Condition::Active);
    let why = report.paths[0].last_error.as_ref().unwrap();
    assert!(why.contains("by 192.0.2.7") && why.contains("assign requested address"), "{why}");
    assert_eq!(report.paths[1].state, Condition::Active);
    bucket.empty().await;
}

/// A name with several addresses is as many paths; requests and signatures keep the name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_names_are_expanded_to_their_addresses() {
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    let pinned = S3Options {
        // Nobody else knows the name.
        endpoint_url: Some(lab.endpoint.replace("127.0.0.1", "objblk.invalid")),
        address: Some("127.0.0.1".parse().unwrap()),
        ..lab.options()
    };
    let location = S3Location::new(&bucket.name, "").unwrap();
    let store = objblk::store::s3::S3Store::connect(location.clone(), &pinned).await.unwrap();
    store.put_if_absent(&key("x"), pattern(100, 1)).await.unwrap();
    assert_eq!(bucket.root.get(&key("x"), GetRange::All).await.unwrap(), pattern(100, 1));
    let nowhere = S3Options { address: Some("127.0.0.2".parse().unwrap()), ..pinned.clone() };
    let nowhere = S3Options { endpoint_url: Some("http://objblk.invalid:1".into()), ..nowhere };
    let store = objblk::store::s3::S3Store::connect(location, &nowhere).await.unwrap();
    let error = store.head(&key("x")).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.detail.contains("(127.0.0.2)"), "{error}");

    // What this host calls itself by both families, or by one: its paths are its addresses.
    let port = lab.endpoint.rsplit(':').next().unwrap();
    let named = paths(&bucket.name, &options(&[format!("http://localhost:{port}")])).await;
    let specs: Vec<PathSpec> = named.store().specs();
    assert!(!specs.is_empty());
    assert_eq!(specs.len() > 1, specs.iter().all(|spec| spec.address.is_some()), "{specs:?}");
    let one = format!("http://localhost:{port},expand=no");
    assert_eq!(paths(&bucket.name, &options(&[one])).await.store().specs().len(), 1);
    let twice = options(&[lab.endpoint.clone(), lab.endpoint.clone()]);
    let location = S3Location::new(&bucket.name, "").unwrap();
    let error = S3Paths::open(location, &twice, key("objblk.json")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    bucket.empty().await;
}
