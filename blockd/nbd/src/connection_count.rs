//! How many connections there are, and whether one more may come. Some places are kept for unix sockets:
//! whoever fills the others over TCP, which may take no right at all, must not lock this host's own devices
//! out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Places that TCP leaves free, where there are enough: at most a quarter of all.
const RESERVED_FOR_LOCAL: usize = 64;
/// How often refusals are reported.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// The connections of one server.
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

    /// A place for one more connection, unless all that it may have are taken.
    pub(crate) fn enter(self: &Arc<Self>, is_tcp: bool) -> Option<Place> {
        let mut open = self.open.lock();
        let is_free = open.tcp + open.local < self.max && !(is_tcp && open.tcp >= self.max_tcp);
        if !is_free {
            return None;
        }
        *open.of(is_tcp) += 1;
        Some(Place { connections: Arc::clone(self), is_tcp })
    }
}

impl Open {
    fn of(&mut self, is_tcp: bool) -> &mut usize {
        if is_tcp { &mut self.tcp } else { &mut self.local }
    }
}

/// A connection's place, until it is dropped.
pub(crate) struct Place {
    connections: Arc<Connections>,
    is_tcp: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.connections.open.lock().of(self.is_tcp) -= 1;
    }
}

/// Lets a report through now and then: clients that are refused come back at once, and would fill the log.
#[derive(Default)]
pub(crate) struct Reports {
    last: Option<Instant>,
    unreported: u64,
}

impl Reports {
    /// Counts an event; how many there were since the last report, if it is time for one.
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
    fn tcp_leaves_places_to_unix_sockets() {
        for (max, max_tcp) in [(1, 1), (2, 1), (4, 3), (100, 75), (1024, 960)] {
            let connections = Arc::new(Connections::new(max));
            let tcp: Vec<_> = std::iter::from_fn(|| connections.enter(true)).collect();
            assert_eq!(tcp.len(), max_tcp, "of {max}");
            let mut local: Vec<_> = std::iter::from_fn(|| connections.enter(false)).collect();
            assert_eq!(local.len(), max - max_tcp, "of {max}");
            drop(tcp);
            local.extend(std::iter::from_fn(|| connections.enter(false)));
            assert_eq!(local.len(), max, "a unix socket may take any place");
            assert!(connections.enter(true).is_none());
            drop(local);
            assert!(connections.enter(true).is_some());
        }
    }

    #[test]
    fn refusals_are_reported_now_and_then() {
        let mut reports = Reports::default();
        let now = Instant::now();
        assert_eq!(reports.count(now), Some(1));
        assert_eq!(reports.count(now), None);
        assert_eq!(reports.count(now + REPORT_EVERY / 2), None);
        assert_eq!(reports.count(now + REPORT_EVERY), Some(3));
    }
}
