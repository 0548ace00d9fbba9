//! What is particular to a store in a directory.

use crate::conformance::{key, pattern};
use bytes::Bytes;
use objblk::direct::read_from_memory;
use objblk::error::ErrorKind;
use objblk::store::dir::DirStore;
use objblk::store::{GetRange, Store, StoreErrorKind, list_all};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

fn x() -> Bytes {
    Bytes::from_static(b"x")
}

#[tokio::test]
async fn a_missing_directory_is_not_made_by_accident() {
    let above = tempfile::tempdir().unwrap();
    let root = above.path().join("pool/one");
    let error = DirStore::open(&root).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("is missing; create it, or mount"), "{error}");
    let store = DirStore::create(&root).unwrap();
    store.put_if_absent(&key("a/b"), x()).await.unwrap();
    // As if the file system had been unmounted under the store.
    fs::rename(&root, above.path().join("elsewhere")).unwrap();
    for error in [
        store.put_if_absent(&key("a/c"), x()).await.unwrap_err(),
        store.get(&key("a/b"), GetRange::All).await.unwrap_err(),
        store.list("", None, 10).await.unwrap_err(),
        store.list("a/", None, 10).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
        assert!(error.detail.contains("directory") && error.detail.contains("missing"), "{error}");
    }
    assert!(!root.exists());
}

#[tokio::test]
async fn a_file_is_no_store() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = DirStore::open(file.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().contains("is not a directory"), "{error}");
}

#[tokio::test]
async fn a_name_is_a_file_or_a_directory() {
    let root = tempfile::tempdir().unwrap();
    let store = DirStore::open(root.path()).unwrap();
    store.put_if_absent(&key("a/b"), x()).await.unwrap();
    for (name, why) in [("a", "it is a directory"), ("a/b/c", "is an object")] {
        for error in [
            store.put_if_absent(&key(name), x()).await.unwrap_err(),
            store.put(&key(name), x()).await.unwrap_err(),
        ] {
            assert_eq!(error.kind, StoreErrorKind::Invalid, "{error}");
            assert!(error.detail.contains(why), "{error}");
        }
        let error = store.get(&key(name), GetRange::All).await.unwrap_err();
        assert_eq!(error.kind, StoreErrorKind::NotFound, "{error}");
        assert_eq!(store.head(&key(name)).await.unwrap_err().kind, StoreErrorKind::NotFound);
        store.delete(&[key(name)]).await.unwrap();
    }
    assert!(store.list("a/b/", None, 10).await.unwrap().objects.is_empty());
    let long = key(&"n".repeat(300));
    assert_eq!(store.put(&long, x()).await.unwrap_err().kind, StoreErrorKind::Invalid);
    assert_eq!(store.head(&long).await.unwrap_err().kind, StoreErrorKind::NotFound);
}

#[tokio::test]
async fn empty_directories_go() {
    let root = tempfile::tempdir().unwrap();
    let store = DirStore::open(root.path()).unwrap();
    let names = ["a/b/c/d", "a/b/e", "a/f"].map(key);
    for name in &names {
        store.put_if_absent(name, x()).await.unwrap();
    }
    store.delete(&names[..1]).await.unwrap();
    assert!(!root.path().join("a/b/c").exists() && root.path().join("a/b/e").exists());
    store.delete(&names).await.unwrap();
    assert!(!root.path().join("a").exists() && root.path().exists());
    store.put_if_absent(&key("a"), x()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creators_and_deleters_meet_in_one_directory() {
    let root = tempfile::tempdir().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..8 {
        // Every worker its own store, as processes would have.
        let store = DirStore::open(root.path()).unwrap();
        tasks.spawn(async move {
            for i in 0..60 {
                let name = key(&format!("a/b/c/{worker}-{i}"));
                store.put_if_absent(&name, x()).await.unwrap();
                assert_eq!(store.get(&name, GetRange::All).await.unwrap(), "x");
                store.delete(&[name]).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    assert!(!root.path().join("a").exists());
}

#[tokio::test]
async fn leftovers_of_crashed_writers_are_harmless() {
    let root = tempfile::tempdir().unwrap();
    let store = DirStore::open(root.path()).unwrap();
    store.put_if_absent(&key("a"), x()).await.unwrap();
    let temporaries = root.path().join("~tmp");
    assert_eq!(fs::read_dir(&temporaries).unwrap().count(), 0, "a put cleans up");
    for name in ["young", "old"] {
        fs::write(temporaries.join(name), "half an obj").unwrap();
    }
    let day_old = SystemTime::now() - Duration::from_secs(25 * 3600);
    fs::File::options()
        .write(true)
        .open(temporaries.join("old"))
        .unwrap()
        .set_modified(day_old)
        .unwrap();
    fs::create_dir(root.path().join("lost+found")).unwrap();
    fs::write(root.path().join("lost+found/#12"), "x").unwrap();
    let store = DirStore::open(root.path()).unwrap();
    let listed = list_all(&store, "").await.unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    let left: Vec<_> =
        fs::read_dir(&temporaries).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["young"]);
}

#[tokio::test]
async fn a_full_disk_is_a_passing_trouble() {
    let root = tempfile::tempdir().unwrap();
    let mounted = Mounted::new("tmpfs", root.path(), "size=256k");
    let store = DirStore::open(root.path()).unwrap();
    store.put_if_absent(&key("a"), vec![1; 100_000].into()).await.unwrap();
    let error = store.put_if_absent(&key("b"), vec![1; 500_000].into()).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::Unavailable);
    assert!(error.detail.contains("No space left"), "{error}");
    assert_eq!(list_all(&store, "").await.unwrap().len(), 1);
    store.put_if_absent(&key("b"), vec![1; 100_000].into()).await.unwrap();
    drop(mounted);
}

struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, at: &Path, options: &str) -> Mounted {
        let done = Command::new("mount").args(["-t", kind, "-o", options, kind]).arg(at).status();
        assert!(done.is_ok_and(|status| status.success()), "mounting a {kind} needs root");
        Mounted(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).status();
        assert!(done.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

#[tokio::test]
async fn large_objects_go_past_the_page_cache_where_it_can_be_passed() {
    // A disk, and a file system that has no direct I/O.
    let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let memory = tempfile::tempdir().unwrap();
    let mounted = Mounted::new("ramfs", memory.path(), "mode=700");
    for root in [disk.path(), memory.path()] {
        let store = DirStore::open(root).unwrap();
        let from = 256 << 10;
        let sizes = [from - 1, from, from + 1, (1 << 20) - 4096, (1 << 20) + 4097, 4 << 20];
        for (n, size) in sizes.into_iter().enumerate() {
            let (one, body) = (key(&format!("new/{n}")), pattern(size, n as u64));
            store.put_if_absent(&one, body.clone()).await.unwrap();
            // Bytes of their own, which begin anywhere.
            let other = key(&format!("replaced/{n}"));
            store.put(&other, x()).await.unwrap();
            store.put(&other, body.slice(1..)).await.unwrap();
            let file = fs::File::open(root.join(one.as_str())).unwrap();
            if root == disk.path() {
                let cached = read_from_memory(&file, &mut [0; 4096], 0);
                assert_eq!(cached, size < from, "{size} bytes");
            }
            assert_eq!(store.get(&one, GetRange::All).await.unwrap(), body);
            assert_eq!(store.get(&other, GetRange::All).await.unwrap(), body.slice(1..));
        }
    }
    drop(mounted);
}

/// The directory that the writer process of the next test fills.
const WRITER_ROOT: &str = "OBJBLK_TEST_WRITER_ROOT";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_writer_leaves_whole_objects_only() {
    if let Some(root) = std::env::var_os(WRITER_ROOT) {
        return write_until_killed(Path::new(&root)).await;
    }
    let root = tempfile::tempdir().unwrap();
    let mut killed_at = 0;
    for round in 0..5 {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["dir::a_killed_writer_leaves_whole_objects_only", "--exact"])
            .env(WRITER_ROOT, root.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let store = DirStore::open(root.path()).unwrap();
        while list_all(&store, "").await.unwrap().len() <= killed_at {
            assert!(writer.try_wait().unwrap().is_none(), "the writer ended on its own");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(7 * round)).await;
        writer.kill().unwrap();
        writer.wait().unwrap();
        let objects = list_all(&store, "").await.unwrap();
        killed_at = objects.len();
        for object in &objects {
            assert_eq!(object.size, 1 << 20, "{}", object.key);
            let body = store.get(&object.key, GetRange::All).await.unwrap();
            assert!(body.iter().all(|b| *b == body[0]), "{}", object.key);
        }
    }
}

async fn write_until_killed(root: &Path) {
    let store = DirStore::open(root).unwrap();
    let process = std::process::id();
    for i in 0..100_000_u32 {
        let name = key(&format!("log/{process}/{i}"));
        store.put_if_absent(&name, vec![i as u8; 1 << 20].into()).await.unwrap();
    }
}
