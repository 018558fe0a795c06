//! Mounts that a user makes and hands to an unprivileged daemon: another user in its own mount namespace,
//! without `/dev/fuse` and `fusermount3`.

use crate::harness::{
    Bed, Ctl, Daemon, Setup, Store, TIMEOUT, announce, ctl::clean, fuse::FuseMount, process, wait_for,
    wait_until,
};
use blockd_api::{Client, ClientError, ErrorCode, browse::HandMount};
use blockd_fuse::UnservedMount;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::{
    fs::{self, File},
    io::{ErrorKind, IoSlice, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::Output,
    time::{Duration, Instant},
};

/// User ids of the daemon, a group member and another user. All exist on Debian: `fusermount3` looks up their
/// names.
const DAEMON: u32 = 2;
const MEMBER: u32 = 1;
const OTHER: u32 = 65534;
/// Prepares `/dev/fuse` as on an ordinary host.
const ORDINARY: &str =
    "mount -t tmpfs tmpfs /mnt\nmknod -m 666 /mnt/fuse c 10 229\nmount --bind /mnt/fuse /dev/fuse";
/// Prepares the environment of the packaged unit: no `/dev/fuse` and no program that mounts.
const CONFINED: &str = "mount --bind /dev/null /dev/fuse\nexport PATH=/nonexistent";

/// Returns true if the test can run here, in a namespace where users may mount.
fn can_run(test: &str, what: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        announce(&format!("NOT TESTED: {what}, which requires root"));
        return false;
    }
    process::in_own_mounts(test, ORDINARY)
}

fn give(path: &Path, uid: u32, gid: u32, mode: u32) {
    std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs a program as a user in one group.
fn as_user(uid: u32, args: &[&str]) -> Output {
    let (reuid, regid) = (format!("--reuid={uid}"), format!("--regid={uid}"));
    let user = [reuid.as_str(), regid.as_str(), "--clear-groups", "--"];
    process::run_tool("setpriv", &[&user[..], args].concat())
}

fn reads(uid: u32, path: &Path) -> bool {
    as_user(uid, &["cat", "--", path.to_str().unwrap()]).status.success()
}

struct World {
    _store: Store,
    daemon: Daemon,
    home: PathBuf,
    /// Last: the directory is removed after the daemon has ended.
    bed: Bed,
}

/// Starts a daemon with a backup of a small ext4.
fn world(script: &str, more: impl Fn(&Bed, Setup) -> Setup) -> World {
    let bed = Bed::new();
    give(bed.dir(), 0, 0, 0o755);
    let (source, image, home) = (bed.path("source"), bed.path("image"), bed.path("home"));
    for dir in [&source, &home, &bed.path("sockets")] {
        fs::create_dir_all(dir).unwrap();
    }
    give(&home, MEMBER, MEMBER, 0o755);
    give(&bed.path("sockets"), DAEMON, MEMBER, 0o2755);
    for (name, mode) in [("plain", 0o644), ("secret", 0o600)] {
        fs::write(source.join(name), "content").unwrap();
        give(&source.join(name), 0, 0, mode);
    }
    give(&source, 0, 0, 0o755);
    let (from, to) = (source.to_str().unwrap(), image.to_str().unwrap());
    process::must_run("mke2fs", &["-q", "-F", "-t", "ext4", "-d", from, to, "16M"]);
    let store = bed.store("store");
    give(store.dir(), DAEMON, DAEMON, 0o700);
    let setup = bed.daemon("one").isolated(DAEMON, script).config("[browse]").config("refresh_ms = 200");
    let setup = more(&bed, setup);
    let socket = bed.path("sockets/members");
    let setup = setup.config("[[control.sockets]]").config(&format!("path = {socket:?}"));
    let setup = setup.config(&format!("group = \"{MEMBER}\"")).config("role = \"operator\"");
    let daemon = setup.start_with_volume(&store, Some("correct horse"), "16MiB");
    process::must_run("nbdcopy", &[to, &daemon.uri("vol")]);
    daemon.ctl().backup("vol");
    World { bed, _store: store, daemon, home }
}

impl World {
    /// Returns a `blockctl` as this user on the socket of the group.
    fn ctl_of(&self, uid: u32) -> Ctl {
        Ctl::new(&self.bed.path("sockets/members")).user(uid, MEMBER)
    }

    /// Waits until the daemon serves this number of mounts.
    fn wait_for_mounts(&self, count: usize) {
        let list = || self.daemon.ctl().json(&["browse", "list"])["items"].as_array().map(Vec::len);
        wait_until(&format!("{count} mounts"), || list() == Some(count));
    }
}

#[test]
fn mount_belongs_to_its_user_and_daemon_needs_no_privilege() {
    if !can_run(
        "mount_belongs_to_its_user_and_daemon_needs_no_privilege",
        "mounts of other users than the daemon's",
    ) {
        return;
    }
    let world = world(CONFINED, |_, setup| setup);
    let (roots, theirs) = (FuseMount(world.bed.path("mnt")), FuseMount(world.home.join("snap shots")));
    let (at_root, at_home) = (roots.dir(), theirs.dir());
    let latest = |mount: &FuseMount| mount.0.join("vol/latest");

    // A mount by root is readable by root only.
    let mount = world.daemon.ctl().json(&["browse", "mount", at_root]);
    assert_eq!((mount["mountpoint"].as_str(), mount["uid"].as_u64()), (Some(at_root), Some(0)));
    wait_for("the snapshot", || fs::read(latest(&roots).join("files/plain")).ok());
    assert_eq!(fs::read(latest(&roots).join("files/secret")).unwrap(), b"content");
    assert_eq!(fs::metadata(latest(&roots).join("disk.img")).unwrap().len(), 16 << 20);
    for uid in [DAEMON, MEMBER, OTHER] {
        assert!(!reads(uid, &latest(&roots).join("files/plain")), "{uid}");
    }
    let readahead = fs::metadata(&roots.0).map(|meta| std::os::unix::fs::MetadataExt::dev(&meta)).unwrap();
    let readahead = format!(
        "/sys/class/bdi/{}:{}/read_ahead_kb",
        rustix::fs::major(readahead),
        rustix::fs::minor(readahead)
    );
    assert_eq!(fs::read_to_string(readahead).unwrap().trim(), "1024");

    // A mount by a user is unreadable for root and the daemon's user.
    let member = world.ctl_of(MEMBER);
    let mount = member.json(&["browse", "mount", at_home]);
    assert_eq!(mount["uid"], MEMBER);
    wait_until("the snapshot", || reads(MEMBER, &latest(&theirs).join("files/plain")));
    assert!(reads(MEMBER, &latest(&theirs).join("disk.img")));
    let owner = as_user(MEMBER, &["stat", "--format=%u:%g", "--", at_home]);
    assert_eq!(String::from_utf8_lossy(&owner.stdout).trim(), format!("{MEMBER}:{MEMBER}"));
    let error = fs::read(latest(&theirs).join("files/plain")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    assert!(!reads(DAEMON, &latest(&theirs).join("files/plain")));
    assert!(!reads(OTHER, &latest(&theirs).join("files/plain")));
    world.wait_for_mounts(2);

    // Other users cannot unmount it or mount over it.
    member.fails(&["browse", "mount", at_home], 2);
    world.ctl_of(OTHER).fails(&["browse", "umount", at_home], 1);
    assert!(reads(MEMBER, &latest(&theirs).join("files/plain")));
    let log = world.daemon.log();
    assert!(log.contains("serving a user mount"), "{log}");
    member.json(&["browse", "umount", at_home]);
    // The kernel notifies the daemon.
    world.wait_for_mounts(1);
    assert!(fs::read_dir(&theirs.0).unwrap().next().is_none());
    wait_until("the log message", || world.daemon.log().contains("user mount ended"));
    // A refused request leaves no mount.
    member.fails(&["browse", "mount", at_home, "--cred-id", "unknown"], 4);
    assert!(fs::read_dir(&theirs.0).unwrap().next().is_none());
}

#[test]
fn user_mount_outlives_its_daemon_and_is_removed_without() {
    if !can_run(
        "user_mount_outlives_its_daemon_and_is_removed_without",
        "mounts of other users than the daemon's",
    ) {
        return;
    }
    let mut world = world(CONFINED, |_, setup| setup);
    let (roots, theirs) = (FuseMount(world.bed.path("mnt")), FuseMount(world.home.join("snap shots")));
    let (at_root, at_home) = (roots.dir(), theirs.dir());
    let latest = |mount: &FuseMount| mount.0.join("vol/latest");
    world.daemon.ctl().json(&["browse", "mount", at_root]);
    let member = world.ctl_of(MEMBER);
    member.json(&["browse", "mount", at_home]);
    wait_until("the snapshot", || reads(MEMBER, &latest(&theirs).join("files/plain")));
    world.daemon = world.daemon.kill().start();
    wait_until("the mount to be dead", || !reads(MEMBER, &latest(&theirs).join("files/plain")));
    let member = world.ctl_of(MEMBER);
    member.json(&["browse", "mount", at_home]);
    wait_until("the snapshot", || reads(MEMBER, &latest(&theirs).join("files/plain")));

    // Without a daemon, mounts can be removed but not made.
    let _setup = world.daemon.stop();
    member.json(&["browse", "umount", at_home]);
    let root = Ctl::new(&world.bed.path("one/data/blockd.sock"));
    root.json(&["browse", "umount", at_root]);
    for mount in [&roots, &theirs] {
        assert!(fs::read_dir(&mount.0).unwrap().next().is_none());
    }
    root.fails(&["browse", "mount", at_root], 3);
    assert!(fs::read_dir(&roots.0).unwrap().next().is_none());
}

#[test]
fn other_users_see_the_mount_with_allow_other() {
    if !can_run("other_users_see_the_mount_with_allow_other", "mounts for other users") {
        return;
    }
    let world = world(CONFINED, |_, setup| setup);
    let (roots, theirs) = (FuseMount(world.bed.path("mnt")), FuseMount(world.home.join("mnt")));
    let at_root = roots.dir();
    world.daemon.ctl().json(&["browse", "mount", at_root, "--allow-other"]);
    let latest = roots.0.join("vol/latest");
    wait_until("the snapshot", || reads(OTHER, &latest.join("files/plain")));
    for name in ["files/secret", "disk.img"] {
        assert!(!reads(OTHER, &latest.join(name)), "{name} is readable by others");
    }

    // A user needs `user_allow_other` in /etc/fuse.conf.
    let at_home = theirs.dir();
    world.ctl_of(MEMBER).fails_with(&["browse", "mount", at_home, "--allow-other"], 1, "user_allow_other");
    let conf = world.bed.path("fuse.conf");
    fs::write(&conf, "user_allow_other\n").unwrap();
    let script = format!(
        "set -e\nmount --bind {} /etc/fuse.conf\n\
        as() {{ uid=$1; shift; setpriv --reuid=$uid --regid={MEMBER} --clear-groups -- \"$@\"; }}\n\
        as {MEMBER} \"$1\" browse mount \"$2\" --allow-other >&2\n\
        as {OTHER} cat \"$2/vol/latest/files/plain\"\n\
        ! as {OTHER} cat \"$2/vol/latest/disk.img\"\n\
        as {MEMBER} cat \"$2/vol/latest/disk.img\" >/dev/null",
        conf.display()
    );
    let mut command = clean(process::tool("unshare"));
    command.env("BLOCKD_SOCKET", world.bed.path("sockets/members"));
    command.args(["--mount", "/bin/sh", "-c", &script, "sh"]).arg(process::program("blockctl")).arg(at_home);
    let output = process::die_with_parent(&mut command).output().unwrap();
    assert!(output.status.success(), "{}", process::both(&output));
    assert_eq!(output.stdout, b"content");
    // The mount ends with its namespace, and the daemon notices.
    world.wait_for_mounts(1);
    drop(roots);
    world.wait_for_mounts(0);
}

#[test]
fn unprivileged_daemon_mounts_for_others_where_permitted() {
    if !can_run(
        "unprivileged_daemon_mounts_for_others_where_permitted",
        "allow_other of an unprivileged daemon",
    ) {
        return;
    }
    let mount = |bed: &Bed| bed.path("one/mnt");
    let bed = Bed::new();
    let conf = bed.path("fuse.conf");
    give(bed.dir(), 0, 0, 0o755);
    fs::write(&conf, "user_allow_other\n").unwrap();
    let script = format!("mount --bind {} /etc/fuse.conf", conf.display());
    let world = world(&script, |bed, setup| {
        fs::create_dir_all(mount(bed)).unwrap();
        give(&mount(bed), DAEMON, DAEMON, 0o755);
        setup.config(&format!("mountpoint = {:?}", mount(bed))).config("allow_other = true")
    });
    let list = world.daemon.ctl().json(&["browse", "list"]);
    assert_eq!(list["items"][0]["mountpoint"], mount(&world.bed).to_str().unwrap(), "{}", world.daemon.log());
    assert!(list["items"][0]["uid"].is_null(), "a mount by the daemon has a uid");
    // The mount is in the daemon's namespace.
    let pid = world.daemon.pid();
    let reads = |uid: u32, name: &str| {
        let path = mount(&world.bed).join("vol/latest").join(name);
        let namespace = format!("--mount=/proc/{pid}/ns/mnt");
        let (reuid, regid) = (format!("--reuid={uid}"), format!("--regid={uid}"));
        let args =
            [&namespace, "setpriv", &reuid, &regid, "--clear-groups", "--", "cat", path.to_str().unwrap()];
        process::run_tool("nsenter", &args).status.success()
    };
    wait_until("the snapshot", || reads(OTHER, "files/plain"));
    assert!(!reads(OTHER, "files/secret") && !reads(OTHER, "disk.img") && reads(DAEMON, "disk.img"));
    // From another namespace, the daemon unmounts it.
    let dir = mount(&world.bed);
    world.daemon.ctl().json(&["browse", "umount", dir.to_str().unwrap()]);
    world.wait_for_mounts(0);
}

/// Hands a descriptor to the daemon as that of a mount.
fn hand(socket: &Path, descriptor: OwnedFd) -> Result<(), ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let request = HandMount { mountpoint: "/somewhere".into(), credentials: Vec::new(), allow_other: false };
    runtime.block_on(Client::new(socket).hand_mount(&request, descriptor)).map(drop)
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

#[test]
fn invalid_mount_descriptor_is_refused_and_closed() {
    if !can_run("invalid_mount_descriptor_is_refused_and_closed", "invalid descriptors of mounts") {
        return;
    }
    let bed = Bed::new();
    let daemon = bed.daemon("one").start();
    let (socket, pid) = (daemon.socket(), daemon.pid());
    let refused = |descriptor: OwnedFd, why: &str| match hand(&socket, descriptor).unwrap_err() {
        ClientError::Api(error) => {
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{error}");
            assert!(error.message.contains(why), "{error}");
        }
        error => panic!("{error}"),
    };
    // The first request opens files that stay open.
    refused(File::open("/dev/null").unwrap().into(), "not /dev/fuse");
    let (files, began) = (process::open_files(pid), Instant::now());
    refused(File::open(bed.dir()).unwrap().into(), "not /dev/fuse");
    refused(UnixStream::pair().unwrap().0.into(), "not /dev/fuse");
    let unmounted = || fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    refused(unmounted().into(), "no mount waits for a server");

    // The sender has read the kernel's first request.
    let mount = FuseMount(bed.path("mnt"));
    let mut unserved = UnservedMount::make(&mount.0, false).unwrap();
    let descriptor = unserved.take_descriptor().unwrap();
    let mut stolen = File::from(descriptor.try_clone().unwrap());
    assert!(stolen.read(&mut [0; 1 << 16]).unwrap() > 0);
    refused(descriptor, "no mount waits for a server");
    drop(stolen);
    drop(unserved);
    // The mount was removed before the hand-over.
    let mut unserved = UnservedMount::make(&mount.0, false).unwrap();
    let descriptor = unserved.take_descriptor().unwrap();
    drop(unserved);
    refused(descriptor, "no mount waits for a server");
    assert!(began.elapsed() < TIMEOUT);
    wait_until("the descriptors to be closed", || process::open_files(pid) <= files);
    let names = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
        names.filter(|name| name.starts_with("browse-") || name.starts_with("fuser")).count()
    };
    wait_until("the threads to end", || names() == 0);

    // Valid mounts are served, and their threads end with them.
    let root = daemon.ctl();
    let at = mount.dir();
    for _ in 0..20 {
        root.json(&["browse", "mount", at]);
        assert!(fs::read_dir(&mount.0).unwrap().next().is_none());
        root.json(&["browse", "umount", at]);
    }
    wait_until("the threads to end", || names() == 0 && threads(pid) < 100);
    wait_until("the files to be closed", || process::open_files(pid) <= files);
}

#[test]
fn unrequested_descriptor_is_closed() {
    let bed = Bed::new();
    let daemon = bed.daemon("one").start();
    // The daemon waits for the body of this request.
    let head = b"POST /v1/browse/unmount HTTP/1.1\r\nhost: blockd\r\ncontent-length: 20\r\nconnection: close\r\n\r\n";
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stream = UnixStream::connect(daemon.socket()).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [writer.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    rustix::net::sendmsg(&stream, &[IoSlice::new(head)], &mut control, SendFlags::NOSIGNAL).unwrap();
    drop(writer);
    // The daemon closes the descriptor when it has the whole request.
    rustix::net::send(&stream, b"{\"mountpoint\": \"/x\"}", SendFlags::NOSIGNAL).unwrap();
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    let mut reply = String::new();
    (&stream).read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 404"), "{reply}");
}

/// Returns the CPU time of a process, in ticks of 10 ms.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn nonblocking_descriptor_causes_no_busy_loop() {
    if !can_run("nonblocking_descriptor_causes_no_busy_loop", "mounts with a nonblocking descriptor") {
        return;
    }
    let world = world(CONFINED, |_, setup| setup);
    let mount = FuseMount(world.bed.path("mnt"));
    let mut unserved = UnservedMount::make(&mount.0, false).unwrap();
    let descriptor = unserved.take_descriptor().unwrap();
    let kept = descriptor.try_clone().unwrap();
    hand(&world.daemon.socket(), descriptor).unwrap();
    wait_for("the snapshot", || fs::read(mount.0.join("vol/latest/files/plain")).ok());
    let flags = rustix::fs::fcntl_getfl(&kept).unwrap();
    rustix::fs::fcntl_setfl(&kept, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    // A request wakes a waiting thread.
    assert!(fs::read_dir(&mount.0).unwrap().next().is_some());
    let (began, before) = (Instant::now(), cpu_ticks(world.daemon.pid()));
    wait_until("the interval of the measurement", || began.elapsed() > Duration::from_secs(2));
    let ticks = cpu_ticks(world.daemon.pid()) - before;
    // A busy thread uses the whole interval, which may be longer than two seconds.
    let limit = began.elapsed().as_millis() as u64 / 10 * 3 / 10;
    assert!(ticks < limit, "{ticks} ticks of 10 ms in {:?}", began.elapsed());
    assert!(fs::read_dir(&mount.0).unwrap().next().is_some());
    drop(unserved);
}

#[test]
fn inaccessible_fuse_device_serves_mounts_of_root_only() {
    if !can_run("inaccessible_fuse_device_serves_mounts_of_root_only", "an inaccessible /dev/fuse") {
        return;
    }
    let world = world(CONFINED, |_, setup| setup);
    // The member's group may open the device, the daemon may not.
    give(Path::new("/dev/fuse"), 0, MEMBER, 0o660);
    let (roots, theirs) = (FuseMount(world.bed.path("mnt")), FuseMount(world.home.join("mnt")));
    let error = world.ctl_of(MEMBER).fails(&["browse", "mount", theirs.dir()], 1);
    assert_eq!(error["code"], "not_permitted", "{error:#}");
    assert!(error["message"].as_str().unwrap().contains("DeviceAllow=/dev/fuse rw"), "{error:#}");
    assert!(fs::read_dir(&theirs.0).unwrap().next().is_none(), "a mount is left");
    world.daemon.ctl().json(&["browse", "mount", roots.dir()]);
    wait_for("the snapshot", || fs::read(roots.0.join("vol/latest/files/plain")).ok());
    world.wait_for_mounts(1);
}
