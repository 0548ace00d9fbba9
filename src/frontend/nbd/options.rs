//! Handshake options as a client sends them: bytes in, typed options out.
//!
//! Contract: total over any bytes, no allocation, no I/O. What a client may get wrong comes back
//! as a text for it to read; only a wrong magic number is beyond an answer.

use super::wire::{
    BASE_ALLOCATION, BASE_NAMESPACE, Cursor, MAX_STRING, OPTION_MAGIC, info, option,
};

/// Length of the header of an option.
pub(super) const OPTION_HEADER_LEN: usize = 16;

/// Longest option data that is read into memory; every valid option fits.
pub(super) const MAX_OPTION_DATA: u32 = 16 << 10;

/// Header of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OptionHeader {
    /// Number of the option.
    pub(super) option: u32,
    /// Bytes of data that follow; not yet checked against anything.
    pub(super) len: u32,
}

impl OptionHeader {
    /// The header in `bytes`; `None` where the magic number is wrong.
    pub(super) fn parse(bytes: &[u8; OPTION_HEADER_LEN]) -> Option<OptionHeader> {
        let mut cursor = Cursor(bytes);
        if cursor.u64()? != OPTION_MAGIC {
            return None;
        }
        Some(OptionHeader { option: cursor.u32()?, len: cursor.u32()? })
    }
}

/// An option with its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientOption<'a> {
    /// Go to transmission with this export; there is no way to answer with an error.
    ExportName(&'a str),
    /// End the session.
    Abort,
    /// Name the exports.
    List,
    /// Upgrade the connection to TLS.
    StartTls,
    /// Describe an export.
    Info(InfoRequest<'a>),
    /// Describe an export, then go to transmission with it.
    Go(InfoRequest<'a>),
    /// Use structured replies.
    StructuredReply,
    /// Name the metadata contexts that match; true where `base:allocation` does.
    ListMetaContext(&'a str, bool),
    /// Select the metadata contexts that match; true where `base:allocation` does.
    SetMetaContext(&'a str, bool),
    /// Not known here.
    Unknown,
}

/// What INFO and GO ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InfoRequest<'a> {
    /// Name of the export.
    pub(super) export: &'a str,
    /// Its canonical name is asked for.
    pub(super) name: bool,
    /// Its description is asked for.
    pub(super) description: bool,
    /// Its block sizes are asked for.
    pub(super) block_size: bool,
}

/// Interprets the data of option number `number`. The error is for the client to read.
pub(super) fn parse_option(number: u32, data: &[u8]) -> Result<ClientOption<'_>, &'static str> {
    match number {
        option::EXPORT_NAME => Ok(ClientOption::ExportName(string(data)?)),
        option::ABORT => Ok(ClientOption::Abort),
        option::LIST => empty(data, ClientOption::List),
        option::STARTTLS => empty(data, ClientOption::StartTls),
        option::INFO => Ok(ClientOption::Info(info_request(data)?)),
        option::GO => Ok(ClientOption::Go(info_request(data)?)),
        option::STRUCTURED_REPLY => empty(data, ClientOption::StructuredReply),
        option::LIST_META_CONTEXT => {
            let (export, queries) = meta_export(data)?;
            let listed = |query: &str| query == BASE_ALLOCATION || query == BASE_NAMESPACE;
            let none_asked = queries.0 == 0;
            Ok(ClientOption::ListMetaContext(export, any_query(queries, listed)? || none_asked))
        }
        option::SET_META_CONTEXT => {
            let (export, queries) = meta_export(data)?;
            let selected = any_query(queries, |query: &str| query == BASE_ALLOCATION)?;
            Ok(ClientOption::SetMetaContext(export, selected))
        }
        _ => Ok(ClientOption::Unknown),
    }
}

const TRUNCATED: &str = "the option's data ends too early";

fn empty<'a>(data: &[u8], option: ClientOption<'a>) -> Result<ClientOption<'a>, &'static str> {
    if data.is_empty() { Ok(option) } else { Err("this option takes no data") }
}

fn string(bytes: &[u8]) -> Result<&str, &'static str> {
    if bytes.len() > MAX_STRING {
        return Err("a string is longer than 4096 bytes");
    }
    let text = std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8")?;
    if text.contains('\0') { Err("a string contains a NUL") } else { Ok(text) }
}

fn counted_string<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, &'static str> {
    let len = cursor.u32().ok_or(TRUNCATED)?;
    string(cursor.bytes(len as usize).ok_or(TRUNCATED)?)
}

fn info_request(data: &[u8]) -> Result<InfoRequest<'_>, &'static str> {
    let mut cursor = Cursor(data);
    let export = counted_string(&mut cursor)?;
    let count = cursor.u16().ok_or(TRUNCATED)?;
    if cursor.0.len() != 2 * usize::from(count) {
        return Err("the number of information requests does not match the option's length");
    }
    let mut request = InfoRequest { export, name: false, description: false, block_size: false };
    while let Some(item) = cursor.u16() {
        match item {
            info::NAME => request.name = true,
            info::DESCRIPTION => request.description = true,
            info::BLOCK_SIZE => request.block_size = true,
            // EXPORT is always sent; unknown items are to be ignored.
            _ => {}
        }
    }
    Ok(request)
}

/// Number of queries and the bytes that hold them.
type Queries<'a> = (u32, Cursor<'a>);

fn meta_export(data: &[u8]) -> Result<(&str, Queries<'_>), &'static str> {
    let mut cursor = Cursor(data);
    let export = counted_string(&mut cursor)?;
    let count = cursor.u32().ok_or(TRUNCATED)?;
    Ok((export, (count, cursor)))
}

/// True where one of the queries matches. Each must be well-formed, matching or not.
fn any_query(
    (count, mut cursor): Queries<'_>,
    matches: impl Fn(&str) -> bool,
) -> Result<bool, &'static str> {
    let mut any = false;
    // Ends early on a count that lies: each turn takes at least four bytes or fails.
    for _ in 0..count {
        let query = counted_string(&mut cursor)?;
        if !query.contains(':') {
            return Err("a metadata context query must begin with a namespace and a colon");
        }
        any |= matches(query);
    }
    if cursor.is_empty() { Ok(any) } else { Err("there is data after the last query") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counted(text: &str) -> Vec<u8> {
        let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    fn meta(export: &str, queries: &[&str]) -> Vec<u8> {
        let mut bytes = counted(export);
        bytes.extend((queries.len() as u32).to_be_bytes());
        queries.iter().for_each(|query| bytes.extend(counted(query)));
        bytes
    }

    #[test]
    fn info_items() {
        let mut data = counted("vol@snap");
        data.extend([0, 3, 0, 3, 0, 1, 0, 77]);
        let want =
            InfoRequest { export: "vol@snap", name: true, description: false, block_size: true };
        assert_eq!(parse_option(option::GO, &data), Ok(ClientOption::Go(want)));
        data.pop();
        assert!(parse_option(option::INFO, &data).is_err());
    }

    #[test]
    fn meta_context_queries() {
        let list = |q: &[&str]| {
            parse_option(option::LIST_META_CONTEXT, &meta("v", q))
                .is_ok_and(|option| option == ClientOption::ListMetaContext("v", true))
        };
        let set = |q: &[&str]| {
            parse_option(option::SET_META_CONTEXT, &meta("v", q))
                .is_ok_and(|option| option == ClientOption::SetMetaContext("v", true))
        };
        assert!(list(&[]) && list(&["base:"]) && list(&["qemu:x", "base:allocation"]));
        assert!(!list(&["qemu:"]) && !list(&["base:other"]));
        assert!(set(&["base:allocation"]) && !set(&[]) && !set(&["base:"]));
        let no_namespace = meta("v", &["allocation"]);
        assert!(parse_option(option::SET_META_CONTEXT, &no_namespace).is_err());
        let mut lying = counted("v");
        lying.extend(u32::MAX.to_be_bytes());
        assert!(parse_option(option::SET_META_CONTEXT, &lying).is_err());
        let mut trailing = meta("v", &["base:allocation"]);
        trailing.push(0);
        assert!(parse_option(option::SET_META_CONTEXT, &trailing).is_err());
    }

    #[test]
    fn names_are_checked() {
        assert!(parse_option(option::EXPORT_NAME, &[0xff]).is_err());
        assert!(parse_option(option::EXPORT_NAME, b"a\0b").is_err());
        assert!(parse_option(option::EXPORT_NAME, &[b'x'; MAX_STRING + 1]).is_err());
        assert!(parse_option(option::EXPORT_NAME, &[b'x'; MAX_STRING]).is_ok());
        assert!(parse_option(option::LIST, b"x").is_err());
        assert_eq!(parse_option(4711, b"x"), Ok(ClientOption::Unknown));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(
            number in 0u32..16,
            data in proptest::collection::vec(any::<u8>(), 0..128),
            header in any::<[u8; OPTION_HEADER_LEN]>(),
        ) {
            let _ = parse_option(number, &data);
            prop_assert!(OptionHeader::parse(&header).is_none_or(|h| header.ends_with(&h.len.to_be_bytes())));
        }

        #[test]
        fn queries_round_trip(export in "[a-z@/]{0,40}", queries in proptest::collection::vec("[a-z]{1,6}:[a-z]{0,8}", 0..6)) {
            let queries: Vec<&str> = queries.iter().map(String::as_str).collect();
            let data = meta(&export, &queries);
            let selected = queries.contains(&BASE_ALLOCATION);
            prop_assert_eq!(
                parse_option(option::SET_META_CONTEXT, &data),
                Ok(ClientOption::SetMetaContext(&export, selected))
            );
            // Every strict prefix is refused.
            for cut in 0..data.len() {
                prop_assert!(parse_option(option::SET_META_CONTEXT, &data[..cut]).is_err());
            }
        }
    }
}
