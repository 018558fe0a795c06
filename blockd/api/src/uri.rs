//! Percent-encoding, queries, and NBD URIs of exports.

use serde::Serialize;
use std::{fmt::Write, path::Path};

/// Percent-encodes all bytes except unreserved characters of RFC 3986 and those in `also_plain`.
pub(crate) fn encode(bytes: &[u8], also_plain: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || also_plain.contains(byte);
        if plain {
            text.push(char::from(*byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// Adds the fields of a flat query type to a path, without null fields.
///
/// Fails only if the query is not a flat structure, a bug of its type.
pub(crate) fn with_query<Q: Serialize>(path: &str, query: &Q) -> Result<String, serde_json::Error> {
    let mut address = path.to_owned();
    let mut separator = '?';
    let serde_json::Value::Object(fields) = serde_json::to_value(query)? else {
        return Err(serde::ser::Error::custom("a query must be a structure"));
    };
    for (key, value) in fields {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text,
            value => value.to_string(),
        };
        let (key, text) = (encode(key.as_bytes(), b""), encode(text.as_bytes(), b"/"));
        // Writing to a String does not fail.
        let _ = write!(address, "{separator}{key}={text}");
        separator = '&';
    }
    Ok(address)
}

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
        assert_eq!(encode("a b/ä%".as_bytes(), b""), "a%20b%2F%C3%A4%25");
        assert!(with_query("/", &7).is_err());
        assert_eq!(nbd_tcp_uri("v", "127.0.0.1:10809"), "nbd://127.0.0.1:10809/v");
    }
}
