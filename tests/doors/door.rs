//! What a volume looks like through a door, whichever it is: the suite knows nothing else.

use crate::home::Home;

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// By this number.
    Errno(i32),
    /// It was done up to the end of the disk: so many bytes of it.
    Short(usize),
    /// There is no server any more.
    Gone,
}

pub const EIO: Refusal = Refusal::Errno(5);
pub const EINVAL: Refusal = Refusal::Errno(22);
pub const ENOSPC: Refusal = Refusal::Errno(28);

pub type Answer<T> = Result<T, Refusal>;

/// One user of an open door, who does one thing after the other.
pub trait Hand: Send {
    fn read(&mut self, at: u64, len: usize) -> Answer<Vec<u8>>;
    /// `fua`: it is durable when it is answered.
    fn write(&mut self, at: u64, data: &[u8], fua: bool) -> Answer<()>;
    fn flush(&mut self) -> Answer<()>;
    fn discard(&mut self, at: u64, len: u64) -> Answer<()>;
    fn zero(&mut self, at: u64, len: u64) -> Answer<()>;
    /// Bytes of the disk, now.
    fn size(&mut self) -> u64;
}

/// A volume that is open.
pub trait Door {
    /// One more user.
    fn hand(&self) -> Box<dyn Hand>;
    /// The server dies as in a crash; what is left of it that is in the way is removed.
    fn kill(self: Box<Self>);
    /// It ends in order. There must be no user any more.
    fn stop(self: Box<Self>);
    /// It ends as it can, once it has failed.
    fn give_up(self: Box<Self>);
}

/// A way to open volumes, and what its protocol says of requests that cannot be done.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    /// Makes a volume: name, bytes, bytes of a block.
    pub make: fn(&Home, &str, u64, usize),
    /// Opens a volume, or a snapshot.
    pub open: fn(&Home, &str) -> Box<dyn Door>,
    /// Requests of any bytes are done; otherwise of whole blocks.
    pub any_byte: bool,
    /// Offsets are told in bytes.
    pub offsets_in_bytes: bool,
    /// Bytes of the largest read and write.
    pub largest: usize,
    /// Bytes that two who meet there write and read as one.
    pub whole: usize,
    /// Of what is in no whole blocks.
    pub misaligned: Refusal,
    /// Of a read and of a write that begin at the end. What crosses it is refused in the same way, or
    /// done in part.
    pub beyond: (Refusal, Refusal),
    /// Done as far as the disk reaches, instead of being refused.
    pub in_part: bool,
    /// Of a range to be cleared that crosses the end; none: it is done as far as the disk reaches.
    pub clear_beyond: Option<Refusal>,
    /// Of any change of what can only be read.
    pub read_only: Refusal,
    /// What was acknowledged outlives the server, flushed or not.
    pub outlives: bool,
    /// Users see that a volume has grown; otherwise whoever comes later does.
    pub growth_is_seen: bool,
}

/// Makes a volume as anybody does.
pub fn make(home: &Home, name: &str, bytes: u64, block: usize) {
    let (size, block) = (bytes.to_string(), block.to_string());
    let chunk = ["--chunk-size", "256K"];
    home.ok(&[&["create", name, "--size", &size, "--block-size", &block], &chunk[..]].concat());
}
