//! Real databases on volumes: each volume is an ext4 on a loop device on nbdfuse, so that no NBD in the
//! kernel is needed.

use crate::harness::{
    Daemon,
    process::{both, die_with_parent},
    replay::filesystem::{ExportFile, Mount},
    wait_for,
};
use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// A mounted volume.
pub struct Disk {
    mount: Option<Mount>,
    _file: ExportFile,
}

impl Disk {
    /// Mounts a volume, which has an ext4 already unless it is `new`; the mounts of this thread must be its
    /// own ones.
    pub fn mount(daemon: &Daemon, volume: &str, at: &Path, new: bool) -> Self {
        let file = ExportFile::of(&daemon.uri(volume), &at.with_extension(format!("{volume}-disk")));
        if new {
            let mut command = Command::new("mkfs.ext4");
            run(command.args(["-q", "-F"]).arg(file.path()));
        }
        let mount = Mount::of(&file.path(), at).unwrap_or_else(|what| panic!("{volume}: {what}"));
        Self { mount: Some(mount), _file: file }
    }

    /// Unmounts it.
    pub fn unmount(mut self) {
        if let Some(mount) = self.mount.take() {
            mount.end().unwrap_or_else(|what| panic!("{what}"));
        }
    }
}

/// Runs a command that must succeed; gives its stdout.
pub fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let output = die_with_parent(command.stdin(Stdio::null())).output();
    let output = output.unwrap_or_else(|error| panic!("{shown}: {error}"));
    assert!(output.status.success(), "{shown}: {}: {}", output.status, both(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A command that runs as another user, without anything of this one's environment.
pub fn as_user(user: &str, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "--"]).arg(program);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/");
    command
}

/// A server that is killed when the test ends, however it does.
pub struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Starts it; it is not ready yet.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let file = std::fs::File::options().create(true).append(true).open(log).expect("a log");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        Self { child: die_with_parent(command).spawn().expect("a server"), log: log.to_owned() }
    }

    /// Waits until this command succeeds.
    pub fn wait_until(&mut self, mut probe: impl FnMut() -> Command) {
        wait_for("the server to be ready", || {
            let ended = self.child.try_wait().expect("wait");
            let said = || std::fs::read_to_string(&self.log).unwrap_or_default();
            assert!(ended.is_none(), "the server ended with {ended:?}: {}", said());
            let mut command = probe();
            let output = die_with_parent(command.stdin(Stdio::null())).output().expect("a client");
            output.status.success().then_some(())
        });
    }

    /// Sends a signal and waits for its end.
    pub fn end(mut self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal)
            .expect("a signal");
        self.child.wait().expect("wait");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("--- log of the server:\n{log}---");
        }
    }
}

/// Has a client of the database say one statement after the other, each when the one before was answered;
/// `answered` is the number of the last one that was. The answer to the statement of number n is a line with
/// n.
pub fn keep_a_ledger(
    command: &mut Command,
    statement: impl Fn(u64) -> String,
    stop: &AtomicBool,
    answered: &AtomicU64,
) {
    let mut child =
        die_with_parent(command.stdin(Stdio::piped()).stdout(Stdio::piped())).spawn().expect("a client");
    let mut says = child.stdin.take().expect("its input");
    let mut hears = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        says.write_all(statement(number).as_bytes()).and_then(|()| says.flush()).expect("a statement");
        let line = hears.next().expect("an answer").expect("an answer");
        assert_eq!(line, number.to_string(), "another answer");
        answered.store(number, Ordering::SeqCst);
    }
    drop(says);
    let status = child.wait().expect("wait");
    assert!(status.success(), "the client ended with {status}");
}

/// The database's own programs, or the first that is missing.
pub fn programs(dirs: &[&str], names: &[&str]) -> Result<Vec<PathBuf>, String> {
    let found = |name: &&str| {
        let mut paths = dirs.iter().map(|dir| Path::new(dir).join(name));
        paths.find(|path| path.is_file()).ok_or_else(|| (*name).to_owned())
    };
    names.iter().map(found).collect()
}
