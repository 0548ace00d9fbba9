//! TLS: real clients through it, and everybody who must not get through.

use crate::certificates::{Authority, Pair, Valid, folder};
use crate::harness::{Ram, Running, attempt, pattern, run, runtime, serve_with, text};
use crate::raw::*;
use objblk::device::Checked;
use objblk::device::ram::RamDisk;
use objblk::error::ErrorKind;
use objblk::frontend::nbd::{Limits, Tls, TlsOptions};
use objblk::units::{BlockSize, SectorCount};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// An authority, a server of its, and clients with directories of their own.
pub struct World {
    pub dir: TempDir,
    pub authority: Authority,
}

impl World {
    pub fn new() -> World {
        let world = World { dir: tempfile::tempdir().unwrap(), authority: Authority::new("ours") };
        fs::set_permissions(world.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let server = folder(world.dir.path(), "server");
        world.authority.write(&server);
        world.authority.server(Valid::Now).write(&server, "server");
        world
    }

    pub fn server(&self) -> PathBuf {
        self.dir.path().join("server")
    }

    /// A client that trusts the authority and shows this.
    pub fn client(&self, name: &str, shows: Option<&Pair>) -> PathBuf {
        let dir = folder(self.dir.path(), name);
        self.authority.write(&dir);
        if let Some(pair) = shows {
            pair.write(&dir, "client");
        }
        dir
    }

    /// What its server needs to let nobody in without a certificate.
    pub fn options(&self) -> TlsOptions {
        TlsOptions {
            certificate: self.server().join("server-cert.pem"),
            key: self.server().join("server-key.pem"),
            client_ca: Some(self.server().join("ca-cert.pem")),
            required: true,
            allow: Vec::new(),
            allow_file: None,
        }
    }
}

pub fn disk(mib: u64) -> Ram {
    Arc::new(Checked::new(RamDisk::new(SectorCount(mib << 11), BlockSize::B512)))
}

fn serve(tcp: bool, tls: TlsOptions, mib: u64) -> Running {
    serve_with(runtime(), tcp, Limits::default(), Some(tls), vec![("disk", disk(mib))])
}

/// The URI for a client with this directory.
fn uri(server: &Running, client: &Path) -> String {
    let between = if server.uri().contains('?') { '&' } else { '?' };
    format!("{}{between}tls-certificates={}", server.uri(), client.display())
}

/// QEMU's words for the export, for a client with this directory.
fn qemu(server: &Running, client: &Path) -> [String; 3] {
    let port = server.uri().rsplit(':').next().unwrap().split('/').next().unwrap();
    let dir = client.display();
    [
        "--object".to_owned(),
        format!("tls-creds-x509,id=tls0,endpoint=client,dir={dir}"),
        format!("driver=nbd,host=127.0.0.1,port={port},export=disk,tls-creds=tls0"),
    ]
}

/// A client of the TLS library, through the handshake of TLS unless that fails.
pub type Secured = Raw<StreamOwned<ClientConnection, UnixStream>>;

/// Begins TLS as a client with this directory.
pub fn secure(mut raw: Raw, client: &Path) -> Secured {
    assert_eq!(raw.negotiate(OPT_STARTTLS, b""), REP_ACK);
    Raw(StreamOwned::new(connection(client), raw.0))
}

fn connection(client: &Path) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(client.join("ca-cert.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match CertificateDer::from_pem_file(client.join("client-cert.pem")) {
        Ok(shown) => {
            let key = PrivateKeyDer::from_pem_file(client.join("client-key.pem")).unwrap();
            config.with_client_auth_cert(vec![shown], key).unwrap()
        }
        Err(_) => config.with_no_client_auth(),
    };
    let name = ServerName::try_from("localhost").unwrap();
    ClientConnection::new(Arc::new(config), name).unwrap()
}

/// The exports that a client with this directory is shown; `None` where it is not let in.
pub fn listed(server: &Running, client: &Path) -> Option<Vec<String>> {
    let mut raw = secure(Raw::connect(&server.socket()), client);
    // What a server does not like of a client it says after the client has begun.
    if raw.0.write_all(b"IHAVEOPT\0\0\0\x03\0\0\0\0").is_err() || raw.0.flush().is_err() {
        return None;
    }
    let mut names = Vec::new();
    loop {
        let mut head = [0; 20];
        raw.0.read_exact(&mut head).ok()?;
        let mut data = vec![0; u32::from_be_bytes(head[16..].try_into().unwrap()) as usize];
        raw.0.read_exact(&mut data).ok()?;
        if head[12..16] == REP_ACK.to_be_bytes() {
            return Some(names);
        }
        let len = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
        names.push(text(&data[4..4 + len]));
    }
}

#[test]
fn libnbd_copies_through_tls() {
    let world = World::new();
    let client = world.client("vm1", Some(&world.authority.client("vm1", Valid::Now)));
    for tcp in [true, false] {
        let server = serve(tcp, world.options(), 24);
        assert!(server.uri().starts_with("nbds"), "{}", server.uri());
        let uri = uri(&server, &client);
        let told = run("libnbd-bin", "nbdinfo", &["--json", &uri]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!((&told["TLS"], &told["structured"]), (&true.into(), &true.into()), "{told}");
        let (image, back) = (server.dir.path().join("image"), server.dir.path().join("back"));
        fs::write(&image, pattern((24 * MIB) as usize)).unwrap();
        run("libnbd-bin", "nbdcopy", &["--flush", image.to_str().unwrap(), &uri]);
        run("libnbd-bin", "nbdcopy", &[&uri, back.to_str().unwrap()]);
        assert!(fs::read(&image).unwrap() == fs::read(&back).unwrap(), "the copy differs");
        let status = server.status();
        assert_eq!(status.errors, 0);
        assert!(status.flushes >= 1 && status.connections_total >= 3, "{status:?}");
        server.stop().unwrap();
    }
}

#[test]
fn qemu_converts_compares_and_checks_through_tls() {
    let world = World::new();
    let client = world.client("vm1", Some(&world.authority.client("vm1", Valid::Now)));
    let server = serve(true, world.options(), 24);
    let [object, creds, target] = qemu(&server, &client);
    let image = server.dir.path().join("image");
    let image = image.to_str().unwrap();
    fs::write(image, pattern((24 * MIB) as usize)).unwrap();
    let source = format!("driver=raw,file.driver=file,file.filename={image}");
    let convert = ["convert", &object, &creds, "-n", "--image-opts", "--target-image-opts"];
    run("qemu-utils", "qemu-img", &[&convert[..], &[&source, &target]].concat());
    let compare = ["compare", &object, &creds, "--image-opts", &source, &target];
    run("qemu-utils", "qemu-img", &compare);
    let mut args = vec![&*object, &creds, "--image-opts", "-t", "none", &target];
    for command in [
        "write -P 0x11 0 1M",
        "write -P 0x22 512 512",
        "read -P 0x22 512 512",
        "write -z -u 64k 128k",
        "read -P 0 64k 128k",
        "aio_write -P 0x44 4M 2M",
        "aio_write -f -P 0x55 6M 2M",
        "aio_flush",
        "read -P 0x44 4M 2M",
        "read -P 0x55 6M 2M",
        "discard 4M 1M",
        "read -P 0 4M 1M",
        "flush",
    ] {
        args.extend(["-c", command]);
    }
    let out = run("qemu-utils", "qemu-io", &args);
    assert!(!out.contains("verification failed") && !out.contains("error"), "{out}");
    assert_eq!(server.status().errors, 0);
    server.stop().unwrap();
}

/// libnbd of root looks into /etc for certificates, that of a user into the user's home.
fn as_a_user(home: &Path, program: &str, args: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["300", program]).args(args).env("HOME", home).current_dir(home);
    if nix::unistd::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    command.output().unwrap()
}

#[test]
fn fio_verifies_through_tls() {
    run("fio", "fio", &["--version"]);
    let world = World::new();
    let home = folder(world.dir.path(), "home");
    let client = home.join(".pki/libnbd");
    fs::create_dir_all(&client).unwrap();
    world.authority.write(&client);
    world.authority.client("vm1", Valid::Now).write(&client, "client");
    let key = PermissionsExt::from_mode(0o644);
    fs::set_permissions(client.join("client-key.pem"), key).unwrap();
    for size in ["512", "4k", "128k"] {
        let server = serve(true, world.options(), 16);
        let (uri, size) = (format!("--uri={}", server.uri()), format!("--bs={size}"));
        let mut args = vec!["--name=verify", "--ioengine=nbd", &uri, &size, "--size=16m"];
        args.extend(["--rw=randrw", "--iodepth=32", "--randseed=42", "--output-format=terse"]);
        args.extend(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]);
        let fio = as_a_user(&home, "fio", &args);
        assert!(fio.status.success(), "{}{}", text(&fio.stdout), text(&fio.stderr));
        let status = server.status();
        assert!(status.errors == 0 && status.bytes_written >= 4 * MIB, "{status:?}");
        server.stop().unwrap();
    }
}

/// A file system exerciser's operations, many in flight, beside a model in memory.
#[test]
fn random_operations_through_tls_match_a_model() {
    let world = World::new();
    let client = world.client("vm1", Some(&world.authority.client("vm1", Valid::Now)));
    let server = serve(false, world.options(), 8);
    let script = r#"
import random
random.seed(11)
h = nbd.NBD()
h.set_uri_allow_local_file(True)
h.connect_uri(uri)
assert h.get_tls_negotiated()
size, model = 8 << 20, bytearray(8 << 20)
for turn in range(150):
    flying, taken = [], []
    while len(flying) < 16:
        at = random.randrange(size // 512) * 512
        count = min(random.choice([512, 4096, 65536, 1 << 20]), size - at)
        if any(at < end and start < at + count for start, end in taken):
            continue
        taken.append((at, at + count))
        kind = random.choice(["read", "read", "write", "write", "zero", "trim"])
        buffer = nbd.Buffer(count)
        if kind == "read":
            cookie = h.aio_pread(buffer, at)
        elif kind == "write":
            data = bytearray(random.randbytes(count))
            buffer = nbd.Buffer.from_bytearray(data)
            cookie = h.aio_pwrite(buffer, at, flags=random.choice([0, 0, nbd.CMD_FLAG_FUA]))
            model[at:at + count] = data
        else:
            cookie = (h.aio_zero if kind == "zero" else h.aio_trim)(count, at)
            model[at:at + count] = bytearray(count)
        flying.append((kind, buffer, at, count, cookie))
    while h.aio_in_flight():
        h.poll(-1)
    for kind, buffer, at, count, cookie in flying:
        assert h.aio_command_completed(cookie)
        assert kind != "read" or buffer.to_bytearray() == model[at:at + count], (turn, at, count)
assert b"".join(bytes(h.pread(1 << 20, at)) for at in range(0, size, 1 << 20)) == bytes(model)
h.shutdown()
"#;
    crate::harness::libnbd(&uri(&server, &client), script);
    assert_eq!(server.status().errors, 0);
    server.stop().unwrap();
}

#[test]
fn only_good_certificates_get_in() {
    let world = World::new();
    let ours = &world.authority;
    let stranger = Authority::new("another");
    // One that calls itself as ours does.
    let namesake = Authority::new("ours");
    let cases = [
        ("good", Some(ours.client("vm1", Valid::Now)), true),
        ("none", None, false),
        ("wrong authority", Some(stranger.client("vm1", Valid::Now)), false),
        ("namesake", Some(namesake.client("vm1", Valid::Now)), false),
        ("expired", Some(ours.client("vm1", Valid::NoLonger)), false),
        ("not yet valid", Some(ours.client("vm1", Valid::NotYet)), false),
        ("of a server", Some(ours.server(Valid::Now)), false),
    ];
    let tcp = serve(true, world.options(), 1);
    let unix = serve(false, world.options(), 1);
    for (case, shows, good) in cases {
        let client = world.client(&case.replace(' ', "-"), shows.as_ref());
        assert_eq!(listed(&unix, &client).is_some(), good, "rustls, {case}");
        let before = tcp.status().connections_total;
        let info = attempt("libnbd-bin", "nbdinfo", &["--size", &uri(&tcp, &client)]);
        assert_eq!(info.status.success(), good, "nbdinfo, {case}: {}", text(&info.stderr));
        let [object, creds, target] = qemu(&tcp, &client);
        let args = [&*object, &creds, "--image-opts", &target, "-c", "read 0 512"];
        let io = attempt("qemu-utils", "qemu-io", &args);
        assert_eq!(io.status.success(), good, "qemu-io, {case}: {}", text(&io.stderr));
        let came = tcp.status().connections_total - before;
        assert_eq!(came > 0, good, "{came} connections of a client, {case}");
    }
    tcp.stop().unwrap();
    unix.stop().unwrap();
}

#[test]
fn clients_refuse_a_server_they_cannot_trust() {
    let world = World::new();
    let client = world.client("vm1", Some(&world.authority.client("vm1", Valid::Now)));
    let stranger = Authority::new("another");
    for (case, pair, good) in [
        ("good", world.authority.server(Valid::Now), true),
        ("expired", world.authority.server(Valid::NoLonger), false),
        ("not yet valid", world.authority.server(Valid::NotYet), false),
        ("wrong authority", stranger.server(Valid::Now), false),
    ] {
        pair.write(&world.server(), "server");
        let server = serve(true, world.options(), 1);
        let info = attempt("libnbd-bin", "nbdinfo", &["--size", &uri(&server, &client)]);
        assert_eq!(info.status.success(), good, "nbdinfo, {case}: {}", text(&info.stderr));
        let [object, creds, target] = qemu(&server, &client);
        let args = [&*object, &creds, "--image-opts", &target, "-c", "read 0 512"];
        let io = attempt("qemu-utils", "qemu-io", &args);
        assert_eq!(io.status.success(), good, "qemu-io, {case}: {}", text(&io.stderr));
        server.stop().unwrap();
    }
}

#[test]
fn without_an_authority_no_certificate_is_asked_for() {
    let world = World::new();
    let server = serve(true, TlsOptions { client_ca: None, ..world.options() }, 1);
    let nobody = world.client("nobody", None);
    run("libnbd-bin", "nbdinfo", &["--size", &uri(&server, &nobody)]);
    // In the clear, there is nothing to be had all the same.
    let plain = server.uri().replace("nbds:", "nbd:");
    assert!(!attempt("libnbd-bin", "nbdinfo", &[&plain]).status.success());
    let refused = attempt("qemu-utils", "qemu-img", &["info", &plain]);
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("TLS"), "{}", text(&refused.stderr));
    assert_eq!(server.status().connections_total, 1);
    server.stop().unwrap();
}

#[test]
fn where_tls_is_required_there_is_nothing_in_the_clear() {
    let world = World::new();
    let server = serve(false, world.options(), 1);
    let mut raw = Raw::connect(&server.socket());
    for (option, data) in [
        (OPT_LIST, Vec::new()),
        (OPT_LIST, b"x".to_vec()),
        (OPT_INFO, info_request("disk", &[3])),
        (OPT_INFO, info_request("nope", &[])),
        (OPT_GO, info_request("disk", &[])),
        (OPT_STRUCTURED_REPLY, Vec::new()),
        (OPT_LIST_META_CONTEXT, meta_request("disk", &[])),
        (OPT_SET_META_CONTEXT, meta_request("disk", &["base:allocation"])),
        (OPT_EXTENDED_HEADERS, Vec::new()),
        (4711, b"whatever".to_vec()),
    ] {
        assert_eq!(raw.negotiate(option, &data), REP_ERR_TLS_REQD, "option {option}");
    }
    assert_eq!(raw.negotiate(OPT_STARTTLS, b"x"), REP_ERR_INVALID);
    assert_eq!(raw.negotiate(OPT_ABORT, b""), REP_ACK);
    assert!(raw.is_closed());
    for name in ["disk", "nope", ""] {
        let mut raw = Raw::connect(&server.socket());
        raw.option(OPT_EXPORT_NAME, name.as_bytes());
        assert!(raw.is_closed(), "{name:?}");
    }
    assert_eq!(server.status().connections_total, 0);
    server.stop().unwrap();
}

#[test]
fn where_tls_is_allowed_both_ways_work() {
    let world = World::new();
    let options = TlsOptions { required: false, ..world.options() };
    let server = serve(false, options, 1);
    let client = world.client("vm1", Some(&world.authority.client("vm1", Valid::Now)));
    assert_eq!(listed(&server, &client), Some(vec!["disk".to_owned()]));
    run("libnbd-bin", "nbdinfo", &["--size", &server.uri().replace("nbds+", "nbd+")]);
    // What begins as TLS does not go on without.
    assert_eq!(listed(&server, &world.client("none", None)), None);
    server.stop().unwrap();
}

#[test]
fn nothing_said_in_the_clear_counts_behind_tls() {
    let world = World::new();
    let client = world.client("vm1", Some(&world.authority.client("vm1", Valid::Now)));
    let options = TlsOptions { required: false, ..world.options() };
    let server = serve(false, options, 1);
    let meta = meta_request("disk", &["base:allocation"]);
    let mut raw = Raw::connect(&server.socket());
    assert_eq!(raw.negotiate(OPT_STRUCTURED_REPLY, b""), REP_ACK);
    assert_eq!(raw.negotiate(OPT_SET_META_CONTEXT, &meta), REP_ACK);
    let mut raw = secure(raw, &client);
    assert_eq!(raw.negotiate(OPT_STARTTLS, b""), REP_ERR_INVALID);
    assert_eq!(raw.negotiate(OPT_SET_META_CONTEXT, &meta), REP_ERR_INVALID);
    assert_eq!(raw.negotiate(OPT_GO, &info_request("disk", &[])), REP_ACK);
    raw.request(CMD_READ, 7, 0, 512);
    // A simple reply: structured ones were agreed on by who knows whom.
    assert_eq!(raw.reply(), (7, 0));
    let _: [u8; 512] = raw.take();

    // An option right behind STARTTLS is no option of the client behind TLS, and no ClientHello.
    let mut injected = Raw::connect(&server.socket());
    let starttls = b"IHAVEOPT\0\0\0\x05\0\0\0\0";
    let list = b"IHAVEOPT\0\0\0\x03\0\0\0\0";
    injected.send(&[&starttls[..], list].concat());
    assert_eq!(injected.option_reply(OPT_STARTTLS).0, REP_ACK);
    let mut rest = Vec::new();
    // The end may be a reset.
    let _ = injected.0.read_to_end(&mut rest);
    assert!(rest.len() < 16 && !text(&rest).contains("disk"), "{rest:?}");
    server.stop().unwrap();
}

#[test]
fn a_session_ends_in_order() {
    let world = World::new();
    let client = world.client("vm1", Some(&world.authority.client("vm1", Valid::Now)));
    let limits = Limits { drain: Duration::from_secs(1), ..Limits::default() };
    let tls = Some(world.options());
    let server = serve_with(runtime(), false, limits, tls, vec![("disk", disk(4))]);
    let open = || {
        let mut raw = secure(Raw::connect(&server.socket()), &client);
        assert_eq!(raw.negotiate(OPT_GO, &info_request("disk", &[])), REP_ACK);
        raw
    };
    let mut polite = open();
    polite.request(CMD_DISC, 0, 0, 0);
    assert_eq!(polite.0.read(&mut [0; 1]).unwrap(), 0, "TLS is ended as it should be");
    // A client that asks for much, reads nothing and stays: the server can end all the same.
    let mut greedy = open();
    (0..64).for_each(|cookie| greedy.request(CMD_READ, cookie, 0, 1 << 20));
    greedy.0.flush().unwrap();
    server.wait_until("the reads began", |status| status.requests > 0);
    let mut reading = open();
    reading.request(CMD_WRITE, 1, 0, 512);
    reading.send(&[7; 512]);
    assert_eq!(reading.reply(), (1, 0));
    let began = Instant::now();
    let (runtime, task) = server.begin_stop();
    assert_eq!(reading.0.read(&mut [0; 1]).unwrap(), 0);
    runtime.block_on(task).unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn certificates_are_renewed_while_clients_are_connected() {
    let world = World::new();
    let client = world.client("vm1", Some(&world.authority.client("vm1", Valid::Now)));
    let server = serve(false, world.options(), 1);
    let mut early = secure(Raw::connect(&server.socket()), &client);
    assert_eq!(early.negotiate(OPT_GO, &info_request("disk", &[])), REP_ACK);
    let shown = |raw: &Secured| raw.0.conn.peer_certificates().unwrap()[0].to_vec();
    let first = shown(&early);

    // Half of a renewal: the former pair stays in use.
    let renewed = world.authority.server(Valid::Now);
    fs::write(world.server().join("server-cert.pem"), &renewed.certificate).unwrap();
    let mut raw = secure(Raw::connect(&server.socket()), &client);
    assert_eq!(raw.negotiate(OPT_LIST, b""), REP_ACK);
    assert!(shown(&raw) == first, "a certificate without its key is in use");

    renewed.write(&world.server(), "server");
    let mut raw = secure(Raw::connect(&server.socket()), &client);
    assert_eq!(raw.negotiate(OPT_LIST, b""), REP_ACK);
    assert!(shown(&raw) != first, "the new certificate is not in use");

    // Another authority of clients: the old ones stay out.
    let next = Authority::new("next");
    next.write(&world.server());
    assert_eq!(listed(&server, &client), None);
    let newcomer = world.client("vm2", Some(&next.client("vm2", Valid::Now)));
    assert!(listed(&server, &newcomer).is_some());
    fs::remove_file(world.server().join("ca-cert.pem")).unwrap();
    assert!(listed(&server, &newcomer).is_some(), "the files in memory do");
    early.request(CMD_READ, 1, 0, 512);
    assert_eq!(early.reply(), (1, 0));
    server.stop().unwrap();
}

#[test]
fn files_that_do_not_work_are_refused_by_name() {
    let world = World::new();
    let dir = world.dir.path();
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        path
    };
    let good = world.options();
    let key = fs::read_to_string(&good.key).unwrap();
    let open_key = write("open-key", &key);
    fs::set_permissions(&open_key, PermissionsExt::from_mode(0o644)).unwrap();
    let group_key = write("group-key", &key);
    fs::set_permissions(&group_key, PermissionsExt::from_mode(0o640)).unwrap();
    let pipe = dir.join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let other = Authority::new("x").server(Valid::Now);
    let huge = write("huge", &"x".repeat(2 << 20));
    let options = |change: &dyn Fn(&mut TlsOptions)| {
        let mut options = world.options();
        change(&mut options);
        options
    };
    let rule = || vec!["vm1=disk".to_owned()];
    let wrong = [
        (options(&|o| o.key = dir.join("none")), "none"),
        (options(&|o| o.key = open_key.clone()), "is open to others (mode 0644)"),
        (options(&|o| o.key = write("no-key", "hello")), "there is no private key in"),
        (options(&|o| o.key = write("other", &other.key)), "do not work"),
        (options(&|o| o.key = pipe.clone()), "it is no file"),
        (options(&|o| o.key = dir.to_owned()), "it is no file"),
        (options(&|o| o.key = huge.clone()), "longer than 1 MiB"),
        (options(&|o| o.certificate = dir.join("none")), "none"),
        (options(&|o| o.certificate = good.key.clone()), "there is no certificate in"),
        (options(&|o| o.client_ca = Some(write("empty", ""))), "there is no certificate in"),
        (options(&|o| o.allow = vec!["vm1".to_owned()]), "does not say who may use what"),
        (options(&|o| (o.allow, o.client_ca) = (rule(), None)), "certificates of clients"),
        (options(&|o| (o.allow, o.required) = (rule(), false)), "certificates of clients"),
        (options(&|o| o.allow_file = Some(write("rules", "a=b\n\nc\n"))), "line 3"),
        (options(&|o| o.allow_file = Some(dir.join("none"))), "none"),
    ];
    for (options, words) in wrong {
        let error = Tls::load(options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
        let said = error.to_string();
        assert!(said.contains(words), "{words:?} is not in {said}");
        assert!(!said.contains(key.lines().nth(1).unwrap()), "the key is in {said}");
    }
    Tls::load(options(&|o| o.key = group_key.clone())).unwrap();
}
