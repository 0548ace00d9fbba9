//! The home store of a pool is gone for good, and its mirrored volumes go on in another pool.

use crate::program::{EXISTS, Home, NOT_FOUND, STORE, USAGE, noise, qemu_io, until};
use std::fs;

#[test]
fn mirrored_volumes_outlive_their_home_store() {
    let home = Home::new();
    home.run(&["pool", "init"]).ok();
    let second = home.path("second");
    let left = format!("file://{}", second.display());
    home.run(&["pool", "add-store", &left]).ok();
    let key = home.path("key");
    fs::write(&key, noise(64)).unwrap();
    let key = ["--key-file", key.to_str().unwrap()];
    let create = ["create", "--size", "64M", "--chunk-size", "256K", "--replicas", "2"];
    home.run(&[&create[..], &["data"]].concat()).ok();
    home.run(&[&create[..], &["vault", "--encrypt"], &key].concat()).ok();
    home.run(&["create", "plain", "--size", "8M"]).ok();
    for (name, key, pattern) in [("data", &[][..], "1"), ("vault", &key, "2")] {
        let server = home.serve(&[&[name][..], key].concat());
        let write = format!("write -P {pattern} 0 8M");
        assert!(qemu_io(&server.uri, &[&write, "flush"]));
        home.run(&["detach", name]).ok();
        assert_eq!(server.ended().0, 0);
    }
    home.run(&["snapshot", "create", "data@s"]).ok();
    let id =
        |name: &str| home.run(&["info", name, "--json"]).json()["id"].as_str().unwrap().to_owned();
    let (data, vault) = (id("data"), id("vault"));
    let gone = home.path("gone");
    fs::rename(home.store(), &gone).unwrap();

    let rescue = ["pool", "rescue", &left];
    home.run(&rescue).fails(USAGE, "needs a confirmation");
    home.run(&["pool", "rescue", "file:///nowhere/at/all", "--yes"]).fails(NOT_FOUND, "");
    let named = format!("{data}=data");
    let told = home.run(&[&rescue[..], &["--name", &named, "--yes", "--json"]].concat()).json();
    let mut names: Vec<&str> =
        told.as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    let other = format!("rescued-{}", &vault[..8]);
    assert_eq!(names, ["data", &other]);
    home.run(&[&rescue[..], &["--yes"]].concat()).fails(EXISTS, "a pool was made in it");

    for (name, key, pattern) in [("data", &[][..], "1"), (&*other, &key, "2")] {
        let server = home.serve(&[&[name][..], key].concat());
        let read = format!("read -P {pattern} 0 8M");
        assert!(qemu_io(&server.uri, &[&read, "write -P 9 8M 1M", "flush"]));
        until("it is in two stores again", || {
            let info = home.run(&[&["info", name, "--json"][..], key].concat()).json();
            info["mirror"]["in_sync"].as_array().map(Vec::len) == Some(2)
        });
        home.run(&["detach", name]).ok();
        assert_eq!(server.ended().0, 0);
    }
    home.run(&[&["check", "--data"][..], &key].concat()).ok();
    assert!(home.run(&["snapshot", "list", "data"]).ok().contains('s'));

    // The former home store comes back: its pool knows that the other store is another's now.
    let former = format!("--store=file://{}", gone.display());
    home.run(&["list", &former]).fails(STORE, "is not what it should be");
}
