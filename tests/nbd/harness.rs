//! A running server, and the programs that are used against it.

use objblk::device::ram::RamDisk;
use objblk::device::{BlockDevice, Checked};
use objblk::error::Result;
use objblk::frontend::nbd::{ExportStatus, Exports, Limits, Listen, Server, Tls, TlsOptions};
use objblk::units::{BlockSize, SectorCount};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A server with its own runtime; stopped and checked by [`Running::stop`].
pub struct Running {
    pub runtime: Runtime,
    pub dir: TempDir,
    pub uris: Vec<String>,
    status: Box<dyn Fn() -> Vec<ExportStatus>>,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// One export of a server to be started: its name and its device.
pub type Offer<D> = (&'static str, Arc<Checked<D>>);

/// Serves `offers` at a fresh Unix socket, or over TCP.
pub fn serve<D: BlockDevice>(
    runtime: Runtime,
    tcp: bool,
    limits: Limits,
    offers: Vec<Offer<D>>,
) -> Running {
    serve_with(runtime, tcp, limits, None, offers)
}

/// As [`serve`], with TLS.
pub fn serve_with<D: BlockDevice>(
    runtime: Runtime,
    tcp: bool,
    limits: Limits,
    tls: Option<TlsOptions>,
    offers: Vec<Offer<D>>,
) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let listen = if tcp {
        "127.0.0.1:0".parse().unwrap()
    } else {
        Listen::Unix(dir.path().join("nbd.sock"))
    };
    let mut exports = Exports::new();
    for (name, device) in offers {
        exports.add(name, format!("about {name}"), device).unwrap();
    }
    let mut server = runtime.block_on(Server::bind(&listen, exports)).unwrap().limits(limits);
    if let Some(tls) = tls {
        server = server.tls(Tls::load(tls).unwrap());
    }
    let (uris, status) = (server.uris(), {
        let exports = server.exports();
        Box::new(move || exports.status())
    });
    let (shutdown, wait) = oneshot::channel::<()>();
    let task = runtime.spawn(server.run(async {
        // Dropped without being used means shut down as well.
        let _ = wait.await;
    }));
    Running { runtime, dir, uris, status, shutdown, task }
}

/// The usual case: one RAM disk of `mib` MiB named `disk`, with an optional delay.
pub fn ram(mib: u64, block_size: BlockSize, delay: Option<Duration>) -> (Running, Ram) {
    let runtime = runtime();
    let mut disk = RamDisk::new(SectorCount(mib << 11), block_size);
    if let Some(delay) = delay {
        disk = disk.delayed(runtime.handle().clone(), delay);
    }
    let disk = Arc::new(Checked::new(disk));
    let running = serve(runtime, false, Limits::default(), vec![("disk", disk.clone())]);
    (running, disk)
}

pub type Ram = Arc<Checked<RamDisk>>;

impl Running {
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    pub fn uri(&self) -> &str {
        &self.uris[0]
    }

    pub fn status(&self) -> ExportStatus {
        (self.status)().remove(0)
    }

    /// Waits until `condition` holds of the first export's status.
    pub fn wait_until(&self, what: &str, condition: impl Fn(&ExportStatus) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !condition(&self.status()) {
            assert!(Instant::now() < deadline, "never: {what}; {:?}", self.status());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Shuts the server down in order.
    pub fn stop(self) -> Result<()> {
        self.shutdown.send(()).expect("the server ended before it was told to");
        self.runtime.block_on(self.task).expect("the server panicked")
    }

    /// Tells the server to shut down without waiting for it.
    pub fn begin_stop(self) -> (Runtime, JoinHandle<Result<()>>) {
        self.shutdown.send(()).expect("the server ended before it was told to");
        (self.runtime, self.task)
    }
}

/// Runs a program that must be installed; `package` is where it comes from.
pub fn attempt(package: &str, program: &str, args: &[&str]) -> Output {
    let found = Command::new(program).arg("--version").output().is_ok();
    assert!(found, "{program} is missing: install the Debian package {package}");
    Command::new("timeout").arg("120").arg(program).args(args).output().unwrap()
}

/// As [`attempt`], and it must succeed. Returns what it printed.
pub fn run(package: &str, program: &str, args: &[&str]) -> String {
    let output = attempt(package, program, args);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{out}\n{err}", output.status);
    out
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a libnbd script with the system's Python; `uri` is defined in it.
pub fn libnbd(uri: &str, script: &str) -> String {
    // Another Python on the PATH would not have the module.
    let python = "/usr/bin/python3";
    let probe = attempt("python3", python, &["-c", "import nbd"]);
    assert!(probe.status.success(), "libnbd for {python} is missing: install python3-libnbd");
    let prelude = format!("import nbd, errno\nuri = {uri:?}\n{PRELUDE}");
    run("python3", python, &["-c", &format!("{prelude}\n{script}")])
}

const PRELUDE: &str = r#"
def connect(uri=uri, structured=True, context=True):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    if context:
        h.add_meta_context("base:allocation")
    h.connect_uri(uri)
    return h

def fails(number, call):
    try:
        call()
    except nbd.Error as e:
        assert e.errnum == number, (e.errnum, number, e.string)
        return
    raise AssertionError("no error")

def extents(h, count, offset, flags=0):
    got = []
    def take(context, offset, entries, err):
        got.extend(entries)
    h.block_status(count, offset, take, flags)
    return list(zip(got[::2], got[1::2]))
"#;

/// Bytes that differ from sector to sector, with holes of zeros in between.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (index, block) in bytes.chunks_mut(64 << 10).enumerate() {
        if index % 3 != 1 {
            for (at, word) in block.chunks_mut(8).enumerate() {
                let value = (index as u64 + 1) << 32 | at as u64;
                word.copy_from_slice(
                    &value.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[..word.len()],
                );
            }
        }
    }
    bytes
}
