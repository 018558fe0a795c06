//! Settings of the engine. The daemon reads them from its configuration.

use crate::{costs::PriceTables, drills::probe_config::ProbeConfig};
use blockd_api::{CredentialRef, ProbeName, anomalies::AnomalyPolicy};
use blockd_store::RetryPolicy;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf};

/// Scheduling priority of tasks that move data, relative to guests on the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskPriority {
    /// Threads of the lowest CPU and I/O priority while guests are active.
    #[default]
    Low,
    /// Normal threads.
    Normal,
}

/// Browsing of snapshots as files.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BrowseConfig {
    /// Mount point of the browse mount that exists from the start. Not set: none.
    pub mountpoint: Option<PathBuf>,
    /// Credentials whose cloud snapshots are shown; empty: all.
    pub credentials: Vec<CredentialRef>,
    /// Allows other users to read the mounts, subject to the modes and owners that are shown.
    pub allow_other: bool,
    /// Directory of the frame cache for cloud snapshots. Not set: `cache` in the data directory.
    pub cache_dir: Option<PathBuf>,
    /// Capacity of the cache, in bytes.
    pub cache_bytes: u64,
    /// Timeout of a read from a cloud snapshot, in milliseconds.
    pub stall_timeout_ms: u64,
    /// Minimum interval between listings of a store while the mount is in use, in milliseconds.
    pub refresh_ms: u64,
}

impl Default for BrowseConfig {
    fn default() -> Self {
        Self {
            mountpoint: None,
            credentials: Vec::new(),
            allow_other: false,
            cache_dir: None,
            cache_bytes: 4 << 30,
            stall_timeout_ms: 30_000,
            refresh_ms: 10_000,
        }
    }
}

/// Settings of volumes, tasks and stores.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Backups per chain: every n-th backup of a volume to a credential is full; 1: all.
    pub full_every: u32,
    /// Number of backups and restores that move data concurrently.
    pub task_concurrency: usize,
    /// Number of finished tasks that are kept in the history.
    pub task_history: u32,
    /// Bandwidth limit of the hydration of one lazy volume, in bytes per second; 0: unlimited.
    pub hydration_limit_bytes_per_s: u64,
    /// Download bandwidth limit of each restore drill, in bytes per second; 0: unlimited.
    pub drill_limit_bytes_per_s: u64,
    /// Limit of the requests of each restore drill to the store, per second; 0: unlimited.
    pub drill_limit_requests_per_s: u64,
    /// Concurrent fetches, of at most 4 MiB each, of the hydration of one lazy volume.
    pub hydration_concurrency: usize,
    /// Timeout of reads from an unreachable store for lazy volumes with the policy "stall".
    pub lazy_stall_ms: u64,
    /// Timeout of reads from an unreachable store for lazy volumes with the policy "error".
    pub lazy_error_ms: u64,
    /// Maximum of the concurrent pack uploads of one backup.
    pub upload_concurrency: usize,
    /// Maximum of the concurrent requests of one restore or verification.
    pub download_concurrency: usize,
    /// Threads that compress and encrypt; 0: one per core.
    pub cpu_threads: usize,
    /// Maximum attempts of one request to an object store.
    pub store_attempts: u32,
    /// Timeout of one attempt of a store request, plus the time of its body at 64 KiB/s.
    pub store_timeout_ms: u64,
    /// Timeout of the pre-flight store requests of a command.
    pub store_answer_ms: u64,
    /// Interval of garbage collection in the repositories, in hours; 0: never.
    pub gc_every_hours: u32,
    /// Daily budget of background verification, in bytes read from stores; 0: off.
    pub verify_bytes_per_day: u64,
    /// Treatment of anomalies of backups, unless a label of the volume replaces it.
    pub anomaly_policy: AnomalyPolicy,
    /// Daily budget of background verification, in requests.
    pub verify_requests_per_day: u64,
    /// Maximum age of the last proof of a volume at a location, in days; 0: none.
    pub proof_max_age_days: u32,
    /// Daily budget of the background scrub, in bytes read from local disks; 0: off.
    pub scrub_bytes_per_day: u64,
    /// Time that a task waits for the secrets of its credential, in seconds.
    pub secrets_wait_s: u64,
    /// Browsing of snapshots as files.
    pub browse: BrowseConfig,
    /// Probes of restore drills.
    pub drill_probes: BTreeMap<ProbeName, ProbeConfig>,
    /// Price tables of locations.
    pub prices: PriceTables,
    /// Intervals that no administrator changes.
    pub intervals: Intervals,
}

/// Maximum attempts of a request that verifies a credential: its user waits, and most failures are wrong
/// settings.
const VERIFY_ATTEMPTS: u32 = 2;

impl Settings {
    /// Returns the retry policy of requests that verify a credential.
    pub fn verify_policy(&self) -> RetryPolicy {
        RetryPolicy { attempts: self.store_attempts.min(VERIFY_ATTEMPTS), ..self.retry_policy() }
    }

    /// Returns the retry policy of store requests.
    pub fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy {
            attempts: self.store_attempts,
            request_timeout_ms: self.store_timeout_ms,
            ..RetryPolicy::default()
        }
    }
}

/// Intervals that no administrator changes. Tests shorten them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intervals {
    /// Delay before an address of the metrics endpoint that was in use is bound again, in milliseconds.
    pub metrics_retry_ms: u64,
    /// Delay before a result of a task that could not be stored is stored again, in milliseconds.
    pub store_result_again_ms: u64,
    /// Bytes between two records of the progress of a restore.
    pub record_every_bytes: u64,
}

impl Default for Intervals {
    fn default() -> Self {
        Self { metrics_retry_ms: 15_000, store_result_again_ms: 3000, record_every_bytes: 64 << 20 }
    }
}
