//! Having the owner of a volume do something, wherever it is.
//!
//! One on this host is asked through its socket, one that may be on another host through the store. Where nobody
//! has the volume, its caller owns it for a moment.

use super::snapshot::serving;
use super::{Context, duration};
use crate::daemon::control::{decode, encode};
use crate::daemon::{Reply, Request, RunDir, client};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::keys::RequestId;
use crate::format::request::AskedBy;
use crate::host::Host;
use crate::pool::backend::Backend;
use crate::pool::{Standing, VolumeName, standing};
use crate::requests::{self, Question, State};
use crate::units::Epoch;
use crate::volume::ownership;
use std::time::{Duration, Instant};

/// What the owner answers; `None` where nobody has the volume, or nobody is to be asked.
///
/// Errors: busy, where the owner does not answer in time; those of the volume; the store's.
pub(super) async fn ask(
    context: &Context,
    backend: &Backend,
    (id, name): (VolumeId, &VolumeName),
    request: Request,
) -> Result<Option<Reply>> {
    if let Some(target) = serving(&RunDir::open()?, id)? {
        return client::ask(&target, request).await.map(Some);
    }
    let Some(patience) = duration::parse_or_off("--wait", &context.global.wait)? else {
        return Ok(None);
    };
    let (store, host, begun) = (&*backend.stores.setup, Host::local()?, Instant::now());
    let mut asked: Option<(RequestId, Epoch)> = None;
    loop {
        let ownership = ownership(store, id).await?;
        let standing = standing(&ownership, &host);
        if !standing.is_held() {
            return Ok(None);
        }
        if let Some((request, _)) = asked.filter(|(_, term)| *term == ownership.epoch) {
            return Err(silent(&standing, name, (request, patience)));
        }
        let question = Question { volume: id, order: line(request.clone())?, by: me(&host) };
        let left = patience.saturating_sub(begun.elapsed());
        let (request, state) = requests::ask(store, question, ownership.epoch, left).await?;
        match state {
            State::Answered(answer) => {
                let spent = begun.elapsed().as_secs_f64();
                eprintln!("objblk: {}, and answered after {spent:.1} s", whom(&standing, name));
                return match decode::<Reply>(answer.reply.as_bytes())? {
                    Reply::Refused(refusal) => Err(refusal.into()),
                    reply => Ok(Some(reply)),
                };
            }
            State::Taken | State::Waiting => return Err(undecided(&standing, name, request)),
            // Nothing was done. Somebody else has the volume by now, or nobody, or it does not answer.
            State::Withdrawn | State::PassedOver(_) => asked = Some((request, ownership.epoch)),
        }
    }
}

fn me(host: &Host) -> AskedBy {
    let me = host.owner();
    AskedBy { host: me.host, pid: me.pid, at_ms: me.claimed_at_ms, nonce: me.nonce }
}

/// As it goes over the control socket.
fn line(request: Request) -> Result<String> {
    let mut line = encode(request);
    line.pop();
    String::from_utf8(line).map_err(|e| Error::usage("what is asked is no text").because(e))
}

fn whom(standing: &Standing, name: &VolumeName) -> String {
    format!("{name} is attached by {}: it was asked", standing.owner())
}

fn silent(standing: &Standing, name: &VolumeName, (id, patience): (RequestId, Duration)) -> Error {
    let seconds = patience.as_secs_f64();
    let refusal = standing.refusal(name, "take it over with `objblk attach --takeover`");
    refusal.because(format!(
        "it was asked (request {id}), has not answered within {seconds} s, and will not do it any more"
    ))
}

fn undecided(standing: &Standing, name: &VolumeName, id: RequestId) -> Error {
    let whom = whom(standing, name);
    let text = format!("{whom}, has begun (request {id}), and has not told yet what came of it");
    Error::new(ErrorKind::Busy, text).hint(format!("`objblk request {name} {id}` tells it"))
}
