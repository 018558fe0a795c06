//! Lingering close of connections: the server shuts them down for writing, and discards input until the
//! client closes or a timeout. A close with unread input would reset the connection, and the client could
//! lose replies.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::server::connection_count::ConnectionSlot;

/// Timeout for the client to close its side.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Buffer size of a discarding receive, in bytes.
pub(crate) const DISCARD_BUFFER_BYTES: usize = 16 << 10;

struct LingeringSocket {
    socket: Arc<OwnedFd>,
    until: Instant,
    is_over: bool,
    _slot: ConnectionSlot,
}

/// Lingering sockets; each has a receive in progress.
#[derive(Default)]
pub(crate) struct Lingering(Slab<LingeringSocket>);

impl Lingering {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a socket; returns its index and deadline.
    pub(crate) fn insert(
        &mut self,
        socket: Arc<OwnedFd>,
        slot: ConnectionSlot,
        now: Instant,
    ) -> (usize, Instant) {
        let until = now.checked_add(TIMEOUT).unwrap_or(now);
        (self.0.insert(LingeringSocket { socket, until, is_over: false, _slot: slot }), until)
    }

    /// Ends a receive; returns the socket if another receive is needed.
    pub(crate) fn received(&mut self, index: usize, has_ended: bool, now: Instant) -> Option<&Arc<OwnedFd>> {
        let entry = self.0.get(index);
        assert!(entry.is_some(), "a receive ends once");
        if has_ended || entry?.is_over || entry?.until <= now {
            self.0.remove(index);
            return None;
        }
        self.0.get(index).map(|entry| &entry.socket)
    }

    /// Returns the sockets past their deadline, or all, for a shutdown; each is returned once.
    pub(crate) fn overdue(&mut self, now: Instant, all: bool) -> Vec<Arc<OwnedFd>> {
        let entries = self.0.iter_mut().map(|(_, entry)| entry);
        let overdue = entries.filter(|entry| !entry.is_over && (all || entry.until <= now)).map(|entry| {
            entry.is_over = true;
            Arc::clone(&entry.socket)
        });
        overdue.collect()
    }

    /// Returns the next deadline.
    pub(crate) fn next_check(&self) -> Option<Instant> {
        self.0.iter().filter(|(_, entry)| !entry.is_over).map(|(_, entry)| entry.until).min()
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
        assert!(lingering.received(first, false, now).is_some(), "input is discarded");
        assert_eq!(lingering.next_check(), Some(until));
        assert!(lingering.received(first, true, now).is_none());
        assert_eq!(add(&mut lingering).0, first);
        assert!(lingering.overdue(now, false).is_empty());
        assert_eq!(lingering.overdue(until, false).len(), 2);
        assert!(lingering.overdue(until, true).is_empty(), "each socket is returned once");
        assert_eq!(lingering.next_check(), None);
        assert!(lingering.received(first, false, now).is_none());
        assert!(lingering.received(second, false, now).is_none());
        assert!(lingering.is_empty());
        let slots: Vec<_> = std::iter::from_fn(|| connections.enter(false)).collect();
        assert_eq!(slots.len(), 4, "the connections are released");
    }
}
