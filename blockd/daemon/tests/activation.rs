//! What systemd does with the daemon: it makes the control socket and passes it on, and its watchdog wants to
//! hear from it. A shell takes systemd's part: it gives the descriptors their numbers and tells of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

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

/// Far beyond what anything here takes.
const TIMEOUT: Duration = Duration::from_secs(60);
/// What is passed becomes descriptor 3, for the process that the daemon will be.
const PASS: &str = r#"exec 3<&0 0</dev/null; LISTEN_PID=${PASS_TO:-$$} LISTEN_FDS=1 exec "$@""#;

/// A directory, and what is told to systemd's socket in it.
struct Bed {
    dir: tempfile::TempDir,
    told: UnixDatagram,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let told = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        told.set_read_timeout(Some(TIMEOUT)).unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        Self { dir, told }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn own_socket(&self) -> PathBuf {
        self.path("data/blockd.sock")
    }

    /// The daemon, started by a shell that passes it the socket. It may not be ready yet.
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

    /// Waits for this message; the others are dropped.
    fn hears(&self, wanted: &str) {
        let mut message = [0; 256];
        loop {
            let len = self.told.recv(&mut message).unwrap_or_else(|error| {
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

/// Asks for something that everybody may know; somebody else's turn may come first.
fn ask(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream.write_all(b"GET /v1/volumes HTTP/1.1\r\nHost: blockd\r\n\r\n").unwrap();
    stream
}

fn answer(mut stream: UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn the_passed_socket_is_served_and_kept_over_restarts() {
    let bed = Bed::new();
    let socket = UnixListener::bind(bed.own_socket()).unwrap();
    let inode = std::fs::symlink_metadata(bed.own_socket()).unwrap().ino();
    for _ in 0..2 {
        // Before the daemon is there.
        let asked = ask(&bed.own_socket());
        let daemon = bed.start(socket.try_clone().unwrap(), &[]);
        assert!(answer(asked).starts_with("HTTP/1.1 200 "));
        bed.hears("READY=1");
        assert!(answer(ask(&bed.own_socket())).starts_with("HTTP/1.1 200 "));
        daemon.stop();
        let left = std::fs::symlink_metadata(bed.own_socket()).unwrap().ino();
        assert_eq!(left, inode, "what systemd made stays");
    }
    assert!(!bed.log().contains("WARN"), "{}", bed.log());
    // A daemon that is passed nothing replaces it, as it does with what a dead one left.
    let daemon = bed.start(socket, &[("PASS_TO", "1")]);
    bed.hears("READY=1");
    assert_ne!(std::fs::symlink_metadata(bed.own_socket()).unwrap().ino(), inode);
    assert!(answer(ask(&bed.own_socket())).starts_with("HTTP/1.1 200 "));
    daemon.stop();
    assert!(!bed.own_socket().exists(), "its own socket goes with it");
}

#[test]
fn a_socket_of_a_group_has_its_role_and_must_be_the_groups() {
    let bed = Bed::new();
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
    stream.write_all(b"DELETE /v1/volumes/none HTTP/1.1\r\nHost: blockd\r\n\r\n").unwrap();
    assert!(answer(stream).starts_with("HTTP/1.1 403 "));
    bed.hears("READY=1");
    daemon.stop();
    assert!(path.exists());

    set_mode(0o666);
    let daemon = bed.start(socket, &[]);
    bed.hears("READY=1");
    // The daemon has closed it: nobody listens but this test.
    assert!(bed.log().contains("SocketMode=0660"), "{}", bed.log());
    assert!(answer(ask(&bed.own_socket())).starts_with("HTTP/1.1 200 "));
    daemon.stop();
}

#[test]
fn what_cannot_be_served_does_not_keep_the_daemon_from_serving() {
    let bed = Bed::new();
    let other = UnixListener::bind(bed.path("other.sock")).unwrap();
    let daemon = bed.start(other, &[]);
    bed.hears("READY=1");
    assert!(answer(ask(&bed.own_socket())).starts_with("HTTP/1.1 200 "));
    daemon.stop();
    assert!(bed.log().contains("other.sock"), "{}", bed.log());

    let daemon = bed.start(std::fs::File::open("/dev/null").unwrap(), &[]);
    bed.hears("READY=1");
    assert!(answer(ask(&bed.own_socket())).starts_with("HTTP/1.1 200 "));
    daemon.stop();
    assert!(bed.log().contains("descriptor 0 is not a listening unix stream socket"), "{}", bed.log());
}

#[test]
fn the_watchdog_hears_from_a_daemon_that_is_alive_and_from_no_other() {
    let bed = Bed::new();
    let socket = UnixListener::bind(bed.own_socket()).unwrap();
    let daemon = bed.start(socket, &[("WATCHDOG_USEC", "300000")]);
    bed.hears("READY=1");
    for _ in 0..3 {
        bed.hears("WATCHDOG=1");
    }
    kill_process(Pid::from_child(&daemon.0), Signal::STOP).unwrap();
    // All of its threads: it is told by its parent, which this is.
    let stopped = waitpid(Some(Pid::from_child(&daemon.0)), WaitOptions::UNTRACED).unwrap();
    assert!(stopped.is_some_and(|(_, status)| status.stopped()));
    // What was told before it stood still, however much that is, then nothing for three times as long as it
    // has.
    bed.told.set_nonblocking(true).unwrap();
    while bed.told.recv(&mut [0; 64]).is_ok() {}
    bed.told.set_nonblocking(false).unwrap();
    bed.told.set_read_timeout(Some(Duration::from_millis(900))).unwrap();
    assert!(bed.told.recv(&mut [0; 64]).is_err(), "it is told although the daemon stands still");
    kill_process(Pid::from_child(&daemon.0), Signal::CONT).unwrap();
    bed.told.set_read_timeout(Some(TIMEOUT)).unwrap();
    bed.hears("WATCHDOG=1");
    daemon.stop();
}
