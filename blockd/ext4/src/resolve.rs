//! From paths to inodes. Links lead nowhere out of the filesystem: what they are absolute to is its root.

use crate::{ExtError, Filesystem, Inode, InodeNumber, dir::MAX_LOOKUP_BYTES, inode::FileKind};

/// Links that one path leads through at most, as in Linux.
const MAX_LINKS: usize = 40;
/// Parts of a path, with those of links, at most.
const MAX_PARTS: usize = 4096;

impl Filesystem {
    /// The file at a path from the root. If its last part is a link, it is that link.
    ///
    /// # Errors
    /// It is not there, something on the way is damaged, or the image cannot be read.
    pub fn resolve(&self, path: &[u8]) -> Result<Inode, ExtError> {
        Ok(self.resolve_with_above(path)?.0)
    }

    /// The same, and the directories above it, the root first.
    ///
    /// # Errors
    /// Those of [`resolve`](Self::resolve).
    pub fn resolve_with_above(&self, path: &[u8]) -> Result<(Inode, Vec<InodeNumber>), ExtError> {
        // Only their numbers: an inode may be as long as a block.
        let mut above: Vec<InodeNumber> = Vec::new();
        let mut bytes_left = MAX_LOOKUP_BYTES;
        let mut here = self.inode(InodeNumber::ROOT)?;
        let parts = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/')
                .filter(|part| !matches!(*part, b"" | b"."))
                .map(<[u8]>::to_vec)
                .rev()
                .collect()
        };
        let (mut left, mut links, mut taken) = (parts(path), 0, 0);
        while let Some(part) = left.pop() {
            taken += 1;
            if taken > MAX_PARTS {
                return Err(ExtError::TooManyLinks);
            }
            if here.kind != FileKind::Directory {
                return Err(ExtError::NotADirectory);
            }
            if part == b".." {
                // Above the root there is the root.
                if let Some(number) = above.pop() {
                    here = self.inode(number)?;
                }
                continue;
            }
            let next = self.inode(self.lookup_within(&here, &part, &mut bytes_left)?)?;
            if next.kind != FileKind::Symlink || left.is_empty() {
                // Such a path would never end.
                if next.kind == FileKind::Directory
                    && (next.number == here.number || above.contains(&next.number))
                {
                    return here.damaged("a name in it leads to a directory above");
                }
                above.push(std::mem::replace(&mut here, next).number);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(ExtError::TooManyLinks);
            }
            let target = self.read_link(&next)?;
            if target.first() == Some(&b'/') {
                above.clear();
                here = self.inode(InodeNumber::ROOT)?;
            }
            left.extend(parts(&target));
        }
        Ok((here, above))
    }
}
