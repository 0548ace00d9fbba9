//! `objblk create --source`: a volume that is an image at once, and has it later.

use crate::program::{
    BUSY, CORRUPT, Home, USAGE, attempt, noise, qemu_io, qemu_io_reading, tool, until,
};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const MIB: usize = 1 << 20;

/// 8 MiB: 3 of noise, 2 of zeros, 3 of ones.
fn image() -> Vec<u8> {
    let mut image = noise(3 * MIB);
    image.resize(5 * MIB, 0);
    image.resize(8 * MIB, 1);
    image
}

fn source_of(home: &Home, name: &str) -> Value {
    home.run(&["status", name, "--json"]).json()["source"].clone()
}

/// What a volume holds, over NBD.
fn contents(home: &Home, name: &str, flags: &[&str]) -> Vec<u8> {
    let server = home.serve(&[&[name], flags].concat());
    let out = home.path("contents");
    tool("nbdcopy", &[&server.uri, &out.display().to_string()]);
    home.run(&["detach", name]).ok();
    assert_eq!(server.ended().0, 0);
    fs::read(out).unwrap()
}

#[test]
fn a_file_is_a_disk_at_once_and_may_go_later() {
    let home = Home::new();
    let file = home.path("image.raw");
    fs::write(&file, image()).unwrap();
    let path = file.display().to_string();
    let refused = ["create", "small", "--source", &path, "--size", "4M"];
    home.run(&refused).refuses(USAGE, "the source has 8388608 bytes, more than the volume");
    home.run(&["create", "gone", "--source", "/gone"]).refuses(1, "cannot read /gone");
    home.run(&["create", "bad", "--source", "ftp://a/b"]).refuses(USAGE, "no address of an image");
    home.run(&["create", "disk", "--source", &path, "--size", "10M"]).ok();
    let info = home.run(&["info", "disk", "--json"]).json();
    assert_eq!(info["source"], format!("file://{path}"));
    assert_eq!(info["size"], 10 * MIB);

    let server = home.serve(&["disk", "--lazy"]);
    assert!(qemu_io(&server.uri, &["read -P 1 6M 64k", "write -P 9 7M 64k", "read -P 0 8M 2M"]));
    let source = source_of(&home, "disk");
    assert_eq!(source["fetched_bytes"], 64 << 10, "{source}");
    assert_eq!(source["absent_bytes"], 8 * MIB - (128 << 10), "{source}");
    // A snapshot of the half of it.
    home.run(&["snapshot", "create", "disk@early"]).ok();
    home.run(&["clone", "disk@early", "copy"]).ok();
    home.run(&["detach", "disk"]).ok();
    server.ended();
    home.run(&["resize", "disk", "--size", "4M", "--shrink"]).refuses(BUSY, "its source");

    let mut expected = image();
    expected[7 * MIB..7 * MIB + (64 << 10)].fill(9);
    expected.resize(10 * MIB, 0);
    assert!(contents(&home, "copy", &[]) == expected);
    assert!(contents(&home, "disk@early", &[]) == expected);
    assert!(home.run(&["flatten", "disk"]).ok().contains("disk: "));
    fs::remove_file(&file).unwrap();
    assert!(contents(&home, "disk", &[]) == expected);
    assert!(source_of_served(&home, "disk").is_null());
    // The snapshot still needs it, and says so.
    let refused = home.run(&["serve", "nbd", "disk@early"]);
    refused.fails(1, "the source of the volume is needed");
}

fn source_of_served(home: &Home, name: &str) -> Value {
    let server = home.serve(&[name]);
    let source = source_of(home, name);
    home.run(&["detach", name]).ok();
    server.ended();
    source
}

#[test]
fn a_file_that_was_changed_is_refused() {
    let home = Home::new();
    let file = home.path("image.raw");
    fs::write(&file, image()).unwrap();
    home.run(&["create", "disk", "--source", &file.display().to_string()]).ok();
    let server = home.serve(&["disk", "--lazy"]);
    assert!(qemu_io_reading(&server.uri, &["read -P 1 6M 64k"]));
    std::thread::sleep(Duration::from_millis(20));
    let mut changed = image();
    changed[0] ^= 1;
    fs::write(&file, changed).unwrap();
    assert!(!qemu_io_reading(&server.uri, &["read 0 64k"]), "bytes of another image");
    assert!(qemu_io_reading(&server.uri, &["read -P 1 6M 64k"]));
    let trouble = source_of(&home, "disk")["trouble"].to_string();
    assert!(trouble.contains("was changed"), "{trouble}");
    home.run(&["detach", "disk"]).ok();
    server.ended();
    home.run(&["serve", "nbd", "disk"]).fails(CORRUPT, "was changed");
}

/// Ends a server with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_export_of_qemu_is_a_source() {
    let home = Home::new();
    let (raw, qcow2) = (home.path("image.raw"), home.path("image.qcow2"));
    fs::write(&raw, image()).unwrap();
    let (raw, qcow2) = (raw.display().to_string(), qcow2.display().to_string());
    tool("qemu-img", &["convert", "-O", "qcow2", &raw, &qcow2]);
    let socket = home.path("qemu.sock").display().to_string();
    let begin = || {
        let args = ["-r", "-t", "-e", "8", "-x", "golden", "-k", &socket, &qcow2];
        let server = Ended(Command::new("qemu-nbd").args(args).spawn().unwrap());
        let uri = format!("nbd+unix:///golden?socket={socket}");
        until("qemu-nbd serves", || attempt("nbdinfo", &["--size", &uri]).status.success());
        (server, uri)
    };
    let (server, uri) = begin();
    let wrong = uri.replace("golden", "silver");
    home.run(&["create", "disk", "--source", &wrong]).refuses(1, "\"silver\" is refused");
    home.run(&["create", "disk", "--source", &uri]).ok();
    // An outage of the source is waited for.
    let served = home.serve(&["disk", "--lazy"]);
    assert!(qemu_io_reading(&served.uri, &["read -P 1 5M 64k"]));
    drop(server);
    let reader = std::thread::spawn({
        let uri = served.uri.clone();
        move || qemu_io_reading(&uri, &["read -P 1 6M 1M"])
    });
    until("the source is missed", || !source_of(&home, "disk")["trouble"].is_null());
    assert!(!reader.is_finished());
    let (server, _) = begin();
    assert!(reader.join().unwrap());
    home.run(&["detach", "disk"]).ok();
    served.ended();
    assert!(contents(&home, "disk", &["--lazy"]) == image());
    drop(server);
    assert!(contents(&home, "disk", &[]) == image(), "all of it was read, so it is there");
}

/// A web server that gives parts of one image, and what it gave.
struct Web {
    url: String,
    given: Arc<AtomicU64>,
    tag: Arc<Mutex<&'static str>>,
}

impl Web {
    fn new(image: Vec<u8>) -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/moved", listener.local_addr().unwrap());
        let (given, tag) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new("\"one\"")));
        let (image, counted, tagged) = (Arc::new(image), given.clone(), tag.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (image, counted, tagged) = (image.clone(), counted.clone(), tagged.clone());
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                    loop {
                        let head: Vec<String> = lines
                            .by_ref()
                            .map_while(|line| line.ok().filter(|line| !line.is_empty()))
                            .collect();
                        let Some(first) = head.first() else { return };
                        let answer = answer(first, &head, &image, *tagged.lock().unwrap());
                        counted.fetch_add(answer.1.len() as u64, Ordering::Relaxed);
                        stream.write_all(answer.0.as_bytes()).unwrap();
                        stream.write_all(answer.1).unwrap();
                    }
                });
            }
        });
        Web { url, given, tag }
    }
}

fn answer<'a>(first: &str, head: &[String], image: &'a [u8], tag: &str) -> (String, &'a [u8]) {
    if first.contains("/moved") {
        let moved = "HTTP/1.1 302 Found\r\nlocation: /image\r\ncontent-length: 0\r\n\r\n";
        return (moved.into(), &[]);
    }
    let field = |name: &str| {
        head.iter().find_map(|line| line.to_lowercase().strip_prefix(name).map(str::to_owned))
    };
    let range = field("range: bytes=").unwrap();
    let (start, end) = range.split_once('-').unwrap();
    let (start, end): (usize, usize) = (start.parse().unwrap(), end.parse().unwrap());
    let fresh = field("if-range: ").is_none_or(|known| known == tag);
    let (status, body) = match fresh {
        true => ("206 Partial Content", &image[start..=end]),
        false => ("200 OK", image),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\netag: {tag}\r\ncontent-range: bytes {start}-{end}/{}\r\n\
         content-length: {}\r\n\r\n",
        image.len(),
        body.len()
    );
    (head, body)
}

#[test]
fn a_web_server_is_a_source_and_only_what_is_read_is_fetched() {
    let home = Home::new();
    let web = Web::new(image());
    home.run(&["create", "disk", "--source", &web.url]).ok();
    let begun = web.given.load(Ordering::Relaxed);
    let served = home.serve(&["disk", "--lazy"]);
    let reads = ["read -P 1 5M 512", "read -P 1 5243392 4k", "read -P 0 3M 64k", "read -P 1 6M 1M"];
    assert!(qemu_io_reading(&served.uri, &reads));
    let moved = web.given.load(Ordering::Relaxed) - begun;
    let blocks = 18 * (64 << 10);
    eprintln!("{moved} bytes moved, {blocks} in the blocks that were read");
    assert!((blocks..blocks + 16).contains(&moved), "{moved} bytes for {blocks} of blocks");
    home.run(&["detach", "disk"]).ok();
    served.ended();
    // In the background all of it is fetched, each byte once.
    let served = home.serve(&["disk"]);
    until("all is there", || source_of(&home, "disk")["absent_bytes"] == 0);
    let moved = web.given.load(Ordering::Relaxed) - begun;
    assert!(moved < 8 * MIB as u64 + 64, "{moved} bytes of an image of 8 MiB");
    home.run(&["detach", "disk"]).ok();
    served.ended();
    *web.tag.lock().unwrap() = "\"two\"";
    assert!(contents(&home, "disk", &[]) == image());
    home.run(&["create", "other", "--source", &web.url]).ok();
    *web.tag.lock().unwrap() = "\"three\"";
    home.run(&["serve", "nbd", "other"]).fails(CORRUPT, "was changed");
}
