//! Fake nbd driver with fault injection: devices are files in a directory, laid out as the kernel shows them.

use blockd_nbd_kernel::{AttachOptions, Dialed, Driver, DriverSession, KernelError, System, Watch};
use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

/// Fake driver, and the directory that stands for `/`.
#[derive(Debug)]
pub(super) struct FakeDriver {
    root: tempfile::TempDir,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    devices: BTreeMap<u32, Vec<OwnedFd>>,
    /// Devices held open: they stay visible after a disconnect.
    opened: BTreeSet<u32>,
    /// Prefixes of the requests that fail.
    refused: BTreeSet<&'static str>,
    /// All requests so far.
    done: Vec<String>,
    watches: usize,
    /// Makes watches fail at once.
    broken: bool,
    family: u16,
    on_connect: Option<Box<dyn FnOnce() + Send>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("done", &self.done).finish_non_exhaustive()
    }
}

impl FakeDriver {
    pub(super) fn new() -> Arc<Self> {
        let root = tempfile::tempdir().unwrap();
        for dir in ["sys/block", "proc/self", "dev"] {
            std::fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        Arc::new(Self { root, inner: Mutex::default(), changed: Condvar::new() })
    }

    pub(super) fn system(self: &Arc<Self>) -> System {
        System::new(self.root.path().to_owned(), Arc::new(FakeSession(Arc::clone(self))), Duration::ZERO)
    }

    fn block(&self, index: u32) -> PathBuf {
        self.root.path().join(format!("sys/block/nbd{index}"))
    }

    /// Creates a connected device of another program.
    pub(super) fn put(&self, index: u32, backend: &str, size_bytes: u64) {
        let dir = self.block(index);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("backend"), backend).unwrap();
        std::fs::write(dir.join("size"), (size_bytes / 512).to_string()).unwrap();
        std::fs::write(dir.join("pid"), "1").unwrap();
        std::fs::write(self.root.path().join(format!("dev/nbd{index}")), "").unwrap();
    }

    /// Removes a device without a request, as a boot does.
    pub(super) fn vanish(&self, index: u32) {
        self.inner.lock().devices.remove(&index);
        std::fs::remove_dir_all(self.block(index)).unwrap();
    }

    /// Mounts or unmounts a device. A disconnected device disappears with its last mount.
    pub(super) fn mount(&self, index: u32, mounted: bool) {
        let mut inner = self.inner.lock();
        let line = format!("30 22 43:{index} / /mnt rw - ext4 /dev/nbd{index} rw\n");
        let text = if mounted { line } else { String::new() };
        std::fs::write(self.root.path().join("proc/self/mountinfo"), text).unwrap();
        if mounted {
            inner.opened.insert(index);
        } else {
            inner.opened.remove(&index);
            if !inner.devices.contains_key(&index) {
                let _ = std::fs::remove_dir_all(self.block(index));
            }
        }
    }

    /// Sets whether requests with this prefix fail.
    pub(super) fn refuse(&self, word: &'static str, refused: bool) {
        let mut inner = self.inner.lock();
        if refused {
            inner.refused.insert(word);
        } else {
            inner.refused.remove(word);
        }
    }

    pub(super) fn on_connect(&self, run: impl FnOnce() + Send + 'static) {
        self.inner.lock().on_connect = Some(Box::new(run));
    }

    /// Simulates a reload of the driver, which gets another family number.
    pub(super) fn reload(&self) {
        self.inner.lock().family += 1;
    }

    pub(super) fn set_broken(&self, broken: bool) {
        self.inner.lock().broken = broken;
    }

    pub(super) fn watches(&self) -> usize {
        self.inner.lock().watches
    }

    /// Returns the devices with connections.
    pub(super) fn connected(&self) -> Vec<u32> {
        self.inner.lock().devices.keys().copied().collect()
    }

    pub(super) fn size_bytes(&self, index: u32) -> u64 {
        let text = std::fs::read_to_string(self.block(index).join("size")).unwrap();
        text.parse::<u64>().unwrap() * 512
    }

    /// Returns the requests since the last call.
    pub(super) fn take_done(&self) -> Vec<String> {
        std::mem::take(&mut self.inner.lock().done)
    }

    /// Waits until this request was made, or failed.
    pub(super) fn wait_for(&self, what: &str) {
        let mut inner = self.inner.lock();
        while !inner.done.iter().any(|done| done == what) {
            let waited = self.changed.wait_for(&mut inner, Duration::from_secs(600));
            assert!(!waited.timed_out(), "waited for {what:?}, saw {:?}", inner.done);
        }
    }

    /// Records a request, and fails it if it is to fail.
    fn note(&self, what: String) -> Result<(), KernelError> {
        let mut inner = self.inner.lock();
        let refused = inner.refused.iter().any(|word| what.starts_with(word));
        inner.done.push(if refused { format!("refused: {what}") } else { what.clone() });
        self.changed.notify_all();
        if refused {
            let source = std::io::Error::from_raw_os_error(rustix::io::Errno::NOMEM.raw_os_error());
            return Err(KernelError::Refused { operation: "request", object: what, source });
        }
        Ok(())
    }

    fn check_owner(&self, index: u32, backend: &str) -> Result<(), KernelError> {
        let owner = std::fs::read_to_string(self.block(index).join("backend")).unwrap_or_default();
        // Like the kernel: a disconnected device takes no new connections, even while it is open.
        let bound = self.inner.lock().devices.contains_key(&index);
        if bound && owner == backend { Ok(()) } else { Err(KernelError::NoDevice { index }) }
    }
}

#[derive(Debug)]
struct FakeSession(Arc<FakeDriver>);

impl Driver for FakeSession {
    fn open(&self) -> Result<Box<dyn DriverSession>, KernelError> {
        Ok(Box::new(Self(Arc::clone(&self.0))))
    }
}

fn cloned(sockets: &[OwnedFd]) -> Vec<OwnedFd> {
    sockets.iter().map(|socket| socket.try_clone().unwrap()).collect()
}

impl DriverSession for FakeSession {
    fn family_ids(&self) -> (u16, Option<u32>) {
        (self.0.inner.lock().family, Some(7))
    }

    fn connect(
        &mut self,
        index: Option<u32>,
        dialed: &Dialed,
        _read_only: bool,
        options: &AttachOptions,
    ) -> Result<u32, KernelError> {
        let taken = |index: &u32| self.0.block(*index).join("pid").exists();
        if let Some(index) = index.filter(taken) {
            return Err(KernelError::Busy { index });
        }
        let index = index.or_else(|| (0..).find(|index| !taken(index))).unwrap();
        self.0.note(format!("connect {index}"))?;
        self.0.put(index, &options.backend, dialed.size_bytes);
        let run = {
            let mut inner = self.0.inner.lock();
            inner.devices.insert(index, cloned(&dialed.sockets));
            inner.on_connect.take()
        };
        if let Some(run) = run {
            run();
        }
        Ok(index)
    }

    fn reconnect(&mut self, index: u32, backend: &str, sockets: &[OwnedFd]) -> Result<(), KernelError> {
        self.0.check_owner(index, backend)?;
        self.0.note(format!("reconnect {index}"))?;
        self.0.inner.lock().devices.insert(index, cloned(sockets));
        Ok(())
    }

    fn resize(&mut self, index: u32, backend: &str, size_bytes: u64) -> Result<(), KernelError> {
        self.0.check_owner(index, backend)?;
        let refused = self.0.inner.lock().refused.contains("resize");
        if !refused {
            std::fs::write(self.0.block(index).join("size"), (size_bytes / 512).to_string()).unwrap();
        }
        self.0.note(format!("resize {index} {size_bytes}"))
    }

    fn disconnect(&mut self, index: u32) -> Result<(), KernelError> {
        self.0.note(format!("disconnect {index}"))?;
        let mut inner = self.0.inner.lock();
        inner.devices.remove(&index);
        if !inner.opened.contains(&index) {
            std::fs::remove_dir_all(self.0.block(index)).unwrap();
        }
        Ok(())
    }

    fn watch(&self) -> Result<Box<dyn Watch>, KernelError> {
        let mut inner = self.0.inner.lock();
        inner.watches += 1;
        Ok(Box::new(SilentWatch { broken: inner.broken }))
    }
}

/// Watch that reports no dead connection.
struct SilentWatch {
    broken: bool,
}

impl Watch for SilentWatch {
    fn wait(&mut self, timeout: Duration, wake: BorrowedFd<'_>) -> Result<Option<Vec<u32>>, KernelError> {
        if self.broken {
            return Err(KernelError::Socket { operation: "wait", source: std::io::Error::other("broken") });
        }
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        poll(&mut [PollFd::from_borrowed_fd(wake, PollFlags::IN)], Some(&timeout)).unwrap();
        Ok(Some(Vec::new()))
    }
}
