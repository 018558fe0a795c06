//! A real `blockd` process with a data directory of its own.

use crate::harness::{
    Ctl, Nbd, Store, TIMEOUT,
    ctl::clean,
    files_below,
    process::{Process, die_with_parent, limit_open_files, program, tool},
    wait_for,
};
use rustix::process::Signal;
use std::{
    fs::File,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

/// Configuration of a daemon and its environment.
#[derive(Clone, Debug)]
pub struct Setup {
    home: PathBuf,
    config: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    tmpfs: Option<(PathBuf, u64)>,
    open_files: Option<(u64, Option<u64>)>,
    isolated: Option<(u32, String)>,
    starts: u32,
}

impl Setup {
    /// A daemon with the data directory `home/data`; its logs and configuration are in `home`.
    pub fn new(home: &Path) -> Self {
        std::fs::create_dir_all(home).expect("the home of a daemon");
        Self {
            home: home.to_owned(),
            config: String::new(),
            args: Vec::new(),
            env: Vec::new(),
            tmpfs: None,
            open_files: None,
            isolated: None,
            starts: 0,
        }
    }

    /// Adds a line to its configuration.
    pub fn config(mut self, line: &str) -> Self {
        self.config += line;
        self.config += "\n";
        self
    }

    /// Adds a command-line argument.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Mounts a tmpfs of this size, private to the daemon, which a test can fill.
    pub fn tmpfs(mut self, dir: &Path, size_bytes: u64) -> Self {
        self.tmpfs = Some((dir.to_owned(), size_bytes));
        self
    }

    /// Sets the soft limit of open files, which the daemon may raise.
    pub fn open_files(mut self, soft: u64) -> Self {
        self.open_files = Some((soft, None));
        self
    }

    /// Sets the hard limit of open files, which the daemon cannot raise.
    pub fn max_open_files(mut self, hard: u64) -> Self {
        self.open_files = Some((hard, Some(hard)));
        self
    }

    /// Runs the daemon as another user in its own mount namespace, which a shell script prepares as root.
    /// Requires root.
    pub fn isolated(mut self, uid: u32, script: &str) -> Self {
        self.isolated = Some((uid, script.to_owned()));
        self
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Runs `blockd` with these options on the data directory instead of starting the daemon. Returns the
    /// exit status, standard output and standard error.
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
        // On a busy host the handshake of a client may take longer than the default timeout.
        let handshake = "nbd_handshake_timeout_ms";
        let handshake = match self.config.contains(handshake) {
            true => String::new(),
            false => format!("{handshake} = {}\n", TIMEOUT.as_millis()),
        };
        // Without root, /proc/<pid> of the daemon is readable only if it permits core dumps.
        let dumpable = if rustix::process::geteuid().is_root() { "" } else { "core_dumps = true\n" };
        // Background verification and scrubs would add tasks and requests.
        let verify = "verify_bytes_per_day = 0\nscrub_bytes_per_day = 0\n";
        std::fs::write(&config, format!("{handshake}{dumpable}{verify}{}", self.config))
            .expect("the configuration");
        let log = self.home.join(format!("log-{}", self.starts));
        let mut command = match (&self.tmpfs, &self.isolated) {
            (None, None) => clean(program("blockd")),
            (None, Some((uid, script))) => {
                let data = self.data_dir();
                std::fs::create_dir_all(&data).expect("the data directory");
                std::os::unix::fs::chown(&data, Some(*uid), Some(*uid)).expect("its owner");
                let mut command = clean(tool("unshare"));
                let script = format!("set -e\n{script}\nexec \"$@\"");
                command.args(["--mount", "/bin/sh", "-c", &script, "sh"]).arg(tool("setpriv"));
                command.args([format!("--reuid={uid}"), format!("--regid={uid}")]);
                // The kernel clears the parent-death signal when the user changes.
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

    /// Starts the daemon and waits until it serves.
    pub fn start(self) -> Daemon {
        self.try_start()
            .unwrap_or_else(|(status, log)| panic!("blockd ended with {status} instead of serving:\n{log}"))
    }

    /// Starts the daemon with the backup location `nas` and the volume `vol`.
    pub fn start_with_volume(self, store: &Store, passphrase: Option<&str>, size: &str) -> Daemon {
        let daemon = self.start();
        daemon.ctl().add_local("nas", store.dir(), passphrase);
        daemon.ctl().create_volume("vol", size);
        daemon
    }

    /// Starts the daemon and waits until it serves. Returns the exit status and the log if it ends before.
    pub fn try_start(mut self) -> Result<Daemon, (ExitStatus, String)> {
        let (mut command, log) = self.command();
        let process = Process::start(&mut command).with_log(&log);
        let mut daemon = Daemon { process, setup: self };
        let ended = wait_for("blockd to serve", || {
            if let Some(status) = daemon.process.status() {
                return Some(Some(status));
            }
            let serves = |socket: &Path| UnixStream::connect(socket).is_ok();
            // Another daemon may serve the same sockets: the lock file names the owner.
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

/// A running daemon, killed on drop.
pub struct Daemon {
    process: Process,
    setup: Setup,
}

impl Daemon {
    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The data directory as seen outside of the daemon's mount namespace.
    pub fn seen_data_dir(&self) -> PathBuf {
        let data = self.setup.data_dir();
        match &self.setup.tmpfs {
            // A mount in the daemon's namespace is reachable through /proc.
            Some((dir, _)) if data.starts_with(dir) => {
                let inside = data.strip_prefix("/").expect("an absolute path").to_owned();
                PathBuf::from(format!("/proc/{}/root", self.pid())).join(inside)
            }
            _ => data,
        }
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.seen_data_dir().join("blockd.sock")
    }

    /// The NBD socket.
    pub fn nbd_socket(&self) -> PathBuf {
        self.seen_data_dir().join("nbd.sock")
    }

    /// A `blockctl` for this daemon.
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

    /// Drops the volumes' files from the page cache, so that reads go to the disk.
    pub fn drop_caches(&self) {
        for path in files_below(&self.seen_data_dir().join("volumes")) {
            // A merge may have removed a file since.
            let Ok(file) = File::open(&path) else { continue };
            file.sync_all().expect("sync");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
        }
    }

    /// Returns the log since the start.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Kills the daemon with SIGKILL. Returns its setup.
    pub fn kill(mut self) -> Setup {
        self.process.kill();
        self.setup
    }

    /// Stops the daemon with SIGTERM and waits for its end. Returns its setup.
    pub fn stop(mut self) -> Setup {
        self.terminate();
        let status = wait_for("blockd to stop", || self.process.status());
        assert!(status.success(), "blockd stopped with {status}:\n{}", self.log());
        self.setup
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Sends SIGHUP: the daemon reloads its configuration.
    pub fn hang_up(&self) {
        self.process.signal(Signal::HUP);
    }
}
