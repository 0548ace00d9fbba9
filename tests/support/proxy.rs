//! A TCP proxy before a server: counts connections, and damages or loses what it carries, or
//! carries nothing, on demand.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A running proxy. It ends with the runtime.
pub struct Proxy {
    endpoint: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    connections: AtomicUsize,
    flips: AtomicUsize,
    replies_to_lose: AtomicUsize,
    mark: Mutex<Option<Vec<u8>>>,
    outage: watch::Sender<bool>,
}

impl Proxy {
    /// A proxy before the server at `target` (`http://host:port`).
    pub async fn start(target: &str) -> Proxy {
        let target = target.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
        let state = Arc::new(State::default());
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                let (state, target) = (shared.clone(), target.clone());
                tokio::spawn(async move { carry(client, &target, state).await.ok() });
            }
        });
        Proxy { endpoint, state }
    }

    /// Its URL.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// From now on flips a bit of the last byte of `mark` in what clients send.
    pub fn flip_after(&self, mark: &[u8]) {
        *self.state.mark.lock().expect("no holder panics") = Some(mark.to_owned());
    }

    /// Breaks all connections, and new ones at once, until told otherwise.
    pub fn outage(&self, begins: bool) {
        self.state.outage.send_replace(begins);
    }

    /// Instead of passing on the next `count` replies, breaks their connections.
    pub fn lose_replies(&self, count: usize) {
        self.state.replies_to_lose.store(count, Ordering::Relaxed);
    }

    /// Replies still to be lost.
    pub fn replies_to_lose(&self) -> usize {
        self.state.replies_to_lose.load(Ordering::Relaxed)
    }

    /// Bits flipped so far.
    pub fn flips(&self) -> usize {
        self.state.flips.load(Ordering::Relaxed)
    }
}

async fn carry(client: TcpStream, target: &str, state: Arc<State>) -> io::Result<()> {
    let mut outage = state.outage.subscribe();
    let server = TcpStream::connect(target).await?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Whichever ends first takes both directions with it.
    tokio::select! {
        // The outage first: a small request may be there already, whole.
        biased;
        _ = outage.wait_for(|outage| *outage) => Ok(()),
        done = forth(from_client, to_server, &state) => done,
        done = back(from_server, to_client, &state) => done,
    }
}

/// Carries replies, except those to be lost.
async fn back(
    mut from_server: OwnedReadHalf,
    mut to_client: OwnedWriteHalf,
    state: &State,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let len = from_server.read(&mut buffer).await?;
        let one_less = |count: usize| count.checked_sub(1);
        let lost =
            state.replies_to_lose.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        if len == 0 || lost.is_ok() {
            return Ok(());
        }
        to_client.write_all(&buffer[..len]).await?;
    }
}

/// Carries requests; flips a bit behind the mark.
async fn forth(
    mut from_client: OwnedReadHalf,
    mut to_server: OwnedWriteHalf,
    state: &State,
) -> io::Result<()> {
    // How many bytes of the mark were seen: it may lie across two reads.
    let mut seen = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let len = from_client.read(&mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        let mark = state.mark.lock().expect("no holder panics").clone();
        if let Some(mark) = mark {
            for byte in &mut buffer[..len] {
                seen = if *byte == mark[seen] { seen + 1 } else { 0 };
                if seen == mark.len() {
                    *byte ^= 1;
                    seen = 0;
                    state.flips.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        to_server.write_all(&buffer[..len]).await?;
    }
}
