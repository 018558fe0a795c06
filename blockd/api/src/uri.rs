//! NBD URIs of exports, percent-encoded.

use crate::paths::encode;
use std::path::Path;

/// Returns the URI of an export on a Unix socket: `nbd+unix:///NAME?socket=/abs/nbd.sock`.
///
/// The socket's path should be absolute; invalid UTF-8 is percent-encoded.
pub fn nbd_unix_uri(export: &str, socket: &Path) -> String {
    let socket = encode(socket.as_os_str().as_encoded_bytes(), b"/");
    format!("nbd+unix:///{}?socket={socket}", encode(export.as_bytes(), b""))
}

/// Returns the URI of an export on a TCP listener (`ADDR:PORT`, an IPv6 address in brackets):
/// `nbd://ADDR:PORT/NAME`.
pub fn nbd_tcp_uri(export: &str, address: &str) -> String {
    format!("nbd://{address}/{}", encode(export.as_bytes(), b""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_encoded() {
        assert_eq!(
            nbd_unix_uri("db-1", Path::new("/run/b/nbd.sock")),
            "nbd+unix:///db-1?socket=/run/b/nbd.sock"
        );
        assert_eq!(
            nbd_unix_uri("a", Path::new("/a b/ä&c?+%/s")),
            "nbd+unix:///a?socket=/a%20b/%C3%A4%26c%3F%2B%25/s"
        );
        assert_eq!(nbd_tcp_uri("v", "127.0.0.1:10809"), "nbd://127.0.0.1:10809/v");
    }
}
