//! TLS of the program's server: from the flags to the volume, killed and under attack.

use crate::certificates::{Authority, Valid, folder};
use crate::program::{Home, Server, USAGE, attempt, noise, tool, until};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::CertificateDer};
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A home with a volume, the server's certificates, and those of a client called vm1.
struct Secured {
    home: Home,
    server: PathBuf,
    client: PathBuf,
}

impl Secured {
    fn new(size: &str) -> Secured {
        let home = Home::new();
        home.run(&["create", "data", "--size", size]).ok();
        let dir = home.path("");
        let (server, client) = (folder(&dir, "server"), folder(&dir, "client"));
        let authority = Authority::new("ours");
        authority.write(&server);
        authority.write(&client);
        authority.server(Valid::Now).write(&server, "server");
        authority.client("vm1", Valid::Now).write(&client, "client");
        Secured { home, server, client }
    }

    /// Serves the volume behind TLS.
    fn serve(&self, more: &[&str]) -> Server {
        let dir = self.server.to_str().unwrap();
        self.home.serve(&[&["data", "--tls-certificates", dir], more].concat())
    }

    fn uri(&self, server: &Server) -> String {
        let between = if server.uri.contains('?') { '&' } else { '?' };
        format!("{}{between}tls-certificates={}", server.uri, self.client.display())
    }
}

#[test]
fn volumes_are_served_by_tls_to_whom_they_are_for() {
    let secured = Secured::new("64M");
    let image = secured.home.path("image");
    fs::write(&image, noise(8 << 20)).unwrap();
    let image = image.to_str().unwrap();
    let allow = ["--allow", "vm1=data", "--listen", "127.0.0.1:0"];
    let server = secured.serve(&allow);
    assert!(server.uri.starts_with("nbds://127.0.0.1:"), "{}", server.uri);
    let uri = secured.uri(&server);
    tool("nbdcopy", &["--flush", image, &uri]);
    let status = secured.home.run(&["status", "data", "--json"]).json();
    assert_eq!(status["device"], server.uri);
    secured.home.run(&["detach", "data"]).ok();
    let (code, said) = server.ended();
    assert_eq!(code, 0, "{said}");
    assert!(!said.contains("anyone who reaches"), "{said}");

    let back = secured.home.path("back");
    let server = secured.serve(&["--allow", "vm1=data:ro", "--max-connections", "1"]);
    let uri = secured.uri(&server);
    tool("nbdinfo", &["--is", "read-only", &uri]);
    // With one connection at a time, as the server allows.
    tool("nbdcopy", &["--connections=1", &uri, back.to_str().unwrap()]);
    assert!(fs::read(&back).unwrap().starts_with(&fs::read(image).unwrap()));
    drop(server);

    let server = secured.serve(&["--allow", "vm2=data"]);
    let refused = attempt("nbdinfo", &[&secured.uri(&server)]);
    assert!(!refused.status.success(), "a volume that is somebody else's");
}

#[test]
fn what_does_not_go_together_is_refused() {
    let secured = Secured::new("1M");
    let (home, dir) = (&secured.home, secured.server.to_str().unwrap());
    let without_ca = folder(&home.path(""), "without-ca");
    for name in ["server-cert.pem", "server-key.pem"] {
        fs::copy(secured.server.join(name), without_ca.join(name)).unwrap();
    }
    let without_ca = without_ca.to_str().unwrap();
    let (cert, key) = (format!("{dir}/server-cert.pem"), format!("{dir}/server-key.pem"));
    let certificates = ["--tls-certificates", dir];
    for (flags, words) in [
        (&["--tls", "require"] as &[&str], "--tls require needs TLS with a certificate"),
        (&["--allow", "vm1=data"], "--allow needs TLS with a certificate"),
        (&["--tls-cert", &cert], "--tls-key <FILE>"),
        (&["--tls-ca", &cert], "--tls-cert <FILE>"),
        (&["--tls-cert", &cert, "--tls-key", &key, "--tls-certificates", dir], "cannot be used"),
        (&["--tls-certificates", "/nowhere"], "cannot use \"/nowhere/server-cert.pem\""),
        (&["--tls-certificates", without_ca, "--allow", "vm1=data"], "give --tls-ca"),
        (&[&certificates[..], &["--tls", "off", "--allow", "a=data"]].concat(), "--tls off out"),
        (&[&certificates[..], &["--tls", "allow", "--allow", "a=data"]].concat(), "leave --tls"),
        (&[&certificates[..], &["--allow", "vm1=date"]].concat(), "date, which is not served"),
        (&[&certificates[..], &["--allow", "vm1"]].concat(), "it has no \"=\""),
        (&["--max-connections", "0"], "is not in"),
    ] {
        home.run(&[&["serve", "nbd", "data"][..], flags].concat()).refuses(USAGE, words);
        assert!(home.run_files().is_empty(), "{flags:?} left {:?}", home.run_files());
    }
}

#[test]
fn a_listener_in_the_open_is_warned_of() {
    let secured = Secured::new("1M");
    for (flags, warned) in [
        (&["--listen", "0.0.0.0:0"][..], true),
        (&["--listen", "0.0.0.0:0", "--tls", "off"], false),
        (&["--listen", "127.0.0.1:0"], false),
        (&["--listen", "0.0.0.0:0", "--tls-certificates", secured.server.to_str().unwrap()], false),
    ] {
        let server = secured.home.serve(&[&["data"], flags].concat());
        secured.home.run(&["detach", "data"]).ok();
        let (code, said) = server.ended();
        assert_eq!((code, said.contains("anyone who reaches")), (0, warned), "{flags:?}: {said}");
    }
}

/// libnbd starts servers as systemd does.
#[test]
fn a_socket_of_the_service_manager_is_served() {
    let secured = Secured::new("1M");
    // None is passed.
    let said = secured.home.run(&["serve", "nbd", "data", "--listen", "systemd"]);
    said.fails(USAGE, "there is not exactly one");
    let program = env!("CARGO_BIN_EXE_objblk");
    let script = format!(
        "import nbd\nh = nbd.NBD(); h.set_export_name('data')\n\
         h.connect_systemd_socket_activation(['{program}', 'serve', 'nbd', 'data'])\n\
         h.pwrite(b'x' * 512, 0); h.flush(); assert h.get_size() == 1 << 20\n"
    );
    let mut python = Command::new("/usr/bin/python3");
    for (name, value) in secured.home.command(&[]).get_envs() {
        match value {
            Some(value) => python.env(name, value),
            None => python.env_remove(name),
        };
    }
    let done = python.args(["-c", &script]).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn the_service_manager_is_told_when_clients_may_come() {
    let secured = Secured::new("1M");
    let path = secured.home.path("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = secured.home.command(&["serve", "nbd", "data"]);
    let mut child = command.env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).spawn().unwrap();
    let mut message = [0; 64];
    let len = manager.recv(&mut message);
    secured.home.run(&["detach", "data"]).ok();
    child.wait().unwrap();
    assert_eq!(&message[..len.unwrap()], b"READY=1\n");
}

#[test]
fn kill_9_of_a_server_in_a_transfer_through_tls_loses_nothing_flushed() {
    let secured = Secured::new("512M");
    let image = secured.home.path("image");
    fs::write(&image, noise(256 << 20)).unwrap();
    let server = secured.serve(&[]);
    let uri = secured.uri(&server);
    let flushed = "h.set_uri_allow_local_file(True); h.connect_uri(uri); \
                   h.pwrite(b'kept' * (1 << 20), 300 << 20); h.flush()";
    let script = format!("import nbd\nuri = {uri:?}\nh = nbd.NBD(); {flushed}");
    tool("/usr/bin/python3", &["-c", &script]);
    let before = secured.home.objects().len();
    let mut copy = Command::new("nbdcopy");
    let copy = copy.arg(&image).arg(&uri).stdout(Stdio::null()).stderr(Stdio::null());
    let mut copy = copy.spawn().unwrap();
    until("the transfer is under way", || secured.home.objects().len() >= before + 4);
    assert!(copy.try_wait().unwrap().is_none(), "the transfer is over before the server dies");
    server.kill();
    let begun = Instant::now();
    let ended = loop {
        match copy.try_wait().unwrap() {
            Some(status) => break status,
            None if begun.elapsed() > Duration::from_secs(30) => panic!("the client hangs"),
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(!ended.success(), "a transfer to a dead server is no success");
    let again = secured.home.serve(&["data"]);
    let script = format!(
        "import nbd\nh = nbd.NBD(); h.connect_uri({:?})\n\
         assert bytes(h.pread(4 << 20, 300 << 20)) == b'kept' * (1 << 20)",
        again.uri
    );
    tool("/usr/bin/python3", &["-c", &script]);
}

/// What the server holds: memory in KiB, and files.
fn held(server: &Server) -> (u64, usize) {
    let pid = server.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let rss = rss.trim().trim_end_matches(" kB").parse().unwrap();
    (rss, fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

fn hello(authority: &Path) -> Vec<u8> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// Bytes of a client that means no good.
fn malformed(random: &mut StdRng, round: usize, hello: &[u8]) -> Vec<u8> {
    let mut noise = vec![0; random.random_range(0..600)];
    random.fill(&mut noise[..]);
    let flags = [0, 0, 0, 3];
    let option = |number: u32, len: u32| {
        [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len.to_be_bytes()].concat()
    };
    let tls = [&flags[..], &option(5, 0)].concat();
    let record = |body: &[u8]| [&[22, 3, 3], &(body.len() as u16).to_be_bytes()[..], body].concat();
    match round % 9 {
        0 => noise,
        1 => [&flags[..], &noise].concat(),
        2 => [&flags[..], &option(random.random_range(0..16), noise.len() as u32), &noise].concat(),
        3 => [&flags[..], &option(random.random_range(0..16), random.random()), &noise].concat(),
        4 => [&tls[..], &noise].concat(),
        5 => [&tls[..], &record(&noise)].concat(),
        6 => [&tls[..], &hello[..random.random_range(0..hello.len())]].concat(),
        7 => {
            let mut hello = hello.to_vec();
            for _ in 0..random.random_range(1..8) {
                let at = random.random_range(0..hello.len());
                hello[at] = random.random();
            }
            [&tls[..], &hello].concat()
        }
        // Good so far, and then something else.
        _ => [&tls[..], hello, &noise].concat(),
    }
}

#[test]
fn ten_thousand_malformed_handshakes_leave_nothing() {
    let secured = Secured::new("1M");
    let socket = secured.home.path("nbd.sock");
    let server = secured.serve(&["--socket", socket.to_str().unwrap()]);
    let hello = hello(&secured.client.join("ca-cert.pem"));
    let mut random = StdRng::seed_from_u64(2026);
    let mut attack = |rounds: usize| {
        for round in 0..rounds {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            // The server may have closed it already.
            let _ = stream.write_all(&malformed(&mut random, round, &hello));
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
                Err(e) => panic!("round {round}: the connection is not closed: {e}"),
            }
        }
    };
    tool("nbdinfo", &["--size", &secured.uri(&server)]);
    attack(1000);
    let (memory, files) = held(&server);
    attack(10_000);
    tool("nbdinfo", &["--size", &secured.uri(&server)]);
    until("the connections are closed", || held(&server).1 <= files);
    let grown = held(&server).0.saturating_sub(memory);
    assert!(grown < 16 << 10, "{grown} KiB more than after the first thousand");
    println!("memory after 1,000: {memory} KiB, after 11,000: {grown} KiB more; {files} files");
    secured.home.run(&["detach", "data"]).ok();
    let (code, said) = server.ended();
    assert_eq!(code, 0);
    let lines = said.lines().count();
    assert!(lines < 200, "the attack fills the log: {lines} lines");
    assert!(!said.contains("panicked") && !said.contains("PRIVATE KEY"), "{said}");
}

#[test]
fn a_thousand_silent_clients_keep_nobody_out() {
    let secured = Secured::new("1M");
    let socket = secured.home.path("nbd.sock");
    let server = secured.serve(&["--socket", socket.to_str().unwrap()]);
    let uri = secured.uri(&server);
    tool("nbdinfo", &["--size", &uri]);
    let (memory, files) = held(&server);
    let mut silent: Vec<UnixStream> = Vec::new();
    for number in 0..1000 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        if number % 2 == 1 {
            // As far as the beginning of TLS.
            stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x05\0\0\0\0").unwrap();
        }
        silent.push(stream);
    }
    let begun = Instant::now();
    tool("nbdinfo", &["--size", &uri]);
    assert!(begun.elapsed() < Duration::from_secs(5), "a good client waits for silent ones");
    let (more, open) = held(&server);
    assert!(open <= files + 140, "{open} files are open, {files} were");
    assert!(more.saturating_sub(memory) < 64 << 10, "{memory} KiB became {more}");
    // None of them says anything: each is dropped in time.
    for stream in &mut silent {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        match stream.read_to_end(&mut Vec::new()) {
            Ok(_) => {}
            Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    until("the connections are closed", || held(&server).1 <= files);
}
