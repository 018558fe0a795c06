//! Child processes that never outlive the test, and the tools that the tests need.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Makes the child die with the thread that starts it: a test that is killed leaves nothing behind.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let bind = || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(Into::into)
    };
    // SAFETY: the closure runs between fork and exec and makes one system call, which is async-signal-safe;
    // it allocates nothing and takes no lock.
    unsafe { command.pre_exec(bind) }
}

/// Has the child begin with this soft limit of open files, and this hard one if it is given.
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

/// Lets this process have as many files open as the system allows.
pub fn raise_open_files() {
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let limit = rustix::process::Rlimit { current: hard, maximum: hard };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).expect("the limit of open files");
}

/// A number of kibibytes from `/proc/<pid>/status`, such as `VmRSS` and `VmHWM`, in bytes.
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

/// A tool that is found in the search path.
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
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Not in each user's PATH.
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = places.map(|dir: PathBuf| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is missing: install the Debian package {package}, or run tools/test, which does")
    })
}

/// Runs a tool to its end.
pub fn run_tool(name: &str, args: &[&str]) -> Output {
    let mut command = Command::new(tool(name));
    die_with_parent(command.args(args).stdin(Stdio::null()))
        .output()
        .unwrap_or_else(|error| panic!("cannot start {name}: {error}"))
}

/// Runs a tool that must succeed; gives its stdout.
pub fn must_run(name: &str, args: &[&str]) -> String {
    let output = run_tool(name, args);
    assert!(output.status.success(), "{name} {args:?} failed with {}:\n{}", output.status, both(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a test again, in a mount namespace of its own that this script makes ready, and is true in there. The
/// caller returns where it is false: what the test had to say was said.
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
    assert!(output.status.success(), "{test} failed in its own namespace:\n{}", both(&output));
    false
}

/// Returns both output streams of a process.
pub fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns the bytes that the process read: by system calls, and from disks.
pub fn bytes_read(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("/proc/<pid>/io");
    let field = |name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a field of /proc/<pid>/io");
        line.trim_start_matches(':').trim().parse().expect("a number")
    };
    field("rchar") + field("read_bytes")
}
