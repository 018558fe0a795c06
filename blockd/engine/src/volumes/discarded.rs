//! Reports of acknowledged writes that a start may have discarded.
//!
//! The volume stores the record. The daemon logs it, raises an event, lists it as a problem in `status`,
//! fails the first FLUSH of every connection of a client that may have survived (`UnreportedLoss`), and does
//! not reconnect kernel devices that are older than the loss.

use crate::volumes::registry::VolumeEntry;
use blockd_api::{format_time, volumes as api};
use blockd_nbd::{Client, DeviceError, DeviceErrorKind};
use blockd_volume::{DiscardedWrites, SurvivingClients, Volume};
use jiff::Timestamp;
use std::sync::atomic::{AtomicBool, Ordering};

/// Loss that may have to be reported to the client of a connection.
#[derive(Debug)]
pub struct UnreportedLoss(AtomicBool);

impl UnreportedLoss {
    /// Returns the state of a new connection.
    pub fn of(volume: &Volume, client: &Client) -> Self {
        let concerns = |loss: DiscardedWrites| loss.clients == SurvivingClients::All || !client.is_local;
        Self(AtomicBool::new(volume.discarded_writes().is_some_and(concerns)))
    }

    /// Returns true if the next request for durability may have to report a loss. Does not block.
    pub fn is_pending(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails the first request for durability, unless the loss was acknowledged since.
    pub fn report(&self, volume: &Volume) -> Result<(), DeviceError> {
        if !self.is_pending() || !self.0.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        volume.discarded_writes().map_or(Ok(()), |loss| {
            let message = format!("flush failed on volume {}: {}", volume.id(), describe(&loss));
            Err(DeviceError::new(DeviceErrorKind::Io, message))
        })
    }
}

/// Describes the loss in one line.
pub fn describe(loss: &DiscardedWrites) -> String {
    let clients = match loss.clients {
        SurvivingClients::All => "clients that outlived the daemon",
        SurvivingClients::Remote => "clients on other hosts",
    };
    let found = format_time(found(loss));
    format!(
        "acknowledged but unflushed writes of {clients} may have been discarded at {found}: {}",
        loss.cause
    )
}

/// Returns the next action for an administrator.
pub fn hint(entry: &VolumeEntry) -> String {
    let name = &entry.name;
    format!(
        "check the filesystems on volume {name}, then: blockctl volume update {name} --acknowledge-discarded-writes"
    )
}

pub(crate) fn found(loss: &DiscardedWrites) -> Timestamp {
    let ms = i64::try_from(loss.found_unix_ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
}

/// Returns the loss of a volume for the API.
pub fn shown(volume: &Volume) -> Option<api::DiscardedWrites> {
    let loss = volume.discarded_writes()?;
    let clients = match loss.clients {
        SurvivingClients::All => api::SurvivingClients::All,
        SurvivingClients::Remote => api::SurvivingClients::Remote,
    };
    Some(api::DiscardedWrites { clients, cause: loss.cause.to_string(), found_at: found(&loss) })
}

/// Returns the reason why a kernel device older than the loss must not be reconnected.
pub fn refuses_devices(entry: &VolumeEntry) -> Option<String> {
    let loss = entry.volume().ok()?.discarded_writes()?;
    (loss.clients == SurvivingClients::All).then(|| format!("{}; {}", describe(&loss), hint(entry)))
}
