use super::*;
use std::{
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    process::id,
};

const LONG: Duration = Duration::from_secs(120);

fn isolated<'a>(dir: &'a Path, command: &'a str) -> IsolatedCommand<'a> {
    IsolatedCommand {
        command,
        user: "nobody",
        timeout: LONG,
        memory_bytes: None,
        env: &[],
        dir,
        devices: &[],
        is_stopping: &|| false,
    }
}

/// Returns a directory, or `None` where nothing can be isolated.
fn empty_dir(test: &str) -> Option<(tempfile::TempDir, PathBuf)> {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("drill");
    std::fs::create_dir(&dir).unwrap();
    match IsolatedCommand::check("nobody", &dir) {
        Ok(()) => Some((root, dir)),
        Err(IsolationError::NotRoot(_)) => {
            eprintln!("=== SKIPPED: {test}: only root creates namespaces ===");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn isolation_writes_nothing_beside_its_directory() {
    if empty_dir("isolation without space").is_some() {
        // No file can be created there, as on a full filesystem.
        assert_eq!(
            IsolatedCommand::check("nobody", Path::new("/sys/kernel")).map_err(|error| error.to_string()),
            Ok(())
        );
    }
}

#[test]
fn isolated_command_sees_no_processes_network_or_host_files() {
    let Some((root, dir)) = empty_dir("isolated commands") else { return };
    std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let planted = root.path().join("planted");
    let command = format!(
        "id -un; id -Gn; grep -c . /proc/net/dev; ls -d /proc/[0-9]* | wc -l; ls -A /tmp /tmp/blockd-drill; \
         grep -E 'Cap(Prm|Eff|Bnd)|NoNewPrivs' /proc/self/status; echo x >/dev/shm/mine; echo x >/var/tmp/planted; \
         test -e {}; echo $?; test -d /proc/{}; echo $?; echo $HOME $DRILL; exit 3",
        planted.display(),
        id()
    );
    std::fs::write(&planted, "x").unwrap();
    let env = [("DRILL", "seven".to_owned())];
    let ended = IsolatedCommand { env: &env, ..isolated(&dir, &command) }.run().unwrap();
    assert!(ended.error.as_ref().unwrap().starts_with("exit status 3: "), "{ended:?}");
    let lines: Vec<_> = ended.output.lines().collect();
    assert_eq!(lines[..2], ["nobody", "nogroup"]);
    // Two headings and the loopback device.
    assert_eq!(lines[2], "3");
    assert!(lines[3].parse::<u32>().unwrap() < 10, "{lines:?}");
    assert_eq!(ended.output.matches("000000000000").count(), 3, "no capabilities: {lines:?}");
    assert!(lines.iter().any(|line| line.contains("NoNewPrivs:\t1")), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("/var/tmp/planted") && line.contains("Read-only")));
    assert_eq!(lines[lines.len() - 3..], ["1", "1", "/tmp seven"]);
    assert!(!Path::new("/dev/shm/mine").exists() && std::fs::read_dir(&dir).unwrap().next().is_none());
}

#[test]
fn isolated_command_writes_to_no_mount_of_the_host() {
    let Some((_root, dir)) = empty_dir("mounts of an isolated command") else { return };
    // `/tmp` is private.
    let root = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let point = root.path().join("odd\n");
    std::fs::create_dir(&point).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-n", "-t", "tmpfs", "-o", "mode=1777", "tmpfs"]).arg(&point);
    assert!(mount.status().unwrap().success());
    let ended = isolated(&dir, &format!("touch '{}/written'", point.display())).run();
    assert!(Command::new("umount").arg(&point).status().unwrap().success());
    let ended = ended.unwrap();
    assert!(ended.error.is_some() && ended.output.contains("Read-only file system"), "{ended:?}");
}

#[test]
fn isolated_command_connects_to_its_sockets() {
    let Some((root, dir)) = empty_dir("socket of an isolated command") else { return };
    let path = root.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    let command = "perl -MIO::Socket::UNIX -e '
        for (qw(one two)) { IO::Socket::UNIX->new(Peer=>\"/tmp/blockd-drill/$_\") or die $! }'";
    let devices = ["one", "two"].map(|name| (name, IsolatedDevice::Socket(&path)));
    let ended = IsolatedCommand { devices: &devices, ..isolated(&dir, command) }.run().unwrap();
    assert_eq!(ended, Isolated { error: None, output: String::new() });
    listener.set_nonblocking(true).unwrap();
    for _ in devices {
        let _: (UnixStream, _) = listener.accept().unwrap();
    }
}

#[test]
fn isolated_command_reaches_no_socket_of_the_host() {
    let Some((_root, dir)) = empty_dir("sockets of the host") else { return };
    let root = tempfile::tempdir_in("/run").unwrap();
    std::fs::set_permissions(root.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = root.path().join("socket");
    let _listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    let command = format!(
        "set -e; perl -MIO::Socket::UNIX -e 'for (\"\", \"/var\") {{ IO::Socket::UNIX->new(Peer=>\"$_{}\") and die }}'
        ls -A /run /var/run /dev/pts",
        path.display()
    );
    let ended = isolated(&dir, &command).run().unwrap();
    assert_eq!(ended.error, None, "{ended:?}");
    assert_eq!(ended.output, "/dev/pts:\n\n/run:\n\n/var/run:\n");
}

#[test]
fn isolated_command_has_limits_and_the_lowest_priority() {
    let Some((_root, dir)) = empty_dir("limits of an isolated command") else { return };
    let command = "set -e; cat /proc/self/oom_score_adj; nice; ionice; cat /proc/self/limits
        ! echo 0 >/proc/self/oom_score_adj
        ! perl -e '$memory = \"x\" x (400 << 20)' 2>&1";
    let ended = IsolatedCommand { memory_bytes: Some(300 << 20), ..isolated(&dir, command) }.run().unwrap();
    assert_eq!(ended.error, None, "{ended:?}");
    assert!(ended.output.starts_with("1000\n19\nidle\n"), "{ended:?}");
    let limit = |name: &str| {
        let line = ended.output.lines().find(|line| line.starts_with(name)).unwrap();
        let values: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert_eq!(values[0], values[1], "{line}");
        values[0]
    };
    assert_eq!(limit("Max core file size"), 0);
    assert_eq!(limit("Max address space"), 300 << 20);
    assert!(limit("Max processes") <= MAX_TASKS && limit("Max open files") <= MAX_OPEN_FILES);
    assert!(ended.output.contains("Out of memory"), "{ended:?}");
}

#[test]
fn isolated_command_is_killed_at_its_timeout_and_at_a_stop() {
    let Some((_root, dir)) = empty_dir("kill of an isolated command") else { return };
    // A process of another session is in the namespaces as well.
    let mark = format!("6{:06}", id());
    let command = format!("setsid sleep {mark} & sleep {mark}");
    let is_left = || {
        let found = Command::new("pgrep").args(["-f", &format!("^sleep {mark}")]).output().unwrap();
        !found.stdout.is_empty()
    };
    let ended =
        IsolatedCommand { timeout: Duration::from_secs(1), ..isolated(&dir, &command) }.run().unwrap();
    assert_eq!(ended.error.as_deref(), Some("killed after 1 s"));
    let deadline = Instant::now() + LONG;
    while is_left() {
        assert!(Instant::now() < deadline, "a process is left");
    }
    let started = Instant::now();
    let is_stopping = || is_left() || started.elapsed() > LONG;
    let ended = IsolatedCommand { is_stopping: &is_stopping, ..isolated(&dir, &command) }.run().unwrap();
    assert!(ended.error.as_ref().unwrap().starts_with("killed"), "{ended:?}");
    assert!(started.elapsed() < LONG);
}

#[test]
fn impossible_isolation_names_its_cause() {
    let Some((_root, dir)) = empty_dir("refused isolation") else { return };
    let refused = |user| IsolatedCommand::check(user, &dir).unwrap_err().to_string();
    assert_eq!(refused("no-such-user"), "there is no user no-such-user on the daemon's host");
    assert!(refused("root").contains("root"));
    let missing = IsolatedCommand { dir: Path::new("/proc/drill"), ..isolated(&dir, ":") }.run();
    assert!(missing.is_err());
    let devices = [("device", IsolatedDevice::Device(Path::new("/dev/no-such-device")))];
    let ended = IsolatedCommand { devices: &devices, ..isolated(&dir, ":") }.run();
    assert!(
        matches!(&ended, Err(IsolationError::Setup(what)) if what.contains("no-such-device")),
        "{ended:?}"
    );
}
