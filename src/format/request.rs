//! What others ask the owner of a volume for, and what came of it. JSON, sealed in an encrypted volume.
//!
//! ```text
//! requests/<epoch>-<n>           version (1), volume, epoch, number, order, host, pid, asked_at_ms, nonce
//! requests/<epoch>-<n>-decision  version (1), volume, epoch, number, decision: {"taken": {"token"}},
//!                                {"withdrawn": {"nonce"}} or {"passed-over": {"by"}}
//! requests/<epoch>-<n>-answer    version (1), volume, epoch, number, by, answered_at_ms, reply
//! ```
//!
//! `order` and `reply` are lines of the control socket, without their line feed; what they mean is not known here.
//! Whoever is asked is the owner of `epoch`; `n` counts from 0 in each term. Each of the three is created once,
//! if at all, and says for which request it is.

use super::codec::{FormatError, FormatResult, Problem};
use super::keys::{self, RequestId, RequestPart};
use super::pool::parse_json;
use super::{SnapshotId, VolumeId};
use crate::store::Key;
use crate::units::Epoch;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

/// Longest order and longest reply, in bytes: with all of it escaped, the object is not too long.
pub const LINE_MAX: usize = 8 << 10;
/// Longest name of a host, and longest nonce, in bytes.
const NAME_MAX: usize = 256;

fn check(
    object: &'static str,
    version: u32,
    texts: &[(&'static str, &str, usize)],
) -> FormatResult<()> {
    let error = |field, problem| FormatError { object, field, offset: 0, problem };
    if version != VERSION {
        return Err(error("version", Problem::Unsupported(version.to_string())));
    }
    match texts.iter().find(|(_, text, max)| text.len() > *max) {
        None => Ok(()),
        Some((field, text, max)) => {
            let problem = format!("{} bytes, and {max} are the most", text.len());
            Err(error(field, Problem::Value(problem)))
        }
    }
}

/// `requests/<epoch>-<n>`: what somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestObject {
    /// Layout version.
    version: u32,
    /// The volume.
    pub volume: VolumeId,
    /// The term of the owner that is asked.
    pub epoch: Epoch,
    /// Its number in that term.
    pub number: u32,
    /// What is asked for.
    pub order: String,
    /// The host of who asks, for people.
    pub host: String,
    /// Its process id.
    pub pid: u32,
    /// When it asked, in milliseconds since 1970: for people.
    pub asked_at_ms: u64,
    /// Random: tells two that ask for the same apart.
    pub nonce: String,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedBy {
    /// Its host.
    pub host: String,
    /// Its process id.
    pub pid: u32,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Random.
    pub nonce: String,
}

impl RequestObject {
    /// The request called `id` to the owner of `volume`.
    pub fn new(volume: VolumeId, id: RequestId, order: String, by: AskedBy) -> RequestObject {
        let (RequestId { epoch, number }, AskedBy { host, pid, at_ms, nonce }) = (id, by);
        let version = VERSION;
        RequestObject {
            version,
            volume,
            epoch,
            number,
            order,
            host,
            pid,
            asked_at_ms: at_ms,
            nonce,
        }
    }

    /// Its name.
    pub fn key(&self) -> Key {
        let id = RequestId { epoch: self.epoch, number: self.number };
        keys::request(self.volume, id, RequestPart::Asked)
    }

    /// Parses the object and checks every value.
    pub fn parse(bytes: &[u8]) -> FormatResult<RequestObject> {
        let request: RequestObject = parse_json("request", bytes)?;
        let RequestObject { version, order, host, nonce, .. } = &request;
        let texts =
            [("order", &**order, LINE_MAX), ("host", host, NAME_MAX), ("nonce", nonce, NAME_MAX)];
        check("request", *version, &texts)?;
        Ok(request)
    }
}

/// Whether a request is carried out. The first who says so decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Decision {
    /// The owner of its term carries it out, or was about to.
    Taken {
        /// By which what it makes is called, if it makes something.
        token: SnapshotId,
    },
    /// Who asked does not want it any more: nobody carries it out.
    Withdrawn {
        /// Random.
        nonce: String,
    },
    /// Nobody carries it out.
    PassedOver {
        /// The term of the owner that decided so.
        by: Epoch,
    },
}

/// `requests/<epoch>-<n>-decision`: whether it is carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionObject {
    /// Layout version.
    version: u32,
    /// The volume.
    pub volume: VolumeId,
    /// The term that the request is addressed to.
    pub epoch: Epoch,
    /// Its number there.
    pub number: u32,
    /// The decision.
    pub decision: Decision,
}

impl DecisionObject {
    /// The decision about a request to the owner of `volume`.
    pub fn new(volume: VolumeId, id: RequestId, decision: Decision) -> DecisionObject {
        let RequestId { epoch, number } = id;
        DecisionObject { version: VERSION, volume, epoch, number, decision }
    }

    /// Its name.
    pub fn key(&self) -> Key {
        let id = RequestId { epoch: self.epoch, number: self.number };
        keys::request(self.volume, id, RequestPart::Decision)
    }

    /// Parses the object and checks every value.
    pub fn parse(bytes: &[u8]) -> FormatResult<DecisionObject> {
        let object: DecisionObject = parse_json("decision", bytes)?;
        let nonce = match &object.decision {
            Decision::Withdrawn { nonce } => &**nonce,
            Decision::Taken { .. } | Decision::PassedOver { .. } => "",
        };
        check("decision", object.version, &[("nonce", nonce, NAME_MAX)])?;
        Ok(object)
    }
}

/// `requests/<epoch>-<n>-answer`: what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerObject {
    /// Layout version.
    version: u32,
    /// The volume.
    pub volume: VolumeId,
    /// The term that the request is addressed to.
    pub epoch: Epoch,
    /// Its number there.
    pub number: u32,
    /// The term of the owner that answers: that one, or a later one that found it taken.
    pub by: Epoch,
    /// When it answered, in milliseconds since 1970: for people.
    pub answered_at_ms: u64,
    /// What it says.
    pub reply: String,
}

impl AnswerObject {
    /// The answer of the owner of the term `by`.
    pub fn new(
        (volume, id): (VolumeId, RequestId),
        (by, at_ms): (Epoch, u64),
        reply: String,
    ) -> AnswerObject {
        let RequestId { epoch, number } = id;
        let (version, answered_at_ms) = (VERSION, at_ms);
        AnswerObject { version, volume, epoch, number, by, answered_at_ms, reply }
    }

    /// Its name.
    pub fn key(&self) -> Key {
        let id = RequestId { epoch: self.epoch, number: self.number };
        keys::request(self.volume, id, RequestPart::Answer)
    }

    /// Parses the object and checks every value.
    pub fn parse(bytes: &[u8]) -> FormatResult<AnswerObject> {
        let answer: AnswerObject = parse_json("answer", bytes)?;
        check("answer", answer.version, &[("reply", &answer.reply, LINE_MAX)])?;
        if answer.by < answer.epoch {
            let problem = Problem::Value(format!("epoch {} answers for a later one", answer.by));
            return Err(FormatError { object: "answer", field: "by", offset: 0, problem });
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::pool::{JSON_MAX, encode_json};

    fn id() -> (VolumeId, RequestId) {
        (VolumeId::from_bytes([7; 16]), RequestId { epoch: Epoch(3), number: 5 })
    }

    fn request(order: String) -> RequestObject {
        let by = AskedBy { host: "thor".into(), pid: 42, at_ms: 9, nonce: "00ff".into() };
        RequestObject::new(id().0, id().1, order, by)
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let good = request("\u{1}".repeat(LINE_MAX));
        let bytes = encode_json(&good);
        assert!(bytes.len() < JSON_MAX, "{}", bytes.len());
        assert_eq!(RequestObject::parse(&bytes), Ok(good.clone()));
        for (bad, field) in [
            (request("x".repeat(LINE_MAX + 1)), "order"),
            (RequestObject { host: "x".repeat(NAME_MAX + 1), ..good.clone() }, "host"),
            (RequestObject { nonce: "x".repeat(NAME_MAX + 1), ..good.clone() }, "nonce"),
            (RequestObject { version: 2, ..good }, "version"),
        ] {
            assert_eq!(RequestObject::parse(&encode_json(&bad)).unwrap_err().field, field);
        }
        let answer = AnswerObject::new(id(), (Epoch(4), 7), "y".repeat(LINE_MAX));
        assert_eq!(AnswerObject::parse(&encode_json(&answer)), Ok(answer.clone()));
        for (bad, field) in [
            (AnswerObject { by: Epoch(2), ..answer.clone() }, "by"),
            (AnswerObject { reply: "y".repeat(LINE_MAX + 1), ..answer.clone() }, "reply"),
            (AnswerObject { version: 0, ..answer }, "version"),
        ] {
            assert_eq!(AnswerObject::parse(&encode_json(&bad)).unwrap_err().field, field);
        }
        let withdrawn = Decision::Withdrawn { nonce: "x".repeat(NAME_MAX + 1) };
        let bad = DecisionObject::new(id().0, id().1, withdrawn);
        assert_eq!(DecisionObject::parse(&encode_json(&bad)).unwrap_err().field, "nonce");
    }
}
