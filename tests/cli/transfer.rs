//! `objblk import` and `objblk export`.

use crate::program::{
    BUSY, CORRUPT, EXISTS, Home, NOT_FOUND, USAGE, attempt, noise, qemu_io, qemu_io_reading, tool,
    until,
};
use crate::web::Web;
use serde_json::json;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A file of 96 MiB and a bit, with data in three places and zeros that are written.
fn sparse(home: &Home) -> PathBuf {
    let path = home.path("disk.img");
    let file = File::create(&path).unwrap();
    file.set_len(96 * MIB + 777).unwrap();
    file.write_all_at(&noise(3 * MIB as usize + 4096), 0).unwrap();
    file.write_all_at(&vec![0; 8 * MIB as usize], 16 * MIB).unwrap();
    file.write_all_at(&noise(5000), 50 * MIB + 512).unwrap();
    file.write_all_at(b"the end", 96 * MIB + 770).unwrap();
    path
}

fn same(a: &Path, b: &Path) -> bool {
    let (a, b) = (fs::read(a).unwrap(), fs::read(b).unwrap());
    let len = a.len().min(b.len());
    let rest = [&a[len..], &b[len..]].concat();
    a[..len] == b[..len] && rest.iter().all(|byte| *byte == 0)
}

fn stored(home: &Home) -> u64 {
    home.objects().values().sum()
}

fn begin(home: &Home, args: &[&str]) -> Child {
    let mut command = home.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn ended(child: Child) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

/// Nothing is there that has to do with a volume.
fn is_empty(home: &Home) -> bool {
    home.objects().keys().all(|key| {
        let key = key.display().to_string();
        !["/volumes/", "/names/", "/imports/", "/trash/"].iter().any(|part| key.contains(part))
    })
}

#[test]
fn sparse_both_ways() {
    let home = Home::new();
    let (image, back) = (sparse(&home), home.path("back.img"));
    let made = home.run(&["import", text(&image), "disk", "--json"]).json();
    assert_eq!((&made["name"], &made["size"]), (&json!("disk"), &json!(96 * MIB + 1024)));
    assert_eq!(made["image_size"], 96 * MIB + 777);
    assert_eq!(made["written_bytes"], 3 * MIB + 4096 + 8192 + 1024);
    assert!(stored(&home) < 4 * MIB, "{}", stored(&home));
    let out = home.run(&["export", "disk", text(&back), "--json"]).json();
    assert_eq!((&out["format"], &out["size"]), (&json!("raw"), &json!(96 * MIB + 1024)));
    assert!(same(&image, &back));
    let blocks = fs::metadata(&back).unwrap().blocks() * 512;
    assert!(blocks < 4 * MIB, "{blocks} bytes are allocated");
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());

    home.run(&["import", text(&image), "large", "--size", "1G", "--block-size", "4096"]).ok();
    home.run(&["snapshot", "create", "large@one"]).ok();
    assert_eq!(
        home.run(&["export", "large@one", text(&home.path("one.img"))]).ok(),
        text(&home.path("one.img"))
    );
    assert_eq!(fs::metadata(home.path("one.img")).unwrap().len(), 1 << 30);
    tool(
        "qemu-img",
        &["compare", "-q", "-f", "raw", "-F", "raw", text(&image), text(&home.path("one.img"))],
    );
}

#[test]
fn pipes_both_ways() {
    let home = Home::new();
    let image = sparse(&home);
    let pipe = |args: &[&str], from: &Path| {
        let mut command = home.command(args);
        command.stdin(File::open(from).unwrap()).output().unwrap()
    };
    let out = pipe(&["import", "-", "disk"], &image);
    assert!(out.status.success(), "{out:?}");
    assert_eq!(home.run(&["info", "disk", "--json"]).json()["size"], 96 * MIB + 1024);
    assert!(stored(&home) < 4 * MIB, "{}", stored(&home));
    let out = pipe(&["import", "-", "padded", "--size", "200M"], &image);
    assert!(out.status.success(), "{out:?}");
    assert_eq!(home.run(&["info", "padded", "--json"]).json()["size"], 200 * MIB);
    for name in ["disk", "padded"] {
        let out = home.command(&["export", name, "-"]).output().unwrap();
        assert!(out.status.success());
        fs::write(home.path("back"), &out.stdout).unwrap();
        assert!(same(&image, &home.path("back")), "{name}");
    }
    // More than was said: nothing is left of it.
    let out = pipe(&["import", "-", "small", "--size", "20M"], &image);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        said.contains("goes on behind its") && said.contains("nothing of it is left"),
        "{said}"
    );
    home.run(&["info", "small"]).refuses(NOT_FOUND, "there is no volume called small");
    assert_eq!(home.objects().keys().filter(|k| k.ends_with("volume.json")).count(), 2);
    home.run(&["import", "-", "nothing"]).fails(USAGE, "is empty");
    home.run(&["export", "disk", "-", "--json"]).refuses(USAGE, "--json would be printed into");
    home.run(&["export", "disk", "-", "--format", "qcow2"]).refuses(USAGE, "cannot be written to");
}

#[test]
fn what_is_there_is_not_overwritten() {
    let home = Home::new();
    let image = home.path("a.img");
    fs::write(&image, noise(100_000)).unwrap();
    home.run(&["import", text(&image), "a"]).ok();
    home.run(&["import", text(&image), "a"]).refuses(EXISTS, "there is a volume called a already");
    home.run(&["import", text(&image), "a", "--resume"]).refuses(EXISTS, "called a already");
    let out = home.path("out.img");
    fs::write(&out, "mine").unwrap();
    home.run(&["export", "a", text(&out)]).refuses(EXISTS, "is there already");
    assert_eq!(fs::read(&out).unwrap(), b"mine");
    home.run(&["export", "a", text(&out), "--force"]).ok();
    assert!(same(&image, &out));
    let gone = home.path("no/such/dir.img");
    for (args, code, words) in [
        (&["import", "/no/such.img", "b"][..], NOT_FOUND, "there is no file /no/such.img"),
        (&["import", "/", "b"], USAGE, "is a directory"),
        (&["import", text(&image), "b@c"], USAGE, "a volume is wanted"),
        (&["import", text(&image), "b", "--size", "1K"], USAGE, "more than --size"),
        (&["import", text(&image), "b", "--block-size", "1"], USAGE, "is no block size"),
        (&["import", text(&image), "b", "--format", "qcow2"], USAGE, "has no header"),
        (&["export", "b", "x"], NOT_FOUND, "there is no volume called b"),
        (&["export", "a@s", "x"], NOT_FOUND, "there is no snapshot s"),
        (&["export", "a", "/"], USAGE, "is a directory"),
        (&["export", "a", text(&gone)], 1, "cannot write"),
        (&["export", "a", "x", "--compress"], USAGE, "a raw image cannot be compressed"),
    ] {
        home.run(args).refuses(code, words);
    }
    let gz = home.path("a.img.gz");
    fs::write(&gz, [0x1f, 0x8b, 8, 0, 0]).unwrap();
    home.run(&["import", text(&gz), "b"]).refuses(USAGE, "zcat FILE | objblk import - NAME");
    assert_eq!(home.run(&["list", "--json"]).json().as_array().unwrap().len(), 1);
    assert!(!Path::new("x").exists() && !Path::new("x.partial").exists());
}

/// Imports a file, killing the process in the middle. Tries again where that was too late.
fn killed_import(home: &Home, image: &Path) {
    for _ in 0..5 {
        let mut child = begin(home, &["import", text(image), "disk"]);
        let chunks = || {
            home.objects().keys().filter(|key| key.display().to_string().contains("/log/")).count()
        };
        until("some chunks are stored", || chunks() > 28 || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            return;
        }
        home.run(&["delete", "disk", "--yes"]).ok();
    }
    panic!("it was never killed in time");
}

#[test]
fn import_goes_on_after_kill_9() {
    let home = Home::new();
    let image = home.path("big.img");
    fs::write(&image, noise(192 * MIB as usize)).unwrap();
    killed_import(&home, &image);
    home.run(&["info", "disk"]).refuses(NOT_FOUND, "there is no volume called disk yet");
    let list = home.run(&["list", "--json"]).json();
    assert_eq!((&list[0]["name"], &list[0]["state"]), (&json!("disk"), &json!("importing")));
    home.run(&["import", text(&image), "disk"])
        .refuses(EXISTS, "go on with it with `objblk import --resume`");
    home.run(&["create", "disk", "--size", "1G"]).refuses(EXISTS, "an import of disk from");
    home.run(&["serve", "nbd", "disk"]).fails(NOT_FOUND, "there is no volume called disk yet");
    let resume = ["import", text(&image), "disk", "--resume", "--json"];
    home.run(&[&resume[..], &["--chunk-size", "1M"]].concat()).fails(USAGE, "with the same flags");
    let done = home.run(&resume).json();
    let from = done["resumed_from"].as_u64().unwrap();
    assert!(from > 0 && from < 192 * MIB, "{done}");
    assert_eq!(done["written_bytes"], 192 * MIB - from);
    home.run(&["export", "disk", text(&home.path("back"))]).ok();
    assert!(fs::read(&image).unwrap() == fs::read(home.path("back")).unwrap());
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
}

/// Kills an export once it has noted that some of it is done. Tries again where that was too late.
fn killed_export(home: &Home, args: &[&str], note: &Path) {
    for _ in 0..5 {
        let mut child = begin(home, args);
        until("a note is there", || note.exists() || child.try_wait().unwrap().is_some());
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            return;
        }
        fs::remove_file(args[2]).unwrap();
    }
    panic!("it was never killed in time");
}

#[test]
fn export_goes_on_after_kill_9() {
    let home = Home::new();
    let image = home.path("big.img");
    let file = File::create(&image).unwrap();
    file.write_all_at(&noise(160 * MIB as usize), 0).unwrap();
    // A hole, and data behind it.
    file.write_all_at(&noise(32 * MIB as usize), 240 * MIB).unwrap();
    home.run(&["import", text(&image), "disk"]).ok();
    home.run(&["snapshot", "create", "disk@one"]).ok();
    let (out, note) = (home.path("out.img"), home.path("out.img.partial.note"));
    let export = ["export", "disk@one", text(&out)];
    killed_export(&home, &export, &note);
    assert!(!out.exists());
    // What is in the file is that and nothing else: another state of the volume does not go there.
    let other = ["export", "disk", text(&out), "--resume"];
    home.run(&other).refuses(USAGE, "is not what the export was begun with");
    home.run(&["snapshot", "create", "disk@two"]).ok();
    home.run(&["export", "disk@two", text(&out), "--resume"]).refuses(USAGE, "begin anew without");
    let read = |args: &[&str]| {
        let said = home.run(&[args, &["--json"]].concat()).json();
        assert!(same(&image, &out) && !note.exists() && !home.path("out.img.partial").exists());
        let blocks = fs::metadata(&out).unwrap().blocks() * 512;
        assert!(blocks < 195 * MIB, "{blocks} bytes are allocated");
        said["data_bytes"].as_u64().unwrap()
    };
    // What was written is not read once more.
    assert!(read(&[&export[..], &["--resume"]].concat()) <= 128 * MIB);
    fs::remove_file(&out).unwrap();
    // With nothing to resume, it begins; and without the flag, anew.
    assert_eq!(read(&[&export[..], &["--resume"]].concat()), 192 * MIB);
    fs::remove_file(&out).unwrap();
    killed_export(&home, &export, &note);
    assert_eq!(read(&export), 192 * MIB);
    for to in ["-", "out.qcow2"] {
        let to = if to == "-" { to.into() } else { text(&home.path(to)).to_owned() };
        home.run(&["export", "disk@one", &to, "--resume"]).refuses(USAGE, "cannot be resumed");
    }
}

#[test]
fn an_import_that_is_given_up_leaves_nothing() {
    let home = Home::new();
    let image = home.path("big.img");
    fs::write(&image, noise(192 * MIB as usize)).unwrap();
    killed_import(&home, &image);
    // Another image under its name.
    File::options().append(true).open(&image).unwrap().set_len(191 * MIB).unwrap();
    home.run(&["import", text(&image), "disk", "--resume"])
        .refuses(USAGE, "is not what the import of disk was begun with");
    home.run(&["delete", "disk"]).refuses(USAGE, "needs a confirmation");
    home.run(&["delete", "disk", "--yes"]).ok();
    assert!(is_empty(&home), "{:?}", home.objects());
    // With nothing to resume, it begins.
    home.run(&["import", text(&image), "disk", "--resume"]).ok();
    home.run(&["delete", "disk", "--now", "--yes"]).ok();
    assert!(is_empty(&home), "{:?}", home.objects());
}

fn qcow2(home: &Home, name: &str) -> PathBuf {
    let path = home.path(name);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", text(&path), "300M"]);
    tool("qemu-io", &["-c", "write -P 0x5a 1M 5M", "-c", "write -P 0xa5 280M 64k", text(&path)]);
    path
}

#[test]
fn qcow2_both_ways() {
    let home = Home::new();
    let image = qcow2(&home, "a,b c.qcow2");
    home.run(&["import", text(&image), "disk"]).ok();
    assert_eq!(home.run(&["info", "disk", "--json"]).json()["size"], 300 * MIB);
    assert!(stored(&home) < 7 * MIB, "{}", stored(&home));
    for args in [&["out.qcow2"][..], &["small.qcow2", "--compress"], &["x", "--format", "qcow2"]] {
        let out = home.path(args[0]);
        home.run(&[&["export", "disk", text(&out)], &args[1..]].concat()).ok();
        tool(
            "qemu-img",
            &["compare", "-q", "-f", "qcow2", "-F", "qcow2", text(&image), text(&out)],
        );
        assert!(fs::metadata(&out).unwrap().len() < 7 * MIB);
        assert!(!home.path(&format!("{}.partial", args[0])).exists());
    }
    // Through a pipe it is kept in a file meanwhile.
    let mut command = home.command(&["import", "-", "piped"]);
    let out = command.stdin(File::open(&image).unwrap()).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    home.run(&["export", "piped", text(&home.path("piped.img"))]).ok();
    tool("qemu-img", &["compare", "-q", "-F", "raw", text(&image), text(&home.path("piped.img"))]);
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
}

#[test]
fn qcow2_that_cannot_be_imported() {
    let home = Home::new();
    home.run(&["pool", "init"]).ok();
    let base = qcow2(&home, "base.qcow2");
    let child = home.path("child.qcow2");
    tool(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&base), text(&child)],
    );
    home.run(&["import", text(&child), "disk"]).refuses(USAGE, "has a backing file");
    let secret = home.path("secret.qcow2");
    tool(
        "qemu-img",
        &[
            "create",
            "-q",
            "--object",
            "secret,id=s,data=x",
            "-f",
            "qcow2",
            "-o",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            text(&secret),
            "10M",
        ],
    );
    home.run(&["import", text(&secret), "disk"]).refuses(USAGE, "is encrypted");
    // What is missing of it would be zeros.
    let (torn, small) = (home.path("torn.qcow2"), home.path("small.qcow2"));
    tool("qemu-img", &["convert", "-O", "qcow2", "-c", text(&base), text(&small)]);
    let (base, small) = (fs::read(&base).unwrap(), fs::read(&small).unwrap());
    for bytes in [&base[..100_000], &base[..base.len() / 2], &small[..small.len() / 2]] {
        fs::write(&torn, bytes).unwrap();
        home.run(&["import", text(&torn), "disk"]).refuses(USAGE, "is damaged or incomplete");
    }
    assert!(is_empty(&home), "{:?}", home.objects());
    let mut without = home.command(&["import", text(&torn), "disk"]);
    let out = without.env("PATH", "/nonexistent").output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        said.contains("cannot run qemu-img") && said.contains("apt-get install qemu-utils"),
        "{said}"
    );
}

#[test]
fn from_the_web_in_parts() {
    let home = Home::new();
    let body = noise(128 * MIB as usize + 1000);
    let web = Web::serve(body.clone());
    let far = 112 * MIB;
    web.stop_at(far);
    let child = begin(&home, &["import", &web.url, "disk"]);
    web.wait_for(far);
    // What was fetched before is written, and its chunks stored, but for the last.
    until("chunks are stored", || stored(&home) > 106 * MIB);
    tool("kill", &["-9", &child.id().to_string()]);
    assert_eq!(ended(child).0, None);
    web.asked();
    web.go_on();
    web.replace("two");
    home.run(&["import", &web.url, "disk", "--resume"]).refuses(USAGE, "is not what the import of");
    web.replace("one");
    web.asked();
    web.fail(2);
    let done = home.run(&["import", &web.url, "disk", "--resume", "--json"]).json();
    let (from, asked) = (done["resumed_from"].as_u64().unwrap(), web.asked());
    assert!(from >= 16 * MIB && asked[0] == 0 && asked[1] == from, "{done} {asked:?}");
    home.run(&["export", "disk", text(&home.path("back"))]).ok();
    assert!(fs::read(home.path("back")).unwrap()[..body.len()] == body);

    // Replaced while it is read.
    web.stop_at(64 * MIB);
    let child = begin(&home, &["import", &web.url, "other"]);
    web.wait_for(64 * MIB);
    web.replace("three");
    web.go_on();
    let (code, said) = ended(child);
    assert!(
        code == Some(CORRUPT) && said.contains("was changed while it was read"),
        "{code:?} {said}"
    );
    assert!(!said.contains("secret"), "{said}");
    let list = home.run(&["list", "--json"]).json();
    assert_eq!(list[1]["state"], "importing");
}

#[test]
fn from_the_web_as_a_whole() {
    let home = Home::new();
    let image = qcow2(&home, "a.qcow2");
    let web = Web::serve(fs::read(&image).unwrap());
    home.run(&["import", &web.url, "parts"]).ok();
    web.serve_whole();
    home.run(&["import", &web.url, "whole"]).ok();
    for name in ["parts", "whole"] {
        home.run(&["export", name, text(&home.path(name))]).ok();
        tool("qemu-img", &["compare", "-q", "-F", "raw", text(&image), text(&home.path(name))]);
    }
    let raw = noise(9 * MIB as usize);
    let web = Web::serve(raw.clone());
    web.serve_whole();
    home.run(&["import", &web.url, "raw"]).ok();
    home.run(&["export", "raw", text(&home.path("raw"))]).ok();
    assert!(fs::read(home.path("raw")).unwrap() == raw);
    let wrong = web.url.replace("image.raw", "none.raw");
    home.run(&["import", &wrong, "x"]).refuses(NOT_FOUND, "the server answers 404 for http://");
    home.run(&["import", "http://127.0.0.1:1/x", "x"])
        .fails(1, "cannot fetch http://127.0.0.1:1/x");
}

/// Signals leave nothing under a final name, and say how to go on.
#[test]
fn signals_stop_in_order() {
    let home = Home::new();
    let body = noise(100 * MIB as usize);
    let web = Web::serve(body.clone());
    web.stop_at(64 * MIB);
    let child = begin(&home, &["import", &web.url, "disk"]);
    web.wait_for(64 * MIB);
    tool("kill", &["-TERM", &child.id().to_string()]);
    let (code, said) = ended(child);
    assert!(
        code == Some(1) && said.contains("ended by SIGTERM; go on with it with --resume"),
        "{said}"
    );
    web.go_on();
    home.run(&["import", &web.url, "disk", "--resume"]).ok();

    // Nobody reads the other end of the pipe beyond its first bytes.
    let (fifo, out) = (home.path("fifo"), home.path("out.img"));
    tool("mkfifo", &[text(&fifo)]);
    let child = begin(&home, &["export", "disk", text(&fifo)]);
    let mut reader = File::open(&fifo).unwrap();
    reader.read_exact(&mut [0]).unwrap();
    tool("kill", &["-INT", &child.id().to_string()]);
    let (code, said) = ended(child);
    drop(reader);
    assert!(code == Some(1) && said.contains("interrupted"), "{code:?} {said}");
    home.run(&["export", "disk", text(&out)]).ok();
    assert!(fs::read(&out).unwrap() == body);
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
}

#[test]
fn a_damaged_volume_is_not_exported() {
    let home = Home::new();
    let image = home.path("a.img");
    fs::write(&image, noise(16 * MIB as usize)).unwrap();
    home.run(&["import", text(&image), "a"]).ok();
    let is_chunk =
        |(key, size): &(PathBuf, u64)| key.display().to_string().contains("/log/") && *size > MIB;
    let chunks: Vec<(PathBuf, u64)> = home.objects().into_iter().filter(is_chunk).collect();
    let chunk = File::options().write(true).open(&chunks[1].0).unwrap();
    chunk.write_all_at(&[0x77; 64], chunks[1].1 / 2).unwrap();
    for name in ["out.img", "out.qcow2"] {
        let out = home.path(name);
        home.run(&["export", "a", text(&out)]).fails(CORRUPT, "cannot read sector");
        let partial = home.path(&format!("{name}.partial"));
        assert!(!out.exists() && !partial.exists(), "{name}");
    }
    let out = home.command(&["export", "a", "-"]).output().unwrap();
    assert_eq!(out.status.code(), Some(CORRUPT));
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
}

/// What is exported is what the volume was at a moment, whoever writes to it meanwhile.
#[test]
fn an_attached_volume_is_exported_as_it_is() {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 1 0 32M", "flush"]));
    let uri = server.uri.clone();
    let writer = std::thread::spawn(move || {
        (2..12).all(|n| qemu_io(&uri, &[&format!("write -P {n} 0 32M")]))
    });
    for n in 0..3 {
        let out = home.path(&format!("{n}.img"));
        home.run(&["export", "data", text(&out)]).ok();
        let bytes = fs::read(&out).unwrap();
        assert!(bytes.len() == 64 << 20 && bytes[32 << 20..].iter().all(|b| *b == 0));
        // Each write goes from the beginning to the end: two of them are seen at most.
        let mut values: Vec<u8> = bytes[..32 << 20].to_vec();
        values.dedup();
        assert!(
            !values.is_empty() && values.iter().all(|b| (1..12).contains(b)),
            "{}",
            values.len()
        );
    }
    home.run(&["export", "data", text(&home.path("out.qcow2"))]).ok();
    assert!(writer.join().unwrap());
    assert!(
        home.run(&["snapshot", "list", "data", "--json"]).json().as_array().unwrap().is_empty()
    );
    // From another host too, whose request the owner hears.
    let far = home.other_host();
    let exported = far.run(&["export", "data", text(&home.path("far.img"))]);
    assert_eq!(
        exported.err.matches(": it was asked, and answered after ").count(),
        2,
        "{exported:?}"
    );
    exported.ok();
    assert_eq!(fs::metadata(home.path("far.img")).unwrap().len(), 64 << 20);
    assert_eq!(home.run(&["snapshot", "list", "data", "--json"]).json(), json!([]));
    far.run(&["export", "data", text(&home.path("no.img")), "--wait", "0"])
        .refuses(BUSY, "the owner of a volume makes");

    // An export that is killed leaves its snapshot to the next one.
    let fifo = home.path("fifo");
    tool("mkfifo", &[text(&fifo)]);
    let child = begin(&home, &["export", "data", text(&fifo)]);
    let reader = File::open(&fifo).unwrap();
    until("there is a snapshot", || {
        !home.run(&["snapshot", "list", "data", "--json"]).json().as_array().unwrap().is_empty()
    });
    tool("kill", &["-9", &child.id().to_string()]);
    ended(child);
    drop(reader);
    home.run(&["export", "data", text(&home.path("last.img"))]).ok();
    assert!(
        home.run(&["snapshot", "list", "data", "--json"]).json().as_array().unwrap().is_empty()
    );

    // Killed, and so not closed: whoever exports puts that in order.
    assert!(qemu_io(&server.uri, &["write -P 7 0 1M", "flush"]));
    server.kill();
    let out = home.path("after.img");
    home.run(&["export", "data", text(&out)]).ok();
    assert!(fs::read(&out).unwrap()[..1 << 20].iter().all(|b| *b == 7));
    let server = home.serve(&["data", "--read-only"]);
    assert!(qemu_io_reading(&server.uri, &["read -P 7 0 1M"]));
    home.run(&["export", "data", text(&out), "--force"]).ok();
}

#[test]
fn a_block_device_is_a_file_that_is_overwritten() {
    let home = Home::new();
    let image = sparse(&home);
    home.run(&["import", text(&image), "disk", "--size", "100M"]).ok();
    let backing = home.path("backing");
    fs::write(&backing, vec![0xee; 100 * MIB as usize]).unwrap();
    let found = attempt("losetup", &["--find", "--show", text(&backing)]);
    assert!(found.status.success(), "a loop device is needed: {found:?}");
    let device = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    let refused = home.run(&["export", "disk", &device]);
    let done = home.run(&["export", "disk", &device, "--force"]);
    let back = home.run(&["import", &device, "copy"]);
    tool("losetup", &["--detach", &device]);
    refused.refuses(EXISTS, "is a block device; overwrite it with --force");
    done.ok();
    back.ok();
    assert!(same(&image, &backing));
    home.run(&["export", "copy", text(&home.path("copy"))]).ok();
    assert!(same(&image, &home.path("copy")));
}
