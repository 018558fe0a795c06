//! Access to a mount by other users, according to modes, owners and access lists of the image.
use blockd_extent::BlockSource;
use blockd_fuse::{Catalog, MountOptions, Mounted, SnapshotEntry, SnapshotKey, mount};
use blockd_testkit::Image;
use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::UNIX_EPOCH,
};

/// Catalog of images, each the only snapshot of a volume with its name.
struct Images(Vec<(&'static str, Arc<Image>)>);

impl Catalog for Images {
    fn snapshots(&self) -> Arc<Vec<SnapshotEntry>> {
        let entry = |(name, image): &(&str, Arc<Image>)| SnapshotEntry {
            key: SnapshotKey((*name).into()),
            volume: (*name).into(),
            id: "1".into(),
            created: UNIX_EPOCH,
            size_bytes: image.size_bytes(),
            data_bytes: image.size_bytes(),
        };
        Arc::new(self.0.iter().map(entry).collect())
    }

    fn open(&self, key: &SnapshotKey) -> io::Result<Arc<dyn BlockSource>> {
        let found = self.0.iter().find(|(name, _)| *name == &*key.0);
        Ok(found.ok_or(io::ErrorKind::NotFound)?.1.clone())
    }

    fn manifest_json(&self, _: &SnapshotKey) -> io::Result<Vec<u8>> {
        Ok(b"{}\n".to_vec())
    }
}

fn tool(name: &str) -> Command {
    let found = ["/usr/sbin", "/sbin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
    let found = found.into_iter().find(|path| path.exists());
    let mut command = Command::new(found.expect("the Debian packages e2fsprogs and util-linux"));
    command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
    command
}

/// Encodes an access list in the format of `setxattr`, from tags, permissions and ids.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let entry = |(tag, permissions, id): &(u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    [2u32.to_le_bytes().to_vec()].into_iter().chain(entries.iter().map(entry)).flatten().collect()
}

const OWNER: u16 = 1;
const USER: u16 = 2;
const GROUP: u16 = 4;
const MASK: u16 = 16;
const OTHER: u16 = 32;
const NO_ID: u32 = u32::MAX;

/// Creates a filesystem whose root has this mode.
fn image(dir: &Path, root_mode: u16) -> Vec<u8> {
    let (source, image) = (dir.join("source"), dir.join("image"));
    fs::create_dir_all(&source).unwrap();
    for name in ["plain", "granted", "denied"] {
        fs::write(source.join(name), "content").unwrap();
    }
    let made =
        tool("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&source).arg(&image).arg("8M").status();
    assert!(made.unwrap().success());
    // One named user has access; the group has none.
    let granted =
        acl(&[(OWNER, 6, NO_ID), (USER, 6, 7000), (GROUP, 0, NO_ID), (MASK, 6, NO_ID), (OTHER, 0, NO_ID)]);
    // All users except one have read access.
    let denied =
        acl(&[(OWNER, 6, NO_ID), (USER, 0, 8000), (GROUP, 4, NO_ID), (MASK, 4, NO_ID), (OTHER, 4, NO_ID)]);
    let (a, b) = (dir.join("acl a"), dir.join("acl b"));
    fs::write(&a, granted).unwrap();
    fs::write(&b, denied).unwrap();
    let commands = [
        "set_inode_field granted uid 6000".to_owned(),
        "set_inode_field granted gid 6500".to_owned(),
        "set_inode_field granted mode 0100660".to_owned(),
        "set_inode_field denied mode 0100644".to_owned(),
        "set_inode_field plain mode 0100644".to_owned(),
        "set_inode_field plain mtime @-86400".to_owned(),
        format!("ea_set -f \"{}\" granted system.posix_acl_access", a.display()),
        format!("ea_set -f \"{}\" denied system.posix_acl_access", b.display()),
        format!("set_inode_field / mode 0{:o}", 0o040_000 | root_mode),
        "set_inode_field / uid 6000".to_owned(),
        "set_inode_field / gid 6500".to_owned(),
    ];
    for command in commands {
        let done = tool("debugfs").args(["-w", "-R", &command]).arg(&image).status();
        assert!(done.unwrap().success(), "{command}");
    }
    fs::read(image).unwrap()
}

fn partitioned_disk(part: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let entry = &mut disk[446..462];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&2048u32.to_le_bytes());
    entry[12..].copy_from_slice(&(part.len() as u32 / 512).to_le_bytes());
    disk.extend_from_slice(part);
    disk
}

struct World {
    mounted: Mounted,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(allow_other: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let make = |name: &str, mode| {
            let dir = dir.path().join(name);
            fs::create_dir(&dir).unwrap();
            image(&dir, mode)
        };
        let (open, closed) = (make("open image", 0o755), make("closed image", 0o700));
        let images = Images(vec![
            ("disk", Arc::new(Image(partitioned_disk(&closed)))),
            ("open", Arc::new(Image(open))),
            ("closed", Arc::new(Image(closed))),
        ]);
        let options = MountOptions { allow_other, ..MountOptions::default() };
        let mounted = mount(Arc::new(images), &dir.path().join("mnt"), options).unwrap();
        Self { mounted, _dir: dir }
    }

    fn path(&self, volume: &str, rest: &str) -> PathBuf {
        self.mounted.mountpoint().join(volume).join("latest/files").join(rest)
    }
}

fn reads(uid: u32, gid: u32, path: &Path) -> bool {
    let ids = [format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".into(), "--".into()];
    tool("setpriv").args(ids).arg("cat").arg(path).status().unwrap().success()
}

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("=== SKIPPED: access of other users needs root ===");
    }
    is_root
}

#[test]
fn root_mode_denies_other_users() {
    if !is_root() {
        return;
    }
    let world = World::new(true);
    for (volume, root, mode) in [("open", "", 0o755), ("closed", "", 0o700), ("disk", "p1", 0o700)] {
        // The kernel caches the attributes of the first listing.
        let snapshot = world.mounted.mountpoint().join(volume).join("latest");
        fs::read_dir(snapshot).unwrap().for_each(drop);
        fs::read_dir(world.path(volume, "")).unwrap().for_each(drop);
        let plain = world.path(volume, root).join("plain");
        assert_eq!(reads(9000, 9000, &plain), volume == "open", "{volume}");
        assert!(reads(6000, 9000, &plain), "the owner has access to {volume}");
        let meta = fs::metadata(world.path(volume, root)).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (mode, 6000, 6500), "{volume}");
        assert_eq!(fs::metadata(plain).unwrap().mtime(), -86_400, "a day before 1970");
    }
}

#[test]
fn access_lists_grant_and_deny_users() {
    if !is_root() {
        return;
    }
    let world = World::new(true);
    let (granted, denied) = (world.path("open", "granted"), world.path("open", "denied"));
    assert_eq!(fs::metadata(&granted).unwrap().mode() & 0o7777, 0o660);
    for (uid, gid, expected) in [(6000, 1, true), (7000, 1, true), (9000, 6500, false), (9000, 1, false)] {
        assert_eq!(reads(uid, gid, &granted), expected, "{uid}:{gid}");
    }
    for (uid, expected) in [(8000, false), (9000, true), (0, true)] {
        assert_eq!(reads(uid, 1, &denied), expected, "{uid}");
    }
}

#[test]
fn private_mount_is_readable_by_its_owner_only() {
    if !Path::new("/dev/fuse").exists() {
        eprintln!("=== SKIPPED: a private mount needs /dev/fuse ===");
        return;
    }
    let world = World::new(false);
    for path in [world.path("closed", "granted"), world.path("disk", "p1/granted")] {
        assert_eq!(fs::read(path).unwrap(), b"content");
    }
    if is_root() {
        assert!(!reads(9000, 9000, &world.path("open", "plain")), "another user has access");
    }
}
