//! Memory device with configurable behaviour, a gate for its requests, and a catalog of such devices.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use blockd_nbd::{
    BlockDevice, DeviceError, DeviceErrorKind, ExportCatalog, ExportError, ExportInfo, Progress,
    StatusExtent, ZeroFlags,
};

/// Timeout of each step of a test.
pub const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Completes on the ring thread.
    Instant,
    /// Completes on worker threads.
    Blocking,
    /// Completes requests in two thirds of the sectors on the ring thread, others on worker threads.
    Mixed,
    /// Fails on the ring thread, if called there, or on worker threads.
    Failing(DeviceErrorKind),
    /// Fails on worker threads.
    FailingOnWorker(DeviceErrorKind),
    Panicking,
    PanickingOnWorker,
}

/// Gate: while closed, requests on worker threads wait at it.
#[derive(Default)]
pub struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicUsize,
}

impl Gate {
    pub fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    pub fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut closed = self.closed.lock().unwrap();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_all();
        while *closed {
            closed = self.changed.wait(closed).unwrap();
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Waits until `count` requests are at the gate.
    pub fn wait_for(&self, count: usize) {
        let closed = self.closed.lock().unwrap();
        let (_guard, timeout) = self
            .changed
            .wait_timeout_while(closed, TIMEOUT, |_| self.waiting.load(Ordering::SeqCst) < count)
            .unwrap();
        assert!(!timeout.timed_out(), "fewer than {count} requests at the gate");
    }
}

pub struct MemDevice {
    pub data: Mutex<Vec<u8>>,
    pub behaviour: Behaviour,
    pub read_only: bool,
    pub gate: Gate,
    pub flushes: AtomicUsize,
    pub fua_writes: AtomicUsize,
    pub no_hole_zeroes: AtomicUsize,
    pub fast_zeroes: AtomicUsize,
    pub cached_bytes: AtomicUsize,
    pub misaligned: AtomicBool,
}

impl MemDevice {
    pub fn new(size_bytes: usize, behaviour: Behaviour) -> Self {
        Self {
            data: Mutex::new(vec![0; size_bytes]),
            behaviour,
            read_only: false,
            gate: Gate::default(),
            flushes: AtomicUsize::new(0),
            fua_writes: AtomicUsize::new(0),
            no_hole_zeroes: AtomicUsize::new(0),
            fast_zeroes: AtomicUsize::new(0),
            cached_bytes: AtomicUsize::new(0),
            misaligned: AtomicBool::new(false),
        }
    }

    fn non_blocking(&self, offset_bytes: u64) -> Result<Progress, DeviceError> {
        match self.behaviour {
            Behaviour::Instant => Ok(Progress::Done),
            Behaviour::Blocking | Behaviour::FailingOnWorker(_) | Behaviour::PanickingOnWorker => {
                Ok(Progress::WouldBlock)
            }
            Behaviour::Mixed if !(offset_bytes / 512).is_multiple_of(3) => Ok(Progress::Done),
            Behaviour::Mixed => Ok(Progress::WouldBlock),
            Behaviour::Failing(kind) => Err(DeviceError::new(kind, "injected failure")),
            Behaviour::Panicking => panic!("injected panic"),
        }
    }

    fn blocking(&self) -> Result<(), DeviceError> {
        self.gate.pass();
        match self.behaviour {
            Behaviour::Failing(kind) | Behaviour::FailingOnWorker(kind) => {
                Err(DeviceError::new(kind, "injected failure"))
            }
            Behaviour::Panicking | Behaviour::PanickingOnWorker => panic!("injected panic"),
            Behaviour::Instant | Behaviour::Blocking | Behaviour::Mixed => Ok(()),
        }
    }

    fn is_zero(&self, offset_bytes: u64, len: usize) -> bool {
        let from = offset_bytes as usize;
        self.data.lock().unwrap()[from..from + len].iter().all(|byte| *byte == 0)
    }

    fn copy_out(&self, offset_bytes: u64, buf: &mut [u8]) {
        let from = offset_bytes as usize;
        buf.copy_from_slice(&self.data.lock().unwrap()[from..from + buf.len()]);
    }

    fn copy_in(&self, offset_bytes: u64, data: &[u8]) {
        let to = offset_bytes as usize;
        self.data.lock().unwrap()[to..to + data.len()].copy_from_slice(data);
    }

    fn check_alignment(&self, data: &[u8]) {
        if !data.as_ptr().addr().is_multiple_of(4096) {
            self.misaligned.store(true, Ordering::SeqCst);
        }
    }
}

impl BlockDevice for MemDevice {
    fn size_bytes(&self) -> u64 {
        self.data.lock().unwrap().len() as u64
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        let progress = self.non_blocking(offset_bytes)?;
        if progress == Progress::Done && !self.is_zero(offset_bytes, buf.len()) {
            self.copy_out(offset_bytes, buf);
        } else {
            // Unspecified content, which must not reach the client.
            buf.fill(0xee);
            if progress == Progress::Done {
                return Ok(Progress::Zeroes);
            }
        }
        Ok(progress)
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.check_alignment(buf);
        self.blocking()?;
        if self.is_zero(offset_bytes, buf.len()) {
            buf.fill(0xee);
            return Ok(Progress::Zeroes);
        }
        self.copy_out(offset_bytes, buf);
        Ok(Progress::Done)
    }

    fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<Progress, DeviceError> {
        let progress = self.non_blocking(offset_bytes)?;
        if progress == Progress::Done {
            self.copy_in(offset_bytes, data);
        }
        Ok(progress)
    }

    fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), DeviceError> {
        self.check_alignment(data);
        self.blocking()?;
        self.copy_in(offset_bytes, data);
        self.fua_writes.fetch_add(usize::from(fua), Ordering::SeqCst);
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.blocking()?;
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn trim(&self, offset_bytes: u64, len_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        self.write_zeroes(offset_bytes, len_bytes, ZeroFlags { fua, ..ZeroFlags::default() })
    }

    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, flags: ZeroFlags) -> Result<(), DeviceError> {
        self.blocking()?;
        if flags.fast && !offset_bytes.is_multiple_of(4096) {
            return Err(DeviceError::new(
                DeviceErrorKind::NotSupported,
                "zeroing an unaligned range is slow",
            ));
        }
        let from = offset_bytes as usize;
        self.data.lock().unwrap()[from..from + len_bytes as usize].fill(0);
        self.fast_zeroes.fetch_add(usize::from(flags.fast), Ordering::SeqCst);
        self.no_hole_zeroes.fetch_add(usize::from(flags.no_hole), Ordering::SeqCst);
        self.fua_writes.fetch_add(usize::from(flags.fua), Ordering::SeqCst);
        Ok(())
    }

    fn cache(&self, _: u64, len_bytes: u64) -> Result<(), DeviceError> {
        self.blocking()?;
        self.cached_bytes.fetch_add(len_bytes as usize, Ordering::SeqCst);
        Ok(())
    }

    fn meta_contexts(&self) -> Vec<String> {
        vec!["base:allocation".to_owned(), "qemu:dirty-bitmap:7".to_owned()]
    }

    /// In blocks of 4 KiB: zeroes are holes, and every third block is dirty.
    fn block_status(
        &self,
        context: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        self.blocking()?;
        let end = offset_bytes + len_bytes;
        let size = self.data.lock().unwrap().len() as u64;
        let mut at = offset_bytes;
        while at < end {
            let block = at / 4096;
            let next = ((block + 1) * 4096).min(end);
            let flags = if context == "base:allocation" {
                let block_end = ((block + 1) * 4096).min(size);
                3 * u32::from(self.is_zero(block * 4096, (block_end - block * 4096) as usize))
            } else {
                u32::from(block.is_multiple_of(3))
            };
            let is_full = extents.len() == max_extents;
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.len_bytes += next - at,
                _ if is_full => return Ok(()),
                _ => extents.push(StatusExtent { len_bytes: next - at, flags }),
            }
            at = next;
        }
        Ok(())
    }
}

/// Exports by name. The empty name is the only export, "busy" is unavailable, "panic" panics.
pub struct Catalog(pub Vec<(String, Arc<MemDevice>)>);

impl ExportCatalog for Catalog {
    fn open(&self, name: &str, _: &blockd_nbd::Client) -> Result<Arc<dyn BlockDevice>, ExportError> {
        assert!(name != "panic", "injected panic");
        if name == "busy" {
            return Err(ExportError::Unavailable { reason: "it is being restored".to_owned() });
        }
        let only = if name.is_empty() && self.0.len() == 1 { self.0.first() } else { None };
        let found = self.0.iter().find(|(known, _)| known == name).or(only);
        found.map(|(_, device)| Arc::clone(device) as Arc<dyn BlockDevice>).ok_or(ExportError::Unknown)
    }

    fn list(&self, _: &blockd_nbd::Client) -> Vec<ExportInfo> {
        let info = |(name, device): &(String, Arc<MemDevice>)| ExportInfo {
            name: name.clone(),
            description: format!("the volume {name}"),
            size_bytes: device.size_bytes(),
            read_only: device.read_only,
        };
        self.0.iter().map(info).collect()
    }
}
