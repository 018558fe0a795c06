//! Extended attributes (section "Extended Attributes"): behind the fields of an inode, in a block of their
//! own, and values in inodes of their own.

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
/// Values are no longer than this anywhere in Linux (`XATTR_SIZE_MAX`).
const MAX_VALUE_LEN: u32 = 65_536;
/// All values of one file are no longer than this together; what lists names in Linux stops there too.
const MAX_VALUES_LEN: usize = 1 << 20;

const POSIX_ACL_ACCESS: u8 = 2;
const POSIX_ACL_DEFAULT: u8 = 3;
/// The rest of a file that lies in its inode.
pub(crate) const INLINE_REST: (u8, &[u8]) = (7, b"data");
/// Index of the encryption attribute.
const ENCRYPTION: u8 = 9;

/// An extended attribute.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Xattr {
    /// Its name with what it begins with, such as `user.comment`; no zero byte is in it.
    pub name: Vec<u8>,
    /// Its value, as the kernel would give it.
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

/// Location of a value. Entries may share one, so it is copied on request only.
enum Value<'a> {
    Here(&'a [u8]),
    Inode(InodeNumber, u32),
}

impl Value<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Here(value) => value.len(),
            Self::Inode(_, len) => *len as usize,
        }
    }
}

/// An attribute as it is stored.
pub(crate) struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    value: Value<'a>,
}

impl Entry<'_> {
    pub fn is(&self, (index, name): (u8, &[u8])) -> bool {
        self.index == index && self.name == name
    }
}

/// The entries from `first` on. Offsets of values count from the beginning of `region`.
fn entries<'a>(inode: &Inode, region: &'a [u8], first: usize) -> Result<Vec<Entry<'a>>, ExtError> {
    let mut found = Vec::new();
    let mut at = first;
    // Each turn goes at least an entry forward.
    while le32(region, at) != 0 {
        let Some(entry) = region.get(at..at + ENTRY_LEN) else {
            return inode.damaged("its extended attributes have no end");
        };
        let name_len = usize::from(entry[0]);
        let Some(name) = region.get(at + ENTRY_LEN..at + ENTRY_LEN + name_len) else {
            return inode.damaged("the name of an extended attribute has no end");
        };
        let (offset, holder, len) = (usize::from(le16(entry, 2)), le32(entry, 4), le32(entry, 8));
        let value = if holder != 0 {
            Value::Inode(InodeNumber(holder), len)
        } else {
            match region.get(offset..offset.saturating_add(len as usize)) {
                Some(value) => Value::Here(value),
                None if len == 0 => Value::Here(&[]),
                None => return inode.damaged("the value of an extended attribute lies outside"),
            }
        };
        found.push(Entry { index: entry[1], name, value });
        at += ENTRY_LEN + name_len.next_multiple_of(4);
    }
    Ok(found)
}

impl Filesystem {
    /// Those that are behind the fields of the inode.
    pub(crate) fn inode_xattr_entries<'a>(&self, inode: &'a Inode) -> Result<Vec<Entry<'a>>, ExtError> {
        if le32(&inode.behind, 0) != MAGIC {
            return Ok(Vec::new());
        }
        entries(inode, &inode.behind[INODE_HEADER_LEN..], 0)
    }

    /// The block that others are in, checked.
    fn xattr_block(&self, inode: &Inode) -> Result<Option<Arc<[u8]>>, ExtError> {
        let number = inode.xattr_block;
        if number == 0 {
            return Ok(None);
        }
        if !self.disk().has(number, 1) {
            return inode.damaged("its extended attributes lie where there is nothing");
        }
        let block = self.disk().block(number)?;
        if le32(&block, 0) != MAGIC || le32(&block, 8) != 1 {
            return inode.damaged("the block of its extended attributes is none");
        }
        let sb = self.superblock();
        if sb.has_checksums() {
            let (before, behind) = (&block[..CHECKSUM_AT], &block[CHECKSUM_AT + 4..]);
            let sum = crc32c(sb.checksum_seed, &[&number.to_le_bytes(), before, &[0; 4], behind]);
            if sum != le32(&block, CHECKSUM_AT) {
                return inode.damaged("the block of its extended attributes does not match its checksum");
            }
        }
        Ok(Some(block))
    }

    pub(crate) fn xattr_value(&self, inode: &Inode, entry: &Entry<'_>) -> Result<Vec<u8>, ExtError> {
        match &entry.value {
            Value::Here(value) => Ok(value.to_vec()),
            Value::Inode(number, len) => {
                let holder = self.inode(*number)?;
                if !holder.has(flag::EA_INODE) || *len > MAX_VALUE_LEN || u64::from(*len) != holder.size_bytes
                {
                    return inode.damaged("the value of an extended attribute is not where it should be");
                }
                let mut value = vec![0; *len as usize];
                self.read_blocks(&holder, 0, &mut value)?;
                Ok(value)
            }
        }
    }

    /// The extended attributes of a file, those in the inode first. Access control lists are given as the
    /// kernel gives them; what stands in place of one and is none is left out.
    ///
    /// # Errors
    /// They are damaged, or the image cannot be read.
    pub fn xattrs(&self, inode: &Inode) -> Result<Vec<Xattr>, ExtError> {
        let mut stored = self.inode_xattr_entries(inode)?;
        let block = self.xattr_block(inode)?;
        if let Some(block) = &block {
            stored.extend(entries(inode, block, BLOCK_HEADER_LEN)?);
        }
        let (mut found, mut names, mut len) = (Vec::new(), HashSet::new(), 0);
        for entry in stored {
            if entry.is(INLINE_REST) || entry.index == ENCRYPTION {
                continue;
            }
            let Some(prefix) = prefix(entry.index) else { continue };
            let name = [prefix.as_bytes(), entry.name].concat();
            // The first entry of a name hides later ones, as in the kernel. An entry without a name cannot be
            // requested.
            if name.is_empty() || name.contains(&0) || !names.insert(name.clone()) {
                continue;
            }
            // Before the value is read or copied.
            len += entry.value.len();
            if len > MAX_VALUES_LEN {
                return inode.damaged("its extended attributes are longer than any are");
            }
            let value = self.xattr_value(inode, &entry)?;
            let value = match entry.index {
                POSIX_ACL_ACCESS | POSIX_ACL_DEFAULT => match acl::to_kernel(&value) {
                    Some(value) => value,
                    // The others say what they say all the same.
                    None => continue,
                },
                _ => value,
            };
            found.push(Xattr { name, value });
        }
        Ok(found)
    }
}
