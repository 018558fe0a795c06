//! Socket activation and watchdog. A shell plays the role of systemd: it passes the descriptors and sets the
//! environment variables.
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::{
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::{UnixDatagram, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Generous timeout of all waits.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Passes stdin as descriptor 3 to the process that becomes the daemon.
const PASS: &str = r#"exec 3<&0 0</dev/null; LISTEN_PID=${PASS_TO:-$$} LISTEN_FDS=1 exec "$@""#;

/// Test directory, and the notification socket in it.
struct TestDir {
    dir: tempfile::TempDir,
    notifications: UnixDatagram,
}

impl TestDir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let notifications = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        notifications.set_read_timeout(Some(TIMEOUT)).unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        Self { dir, notifications }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn own_socket(&self) -> PathBuf {
        self.path("data/blockd.sock")
    }

    /// Starts the daemon through a shell that passes it the socket; does not wait for readiness.
    fn start(&self, passed: impl Into<OwnedFd>, env: &[(&str, &str)]) -> Running {
        let mut command = Command::new("sh");
        command.args(["-c", PASS, "sh", env!("CARGO_BIN_EXE_blockd"), "--data-dir"]);
        command.arg(self.path("data")).arg("--config").arg(self.path("blockd.toml"));
        for name in ["BLOCKD_LOG", "CREDENTIALS_DIRECTORY", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDNAMES"]
        {
            command.env_remove(name);
        }
        let log = std::fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        std::fs::File::options().create(true).append(true).open(self.path("blockd.toml")).unwrap();
        command.env("NOTIFY_SOCKET", self.path("notify")).envs(env.iter().copied());
        command.stdin(Stdio::from(passed.into())).stderr(log);
        Running(command.spawn().unwrap())
    }

    /// Waits for this notification and drops others.
    fn wait_for(&self, wanted: &str) {
        let mut message = [0; 256];
        loop {
            let len = self.notifications.recv(&mut message).unwrap_or_else(|error| {
                panic!("no {wanted}: {error}\n{}", self.log());
            });
            if message[..len].starts_with(wanted.as_bytes()) {
                return;
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }
}

struct Running(Child);

impl Running {
    fn stop(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a read-only request without waiting for the response.
fn ask(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"GET /v1/volumes HTTP/1.1\r\nHost: blockd\r\nConnection: close\r\n\r\n").unwrap();
    stream
}

fn answer(mut stream: UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn passed_socket_is_served_and_kept_over_restarts() {
    let bed = TestDir::new();
    let socket = UnixListener::bind(bed.own_socket()).unwrap();
    let inode = std::fs::symlink_metadata(bed.own_socket()).unwrap().ino();
    for _ in 0..2 {
        // Before the daemon is running.
        let asked = ask(&bed.own_socket());
        let daemon = bed.start(socket.try_clone().unwrap(), &[]);
        assert!(answer(asked).starts_with("HTTP/1.1 200 "));
        bed.wait_for("READY=1");
        assert!(answer(ask(&bed.own_socket())).starts_with("HTTP/1.1 200 "));
        daemon.stop();
        let left = std::fs::symlink_metadata(bed.own_socket()).unwrap().ino();
        assert_eq!(left, inode, "the passed socket is not removed");
    }
    assert!(!bed.log().contains("WARN"), "{}", bed.log());
    // A daemon without passed sockets replaces it like a stale one.
    let daemon = bed.start(socket, &[("PASS_TO", "1")]);
    bed.wait_for("READY=1");
    assert_ne!(std::fs::symlink_metadata(bed.own_socket()).unwrap().ino(), inode);
    assert!(answer(ask(&bed.own_socket())).starts_with("HTTP/1.1 200 "));
    daemon.stop();
    assert!(!bed.own_socket().exists(), "the daemon removes a socket of its own");
}

#[test]
fn passed_group_socket_has_its_role_and_checked_mode() {
    let bed = TestDir::new();
    let path = bed.path("readers.sock");
    let gid = rustix::process::getegid().as_raw();
    let config = format!("[[control.sockets]]\npath = {path:?}\ngroup = \"{gid}\"\nrole = \"read-only\"\n");
    std::fs::write(bed.path("blockd.toml"), config).unwrap();
    let socket = UnixListener::bind(&path).unwrap();
    let set_mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();

    set_mode(0o660);
    let daemon = bed.start(socket.try_clone().unwrap(), &[]);
    assert!(answer(ask(&path)).starts_with("HTTP/1.1 200 "));
    let mut stream = UnixStream::connect(&path).unwrap();
    stream
        .write_all(b"DELETE /v1/volumes/none HTTP/1.1\r\nHost: blockd\r\nConnection: close\r\n\r\n")
        .unwrap();
    assert!(answer(stream).starts_with("HTTP/1.1 403 "));
    bed.wait_for("READY=1");
    daemon.stop();
    assert!(path.exists());

    set_mode(0o666);
    let daemon = bed.start(socket, &[]);
    bed.wait_for("READY=1");
    // The daemon has closed it: only this test still has it open.
    assert!(bed.log().contains("SocketMode=0660"), "{}", bed.log());
    assert!(answer(ask(&bed.own_socket())).starts_with("HTTP/1.1 200 "));
    daemon.stop();
}

#[test]
fn unusable_passed_descriptor_does_not_prevent_the_start() {
    let bed = TestDir::new();
    let other = UnixListener::bind(bed.path("other.sock")).unwrap();
    let daemon = bed.start(other, &[]);
    bed.wait_for("READY=1");
    assert!(answer(ask(&bed.own_socket())).starts_with("HTTP/1.1 200 "));
    daemon.stop();
    assert!(bed.log().contains("other.sock"), "{}", bed.log());

    let daemon = bed.start(std::fs::File::open("/dev/null").unwrap(), &[]);
    bed.wait_for("READY=1");
    assert!(answer(ask(&bed.own_socket())).starts_with("HTTP/1.1 200 "));
    daemon.stop();
    assert!(bed.log().contains("descriptor 0 is not a listening unix stream socket"), "{}", bed.log());
}

#[test]
fn watchdog_is_notified_only_while_the_daemon_runs() {
    let bed = TestDir::new();
    let socket = UnixListener::bind(bed.own_socket()).unwrap();
    let daemon = bed.start(socket, &[("WATCHDOG_USEC", "300000")]);
    bed.wait_for("READY=1");
    for _ in 0..3 {
        bed.wait_for("WATCHDOG=1");
    }
    kill_process(Pid::from_child(&daemon.0), Signal::STOP).unwrap();
    // Waits until all threads have stopped; only the parent, this process, can.
    let stopped = waitpid(Some(Pid::from_child(&daemon.0)), WaitOptions::UNTRACED).unwrap();
    assert!(stopped.is_some_and(|(_, status)| status.stopped()));
    // Drops the notifications from before the stop; then there must be none for three watchdog intervals.
    bed.notifications.set_nonblocking(true).unwrap();
    while bed.notifications.recv(&mut [0; 64]).is_ok() {}
    bed.notifications.set_nonblocking(false).unwrap();
    bed.notifications.set_read_timeout(Some(Duration::from_millis(900))).unwrap();
    assert!(bed.notifications.recv(&mut [0; 64]).is_err(), "a notification of a stopped daemon");
    kill_process(Pid::from_child(&daemon.0), Signal::CONT).unwrap();
    bed.notifications.set_read_timeout(Some(TIMEOUT)).unwrap();
    bed.wait_for("WATCHDOG=1");
    daemon.stop();
}
