//! Freezing filesystems from processes of their own, one for each.
//!
//! Who freezes a filesystem waits in the kernel until all of it is written, and nothing can end that, not even `kill -9`. If the
//! filesystem lies on a volume of this daemon, it is this daemon that has to write. Were it a thread of the daemon that
//! waits, a daemon that is killed just then would neither write nor end, and the next one could not start. A process that
//! has nothing of the daemon's but two pipes waits until the next daemon serves the volume.
//!
//! Such a process thaws what it has frozen when it is told to, when the daemon is gone, which closes its pipe, and when it
//! has been told nothing for too long, because the daemon stands still.
//!
//! Each request is a byte, `s`, `f` or `t`: sync, freeze, thaw. Each answer is a line: `ok`; `before` for a filesystem that was
//! not frozen any more when it was to be thawed; or an error's number.

use super::{
    filesystems::{Freezer, Thawed},
    kernel::Kernel,
};
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    collections::HashMap,
    ffi::OsString,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// Freezes and thaws from processes of their own.
pub(crate) struct Apart {
    program: PathBuf,
    patience: Duration,
    holders: Mutex<HashMap<PathBuf, Arc<Mutex<Holder>>>>,
}

/// The process of one filesystem.
struct Holder {
    /// `None` only while it is being dropped.
    child: Option<Child>,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Apart {
    /// What is frozen is thawed when there was no word for so long.
    pub(crate) fn new(patience: Duration) -> Self {
        // The link leads to the program that runs, also if another one was put in its place since.
        Self { program: "/proc/self/exe".into(), patience, holders: Mutex::default() }
    }

    fn holder(&self, mount: &Path) -> io::Result<Arc<Mutex<Holder>>> {
        let mut holders = self.holders.lock();
        if let Some(holder) = holders.get(mount) {
            return Ok(Arc::clone(holder));
        }
        let holder = Arc::new(Mutex::new(Holder::start(&self.program, mount, self.patience)?));
        holders.insert(mount.to_owned(), Arc::clone(&holder));
        Ok(holder)
    }

    fn ask(&self, mount: &Path, request: u8) -> io::Result<Thawed> {
        self.holder(mount)?.lock().ask(request)
    }
}

impl Freezer for Apart {
    fn sync(&self, mount: &Path) -> io::Result<()> {
        self.ask(mount, b's').map(drop)
    }

    fn freeze(&self, mount: &Path) -> io::Result<()> {
        let result = self.ask(mount, b'f').map(drop);
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof) {
            // The process was killed, perhaps after it had frozen it.
            let _ = Kernel.thaw(mount);
        }
        result
    }

    fn thaw(&self, mount: &Path) -> io::Result<Thawed> {
        match self.ask(mount, b't') {
            // The process cannot be had: better to wait here than not to thaw.
            Err(error) if error.raw_os_error().is_none() => Kernel.thaw(mount),
            other => other,
        }
    }
}

impl Holder {
    fn start(program: &Path, mount: &Path, patience: Duration) -> io::Result<Self> {
        let mut argument = OsString::from("--hold-filesystem=");
        argument.push(mount);
        let mut command = Command::new(program);
        command.arg(argument).arg(format!("--hold-patience-ms={}", patience.as_millis()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).current_dir("/");
        let mut child = command.spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take());
        match pipes {
            (Some(requests), Some(answers)) => {
                Ok(Self { child: Some(child), requests: Some(requests), answers: BufReader::new(answers) })
            }
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn ask(&mut self, request: u8) -> io::Result<Thawed> {
        let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "the process that freezes it is gone");
        let requests = self.requests.as_mut().ok_or_else(gone)?;
        requests.write_all(&[request]).map_err(|_| gone())?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).map_err(|_| gone())?;
        match answer.trim_end() {
            "ok" => Ok(Thawed::Now),
            "before" => Ok(Thawed::Before),
            number => Err(number.parse().map_or_else(|_| gone(), io::Error::from_raw_os_error)),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends when its pipe does, but may hang in the kernel: nobody waits for it here.
        self.requests = None;
        if let Some(mut child) = self.child.take() {
            let reaper = std::thread::Builder::new().name("reap".into());
            if let Err(error) = reaper.spawn(move || child.wait()) {
                tracing::warn!(%error, "a process that has ended is not reaped before the daemon ends");
            }
        }
    }
}

/// What such a process does: serves requests until their end, and lets go what is frozen then.
///
/// # Errors
/// The pipes fail.
pub fn hold_filesystem(mount: &Path, patience: Duration) -> io::Result<()> {
    let requests = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    hold(&Kernel, mount, patience, requests, &mut io::stdout())
}

fn hold(
    freezer: &dyn Freezer,
    mount: &Path,
    patience: Duration,
    mut requests: File,
    answers: &mut dyn Write,
) -> io::Result<()> {
    let mut deadline: Option<Instant> = None;
    let result = loop {
        match is_ready(&requests, deadline) {
            Ok(true) => {}
            Ok(false) => {
                deadline = None;
                let _ = freezer.thaw(mount);
                continue;
            }
            Err(error) => break Err(error),
        }
        let mut request = [0];
        match requests.read(&mut request) {
            Ok(0) => break Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => break Err(error),
        }
        let done = match request[0] {
            b's' => freezer.sync(mount).map(|()| Thawed::Now),
            b'f' => freezer.freeze(mount).map(|()| {
                deadline = Some(Instant::now() + patience);
                Thawed::Now
            }),
            b't' => {
                deadline = None;
                freezer.thaw(mount)
            }
            _ => Err(rustix::io::Errno::INVAL.into()),
        };
        let answer = match done {
            Ok(Thawed::Now) => "ok\n".to_owned(),
            Ok(Thawed::Before) => "before\n".to_owned(),
            Err(error) => {
                format!("{}\n", error.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error()))
            }
        };
        // Who is gone asks nothing more, and the end of the requests tells so.
        let _ = answers.write_all(answer.as_bytes()).and_then(|()| answers.flush());
    };
    if deadline.is_some() {
        freezer.thaw(mount)?;
    }
    result
}

/// Waits for a request, or for the end of them, until then.
fn is_ready(requests: &File, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut [PollFd::new(requests, PollFlags::IN)], left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A filesystem that is frozen or not, and says what was done to it.
    struct Double {
        frozen: Mutex<bool>,
        calls: mpsc::Sender<&'static str>,
    }

    impl Freezer for Double {
        fn sync(&self, _: &Path) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(5))
        }
        fn freeze(&self, _: &Path) -> io::Result<()> {
            *self.frozen.lock() = true;
            self.calls.send("freeze").unwrap();
            Ok(())
        }
        fn thaw(&self, _: &Path) -> io::Result<Thawed> {
            let was_frozen = std::mem::take(&mut *self.frozen.lock());
            self.calls.send("thaw").unwrap();
            Ok(if was_frozen { Thawed::Now } else { Thawed::Before })
        }
    }

    /// A holder whose requests come through a pipe: what is done, what is answered, and the end of it.
    struct Bed {
        requests: Option<io::PipeWriter>,
        answers: BufReader<io::PipeReader>,
        calls: mpsc::Receiver<&'static str>,
        holder: std::thread::JoinHandle<io::Result<()>>,
    }

    impl Bed {
        fn new(patience: Duration) -> Self {
            let (reader, requests) = io::pipe().unwrap();
            let (answers, mut writer) = io::pipe().unwrap();
            let (sender, calls) = mpsc::channel();
            let double = Double { frozen: Mutex::new(false), calls: sender };
            let reader = File::from(std::os::fd::OwnedFd::from(reader));
            let holder =
                std::thread::spawn(move || hold(&double, Path::new("/m"), patience, reader, &mut writer));
            Self { requests: Some(requests), answers: BufReader::new(answers), calls, holder }
        }

        fn ask(&mut self, request: u8) -> String {
            self.requests.as_mut().unwrap().write_all(&[request]).unwrap();
            let mut answer = String::new();
            self.answers.read_line(&mut answer).unwrap();
            answer.trim_end().to_owned()
        }

        fn next_call(&self) -> &'static str {
            self.calls.recv_timeout(Duration::from_secs(60)).unwrap()
        }
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn what_is_asked_for_is_done_and_answered() {
        let mut bed = Bed::new(LONG);
        assert_eq!(bed.ask(b's'), "5");
        assert_eq!((bed.ask(b'f').as_str(), bed.next_call()), ("ok", "freeze"));
        assert_eq!((bed.ask(b't').as_str(), bed.next_call()), ("ok", "thaw"));
        assert_eq!((bed.ask(b't').as_str(), bed.next_call()), ("before", "thaw"));
        assert_eq!(bed.ask(b'x'), "22");
        bed.requests = None;
        bed.holder.join().unwrap().unwrap();
        assert!(bed.calls.recv().is_err(), "it thawed what was not frozen");
    }

    #[test]
    fn what_is_frozen_is_thawed_when_the_daemon_is_gone() {
        let mut bed = Bed::new(LONG);
        assert_eq!((bed.ask(b'f').as_str(), bed.next_call()), ("ok", "freeze"));
        bed.requests = None;
        assert_eq!(bed.next_call(), "thaw");
        bed.holder.join().unwrap().unwrap();
    }

    #[test]
    fn what_is_frozen_is_thawed_when_there_is_no_word_and_the_thaw_that_comes_too_late_is_told() {
        let mut bed = Bed::new(Duration::from_millis(20));
        assert_eq!((bed.ask(b'f').as_str(), bed.next_call()), ("ok", "freeze"));
        assert_eq!(bed.next_call(), "thaw");
        assert_eq!(bed.ask(b't'), "before");
    }

    #[test]
    fn a_process_that_is_killed_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("nothing-is-mounted-here");
        let apart = Apart { program: "/bin/false".into(), patience: LONG, holders: Mutex::default() };
        let error = apart.freeze(&mount).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(apart.thaw(&mount).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
