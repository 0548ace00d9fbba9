//! Hosts on this machine: each has a name, a boot id and a network of its own.
//!
//! A network namespace with one link to the rest; programs on the host are started in it, with
//! their own host name and, by a bind mount, their own boot id. So objblk can tell of nobody on
//! another host whether he is alive.

use crate::world::{arg, attempt, tool};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Removed on drop, with its link.
#[derive(Debug)]
pub struct Host {
    name: &'static str,
    namespace: String,
    link: String,
    gateway: String,
    boot_id: PathBuf,
}

/// Runs `ip` with `args`.
fn ip(args: &str) {
    tool("iproute2", "ip", &args.split(' ').collect::<Vec<_>>());
}

impl Host {
    /// A new host; `dir` is the test's directory.
    pub fn new(name: &'static str, dir: &Path) -> Host {
        assert!(nix::unistd::geteuid().is_root(), "a network namespace needs root");
        let number: u32 = rand::random_range(0..1 << 20);
        let (namespace, link) = (format!("objblk-{number:05x}"), format!("objblk{number:05x}"));
        let net = format!("10.{}.{}", 208 + (number >> 16), number >> 8 & 255);
        let base = number & 252;
        let (gateway, own) = (format!("{net}.{}", base + 1), format!("{net}.{}", base + 2));
        let boot_id = dir.join(format!("boot-id-of-{name}"));
        fs::write(&boot_id, format!("{}\n", uuid::Uuid::new_v4())).unwrap();
        ip(&format!("netns add {namespace}"));
        let host = Host { name, namespace, link, gateway, boot_id };
        let (namespace, link, gateway) = (&host.namespace, &host.link, &host.gateway);
        ip(&format!("link add {link} type veth peer name eth0 netns {namespace}"));
        ip(&format!("addr add {gateway}/30 dev {link}"));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {namespace} addr add {own}/30 dev eth0"));
        ip(&format!("-n {namespace} link set eth0 up"));
        ip(&format!("-n {namespace} link set lo up"));
        host
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The address by which it reaches whatever listens there.
    pub fn gateway(&self) -> &str {
        &self.gateway
    }

    /// Cuts it off, or connects it again.
    pub fn cut(&self, off: bool) {
        ip(&format!("link set {} {}", self.link, if off { "down" } else { "up" }));
    }

    /// `program`, to be run on the host; the process is the one that is started.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        let script = "hostname \"$1\" && mount --bind \"$2\" /proc/sys/kernel/random/boot_id && \
                      shift 2 && exec \"$@\"";
        command.args(["netns", "exec", &self.namespace, "unshare", "--uts", "--mount"]);
        command.args(["sh", "-c", script, "sh", self.name, arg(&self.boot_id), program]);
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The namespace keeps the link as long as a process is left in it.
        attempt("iproute2", "ip", &["link", "delete", &self.link]);
        attempt("iproute2", "ip", &["netns", "delete", &self.namespace]);
        let left = Path::new("/sys/class/net").join(&self.link).exists();
        assert!(!left || std::thread::panicking(), "{} is left", self.link);
    }
}
