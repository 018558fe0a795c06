//! Real databases on volumes. Each volume is an ext4 on a loop device on nbdfuse, which needs no NBD driver
//! in the kernel.

use crate::harness::{
    Daemon,
    process::{Process, both, die_with_parent},
    replay::filesystem::{ExportFile, Mount},
};
use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// User of PostgreSQL.
pub const POSTGRES: &str = "postgres";
/// User of MariaDB.
pub const MYSQL: &str = "mysql";

/// A mounted volume.
pub struct Disk {
    mount: Option<Mount>,
    _file: ExportFile,
}

impl Disk {
    /// Mounts the ext4 of a volume, which is created first if the volume is `new`. The thread must have its
    /// own mount namespace.
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

/// Runs a command that must succeed. Returns its standard output.
pub fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let output = die_with_parent(command.stdin(Stdio::null())).output();
    let output = output.unwrap_or_else(|error| panic!("{shown}: {error}"));
    assert!(output.status.success(), "{shown}: {}: {}", output.status, both(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Creates a command that runs as another user with a minimal environment.
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

/// Starts a server and waits until the probe command succeeds.
pub fn start_server(command: &mut Command, log: &Path, mut probe: impl FnMut() -> Command) -> Process {
    let mut server = Process::start_logged(command, log);
    server.wait_until("the server to be ready", || {
        let mut command = probe();
        let output = die_with_parent(command.stdin(Stdio::null())).output().expect("a client");
        output.status.success()
    });
    server
}

/// Runs a database client that executes numbered statements one after the other. The reply to statement n is
/// a line with n; `answered` is the number of the last reply.
pub fn run_ledger_client(
    command: &mut Command,
    statement: impl Fn(u64) -> String,
    stop: &AtomicBool,
    answered: &AtomicU64,
) {
    let mut child =
        die_with_parent(command.stdin(Stdio::piped()).stdout(Stdio::piped())).spawn().expect("a client");
    let mut input = child.stdin.take().expect("its input");
    let mut replies = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        input.write_all(statement(number).as_bytes()).and_then(|()| input.flush()).expect("a statement");
        let line = replies.next().expect("a reply").expect("a reply");
        assert_eq!(line, number.to_string(), "reply to statement {number}");
        answered.store(number, Ordering::SeqCst);
    }
    drop(input);
    let status = child.wait().expect("wait");
    assert!(status.success(), "the client ended with {status}");
}

/// Finds programs in these directories; fails with the first missing name.
pub fn programs(dirs: &[&str], names: &[&str]) -> Result<Vec<PathBuf>, String> {
    let found = |name: &&str| {
        let mut paths = dirs.iter().map(|dir| Path::new(dir).join(name));
        paths.find(|path| path.is_file()).ok_or_else(|| (*name).to_owned())
    };
    names.iter().map(found).collect()
}

/// Returns the programs of the newest installed version of PostgreSQL, or the name of a missing one.
pub fn postgres_programs() -> Result<Vec<PathBuf>, String> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    versions.sort();
    let newest = versions.pop().unwrap_or_default().join("bin");
    let dirs = [newest.to_str().unwrap_or_default(), "/usr/bin"];
    programs(&dirs, &["initdb", "postgres", "psql", "pgbench", "pg_amcheck", "pg_checksums"])
}
