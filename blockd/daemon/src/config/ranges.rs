//! Ranges of numbers in the configuration.

use super::{Config, ConfigError};

/// Range of a key.
struct Range {
    key: &'static str,
    given: u64,
    low: u64,
    high: u64,
    /// Zero is valid, too.
    or_zero: bool,
    wanted: &'static str,
}

impl Range {
    fn check(self) -> Result<(), ConfigError> {
        let Self { key, given, low, high, or_zero, wanted } = self;
        match (low..=high).contains(&given) || (or_zero && given == 0) {
            true => Ok(()),
            false => Err(ConfigError::Range { key, given: given.to_string(), wanted }),
        }
    }
}

fn range(key: &'static str, given: u64, low: u64, high: u64, wanted: &'static str) -> Range {
    Range { key, given, low, high, or_zero: false, wanted }
}

fn zero_or(key: &'static str, given: u64, low: u64, high: u64, wanted: &'static str) -> Range {
    Range { or_zero: true, ..range(key, given, low, high, wanted) }
}

/// Checks all numbers.
///
/// # Errors
/// One is out of its range.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    all(config).into_iter().try_for_each(Range::check)
}

fn all(config: &Config) -> Vec<Range> {
    let c = config;
    let bandwidth = "0 (no limit), or 1048576 (1 MiB a second) to 1099511627776";
    let in_flight = "1048576 (1 MiB) to 1099511627776 (1 TiB)";
    let verified = "0 (nothing), or 104857600 (100 MiB) to 1125899906842624 (1 PiB)";
    let cache = "1048576 (1 MiB) to 1125899906842624 (1 PiB)";
    vec![
        range("full_every", c.full_every.into(), 1, 1000, "1 to 1000"),
        zero_or("merge_limit_bytes_per_s", c.merge_limit_bytes_per_s, 1 << 20, 1 << 40, bandwidth),
        range("task_concurrency", c.task_concurrency as u64, 1, 64, "1 to 64"),
        zero_or("hydration_limit_bytes_per_s", c.hydration_limit_bytes_per_s, 1 << 20, 1 << 40, bandwidth),
        range("hydration_concurrency", c.hydration_concurrency as u64, 1, 64, "1 to 64"),
        range("lazy_stall_ms", c.lazy_stall_ms, 1000, 86_400_000, "1000 to 86400000"),
        range("lazy_error_ms", c.lazy_error_ms, 100, 3_600_000, "100 to 3600000"),
        range("upload_concurrency", c.upload_concurrency as u64, 1, 64, "1 to 64"),
        range("download_concurrency", c.download_concurrency as u64, 1, 64, "1 to 64"),
        range("cpu_threads", c.cpu_threads as u64, 0, 1024, "0 (one per core) to 1024"),
        range("ring_threads", c.ring_threads as u64, 0, 256, "0 (one per core) to 256"),
        range("nbd_workers", c.nbd_workers as u64, 1, 1024, "1 to 1024"),
        range("nbd_connections", c.nbd_connections as u64, 1, 65_536, "1 to 65536"),
        range("nbd_connections_per_volume", c.nbd_connections_per_volume, 1, 65_536, "1 to 65536"),
        range("nbd_handshake_timeout_ms", c.nbd_handshake_timeout_ms, 100, 3_600_000, "100 to 3600000"),
        zero_or(
            "nbd_idle_timeout_ms",
            c.nbd_idle_timeout_ms,
            1000,
            86_400_000,
            "0 (never) or 1000 to 86400000",
        ),
        range(
            "nbd_connection_in_flight_bytes",
            c.nbd_connection_in_flight_bytes,
            1 << 20,
            1 << 40,
            in_flight,
        ),
        range("nbd_in_flight_bytes", c.nbd_in_flight_bytes, 1 << 20, 1 << 40, in_flight),
        range("store_attempts", c.store_attempts.into(), 1, 100, "1 to 100"),
        range("store_timeout_ms", c.store_timeout_ms, 100, 3_600_000, "100 to 3600000"),
        range("store_answer_ms", c.store_answer_ms, 100, 3_600_000, "100 to 3600000"),
        range("browse.cache_bytes", c.browse.cache_bytes, 1 << 20, 1 << 50, cache),
        range("browse.stall_timeout_ms", c.browse.stall_timeout_ms, 100, 3_600_000, "100 to 3600000"),
        range("browse.refresh_ms", c.browse.refresh_ms, 100, 3_600_000, "100 to 3600000"),
        range("stop_timeout_ms", c.stop_timeout_ms, 0, 3_600_000, "0 to 3600000"),
        range("gc_every_hours", c.gc_every_hours.into(), 0, 8760, "0 (never) to 8760"),
        zero_or("verify_bytes_per_day", c.verify_bytes_per_day, 100 << 20, 1 << 50, verified),
        range("task_history", c.task_history.into(), 1, 1_000_000, "1 to 1000000"),
    ]
}
