//! Configuration of external secrets, which the daemon reads on demand.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Sources of external secrets, and the caching of their values.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecretsConfig {
    /// Maximum age of cached program output, in seconds.
    pub cache_s: u64,
    /// Timeout of a task, at its start, for a secret that cannot be read, in seconds.
    pub wait_s: u64,
    /// Timeout of a program that prints a secret, in milliseconds.
    pub command_timeout_ms: u64,
    /// Directory of all secret files and programs.
    pub file_dir: PathBuf,
}

impl Default for SecretsConfig {
    fn default() -> Self {
        Self {
            cache_s: 3600,
            wait_s: 120,
            command_timeout_ms: 10_000,
            file_dir: "/etc/blockd/secrets".into(),
        }
    }
}

/// A setting out of its range.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key} is {given}: expected {wanted}")]
pub struct SettingError {
    /// Name of the setting.
    pub key: &'static str,
    /// Given value.
    pub given: String,
    /// Valid values.
    pub wanted: &'static str,
}

impl SecretsConfig {
    /// Checks the range of each setting.
    ///
    /// # Errors
    /// A value is out of its range.
    pub fn check(&self) -> Result<(), SettingError> {
        let bounded = [
            ("secrets.cache_s", self.cache_s, 1..=604_800, "1 to 604800 (a week)"),
            ("secrets.wait_s", self.wait_s, 0..=86_400, "0 to 86400 (a day)"),
            ("secrets.command_timeout_ms", self.command_timeout_ms, 100..=300_000, "100 to 300000"),
        ];
        for (key, given, range, wanted) in bounded {
            if !range.contains(&given) {
                return Err(SettingError { key, given: given.to_string(), wanted });
            }
        }
        if !self.file_dir.is_absolute() {
            let given = "a relative path".into();
            return Err(SettingError { key: "secrets.file_dir", given, wanted: "an absolute path" });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_settings_out_of_range_are_refused_by_name() {
        let default = SecretsConfig::default;
        default().check().unwrap();
        for (config, key) in [
            (SecretsConfig { cache_s: 0, ..default() }, "secrets.cache_s"),
            (SecretsConfig { wait_s: 86_401, ..default() }, "secrets.wait_s"),
            (SecretsConfig { command_timeout_ms: 99, ..default() }, "secrets.command_timeout_ms"),
            (SecretsConfig { file_dir: "x".into(), ..default() }, "secrets.file_dir"),
        ] {
            assert_eq!(config.check().unwrap_err().key, key);
        }
    }
}
