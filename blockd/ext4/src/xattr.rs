//! Extended attributes (section "Extended Attributes"): after the fields of an inode, in a separate block,
//! and values in separate inodes (`ea_inode`).

use crate::{
    ExtError, Filesystem, Inode, InodeNumber, acl,
    bytes::{le16, le32},
    checksum::crc32c,
    inode::flag,
};
use std::{collections::HashSet, sync::Arc};

const MAGIC: u32 = 0xea02_0000;
const INODE_HEADER_LEN: usize = 4;
const BLOCK_HEADER_LEN: usize = 32;
const CHECKSUM_AT: usize = 16;
const ENTRY_LEN: usize = 16;
/// Maximum length of a value on disk (`EXT4_XATTR_SIZE_MAX`), in bytes; the kernel takes longer ones for
/// damage.
const MAX_STORED_LEN: u32 = 1 << 24;
/// Maximum length of a value that system calls can return (`XATTR_SIZE_MAX`), in bytes.
const MAX_VALUE_LEN: u32 = 65_536;
/// Limit of this reader on all values of a file, in bytes: entries of a damaged image may share one value.
/// A sound file with values in inodes (`ea_inode`) can exceed it.
const MAX_VALUES_LEN: usize = 16 * MAX_VALUE_LEN as usize;

const POSIX_ACL_ACCESS: u8 = 2;
const POSIX_ACL_DEFAULT: u8 = 3;
/// Index and name of `system.data`, which holds inline data beyond `i_block`.
pub(crate) const INLINE_DATA: (u8, &[u8]) = (7, b"data");
/// Index of encryption contexts (`fscrypt`).
const ENCRYPTION: u8 = 9;

/// Extended attribute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Xattr {
    /// Name with its namespace prefix, such as `user.comment`; any bytes except zero.
    pub name: Vec<u8>,
    /// Value in the format of `getxattr`.
    pub value: Vec<u8>,
}

/// Returns the prefix of an attribute name by its stored index.
fn prefix(index: u8) -> Option<&'static str> {
    Some(match index {
        0 => "",
        1 => "user.",
        POSIX_ACL_ACCESS => "system.posix_acl_access",
        POSIX_ACL_DEFAULT => "system.posix_acl_default",
        4 => "trusted.",
        6 => "security.",
        7 => "system.",
        8 => "system.richacl",
        _ => return None,
    })
}

/// Location of a value. Values of several entries may overlap, so copies are made on request only.
enum Value<'a> {
    Local(&'a [u8]),
    Inode(InodeNumber, u32),
}

impl Value<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Local(value) => value.len(),
            Self::Inode(_, len) => *len as usize,
        }
    }
}

/// Stored entry.
pub(crate) struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    value: Value<'a>,
}

impl Entry<'_> {
    /// Returns the inode that holds the value, if any.
    pub fn holder(&self) -> Option<InodeNumber> {
        match self.value {
            Value::Local(_) => None,
            Value::Inode(number, _) => Some(number),
        }
    }

    pub fn is(&self, (index, name): (u8, &[u8])) -> bool {
        self.index == index && self.name == name
    }
}

/// Parses the entries from `first` on. Value offsets are relative to `region`.
fn entries<'a>(inode: &Inode, region: &'a [u8], first: usize) -> Result<Vec<Entry<'a>>, ExtError> {
    let mut found = Vec::new();
    let mut at = first;
    // Each iteration advances by at least one entry.
    while le32(region, at) != 0 {
        let Some(entry) = region.get(at..at + ENTRY_LEN) else {
            return inode.damaged("extended attribute entries without an end");
        };
        let name_len = usize::from(entry[0]);
        let Some(name) = region.get(at + ENTRY_LEN..at + ENTRY_LEN + name_len) else {
            return inode.damaged("extended attribute name out of bounds");
        };
        let (offset, holder, len) = (usize::from(le16(entry, 2)), le32(entry, 4), le32(entry, 8));
        if len > MAX_STORED_LEN {
            return inode.damaged("extended attribute value of more than 16 MiB");
        }
        let value = if holder != 0 {
            Value::Inode(InodeNumber(holder), len)
        } else {
            match region.get(offset..offset.saturating_add(len as usize)) {
                Some(value) => Value::Local(value),
                None if len == 0 => Value::Local(&[]),
                None => return inode.damaged("extended attribute value out of bounds"),
            }
        };
        found.push(Entry { index: entry[1], name, value });
        at += ENTRY_LEN + name_len.next_multiple_of(4);
    }
    Ok(found)
}

/// Returns the entries of an extended attribute block.
pub(crate) fn block_entries<'a>(inode: &Inode, block: &'a [u8]) -> Result<Vec<Entry<'a>>, ExtError> {
    entries(inode, block, BLOCK_HEADER_LEN)
}

impl Filesystem {
    /// Returns the entries stored in the inode.
    pub(crate) fn inode_xattr_entries<'a>(&self, inode: &'a Inode) -> Result<Vec<Entry<'a>>, ExtError> {
        if le32(&inode.xattr_region, 0) != MAGIC {
            return Ok(Vec::new());
        }
        entries(inode, &inode.xattr_region[INODE_HEADER_LEN..], 0)
    }

    /// Returns the extended attribute block with a verified header and checksum.
    pub(crate) fn xattr_block(&self, inode: &Inode) -> Result<Option<Arc<[u8]>>, ExtError> {
        let number = inode.xattr_block;
        if number == 0 {
            return Ok(None);
        }
        if !self.disk().contains(number, 1) {
            return inode.damaged("extended attribute block outside of the filesystem");
        }
        let block = self.disk().block(number)?;
        if le32(&block, 0) != MAGIC || le32(&block, 8) != 1 {
            return inode.damaged("invalid header of the extended attribute block");
        }
        let sb = self.superblock();
        if sb.has_checksums() {
            let (before, after) = (&block[..CHECKSUM_AT], &block[CHECKSUM_AT + 4..]);
            let sum = crc32c(sb.checksum_seed, &[&number.to_le_bytes(), before, &[0; 4], after]);
            if sum != le32(&block, CHECKSUM_AT) {
                return inode.damaged("checksum mismatch of the extended attribute block");
            }
        }
        Ok(Some(block))
    }

    pub(crate) fn xattr_value(&self, inode: &Inode, entry: &Entry<'_>) -> Result<Vec<u8>, ExtError> {
        match &entry.value {
            Value::Local(value) => Ok(value.to_vec()),
            Value::Inode(number, len) => {
                let holder = self.inode(*number)?;
                if !holder.has(flag::EA_INODE) || u64::from(*len) != holder.size_bytes {
                    return inode.damaged("invalid extended attribute inode");
                }
                if *len > MAX_VALUE_LEN {
                    return Err(ExtError::unsupported("extended attribute of more than 64 KiB"));
                }
                let mut value = vec![0; *len as usize];
                self.read_blocks(&holder, 0, &mut value)?;
                Ok(value)
            }
        }
    }

    /// Returns the extended attributes of a file, those in the inode first. Access control lists are in the
    /// format of `getxattr`. Malformed lists, inline data, encryption contexts and unknown
    /// namespaces are omitted.
    ///
    /// # Errors
    /// The attributes are damaged, one exceeds 64 KiB or all together 1 MiB, or the image cannot be read.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, ExtError> {
        let mut stored = self.inode_xattr_entries(inode)?;
        let block = self.xattr_block(inode)?;
        if let Some(block) = &block {
            stored.extend(block_entries(inode, block)?);
        }
        let (mut found, mut names, mut len) = (Vec::new(), HashSet::new(), 0);
        for entry in stored {
            if entry.is(INLINE_DATA) || entry.index == ENCRYPTION {
                continue;
            }
            let Some(prefix) = prefix(entry.index) else { continue };
            let name = [prefix.as_bytes(), entry.name].concat();
            // The first entry of a name hides later ones, as in the kernel. `getxattr` cannot name an entry
            // with an empty name.
            if name.is_empty() || name.contains(&0) || !names.insert(name.clone()) {
                continue;
            }
            // Checked before the value is read or copied.
            len += entry.value.len();
            if len > MAX_VALUES_LEN {
                return Err(ExtError::unsupported("extended attributes of more than 1 MiB in total"));
            }
            let value = self.xattr_value(inode, &entry)?;
            let value = match entry.index {
                POSIX_ACL_ACCESS | POSIX_ACL_DEFAULT => match acl::to_kernel(&value) {
                    Some(value) => value,
                    // A malformed list does not hide the other attributes.
                    None => continue,
                },
                _ => value,
            };
            found.push(Xattr { name, value });
        }
        Ok(found)
    }
}
