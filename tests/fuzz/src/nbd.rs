//! An NBD server and the bytes of a client, and a second reading of both sides of the conversation.
//!
//! The device answers at once, so replies come in the order of requests, and a byte array says what
//! each must be. A client that stops in the middle of something has left.

use super::alloc::peak;
use objblk::device::{Checked, ram::RamDisk};
use objblk::frontend::nbd::{Exports, Limits, Service, Tls, TlsOptions, serve_client};
use objblk::units::{BlockSize, SectorCount};
use std::cell::RefCell;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

const DISK: usize = 64 << 10;

/// Bytes of requests in memory that the server is told to keep to.
const LIMIT: usize = 1 << 20;

/// What a connection may allocate besides [`LIMIT`], for its output counted twice: a request of
/// 32 MiB, the buffers it keeps for later (16 MiB), the read buffer, unsent replies.
const BESIDES: usize = (32 << 20) + (16 << 20) + (1 << 20);

const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const NO_ZEROES: u32 = 2;
const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const STARTTLS: u32 = 5;
const GO: u32 = 7;
const STRUCTURED: u32 = 8;
const ACK: u32 = 1;
const ERR_TLS_REQD: u32 = (1 << 31) + 5;
const ERR_TOO_BIG: u32 = (1 << 31) + 9;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const TRIM: u16 = 4;
const ZEROES: u16 = 6;

thread_local! {
    static RUNTIME: RefCell<Runtime> =
        RefCell::new(Builder::new_current_thread().enable_time().build().expect("a runtime"));
}

/// Everything a client sends after the greeting.
pub fn handshake(data: &[u8]) {
    converse(data);
}

/// Requests (all bytes but the first) of a client that negotiated well; the first byte says how.
pub fn transmission(data: &[u8]) {
    let Some((how, requests)) = data.split_first() else { return };
    let mut bytes = vec![0, 0, 0, 3];
    let mut option = |number: u32, data: &[u8]| {
        bytes.extend(OPTION_MAGIC);
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
    };
    if how & 1 == 1 {
        option(STRUCTURED, &[]);
        option(10, b"\0\0\0\x01a\0\0\0\x01\0\0\0\x0fbase:allocation");
    }
    option(GO, b"\0\0\0\x01a\0\0");
    bytes.extend(requests);
    converse(&bytes);
}

/// The client's side of a connection: `input` arrives in pieces, what is sent is kept.
struct Wire<'a> {
    input: &'a [u8],
    output: &'a mut Vec<u8>,
}

impl AsyncRead for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Odd, so that headers are cut everywhere.
        let len = self.input.len().min(buf.remaining()).min(1021);
        let (now, later) = self.input.split_at(len);
        buf.put_slice(now);
        self.input = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.output.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn converse(input: &[u8]) {
    let output = serve(input, None);
    check(&mut Bytes(input), &mut Bytes(&output));
}

/// Everything a client sends after the greeting to a server with TLS; the first byte says whether TLS
/// is required. Behind TLS no client comes by chance: what is tried is what leads there.
pub fn tls(data: &[u8]) {
    let Some((how, input)) = data.split_first() else { return };
    let required = how & 1 == 1;
    let output = serve(input, Some(Arc::clone(if required { &TLS.1 } else { &TLS.0 })));
    check_in_the_clear(&mut Bytes(input), &mut Bytes(&output), required);
}

/// TLS that is offered, and that is required.
static TLS: LazyLock<(Arc<Tls>, Arc<Tls>)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
    let made = made.expect("a certificate");
    let (certificate, key) = (dir.path().join("certificate"), dir.path().join("key"));
    std::fs::write(&certificate, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("a file of ours");
    let load = |required| {
        let (certificate, key, client_ca) = (certificate.clone(), key.clone(), None);
        let (allow, allow_file) = (Vec::new(), None);
        let options = TlsOptions { certificate, key, client_ca, required, allow, allow_file };
        Arc::new(Tls::load(options).expect("the files are good"))
    };
    // The files may go: what changed and does not work is not used.
    (load(false), load(true))
});

/// Where TLS is required, a client in the clear hears nothing but that.
fn check_in_the_clear(input: &mut Bytes<'_>, output: &mut Bytes<'_>, required: bool) {
    output.take(18).expect("a greeting");
    if input.u32().is_none_or(|flags| flags & !3 != 0) {
        return;
    }
    while input.take(8).is_some_and(|magic| magic == OPTION_MAGIC) {
        let (Some(option), Some(len)) = (input.u32(), input.u32()) else { return };
        if input.take(len as usize).is_none() {
            return;
        }
        if option == EXPORT_NAME {
            assert!(!required || output.0.is_empty(), "an export without TLS");
            return;
        }
        let kind = check_option_replies(option, output);
        let may_succeed = !required || option == ABORT || option == STARTTLS;
        let too_long = kind == ERR_TOO_BIG && len > 16 << 10;
        assert!(may_succeed || too_long || kind == ERR_TLS_REQD, "{option} was answered {kind:#x}");
        if kind == ACK && [ABORT, STARTTLS, GO].contains(&option) {
            return;
        }
    }
}

/// What a server answers to these bytes.
fn serve(input: &[u8], tls: Option<Arc<Tls>>) -> Vec<u8> {
    let mut exports = Exports::new();
    for name in ["a", "b"] {
        let disk = RamDisk::new(SectorCount(DISK as u64 / 512), BlockSize::B512);
        exports.add(name, "a disk", Arc::new(Checked::new(disk))).expect("the names differ");
    }
    let limits = Limits { requests: 4, bytes: LIMIT, ..Limits::default() };
    let service = Arc::new(Service::new(Arc::new(exports), limits, tls));
    let (_running, stop) = watch::channel(false);
    let mut output = Vec::new();
    let wire = Wire { input, output: &mut output };
    let ((), peak) = peak(|| {
        RUNTIME.with_borrow(|runtime| runtime.block_on(serve_client(wire, service, stop)));
    });
    assert!(peak <= LIMIT + BESIDES + 2 * output.len(), "{peak} bytes were allocated");
    output
}

/// Bytes that are read from the front, big-endian.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self, len: usize) -> Option<u64> {
        Some(self.take(len)?.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    /// A number that must be there.
    fn must(&mut self, len: usize) -> u64 {
        self.number(len).expect("a reply is whole")
    }

    fn u32(&mut self) -> Option<u32> {
        Some(self.number(4)? as u32)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(self.number(2)? as u16)
    }
}

/// Follows the conversation: each option and request has its reply, and there is nothing else.
fn check(input: &mut Bytes<'_>, output: &mut Bytes<'_>) {
    assert_eq!(output.take(18), Some(&b"NBDMAGICIHAVEOPT\0\x03"[..]), "the greeting");
    if let Some(structured) = check_handshake(input, output) {
        check_transmission(input, output, structured);
    }
    assert!(output.0.is_empty(), "{} bytes that nobody asked for", output.0.len());
}

/// Whether structured replies were negotiated; `None` where no export was chosen.
fn check_handshake(input: &mut Bytes<'_>, output: &mut Bytes<'_>) -> Option<bool> {
    let flags = input.u32().filter(|flags| flags & !3 == 0)?;
    let mut structured = false;
    loop {
        input.take(8).filter(|magic| *magic == OPTION_MAGIC)?;
        let (option, len) = (input.u32()?, input.u32()?);
        input.take(len as usize)?;
        if option == EXPORT_NAME {
            // There is no error reply: an unknown name ends the connection.
            if output.0.is_empty() {
                return None;
            }
            assert_eq!(output.must(8), DISK as u64);
            output.must(2);
            if flags & NO_ZEROES == 0 {
                assert_eq!(output.take(124), Some(&[0; 124][..]));
            }
            return Some(structured);
        }
        let done = check_option_replies(option, output) == ACK;
        match option {
            ABORT if done => return None,
            STRUCTURED if done => structured = true,
            GO if done => return Some(structured),
            _ => {}
        }
    }
}

/// The type of the last reply to an option: an acknowledgement or an error.
fn check_option_replies(option: u32, output: &mut Bytes<'_>) -> u32 {
    loop {
        assert_eq!(output.must(8), REPLY_MAGIC);
        assert_eq!(output.must(4), u64::from(option));
        let (kind, len) = (output.must(4) as u32, output.must(4) as usize);
        assert!(len <= 4096 + 4096 + 4, "a reply is longer than the protocol allows");
        output.take(len).expect("a reply is whole");
        if kind == ACK || kind >> 31 == 1 {
            return kind;
        }
    }
}

struct Request {
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u64,
}

impl Request {
    /// Its bytes of the disk, which a successful request has.
    fn span(&self) -> std::ops::Range<usize> {
        self.offset as usize..(self.offset + self.len) as usize
    }
}

fn check_transmission(input: &mut Bytes<'_>, output: &mut Bytes<'_>, structured: bool) {
    let mut disk = vec![0; DISK];
    while let Some((request, payload)) = next_request(input) {
        let is_chunk = output.0.starts_with(&CHUNK_MAGIC.to_be_bytes());
        assert!(structured || !is_chunk, "a structured reply that was not negotiated");
        let done = if is_chunk {
            check_chunks(&request, output, &disk)
        } else {
            assert!(!structured || request.kind != READ, "a read has a simple reply");
            check_simple(&request, output, &disk)
        };
        match request.kind {
            _ if !done || request.len == 0 => {}
            WRITE => disk[request.span()].copy_from_slice(payload),
            TRIM | ZEROES => disk[request.span()].fill(0),
            _ => {}
        }
    }
}

/// The next request and its payload, where all of it arrived.
fn next_request<'a>(input: &mut Bytes<'a>) -> Option<(Request, &'a [u8])> {
    input.u32().filter(|magic| *magic == REQUEST_MAGIC)?;
    input.take(2)?;
    let kind = input.u16()?;
    let (cookie, offset) = (input.number(8)?, input.number(8)?);
    let len = input.number(4)?;
    if kind == DISC {
        return None;
    }
    let payload = input.take(if kind == WRITE { len as usize } else { 0 })?;
    Some((Request { kind, cookie, offset, len }, payload))
}

/// True where the request succeeded.
fn check_simple(request: &Request, output: &mut Bytes<'_>, disk: &[u8]) -> bool {
    assert_eq!(output.must(4), u64::from(SIMPLE_MAGIC));
    let error = output.must(4);
    assert_eq!(output.must(8), request.cookie);
    if error == 0 && request.kind == READ {
        let data = output.take(request.len as usize).expect("a reply is whole");
        assert!(request.len == 0 || data == &disk[request.span()], "a read gave something else");
    }
    error == 0
}

/// True where the request succeeded.
fn check_chunks(request: &Request, output: &mut Bytes<'_>, disk: &[u8]) -> bool {
    let (mut done, mut covered) = (true, 0);
    loop {
        assert_eq!(output.must(4), u64::from(CHUNK_MAGIC));
        let (flags, kind) = (output.must(2), output.must(2));
        assert_eq!(output.must(8), request.cookie);
        let len = output.must(4) as usize;
        let mut body = Bytes(output.take(len).expect("a reply is whole"));
        match kind {
            0 => {}
            1 => {
                let at = body.must(8) as usize;
                assert!(body.0 == &disk[at..at + body.0.len()], "a read gave something else");
                covered += body.0.len() as u64;
            }
            2 => {
                let (at, len) = (body.must(8) as usize, body.must(4));
                assert!(disk[at..at + len as usize].iter().all(|b| *b == 0), "a hole holds data");
                covered += len;
            }
            5 => assert!(len > 4 && (len - 4).is_multiple_of(8), "a block status without states"),
            _ => {
                assert!(kind >> 15 == 1 && body.must(4) != 0, "an error without a number");
                done = false;
            }
        }
        if flags & 1 == 1 {
            break;
        }
    }
    assert!(!done || request.kind != READ || covered == request.len, "a read is not whole");
    done
}
