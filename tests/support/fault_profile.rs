//! What a [`FaultProxy`](super::FaultProxy) does to requests: faults, distances, and the profiles made of them.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use crate::http::Head;

/// What befalls a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// 500, and it was not done.
    Fails,
    /// 500, and it was done.
    FailsLate,
    /// 503 SlowDown.
    SlowDown,
    /// 429.
    TooMany,
    /// The connection is reset before the server sees the request.
    ResetBefore,
    /// The connection is reset instead of the reply.
    ReplyLost,
    /// The server gets half of the body.
    HalfRequest,
    /// The client gets half of the body.
    HalfReply,
    /// The client gets a body with one bit wrong.
    WrongReply,
    /// The server gets it twice at once; the client gets either of the answers.
    Twice,
    /// The client's connection is reset, the server gets it seconds later.
    Late,
}

impl Fault {
    pub fn suits(self, head: &Head) -> bool {
        match self {
            // What is asked of single objects; a listing that is wrong is no XML.
            Fault::HalfReply | Fault::WrongReply => {
                head.method == "GET" && !head.target.contains("list-type")
            }
            Fault::HalfRequest => head.length > 1,
            // A delayed overwrite is a thing that no user of a store could stand.
            // Not a delete: names of volumes are used again, and a late one would take the new one.
            Fault::Late => head.conditional,
            _ => true,
        }
    }
}

/// How far away the server seems to be.
#[derive(Clone, Copy, Debug)]
pub struct Distance {
    /// Round trips in milliseconds: evenly between these.
    pub trip: (u64, u64),
    /// One request in so many takes up to so many milliseconds instead.
    pub tail: (u32, u64),
    /// Bytes a second, all connections together, each way.
    pub rate: u64,
}

/// A kind of bad day.
#[derive(Debug)]
pub struct Profile {
    pub name: &'static str,
    pub faults: &'static [Fault],
    /// Requests of which one suffers each of the faults.
    pub deck: usize,
    pub distance: Option<Distance>,
}

const WAN: Distance = Distance { trip: (20, 120), tail: (100, 3000), rate: 48 << 20 };

/// The server is overloaded and its gateways give up on it.
pub const BUSY: Profile = Profile {
    name: "a busy server",
    faults: &[Fault::Fails, Fault::FailsLate, Fault::SlowDown, Fault::TooMany],
    deck: 40,
    distance: None,
};

/// Connections break, at every point of a request.
pub const BROKEN: Profile = Profile {
    name: "a broken network",
    faults: &[Fault::ResetBefore, Fault::ReplyLost, Fault::HalfRequest, Fault::HalfReply],
    deck: 40,
    distance: None,
};

/// The server is on another continent, and nothing else is wrong.
pub const FAR: Profile =
    Profile { name: "a far server", faults: &[], deck: 1, distance: Some(WAN) };

/// Requests overtake each other, come twice or when nobody waits for them any more.
pub const CONFUSED: Profile = Profile {
    name: "a confused gateway",
    faults: &[Fault::Twice, Fault::Late, Fault::ReplyLost],
    deck: 20,
    distance: None,
};

/// All of it.
pub const STORM: Profile = Profile {
    name: "a storm",
    faults: &[
        Fault::Fails,
        Fault::FailsLate,
        Fault::SlowDown,
        Fault::TooMany,
        Fault::ResetBefore,
        Fault::ReplyLost,
        Fault::HalfRequest,
        Fault::HalfReply,
        Fault::Twice,
        Fault::Late,
    ],
    deck: 100,
    distance: Some(Distance { trip: (5, 40), tail: (100, 1000), rate: 96 << 20 }),
};

/// Nothing, until a test says so.
pub const CALM: Profile = Profile { name: "calm", faults: &[], deck: 1, distance: None };
