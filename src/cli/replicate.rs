//! A volume shipped to another pool, again and again; and what was shipped made a volume of its own.

use super::interrupt::Interrupt;
use super::{Context, args, copy, duration, render, size};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::replica::ReplicaObject;
use crate::host::Host;
use crate::pool::VolumeName;
use crate::pool::backend::Backend;
use crate::replica::{Lag, Place, Round, Way};
use serde::Serialize;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

/// How often a terminal is told how far a round is.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// What is known of a replica.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Shown {
    name: String,
    id: VolumeId,
    /// The pool that it is shipped from, and where that is.
    replica_of: VolumeId,
    from: String,
    /// The number of the newest state.
    state: u64,
    /// Every slot of the log before this one is in it.
    seq: u64,
    epoch: u64,
    /// It has all that the source had then.
    seen_at_ms: Option<u64>,
    promoted_at_ms: Option<u64>,
    promoted_by: Option<String>,
    /// The epoch in which it goes on since.
    promoted_epoch: Option<u64>,
    /// Nothing of the source that is older is missing, and so many bytes are; where the source was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_bytes: Option<u64>,
    /// What a round has copied and deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    copied_objects: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    copied_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted_objects: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged_chunks: Option<u64>,
}

impl Shown {
    pub(super) fn of(name: &str, state: &ReplicaObject) -> Shown {
        let (shipped, promoted) = (&state.shipped, state.promoted.as_ref());
        Shown {
            name: name.into(),
            id: state.volume,
            replica_of: state.pool,
            from: state.from.clone(),
            state: state.number,
            seq: shipped.end.next.0,
            epoch: shipped.end.epoch.0,
            seen_at_ms: Some(shipped.seen_at_ms).filter(|ms| *ms > 0),
            promoted_at_ms: promoted.map(|promoted| promoted.at_ms),
            promoted_by: promoted.map(|promoted| promoted.by.clone()),
            promoted_epoch: promoted.map(|promoted| promoted.epoch.0),
            lag_ms: None,
            lag_bytes: None,
            copied_objects: None,
            copied_bytes: None,
            deleted_objects: None,
            damaged_chunks: None,
        }
    }

    /// Whether it is no replica any more.
    pub(super) fn is_promoted(&self) -> bool {
        self.promoted_at_ms.is_some()
    }

    /// What it is, in words.
    pub(super) fn words(&self) -> String {
        let of = format!("of the volume in {}", self.from);
        let has = match self.seen_at_ms {
            Some(ms) => format!("slots before {} of {}", self.seq, render::time(ms)),
            None => "nothing yet".into(),
        };
        match (self.promoted_at_ms, &self.promoted_by) {
            (Some(ms), Some(by)) => {
                format!("{of}, until it was promoted on {by} at {}, with {has}", render::time(ms))
            }
            _ => format!("{of}, with {has}"),
        }
    }

    fn after(self, round: &Round) -> Shown {
        Shown {
            copied_objects: Some(round.objects),
            copied_bytes: Some(round.bytes),
            deleted_objects: Some(round.deleted),
            damaged_chunks: Some(round.damaged),
            ..self
        }
    }

    fn behind(self, lag: &Lag) -> Shown {
        Shown { lag_ms: Some(lag.age_ms), lag_bytes: Some(lag.bytes), ..self }
    }

    /// One line about a round.
    fn round(&self) -> String {
        let (objects, bytes) = (self.copied_objects.unwrap_or(0), self.copied_bytes.unwrap_or(0));
        let seen = self.seen_at_ms.map_or_else(|| "never".into(), render::time);
        let mut text = format!(
            "{}: state {} has slots before {}, all of {seen}; {objects} objects copied, {}, {} deleted",
            self.name,
            self.state,
            self.seq,
            size::show(bytes),
            self.deleted_objects.unwrap_or(0),
        );
        if let Some(damaged) = self.damaged_chunks.filter(|n| *n > 0) {
            text += &format!("; {damaged} chunks are damaged in the source");
        }
        text
    }

    fn status(&self) -> String {
        let lag = match (self.lag_bytes, self.lag_ms) {
            (Some(0), _) => "none".into(),
            (Some(bytes), Some(ms)) => format!("{}, {} s", size::show(bytes), ms.div_ceil(1000)),
            _ => "-".into(),
        };
        render::fields(&[
            ("name", self.name.clone()),
            ("id", self.id.to_string()),
            ("replica", self.words()),
            ("state", self.state.to_string()),
            ("lag", lag),
        ])
    }
}

/// A volume and where it goes.
struct Job {
    name: VolumeName,
    new: VolumeName,
    target: Backend,
    way: Way,
}

pub(super) async fn replicate(context: &Context, args: args::Replicate) -> Result<()> {
    let interval = duration::parse_some("--interval", &args.interval)?;
    let job = Job::begin(context, &args).await?;
    if args.status {
        let (state, lag) = job.way.lag().await?;
        let shown = Shown::of(job.new.as_str(), &state);
        // What is missing of a source that goes on by itself is no lag.
        let shown = if shown.is_promoted() { shown } else { shown.behind(&lag) };
        return context.show(&shown, || shown.status());
    }
    let mut interrupt = Interrupt::new()?;
    if args.once {
        let round = interrupt.or(job.round()).await?;
        return job.tell(context, &round);
    }
    loop {
        let begun = tokio::time::Instant::now();
        let round = tokio::select! {
            round = job.round() => round,
            () = interrupt.heard() => return Ok(()),
        };
        match round {
            Ok(round) => job.tell(context, &round)?,
            // The source or the replica may be away for a while; anything else stays as it is.
            Err(e) if matches!(e.kind(), ErrorKind::Store | ErrorKind::Busy) => {
                eprintln!("objblk: {}: not shipped now, tried again: {e}", job.name);
            }
            Err(e) => return Err(e),
        }
        tokio::select! {
            () = tokio::time::sleep_until(begun + interval) => {}
            () = interrupt.heard() => return Ok(()),
        }
    }
}

impl Job {
    async fn begin(context: &Context, args: &args::Replicate) -> Result<Job> {
        let name: VolumeName = args.name.parse()?;
        let new: VolumeName = args.new.as_deref().unwrap_or(&args.name).parse()?;
        let rate = args.rate.as_deref().map(|text| size::parse("--rate", text)).transpose()?;
        let other = (&*args.to, &args.to_endpoint_url, &args.to_region);
        let location = copy::destination(context, other)?;
        let source = context.open().await?;
        let (id, volume) = source.pool.lookup(&name).await?;
        let branches = source.pool.can_replicate(&name, &volume).await?;
        let target = match args.status {
            true => {
                let (url, s3) = location.parts()?;
                Backend::open(&url, &s3).await?
            }
            false => super::volume::open_or_create(&location).await?,
        };
        let of = source.pool.object().id;
        if !args.status {
            let from = format!("{} as {name}", source.pool.store().url());
            target.pool.begin_replica(&new, &volume, (of, &from, &branches)).await?;
        } else if !target.pool.is_called(&new, id).await? {
            return Err(Error::not_found(format!(
                "there is no replica called {new} in {}",
                args.to
            )));
        }
        let place = |backend: &Backend| Place {
            raw: backend.raw.clone(),
            plain: backend.stores.setup.clone(),
        };
        let places = (place(&source), place(&target));
        let way =
            Way::new((volume, of, branches.last().copied()), places, Arc::new(SystemClock), rate);
        Ok(Job { name, new, target, way })
    }

    async fn round(&self) -> Result<Round> {
        let work = async {
            let id = self.way.state().await?.volume;
            // Whoever has deleted it does not want more of it.
            if !self.target.pool.is_called(&self.new, id).await? {
                let text = format!("the replica is not called {} any more", self.new);
                return Err(Error::not_found(text).hint("it was deleted, or renamed: see --as"));
            }
            self.way.round().await
        };
        let mut work = std::pin::pin!(work);
        let before = self.way.shipped();
        let is_told = std::io::stderr().is_terminal();
        loop {
            tokio::select! {
                done = &mut work => {
                    if is_told {
                        eprint!("\r\x1b[K");
                    }
                    return done.map_err(|e| e.context(format!("cannot replicate {}", self.name)));
                }
                () = tokio::time::sleep(TOLD_EVERY), if is_told => {
                    let shipped = size::show(self.way.shipped() - before);
                    eprint!("\r\x1b[Kshipping {}: {shipped}", self.name);
                }
            }
        }
    }

    fn tell(&self, context: &Context, round: &Round) -> Result<()> {
        let shown = Shown::of(self.new.as_str(), &round.state).after(round);
        context.show(&shown, || shown.round())
    }
}

pub(super) async fn promote(context: &Context, name: &str) -> Result<()> {
    let name: VolumeName = name.parse()?;
    let backend = context.open().await?;
    let (state, is_new) = backend.pool.promote(&name, &Host::local()?.owner().host).await?;
    let shown = Shown::of(name.as_str(), &state);
    if !is_new {
        eprintln!("objblk: {name} was promoted before");
    }
    let now = SystemClock.now_ms();
    context.show(&shown, || {
        let age = shown.seen_at_ms.map_or(0, |ms| now.saturating_sub(ms) / 1000);
        format!("{name} is a volume of its own: {}, {age} s ago", shown.words())
    })
}
