//! The handshake: fixed newstyle negotiation, from the greeting to a chosen export.
//!
//! Contract: whatever the client sends, [`negotiate`] ends with a session, with TLS to begin, with a
//! polite end or with an error that closes this connection only. Option data is read into memory up
//! to 16 KiB; longer data is read past and refused. The caller bounds the time.
//!
//! After TLS began, negotiation begins anew: nothing that was agreed on in the clear is kept, but
//! how long the answer to EXPORT_NAME is. Where TLS is required, a client in the clear learns nothing
//! but that.
//!
//! Nothing is read beyond what the client has to send before it gets an answer, so the
//! transmission phase, and TLS, start with a clean stream.

use super::execute::Session;
use super::exports::{Export, Exports};
use super::options::{
    ClientOption, InfoRequest, MAX_OPTION_DATA, OPTION_HEADER_LEN, OptionHeader, parse_option,
};
use super::rights::{Access, Granted};
use super::wire::{
    BASE_ALLOCATION, BASE_ALLOCATION_ID, INIT_MAGIC, MAX_PAYLOAD, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    handshake_flag, info, option, option_reply,
};
use crate::device::BlockDevice;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The block size that is announced as preferred: what file systems use.
const PREFERRED_BLOCK: u32 = 4096;

/// Zeroes that end the answer to EXPORT_NAME, unless the client asked to be spared.
const RESERVED_ZEROES: usize = 124;

/// What there is about TLS on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Security {
    /// The server has none.
    Absent,
    /// The client may begin it.
    Offered,
    /// The client has to begin it.
    Required,
    /// It is in use.
    Active,
}

/// What a connection's negotiation goes by.
#[derive(Debug)]
pub(super) struct Terms<'a, D> {
    pub(super) exports: &'a Exports<D>,
    /// One permit for each connection that may be in the transmission phase.
    pub(super) seats: &'a Arc<Semaphore>,
    pub(super) security: Security,
    pub(super) granted: &'a Granted,
    /// What [`greet`] said.
    pub(super) no_zeroes: bool,
}

/// How a negotiation ends, if not with an error.
#[derive(Debug)]
pub(super) enum Agreement<D> {
    /// The client left.
    Left,
    /// TLS begins with the next byte.
    StartTls,
    /// The client has its export.
    Session(Session<D>),
}

/// Exchanges greetings. True where the client spares itself zeroes in the answer to EXPORT_NAME.
pub(super) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<bool> {
    use handshake_flag::{FIXED_NEWSTYLE, NO_ZEROES};
    let mut greeting = INIT_MAGIC.to_be_bytes().to_vec();
    greeting.extend(OPTION_MAGIC.to_be_bytes());
    greeting.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&greeting).await?;
    let flags = stream.read_u32().await?;
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
        return Err(violation(format!("unknown client flags {flags:#x}")));
    }
    Ok(flags & u32::from(NO_ZEROES) != 0)
}

/// Answers the client's options until it chooses an export, begins TLS, or leaves.
pub(super) async fn negotiate<S, D>(
    stream: &mut S,
    terms: &Terms<'_, D>,
) -> io::Result<Agreement<D>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: BlockDevice,
{
    let mut negotiation =
        Negotiation { stream, terms, out: Vec::new(), structured: false, allocation_of: None };
    let mut data = Vec::new();
    loop {
        let Some(number) = negotiation.read_option(&mut data).await? else { continue };
        let in_the_clear = matches!(number, option::STARTTLS | option::ABORT);
        let step = match parse_option(number, &data) {
            _ if terms.security == Security::Required && !in_the_clear => {
                let text = "this server requires TLS: begin it first";
                negotiation.refuse(number, option_reply::ERR_TLS_REQD, text)?
            }
            Ok(option) => negotiation.answer(number, option)?,
            Err(text) => negotiation.refuse(number, option_reply::ERR_INVALID, text)?,
        };
        negotiation.stream.write_all(&negotiation.out).await?;
        negotiation.stream.flush().await?;
        negotiation.out.clear();
        match step {
            Step::Next => {}
            Step::End(agreement) => return Ok(agreement),
        }
    }
}

fn violation(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

/// What follows the answer to an option.
enum Step<D> {
    Next,
    End(Agreement<D>),
}

struct Negotiation<'a, S, D> {
    stream: &'a mut S,
    terms: &'a Terms<'a, D>,
    /// Answer to the present option.
    out: Vec<u8>,
    structured: bool,
    /// The export for which `base:allocation` is selected.
    allocation_of: Option<Arc<Export<D>>>,
}

impl<S, D> Negotiation<'_, S, D>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: BlockDevice,
{
    /// Reads an option into `data`; `None` where it was too long and is refused.
    async fn read_option(&mut self, data: &mut Vec<u8>) -> io::Result<Option<u32>> {
        let mut header = [0; OPTION_HEADER_LEN];
        self.stream.read_exact(&mut header).await?;
        let header = OptionHeader::parse(&header)
            .ok_or_else(|| violation("an option without its magic number"))?;
        if header.len > MAX_OPTION_DATA {
            let mut rest = (&mut *self.stream).take(u64::from(header.len));
            let skipped = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
            if skipped < u64::from(header.len) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let text = format!("option data is longer than {MAX_OPTION_DATA} bytes");
            self.refuse(header.option, option_reply::ERR_TOO_BIG, &text)?;
            self.stream.write_all(&self.out).await?;
            self.out.clear();
            return Ok(None);
        }
        data.resize(header.len as usize, 0);
        self.stream.read_exact(data).await?;
        Ok(Some(header.option))
    }

    fn answer(&mut self, number: u32, option: ClientOption<'_>) -> io::Result<Step<D>> {
        match option {
            ClientOption::ExportName(name) => self.export_name(name),
            ClientOption::Abort => {
                self.reply(number, option_reply::ACK, &[]);
                Ok(Step::End(Agreement::Left))
            }
            ClientOption::List => {
                for (export, _) in self.terms.exports.visible(self.terms.granted) {
                    let mut item = (export.name.len() as u32).to_be_bytes().to_vec();
                    item.extend_from_slice(export.name.as_bytes());
                    item.extend_from_slice(export.description.as_bytes());
                    self.reply(number, option_reply::SERVER, &item);
                }
                Ok(self.accept(number))
            }
            ClientOption::StartTls => match self.terms.security {
                Security::Absent => {
                    self.refuse(number, option_reply::ERR_POLICY, "this server does not offer TLS")
                }
                Security::Active => {
                    self.refuse(number, option_reply::ERR_INVALID, "TLS is in use already")
                }
                Security::Offered | Security::Required => {
                    self.reply(number, option_reply::ACK, &[]);
                    Ok(Step::End(Agreement::StartTls))
                }
            },
            ClientOption::Info(request) => self.info(number, request),
            ClientOption::Go(request) => self.info(number, request),
            ClientOption::StructuredReply => {
                self.structured = true;
                Ok(self.accept(number))
            }
            ClientOption::ListMetaContext(name, matches) => self.contexts(number, name, matches, 0),
            ClientOption::SetMetaContext(name, matches) => {
                // A selection replaces the one before, even where it fails.
                self.allocation_of = None;
                self.contexts(number, name, matches, BASE_ALLOCATION_ID)
            }
            ClientOption::Unknown => self.refuse(number, option_reply::ERR_UNSUP, "unknown option"),
        }
    }

    fn export_name(&mut self, name: &str) -> io::Result<Step<D>> {
        // This option has no error reply: the protocol demands a hard disconnect.
        let found = self.find(name).ok_or_else(|| violation(no_export(name)))?;
        let seat = self.seat().ok_or_else(|| violation(NO_SEAT))?;
        let (export, access) = &found;
        self.out.extend(export.device.geometry().size.bytes().to_be_bytes());
        self.out.extend(export.flags(self.structured, *access).to_be_bytes());
        if !self.terms.no_zeroes {
            self.out.extend([0; RESERVED_ZEROES]);
        }
        Ok(Step::End(Agreement::Session(self.session(found, seat))))
    }

    fn info(&mut self, number: u32, request: InfoRequest<'_>) -> io::Result<Step<D>> {
        let Some((export, access)) = self.find(request.export) else {
            return self.refuse(number, option_reply::ERR_UNKNOWN, &no_export(request.export));
        };
        let seat = match number {
            option::GO => match self.seat() {
                None => return self.refuse(number, option_reply::ERR_POLICY, NO_SEAT),
                seat => seat,
            },
            _ => None,
        };
        let geometry = export.device.geometry();
        let mut item = info::EXPORT.to_be_bytes().to_vec();
        item.extend(geometry.size.bytes().to_be_bytes());
        item.extend(export.flags(self.structured, access).to_be_bytes());
        self.reply(number, option_reply::INFO, &item);
        let mut text_item = |wanted: bool, kind: u16, text: &str| {
            if wanted && !text.is_empty() {
                let item = [&kind.to_be_bytes(), text.as_bytes()].concat();
                self.reply(number, option_reply::INFO, &item);
            }
        };
        text_item(request.name, info::NAME, &export.name);
        text_item(request.description, info::DESCRIPTION, &export.description);
        if request.block_size {
            let mut item = info::BLOCK_SIZE.to_be_bytes().to_vec();
            for size in [geometry.block_size.bytes(), PREFERRED_BLOCK, MAX_PAYLOAD] {
                item.extend(size.to_be_bytes());
            }
            self.reply(number, option_reply::INFO, &item);
        }
        self.reply(number, option_reply::ACK, &[]);
        Ok(match seat {
            Some(seat) => Step::End(Agreement::Session(self.session((export, access), seat))),
            None => Step::Next,
        })
    }

    fn contexts(&mut self, number: u32, name: &str, matches: bool, id: u32) -> io::Result<Step<D>> {
        if !self.structured {
            let text = "metadata contexts need structured replies: negotiate those first";
            return self.refuse(number, option_reply::ERR_INVALID, text);
        }
        let Some((export, _)) = self.find(name) else {
            return self.refuse(number, option_reply::ERR_UNKNOWN, &no_export(name));
        };
        if matches {
            if number == option::SET_META_CONTEXT {
                self.allocation_of = Some(export);
            }
            let item = [&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()].concat();
            self.reply(number, option_reply::META_CONTEXT, &item);
        }
        Ok(self.accept(number))
    }

    fn find(&self, name: &str) -> Option<(Arc<Export<D>>, Access)> {
        let found = self.terms.exports.find(name, self.terms.granted);
        found.map(|(export, access)| (Arc::clone(export), access))
    }

    fn seat(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(self.terms.seats).try_acquire_owned().ok()
    }

    fn session(
        &mut self,
        (export, access): (Arc<Export<D>>, Access),
        seat: OwnedSemaphorePermit,
    ) -> Session<D> {
        let selected = self.allocation_of.take();
        let allocation = selected.is_some_and(|of| Arc::ptr_eq(&of, &export));
        Session { export, structured: self.structured, allocation, access, _seat: seat }
    }

    fn accept(&mut self, number: u32) -> Step<D> {
        self.reply(number, option_reply::ACK, &[]);
        Step::Next
    }

    /// Answers with an error, which EXPORT_NAME does not have.
    fn refuse(&mut self, number: u32, kind: u32, text: &str) -> io::Result<Step<D>> {
        if number == option::EXPORT_NAME {
            return Err(violation(text));
        }
        // A client's own long name must not make a message longer than the protocol allows.
        self.reply(number, kind, &text.as_bytes()[..text.floor_char_boundary(1024)]);
        Ok(Step::Next)
    }

    fn reply(&mut self, number: u32, kind: u32, data: &[u8]) {
        self.out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend(number.to_be_bytes());
        self.out.extend(kind.to_be_bytes());
        self.out.extend((data.len() as u32).to_be_bytes());
        self.out.extend_from_slice(data);
    }
}

/// What a client is told for whom there is no room.
const NO_SEAT: &str = "the server has as many connections as it may have";

fn no_export(name: &str) -> String {
    if name.is_empty() {
        "there is no default export: name one (a list can be asked for)".into()
    } else {
        format!("there is no export named {name:?}")
    }
}
