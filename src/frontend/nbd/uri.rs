//! NBD URIs, as every NBD client takes them.
//!
//! Source: `doc/uri.md` of the NetworkBlockDevice project and RFC 3986: `nbd://HOST:PORT/NAME`
//! and `nbd+unix:///NAME?socket=PATH`, `nbds` in place of `nbd` where TLS is used, with everything
//! that is not plainly harmless percent-encoded.

use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// URI of the export `name` on a Unix socket.
pub fn unix_uri(socket: &Path, name: &str, tls: bool) -> String {
    let socket = encode(socket.as_os_str().as_bytes(), b"/");
    format!("{}+unix:///{}?socket={socket}", scheme(tls), encode(name.as_bytes(), b"@"))
}

fn scheme(tls: bool) -> &'static str {
    if tls { "nbds" } else { "nbd" }
}

/// URI of the export `name` at a TCP address. A server that listens on every address is named by
/// `host`.
pub fn tcp_uri(address: SocketAddr, host: &str, name: &str, tls: bool) -> String {
    let (name, scheme) = (encode(name.as_bytes(), b"@"), scheme(tls));
    if address.ip().is_unspecified() {
        let host = encode(host.as_bytes(), b"");
        return format!("{scheme}://{host}:{}/{name}", address.port());
    }
    // Without an IPv6 zone, which the clients' URI parser does not know.
    let address = SocketAddr::new(address.ip(), address.port());
    format!("{scheme}://{address}/{name}")
}

fn encode(bytes: &[u8], also_plain: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        if plain || also_plain.contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix() {
        let uri = unix_uri(Path::new("/run/my disk?.sock"), "vol@monday", false);
        assert_eq!(uri, "nbd+unix:///vol@monday?socket=/run/my%20disk%3F.sock");
        assert_eq!(unix_uri(Path::new("/s"), "", true), "nbds+unix:///?socket=/s");
        assert_eq!(unix_uri(Path::new("/s"), "/é&", false), "nbd+unix:///%2F%C3%A9%26?socket=/s");
    }

    #[test]
    fn tcp() {
        let uri = |address: &str| tcp_uri(address.parse().unwrap(), "box", "a b", false);
        assert_eq!(uri("127.0.0.1:10809"), "nbd://127.0.0.1:10809/a%20b");
        assert_eq!(uri("[::1]:7"), "nbd://[::1]:7/a%20b");
        assert_eq!(uri("0.0.0.0:7"), "nbd://box:7/a%20b");
        assert_eq!(tcp_uri("[::]:7".parse().unwrap(), "box", "a", true), "nbds://box:7/a");
    }
}
