//! Kernel devices: attach and detach.

pub use blockd_extent::{NbdDevice, NbdDeviceError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Default range of connections of a device: one per core within this range.
pub const DEFAULT_CONNECTIONS: std::ops::RangeInclusive<u32> = 2..=4;
/// Default logical block size of a device, in bytes.
pub const DEFAULT_BLOCK_SIZE_BYTES: u32 = 4096;
/// Default timeout before a request is sent again, in seconds.
pub const DEFAULT_TIMEOUT_SECONDS: u64 = 30;
/// Default time that requests wait for an absent daemon, in seconds.
pub const DEFAULT_DEAD_TIMEOUT_SECONDS: u64 = 600;

/// Body of `POST /v1/volumes/{volume}/attach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AttachVolume {
    /// Device; a free one by default.
    pub device: Option<NbdDevice>,
    /// Read-only device.
    pub read_only: bool,
    /// Attach again at each start of the daemon.
    pub persistent: bool,
    /// See [`DEFAULT_TIMEOUT_SECONDS`]; 1 to 3600.
    pub timeout_seconds: Option<u64>,
    /// See [`DEFAULT_DEAD_TIMEOUT_SECONDS`]; 1 to 604800.
    pub dead_timeout_seconds: Option<u64>,
    /// See [`DEFAULT_CONNECTIONS`]; 1 to 16.
    pub connections: Option<u32>,
    /// See [`DEFAULT_BLOCK_SIZE_BYTES`]; 512, 1024, 2048 or 4096.
    pub block_size_bytes: Option<u32>,
}

impl AttachVolume {
    /// Checks the range of each number.
    ///
    /// # Errors
    /// A description of the invalid value and the valid range.
    pub fn check(&self) -> Result<(), String> {
        if self.timeout_seconds.is_some_and(|value| !(1..=3600).contains(&value)) {
            return Err("the timeout must be 1 s to 1 h".into());
        }
        if self.dead_timeout_seconds.is_some_and(|value| !(1..=604_800).contains(&value)) {
            return Err("the dead timeout must be 1 s to 7 days".into());
        }
        if self.connections.is_some_and(|value| !(1..=16).contains(&value)) {
            return Err("the number of connections must be 1 to 16".into());
        }
        if self.block_size_bytes.is_some_and(|value| ![512, 1024, 2048, 4096].contains(&value)) {
            return Err("the block size must be 512, 1024, 2048 or 4096 bytes".into());
        }
        Ok(())
    }
}

/// Body of `POST /v1/volumes/{volume}/detach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DetachVolume {
    /// Detach a device in use: its users get errors, and unwritten data is lost.
    pub force: bool,
}

/// Attachment of a volume to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Device; `None` while there is none.
    pub device: Option<NbdDevice>,
    /// True if the kernel device is connected.
    pub connected: bool,
    /// Reason for a missing connection; `None` if connected.
    pub problem: Option<String>,
    /// Read-only device.
    pub read_only: bool,
    /// Attach again at each start of the daemon.
    pub persistent: bool,
    /// Timeout before a request is sent again, in seconds.
    pub timeout_seconds: u64,
    /// Time that requests wait for an absent daemon, in seconds.
    pub dead_timeout_seconds: u64,
    /// Number of connections.
    pub connections: u32,
    /// Logical block size.
    pub block_size_bytes: u32,
}

/// Reply to `POST /v1/volumes/{volume}/detach`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Detached {
    /// Name of the volume.
    pub volume_name: String,
    /// Detached device.
    pub device: Option<NbdDevice>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_refused() {
        AttachVolume::default().check().unwrap();
        for wrong in [
            AttachVolume { timeout_seconds: Some(0), ..Default::default() },
            AttachVolume { dead_timeout_seconds: Some(604_801), ..Default::default() },
            AttachVolume { connections: Some(17), ..Default::default() },
            AttachVolume { block_size_bytes: Some(8192), ..Default::default() },
        ] {
            assert!(wrong.check().unwrap_err().contains("must be"), "{wrong:?}");
        }
    }
}
