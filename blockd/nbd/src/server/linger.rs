//! Lingering close of connections: they are shut down for writing, and further input is discarded until the
//! client closes, up to a timeout. Closing a socket with unread input resets the connection, and the client
//! could lose replies in flight.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::server::connection_count::Place;

/// Timeout for the client to close its side.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Length of a discarding receive.
pub(crate) const SCRAP_BYTES: usize = 16 << 10;

struct Entry {
    socket: Arc<OwnedFd>,
    until: Instant,
    is_over: bool,
    _place: Place,
}

/// Lingering sockets; each has a receive in progress.
#[derive(Default)]
pub(crate) struct Lingering {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
}

impl Lingering {
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.entries.len()
    }

    /// Adds a socket; returns its index and deadline.
    pub(crate) fn insert(&mut self, socket: Arc<OwnedFd>, place: Place, now: Instant) -> (usize, Instant) {
        let until = now.checked_add(TIMEOUT).unwrap_or(now);
        let entry = Some(Entry { socket, until, is_over: false, _place: place });
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        if let Some(slot) = self.entries.get_mut(index) {
            *slot = entry;
        }
        (index, until)
    }

    /// Ends a receive; returns the socket if another one is needed.
    pub(crate) fn received(&mut self, index: usize, has_ended: bool, now: Instant) -> Option<&Arc<OwnedFd>> {
        let slot = self.entries.get_mut(index)?;
        let is_over = slot.as_ref().is_none_or(|entry| has_ended || entry.is_over || entry.until <= now);
        if is_over {
            if slot.take().is_some() {
                debug_assert!(!self.free.contains(&index), "a slot is freed once");
                self.free.push(index);
            }
            return None;
        }
        slot.as_ref().map(|entry| &entry.socket)
    }

    /// Returns sockets past their deadline, or all, each once, to be shut down.
    pub(crate) fn overdue(&mut self, now: Instant, all: bool) -> Vec<Arc<OwnedFd>> {
        let entries = self.entries.iter_mut().flatten();
        let overdue = entries.filter(|entry| !entry.is_over && (all || entry.until <= now)).map(|entry| {
            entry.is_over = true;
            Arc::clone(&entry.socket)
        });
        overdue.collect()
    }

    /// Returns the next deadline.
    pub(crate) fn next_check(&self) -> Option<Instant> {
        self.entries.iter().flatten().filter(|entry| !entry.is_over).map(|entry| entry.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::connection_count::Connections;

    #[test]
    fn lingering_sockets_end_or_time_out() {
        let connections = Arc::new(Connections::new(4));
        let now = Instant::now();
        let mut lingering = Lingering::default();
        let add = |lingering: &mut Lingering| {
            let socket = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").unwrap()));
            lingering.insert(socket, connections.enter(false).unwrap(), now)
        };
        let (first, until) = add(&mut lingering);
        let (second, _) = add(&mut lingering);
        assert!(lingering.received(first, false, now).is_some(), "thrown away");
        assert_eq!(lingering.next_check(), Some(until));
        assert!(lingering.received(first, true, now).is_none());
        assert_eq!(add(&mut lingering).0, first);
        assert!(lingering.overdue(now, false).is_empty());
        assert_eq!(lingering.overdue(until, false).len(), 2);
        assert!(lingering.overdue(until, true).is_empty(), "once");
        assert_eq!(lingering.next_check(), None);
        assert!(lingering.received(first, false, now).is_none());
        assert!(lingering.received(second, false, now).is_none());
        assert!(lingering.is_empty());
        let places: Vec<_> = std::iter::from_fn(|| connections.enter(false)).collect();
        assert_eq!(places.len(), 4, "their places are free again");
    }
}
