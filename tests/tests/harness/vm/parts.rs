//! Parts of a machine: kernel, emulator and busybox from `tools/test-vm-image`, and a disk with the programs
//! under test.

use super::cpio::Archive;
use crate::harness::{
    announce,
    process::{die_with_parent, find_program, program, repository},
};
use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Programs of the guest from the host.
const TOOLS: [&str; 15] = [
    "bash",
    "fio",
    "perl",
    "mke2fs",
    "e2fsck",
    "unshare",
    "setpriv",
    "prlimit",
    "ionice",
    "mount",
    "umount",
    "mkfs.xfs",
    "xfs_repair",
    "mkfs.btrfs",
    "btrfs",
];
/// Size of the guest's disk; the file is sparse.
const DISK_BYTES: u64 = 24 << 30;
/// Exit status of `tools/test-vm-image` on hosts that cannot run the machine.
const UNSUPPORTED: i32 = 3;

/// Paths of the fetched parts.
#[derive(Clone, Debug)]
pub struct Parts {
    dir: PathBuf,
}

impl Parts {
    /// Fetches missing parts. Announces the reason and returns `None` where that is impossible.
    pub fn fetch() -> Option<Self> {
        if std::env::var_os("BLOCKD_TEST_WITHOUT_VM").is_some_and(|value| value == "1") {
            announce("NOT TESTED: BLOCKD_TEST_WITHOUT_VM=1 switches off the test of the kernel's NBD driver");
            return None;
        }
        let mut command = Command::new(repository().join("tools/test-vm-image"));
        let output = die_with_parent(command.stdin(Stdio::null())).output().expect("tools/test-vm-image");
        let output_text = crate::harness::process::both(&output);
        if output.status.code() == Some(UNSUPPORTED) {
            announce(&format!("NOT TESTED: the kernel's NBD driver: no virtual machine: {output_text}"));
            return None;
        }
        assert!(output.status.success(), "tools/test-vm-image failed with {}:\n{output_text}", output.status);
        Some(Self { dir: repository().join("target/vm") })
    }

    /// The path of the kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("kernel/vmlinuz")
    }

    /// Creates a command of the emulator: the installed one, or the unpacked one with its libraries.
    pub fn emulator(&self) -> Command {
        let unpacked = self.dir.join("qemu/usr");
        let binary = unpacked.join("bin/qemu-system-x86_64");
        if !binary.exists() {
            return Command::new(find_program("qemu-system-x86_64").expect("qemu-system-x86_64"));
        }
        let libraries = unpacked.join("lib/x86_64-linux-gnu");
        let mut path = OsString::from(&libraries);
        for more in ["pulseaudio", "ceph"] {
            path.push(":");
            path.push(libraries.join(more));
        }
        path.push(":");
        path.push(self.dir.join("qemu/lib"));
        let mut command = Command::new(binary);
        command.env("LD_LIBRARY_PATH", path).env("QEMU_MODULE_DIR", libraries.join("qemu"));
        for roms in ["share/qemu", "share/seabios"] {
            command.arg("-L").arg(unpacked.join(roms));
        }
        command
    }

    /// Builds the initramfs: busybox, the modules, and the script that mounts the disk and runs from it.
    pub fn initramfs(&self) -> Vec<u8> {
        let read =
            |path: &Path| std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let list = read(&self.dir.join("kernel/modules"));
        let mut archive = Archive::default();
        for dir in ["bin", "dev", "proc", "sys", "lib", "disk"] {
            archive.dir(dir);
        }
        archive.file("bin/busybox", &read(&self.dir.join("busybox")));
        for module in String::from_utf8_lossy(&list).lines() {
            archive.file(&format!("lib/{module}"), &read(&self.dir.join("kernel").join(module)));
        }
        archive.file("modules", &list);
        archive.file("init", include_bytes!("guest/init.sh"));
        archive.finish()
    }

    /// Creates a disk image with the programs and scripts.
    pub fn make_disk(&self, work: &Path) -> PathBuf {
        let stage = work.join("stage");
        for dir in ["bin", "usr/bin", "busybox", "data", "store", "mnt", "mnt2", "dev", "proc", "sys", "tmp"]
        {
            std::fs::create_dir_all(stage.join(dir)).expect("a directory of the guest");
        }
        copy(&self.dir.join("busybox"), &stage.join("bin/busybox"));
        copy(&self.dir.join("kernel/nbd.ko"), &stage.join("nbd.ko"));
        let mut programs = vec![program("blockd"), program("blockctl")];
        programs.extend(
            TOOLS.iter().map(|name| {
                find_program(name).unwrap_or_else(|| panic!("{name} is missing: run tools/test"))
            }),
        );
        let mut libraries = BTreeSet::new();
        for path in programs {
            let target = stage.join("usr/bin").join(path.file_name().expect("a name"));
            // Without debug information the programs load several times as fast.
            let stripped = Command::new("strip").arg("-o").arg(&target).arg(&path).status();
            if !stripped.is_ok_and(|status| status.success()) {
                copy(&path, &target);
            }
            libraries.extend(libraries_of(&path));
        }
        for library in libraries {
            copy(&library, &stage.join(library.strip_prefix("/").expect("an absolute path")));
        }
        for (name, script) in [
            ("lib.sh", include_str!("guest/lib.sh")),
            ("life.sh", include_str!("guest/life.sh")),
            ("after.sh", include_str!("guest/after.sh")),
            ("freeze.sh", include_str!("guest/freeze.sh")),
            ("lazy.sh", include_str!("guest/lazy.sh")),
            ("anomalies.sh", include_str!("../../../../benches/anomalies/guest.sh")),
            ("work.pl", include_str!("../../../../benches/anomalies/work.pl")),
            ("probe.sh", include_str!("guest/probe.sh")),
        ] {
            std::fs::write(stage.join(name), script).expect("a script of the guest");
        }
        let disk = work.join("disk.img");
        std::fs::File::create(&disk).and_then(|file| file.set_len(DISK_BYTES)).expect("the disk");
        let mut command = Command::new(find_program("mke2fs").expect("mke2fs"));
        command.args(["-q", "-t", "ext4", "-d"]).arg(&stage).arg(&disk);
        assert!(die_with_parent(&mut command).status().expect("mke2fs").success(), "mke2fs failed");
        disk
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.parent().expect("a directory")).expect("a directory of the guest");
    std::fs::copy(from, to).unwrap_or_else(|error| panic!("copy failed on {}: {error}", from.display()));
}

/// Returns the shared libraries and the loader of a program.
fn libraries_of(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().expect("ldd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}
