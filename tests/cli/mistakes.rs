//! Errors as a new user makes them: one sentence, the right exit code, nothing left behind.

use crate::program::{EXISTS, Home, NOT_FOUND, USAGE};

/// What is typed, the exit code, words of the sentence.
const MISTAKES: &[(&[&str], i32, &str)] = &[
    (&["create", "v", "--size", "0"], USAGE, "cannot have size 0"),
    (&["create", "v", "--size", "1000"], USAGE, "not whole blocks of 512 bytes; use a multiple"),
    (&["create", "v", "--size", "512", "--block-size", "4096"], USAGE, "blocks of 4096 bytes"),
    (&["create", "v", "--size", "-5G"], USAGE, "it is negative"),
    (&["create", "v", "--size", "2000T"], USAGE, "use at most 1P"),
    (&["create", "v", "--size", "99999999P"], USAGE, "it is too large"),
    (&["create", "v", "--size", "10X"], USAGE, "its unit is not one of"),
    (&["create", "v", "--size", "1.5G"], USAGE, "its unit is not one of"),
    (&["create", "v", "--size", ""], USAGE, "does not begin with a digit"),
    (&["create", "v"], USAGE, "--size <S>"),
    (&["create", "v", "--size", "1G", "--block-size", "1024"], USAGE, "use 512 or 4096"),
    (&["create", "v", "--size", "1G", "--chunk-size", "3M"], USAGE, "power of two"),
    (&["create", "v", "--size", "1G", "--compress", "gzip"], USAGE, "--compress \"gzip\" is no"),
    (&["create", "a/b", "--size", "1G"], USAGE, "it holds '/'"),
    (&["create", "v@s", "--size", "1G"], USAGE, "names a snapshot, and a volume is wanted"),
    (&["create", "data", "--size", "1G"], EXISTS, "there is a volume called data already"),
    (&["info", "none"], NOT_FOUND, "there is no volume called none in file://"),
    (&["attach", "none"], NOT_FOUND, "there is no volume called none"),
    (&["attach", "data@yesterday"], NOT_FOUND, "there is no snapshot data@yesterday"),
    (&["attach", "data", "--journal", "/x"], USAGE, "of no use with --durability object"),
    (&["attach", "data", "--mem-cache", "lots"], USAGE, "--mem-cache \"lots\" is no size"),
    (&["attach", "data", "--map-memory", "1M"], USAGE, "a volume needs at least 8 MiB"),
    (&["attach", "data", "--cache-size", "1G"], USAGE, "--cache-dir <DIR>"),
    (&["attach", "data", "--cache-dir", "/x"], USAGE, "--cache-size <S>"),
    (
        &["serve", "nbd", "data", "--cache-dir", "/x", "--cache-size", "63M"],
        USAGE,
        "a cache on a disk has at least 64 MiB",
    ),
    (&["attach", "data", "--io-timeout", "3"], USAGE, "its unit is not one of ms, s, m"),
    (&["attach", "data", "--io-timeout", "0s"], USAGE, "leaves no time"),
    (&["serve", "nbd", "data", "--heartbeat", "often"], USAGE, "does not begin with a digit"),
    (&["serve", "nbd", "none"], NOT_FOUND, "there is no volume called none"),
    (&["serve", "nbd"], USAGE, "there is no volume to serve"),
    (&["serve", "nbd", "data", "data"], USAGE, "name each volume once"),
    (&["serve", "nbd", "data", "--listen", "nowhere"], USAGE, "cannot listen at"),
    (&["detach", "none"], NOT_FOUND, "none is not attached on this host"),
    (&["detach", "/dev/ublkb77"], NOT_FOUND, "is not attached on this host"),
    (&["status", "none"], NOT_FOUND, "none is not attached on this host"),
    (&["resize", "none", "--size", "1G"], NOT_FOUND, "there is no volume called none"),
    (&["resize", "data", "--size", "7"], USAGE, "not whole blocks"),
    (&["gc", "none"], NOT_FOUND, "there is no volume called none"),
    (&["rename", "none", "other"], NOT_FOUND, "there is no volume called none"),
    (&["delete", "none", "--yes"], NOT_FOUND, "there is no volume called none"),
    (&["delete", "data", "--keep", "1d", "--now"], USAGE, "cannot be used with"),
    (&["delete", "data", "--keep", "0d"], USAGE, "leaves no time"),
    (&["trash", "restore", "none"], NOT_FOUND, "there is no none in the trash"),
    (&["trash", "restore", "data"], NOT_FOUND, "there is no data in the trash"),
    (&["trash", "restore", "none", "--as", "a/b"], USAGE, "it holds '/'"),
    (&["trash", "empty", "data", "--yes"], NOT_FOUND, "there is no data in the trash"),
    (&["trash", "empty", "--older-than", "1"], USAGE, "its unit is not one of"),
    (&["trash", "empty", "data", "--expired"], USAGE, "cannot be used with"),
    (&["--store", "/tmp/x", "list"], USAGE, "write s3://bucket/prefix or file:///dir"),
    (&["--store", "file:///x", "--bucket", "abc", "list"], USAGE, "give one of them"),
    (&["--store", "file:///x", "--region", "r", "list"], USAGE, "no endpoint and no region"),
    (&["--bucket", "UPPER", "list"], USAGE, "is no bucket name"),
    (&["--store", "file:///nonexistent/pool", "list"], NOT_FOUND, "is missing"),
    (&["mirror", "a"], USAGE, "unrecognized subcommand 'mirror'"),
];

#[test]
fn one_sentence_and_nothing_left_behind() {
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    let before = home.objects();
    for (args, code, words) in MISTAKES {
        home.run(args).refuses(*code, words);
        assert_eq!(home.objects(), before, "{args:?} left something in the store");
        assert!(home.run_files().is_empty(), "{args:?} left {:?}", home.run_files());
    }
}

#[test]
fn a_refused_create_makes_no_pool() {
    let home = Home::new();
    home.run(&["create", "v", "--size", "0"]).refuses(USAGE, "size 0");
    home.run(&["create", "a/b", "--size", "1G"]).refuses(USAGE, "'/'");
    assert!(!home.store().exists());
}

#[test]
fn a_host_without_the_driver_says_what_to_do() {
    if std::path::Path::new("/dev/ublk-control").exists() {
        return;
    }
    let home = Home::new();
    home.run(&["create", "data", "--size", "64M"]).ok();
    let before = home.objects();
    home.run(&["attach", "data"]).refuses(1, "modprobe ublk_drv");
    home.run(&["attach", "data", "--foreground"]).refuses(1, "modprobe ublk_drv");
    assert_eq!(home.objects(), before);
    assert!(home.run_files().is_empty(), "{:?}", home.run_files());
    let made = home.run(&["create", "more", "--size", "1M", "--attach"]);
    made.refuses(1, "made volume more, but");
}
