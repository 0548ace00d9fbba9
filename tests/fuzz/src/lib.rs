//! What is fuzzed: one body for each parser of bytes that come from outside.
//!
//! The bodies are used twice: by the fuzzers of this crate (`make fuzz`, needs cargo-fuzz) and by
//! the test `fuzz` of objblk itself, which runs them on stable over the corpus and over mutations
//! of it. A body panics where a parser does, where it allocates more than its bound, or where
//! what it accepted does not encode to what it read.

mod alloc;
mod cache;
mod formats;
mod journal;
mod nbd;
mod stream;
mod text;

pub use alloc::Bound;

/// A parser under test.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: of the fuzzer's binary and of the corpus' directory.
    pub name: &'static str,
    /// Feeds it one input.
    pub body: fn(&[u8]),
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target { name: "chunk", body: formats::chunk },
    Target { name: "record", body: formats::record },
    Target { name: "fence", body: formats::fence },
    Target { name: "map_object", body: formats::map_object },
    Target { name: "page", body: formats::page },
    Target { name: "checkpoint", body: formats::checkpoint },
    Target { name: "snapshot", body: formats::snapshot },
    Target { name: "profile", body: formats::profile },
    Target { name: "journal", body: journal::journal },
    Target { name: "cache", body: cache::cache },
    Target { name: "stream", body: stream::stream },
    Target { name: "sealed", body: formats::sealed },
    Target { name: "json", body: formats::json },
    Target { name: "names", body: text::names },
    Target { name: "size", body: text::size },
    Target { name: "store_url", body: text::store_url },
    Target { name: "settings", body: text::settings },
    Target { name: "image", body: text::image },
    Target { name: "control", body: text::control },
    Target { name: "nbd_handshake", body: nbd::handshake },
    Target { name: "nbd_tls", body: nbd::tls },
    Target { name: "nbd_transmission", body: nbd::transmission },
];

/// Feeds `data` to the target called `name`.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("there is no fuzz target {name:?}")).body)(data);
}
