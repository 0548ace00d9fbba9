//! Frames: 64 KiB of a chunk's payload, the last one shorter. The unit of compression and checksum.
//!
//! The header of a chunk says how its frames are compressed, the frame table how long each is in the
//! object and its crc32c there:
//!
//! | codec | id | a frame |
//! | --- | --- | --- |
//! | none | 0 | its payload |
//! | lz4 | 1 | one LZ4 block, without size or frame header |
//! | zstd | 2 | one Zstandard frame |
//!
//! With a codec, a frame whose length is that of its payload is the payload itself: what does not get
//! smaller by a sixteenth is stored as it is. So a frame is never longer than its payload, and every frame is
//! opened by itself.
//!
//! Opening is total and allocates at most the payload that the frame has to give. The checksum is that of the
//! stored bytes and is verified first: the decoders see only what an encoder wrote, or bytes that
//! somebody made up together with their checksum.

use super::codec::{FormatError, FormatResult, Problem};
use crate::mutant::{self, Mutant};
use crate::units::SECTOR_SIZE;
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use zstd::bulk::{Compressor, Decompressor};

/// Bytes of payload in a frame.
pub const FRAME_SIZE: usize = 64 << 10;
/// Sectors of payload in a frame.
pub const FRAME_SECTORS: u32 = (FRAME_SIZE as u64 / SECTOR_SIZE) as u32;

/// A frame is stored compressed if that saves at least one part in so many.
const SAVES_AT_LEAST: usize = 16;

/// How the frames of a chunk are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// They are stored as they are.
    #[default]
    None,
    /// Each that got smaller by it is an LZ4 block.
    Lz4,
    /// Each that got smaller by it is a Zstandard frame.
    Zstd,
}

impl Codec {
    const ALL: [Codec; 3] = [Codec::None, Codec::Lz4, Codec::Zstd];

    /// Its number in a header.
    pub fn id(self) -> u8 {
        match self {
            Codec::None => 0,
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
        }
    }

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Codec::None => "none",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }

    /// The codec of that number.
    pub fn from_id(id: u8) -> Option<Codec> {
        Codec::ALL.into_iter().find(|codec| codec.id() == id)
    }

    /// Whether a frame of `payload` bytes may be `encoded` long.
    pub fn may_be(self, encoded: usize, payload: usize) -> bool {
        encoded == payload || self != Codec::None && (1..payload).contains(&encoded)
    }
}

/// How a volume compresses what is written to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4: costs little time.
    Lz4,
    /// Zstandard with a level from 1 to 19.
    Zstd(u8),
}

impl Compression {
    /// The level of `zstd` without a number.
    pub const ZSTD_DEFAULT: u8 = 3;
    /// The highest level: those behind it need much memory to read.
    pub const ZSTD_MAX: u8 = 19;

    /// What it makes of frames.
    pub fn codec(self) -> Codec {
        match self {
            Compression::None => Codec::None,
            Compression::Lz4 => Codec::Lz4,
            Compression::Zstd(_) => Codec::Zstd,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Compression::None => f.write_str("none"),
            Compression::Lz4 => f.write_str("lz4"),
            Compression::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}

/// The text is not a compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not none, lz4, zstd or zstd:1 to zstd:19")]
pub struct NotACompression;

impl FromStr for Compression {
    type Err = NotACompression;

    fn from_str(text: &str) -> Result<Compression, NotACompression> {
        match (text, text.strip_prefix("zstd:")) {
            ("none", _) => Ok(Compression::None),
            ("lz4", _) => Ok(Compression::Lz4),
            ("zstd", _) => Ok(Compression::Zstd(Compression::ZSTD_DEFAULT)),
            (_, Some(level)) if level.bytes().all(|b| b.is_ascii_digit()) => {
                let level = level.parse().map_err(|_| NotACompression)?;
                let known = (1..=Compression::ZSTD_MAX).contains(&level);
                known.then_some(Compression::Zstd(level)).ok_or(NotACompression)
            }
            _ => Err(NotACompression),
        }
    }
}

/// Where a frame lies and what its bytes must sum to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameEntry {
    /// Length in the object, in bytes.
    pub encoded_len: u32,
    /// crc32c of those bytes.
    pub crc: u32,
}

/// Bytes of payload in frame `index` of a chunk of `payload_sectors`.
pub fn frame_payload_len(payload_sectors: u32, index: usize) -> usize {
    let total = payload_sectors as usize * SECTOR_SIZE as usize;
    total.saturating_sub(index * FRAME_SIZE).min(FRAME_SIZE)
}

/// The frames of a chunk: where they lie in the object, and how they are opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameTable {
    /// Compression of the frames.
    pub codec: Codec,
    /// Payload of all, in sectors.
    pub payload_sectors: u32,
    /// Each of them.
    pub entries: Vec<FrameEntry>,
}

impl FrameTable {
    /// Bytes of frames before frame `index`.
    pub fn before(&self, index: usize) -> u64 {
        self.entries.iter().take(index).map(|entry| u64::from(entry.encoded_len)).sum()
    }

    /// Bytes of all frames.
    pub fn encoded_len(&self) -> u64 {
        self.before(self.entries.len())
    }

    /// The payload of frame `index` out of its encoded bytes.
    ///
    /// # Errors
    /// It is damaged, cut off, or there is no such frame.
    pub fn open<'a>(&self, index: usize, encoded: &'a [u8]) -> FormatResult<Cow<'a, [u8]>> {
        let damaged = |problem| FormatError {
            object: "chunk",
            field: "frame payload",
            offset: index * FRAME_SIZE,
            problem,
        };
        let entry = self.entries.get(index).ok_or_else(|| damaged(Problem::Truncated))?;
        if encoded.len() != entry.encoded_len as usize {
            return Err(damaged(Problem::Truncated));
        }
        if crc32c::crc32c(encoded) != entry.crc && !mutant::on(Mutant::FrameCrcIgnored) {
            return Err(damaged(Problem::Checksum));
        }
        let len = frame_payload_len(self.payload_sectors, index);
        if encoded.len() == len {
            return Ok(Cow::Borrowed(encoded));
        }
        let mut payload = vec![0; len];
        match decode(self.codec, encoded, &mut payload) {
            Ok(got) if got == len => Ok(Cow::Owned(payload)),
            Ok(got) => Err(damaged(Problem::Value(format!("{got} bytes of {len} came of it")))),
            Err(why) => Err(damaged(Problem::Value(why))),
        }
    }
}

/// Decodes into `payload`, which bounds what comes of it. Returns how much came.
fn decode(codec: Codec, encoded: &[u8], payload: &mut [u8]) -> Result<usize, String> {
    match codec {
        Codec::None => Err("it has not the length of its payload".into()),
        Codec::Lz4 => lz4_flex::block::decompress_into(encoded, payload).map_err(|e| e.to_string()),
        Codec::Zstd => {
            let mut decoder = Decompressor::new().map_err(|e| e.to_string())?;
            decoder.decompress_to_buffer(encoded, payload).map_err(|e| e.to_string())
        }
    }
}

/// Which frames are worth a try: after some in a row that could not be compressed only a few are tried,
/// until one can be again. Pure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sampling {
    /// Frames since the last one that got smaller.
    failures: u32,
}

impl Sampling {
    /// Failures in a row after which frames are skipped.
    pub const PATIENCE: u32 = 8;
    /// Then one of so many is tried.
    pub const EVERY: u32 = 8;

    /// Whether the next frame is to be tried.
    pub fn tries(self) -> bool {
        self.failures < Sampling::PATIENCE || self.failures.is_multiple_of(Sampling::EVERY)
    }

    /// The next frame got smaller, or did not or was not tried.
    fn note(&mut self, smaller: bool) {
        // Far behind the patience only the remainder counts.
        let next = self.failures.checked_add(1).unwrap_or(Sampling::PATIENCE);
        self.failures = if smaller { 0 } else { next };
    }
}

/// Encodes frames, one after the other.
pub struct FrameEncoder {
    compression: Compression,
    zstd: Option<Compressor<'static>>,
}

impl fmt::Debug for FrameEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameEncoder")
            .field("compression", &self.compression)
            .finish_non_exhaustive()
    }
}

impl FrameEncoder {
    /// An encoder that compresses like that.
    pub fn new(compression: Compression) -> FrameEncoder {
        FrameEncoder { compression, zstd: None }
    }

    /// Appends the frame of `payload` to `out`.
    pub fn encode(
        &mut self,
        payload: &[u8],
        out: &mut Vec<u8>,
        sampling: &mut Sampling,
    ) -> FrameEntry {
        let start = out.len();
        let tried = self.compression != Compression::None && sampling.tries();
        let smaller = tried && self.compress(payload, out);
        sampling.note(smaller);
        if !smaller {
            out.truncate(start);
            out.extend_from_slice(payload);
        }
        let encoded = &out[start..];
        FrameEntry { encoded_len: encoded.len() as u32, crc: crc32c::crc32c(encoded) }
    }

    /// Appends `payload` compressed. False: it does not get smaller by enough, and what is behind the end of
    /// `out` is to be thrown away.
    fn compress(&mut self, payload: &[u8], out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let most = payload.len() - payload.len() / SAVES_AT_LEAST;
        let len = match self.compression {
            Compression::None => return false,
            Compression::Lz4 => {
                let room = lz4_flex::block::get_maximum_output_size(payload.len());
                out.resize(start + room, 0);
                lz4_flex::block::compress_into(payload, &mut out[start..]).ok()
            }
            Compression::Zstd(level) => {
                out.resize(start + most, 0);
                let encoder = self.zstd.take().or_else(|| Compressor::new(level.into()).ok());
                self.zstd = encoder;
                // It fails where the frame does not fit.
                let room = &mut out[start..];
                self.zstd.as_mut().and_then(|zstd| zstd.compress_to_buffer(payload, room).ok())
            }
        };
        let Some(len) = len.filter(|len| (1..=most).contains(len) && *len < payload.len()) else {
            return false;
        };
        out.truncate(start + len);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Payload of which about `share` of 256 bytes are noise.
    fn payload(sectors: usize, share: u8, seed: u64) -> Vec<u8> {
        let mut word = seed | 1;
        let mut next = || {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word
        };
        let byte = |n: u64| if (n >> 8) as u8 >= share { b'.' } else { n as u8 };
        (0..sectors * 512).map(|_| byte(next())).collect()
    }

    fn table(compression: Compression, payload: &[u8]) -> (FrameTable, Vec<Vec<u8>>) {
        let (mut encoder, mut sampling) = (FrameEncoder::new(compression), Sampling::default());
        let mut frames = Vec::new();
        let entries = payload.chunks(FRAME_SIZE).map(|payload| {
            let mut out = vec![1, 2, 3];
            let entry = encoder.encode(payload, &mut out, &mut sampling);
            assert_eq!(out[..3], [1, 2, 3]);
            frames.push(out.split_off(3));
            entry
        });
        let entries = entries.collect();
        let payload_sectors = (payload.len() / 512) as u32;
        (FrameTable { codec: compression.codec(), payload_sectors, entries }, frames)
    }

    fn any_compression() -> impl Strategy<Value = Compression> {
        prop_oneof![
            Just(Compression::None),
            Just(Compression::Lz4),
            (1u8..=9).prop_map(Compression::Zstd),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_was_encoded_opens(
            compression in any_compression(), sectors in 1usize..300, share: u8, seed: u64,
        ) {
            let payload = payload(sectors, share, seed);
            let (table, frames) = table(compression, &payload);
            let mut opened = Vec::new();
            for (index, frame) in frames.iter().enumerate() {
                let len = frame_payload_len(table.payload_sectors, index);
                prop_assert!(table.codec.may_be(frame.len(), len));
                prop_assert!(frame.len() == len || frame.len() <= len - len / SAVES_AT_LEAST);
                opened.extend_from_slice(&table.open(index, frame).unwrap());
            }
            prop_assert!(opened == payload);
            prop_assert_eq!(table.encoded_len(), frames.iter().map(|f| f.len() as u64).sum::<u64>());
        }

        /// Whoever makes up bytes makes up their checksum as well.
        #[test]
        fn any_bytes_open_or_do_not(
            compression in any_compression(), sectors in 1usize..129, share in 0u8..120, seed: u64,
            changes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..9), cut: usize,
        ) {
            let payload = payload(sectors, share, seed);
            let (mut table, frames) = table(compression, &payload);
            let mut bytes = frames[0].clone();
            for (at, to) in changes {
                let at = at % bytes.len();
                bytes[at] = to;
            }
            bytes.truncate(1 + cut % bytes.len());
            table.entries[0].encoded_len = bytes.len() as u32;
            table.entries[0].crc = crc32c::crc32c(&bytes);
            if let Ok(opened) = table.open(0, &bytes) {
                prop_assert_eq!(opened.len(), payload.len());
            }
            table.entries[0].crc ^= 1;
            prop_assert_eq!(table.open(0, &bytes).unwrap_err().problem, Problem::Checksum);
        }
    }

    #[test]
    fn names_of_compressions_are_read_back() {
        for text in ["none", "lz4", "zstd:1", "zstd:19"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        assert_eq!("zstd".parse(), Ok(Compression::Zstd(3)));
        for text in ["", "LZ4", "zstd:", "zstd:0", "zstd:20", "zstd:+3", "zstd:999", "gzip"] {
            assert_eq!(text.parse::<Compression>(), Err(NotACompression), "{text}");
        }
    }

    #[test]
    fn noise_is_tried_seldom_and_text_always() {
        let noise = payload(128, 255, 7);
        let text = payload(128, 10, 7);
        for compression in [Compression::Lz4, Compression::Zstd(3)] {
            let (mut encoder, mut sampling) = (FrameEncoder::new(compression), Sampling::default());
            let mut tries = 0;
            let mut out = Vec::new();
            for _ in 0..80 {
                tries += u32::from(sampling.tries());
                let entry = encoder.encode(&noise, &mut out, &mut sampling);
                assert_eq!(entry.encoded_len as usize, noise.len());
            }
            assert_eq!(tries, Sampling::PATIENCE + (80 - Sampling::PATIENCE) / Sampling::EVERY);
            // What can be compressed is noticed after a few frames, and from then on all is.
            let lens: Vec<usize> = (0..20)
                .map(|_| encoder.encode(&text, &mut out, &mut sampling).encoded_len as usize)
                .collect();
            let late = lens.iter().position(|len| *len < text.len()).unwrap();
            assert!(late < Sampling::EVERY as usize, "{lens:?}");
            assert!(lens[late..].iter().all(|len| *len < text.len() / 2), "{lens:?}");
        }
    }

    /// A frame that unpacks to far more than it may is refused at its payload's length.
    #[test]
    fn a_bomb_gives_no_more_than_a_frame() {
        let zeros = vec![0; 64 << 20];
        let bombs = [
            (Codec::Lz4, lz4_flex::block::compress(&zeros)),
            (Codec::Zstd, zstd::bulk::compress(&zeros, 3).unwrap()),
        ];
        for (codec, bomb) in bombs {
            let entry = FrameEntry { encoded_len: bomb.len() as u32, crc: crc32c::crc32c(&bomb) };
            let table = FrameTable { codec, payload_sectors: 128, entries: vec![entry] };
            let why = table.open(0, &bomb).unwrap_err();
            assert!(matches!(why.problem, Problem::Value(_)), "{why}");
        }
    }
}
