//! What is read first is recorded, stored with the volume wherever its objects are, and fetched ahead.

use crate::program::{Home, qemu_io, until};
use serde_json::json;

#[test]
fn what_was_read_is_fetched_ahead_the_next_time() {
    let home = Home::new();
    home.run(&["pool", "init"]).ok();
    let plain = ["create", "data", "--size", "64M", "--chunk-size", "256K"];
    let mirrored = [&plain[..], &["--replicas", "2"]].concat();
    for (stores, create) in [(1, &plain[..]), (2, &plain), (2, &mirrored)] {
        if stores == 2 && !home.path("second").exists() {
            let second = format!("file://{}", home.path("second").display());
            home.run(&["pool", "add-store", &second]).ok();
        }
        home.run(create).ok();
        let id = home.run(&["info", "data", "--json"]).json()["id"].as_str().unwrap().to_owned();
        let server = home.serve(&["data"]);
        assert!(qemu_io(&server.uri, &["write -P 1 0 30M", "flush"]));
        home.run(&["detach", "data"]).ok();
        assert_eq!(server.ended().0, 0);

        // The second one replaces the first one's.
        for reads in [&["read 1M 64k"][..], &["read 20M 64k", "read 3M 64k", "read 11M 64k"]] {
            let server = home.serve(&["data", "--profile", "record"]);
            assert!(qemu_io(&server.uri, reads));
            home.run(&["detach", "data"]).ok();
            assert_eq!(server.ended().0, 0);
        }
        let profile = format!("volumes/{id}/profile");
        let told = home.run(&["inspect", &profile, "--json"]).json();
        let run = |block: u64| json!({ "block": block, "count": 1 });
        assert_eq!(told["contents"]["runs"], json!([run(320), run(48), run(176)]), "{told}");

        let server = home.serve(&["data", "--profile", "replay"]);
        let cache = || home.run(&["status", "data", "--json"]).json()["cache"].clone();
        until("it is in memory", || cache()["bytes"].as_u64() >= Some((3 * 64) << 10));
        assert!(qemu_io(&server.uri, &["read -P 1 20M 64k", "read -P 1 3M 64k"]));
        assert_eq!(cache()["misses"], 0);
        home.run(&["detach", "data"]).ok();
        assert_eq!(server.ended().0, 0);
        home.run(&["delete", "data", "--now", "--yes"]).ok();
    }
}
