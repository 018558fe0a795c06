//! Taking up what an earlier daemon attached.

use super::{AttachError, Held};
use crate::{
    core::Core,
    db::{AttachmentRow, AttachmentState},
    error::{ServiceError, blocking},
};
use blockd_api::attachments::Device;
use blockd_nbd::kernel::{Kernel, KernelError};
use std::{collections::BTreeMap, sync::Arc};

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
    /// Gives the devices of an earlier daemon connections to this one, and attaches after a boot what is to come back.
    /// NBD must be served already. A device that cannot be had is logged and marked.
    ///
    /// # Errors
    /// The database fails.
    pub async fn take_up_attachments(self: &Arc<Self>) -> Result<(), ServiceError> {
        let rows = self.db.run(AttachmentRow::all).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let core = Arc::clone(self);
        blocking(move || core.take_up_blocking(rows)).await
    }

    fn take_up_blocking(&self, rows: Vec<AttachmentRow>) -> Result<(), ServiceError> {
        let attachments = &self.attachments;
        // The news begin before the first device is given connections: what dies later is heard of.
        let mut kernel = Kernel::open();
        if let Ok(kernel) = &kernel
            && let Err(error) = attachments.start_keeper(kernel)
        {
            tracing::error!(%error, "connections of devices that die are not replaced");
        }
        let found = attachments.shared.system.backends();
        for mut row in rows {
            let Some(entry) = self.registry.by_id(row.volume) else { continue };
            let mut held = Held { name: entry.name.clone(), row: row.clone(), problem: None };
            let volume = row.volume;
            match self.take_up_one(&mut kernel, &held, &found) {
                Taken::Up(device) => {
                    tracing::info!(%volume, name = %entry.name, %device, "attached again");
                    row.device = Some(device.index());
                    row.state = AttachmentState::Attached;
                }
                Taken::Down(problem) => {
                    tracing::error!(%volume, name = %entry.name, problem, "the volume cannot be attached again");
                    row.state = AttachmentState::Attached;
                    held.problem = Some(problem);
                }
                Taken::Over(why) => {
                    tracing::info!(%volume, name = %entry.name, why, "the volume is not attached any more");
                    self.db.transaction(|tx| AttachmentRow::remove(tx, volume))?;
                    continue;
                }
            }
            if row != held.row {
                self.db.transaction(|tx| row.put(tx))?;
                held.row = row;
            }
            attachments.shared.held.lock().insert(volume, held);
        }
        Ok(())
    }

    fn take_up_one(
        &self,
        kernel: &mut Result<Kernel, KernelError>,
        held: &Held,
        found: &BTreeMap<String, Device>,
    ) -> Taken {
        let shared = &self.attachments.shared;
        let row = &held.row;
        let device = found.get(&shared.backend(row.volume)).copied();
        match (device, row.state) {
            (None, AttachmentState::Attaching) => return Taken::Over("nobody was told of it"),
            (None, AttachmentState::Detaching) => return Taken::Over("it was being detached"),
            (None, AttachmentState::Attached) if !row.persistent => {
                return Taken::Over("the host was started since, and it is not persistent");
            }
            _ => {}
        }
        let kernel = match kernel {
            Ok(kernel) => kernel,
            Err(error) => return Taken::Down(error.to_string()),
        };
        let taken = match device {
            Some(device) if row.state == AttachmentState::Detaching => {
                return match kernel.disconnect(device.index()) {
                    Ok(()) => Taken::Over("it was being detached"),
                    Err(error) => Taken::Down(error.to_string()),
                };
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
