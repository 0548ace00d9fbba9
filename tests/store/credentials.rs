//! The standard AWS chain. It reads the process's environment, so each case runs in a process of
//! its own: the test starts itself again.

use crate::conformance::key;
use crate::fake_s3;
use crate::s3_lab::S3Lab;
use objblk::error::Error;
use objblk::store::s3::{S3Location, S3Options, S3Store};
use objblk::store::{GetRange, Store};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Set in the child; its value is the bucket.
const CHILD: &str = "OBJBLK_TEST_BUCKET";

/// In the child: asks for an object that does not exist, prints the error.
async fn ask(bucket: &str) {
    let location = S3Location::new(bucket, "").unwrap();
    let store = S3Store::connect(location, &S3Options::default()).await.unwrap();
    let error = store.get(&key("no-such-object"), GetRange::All).await.unwrap_err();
    let kind = error.kind;
    println!("{kind:?}: {}", Error::from(error));
}

/// In the parent: runs the test `name` again with `env` and nothing else.
fn child(name: &str, bucket: &str, home: &Path, env: &[(&str, &str)]) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&format!("credentials::{name}"), "--exact", "--nocapture"])
        .env_clear()
        .env("HOME", home)
        .env(CHILD, bucket)
        .envs(env.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

// The silent server runs on one thread while another waits for the child.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_credentials_are_denied_quickly() {
    if let Ok(bucket) = std::env::var(CHILD) {
        return ask(&bucket).await;
    }
    let home = tempfile::tempdir().unwrap();
    let silent = fake_s3::start(fake_s3::Manner::Silent).await;
    let forbidding = fake_s3::start(fake_s3::Manner::Always(403, "Forbidden")).await;
    for env in [
        // The metadata service of the host hangs, with and without an endpoint.
        vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", silent.as_str())],
        vec![
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", silent.as_str()),
            ("AWS_ENDPOINT_URL", silent.as_str()),
        ],
        // It answers, but this host has no role.
        vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", forbidding.as_str())],
        vec![("AWS_EC2_METADATA_DISABLED", "true")],
    ] {
        let begun = Instant::now();
        let printed = child("no_credentials_are_denied_quickly", "some-bucket", home.path(), &env);
        println!("{env:?}: {:?}", begun.elapsed());
        assert!(printed.contains("Denied: "), "{printed}");
        assert!(
            printed.contains("no AWS credentials were found: set AWS_ACCESS_KEY_ID"),
            "{printed}"
        );
        assert!(begun.elapsed() < Duration::from_secs(4), "took {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn the_environment_is_used() {
    if let Ok(bucket) = std::env::var(CHILD) {
        return ask(&bucket).await;
    }
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    let home = tempfile::tempdir().unwrap();
    let env: Vec<(&str, &str)> = lab.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let printed = child("the_environment_is_used", &bucket.name, home.path(), &env);
    assert!(printed.contains("NotFound: ") && printed.contains("no such object"), "{printed}");
}

#[tokio::test]
async fn a_profile_is_used() {
    if let Ok(bucket) = std::env::var(CHILD) {
        return ask(&bucket).await;
    }
    let lab = S3Lab::get();
    let bucket = lab.bucket().await;
    let home = tempfile::tempdir().unwrap();
    let aws = home.path().join(".aws");
    fs::create_dir(&aws).unwrap();
    let (access, secret) = (lab.var("AWS_ACCESS_KEY_ID"), lab.var("AWS_SECRET_ACCESS_KEY"));
    let keys = format!("aws_access_key_id={access}\naws_secret_access_key={secret}\n");
    fs::write(aws.join("credentials"), format!("[lab]\n{keys}")).unwrap();
    let json = format!(r#"{{"Version":1,"AccessKeyId":"{access}","SecretAccessKey":"{secret}"}}"#);
    fs::write(home.path().join("keys.json"), json).unwrap();
    let process = format!("credential_process=cat {}", home.path().join("keys.json").display());
    let endpoint = &lab.endpoint;
    let config = format!(
        "[profile lab]\nregion=us-east-1\nservices=here\n\
         [profile process]\nregion=us-east-1\nservices=here\n{process}\n\
         [services here]\ns3 =\n  endpoint_url = {endpoint}\n"
    );
    fs::write(aws.join("config"), config).unwrap();
    for profile in ["lab", "process"] {
        let env = [
            ("AWS_PROFILE", profile),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("PATH", "/usr/bin:/bin"),
        ];
        let printed = child("a_profile_is_used", &bucket.name, home.path(), &env);
        assert!(printed.contains("NotFound: ") && printed.contains("no such object"), "{printed}");
    }
}
