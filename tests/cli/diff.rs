//! `objblk diff`, `export-diff`, `import-diff` and `copy`.

use crate::program::{
    BUSY, CORRUPT, Done, EXISTS, Home, NOT_FOUND, USAGE, noise, qemu_io, tool, until,
};
use crate::s3_pool;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Stdio;

const MIB: u64 = 1 << 20;

/// Serves a volume, does this with it, and detaches it.
fn with(home: &Home, name: &str, commands: &[&str]) {
    let server = home.serve(&[name]);
    assert!(qemu_io(&server.uri, commands), "{name}: {commands:?}");
    home.run(&["detach", name]).ok();
    assert_eq!(server.ended().0, 0);
}

/// The bytes of a volume or a snapshot.
fn image(home: &Home, name: &str) -> Vec<u8> {
    let path = home.path("image");
    let _ = fs::remove_file(&path);
    let server = home.serve(&["--read-only", name]);
    tool("nbdcopy", &[&server.uri, path.to_str().unwrap()]);
    home.run(&["detach", name]).ok();
    server.ended();
    fs::read(path).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A home with a volume and its snapshots `s0` to `s3`, which differ by little.
fn history() -> Home {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    with(&home, "data", &["write -P 1 0 8M", "write -P 2 40M 1M", "flush"]);
    home.run(&["snapshot", "create", "data@s0"]).ok();
    with(&home, "data", &["write -P 3 1M 64k", "write -P 1 2M 1M", "flush"]);
    home.run(&["snapshot", "create", "data@s1"]).ok();
    home.run(&["resize", "data", "--size", "96M"]).ok();
    with(&home, "data", &["write -P 4 90M 4k", "discard 4M 1M", "flush"]);
    home.run(&["gc", "data", "--full"]).ok();
    home.run(&["snapshot", "create", "data@s2"]).ok();
    home.run(&["resize", "data", "--size", "48M", "--shrink"]).ok();
    with(&home, "data", &["write -z 0 4k", "write -P 5 47M 1M", "flush"]);
    home.run(&["snapshot", "create", "data@s3"]).ok();
    home
}

/// Runs both, the first one's output piped into the second.
fn pipe(from: (&Home, &[&str]), into: (&Home, &[&str])) -> (i32, Done) {
    let mut source = from.0.command(from.1);
    let mut source = source.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut target = into.0.command(into.1);
    let output = target.stdin(source.stdout.take().unwrap()).output().unwrap();
    let code = source.wait_with_output().unwrap().status.code().unwrap();
    let said = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let done = Done {
        code: output.status.code().unwrap(),
        out: said(output.stdout),
        err: said(output.stderr),
    };
    (code, done)
}

#[test]
fn rows_tell_what_changed() {
    let home = history();
    let rows = |args: &[&str]| -> Value {
        let all = [&["diff"], args, &["--json"]].concat();
        home.run(&all).json()
    };
    let run = |offset: u64, length: u64, kind: &str| json!({ "offset": offset, "length": length, "type": kind });
    let all = rows(&["data@s0"]);
    assert_eq!(all["runs"], json!([run(0, 8 * MIB, "data"), run(40 * MIB, MIB, "data")]));
    assert_eq!((&all["data_bytes"], &all["from"]), (&json!(9 * MIB), &Value::Null));
    let by_map = rows(&["data@s0", "data@s1"]);
    let exact = rows(&["data@s0", "data@s1", "--exact"]);
    assert_eq!(exact["runs"], json!([run(MIB, 64 << 10, "data")]));
    let written = json!([run(MIB, 64 << 10, "data"), run(2 * MIB, MIB, "data")]);
    assert_eq!(by_map["runs"], written, "what was written as it was is told by the map");
    let exact = rows(&["data@s1", "data@s2", "--exact"]);
    let changed = [run(4 * MIB, MIB, "zero"), run(90 * MIB, 4096, "data")];
    assert_eq!(exact["runs"], json!(changed), "what gc has moved is not told");
    assert_eq!((&exact["from_size"], &exact["to_size"]), (&json!(64 * MIB), &json!(96 * MIB)));
    // As it is now.
    let now = rows(&["data@s2", "data", "--exact"]);
    assert_eq!(now["runs"], rows(&["data@s2", "data@s3", "--exact"])["runs"]);
    let shown = home.run(&["diff", "data@s2", "data@s3"]).ok();
    let lines: Vec<Vec<&str>> =
        shown.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["OFFSET", "LENGTH", "TYPE"]);
    assert_eq!(lines[1], ["0", "4096", "zero"]);
    assert_eq!(lines[2], ["49283072", "1048576", "data"]);
    assert!(shown.contains("1 MiB of data and 4 KiB of zeros in 2 runs, size 96 MiB -> 48 MiB"));
    assert!(home.run(&["diff", "data@s3", "data"]).ok().contains("0 B of data and 0 B of zeros"));
    // A clone and its origin have one ancestry, two volumes have not.
    home.run(&["clone", "data@s0", "vm"]).ok();
    with(&home, "vm", &["write -P 9 3M 4k", "flush"]);
    assert_eq!(rows(&["data@s0", "vm"])["runs"], json!([run(3 * MIB, 4096, "data")]));
    home.run(&["create", "other", "--size", "1M"]).ok();
    home.run(&["diff", "other", "data@s0"]).fails(USAGE, "nothing in common");
    let server = home.serve(&["data"]);
    home.run(&["diff", "data@s0", "data"]).refuses(BUSY, "only snapshots of a volume in use");
    home.run(&["diff", "data@s0", "data@s1"]).ok();
    home.run(&["detach", "data"]).ok();
    server.ended();
    for (args, code, words) in [
        (&["diff", "data@none"][..], NOT_FOUND, "there is no snapshot none"),
        (&["diff", "data@s0", "data@s0"], USAGE, "compared with itself"),
        (&["export-diff", "data", "x"], USAGE, "names no snapshot"),
        (&["export-diff", "data@s0", "--from", "s1", "x"], USAGE, "is not older than data@s0"),
        (&["export-diff", "data@s1", "--from", "vm@a", "x"], USAGE, "of another volume"),
        (&["export-diff", "data@s1", "-", "--json"], USAGE, "--json has no place"),
        (&["import-diff", "none", "x"], NOT_FOUND, "cannot read none"),
    ] {
        home.run(args).refuses(code, words);
    }
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
}

/// From a directory to the S3 server, through pipes and a file, and back by `copy`.
#[test]
fn increments_go_to_another_pool_on_s3() {
    let home = history();
    let bucket = format!("objblk-test-{}", uuid::Uuid::new_v4());
    let far = s3_pool::home(&bucket);
    far.run(&["pool", "init", "--create-bucket"]).ok();
    let file = home.path("s0.diff");
    let full = home.run(&["export-diff", "data@s0", text(&file), "--json"]).json();
    assert_eq!(full["data_bytes"], 9 * MIB);
    assert_eq!(full["stream_bytes"], fs::metadata(&file).unwrap().len());
    home.run(&["export-diff", "data@s0", text(&file)]).refuses(EXISTS, "replace it with --force");
    home.run(&["export-diff", "data@s0", text(&file), "--force"]).ok();
    far.run(&["import-diff", text(&file), "copy"]).ok();
    assert!(image(&far, "copy@s0") == image(&home, "data@s0"));
    for (from, to, data) in [("s0", "s1", 64 << 10), ("s1", "s2", 4 << 10), ("s2", "s3", MIB)] {
        let name = format!("data@{to}");
        let (code, done) = pipe(
            (&home, &["export-diff", "--from", from, &name, "-"]),
            (&far, &["import-diff", "-", "copy", "--json"]),
        );
        let done = done.json();
        assert_eq!((code, &done["data_bytes"], &done["from"]), (0, &json!(data), &json!(from)));
        let size = home.path("size");
        home.run(&["export-diff", "--from", from, &name, text(&size), "--force"]).ok();
        let stream = fs::metadata(&size).unwrap().len();
        eprintln!("{from} to {to}: {data} bytes changed, {stream} in the stream");
        assert!(stream < data + 1024, "{from} to {to}");
        assert!(image(&far, "copy") == image(&home, &name), "{name}");
    }
    for snapshot in ["s0", "s1", "s2", "s3"] {
        let (copy, data) = (format!("copy@{snapshot}"), format!("data@{snapshot}"));
        assert!(image(&far, &copy) == image(&home, &data), "{snapshot}");
    }
    let again = ["export-diff", "--from", "s2", "data@s3", "-"];
    let (code, done) = pipe((&home, &again), (&far, &["import-diff", "-", "copy"]));
    assert!(code == 0 && done.ok().contains("copy@s3: was there already"));

    // What was written there comes back, into a directory that is not there yet.
    with(&far, "copy", &["write -P 7 20M 8k", "flush"]);
    let back = format!("file://{}", home.path("back").display());
    let to = ["--to", &back];
    let done = far.run(&[&["copy", "copy@s3", "mine"][..], &to].concat());
    assert!(done.err.contains("made a new pool in the directory"), "{done:?}");
    done.ok();
    let made = far.run(&[&["copy", "copy", "mine", "--json"][..], &to].concat()).json();
    assert_eq!((&made["data_bytes"], &made["from"]), (&json!(8192), &json!("s3")));
    let near = |args: &[&str]| far.run(&[&["--store", &back], args].concat());
    let listed = near(&["snapshot", "list", "mine", "--json"]).json();
    assert!(listed[1]["snapshot"].as_str().unwrap().starts_with("copy-"), "{listed}");
    let name = format!("copy@{}", listed[1]["snapshot"].as_str().unwrap());
    let again = far.run(&[&["copy", &name, "mine"][..], &to].concat());
    assert!(again.ok().contains("was there already"));
    let mut there = Home::new();
    there.set("OBJBLK_STORE", &back);
    assert!(image(&there, "mine") == image(&far, "copy"));
    far.run(&["delete", "copy", "--yes", "--force"]).ok();
}

#[test]
fn what_does_not_fit_is_refused() {
    let home = history();
    let file = |from: &str, to: &str| {
        let path = home.path(&format!("{from}-{to}"));
        let (name, path) = (format!("data@{to}"), text(&path).to_owned());
        let from: &[&str] = if from == "0" { &[] } else { &["--from", from] };
        home.run(&[&["export-diff", &name, &path], from].concat()).ok();
        path
    };
    let (full, next, last) = (file("0", "s0"), file("s0", "s1"), file("s1", "s2"));
    let import = |file: &str, name: &str| home.run(&["import-diff", file, name]);
    import(&next, "copy").refuses(NOT_FOUND, "there is no volume called copy");
    import(&full, "copy").ok();
    import(&last, "copy").refuses(1, "leads from the snapshot s1, and the volume has none");
    assert!(import(&full, "data").ok().contains("data@s0: was there already"));
    home.run(&["create", "copy2", "--size", "4M"]).ok();
    with(&home, "copy2", &["write -P 1 0 4k", "flush"]);
    import(&full, "copy2").refuses(EXISTS, "is not empty");
    home.run(&["create", "blocks", "--size", "4M", "--block-size", "4096"]).ok();
    import(&full, "blocks").refuses(USAGE, "has blocks of 4096 bytes, the stream of 512");
    home.run(&["create", "other", "--size", "4M"]).ok();
    home.run(&["snapshot", "create", "other@s0"]).ok();
    import(&next, "other").refuses(1, "is not the one that the stream leads from");
    let server = home.serve(&["copy"]);
    import(&next, "copy").refuses(BUSY, "only into a volume that is detached");
    home.other_host().run(&["import-diff", &next, "copy"]).refuses(BUSY, "that is detached");
    assert!(qemu_io(&server.uri, &["write -P 8 63M 512", "flush"]));
    home.run(&["detach", "copy"]).ok();
    server.ended();
    let words = "was written to since its snapshot s0; roll it back to s0";
    import(&next, "copy").refuses(1, words);
    home.run(&["snapshot", "rollback", "copy@s0", "--yes"]).ok();
    import(&next, "copy").ok();
    import(&last, "copy").ok();
    assert!(image(&home, "copy") == image(&home, "data@s2"));
    home.run(&["copy", "data@s2", "--to", &format!("file://{}", home.store().display())])
        .refuses(USAGE, "is the volume itself");
    home.run(&["copy", "data@s2", "other", "--to", &format!("file://{}", home.store().display())])
        .refuses(1, "have no snapshot in common");
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
}

/// A file that is damaged changes nothing; a pipe that is cut makes no snapshot, and can be repeated.
#[test]
fn a_damaged_stream_is_refused() {
    let home = Home::new();
    home.run(&["create", "data", "--size", "8M"]).ok();
    let noise = noise(5 << 20);
    let raw = home.path("raw");
    fs::write(&raw, &noise).unwrap();
    let server = home.serve(&["data"]);
    tool("nbdcopy", &["--flush", text(&raw), &server.uri]);
    home.run(&["detach", "data"]).ok();
    server.ended();
    home.run(&["snapshot", "create", "data@a"]).ok();
    let (whole, bad) = (home.path("whole"), home.path("bad"));
    home.run(&["export-diff", "data@a", text(&whole)]).ok();
    let bytes = fs::read(&whole).unwrap();
    // The header, the first entry, data, an entry in the middle, the end.
    let entry = bytes.len() - 28;
    for at in [0, 20, 110, 120, 4096, MIB as usize + 160, entry - 1, entry, bytes.len() - 1] {
        let mut flipped = bytes.clone();
        flipped[at] ^= 4;
        fs::write(&bad, &flipped).unwrap();
        let code = if at == 0 { USAGE } else { CORRUPT };
        home.run(&["import-diff", text(&bad), "copy"]).refuses(code, "stream");
    }
    fs::write(&bad, &bytes[..bytes.len() - 28]).unwrap();
    home.run(&["import-diff", text(&bad), "copy"]).refuses(CORRUPT, "export it again");
    home.run(&["info", "copy"]).refuses(NOT_FOUND, "there is no volume called copy");
    let from_pipe = |file: &Path| {
        let mut command = home.command(&["import-diff", "-", "copy"]);
        let mut cat = std::process::Command::new("cat");
        let mut cat = cat.arg(file).stdout(Stdio::piped()).spawn().unwrap();
        let output = command.stdin(cat.stdout.take().unwrap()).output().unwrap();
        cat.wait().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = from_pipe(&bad);
    assert!(
        code == CORRUPT && said.contains("import the whole stream again, or delete it"),
        "{said}"
    );
    let list = home.run(&["snapshot", "list", "copy", "--json"]).json();
    assert_eq!(list, json!([]), "no snapshot of half a stream");
    let (code, said) = from_pipe(&whole);
    assert_eq!(code, 0, "{said}");
    assert!(image(&home, "copy@a")[..noise.len()] == noise);
}

/// How many notes there are of what was received, or is being received.
fn notes(home: &Home) -> usize {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let volumes = entries(&home.store().join("volumes"));
    let notes = volumes.flat_map(|volume| entries(&volume.path().join("received")));
    notes.filter(|note| note.file_name().len() == 36).count()
}

/// A process that is killed in the middle leaves the rest to the next one.
#[test]
fn a_killed_import_is_done_again() {
    let home = history();
    let far = Home::new();
    let (full, next) = (home.path("full"), home.path("next"));
    home.run(&["export-diff", "data@s0", text(&full)]).ok();
    home.run(&["export-diff", "data@s3", "--from", "s0", text(&next)]).ok();
    for (stream, snapshot) in [(&full, "s0"), (&next, "s3")] {
        // The last bytes never come.
        let mut command = far.command(&["import-diff", "-", "copy"]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let bytes = fs::read(stream).unwrap();
        std::io::Write::write_all(&mut input, &bytes[..bytes.len() - 8]).unwrap();
        until("it has begun", || notes(&far) == if snapshot == "s0" { 1 } else { 2 });
        child.kill().unwrap();
        child.wait().unwrap();
        drop(input);
        let done = far.run(&["import-diff", text(stream), "copy", "--json"]).json();
        assert_eq!((&done["resumed"], &done["was_there"]), (&json!(true), &json!(false)), "{done}");
        let (copy, data) = (format!("copy@{snapshot}"), format!("data@{snapshot}"));
        assert!(image(&far, &copy) == image(&home, &data));
    }
    // A copy goes on with what was begun, and then does what it was asked for.
    with(&home, "data", &["write -P 6 10M 2M", "flush"]);
    home.run(&["snapshot", "create", "data@s4"]).ok();
    let part = home.path("part");
    home.run(&["export-diff", "data@s4", "--from", "s3", text(&part)]).ok();
    let bytes = fs::read(&part).unwrap();
    let mut command = far.command(&["import-diff", "-", "copy"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, &bytes[..bytes.len() - 30]).unwrap();
    drop(input);
    assert_eq!(child.wait().unwrap().code(), Some(CORRUPT));
    with(&home, "data", &["write -P 7 12M 4k", "flush"]);
    let to = format!("file://{}", far.store().display());
    let done = home.run(&["copy", "data", "copy", "--to", &to]);
    assert!(done.err.contains("data@s4 was not copied to its end before"), "{done:?}");
    assert!(done.ok().contains("4 KiB written since s4"));
    assert!(image(&far, "copy") == image(&home, "data"));
}
