//! Names of kernel devices.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Device of the kernel's nbd driver, such as `/dev/nbd7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NbdDevice {
    index: u32,
}

impl NbdDevice {
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

impl fmt::Display for NbdDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/dev/nbd{}", self.index)
    }
}

impl From<NbdDevice> for String {
    fn from(device: NbdDevice) -> Self {
        device.to_string()
    }
}

impl TryFrom<String> for NbdDevice {
    type Error = NbdDeviceError;
    fn try_from(text: String) -> Result<Self, NbdDeviceError> {
        text.parse()
    }
}

impl FromStr for NbdDevice {
    type Err = NbdDeviceError;

    fn from_str(text: &str) -> Result<Self, NbdDeviceError> {
        let wrong = || NbdDeviceError { given: text.to_owned() };
        let number = text.strip_prefix("/dev/").unwrap_or(text).strip_prefix("nbd").ok_or_else(wrong)?;
        let plain =
            number.bytes().all(|byte| byte.is_ascii_digit()) && (number == "0" || !number.starts_with('0'));
        // The kernel's minor numbers have 20 bits.
        match number.parse() {
            Ok(index) if plain && index < 1 << 20 => Ok(Self { index }),
            _ => Err(wrong()),
        }
    }
}

/// Text that is not the name of an NBD device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not an NBD device: expected /dev/nbd0, /dev/nbd1, …")]
pub struct NbdDeviceError {
    /// Given text.
    pub given: String,
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for NbdDevice {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NbdDevice".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Device of the kernel's nbd driver",
            "type": "string",
            "pattern": "^(/dev/)?nbd(0|[1-9][0-9]{0,6})$",
            "examples": ["/dev/nbd7"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_parses_with_and_without_dev_prefix() {
        assert_eq!("/dev/nbd12".parse::<NbdDevice>().unwrap(), NbdDevice::new(12));
        assert_eq!("nbd0".parse::<NbdDevice>().unwrap().to_string(), "/dev/nbd0");
        for wrong in
            ["", "/dev/nbd", "/dev/nbd01", "/dev/nbd0p1", "/dev/nbd+1", "/dev/sda", "/dev/nbd99999999999"]
        {
            assert!(wrong.parse::<NbdDevice>().is_err(), "{wrong}");
        }
    }
}
