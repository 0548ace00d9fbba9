//! A segment that is being written, in memory that outlives the process.
//!
//! Contract: after the death of the writer at any instant the file begins with the header and whole entries, in
//! the order of [`Mapped::append`], all of which returned but perhaps the last, and behind them [a word](END) that
//! says so. For that, an entry's first word is stored last, when all of the entry and the word behind it are there.
//! What is behind that word means nothing: a file is used again and again, since one whose memory is there costs
//! a copy, and a new one a page fault every 4 KiB besides.

use crate::direct::MappedFile;
use crate::journal::entry::HEAD_LEN;
use std::io;
use std::path::Path;

/// What an entry's first word is before there is one. From that of any entry it differs in many bits.
pub(super) const END: [u8; 8] = *b"\0nothing";

/// The file of a segment.
#[derive(Debug)]
pub(super) struct Mapped {
    file: MappedFile,
    /// Where the next entry goes.
    used: usize,
}

impl Mapped {
    /// A file without a segment at `path`, in place of what is there.
    pub(super) fn create(path: &Path) -> io::Result<Mapped> {
        Ok(Mapped { file: MappedFile::create(path)?, used: 0 })
    }

    /// Bytes of the file.
    pub(super) fn size(&self) -> u64 {
        self.file.size() as u64
    }

    /// Begins anew with this header, of whole words. What was there counts no more.
    pub(super) fn begin(&mut self, header: &[u8]) -> io::Result<()> {
        assert!(header.len().is_multiple_of(END.len()), "entries are of whole words");
        self.file.grow(header.len() + END.len())?;
        let (first, rest) = self.file.bytes_mut().split_at_mut(header.len());
        rest[..END.len()].copy_from_slice(&END);
        first.copy_from_slice(header);
        self.used = header.len();
        Ok(())
    }

    /// Appends an entry, whose payload is of whole words. It outlives the process from here on.
    pub(super) fn append(&mut self, head: &[u8; HEAD_LEN], payload: &[u8]) -> io::Result<()> {
        let (at, end) = (self.used, self.used + HEAD_LEN + payload.len());
        assert!(end.is_multiple_of(END.len()), "entries are of whole words");
        self.file.grow(end + END.len())?;
        let (mut first, rest) = ([0; END.len()], &head[END.len()..]);
        first.copy_from_slice(&head[..END.len()]);
        let bytes = self.file.bytes_mut();
        bytes[end..end + END.len()].copy_from_slice(&END);
        bytes[at + HEAD_LEN..end].copy_from_slice(payload);
        bytes[at + END.len()..at + HEAD_LEN].copy_from_slice(rest);
        self.file.publish(at, first);
        self.used = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// What is in the file up to its end.
    fn written(path: &Path, header: usize) -> Vec<u8> {
        let bytes = fs::read(path).unwrap();
        let mut at = header;
        while bytes[at..at + END.len()] != END {
            let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
            at += HEAD_LEN + len as usize;
        }
        bytes[..at].to_vec()
    }

    #[test]
    fn a_file_has_what_was_appended_since_it_was_begun() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        let mut mapped = Mapped::create(&path).unwrap();
        for life in 1..4 {
            let mut expected = vec![life; 64];
            mapped.begin(&expected).unwrap();
            assert_eq!(written(&path, 64), expected);
            // Shorter than before, so that there is something behind the end.
            for number in 0..100 / usize::from(life) {
                let payload = vec![number as u8 | 1; number * 512 % (40 << 10)];
                let mut head = [life; HEAD_LEN];
                head[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
                mapped.append(&head, &payload).unwrap();
                expected.extend_from_slice(&head);
                expected.extend_from_slice(&payload);
                assert!(written(&path, 64) == expected, "life {life}, entry {number}");
            }
        }
        assert_eq!(mapped.size(), fs::metadata(&path).unwrap().len());
    }
}
