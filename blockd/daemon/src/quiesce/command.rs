//! The commands before and after a snapshot.
//!
//! A command runs in a process group of its own, which is killed when its time is over, so that nothing it started is left; and
//! when the daemon is gone, by a shell that hears of that through a pipe: the next daemon runs the command after, which must
//! not be beside it. What is left of a command all the same holds a lock that the next daemon [waits for](super::marker).

use blockd_api::quiesce::{QuiesceKind, QuiesceStep};
use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

/// How much of what a command says on stderr is kept.
const MAX_SAID_BYTES: usize = 4096;
/// How long the last of it is waited for when the command has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs the command in the place of this shell. Another one kills all of it when standard input ends without a line. Standard
/// output is the lock, which goes to the command and what it starts.
const WRAPPER: &str = r#"exec 3<&0 0</dev/null 4>&1 1>/dev/null
(exec 2>/dev/null 4>&-; read -r _ <&3 || kill -s KILL -- "-$$") &
exec 3<&-
exec /bin/sh -c "$1""#;

/// A command to be run.
#[derive(Clone, Debug)]
pub(crate) struct Hook<'a> {
    /// Which of the two.
    pub(crate) kind: QuiesceKind,
    /// For `/bin/sh -c`.
    pub(crate) command: &'a str,
    /// How long it may take.
    pub(crate) timeout: Duration,
    /// What it is told, beside the daemon's own environment.
    pub(crate) env: &'a [(String, String)],
    /// A file that is locked, and stays so until nothing of the command is left.
    pub(crate) lock: Option<&'a File>,
}

impl Hook<'_> {
    /// Runs it and waits for its end; what became of it.
    pub(crate) fn run(&self) -> QuiesceStep {
        let began = Instant::now();
        let result = self.spawn().and_then(|mut child| {
            // Not to be closed by a wait.
            let leash = child.stdin.take();
            let said = listen(&mut child)?;
            let ended = wait(&mut child, began + self.timeout)?;
            // What the command left running on purpose is not killed.
            let _ = leash.map(|mut leash| leash.write_all(b"\n"));
            Ok((ended, said))
        });
        let (exit_status, error) = match result {
            Err(error) => (None, Some(format!("it cannot be run: {error}"))),
            Ok((None, _)) => (None, Some(format!("it was killed after {} s", self.timeout.as_secs()))),
            Ok((Some(status), _)) if status.success() => (Some(0), None),
            Ok((Some(status), said)) => (status.code(), Some(failure(status, &said.so_far()))),
        };
        let duration_micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::info!(kind = %self.kind, command = self.command, duration_micros, ?exit_status, ?error, "command run");
        QuiesceStep { kind: self.kind, target: self.command.to_owned(), duration_micros, exit_status, error }
    }

    fn spawn(&self) -> io::Result<Child> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", WRAPPER, "sh", self.command]);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let lock = self.lock.map(File::try_clone).transpose()?;
        command
            .stdin(Stdio::piped())
            .stdout(lock.map_or_else(Stdio::null, Stdio::from))
            .stderr(Stdio::piped());
        command.process_group(0).current_dir("/").spawn()
    }
}

/// What a command says on stderr.
struct Said {
    kept: Arc<Mutex<Vec<u8>>>,
    ended: mpsc::Receiver<()>,
}

impl Said {
    /// What was said by a command that has ended. Something that it left running may still hold its stderr: nobody waits
    /// for that.
    fn so_far(&self) -> Vec<u8> {
        let _ = self.ended.recv_timeout(LAST_WORDS);
        self.kept.lock().clone()
    }
}

/// Reads what the command says, on a thread that ends with the last process that could say something.
fn listen(child: &mut Child) -> io::Result<Said> {
    let kept: Arc<Mutex<Vec<u8>>> = Arc::default();
    let (end, ended) = mpsc::channel();
    if let Some(mut stderr) = child.stderr.take() {
        let kept = Arc::clone(&kept);
        let listener = move || {
            let mut piece = [0; 1024];
            while let Ok(len) = stderr.read(&mut piece)
                && len > 0
            {
                let mut kept = kept.lock();
                let room = MAX_SAID_BYTES.saturating_sub(kept.len()).min(len);
                kept.extend_from_slice(&piece[..room]);
            }
            drop(end);
        };
        std::thread::Builder::new().name("hook-stderr".into()).spawn(listener)?;
    }
    Ok(Said { kept, ended })
}

/// Waits for the end, or until then: who is not done by then is killed, and everything it started.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    let ended = wait_until(child, deadline);
    if matches!(ended, Ok(true)) {
        return child.wait().map(Some);
    }
    if let Some(group) = pid_of(child) {
        // It may have ended just now.
        let _ = kill_process_group(group, Signal::KILL);
    }
    child.wait()?;
    ended.map(|_| None)
}

fn wait_until(child: &Child, deadline: Instant) -> io::Result<bool> {
    let pid = pid_of(child).ok_or(io::ErrorKind::NotFound)?;
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&left)) {
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

fn failure(status: ExitStatus, said: &[u8]) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "it failed".to_owned(),
    };
    let said = String::from_utf8_lossy(said);
    match said.lines().map(str::trim).rfind(|line| !line.is_empty()) {
        Some(line) => format!("{how}: {line}"),
        None => how,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FlockOperation, flock};

    fn run(command: &str, timeout: Duration) -> QuiesceStep {
        let env = [("BLOCKD_SNAPSHOT".to_owned(), "monday".to_owned())];
        Hook { kind: QuiesceKind::PreCommand, command, timeout, env: &env, lock: None }.run()
    }

    fn wait_for_the_end_of(process: &str) {
        let gone = |status: String| status.is_empty() || status.contains("State:\tZ");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !gone(std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default()) {
            assert!(Instant::now() < deadline, "process {process} is left");
            std::thread::yield_now();
        }
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_command_is_told_what_it_is_for_and_its_exit_status_is_kept() {
        let good = run("test \"$BLOCKD_SNAPSHOT\" = monday", LONG);
        assert_eq!((good.exit_status, good.error), (Some(0), None));
        let bad = run("echo first >&2; echo cannot lock >&2; exit 3", LONG);
        assert_eq!(bad.exit_status, Some(3));
        assert_eq!(bad.error.as_deref(), Some("exit status 3: cannot lock"));
        let killed = run("kill -9 $$", LONG);
        assert_eq!((killed.exit_status, killed.error.as_deref()), (None, Some("killed by signal 9")));
    }

    #[test]
    fn what_takes_too_long_is_killed_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let began = Instant::now();
        let command = format!("sleep 600 & echo $! > {}.new; mv {0}.new {0}; wait", pid.display());
        let step = run(&command, Duration::from_millis(500));
        assert_eq!((step.exit_status, step.error.as_deref()), (None, Some("it was killed after 0 s")));
        assert!(began.elapsed() < Duration::from_secs(300));
        wait_for_the_end_of(std::fs::read_to_string(pid).unwrap().trim());
    }

    #[test]
    fn when_the_daemon_is_gone_the_command_and_what_it_started_are_killed() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let command = format!("sleep 600 & echo $! > {}; echo >&2; wait", pid.display());
        let hook =
            Hook { kind: QuiesceKind::PreCommand, command: &command, timeout: LONG, env: &[], lock: None };
        let mut child = hook.spawn().unwrap();
        let leash = child.stdin.take();
        child.stderr.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        drop(leash);
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        wait_for_the_end_of(std::fs::read_to_string(pid).unwrap().trim());
    }

    #[test]
    fn what_a_command_leaves_running_holds_the_lock_and_is_not_killed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::fs::write(&path, "").unwrap();
        let lock = File::open(&path).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let (pid, go) = (dir.path().join("pid"), dir.path().join("go"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &go, 0o600.into()).unwrap();
        let command = format!("(read -r _ < {}) 2>&- & echo $! > {}", go.display(), pid.display());
        let hook = Hook {
            kind: QuiesceKind::PreCommand,
            command: &command,
            timeout: LONG,
            env: &[],
            lock: Some(&lock),
        };
        assert_eq!(hook.run().exit_status, Some(0));
        drop(lock);
        let other = File::open(&path).unwrap();
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err(), "nobody holds the lock");
        std::fs::write(&go, "\n").unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
    }
}
