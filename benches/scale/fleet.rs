//! Hosts, their schedules and the sizes of their volumes.

use crate::costs::PACK_BYTES;
use blockd_schedule::{Recurrence, Retention};
use std::error::Error;

/// Number of hosts that the limits of a bucket refer to.
pub const FULL_HOSTS: u32 = 10_000;
/// Volumes of a host.
pub const VOLUMES: u32 = 10;
/// Every n-th backup of a volume is full: default of `full_every` (`blockd/daemon/src/config.rs`).
pub const FULL_EVERY: u64 = 7;
/// Backups that transfer data concurrently: default of `task_concurrency`.
pub const TASKS: u32 = 2;
/// Concurrent pack uploads of a backup: as many as each begins with (`blockd/cloud/src/window.rs`).
pub const UPLOADS: u32 = 4;
/// Concurrent fetches of a hydration: default of `hydration_concurrency`.
pub const FETCHES: u32 = 8;
/// Upload and download rate of a host, in bytes per second: 1 Gbit/s.
pub const HOST_BYTES_PER_S: u64 = 119 << 20;
/// Data of a volume, in bytes (assumption).
pub const VOLUME_BYTES: u64 = 10 << 30;
/// Share of a volume's data that changes in a day, in percent (assumption).
pub const DAILY_CHANGE_PERCENT: u64 = 2;
/// Stored bytes of 100 bytes of data: 462 of 1,153 MiB with LZ4 (`docs/benchmarks.md`, "Backup and restore").
pub const STORED_PERCENT: u64 = 40;
/// Duration of a request without a large body, in milliseconds (assumption).
pub const REQUEST_MS: i64 = 30;

/// Duration of a request that deletes up to 1,000 objects, in milliseconds (assumption).
pub const DELETE_MS: i64 = 300;

/// Schedule of a host.
pub struct Policy {
    pub name: &'static str,
    /// Share of the hosts, in percent.
    pub share: u64,
    pub when: Recurrence,
    pub interval_s: i64,
    pub retain: Retention,
}

impl Policy {
    /// Returns the number of packs of a backup.
    pub fn packs(&self, is_full: bool) -> u64 {
        let bytes = match is_full {
            true => VOLUME_BYTES,
            false => VOLUME_BYTES * DAILY_CHANGE_PERCENT / 100 * self.interval_s.unsigned_abs() / (24 * 3600),
        };
        bytes.div_ceil(PACK_BYTES)
    }
}

/// Returns the schedules of the fleet: all start at full hours, as users write them.
pub fn policies() -> Result<Vec<Policy>, Box<dyn Error>> {
    let policy = |name, share, when: &str, interval_s, retain: &str| -> Result<Policy, Box<dyn Error>> {
        Ok(Policy { name, share, when: when.parse()?, interval_s, retain: retain.parse()? })
    };
    Ok(vec![
        policy("daily", 80, "daily @00:00", 86_400, "daily=7,weekly=4,monthly=12")?,
        policy("six-hourly", 15, "periodic 360", 21_600, "last=8,daily=7,weekly=4")?,
        policy("hourly", 5, "periodic 60", 3_600, "hourly=24,daily=7")?,
    ])
}
