//! Snapshot mounts visible to this process and their owners, from `/proc/self/mountinfo`.

use blockd_files::{Mount, mounts};
use std::{
    io,
    path::{Path, PathBuf},
};

/// Filesystem type.
const TYPE: &str = "fuse.blockd";

/// Mount of snapshots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrowseMountPoint {
    /// Mount point.
    pub mountpoint: PathBuf,
    /// User ID of the owner, who may unmount it, as may root.
    pub uid: u32,
}

/// Resolves the parent of a path without access to the path itself, which may be a mount without a server.
#[must_use]
pub fn resolve(path: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    parent.canonicalize().map_or_else(|_| path.to_owned(), |parent| parent.join(name))
}

/// Returns the snapshot mount at this path, without access to its server. The last component of the path is
/// not resolved if it is a symbolic link.
///
/// # Errors
/// The mount table is unreadable.
pub fn find_mount(path: &Path) -> io::Result<Option<BrowseMountPoint>> {
    Ok(last_at(mounts()?, path))
}

/// Returns the topmost mount at a path, if it is a mount of snapshots.
fn last_at(mounts: Vec<Mount>, path: &Path) -> Option<BrowseMountPoint> {
    let mount = mounts.into_iter().rfind(|mount| mount.mount_point == path)?;
    let options = mount.super_options.split(|byte| *byte == b',');
    let uid = options.filter_map(|option| option.strip_prefix(b"user_id=")).next()?;
    let uid = str::from_utf8(uid).ok()?.parse().ok()?;
    (mount.kind == TYPE).then_some(BrowseMountPoint { mountpoint: mount.mount_point, uid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_files::parse_mounts;

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
    fn topmost_snapshot_mount_is_found_with_its_owner() {
        let uid = |path: &str| last_at(parse_mounts(SEEN), Path::new(path)).map(|seen| seen.uid);
        assert_eq!(uid("/mnt/a b\\"), Some(1000));
        assert_eq!(uid("/mnt/twice"), Some(7));
        for path in ["/mnt/other", "/mnt/hidden", "/", "/mnt", "/nowhere"] {
            assert_eq!(uid(path), None, "{path}");
        }
    }

    #[test]
    fn mountinfo_of_host_is_parsed() {
        assert_eq!(find_mount(Path::new("/")).unwrap(), None);
    }
}
