//! Volumes that are being served: status, detach, takeover, and what killed servers leave.

use crate::program::{BUSY, Home, NOT_FOUND, Server, USAGE, attempt, noise, qemu_io, tool, until};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

fn home_with(volumes: &[&str]) -> Home {
    let home = Home::new();
    for name in volumes {
        home.run(&["create", name, "--size", "64M"]).ok();
    }
    home
}

#[test]
fn what_is_written_is_there_when_served_again() {
    let home = home_with(&["data"]);
    let (image, back) = (home.path("image"), home.path("back"));
    fs::write(&image, noise(64 << 20)).unwrap();
    let server = home.serve(&["data"]);
    assert!(tool("nbdinfo", &["--size", &server.uri]).trim() == (64 << 20).to_string());
    tool("nbdcopy", &[image.to_str().unwrap(), &server.uri]);
    let status = home.run(&["status", "data", "--json"]).json();
    assert_eq!(status["device"], server.uri.as_str());
    assert_eq!((&status["frontend"], &status["state"]), (&json!("nbd"), &json!("attached")));
    assert_eq!((&status["pid"], &status["epoch"]), (&json!(server.pid()), &json!(1)));
    assert_eq!(status["requests"]["bytes_written"], 64 << 20);
    assert!(status["store_requests"]["operations"].is_object());
    let info = home.run(&["info", "data", "--json"]).json();
    assert_eq!((&info["state"], &info["owner"]["pid"]), (&json!("in-use"), &json!(server.pid())));
    assert_eq!(info["device"], server.uri.as_str());
    for verb in [&["serve", "nbd", "data"][..], &["delete", "data", "--yes"], &["attach", "data"]] {
        let refused = home.run(verb);
        // Without a ublk driver that is what attach stumbles over first.
        if verb[0] != "attach" || refused.code == BUSY {
            refused.refuses(BUSY, &format!("by process {}", server.pid()));
        }
    }
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
    home.run(&["detach", "data"]).refuses(NOT_FOUND, "not attached");

    let info = home.run(&["info", "data", "--json"]).json();
    assert_eq!((&info["state"], &info["used"]), (&json!("free"), &json!(64 << 20)));
    let server = home.serve(&["data", "--read-only"]);
    tool("nbdcopy", &[&server.uri, back.to_str().unwrap()]);
    assert!(fs::read(&image).unwrap() == fs::read(&back).unwrap(), "the copy differs");
    tool("nbdinfo", &["--is", "read-only", &server.uri]);
    server.signal("TERM");
    assert_eq!(server.ended(), (0, String::new()));
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
}

#[test]
fn one_server_of_several_volumes() {
    let home = home_with(&["a", "b", "c"]);
    let server = home.serve(&["b", "a"]);
    let list = home.run(&["status", "--json"]).json();
    let names: Vec<_> = list.as_array().unwrap().iter().map(|line| &line["name"]).collect();
    assert_eq!(names, ["b", "a"]);
    assert!(server.uri.contains("/b?"), "in the order given: {}", server.uri);
    assert_eq!(home.run(&["status"]).ok().lines().count(), 3);
    home.run(&["serve", "nbd", "c", "a"]).refuses(BUSY, "volume a is attached already");
    assert!(!home.run_files().iter().any(|f| f.contains("c.nbd")));
    let other = home.serve(&["c"]);
    let ended = home.run(&["detach", "a"]);
    assert!(ended.err.contains("these ended too: b"), "{ended:?}");
    ended.ok();
    assert_eq!(server.ended().0, 0);
    assert_eq!(home.run(&["status", "--json"]).json()[0]["name"], "c");
    let uri = other.uri.clone();
    assert_eq!(home.run(&["detach", &uri, "--json"]).json()["lost_bytes"], 0);
    assert_eq!(other.ended().0, 0);
    let all = home.serve(&["--all", "--listen", "127.0.0.1:0"]);
    assert_eq!(home.run(&["status", "--json"]).json().as_array().unwrap().len(), 3);
    all.signal("INT");
    assert_eq!(all.ended().0, 0);
}

#[test]
fn a_takeover_fences_the_first_owner() {
    let home = home_with(&["data"]);
    let far = home.other_host();
    let first = home.serve(&["data"]);
    assert!(qemu_io(&first.uri, &["write -P 1 0 1M", "flush"]));
    far.run(&["serve", "nbd", "data"]).refuses(BUSY, "take it over with --takeover");
    let alone = far.run(&["resize", "data", "--size", "1G", "--wait", "0"]);
    alone.refuses(BUSY, "is owned by process");
    far.run(&["delete", "data", "--yes"]).refuses(BUSY, "delete it with --force");
    far.run(&["serve", "nbd", "data", "--read-only"]).refuses(BUSY, "is owned by process");
    let second = far.serve(&["data", "--takeover"]);
    assert!(qemu_io(&second.uri, &["read -P 1 0 1M", "write -P 2 0 512", "flush"]));
    assert!(!qemu_io(&first.uri, &["write -P 3 0 512", "flush"]), "a fenced owner acknowledges");
    let status = home.run(&["status", "data", "--json"]).json();
    assert_eq!(status["state"], "failed");
    let failure = status["failure"].as_str().unwrap();
    assert!(failure.contains(&format!("process {}", second.pid())), "who? {failure}");
    let detached = home.run(&["detach", "data", "--json"]);
    assert!(detached.err.contains("objblk: "), "it is said: {detached:?}");
    assert!(detached.json()["failure"].is_string());
    let (code, said) = first.ended();
    assert_eq!(code, 5, "{said}");
    assert!(
        said.contains("ERROR") && said.contains("was taken over by process"),
        "a line in the log: {said}"
    );
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
    assert!(qemu_io(&second.uri, &["read -P 2 0 512", "read -P 1 512 512"]));
    far.run(&["detach", "data"]).ok();
    assert_eq!(second.ended().0, 0);
}

/// By its owner while it is served, and by whoever asks while it is not.
#[test]
fn collection_frees_what_was_overwritten() {
    let home = home_with(&["data"]);
    let server = home.serve(&["data"]);
    let most: Vec<String> = (0..32).map(|n| format!("write -P 2 {n}M 768k")).collect();
    let mut commands = vec!["write -P 1 0 32M", "flush"];
    commands.extend(most.iter().map(String::as_str));
    commands.push("flush");
    assert!(qemu_io(&server.uri, &commands));
    let done = home.run(&["gc", "data", "--json"]).json();
    let figure = |name: &str| done[name].as_u64().unwrap();
    assert_eq!(figure("live_bytes"), 32 << 20, "{done}");
    assert!(figure("stored_bytes_before") >= 55 << 20, "{done}");
    assert!(figure("stored_bytes") <= 52 << 20, "at most 1.6 x live: {done}");
    assert!(figure("moved_bytes") > 0 && figure("collected_chunks") > 0, "{done}");
    let space = home.run(&["status", "data", "--json"]).json()["space"].clone();
    assert_eq!(space["stored_bytes"], done["stored_bytes"], "{space}");
    assert_eq!(space["moved_bytes"], done["moved_bytes"], "{space}");
    assert!(space["write_amplification"].as_f64().unwrap() > 1.0, "{space}");
    assert!(home.run(&["status", "data"]).ok().contains("x what is live (at most 1.60)"));
    home.run(&["detach", "data"]).ok();
    server.ended();

    let full = home.run(&["gc", "data", "--full", "--json"]).json();
    assert_eq!((&full["stored_bytes"], &full["ratio"]), (&json!(32 << 20), &json!(1.0)), "{full}");
    let again = home.run(&["gc", "data"]).ok();
    assert!(again.starts_with("data: 32 MiB -> 32 MiB stored, 32 MiB live; 0 B moved"), "{again}");
    let server = home.serve(&["data"]);
    let read: Vec<String> = (0..32)
        .flat_map(|n| [(2, n * 1024, 768), (1, n * 1024 + 768, 256)])
        .map(|(what, at, len)| format!("read -P {what} {at}k {len}k"))
        .collect();
    assert!(qemu_io(&server.uri, &read.iter().map(String::as_str).collect::<Vec<_>>()));
    let alone = home.other_host().run(&["gc", "data", "--wait", "0"]);
    alone.refuses(BUSY, "a volume is collected by its owner");
    home.run(&["detach", "data"]).ok();
    server.ended();
}

/// Who is connected goes on with the old size; whoever connects later has the new one, and so has the next
/// server, however this one ends.
#[test]
fn a_volume_grows_while_it_is_served() {
    let home = home_with(&["data"]);
    let server = home.serve(&["data"]);
    let size = |server: &Server| tool("nbdinfo", &["--size", &server.uri]).trim().to_owned();
    assert_eq!(size(&server), (64 << 20).to_string());
    let grown = home.run(&["resize", "data", "--size", "96M", "--json"]);
    assert!(grown.err.contains("see its new size when they connect again"), "{grown:?}");
    let grown = grown.json();
    assert_eq!((&grown["size"], &grown["old_size"]), (&json!(96 << 20), &json!(64 << 20)));
    assert_eq!(size(&server), (96 << 20).to_string());
    assert_eq!(home.run(&["status", "data", "--json"]).json()["size"], 96 << 20);
    assert!(qemu_io(&server.uri, &["write -P 5 63M 33M", "flush"]));
    for (args, words) in [
        (&["resize", "data", "--size", "32M"][..], "shrinks only while it is detached"),
        (&["resize", "data", "--size", "32M", "--shrink"], "shrinks only while it is detached"),
        (&["resize", "data", "--size", "7"], "not whole blocks"),
    ] {
        home.run(args).refuses(USAGE, words);
    }
    assert_eq!(home.run(&["resize", "data", "--size", "96M"]).err, "");
    // Acknowledged is acknowledged.
    home.run(&["resize", "data", "--size", "128M"]).ok();
    server.kill();
    let server = home.serve(&["data"]);
    assert_eq!(size(&server), (128 << 20).to_string());
    assert!(qemu_io(&server.uri, &["read -P 5 63M 33M", "read -P 0 96M 32M"]));
    home.run(&["detach", "data"]).ok();
    server.ended();
    let server = home.serve(&["data", "--read-only"]);
    home.run(&["resize", "data", "--size", "1G"]).refuses(BUSY, "is attached already");
    home.run(&["detach", "data"]).ok();
    server.ended();
}

#[test]
fn deletion_by_force_fences_the_owner() {
    let home = home_with(&["data"]);
    let far = home.other_host();
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["write -P 1 0 1M", "flush"]));
    far.run(&["delete", "data", "--yes", "--force"]).ok();
    assert!(!qemu_io(&server.uri, &["write -P 2 0 1M", "flush"]), "a fenced owner acknowledges");
    home.run(&["detach", "data"]).ok();
    server.ended();
    // What its owner had flushed can be had back.
    home.run(&["trash", "restore", "data"]).ok();
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["read -P 1 0 1M"]));

    // At once: the owner has noticed before its fence goes with the rest.
    far.run(&["delete", "data", "--yes", "--now", "--force"]).ok();
    let status = home.run(&["status", "data", "--json"]).json();
    assert_eq!(status["state"], "failed", "the owner has not noticed: {status}");
    assert!(!qemu_io(&server.uri, &["write -P 1 0 1M", "flush"]));
    home.run(&["detach", "data"]).ok();
    server.ended();
    let left = home.objects();
    assert_eq!(left.len(), 1, "only objblk.json stays: {left:?}");
}

#[test]
fn what_a_killed_server_leaves_is_in_nobodys_way() {
    let home = home_with(&["data", "more"]);
    let killed = home.serve(&["data", "more"]);
    assert!(qemu_io(&killed.uri, &["write -P 7 0 1M", "flush"]));
    let pid = killed.pid();
    killed.kill();
    assert_eq!(home.run(&["status", "data", "--json"]).json()["state"], "dead");
    assert_eq!(home.run(&["info", "data", "--json"]).json()["state"], "unclean");
    let next = home.run(&["resize", "data", "--size", "128M"]);
    assert_eq!(next.ok(), "data: 64 MiB -> 128 MiB");
    let server = home.serve(&["more"]);
    let uri = server.uri.clone();
    home.run(&["detach", "more"]).ok();
    let (code, said) = server.ended();
    assert_eq!(code, 0);
    assert!(
        said.contains(&format!("taking over more from process {pid}, which is dead")),
        "{said}"
    );
    assert!(uri.starts_with("nbd+unix"));
    let server = home.serve(&["data"]);
    assert!(qemu_io(&server.uri, &["read -P 7 0 1M"]), "a flushed write is gone");
    server.kill();
    let detached = home.run(&["detach", "data"]);
    assert!(detached.err.contains("was dead: removed what it left"), "{detached:?}");
    detached.ok();
    let left = home.run_files();
    assert!(left.iter().all(|file| file.ends_with(".nbd")), "{left:?}");
}

#[test]
fn a_background_target_answers_once_and_lets_go() {
    let home = home_with(&["data"]);
    let begin = |name: &str| {
        let socket = home.path("x.sock");
        let spec = json!({ "version": 1, "message": {
            "location": { "url": format!("file://{}", home.store().display()) },
            "volumes": [name], "read_only": false, "takeover": false, "cache_bytes": 1 << 20,
            "door": { "nbd": { "listen": socket } },
        }});
        let mut command = home.command(&["target"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("{spec}\n").as_bytes()).unwrap();
        // Both ends once the target lets go of them, though it runs on.
        let (mut answer, mut said) = (String::new(), String::new());
        child.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        (child, answer["message"].clone(), said)
    };
    let (mut child, answer, said) = begin("data");
    assert_eq!((&answer["ready"]["pid"], said.as_str()), (&json!(child.id()), ""));
    let uri = answer["ready"]["volumes"][0]["device"].as_str().unwrap().to_owned();
    assert!(qemu_io(&uri, &["write -P 9 0 1M", "flush"]));
    assert!(home.run_files().contains(&"data.log".to_owned()));
    let (mut refused, answer, _) = begin("data");
    assert_eq!(answer["failed"]["kind"], "busy");
    assert_eq!(refused.wait().unwrap().code(), Some(0));
    home.run(&["detach", "data"]).ok();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
    let (mut failed, answer, _) = begin("none");
    assert_eq!(answer["failed"]["kind"], "not-found");
    failed.wait().unwrap();
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
}

#[test]
fn the_control_socket_outlives_nonsense() {
    let home = home_with(&["data"]);
    let server = home.serve(&["data"]);
    let socket = home.run_files().into_iter().find(|file| file.ends_with(".sock")).unwrap();
    let socket = home.path("run").join(socket);
    let talk = |line: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(line).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(talk(b"{\"version\":1,\"message\":\"ping\"}\n").contains("pong"));
    for nonsense in [&b"\n"[..], b"{}\n", b"\xff\xfe", b"{\"version\":7,\"message\":\"ping\"}\n"] {
        assert!(talk(nonsense).contains("refused"), "{nonsense:?}");
    }
    let long = vec![b'['; 3 << 20];
    let mut stream = UnixStream::connect(&socket).unwrap();
    // The server hangs up in the middle.
    let _ = stream.write_all(&long);
    drop(stream);
    assert_eq!(talk(b""), "");
    assert!(qemu_io(&server.uri, &["write 0 512", "flush"]));
    home.run(&["detach", "data"]).ok();
    server.ended();
}

#[test]
fn a_socket_in_use_is_refused_and_nothing_stays_open() {
    let home = home_with(&["a", "b"]);
    let socket = home.path("x.sock");
    let first = home.serve(&["a", "--socket", socket.to_str().unwrap()]);
    home.run(&["serve", "nbd", "b", "--socket", socket.to_str().unwrap()]).refuses(BUSY, "x.sock");
    assert_eq!(home.run(&["info", "b", "--json"]).json()["state"], "free");
    until("the first one answers", || attempt("nbdinfo", &[&first.uri]).status.success());
    home.run(&["detach", "a"]).ok();
    first.ended();
}
