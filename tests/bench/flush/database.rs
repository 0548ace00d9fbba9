//! PostgreSQL on ext4: on a volume with local durability against a plain file, both behind a loop
//! device. The volume comes to it through NBD and FUSE.

use crate::device::Device;
use crate::local::Local;
use crate::table::{print, row};
use crate::world::{World, arg, tool};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const TURNS: usize = 3;
const SECONDS: &str = "10";

/// A database cluster in a folder of its own.
struct Cluster {
    data: PathBuf,
    programs: PathBuf,
}

impl Cluster {
    fn new(mounted: &Path) -> Cluster {
        let versions = fs::read_dir("/usr/lib/postgresql");
        let versions = versions.expect("install the Debian package postgresql");
        let newest = versions.map(|entry| entry.unwrap().path()).max().expect("a version");
        let cluster = Cluster { data: mounted.join("data"), programs: newest.join("bin") };
        fs::create_dir(&cluster.data).unwrap();
        tool("coreutils", "chown", &["postgres", arg(&cluster.data)]);
        cluster.program("initdb", &["-A", "trust", "-D", arg(&cluster.data)]);
        cluster.started(|| cluster.bench(&["-i", "-q", "-s", "5"]));
        cluster
    }

    fn program(&self, name: &str, args: &[&str]) -> String {
        let program = self.programs.join(name);
        let all = [&["-u", "postgres", "--", arg(&program)], args].concat();
        tool("postgresql", "runuser", &all)
    }

    fn started<T>(&self, work: impl FnOnce() -> T) -> T {
        let folder = arg(&self.data);
        let options = format!("-c listen_addresses= -c unix_socket_directories={folder}");
        let log = self.data.join("log");
        let start = ["-D", folder, "-l", arg(&log), "-w", "-o", &options, "start"];
        self.program("pg_ctl", &start);
        let done = work();
        self.program("pg_ctl", &["-D", folder, "-w", "-m", "fast", "stop"]);
        done
    }

    fn bench(&self, args: &[&str]) -> String {
        let host = ["-h", arg(&self.data), "-U", "postgres"];
        self.program("pgbench", &[&host[..], args, &["postgres"]].concat())
    }

    /// Transactions a second.
    fn turn(&self, clients: &str) -> f64 {
        let said = self.started(|| self.bench(&["-c", clients, "-j", "2", "-T", SECONDS]));
        let tps = said.lines().find_map(|line| line.strip_prefix("tps = "));
        let tps = tps.unwrap_or_else(|| panic!("pgbench says nothing of its rate: {said}"));
        tps.split(' ').next().unwrap().parse().unwrap()
    }
}

/// A plain file behind a loop device, with ext4 on it.
struct Bare {
    name: String,
    mounted: PathBuf,
}

impl Bare {
    fn new(local: &Local) -> Bare {
        let (file, mounted) = (local.folder().join("bare.img"), local.folder().join("bare"));
        // All of its blocks are there: else it is the file system below that is measured.
        tool("util-linux", "fallocate", &["-l", "1G", arg(&file)]);
        fs::create_dir(&mounted).unwrap();
        let name = tool("util-linux", "losetup", &["--find", "--show", arg(&file)]);
        let bare = Bare { name: name.trim().to_owned(), mounted };
        tool("e2fsprogs", "mkfs.ext4", &["-q", &bare.name]);
        tool("util-linux", "mount", &["-o", "noatime", &bare.name, arg(&bare.mounted)]);
        bare
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        crate::world::attempt("util-linux", "umount", &[arg(&self.mounted)]);
        crate::world::attempt("util-linux", "losetup", &["--detach", &self.name]);
    }
}

pub fn run() {
    let (world, local) = (World::s3(), Local::new("1G"));
    world.run(&["create", "disk", "--size", "1G"]);
    let server = world.serve("disk", &local.args());
    let device = Device::begin(&world, &server);
    tool("e2fsprogs", "mkfs.ext4", &["-q", &device.name]);
    let mounted = device.mount("noatime").to_owned();
    let bare = Bare::new(&local);
    // The database runs as a user of its own.
    for folder in [world.path(""), local.folder().to_owned()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (theirs, ours) = (Cluster::new(&bare.mounted), Cluster::new(&mounted));
    let mut table = vec![row(&[&"", &"bare loop tps", &"objblk local tps", &"ratio"])];
    for clients in ["1", "8"] {
        let (mut their_sum, mut our_sum) = (0.0, 0.0);
        for _ in 0..TURNS {
            their_sum += theirs.turn(clients);
            our_sum += ours.turn(clients);
        }
        let rate = |sum: f64| format!("{:.0}", sum / TURNS as f64);
        let ratio = format!("{:.2}", our_sum / their_sum);
        let name = format!("pgbench, {clients} clients");
        table.push(row(&[&name, &rate(their_sum), &rate(our_sum), &ratio]));
    }
    print("\nPostgreSQL on ext4 on a loop device", &table);
    drop(bare);
    device.unmount();
    device.end();
    server.stop();
}
