//! The S3 server of the tests: Ceph on this machine, started by `scripts/s3/ceph.sh`.
//!
//! Started on first use, shared by all tests and left running; every test works in a bucket of
//! its own.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Region, RequestChecksumCalculation};
use objblk::store::retry::{RetryPolicy, RetryStore};
use objblk::store::s3::{S3Location, S3Options, S3Store};
use objblk::store::{Key, Store, list_all};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::collections::HashMap;
use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// The running server: its address and the credentials of its user.
#[derive(Clone, Debug)]
pub struct S3Lab {
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
    /// The variables that a process of its own needs: `AWS_*`.
    pub env: HashMap<String, String>,
}

impl S3Lab {
    /// The server, started if it is not running. Fails the test where it cannot be.
    pub fn get() -> &'static S3Lab {
        static LAB: OnceLock<S3Lab> = OnceLock::new();
        LAB.get_or_init(start)
    }

    /// The variable `name` of the server's environment.
    pub fn var(&self, name: &str) -> &str {
        self.env.get(name).unwrap_or_else(|| panic!("ceph.sh prints no {name}"))
    }

    /// Options that reach the server as its user.
    pub fn options(&self) -> S3Options {
        options(&self.endpoint, self.var("AWS_ACCESS_KEY_ID"), self.var("AWS_SECRET_ACCESS_KEY"))
    }

    /// Waits until the server makes buckets: one that was just started takes its time over the first.
    fn await_first_bucket(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime can be made").block_on(async {
            let location =
                S3Location::new("objblk-test-first", "").expect("the name is a bucket's");
            let root =
                S3Store::connect(location, &self.options()).await.expect("options are valid");
            let mut attempts = 0;
            loop {
                attempts += 1;
                match root.ensure_bucket(true).await {
                    Err(e) if attempts < 12 => eprintln!("trying again: {e}"),
                    made => return made.expect("a bucket can be made"),
                }
            }
        });
    }

    /// A new bucket.
    pub async fn bucket(&self) -> Bucket {
        self.make(&format!("objblk-test-{}", uuid::Uuid::new_v4())).await
    }

    /// A new bucket of this name.
    pub async fn make(&self, name: &str) -> Bucket {
        let location = S3Location::new(name, "").expect("the name is a bucket's");
        let root = S3Store::connect(location, &self.options()).await.expect("options are valid");
        let made = root.ensure_bucket(true).await.expect("a bucket can be made");
        assert!(made, "bucket {name} is not new");
        Bucket { name: name.to_owned(), root, options: self.options() }
    }
}

/// A bucket of one test.
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// The whole of it.
    pub root: S3Store,
    options: S3Options,
}

impl Bucket {
    /// A store in it, below `prefix`.
    pub async fn store(&self, prefix: &str) -> S3Store {
        let location = S3Location::new(&self.name, prefix).expect("a valid prefix");
        S3Store::connect(location, &self.options).await.expect("options are valid")
    }

    /// Puts an object of any name, as another program would.
    pub async fn put_raw(&self, name: &str, body: &'static [u8]) {
        let request = self.client().put_object().bucket(&self.name).key(name);
        request.body(body.to_vec().into()).send().await.expect("the object can be put");
    }

    /// Removes its objects, so that the server's disk does not fill up.
    pub async fn empty(&self) {
        // A machine that is busy with other tests may take its time.
        let policy = RetryPolicy { deadline: Some(Duration::from_secs(120)), ..Default::default() };
        let root = Arc::new(self.root.clone());
        let root = RetryStore::new(root, policy, StdRng::seed_from_u64(0));
        let objects = list_all(&root, "").await.expect("the bucket can be listed");
        let keys: Vec<Key> = objects.into_iter().map(|object| object.key).collect();
        root.delete(&keys).await.expect("the bucket can be emptied");
    }

    /// Deletes the bucket itself.
    pub async fn remove(&self) {
        self.empty().await;
        let removed = self.client().delete_bucket().bucket(&self.name).send().await;
        removed.expect("an empty bucket can be deleted");
    }

    fn client(&self) -> Client {
        let config = aws_sdk_s3::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(self.options.endpoint_url.as_deref().expect("the lab has one"))
            .credentials_provider(self.options.credentials.clone().expect("the lab has some"))
            .force_path_style(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
        Client::from_conf(config.build())
    }
}

/// Options for `endpoint` with these keys, instead of those of the environment.
pub fn options(endpoint: &str, access_key: &str, secret_key: &str) -> S3Options {
    let credentials = Credentials::new(access_key, secret_key, None, None, "test");
    S3Options {
        endpoint_url: Some(endpoint.to_owned()),
        region: Some("us-east-1".to_owned()),
        credentials: Some(SharedCredentialsProvider::new(credentials)),
        ..S3Options::default()
    }
}

fn start() -> S3Lab {
    let lock = std::env::temp_dir().join("objblk-test-s3.lock");
    let lock =
        File::create(&lock).unwrap_or_else(|e| panic!("cannot make {}: {e}", lock.display()));
    lock.lock().expect("the lock file can be locked");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/s3/ceph.sh");
    let output = Command::new(script)
        .arg("start")
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("cannot run {script}: {e}"));
    assert!(
        output.status.success(),
        "the tests need a real S3 server, and `{script} start` could not start Ceph; it needs root \
         and the packages ceph-mon ceph-osd radosgw ceph-common curl openssl util-linux:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let env: HashMap<String, String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let endpoint = env.get("AWS_ENDPOINT_URL").expect("ceph.sh prints the endpoint").clone();
    let lab = S3Lab { endpoint, env };
    // Not in this thread: it may be one of a runtime.
    std::thread::scope(|scope| scope.spawn(|| lab.await_first_bucket()).join())
        .expect("the server makes buckets");
    lab
}
