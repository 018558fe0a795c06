//! Volumes as devices of this host's kernel.
//!
//! The kernel is given connections to this daemon's own NBD socket and keeps the device when they die:
//! whoever waits for it goes on waiting. At its start the daemon finds its devices again by their backend and
//! gives them other connections, so that its restart is a pause; a thread does the same for single
//! connections that die.

mod device;
#[cfg(test)]
mod double;
mod driver;
mod keeper;
mod requests;
mod start;
#[cfg(test)]
mod tests;

use crate::{db::AttachmentRow, registry::Registry};
use blockd_api::{
    ApiError, ErrorCode, VolumeName,
    attachments::{self as api, Device},
};
use blockd_extent::VolumeId;
use blockd_nbd::kernel::{AttachOptions, DialError, KernelError, dial};
pub(crate) use device::unescaped;
pub use device::{MountPoint, System};
use driver::Conversation;
use keeper::{Due, Keeper};
use parking_lot::Mutex;
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Instant};
use uuid::Uuid;

/// The attachments of this host.
#[derive(Debug)]
pub struct Attachments {
    shared: Arc<Shared>,
    keeper: Mutex<Option<Keeper>>,
    /// Held while one is made or taken away.
    changes: tokio::sync::Mutex<()>,
}

/// What requests and the keeper share.
#[derive(Debug)]
struct Shared {
    cluster: Uuid,
    nbd_socket: PathBuf,
    system: System,
    held: Mutex<BTreeMap<VolumeId, Held>>,
    /// The volumes whose devices are to be given connections, and when.
    due: Mutex<BTreeMap<VolumeId, Due>>,
    /// Held while a device's size is compared and changed: the size that comes last is the largest.
    sizes: Mutex<()>,
}

/// A volume that is, or should be, attached.
#[derive(Clone, Debug)]
struct Held {
    name: VolumeName,
    row: AttachmentRow,
    /// Why the kernel does not have it.
    problem: Option<String>,
}

impl Held {
    fn device(&self) -> Option<Device> {
        self.row.device.map(Device::new)
    }
}

/// Why something could not be done with a device.
#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(
        "volume {name} has {size_bytes} bytes, less than one block of {block_size_bytes}: it cannot be a device"
    )]
    TooSmall { name: VolumeName, size_bytes: u64, block_size_bytes: u32 },
    #[error("{device} is not there any more, or not this volume's")]
    Gone { device: Device },
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
    /// No attachments yet.
    pub fn new(cluster: Uuid, nbd_socket: PathBuf, system: System) -> Self {
        let (held, due, sizes) = (Mutex::default(), Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { cluster, nbd_socket, system, held, due, sizes });
        Self { shared, keeper: Mutex::new(None), changes: tokio::sync::Mutex::new(()) }
    }

    /// A volume's attachment, as callers see it.
    pub fn describe(&self, volume: VolumeId) -> Option<api::Attachment> {
        let held = self.shared.held.lock().get(&volume).cloned()?;
        Some(self.shared.to_api(volume, &held))
    }

    /// The filesystems that are mounted from a volume's device or its partitions, each by one of its mount
    /// points.
    pub fn filesystems(&self, volume: VolumeId) -> Vec<MountPoint> {
        let Some(held) = self.shared.held.lock().get(&volume).cloned() else { return Vec::new() };
        let backend = self.shared.backend(volume);
        let device = held.device().filter(|device| self.shared.system.backend(*device) == Some(backend));
        device.map_or_else(Vec::new, |device| self.shared.system.filesystems(device))
    }

    /// Why a volume cannot be deleted, if it is attached.
    ///
    /// # Errors
    /// It is attached.
    pub fn check_delete(&self, volume: VolumeId) -> Result<(), ApiError> {
        let held = self.shared.held.lock();
        let Some(held) = held.get(&volume) else { return Ok(()) };
        let name = &held.name;
        let place = held.device().map_or_else(String::new, |device| format!(" at {device}"));
        let message =
            format!("volume {name} is attached{place}: detach it first, `blockctl volume detach {name}`");
        Err(ApiError::new(ErrorCode::VolumeInUse, message))
    }

    /// Ends the thread that reconnects: from now on the devices wait. They are taken up again by the next
    /// start.
    pub fn rest(&self) {
        drop(self.keeper.lock().take());
    }

    /// Tells the kernel the size that a volume has now; nothing to do if it is not attached, or the kernel
    /// knows. Where the kernel refuses, it is told again later. Blocks.
    pub fn resized(&self, registry: &Registry, volume: VolumeId) {
        if let Err(error) = self.resize(registry, volume) {
            tracing::error!(%volume, %error, "the device keeps its old size for now");
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

    /// Has a device be given connections, and its volume's size, by the thread that does so; again and again.
    fn retry(&self, volume: VolumeId) {
        self.shared.due.lock().entry(volume).or_insert_with(|| Due::at(Instant::now()));
        if let Some(keeper) = self.keeper.lock().as_ref()
            && let Err(error) = keeper.wake()
        {
            tracing::warn!(%volume, %error, "the thread that reconnects devices is not woken");
        }
    }

    /// Starts the thread that reconnects, unless it runs and hears of the driver that is loaded now.
    fn start_keeper(&self, kernel: &dyn Conversation) -> Result<(), KernelError> {
        let mut keeper = self.keeper.lock();
        if keeper.as_ref().is_none_or(|keeper| !keeper.hears(kernel)) {
            *keeper = Some(Keeper::start(Arc::clone(&self.shared), kernel)?);
        }
        Ok(())
    }
}

impl Shared {
    /// What the kernel is told of who is behind a device.
    fn backend(&self, volume: VolumeId) -> String {
        format!("blockd:{}:{volume}", self.cluster)
    }

    fn to_api(&self, volume: VolumeId, held: &Held) -> api::Attachment {
        let row = &held.row;
        let device = held.device();
        let connected = device.is_some_and(|device| {
            self.system.backend(device).is_some_and(|found| found == self.backend(volume))
        });
        let problem = match (connected, &held.problem) {
            (true, _) => None,
            (false, Some(problem)) => Some(problem.clone()),
            (false, None) => Some("the device was disconnected by somebody else".to_owned()),
        };
        api::Attachment {
            device,
            connected,
            problem,
            read_only: row.read_only,
            persistent: row.persistent,
            timeout_s: row.timeout_s,
            dead_timeout_s: row.dead_timeout_s,
            connections: row.connections,
            block_size_bytes: row.block_size_bytes,
        }
    }

    /// Makes a volume a device; gives which one.
    fn connect(
        &self,
        kernel: &mut dyn Conversation,
        held: &Held,
        index: Option<u32>,
    ) -> Result<Device, AttachError> {
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
        Ok(Device::new(kernel.connect(index, &dialed, row.read_only, &options)?))
    }

    /// Gives a device other connections in place of dead ones, and the volume's present size.
    fn reconnect(
        &self,
        kernel: &mut dyn Conversation,
        held: &Held,
        device: Device,
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

/// The kernel's devices have whole blocks: what is beyond the last is not to be reached there.
fn whole_blocks(size_bytes: u64, block_size_bytes: u32) -> u64 {
    size_bytes - size_bytes % u64::from(block_size_bytes.max(1))
}
