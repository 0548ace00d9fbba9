//! A target in a process of its own.
//!
//! The command starts itself again, with what to do on the child's standard input and the child's
//! answer on its standard output. Until it is ready the child shares the command's standard error,
//! so that what it has to say reaches the user; then it lets go of all three and writes a log.

use super::control::{Outcome, Refusal, decode, encode};
use super::rundir::RunDir;
use super::spec::{Orders, TargetSpec};
use super::target::{Ready, run_foreground};
use crate::error::{Error, Result};
use crate::pool::VolumeSpec;
use crate::seal::{KeyPlace, Secret};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use zeroize::Zeroizing;

/// Longest line between the two processes, in bytes.
const LINE_MAX: u64 = 1 << 20;

/// The child's answer.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    Ready(Ready),
    Failed(Refusal),
}

/// Starts a target in the background, as `objblk ARGUMENTS...` with the specification on its
/// standard input; returns when it is ready for I/O.
///
/// Errors: the child's; then it has left nothing behind. Where this process is killed meanwhile,
/// the child ends in order as soon as it notices that nobody hears it.
pub fn spawn(spec: &impl Orders, arguments: &[&str]) -> Result<Ready> {
    start(spec, arguments).map(|(_, ready)| ready)
}

/// As [`spawn`], for one who waits for the child.
pub(super) fn start(spec: &impl Orders, arguments: &[&str]) -> Result<(Child, Ready)> {
    let failed = || Error::failed("cannot start the process that serves the volume");
    let program = std::env::current_exe().map_err(|e| failed().because(e))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed().because(e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that died already says so below.
        let _ = stdin.write_all(&encode(spec)).and_then(|()| stdin.write_all(&answer_of(spec)));
    }
    let mut line = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let read = BufReader::new(stdout.take(LINE_MAX)).read_until(b'\n', &mut line);
        read.map_err(|e| failed().because(e))?;
    }
    if line.is_empty() {
        let status = child.wait().map_err(|e| failed().because(e))?;
        clean_up_after(child.id());
        return Err(Error::failed(format!("the process that serves the volume died: {status}"))
            .hint("try again with --foreground to see why"));
    }
    match decode(&line)? {
        Answer::Ready(ready) => Ok((child, ready)),
        Answer::Failed(refusal) => {
            // It has nothing left to do but to end.
            let _ = child.wait();
            Err(refusal.into())
        }
    }
}

/// Removes what a child left that died before it was ready; not a device that waits for its
/// successor.
fn clean_up_after(pid: u32) {
    let cleaned = RunDir::open().and_then(|run_dir| {
        let mut left = run_dir.targets()?;
        left.retain(|t| t.state.pid == pid && !t.alive && !t.is_recoverable());
        left.iter().try_for_each(|left| run_dir.remove_dead(left))
    });
    if let Err(e) = cleaned {
        tracing::warn!("cannot clean up after process {pid}: {e}");
    }
}

/// The other side of [`spawn`]: reads the specification, runs the target, answers. Returns when
/// the target has ended; its errors have been told. `unwatched` is called once it is on its own.
pub async fn run_child(unwatched: impl FnOnce()) -> Result<()> {
    let failed = |e| Error::failed("cannot become a background process").because(e);
    setsid().map_err(failed)?;
    let spec: TargetSpec = read_spec()?;
    let mut log = None;
    let outcome = run_foreground(&spec, |ready| {
        let file = open_log(&RunDir::open()?, spec.volumes.first())?;
        match answer(&Answer::Ready(ready.clone())) {
            // Whoever uses the device has waited for it, whoever asked for it may have left.
            Err(e) if spec.recover.is_some() => tracing::info!("{e}"),
            told => told?,
        }
        log = spec.volumes.first().cloned();
        detach_from_terminal(&file)?;
        unwatched();
        Ok(())
    });
    let outcome = outcome.await;
    match (&outcome, log) {
        (Ok(outcome), Some(name)) if *outcome == Outcome::default() => {
            // All went well: nobody will want to read it.
            let _ = fs::remove_file(RunDir::open()?.log(&name));
            Ok(())
        }
        (Ok(_), _) => Ok(()),
        (Err(_), None) => outcome.map(drop).or_else(|e| answer(&Answer::Failed(e.into()))),
        (Err(e), Some(_)) => {
            tracing::error!("{e}");
            Ok(())
        }
    }
}

/// What somebody was asked for: a line of its own, since the other one may be written down.
fn answer_of(spec: &impl Orders) -> Zeroizing<Vec<u8>> {
    let answer = spec.key().filter(|key| *key.place() == KeyPlace::Asked);
    let Some(answer) = answer else { return Zeroizing::default() };
    let text = answer.answer().map(|answer| BASE64_STANDARD.encode(answer.bytes()));
    let text = Zeroizing::new(text.unwrap_or_default());
    Zeroizing::new(format!("{}\n", *text).into_bytes())
}

/// What the starting process wants.
pub(super) fn read_spec<T: DeserializeOwned + Orders>() -> Result<T> {
    let line = || {
        let mut line = Zeroizing::new(Vec::new());
        let read = std::io::stdin().lock().take(LINE_MAX).read_until(b'\n', &mut line);
        read.map_err(|e| Error::failed("cannot read what to do").because(e))?;
        Ok::<_, Error>(line)
    };
    let mut spec: T = decode(&line()?)?;
    if let Some(key) = spec.key_mut().filter(|key| *key.place() == KeyPlace::Asked) {
        let answer = BASE64_STANDARD.decode(line()?.trim_ascii_end());
        let answer = answer.map_err(|e| Error::failed("cannot read the passphrase").because(e))?;
        key.hear(Secret::new(answer));
    }
    Ok(spec)
}

pub(super) fn answer(answer: &Answer) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(&encode(answer)).and_then(|()| stdout.flush());
    written.map_err(|e| Error::failed("the command that started this is gone").because(e))
}

pub(super) fn open_log(run_dir: &RunDir, name: Option<&VolumeSpec>) -> Result<File> {
    open_log_at(&name.map_or_else(|| Path::new("/dev/null").into(), |name| run_dir.log(name)))
}

/// The log at `path`, to be added to. Errors: failed.
pub(super) fn open_log_at(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    file.map_err(|e| Error::failed(format!("cannot open the log {}", path.display())).because(e))
}

pub(super) fn detach_from_terminal(log: &File) -> Result<()> {
    let failed = |e| Error::failed("cannot let go of the terminal").because(e);
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let null = null.map_err(|e| Error::failed("cannot open /dev/null").because(e))?;
    dup2_stderr(log).map_err(failed)?;
    dup2_stdin(&null).map_err(failed)?;
    dup2_stdout(&null).map_err(failed)?;
    // A mounted directory must not stay busy for as long as the volume is attached.
    chdir("/").map_err(failed)
}
