//! The Debian package, and a system to install it on: an overlay of this machine's root filesystem in memory.

use crate::harness::process::{Process, both, die_with_parent, find_program, program, repository};
use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// Returns the first of these tools that is missing.
pub fn missing_tool(tools: &[&str]) -> Option<String> {
    tools.iter().find(|tool| find_program(tool).is_none()).map(|tool| (*tool).to_owned())
}

/// Builds an uncompressed package of this build's programs in a directory.
pub fn make_package(dir: &Path, version: &str) -> PathBuf {
    let programs = program("blockd");
    program("blockctl");
    let mut command = Command::new(repository().join("tools/package"));
    command.args(["--compress", "0", "--version", version, "--out"]).arg(dir);
    command.arg("--bin-dir").arg(programs.parent().expect("target/<profile>"));
    command.env_remove("SOURCE_DATE_EPOCH").env_remove("CARGO_TARGET_DIR").stdin(Stdio::null());
    let output = die_with_parent(&mut command).output().expect("tools/package");
    assert!(output.status.success(), "tools/package: {}", both(&output));
    let path = String::from_utf8(output.stdout).expect("UTF-8");
    PathBuf::from(path.trim())
}

/// Private copy-on-write view of this machine's filesystem.
pub struct System {
    dir: PathBuf,
}

impl System {
    /// Creates the view; fails with the reason. The thread must have its own mount namespace.
    ///
    /// The view is below a directory that no test deletes, as it shows this machine's files.
    pub fn over_this_one() -> Result<Self, String> {
        let this = Self { dir: PathBuf::from("/mnt") };
        // The upper directory of an overlay cannot be on its lower filesystem.
        this.mount(&["-t", "tmpfs", "-o", "mode=0755", "tmpfs"], &this.dir)?;
        for name in ["changes", "work", "root"] {
            std::fs::create_dir(this.dir.join(name)).expect("a directory");
        }
        let dir = this.dir.display();
        let layers = format!("lowerdir=/,upperdir={dir}/changes,workdir={dir}/work");
        this.mount(&["-t", "overlay", "-o", &layers, "overlay"], &this.path("/"))?;
        for empty in ["/dev", "/run", "/sys", "/tmp"] {
            this.mount(&["-t", "tmpfs", "-o", "mode=0755", "tmpfs"], &this.path(empty))?;
        }
        this.mount(&["-t", "proc", "proc"], &this.path("/proc"))?;
        for device in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"] {
            std::fs::File::create(this.path(device)).expect("a mount point");
            this.mount(&["--bind", device], &this.path(device))?;
        }
        // Without this file, man-db does not index all pages of the machine at each installation.
        let _ = std::fs::remove_file(this.path("/var/lib/man-db/auto-update"));
        Ok(this)
    }

    fn mount(&self, args: &[&str], at: &Path) -> Result<(), String> {
        let output = die_with_parent(Command::new("mount").args(args).arg(at)).output();
        let output = output.map_err(|error| format!("mount: {error}"))?;
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("mount {args:?}: {}", both(&output).trim()))
        }
    }

    /// Returns the host path of a path in the system.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join("root").join(path.trim_start_matches('/'))
    }

    /// Creates a command that runs in the system.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(self.path("/")).args(args).env_clear().stdin(Stdio::null());
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        command.env("LC_ALL", "C.UTF-8");
        die_with_parent(&mut command);
        command
    }

    /// Runs a command in the system.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("chroot")
    }

    /// Runs a command that must succeed. Returns its output.
    pub fn must(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}: {}", output.status, both(&output));
        both(&output)
    }

    /// Runs the command line of a unit as the unit's user.
    pub fn start_unit(&self, unit: &str) -> Process {
        let text = std::fs::read_to_string(self.path("/lib/systemd/system").join(unit)).expect("the unit");
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("{unit} has no {key}")).to_owned()
        };
        let (user, group, line) = (value("User"), value("Group"), value("ExecStart"));
        let mut args =
            vec!["setpriv", "--reuid", &user, "--regid", &group, "--init-groups", "--no-new-privs", "--"];
        args.extend(line.split_whitespace());
        let mut command = self.command(&args);
        Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()))
    }
}
