//! nbdkit's S3 plugin as a disk: an object for each 128 KiB, read, changed and written again by each write;
//! nothing is cached.

use crate::peers::{Disk, SIZE};
use crate::s3::{Bucket, S3Lab};
use crate::world::until;
use std::fs;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Says where the plugin is, `S3.py` of nbdkit's sources: Debian has no package of it.
pub const PLUGIN: &str = "NBDKIT_S3";

/// Runs it where nbdkit is older than it.
const SCRIPT: &str = "import nbdkit\n\
    if not hasattr(nbdkit, 'read_password'):\n    \
    nbdkit.read_password = lambda value: value.encode()\n";

pub struct NbdkitS3 {
    bucket: Bucket,
    folder: TempDir,
    child: Option<Child>,
}

impl NbdkitS3 {
    pub fn new(bucket: Bucket, plugin: &str) -> NbdkitS3 {
        let folder = tempfile::tempdir().unwrap();
        let run = format!("{SCRIPT}exec(compile(open({plugin:?}).read(), {plugin:?}, 'exec'))\n");
        fs::write(folder.path().join("S3.py"), run).unwrap();
        NbdkitS3 { bucket, folder, child: None }
    }
}

impl Disk for NbdkitS3 {
    fn name(&self) -> &'static str {
        "nbdkit S3"
    }

    fn open(&mut self) -> Vec<String> {
        let socket = self.folder.path().join("socket");
        if self.child.is_none() {
            let lab = S3Lab::get();
            let mut command = Command::new("nbdkit");
            command.args(["--foreground", "--unix"]).arg(&socket).arg("python");
            command.arg(self.folder.path().join("S3.py"));
            command.arg(format!("access-key={}", lab.var("AWS_ACCESS_KEY_ID")));
            command.arg(format!("secret-key={}", lab.var("AWS_SECRET_ACCESS_KEY")));
            command.arg(format!("endpoint-url={}", lab.endpoint));
            command.arg(format!("bucket={}", self.bucket.name)).arg("key=disk");
            command.args([&format!("size={SIZE}"), "object-size=128k"]);
            self.child = Some(command.stdin(Stdio::null()).spawn().unwrap());
            until("nbdkit serves", || socket.exists());
        }
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        vec!["--ioengine=nbd".into(), format!("--uri={uri}")]
    }

    fn close(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let _ = child.kill();
        child.wait().unwrap();
    }
}

impl Drop for NbdkitS3 {
    fn drop(&mut self) {
        self.close();
    }
}
