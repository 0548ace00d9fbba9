//! A proxy before a real S3 server that treats requests as networks, gateways and busy servers do.
//!
//! A [`Profile`] says which faults befall requests, how many, and how far away the server seems. The
//! faults are dealt like cards: of `deck` requests each fault befalls one, in an order that follows
//! from the seed; a fault that does not suit a request waits for the next one that it suits. So every
//! fault of a profile happens within a few decks of requests, and [`FaultProxy::verdict`] fails a
//! run in which one never did.
//!
//! Whatever happens, the server gets what the client signed: the proxy changes no request.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use crate::http::{Head, Reply, Request, Stream};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

#[path = "fault_profile.rs"]
mod profile;

pub use profile::*;

/// A change that has been kept from the server, and what the server said to it in the end.
pub type Delivered = (String, u16);

/// What is done to all requests, whatever the profile says.
#[derive(Clone, Debug)]
enum Order {
    /// As the profile says.
    None,
    /// Changes are kept, and nobody is told; all else as the profile says.
    Keep,
    /// This answer to everything.
    Answer(u16, &'static str),
    /// Every connection is reset once it asks for something.
    Cut,
    /// Nothing arrives any more, in either direction.
    Silent,
}

/// What went through a proxy for a while.
#[derive(Clone, Debug, Default)]
pub struct Traffic {
    /// When requests arrived.
    pub arrivals: Vec<Instant>,
    /// The most that were under way at once.
    pub peak: usize,
    /// Requests that were too many; see [`FaultProxy::crowd`].
    pub refused: usize,
    under_way: usize,
}

/// A running proxy. It ends with the runtime.
pub struct FaultProxy {
    endpoint: String,
    state: Arc<State>,
}

struct State {
    target: String,
    profile: &'static Profile,
    cards: Mutex<Cards>,
    counts: Mutex<BTreeMap<Fault, usize>>,
    requests: Mutex<usize>,
    traffic: Mutex<Traffic>,
    /// Requests beyond so many at once are told to slow down.
    room: Mutex<usize>,
    /// When the link is free again: towards the server, and back.
    link: [Mutex<Instant>; 2],
    order: Mutex<Order>,
    kept: Mutex<Vec<Request>>,
    /// What was delivered late, and the answers.
    late: Mutex<Vec<Delivered>>,
    late_under_way: watch::Sender<usize>,
    /// What the proxy itself could not do.
    trouble: Mutex<Option<String>>,
}

/// The faults to come.
struct Cards {
    rng: StdRng,
    deck: Vec<Option<Fault>>,
    waiting: VecDeque<Fault>,
}

impl Cards {
    fn deal(&mut self, profile: &Profile, head: &Head) -> Option<Fault> {
        if let Some(at) = self.waiting.iter().position(|fault| fault.suits(head)) {
            return self.waiting.remove(at);
        }
        if self.deck.is_empty() {
            self.deck = profile.faults.iter().copied().map(Some).collect();
            self.deck.resize(profile.deck.max(self.deck.len()), None);
            self.deck.shuffle(&mut self.rng);
        }
        let fault = self.deck.pop().flatten()?;
        if fault.suits(head) {
            return Some(fault);
        }
        self.wait(fault);
        None
    }

    /// One of a kind waits at most: those that suit few requests must not befall all of these.
    fn wait(&mut self, fault: Fault) {
        if !self.waiting.contains(&fault) {
            self.waiting.push_back(fault);
        }
    }
}

/// What becomes of the client's connection.
enum Then {
    Goes,
    IsReset,
}

impl FaultProxy {
    /// A proxy before the server at `target` (`http://host:port`), on a port of `address`.
    pub async fn start(
        target: &str,
        address: &str,
        profile: &'static Profile,
        seed: u64,
    ) -> FaultProxy {
        let listener = TcpListener::bind((address, 0)).await.expect("a port is free");
        let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
        let cards =
            Cards { rng: StdRng::seed_from_u64(seed), deck: Vec::new(), waiting: VecDeque::new() };
        let state = Arc::new(State {
            target: target.trim_start_matches("http://").to_owned(),
            profile,
            cards: Mutex::new(cards),
            counts: Mutex::default(),
            requests: Mutex::default(),
            traffic: Mutex::default(),
            room: Mutex::new(usize::MAX),
            link: [Mutex::new(Instant::now()), Mutex::new(Instant::now())],
            order: Mutex::new(Order::None),
            kept: Mutex::default(),
            late: Mutex::default(),
            late_under_way: watch::Sender::new(0),
            trouble: Mutex::default(),
        });
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = shared.clone();
                // The client closes connections as it likes.
                tokio::spawn(async move { state.serve(client).await.ok() });
            }
        });
        FaultProxy { endpoint, state }
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// From now on every change is kept from the server, and its sender hears nothing.
    pub fn keep_changes(&self) {
        *lock(&self.state.order) = Order::Keep;
    }

    /// From now on everything is answered like that; `None`: by the server again.
    pub fn answer(&self, answer: Option<(u16, &'static str)>) {
        *lock(&self.state.order) = match answer {
            Some((status, code)) => Order::Answer(status, code),
            None => Order::None,
        };
    }

    /// From now on there is no way to the server, or there is again.
    pub fn cut(&self, cut: bool) {
        *lock(&self.state.order) = if cut { Order::Cut } else { Order::None };
    }

    /// From now on whatever is sent is lost, and what is on its way, as where packets are dropped; or it is
    /// carried again. What was lost stays lost.
    pub fn silence(&self, silent: bool) {
        *lock(&self.state.order) = if silent { Order::Silent } else { Order::None };
    }

    /// From now on the server takes so many requests at once and says SlowDown to the others.
    pub fn crowd(&self, room: usize) {
        *lock(&self.state.room) = room;
    }

    /// What went through since it was last asked for.
    pub fn traffic(&self) -> Traffic {
        let mut traffic = lock(&self.state.traffic);
        let under_way = traffic.under_way;
        std::mem::replace(&mut *traffic, Traffic { under_way, ..Traffic::default() })
    }

    /// How many changes are kept.
    pub fn kept(&self) -> usize {
        lock(&self.state.kept).len()
    }

    /// Delivers what was kept, whether or not its senders still live, and keeps no more.
    pub async fn deliver_kept(&self) -> Vec<Delivered> {
        *lock(&self.state.order) = Order::None;
        let kept = std::mem::take(&mut *lock(&self.state.kept));
        let mut delivered = Vec::new();
        for request in kept {
            let reply = self.state.ask_anew(&request).await.expect("the server answers");
            delivered.push((request.name(), reply.status));
        }
        delivered
    }

    /// How often each fault happened.
    pub fn counts(&self) -> BTreeMap<Fault, usize> {
        lock(&self.state.counts).clone()
    }

    /// Waits for what is delivered late, then fails if a fault of the profile never happened.
    /// Returns what happened, for people.
    pub async fn verdict(&self) -> String {
        let mut late = self.state.late_under_way.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(60), late.wait_for(|n| *n == 0));
        waited.await.expect("late requests arrive").expect("the proxy lives");
        let (counts, profile) = (self.counts(), self.state.profile);
        let requests = *lock(&self.state.requests);
        let trouble = lock(&self.state.trouble).take();
        assert_eq!(trouble, None, "the proxy failed");
        for fault in profile.faults {
            let happened = counts.get(fault).is_some_and(|count| *count > 0);
            assert!(happened, "{fault:?} never happened in {requests} requests: {counts:?}");
        }
        let late = lock(&self.state.late);
        let effective = late.iter().filter(|(_, status)| *status < 300).count();
        format!(
            "{}: {requests} requests, {counts:?}; of {} late ones {effective} took effect",
            profile.name,
            late.len()
        )
    }
}

impl Request {
    fn name(&self) -> String {
        format!("{} {}", self.head.method, self.head.target)
    }

    fn is_change(&self) -> bool {
        matches!(&*self.head.method, "PUT" | "POST" | "DELETE")
    }
}

impl State {
    async fn serve(self: Arc<State>, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut client = BufReader::new(client);
        let mut server = None;
        loop {
            let head = match Head::read(&mut client).await {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(()),
                Err(e) => {
                    if e.kind() == io::ErrorKind::Other {
                        *lock(&self.trouble) = Some(e.to_string());
                    }
                    return Err(e);
                }
            };
            *lock(&self.requests) += 1;
            lock(&self.traffic).arrivals.push(Instant::now());
            let order = lock(&self.order).clone();
            let then = match order {
                Order::Cut => Ok(Then::IsReset),
                Order::Silent => gone(&mut client).await,
                _ => self.attend(&mut client, &mut server, head).await,
            };
            if !matches!(then, Ok(Then::Goes)) {
                client.get_ref().set_zero_linger()?;
                return Ok(());
            }
        }
    }

    /// Does one request, or what befalls it.
    async fn attend(
        self: &Arc<State>,
        client: &mut Stream,
        server: &mut Option<Stream>,
        head: Head,
    ) -> io::Result<Then> {
        let order = lock(&self.order).clone();
        let fault = match order {
            Order::Answer(..) => None,
            _ => lock(&self.cards).deal(self.profile, &head),
        };
        if let Some(fault) = fault {
            *lock(&self.counts).entry(fault).or_default() += 1;
        }
        let body = self.body(client, &head).await?;
        let method = head.method.clone();
        let request = Request { head, body };
        if let Order::Answer(status, code) = order {
            return self.reply(client, &Reply::error(status, code, &method)).await;
        }
        if matches!(order, Order::Keep) && request.is_change() {
            lock(&self.kept).push(request);
            return gone(client).await;
        }
        let one = One::enters(self);
        self.travel().await;
        let refusal = match fault {
            _ if one.too_many => Reply::error(503, "SlowDown", &method),
            Some(Fault::Fails) => Reply::error(500, "InternalError", &method),
            Some(Fault::SlowDown) => Reply::error(503, "SlowDown", &method),
            Some(Fault::TooMany) => Reply::error(429, "TooManyRequests", &method),
            Some(Fault::ResetBefore) => return Ok(Then::IsReset),
            Some(Fault::Late) => {
                self.deliver_late(request);
                return Ok(Then::IsReset);
            }
            Some(Fault::HalfRequest) => {
                let mut broken = self.connect().await?;
                request.send(&mut broken, request.body.len() / 2).await?;
                return Ok(Then::IsReset);
            }
            Some(Fault::Twice) => {
                let (one, two) = tokio::join!(self.ask_anew(&request), self.ask_anew(&request));
                let first = lock(&self.cards).rng.random();
                return self.reply(client, &if first { one? } else { two? }).await;
            }
            _ => return self.pass(client, server, &request, fault).await,
        };
        self.reply(client, &refusal).await
    }

    /// Lets the server do the request, and does to the answer what the fault says.
    async fn pass(
        &self,
        client: &mut Stream,
        server: &mut Option<Stream>,
        request: &Request,
        fault: Option<Fault>,
    ) -> io::Result<Then> {
        let mut reply = self.ask(server, request).await?;
        match fault {
            Some(Fault::FailsLate) => {
                let error = Reply::error(500, "InternalError", &request.head.method);
                self.reply(client, &error).await
            }
            Some(Fault::ReplyLost) => Ok(Then::IsReset),
            Some(fault @ (Fault::HalfReply | Fault::WrongReply)) if reply.body().len() < 2 => {
                self.put_back(fault);
                self.reply(client, &reply).await
            }
            Some(Fault::HalfReply) => {
                reply.send_head(client).await?;
                client.write_all(&reply.body()[..reply.body().len() / 2]).await?;
                client.flush().await?;
                // Not at once: a reset overtakes what was sent.
                sleep(Duration::from_millis(20)).await;
                Ok(Then::IsReset)
            }
            Some(Fault::WrongReply) => {
                let at = lock(&self.cards).rng.random_range(0..reply.body().len());
                reply.body_mut()[at] ^= 0x10;
                self.reply(client, &reply).await
            }
            _ => self.reply(client, &reply).await,
        }
    }

    /// There was nothing that the fault could befall: it waits for the next request.
    fn put_back(&self, fault: Fault) {
        if let Some(count) = lock(&self.counts).get_mut(&fault) {
            *count -= 1;
        }
        lock(&self.cards).wait(fault);
    }

    async fn body(&self, client: &mut Stream, head: &Head) -> io::Result<Vec<u8>> {
        if head.expects {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            client.flush().await?;
        }
        let mut body = vec![0; head.length];
        for part in body.chunks_mut(64 << 10) {
            client.read_exact(part).await?;
            self.pace(0, part.len()).await;
        }
        Ok(body)
    }

    async fn reply(&self, client: &mut Stream, reply: &Reply) -> io::Result<Then> {
        if matches!(*lock(&self.order), Order::Silent) {
            return gone(client).await;
        }
        reply.send_head(client).await?;
        for part in reply.body().chunks(64 << 10) {
            self.pace(1, part.len()).await;
            client.write_all(part).await?;
        }
        client.flush().await?;
        Ok(Then::Goes)
    }

    async fn connect(&self) -> io::Result<Stream> {
        let server = TcpStream::connect(&self.target).await?;
        server.set_nodelay(true)?;
        Ok(BufReader::new(server))
    }

    /// The server's answer, by the connection that was used last or a new one.
    async fn ask(&self, server: &mut Option<Stream>, request: &Request) -> io::Result<Reply> {
        if server.is_none() {
            *server = Some(self.connect().await?);
        }
        let stream = server.as_mut().expect("it was just made");
        request.send(stream, usize::MAX).await?;
        Reply::read(stream, &request.head.method).await
    }

    async fn ask_anew(&self, request: &Request) -> io::Result<Reply> {
        self.ask(&mut None, request).await
    }

    fn deliver_late(self: &Arc<State>, request: Request) {
        let delay = lock(&self.cards).rng.random_range(500..4000);
        self.late_under_way.send_modify(|late| *late += 1);
        let state = self.clone();
        tokio::spawn(async move {
            sleep(Duration::from_millis(delay)).await;
            match state.ask_anew(&request).await {
                Ok(reply) => lock(&state.late).push((request.name(), reply.status)),
                Err(e) => *lock(&state.trouble) = Some(format!("{}: {e}", request.name())),
            }
            state.late_under_way.send_modify(|late| *late -= 1);
        });
    }

    /// The time that the way to the server and back takes.
    async fn travel(&self) {
        let Some(distance) = &self.profile.distance else { return };
        let ms = {
            let rng = &mut lock(&self.cards).rng;
            let (one_in, longest) = distance.tail;
            match rng.random_ratio(1, one_in) {
                true => rng.random_range(distance.trip.1..=longest),
                false => rng.random_range(distance.trip.0..=distance.trip.1),
            }
        };
        sleep(Duration::from_millis(ms)).await;
    }

    /// Waits until the link has carried `bytes` more.
    async fn pace(&self, way: usize, bytes: usize) {
        let Some(distance) = &self.profile.distance else { return };
        let until = {
            let mut free = lock(&self.link[way]);
            let takes = Duration::from_secs_f64(bytes as f64 / distance.rate as f64);
            *free = (*free).max(Instant::now()) + takes;
            *free
        };
        sleep_until(until).await;
    }
}

/// A request that is under way.
struct One<'a> {
    state: &'a State,
    too_many: bool,
}

impl One<'_> {
    fn enters(state: &State) -> One<'_> {
        let room = *lock(&state.room);
        let mut traffic = lock(&state.traffic);
        let too_many = traffic.under_way >= room;
        traffic.under_way += 1;
        traffic.peak = traffic.peak.max(traffic.under_way);
        traffic.refused += usize::from(too_many);
        One { state, too_many }
    }
}

impl Drop for One<'_> {
    fn drop(&mut self) {
        lock(&self.state.traffic).under_way -= 1;
    }
}

/// Waits, without a word, until the client gives up.
async fn gone(client: &mut Stream) -> io::Result<Then> {
    match client.read_u8().await {
        Ok(_) => pending().await,
        Err(_) => Ok(Then::IsReset),
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().expect("no holder panics")
}
