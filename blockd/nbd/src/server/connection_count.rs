//! Limit of connections. Some are reserved for Unix sockets: TCP clients, possibly unprivileged, must not
//! lock out kernel devices of this host.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Number of connections reserved for Unix sockets, at most a quarter of the limit.
const RESERVED_FOR_LOCAL: usize = 64;
/// Minimum interval between reports of refused connections.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Number of open connections of a server, and its limits.
pub(crate) struct Connections {
    max: usize,
    max_tcp: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    tcp: usize,
    local: usize,
}

impl Connections {
    pub(crate) fn new(max: usize) -> Self {
        let reserved = RESERVED_FOR_LOCAL.min(max.div_ceil(4));
        Self { max, max_tcp: max.saturating_sub(reserved).max(1), open: Mutex::default() }
    }

    /// Reserves a connection; `None` at the limit.
    pub(crate) fn enter(self: &Arc<Self>, is_tcp: bool) -> Option<ConnectionSlot> {
        let mut open = self.open.lock();
        let is_free = open.tcp + open.local < self.max && !(is_tcp && open.tcp >= self.max_tcp);
        if !is_free {
            return None;
        }
        *open.of(is_tcp) += 1;
        assert!(
            open.tcp <= self.max_tcp && open.tcp + open.local <= self.max,
            "the number of connections is bounded"
        );
        Some(ConnectionSlot { connections: Arc::clone(self), is_tcp })
    }
}

impl Open {
    fn of(&mut self, is_tcp: bool) -> &mut usize {
        if is_tcp { &mut self.tcp } else { &mut self.local }
    }
}

/// Reservation of a connection, returned on drop.
pub(crate) struct ConnectionSlot {
    connections: Arc<Connections>,
    is_tcp: bool,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock();
        let count = open.of(self.is_tcp);
        assert!(*count > 0, "each reservation is counted");
        *count -= 1;
    }
}

/// Rate limiter of reports: refused clients that reconnect at once would flood the log.
#[derive(Default)]
pub(crate) struct Reports {
    last: Option<Instant>,
    unreported: u64,
}

impl Reports {
    /// Counts an event; returns the number since the last report if one is due.
    pub(crate) fn count(&mut self, now: Instant) -> Option<u64> {
        self.unreported += 1;
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < REPORT_EVERY) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unreported))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_connections_leave_the_unix_socket_reserve() {
        for (max, max_tcp) in [(1, 1), (2, 1), (4, 3), (100, 75), (1024, 960)] {
            let connections = Arc::new(Connections::new(max));
            let tcp: Vec<_> = std::iter::from_fn(|| connections.enter(true)).collect();
            assert_eq!(tcp.len(), max_tcp, "of {max}");
            let mut local: Vec<_> = std::iter::from_fn(|| connections.enter(false)).collect();
            assert_eq!(local.len(), max - max_tcp, "of {max}");
            drop(tcp);
            local.extend(std::iter::from_fn(|| connections.enter(false)));
            assert_eq!(local.len(), max, "Unix sockets may use all connections");
            assert!(connections.enter(true).is_none());
            drop(local);
            assert!(connections.enter(true).is_some());
        }
    }

    #[test]
    fn refusals_are_reported_once_per_interval() {
        let mut reports = Reports::default();
        let now = Instant::now();
        assert_eq!(reports.count(now), Some(1));
        assert_eq!(reports.count(now), None);
        assert_eq!(reports.count(now + REPORT_EVERY / 2), None);
        assert_eq!(reports.count(now + REPORT_EVERY), Some(3));
    }
}
