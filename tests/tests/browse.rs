//! Browsing of snapshots: a real daemon, a real FUSE mount, a real ext4.

mod files;

use crate::harness::{
    Bed, Ctl, Daemon, MIB, Setup, Store, announce, ctl::clean, fuse::FuseMount, process, wait_for, wait_until,
};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

const IMAGE_BYTES: u64 = 64 * MIB;

struct World {
    store: Store,
    daemon: Daemon,
    source: PathBuf,
    image: PathBuf,
    mount: FuseMount,
    /// Last, as its removal requires the unmount.
    bed: Bed,
}

fn setup(bed: &Bed) -> Setup {
    bed.daemon("one").config("store_attempts = 2").config("[browse]").config("refresh_ms = 200")
}

/// Creates files of all kinds, some at distant offsets.
fn fill(dir: &Path) {
    fs::create_dir_all(dir.join("deep/er")).unwrap();
    let noise: Vec<u8> =
        (0..6_000_000u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    fs::write(dir.join("noise"), noise).unwrap();
    for number in 0..300 {
        fs::write(dir.join(format!("deep/er/file {number}")), format!("content {number}\n").repeat(number))
            .unwrap();
    }
    fs::write(dir.join("control\nname\u{1b}[31m"), "x").unwrap();
    symlink("deep/er", dir.join("link")).unwrap();
    let day = Timespec { tv_sec: 86_400, tv_nsec: 0 };
    let times = Timestamps { last_access: day, last_modification: day };
    utimensat(CWD, dir.join("link"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    fs::write(dir.join("one name"), "of two").unwrap();
    fs::hard_link(dir.join("one name"), dir.join("another name")).unwrap();
    symlink("/etc/hostname", dir.join("absolute")).unwrap();
    symlink("x".repeat(200), dir.join("long link")).unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(9_000_000).unwrap();
    sparse.write_all_at(b"behind a hole", 8_000_000).unwrap();
    fs::set_permissions(dir.join("noise"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(dir.join("deep"), fs::Permissions::from_mode(0o750)).unwrap();
}

fn make_image(source: &Path, image: &Path) {
    let (source, image) = (source.to_str().unwrap(), image.to_str().unwrap());
    process::must_run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", source, image, "64M"]);
}

fn world() -> World {
    let bed = Bed::new();
    let (source, image) = (bed.path("source"), bed.path("image"));
    fill(&source);
    make_image(&source, &image);
    let store = bed.store("store");
    let daemon = setup(&bed).start_with_volume(&store, Some("correct horse"), "64MiB");
    let ctl = daemon.ctl();
    process::must_run("nbdcopy", &[image.to_str().unwrap(), &daemon.uri("vol")]);
    ctl.backup("vol");
    let mount = FuseMount(bed.path("mnt"));
    ctl.json(&["browse", "mount", mount.dir()]);
    World { bed, store, daemon, source, image, mount }
}

impl World {
    fn ctl(&self) -> Ctl {
        self.daemon.ctl()
    }

    fn snapshots(&self) -> Vec<String> {
        let Ok(dir) = fs::read_dir(self.mount.0.join("vol")) else { return Vec::new() };
        let names = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "latest").collect();
        names.sort();
        names
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.mount.0.join("vol").join(name)
    }

    /// Waits for the first list of snapshots. Returns the directory of the only one.
    fn only(&self) -> PathBuf {
        let names = wait_for("a snapshot", || Some(self.snapshots()).filter(|names| !names.is_empty()));
        assert_eq!(names.len(), 1, "{names:?}");
        self.dir(&names[0])
    }
}

/// Returns each path below a directory with its mode and content.
fn tree(dir: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(dir).unwrap().to_owned();
            if name == Path::new("lost+found") {
                continue;
            }
            let content = if meta.is_dir() {
                dirs.push(path);
                Vec::new()
            } else if meta.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            found.push((name, meta.mode(), content));
        }
    }
    found.sort();
    found
}

fn same_file(a: &Path, b: &Path) -> bool {
    let (mut a, mut b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = a.read(&mut x).unwrap();
        b.read_exact(&mut y[..n]).unwrap();
        if x[..n] != y[..n] {
            return false;
        }
        if n == 0 {
            return b.read(&mut y).unwrap() == 0;
        }
    }
}

/// Returns the extents of data, by `lseek`.
fn data_extents(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let (mut at, mut extents) = (0, Vec::new());
    while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start)).unwrap();
        extents.push((start, at));
    }
    extents
}

#[test]
fn images_and_files_match_the_backup() {
    let world = world();
    let snapshot = world.only();
    let disk = snapshot.join("disk.img");
    assert_eq!(fs::metadata(&disk).unwrap().len(), IMAGE_BYTES);
    assert!(same_file(&world.image, &disk));
    let extents = data_extents(&disk);
    let data: u64 = extents.iter().map(|(start, end)| end - start).sum();
    assert!(extents.len() > 1 && data < IMAGE_BYTES / 2, "{extents:?}");
    let mut image = File::open(&world.image).unwrap();
    let mut at = 0;
    for (start, end) in extents.iter().copied().chain([(IMAGE_BYTES, IMAGE_BYTES)]) {
        let mut hole = vec![1; (start - at) as usize];
        image.seek(SeekFrom::Start(at)).unwrap();
        image.read_exact(&mut hole).unwrap();
        assert!(hole.iter().all(|byte| *byte == 0), "data in the hole before {start}");
        at = end;
    }
    let blocks = fs::metadata(&disk).unwrap().blocks() * 512;
    assert!(blocks >= data && blocks < IMAGE_BYTES / 2);

    let copy = world.bed.path("copy");
    process::must_run("cp", &["--sparse=auto", disk.to_str().unwrap(), copy.to_str().unwrap()]);
    assert!(same_file(&world.image, &copy));
    assert!(fs::metadata(&copy).unwrap().blocks() * 512 < IMAGE_BYTES / 2, "the copy is not sparse");
    process::must_run("e2fsck", &["-fn", disk.to_str().unwrap()]);

    let (expected, found) = (tree(&world.source), tree(&snapshot.join("files")));
    assert!(expected.len() > 300);
    for (expected, found) in expected.iter().zip(&found) {
        assert!(expected == found, "{:?} is not {:?}", found.0, expected.0);
    }
    assert_eq!(expected.len(), found.len());
    let time = |path: &Path| fs::symlink_metadata(path).unwrap().mtime();
    assert_eq!(time(&snapshot.join("files/noise")), time(&world.source.join("noise")));
    let names =
        ["one name", "another name"].map(|name| fs::metadata(snapshot.join("files").join(name)).unwrap());
    assert!(names[0].ino() == names[1].ino() && names[0].nlink() == 2, "hard links differ");
    // An unsupported ioctl fails without an error in the log.
    let noise = File::open(snapshot.join("files/noise")).unwrap();
    assert!(rustix::fs::ioctl_getflags(&noise).is_err());
    noise.sync_all().unwrap();
    assert!(!world.daemon.log().contains("Not Implemented"));
    // The mount is read-only.
    let error = fs::write(snapshot.join("files/new"), "x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    let manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(snapshot.join("manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["volume_name"], "vol");
    assert!(
        fs::metadata(snapshot.join("files/nothing")).is_err() && fs::metadata(snapshot.join("x")).is_err()
    );
}

#[test]
fn snapshots_appear_and_vanish_while_mounted() {
    let world = world();
    let ctl = world.ctl();
    let first = world.only().file_name().unwrap().to_str().unwrap().to_owned();
    ctl.json(&["snapshot", "create", "vol", "--name", "here"]);
    let local = wait_for("the local snapshot", || {
        world.snapshots().into_iter().find(|name| name.contains("-local-"))
    });
    assert!(same_file(&world.image, &world.dir(&local).join("disk.img")));
    assert_eq!(
        fs::read(world.dir(&local).join("files/noise")).unwrap(),
        fs::read(world.source.join("noise")).unwrap()
    );
    assert_eq!(fs::read_link(world.dir("latest")).unwrap(), Path::new(&local));
    // A snapshot that was just read can be deleted.
    ctl.json(&["snapshot", "delete", "vol@here"]);
    wait_until("the local snapshot to vanish", || world.snapshots() == [first.clone()]);

    let second = ctl.backup("vol");
    let name = wait_for("the second backup", || world.snapshots().into_iter().find(|name| *name != first));
    assert!(name.ends_with("-incr") && same_file(&world.image, &world.dir(&name).join("disk.img")));
    assert_eq!(fs::read_link(world.dir("latest")).unwrap(), Path::new(&name));
    ctl.json(&["cloudsnap", "delete", "--snap", second.snap(), "--wait"]);
    wait_until("the second backup to vanish", || world.snapshots() == [first.clone()]);
    wait_until("its directory to vanish", || fs::metadata(world.dir(&name)).is_err());
}

#[test]
fn unlistable_store_is_reported_as_an_error() {
    let world = world();
    let other = world.bed.store("other");
    let ctl = world.ctl();
    ctl.add_local("other", other.dir(), None);
    ctl.create_volume("elsewhere", "1MiB");
    ctl.backup_with("elsewhere", &["--cred-id", "other"]);
    let names = |world: &World| -> Vec<String> {
        let entries = fs::read_dir(&world.mount.0).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    wait_until("both volumes", || names(&world) == ["elsewhere", "vol"]);

    let away = world.bed.path("away");
    fs::rename(other.dir(), &away).unwrap();
    let World { store, daemon, source, image, mount, bed } = world;
    drop(daemon.stop());
    // The mount refreshes its lists only after events.
    let setup = bed.daemon("one").config("store_attempts = 2").config("[browse]");
    let daemon = setup.config("refresh_ms = 600000").start();
    daemon.ctl().json(&["browse", "mount", mount.dir()]);
    let world = World { store, daemon, source, image, mount, bed };
    let expected = ["STORES-NOT-LISTED.txt", "elsewhere", "vol"];
    wait_until("the volume known from the last list", || names(&world) == expected);
    let report = fs::read_to_string(world.mount.0.join("STORES-NOT-LISTED.txt")).unwrap();
    assert!(report.contains("\nother: ") && !report.contains("nas: "), "{report}");
    let list = world.ctl().run(&["cloudsnap", "list"]);
    assert!(list.stdout.contains("vol") && list.stderr.contains("other"), "{} {}", list.stdout, list.stderr);

    let before = fs::read_link(world.dir("latest")).unwrap();
    world.ctl().backup_with("vol", &["--cred-id", "nas"]);
    assert_ne!(fs::read_link(world.dir("latest")).unwrap(), before, "the new backup is not listed at once");
}

/// Returns the complete cache entries.
fn cache_entries(dir: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(dir).unwrap().map(|shard| shard.unwrap().path());
    let files = shards.flat_map(|shard| fs::read_dir(shard).unwrap().map(|file| file.unwrap().path()));
    files.filter(|path| path.extension().is_none()).collect()
}

#[test]
fn cache_survives_kills_and_no_dead_mount_is_left() {
    let world = world();
    assert!(same_file(&world.image, &world.only().join("disk.img")));
    let World { bed, store, daemon, image, mount, .. } = world;
    let cache = daemon.seen_data_dir().join("cache");
    wait_until("cache entries on disk", || cache_entries(&cache).len() > 5);
    drop(daemon.kill());
    // Incomplete entries have an extension.
    let before = cache_entries(&cache);
    // The mount has no server until the next daemon unmounts it.
    wait_until("the mount to be dead", || fs::read_dir(&mount.0).is_err());
    for path in before.iter().step_by(2) {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let daemon = setup(&bed).start();
    assert!(fs::read_dir(&mount.0).unwrap().next().is_none(), "the dead mount is left");
    let ctl = daemon.ctl();
    ctl.json(&["browse", "mount", mount.dir()]);
    let world = World { bed, store, daemon, source: PathBuf::new(), image, mount };
    assert!(same_file(&world.image, &world.only().join("disk.img")));
    assert!(world.daemon.log().contains("cache entry is damaged"));

    // A clean stop unmounts.
    let World { daemon, mount, .. } = world;
    drop(daemon.stop());
    assert!(fs::read_dir(&mount.0).unwrap().next().is_none());
}

#[test]
fn mounts_are_listed_refused_over_files_and_removed() {
    let world = world();
    let ctl = world.ctl();
    let dir = world.mount.dir();
    let list = ctl.json(&["browse", "list"]);
    assert_eq!(list["items"][0]["mountpoint"], dir);
    ctl.fails(&["browse", "mount", dir], 2);
    ctl.fails(&["browse", "mount", world.source.to_str().unwrap()], 2);
    ctl.fails(&["browse", "mount", world.bed.path("x").to_str().unwrap(), "--cred-id", "unknown"], 4);
    let open = File::open(world.only().join("disk.img")).unwrap();
    assert_eq!(ctl.fails(&["browse", "umount", dir], 5)["code"], "device_in_use");
    drop(open);
    ctl.json(&["browse", "umount", dir]);
    ctl.fails(&["browse", "umount", dir], 4);
    assert_eq!(ctl.json(&["browse", "list"])["items"].as_array().map(Vec::len), Some(0));
    assert!(fs::read_dir(&world.mount.0).unwrap().next().is_none());
}

#[test]
fn cloud_snapshot_is_served_as_an_export() {
    let world = world();
    let id = world.ctl().done_cloudsnaps().remove(0);
    let uri = world.daemon.uri(&format!("cloud:{id}"));
    let copy = world.bed.path("copy");
    process::must_run("nbdcopy", &[&uri, copy.to_str().unwrap()]);
    assert!(same_file(&world.image, &copy));
    let map: serde_json::Value =
        serde_json::from_str(&process::must_run("nbdinfo", &["--json", "--map", &uri])).unwrap();
    let data = |entry: &&serde_json::Value| entry["type"] == 0;
    let found: u64 = map.as_array().unwrap().iter().filter(data).map(|e| e["length"].as_u64().unwrap()).sum();
    let extents = data_extents(&world.only().join("disk.img"));
    assert_eq!(found, extents.iter().map(|(start, end)| end - start).sum::<u64>());
    let info = process::must_run("nbdinfo", &["--json", &uri]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["exports"][0]["is_read_only"], true);
    let unknown = world.daemon.uri(&format!("cloud:{}", id.replace('-', "_")));
    assert!(!process::run_tool("nbdinfo", &[&unknown]).status.success());
}

/// Returns true if the user `nobody` can read a file.
fn is_readable_by_others(path: &Path) -> bool {
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "--", "cat", "--"];
    let args: Vec<&str> = user.into_iter().chain([path.to_str().unwrap()]).collect();
    process::run_tool("setpriv", &args).status.success()
}

#[test]
fn configured_mount_exists_at_start_and_honors_allow_other() {
    let bed = Bed::new();
    fs::set_permissions(bed.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let (source, image) = (bed.path("source"), bed.path("image"));
    fs::create_dir_all(source.join("closed")).unwrap();
    for (name, mode) in [("plain", 0o644), ("secret", 0o600), ("closed/plain", 0o644)] {
        fs::write(source.join(name), "content").unwrap();
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (name, mode) in [("", 0o755), ("closed", 0o700)] {
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    make_image(&source, &image);
    let store = bed.store("store");
    let mount = FuseMount(bed.path("mnt"));
    let setup = |allow_other: bool, mountpoint: &Path| {
        let setup = setup(&bed).config(&format!("mountpoint = {mountpoint:?}"));
        setup.config(&format!("allow_other = {allow_other}"))
    };
    let daemon = bed.daemon("one").start_with_volume(&store, None, "64MiB");
    process::must_run("nbdcopy", &[image.to_str().unwrap(), &daemon.uri("vol")]);
    daemon.ctl().backup("vol");
    drop(daemon.stop());

    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        announce("NOT TESTED: mounts for other users, which require root");
    }
    for allow_other in [false, true] {
        if allow_other && !is_root {
            continue;
        }
        let daemon = setup(allow_other, &mount.0).start();
        let dir = mount.0.join("vol/latest");
        wait_for("the snapshot", || fs::read(dir.join("files/secret")).ok());
        let seen = |name: &str| !is_root || is_readable_by_others(&dir.join(name)) == allow_other;
        assert!(seen("files/plain") && seen("manifest.json"), "allow_other: {allow_other}");
        if is_root {
            for name in ["files/secret", "files/closed/plain", "disk.img"] {
                assert!(
                    !is_readable_by_others(&dir.join(name)),
                    "{name} is readable by others, allow_other: {allow_other}"
                );
            }
        }
        assert_eq!(daemon.ctl().json(&["browse", "list"])["items"][0]["mountpoint"], mount.dir());
        // The next start unmounts the dead mount and mounts again.
        drop(daemon.kill());
    }

    // A failed mount is logged, and the daemon serves.
    let daemon = setup(false, &source).start();
    wait_until("the log message", || daemon.log().contains("is not empty"));
    assert_eq!(daemon.ctl().json(&["browse", "list"])["items"].as_array().map(Vec::len), Some(0));
    assert!(fs::metadata(source.join("plain")).is_ok());
}
