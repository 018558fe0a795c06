//! A real `blockd` process with a data directory of its own.

use crate::harness::{
    Ctl, Nbd,
    ctl::clean,
    process::{die_with_parent, limit_open_files, program, tool},
    wait_for,
};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

/// Setup of a daemon.
#[derive(Clone, Debug)]
pub struct Setup {
    home: PathBuf,
    config: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    tmpfs: Option<(PathBuf, u64)>,
    open_files: Option<(u64, Option<u64>)>,
    apart: Option<(u32, String)>,
    starts: u32,
}

impl Setup {
    /// A daemon whose data directory is `home/data`, with its logs and configuration beside it.
    pub fn new(home: &Path) -> Self {
        std::fs::create_dir_all(home).expect("the home of a daemon");
        Self {
            home: home.to_owned(),
            config: String::new(),
            args: Vec::new(),
            env: Vec::new(),
            tmpfs: None,
            open_files: None,
            apart: None,
            starts: 0,
        }
    }

    /// Adds a line to its configuration.
    pub fn config(mut self, line: &str) -> Self {
        self.config += line;
        self.config += "\n";
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Sets a variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Mounts a small private filesystem at this directory, which can be filled.
    pub fn tmpfs(mut self, dir: &Path, size_bytes: u64) -> Self {
        self.tmpfs = Some((dir.to_owned(), size_bytes));
        self
    }

    /// Starts it with this soft limit of open files, which it may raise.
    pub fn open_files(mut self, soft: u64) -> Self {
        self.open_files = Some((soft, None));
        self
    }

    /// Starts it with this limit of open files, which it cannot raise.
    pub fn max_open_files(mut self, hard: u64) -> Self {
        self.open_files = Some((hard, Some(hard)));
        self
    }

    /// Runs it as another user, in a mount namespace of its own, which the lines of this script make ready as
    /// root. Only root can do that.
    pub fn apart(mut self, uid: u32, script: &str) -> Self {
        self.apart = Some((uid, script.to_owned()));
        self
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Runs `blockd` with these options on the data directory instead of starting the daemon: exit status,
    /// standard output and error.
    pub fn check(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = clean(program("blockd"));
        command.arg("--data-dir").arg(self.data_dir()).args(args).stdin(Stdio::null());
        let output = die_with_parent(&mut command).output().expect("blockd");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code().expect("a status"), text(output.stdout), text(output.stderr))
    }

    fn command(&mut self) -> (Command, PathBuf) {
        self.starts += 1;
        let config = self.home.join("blockd.toml");
        // A client that gets no processor for a while is not to be taken for one that says nothing, unless a
        // test is about those.
        let handshake = "nbd_handshake_timeout_ms";
        let unhurried = match self.config.contains(handshake) {
            true => String::new(),
            false => format!("{handshake} = {}\n", crate::harness::TIMEOUT.as_millis()),
        };
        // Who is not root looks into the daemon as one of its user.
        let open = if rustix::process::geteuid().is_root() { "" } else { "core_dumps = true\n" };
        // Background verification would add tasks and requests to those of a test.
        let verify = "verify_bytes_per_day = 0\n";
        std::fs::write(&config, format!("{unhurried}{open}{verify}{}", self.config))
            .expect("the configuration");
        let log = self.home.join(format!("log-{}", self.starts));
        let mut command = match (&self.tmpfs, &self.apart) {
            (None, None) => clean(program("blockd")),
            (None, Some((uid, script))) => {
                let data = self.data_dir();
                std::fs::create_dir_all(&data).expect("the data directory");
                std::os::unix::fs::chown(&data, Some(*uid), Some(*uid)).expect("its owner");
                let mut command = clean(tool("unshare"));
                let script = format!("set -e\n{script}\nexec \"$@\"");
                command.args(["--mount", "/bin/sh", "-c", &script, "sh"]).arg(tool("setpriv"));
                command.args([format!("--reuid={uid}"), format!("--regid={uid}")]);
                // That it dies with the test is forgotten with the user that it began as.
                command.args(["--clear-groups", "--pdeathsig=KILL", "--"]).arg(program("blockd"));
                command
            }
            (Some((dir, size_bytes)), _) => {
                std::fs::create_dir_all(dir).expect("the mount point");
                let script = r#"mount -t tmpfs -o size="$1",mode=0700 tmpfs "$2" && shift 2 && exec "$@""#;
                let mut command = clean(tool("unshare"));
                command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
                command.arg(size_bytes.to_string()).arg(dir).arg(program("blockd"));
                command
            }
        };
        command.arg("--data-dir").arg(self.data_dir()).arg("--config").arg(config).args(&self.args);
        command.envs(self.env.iter().cloned()).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).expect("the log"));
        die_with_parent(&mut command);
        if let Some((soft, hard)) = self.open_files {
            limit_open_files(&mut command, soft, hard);
        }
        (command, log)
    }

    /// Starts it and waits until it serves.
    pub fn start(self) -> Daemon {
        self.try_start()
            .unwrap_or_else(|(status, log)| panic!("blockd ended with {status} instead of serving:\n{log}"))
    }

    /// Starts it; if it ends before it serves, how and with what on stderr.
    pub fn try_start(mut self) -> Result<Daemon, (ExitStatus, String)> {
        let (mut command, log) = self.command();
        let child = command.spawn().expect("blockd");
        let mut daemon = Daemon { child, log, setup: self };
        let ended = wait_for("blockd to serve", || {
            if let Some(status) = daemon.child.try_wait().expect("wait") {
                return Some(Some(status));
            }
            let serves = |socket: &Path| UnixStream::connect(socket).is_ok();
            // Another daemon may serve the very same sockets: only who has the lock is asked.
            let owner =
                std::fs::read_to_string(daemon.seen_data_dir().join("blockd.lock")).unwrap_or_default();
            let is_owner = owner.trim() == daemon.pid().to_string();
            (is_owner && serves(&daemon.socket()) && serves(&daemon.nbd_socket())).then_some(None)
        });
        match ended {
            None => Ok(daemon),
            Some(status) => Err((status, daemon.log())),
        }
    }
}

/// A running daemon; it dies with this value.
pub struct Daemon {
    child: Child,
    log: PathBuf,
    setup: Setup,
}

impl Daemon {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its data directory as others see it.
    pub fn seen_data_dir(&self) -> PathBuf {
        let data = self.setup.data_dir();
        match &self.setup.tmpfs {
            // What is mounted for the daemon alone can be reached through the daemon.
            Some((dir, _)) if data.starts_with(dir) => {
                let inside = data.strip_prefix("/").expect("an absolute path").to_owned();
                PathBuf::from(format!("/proc/{}/root", self.pid())).join(inside)
            }
            _ => data,
        }
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.seen_data_dir().join("blockd.sock")
    }

    /// Its NBD socket.
    pub fn nbd_socket(&self) -> PathBuf {
        self.seen_data_dir().join("nbd.sock")
    }

    /// Drives it.
    pub fn ctl(&self) -> Ctl {
        Ctl::new(&self.socket())
    }

    /// Opens an export.
    pub fn nbd(&self, export: &str) -> Nbd {
        Nbd::open(&self.nbd_socket(), export)
    }

    /// Returns the URI of an export.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.nbd_socket().display())
    }

    /// The whole content of a volume.
    pub fn content(&self, volume: &str) -> Vec<u8> {
        let mut client = self.nbd(volume);
        let bytes = client.read_all();
        client.close();
        bytes
    }

    /// Makes the kernel forget what it has cached of the volumes' files, so that every read of them is one of
    /// the disk.
    pub fn drop_caches(&self) {
        let mut dirs = vec![self.seen_data_dir().join("volumes")];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).expect("the volumes").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    dirs.push(path);
                    continue;
                }
                // A file may be merged away while the tree is walked.
                let Ok(file) = File::open(&path) else { continue };
                file.sync_all().expect("sync");
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
            }
        }
    }

    /// Returns its log since the start.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Kills it as the kernel's memory killer would; gives how to start it again.
    pub fn kill(mut self) -> Setup {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
        self.setup.clone()
    }

    /// Asks it to stop and waits until it has; gives how to start it again.
    pub fn stop(mut self) -> Setup {
        self.terminate();
        let status = wait_for("blockd to stop", || self.child.try_wait().expect("wait"));
        assert!(status.success(), "blockd stopped with {status}:\n{}", self.log());
        self.setup.clone()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Has it read its configuration again.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("a signal");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of blockd {}:\n{}---", self.pid(), self.log());
        }
    }
}
