//! Path resolution. Symbolic links cannot leave the filesystem: absolute targets start at its root.

use crate::{ExtError, Filesystem, Inode, InodeNumber, dir::MAX_LOOKUP_BYTES, inode::FileKind};

/// Maximum number of symbolic links followed for one path, as in Linux (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;
/// Maximum number of components of a path, including those of followed links.
const MAX_COMPONENTS: usize = 4096;

impl Filesystem {
    /// Resolves a path from the root, with `/` between its components. A symbolic link as the last component
    /// is not followed.
    ///
    /// # Errors
    /// The path does not exist, follows too many links, leads through a damaged or encrypted directory or a
    /// file, or the image cannot be read.
    pub fn resolve(&self, path: &[u8]) -> Result<Inode, ExtError> {
        Ok(self.resolve_with_ancestors(path)?.0)
    }

    /// Resolves a path and returns the inode with its ancestor directories, from the root on.
    ///
    /// # Errors
    /// Those of [`resolve`](Self::resolve).
    pub fn resolve_with_ancestors(&self, path: &[u8]) -> Result<(Inode, Vec<InodeNumber>), ExtError> {
        // Numbers only: an inode may take a whole block.
        let mut ancestors: Vec<InodeNumber> = Vec::new();
        let mut bytes_left = MAX_LOOKUP_BYTES;
        let mut current = self.inode(InodeNumber::ROOT)?;
        let components = |path: &[u8]| -> Vec<Vec<u8>> {
            path.split(|byte| *byte == b'/')
                .filter(|component| !matches!(*component, b"" | b"."))
                .map(<[u8]>::to_vec)
                .rev()
                .collect()
        };
        let (mut left, mut links, mut count) = (components(path), 0, 0);
        while let Some(component) = left.pop() {
            count += 1;
            if count > MAX_COMPONENTS {
                return Err(ExtError::TooManyLinks);
            }
            if current.kind != FileKind::Directory {
                return Err(ExtError::NotADirectory);
            }
            if component == b".." {
                // The parent of the root is the root.
                if let Some(number) = ancestors.pop() {
                    current = self.inode(number)?;
                }
                continue;
            }
            let next = self.inode(self.lookup_within(&current, &component, &mut bytes_left)?)?;
            if next.kind != FileKind::Symlink || left.is_empty() {
                // A walk below a directory that contains itself does not terminate.
                if next.kind == FileKind::Directory
                    && (next.number == current.number || ancestors.contains(&next.number))
                {
                    return current.damaged("directory loop");
                }
                ancestors.push(std::mem::replace(&mut current, next).number);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(ExtError::TooManyLinks);
            }
            let target = self.read_link(&next)?;
            if target.first() == Some(&b'/') {
                ancestors.clear();
                current = self.inode(InodeNumber::ROOT)?;
            }
            left.extend(components(&target));
        }
        Ok((current, ancestors))
    }
}
