//! Names of what others ask the owner of a volume for: numbered in each term, from 0 on.

use super::{hex8, hex16, key};
use crate::format::VolumeId;
use crate::store::Key;
use crate::units::Epoch;
use std::fmt;
use std::str::FromStr;

/// A request: the term that it is addressed to, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// The term of the owner that is asked.
    pub epoch: Epoch,
    /// Its number among those of that term.
    pub number: u32,
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch.0, self.number)
    }
}

impl FromStr for RequestId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<RequestId, std::num::ParseIntError> {
        let (epoch, number) = text.split_once('-').unwrap_or((text, ""));
        Ok(RequestId { epoch: Epoch(epoch.parse()?), number: number.parse()? })
    }
}

/// What of a request an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestPart {
    /// What is asked for.
    Asked,
    /// What came of it.
    Answer,
    /// Whether it is carried out.
    Decision,
}

impl RequestPart {
    /// Every one.
    pub const ALL: [RequestPart; 3] =
        [RequestPart::Asked, RequestPart::Answer, RequestPart::Decision];

    fn suffix(self) -> &'static str {
        match self {
            RequestPart::Asked => "",
            RequestPart::Answer => "-answer",
            RequestPart::Decision => "-decision",
        }
    }
}

/// Prefix of all requests to the owners of a volume.
pub fn requests(id: VolumeId) -> String {
    format!("volumes/{id}/requests/")
}

/// Prefix of the requests of one term.
pub fn requests_of(id: VolumeId, epoch: Epoch) -> String {
    format!("{}{:016x}-", requests(id), epoch.0)
}

/// A part of a request.
pub fn request(id: VolumeId, of: RequestId, part: RequestPart) -> Key {
    key(format!("{}{:08x}{}", requests_of(id, of.epoch), of.number, part.suffix()))
}

/// The request and the part of it that a key made by [`request`] names.
pub fn parse_request(id: VolumeId, key: &Key) -> Option<(RequestId, RequestPart)> {
    let (epoch, rest) = key.as_str().strip_prefix(&requests(id))?.split_once('-')?;
    let (number, suffix) = rest.split_at_checked(8)?;
    let part = RequestPart::ALL.into_iter().find(|part| part.suffix() == suffix)?;
    let of = RequestId { epoch: Epoch(hex16(epoch)?), number: hex8(number)? };
    Some((of, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips() {
        let id = VolumeId::from_bytes([7; 16]);
        for number in [0, 9, 255, u32::MAX] {
            let of = RequestId { epoch: Epoch(u64::from(number) << 20), number };
            for part in RequestPart::ALL {
                let key = request(id, of, part);
                assert_eq!(parse_request(id, &key), Some((of, part)), "{key}");
                assert!(key.as_str().starts_with(&requests_of(id, of.epoch)));
            }
            assert_eq!(of.to_string().parse(), Ok(of));
        }
        for bad in ["", "1", "1-", "-1", "a-1", "1-1-1", "1-4294967296"] {
            assert!(bad.parse::<RequestId>().is_err(), "{bad}");
        }
        for bad in ["0", "0000000000000001-0", "0000000000000001-00000000-", "x-00000000"] {
            let key = super::key(format!("{}{bad}", requests(id)));
            assert_eq!(parse_request(id, &key), None, "{key}");
        }
    }
}
