//! Resumption of an earlier daemon's attachments at the start.

use crate::{
    error::{ServiceError, blocking},
    volumes::attachments::{AttachError, AttachmentTable, HeldVolume, requests::Devices},
};
use blockd_api::{attachments::NbdDevice, with_sources};
use blockd_catalog::{AttachmentRow, AttachmentState};
use blockd_nbd_kernel::{DriverSession, KernelError};
use std::{collections::BTreeSet, sync::Arc};

/// Outcome of resuming an attachment.
enum Resumed {
    /// The device was reconnected, or attached again after a boot.
    Connected(NbdDevice),
    /// The device cannot be attached now.
    Failed(String),
    /// The attachment is no longer wanted.
    Ended(&'static str),
}

impl Devices {
    /// Reconnects the devices of an earlier daemon, and attaches persistent ones again after a boot. NBD must
    /// be served already. Failures are logged and recorded in the attachment; devices that exist in the
    /// kernel are retried.
    ///
    /// # Errors
    /// The rows cannot be read.
    pub async fn resume_attachments(self: &Arc<Self>) -> Result<(), ServiceError> {
        let rows = self.db.run(AttachmentRow::all).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let this = Arc::clone(self);
        blocking(move || -> Result<(), ServiceError> {
            this.resume_blocking(rows);
            Ok(())
        })
        .await
    }

    fn resume_blocking(&self, mut rows: Vec<AttachmentRow>) {
        let attachments = &self.attachments;
        // Subscribed before the first device is reconnected, so that no dead connection is missed.
        let mut kernel = attachments.shared.system.open_driver();
        if let Ok(kernel) = &kernel
            && let Err(error) = attachments.start_reconnecting(&**kernel)
        {
            tracing::error!(%error, "starting the reconnect thread failed: dead connections of devices are not replaced");
        }
        let found = attachments.shared.system.backends();
        // Attachments pinned to a device come first, so that no other volume gets their device.
        rows.sort_by_key(|row| !row.pinned);
        for mut row in rows {
            let Some(entry) = self.registry.by_id(row.volume) else { continue };
            let mut held =
                HeldVolume { name: entry.name.clone(), row: row.clone(), problem: None, stale: None };
            let volume = row.volume;
            let carriers = found.get(&attachments.shared.backend(volume)).cloned().unwrap_or_default();
            let (device, resumed) = match choose(&held, &carriers) {
                Ok(Some(device)) if let Some(loss) = crate::volumes::discarded::refuses_devices(&entry) => {
                    held.stale = Some(device);
                    (None, disconnect_stale(&mut kernel, device, &loss))
                }
                Ok(device) => (device, self.resume_one(&mut kernel, &held, device)),
                Err(problem) => (None, Resumed::Failed(problem)),
            };
            match resumed {
                Resumed::Connected(device) => {
                    tracing::info!(%volume, name = %entry.name, %device, "attached again");
                    row.device = Some(device.index());
                    row.state = AttachmentState::Attached;
                }
                Resumed::Failed(problem) => {
                    tracing::error!(%volume, name = %entry.name, problem, "attaching the volume again failed");
                    row.state = AttachmentState::Attached;
                    held.problem = Some(problem);
                    if device.is_some() {
                        row.device = device.map(NbdDevice::index);
                    }
                }
                Resumed::Ended(why) => {
                    tracing::info!(%volume, name = %entry.name, why, "the volume is no longer attached");
                    if let Err(error) = self.db.transaction(|tx| AttachmentRow::remove(tx, volume)) {
                        tracing::warn!(%volume, name = %entry.name, %error, "removing the row of an ended attachment failed; the next start retries");
                    }
                    continue;
                }
            }
            if row != held.row {
                // The kernel's state is authoritative: the next start finds the device without the row.
                if let Err(error) = self.db.transaction(|tx| row.put(tx)) {
                    tracing::warn!(%volume, name = %entry.name, %error, "updating the row of an attachment failed; it keeps its state from before this start");
                }
                held.row = row;
            }
            if held.stale.is_some() {
                // The kernel shows the device until its users close it, even disconnected. The stored row
                // keeps its number for the next start.
                held.row.device = None;
            }
            let waits = held.problem.is_some() && device.is_some();
            attachments.shared.held.lock().insert(volume, held);
            if waits {
                attachments.retry(volume);
            }
        }
    }

    fn resume_one(
        &self,
        kernel: &mut Result<Box<dyn DriverSession>, KernelError>,
        held: &HeldVolume,
        device: Option<NbdDevice>,
    ) -> Resumed {
        let shared = &self.attachments.shared;
        let row = &held.row;
        match (device, row.state) {
            (None, AttachmentState::Attaching) => {
                return Resumed::Ended("the attach request was not completed");
            }
            (None, AttachmentState::Detaching) => return Resumed::Ended("it was being detached"),
            (None, AttachmentState::Attached) if !row.persistent => {
                return Resumed::Ended("the host was rebooted, and the attachment is not persistent");
            }
            _ => {}
        }
        let kernel = match kernel {
            Ok(kernel) => &mut **kernel,
            Err(error) => return Resumed::Failed(with_sources(error)),
        };
        let resumed = match device {
            Some(device) if row.state == AttachmentState::Detaching => {
                return shared.finish_detach(kernel, held, device);
            }
            Some(device) => shared.reconnect(kernel, held, device).map(|()| device),
            None => {
                let last = shared.connect(kernel, held, row.device);
                match last {
                    Err(AttachError::Kernel(KernelError::Busy { .. })) if !row.pinned => {
                        shared.connect(kernel, held, None)
                    }
                    other => other,
                }
            }
        };
        match resumed {
            Ok(device) => Resumed::Connected(device),
            Err(error) => Resumed::Failed(error.to_string()),
        }
    }
}

impl AttachmentTable {
    /// Resumes an interrupted detach, unless the device is in use again, or still in use after a forced
    /// detach, which was not confirmed to its client.
    fn finish_detach(&self, kernel: &mut dyn DriverSession, held: &HeldVolume, device: NbdDevice) -> Resumed {
        let over = Resumed::Ended("it was being detached");
        // Without connections, users of the device would wait for them, and its dirty pages could not be
        // written.
        match self.reconnect(kernel, held, device) {
            Ok(()) => {}
            // Disconnected already; the kernel keeps the device until its users close it.
            Err(AttachError::Gone { .. } | AttachError::Kernel(KernelError::NoDevice { .. })) => return over,
            Err(error) => return Resumed::Failed(error.to_string()),
        }
        let (volume, name) = (held.row.volume, &held.name);
        let _claim = match self.claim(device) {
            Ok(claim) => claim,
            Err(error) => {
                tracing::warn!(%volume, %name, %device, %error, "the interrupted detach was not resumed; the volume stays attached");
                return Resumed::Connected(device);
            }
        };
        match kernel.disconnect(device.index()) {
            Ok(()) => over,
            Err(error) => {
                let error = with_sources(&error);
                tracing::warn!(%volume, %name, %device, error, "the interrupted detach was not resumed; the volume stays attached");
                Resumed::Connected(device)
            }
        }
    }
}

/// Disconnects a device that is older than a loss of acknowledged writes: its users get errors instead of
/// silent success.
fn disconnect_stale(
    kernel: &mut Result<Box<dyn DriverSession>, KernelError>,
    device: NbdDevice,
    loss: &str,
) -> Resumed {
    let disconnected = match kernel {
        Ok(kernel) => kernel.disconnect(device.index()).map_err(|error| with_sources(&error)),
        Err(error) => Err(with_sources(error)),
    };
    match disconnected {
        Ok(()) => Resumed::Failed(format!("{device} was disconnected: {loss}")),
        Err(error) => Resumed::Failed(format!("{device} is left without connections ({error}): {loss}")),
    }
}

/// Selects the volume's device among those with its backend identifier. A device that was detached by force
/// while open carries the identifier until it is closed; its dirty pages predate the detach and must never
/// reach the volume.
fn choose(held: &HeldVolume, carriers: &BTreeSet<NbdDevice>) -> Result<Option<NbdDevice>, String> {
    match (held.device(), held.row.state) {
        (Some(named), _) if carriers.contains(&named) => return Ok(Some(named)),
        // The recorded device does not exist: the others predate it.
        (Some(_), AttachmentState::Attaching | AttachmentState::Detaching) => return Ok(None),
        _ => {}
    }
    let mut carriers_in_order = carriers.iter();
    match (carriers_in_order.next(), carriers_in_order.next()) {
        (only, None) => Ok(only.copied()),
        _ => {
            let devices = carriers.iter().map(NbdDevice::to_string).collect::<Vec<_>>().join(", ");
            Err(format!(
                "{devices} all claim to be the device of this volume: unmount them, then detach and attach the volume"
            ))
        }
    }
}
