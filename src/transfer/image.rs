//! What an image is, by its first bytes.
//!
//! Pure and total. Of qcow2 just that much is read as is needed to refuse what cannot be imported by itself,
//! in plain words; `qemu-img` reads the rest. Source: `docs/interop/qcow2.txt` of the QEMU project.

use crate::error::{Error, Result};

/// Bytes that are enough to tell.
pub const HEAD: usize = 512;

/// A format that can be imported and exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl Format {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// What an image that is not raw begins with: where, bytes, name and what to do about it.
const OTHERS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"KDMV", "a VMDK image", CONVERT),
    (0, b"# Disk DescriptorFile", "the description of a VMDK image", CONVERT),
    (0, b"vhdxfile", "a VHDX image", CONVERT),
    (0, b"conectix", "a VHD image", CONVERT),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "a VDI image", CONVERT),
    (0, b"QED\0", "a QED image", CONVERT),
    (0, b"LUKS\xba\xbe", "an image encrypted with LUKS", AS_IT_IS),
    (0, &[0x1f, 0x8b, 8], "compressed with gzip", "pipe it: `zcat FILE | objblk import - NAME`"),
    (0, b"\xfd7zXZ\0", "compressed with xz", "pipe it: `xzcat FILE | objblk import - NAME`"),
    (
        0,
        &[0x28, 0xb5, 0x2f, 0xfd],
        "compressed with zstd",
        "pipe it: `zstdcat FILE | objblk import - NAME`",
    ),
    (0, b"BZh", "compressed with bzip2", "pipe it: `bzcat FILE | objblk import - NAME`"),
];

const CONVERT: &str = "convert it first with `qemu-img convert -O qcow2 FILE NEW`, or import its bytes \
                       as they are with --format raw";
const AS_IT_IS: &str = "import its bytes as they are with --format raw";

/// What an image is that begins with `head` (at least [`HEAD`] bytes, unless it is shorter).
///
/// Errors: usage, for what is neither raw nor qcow2. `what` is the image.
pub fn detect(what: &str, head: &[u8]) -> Result<Format> {
    if head.starts_with(QCOW2_MAGIC) {
        return Ok(Format::Qcow2);
    }
    let is = |(at, magic, ..): &&(usize, &[u8], &str, &str)| {
        head.get(*at..).is_some_and(|rest| rest.starts_with(magic))
    };
    match OTHERS.iter().find(is) {
        None => Ok(Format::Raw),
        Some((_, _, name, hint)) => Err(Error::usage(format!("{what} is {name}")).hint(*hint)),
    }
}

const QCOW2_MAGIC: &[u8] = b"QFI\xfb";

/// What the header of a qcow2 image says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qcow2 {
    /// Size of the disk, in bytes.
    pub size: u64,
    /// Size of a cluster, in bytes.
    pub cluster: u64,
}

impl Qcow2 {
    /// Reads the header of the image `what`.
    ///
    /// Errors: usage, where the image is damaged, encrypted or needs another file.
    pub fn parse(what: &str, head: &[u8]) -> Result<Qcow2> {
        let refuse = |why: &str| Error::usage(format!("the qcow2 image {what} {why}"));
        let short = || refuse("ends within its header");
        let u32_at = |at: usize| -> Result<u32> {
            let bytes = head.get(at..at + 4).and_then(|b| b.try_into().ok());
            bytes.map(u32::from_be_bytes).ok_or_else(short)
        };
        let u64_at = |at: usize| -> Result<u64> {
            Ok(u64::from(u32_at(at)?) << 32 | u64::from(u32_at(at + 4)?))
        };
        if !head.starts_with(QCOW2_MAGIC) {
            return Err(refuse("has no header"));
        }
        let features = match u32_at(4)? {
            2 => 0,
            3 => u64_at(72)?,
            version => return Err(refuse(&format!("has version {version}, which is not known"))),
        };
        if u64_at(8)? != 0 {
            return Err(refuse("has a backing file")
                .hint("put both into one first: `qemu-img convert -O qcow2 FILE NEW`"));
        }
        if u32_at(32)? != 0 {
            return Err(refuse("is encrypted")
                .hint("decrypt it first with `qemu-img convert --image-opts`"));
        }
        if features & 1 << 2 != 0 {
            return Err(refuse("keeps its data in another file")
                .hint("put both into one first: `qemu-img convert -O qcow2 FILE NEW`"));
        }
        if features & 1 << 1 != 0 {
            return Err(refuse("is marked as corrupt").hint(
                "look at it with `qemu-img check`, and repair it with `qemu-img check -r all`",
            ));
        }
        let cluster = match u32_at(20)? {
            bits @ 9..=21 => 1 << bits,
            bits => return Err(refuse(&format!("has clusters of 2^{bits} bytes"))),
        };
        match u64_at(24)? {
            0 => Err(refuse("has no size")),
            size => Ok(Qcow2 { size, cluster }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut head = vec![0; 112];
        head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        head[23] = 16;
        head[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        change(&mut head);
        head
    }

    #[test]
    fn formats_by_their_first_bytes() {
        assert_eq!(detect("x", b"").unwrap(), Format::Raw);
        assert_eq!(detect("x", &[0; HEAD]).unwrap(), Format::Raw);
        assert_eq!(detect("x", &qcow2(|_| ())).unwrap(), Format::Qcow2);
        let mut vdi = vec![0; HEAD];
        vdi[0x40..0x44].copy_from_slice(&[0x7f, 0x10, 0xda, 0xbe]);
        let e = detect("disk.vdi", &vdi).unwrap_err().to_string();
        assert!(e.starts_with("disk.vdi is a VDI image; convert it first with"), "{e}");
        let e = detect("disk.gz", &[0x1f, 0x8b, 8, 0]).unwrap_err().to_string();
        assert!(e.contains("zcat FILE | objblk import - NAME"), "{e}");
    }

    #[test]
    fn qcow2_headers() {
        let refused = |head: &[u8]| Qcow2::parse("x", head).unwrap_err().to_string();
        let expected = Qcow2 { size: 1 << 30, cluster: 64 << 10 };
        assert_eq!(Qcow2::parse("x", &qcow2(|_| ())).unwrap(), expected);
        assert_eq!(Qcow2::parse("x", &qcow2(|h| h[7] = 2)).unwrap().size, 1 << 30);
        for (at, value, why) in [
            (7, 9, "has version 9"),
            (15, 8, "has a backing file"),
            (35, 2, "is encrypted"),
            (79, 4, "keeps its data in another file"),
            (79, 2, "is marked as corrupt"),
            (23, 64, "has clusters of 2^64 bytes"),
        ] {
            let text = refused(&qcow2(|h| h[at] = value));
            assert!(text.contains(why), "{text}");
        }
        assert!(refused(&qcow2(|h| h[24..32].fill(0))).contains("has no size"));
        for len in 0..80 {
            assert!(Qcow2::parse("x", &qcow2(|_| ())[..len]).is_err(), "{len}");
        }
    }
}
