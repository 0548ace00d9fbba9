//! What a server's answer, or the lack of one, means to a caller: a kind and a few plain words.
//!
//! Sources: Amazon S3 API reference, "Error responses", and what Ceph RGW, MinIO and Garage send.

use super::Path;
use crate::store::{Op, StoreError, StoreErrorKind};
use aws_config::imds::client::error::ImdsError;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use std::error::Error as StdError;
use std::io;

/// The store's error for a failed request.
pub(super) fn translate<E>(path: &Path, op: Op, name: &str, e: &SdkError<E>) -> StoreError
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    let (kind, detail) = match e {
        SdkError::ServiceError(answer) => {
            let status = answer.raw().status().as_u16();
            match answer.err().code() {
                Some(code) => explain_code(path, code, answer.err().message(), Some(status)),
                None => explain_status(path, status),
            }
        }
        SdkError::ResponseError(answer) => {
            let status = answer.raw().status().as_u16();
            if status >= 300 {
                explain_status(path, status)
            } else {
                let why = cause(e);
                let detail = format!("{} sent an answer that is no S3: {why}", path.server);
                (StoreErrorKind::Unavailable, detail)
            }
        }
        _ => explain_silence(path, e),
    };
    path.error(kind, op, name, detail)
}

/// True where the server says that the object (not the bucket) does not exist.
pub(super) fn says_no_such_key<E: ProvideErrorMetadata>(e: &SdkError<E>) -> bool {
    matches!(e, SdkError::ServiceError(answer) if answer.err().code() == Some("NoSuchKey"))
}

/// The innermost cause of an error.
pub(super) fn cause(e: &(dyn StdError + 'static)) -> String {
    chain(e).last().map_or_else(|| e.to_string(), ToString::to_string)
}

fn chain<'a>(
    e: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(e);
    std::iter::from_fn(move || {
        let e = next?;
        next = e.source();
        Some(e)
    })
}

/// Kind and words for an error code of the server.
pub(super) fn explain_code(
    path: &Path,
    code: &str,
    message: Option<&str>,
    status: Option<u16>,
) -> (StoreErrorKind, String) {
    use StoreErrorKind as Kind;
    let bucket = path.location.bucket();
    let said = match message.map(|m| m.trim().trim_end_matches('.')) {
        Some(message) if !message.is_empty() => format!("{message} ({code})"),
        _ => code.to_owned(),
    };
    let plain = |text: &str| text.to_owned();
    match code {
        "NoSuchBucket" => (Kind::NotFound, format!("bucket {bucket:?} does not exist")),
        "NoSuchKey" => (Kind::NotFound, plain("there is no such object")),
        // HEAD has no body, so the SDK reads the status as this code: the store tells no more.
        "NotFound" => (Kind::NotFound, plain("there is no such object (or no such bucket)")),
        "PreconditionFailed" => (Kind::AlreadyExists, plain("an object of that name is there")),
        "ConditionalRequestConflict" | "OperationAborted" => {
            (Kind::Unavailable, plain("another writer is creating the same object right now"))
        }
        "BucketAlreadyExists" => {
            (Kind::Invalid, format!("bucket {bucket:?} belongs to another account"))
        }
        "InvalidRange" => (Kind::Range, plain("the object ends before the range")),
        "InvalidAccessKeyId" => {
            (Kind::Denied, format!("the access key ID is unknown to {}", path.server))
        }
        "SignatureDoesNotMatch" => {
            (Kind::Denied, plain("the secret access key does not belong to the access key ID"))
        }
        "RequestTimeTooSkewed" => {
            (Kind::Denied, plain("the clock of this host differs too much from the server's"))
        }
        "ExpiredToken" | "TokenRefreshRequired" => {
            (Kind::Denied, plain("the credentials have expired"))
        }
        "InvalidToken" => (Kind::Denied, plain("the session token is not valid")),
        "AccessDenied" | "AllAccessDisabled" => {
            (Kind::Denied, format!("these credentials do not allow it in bucket {bucket:?}"))
        }
        // The upload changed on its way: sending it again may help.
        "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" | "InvalidDigest" => {
            (Kind::Unavailable, format!("the upload was damaged on the way: {said}"))
        }
        "PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed" => (
            Kind::Invalid,
            format!("bucket {bucket:?} is not in region {}: {said}; set the region", path.region),
        ),
        "SlowDown"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "RequestLimitExceeded"
        | "ServiceUnavailable"
        | "Busy" => (Kind::Throttled, format!("{} asks to slow down", path.server)),
        "InternalError" | "RequestTimeout" => {
            (Kind::Unavailable, format!("{} failed: {said}", path.server))
        }
        "NotImplemented" => (Kind::Invalid, format!("{} cannot do it: {said}", path.server)),
        _ => {
            let status = status.unwrap_or(400);
            (kind_of_status(status), format!("{} answered {status}: {said}", path.server))
        }
    }
}

fn kind_of_status(status: u16) -> StoreErrorKind {
    match status {
        401 | 403 => StoreErrorKind::Denied,
        404 => StoreErrorKind::NotFound,
        412 => StoreErrorKind::AlreadyExists,
        416 => StoreErrorKind::Range,
        429 | 503 => StoreErrorKind::Throttled,
        408 | 409 => StoreErrorKind::Unavailable,
        501 | 505 => StoreErrorKind::Invalid,
        500.. => StoreErrorKind::Unavailable,
        _ => StoreErrorKind::Invalid,
    }
}

/// Kind and words where there is a status but no code.
fn explain_status(path: &Path, status: u16) -> (StoreErrorKind, String) {
    let kind = kind_of_status(status);
    let server = &path.server;
    let detail = match kind {
        StoreErrorKind::NotFound => "there is no such object (or no such bucket)".to_owned(),
        StoreErrorKind::AlreadyExists => "an object of that name is there".to_owned(),
        StoreErrorKind::Range => "the object ends before the range".to_owned(),
        StoreErrorKind::Denied => format!("{server} refused the credentials ({status})"),
        StoreErrorKind::Throttled => format!("{server} asks to slow down ({status})"),
        _ => format!("{server} answered {status} and no reason"),
    };
    (kind, detail)
}

/// Kind and words where no answer came.
fn explain_silence<E>(path: &Path, e: &SdkError<E>) -> (StoreErrorKind, String)
where
    E: StdError + Send + Sync + 'static,
{
    if let Some(e) = chain(e).find_map(|e| e.downcast_ref::<CredentialsError>()) {
        return explain_credentials(e);
    }
    let server = &path.server;
    let io = chain(e).find_map(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
    let timed_out = matches!(e, SdkError::TimeoutError(_))
        || matches!(e, SdkError::DispatchFailure(failure) if failure.is_timeout());
    let why = cause(e);
    let detail = match io {
        Some(io::ErrorKind::ConnectionRefused) => format!("connection refused by {server}"),
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            format!("{server} broke the connection")
        }
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            format!("no route to {server}")
        }
        _ if timed_out => format!("no answer from {server} in time"),
        _ if why.contains("lookup address") => format!("the host of {server} is unknown: {why}"),
        _ => format!("no answer from {server}: {why}"),
    };
    let kind = match e {
        SdkError::ConstructionFailure(_) => StoreErrorKind::Invalid,
        SdkError::DispatchFailure(failure) if failure.is_user() => StoreErrorKind::Invalid,
        _ => StoreErrorKind::Unavailable,
    };
    (kind, detail)
}

fn explain_credentials(e: &CredentialsError) -> (StoreErrorKind, String) {
    let why = cause(e);
    // The metadata service, asked last, is not there or hands out no token: no role of the host.
    let no_role = chain(e)
        .filter_map(|e| e.downcast_ref::<ImdsError>())
        .any(|e| matches!(e, ImdsError::FailedToLoadToken(_)));
    match e {
        _ if no_role || matches!(e, CredentialsError::CredentialsNotLoaded(_)) => (
            StoreErrorKind::Denied,
            "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
             AWS_PROFILE to a profile of ~/.aws/credentials"
                .to_owned(),
        ),
        CredentialsError::InvalidConfiguration(_) => {
            (StoreErrorKind::Denied, format!("the AWS profile or environment is wrong: {why}"))
        }
        _ => (StoreErrorKind::Unavailable, format!("no AWS credentials could be got: {why}")),
    }
}
