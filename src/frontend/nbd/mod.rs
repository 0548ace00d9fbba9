//! NBD server: block devices for QEMU, libnbd, nbd-client and the kernel's nbd driver.
//!
//! ```text
//! listen -> lobby: handshake (TLS) -> connection: input -> request -> execute -> reply -> output
//!                                                           (device)
//! ```
//!
//! Contract: the fixed newstyle protocol with structured replies, `base:allocation` and every
//! command of `doc/proto.md` of the NetworkBlockDevice project but RESIZE, with TLS; extended headers
//! are declined as that document demands. In the words of the protocol: a reply to a write
//! means that later reads see it; a reply to a flush, on any connection, that every write replied
//! to before the flush was sent is durable, which is why multiple connections are announced.
//!
//! Invariants: no byte a client sends makes the server panic, allocate more than [`Limits`]
//! allow, or disturb another client. Lengths are checked before memory is taken for them. What a
//! client may not use, it cannot tell from what is not there. Every
//! request that was begun is finished and answered, also when its client or the server leaves, as
//! long as [`Limits::drain`] permits.
//!
//! Parsing ([`Listen`], options, requests) is pure and total. The data path is one task a
//! connection, without locks, that neither spawns nor allocates for a request the device answers
//! at once. TLS is a stream around the client's socket, so who does not use it does not pay for it.
//! Without TLS nobody is authenticated: listen on a Unix socket or a trusted network.

mod buffer;
mod connection;
mod credentials;
mod execute;
mod exports;
mod handed;
mod handshake;
mod input;
pub(super) mod listen;
mod lobby;
mod options;
mod output;
mod reply;
mod request;
mod rights;
mod server;
mod tls;
mod uri;
mod wire;

pub use exports::{ExportStatus, Exports};
pub use handed::was_handed;
pub use listen::Listen;
pub use rights::Rights;
pub use server::{Limits, Server, Service, serve_client};
pub use tls::{Tls, TlsOptions};
pub use uri::{tcp_uri, unix_uri};
