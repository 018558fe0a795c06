//! Kernel devices: attach and detach.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Default range of connections of a device: one per core within this range.
pub const DEFAULT_CONNECTIONS: std::ops::RangeInclusive<u32> = 2..=4;
/// Default logical block size of a device, in bytes.
pub const DEFAULT_BLOCK_SIZE_BYTES: u32 = 4096;
/// Default timeout before a request is sent again, in seconds.
pub const DEFAULT_TIMEOUT_S: u64 = 30;
/// Default time that requests wait for an absent daemon, in seconds.
pub const DEFAULT_DEAD_TIMEOUT_S: u64 = 600;

/// Body of `POST /v1/volumes/{volume}/attach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachVolume {
    /// Device; a free one by default.
    #[serde(default)]
    pub device: Option<Device>,
    /// Read-only device.
    #[serde(default)]
    pub read_only: bool,
    /// Attach again at each start of the daemon.
    #[serde(default)]
    pub persistent: bool,
    /// See [`DEFAULT_TIMEOUT_S`]; 1 to 3600.
    #[serde(default)]
    pub timeout_s: Option<u64>,
    /// See [`DEFAULT_DEAD_TIMEOUT_S`]; 1 to 604800.
    #[serde(default)]
    pub dead_timeout_s: Option<u64>,
    /// See [`DEFAULT_CONNECTIONS`]; 1 to 16.
    #[serde(default)]
    pub connections: Option<u32>,
    /// See [`DEFAULT_BLOCK_SIZE_BYTES`]; 512, 1024, 2048 or 4096.
    #[serde(default)]
    pub block_size_bytes: Option<u32>,
}

impl AttachVolume {
    /// Checks the range of each number.
    ///
    /// # Errors
    /// A description of the invalid value and the valid range.
    pub fn check(&self) -> Result<(), String> {
        if self.timeout_s.is_some_and(|value| !(1..=3600).contains(&value)) {
            return Err("the timeout must be 1 s to 1 h".into());
        }
        if self.dead_timeout_s.is_some_and(|value| !(1..=604_800).contains(&value)) {
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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DetachVolume {
    /// Detach a device in use: its users get errors, and unwritten data is lost.
    #[serde(default)]
    pub force: bool,
}

/// Attachment of a volume to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// Device; `None` while there is none.
    pub device: Option<Device>,
    /// True if the kernel device is connected.
    pub connected: bool,
    /// Reason for a missing connection; `None` if connected.
    pub problem: Option<String>,
    /// Read-only device.
    pub read_only: bool,
    /// Attach again at each start of the daemon.
    pub persistent: bool,
    /// Timeout before a request is sent again, in seconds.
    pub timeout_s: u64,
    /// Time that requests wait for an absent daemon, in seconds.
    pub dead_timeout_s: u64,
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
    pub name: String,
    /// Detached device.
    pub device: Option<Device>,
}

/// Device of the kernel's nbd driver, such as `/dev/nbd7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Device {
    index: u32,
}

impl Device {
    /// Returns the device of this number.
    pub const fn new(index: u32) -> Self {
        Self { index }
    }

    /// Returns the number.
    pub const fn index(self) -> u32 {
        self.index
    }

    /// Returns the name, such as `nbd7`.
    pub fn name(self) -> String {
        format!("nbd{}", self.index)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/nbd{}", self.index)
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

impl TryFrom<String> for Device {
    type Error = DeviceError;
    fn try_from(text: String) -> Result<Self, DeviceError> {
        text.parse()
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let wrong = || DeviceError { given: text.to_owned() };
        let number = text.strip_prefix("/dev/").unwrap_or(text).strip_prefix("nbd").ok_or_else(wrong)?;
        let plain =
            number.bytes().all(|byte| byte.is_ascii_digit()) && (number == "0" || !number.starts_with('0'));
        // The kernel's minor numbers are far smaller.
        match number.parse() {
            Ok(index) if plain && index < 1 << 20 => Ok(Self { index }),
            _ => Err(wrong()),
        }
    }
}

/// Text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no NBD device: write /dev/nbd0, /dev/nbd1, …")]
pub struct DeviceError {
    /// Given text.
    pub given: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_written_in_one_way() {
        assert_eq!("/dev/nbd12".parse::<Device>().unwrap(), Device::new(12));
        assert_eq!("nbd0".parse::<Device>().unwrap().to_string(), "/dev/nbd0");
        for wrong in
            ["", "/dev/nbd", "/dev/nbd01", "/dev/nbd0p1", "/dev/nbd+1", "/dev/sda", "/dev/nbd99999999999"]
        {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
        assert_eq!(serde_json::to_string(&Device::new(3)).unwrap(), "\"/dev/nbd3\"");
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        AttachVolume::default().check().unwrap();
        for wrong in [
            AttachVolume { timeout_s: Some(0), ..Default::default() },
            AttachVolume { dead_timeout_s: Some(604_801), ..Default::default() },
            AttachVolume { connections: Some(17), ..Default::default() },
            AttachVolume { block_size_bytes: Some(8192), ..Default::default() },
        ] {
            assert!(wrong.check().unwrap_err().contains("must be"), "{wrong:?}");
        }
    }
}
