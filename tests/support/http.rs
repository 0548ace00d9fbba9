//! As much of HTTP/1.1 as passes between an S3 client and its server, read whole and kept as sent.
//!
//! A message is its head, byte for byte (requests are signed), and its body. A body in chunks,
//! which servers send for listings, becomes one of a stated length.

use std::io;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

pub type Stream = BufReader<TcpStream>;

/// The largest body that is carried: more than any object of a test.
const BODY_MAX: usize = 80 << 20;

/// A request without its body.
#[derive(Clone, Debug)]
pub struct Head {
    pub method: String,
    pub target: String,
    pub length: usize,
    /// It creates an object unless there is one.
    pub conditional: bool,
    /// The client waits to be told to send the body.
    pub expects: bool,
    bytes: Vec<u8>,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    pub head: Head,
    pub body: Vec<u8>,
}

/// A server's answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    head: Vec<u8>,
    body: Vec<u8>,
}

/// The lines of a head, or `None` where the stream ends before it.
async fn lines(stream: &mut Stream) -> io::Result<Option<Vec<String>>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return match lines.is_empty() {
                true => Ok(None),
                false => Err(io::ErrorKind::UnexpectedEof.into()),
            };
        }
        match line.trim_end() {
            "" => return Ok(Some(lines)),
            text => lines.push(text.to_owned()),
        }
    }
}

fn header<'a>(lines: &'a [String], name: &str) -> Option<&'a str> {
    let pairs = lines.iter().skip(1).filter_map(|line| line.split_once(':'));
    let found = pairs.filter(|(found, _)| found.eq_ignore_ascii_case(name));
    found.map(|(_, value)| value.trim()).next()
}

fn length(lines: &[String]) -> io::Result<usize> {
    let length = header(lines, "content-length").map_or(Ok(0), str::parse);
    let length: usize = length.map_err(io::Error::other)?;
    if length > BODY_MAX { Err(io::Error::other("the body is too long")) } else { Ok(length) }
}

fn joined(lines: &[String]) -> Vec<u8> {
    format!("{}\r\n\r\n", lines.join("\r\n")).into_bytes()
}

impl Head {
    /// The next request of a client, or `None` where it leaves.
    pub async fn read(stream: &mut Stream) -> io::Result<Option<Head>> {
        let Some(lines) = lines(stream).await? else { return Ok(None) };
        if header(&lines, "transfer-encoding").is_some() {
            return Err(io::Error::other("a request whose length is not stated"));
        }
        let mut words = lines[0].split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        Ok(Some(Head {
            method,
            target,
            length: length(&lines)?,
            conditional: header(&lines, "if-none-match") == Some("*"),
            expects: header(&lines, "expect").is_some(),
            bytes: joined(&lines),
        }))
    }
}

impl Request {
    /// Sends as much of it as `upto` bytes of the body.
    pub async fn send(&self, server: &mut Stream, upto: usize) -> io::Result<()> {
        server.write_all(&self.head.bytes).await?;
        server.write_all(&self.body[..upto.min(self.body.len())]).await?;
        server.flush().await
    }
}

impl Reply {
    /// The answer to a request of this method.
    pub async fn read(server: &mut Stream, method: &str) -> io::Result<Reply> {
        let (mut lines, status) = loop {
            let lines = lines(server).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let status = lines[0].split(' ').nth(1).unwrap_or_default();
            let status: u16 = status.parse().map_err(io::Error::other)?;
            // "100 Continue": the body was sent without waiting for it.
            if status >= 200 {
                break (lines, status);
            }
        };
        let mut body = Vec::new();
        if method != "HEAD" && !matches!(status, 204 | 304) {
            let chunked = header(&lines, "transfer-encoding");
            if chunked.is_some_and(|how| how.eq_ignore_ascii_case("chunked")) {
                body = unchunk(server).await?;
                lines.retain(|line| !line.to_ascii_lowercase().starts_with("transfer-encoding:"));
                lines.push(format!("content-length: {}", body.len()));
            } else {
                body = vec![0; length(&lines)?];
                server.read_exact(&mut body).await?;
            }
        }
        Ok(Reply { status, head: joined(&lines), body })
    }

    /// An answer of the proxy's own, in the words of S3.
    pub fn error(status: u16, code: &str, method: &str) -> Reply {
        let body = format!("<Error><Code>{code}</Code><Message>by the proxy</Message></Error>");
        let length = body.len();
        let head = format!("HTTP/1.1 {status} -\r\ncontent-length: {length}\r\n\r\n").into_bytes();
        let body = if method == "HEAD" { Vec::new() } else { body.into_bytes() };
        Reply { status, head, body }
    }

    pub fn body(&self) -> &[u8] {
        &self.body
    }

    pub fn body_mut(&mut self) -> &mut [u8] {
        &mut self.body
    }

    /// Sends the head.
    pub async fn send_head(&self, client: &mut Stream) -> io::Result<()> {
        client.write_all(&self.head).await?;
        client.flush().await
    }
}

async fn unchunk(server: &mut Stream) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut size = String::new();
        server.read_line(&mut size).await?;
        let size = size.trim().split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
        if body.len() + size > BODY_MAX {
            return Err(io::Error::other("the body is too long"));
        }
        let begun = body.len();
        body.resize(begun + size, 0);
        server.read_exact(&mut body[begun..]).await?;
        let mut end = String::new();
        server.read_line(&mut end).await?;
        if size == 0 {
            return Ok(body);
        }
    }
}
