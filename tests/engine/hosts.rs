//! Owners that are asked through the store: each request is carried out at most once, however owners and askers
//! come and go.

#[path = "hosts/worlds.rs"]
mod worlds;

use crate::rig::Rig;
use async_trait::async_trait;
use objblk::clock::SystemClock;
use objblk::daemon::control::{decode, encode};
use objblk::daemon::{Reply, Request, SnapshotAction, act, told};
use objblk::error::{Error, ErrorKind, Result};
use objblk::format::SnapshotId;
use objblk::format::frame::Compression;
use objblk::format::keys::{self, RequestId, RequestPart};
use objblk::format::request::AskedBy;
use objblk::mutant::{self, Mutant};
use objblk::requests::{self, Clerk, Desk, Question, State, ask, state, withdraw};
use objblk::store::Op as StoreOp;
use objblk::store::fault::{Fault, Moment, Rule};
use objblk::store::metrics::MetricsStore;
use objblk::units::{Epoch, SectorCount};
use objblk::volume::{Mode, Volume, list_snapshots, ownership};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;
/// Twice in the heartbeat of a volume that nobody said otherwise for.
const EVERY: Duration = Duration::from_secs(5);

/// A volume with an owner.
#[derive(Clone)]
struct Node {
    volume: Volume,
    growing: Arc<Mutex<()>>,
    /// It says that it is done before it is.
    hasty: bool,
}

impl Node {
    fn new(volume: Volume) -> Node {
        Node { volume, growing: Arc::default(), hasty: false }
    }

    async fn carry_out(&self, request: Request, token: SnapshotId) -> Result<Reply> {
        match request {
            Request::Snapshots { action, .. } => {
                act(&self.volume, action, token).await.map(Reply::Snapshots)
            }
            Request::Grow { size, .. } => {
                let _turn = self.growing.lock().await;
                let old_size = self.volume.status().size;
                if size < old_size {
                    return Err(Error::usage("it is larger already"));
                }
                self.volume.resize(SectorCount(size / 512)).await?;
                self.volume.checkpoint().await?;
                Ok(Reply::Grown { old_size })
            }
            _ => Err(Error::usage("not for another host")),
        }
    }

    /// Serves other hosts, until that is to end.
    fn serve(&self, rig: &Rig, every: Duration) -> (watch::Sender<bool>, JoinHandle<()>) {
        let epoch = Epoch(self.volume.status().epoch);
        let (clerk, clock) = (Arc::new(self.clone()), Arc::new(SystemClock));
        let desk = Desk::new(rig.store.clone(), (rig.id, epoch), clerk, clock);
        let (ending, ends) = watch::channel(false);
        (ending, tokio::spawn(desk.serve(every, ends)))
    }
}

fn line(reply: Result<Reply>) -> String {
    let reply = reply.unwrap_or_else(|e| Reply::Refused(e.into()));
    String::from_utf8(encode(reply)).unwrap().trim_end().to_owned()
}

#[async_trait]
impl Clerk for Node {
    async fn carry_out(&self, order: &str, token: SnapshotId) -> String {
        let request: Request = decode(order.as_bytes()).unwrap();
        if let (true, Request::Snapshots { action: SnapshotAction::Make(_), .. }) =
            (self.hasty, &request)
        {
            let node = self.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(300)).await;
                Node::carry_out(&node, request, token).await
            });
            return line(Ok(Reply::Snapshots(Vec::new())));
        }
        line(Node::carry_out(self, request, token).await)
    }

    fn tell(&self, order: &str, token: SnapshotId) -> String {
        line(decode(order.as_bytes()).and_then(|request| told(&self.volume, &request, token)))
    }

    async fn still_owns(&self) -> bool {
        self.volume.confirm().await.is_ok()
    }
}

fn by(random: u64) -> AskedBy {
    AskedBy { host: "asker".into(), pid: 7, at_ms: 0, nonce: format!("{random:x}") }
}

fn question(rig: &Rig, request: Request, random: u64) -> Question {
    let order = String::from_utf8(encode(request)).unwrap().trim_end().to_owned();
    Question { volume: rig.id, order, by: by(random) }
}

fn make(rig: &Rig, name: &str) -> Request {
    Request::Snapshots { volume: rig.id, action: SnapshotAction::Make(name.into()) }
}

fn delete(rig: &Rig, name: &str) -> Request {
    Request::Snapshots { volume: rig.id, action: SnapshotAction::Delete(name.into()) }
}

/// Asks the owner of `epoch`, in the background.
fn asks(
    rig: &Rig,
    request: Request,
    (epoch, patience): (u64, u64),
) -> JoinHandle<Result<(RequestId, State)>> {
    let (store, patience) = (rig.store.clone(), Duration::from_secs(patience));
    let question = question(rig, request, rand::random());
    tokio::spawn(async move { ask(&*store, question, Epoch(epoch), patience).await })
}

fn reply(state: State) -> Reply {
    let State::Answered(answer) = state else { panic!("{state:?}") };
    decode(answer.reply.as_bytes()).unwrap()
}

fn refusal(state: State) -> Error {
    let Reply::Refused(refusal) = reply(state) else { panic!("it is done") };
    refusal.into()
}

async fn names(rig: &Rig) -> Vec<String> {
    let listed = list_snapshots(&*rig.store, rig.id).await.unwrap();
    listed.into_iter().map(|entry| entry.name).collect()
}

fn part(rig: &Rig, (epoch, number): (u64, u32), part: RequestPart) -> String {
    keys::request(rig.id, RequestId { epoch: Epoch(epoch), number }, part).to_string()
}

#[tokio::test(start_paused = true)]
async fn an_owner_is_asked_from_anywhere() {
    let rig = Rig::new(1, SIZE).await;
    let node = Node::new(rig.open().await);
    let (ending, serving) = node.serve(&rig, EVERY);
    let first = asks(&rig, make(&rig, "a"), (1, 30));
    let grow = asks(&rig, Request::Grow { volume: rig.id, size: 2 * SIZE }, (1, 30));
    let (id, made) = first.await.unwrap().unwrap();
    assert_eq!(reply(made).snapshots().unwrap()[0].name, "a");
    let (other, grown) = grow.await.unwrap().unwrap();
    assert_eq!(reply(grown).grown().unwrap(), SIZE);
    assert_ne!(id, other, "each has a number of its own");
    assert_eq!(names(&rig).await, ["a"]);
    let size = ownership(&*rig.store, rig.id).await.unwrap().size;
    assert_eq!(size.bytes(), 2 * SIZE, "whoever reads the store sees it");
    let again = asks(&rig, make(&rig, "a"), (1, 30)).await.unwrap().unwrap().1;
    assert_eq!(refusal(again).kind(), ErrorKind::Exists);
    let (_, deleted) = asks(&rig, delete(&rig, "a"), (1, 30)).await.unwrap().unwrap();
    assert!(reply(deleted).snapshots().is_ok() && names(&rig).await.is_empty());
    let all = requests::all(&*rig.store, rig.id).await.unwrap();
    assert_eq!(all.iter().map(|(id, _)| id.number).collect::<Vec<_>>(), [0, 1, 2, 3]);
    ending.send(true).unwrap();
    serving.await.unwrap();
    node.volume.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn nobody_answers_and_nothing_is_done() {
    let rig = Rig::new(1, SIZE).await;
    let node = Node::new(rig.open().await);
    // An owner that hears nobody, as one that hangs.
    let (id, withdrawn) = asks(&rig, make(&rig, "a"), (1, 10)).await.unwrap().unwrap();
    assert_eq!(withdrawn, State::Withdrawn);
    let (ending, serving) = node.serve(&rig, EVERY);
    let next = asks(&rig, make(&rig, "b"), (1, 30)).await.unwrap().unwrap();
    assert!(reply(next.1).snapshots().is_ok(), "those behind it are served");
    assert_eq!(names(&rig).await, ["b"], "a is not made");
    assert_eq!(state(&*rig.store, rig.id, id).await.unwrap(), State::Withdrawn);
    // What is done cannot be withdrawn.
    let late = withdraw(&*rig.store, rig.id, next.0, "x".into()).await.unwrap();
    assert_eq!(late, State::Taken);
    drop(ending);
    serving.await.unwrap();
    // Who asks one that goes does not wait for ever.
    let asked = asks(&rig, make(&rig, "c"), (1, 600));
    sleep(Duration::from_secs(1)).await;
    node.volume.close().await.unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(asked.await.unwrap().unwrap().1, State::Withdrawn);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// Its owner dies before it answers: with `held`, a request of it to the store that does not come back.
async fn left_by_its_owner(held: RequestPart, moment: Moment) -> (Rig, State) {
    let rig = Rig::new(1, SIZE).await;
    let node = Node::new(rig.open().await);
    let hold = Rule::new(Fault::Hold(moment)).on(&[StoreOp::Put]).times(1);
    let hold = rig.faults.add(hold.below(part(&rig, (1, 0), held)));
    let (_ending, serving) = node.serve(&rig, EVERY);
    let asked = asks(&rig, make(&rig, "a"), (1, 60));
    hold.held(1).await;
    serving.abort();
    node.volume.abandon();
    let next = Node::new(rig.take_over(2).await);
    let (ending, serving) = next.serve(&rig, EVERY);
    let (id, told) = asked.await.unwrap().unwrap();
    // It arrives all the same, too late.
    hold.release();
    sleep(Duration::from_secs(20)).await;
    assert_eq!(state(&*rig.store, rig.id, id).await.unwrap(), told);
    drop(ending);
    serving.await.unwrap();
    next.volume.close().await.unwrap();
    (rig, told)
}

#[tokio::test(start_paused = true)]
async fn the_next_owner_tells_what_the_last_one_did() {
    let (rig, state) = left_by_its_owner(RequestPart::Answer, Moment::Before).await;
    assert_eq!(names(&rig).await, ["a"]);
    assert_eq!(reply(state).snapshots().unwrap()[0].name, "a");
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_and_not_done_is_told_to_be_cut_off() {
    let (rig, state) = left_by_its_owner(RequestPart::Decision, Moment::After).await;
    assert!(names(&rig).await.is_empty(), "nobody does it later");
    let e = refusal(state);
    assert!(e.to_string().contains("was replaced before it told"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn what_a_former_owner_was_asked_is_passed_over() {
    let rig = Rig::new(1, SIZE).await;
    let silent = rig.open().await;
    let asked = asks(&rig, make(&rig, "a"), (1, 600));
    sleep(Duration::from_millis(150)).await;
    let next = Node::new(rig.take_over(2).await);
    let (_ending, _serving) = next.serve(&rig, EVERY);
    let (id, state) = asked.await.unwrap().unwrap();
    assert!(matches!(state, State::PassedOver(Epoch(2)) | State::Withdrawn), "{state:?}");
    // The old one wakes up, and finds what is decided.
    let (_old, serving) = Node::new(silent).serve(&rig, EVERY);
    sleep(Duration::from_secs(30)).await;
    assert!(names(&rig).await.is_empty(), "request {id} was carried out");
    serving.abort();
}

/// One that was deposed and does not know it tells nobody what it believes.
async fn a_deposed_owner_is_asked(made: Option<Mutant>) -> State {
    let rig = Rig::new(1, SIZE).await;
    let mut options = rig.options.clone();
    // It does not look by itself.
    options.watch_every = None;
    let old = Node::new(rig.open_with(1, options).await.unwrap());
    act(&old.volume, SnapshotAction::Make("a".into()), SnapshotId::from_bytes([1; 16]))
        .await
        .unwrap();
    let next = Node::new(rig.take_over(2).await);
    next.volume.delete_snapshot("a").await.unwrap();
    // As by one who has read who owns it before.
    let question = question(&rig, make(&rig, "a"), 1);
    let asked = ask(&*rig.store, question, Epoch(1), Duration::ZERO);
    let (_ending, serving) = old.serve(&rig, Duration::from_millis(20));
    let _ = asked.await.unwrap();
    sleep(Duration::from_secs(60)).await;
    serving.abort();
    assert!(made.is_some() || serving.is_finished());
    let id = RequestId { epoch: Epoch(1), number: 0 };
    state(&*rig.store, rig.id, id).await.unwrap()
}

#[test]
fn a_deposed_owner_answers_nothing() {
    let asked = |made| mutant::with(made, || runtime().block_on(a_deposed_owner_is_asked(made)));
    assert_eq!(asked(None), State::Taken);
    let wrong = asked(Some(Mutant::RequestAnsweredUnsure));
    assert_eq!(refusal(wrong).kind(), ErrorKind::Exists, "the mistake is noticed");
}

#[tokio::test(start_paused = true)]
async fn what_is_damaged_keeps_nobody_waiting() {
    let rig = Rig::new(1, SIZE).await;
    let node = Node::new(rig.open().await);
    for number in 0..2 {
        let question = question(&rig, make(&rig, "lost"), number);
        ask(&*rig.store, question, Epoch(1), Duration::ZERO).await.unwrap();
    }
    rig.replace(&part(&rig, (1, 0), RequestPart::Asked), b"{}".to_vec()).await;
    rig.replace(&part(&rig, (1, 1), RequestPart::Decision), b"{}".to_vec()).await;
    let (_ending, _serving) = node.serve(&rig, EVERY);
    let (id, made) = asks(&rig, make(&rig, "a"), (1, 30)).await.unwrap().unwrap();
    assert!(id.number == 2 && reply(made).snapshots().is_ok());
    assert_eq!(names(&rig).await, ["a"]);
}

/// The only requests of a quiet owner, and what they leave.
#[tokio::test(start_paused = true)]
async fn waiting_to_be_asked_costs_a_look_now_and_then() {
    let rig = Rig::new(1, SIZE).await;
    let metrics = Arc::new(MetricsStore::new(rig.store.clone()));
    let node = Node::new(rig.open().await);
    let (_ending, serving) =
        node.serve(&Rig { store: metrics.clone(), ..rig.memory_only() }, EVERY);
    sleep(Duration::from_secs(1)).await;
    let count = || metrics.snapshot().operations.into_iter().map(|(name, o)| (name, o.requests));
    let before: Vec<_> = count().collect();
    sleep(Duration::from_secs(3600)).await;
    let spent: Vec<_> = count()
        .zip(before)
        .map(|((name, after), (_, before))| (name, after - before))
        .filter(|(_, requests)| *requests > 0)
        .collect();
    assert_eq!(spent, [("head".to_owned(), 720)]);

    for name in ["a", "b", "c"] {
        asks(&rig, make(&rig, name), (1, 30)).await.unwrap().unwrap();
    }
    assert_eq!(rig.objects("requests/").await.len(), 9);
    sleep(Duration::from_secs(3700)).await;
    let left = rig.objects("requests/").await;
    assert_eq!(left.len(), 3, "the newest stays: {left:?}");
    let (id, _) = asks(&rig, delete(&rig, "c"), (1, 30)).await.unwrap().unwrap();
    assert_eq!(id.number, 3, "numbers go on from there");
    serving.abort();
    node.volume.close().await.unwrap();
    let next = Node::new(rig.open_as(2, Mode::ReadWrite { takeover: false }).await.unwrap());
    let (_ending, _serving) = next.serve(&rig, EVERY);
    sleep(Duration::from_secs(3700)).await;
    assert_eq!(rig.objects("requests/").await, [""; 0], "the next owner deletes the rest");
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_of_an_encrypted_volume_is_sealed() {
    let rig = Rig::encrypted(1, SIZE, Compression::None).await;
    let node = Node::new(rig.open().await);
    let (_ending, _serving) = node.serve(&rig, EVERY);
    let (_, made) = asks(&rig, make(&rig, "very-secret"), (1, 30)).await.unwrap().unwrap();
    assert!(reply(made).snapshots().is_ok());
    let objects = rig.objects("requests/").await;
    assert_eq!(objects.len(), 3);
    for name in objects {
        let body = rig.object(&name).await;
        let tells = body.windows(6).any(|part| part == b"secret" || part == b"versio");
        assert!(!tells, "{name} is in the clear");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap()
}
