//! Who may use which export, and how many may.

use crate::certificates::Valid;
use crate::harness::{Running, libnbd, runtime, serve, serve_with};
use crate::raw::*;
use crate::tls::{World, disk, listed, secure};
use objblk::frontend::nbd::{Limits, TlsOptions};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn rules(rules: &[&str]) -> Vec<String> {
    rules.iter().map(|rule| (*rule).to_owned()).collect()
}

fn three_disks(tls: TlsOptions) -> Running {
    let offers = vec![("a", disk(1)), ("b", disk(1)), ("golden", disk(1))];
    serve_with(runtime(), false, Limits::default(), Some(tls), offers)
}

fn client(world: &World, name: &str) -> PathBuf {
    world.client(name, Some(&world.authority.client(name, Valid::Now)))
}

/// The last reply to GO, and the flags of the export.
fn go(server: &Running, client: &Path, export: &str) -> (u32, Option<u16>) {
    let mut raw = secure(Raw::connect(&server.socket()), client);
    raw.option(OPT_GO, &info_request(export, &[]));
    let (kind, data) = raw.option_reply(OPT_GO);
    let flags = (kind == 3).then(|| u16::from_be_bytes([data[10], data[11]]));
    (if flags.is_some() { raw.option_reply(OPT_GO).0 } else { kind }, flags)
}

#[test]
fn clients_see_what_they_may_use() {
    const READ_ONLY: u16 = 1 << 1;
    let world = World::new();
    let allow = rules(&["vm1=a", "vm1=b:ro", "backup=*:ro", "*=golden:ro", "host.example=b"]);
    let server = three_disks(TlsOptions { allow, ..world.options() });
    let (vm1, vm2, backup) =
        (client(&world, "vm1"), client(&world, "vm2"), client(&world, "backup"));
    let shown = world.authority.client_at("whoever", "host.example");
    let host = world.client("host", Some(&shown));
    let all = ["a", "b", "golden"];
    assert_eq!(listed(&server, &vm1).unwrap(), all);
    assert_eq!(listed(&server, &vm2).unwrap(), ["golden"]);
    assert_eq!(listed(&server, &backup).unwrap(), all);
    assert_eq!(listed(&server, &host).unwrap(), ["b", "golden"]);
    for (who, export, writes) in [
        (&vm1, "a", Some(true)),
        (&vm1, "b", Some(false)),
        (&vm1, "golden", Some(false)),
        (&vm1, "", None),
        (&vm2, "a", None),
        (&vm2, "golden", Some(false)),
        // The only one that it may use.
        (&vm2, "", Some(false)),
        (&backup, "a", Some(false)),
        (&host, "b", Some(true)),
        (&host, "a", None),
        (&host, "nope", None),
    ] {
        let (reply, flags) = go(&server, who, export);
        match writes {
            Some(writes) => {
                assert_eq!(reply, REP_ACK, "{who:?} {export}");
                assert_eq!(flags.unwrap() & READ_ONLY == 0, writes, "{who:?} {export}");
            }
            None => assert_eq!((reply, flags), (REP_ERR_UNKNOWN, None), "{who:?} {export}"),
        }
    }
    // What is there and what is not look the same to who may use neither.
    for export in ["a", "nope"] {
        let mut raw = secure(Raw::connect(&server.socket()), &vm2);
        assert_eq!(raw.negotiate(OPT_INFO, &info_request(export, &[])), REP_ERR_UNKNOWN);
        assert_eq!(raw.negotiate(OPT_STRUCTURED_REPLY, b""), REP_ACK);
        let meta = meta_request(export, &["base:allocation"]);
        assert_eq!(raw.negotiate(OPT_SET_META_CONTEXT, &meta), REP_ERR_UNKNOWN);
        raw.option(OPT_EXPORT_NAME, export.as_bytes());
        assert_eq!(raw.0.read(&mut [0; 1]).unwrap_or(0), 0, "{export} has an answer");
    }
    server.stop().unwrap();
}

#[test]
fn a_client_that_may_only_read_cannot_write() {
    let world = World::new();
    let allow = rules(&["writer=a", "reader=a:ro"]);
    let server = three_disks(TlsOptions { allow, ..world.options() });
    let script = |who: &str, rest: &str| {
        let dir = client(&world, who);
        let uri = format!("{}&tls-certificates={}", server.uri(), dir.display());
        let open = "h = nbd.NBD(); h.set_strict_mode(0); h.set_uri_allow_local_file(True)";
        libnbd(&uri, &format!("{open}\nh.connect_uri(uri)\n{rest}"));
    };
    script("writer", "assert not h.is_read_only(); h.pwrite(b'w' * 512, 0); h.flush()");
    script(
        "reader",
        r#"
assert h.is_read_only()
assert h.pread(512, 0) == b"w" * 512
fails(errno.EPERM, lambda: h.pwrite(bytearray(512), 0))
fails(errno.EPERM, lambda: h.zero(512, 0))
fails(errno.EPERM, lambda: h.trim(512, 0))
h.flush()
assert h.pread(512, 0) == b"w" * 512
"#,
    );
    server.stop().unwrap();
}

#[test]
fn a_file_of_rules_is_read_again_when_it_changes() {
    let world = World::new();
    let file = world.dir.path().join("rules");
    fs::write(&file, "# who may use what\nvm1 = a\n").unwrap();
    let allow_file = Some(file.clone());
    let server = three_disks(TlsOptions { allow_file, ..world.options() });
    let (vm1, vm2) = (client(&world, "vm1"), client(&world, "vm2"));
    let both = || (listed(&server, &vm1).unwrap(), listed(&server, &vm2).unwrap());
    let names = |names: &[&str]| rules(names);
    assert_eq!(both(), (names(&["a"]), names(&[])));
    fs::write(&file, "vm2 = b:ro\n").unwrap();
    assert_eq!(both(), (names(&[]), names(&["b"])));
    // What cannot be read lets nobody in who was not let in before.
    fs::write(&file, "vm2 = b:ro\nvm1\n").unwrap();
    assert_eq!(both(), (names(&[]), names(&["b"])));
    server.stop().unwrap();
}

#[test]
fn connections_are_limited_and_refused_politely() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let server = serve(runtime(), false, limits, vec![("disk", disk(1))]);
    let first = Raw::transmission(&server.socket());
    let _second = Raw::transmission(&server.socket());
    let mut third = Raw::connect(&server.socket());
    // Asking is free.
    assert_eq!(third.negotiate(OPT_LIST, b""), REP_ACK);
    assert_eq!(third.negotiate(OPT_INFO, &info_request("disk", &[])), REP_ACK);
    assert_eq!(third.negotiate(OPT_GO, &info_request("disk", &[])), REP_ERR_POLICY);
    let mut old = Raw::connect(&server.socket());
    old.option(OPT_EXPORT_NAME, b"disk");
    assert!(old.is_closed());
    drop(first);
    server.wait_until("one left", |status| status.connections == 1);
    // The seat is free a moment after the counter says so.
    let deadline = Instant::now() + Duration::from_secs(5);
    while third.negotiate(OPT_GO, &info_request("disk", &[])) != REP_ACK {
        assert!(Instant::now() < deadline, "the seat of a client that left is not free");
    }
    server.stop().unwrap();
}

#[test]
fn silent_clients_make_room() {
    let limits = Limits { handshakes: 8, handshake: Duration::from_secs(60), ..Limits::default() };
    let server = serve(runtime(), false, limits, vec![("disk", disk(1))]);
    let mut silent: Vec<Raw> = (0..40).map(|_| Raw::connect(&server.socket())).collect();
    // Each that came made the oldest leave, long before its time was up.
    assert!(silent[..32].iter_mut().all(Raw::is_closed));
    let mut raw = Raw::transmission(&server.socket());
    raw.request(CMD_READ, 1, 0, 512);
    assert_eq!(raw.reply(), (1, 0));
    // A session is not touched by who comes later.
    silent.extend((0..40).map(|_| Raw::connect(&server.socket())));
    raw.request(CMD_READ, 2, 0, 512);
    let _: [u8; 512] = raw.take();
    assert_eq!(raw.reply(), (2, 0));
    server.stop().unwrap();
}
