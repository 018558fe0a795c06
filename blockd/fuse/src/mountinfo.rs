//! Snapshot mounts visible to this process and their owners, from `/proc/self/mountinfo`.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// Filesystem type.
const TYPE: &[u8] = b"fuse.blockd";

/// A mount of snapshots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SeenMount {
    /// Returns the mount point.
    pub mountpoint: PathBuf,
    /// Owner, who can unmount it like root.
    pub uid: u32,
}

/// Resolves the parent of a path, without access to the path itself, which may be a mount without a server.
#[must_use]
pub fn resolve(path: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    parent.canonicalize().map_or_else(|_| path.to_owned(), |parent| parent.join(name))
}

/// Returns the snapshot mount at this path, which is no link, without access to its server.
///
/// # Errors
/// The mount table is unreadable.
pub fn find_mount(path: &Path) -> io::Result<Option<SeenMount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?, path))
}

/// The one that was mounted there last hides the others.
fn parse(mountinfo: &[u8], path: &Path) -> Option<SeenMount> {
    let path = path.as_os_str().as_bytes();
    let mut lines = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let mountpoint = unescape(fields.nth(4)?);
        (mountpoint == path).then_some((mountpoint, fields))
    });
    let (mountpoint, fields) = lines.next_back()?;
    // After the options there are any number of fields, then a dash.
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, options) = (fields.next()?, fields.nth(1)?);
    let uid = options.split(|byte| *byte == b',').find_map(|option| option.strip_prefix(b"user_id="))?;
    let uid = str::from_utf8(uid).ok()?.parse().ok()?;
    (kind == TYPE).then(|| SeenMount { mountpoint: OsString::from_vec(mountpoint).into(), uid })
}

/// Spaces and the like are a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let digits = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        match digits {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
90 22 0:51 / /mnt/a\\040b\\134 ro,nosuid shared:7 master:3 - fuse.blockd blockd ro,user_id=1000,group_id=100
91 22 0:52 / /mnt/other ro - fuse.sshfs host: rw,user_id=1000,group_id=100
92 22 0:53 / /mnt/hidden ro - fuse.blockd blockd ro,user_id=0,group_id=0
93 22 0:54 / /mnt/hidden rw - tmpfs tmpfs rw
94 22 0:55 / /mnt/twice ro - fuse.blockd blockd ro,user_id=0,group_id=0
95 22 0:56 / /mnt/twice ro - fuse.blockd blockd ro,user_id=7,group_id=0,allow_other
";

    #[test]
    fn mounts_are_found_with_their_owner() {
        let uid = |path: &str| parse(SEEN, Path::new(path)).map(|seen| seen.uid);
        assert_eq!(uid("/mnt/a b\\"), Some(1000));
        assert_eq!(uid("/mnt/twice"), Some(7));
        for path in ["/mnt/other", "/mnt/hidden", "/", "/mnt", "/nowhere"] {
            assert_eq!(uid(path), None, "{path}");
        }
    }

    #[test]
    fn host_kernel_replies_are_parsed() {
        assert_eq!(find_mount(Path::new("/")).unwrap(), None);
    }
}
