//! The journal's disk alone: one durable write of it against an append and fdatasync.

use crate::times::{Times, print};
use nix::libc;
use objblk::journal::disk::{BLOCK, Blocks, Disk};
use objblk::journal::uring::FileDisk;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const ROUNDS: usize = 3000;
const SIZE: u64 = 64 << 20;
/// What a flush of one 4 KiB write takes in the journal: its header, its entry, its payload.
const BATCH: usize = 2 * BLOCK;

/// What everything is compared with: a file that a block is appended to, durably.
pub struct Appended(File);

impl Appended {
    pub fn new(path: &Path) -> Appended {
        Appended(File::create(path).unwrap())
    }

    pub fn append(&mut self) {
        self.0.write_all(&[1; BLOCK]).unwrap();
        self.0.sync_data().unwrap();
    }
}

pub fn run() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut bare = Appended::new(&folder.path().join("bare"));
    let path = folder.path().join("v.journal");
    let disk = Arc::new(FileDisk::create(&path, SIZE).unwrap());
    // Until all of it was written once; the figures are of a journal in use.
    std::thread::sleep(Duration::from_secs(10));
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let reserved = folder.path().join("reserved");
    let reserved = OpenOptions::new()
        .create_new(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(reserved)
        .unwrap();
    nix::fcntl::fallocate(&reserved, nix::fcntl::FallocateFlags::empty(), 0, SIZE as i64).unwrap();
    let batch = Blocks::zeroed(BATCH);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let (mut appends, mut calls, mut firsts, mut writes) =
        <(Times, Times, Times, Times)>::default();
    let mut at = 0;
    let mut next = || {
        at = (at + BATCH as u64) % SIZE;
        at
    };
    for round in 0..ROUNDS {
        appends.of(|| bare.append());
        firsts.of(|| durable_call(&reserved, (round * BATCH) as u64, &batch));
        let offset = next();
        calls.of(|| durable_call(&direct, offset, &batch));
        let offset = next();
        writes.of(|| runtime.block_on(disk.write(offset, Blocks::zeroed(BATCH)))).unwrap();
    }
    print(
        "The journal's disk, one write at a time",
        &[
            ("append of 4 KiB and fdatasync", &appends),
            ("pwritev2 of 8 KiB, to blocks only reserved", &firsts),
            ("pwritev2 of 8 KiB, to blocks in use", &calls),
            ("durable write of 8 KiB by the journal's disk", &writes),
        ],
    );
}

/// What a durable write is without a thread of its own: the limit.
fn durable_call(file: &File, offset: u64, blocks: &Blocks) {
    let bytes = blocks.bytes();
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the kernel reads one buffer that lives until the call returns.
    let done = unsafe {
        libc::pwritev2(file.as_raw_fd(), &part, 1, offset as libc::off_t, libc::RWF_DSYNC)
    };
    assert_eq!(done, bytes.len() as isize, "{}", std::io::Error::last_os_error());
}
