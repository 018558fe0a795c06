//! Mailbox of a ring thread: messages, a queue, and an eventfd that wakes a sleeping thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crossbeam::queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};

use crate::server::connection_count::Place;
use crate::server::listener::Peer;
use crate::server::worker::Done;

/// Message to a ring thread.
pub(crate) enum Message {
    /// Serve this connection.
    Adopt(NewConnection),
    /// Work is done.
    Done(ConnectionKey, Done),
    /// Bytes in flight were released.
    Retry,
    /// Stop: end all connections, by this time.
    Stop(Instant),
    /// Panic.
    #[cfg(test)]
    Die,
}

/// Connection of one ring thread; its number tells it from earlier ones with the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionKey {
    pub(super) index: usize,
    pub(super) id: usize,
}

/// Accepted connection.
pub(crate) struct NewConnection {
    pub(super) socket: OwnedFd,
    pub(super) peer: Peer,
    pub(super) place: Place,
}

/// Queue into a ring thread. Senders bound it: by the in-flight budget (results of requests) and by the limit
/// of connections (sockets).
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
        // A blocking one: io_uring completes a read of a non-blocking one at once.
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
            tracing::error!(%error, "a server thread could not be woken");
        }
    }

    /// Closes the mailbox: later messages are dropped.
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

    /// Announces sleep: from here on, messages wake the thread. Returns false if there are messages.
    pub(crate) fn may_sleep(&self) -> bool {
        self.awake.store(false, Ordering::SeqCst);
        if self.queue.is_empty() {
            return true;
        }
        self.awake.store(true, Ordering::SeqCst);
        false
    }

    /// Announces that the thread is awake and will check its queue before it sleeps.
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
    fn only_a_sleeping_thread_is_woken_and_only_once() {
        let mailbox = Mailbox::new().unwrap();
        mailbox.post(1);
        assert_eq!(wakes(&mailbox), 0, "awake");
        assert!(!mailbox.may_sleep(), "there is something to do");
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
    fn dead_thread_keeps_no_connections() {
        let mailbox = Mailbox::new().unwrap();
        mailbox.post(1);
        assert!(!mailbox.is_dead());
        mailbox.close();
        mailbox.post(2);
        assert!(mailbox.is_dead());
        assert_eq!(mailbox.take(), None);
    }
}
