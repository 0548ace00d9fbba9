//! An image on an HTTP server that gives parts of it (RFC 9110, section 14).

use super::{Image, ImageError, ImageResult};
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{ETAG, HeaderMap, IF_RANGE, LAST_MODIFIED, LOCATION, RANGE};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::time::Duration;

/// Time for one answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Redirections that are followed.
const HOPS_MAX: usize = 5;

type Connection = Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

#[derive(Debug)]
pub(super) struct HttpImage {
    client: Connection,
    uri: Uri,
    size: u64,
    identity: String,
    /// The entity tag, or the date: parts of another image are refused by it.
    validator: Option<String>,
}

impl HttpImage {
    pub async fn open(url: String) -> ImageResult<HttpImage> {
        let refused = |e: &dyn std::fmt::Display| ImageError::Refused(format!("{url}: {e}"));
        let mut uri: Uri = url.parse().map_err(|e| refused(&e))?;
        let https = HttpsConnectorBuilder::new().with_native_roots().map_err(|e| refused(&e))?;
        let https = https.https_or_http().enable_http1().build();
        let client: Connection = Client::builder(TokioExecutor::new()).build(https);
        for _ in 0..HOPS_MAX {
            // Some servers answer HEAD otherwise than GET, and the first byte shows that parts work.
            let answer = ask(&client, &uri, 0..1, None).await?;
            if answer.status().is_redirection() {
                uri = redirected(&uri, answer.headers()).ok_or_else(|| refused(&"lost its way"))?;
                continue;
            }
            let size = match answer.status() {
                StatusCode::PARTIAL_CONTENT => size_of(answer.headers()),
                StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Err(refused(&"it is empty"));
                }
                StatusCode::OK => {
                    return Err(refused(&"its server does not give parts of it"));
                }
                status => return Err(failed(&uri, status)),
            };
            let size = size.ok_or_else(|| refused(&"its server does not say its size"))?;
            let validator = validator(answer.headers());
            let identity = format!("{size} bytes, {}", validator.as_deref().unwrap_or("undated"));
            return Ok(HttpImage { client, uri, size, identity, validator });
        }
        Err(refused(&"too many redirections"))
    }
}

async fn ask(
    client: &Connection,
    uri: &Uri,
    bytes: std::ops::Range<u64>,
    validator: Option<&str>,
) -> ImageResult<Response<Incoming>> {
    let lost = |e: &dyn std::fmt::Display| ImageError::Unreachable(format!("{uri}: {e}"));
    let last = bytes.end - 1;
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(uri)
        .header(RANGE, format!("bytes={}-{last}", bytes.start));
    if let Some(validator) = validator {
        request = request.header(IF_RANGE, validator);
    }
    let request = request.body(Empty::new()).map_err(|e| lost(&e))?;
    match tokio::time::timeout(PATIENCE, client.request(request)).await {
        Ok(answer) => answer.map_err(|e| lost(&chain(&e))),
        Err(_) => Err(lost(&"no answer")),
    }
}

/// An error with all its causes, which alone say what is wrong.
fn chain(e: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(e.source(), |e| e.source());
    causes.fold(e.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn failed(uri: &Uri, status: StatusCode) -> ImageError {
    let text = format!("{uri}: {status}");
    let passes = status.is_server_error()
        || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
    if passes { ImageError::Unreachable(text) } else { ImageError::Refused(text) }
}

fn redirected(from: &Uri, headers: &HeaderMap) -> Option<Uri> {
    let to: Uri = headers.get(LOCATION)?.to_str().ok()?.parse().ok()?;
    if to.authority().is_some() {
        return Some(to);
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = to.into_parts().path_and_query;
    Uri::from_parts(parts).ok()
}

/// The whole size, of `Content-Range: bytes 0-0/SIZE`.
fn size_of(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(http::header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('/')?.1.parse().ok()
}

/// A strong entity tag, or the date.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    text(ETAG).filter(|tag| !tag.starts_with("W/")).or_else(|| text(LAST_MODIFIED))
}

#[async_trait]
impl Image for HttpImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    async fn read(&self, offset: u64, len: usize) -> ImageResult<Vec<u8>> {
        let part = offset..offset + len as u64;
        let answer = ask(&self.client, &self.uri, part, self.validator.as_deref()).await?;
        let same = size_of(answer.headers()) == Some(self.size)
            && (self.validator.is_none() || validator(answer.headers()) == self.validator);
        match answer.status() {
            StatusCode::PARTIAL_CONTENT if same => {}
            // All of it, where it is no longer what the validator says.
            StatusCode::PARTIAL_CONTENT | StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE => {
                let text = format!("{} was changed: it was {}", self.uri, self.identity);
                return Err(ImageError::Changed(text));
            }
            status => return Err(failed(&self.uri, status)),
        }
        let lost = |why: &str| ImageError::Unreachable(format!("{}: {why}", self.uri));
        let body = Limited::new(answer.into_body(), len).collect();
        let body =
            tokio::time::timeout(PATIENCE, body).await.map_err(|_| lost("it is too slow"))?;
        let body = body.map_err(|e| lost(&chain(&*e)))?.to_bytes();
        if body.len() != len {
            return Err(lost(&format!("{} bytes instead of {len}", body.len())));
        }
        Ok(body.to_vec())
    }
}
