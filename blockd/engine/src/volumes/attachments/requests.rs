//! Attach and detach requests.

use crate::{
    error::{ServiceError, blocking},
    host::Admission,
    volumes::{
        attachments::{AttachError, AttachmentTable, Attachments, HeldVolume},
        registry::Registry,
    },
};
use blockd_api::{
    ErrorCode, VolumeName, VolumeRef,
    attachments::{
        self as api, AttachVolume, DEFAULT_BLOCK_SIZE_BYTES, DEFAULT_CONNECTIONS,
        DEFAULT_DEAD_TIMEOUT_SECONDS, DEFAULT_TIMEOUT_SECONDS, DetachVolume, Detached, NbdDevice,
    },
};
use blockd_catalog::{AttachmentRow, AttachmentState, Db};
use blockd_extent::VolumeId;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const DISCONNECT_POLL: Duration = Duration::from_millis(10);

/// Attaches volumes as kernel block devices.
pub struct Devices {
    pub(crate) admission: Arc<Admission>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) db: Arc<Db>,
    pub(crate) registry: Arc<Registry>,
}

impl Devices {
    /// Attaches a volume as a block device of the kernel. Succeeds without a change if the volume is attached
    /// with the same options already.
    ///
    /// # Errors
    /// The kernel has no nbd driver, the device is in use, or the volume is attached with other options.
    pub async fn attach_volume(
        self: &Arc<Self>,
        wanted: &VolumeRef,
        request: AttachVolume,
    ) -> Result<api::Attachment, ServiceError> {
        request.check().map_err(|what| ServiceError::refused(ErrorCode::InvalidRequest, what))?;
        let _changes = self.attachments.changes.lock().await;
        // A deletion that begins now sees the attachment; one that has begun is seen here.
        let admission = self.admission.lock().await;
        let entry = self.registry.find(wanted)?;
        entry.volume()?;
        if let Some(loss) = crate::volumes::discarded::refuses_devices(&entry) {
            let message = format!("attach failed on volume {}: {loss}", entry.name);
            return Err(ServiceError::refused(ErrorCode::VolumeFailed, message));
        }
        let row = AttachmentRow {
            volume: entry.id,
            state: AttachmentState::Attaching,
            device: request.device.map(NbdDevice::index),
            pinned: request.device.is_some(),
            read_only: request.read_only,
            persistent: request.persistent,
            timeout_s: request.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT_SECONDS),
            dead_timeout_s: request.dead_timeout_seconds.unwrap_or(DEFAULT_DEAD_TIMEOUT_SECONDS),
            connections: request.connections.unwrap_or_else(default_connections),
            block_size_bytes: request.block_size_bytes.unwrap_or(DEFAULT_BLOCK_SIZE_BYTES),
        };
        if let Some(attached) = self.attachments.describe(entry.id)
            && attached.connected
        {
            return same_or_refused(&entry.name, attached, &row);
        }
        self.attachments.shared.check_closed(&entry.name, entry.id)?;
        let held = HeldVolume {
            name: entry.name.clone(),
            row: row.clone(),
            problem: Some("the attach is in progress".into()),
            stale: None,
        };
        let before = self.attachments.shared.held.lock().insert(entry.id, held.clone());
        drop(admission);
        let held = match self.make_device(held).await {
            Ok(held) => held,
            Err(error) => {
                self.restore_row(entry.id, before).await;
                return Err(error);
            }
        };
        let row = held.row.clone();
        if let Err(error) = self.db.run(move |tx| row.put(tx)).await {
            self.undo_attach(held, before).await;
            return Err(error.into());
        }
        // A concurrent growth did not see the device.
        let (this, volume) = (Arc::clone(self), entry.id);
        let resized = blocking(move || -> Result<(), ServiceError> {
            this.attachments.resized(&this.registry, volume);
            Ok(())
        });
        resized.await?;
        let attached = self.attachments.shared.to_api(entry.id, &held);
        let device = attached.device.map(|device| device.to_string());
        tracing::info!(volume = %entry.id, name = %entry.name, device, "volume attached");
        Ok(attached)
    }

    /// Stores the row, then attaches the device; the caller stores the row with the device. A crash between
    /// leaves a row by which the next start finds the device.
    async fn make_device(self: &Arc<Self>, mut held: HeldVolume) -> Result<HeldVolume, ServiceError> {
        let noted = held.row.clone();
        self.db.run(move |tx| noted.put(tx)).await?;
        let (this, wanted) = (Arc::clone(self), held.clone());
        let device = blocking(move || -> Result<NbdDevice, ServiceError> {
            let attach = || -> Result<NbdDevice, AttachError> {
                let mut kernel = this.attachments.shared.system.open_driver()?;
                this.attachments.start_reconnecting(&*kernel)?;
                this.attachments.shared.connect(&mut *kernel, &wanted, wanted.row.device)
            };
            attach().map_err(|error| ServiceError::Refused(error.to_api()))
        });
        held.row.device = Some(device.await?.index());
        held.row.state = AttachmentState::Attached;
        held.problem = None;
        self.attachments.shared.held.lock().insert(held.row.volume, held.clone());
        Ok(held)
    }

    /// Detaches a device whose row could not be stored; its client gets an error. If the kernel refuses, the
    /// attachment is kept in memory with its earlier row, so that it can be detached, and the next start
    /// finds it.
    async fn undo_attach(self: &Arc<Self>, held: HeldVolume, before: Option<HeldVolume>) {
        let (volume, name, device) = (held.row.volume, held.name.clone(), held.device());
        let this = Arc::clone(self);
        let gone = blocking(move || -> Result<(), ServiceError> {
            let Some(device) = device else { return Ok(()) };
            let shared = &this.attachments.shared;
            let disconnected =
                shared.system.open_driver().and_then(|mut kernel| kernel.disconnect(device.index()));
            disconnected.map_err(|error| ServiceError::Refused(AttachError::from(error).to_api()))?;
            shared.wait_until_gone(&held, device);
            Ok(())
        });
        match gone.await {
            Ok(()) => self.restore_row(volume, before).await,
            Err(error) => {
                tracing::error!(%volume, %name, device = device.map(|device| device.to_string()), %error, "detaching an unrecorded device failed: detach the volume");
            }
        }
    }

    /// Restores an attachment's previous state. If the row cannot be stored, the next start corrects it.
    async fn restore_row(&self, volume: VolumeId, before: Option<HeldVolume>) {
        let row = before.as_ref().map(|before| before.row.clone());
        {
            let mut held = self.attachments.shared.held.lock();
            match before {
                Some(before) => held.insert(volume, before),
                None => held.remove(&volume),
            };
        }
        let restored = self.db.run(move |tx| match row {
            Some(row) => row.put(tx),
            None => AttachmentRow::remove(tx, volume),
        });
        if let Err(error) = restored.await {
            tracing::warn!(%volume, %error, "restoring the row of a failed attachment failed; the next start retries");
        }
    }

    /// Detaches a volume's device.
    ///
    /// # Errors
    /// The volume is not attached, or the device is in use and `force` is not set.
    pub async fn detach_volume(
        self: &Arc<Self>,
        wanted: &VolumeRef,
        request: &DetachVolume,
    ) -> Result<Detached, ServiceError> {
        let _changes = self.attachments.changes.lock().await;
        let entry = self.registry.find(wanted)?;
        let id = entry.id;
        let held = self.attachments.shared.held.lock().get(&id).cloned();
        let Some(held) = held else {
            let message = format!("volume {} is not attached", entry.name);
            return Err(ServiceError::refused(ErrorCode::VolumeNotAttached, message));
        };
        let force = request.force;
        let this = Arc::clone(self);
        let gone = held.clone();
        blocking(move || this.disconnect(&gone, force)).await?;
        self.attachments.shared.held.lock().remove(&id);
        self.db.run(move |tx| AttachmentRow::remove(tx, id)).await?;
        let device = held.device().or(held.stale);
        tracing::info!(volume = %id, name = %entry.name, force, "volume detached");
        Ok(Detached { volume_name: entry.name.to_string(), device })
    }

    fn disconnect(&self, held: &HeldVolume, force: bool) -> Result<(), ServiceError> {
        let shared = &self.attachments.shared;
        let volume = held.row.volume;
        let backend = shared.backend(volume);
        let is_its = |device: &NbdDevice| shared.system.backend(*device).as_ref() == Some(&backend);
        let Some(device) = held.device().or(held.stale).filter(is_its) else { return Ok(()) };
        // No other process can mount the device while this is open. A stale device is never claimed: its
        // dirty pages must not reach the volume.
        let claim = if force || held.stale.is_some() { None } else { shared.claim(device)? };
        let row = AttachmentRow { state: AttachmentState::Detaching, ..held.row.clone() };
        self.db.transaction(|tx| row.put(tx))?;
        let disconnected =
            shared.system.open_driver().and_then(|mut kernel| kernel.disconnect(device.index()));
        if let Err(error) = disconnected {
            // A stale row is harmless: the next start checks whether the device is in use.
            if let Err(error) = self.db.transaction(|tx| held.row.put(tx)) {
                tracing::warn!(%volume, name = %held.name, %error, "restoring the row failed: an attached volume is recorded as detaching");
            }
            return Err(ServiceError::Refused(AttachError::from(error).to_api()));
        }
        drop(claim);
        // The users of a stale device may keep it.
        if held.stale.is_none() {
            shared.wait_until_gone(held, device);
        }
        Ok(())
    }
}

impl AttachmentTable {
    /// Waits until the kernel has released the connections: a volume can only be deleted without any.
    fn wait_until_gone(&self, held: &HeldVolume, device: NbdDevice) {
        let deadline = Instant::now() + self.system.disconnect_timeout();
        while self.system.is_connected(device) {
            if Instant::now() >= deadline {
                tracing::warn!(volume = %held.row.volume, name = %held.name, %device, "the device is still open after the disconnect timeout");
                break;
            }
            std::thread::sleep(DISCONNECT_POLL);
        }
    }

    /// Refuses a volume that still has an earlier device: its dirty pages must not reach the volume.
    fn check_closed(&self, name: &VolumeName, volume: VolumeId) -> Result<(), ServiceError> {
        let named = self.held.lock().get(&volume).and_then(HeldVolume::device);
        let carriers = self.system.backends().remove(&self.backend(volume)).unwrap_or_default();
        let Some(device) = carriers.into_iter().find(|device| Some(*device) != named) else { return Ok(()) };
        let users = self.users_in_words(device);
        let message = format!(
            "{device} was detached from volume {name} while open, and is still open: {users}: unmount or stop that first"
        );
        Err(ServiceError::refused(ErrorCode::DeviceInUse, message))
    }

    /// Describes the users of a device that cannot be claimed.
    fn users_in_words(&self, device: NbdDevice) -> String {
        let users = self.system.users(device);
        if users.is_empty() {
            return format!("{device} is mounted in another mount namespace, or held by another program");
        }
        users.join(", ")
    }

    /// Opens a device exclusively and flushes its dirty pages to the volume.
    pub(crate) fn claim(&self, device: NbdDevice) -> Result<Option<std::os::fd::OwnedFd>, ServiceError> {
        let users = self.system.users(device);
        let claimed = if users.is_empty() { self.system.claim(device) } else { Ok(None) };
        match claimed {
            Ok(Some(claim)) => {
                rustix::fs::fsync(&claim).map_err(|errno| {
                    let message = format!("flush failed on {device}: {errno}; `--force` detaches without it");
                    ServiceError::refused(ErrorCode::DeviceFailed, message)
                })?;
                Ok(Some(claim))
            }
            Ok(None) => {
                let message = format!("{}: unmount or stop that first", self.users_in_words(device));
                Err(ServiceError::refused(ErrorCode::DeviceInUse, message))
            }
            Err(error) => {
                // The claim is an additional check: /proc and /sys list no users.
                tracing::warn!(%device, %error, "opening the device failed; its users are determined from /proc and /sys only");
                Ok(None)
            }
        }
    }
}

/// Returns the default number of connections: one per core, but enough that one may die.
fn default_connections() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (fewest, most) = (*DEFAULT_CONNECTIONS.start(), *DEFAULT_CONNECTIONS.end());
    u32::try_from(cores).unwrap_or(most).clamp(fewest, most)
}

/// Returns an existing attachment for a request with the same options, or refuses the request.
fn same_or_refused(
    name: &VolumeName,
    attached: api::Attachment,
    row: &AttachmentRow,
) -> Result<api::Attachment, ServiceError> {
    let device_fits = row.device.is_none() || row.device == attached.device.map(NbdDevice::index);
    let same = device_fits
        && attached.read_only == row.read_only
        && attached.persistent == row.persistent
        && attached.timeout_seconds == row.timeout_s
        && attached.dead_timeout_seconds == row.dead_timeout_s
        && attached.connections == row.connections
        && attached.block_size_bytes == row.block_size_bytes;
    if same {
        return Ok(attached);
    }
    let place = attached.device.map_or_else(String::new, |device| format!(" at {device}"));
    let message = format!("volume {name} is attached{place} with other options: detach it first");
    Err(ServiceError::refused(ErrorCode::VolumeAttached, message))
}
