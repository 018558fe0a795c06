//! Replies of the transmission phase, byte for byte.

use crate::constants::{SIMPLE_REPLY_LEN_BYTES, SIMPLE_REPLY_MAGIC};

/// A simple reply's 16 bytes: magic, error number (0 = success), the request's cookie. The data of a successful
/// read follows it.
pub fn simple_reply(errno: u32, cookie: u64) -> [u8; SIMPLE_REPLY_LEN_BYTES] {
    let mut bytes = [0; SIMPLE_REPLY_LEN_BYTES];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&errno.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simple_reply_matches_the_protocol() {
        assert_eq!(
            simple_reply(22, 0x0102_0304_0506_0708),
            [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 1, 2, 3, 4, 5, 6, 7, 8]
        );
    }
}
