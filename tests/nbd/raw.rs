//! A client made of a bare socket, for what well-behaved clients cannot be made to do.

pub use crate::wire::*;
use std::io::{self, Read, Write};

pub const OPT_ABORT: u32 = 2;
pub const OPT_LIST: u32 = 3;
pub const OPT_STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const OPT_GO: u32 = 7;
pub const OPT_STRUCTURED_REPLY: u32 = 8;
pub const OPT_LIST_META_CONTEXT: u32 = 9;
pub const OPT_SET_META_CONTEXT: u32 = 10;
pub const OPT_EXTENDED_HEADERS: u32 = 11;
pub const REP_ACK: u32 = 1;
pub const REP_ERR_UNSUP: u32 = 0x8000_0001;
pub const REP_ERR_POLICY: u32 = 0x8000_0002;
pub const REP_ERR_INVALID: u32 = 0x8000_0003;
pub const REP_ERR_TLS_REQD: u32 = 0x8000_0005;
pub const REP_ERR_UNKNOWN: u32 = 0x8000_0006;
pub const REP_ERR_TOO_BIG: u32 = 0x8000_0009;

impl<S: Read + Write> Raw<S> {
    /// One reply to `option`: its type and data.
    pub fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        let magic: [u8; 8] = self.take();
        assert_eq!(magic, 0x0003_e889_0455_65a9u64.to_be_bytes());
        assert_eq!(self.take(), option.to_be_bytes());
        let kind = u32::from_be_bytes(self.take());
        let mut data = vec![0; u32::from_be_bytes(self.take()) as usize];
        self.0.read_exact(&mut data).unwrap();
        (kind, data)
    }

    /// Sends an option; the type of the last reply to it.
    pub fn negotiate(&mut self, option: u32, data: &[u8]) -> u32 {
        self.option(option, data);
        loop {
            let (kind, _) = self.option_reply(option);
            if kind == REP_ACK || kind >> 31 == 1 {
                return kind;
            }
        }
    }

    /// Sends a request without its payload.
    pub fn request(&mut self, kind: u16, cookie: u64, offset: u64, len: u32) {
        self.send(&request(kind, cookie, offset, len));
    }

    /// A simple reply: its cookie and error.
    pub fn reply(&mut self) -> (u64, u32) {
        assert_eq!(self.take(), 0x6744_6698u32.to_be_bytes());
        let error = u32::from_be_bytes(self.take());
        (u64::from_be_bytes(self.take()), error)
    }

    /// True where the server closes the connection without sending anything more.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

pub fn request(kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    flagged(0, kind, cookie, offset, len)
}

/// The data of INFO and GO.
pub fn info_request(export: &str, items: &[u16]) -> Vec<u8> {
    let mut data = counted(export);
    data.extend((items.len() as u16).to_be_bytes());
    items.iter().for_each(|item| data.extend(item.to_be_bytes()));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn meta_request(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = counted(export);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| data.extend(counted(query)));
    data
}

fn counted(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}
