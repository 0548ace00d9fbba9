//! The formats in the store, of the journal, of the disk cache and of streams: golden samples of every object, and parsers that
//! are total.

#![allow(clippy::unwrap_used)]

#[path = "format/cache.rs"]
mod cache;
#[path = "format/golden.rs"]
mod golden;
#[path = "format/journal.rs"]
mod journal;
#[path = "format/samples.rs"]
mod samples;
#[path = "format/stream.rs"]
mod stream;
#[path = "format/total.rs"]
mod total;
