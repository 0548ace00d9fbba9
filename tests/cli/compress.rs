//! `--compress`: what is stored, what `info` says of it, and that all of it comes back.

use crate::program::{CORRUPT, Home, USAGE, noise, qemu_io};
use crate::script::{command, run};
use serde_json::json;
use std::fs;

const MIB: usize = 1 << 20;

/// Text, then noise, then zeros: 6 MiB.
fn image() -> Vec<u8> {
    let lines = (0..).map(|n: u64| format!("{n}: all work and no play makes a dull disk\n"));
    let mut image: Vec<u8> = lines.flat_map(String::into_bytes).take(3 * MIB).collect();
    image.extend(noise(MIB));
    image.resize(6 * MIB, 0);
    image
}

#[test]
fn volumes_take_what_their_compression_leaves() {
    let home = Home::new();
    let (from, to) = (home.path("from.img"), home.path("to.img"));
    fs::write(&from, image()).unwrap();
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    let stored = || home.objects().values().sum::<u64>() as usize;
    let mut taken = Vec::new();
    for how in ["none", "lz4", "zstd:1", "zstd:12"] {
        let (before, name) = (stored(), how.replace(':', "-"));
        home.run(&["import", from, &name, "--compress", how]).ok();
        taken.push(stored() - before);
        let info = home.run(&["info", &name, "--json"]).json();
        assert_eq!(info["compression"]["how"], *how, "{info}");
        let ratio = info["compression"]["ratio"].as_f64();
        assert_eq!(ratio.is_some_and(|ratio| ratio > 1.8), how != "none", "{info}");
        let text = home.run(&["info", &name]).ok();
        let line = text.lines().find(|line| line.starts_with("compressed")).unwrap();
        assert!(line.contains(how) && line.contains("x in") == (how != "none"), "{line}");
        home.run(&["export", &name, to, "--force"]).ok();
        assert!(fs::read(to).unwrap() == image(), "{how}");
        home.run(&["check", &name, "--data"]).ok();
    }
    // Zeros are not imported at all.
    assert!((4 * MIB..4 * MIB + MIB / 8).contains(&taken[0]), "{taken:?}");
    assert!(taken[1] < 2 * MIB && taken[2] < taken[1] && taken[3] < taken[2], "{taken:?}");
    home.run(&["create", "plain", "--size", "8M"]).ok();
    let info = home.run(&["info", "plain", "--json"]).json();
    assert_eq!(info["compression"], json!({ "how": "lz4", "ratio": null, "looked_at_chunks": 0 }));
    for wrong in ["lz5", "zstd:0", "zstd:20", "", "LZ4"] {
        let create = ["create", "wrong", "--size", "8M", "--compress", wrong];
        home.run(&create)
            .refuses(USAGE, "is no compression: not none, lz4, zstd or zstd:1 to zstd:19");
    }
}

/// By a snapshot, a clone, the collector, and a reader that knows LZ4 from its description.
#[test]
fn compressed_data_goes_everywhere() {
    let home = Home::new();
    let (from, to) = (home.path("from.img"), home.path("to.img"));
    fs::write(&from, image()).unwrap();
    let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
    for how in ["lz4", "zstd"] {
        home.run(&["import", from, how, "--compress", how]).ok();
        let before = format!("{how}@before");
        home.run(&["snapshot", "create", &before]).ok();
        let clone = format!("{how}-clone");
        home.run(&["clone", &before, &clone]).ok();
        let server = home.serve(&[how]);
        let writes = ["write -P 7 1M 2M", "write -z 3M 64k", "write -P 0 0 64k", "flush"];
        assert!(qemu_io(&server.uri, &writes));
        home.run(&["gc", how, "--full"]).ok();
        assert!(qemu_io(&server.uri, &["read -P 7 1M 2M", "read -P 0 0 64k", "read -P 0 3M 64k"]));
        home.run(&["detach", how]).ok();
        server.ended();
        for name in [&before, &clone] {
            home.run(&["export", name, to, "--force"]).ok();
            assert!(fs::read(to).unwrap() == image(), "{name}");
        }
        let info = home.run(&["info", &clone, "--json"]).json();
        assert!(info["compression"]["how"].as_str().unwrap().starts_with(how), "{info}");
        home.run(&["flatten", &clone]).ok();
    }
    home.run(&["check", "--data"]).ok();
    let pool = home.store().display().to_string();
    for name in ["lz4", "lz4@before", "lz4-clone"] {
        home.run(&["export", name, to, "--force"]).ok();
        let out = home.path("reader.img").display().to_string();
        let read = run(command(&["read", &pool, name, &out, "--force"]));
        assert_eq!(read.code, 0, "{read:?}");
        assert!(fs::read(&out).unwrap() == fs::read(to).unwrap(), "{name}");
        let checked = run(command(&["check", &pool, "lz4"]));
        assert_eq!(checked.code, 0, "{checked:?}");
    }
    let listed = run(command(&["list", &pool]));
    assert!(listed.code == 0 && listed.out.contains("lz4-clone "), "{listed:?}");
    assert!(listed.err.contains("zstd: ") && !listed.out.contains("zstd"), "{listed:?}");
    let refused = run(command(&["sha256", &pool, "zstd"]));
    assert_eq!(refused.code, CORRUPT, "{refused:?}");
    assert!(
        refused.err.contains("compressed with zstd, which this reader does not know"),
        "{refused:?}"
    );
}
