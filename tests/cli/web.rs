//! A web server with one file, which may stand still or do as some servers do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// A running server. It ends with the test.
pub struct Web {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    body: Arc<Vec<u8>>,
    tag: String,
    /// It serves parts.
    parts: bool,
    /// Answers are given to what begins before this byte.
    until: u64,
    /// Requests, by their first byte.
    asked: BTreeMap<u64, usize>,
    /// Errors that are answered before anything else.
    errors: usize,
}

impl Web {
    pub fn serve(body: Vec<u8>) -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/image.raw?signature=secret", listener.local_addr().unwrap());
        let state = State {
            body: Arc::new(body),
            tag: "\"one\"".into(),
            parts: true,
            until: u64::MAX,
            asked: BTreeMap::new(),
            errors: 0,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&all);
                std::thread::spawn(move || answer(client, &shared));
            }
        });
        Web { url, shared }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.lock().unwrap());
        self.shared.changed.notify_all();
    }

    /// Stands still before everything that begins at `byte` or behind.
    pub fn stop_at(&self, byte: u64) {
        self.change(|state| state.until = byte);
    }

    pub fn go_on(&self) {
        self.change(|state| state.until = u64::MAX);
    }

    /// It has another file.
    pub fn replace(&self, tag: &str) {
        self.change(|state| state.tag = format!("\"{tag}\""));
    }

    pub fn serve_whole(&self) {
        self.change(|state| state.parts = false);
    }

    /// Answers so many requests with 503.
    pub fn fail(&self, errors: usize) {
        self.change(|state| state.errors = errors);
    }

    /// Waits for a request for what begins at `byte`.
    pub fn wait_for(&self, byte: u64) {
        let state = self.shared.state.lock().unwrap();
        let asked = |state: &mut State| !state.asked.contains_key(&byte);
        drop(self.shared.changed.wait_while(state, asked).unwrap());
    }

    /// First bytes of what was asked for since the last time.
    pub fn asked(&self) -> Vec<u64> {
        let asked = std::mem::take(&mut self.shared.state.lock().unwrap().asked);
        asked.into_keys().collect()
    }
}

/// Answers one request; `None` where the client is gone.
fn answer(mut client: TcpStream, shared: &Shared) -> Option<()> {
    let mut lines = BufReader::new(client.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    let mut range = None;
    for line in lines {
        let line = line.ok()?.to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("range: bytes=") {
            let (first, last) = value.split_once('-')?;
            range = Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?));
        }
    }
    let first = range.map_or(0, |(first, _)| first);
    let mut state = shared.state.lock().unwrap();
    *state.asked.entry(first).or_default() += 1;
    shared.changed.notify_all();
    let mut state = shared.changed.wait_while(state, |state| first >= state.until).unwrap();
    let (body, tag, parts) = (Arc::clone(&state.body), state.tag.clone(), state.parts);
    let busy = state.errors > 0;
    state.errors = state.errors.saturating_sub(1);
    drop(state);
    if busy || !request.contains("/image.raw") {
        let status = if busy { "503 Slow Down" } else { "404 Not Found" };
        return client
            .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())
            .ok();
    }
    let size = body.len() as u64;
    let (status, part, extra) = match range.filter(|_| parts) {
        Some((first, last)) => {
            let last = last.min(size - 1);
            let extra = format!("content-range: bytes {first}-{last}/{size}\r\n");
            ("206 Partial Content", first..last + 1, extra)
        }
        None => ("200 OK", 0..size, String::new()),
    };
    let part = &body[part.start as usize..part.end as usize];
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: {tag}\r\n{extra}connection: close\r\n\r\n",
        part.len()
    );
    client.write_all(head.as_bytes()).ok()?;
    client.write_all(part).ok()
}
