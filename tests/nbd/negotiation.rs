//! The handshake over bare sockets: every option, right and wrong.

use crate::harness::{Ram, ram, runtime, serve};
use crate::raw::*;
use objblk::device::Checked;
use objblk::device::ram::RamDisk;
use objblk::frontend::nbd::Limits;
use objblk::units::{BlockSize, SectorCount};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[test]
fn wrong_options_are_refused_and_haggling_goes_on() {
    let (server, _) = ram(1, BlockSize::B512, None);
    let mut raw = Raw::connect(&server.socket());
    assert_eq!(raw.negotiate(4711, b"whatever"), REP_ERR_UNSUP);
    assert_eq!(raw.negotiate(OPT_EXTENDED_HEADERS, b""), REP_ERR_UNSUP);
    assert_eq!(raw.negotiate(OPT_STARTTLS, b"x"), REP_ERR_INVALID);
    assert_eq!(raw.negotiate(OPT_STARTTLS, b""), REP_ERR_POLICY);
    assert_eq!(raw.negotiate(OPT_LIST, b"x"), REP_ERR_INVALID);
    assert_eq!(raw.negotiate(OPT_STRUCTURED_REPLY, b"x"), REP_ERR_INVALID);
    assert_eq!(raw.negotiate(OPT_GO, b""), REP_ERR_INVALID);
    assert_eq!(raw.negotiate(OPT_GO, &[0xff; 10]), REP_ERR_INVALID);
    assert_eq!(raw.negotiate(OPT_INFO, &info_request("nope", &[])), REP_ERR_UNKNOWN);
    // As long as a name may be, and one longer.
    let long = "é".repeat(2048);
    assert_eq!(raw.negotiate(OPT_INFO, &info_request(&long, &[3])), REP_ERR_UNKNOWN);
    let longer = info_request(&format!("{long}x"), &[]);
    assert_eq!(raw.negotiate(OPT_INFO, &longer), REP_ERR_INVALID);
    assert_eq!(raw.negotiate(OPT_LIST, &vec![0; 5 << 20]), REP_ERR_TOO_BIG);
    // Metadata contexts come after structured replies.
    let meta = meta_request("disk", &["base:allocation"]);
    assert_eq!(raw.negotiate(OPT_SET_META_CONTEXT, &meta), REP_ERR_INVALID);
    assert_eq!(raw.negotiate(OPT_STRUCTURED_REPLY, b""), REP_ACK);
    assert_eq!(raw.negotiate(OPT_SET_META_CONTEXT, &meta), REP_ACK);
    let unknown = meta_request("nope", &["base:allocation"]);
    assert_eq!(raw.negotiate(OPT_LIST_META_CONTEXT, &unknown), REP_ERR_UNKNOWN);
    let mut lying = meta_request("disk", &[]);
    lying.truncate(lying.len() - 4);
    lying.extend(u32::MAX.to_be_bytes());
    assert_eq!(raw.negotiate(OPT_SET_META_CONTEXT, &lying), REP_ERR_INVALID);
    assert_eq!(raw.negotiate(OPT_LIST, b""), REP_ACK);
    assert_eq!(raw.negotiate(OPT_ABORT, b""), REP_ACK);
    assert!(raw.is_closed());
    server.stop().unwrap();
}

#[test]
fn info_items_are_sent_as_asked() {
    let (server, _) = ram(1, BlockSize::B4096, None);
    let mut raw = Raw::connect(&server.socket());
    raw.option(OPT_INFO, &info_request("", &[1, 2, 3, 999]));
    let items: Vec<_> = (0..4).map(|_| raw.option_reply(OPT_INFO)).collect();
    assert!(items.iter().all(|(kind, _)| *kind == 3));
    assert_eq!(items[0].1[..10], [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0]);
    assert_eq!(items[1].1, b"\0\x01disk");
    assert_eq!(items[2].1, b"\0\x02about disk");
    assert_eq!(items[3].1, [0, 3, 0, 0, 16, 0, 0, 0, 16, 0, 2, 0, 0, 0]);
    assert_eq!(raw.option_reply(OPT_INFO).0, REP_ACK);
    // Nothing asked for: the export's size and flags all the same, without DF.
    raw.option(OPT_GO, &info_request("disk", &[]));
    let (_, export) = raw.option_reply(OPT_GO);
    assert_eq!(export[..2], [0, 0]);
    let flags = u16::from_be_bytes([export[10], export[11]]);
    assert_eq!(flags & (1 << 7), 0, "DF without structured replies");
    assert_eq!(raw.option_reply(OPT_GO).0, REP_ACK);
    raw.request(CMD_READ, 1, 0, 4096);
    assert_eq!(raw.reply(), (1, 0));
    let _: [u8; 4096] = raw.take();
    raw.request(CMD_DISC, 2, 0, 0);
    assert!(raw.is_closed());
    server.stop().unwrap();
}

#[test]
fn a_selection_is_for_one_export() {
    let disk = || -> Ram { Arc::new(Checked::new(RamDisk::new(SectorCount(8), BlockSize::B512))) };
    let offers = vec![("a", disk()), ("b", disk())];
    let server = serve(runtime(), false, Limits::default(), offers);
    for (selected, chosen, works) in [("a", "a", true), ("a", "b", false)] {
        let mut raw = Raw::connect(&server.socket());
        assert_eq!(raw.negotiate(OPT_STRUCTURED_REPLY, b""), REP_ACK);
        let meta = meta_request(selected, &["base:allocation"]);
        assert_eq!(raw.negotiate(OPT_SET_META_CONTEXT, &meta), REP_ACK);
        assert_eq!(raw.negotiate(OPT_GO, &info_request(chosen, &[])), REP_ACK);
        raw.request(7, 1, 0, 512);
        let header: [u8; 20] = raw.take();
        let kind = u16::from_be_bytes([header[6], header[7]]);
        assert_eq!(kind, if works { 5 } else { 0x8001 }, "selected {selected}, chose {chosen}");
    }
    server.stop().unwrap();
}

#[test]
fn violations_end_the_session() {
    let (server, _) = ram(1, BlockSize::B512, None);
    let mut unknown_flags = Raw::silent(&server.socket());
    let _: [u8; 18] = unknown_flags.take();
    unknown_flags.send(&[0, 0, 0, 0x7]);
    assert!(unknown_flags.is_closed());
    let mut no_magic = Raw::connect(&server.socket());
    no_magic.send(&[b'x'; 16]);
    assert!(no_magic.is_closed());
    let mut no_such_name = Raw::connect(&server.socket());
    no_such_name.option(OPT_EXPORT_NAME, b"nope");
    assert!(no_such_name.is_closed());
    let mut bad_name = Raw::connect(&server.socket());
    bad_name.option(OPT_EXPORT_NAME, &[0xff, 0xfe]);
    assert!(bad_name.is_closed());
    server.stop().unwrap();
}

#[test]
fn a_handshake_has_a_time_limit() {
    let disk: Ram = Arc::new(Checked::new(RamDisk::new(SectorCount(8), BlockSize::B512)));
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let server = serve(runtime(), false, limits, vec![("disk", disk)]);
    let began = Instant::now();
    let mut silent = Raw::silent(&server.socket());
    let _: [u8; 18] = silent.take();
    assert!(silent.is_closed());
    let took = began.elapsed();
    assert!((300..2000).contains(&took.as_millis()), "{took:?}");
    // The limit is not one on the session.
    let mut raw = Raw::transmission(&server.socket());
    std::thread::sleep(Duration::from_millis(500));
    raw.request(CMD_READ, 1, 0, 512);
    assert_eq!(raw.reply(), (1, 0));
    server.stop().unwrap();
}
