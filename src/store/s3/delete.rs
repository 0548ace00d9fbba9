//! Deleting: many objects in one request where the server allows, else one by one.
//!
//! DeleteObjects must carry a digest of its body. The SDK sends `x-amz-checksum-crc32`, which older
//! servers do not know; they want `Content-MD5` (Amazon S3 API reference), so that is added here.

use super::{S3Store, errors};
use crate::store::{Key, Op, StoreErrorKind, StoreResult};
use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use base64::Engine as _;
use futures::TryStreamExt as _;
use md5::{Digest as _, Md5};
use std::sync::atomic::Ordering;

/// Requests in flight where objects are deleted one by one.
const SINGLE_DELETES_AT_ONCE: usize = 16;

/// Deletes at most 1000 objects.
pub(super) async fn delete(store: &S3Store, keys: &[Key]) -> StoreResult<()> {
    if keys.len() > 1 && !store.path.single_deletes.load(Ordering::Relaxed) {
        match delete_batch(store, keys).await {
            Err(e) if e.kind == StoreErrorKind::Invalid => {
                tracing::info!("{e}; deleting objects one by one from now on");
                store.path.single_deletes.store(true, Ordering::Relaxed);
            }
            result => return result,
        }
    }
    futures::stream::iter(keys.iter().map(Ok))
        .try_for_each_concurrent(SINGLE_DELETES_AT_ONCE, |key| delete_one(store, key))
        .await
}

async fn delete_one(store: &S3Store, key: &Key) -> StoreResult<()> {
    let name = key.as_str();
    let request = store.client.delete_object().bucket(store.bucket()).key(store.full(name));
    store
        .within(Op::Delete, name, 0, async {
            match request.send().await {
                Err(e) if !errors::says_no_such_key(&e) => {
                    Err(errors::translate(&store.path, Op::Delete, name, &e))
                }
                _ => Ok(()),
            }
        })
        .await
}

async fn delete_batch(store: &S3Store, keys: &[Key]) -> StoreResult<()> {
    let name = keys.first().map_or("", Key::as_str);
    let invalid =
        |detail: String| store.path.error(StoreErrorKind::Invalid, Op::Delete, name, detail);
    let mut list = Delete::builder().quiet(true);
    for key in keys {
        let object = ObjectIdentifier::builder().key(store.full(key.as_str())).build();
        list = list.objects(object.map_err(|e| invalid(e.to_string()))?);
    }
    let list = list.build().map_err(|e| invalid(e.to_string()))?;
    let request = store
        .client
        .delete_objects()
        .bucket(store.bucket())
        .delete(list)
        .customize()
        .mutate_request(|request| {
            let body = request.body().bytes().unwrap_or_default();
            let md5 = base64::engine::general_purpose::STANDARD.encode(Md5::digest(body));
            request.headers_mut().insert("content-md5", md5);
        });
    let answer = store.send(Op::Delete, name, 0, request.send()).await?;
    let failed = answer.errors().iter().find(|e| e.code() != Some("NoSuchKey"));
    match failed {
        None => Ok(()),
        Some(e) => {
            let code = e.code().unwrap_or("no reason given");
            let (kind, detail) = errors::explain_code(&store.path, code, e.message(), None);
            let name = e.key().and_then(|key| store.path.location.relative(key)).unwrap_or(name);
            Err(store.path.error(kind, Op::Delete, name, detail))
        }
    }
}
