//! libnbd scripts: single commands, flags, replies and errors.

use crate::harness::{libnbd, ram, runtime, serve};
use objblk::device::ram::RamDisk;
use objblk::device::{BlockDevice, Checked};
use objblk::frontend::nbd::Limits;
use objblk::units::{BlockSize, Sector, SectorCount};
use std::sync::Arc;
use std::time::Duration;

#[test]
fn fua_reaches_the_device() {
    let (server, disk) = ram(4, BlockSize::B512, None);
    let mut before = 0;
    for call in [
        "h.pwrite(bytearray(512), 0, nbd.CMD_FLAG_FUA)",
        "h.zero(512, 0, nbd.CMD_FLAG_FUA)",
        "h.trim(512, 0, nbd.CMD_FLAG_FUA)",
        "h.flush()",
    ] {
        libnbd(server.uri(), &format!("h = connect(); h.pwrite(bytearray(512), 0); {call}"));
        assert_eq!(disk.inner().flushes(), before + 1, "{call}");
        before += 1;
    }
    server.stop().unwrap();
    assert_eq!(disk.inner().flushes(), before + 1, "the server flushes when it ends");
}

#[test]
fn commands_do_what_they_say() {
    for (block_size, structured) in
        [(BlockSize::B512, true), (BlockSize::B512, false), (BlockSize::B4096, true)]
    {
        let (server, _) = ram(4, block_size, None);
        let structured = if structured { "True" } else { "False" };
        libnbd(
            server.uri(),
            &format!("structured = {structured}; block = {}\n{COMMANDS}", block_size.bytes()),
        );
        assert_eq!(server.status().errors, 0);
        server.stop().unwrap();
    }
}

const COMMANDS: &str = r#"
h = connect(structured=structured)
assert h.get_structured_replies_negotiated() == structured
assert h.get_block_size(nbd.SIZE_MINIMUM) == block
a, b = bytearray(b"a" * block), bytearray(b"b" * block)
h.pwrite(a + b + a, 0)
assert h.pread(3 * block, 0) == a + b + a
h.pwrite(b, 0, nbd.CMD_FLAG_FUA)
h.zero(block, block)
h.zero(block, 2 * block, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA)
assert h.pread(3 * block, 0) == b + bytearray(2 * block)
h.trim(block, 0)
assert h.pread(block, 0) == bytearray(block)
h.cache(64 * 1024, 0)
h.flush()
# Longer than any buffer on the way, and read back in pieces of another size.
big = bytearray(bytes(range(256)) * 4096 * 3)
h.pwrite(big, block)
got = b"".join(bytes(h.pread(3 * 65536, block + at)) for at in range(0, len(big), 3 * 65536))
assert got == bytes(big)
assert h.pread(len(big), block) == big
# Many at once, in whatever order they complete.
out = [nbd.Buffer(16 * block) for _ in range(100)]
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 16 * block), i * 16 * block) for i in range(60)]
while not all(h.aio_command_completed(c) for c in cookies if c) and h.aio_in_flight():
    h.poll(-1)
cookies = [h.aio_pread(out[i], i * 16 * block) for i in range(60)]
while h.aio_in_flight():
    h.poll(-1)
for i in range(60):
    assert out[i].to_bytearray() == bytearray([i]) * 16 * block, i
h.shutdown()
"#;

#[test]
fn reads_of_holes_and_the_df_flag() {
    let (server, _) = ram(4, BlockSize::B512, None);
    libnbd(
        server.uri(),
        r#"
h = connect()
K = 1024
h.pwrite(bytearray(b"x" * 32 * K), 64 * K)
h.pwrite(bytearray(b"y" * 32 * K), 128 * K)

def chunks(count, offset, flags=0):
    seen = []
    def chunk(data, offset, status, err):
        seen.append((offset, len(data), status))
    buf = h.pread_structured(count, offset, chunk, flags)
    return buf, seen

D, H = nbd.READ_DATA, nbd.READ_HOLE
buf, seen = chunks(256 * K, 0)
want = bytearray(64 * K) + b"x" * 32 * K + bytearray(32 * K) + b"y" * 32 * K + bytearray(96 * K)
assert buf == want
assert [s for _, _, s in sorted(seen)] == [H, D, H, D, H], seen
assert [o // K for o, _, _ in sorted(seen)] == [0, 64, 96, 128, 160], seen
buf, seen = chunks(256 * K, 0, nbd.CMD_FLAG_DF)
assert buf == want and seen == [(0, 256 * K, D)], seen
# Begins and ends with data; all data; all hole; short.
buf, seen = chunks(96 * K, 64 * K)
assert buf == want[64 * K : 160 * K] and [s for _, _, s in sorted(seen)] == [D, H, D], seen
buf, seen = chunks(128 * K, 1024 * K)
assert buf == bytearray(128 * K) and seen == [(1024 * K, 128 * K, H)], seen
buf, seen = chunks(512, 0)
assert buf == bytearray(512) and seen == [(0, 512, D)], seen
# More runs than a reply is split into.
for i in range(0, 400, 2):
    h.pwrite(bytearray(b"z" * 512), 2048 * K + i * 512)
want = (bytearray(b"z" * 512) + bytearray(512)) * 200
buf, seen = chunks(400 * 512, 2048 * K)
assert buf == want and 64 <= len(seen) <= 66, len(seen)
# A read of nothing is answered.
assert h.pread(0, 0) == bytearray()
"#,
    );
    server.stop().unwrap();
}

#[test]
fn block_status() {
    let (server, _) = ram(4, BlockSize::B512, Some(Duration::from_micros(100)));
    libnbd(
        server.uri(),
        r#"
h = connect()
assert h.can_meta_context("base:allocation")
M = 1 << 20
h.pwrite(bytearray(b"x" * 4096), 0)
h.pwrite(bytearray(b"x" * 4096), 8192)
assert extents(h, 4 * M, 0) == [(4096, 0), (4096, 3), (4096, 0), (4 * M - 12288, 3)]
assert extents(h, 4 * M, 0, nbd.CMD_FLAG_REQ_ONE) == [(4096, 0)]
assert extents(h, 512, 8192 + 512) == [(512, 0)]
fails(errno.EINVAL, lambda: extents(h, 4096, 4 * M))
# More runs than one reply tells: the first ones are told.
for i in range(0, 2048, 2):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"z" * 512)), M + i * 512)
while h.aio_in_flight():
    h.poll(-1)
some = extents(h, M, M)
assert len(some) == 2000 and all(length == 512 for length, _ in some)
"#,
    );
    libnbd(
        server.uri(),
        r#"
h = connect(context=False)
assert not h.can_meta_context("base:allocation")
fails(errno.EINVAL, lambda: extents(h, 4096, 0))
h = nbd.NBD()
h.add_meta_context("x-other:thing")
h.connect_uri(uri)
assert not h.can_meta_context("x-other:thing")
"#,
    );
    server.stop().unwrap();
}

#[test]
fn requests_out_of_range_or_misaligned() {
    for structured in ["True", "False"] {
        let (server, _) = ram(4, BlockSize::B4096, None);
        let script = r#"
h = connect(structured=structured)
end = h.get_size()
for offset in (end, end - 4096, 1 << 62, (1 << 64) - 4096 - 1 - 4095):
    fails(errno.ENOSPC, lambda: h.pwrite(bytearray(8192), offset))
    fails(errno.ENOSPC, lambda: h.zero(8192, offset))
    fails(errno.EINVAL, lambda: h.pread(8192, offset))
    fails(errno.EINVAL, lambda: h.trim(8192, offset))
    fails(errno.EINVAL, lambda: h.cache(8192, offset))
for count, offset in ((512, 0), (4096, 512), (1, 0), (4096, 1)):
    fails(errno.EINVAL, lambda: h.pread(count, offset))
    fails(errno.EINVAL, lambda: h.pwrite(bytearray(count), offset))
    fails(errno.EINVAL, lambda: h.trim(count, offset))
# Wrong flags; the payload of a refused write is read past.
fails(errno.EINVAL, lambda: h.pwrite(bytearray(4096), 0, nbd.CMD_FLAG_REQ_ONE))
fails(errno.EINVAL, lambda: h.trim(4096, 0, nbd.CMD_FLAG_DF))
# Longer than the maximum.
fails(errno.EINVAL, lambda: h.pread(33 << 20, 0))
fails(errno.EINVAL, lambda: h.pwrite(bytearray(33 << 20), 0))
if structured:
    fails(errno.EOVERFLOW, lambda: h.pread(33 << 20, 0, nbd.CMD_FLAG_DF))
# And the connection lives on.
h.pwrite(bytearray(b"!" * 4096), 0)
assert h.pread(4096, 0) == bytearray(b"!" * 4096)
"#;
        libnbd(server.uri(), &format!("structured = {structured}\n{script}"));
        server.stop().unwrap();
    }
}

#[test]
fn read_only_exports_refuse_writes() {
    let disk = RamDisk::new(SectorCount(2048), BlockSize::B512).read_only();
    let offers = vec![("disk", Arc::new(Checked::new(disk)))];
    let server = serve(runtime(), false, Limits::default(), offers);
    libnbd(
        server.uri(),
        r#"
h = connect()
assert h.is_read_only() and not h.can_trim() and not h.can_zero()
fails(errno.EPERM, lambda: h.pwrite(bytearray(512), 0))
fails(errno.EPERM, lambda: h.zero(512, 0))
fails(errno.EPERM, lambda: h.trim(512, 0))
assert h.pread(512, 0) == bytearray(512)
h.flush()
"#,
    );
    server.stop().unwrap();
}

#[test]
fn old_clients_choose_by_name() {
    let (server, _) = ram(1, BlockSize::B512, None);
    libnbd(
        server.uri(),
        r#"
for flags in (0, nbd.HANDSHAKE_FLAG_NO_ZEROES):
    h = nbd.NBD()
    h.set_handshake_flags(flags)
    h.set_export_name("disk")
    h.connect_uri(uri)
    assert h.get_protocol() == "newstyle", h.get_protocol()
    h.pwrite(bytearray(b"o" * 512), 512)
    assert h.pread(1024, 0) == bytearray(512) + b"o" * 512
    h.shutdown()
"#,
    );
    server.stop().unwrap();
}

#[test]
fn a_flush_covers_other_connections() {
    let (server, disk) = ram(1, BlockSize::B512, Some(Duration::from_millis(2)));
    libnbd(
        server.uri(),
        r#"
a, b = connect(), connect()
assert a.can_multi_conn()
for i in range(20):
    a.pwrite(bytearray([i + 1]) * 512, i * 512)
    b.flush()
    assert b.pread(512, i * 512) == bytearray([i + 1]) * 512
"#,
    );
    assert_eq!(disk.inner().flushes(), 20);
    let mut sector = [0; 512];
    server.runtime.block_on(disk.read(Sector(19), &mut sector)).unwrap();
    assert_eq!(sector, [20; 512]);
    server.stop().unwrap();
}
