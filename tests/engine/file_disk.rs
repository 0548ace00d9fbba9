//! The disk of a journal on a real file: [`FileDisk`] against the contract of [`Disk`].
//!
//! The files are in the build folder, which must be on a file system with direct I/O that is no
//! tmpfs; elsewhere these tests fail and say so.

use nix::fcntl::{Flock, FlockArg};
use objblk::error::ErrorKind;
use objblk::journal::disk::{BLOCK, Blocks, Disk};
use objblk::journal::uring::{FileDisk, Glance};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::task::{Context, Waker};
use std::time::Duration;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A folder on a real file system and the place of a journal in it.
fn place() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("v.journal");
    (folder, path)
}

fn blocks(len: usize, seed: u8) -> Blocks {
    let mut blocks = Blocks::zeroed(len);
    for (at, byte) in blocks.bytes_mut().iter_mut().enumerate() {
        *byte = seed.wrapping_add((at / 509) as u8);
    }
    blocks
}

async fn write(disk: &FileDisk, offset: u64, len: usize, seed: u8) -> io::Result<()> {
    let given = disk.write(offset, blocks(len, seed)).await?;
    assert_eq!(given.bytes(), blocks(len, seed).bytes(), "the buffer comes back as it was");
    Ok(())
}

async fn holds(disk: &FileDisk, offset: u64, len: usize, seed: u8) {
    let found = disk.read(offset, len).await.unwrap();
    assert!(found.bytes() == blocks(len, seed).bytes(), "{len} bytes at {offset}");
}

async fn is_zero(disk: &FileDisk, offset: u64, len: usize) {
    let found = disk.read(offset, len).await.unwrap();
    assert!(found.bytes().iter().all(|byte| *byte == 0), "{len} bytes at {offset}");
}

#[tokio::test]
async fn what_was_written_is_there_after_opening_again() {
    let (_folder, path) = place();
    let disk = FileDisk::create(&path, 32 * MIB).unwrap();
    assert_eq!((disk.size(), disk.name()), (32 * MIB, path.display().to_string()));
    let about = std::fs::metadata(&path).unwrap();
    assert_eq!(about.permissions().mode() & 0o777, 0o600);
    assert!(about.blocks() * 512 >= 32 * MIB, "all of it is reserved");
    write(&disk, 0, BLOCK, 1).await.unwrap();
    write(&disk, 32 * MIB - 4 * MIB, 4 << 20, 2).await.unwrap();
    write(&disk, 0, 2 * BLOCK, 3).await.unwrap();
    drop(disk);
    let disk = reopened(&path).await;
    holds(&disk, 0, 2 * BLOCK, 3).await;
    holds(&disk, 28 * MIB, 4 << 20, 2).await;
    is_zero(&disk, 2 * BLOCK as u64, (4 << 20) - 2 * BLOCK).await;
    is_zero(&disk, 20 * MIB, 4 << 20).await;
    write(&disk, 20 * MIB, BLOCK, 4).await.unwrap();
    holds(&disk, 20 * MIB, BLOCK, 4).await;
}

#[tokio::test]
async fn zeros_are_never_filled_over_what_was_written() {
    let (_folder, path) = place();
    let size = 48 * MIB;
    let disk = FileDisk::create(&path, size).unwrap();
    // While the thread fills what is ahead, and after it was idle; then by a second owner.
    let place = |i: u64| i * 7919 % (size / BLOCK as u64) * BLOCK as u64;
    for i in 0..300 {
        write(&disk, place(i), BLOCK, i as u8).await.unwrap();
        if i % 100 == 99 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    drop(disk);
    let disk = reopened(&path).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    for i in 0..300 {
        holds(&disk, place(i), BLOCK, i as u8).await;
    }
}

/// Written blocks of a file, as its file system tells.
fn data_bytes(path: &Path) -> u64 {
    use nix::unistd::{Whence, lseek};
    let file = std::fs::File::open(path).unwrap();
    let (mut at, mut bytes) = (0, 0);
    while let Ok(data) = lseek(&file, at, Whence::SeekData) {
        at = lseek(&file, data, Whence::SeekHole).unwrap();
        bytes += (at - data) as u64;
    }
    bytes
}

#[tokio::test]
async fn an_idle_disk_fills_what_lies_ahead() {
    let (_folder, path) = place();
    let size = 24 * MIB;
    let disk = FileDisk::create(&path, size).unwrap();
    write(&disk, 0, BLOCK, 9).await.unwrap();
    let filled = async {
        while data_bytes(&path) < size {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), filled).await.expect("it is never filled");
    holds(&disk, 0, BLOCK, 9).await;
    is_zero(&disk, BLOCK as u64, size as usize - BLOCK).await;
}

#[tokio::test]
async fn a_journal_has_one_owner_at_a_time() {
    let (_folder, path) = place();
    let disk = FileDisk::create(&path, MIB).unwrap();
    let busy = FileDisk::open(&path).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy, "{busy}");
    let exists = FileDisk::create(&path, MIB).unwrap_err();
    assert!(exists.to_string().contains("exists already"), "{exists}");
    drop(disk);
    let disk = reopened(&path).await;
    disk.remove().unwrap();
    assert!(!path.exists());
    // The name is free, while the removed one still works.
    let next = FileDisk::create(&path, MIB).unwrap();
    write(&disk, 0, BLOCK, 1).await.unwrap();
    is_zero(&next, 0, BLOCK).await;
}

#[test]
fn a_full_disk_is_told_and_nothing_is_left_behind() {
    let (folder, path) = place();
    let error = FileDisk::create(&path, 1 << 50).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    let text = error.to_string();
    assert!(text.contains("it needs 1125899906842624 bytes") && text.contains("free"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(FileDisk::create(&path, 4095).unwrap_err().kind(), ErrorKind::Usage);
    assert_eq!(FileDisk::create(&path, 0).unwrap_err().kind(), ErrorKind::Usage);
    let nowhere = FileDisk::create(&folder.path().join("no/folder"), MIB).unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::Failed);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_an_interrupted_making_left_is_made_anew() {
    let (folder, path) = place();
    std::fs::write(folder.path().join("v.journal.new"), vec![7; 123_456]).unwrap();
    let disk = FileDisk::create(&path, MIB).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(is_zero(&disk, 0, MIB as usize));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_file_system_in_memory_is_refused() {
    assert!(Path::new("/dev/shm").is_dir(), "this test needs a tmpfs on /dev/shm");
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let error = FileDisk::create(&folder.path().join("v.journal"), MIB).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("tmpfs") || text.contains("O_DIRECT"), "{text}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_is_no_journal_is_not_opened() {
    let (folder, path) = place();
    assert_eq!(FileDisk::open(&path).unwrap_err().kind(), ErrorKind::Failed);
    for len in [0, 4097] {
        std::fs::write(&path, vec![0; len]).unwrap();
        let error = FileDisk::open(&path).unwrap_err().to_string();
        assert!(error.contains("whole 4 KiB blocks"), "{error}");
    }
    std::fs::write(folder.path().join("other"), vec![0; 8192]).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("other", &path).unwrap();
    assert!(FileDisk::open(&path).is_err(), "a link is not followed");
}

#[tokio::test]
async fn places_outside_are_refused_and_harm_nothing() {
    let (_folder, path) = place();
    let disk = FileDisk::create(&path, MIB).unwrap();
    for (offset, len) in
        [(MIB, BLOCK), (MIB - 4096, 2 * BLOCK), (1, BLOCK), (u64::MAX - 4095, BLOCK)]
    {
        let error = disk.write(offset, Blocks::zeroed(len)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = disk.read(offset, len).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(disk.read(0, 17).await.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    write(&disk, MIB - 4096, BLOCK, 1).await.unwrap();
    write(&disk, MIB, 0, 1).await.unwrap();
}

/// The kernel refuses to write beyond the limit of file sizes: a failure like that of a broken disk.
#[test]
fn after_a_failed_write_nothing_is_written_and_reads_go_on() {
    const ME: &str = "file_disk::after_a_failed_write_nothing_is_written_and_reads_go_on";
    const FILE: &str = "OBJBLK_TEST_LIMITED_FILE";
    if let Some(path) = std::env::var_os(FILE) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(fail_behind_the_limit(Path::new(&path)));
    }
    let (_folder, path) = place();
    drop(FileDisk::create(&path, 4 * MIB).unwrap());
    // The limit is a process's: in a child, with the signal that comes with it ignored.
    let script = "trap '' XFSZ; ulimit -f 2048; exec \"$@\"";
    let run = std::process::Command::new("bash")
        .args(["-c", script, "bash"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", ME, "--nocapture"])
        .env(FILE, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

async fn fail_behind_the_limit(path: &Path) {
    let disk = FileDisk::open(path).unwrap();
    write(&disk, 0, BLOCK, 1).await.unwrap();
    let error = disk.write(3 * MIB, blocks(BLOCK, 2)).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EFBIG), "{error}");
    let error = disk.write(0, blocks(BLOCK, 3)).await.unwrap_err();
    assert!(error.to_string().contains("failed before"), "{error}");
    holds(&disk, 0, BLOCK, 1).await;
    is_zero(&disk, 3 * MIB, BLOCK).await;
}

#[tokio::test]
async fn a_file_cut_short_fails_reads_and_not_the_others() {
    let (_folder, path) = place();
    let disk = FileDisk::create(&path, 4 * MIB).unwrap();
    write(&disk, 0, BLOCK, 1).await.unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(MIB).unwrap();
    let error = disk.read(2 * MIB, BLOCK).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
    let error = disk.read(MIB - 4096, 2 * BLOCK).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
    holds(&disk, 0, BLOCK, 1).await;
}

/// Opens a disk whose owner is leaving: on a busy machine that takes a while.
async fn reopened(path: &Path) -> FileDisk {
    for _ in 0..600 {
        match FileDisk::open(path) {
            Err(e) if e.kind() == ErrorKind::Busy => {}
            opened => return opened.unwrap(),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{} is locked for ever", path.display());
}

#[tokio::test]
async fn a_dropped_write_frees_nothing_that_the_kernel_uses() {
    let (_folder, path) = place();
    let disk = FileDisk::create(&path, 64 * MIB).unwrap();
    let mut dropped = 0;
    for round in 0..64u64 {
        let mut write = disk.write(round * MIB, blocks(MIB as usize, round as u8));
        dropped +=
            u8::from(write.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(write);
        // What the allocator gives out next must not be what is being written.
        let other = vec![0xee_u8; MIB as usize + BLOCK];
        std::hint::black_box(&other);
    }
    assert!(dropped > 0, "every write was done before its future was dropped");
    drop(disk);
    let disk = reopened(&path).await;
    for round in 0..64u64 {
        holds(&disk, round * MIB, MIB as usize, round as u8).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_reads_and_writes_at_once_are_kept_apart() {
    let (_folder, path) = place();
    let disk = std::sync::Arc::new(FileDisk::create(&path, 64 * MIB).unwrap());
    let tasks = (0..64u64).map(|task| {
        let disk = disk.clone();
        tokio::spawn(async move {
            for round in 0..20u8 {
                let len = BLOCK * (1 + (task as usize + usize::from(round)) % 5);
                write(&disk, task * MIB, len, task as u8 ^ round).await.unwrap();
                holds(&disk, task * MIB, len, task as u8 ^ round).await;
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

/// Who only looks keeps nobody from opening the file, and sees what is there.
#[tokio::test]
async fn a_glance_is_in_nobodys_way() {
    let (_folder, path) = place();
    let disk = FileDisk::create(&path, 4 * MIB).unwrap();
    write(&disk, MIB, BLOCK, 5).await.unwrap();
    let glance = Glance::open(&path).unwrap();
    assert_eq!((glance.size(), glance.name()), (4 * MIB, disk.name()));
    assert_eq!(glance.check_unused().unwrap_err().kind(), ErrorKind::Busy);
    let seen = glance.read(MIB, BLOCK).await.unwrap();
    assert!(seen.bytes() == blocks(BLOCK, 5).bytes());
    assert!(glance.write(0, Blocks::zeroed(BLOCK)).await.is_err());
    assert!(glance.read(4 * MIB, BLOCK).await.is_err());
    drop(disk);
    drop(reopened(&path).await);
    // Somebody is just looking whether it is locked.
    let file = std::fs::File::open(&path).unwrap();
    let looking = Flock::lock(file, FlockArg::LockShared).unwrap();
    let looker = std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(200));
        drop(looking);
    });
    assert_eq!(glance.check_unused().map_err(|e| e.kind()), Ok(()), "lookers bear each other");
    FileDisk::open(&path).unwrap();
    looker.join().unwrap();
}
