//! Disks behind the frontend, in this process.

use objblk::device::ram::RamDisk;
use objblk::device::{
    BlockDevice, BlockState, Checked, DeviceResult, Geometry, StatusExtent, WriteFlags, ZeroFlags,
};
use objblk::frontend::vhost::{Identity, VhostUser};
use objblk::units::{BlockSize, Sector, SectorCount, SectorRange};
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

/// A disk whose writes wait until they are let through.
pub struct Gate {
    disk: RamDisk,
    pub open: Semaphore,
}

impl Gate {
    pub fn new(sectors: u64) -> Gate {
        let disk = RamDisk::new(SectorCount(sectors), BlockSize::B512);
        Gate { disk, open: Semaphore::new(0) }
    }
}

impl BlockDevice for Gate {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    async fn read(&self, start: Sector, buf: &mut [u8]) -> DeviceResult<()> {
        self.disk.read(start, buf).await
    }

    async fn write(&self, start: Sector, data: &[u8], flags: WriteFlags) -> DeviceResult<()> {
        self.open.acquire().await.unwrap().forget();
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

    async fn block_status(&self, range: SectorRange, _: usize) -> DeviceResult<Vec<StatusExtent>> {
        Ok(vec![StatusExtent { len: range.len(), state: BlockState::Data }])
    }

    fn prefetch(&self, _: SectorRange) {}
}

/// A served disk.
pub struct Served<D> {
    pub disk: Arc<Checked<D>>,
    pub frontend: VhostUser,
    pub path: PathBuf,
    _runtime: Runtime,
    _folder: TempDir,
}

pub fn identity() -> Identity {
    Identity { volume: [7; 16], token: 1, epoch: 1, closed: None, unchanging: false }
}

impl<D: BlockDevice> Served<D> {
    pub fn new(disk: D) -> Served<D> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let runtime = Runtime::new().unwrap();
        let disk = Arc::new(Checked::new(disk));
        let start = VhostUser::start(disk.clone(), &path, "0123456789abcdefghijklmn", identity());
        let frontend = runtime.block_on(start).unwrap();
        Served { disk, frontend, path, _runtime: runtime, _folder: folder }
    }
}

pub fn ram(sectors: u64) -> RamDisk {
    RamDisk::new(SectorCount(sectors), BlockSize::B512)
}
