//! Checks of the host that `blockctl` runs on.

use super::check::Check;
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// Oldest supported kernel (README, "Status").
const MIN_KERNEL: (u32, u32) = (5, 15);

/// Returns the checks of this host.
pub fn checks() -> Vec<Check> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let module = Path::new("/lib/modules").join(release.trim());
    vec![
        kernel(release.trim()),
        io_uring(fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok().as_deref()),
        nbd(Path::new("/sys/module/nbd").exists(), has_module(&module, "nbd.ko")),
        fuse(Path::new("/dev/fuse").exists(), is_program("fusermount3")),
        clock(synchronized().as_deref()),
    ]
}

fn kernel(release: &str) -> Check {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= MIN_KERNEL => {
            Check::ok("kernel", format!("Linux {release}"))
        }
        _ => Check::failed("kernel", format!("Linux {release} is not supported"), "boot Linux 5.15 or newer"),
    }
}

/// Checks the sysctl, which exists since Linux 6.6: 0 allows io_uring, 1 for privileged processes only.
fn io_uring(disabled: Option<&str>) -> Check {
    match disabled.map(str::trim) {
        None | Some("0") => Check::ok("io_uring", "allowed"),
        Some("1") => Check::warning(
            "io_uring",
            "allowed for privileged processes only",
            "run blockd as root, or sysctl kernel.io_uring_disabled=0",
        ),
        Some(_) => Check::failed("io_uring", "disabled", "sysctl kernel.io_uring_disabled=0"),
    }
}

fn nbd(is_loaded: bool, is_installed: bool) -> Check {
    match (is_loaded, is_installed) {
        (true, _) => Check::ok("nbd module", "loaded"),
        (false, true) => Check::warning("nbd module", "installed, but not loaded", "modprobe nbd"),
        (false, false) => Check::warning(
            "nbd module",
            "this kernel has none: volumes cannot be attached as /dev/nbdX",
            "mount volumes with nbdfuse, or boot a kernel with CONFIG_BLK_DEV_NBD",
        ),
    }
}

fn fuse(has_device: bool, has_program: bool) -> Check {
    match (has_device, has_program) {
        (true, true) => Check::ok("fuse", "/dev/fuse and fusermount3 exist"),
        (false, _) => {
            Check::warning("fuse", "/dev/fuse is missing: snapshots cannot be mounted", "modprobe fuse")
        }
        (true, false) => Check::warning(
            "fuse",
            "fusermount3 is missing: snapshots cannot be mounted without root",
            "install the package fuse3",
        ),
    }
}

fn clock(synchronized: Option<&str>) -> Check {
    match synchronized {
        Some("yes") => Check::ok("clock", "synchronized"),
        Some(_) => Check::warning(
            "clock",
            "not synchronized: schedules and retention follow this clock",
            "enable systemd-timesyncd or chrony",
        ),
        None => Check::warning(
            "clock",
            "not checked: timedatectl does not answer",
            "make sure that NTP sets the clock of this host",
        ),
    }
}

/// Returns `yes` or `no` from systemd.
fn synchronized() -> Option<String> {
    let mut command = Command::new("timedatectl");
    command
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

/// Returns true if the list of modules of a kernel, built-in ones included, has a file.
fn has_module(modules: &Path, file: &str) -> bool {
    ["modules.dep", "modules.builtin"].iter().any(|list| {
        let list = fs::read_to_string(modules.join(list)).unwrap_or_default();
        list.lines().any(|line| line.split(':').next().is_some_and(|path| path.contains(&format!("/{file}"))))
    })
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::check::Verdict;

    #[test]
    fn kernels_before_5_15_fail() {
        for (release, verdict) in [
            ("6.1.0-48-amd64", Verdict::Ok),
            ("5.15.0", Verdict::Ok),
            ("5.14.21", Verdict::Failed),
            ("4.19.0", Verdict::Failed),
            ("", Verdict::Failed),
        ] {
            assert_eq!(kernel(release).status, verdict, "{release}");
        }
    }

    #[test]
    fn clock_without_an_answer_is_a_warning() {
        let verdicts = [Some("yes"), Some("no"), None].map(|answer| clock(answer).status);
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Warning, Verdict::Warning]);
    }

    #[test]
    fn sysctl_of_io_uring_is_understood() {
        let verdicts = [None, Some("0\n"), Some("1\n"), Some("2\n")].map(|value| io_uring(value).status);
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Ok, Verdict::Warning, Verdict::Failed]);
    }

    #[test]
    fn modules_are_found_in_both_lists() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_module(dir.path(), "nbd.ko"));
        fs::write(dir.path().join("modules.builtin"), "kernel/drivers/block/loop.ko\n").unwrap();
        fs::write(dir.path().join("modules.dep"), "kernel/x.ko.xz: kernel/drivers/block/nbd.ko.xz\n")
            .unwrap();
        assert!(!has_module(dir.path(), "nbd.ko"));
        fs::write(dir.path().join("modules.dep"), "kernel/drivers/block/nbd.ko.xz:\n").unwrap();
        assert!(has_module(dir.path(), "nbd.ko"));
    }
}
