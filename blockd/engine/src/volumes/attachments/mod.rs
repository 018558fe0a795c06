//! Volumes attached as block devices of this host's kernel.
//!
//! The kernel's nbd driver uses connections to the daemon's own NBD socket and keeps the device when they
//! die: requests wait for new connections. At its start the daemon finds its devices by their backend
//! identifier and reconnects them, so that a daemon restart is a pause. A thread does the same for single
//! connections that die.

mod reconnect;
pub mod requests;
mod resume;

use crate::volumes::{
    attachments::reconnect::{ReconnectThread, RetrySchedule},
    registry::Registry,
};
use blockd_api::{
    ApiError, ErrorCode, VolumeName,
    attachments::{self as api, NbdDevice},
    with_sources,
};
use blockd_catalog::AttachmentRow;
use blockd_extent::VolumeId;
use blockd_nbd_kernel::{AttachOptions, DialError, DriverSession, KernelError, MountPoint, System, dial};
use parking_lot::Mutex;
use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Instant};
use uuid::Uuid;

/// Attachments of this host.
#[derive(Debug)]
pub struct Attachments {
    shared: Arc<AttachmentTable>,
    thread: Mutex<Option<ReconnectThread>>,
    /// Held while an attachment is created or removed.
    changes: tokio::sync::Mutex<()>,
}

/// Attachment table shared by request handlers and the reconnect thread.
#[derive(Debug)]
struct AttachmentTable {
    cluster: Uuid,
    nbd_socket: PathBuf,
    system: System,
    held: Mutex<BTreeMap<VolumeId, HeldVolume>>,
    /// Volumes whose devices need new connections, with the schedule of the attempts.
    due: Mutex<BTreeMap<VolumeId, RetrySchedule>>,
    /// Held while a device's size is compared and changed, so that the last size set is the largest.
    sizes: Mutex<()>,
}

/// Volume that is, or should be, attached.
#[derive(Clone, Debug)]
struct HeldVolume {
    name: VolumeName,
    row: AttachmentRow,
    /// Reason why the kernel does not have it.
    problem: Option<String>,
    /// Device that is older than a loss of acknowledged writes: it counts as not connected, gets no sockets.
    stale: Option<NbdDevice>,
}

impl HeldVolume {
    fn device(&self) -> Option<NbdDevice> {
        self.row.device.map(NbdDevice::new)
    }
}

/// Reasons why an operation on a device failed.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error("{}", with_sources(.0))]
    Kernel(KernelError),
    #[error("{}", with_sources(.0))]
    Dial(DialError),
    #[error(
        "attach failed on volume {name}: its size of {size_bytes} bytes is less than one block of {block_size_bytes}"
    )]
    TooSmall { name: VolumeName, size_bytes: u64, block_size_bytes: u32 },
    #[error("start failed on the reconnect thread: {0}")]
    Thread(io::Error),
    #[error("{device} no longer exists, or belongs to another volume")]
    Gone { device: NbdDevice },
}

impl From<KernelError> for AttachError {
    fn from(error: KernelError) -> Self {
        Self::Kernel(error)
    }
}

impl From<DialError> for AttachError {
    fn from(error: DialError) -> Self {
        Self::Dial(error)
    }
}

impl AttachError {
    fn to_api(&self) -> ApiError {
        let code = match self {
            Self::Kernel(KernelError::NoModule) => ErrorCode::NbdModuleMissing,
            Self::Kernel(KernelError::Denied { .. }) => ErrorCode::NotPermitted,
            Self::Kernel(KernelError::Busy { .. }) => ErrorCode::DeviceInUse,
            Self::TooSmall { .. } => ErrorCode::InvalidRequest,
            Self::Dial(DialError::Refused { .. }) => ErrorCode::VolumeFailed,
            _ => ErrorCode::DeviceFailed,
        };
        ApiError::new(code, self.to_string())
    }
}

impl Attachments {
    /// Returns the backend identifier that the kernel stores for a volume's device.
    pub fn backend(&self, volume: VolumeId) -> String {
        self.shared.backend(volume)
    }

    /// Returns the kernel devices of this host.
    pub(crate) fn system(&self) -> &System {
        &self.shared.system
    }

    /// Returns true while the thread that reconnects devices runs.
    pub fn is_reconnecting(&self) -> bool {
        self.thread.lock().as_ref().is_some_and(|thread| !thread.has_ended())
    }

    /// Creates an empty table.
    pub fn new(cluster: Uuid, nbd_socket: PathBuf, system: System) -> Self {
        let (held, due, sizes) = (Mutex::default(), Mutex::default(), Mutex::default());
        let shared = Arc::new(AttachmentTable { cluster, nbd_socket, system, held, due, sizes });
        Self { shared, thread: Mutex::new(None), changes: tokio::sync::Mutex::new(()) }
    }

    /// Returns the attachment of a volume for the API.
    pub fn describe(&self, volume: VolumeId) -> Option<api::Attachment> {
        let held = self.shared.held.lock().get(&volume).cloned()?;
        Some(self.shared.to_api(volume, &held))
    }

    /// Returns the filesystems mounted from a volume's device or its partitions, each with one mount point.
    pub fn filesystems(&self, volume: VolumeId) -> Vec<MountPoint> {
        let Some(held) = self.shared.held.lock().get(&volume).cloned() else { return Vec::new() };
        let backend = self.shared.backend(volume);
        let device = held.device().filter(|device| self.shared.system.backend(*device) == Some(backend));
        device.map_or_else(Vec::new, |device| self.shared.system.filesystems(device))
    }

    /// Refuses to delete an attached volume.
    ///
    /// # Errors
    /// The volume is attached.
    pub fn check_delete(&self, volume: VolumeId) -> Result<(), ApiError> {
        let held = self.shared.held.lock();
        let Some(held) = held.get(&volume) else { return Ok(()) };
        let name = &held.name;
        let place = held.device().map_or_else(String::new, |device| format!(" at {device}"));
        let message =
            format!("volume {name} is attached{place}: detach it first, `blockctl volume detach {name}`");
        Err(ApiError::new(ErrorCode::VolumeInUse, message))
    }

    /// Stops the reconnect thread: from now on the devices wait, until the next start reconnects them.
    pub fn stop_reconnecting(&self) {
        drop(self.thread.lock().take());
    }

    /// Sets the device to the volume's current size if the volume is attached and the kernel has a smaller
    /// one. Retries later if the kernel refuses. Blocks.
    pub fn resized(&self, registry: &Registry, volume: VolumeId) {
        if let Err(error) = self.resize(registry, volume) {
            tracing::error!(%volume, %error, "resizing the device failed; retrying");
            self.retry(volume);
        }
    }

    fn resize(&self, registry: &Registry, volume: VolumeId) -> Result<(), AttachError> {
        let _sizes = self.shared.sizes.lock();
        let Some(held) = self.shared.held.lock().get(&volume).cloned() else { return Ok(()) };
        let backend = self.shared.backend(volume);
        let Some(device) =
            held.device().filter(|device| self.shared.system.backend(*device) == Some(backend.clone()))
        else {
            return Ok(());
        };
        let Some(entry) = registry.by_id(volume) else { return Ok(()) };
        let size_bytes = whole_blocks(entry.size_bytes(), held.row.block_size_bytes);
        if self.shared.system.size_bytes(device).is_some_and(|known| known >= size_bytes) {
            return Ok(());
        }
        self.shared.system.open_driver()?.resize(device.index(), &backend, size_bytes)?;
        Ok(())
    }

    /// Schedules the reconnect thread to reconnect and resize a device until that succeeds.
    fn retry(&self, volume: VolumeId) {
        self.shared.due.lock().entry(volume).or_insert_with(|| RetrySchedule::at(Instant::now()));
        if let Some(thread) = self.thread.lock().as_ref()
            && let Err(error) = thread.wake()
        {
            tracing::warn!(%volume, %error, "waking the reconnect thread failed");
        }
    }

    /// Starts the reconnect thread, unless it runs and is subscribed to the driver that is loaded now.
    fn start_reconnecting(&self, kernel: &dyn DriverSession) -> Result<(), AttachError> {
        let mut thread = self.thread.lock();
        if thread.as_ref().is_none_or(|thread| !thread.is_subscribed_to(kernel)) {
            *thread = Some(ReconnectThread::start(Arc::clone(&self.shared), kernel)?);
        }
        Ok(())
    }
}

impl AttachmentTable {
    /// Returns the backend identifier that the kernel stores for a volume's device.
    fn backend(&self, volume: VolumeId) -> String {
        format!("blockd:{}:{volume}", self.cluster)
    }

    fn to_api(&self, volume: VolumeId, held: &HeldVolume) -> api::Attachment {
        let row = &held.row;
        let device = held.device();
        let connected = device.is_some_and(|device| {
            self.system.backend(device).is_some_and(|found| found == self.backend(volume))
        });
        let problem = match (connected, &held.problem) {
            (true, _) => None,
            (false, Some(problem)) => Some(problem.clone()),
            (false, None) => Some("the device was disconnected by another program".to_owned()),
        };
        api::Attachment {
            device,
            connected,
            problem,
            read_only: row.read_only,
            persistent: row.persistent,
            timeout_seconds: row.timeout_s,
            dead_timeout_seconds: row.dead_timeout_s,
            connections: row.connections,
            block_size_bytes: row.block_size_bytes,
        }
    }

    /// Attaches a volume to the device with this index, or to a free one, and returns the device.
    fn connect(
        &self,
        kernel: &mut dyn DriverSession,
        held: &HeldVolume,
        index: Option<u32>,
    ) -> Result<NbdDevice, AttachError> {
        let row = &held.row;
        let mut dialed = dial(&self.nbd_socket, held.name.as_str(), row.connections as usize)?;
        let size_bytes = dialed.size_bytes;
        dialed.size_bytes = whole_blocks(size_bytes, row.block_size_bytes);
        if dialed.size_bytes == 0 {
            let (name, block_size_bytes) = (held.name.clone(), row.block_size_bytes);
            return Err(AttachError::TooSmall { name, size_bytes, block_size_bytes });
        }
        let options = AttachOptions {
            block_size_bytes: row.block_size_bytes,
            request_timeout_s: row.timeout_s,
            dead_timeout_s: row.dead_timeout_s,
            backend: self.backend(row.volume),
        };
        Ok(NbdDevice::new(kernel.connect(index, &dialed, row.read_only, &options)?))
    }

    /// Replaces a device's dead connections, and sets the volume's current size.
    fn reconnect(
        &self,
        kernel: &mut dyn DriverSession,
        held: &HeldVolume,
        device: NbdDevice,
    ) -> Result<(), AttachError> {
        let backend = self.backend(held.row.volume);
        if self.system.backend(device).as_ref() != Some(&backend) {
            return Err(AttachError::Gone { device });
        }
        let dialed = dial(&self.nbd_socket, held.name.as_str(), held.row.connections as usize)?;
        kernel.reconnect(device.index(), &backend, &dialed.sockets)?;
        let _sizes = self.sizes.lock();
        let size_bytes = whole_blocks(dialed.size_bytes, held.row.block_size_bytes);
        if self.system.size_bytes(device).is_some_and(|known| known < size_bytes) {
            kernel.resize(device.index(), &backend, size_bytes)?;
        }
        Ok(())
    }
}

/// Rounds down to whole blocks: kernel devices have no partial block at the end.
fn whole_blocks(size_bytes: u64, block_size_bytes: u32) -> u64 {
    size_bytes - size_bytes % u64::from(block_size_bytes.max(1))
}
