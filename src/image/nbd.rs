//! An image on an NBD server: a client that only reads.
//!
//! Source: `doc/proto.md` of the NetworkBlockDevice project: fixed newstyle negotiation with
//! `NBD_OPT_GO`, then simple replies. One request at a time on a connection, and some connections where the
//! server says that it takes several (it may let others wait for ever); one that failed is closed.

use super::address::{NbdAddress, NbdServer};
use super::{Image, ImageError, ImageResult};
use crate::sync::{Mutex, PoisonError};
use async_trait::async_trait;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;

const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
/// Replies that have this bit are refusals.
const REPLY_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
/// Of an export: it may be used by several connections.
const CAN_MULTI_CONN: u16 = 1 << 8;
/// Connections to a server that takes several.
const CONNECTIONS: usize = 4;
const COMMAND_READ: u16 = 0;
/// The longest reply to an option that is taken.
const REPLY_MAX: u32 = 64 << 10;
/// Replies to one option.
const REPLIES_MAX: usize = 32;
/// Time for one answer.
const PATIENCE: Duration = Duration::from_secs(60);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}
type Connection = Box<dyn Stream>;

pub(super) struct NbdImage {
    at: NbdAddress,
    size: u64,
    identity: String,
    /// How many connections there may be.
    connections: Semaphore,
    /// Those that nobody uses.
    idle: Mutex<Vec<Connection>>,
}

impl std::fmt::Debug for NbdImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NbdImage").field("at", &self.at).field("size", &self.size).finish()
    }
}

impl NbdImage {
    pub async fn open(at: NbdAddress) -> ImageResult<NbdImage> {
        let (connection, Export { size, flags }) = connect(&at).await?;
        let identity = format!("{size} bytes");
        let connections = Semaphore::new(if flags & CAN_MULTI_CONN != 0 { CONNECTIONS } else { 1 });
        Ok(NbdImage { at, size, identity, connections, idle: Mutex::new(vec![connection]) })
    }

    async fn connection(&self) -> ImageResult<Connection> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(idle) = idle {
            return Ok(idle);
        }
        match connect(&self.at).await? {
            (connection, export) if export.size == self.size => Ok(connection),
            (_, Export { size, .. }) => {
                let text = format!("{:?} has {size} bytes now, and had {}", self.at, self.size);
                Err(ImageError::Changed(text))
            }
        }
    }
}

async fn patiently<T>(what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer");
    tokio::time::timeout(PATIENCE, what).await.map_err(late)?
}

/// What is told of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Export {
    size: u64,
    flags: u16,
}

async fn connect(at: &NbdAddress) -> ImageResult<(Connection, Export)> {
    let lost = |e: io::Error| ImageError::Unreachable(format!("{at:?}: {e}"));
    let connecting = async {
        let mut connection: Connection = match &at.server {
            NbdServer::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            NbdServer::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        let agreed = negotiate(&mut connection, &at.export).await?;
        Ok((connection, agreed))
    };
    let (connection, agreed) = patiently(connecting).await.map_err(lost)?;
    match agreed {
        Ok(export) => Ok((connection, export)),
        Err(why) => Err(ImageError::Refused(format!("{at:?}: {why}"))),
    }
}

fn garbled(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is not that of the protocol"))
}

/// Returns what is told of the export, or why the server does not give it.
async fn negotiate(stream: &mut Connection, export: &str) -> io::Result<Result<Export, String>> {
    if stream.read_u64().await? != INIT_MAGIC {
        return Err(garbled("its greeting"));
    }
    let newstyle = stream.read_u64().await? == OPTION_MAGIC;
    let flags = if newstyle { stream.read_u16().await? } else { 0 };
    if flags & FIXED_NEWSTYLE == 0 {
        return Ok(Err("a server of the old style".into()));
    }
    let mut asked = Vec::new();
    asked.extend(u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes());
    asked.extend(OPTION_MAGIC.to_be_bytes());
    asked.extend(OPTION_GO.to_be_bytes());
    asked.extend((export.len() as u32 + 6).to_be_bytes());
    asked.extend((export.len() as u32).to_be_bytes());
    asked.extend(export.as_bytes());
    asked.extend(0u16.to_be_bytes());
    stream.write_all(&asked).await?;
    let mut told = None;
    for _ in 0..REPLIES_MAX {
        if stream.read_u64().await? != OPTION_REPLY_MAGIC || stream.read_u32().await? != OPTION_GO {
            return Err(garbled("its answer"));
        }
        let (kind, len) = (stream.read_u32().await?, stream.read_u32().await?);
        if len > REPLY_MAX {
            return Err(garbled("the length of its answer"));
        }
        let mut body = vec![0; len as usize];
        stream.read_exact(&mut body).await?;
        match kind {
            REPLY_ACK => return Ok(told.ok_or_else(|| "its size is not told".into())),
            REPLY_INFO => told = export_of(&body).or(told),
            kind if kind & REPLY_ERROR != 0 => {
                let text = String::from_utf8_lossy(&body).trim_end_matches('\0').to_owned();
                let code = kind & !REPLY_ERROR;
                return Ok(Err(format!("the export {export:?} is refused ({code}) {text}")));
            }
            _ => {}
        }
    }
    Err(garbled("the number of its answers"))
}

/// What `NBD_INFO_EXPORT` says: type u16, size u64, flags u16.
fn export_of(body: &[u8]) -> Option<Export> {
    let (kind, rest) = body.split_first_chunk::<2>()?;
    let (size, rest) = rest.split_first_chunk::<8>()?;
    let flags = rest.first_chunk::<2>().filter(|_| u16::from_be_bytes(*kind) == INFO_EXPORT)?;
    Some(Export { size: u64::from_be_bytes(*size), flags: u16::from_be_bytes(*flags) })
}

/// Returns the bytes, or the server's error number.
async fn read(
    stream: &mut Connection,
    offset: u64,
    len: usize,
) -> io::Result<Result<Vec<u8>, u32>> {
    let mut request = Vec::with_capacity(28);
    request.extend(REQUEST_MAGIC.to_be_bytes());
    request.extend(0u16.to_be_bytes());
    request.extend(COMMAND_READ.to_be_bytes());
    request.extend(offset.to_be_bytes());
    request.extend(offset.to_be_bytes());
    request.extend((len as u32).to_be_bytes());
    stream.write_all(&request).await?;
    if stream.read_u32().await? != SIMPLE_REPLY_MAGIC {
        return Err(garbled("its answer"));
    }
    let error = stream.read_u32().await?;
    // The cookie is the offset.
    if stream.read_u64().await? != offset {
        return Err(garbled("the cookie of its answer"));
    }
    if error != 0 {
        return Ok(Err(error));
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).await?;
    Ok(Ok(bytes))
}

#[async_trait]
impl Image for NbdImage {
    fn size(&self) -> u64 {
        self.size
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    async fn read(&self, offset: u64, len: usize) -> ImageResult<Vec<u8>> {
        let lost = |e: String| ImageError::Unreachable(format!("{:?}: {e}", self.at));
        let _one = self.connections.acquire().await.map_err(|e| lost(e.to_string()))?;
        let mut connection = self.connection().await?;
        let answer = patiently(read(&mut connection, offset, len)).await;
        let answer = answer.map_err(|e| lost(e.to_string()))?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        answer.map_err(|errno| lost(format!("error {errno} for {len} bytes at {offset}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_export_has_a_size() {
        let mut body = vec![0, 0];
        body.extend(77u64.to_be_bytes());
        body.extend([0, 1]);
        assert_eq!(export_of(&body), Some(Export { size: 77, flags: 1 }));
        assert_eq!(export_of(&body[..11]), None);
        body[1] = 3;
        assert_eq!(export_of(&body), None);
        assert_eq!(export_of(&[]), None);
    }
}
