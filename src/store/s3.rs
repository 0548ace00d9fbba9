//! A store in a bucket of an S3-compatible server.
//!
//! One `S3Store` is one path to one bucket: one endpoint, its own connections. Create-if-absent
//! is a PUT with `If-None-Match: *` (Amazon S3 API reference, PutObject, conditional writes).
//! Objects are always written by one PUT: multipart completion ignores the condition on servers
//! that matter.
//!
//! * Requests are signed over their body (`x-amz-content-sha256`), so an upload damaged on the
//!   way is refused by the server; that comes back as `Unavailable`. The SDK's own trailing
//!   checksums are off: Ceph RGW up to 18 refuses them.
//! * Every request is bounded in time: [`S3Options::connect_timeout`], then
//!   [`S3Options::answer_timeout`] plus the bytes to move at [`S3Options::min_rate`].
//! * Nothing is retried here: that is the `retry` layer's job.
//! * Credentials come from the standard AWS chain only; asking for them takes at most about a
//!   second where there are none.

mod connect;
mod delete;
mod errors;
mod location;
mod pinned;

pub use location::S3Location;

use super::paths::s3::PathOptions;
use super::{
    GetRange, Key, ListPage, MAX_PAGE, ObjectInfo, Op, Store, StoreError, StoreErrorKind,
    StoreResult,
};
use async_trait::async_trait;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use bytes::{Bytes, BytesMut};
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// The most memory reserved on a server's word alone: the largest chunk object.
const MAX_RESERVED: u64 = 64 * 1024 * 1024;

/// How a bucket is reached.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// `http://host:port` or `https://host`; without one, `AWS_ENDPOINT_URL` or Amazon's own.
    /// With an endpoint the bucket goes into the path of requests, not into the host name.
    pub endpoint_url: Option<String>,
    /// Without one, that of the AWS environment, else `us-east-1`.
    pub region: Option<String>,
    /// Where credentials come from, if not the standard AWS chain; for programs that embed
    /// objblk, never from a command line.
    pub credentials: Option<SharedCredentialsProvider>,
    /// The longest wait for a connection.
    pub connect_timeout: Duration,
    /// The longest wait for an answer, beyond the time that the bytes need.
    pub answer_timeout: Duration,
    /// The slowest transfer that is waited for, in bytes a second.
    pub min_rate: u64,
    /// The address to connect to, whatever the name of the server stands for.
    pub address: Option<IpAddr>,
    /// The address of this host to connect from.
    pub source: Option<IpAddr>,
    /// The network interface to connect by.
    pub interface: Option<String>,
    /// What is known to [`super::paths::s3`]; one `S3Store` is one path.
    pub paths: PathOptions,
}

impl Default for S3Options {
    fn default() -> S3Options {
        S3Options {
            endpoint_url: None,
            region: None,
            credentials: None,
            connect_timeout: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(15),
            min_rate: 256 * 1024,
            address: None,
            source: None,
            interface: None,
            paths: PathOptions::default(),
        }
    }
}

/// What every request and every error of one path needs to know.
#[derive(Debug)]
struct Path {
    location: S3Location,
    /// The server in words: its URL, or Amazon S3 and the region.
    server: String,
    /// An endpoint was given: it is not Amazon's.
    has_endpoint: bool,
    region: String,
    answer_timeout: Duration,
    min_rate: u64,
    /// The server refused DeleteObjects once: objects are deleted one by one.
    single_deletes: AtomicBool,
}

impl Path {
    fn error(&self, kind: StoreErrorKind, op: Op, name: &str, detail: String) -> StoreError {
        StoreError::new(kind, op, super::address(&self.location.to_string(), name), detail)
    }

    /// The time that a request may take which moves `bytes`.
    fn time_limit(&self, bytes: u64) -> Duration {
        self.answer_timeout + Duration::from_secs(bytes / self.min_rate.max(1))
    }
}

/// Objects of a bucket, below a prefix. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct S3Store {
    client: Client,
    path: Arc<Path>,
}

impl S3Store {
    /// Where the objects are.
    pub fn location(&self) -> &S3Location {
        &self.path.location
    }

    /// Verifies that the bucket is there, or makes it if `create`; true where it was made.
    ///
    /// Errors: `NotFound` where it is missing and `create` is false; `Denied`; `Invalid` where
    /// the name belongs to somebody else; `Unavailable`.
    pub async fn ensure_bucket(&self, create: bool) -> StoreResult<bool> {
        connect::ensure_bucket(self, create).await
    }

    fn bucket(&self) -> &str {
        self.path.location.bucket()
    }

    fn full(&self, name: &str) -> String {
        self.path.location.object_name(name)
    }

    /// Waits for `request`, which moves `bytes`, within its time limit; translates its failure.
    async fn send<T, E>(
        &self,
        op: Op,
        name: &str,
        bytes: u64,
        request: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> StoreResult<T>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        self.within(op, name, bytes, async {
            request.await.map_err(|e| errors::translate(&self.path, op, name, &e))
        })
        .await
    }

    async fn within<T>(
        &self,
        op: Op,
        name: &str,
        bytes: u64,
        work: impl Future<Output = StoreResult<T>>,
    ) -> StoreResult<T> {
        let limit = self.path.time_limit(bytes);
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => {
                let detail = format!("no answer from {} within {limit:?}", self.path.server);
                Err(self.path.error(StoreErrorKind::Unavailable, op, name, detail))
            }
        }
    }

    async fn upload(&self, key: &Key, body: Bytes, only_if_absent: bool) -> StoreResult<()> {
        let size = body.len() as u64;
        let request = self
            .client
            .put_object()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .set_if_none_match(only_if_absent.then(|| "*".to_owned()))
            .body(ByteStream::from(body));
        self.send(Op::Put, key.as_str(), size, request.send()).await?;
        Ok(())
    }

    /// Reads a body to its end, no longer than what was asked for.
    async fn download(&self, key: &Key, mut body: ByteStream, len: u64) -> StoreResult<Bytes> {
        let broken =
            |detail| self.path.error(StoreErrorKind::Unavailable, Op::Get, key.as_str(), detail);
        let mut bytes = BytesMut::with_capacity(len.min(MAX_RESERVED) as usize);
        let server = &self.path.server;
        self.within(Op::Get, key.as_str(), len, async {
            while let Some(part) = body.next().await {
                let part = part.map_err(|e| {
                    broken(format!("the answer of {server} broke off: {}", errors::cause(&e)))
                })?;
                bytes.extend_from_slice(&part);
            }
            Ok(())
        })
        .await?;
        if bytes.len() as u64 != len {
            let got = bytes.len();
            return Err(broken(format!("{server} sent {got} bytes of an announced {len}")));
        }
        Ok(bytes.freeze())
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Store({} at {})", self.path.location, self.path.server)
    }
}

#[async_trait]
impl Store for S3Store {
    fn url(&self) -> String {
        self.path.location.to_string()
    }

    async fn get(&self, key: &Key, range: GetRange) -> StoreResult<Bytes> {
        let invalid = |text: &str| {
            self.path.error(StoreErrorKind::Invalid, Op::Get, key.as_str(), text.into())
        };
        let header = match range {
            GetRange::All => None,
            GetRange::Part { len: 0, .. } => return Err(invalid("a range of no bytes")),
            GetRange::Part { offset, len } => {
                Some(format!("bytes={offset}-{}", offset.saturating_add(len - 1)))
            }
        };
        let request = self
            .client
            .get_object()
            .bucket(self.bucket())
            .key(self.full(key.as_str()))
            .set_range(header);
        let answer = self.send(Op::Get, key.as_str(), 0, request.send()).await?;
        if let GetRange::Part { offset, .. } = range {
            let start = format!("bytes {offset}-");
            if !answer.content_range().is_some_and(|header| header.starts_with(&start)) {
                return Err(invalid("the server ignored the range that was asked for"));
            }
        }
        let len = answer.content_length().and_then(|len| u64::try_from(len).ok());
        let len = len.ok_or_else(|| invalid("the server does not say how long the object is"))?;
        if range.max_len().is_some_and(|max| len > max) {
            return Err(invalid("the server sends more than was asked for"));
        }
        self.download(key, answer.body, len).await
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.upload(key, body, true).await
    }

    async fn put(&self, key: &Key, body: Bytes) -> StoreResult<()> {
        self.upload(key, body, false).await
    }

    async fn delete(&self, keys: &[Key]) -> StoreResult<()> {
        for batch in keys.chunks(MAX_PAGE) {
            delete::delete(self, batch).await?;
        }
        Ok(())
    }

    async fn head(&self, key: &Key) -> StoreResult<ObjectInfo> {
        let request = self.client.head_object().bucket(self.bucket()).key(self.full(key.as_str()));
        let answer = self.send(Op::Head, key.as_str(), 0, request.send()).await?;
        let size = answer.content_length().and_then(|len| u64::try_from(len).ok());
        let size = size.ok_or_else(|| {
            let detail = "the server does not say how long the object is".to_owned();
            self.path.error(StoreErrorKind::Invalid, Op::Head, key.as_str(), detail)
        })?;
        Ok(ObjectInfo { key: key.clone(), size })
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> StoreResult<ListPage> {
        let limit = limit.clamp(1, MAX_PAGE);
        let mut start = after.map(|key| self.full(key.as_str()));
        loop {
            let request = self
                .client
                .list_objects_v2()
                .bucket(self.bucket())
                .prefix(self.full(prefix))
                .max_keys(limit as i32)
                .set_start_after(start.take());
            let answer = self.send(Op::List, prefix, 0, request.send()).await?;
            let found = answer.contents();
            let more = answer.is_truncated().unwrap_or(false);
            let objects: Vec<ObjectInfo> = found
                .iter()
                .filter_map(|object| {
                    let key = Key::new(self.path.location.relative(object.key()?)?)?;
                    Some(ObjectInfo { key, size: u64::try_from(object.size()?).ok()? })
                })
                .collect();
            // A page of other programs' objects only: go on behind it.
            start = found.last().and_then(|object| object.key().map(str::to_owned));
            if !objects.is_empty() || !more || start.is_none() {
                return Ok(ListPage { objects, more });
            }
        }
    }
}
