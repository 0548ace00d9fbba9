//! Asking the owner of a volume for something, through the store: from any host, through any network.
//!
//! ```text
//! asker                                      owner of term E
//! requests/<E>-<n>          what is asked
//!                                            looks for its next number now and then (one HEAD)
//!                                            requests/<E>-<n>-decision   taken
//!                                            does it; commits a slot of its log after that
//! reads, shows              <-               requests/<E>-<n>-answer     done, or refused and why
//! ```
//!
//! **At most once, and one outcome.** All of it rests on create-if-absent, and no clock decides anything:
//! 1. A request is addressed to a term, and only the owner of that term carries it out: one process, which goes
//!    through the numbers in order and remembers how far it is. A request that arrives late under a number that
//!    it has passed is never looked at.
//! 2. Before anything is done, `decision` says that it is taken. An asker that loses patience creates the same
//!    object, which then says withdrawn. Whoever comes first decides: what is withdrawn nobody carries out, and
//!    who cannot withdraw any more knows that it is taken.
//! 3. An owner answers only after a slot of its log was committed behind what it did: so it was the owner then, and
//!    nothing that it had seen was of a log that went another way. One that was deposed meanwhile answers nothing.
//! 4. A later owner passes over what was addressed to a former one and not taken: the asker asks again, in the new
//!    term. What was taken and not answered it cannot do again; its fence has ended that term, and it has all that was
//!    committed there. A snapshot that was made is called by the token of the decision, so if that is
//!    there, it was done. Otherwise the answer is that it was cut off: done or not, and never will be from then on.
//! 5. The answer is created once. Where the taker's comes late and a later owner's is there, that one counts.
//!
//! Every outcome that an asker hears is therefore true of some moment between its question and the answer, in an
//! order that all hosts agree on (`tests/engine/hosts.rs` checks recorded histories); "cut off" and "taken, not answered
//! yet" promise nothing.
//!
//! **Left over.** The owner deletes what was answered an hour ago, but for its newest number: who asks next counts on
//! from that. What a term leaves, the next owner deletes.

mod ask;
mod desk;

pub use ask::{Question, State, all, ask, state, withdraw};
pub use desk::{Clerk, Desk};

use crate::error::{Error, Result};
use crate::format::VolumeId;
use crate::format::keys::{self, RequestId, RequestPart};
use crate::format::pool::encode_json;
use crate::format::request::{Decision, DecisionObject};
use crate::store::{Key, Store, StoreErrorKind, get_parsed};
use std::fmt::Display;

/// Decides about a request, if nobody has. Returns what is decided.
///
/// # Errors
/// Corrupt: the decision is damaged. Store.
async fn decide(
    store: &dyn Store,
    (volume, id): (VolumeId, RequestId),
    decision: Decision,
) -> Result<Decision> {
    let object = DecisionObject::new(volume, id, decision);
    let key = object.key();
    match store.put_if_absent(&key, encode_json(&object).into()).await {
        Ok(()) => return Ok(object.decision),
        Err(e) if e.kind == StoreErrorKind::AlreadyExists => {}
        Err(e) => return Err(e.into()),
    }
    match decision_of(store, (volume, id)).await? {
        Some(decision) => Ok(decision),
        None => Err(Error::failed(format!("{key} has gone: the request is long over"))),
    }
}

/// What is decided about a request, if anything is.
///
/// # Errors
/// As [`decide`].
async fn decision_of(
    store: &dyn Store,
    (volume, id): (VolumeId, RequestId),
) -> Result<Option<Decision>> {
    let key = keys::request(volume, id, RequestPart::Decision);
    match get_parsed(store, &key, DecisionObject::parse).await {
        Ok(Ok(object)) if object.key() == key => Ok(Some(object.decision)),
        Ok(Ok(_)) => Err(damaged(&key, "it is about another request than its name says")),
        Ok(Err(e)) => Err(damaged(&key, e)),
        Err(e) if e.kind == StoreErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn damaged(key: &Key, why: impl Display) -> Error {
    Error::corrupt(format!("{key} is damaged")).because(why.to_string())
}
