//! The on-store format: golden samples of every object, and parsers that are total.

#![allow(clippy::unwrap_used)]

#[path = "format/golden.rs"]
mod golden;
#[path = "format/samples.rs"]
mod samples;
#[path = "format/total.rs"]
mod total;
