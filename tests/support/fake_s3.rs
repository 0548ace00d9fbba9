//! A small S3 server in this process that misbehaves, to be reached by the real client.
//!
//! It knows PUT, GET, HEAD, DELETE of objects and ListObjectsV2, in path style, without
//! signatures, and it ignores `If-None-Match`; or it gives one fixed answer to everything.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How the server answers.
#[derive(Clone, Copy, Debug)]
pub enum Manner {
    /// Like an S3 server that has never heard of conditional writes.
    IgnoresConditions,
    /// With this status and error code, whatever is asked.
    Always(u16, &'static str),
    /// Not at all.
    Silent,
    /// With half of the body it announced.
    BreaksOff,
}

type Objects = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Starts a server; returns its endpoint URL. It ends with the runtime.
pub async fn start(manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let endpoint = format!("http://{}", listener.local_addr().expect("it is bound"));
    let objects = Objects::default();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let objects = objects.clone();
            // The client closes connections as it likes.
            tokio::spawn(async move { serve(stream, manner, objects).await.ok() });
        }
    });
    endpoint
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    body: Vec<u8>,
}

async fn serve(stream: TcpStream, manner: Manner, objects: Objects) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream).await? {
        let answer = match manner {
            Manner::Silent => std::future::pending().await,
            Manner::Always(status, code) => error(status, code, &request.method),
            Manner::IgnoresConditions => answer(&request, &objects),
            Manner::BreaksOff => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n").await?;
                stream.write_all(&[7; 50]).await?;
                return stream.shutdown().await;
            }
        };
        stream.write_all(&answer).await?;
    }
    Ok(())
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter_map(|pair| pair.split_once('='));
    let query = query.map(|(k, v)| (k.to_owned(), v.replace("%2F", "/"))).collect();
    let (path, mut length) = (path.to_owned(), 0);
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await?;
        let header = header.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Request { method, path, query, body }))
}

fn answer(request: &Request, objects: &Objects) -> Vec<u8> {
    let mut objects = objects.lock().expect("no holder panics");
    let key = request.path.splitn(3, '/').nth(2).unwrap_or_default().to_owned();
    match request.method.as_str() {
        "PUT" => {
            objects.insert(key, request.body.clone());
            http(200, 0, b"")
        }
        "GET" if key.is_empty() => list(&objects, &request.query),
        "GET" | "HEAD" => match objects.get(&key) {
            Some(body) if request.method == "HEAD" => http(200, body.len(), b""),
            Some(body) => http(200, body.len(), body),
            None => error(404, "NoSuchKey", &request.method),
        },
        "DELETE" => {
            objects.remove(&key);
            http(204, 0, b"")
        }
        _ => error(501, "NotImplemented", &request.method),
    }
}

fn list(objects: &BTreeMap<String, Vec<u8>>, query: &BTreeMap<String, String>) -> Vec<u8> {
    let prefix = query.get("prefix").map_or("", String::as_str);
    let contents: String = objects
        .iter()
        .filter(|(key, _)| key.starts_with(prefix))
        .map(|(key, body)| {
            format!("<Contents><Key>{key}</Key><Size>{}</Size></Contents>", body.len())
        })
        .collect();
    let body =
        format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>");
    http(200, body.len(), body.as_bytes())
}

fn error(status: u16, code: &str, method: &str) -> Vec<u8> {
    let body = format!("<Error><Code>{code}</Code><Message>as told</Message></Error>");
    match method {
        "HEAD" => http(status, body.len(), b""),
        _ => http(status, body.len(), body.as_bytes()),
    }
}

fn http(status: u16, length: usize, body: &[u8]) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 {status} -\r\ncontent-length: {length}\r\n\r\n").into_bytes();
    answer.extend_from_slice(body);
    answer
}
