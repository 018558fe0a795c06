//! Requests of a connection that wait for remote data, and detection of a disconnected client.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Minimum age of a request before its socket is checked. A client cannot reconnect and resend it earlier:
/// three round trips for connection and negotiation take about 100 us. The check is a system call of
/// 0.3 us, a tenth of a small write.
const MIN_REPLACEMENT_TIME: Duration = Duration::from_micros(250);
/// Age of input after which a local client may have resent its requests on another connection. It is below
/// any request timeout of the kernel, and above the delay of a ring thread in which a client sends DISC and
/// closes its socket.
pub(crate) const LATE_AFTER: Duration = Duration::from_millis(500);

/// Request that may wait for remote data.
pub(crate) trait WaitingRequest {
    /// Ends the request with an error.
    fn cancel(self);
}

/// Requests that wait for remote data. A connection, which bounds their number, shares it with its requests.
pub(crate) struct RemoteRequests<R> {
    is_abandoned: AtomicBool,
    /// Socket of a local client, which has disconnected when its side is closed.
    local_peer: Option<Arc<OwnedFd>>,
    /// The client sent DISC: its requests are executed even if it closes the socket.
    is_orderly: AtomicBool,
    state: Mutex<RemoteRequestState<R>>,
}

struct RemoteRequestState<R> {
    waiting: HashMap<u64, R>,
    next: u64,
    /// The client has disconnected: requests no longer wait.
    is_closed: bool,
}

/// Key of a waiting request.
#[derive(Clone, Copy)]
pub(crate) struct RemoteRequestKey(u64);

impl<R> Default for RemoteRequests<R> {
    fn default() -> Self {
        let state = RemoteRequestState { waiting: HashMap::new(), next: 0, is_closed: false };
        Self {
            is_abandoned: AtomicBool::new(false),
            local_peer: None,
            is_orderly: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }
}

impl<R: WaitingRequest> RemoteRequests<R> {
    /// Creates the table for a local client on this socket. After a request timeout the kernel closes the
    /// socket and resends the request on another connection; then the first copy must not be executed. The
    /// kernel never closes one side only.
    pub(crate) fn of_local(socket: Arc<OwnedFd>) -> Self {
        Self { local_peer: Some(socket), ..Self::default() }
    }

    /// Returns true if a request received at `received` must not be executed. Checks the socket for requests
    /// above the minimum age, because the ring thread may be busy.
    pub(crate) fn is_abandoned(&self, received: Instant) -> bool {
        self.is_abandoned.load(Ordering::Relaxed)
            || received.elapsed() >= MIN_REPLACEMENT_TIME && self.has_hung_up()
    }

    /// Returns true if the local client has closed the connection and may have resent requests received at
    /// `received`.
    pub(crate) fn is_stale(&self, received: Instant) -> bool {
        self.local_peer.is_some() && received.elapsed() >= LATE_AFTER && self.has_hung_up()
    }

    /// Returns true if the local client closed the socket without DISC.
    fn has_hung_up(&self) -> bool {
        let Some(socket) = self.local_peer.as_ref().filter(|_| !self.is_orderly.load(Ordering::Relaxed))
        else {
            return false;
        };
        let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }

    /// Records DISC: the following end of the stream is orderly.
    pub(crate) fn record_disconnect(&self) {
        self.is_orderly.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_sent_disconnect(&self) -> bool {
        self.is_orderly.load(Ordering::Relaxed)
    }

    /// Ends all waiting requests, and prevents the execution of queued ones.
    pub(crate) fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
        self.close_waiting();
    }

    /// Ends all requests that wait for remote data, and lets no further ones wait.
    pub(crate) fn close_waiting(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.is_closed = true;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_values().for_each(R::cancel);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().is_closed
    }

    /// Stores a request until it is removed.
    pub(crate) fn insert(&self, request: R) -> RemoteRequestKey {
        let mut state = self.state.lock();
        let key = state.next;
        state.next += 1;
        let replaced = state.waiting.insert(key, request);
        assert!(replaced.is_none(), "keys of waiting requests are unique");
        RemoteRequestKey(key)
    }

    /// Removes a request; `None` if it was removed earlier.
    pub(crate) fn remove(&self, key: RemoteRequestKey) -> Option<R> {
        self.state.lock().waiting.remove(&key.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    impl WaitingRequest for () {
        fn cancel(self) {}
    }

    #[test]
    fn local_client_closing_its_side_abandons_requests() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let requests = RemoteRequests::<()>::of_local(Arc::new(ours.into()));
        let old = Instant::now().checked_sub(MIN_REPLACEMENT_TIME).unwrap();
        assert!(!requests.is_abandoned(old));
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(requests.is_abandoned(old));
        let not_yet_received = Instant::now() + Duration::from_secs(3600);
        assert!(!requests.is_abandoned(not_yet_received));
        requests.record_disconnect();
        assert!(!requests.is_abandoned(old), "the client sent DISC");
        assert!(!RemoteRequests::<()>::default().is_abandoned(old));
    }
}
