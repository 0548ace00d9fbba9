//! How far the scrub of a volume is, and what the last one found. JSON.
//!
//! `scrubs/<~n>`: the greatest number counts, and older ones go. A hint: nothing depends on it, and who cannot
//! read it scrubs from the beginning.

use super::VolumeId;
use super::codec::{FormatError, FormatResult, Problem};
use super::page::SEQ_MAX;
use super::pool::parse_json;
use crate::units::Seq;
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;
const OBJECT: &str = "scrub";

/// One pass over all that a volume and its snapshots need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrubPass {
    /// When it was begun, in milliseconds since 1970.
    pub begun_at_ms: u64,
    /// When it ended, or was last noted.
    pub ended_at_ms: u64,
    /// Chunks that were verified.
    pub chunks: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Damaged objects that were found.
    pub damaged: u64,
    /// Those of them that are whole again, or needed no more.
    pub mended: u64,
}

impl ScrubPass {
    /// Damaged objects that still are.
    pub fn left(&self) -> u64 {
        self.damaged.saturating_sub(self.mended)
    }

    fn problem(&self) -> Option<String> {
        if self.ended_at_ms < self.begun_at_ms {
            return Some("it ended before it began".into());
        }
        let more = self.mended > self.damaged;
        more.then(|| format!("{} of {} were mended", self.mended, self.damaged))
    }
}

/// `scrubs/<~n>`: the scrub of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScrubObject {
    /// Layout version.
    version: u32,
    /// The volume.
    pub volume: VolumeId,
    /// Its number, as its name says.
    pub number: u64,
    /// The pass that is under way: every slot before this one is done.
    pub next: Option<Seq>,
    /// What it has done.
    pub now: ScrubPass,
    /// The last one that came to its end.
    pub last: Option<ScrubPass>,
}

impl ScrubObject {
    /// That of a volume that was never scrubbed.
    pub fn new(volume: VolumeId) -> ScrubObject {
        let (next, now, last) = (None, ScrubPass::default(), None);
        ScrubObject { version: VERSION, volume, number: 0, next, now, last }
    }

    /// Parses the object and checks every value.
    pub fn parse(bytes: &[u8]) -> FormatResult<ScrubObject> {
        let scrub: ScrubObject = parse_json(OBJECT, bytes)?;
        let error = |field, problem| FormatError { object: OBJECT, field, offset: 0, problem };
        if scrub.version != VERSION {
            return Err(error("version", Problem::Unsupported(scrub.version.to_string())));
        }
        if let Some(next) = scrub.next.filter(|next| next.0 > SEQ_MAX) {
            return Err(error("next", Problem::Value(next.to_string())));
        }
        for pass in [Some(&scrub.now), scrub.last.as_ref()].into_iter().flatten() {
            if let Some(problem) = pass.problem() {
                return Err(error("pass", Problem::Value(problem)));
            }
        }
        Ok(scrub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::pool::encode_json;

    #[test]
    fn what_cannot_be_is_refused() {
        let new = ScrubObject::new(VolumeId::from_bytes([7; 16]));
        assert_eq!(ScrubObject::parse(&encode_json(&new)), Ok(new));
        let early = ScrubPass { begun_at_ms: 2, ended_at_ms: 1, ..ScrubPass::default() };
        let many = ScrubPass { damaged: 1, mended: 2, ..ScrubPass::default() };
        for (bad, field) in [
            (ScrubObject { now: early, ..new }, "pass"),
            (ScrubObject { last: Some(many), ..new }, "pass"),
            (ScrubObject { next: Some(Seq(SEQ_MAX + 1)), ..new }, "next"),
            (ScrubObject { version: 2, ..new }, "version"),
        ] {
            let error = ScrubObject::parse(&encode_json(&bad)).unwrap_err();
            assert_eq!(error.field, field, "{error}");
        }
    }
}
