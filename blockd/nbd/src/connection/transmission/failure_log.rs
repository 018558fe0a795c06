//! Log of failed device requests, which must neither hide an error nor flood the log.

use std::time::{Duration, Instant};

use crate::protocol::constants::NBD_ENOTSUP;
use crate::server::worker::{Admitted, DeviceFailure};

/// Minimum interval between log lines for one error number of one connection.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Logged failures of a connection, at most one entry for each error number.
#[derive(Debug, Default)]
pub(super) struct FailureLog {
    logged: Vec<Logged>,
}

#[derive(Debug)]
struct Logged {
    errno: u32,
    at: Instant,
    /// Failures since then, which are not logged.
    suppressed: u64,
}

impl FailureLog {
    /// Logs a failure, or counts it if one with its error number was logged recently.
    pub(super) fn note(&mut self, request: &Admitted, failure: &DeviceFailure, now: Instant) {
        let Admitted { operation, to, len_bytes, .. } = request;
        let (errno, error, offset_bytes) = (failure.errno, &failure.message, to.offset_bytes);
        // Clients probe for support with such requests.
        let suppressed = if errno == NBD_ENOTSUP { None } else { self.admit(errno, now) };
        match suppressed {
            Some(suppressed) => tracing::warn!(
                errno,
                error,
                ?operation,
                offset_bytes,
                len_bytes,
                suppressed,
                "a device request failed; more failures with this error number are logged once a minute"
            ),
            None => {
                tracing::trace!(errno, error, ?operation, offset_bytes, len_bytes, "a device request failed");
            }
        }
    }

    /// Returns the number of failures with this error number since the last one logged, if this one is to be
    /// logged.
    fn admit(&mut self, errno: u32, now: Instant) -> Option<u64> {
        let Some(last) = self.logged.iter_mut().find(|last| last.errno == errno) else {
            self.logged.push(Logged { errno, at: now, suppressed: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(last.at) < LOG_INTERVAL {
            last.suppressed += 1;
            return None;
        }
        last.at = now;
        Some(std::mem::take(&mut last.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::constants::{NBD_EIO, NBD_ENOSPC};

    #[test]
    fn failures_are_logged_once_a_minute_per_error_number() {
        let mut log = FailureLog::default();
        let start = Instant::now();
        assert_eq!(log.admit(NBD_ENOSPC, start), Some(0));
        assert_eq!(log.admit(NBD_EIO, start), Some(0));
        assert_eq!(log.admit(NBD_EIO, start + LOG_INTERVAL / 2), None);
        assert_eq!(log.admit(NBD_EIO, start + LOG_INTERVAL), Some(1));
        assert_eq!(log.admit(NBD_EIO, start + LOG_INTERVAL), None);
    }
}
