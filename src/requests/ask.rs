//! The asker's side.

use super::{damaged, decide, decision_of};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VolumeId;
use crate::format::keys::{self, RequestId, RequestPart};
use crate::format::pool::encode_json;
use crate::format::request::{AnswerObject, AskedBy, Decision, LINE_MAX, RequestObject};
use crate::store::{Store, StoreErrorKind, get_parsed, list_all};
use crate::units::Epoch;
use crate::volume::ownership;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// The first pause between two looks for an answer, which grows to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often who waits looks whether the owner has gone.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What is asked, and by whom.
#[derive(Clone, Debug)]
pub struct Question {
    /// The volume whose owner is asked.
    pub volume: VolumeId,
    /// What for.
    pub order: String,
    /// By whom.
    pub by: AskedBy,
}

/// How far a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing is decided.
    Waiting,
    /// Its owner carries it out, or has gone over that.
    Taken,
    /// It was withdrawn: nothing was done.
    Withdrawn,
    /// The owner of that term let it lie: nothing was done.
    PassedOver(Epoch),
    /// This came of it.
    Answered(AnswerObject),
}

/// Asks the owner of `term`, and waits: for as long as `patience` until it is taken, and once more for the answer
/// then. Where the term ends meanwhile and it was not taken, it is withdrawn at once. Returns how far it is; never
/// [`State::Waiting`].
///
/// # Errors
/// Usage: it is too long. Corrupt, Store; those after the question was put say which one it is.
///
/// Cancellation: the question may be there; it is carried out then, or not.
pub async fn ask(
    store: &dyn Store,
    question: Question,
    term: Epoch,
    patience: Duration,
) -> Result<(RequestId, State)> {
    let volume = question.volume;
    let nonce = question.by.nonce.clone();
    let id = post(store, question, term).await?;
    let waited = wait(store, (volume, id), nonce, patience).await;
    let state = waited.map_err(|e| {
        e.context(format!("request {id} is on its way, and what came of it cannot be read"))
    });
    Ok((id, state?))
}

/// Puts the question under the next number of the term.
async fn post(store: &dyn Store, question: Question, epoch: Epoch) -> Result<RequestId> {
    let Question { volume, order, by } = question;
    if order.len() > LINE_MAX {
        let text =
            format!("a request of {} bytes is too long to be put into the store", order.len());
        return Err(Error::usage(text));
    }
    let listed = list_all(store, &keys::requests_of(volume, epoch)).await?;
    let ids = listed.iter().filter_map(|object| keys::parse_request(volume, &object.key));
    let mut next = ids.map(|(id, _)| id.number).max().map_or(Some(0), |last| last.checked_add(1));
    while let Some(number) = next {
        let id = RequestId { epoch, number };
        let object = RequestObject::new(volume, id, order.clone(), by.clone());
        match store.put_if_absent(&object.key(), encode_json(&object).into()).await {
            Ok(()) => return Ok(id),
            // Somebody else asks too.
            Err(e) if e.kind == StoreErrorKind::AlreadyExists => next = number.checked_add(1),
            Err(e) => return Err(e.into()),
        }
    }
    Err(Error::new(ErrorKind::Busy, "the owner has been asked too often in this term")
        .hint("detach and attach the volume there"))
}

async fn wait(
    store: &dyn Store,
    (volume, id): (VolumeId, RequestId),
    nonce: String,
    patience: Duration,
) -> Result<State> {
    let begun = Instant::now();
    let (mut pause, mut looked, mut taken) = (FIRST_PAUSE, begun, None);
    loop {
        sleep(pause).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        let mut state = state(store, volume, id).await?;
        if state == State::Waiting {
            let mut over = begun.elapsed() >= patience;
            if !over && looked.elapsed() >= LOOK_AGAIN {
                looked = Instant::now();
                let ownership = ownership(store, volume).await?;
                over = ownership.closed || ownership.epoch != id.epoch;
            }
            if over {
                state = withdraw(store, volume, id, nonce.clone()).await?;
            }
        }
        match state {
            State::Waiting => {}
            State::Taken => {
                let since = *taken.get_or_insert_with(Instant::now);
                if since.elapsed() >= patience {
                    return Ok(State::Taken);
                }
            }
            done => return Ok(done),
        }
    }
}

/// How far a request is.
///
/// # Errors
/// Corrupt: what says so is damaged. Store.
pub async fn state(store: &dyn Store, volume: VolumeId, id: RequestId) -> Result<State> {
    let key = keys::request(volume, id, RequestPart::Answer);
    match get_parsed(store, &key, AnswerObject::parse).await {
        Ok(Ok(answer)) if answer.key() == key => return Ok(State::Answered(answer)),
        Ok(Ok(_)) => return Err(damaged(&key, "it is the answer to another request")),
        Ok(Err(e)) => return Err(damaged(&key, e)),
        Err(e) if e.kind == StoreErrorKind::NotFound => {}
        Err(e) => return Err(e.into()),
    }
    Ok(match decision_of(store, (volume, id)).await? {
        None => State::Waiting,
        Some(decision) => decided(&decision),
    })
}

fn decided(decision: &Decision) -> State {
    match decision {
        Decision::Taken { .. } => State::Taken,
        Decision::Withdrawn { .. } => State::Withdrawn,
        Decision::PassedOver { by } => State::PassedOver(*by),
    }
}

/// Withdraws a request, unless it is decided: then says how. `nonce` is random.
///
/// # Errors
/// As [`state`].
pub async fn withdraw(
    store: &dyn Store,
    volume: VolumeId,
    id: RequestId,
    nonce: String,
) -> Result<State> {
    let decision = decide(store, (volume, id), Decision::Withdrawn { nonce }).await?;
    Ok(decided(&decision))
}

/// The requests to the owners of a volume that are still there, in order; `None` is one that cannot be read.
///
/// # Errors
/// Store.
pub async fn all(
    store: &dyn Store,
    volume: VolumeId,
) -> Result<Vec<(RequestId, Option<RequestObject>)>> {
    let listed = list_all(store, &keys::requests(volume)).await?;
    let ids = listed.iter().filter_map(|object| keys::parse_request(volume, &object.key));
    let ids: BTreeSet<RequestId> = ids.map(|(id, _)| id).collect();
    let mut all = Vec::new();
    for id in ids {
        let key = keys::request(volume, id, RequestPart::Asked);
        match get_parsed(store, &key, RequestObject::parse).await {
            Ok(parsed) => all.push((id, parsed.ok())),
            // It was deleted since, or has long been.
            Err(e) if e.kind == StoreErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(all)
}
