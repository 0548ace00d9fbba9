//! Journals of this host: the directory they are in, and a look at them.

use crate::program::{BUSY, Home, Server, qemu_io};
use serde_json::json;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tempfile::TempDir;

const FAILED: i32 = 1;

/// On a real file system: a journal refuses those in memory.
fn disk() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn home() -> Home {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    home
}

fn local<'a>(folder: &'a Path, size: &'a str) -> [&'a str; 7] {
    let folder = folder.to_str().unwrap();
    ["data", "--durability", "local", "--journal", folder, "--journal-size", size]
}

fn serve(home: &Home, folder: &Path) -> Server {
    home.serve(&local(folder, "16M"))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Ends who looks, however the test ends.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn the_folder_of_journals_is_made_where_only_it_is_missing() {
    let (home, disk) = (home(), disk());
    let folder = disk.path().join("journals");
    let server = serve(&home, &folder);
    assert_eq!(home.run(&["status", "data", "--json"]).json()["durability"], "local");
    assert_eq!((mode(&folder), fs::read_dir(&folder).unwrap().count()), (0o700, 1));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    // One that is there stays as it is.
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o750)).unwrap();
    let server = serve(&home, &folder);
    home.run(&["detach", "data"]).ok();
    assert_eq!((server.ended().0, mode(&folder)), (0, 0o750));
}

#[test]
fn a_folder_of_journals_that_cannot_be_made_is_refused() {
    let (home, disk) = (home(), disk());
    let refused = |folder: &Path, size: &str, words: &str| {
        let args = [&["serve", "nbd"], &local(folder, size)[..]].concat();
        home.run(&args).fails(FAILED, words);
    };
    let nested = disk.path().join("not-mounted/journals");
    refused(&nested, "16M", "cannot make the journal folder");
    let file = disk.path().join("file");
    fs::write(&file, "mine").unwrap();
    refused(&file, "16M", file.to_str().unwrap());
    assert_eq!(fs::read(&file).unwrap(), b"mine");
    // What was made for nothing goes away again.
    refused(&disk.path().join("journals"), "1P", "free");
    let left: Vec<_> = fs::read_dir(disk.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left, [file]);
    let epoch = home.run(&["info", "data", "--json"]).json()["state"].clone();
    assert_eq!(epoch, "free", "nobody has taken it");
}

#[test]
fn a_list_shows_what_is_in_use_and_what_was_left() {
    let (home, disk) = (home(), disk());
    let folder = disk.path().to_str().unwrap();
    let list = || home.run(&["journal", "list", "--journal", folder, "--json"]).json();
    let server = serve(&home, disk.path());
    let used = list();
    let trouble = used[0]["trouble"].as_str().unwrap();
    assert!(trouble.contains("in use by another process"), "{used}");
    assert!(qemu_io(&server.uri, &["write -P 7 0 1M", "flush"]));
    server.kill();
    // While others look at it all the time, it can be opened.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                list();
            }
        });
        let _done = Done(&done);
        let left = list();
        assert_eq!((&left[0]["trouble"], &left[0]["epoch"]), (&json!(null), &json!(1)), "{left}");
        for _ in 0..5 {
            let server = home.serve(&local(disk.path(), "16M"));
            assert!(qemu_io(&server.uri, &["read -P 7 0 1M"]));
            server.kill();
        }
    });
}

/// What is only in the journal of a killed owner is given up by nobody who just passes by.
#[test]
fn verbs_leave_a_volume_alone_whose_journal_has_more() {
    let (home, disk) = (home(), disk());
    let folder = disk.path().join("journals");
    let server = serve(&home, &folder);
    assert!(qemu_io(&server.uri, &["write -P 9 0 1M", "flush"]));
    server.kill();
    let image = home.path("image");
    for args in [
        &["snapshot", "create", "data@a"][..],
        &["resize", "data", "--size", "128M"],
        &["gc", "data"],
        &["export", "data", image.to_str().unwrap()],
    ] {
        home.run(args).fails(BUSY, "which may hold writes that the store lacks");
    }
    assert!(!image.exists());
    let server = serve(&home, &folder);
    assert!(qemu_io(&server.uri, &["read -P 9 0 1M"]));
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
}
