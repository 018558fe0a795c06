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
/// Stored bytes of 100 bytes of data: 305 of 1,153 MiB with `auto` (`docs/benchmarks.md`, "Backup and
/// restore").
pub const STORED_PERCENT: u64 = 26;
/// Sources that a full backup references at most (`blockd/cloud/src/synthetic.rs`).
const MAX_PLANNED_SOURCES: u64 = 256;
/// Share of the blocks of a source below which they are stored again (`SPARSE_SHARE`).
const SPARSE_SHARE: f64 = 0.25;
/// Share of the volume that a full backup stores again at most (`MOVED_SHARE`).
const MOVED_SHARE: u64 = 32;
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

/// Earlier deltas that a full backup references.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sources {
    /// Number of backups before it: older deltas are sparse.
    pub backups: u64,
    /// Those of full backups only: if there are too many, the smallest ones are stored again.
    pub only_full: bool,
}

impl Sources {
    /// Returns their number.
    pub const fn count(&self) -> u64 {
        if self.only_full { self.backups / FULL_EVERY } else { self.backups }
    }
}

/// Backup of a volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The first one: all data.
    First,
    /// A synthetic full backup: the change, and the rest of sources that it no longer references.
    Full,
    Incremental,
}

impl Policy {
    /// Returns the sources of a full backup. Changed blocks are anywhere in the volume, so that each delta
    /// loses the same share of its blocks in a day.
    pub fn sources(&self) -> Sources {
        let sparse_after_days = (SPARSE_SHARE.ln() / kept_in_a_day().ln()).ceil() as u64;
        let backups = sparse_after_days * 24 * 3600 / self.interval_s.unsigned_abs();
        Sources { backups, only_full: backups > MAX_PLANNED_SOURCES }
    }

    /// Returns the number of packs of a backup.
    pub fn packs(&self, kind: Kind) -> u64 {
        let change = VOLUME_BYTES * DAILY_CHANGE_PERCENT / 100 * self.interval_s.unsigned_abs() / (24 * 3600);
        let bytes = match kind {
            Kind::First => VOLUME_BYTES,
            Kind::Incremental => change,
            Kind::Full => {
                // In the time between two full backups.
                let written = FULL_EVERY * change;
                match self.sources().only_full {
                    true => change + written,
                    false => {
                        change + ((written as f64 * SPARSE_SHARE) as u64).min(VOLUME_BYTES / MOVED_SHARE)
                    }
                }
            }
        };
        bytes.div_ceil(PACK_BYTES)
    }
}

/// Returns the share of blocks that do not change in a day.
fn kept_in_a_day() -> f64 {
    1.0 - DAILY_CHANGE_PERCENT as f64 / 100.0
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
