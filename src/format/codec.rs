//! Bounded little-endian reading and writing: the only place that indexes untrusted bytes.
//!
//! A [`Reader`] never reads past its end and never allocates; a parser built on it is total: any
//! byte string gives a value or a [`FormatError`] that names object kind, field and offset.
//! Reserved bytes must be zero, nothing may follow the last field, and a count of more entries than the
//! rest of the object can hold is refused.

use crate::mutant::{self, Mutant};
use std::fmt;

/// Why stored bytes are not a valid object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatError {
    /// Kind of the object: `chunk`, `checkpoint`, ...
    pub object: &'static str,
    /// The field that is wrong.
    pub field: &'static str,
    /// Its byte offset in the object.
    pub offset: usize,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The bytes end before the field does.
    Truncated,
    /// The value is not one that a writer produces.
    Value(String),
    /// The checksum over the object does not match its bytes.
    Checksum,
    /// A version or feature of a newer objblk.
    Unsupported(String),
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FormatError { object, field, offset, problem } = self;
        match problem {
            Problem::Truncated => write!(f, "{object} ends inside `{field}` at byte {offset}"),
            Problem::Value(v) => write!(f, "{object} has a bad `{field}` at byte {offset}: {v}"),
            Problem::Checksum => write!(f, "{object} fails its `{field}` at byte {offset}"),
            Problem::Unsupported(v) => {
                write!(f, "{object} needs a newer objblk: `{field}` at byte {offset} is {v}")
            }
        }
    }
}

impl std::error::Error for FormatError {}

/// Result of a parser.
pub type FormatResult<T> = Result<T, FormatError>;

/// A cursor over untrusted bytes.
#[derive(Debug)]
pub struct Reader<'a> {
    object: &'static str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`, which should be an object of the kind `object`.
    pub fn new(object: &'static str, bytes: &'a [u8]) -> Reader<'a> {
        Reader { object, bytes, at: 0 }
    }

    /// Offset of the next byte.
    pub fn offset(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error about `field` at the present offset.
    pub fn error(&self, field: &'static str, problem: Problem) -> FormatError {
        FormatError { object: self.object, field, offset: self.at, problem }
    }

    /// A [`Problem::Value`] error about `field`.
    pub fn bad(&self, field: &'static str, value: impl fmt::Display) -> FormatError {
        self.error(field, Problem::Value(value.to_string()))
    }

    /// The next `len` bytes.
    pub fn take(&mut self, field: &'static str, len: usize) -> FormatResult<&'a [u8]> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let Some(end) = end else { return Err(self.error(field, Problem::Truncated)) };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> FormatResult<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    /// The next byte.
    pub fn u8(&mut self, field: &'static str) -> FormatResult<u8> {
        Ok(self.array::<1>(field)?[0])
    }

    /// The next two bytes.
    pub fn u16(&mut self, field: &'static str) -> FormatResult<u16> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    /// The next four bytes.
    pub fn u32(&mut self, field: &'static str) -> FormatResult<u32> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// The next eight bytes.
    pub fn u64(&mut self, field: &'static str) -> FormatResult<u64> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// The next sixteen bytes.
    pub fn bytes16(&mut self, field: &'static str) -> FormatResult<[u8; 16]> {
        self.array(field)
    }

    /// `len` bytes that must be zero: reserved space a newer version may use.
    pub fn reserved(&mut self, field: &'static str, len: usize) -> FormatResult<()> {
        let error = self.error(field, Problem::Unsupported("not zero".into()));
        if self.take(field, len)?.iter().all(|b| *b == 0) { Ok(()) } else { Err(error) }
    }

    /// The fixed bytes that begin an object.
    pub fn magic(&mut self, expected: &[u8; 8]) -> FormatResult<()> {
        let error = self.bad("magic", "not an object of this kind");
        if self.take("magic", 8)? == expected { Ok(()) } else { Err(error) }
    }

    /// The version, which must be `supported`.
    pub fn version(&mut self, supported: u16) -> FormatResult<()> {
        self.version_of(&[supported]).map(drop)
    }

    /// A version, one of those that are supported.
    pub fn version_of(&mut self, supported: &[u16]) -> FormatResult<u16> {
        let at = self.at;
        let version = self.u16("version")?;
        if supported.contains(&version) {
            return Ok(version);
        }
        let problem = Problem::Unsupported(version.to_string());
        Err(FormatError { object: self.object, field: "version", offset: at, problem })
    }

    /// A count of entries of `each` bytes; refused where so many cannot follow, so that a caller
    /// may allocate for them.
    pub fn count(&mut self, field: &'static str, each: usize) -> FormatResult<usize> {
        let count = self.u32(field)? as usize;
        match count.checked_mul(each) {
            Some(need) if need <= self.remaining() => Ok(count),
            _ => Err(self.bad(field, format!("{count} entries do not fit"))),
        }
    }

    /// Nothing may follow.
    pub fn end(&self) -> FormatResult<()> {
        if self.remaining() == 0 {
            return Ok(());
        }
        Err(self.bad("end", format!("{} bytes too many", self.remaining())))
    }
}

/// Verifies the crc32c in the last four bytes of `bytes` over all before, and returns those.
pub fn check_trailing_crc<'a>(object: &'static str, bytes: &'a [u8]) -> FormatResult<&'a [u8]> {
    let error = |problem| FormatError { object, field: "crc", offset: bytes.len(), problem };
    let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
        return Err(error(Problem::Truncated));
    };
    let right = crc32c::crc32c(body) == u32::from_le_bytes(*crc);
    if right || mutant::on(Mutant::HeaderCrcIgnored) {
        Ok(body)
    } else {
        Err(error(Problem::Checksum))
    }
}

/// A growing little-endian buffer.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty buffer with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Writer {
        Writer::reusing(Vec::new(), capacity)
    }

    /// An empty buffer in `memory`, made to have room for `capacity` bytes.
    pub fn reusing(mut memory: Vec<u8>, capacity: usize) -> Writer {
        memory.clear();
        memory.reserve(capacity);
        Writer { bytes: memory }
    }

    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) -> &mut Writer {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends a byte.
    pub fn u8(&mut self, v: u8) -> &mut Writer {
        self.put(&[v])
    }

    /// Appends two bytes.
    pub fn u16(&mut self, v: u16) -> &mut Writer {
        self.put(&v.to_le_bytes())
    }

    /// Appends four bytes.
    pub fn u32(&mut self, v: u32) -> &mut Writer {
        self.put(&v.to_le_bytes())
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, v: u64) -> &mut Writer {
        self.put(&v.to_le_bytes())
    }

    /// Appends `len` zero bytes.
    pub fn zeros(&mut self, len: usize) -> &mut Writer {
        self.bytes.resize(self.bytes.len() + len, 0);
        self
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True where nothing was written.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Overwrites four bytes at `at`, which were written before.
    pub fn patch_u32(&mut self, at: usize, v: u32) {
        self.bytes[at..at + 4].copy_from_slice(&v.to_le_bytes());
    }

    /// Appends the crc32c of everything so far.
    pub fn crc(&mut self) -> &mut Writer {
        let crc = crc32c::crc32c(&self.bytes);
        self.u32(crc)
    }

    /// The bytes.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written_and_nothing_more() {
        let mut w = Writer::default();
        w.u8(1).u16(2).u32(3).u64(4).zeros(2).crc();
        let bytes = w.finish();
        let body = check_trailing_crc("test", &bytes).unwrap();
        let mut r = Reader::new("test", body);
        assert_eq!((r.u8("a"), r.u16("b"), r.u32("c"), r.u64("d")), (Ok(1), Ok(2), Ok(3), Ok(4)));
        r.reserved("e", 2).unwrap();
        r.end().unwrap();
        let error = r.u8("f").unwrap_err();
        assert_eq!(error.to_string(), "test ends inside `f` at byte 17");
    }

    #[test]
    fn counts_are_checked_before_allocation() {
        let mut r = Reader::new("test", &[0xff, 0xff, 0xff, 0xff, 0]);
        let error = r.count("entries", 24).unwrap_err();
        assert_eq!(
            error.to_string(),
            "test has a bad `entries` at byte 4: 4294967295 entries do not fit"
        );
    }
}
