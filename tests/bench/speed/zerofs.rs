//! ZeroFS as a disk: its NBD server on the same S3 server. Its device is a file, made over its NFS.

use crate::peers::{Disk, SIZE_BYTES};
use crate::s3::{Bucket, S3Lab};
use crate::world::{arg, tool, until};
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

pub const PROGRAM: &str = "zerofs";

pub struct ZeroFs {
    bucket: Bucket,
    folder: TempDir,
    port: u16,
    child: Option<Child>,
}

impl ZeroFs {
    /// With an empty device.
    pub fn new(bucket: Bucket) -> ZeroFs {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut zerofs = ZeroFs { bucket, folder: tempfile::tempdir().unwrap(), port, child: None };
        zerofs.start();
        let empty = zerofs.path("empty");
        File::create(&empty).unwrap().set_len(SIZE_BYTES).unwrap();
        let to = format!("nfs://127.0.0.1/.nbd/disk?version=3&nfsport={port}&mountport={port}");
        tool("libnfs-utils", "nfs-cp", &[arg(&empty), &to]);
        zerofs.close();
        zerofs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// As much memory for what is cached as objblk has, and a disk's worth on a disk: what it reads, it
    /// reads there, 16 MiB at a time.
    fn config(&self) -> String {
        let lab = S3Lab::get();
        format!(
            "[cache]\ndir = \"{}\"\ndisk_size_gb = 1.1\nmemory_size_gb = 0.0625\n\
             [storage]\nurl = \"s3://{}/disk\"\nencryption_password = \"a password\"\n\
             [servers.nfs]\naddresses = [\"127.0.0.1:{}\"]\n\
             [servers.nbd]\nunix_socket = \"{}\"\n\
             [aws]\naccess_key_id = \"{}\"\nsecret_access_key = \"{}\"\nendpoint = \"{}\"\n\
             default_region = \"us-east-1\"\nallow_http = \"true\"\n",
            self.path("cache").display(),
            self.bucket.name,
            self.port,
            self.path("nbd").display(),
            lab.var("AWS_ACCESS_KEY_ID"),
            lab.var("AWS_SECRET_ACCESS_KEY"),
            lab.endpoint,
        )
    }

    fn start(&mut self) {
        let (config, socket) = (self.path("zerofs.toml"), self.path("nbd"));
        fs::write(&config, self.config()).unwrap();
        fs::create_dir_all(self.path("cache")).unwrap();
        let _ = fs::remove_file(&socket);
        let log = File::create(self.path("log")).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["run", "--config", arg(&config)]).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        until("zerofs serves", || socket.exists());
    }
}

impl Disk for ZeroFs {
    fn name(&self) -> &'static str {
        "ZeroFS"
    }

    fn open(&mut self) -> Vec<String> {
        if self.child.is_none() {
            self.start();
        }
        let uri = format!("nbd+unix:///disk?socket={}", self.path("nbd").display());
        vec!["--ioengine=nbd".into(), format!("--uri={uri}")]
    }

    fn close(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        tool("procps", "kill", &["-TERM", &child.id().to_string()]);
        child.wait().unwrap();
        fs::remove_dir_all(self.path("cache")).unwrap();
    }
}

impl Drop for ZeroFs {
    fn drop(&mut self) {
        self.close();
    }
}
