//! The process that waits for a target and starts its successor if it dies.
//!
//! A target that ends in order takes its state file with it; one that left it there died, whatever
//! its exit code says. The supervisor keeps nothing that matters: if it is killed, its target lives
//! on, and `objblk recover` does what it would have done. A passphrase that somebody has typed it keeps in its memory
//! for as long as it lives, for the target's successor; nothing of it is written.
//!
//! Several that die soon after they began, one after the other, die of the same cause. Then the
//! device is removed, so that its users get errors instead of waiting for ever.

use super::background::{Answer, answer, detach_from_terminal, open_log, read_spec, start};
use super::rundir::{RunDir, Target};
use super::spec::TargetSpec;
use super::target::Ready;
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::seal::KeyGiven;
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};
use std::process::Child;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

/// Early deaths in a row after which there is no successor.
const DEATHS: usize = 5;
/// A target that dies within this time of being ready dies early.
const EARLY: Duration = Duration::from_secs(30);

/// Wait before the next attempt where a successor did not get ready.
const PAUSE: Duration = Duration::from_secs(2);

/// Reads a specification from standard input, runs its target as `objblk ARGUMENTS...` and answers
/// as that does; from then on starts a successor whenever it dies. Returns when a target has ended
/// in order, or when there cannot be a successor. `unwatched` is called once it is on its own.
///
/// Errors: failed, where it cannot become a background process.
pub async fn supervise(arguments: &[&str], unwatched: impl FnOnce()) -> Result<()> {
    setsid().map_err(|e| Error::failed("cannot become a background process").because(e))?;
    let spec: TargetSpec = read_spec()?;
    if spec.key.as_ref().is_some_and(|key| key.answer().is_some())
        && let Err(e) = set_dumpable(false)
    {
        tracing::warn!("a crash of this process may leave a passphrase in a core dump: {e}");
    }
    // From here on a signal is for the target.
    let mut ears = Ears::open()?;
    let owned: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
    let (mut child, ready) = match run(&spec, &owned).await {
        Ok(started) => started,
        Err(e) => return answer(&Answer::Failed(e.into())),
    };
    let log = open_log(&RunDir::open()?, spec.volumes.first())?;
    if let Err(e) = answer(&Answer::Ready(ready.clone()))
        && spec.recover.is_none()
    {
        // The target has heard the same silence, if it was not this process that heard it.
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        tracing::error!("{e}");
    }
    detach_from_terminal(&log)?;
    unwatched();
    let id = ready.volumes[0].id;
    let mut deaths = Deaths { early: 0, ready: Instant::now() };
    while let Some(left) = ended(child, &mut ears, id).await? {
        deaths.died();
        match succeed((&left, spec.key.as_ref()), &owned, &mut deaths, &mut ears).await? {
            Some((next, ready)) => {
                tracing::warn!("process {} goes on for {}", ready.pid, left.state.pid);
                (child, deaths.ready) = (next, Instant::now());
            }
            None => return Ok(()),
        }
    }
    Ok(())
}

/// Starts a target.
async fn run(spec: &TargetSpec, arguments: &[String]) -> Result<(Child, Ready)> {
    let (spec, arguments) = (spec.clone(), arguments.to_vec());
    let started = spawn_blocking(move || {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        start(&spec, &arguments)
    });
    started.await.map_err(|e| Error::failed("cannot start a target").because(e))?
}

/// Signals that this process should end.
struct Ears {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Ears {
    fn open() -> Result<Ears> {
        let listen =
            |kind| signal(kind).map_err(|e| Error::failed("cannot handle signals").because(e));
        let terminate = listen(SignalKind::terminate())?;
        Ok(Ears { terminate, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn heard(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits for the end of a target, passing signals on to it. Returns what it left if it died.
async fn ended(mut child: Child, ears: &mut Ears, id: VolumeId) -> Result<Option<Target>> {
    let pid = child.id();
    let mut waiting = spawn_blocking(move || child.wait());
    let status = loop {
        tokio::select! {
            status = &mut waiting => break status,
            () = ears.heard() => {
                // Not awaited yet, so the number is still its own.
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM);
            }
        }
    };
    let left = RunDir::open()?.holder(id)?.filter(|left| left.state.pid == pid && !left.alive);
    if let Some(left) = &left {
        let status = status.map_err(std::io::Error::other).and_then(|status| status);
        let how = status.map_or_else(|e| e.to_string(), |status| status.to_string());
        tracing::error!("process {pid}, which served {}, died: {how}", left.state.volumes[0].name);
    }
    Ok(left)
}

/// Starts a successor for what `left` left, as often as it takes, with what opens its volume if that was
/// `given`. `None` where there is none.
async fn succeed(
    (left, given): (&Target, Option<&KeyGiven>),
    arguments: &[String],
    deaths: &mut Deaths,
    ears: &mut Ears,
) -> Result<Option<(Child, Ready)>> {
    let run_dir = RunDir::open()?;
    let Some(mut spec) = left.state.successor.clone().filter(|_| left.is_recoverable()) else {
        run_dir.remove_dead(left)?;
        return Ok(None);
    };
    // What somebody has answered is in no file.
    spec.key = given.cloned().or(spec.key);
    loop {
        if deaths.are_too_many() {
            let device = &left.state.volumes[0].device;
            tracing::error!("{DEATHS} early deaths in a row: {device} is removed");
            run_dir.remove_dead(left)?;
            return Ok(None);
        }
        let refused = match run(&spec, arguments).await {
            Ok(started) => return Ok(Some(started)),
            Err(e) => e,
        };
        tracing::error!("{refused}");
        // Gone for good, or somebody else's by now.
        let first = left.state.volumes[0].id;
        let same = |now: &Target| now.state.pid == left.state.pid && now.is_recoverable();
        if !run_dir.holder(first)?.as_ref().is_some_and(same) {
            return Ok(None);
        }
        if !matches!(refused.kind(), ErrorKind::Store | ErrorKind::Busy | ErrorKind::Usage) {
            deaths.early += 1;
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            // The device waits on for `objblk recover`.
            () = ears.heard() => return Ok(None),
        }
    }
}

/// How the latest targets died.
#[derive(Debug)]
struct Deaths {
    /// Early deaths in a row, those before a target was ready included.
    early: usize,
    /// When the present target was ready.
    ready: Instant,
}

impl Deaths {
    fn died(&mut self) {
        self.early = if self.ready.elapsed() < EARLY { self.early + 1 } else { 0 };
    }

    fn are_too_many(&self) -> bool {
        self.early >= DEATHS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_early_deaths_in_a_row_are_too_many() {
        let mut deaths = Deaths { early: 0, ready: Instant::now() };
        for life in [EARLY / 2, EARLY / 2, EARLY, EARLY / 2, EARLY / 3, EARLY / 4, EARLY / 5] {
            sleep(life).await;
            deaths.died();
            assert!(!deaths.are_too_many());
            deaths.ready = Instant::now();
        }
        deaths.died();
        assert!(deaths.are_too_many());
    }
}
