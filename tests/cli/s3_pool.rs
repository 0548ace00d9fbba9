//! A pool on a real S3 server, and the errors on the way to one.

use crate::program::{Home, NOT_FOUND, STORE, noise, tool};
use crate::s3::S3Lab;
use std::fs;

/// A home whose store is a bucket of the S3 server.
pub fn home(bucket: &str) -> Home {
    let lab = S3Lab::get();
    let mut home = Home::new();
    home.set("OBJBLK_STORE", &format!("s3://{bucket}/pool"));
    home.set("OBJBLK_ENDPOINT_URL", &lab.endpoint);
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
        home.set(name, lab.var(name));
    }
    home
}

fn new_bucket() -> String {
    format!("objblk-test-{}", uuid::Uuid::new_v4())
}

#[test]
fn a_volume_in_a_bucket() {
    let bucket = new_bucket();
    let home = home(&bucket);
    home.run(&["create", "data", "--size", "32M"]).refuses(NOT_FOUND, "--create-bucket");
    home.run(&["list"]).refuses(NOT_FOUND, &bucket);
    home.run(&["pool", "init"]).refuses(NOT_FOUND, &bucket);
    home.run(&["pool", "init", "--create-bucket"]).ok();
    home.run(&["create", "data", "--size", "32M"]).ok();
    let (image, back) = (home.path("image"), home.path("back"));
    fs::write(&image, noise(32 << 20)).unwrap();
    let server = home.serve(&["data"]);
    tool("nbdcopy", &["--flush", image.to_str().unwrap(), &server.uri]);
    home.run(&["detach", "data"]).ok();
    assert_eq!(server.ended().0, 0);
    let far = home.other_host();
    let server = far.serve(&["data"]);
    tool("nbdcopy", &[&server.uri, back.to_str().unwrap()]);
    assert!(fs::read(&image).unwrap() == fs::read(&back).unwrap(), "the copy differs");
    server.signal("TERM");
    assert_eq!(server.ended().0, 0);
    home.run(&["delete", "data", "--yes"]).ok();
    let other = home.run(&["--prefix", "two", "--bucket", &bucket, "create", "x", "--size", "1M"]);
    assert!(other.err.contains(&format!("made a new pool in the bucket s3://{bucket}/two")));
    other.ok();
    home.run(&["--prefix", "two", "--bucket", &bucket, "delete", "x", "--yes"]).ok();
    assert_eq!(home.run(&["list", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn wrong_credentials() {
    let bucket = new_bucket();
    let mut home = home(&bucket);
    home.set("AWS_SECRET_ACCESS_KEY", "wrong");
    home.run(&["create", "data", "--size", "1G"]).refuses(STORE, "check the credentials");
    home.set("AWS_ACCESS_KEY_ID", "nobody");
    home.run(&["list"]).refuses(STORE, "check the credentials");
    home.set("AWS_ACCESS_KEY_ID", "");
    home.set("AWS_EC2_METADATA_DISABLED", "true");
    home.run(&["pool", "init"]).refuses(STORE, "AWS_");
}

#[test]
fn an_endpoint_that_nobody_answers() {
    let mut home = home(&new_bucket());
    home.set("OBJBLK_ENDPOINT_URL", "http://127.0.0.1:1");
    let done = home.run(&["create", "data", "--size", "1G"]);
    // That it keeps trying is said on the way.
    done.fails(STORE, "http://127.0.0.1:1");
    let mut home = self::home(&new_bucket());
    home.set("OBJBLK_ENDPOINT_URL", "not a url");
    home.run(&["list"]).refuses(crate::program::USAGE, "not a url");
}
