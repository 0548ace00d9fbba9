//! The other side of the control socket.

use super::control::{
    Outcome, PathChange, Phase, Reply, Request, SnapshotAction, SnapshotReport, TargetStatus,
    encode, receive,
};
use super::rundir::{RunDir, Target};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::store::Key;
use crate::store::paths::PathsReport;
use crate::volume::Mended;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// How long a target may take for an answer that needs no store.
const PROMPT: Duration = Duration::from_secs(10);

/// How long a target may take to verify a new path.
const PATHS: Duration = Duration::from_secs(30);

/// For what takes as long as it takes; the connection ends with the target.
const ENDLESS: Duration = Duration::from_secs(365 * 24 * 3600);

/// Damaged objects that one message names.
const MENDED_AT_ONCE: usize = 1000;

/// How long a forced end may take: the last chance of the data, and the drains of a frontend.
const FORCED: Duration = Duration::from_secs(120);

/// The target that a user means by `what`: a volume's name, a device, its symlink or a URI.
/// `store` narrows names down to the volumes of one store.
///
/// Errors: not found; usage, where the name means several.
pub fn find(run_dir: &RunDir, what: &str, store: Option<&str>) -> Result<Target> {
    let path = Path::new(what).canonicalize().ok().filter(|path| path.is_absolute());
    let device = |target: &Target| {
        target.state.volumes.iter().any(|volume| {
            let same = |path: &Path| path == Path::new(&volume.device);
            volume.device == what
                || volume.link.as_deref() == Some(what)
                || (what.contains('/') && path.as_deref().is_some_and(same))
        })
    };
    let named = |target: &Target| {
        target.state.volumes.iter().any(|volume| volume.name.as_str() == what)
            && store.is_none_or(|store| store == target.state.store)
    };
    let targets = run_dir.targets()?;
    let mut found = targets.iter().filter(|target| device(target) || named(target));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.clone()),
        (None, _) => Err(Error::not_found(format!("{what} is not attached on this host"))
            .hint("`objblk status` shows what is")),
        (Some(one), Some(other)) => {
            let (one, other) = (&one.state, &other.state);
            let message = format!("{what} is attached from {} and {}", one.store, other.store);
            Err(Error::usage(message).hint(format!(
                "name the device, {} or {}",
                one.volumes[0].device, other.volumes[0].device
            )))
        }
    }
}

/// A connection with one request on its way.
struct Conversation {
    read: BufReader<OwnedReadHalf>,
    /// Closing it would call a detach off.
    _write: OwnedWriteHalf,
    pid: u32,
}

impl Conversation {
    async fn begin(target: &Target, request: Request) -> Result<Conversation> {
        Conversation::begin_with((target.state.pid, &target.socket), request).await
    }

    async fn begin_with((pid, socket): (u32, &Path), request: Request) -> Result<Conversation> {
        let opened = timeout(PROMPT, async {
            let (read, mut write) = UnixStream::connect(socket).await?.into_split();
            write.write_all(&encode(request)).await?;
            Ok::<_, std::io::Error>(Conversation { read: BufReader::new(read), _write: write, pid })
        });
        let opened = opened.await.map_err(|_| silent(pid))?;
        opened.map_err(|e| silent(pid).because(e))
    }

    async fn hear(&mut self, patience: Duration) -> Result<Reply> {
        let heard =
            timeout(patience, receive(&mut self.read)).await.map_err(|_| silent(self.pid))?;
        match heard? {
            Some(Reply::Refused(refusal)) => Err(refusal.into()),
            Some(reply) => Ok(reply),
            None => Err(Error::failed(format!("process {} ended without an answer", self.pid))
                .hint("`objblk status` shows what is attached")),
        }
    }
}

fn silent(pid: u32) -> Error {
    Error::new(ErrorKind::Busy, format!("process {pid} does not answer"))
        .hint(format!("try again, or end it with kill -9 {pid} and detach once more"))
}

/// What a target is doing. Errors: busy, where it does not answer.
pub async fn status(target: &Target) -> Result<TargetStatus> {
    match Conversation::begin(target, Request::Status).await?.hear(PROMPT).await? {
        Reply::Status(status) => Ok(*status),
        _ => Err(Error::failed(format!("process {} answered something else", target.state.pid))),
    }
}

/// Has a target carry out a request, and waits until it has. Dropping the future calls a long one off.
///
/// Errors: busy, where the target does not answer, or its frontend cannot do that while it runs; those of the
/// volume.
pub async fn ask(target: &Target, request: Request) -> Result<Reply> {
    Conversation::begin(target, request).await?.hear(ENDLESS).await
}

/// Has a target make whole what it can of these objects of a volume. Dropping the future calls nothing off.
///
/// Errors: busy, where the target does not answer; those of the volume.
pub async fn mend(target: &Target, volume: VolumeId, objects: &[Key]) -> Result<Vec<Mended>> {
    let mut mended = Vec::new();
    // A message has a bounded length.
    for some in objects.chunks(MENDED_AT_ONCE) {
        let objects = some.iter().map(ToString::to_string).collect();
        let request = Request::Mend { volume, objects };
        match Conversation::begin(target, request).await?.hear(ENDLESS).await? {
            Reply::Mended(more) => mended.extend(more),
            _ => {
                let pid = target.state.pid;
                return Err(Error::failed(format!("process {pid} answered something else")));
            }
        }
    }
    Ok(mended)
}

/// Has a target do something about the snapshots of a volume.
///
/// Errors: as [`ask`].
pub async fn snapshots(
    target: &Target,
    volume: VolumeId,
    action: SnapshotAction,
) -> Result<Vec<SnapshotReport>> {
    ask(target, Request::Snapshots { volume, action }).await?.snapshots()
}

/// The paths by which a target reaches its store, after a change if one is wanted.
///
/// Errors: busy, where the target does not answer; those of the paths.
pub async fn paths(target: &Target, change: Option<PathChange>) -> Result<PathsReport> {
    let request = Request::Paths { change };
    match Conversation::begin(target, request).await?.hear(PATHS).await? {
        Reply::Paths(paths) => Ok(paths),
        _ => Err(Error::failed(format!("process {} answered something else", target.state.pid))),
    }
}

/// Ends a target and waits until it is done, however long that takes (with `force`, it is
/// bounded). `progress` hears what is being done and how many bytes the store lacks. Dropping the future while the data is being stored leaves everything as it was.
///
/// Errors: busy, where the device is in use or the target does not answer; those of the target.
pub async fn detach(
    target: &Target,
    force: bool,
    progress: impl FnMut(Phase, u64),
) -> Result<Outcome> {
    end((target.state.pid, &target.socket), force, progress).await
}

/// As [`detach`], of any process with a control socket.
pub(super) async fn end(
    (pid, socket): (u32, &Path),
    force: bool,
    mut progress: impl FnMut(Phase, u64),
) -> Result<Outcome> {
    let request = Request::Detach { force };
    let mut conversation = Conversation::begin_with((pid, socket), request).await?;
    let wait = async {
        loop {
            match conversation.hear(PROMPT.max(FORCED)).await? {
                Reply::Detached(outcome) => return Ok(outcome),
                Reply::Progress { phase, dirty_bytes } => progress(phase, dirty_bytes),
                _ => {}
            }
        }
    };
    match force {
        true => timeout(FORCED, wait).await.map_err(|_| silent(pid))?,
        false => wait.await,
    }
}
