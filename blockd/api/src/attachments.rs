//! Volumes as devices of the kernel: attach and detach.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The fewest and the most connections that a device gets unless a number is asked for: one per core, within
/// these.
pub const DEFAULT_CONNECTIONS: std::ops::RangeInclusive<u32> = 2..=4;
/// The logical block size of a device unless another is asked for, in bytes.
pub const DEFAULT_BLOCK_SIZE_BYTES: u32 = 4096;
/// After how long without a reply a request is sent again, unless another time is asked for, in seconds.
pub const DEFAULT_TIMEOUT_S: u64 = 30;
/// How long requests wait for a daemon that is gone, unless another time is asked for, in seconds.
pub const DEFAULT_DEAD_TIMEOUT_S: u64 = 600;

/// Body of `POST /v1/volumes/{volume}/attach`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AttachVolume {
    /// The device; a free one if there is none.
    #[serde(default)]
    pub device: Option<Device>,
    /// The device refuses writes.
    #[serde(default)]
    pub read_only: bool,
    /// It comes back when the daemon starts after the host did.
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
    /// Whether every number is in its range.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
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
    /// Detach although it is in use: whoever uses it gets errors, and what was not written yet is lost.
    #[serde(default)]
    pub force: bool,
}

/// A volume's device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The device; `None` while it has none.
    pub device: Option<Device>,
    /// Whether the kernel has the device now.
    pub connected: bool,
    /// Why it has not; `None` if it has.
    pub problem: Option<String>,
    /// The device refuses writes.
    pub read_only: bool,
    /// It comes back when the daemon starts after the host did.
    pub persistent: bool,
    /// After how long without a reply a request is sent again.
    pub timeout_s: u64,
    /// How long requests wait for a daemon that is gone.
    pub dead_timeout_s: u64,
    /// Its connections.
    pub connections: u32,
    /// Its logical block size.
    pub block_size_bytes: u32,
}

/// The answer to a detach: what was where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Detached {
    /// Name of the volume.
    pub name: String,
    /// The device that it had.
    pub device: Option<Device>,
}

/// A device of the kernel's nbd driver, written `/dev/nbd7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Device {
    index: u32,
}

impl Device {
    /// The device of this number.
    pub const fn new(index: u32) -> Self {
        Self { index }
    }

    /// Its number.
    pub const fn index(self) -> u32 {
        self.index
    }

    /// Its name, `nbd7`.
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
        // The kernel's minor numbers end far below.
        match number.parse() {
            Ok(index) if plain && index < 1 << 20 => Ok(Self { index }),
            _ => Err(wrong()),
        }
    }
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no NBD device: write /dev/nbd0, /dev/nbd1, …")]
pub struct DeviceError {
    /// The text.
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
