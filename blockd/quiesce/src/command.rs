//! Pre- and post-commands of a snapshot.
//!
//! A command runs in its own process group. The group is killed after the timeout, and when the daemon dies:
//! a wrapper shell notices that by a pipe. The next daemon runs the post-command, which must not run next to
//! the old command; processes that survive hold a lock, which the next daemon [waits for](crate::marker).
//!
//! A command gets none of the daemon's capabilities. For the daemon's own user, a thread drops them before it
//! starts the command. For another user, `setpriv` needs them and drops them; the wrapper shell keeps them to
//! kill the group. Creating a rule [tests](crate::users) whether the daemon may do that.

use blockd_api::{
    RuleName,
    quiesce::{MAX_OUTPUT_BYTES, QuiesceKind, QuiesceStep},
};
use jiff::Timestamp;
use nix::unistd::{User, geteuid};
use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
    thread::{CapabilitySet, capabilities, clear_ambient_capability_set, set_capabilities},
};
use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Timeout for remaining output of a failed command.
pub(crate) const FAILED_OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);
/// Timeout for remaining output of a successful command: the next step must not wait for its background
/// processes.
pub(crate) const OUTPUT_TIMEOUT: Duration = Duration::from_millis(20);

/// Search path of commands if the daemon has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Maximum number of consecutive reads; more than a pipe holds.
const MAX_READS: usize = 4096;

/// Polling interval for a stop.
const STOP_PAUSE: Duration = Duration::from_millis(50);

/// Shell script that replaces itself by the command. A second shell kills the process group when standard
/// input ends without a line. Standard output is the lock, which the command and its children inherit; their
/// output goes to standard error.
pub(crate) const WRAPPER: &str = r#"exec 3<&0 0</dev/null 4>&1 1>&2
(exec 1>/dev/null 2>&1 4>&-; read -r _ <&3 || kill -s KILL -- "-$$") &
exec 3<&-
exec "$@""#;

/// Command to run.
#[derive(Clone, Debug)]
pub(crate) struct Hook<'a> {
    /// Pre-command or post-command.
    pub(crate) kind: QuiesceKind,
    /// Rule of the command.
    pub(crate) rule: Option<&'a RuleName>,
    /// Command line for `/bin/sh -c`.
    pub(crate) command: &'a str,
    /// User; the daemon's by default.
    pub(crate) user: Option<&'a str>,
    /// Timeout.
    pub(crate) timeout: Duration,
    /// Environment variables, in addition to those of the [user](user_environment). The command inherits none
    /// of the daemon's.
    pub(crate) env: &'a [(String, String)],
    /// Locked file, which stays locked until all processes of the command have ended.
    pub(crate) lock: Option<&'a File>,
    /// Cancellation: kills the command.
    pub(crate) stopping: Option<&'a CancellationToken>,
}

impl Hook<'_> {
    /// Runs the command, waits for its end, and returns the result.
    pub(crate) fn run(&self) -> QuiesceStep {
        let (began, started) = (Instant::now(), Timestamp::now());
        let result = self.spawn().and_then(|mut child| {
            // `wait` would close standard input.
            let stdin = child.stdin.take();
            let output = child.stderr.take().map(|pipe| listen(pipe.into())).transpose()?.unwrap_or_default();
            let is_stopping = || self.stopping.is_some_and(CancellationToken::is_cancelled);
            let ended = wait(&mut child, began + self.timeout, &is_stopping)?;
            // Tells the wrapper not to kill background processes of the command.
            let _ = stdin.map(|mut stdin| stdin.write_all(b"\n"));
            Ok((ended, output))
        });
        let duration_micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (exit_status, error, output) = match result {
            Err(error) => (None, Some(format!("start failed: {error}")), Vec::new()),
            Ok((None, output)) => {
                let error = match self.stopping.is_some_and(CancellationToken::is_cancelled) {
                    true => "killed: the daemon is stopping".to_owned(),
                    false => format!("killed after {} s", self.timeout.as_secs()),
                };
                (None, Some(error), output.collect(FAILED_OUTPUT_TIMEOUT))
            }
            Ok((Some(status), output)) if status.success() => (Some(0), None, output.collect(OUTPUT_TIMEOUT)),
            Ok((Some(status), output)) => {
                let output = output.collect(FAILED_OUTPUT_TIMEOUT);
                (status.code(), Some(failure(status, &output)), output)
            }
        };
        // Commands and their output are for administrators; the log has more readers.
        let failed = error.is_some();
        tracing::info!(kind = %self.kind, rule = self.rule.map(tracing::field::display), duration_micros, exit_status, failed, "command run");
        QuiesceStep {
            kind: self.kind,
            target: self.command.to_owned(),
            rule_name: self.rule.cloned(),
            started_at: Some(started),
            duration_micros,
            exit_status,
            error,
            output: (!output.is_empty()).then(|| String::from_utf8_lossy(&output).into_owned()),
        }
    }

    fn spawn(&self) -> io::Result<Child> {
        let mut command = Command::new("/bin/sh");
        // The daemon's environment may hold secrets: proxies with passwords, keys of stores.
        command.env_clear().envs(inherited_environment()).args(["-c", WRAPPER, "sh"]);
        let mut start: fn(&mut Command) -> io::Result<Child> = without_capabilities;
        let user = match self.user {
            Some(name) => {
                let found = User::from_name(name)?;
                Some(found.ok_or_else(|| io::Error::other(format!("there is no user {name} on this host")))?)
            }
            // A container may have no passwd entry.
            None => User::from_uid(geteuid()).ok().flatten(),
        };
        if let Some(user) = user {
            // No change for the daemon's own user: it might be forbidden.
            if user.uid != geteuid() {
                let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
                command.args(["setpriv", "--reuid", &uid, "--regid", &gid, "--init-groups"]);
                command.arg("--inh-caps=-all").arg("--");
                start = Command::spawn;
            }
            command.envs(user_environment(&user));
        }
        command.args(["/bin/sh", "-c", self.command]);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let lock = self.lock.map(File::try_clone).transpose()?;
        command
            .stdin(Stdio::piped())
            .stdout(lock.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::piped());
        start(command.process_group(0).current_dir("/"))
    }
}

/// Returns the variables of the daemon's environment that every command gets. Others may hold secrets.
pub(crate) fn inherited_environment() -> impl Iterator<Item = (&'static str, OsString)> {
    let lang = std::env::var_os("LANG").map(|lang| ("LANG", lang));
    [("PATH", std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()))].into_iter().chain(lang)
}

/// Returns the environment variables of a user.
pub(crate) fn user_environment(user: &User) -> [(&'static str, OsString); 4] {
    let name = || OsString::from(&user.name);
    [("HOME", user.dir.clone().into()), ("USER", name()), ("LOGNAME", name()), ("SHELL", "/bin/sh".into())]
}

/// Starts a process without the daemon's capabilities, except as root. Capabilities belong to threads, so a
/// temporary thread drops them.
fn without_capabilities(command: &mut Command) -> io::Result<Child> {
    let start = || {
        clear_ambient_capability_set()
            .map_err(|errno| io::Error::other(format!("dropping capabilities failed: {errno}")))?;
        // Without capabilities there is nothing to drop, and a unit with NoNewPrivileges may forbid the call.
        let cleared = capabilities(None).and_then(|mut sets| {
            sets.inheritable = CapabilitySet::empty();
            set_capabilities(None, sets)
        });
        if let Err(error) = cleared {
            tracing::debug!(%error, "clearing inheritable capabilities failed: starting the command with them");
        }
        command.spawn()
    };
    std::thread::scope(|scope| {
        let starter = std::thread::Builder::new().name("hook-start".into()).spawn_scoped(scope, start)?;
        starter.join().map_err(|_| io::Error::other("the starting thread panicked"))?
    })
}

/// Output of a command.
#[derive(Default)]
pub(crate) struct CommandOutput {
    reader: Option<Arc<Mutex<OutputReader>>>,
    ended: Option<mpsc::Receiver<()>>,
}

impl CommandOutput {
    /// Returns the output of a command that has ended, even if the reader thread did not run since. Does not
    /// wait for background processes that hold standard error.
    pub(crate) fn collect(&self, time_limit: Duration) -> Vec<u8> {
        if let Some(ended) = &self.ended {
            let _ = ended.recv_timeout(time_limit);
        }
        let Some(reader) = &self.reader else { return Vec::new() };
        let mut reader = reader.lock();
        reader.read_available();
        reader.kept[reader.kept.len().saturating_sub(MAX_OUTPUT_BYTES)..].to_vec()
    }
}

/// Output read so far, and its pipe. Readers hold the lock.
struct OutputReader {
    pipe: File,
    kept: Vec<u8>,
}

impl OutputReader {
    /// Reads the available output without blocking; returns true if there may be more.
    fn read_available(&mut self) -> bool {
        let mut buffer = [0; 1024];
        for _ in 0..MAX_READS {
            if !is_readable(&self.pipe, Some(&Timespec::default())) {
                return true;
            }
            let Ok(len @ 1..) = self.pipe.read(&mut buffer) else { return false };
            self.kept.extend_from_slice(&buffer[..len]);
            // The last lines name the cause of a failure.
            if self.kept.len() > 2 * MAX_OUTPUT_BYTES {
                let surplus = self.kept.len() - MAX_OUTPUT_BYTES;
                self.kept.drain(..surplus);
            }
        }
        true
    }
}

/// Returns true if the pipe becomes readable within the timeout.
fn is_readable(pipe: &File, time_limit: Option<&Timespec>) -> bool {
    loop {
        match poll(&mut [PollFd::new(pipe, PollFlags::IN)], time_limit) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(count) => return count > 0,
            // The read reports the error.
            Err(_) => return true,
        }
    }
}

/// Reads the output on a thread, which ends when the last process closes the pipe.
pub(crate) fn listen(pipe: OwnedFd) -> io::Result<CommandOutput> {
    let pipe = File::from(pipe);
    let watched = pipe.try_clone()?;
    let reader = Arc::new(Mutex::new(OutputReader { pipe, kept: Vec::new() }));
    let (end, ended) = mpsc::channel();
    let shared = Arc::clone(&reader);
    let listener = move || {
        while is_readable(&watched, None) && shared.lock().read_available() {}
        drop(end);
    };
    std::thread::Builder::new().name("hook-stderr".into()).spawn(listener)?;
    Ok(CommandOutput { reader: Some(reader), ended: Some(ended) })
}

/// Waits for the end, the deadline or a stop, and kills the process group in the last two cases.
pub(crate) fn wait(
    child: &mut Child,
    deadline: Instant,
    is_stopping: &dyn Fn() -> bool,
) -> io::Result<Option<ExitStatus>> {
    let ended = wait_until(child, deadline, is_stopping);
    if matches!(ended, Ok(true)) {
        return child.wait().map(Some);
    }
    if let Some(group) = pid_of(child) {
        // Fails if the command has just ended.
        let _ = kill_process_group(group, Signal::KILL);
    }
    child.wait()?;
    ended.map(|_| None)
}

fn wait_until(child: &Child, deadline: Instant, is_stopping: &dyn Fn() -> bool) -> io::Result<bool> {
    let pid = pid_of(child).ok_or(io::ErrorKind::NotFound)?;
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        if is_stopping() {
            return Ok(false);
        }
        let left = deadline.saturating_duration_since(Instant::now()).min(STOP_PAUSE);
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&left)) {
            Ok(0) if Instant::now() < deadline => {}
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    Pid::from_raw(i32::try_from(child.id()).ok()?)
}

pub(crate) fn failure(status: ExitStatus, output: &[u8]) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "failed".to_owned(),
    };
    let output = String::from_utf8_lossy(output);
    match output.lines().map(str::trim).rfind(|line| !line.is_empty()) {
        Some(line) => format!("{how}: {line}"),
        None => how,
    }
}

#[cfg(test)]
mod tests;
