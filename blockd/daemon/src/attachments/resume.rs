//! Taking up what an earlier daemon attached.

use super::{AttachError, Held, Shared, driver::Conversation};
use crate::{
    core::Core,
    db::{AttachmentRow, AttachmentState},
    error::{ServiceError, blocking},
};
use blockd_api::attachments::Device;
use blockd_nbd::kernel::KernelError;
use std::{collections::BTreeSet, sync::Arc};

/// What has become of an attachment.
enum Taken {
    /// The device has connections again, or has them for the first time since the boot.
    Up(Device),
    /// It cannot be had now.
    Down(String),
    /// It is not wanted any more.
    Over(&'static str),
}

impl Core {
    /// Gives the devices of an earlier daemon connections to this one, and attaches after a boot what is to
    /// come back. NBD must be served already. A device that cannot be had is logged and marked, and one that
    /// the kernel has is tried again.
    ///
    /// # Errors
    /// The rows cannot be read.
    pub async fn take_up_attachments(self: &Arc<Self>) -> Result<(), ServiceError> {
        let rows = self.db.run(AttachmentRow::all).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let core = Arc::clone(self);
        blocking(move || -> Result<(), ServiceError> {
            core.take_up_blocking(rows);
            Ok(())
        })
        .await
    }

    fn take_up_blocking(&self, mut rows: Vec<AttachmentRow>) {
        let attachments = &self.attachments;
        // The news begin before the first device is given connections: what dies later is heard of.
        let mut kernel = attachments.shared.system.open_driver();
        if let Ok(kernel) = &kernel
            && let Err(error) = attachments.start_keeper(&**kernel)
        {
            tracing::error!(%error, "connections of devices that die are not replaced");
        }
        let found = attachments.shared.system.backends();
        // A device that must be a certain one is not given to one that may be any.
        rows.sort_by_key(|row| !row.pinned);
        for mut row in rows {
            let Some(entry) = self.registry.by_id(row.volume) else { continue };
            let mut held = Held { name: entry.name.clone(), row: row.clone(), problem: None };
            let volume = row.volume;
            let carriers = found.get(&attachments.shared.backend(volume)).cloned().unwrap_or_default();
            let (device, taken) = match choose(&held, &carriers) {
                Ok(Some(device)) if let Some(loss) = crate::discarded::refuses_devices(&entry) => {
                    (None, give_up(&mut kernel, device, &loss))
                }
                Ok(device) => (device, self.take_up_one(&mut kernel, &held, device)),
                Err(problem) => (None, Taken::Down(problem)),
            };
            match taken {
                Taken::Up(device) => {
                    tracing::info!(%volume, name = %entry.name, %device, "attached again");
                    row.device = Some(device.index());
                    row.state = AttachmentState::Attached;
                }
                Taken::Down(problem) => {
                    tracing::error!(%volume, name = %entry.name, problem, "the volume cannot be attached again");
                    row.state = AttachmentState::Attached;
                    held.problem = Some(problem);
                    if device.is_some() {
                        row.device = device.map(Device::index);
                    }
                }
                Taken::Over(why) => {
                    tracing::info!(%volume, name = %entry.name, why, "the volume is not attached any more");
                    if let Err(error) = self.db.transaction(|tx| AttachmentRow::remove(tx, volume)) {
                        tracing::warn!(%volume, name = %entry.name, %error, "the row of an attachment that is over is left until the next start");
                    }
                    continue;
                }
            }
            if row != held.row {
                // What the kernel has is what counts: the next start finds the device without the row.
                if let Err(error) = self.db.transaction(|tx| row.put(tx)) {
                    tracing::warn!(%volume, name = %entry.name, %error, "the row of an attachment is left as it was before this start");
                }
                held.row = row;
            }
            let waits = held.problem.is_some() && device.is_some();
            attachments.shared.held.lock().insert(volume, held);
            if waits {
                attachments.retry(volume);
            }
        }
    }

    fn take_up_one(
        &self,
        kernel: &mut Result<Box<dyn Conversation>, KernelError>,
        held: &Held,
        device: Option<Device>,
    ) -> Taken {
        let shared = &self.attachments.shared;
        let row = &held.row;
        match (device, row.state) {
            (None, AttachmentState::Attaching) => return Taken::Over("nobody was told of it"),
            (None, AttachmentState::Detaching) => return Taken::Over("it was being detached"),
            (None, AttachmentState::Attached) if !row.persistent => {
                return Taken::Over("the host was started since, and it is not persistent");
            }
            _ => {}
        }
        let kernel = match kernel {
            Ok(kernel) => &mut **kernel,
            Err(error) => return Taken::Down(error.to_string()),
        };
        let taken = match device {
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
        match taken {
            Ok(device) => Taken::Up(device),
            Err(error) => Taken::Down(error.to_string()),
        }
    }
}

impl Shared {
    /// Goes on with a detach that was cut off, unless somebody has begun to use the device since, or it was
    /// forced and somebody still does: nobody was told that it is gone.
    fn finish_detach(&self, kernel: &mut dyn Conversation, held: &Held, device: Device) -> Taken {
        let over = Taken::Over("it was being detached");
        // Without connections, who uses the device would wait for them, and so would what is still to be
        // written.
        match self.reconnect(kernel, held, device) {
            Ok(()) => {}
            // The kernel has been told already and waits for whoever has it open.
            Err(AttachError::Gone { .. } | AttachError::Kernel(KernelError::NoDevice { .. })) => return over,
            Err(error) => return Taken::Down(error.to_string()),
        }
        let (volume, name) = (held.row.volume, &held.name);
        let _claim = match self.claim(device) {
            Ok(claim) => claim,
            Err(error) => {
                tracing::warn!(%volume, %name, %device, %error, "the volume was being detached, and stays attached");
                return Taken::Up(device);
            }
        };
        match kernel.disconnect(device.index()) {
            Ok(()) => over,
            Err(error) => {
                tracing::warn!(%volume, %name, %device, %error, "the volume was being detached, and stays attached");
                Taken::Up(device)
            }
        }
    }
}

/// Takes away a device that is older than a loss of acknowledged writes: its users get errors instead of
/// silent success.
fn give_up(kernel: &mut Result<Box<dyn Conversation>, KernelError>, device: Device, loss: &str) -> Taken {
    let disconnected = match kernel {
        Ok(kernel) => kernel.disconnect(device.index()).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match disconnected {
        Ok(()) => Taken::Down(format!("{device} was disconnected: {loss}")),
        Err(error) => Taken::Down(format!("{device} is left without connections ({error}): {loss}")),
    }
}

/// Which of the devices that carry a volume's backend is its device. One that was taken away by force while
/// it was open carries it too, until it is closed, and what is still to be written there is of a time before:
/// it must never come into the volume.
fn choose(held: &Held, carriers: &BTreeSet<Device>) -> Result<Option<Device>, String> {
    match (held.device(), held.row.state) {
        (Some(named), _) if carriers.contains(&named) => return Ok(Some(named)),
        // It got no device, or has none any more: the others are from before.
        (Some(_), AttachmentState::Attaching | AttachmentState::Detaching) => return Ok(None),
        _ => {}
    }
    let mut carriers_in_order = carriers.iter();
    match (carriers_in_order.next(), carriers_in_order.next()) {
        (only, None) => Ok(only.copied()),
        _ => {
            let devices = carriers.iter().map(Device::to_string).collect::<Vec<_>>().join(", ");
            Err(format!(
                "{devices} all claim to be this volume's device: unmount them, then detach and attach the volume"
            ))
        }
    }
}
