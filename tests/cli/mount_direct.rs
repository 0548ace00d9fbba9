//! Several threads that write one file of a mount past the kernel's cache.
//!
//! Needs FUSE in Linux 6.6 or later, and root.

use crate::program::{noise, tool};
use objblk::device::Checked;
use objblk::device::ram::RamDisk;
use objblk::error::Result;
use objblk::frontend::fuse::{Catalogue, Facts, Image, ImageName, Lease, MountOptions, Session};
use objblk::units::{BlockSize, SectorCount};
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;

const SIZE: u64 = 1 << 20;
const BLOCK: usize = 4096;
const DELAY: Duration = Duration::from_millis(100);
const O_DIRECT: i32 = 0o40000;
const WRITERS: u64 = 4;
/// Of each writer.
const WRITES: u64 = 4;

/// One image, which takes its time for every request.
struct Slow(Arc<Image<RamDisk>>);

impl Catalogue for Slow {
    type Device = RamDisk;

    async fn volumes(&self) -> Result<Vec<String>> {
        Ok(vec!["disk".to_owned()])
    }

    async fn snapshots(&self, _volume: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn find(&self, _name: &ImageName) -> Result<Option<Facts>> {
        let (id, attributes) = ([1; 16], Vec::new());
        let (read_only, changed_at_ms) = (false, 0);
        Ok(Some(Facts { id, size: SIZE, used: SIZE, read_only, changed_at_ms, attributes }))
    }

    async fn open(&self, _name: &ImageName) -> Result<Lease<RamDisk>> {
        Ok(self.0.lease())
    }
}

struct Mounted(TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        tool("umount", &[self.0.path().to_str().unwrap()]);
    }
}

/// Writes what is `of` that place in `what`, from memory that is aligned as direct I/O wants it.
fn write(path: &Path, what: &[u8], at: u64) {
    let file = OpenOptions::new().write(true).custom_flags(O_DIRECT).open(path).unwrap();
    let mut memory = vec![0; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let block = &mut memory[start..start + BLOCK];
    block.copy_from_slice(&what[at as usize..at as usize + BLOCK]);
    file.write_all_at(block, at).unwrap();
}

#[test]
fn threads_that_write_past_the_cache_do_not_take_turns() {
    let runtime = Runtime::new().unwrap();
    let disk = RamDisk::new(SectorCount(SIZE / 512), BlockSize::B4096);
    let disk = disk.delayed(runtime.handle().clone(), DELAY);
    let image = Image::new(Arc::new(Checked::new(disk)));
    let dir = TempDir::new().unwrap();
    let mount = Session::mount(Arc::new(Slow(image)), dir.path(), MountOptions::default());
    runtime.block_on(mount).unwrap();
    let mounted = Mounted(dir);
    let (path, what) = (mounted.0.path().join("disk.raw"), noise(SIZE as usize));
    let began = Instant::now();
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (path, what) = (&path, &what);
            scope.spawn(move || {
                for at in 0..WRITES {
                    write(path, what, (writer * WRITES + at) * BLOCK as u64);
                }
            });
        }
    });
    let took = began.elapsed();
    let all = (WRITERS * WRITES) as usize * BLOCK;
    assert!(std::fs::read(&path).unwrap()[..all] == what[..all]);
    // One after the other, the writes alone take this long; and closing a file after each flushes it.
    assert!(took < DELAY * (WRITERS * WRITES) as u32, "it took {took:?}");
}
