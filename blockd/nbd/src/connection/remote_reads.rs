//! Requests of a connection that wait for remote data, and the liveness of their client.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Minimum time in which a client can be replaced by another: three round trips for connection and
/// negotiation take some 100 us. The system call that checks the socket costs 0.3 us, a tenth of a small
/// write.
const MIN_REPLACEMENT_TIME: Duration = Duration::from_micros(250);
/// Age of input after which a local client may have resent its requests on another connection: shorter than
/// any request timeout of the kernel, and longer than a client that sends DISC and closes waits for a ring
/// thread.
pub(crate) const LATE_AFTER: Duration = Duration::from_millis(500);

/// Request that can wait for remote data.
pub(crate) trait WaitingRequest {
    /// Ends the request without its data.
    fn end_unwanted(self);
}

/// Requests waiting for remote data; shared by a connection, which bounds their number, and its requests.
pub(crate) struct RemoteReads<R> {
    is_abandoned: AtomicBool,
    /// Socket of a local client, which is gone when it has closed its side.
    local_peer: Option<Arc<OwnedFd>>,
    /// The client sent DISC: its requests are executed although it closes the socket.
    is_orderly: AtomicBool,
    state: Mutex<RemoteReadState<R>>,
}

struct RemoteReadState<R> {
    waiting: HashMap<u64, R>,
    next: u64,
    /// The client is gone: nothing waits any more.
    is_recalled: bool,
}

/// Key of a waiting request.
#[derive(Clone, Copy)]
pub(crate) struct RemoteReadKey(u64);

impl<R> Default for RemoteReads<R> {
    fn default() -> Self {
        let state = RemoteReadState { waiting: HashMap::new(), next: 0, is_recalled: false };
        Self {
            is_abandoned: AtomicBool::new(false),
            local_peer: None,
            is_orderly: AtomicBool::new(false),
            state: Mutex::new(state),
        }
    }
}

impl<R: WaitingRequest> RemoteReads<R> {
    /// Creates the table for a local client on this socket. The kernel closes the socket of a connection
    /// whose request timed out and resends the request on another one; the first copy must not be executed
    /// afterwards. Such a client never closes only one side.
    pub(crate) fn of_local(socket: Arc<OwnedFd>) -> Self {
        Self { local_peer: Some(socket), ..Self::default() }
    }

    /// Returns true if the result of a request received at `received` is no longer useful. Checks the socket
    /// of requests that waited long, because the ring thread may be busy.
    pub(crate) fn is_abandoned(&self, received: Instant) -> bool {
        self.is_abandoned.load(Ordering::Relaxed)
            || received.elapsed() >= MIN_REPLACEMENT_TIME && self.has_hung_up()
    }

    /// Returns true if the local client has closed the connection and had enough time since `received` to
    /// replace it.
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

    /// Records DISC: the end of the stream is then orderly.
    pub(crate) fn take_leave(&self) {
        self.is_orderly.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_taken_leave(&self) -> bool {
        self.is_orderly.load(Ordering::Relaxed)
    }

    /// Ends all waiting requests without replies.
    pub(crate) fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
        self.recall();
    }

    /// Ends all requests that wait for remote data.
    pub(crate) fn recall(&self) {
        let waiting = {
            let mut state = self.state.lock();
            state.is_recalled = true;
            std::mem::take(&mut state.waiting)
        };
        waiting.into_values().for_each(R::end_unwanted);
    }

    pub(crate) fn is_recalled(&self) -> bool {
        self.state.lock().is_recalled
    }

    /// Stores a request until it is taken.
    pub(crate) fn keep(&self, request: R) -> RemoteReadKey {
        let mut state = self.state.lock();
        let key = state.next;
        state.next += 1;
        let replaced = state.waiting.insert(key, request);
        assert!(replaced.is_none(), "a request waits under its own key");
        RemoteReadKey(key)
    }

    /// Takes a request, unless it was already taken.
    pub(crate) fn take(&self, key: RemoteReadKey) -> Option<R> {
        self.state.lock().waiting.remove(&key.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    impl WaitingRequest for () {
        fn end_unwanted(self) {}
    }

    #[test]
    fn local_peer_that_closes_its_side_has_hung_up() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let requests = RemoteReads::<()>::of_local(Arc::new(ours.into()));
        let old = Instant::now().checked_sub(MIN_REPLACEMENT_TIME).unwrap();
        assert!(!requests.is_abandoned(old));
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(requests.is_abandoned(old));
        let not_yet_received = Instant::now() + Duration::from_secs(3600);
        assert!(!requests.is_abandoned(not_yet_received));
        requests.take_leave();
        assert!(!requests.is_abandoned(old), "it has announced that");
        assert!(!RemoteReads::<()>::default().is_abandoned(old));
    }
}
