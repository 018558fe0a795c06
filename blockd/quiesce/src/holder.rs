//! Holder processes, which freeze one filesystem each.
//!
//! A freeze waits in the kernel until all data is written, and cannot be interrupted, not even by `kill -9`.
//! If the filesystem is on a volume of this daemon, the daemon itself must write that data. A daemon killed
//! while one of its threads waits in a freeze could neither write nor exit, and the next one could not start.
//! So a holder process, which shares only two pipes with the daemon, waits until the next daemon serves the
//! volume.
//!
//! A holder thaws its filesystem on request, when the daemon dies, which closes the pipe, and when no request
//! came for too long, because the daemon hangs.
//!
//! The first message, of eight bytes, little-endian, is the expected device number of the mount. Each request
//! is a byte, `s`, `f` or `t`: sync, freeze, thaw. Each answer is a line: `ok`; `before` if the filesystem
//! was already thawed at a thaw; `elsewhere` if another filesystem is mounted there, on which nothing was
//! done; or an error number. The holder thaws by the descriptor of the freeze, as another filesystem may be
//! mounted at the path by then.

use crate::{
    filesystems::{Freezer, FreezerError, Thawed},
    kernel::{Kernel, OpenFilesystem},
    mounted::Mounted,
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

/// Pause before a failed thaw is retried.
const THAW_PAUSE: Duration = Duration::from_secs(1);

/// Open filesystem, or a fake in tests.
pub(crate) trait Handle {
    /// See [`Freezer::sync`].
    fn sync(&self) -> Result<(), FreezerError>;
    /// See [`Freezer::freeze`].
    fn freeze(&self) -> Result<(), FreezerError>;
    /// See [`Freezer::thaw`].
    fn thaw(&self) -> Result<Thawed, FreezerError>;
}

/// Freezer that uses a holder process for each filesystem.
pub(crate) struct HolderProcess {
    program: PathBuf,
    time_limit: Duration,
    holders: Mutex<HashMap<Mounted, Arc<Mutex<Holder>>>>,
}

/// Holder process of a filesystem.
struct Holder {
    /// `None` only during drop.
    child: Option<Child>,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl HolderProcess {
    /// Creates the freezer. A holder thaws its filesystem after `time_limit` without a request.
    pub(crate) fn new(time_limit: Duration) -> Self {
        // The link refers to the running program even after an upgrade.
        Self { program: "/proc/self/exe".into(), time_limit, holders: Mutex::default() }
    }

    fn holder(&self, mount: &Mounted) -> Result<Arc<Mutex<Holder>>, FreezerError> {
        let mut holders = self.holders.lock();
        if let Some(holder) = holders.get(mount) {
            return Ok(Arc::clone(holder));
        }
        let holder = Holder::start(&self.program, mount, self.time_limit).map_err(FreezerError::NoHolder)?;
        let holder = Arc::new(Mutex::new(holder));
        holders.insert(mount.clone(), Arc::clone(&holder));
        Ok(holder)
    }

    fn ask(&self, mount: &Mounted, request: u8) -> Result<Thawed, FreezerError> {
        let result = self.holder(mount)?.lock().ask(request);
        if matches!(result, Err(FreezerError::HolderGone)) {
            // The next request starts another process.
            self.holders.lock().remove(mount);
        }
        result
    }
}

impl Freezer for HolderProcess {
    fn sync(&self, mount: &Mounted) -> Result<(), FreezerError> {
        self.ask(mount, b's').map(drop)
    }

    fn freeze(&self, mount: &Mounted) -> Result<(), FreezerError> {
        let result = self.ask(mount, b'f').map(drop);
        if matches!(result, Err(FreezerError::HolderGone)) {
            // The process was killed, perhaps after the freeze.
            let _ = Kernel.thaw(&mount.reachable());
        }
        result
    }

    fn thaw(&self, mount: &Mounted) -> Result<Thawed, FreezerError> {
        match self.ask(mount, b't') {
            // Without a holder process, a blocking thaw is better than none.
            Err(FreezerError::NoHolder(_) | FreezerError::HolderGone) => Kernel.thaw(&mount.reachable()),
            other => other,
        }
    }
}

impl Holder {
    fn start(program: &Path, mount: &Mounted, time_limit: Duration) -> io::Result<Self> {
        let mut argument = OsString::from("--hold-filesystem=");
        argument.push(&mount.path);
        let mut command = Command::new(program);
        command.arg(argument).arg(format!("--hold-timeout-ms={}", time_limit.as_millis()));
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).current_dir("/");
        let mut child = command.spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take());
        match pipes {
            (Some(mut requests), Some(answers)) => {
                // The first request reports a dead process.
                let _ = requests.write_all(&mount.device.to_le_bytes());
                Ok(Self { child: Some(child), requests: Some(requests), answers: BufReader::new(answers) })
            }
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn ask(&mut self, request: u8) -> Result<Thawed, FreezerError> {
        let requests = self.requests.as_mut().ok_or(FreezerError::HolderGone)?;
        requests.write_all(&[request]).map_err(|_| FreezerError::HolderGone)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).map_err(|_| FreezerError::HolderGone)?;
        match answer.trim_end() {
            "ok" => Ok(Thawed::Now),
            "before" => Ok(Thawed::Before),
            "elsewhere" => Err(FreezerError::OtherFilesystem),
            number => Err(number
                .parse()
                .map_or(FreezerError::HolderGone, |number| io::Error::from_raw_os_error(number).into())),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // The process ends with its pipe, but may hang in the kernel, so this thread does not wait for it.
        self.requests = None;
        if let Some(mut child) = self.child.take() {
            let reaper = std::thread::Builder::new().name("reap".into());
            if let Err(error) = reaper.spawn(move || child.wait()) {
                tracing::warn!(%error, "starting the reaper thread failed: the holder process stays a zombie until the daemon ends");
            }
        }
    }
}

/// Runs a holder process: serves requests until the pipe ends, and thaws its filesystem then.
///
/// # Errors
/// The pipes fail.
pub fn hold_filesystem(mount: &Path, time_limit: Duration) -> io::Result<()> {
    let requests = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let open = |device| OpenFilesystem::at(&Mounted { path: mount.to_owned(), device });
    hold(open, time_limit, requests, &mut io::stdout())
}

fn hold<H: Handle>(
    open: impl Fn(u64) -> Result<H, FreezerError>,
    time_limit: Duration,
    mut requests: File,
    answers: &mut dyn Write,
) -> io::Result<()> {
    let mut device = [0; 8];
    match requests.read_exact(&mut device) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
        other => other?,
    }
    let mut held = HeldResource { open: || open(u64::from_le_bytes(device)), frozen: None, deadline: None };
    let result = loop {
        match is_ready(&requests, held.deadline) {
            Ok(true) => {}
            Ok(false) => {
                let _ = held.rethaw();
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
        let answer = match held.serve(request[0], time_limit) {
            Ok(Thawed::Now) => "ok\n".to_owned(),
            Ok(Thawed::Before) => "before\n".to_owned(),
            Err(FreezerError::OtherFilesystem) => "elsewhere\n".to_owned(),
            Err(error) => format!("{}\n", error.errno().unwrap_or(rustix::io::Errno::IO).raw_os_error()),
        };
        // A write error means that the daemon died, which the end of the request pipe reports.
        let _ = answers.write_all(answer.as_bytes()).and_then(|()| answers.flush());
    };
    // No other process has the descriptor, so the process does not end before the thaw.
    while held.deadline.is_some() && held.rethaw().is_err() {
        std::thread::sleep(THAW_PAUSE);
    }
    result
}

/// Filesystem of a holder.
struct HeldResource<H, O> {
    open: O,
    /// Set from the freeze until the answer to a thaw request, which may follow the thaw.
    frozen: Option<H>,
    /// Deadline of the thaw without a request; `None` if it is thawed.
    deadline: Option<Instant>,
}

impl<H: Handle, O: Fn() -> Result<H, FreezerError>> HeldResource<H, O> {
    fn serve(&mut self, request: u8, time_limit: Duration) -> Result<Thawed, FreezerError> {
        match (request, &self.frozen) {
            (b's', Some(frozen)) => frozen.sync().map(|()| Thawed::Now),
            (b's', None) => (self.open)()?.sync().map(|()| Thawed::Now),
            (b'f', Some(_)) => Err(FreezerError::Call(rustix::io::Errno::BUSY.into())),
            (b'f', None) => {
                let opened = (self.open)()?;
                opened.freeze()?;
                self.frozen = Some(opened);
                self.deadline = Some(Instant::now() + time_limit);
                Ok(Thawed::Now)
            }
            (b't', Some(_)) => {
                let thawed = self.rethaw()?;
                self.frozen = None;
                Ok(thawed)
            }
            (b't', None) => (self.open)()?.thaw(),
            _ => Err(FreezerError::Call(rustix::io::Errno::INVAL.into())),
        }
    }

    /// Thaws the filesystem, and schedules a retry after a failure.
    fn rethaw(&mut self) -> Result<Thawed, FreezerError> {
        let result = self.frozen.as_ref().map_or(Ok(Thawed::Before), Handle::thaw);
        self.deadline = result.is_err().then(|| Instant::now() + THAW_PAUSE);
        result
    }
}

/// Waits for a request or the end of the pipe until the deadline.
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

    /// Fake filesystem that records calls.
    #[derive(Clone)]
    struct FakeHandle {
        frozen: Arc<Mutex<bool>>,
        /// Number of thaws that fail.
        failures: Arc<Mutex<usize>>,
        /// Device at the path.
        device: Arc<Mutex<u64>>,
        calls: mpsc::Sender<&'static str>,
    }

    impl Handle for FakeHandle {
        fn sync(&self) -> Result<(), FreezerError> {
            Err(io::Error::from_raw_os_error(5).into())
        }
        fn freeze(&self) -> Result<(), FreezerError> {
            *self.frozen.lock() = true;
            self.calls.send("freeze").unwrap();
            Ok(())
        }
        fn thaw(&self) -> Result<Thawed, FreezerError> {
            let mut failures = self.failures.lock();
            if *failures > 0 {
                *failures -= 1;
                self.calls.send("failed").unwrap();
                return Err(io::Error::from_raw_os_error(5).into());
            }
            let was_frozen = std::mem::take(&mut *self.frozen.lock());
            self.calls.send("thaw").unwrap();
            Ok(if was_frozen { Thawed::Now } else { Thawed::Before })
        }
    }

    /// Holder with a request pipe, its calls and answers, and its end.
    struct HolderFixture {
        requests: Option<io::PipeWriter>,
        answers: BufReader<io::PipeReader>,
        calls: mpsc::Receiver<&'static str>,
        device: Arc<Mutex<u64>>,
        holder: std::thread::JoinHandle<io::Result<()>>,
    }

    impl HolderFixture {
        fn new(time_limit: Duration) -> Self {
            Self::failing(time_limit, 0)
        }

        /// Creates a holder whose first thaws fail.
        fn failing(time_limit: Duration, failures: usize) -> Self {
            let (reader, mut requests) = io::pipe().unwrap();
            let (answers, mut writer) = io::pipe().unwrap();
            let (calls_in, calls) = mpsc::channel();
            let (failures, device) = (Arc::new(Mutex::new(failures)), Arc::new(Mutex::new(DEVICE)));
            let double =
                FakeHandle { frozen: Arc::default(), failures, device: Arc::clone(&device), calls: calls_in };
            let open = move |expected| match *double.device.lock() == expected {
                true => Ok(double.clone()),
                false => Err(FreezerError::OtherFilesystem),
            };
            let reader = File::from(std::os::fd::OwnedFd::from(reader));
            let holder = std::thread::spawn(move || hold(open, time_limit, reader, &mut writer));
            requests.write_all(&DEVICE.to_le_bytes()).unwrap();
            Self { requests: Some(requests), answers: BufReader::new(answers), calls, device, holder }
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

    const DEVICE: u64 = 0x1_002b;
    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn holder_executes_and_answers_requests() {
        let mut bed = HolderFixture::new(LONG);
        assert_eq!(bed.ask(b's'), "5");
        assert_eq!((bed.ask(b'f').as_str(), bed.next_call()), ("ok", "freeze"));
        assert_eq!((bed.ask(b't').as_str(), bed.next_call()), ("ok", "thaw"));
        assert_eq!((bed.ask(b't').as_str(), bed.next_call()), ("before", "thaw"));
        assert_eq!(bed.ask(b'x'), "22");
        bed.requests = None;
        bed.holder.join().unwrap().unwrap();
        assert!(bed.calls.recv().is_err(), "it thawed a filesystem that was not frozen");
    }

    #[test]
    fn holder_thaws_when_the_daemon_dies() {
        let mut bed = HolderFixture::new(LONG);
        assert_eq!((bed.ask(b'f').as_str(), bed.next_call()), ("ok", "freeze"));
        bed.requests = None;
        assert_eq!(bed.next_call(), "thaw");
        bed.holder.join().unwrap().unwrap();
    }

    #[test]
    fn holder_thaws_without_requests_and_reports_a_late_thaw() {
        let mut bed = HolderFixture::new(Duration::from_millis(20));
        assert_eq!((bed.ask(b'f').as_str(), bed.next_call()), ("ok", "freeze"));
        assert_eq!(bed.next_call(), "thaw");
        assert_eq!(bed.ask(b't'), "before");
    }

    #[test]
    fn other_filesystem_at_the_mount_point_is_not_frozen() {
        let mut bed = HolderFixture::new(LONG);
        *bed.device.lock() += 1;
        for request in [b's', b'f', b't'] {
            assert_eq!(bed.ask(request), "elsewhere");
        }
        assert!(bed.calls.try_recv().is_err(), "something was done to it");
    }

    #[test]
    fn holder_thaws_its_filesystem_after_the_path_changed() {
        let mut bed = HolderFixture::new(LONG);
        assert_eq!((bed.ask(b'f').as_str(), bed.next_call()), ("ok", "freeze"));
        *bed.device.lock() += 1;
        assert_eq!((bed.ask(b't').as_str(), bed.next_call()), ("ok", "thaw"));
        assert_eq!(bed.ask(b't'), "elsewhere");
    }

    #[test]
    fn failed_thaw_is_retried_without_a_request() {
        let mut bed = HolderFixture::failing(Duration::from_millis(20), 1);
        assert_eq!((bed.ask(b'f').as_str(), bed.next_call()), ("ok", "freeze"));
        assert_eq!((bed.next_call(), bed.next_call()), ("failed", "thaw"));
        assert_eq!(bed.ask(b't'), "before");
    }

    #[test]
    fn failed_thaw_is_retried_after_the_daemon_died() {
        let mut bed = HolderFixture::failing(LONG, 2);
        assert_eq!((bed.ask(b'f').as_str(), bed.next_call()), ("ok", "freeze"));
        assert_eq!((bed.ask(b't').as_str(), bed.next_call()), ("5", "failed"));
        bed.requests = None;
        assert_eq!((bed.next_call(), bed.next_call()), ("failed", "thaw"));
        bed.holder.join().unwrap().unwrap();
    }

    fn apart(program: &str) -> HolderProcess {
        HolderProcess { program: program.into(), time_limit: LONG, holders: Mutex::default() }
    }

    #[test]
    fn killed_holder_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let mount = Mounted { path: dir.path().join("nothing-is-mounted-here"), device: 1 };
        let apart = apart("/bin/false");
        assert!(matches!(apart.freeze(&mount), Err(FreezerError::HolderGone)));
        assert!(apart.holders.lock().is_empty());
        assert_eq!(apart.thaw(&mount).unwrap_err().errno(), Some(rustix::io::Errno::NOENT));
    }

    /// Failures to start a process have error numbers, too.
    #[test]
    fn without_a_process_the_thaw_is_done_here() {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Mounted::at(dir.path().to_owned()).unwrap();
        mount.device += 1;
        let apart = apart("/no/such/program");
        assert!(matches!(apart.freeze(&mount), Err(FreezerError::NoHolder(_))));
        // The check of the mount was reached.
        assert!(matches!(apart.thaw(&mount), Err(FreezerError::OtherFilesystem)));
    }
}
