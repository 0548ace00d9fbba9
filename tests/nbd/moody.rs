//! A device that misbehaves on request, and what clients see of it.

use crate::harness::{Offer, attempt, libnbd, runtime, serve, text};
use objblk::device::ram::RamDisk;
use objblk::device::{
    BlockDevice, Checked, DeviceError, DeviceResult, Geometry, StatusExtent, WriteFlags, ZeroFlags,
};
use objblk::frontend::nbd::Limits;
use objblk::units::{BlockSize, Sector, SectorCount, SectorRange};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Reads that start at this sector fail with EIO; later sectors have other failures.
const IO_ERROR: Sector = Sector(64);
const SHUT_DOWN: Sector = Sector(72);
const TIMED_OUT: Sector = Sector(80);
/// Reads that start here never complete.
pub const STUCK: Sector = Sector(96);

/// A RAM disk of 1 MiB with a bad region and a changeable size.
pub struct Moody {
    disk: RamDisk,
    pub sectors: AtomicU64,
    pub prefetched: AtomicU64,
}

pub fn moody() -> Arc<Checked<Moody>> {
    let disk = RamDisk::new(SectorCount(2048), BlockSize::B512);
    Arc::new(Checked::new(Moody {
        disk,
        sectors: AtomicU64::new(2048),
        prefetched: AtomicU64::new(0),
    }))
}

impl BlockDevice for Moody {
    fn geometry(&self) -> Geometry {
        Geometry { size: SectorCount(self.sectors.load(SeqCst)), ..self.disk.geometry() }
    }

    async fn read(&self, start: Sector, buf: &mut [u8]) -> DeviceResult<()> {
        match start {
            IO_ERROR => Err(DeviceError::Io("chunk 7 cannot be read back".into())),
            SHUT_DOWN => Err(DeviceError::Shutdown),
            TIMED_OUT => Err(DeviceError::TimedOut("the store is silent".into())),
            STUCK => std::future::pending().await,
            _ => self.disk.read(start, buf).await,
        }
    }

    async fn write(&self, start: Sector, data: &[u8], flags: WriteFlags) -> DeviceResult<()> {
        self.disk.write(start, data, flags).await
    }

    async fn flush(&self) -> DeviceResult<()> {
        self.disk.flush().await
    }

    async fn discard(&self, range: SectorRange) -> DeviceResult<()> {
        self.disk.discard(range).await
    }

    async fn write_zeroes(&self, range: SectorRange, flags: ZeroFlags) -> DeviceResult<()> {
        self.disk.write_zeroes(range, flags).await
    }

    async fn block_status(
        &self,
        range: SectorRange,
        max_extents: usize,
    ) -> DeviceResult<Vec<StatusExtent>> {
        self.disk.block_status(range, max_extents).await
    }

    fn prefetch(&self, range: SectorRange) {
        self.prefetched.fetch_add(range.len().0, SeqCst);
    }
}

#[test]
fn device_errors_reach_the_client() {
    let device = moody();
    let offers: Vec<Offer<Moody>> = vec![("disk", device)];
    let server = serve(runtime(), false, Limits::default(), offers);
    libnbd(
        server.uri(),
        r#"
for structured in (True, False):
    h = connect(structured=structured)
    fails(errno.EIO, lambda: h.pread(512, 64 * 512))
    fails(errno.ESHUTDOWN, lambda: h.pread(512, 72 * 512))
    fails(errno.EIO, lambda: h.pread(512, 80 * 512))
    assert h.pread(512, 0) == bytearray(512)

# The failing offset is told.
h = connect()
seen = []
def chunk(data, offset, status, err):
    seen.append((offset, status))
fails(errno.EIO, lambda: h.pread_structured(512, 64 * 512, chunk))
assert seen == [(64 * 512, nbd.READ_ERROR)], seen
h.shutdown()
"#,
    );
    let status = server.status();
    assert_eq!(status.errors, 7, "{status:?}");
    server.stop().unwrap();
}

#[test]
fn prefetch_and_size_of_the_moment() {
    let device = moody();
    let server = serve(runtime(), false, Limits::default(), vec![("disk", device.clone())]);
    libnbd(
        server.uri(),
        "h = connect(); h.cache(8192, 4096); fails(errno.EINVAL, lambda: h.cache(4096, 1 << 20))",
    );
    assert_eq!(device.inner().prefetched.load(SeqCst), 16);
    device.inner().sectors.store(1024, SeqCst);
    libnbd(
        server.uri(),
        r#"
h = connect()
assert h.get_size() == 1024 * 512
fails(errno.ENOSPC, lambda: h.pwrite(bytearray(512), 1024 * 512))
"#,
    );
    let size = attempt("libnbd-bin", "nbdinfo", &["--size", server.uri()]);
    assert_eq!(text(&size.stdout).trim(), "524288");
    server.stop().unwrap();
}
