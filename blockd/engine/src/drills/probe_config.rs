//! Configuration of probes: the commands that a drill may run, chosen by name.

use blockd_api::ProbeName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Maximum timeout of a probe, in seconds.
const MAX_TIMEOUT_S: u32 = 86_400;
/// Minimum of the memory limit, in bytes: a shell and its programs.
const MIN_MEMORY_BYTES: u64 = 64 << 20;

/// Reason why a probe is invalid.
#[derive(Debug, thiserror::Error)]
#[error("probe `{name}`: {what}")]
pub struct ProbeConfigError {
    name: ProbeName,
    what: &'static str,
}

/// Access of a probe to its clone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeAccess {
    /// The filesystem is mounted.
    #[default]
    Mount,
    /// Block device.
    Device,
    /// Unix socket of an NBD server: needs no driver of the kernel.
    Socket,
}

/// Probe of restore drills.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeConfig {
    /// Command line for `/bin/sh -c`.
    pub command: String,
    /// User of the command, not root.
    #[serde(default = "user")]
    pub user: String,
    /// Access to the clone.
    #[serde(default)]
    pub access: ProbeAccess,
    /// Timeout of the command, in seconds.
    #[serde(default = "timeout_s")]
    pub timeout_s: u32,
    /// Limit of the address space of each process, in bytes.
    #[serde(default = "memory_limit_bytes")]
    pub memory_limit_bytes: u64,
}

fn user() -> String {
    "nobody".into()
}

fn timeout_s() -> u32 {
    600
}

fn memory_limit_bytes() -> u64 {
    4 << 30
}

/// Checks probes.
///
/// # Errors
/// A probe is invalid.
pub fn check(probes: &BTreeMap<ProbeName, ProbeConfig>) -> Result<(), ProbeConfigError> {
    for (name, probe) in probes {
        let what = match probe {
            probe if probe.command.trim().is_empty() => "the command is empty",
            probe if probe.command.contains('\0') => "the command has a zero byte",
            probe if probe.user.is_empty() || probe.user == "root" => {
                "the user must not be root, from whom nothing is isolated"
            }
            probe if !(1..=MAX_TIMEOUT_S).contains(&probe.timeout_s) => "timeout_s is not 1 to 86400",
            probe if probe.memory_limit_bytes < MIN_MEMORY_BYTES => {
                "memory_limit_bytes is less than 67108864 (64 MiB)"
            }
            _ => continue,
        };
        return Err(ProbeConfigError { name: name.clone(), what });
    }
    Ok(())
}
