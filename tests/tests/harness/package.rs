//! The Debian package, and a system to install it on: this machine's own, with all changes in memory.

use crate::harness::process::{both, die_with_parent, program, repository};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

/// The first of these tools that is not here.
pub fn missing_tool(tools: &[&str]) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    let is_there = |tool: &&&str| !places.iter().any(|dir| dir.join(tool).is_file());
    tools.iter().find(is_there).map(|tool| (*tool).to_owned())
}

/// Makes the package of the programs beside the test, as fast as can be, in this directory.
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
    /// Over this machine's own; the mounts of this thread must be its own ones. Why not, if it cannot be.
    ///
    /// It is below a directory that no test deletes: what is mounted there is partly this machine's.
    pub fn over_this_one() -> Result<Self, String> {
        let this = Self { dir: PathBuf::from("/mnt") };
        // Not on the disk that it is over, which is not allowed.
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
            std::fs::File::create(this.path(device)).expect("a place for a device");
            this.mount(&["--bind", device], &this.path(device))?;
        }
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

    /// Returns the host path of a path of the system.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join("root").join(path.trim_start_matches('/'))
    }

    /// A command that runs on it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(self.path("/")).args(args).env_clear().stdin(Stdio::null());
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        command.env("LC_ALL", "C.UTF-8");
        die_with_parent(&mut command);
        command
    }

    /// Runs a command on it.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("chroot")
    }

    /// Runs one that must succeed; gives what it said.
    pub fn must(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}: {}", output.status, both(&output));
        both(&output)
    }

    /// The command line that a unit starts, run as the unit's user.
    pub fn start_unit(&self, unit: &str) -> Started {
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
        Started(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("chroot"))
    }
}

/// A process that dies with this value.
pub struct Started(Child);

impl Started {
    /// Returns true if it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("wait").is_some()
    }

    /// Asks it to stop, and waits.
    pub fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("SIGTERM");
        let status = self.0.wait().expect("wait");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
