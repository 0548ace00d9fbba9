//! A TCP proxy that can be closed: the network between a host and its store.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A running gate. It ends with the test.
pub struct Gate {
    endpoint: String,
    closed: Arc<AtomicBool>,
    /// What comes is taken, and goes nowhere.
    swallows: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Gate {
    /// An open gate before the server at `target` (`http://host:port`).
    pub fn open(target: &str) -> Gate {
        let target = target.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let closed = Arc::new(AtomicBool::new(false));
        let swallows = Arc::new(AtomicBool::new(false));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let (shut, all, mute) = (closed.clone(), streams.clone(), swallows.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&target) else { continue };
                if shut.load(Ordering::SeqCst) {
                    continue;
                }
                let mut all = all.lock().unwrap();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    all.push(from.try_clone().unwrap());
                    let mute = mute.clone();
                    std::thread::spawn(move || carry(from, to, &mute));
                }
            }
        });
        Gate { endpoint, closed, swallows, streams }
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Cuts every connection, and every later one.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for stream in self.streams.lock().unwrap().drain(..) {
            // It may be gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// From now on nothing gets through, and nobody is told: as if packets were dropped.
    pub fn swallow(&self) {
        self.swallows.store(true, Ordering::SeqCst);
    }

    /// Lets connections through again. Of what was swallowed nothing comes back.
    pub fn reopen(&self) {
        self.closed.store(false, Ordering::SeqCst);
        self.swallows.store(false, Ordering::SeqCst);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, swallows: &AtomicBool) {
    let mut buffer = [0; 64 << 10];
    let mut lost = false;
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        // A stream that lacks a part never goes on.
        lost |= swallows.load(Ordering::SeqCst);
        if lost {
            continue;
        }
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
