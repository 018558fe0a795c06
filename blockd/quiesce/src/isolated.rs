//! Command in its own mount, network, PID and IPC namespaces, for content that is not trusted.
//!
//! A thread with a mount namespace in which all mounts are [read-only](mounts) starts `unshare`, which
//! creates the other namespaces. A script in them prepares the files: `/tmp` and `/dev/shm` are empty and
//! private, `/run` with the sockets of the host is hidden, a device is mounted. `setpriv` then gives up all
//! privileges. Mounts and processes end with the namespaces, and these with the daemon: the shell of
//! [hooks](crate::command) kills the process group then, and `unshare` its child.

mod mounts;

use crate::command::{
    FAILED_OUTPUT_TIMEOUT, OUTPUT_TIMEOUT, WRAPPER, failure, inherited_environment, listen, user_environment,
    wait,
};
use nix::unistd::{User, geteuid};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Resource, getrlimit},
};
use std::{
    fs::File,
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// Directory with the device, mount point or socket of the command.
pub const PRIVATE_DIR: &str = "/tmp/blockd-drill";

/// Programs that the isolation needs, besides those that every system has.
const PROGRAMS: [&str; 5] = ["unshare", "setpriv", "mount", "prlimit", "ionice"];

/// Maximum number of processes and threads of the user, with those outside of the namespaces.
const MAX_TASKS: u64 = 4096;
/// Maximum number of open files of a process.
const MAX_OPEN_FILES: u64 = 4096;

/// Timeout of the [test](IsolatedCommand::check), which takes some milliseconds.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// First process of the namespaces. Its parameters are the directory of the daemon, the user and group ids,
/// the command, and [five](Object) for each object. Descriptor 4 takes a line when the namespaces are ready.
const SETUP: &str = r#"set -eu
dir=$1 uid=$2 gid=$3 command=$4
shift 4
each() {
    step=$1
    shift
    while [ $# -gt 0 ]; do
        "$step" "$1" "$2" "$3" "$4" "$5"
        shift 5
    done
}
prepare() {
    case $2 in
        socket)
            : >"$private/$1"
            mount -n --bind "$3" "$private/$1"
            ;;
        device | replayed)
            major=$(stat -c %t "$3") minor=$(stat -c %T "$3")
            mknod -m 0600 "$private/$1" b "$((0x$major))" "$((0x$minor))"
            chown "$uid:$gid" "$private/$1"
            ;;
        mounted) mkdir "$private/$1" ;;
    esac
}
mount_one() {
    case $2 in
        mounted) mount -n -t "$4" -o "nosuid,nodev$5" "$3" "$private/$1" ;;
        replayed)
            mkdir replayed
            mount -n -t "$4" -o "nosuid,nodev$5" "$3" replayed
            umount -n replayed
            rmdir replayed
            ;;
    esac
}
echo 1000 >/proc/self/oom_score_adj
mount -n -o remount,bind,ro,nosuid,nodev,noexec /proc
ip link set lo up 2>/dev/null || :
[ ! -d /dev/shm ] || mount -n -t tmpfs -o nosuid,nodev,mode=1777,size=256m tmpfs /dev/shm
mount -n -t tmpfs -o nosuid,mode=1777,size=256m tmpfs "$dir"
private=$dir/blockd-drill
mkdir -m 0755 "$private"
each prepare "$@"
mount -n --move "$dir" /tmp
cd /tmp
for hidden in /run /var/run /dev/mqueue /dev/pts; do
    [ -L "$hidden" ] || [ ! -d "$hidden" ] ||
        mount -n -t tmpfs -o ro,nosuid,nodev,noexec,mode=755,size=4k tmpfs "$hidden"
done
echo ready >&4
exec 4>&-
private=/tmp/blockd-drill
each mount_one "$@"
setpriv --reuid "$uid" --regid "$gid" --init-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
    --ambient-caps=-all -- /bin/sh -c "$command""#;

/// Object that the command uses, under a name in [`PRIVATE_DIR`].
#[derive(Clone, Copy, Debug)]
pub enum IsolatedDevice<'a> {
    /// Unix socket, writable for the user.
    Socket(&'a Path),
    /// Block device, owned by the user.
    Device(&'a Path),
    /// Filesystem of a block device, mounted.
    Mounted {
        /// Device.
        device: &'a Path,
        /// Type for `mount -t`.
        filesystem: &'a str,
        /// Further mount options.
        options: &'a [&'a str],
    },
    /// As [`Device`](Self::Device), after a mount that replays the journal of its filesystem.
    Replayed {
        /// Device.
        device: &'a Path,
        /// Type for `mount -t`.
        filesystem: &'a str,
        /// Further mount options.
        options: &'a [&'a str],
    },
}

/// Command to run.
pub struct IsolatedCommand<'a> {
    /// Command line for `/bin/sh -c`.
    pub command: &'a str,
    /// User, not root.
    pub user: &'a str,
    /// Timeout.
    pub timeout: Duration,
    /// Limit of the address space of each of its processes.
    pub memory_bytes: Option<u64>,
    /// Environment variables, besides those of the user. `HOME` is `/tmp`.
    pub env: &'a [(&'a str, String)],
    /// Empty directory, on which the private files are prepared.
    pub dir: &'a Path,
    /// Its objects with their names, which are those of files.
    pub devices: &'a [(&'a str, IsolatedDevice<'a>)],
    /// Returns true to kill the command.
    pub is_stopping: &'a dyn Fn() -> bool,
}

/// End of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Isolated {
    /// Cause of its failure.
    pub error: Option<String>,
    /// Last output.
    pub output: String,
}

/// Reasons why commands cannot run in isolation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IsolationError {
    /// The daemon is not root.
    #[error("blockd runs as user {0}, and only root may create namespaces and mount in them")]
    NotRoot(String),
    /// A program is missing.
    #[error("the program {0} is missing on the daemon's host")]
    Missing(&'static str),
    /// Unknown user.
    #[error("there is no user {0} on the daemon's host")]
    UnknownUser(String),
    /// The user is root.
    #[error("user {0} is root, from whom nothing is isolated")]
    Root(String),
    /// The namespaces could not be prepared.
    #[error("isolation failed on the command: {0}")]
    Setup(String),
    /// A system call failed.
    #[error("start failed on the command: {0}")]
    Start(#[from] io::Error),
}

/// Returns true if a program is in the search path of commands.
pub fn has_program(name: &str) -> bool {
    let path = inherited_environment().find(|(variable, _)| *variable == "PATH");
    path.is_some_and(|(_, path)| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}

impl IsolatedCommand<'_> {
    /// Runs an empty command with the same user. Blocks.
    ///
    /// # Errors
    /// Commands cannot run in isolation.
    pub fn check(user: &str, dir: &Path) -> Result<(), IsolationError> {
        let empty = IsolatedCommand {
            command: ":",
            user,
            timeout: CHECK_TIMEOUT,
            memory_bytes: None,
            env: &[],
            dir,
            devices: &[],
            is_stopping: &|| false,
        };
        match empty.run()?.error {
            None => Ok(()),
            Some(error) => Err(IsolationError::Setup(error)),
        }
    }

    /// Runs the command, waits for its end, and returns the result. Blocks.
    ///
    /// # Errors
    /// The command was not started.
    pub fn run(&self) -> Result<Isolated, IsolationError> {
        let user = Self::check_host(self.user)?;
        // In memory: a full filesystem does not look like failed isolation.
        let ready = File::from(memfd_create("ready", MemfdFlags::CLOEXEC).map_err(io::Error::from)?);
        let deadline = Instant::now() + self.timeout;
        let mut command = self.prepare(&user, ready.try_clone()?);
        let mut child = mounts::on_isolated_thread(|| command.spawn())?;
        // `wait` would close standard input.
        let stdin = child.stdin.take();
        let output = child.stderr.take().map(|pipe| listen(pipe.into())).transpose()?.unwrap_or_default();
        let ended = wait(&mut child, deadline, self.is_stopping)?;
        let _ = stdin.map(|mut stdin| stdin.write_all(b"\n"));
        let is_success = ended.as_ref().is_some_and(ExitStatus::success);
        let output = output.collect(if is_success { OUTPUT_TIMEOUT } else { FAILED_OUTPUT_TIMEOUT });
        let error = match ended {
            Some(_) if is_success => None,
            Some(status) => Some(failure(status, &output)),
            None if (self.is_stopping)() => Some("killed: the drill ends".to_owned()),
            None => Some(format!("killed after {} s", self.timeout.as_secs())),
        };
        let is_ready = ready.metadata()?.len() > 0;
        match error {
            // A kill during the preparations is an end of the command as well.
            Some(error) if ended.is_some() && !is_ready => Err(IsolationError::Setup(error)),
            error => Ok(Isolated { error, output: String::from_utf8_lossy(&output).into_owned() }),
        }
    }

    /// Checks what needs no namespaces: the privileges, the programs and the user, whom it returns.
    ///
    /// # Errors
    /// One of them is missing.
    pub fn check_host(user: &str) -> Result<User, IsolationError> {
        let own = geteuid();
        if !own.is_root() {
            let name = User::from_uid(own).ok().flatten().map_or_else(|| own.to_string(), |user| user.name);
            return Err(IsolationError::NotRoot(name));
        }
        if let Some(missing) = PROGRAMS.into_iter().find(|name| !has_program(name)) {
            return Err(IsolationError::Missing(missing));
        }
        match User::from_name(user).map_err(io::Error::from)? {
            None => Err(IsolationError::UnknownUser(user.to_owned())),
            Some(user) if user.uid.is_root() => Err(IsolationError::Root(user.name)),
            Some(user) => Ok(user),
        }
    }

    /// Returns `prlimit` and its arguments. A limit of the daemon cannot be raised without privileges.
    fn limits(&self) -> Vec<String> {
        let limit = |name, resource, wanted: u64| {
            let limit = getrlimit(resource).maximum.map_or(wanted, |own| own.min(wanted));
            format!("--{name}={limit}")
        };
        let fixed = ["prlimit".to_owned(), "--core=0".to_owned()].into_iter();
        let tasks = limit("nproc", Resource::Nproc, MAX_TASKS);
        let files = limit("nofile", Resource::Nofile, MAX_OPEN_FILES);
        let memory = self.memory_bytes.map(|bytes| limit("as", Resource::As, bytes));
        fixed.chain([tasks, files]).chain(memory).collect()
    }

    fn prepare(&self, user: &User, ready: File) -> Command {
        let mut command = Command::new("/bin/sh");
        command.env_clear().envs(inherited_environment()).envs(user_environment(user));
        command.envs([("HOME", "/tmp"), ("TMPDIR", "/tmp")]);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.args(["-c", WRAPPER, "sh", "ionice", "-c", "3"]).args(self.limits());
        command.args(["unshare", "--mount", "--net", "--pid", "--ipc", "--fork"]);
        command.args(["--kill-child", "--mount-proc", "--", "/bin/sh", "-c", SETUP, "sh"]).arg(self.dir);
        command.args([user.uid.to_string(), user.gid.to_string(), self.command.to_owned()]);
        for (name, device) in self.devices {
            let Object { kind, source, filesystem, options } = device.object();
            command.args([name, kind]).arg(source).args([filesystem, options]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::from(ready)).stderr(Stdio::piped());
        command.process_group(0).current_dir("/");
        command
    }
}

/// Parameters of the [script](SETUP), after the name.
struct Object {
    kind: &'static str,
    source: PathBuf,
    filesystem: String,
    options: String,
}

impl IsolatedDevice<'_> {
    fn object(&self) -> Object {
        let of = |kind, source: &Path, filesystem: &str, options: &[&str]| {
            let options = options.iter().map(|option| format!(",{option}")).collect();
            Object { kind, source: source.to_owned(), filesystem: filesystem.to_owned(), options }
        };
        match *self {
            Self::Socket(path) => of("socket", path, "", &[]),
            Self::Device(path) => of("device", path, "", &[]),
            Self::Mounted { device, filesystem, options } => of("mounted", device, filesystem, options),
            Self::Replayed { device, filesystem, options } => of("replayed", device, filesystem, options),
        }
    }
}

#[cfg(test)]
mod tests;
