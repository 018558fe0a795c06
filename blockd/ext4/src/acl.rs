//! Access control lists: conversion from the on-disk format (section "POSIX ACLs") to the longer format of
//! `getxattr`.

use crate::bytes::{le16, le32};

const STORED_VERSION: u32 = 1;
const KERNEL_VERSION: u32 = 2;
/// Tags of entries for a named user and a named group; only these entries have an id.
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;
const NO_ID: u32 = !0;

/// Returns the list in the format of `struct posix_acl_xattr_header`; `None` if it is malformed.
pub(crate) fn to_kernel(stored: &[u8]) -> Option<Vec<u8>> {
    let mut rest = stored.strip_prefix(&STORED_VERSION.to_le_bytes())?;
    let mut list = KERNEL_VERSION.to_le_bytes().to_vec();
    while !rest.is_empty() {
        let (tag, permissions) = (le16(rest, 0), le16(rest, 2));
        let (len, id) = match tag {
            USER | GROUP => (8, le32(rest, 4)),
            _ => (4, NO_ID),
        };
        rest = rest.get(len..)?;
        list.extend_from_slice(&tag.to_le_bytes());
        list.extend_from_slice(&permissions.to_le_bytes());
        list.extend_from_slice(&id.to_le_bytes());
    }
    Some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_acl_entries_keep_their_ids() {
        let stored = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0, 0x20, 0, 4, 0];
        let list = to_kernel(&stored).unwrap();
        assert_eq!(list[..4], [2, 0, 0, 0]);
        assert_eq!(list[4..12], [1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(list[12..20], [2, 0, 4, 0, 0xe8, 3, 0, 0]);
        assert_eq!(list.len(), 28);
        assert_eq!(to_kernel(&stored[..14]), None, "truncated");
        assert_eq!(to_kernel(&[2, 0, 0, 0]), None, "unknown version");
    }
}
