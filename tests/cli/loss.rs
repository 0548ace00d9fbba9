//! What fio sees, which verifies all that it reads, while paths or a store of two are lost: no error, and one stall.

use crate::gate::Gate;
use crate::program::{Home, until};
use crate::s3::S3Lab;
use crate::s3_pool;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long all paths are cut: a minute with OBJBLK_FULL=1.
fn outage() -> Duration {
    Duration::from_secs(if std::env::var_os("OBJBLK_FULL").is_some() { 60 } else { 6 })
}

/// A load that writes, flushes, reads and verifies.
struct Fio {
    child: Child,
    report: PathBuf,
}

impl Fio {
    fn start(home: &Home, uri: &str, time: Duration) -> Fio {
        let report = home.path("fio.json");
        let mut fio = Command::new("fio");
        fio.args(["--name=verify", "--ioengine=nbd", &format!("--uri={uri}"), "--rw=randrw"]);
        fio.args(["--bsrange=4k-64k", "--size=24M", "--iodepth=16", "--fsync=32", "--time_based"]);
        fio.args(["--verify=crc32c", "--verify_backlog=256", "--verify_fatal=1", "--rate=8m"]);
        fio.args(["--verify_state_save=0", "--output-format=json"]);
        fio.args([
            format!("--runtime={}", time.as_secs()),
            format!("--output={}", report.display()),
        ]);
        let child = fio.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        Fio { child, report }
    }

    /// Ends without an error. The longest that one request took, a flush included.
    fn ended(self) -> Duration {
        let ended = self.child.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        let report = std::fs::read_to_string(&self.report).unwrap();
        let report: Value = serde_json::from_str(&report[report.find('{').unwrap()..]).unwrap();
        let job = &report["jobs"][0];
        assert_eq!(job["error"], 0, "{job}");
        assert!(job["read"]["total_ios"].as_u64() > Some(100), "{job}");
        let longest = |latency: &Value| latency["max"].as_f64().unwrap_or(0.0);
        let all = [&job["read"]["lat_ns"], &job["write"]["lat_ns"], &job["sync"]["lat_ns"]];
        Duration::from_nanos(all.into_iter().map(longest).fold(0.0, f64::max) as u64)
    }
}

#[test]
fn s3_fio_verifies_while_paths_are_lost() {
    let gates = [(); 2].map(|()| Gate::open(&S3Lab::get().endpoint));
    let mut home = s3_pool::home(&format!("objblk-test-{}", uuid::Uuid::new_v4()));
    let both = format!("{} {}", gates[0].endpoint(), gates[1].endpoint());
    home.set("OBJBLK_ENDPOINT_URL", &both);
    home.run(&["pool", "init", "--create-bucket"]).ok();
    home.run(&["create", "data", "--size", "64M"]).ok();
    let mut table = Vec::new();
    for (what, cut) in [("one path of two, packets dropped", &gates[..1]), ("all paths", &gates)] {
        let server = home.serve(&["data"]);
        let fio = Fio::start(&home, &server.uri, outage() + Duration::from_secs(8));
        std::thread::sleep(Duration::from_secs(4));
        cut.iter().for_each(Gate::swallow);
        std::thread::sleep(outage());
        cut.iter().for_each(Gate::reopen);
        table.push((what, fio.ended()));
        home.run(&["detach", "data"]).ok();
        assert_eq!(server.ended().0, 0);
    }
    eprintln!("longest request, {:?} long: {table:?}", outage());
    assert!(table[1].1 < outage() + Duration::from_secs(30), "{table:?}");
    home.run(&["check", "data", "--data"]).ok();
    home.run(&["delete", "data", "--now", "--yes"]).ok();
}

#[test]
fn s3_fio_verifies_while_one_of_two_stores_is_lost() {
    let lab = S3Lab::get();
    let gate = Gate::open(&lab.endpoint);
    let mut home = s3_pool::home(&format!("objblk-test-{}", uuid::Uuid::new_v4()));
    home.run(&["pool", "init", "--create-bucket"]).ok();
    home.set("RUST_LOG", "objblk=info");
    let bucket = format!("objblk-test-{}", uuid::Uuid::new_v4());
    s3_pool::home(&bucket).run(&["pool", "init", "--create-bucket"]).ok();
    let url = format!("s3://{bucket}/second");
    let by = ["--store-endpoint-url", gate.endpoint(), "--store-region", "us-east-1"];
    home.run(&[&["pool", "add-store", &url], &by[..]].concat()).ok();
    home.run(&["create", "data", "--size", "64M", "--chunk-size", "256K", "--replicas", "2"]).ok();
    let in_sync = || {
        let info = home.run(&["info", "data", "--json"]);
        // Nobody else can tell until its owner has done without the store.
        let info: Value = serde_json::from_str(&info.out).ok()?;
        info["mirror"]["in_sync"].as_array().map(Vec::len)
    };
    let server = home.serve(&["data"]);
    let fio = Fio::start(&home, &server.uri, Duration::from_secs(30));
    std::thread::sleep(Duration::from_secs(3));
    gate.swallow();
    until("it does without", || in_sync() == Some(1));
    std::thread::sleep(Duration::from_secs(3));
    gate.reopen();
    let begun = Instant::now();
    until("both are in sync", || in_sync() == Some(2));
    let resynced = begun.elapsed();
    let stall = fio.ended();
    home.run(&["detach", "data"]).ok();
    let (code, err) = server.ended();
    assert_eq!(code, 0);
    let copied = err.lines().filter(|line| line.contains(" objects (")).collect::<Vec<_>>();
    eprintln!("longest request {stall:?}; in sync again after {resynced:?}; {copied:?}");
    assert!(stall < Duration::from_secs(40), "{stall:?}");
    home.run(&["check", "data", "--data"]).ok();
}
