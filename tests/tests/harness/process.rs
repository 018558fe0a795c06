//! Child processes, which end with the test, and the tools of the tests.

#![allow(unsafe_code, reason = "calls between fork and exec")]

use crate::harness::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio},
};

/// A child process that is killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: Option<PathBuf>,
}

impl Process {
    /// Starts a command.
    pub fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_owned();
        let child = die_with_parent(command).spawn();
        Self { child: child.unwrap_or_else(|error| panic!("start failed on {name:?}: {error}")), log: None }
    }

    /// Starts a command that appends its output to a log.
    pub fn start_logged(command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("the log of a process");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("the log")).stderr(file);
        Self::start(command).with_log(log)
    }

    /// Sets the log, which is printed if the test fails.
    pub fn with_log(mut self, log: &Path) -> Self {
        self.log = Some(log.to_owned());
        self
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Takes the standard output, which must be piped.
    pub fn take_stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("a piped standard output")
    }

    /// Returns the exit status; `None` while the process runs.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait")
    }

    /// Returns the log.
    pub fn log(&self) -> String {
        let bytes = self.log.as_ref().and_then(|log| std::fs::read(log).ok());
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }

    /// Waits until a condition holds; panics if the process ends before.
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        wait_until(what, || {
            let ended = self.status();
            assert!(ended.is_none(), "a process ended with {ended:?} instead of {what}:\n{}", self.log());
            condition()
        });
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a signal");
    }

    /// Sends a signal and waits for the end.
    pub fn end(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.child.wait().expect("wait")
    }

    /// Kills the process and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = self.log.as_ref().filter(|_| std::thread::panicking()) {
            eprintln!("--- {}:\n{}---", log.display(), self.log());
        }
    }
}

/// Makes the kernel kill the child when the thread that starts it ends: a killed test leaves no process.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let bind = || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(Into::into)
    };
    // SAFETY: the closure runs between fork and exec and makes one system call, which is async-signal-safe;
    // it allocates nothing and takes no lock.
    unsafe { command.pre_exec(bind) }
}

/// Sets the child's soft limit of open files, and its hard limit if one is given.
pub fn limit_open_files(command: &mut Command, soft: u64, hard: Option<u64>) -> &mut Command {
    let limit = move || {
        let hard = hard.or(rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum);
        let limit = rustix::process::Rlimit { current: Some(soft), maximum: hard };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).map_err(Into::into)
    };
    // SAFETY: the closure runs between fork and exec and makes two system calls, which are async-signal-safe;
    // it allocates nothing and takes no lock.
    unsafe { command.pre_exec(limit) }
}

/// Raises this process's soft limit of open files to the hard limit.
pub fn raise_open_files() {
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let limit = rustix::process::Rlimit { current: hard, maximum: hard };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("the limit of open files");
}

/// Returns a size from `/proc/<pid>/status`, such as `VmRSS` or `VmHWM`, in bytes.
pub fn memory_bytes(pid: u32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("/proc/<pid>/status");
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("a field of /proc/<pid>/status");
    let kib: u64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

/// Returns the number of open files of a process.
pub fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("/proc/<pid>/fd").count()
}

/// Returns the path of a program of this build, next to the test's directory.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test");
    let profile = test.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
    let program = profile.join(name);
    assert!(
        program.exists(),
        "{} is missing: build it with `cargo build -p blockd -p blockctl`",
        program.display()
    );
    program
}

/// The top directory of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the parent of tests/").to_owned()
}

/// Returns the path of a tool; panics with the Debian package if it is missing.
pub fn tool(name: &str) -> PathBuf {
    let package = match name {
        "fio" => "fio",
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "qemu-img" | "qemu-io" => "qemu-utils",
        "setpriv" | "unshare" | "nsenter" => "util-linux",
        "mke2fs" | "e2fsck" | "debugfs" | "dumpe2fs" => "e2fsprogs",
        "fusermount3" => "fuse3",
        "cp" => "coreutils",
        _ => panic!("no package is known for {name}"),
    };
    find_program(name).unwrap_or_else(|| {
        panic!("{name} is missing: install the Debian package {package} or run tools/test, which installs it")
    })
}

/// Finds a program in `PATH` and in the directories of system programs, which not all users have in `PATH`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Returns the path of a file in `tests/shim`.
pub fn shim(name: &str) -> PathBuf {
    repository().join("tests/shim").join(name)
}

/// Runs a tool and waits for its end.
pub fn run_tool(name: &str, args: &[&str]) -> Output {
    let mut command = Command::new(tool(name));
    die_with_parent(command.args(args).stdin(Stdio::null()))
        .output()
        .unwrap_or_else(|error| panic!("start failed on {name}: {error}"))
}

/// Runs a tool that must succeed. Returns its standard output.
pub fn must_run(name: &str, args: &[&str]) -> String {
    let output = run_tool(name, args);
    assert!(output.status.success(), "{name} {args:?} failed with {}:\n{}", output.status, both(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a test again in its own mount namespace, which a shell script prepares. Returns true in that
/// namespace; the caller returns on false, because the test has run.
pub fn in_own_mounts(test: &str, script: &str) -> bool {
    const INSIDE: &str = "BLOCKD_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == test) {
        return true;
    }
    let script = format!("set -e\n{script}\nexec \"$@\"");
    let mut command = Command::new(tool("unshare"));
    command.args(["--mount", "/bin/sh", "-c", &script, "sh"]).arg(std::env::current_exe().expect("the test"));
    command.args([test, "--nocapture"]).env(INSIDE, test).stdin(Stdio::null());
    let output = die_with_parent(&mut command).output().expect("unshare");
    assert!(output.status.success(), "{test} failed in its own mount namespace:\n{}", both(&output));
    false
}

/// Returns both output streams of a process.
pub fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns the sum of the bytes that a process read by system calls and from disks.
pub fn bytes_read(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("/proc/<pid>/io");
    let field = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a field of /proc/<pid>/io");
        line.trim_start_matches(':').trim().parse().expect("a number")
    };
    field("rchar") + field("read_bytes")
}
