//! Messages of the kernel's.

use crate::kernel::read_anything;

/// Reads `data` as a datagram of the kernel's: nothing panics, and nothing is read twice or beyond the end.
///
/// # Panics
/// If something does not hold.
pub fn netlink(data: &[u8]) {
    let (messages, bytes) = read_anything(data);
    // A message has a header of 16 bytes, an attribute one of 4.
    assert!(messages * 16 <= data.len(), "{messages} messages in {} bytes", data.len());
    assert!(bytes <= data.len(), "{bytes} bytes of text in {} bytes", data.len());
}
