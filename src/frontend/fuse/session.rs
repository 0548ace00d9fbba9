//! A mount and the threads that hear the kernel.

use super::attributes::Access;
use super::catalogue::Catalogue;
use super::filesystem::FileSystem;
use crate::error::{Error, Result};
use fuser::{Config, MountOption, SessionACL};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

/// Threads that hear the kernel.
const LOOPS: usize = 4;

/// How a directory is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Nothing can be written.
    pub read_only: bool,
    /// Other users may use it.
    pub allow_other: bool,
}

/// A mounted directory. It outlives this handle: it ends when it is unmounted, by whomever, or with
/// the process, after which whoever uses it gets ENOTCONN.
#[derive(Debug)]
pub struct Session {
    dir: PathBuf,
    ended: watch::Receiver<bool>,
}

impl Session {
    /// Mounts the images of `catalogue` on the directory `dir`; they can be used on return.
    ///
    /// Errors: failed, where the kernel or the host's settings refuse.
    pub async fn mount<C: Catalogue>(
        catalogue: Arc<C>,
        dir: &Path,
        options: MountOptions,
    ) -> Result<Session> {
        let (ending, ended) = watch::channel(false);
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let access = Access { uid, gid, others: options.allow_other };
        let files = FileSystem::new(catalogue, Handle::current(), access, ending);
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("objblk".into()),
            // To the kernel itself: a mount without the help of a program has no other way.
            MountOption::CUSTOM("subtype=objblk".into()),
            MountOption::DefaultPermissions,
            MountOption::NoExec,
            if options.read_only { MountOption::RO } else { MountOption::RW },
        ];
        config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(LOOPS);
        let at = dir.to_owned();
        let mounting = spawn_blocking(move || {
            let loops = fuser::Session::new(files, &at, &config)?.spawn()?;
            // To drop it is to unmount whatever is on the directory by then, which may be the mount of
            // a successor. This process unmounts by itself, and what is kept here ends with it.
            std::mem::forget(loops);
            Ok(())
        });
        let mounted = mounting.await.map_err(|e| Error::failed("FUSE").because(e))?;
        mounted.map_err(|e| refused(dir, e))?;
        Ok(Session { dir: dir.into(), ended })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns when it has been unmounted and nobody uses it any more.
    pub async fn ended(&self) {
        // Without a sender there is nobody left who listens.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

fn refused(dir: &Path, e: std::io::Error) -> Error {
    let error = Error::failed(format!("cannot mount on {}", dir.display()));
    let text = e.to_string();
    if e.kind() == ErrorKind::NotFound {
        return error.because(e).hint("load the kernel's driver with `modprobe fuse`");
    }
    if text.contains("user_allow_other") {
        return error.because(text.trim().to_owned()).hint("or leave --allow-other out");
    }
    match e.kind() {
        ErrorKind::PermissionDenied => error
            .because(e)
            .hint("be root, or have fusermount3 and a /dev/fuse that users may open"),
        _ => error.because(text.trim().to_owned()),
    }
}
