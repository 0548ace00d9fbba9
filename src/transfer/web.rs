//! Images on a web server, fetched by `curl`.
//!
//! `curl` knows proxies, redirects, certificates and authentication as users expect it, and is on most hosts;
//! a server that serves parts (most do) is asked for several at once. Every answer says which state of the
//! image it is a part of (length, entity tag, time): an image that is replaced meanwhile is an error, never
//! a mixture.

use super::answer::Answer;
use super::image::HEAD;
use super::program;
use super::window::Piece;
use crate::error::{Error, ErrorKind, Result};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, ChildStdout, Command};

/// How often a part is asked for before that is an error, and the pause between, which doubles.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(250);

/// Bytes of the heads of answers that are read at most.
const HEADS_MAX: usize = 64 << 10;

/// True for what is an address of this kind.
pub fn is_url(text: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| {
        text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    })
}

/// A URL without what may be secret: user, password, query.
pub fn shown(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
}

/// An image on a server that serves parts of it.
#[derive(Debug)]
pub struct Remote {
    url: String,
    size: u64,
    first: Answer,
}

/// What is at a URL.
#[derive(Debug)]
pub enum Found {
    /// An image of which parts can be had, with its first bytes.
    Parts(Remote, Vec<u8>),
    /// One that comes as a whole, of this length if that is known.
    Whole(Option<u64>),
}

impl Remote {
    /// Bytes of a piece: larger than those of files, as each is a request.
    pub(super) const PIECE: u64 = 16 << 20;

    /// Looks what is at `url`.
    ///
    /// Errors: not found; failed, where it cannot be had.
    pub async fn look(url: &str) -> Result<Found> {
        let part = Piece { start: 0, len: HEAD };
        let mut attempts = Attempts::default();
        let (answer, body) = loop {
            match fetch(url, part).await {
                Ok((Answer { status: status @ (429 | 500..), .. }, _)) => {
                    attempts.after(refused(url, status)).await?;
                }
                Ok(answer) => break answer,
                Err(e) => attempts.after(e).await?,
            }
        };
        match (answer.status, answer.total) {
            (206, Some(size))
                if answer.start == Some(0) && body.len() as u64 == size.min(HEAD as u64) =>
            {
                Ok(Found::Parts(Remote { url: url.into(), size, first: answer }, body))
            }
            (200 | 206, total) => Ok(Found::Whole(total)),
            (416, _) => Err(Error::failed(format!("{} is empty", shown(url)))),
            (status, _) => Err(refused(url, status)),
        }
    }

    /// Its size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// What tells it from another state of it, to be resumed with, after `format`; `None` where the server
    /// does not tell.
    pub fn fingerprint(&self, format: &str) -> Option<String> {
        let state = self.first.tag.as_ref().or(self.first.modified.as_ref())?;
        Some(format!("{format} {} {}", self.size, state.chars().take(1024).collect::<String>()))
    }

    /// The bytes of a piece. Errors: failed, where they cannot be had; corrupt, where they are of another state.
    pub(super) async fn read(&self, piece: Piece) -> Result<Vec<u8>> {
        let mut attempts = Attempts::default();
        loop {
            match self.attempt(piece).await {
                Err(e) if e.kind() == ErrorKind::Failed => attempts.after(e).await?,
                done => return done,
            }
        }
    }

    async fn attempt(&self, piece: Piece) -> Result<Vec<u8>> {
        let (answer, body) = fetch(&self.url, piece).await?;
        if answer.status != 206 {
            return Err(refused(&self.url, answer.status));
        }
        if !answer.is_of_the_same(&self.first) {
            let text = format!("{} was changed while it was read", shown(&self.url));
            return Err(Error::new(ErrorKind::Corrupt, text).hint("import it again"));
        }
        if answer.start != Some(piece.start) || body.len() != piece.len {
            let text = format!("{} gives another part than was asked for", shown(&self.url));
            return Err(Error::failed(text));
        }
        Ok(body)
    }
}

fn refused(url: &str, status: u16) -> Error {
    let kind = if matches!(status, 404 | 410) { ErrorKind::NotFound } else { ErrorKind::Failed };
    Error::new(kind, format!("the server answers {status} for {}", shown(url)))
}

/// Attempts at what may fail for a reason that passes.
#[derive(Debug, Default)]
struct Attempts(u32);

impl Attempts {
    /// Waits before the next one. Errors: `e`, after the last one.
    async fn after(&mut self, e: Error) -> Result<()> {
        self.0 += 1;
        if self.0 >= ATTEMPTS {
            return Err(e);
        }
        let pause = PAUSE * (1 << self.0);
        tracing::info!("trying again in {pause:?}: {e}");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// `curl` for one answer to this URL, to standard output.
fn curl(url: &str) -> Command {
    let mut command = Command::new("curl");
    // No settings of the user's: some change what is printed. Proxies are those of the environment.
    command.args(["--disable", "--silent", "--show-error", "--location", "--globoff"]);
    command.args(["--proto", "=http,https", "--connect-timeout", "30"]);
    // A connection that stands still for a minute is given up.
    command.args(["--speed-limit", "1", "--speed-time", "60", "--url", url]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// One part, with what the server says of it; or what it says of the whole, with as much of that as was read
/// until it proved to be more than was asked for.
async fn fetch(url: &str, part: Piece) -> Result<(Answer, Vec<u8>)> {
    let mut command = curl(url);
    command.arg("--range").arg(format!("{}-{}", part.start, part.end() - 1));
    command.args(["--dump-header", "-", "--suppress-connect-headers"]);
    let mut child = program::spawn(&mut command, "curl")?;
    let (most, mut bytes) = ((HEADS_MAX + part.len) as u64, Vec::new());
    let read = match child.stdout.take() {
        Some(stdout) => stdout.take(most).read_to_end(&mut bytes).await,
        None => Ok(0),
    };
    read.map_err(|e| Error::failed("cannot read what curl prints").because(e))?;
    let too_large = bytes.len() as u64 == most;
    if too_large {
        // It may have ended.
        let _ = child.start_kill();
    }
    let ended = child.wait_with_output().await;
    let ended = ended.map_err(|e| Error::failed("cannot wait for curl").because(e))?;
    let failed = || {
        let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        Error::failed(format!("cannot fetch {}", shown(url))).because(said)
    };
    let (answer, body) = Answer::parse(&bytes).ok_or_else(failed)?;
    match ended.status.success() || (too_large && answer.status == 200) {
        true => Ok((answer, bytes.split_off(body))),
        false => Err(failed()),
    }
}

/// An image on its way.
#[derive(Debug)]
pub struct Download {
    child: Child,
    url: String,
}

impl Download {
    /// Begins to fetch all of `url`. Errors: failed, where there is no curl.
    pub fn begin(url: &str) -> Result<(Download, ChildStdout)> {
        let mut command = curl(url);
        let mut child = program::spawn(command.arg("--fail"), "curl")?;
        let stdout = child.stdout.take().ok_or_else(|| Error::failed("curl has no output"))?;
        Ok((Download { child, url: url.into() }, stdout))
    }

    /// Ends behind the last byte. Errors: failed, not found: where that was not the end of the image.
    pub async fn end(self) -> Result<()> {
        let url = shown(&self.url);
        let ended = self.child.wait_with_output().await;
        let ended = ended.map_err(|e| Error::failed("cannot wait for curl").because(e))?;
        if ended.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        Err(Error::failed(format!("cannot fetch {url}")).because(said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_a_url_are_not_shown() {
        assert!(is_url("HTTPS://x") && is_url("http://x") && !is_url("./http://x") && !is_url("h"));
        let shown_one = shown("https://me:secret@host:8/a/b.img?signature=secret#x");
        assert_eq!(shown_one, "https://host:8/a/b.img");
        assert_eq!(shown("http://host"), "http://host");
    }
}
