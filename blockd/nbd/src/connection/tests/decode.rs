//! Decoding of transmission replies.

use super::*;

/// Decodes structured replies into error number and assembled data, or other content, by cookie.
pub(super) fn chunks(
    mut sent: &[u8],
    extended: bool,
    reads: &BTreeMap<u64, usize>,
) -> BTreeMap<u64, (u32, Vec<u8>)> {
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let (mut open, mut replies) = (BTreeMap::new(), BTreeMap::new());
    while !sent.is_empty() {
        if number(&sent[..4]) == u64::from(SIMPLE_REPLY_MAGIC) {
            assert!(!extended && number(&sent[4..8]) == 0);
            assert!(replies.insert(number(&sent[8..16]), (0, Vec::new())).is_none());
            sent = &sent[16..];
            continue;
        }
        let header_len = if extended { 32 } else { 20 };
        let done = number(&sent[4..6]) == 1;
        let chunk_type = number(&sent[6..8]) as u16;
        let cookie = number(&sent[8..16]);
        let len = number(&sent[if extended { 24..32 } else { 16..20 }]) as usize;
        let payload = &sent[header_len..header_len + len];
        sent = &sent[header_len + len..];
        let (errno, data) = open
            .remove(&cookie)
            .unwrap_or_else(|| (0_u32, vec![0xdd_u8; reads.get(&cookie).copied().unwrap_or(0)]));
        let (mut errno, mut data): (u32, Vec<u8>) = (errno, data);
        let base = cookie as usize * (DEVICE_BYTES / 24);
        match chunk_type {
            NBD_REPLY_TYPE_OFFSET_DATA => {
                let at = number(&payload[..8]) as usize - base - shift_of(cookie);
                data[at..at + len - 8].copy_from_slice(&payload[8..]);
            }
            NBD_REPLY_TYPE_OFFSET_HOLE => {
                let at = number(&payload[..8]) as usize - base - shift_of(cookie);
                data[at..at + number(&payload[8..]) as usize].fill(0);
            }
            NBD_REPLY_TYPE_ERROR => {
                errno = number(&payload[..4]) as u32;
                data.clear();
            }
            NBD_REPLY_TYPE_NONE => {}
            _ => data = payload.to_vec(),
        }
        if done {
            assert!(replies.insert(cookie, (errno, data)).is_none(), "two replies to request {cookie}");
        } else {
            open.insert(cookie, (errno, data));
        }
    }
    assert!(open.is_empty(), "incomplete replies");
    replies
}

/// Returns the offset of a request within its area.
pub(super) fn shift_of(cookie: u64) -> usize {
    (cookie as usize * 397) % 1200
}

/// Decodes simple replies into error number and data, by cookie.
pub(super) fn replies(mut sent: &[u8], reads: &BTreeMap<u64, usize>) -> BTreeMap<u64, (u32, Vec<u8>)> {
    let mut replies = BTreeMap::new();
    while !sent.is_empty() {
        assert_eq!(sent[0..4], SIMPLE_REPLY_MAGIC.to_be_bytes());
        let errno = u32::from_be_bytes(sent[4..8].try_into().unwrap());
        let cookie = u64::from_be_bytes(sent[8..16].try_into().unwrap());
        let len = if errno == 0 { reads.get(&cookie).copied().unwrap_or(0) } else { 0 };
        let before = replies.insert(cookie, (errno, sent[16..16 + len].to_vec()));
        assert!(before.is_none(), "two replies to request {cookie}");
        sent = &sent[16 + len..];
    }
    replies
}
