//! Properties for arbitrary netlink messages; for fuzzing and tests only.

use crate::parse_datagram;

/// Parses `data` as a datagram of the kernel: without panics, and without reading twice or beyond the end.
///
/// # Panics
/// If a property is violated.
pub fn netlink(data: &[u8]) {
    let (messages, bytes) = parse_datagram(data);
    // A message has a header of 16 bytes, an attribute one of 4.
    assert!(messages * 16 <= data.len(), "{messages} messages in {} bytes", data.len());
    assert!(bytes <= data.len(), "{bytes} bytes of text in {} bytes", data.len());
}
