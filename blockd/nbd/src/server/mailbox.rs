//! Mailbox of a ring thread: a message queue, and an eventfd that wakes the thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam::queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};

use crate::server::connection_count::ConnectionSlot;
use crate::server::listener::Peer;
use crate::server::worker::Done;

/// Message to a ring thread.
pub(crate) enum Message {
    /// Serve an accepted connection.
    Adopt(NewConnection),
    /// A job of a connection has ended.
    Done(ConnectionKey, Done),
    /// Budget was released: retry waiting requests.
    Retry,
    /// Shut down, and end all connections by this time.
    Stop(Instant),
    /// Panic of the thread, for tests.
    #[cfg(test)]
    Die,
}

/// Key of a connection on its ring thread. The id tells it from earlier connections with the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionKey {
    pub(super) index: usize,
    pub(super) id: usize,
}

/// Accepted connection.
pub(crate) struct NewConnection {
    pub(super) socket: OwnedFd,
    pub(super) peer: Peer,
    pub(super) slot: ConnectionSlot,
}

/// Message queue of a ring thread. The in-flight budget bounds its results, and the connection limit its
/// sockets.
pub(crate) struct Mailbox<M> {
    queue: SegQueue<M>,
    /// The thread is awake, or its eventfd was written.
    awake: AtomicBool,
    /// The thread has ended.
    dead: AtomicBool,
    eventfd: Arc<OwnedFd>,
}

impl<M> Mailbox<M> {
    pub(crate) fn new() -> io::Result<Self> {
        // Blocking, because io_uring completes a read of a non-blocking eventfd at once.
        let eventfd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        Ok(Self {
            queue: SegQueue::new(),
            awake: AtomicBool::new(true),
            dead: AtomicBool::new(false),
            eventfd,
        })
    }

    /// Returns the eventfd that the ring thread reads.
    pub(crate) fn eventfd(&self) -> &Arc<OwnedFd> {
        &self.eventfd
    }

    pub(crate) fn post(&self, message: M) {
        self.queue.push(message);
        if self.is_dead() {
            self.discard();
            return;
        }
        if !self.awake.swap(true, Ordering::SeqCst)
            && let Err(error) = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes())
        {
            tracing::error!(%error, "waking a server thread failed");
        }
    }

    /// Closes the mailbox and drops its messages; later messages are dropped too.
    pub(crate) fn close(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.discard();
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    fn discard(&self) {
        while self.queue.pop().is_some() {}
    }

    pub(crate) fn take(&self) -> Option<M> {
        self.queue.pop()
    }

    /// Prepares for a wait: later messages wake the thread. Returns false if messages are queued.
    pub(crate) fn may_sleep(&self) -> bool {
        self.awake.store(false, Ordering::SeqCst);
        if self.queue.is_empty() {
            return true;
        }
        self.awake.store(true, Ordering::SeqCst);
        false
    }

    /// Records that the thread is awake and checks its queue before the next wait.
    pub(crate) fn woke(&self) {
        self.awake.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wakes(mailbox: &Mailbox<u32>) -> u64 {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&mailbox.eventfd, PollFlags::IN)];
        if poll(&mut fds, Some(&zero)).unwrap() == 0 {
            return 0;
        }
        let mut count = [0; 8];
        rustix::io::read(&mailbox.eventfd, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn waiting_thread_is_woken_once() {
        let mailbox = Mailbox::new().unwrap();
        mailbox.post(1);
        assert_eq!(wakes(&mailbox), 0, "the thread is awake");
        assert!(!mailbox.may_sleep(), "a message is queued");
        assert_eq!(mailbox.take(), Some(1));
        assert!(mailbox.may_sleep());
        mailbox.post(2);
        mailbox.post(3);
        assert_eq!(wakes(&mailbox), 1);
        mailbox.woke();
        mailbox.post(4);
        assert_eq!(wakes(&mailbox), 0);
        assert!(std::iter::from_fn(|| mailbox.take()).eq([2, 3, 4]));
    }

    #[test]
    fn closed_mailbox_drops_messages() {
        let mailbox = Mailbox::new().unwrap();
        mailbox.post(1);
        assert!(!mailbox.is_dead());
        mailbox.close();
        mailbox.post(2);
        assert!(mailbox.is_dead());
        assert_eq!(mailbox.take(), None);
    }
}
