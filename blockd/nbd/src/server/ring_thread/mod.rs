//! Event loop of a ring thread: waits for completions and messages, passes them to the connections, and
//! starts the operations that the connections request.

mod accept;
mod tag;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, shutdown};
use slab::Slab;

use self::tag::Tag;
use crate::config::ServerConfig;
use crate::connection::Connection;
use crate::connection::budget::{Budget, Wake};
use crate::connection::buffer_pool::{Buffer, BufferPool};
use crate::connection::flow::Context;
use crate::connection::remote_budgets::RemoteBudgets;
use crate::device::Client;
use crate::server::connection_count::{ConnectionSlot, Connections, Reports};
use crate::server::linger::{DISCARD_BUFFER_BYTES, Lingering};
use crate::server::listener::{Listener, Peer};
use crate::server::mailbox::{ConnectionKey, Mailbox, Message, NewConnection};
use crate::server::queues::Queues;
use crate::server::ring::{Completion, Outcome, Ring, Transfer};
use crate::server::spin::{SpinPermit, SpinPoller};
use crate::server::worker::{Job, Work};

/// Time after the shutdown deadline for the operations of aborted connections to end.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// State shared by the threads of a server.
pub(crate) struct ServerState {
    pub(crate) budget: Budget,
    pub(crate) remote_budgets: RemoteBudgets,
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) mailboxes: Vec<Arc<Mailbox<Message>>>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) next_id: AtomicUsize,
    /// Maximum size of the buffer pool of each ring thread, in bytes.
    pub(crate) pool_bytes: usize,
    /// Permit to busy-poll.
    pub(crate) spin_permit: SpinPermit,
}

impl Drop for ServerState {
    fn drop(&mut self) {
        let is_released = self.budget.used_bytes() == 0;
        debug_assert!(is_released || std::thread::panicking(), "ended connections release their bytes");
    }
}

struct ConnectionEntry {
    /// Id of the connection.
    id: usize,
    connection: Connection,
    socket: Arc<OwnedFd>,
    /// The receive was cancelled.
    is_cancelled: bool,
    is_shut_down: bool,
    hang_up_poll: HangUpPoll,
    slot: ConnectionSlot,
}

/// State of the hang-up poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HangUpPoll {
    None,
    InProgress,
    Cancelled,
}

/// Resources for the connections of a ring thread.
struct Resources {
    shared: Arc<ServerState>,
    mailbox: Arc<Mailbox<Message>>,
    pool: BufferPool,
    work: Vec<Work>,
    /// Number of requests accepted since the last wait.
    requests: usize,
    now: Instant,
    /// End of the wait before the last one.
    previous_wait_at: Instant,
}

/// State of a ring thread.
pub(crate) struct RingThread {
    id: usize,
    ring: Ring,
    resources: Resources,
    queues: Queues,
    spin: SpinPoller,
    entries: Slab<ConnectionEntry>,
    lingering: Lingering,
    listeners: Vec<Listener>,
    /// Number of accepts in progress.
    accepting: usize,
    /// Listeners whose accepts are paused.
    paused: Vec<usize>,
    next_thread: usize,
    refusals: Reports,
    /// Earliest time of the next check of deadlines.
    next_check: Option<Instant>,
    stop_at: Option<Instant>,
}

impl Resources {
    fn with_context(&mut self, act: impl FnOnce(&mut Context<'_>)) {
        let mailbox = &self.mailbox;
        let wake = || -> Wake {
            let mailbox = Arc::clone(mailbox);
            Box::new(move || mailbox.post(Message::Retry))
        };
        act(&mut Context {
            pool: &mut self.pool,
            budget: &self.shared.budget,
            remote_budgets: &self.shared.remote_budgets,
            wake: &wake,
            work: &mut self.work,
            requests: &mut self.requests,
            now: self.now,
            previous_wait_at: self.previous_wait_at,
        });
    }
}

impl RingThread {
    /// Creates the state; must be called on the thread itself, which owns the ring.
    ///
    /// # Errors
    /// The kernel refuses a ring.
    pub(crate) fn new(
        id: usize,
        shared: Arc<ServerState>,
        mailbox: Arc<Mailbox<Message>>,
        queues: Queues,
        listeners: Vec<Listener>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let resources = Resources {
            pool: BufferPool::new(shared.pool_bytes),
            shared,
            mailbox,
            work: Vec::new(),
            requests: 0,
            now,
            previous_wait_at: now,
        };
        Ok(Self {
            id,
            ring: Ring::new()?,
            resources,
            queues,
            spin: SpinPoller::default(),
            entries: Slab::new(),
            lingering: Lingering::default(),
            listeners,
            accepting: 0,
            paused: Vec::new(),
            next_thread: 0,
            refusals: Reports::default(),
            next_check: None,
            stop_at: None,
        })
    }

    /// Serves connections until a stop message.
    ///
    /// # Errors
    /// The ring failed; the connections of the thread are lost.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        self.listen_for_messages(Buffer::new(8));
        for index in 0..self.listeners.len() {
            self.accept(index);
        }
        let mut completions = Vec::new();
        loop {
            while let Some(message) = self.resources.mailbox.take() {
                self.message(message);
            }
            self.check_deadlines();
            if self.is_done() {
                return Ok(());
            }
            let timeout = if self.resources.mailbox.may_sleep() {
                self.next_check.map(|check| check.saturating_duration_since(self.resources.now))
            } else {
                Some(Duration::ZERO)
            };
            let requests = std::mem::take(&mut self.resources.requests);
            if timeout != Some(Duration::ZERO)
                && let Some(spin) = self.spin.begin(requests, &self.resources.shared.spin_permit)
            {
                spin.until(self.ring.start_and_poll()?);
            }
            let result = self.ring.wait(timeout, &mut completions);
            self.resources.mailbox.woke();
            self.resources.previous_wait_at = std::mem::replace(&mut self.resources.now, Instant::now());
            result?;
            for completion in completions.drain(..) {
                self.completion(completion);
            }
        }
    }

    fn is_done(&self) -> bool {
        let Some(stop_at) = self.stop_at else {
            return false;
        };
        (self.entries.is_empty() && self.accepting == 0 && self.lingering.is_empty())
            || self.resources.now >= stop_at.checked_add(ABORT_GRACE).unwrap_or(stop_at)
    }

    fn completion(&mut self, completion: Completion) {
        match (Tag::unpack(completion.tag), completion.outcome) {
            (Tag::Wake, Outcome::Transferred { buffer, .. }) => self.listen_for_messages(buffer),
            (Tag::Accept(index), Outcome::Accepted(result)) => self.accepted(index, result),
            (Tag::Receive(index), Outcome::Transferred { buffer, result }) => {
                self.with_connection(index, |connection, cx| connection.end_receive(buffer, result, cx));
            }
            (Tag::Send(index), Outcome::Transferred { buffer, result }) => {
                self.with_connection(index, |connection, cx| connection.end_send(buffer, result, cx));
            }
            (Tag::Linger(index), Outcome::Transferred { buffer, result }) => {
                self.lingered(index, buffer, !result.is_ok_and(|len_bytes| len_bytes > 0));
            }
            (Tag::HangUp(index), Outcome::HungUp(result)) => self.hung_up(index, result),
            (tag, _) => tracing::error!(?tag, "internal error: a completion does not match its tag"),
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Adopt(new_connection) => self.adopt(new_connection),
            Message::Done(key, done) => {
                if self.entries.get(key.index).is_some_and(|entry| entry.id == key.id) {
                    self.with_connection(key.index, |connection, cx| connection.work_done(done, cx));
                }
            }
            Message::Retry => self.with_each_connection(Connection::retry),
            Message::Stop(by) => self.stop(by),
            #[cfg(test)]
            Message::Die => std::panic::resume_unwind(Box::new("requested by the test")),
        }
    }

    fn stop(&mut self, by: Instant) {
        self.stop_at = Some(by);
        self.check_at(by);
        self.paused.clear();
        for index in 0..self.listeners.len() {
            self.ring.cancel(Tag::Accept(index).pack());
        }
        self.with_each_connection(|connection, cx| connection.drain("the server is shutting down", cx));
    }

    fn listen_for_messages(&mut self, buffer: Buffer) {
        let transfer = Transfer { buffer, range: 0..8, all: false };
        self.ring.read(self.resources.mailbox.eventfd(), transfer, Tag::Wake.pack());
    }

    fn adopt(&mut self, new_connection: NewConnection) {
        let NewConnection { socket, peer, slot } = new_connection;
        if self.stop_at.is_some() {
            return;
        }
        let id = self.resources.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let span = tracing::info_span!("nbd", connection = id, %peer, export = tracing::field::Empty);
        tracing::debug!(parent: &span, "connected");
        let config = Arc::clone(&self.resources.shared.config);
        let is_local = matches!(peer, Peer::Unix);
        let tls = if is_local { config.unix_tls } else { config.tcp_tls };
        let client = Client { peer: peer.to_string(), certificate_names: Vec::new(), is_local };
        let mut connection =
            Connection::new(span, client, tls, config, self.resources.now, &mut self.resources.pool);
        let socket = Arc::new(socket);
        connection.register_local_socket(&socket);
        assert!(
            self.entries.len() < self.resources.shared.config.max_connections,
            "the number of connections is bounded"
        );
        let index = self.entries.insert(ConnectionEntry {
            id,
            connection,
            socket,
            is_cancelled: false,
            is_shut_down: false,
            hang_up_poll: HangUpPoll::None,
            slot,
        });
        self.pump(index);
    }

    /// Passes an event to a connection, and starts the operations that it requests.
    fn with_connection(&mut self, index: usize, act: impl FnOnce(&mut Connection, &mut Context<'_>)) {
        if let Some(entry) = self.entries.get_mut(index) {
            assert!(self.resources.work.is_empty(), "queued jobs belong to one connection");
            self.resources.with_context(|cx| act(&mut entry.connection, cx));
            self.pump(index);
        }
    }

    /// Passes an event to each connection.
    fn with_each_connection(&mut self, act: impl Fn(&mut Connection, &mut Context<'_>)) {
        let indexes: Vec<usize> = self.entries.iter().map(|(index, _)| index).collect();
        for index in indexes {
            self.with_connection(index, &act);
        }
    }

    /// Starts the operations that a connection requests; removes a finished connection.
    fn pump(&mut self, index: usize) {
        let Some(entry) = self.entries.get_mut(index) else {
            return;
        };
        let key = ConnectionKey { index, id: entry.id };
        for work in self.resources.work.drain(..) {
            self.queues.send(Job { work, key, mailbox: Arc::clone(&self.resources.mailbox) });
        }
        let connection = &mut entry.connection;
        if let Some(transfer) = connection.start_send(self.resources.now, &mut self.resources.pool) {
            self.ring.send(&entry.socket, transfer, Tag::Send(index).pack());
        }
        if let Some(transfer) = connection.start_receive(self.resources.now) {
            self.ring.recv(&entry.socket, transfer, Tag::Receive(index).pack());
        }
        if connection.is_aborted() {
            if !std::mem::replace(&mut entry.is_shut_down, true) {
                // Ends the operations of the socket. Fails if the peer has disconnected, which ends them too.
                let _ = shutdown(&entry.socket, Shutdown::Both);
            }
        } else if connection.should_cancel_receive() && !std::mem::replace(&mut entry.is_cancelled, true) {
            self.ring.cancel(Tag::Receive(index).pack());
        }
        debug_assert!(
            !connection.is_aborted() || entry.is_shut_down,
            "the socket of an aborted connection is shut down"
        );
        if entry.hang_up_poll == HangUpPoll::None && connection.needs_hang_up_poll() {
            self.ring.hang_up(&entry.socket, Tag::HangUp(index).pack());
            entry.hang_up_poll = HangUpPoll::InProgress;
        }
        if connection.is_finished() {
            match entry.hang_up_poll {
                HangUpPoll::None => self.remove(index),
                // The index is reused only after the poll has ended.
                HangUpPoll::InProgress => {
                    self.ring.cancel(Tag::HangUp(index).pack());
                    entry.hang_up_poll = HangUpPoll::Cancelled;
                }
                HangUpPoll::Cancelled => {}
            }
        } else if let Some(check) = connection.next_check() {
            self.check_at(check);
        }
    }

    fn remove(&mut self, index: usize) {
        let entry = self.entries.remove(index);
        assert!(
            entry.hang_up_poll == HangUpPoll::None && entry.connection.is_finished(),
            "a connection ends after its operations"
        );
        let may_linger = entry.connection.may_linger();
        entry.connection.release(&mut self.resources.pool, &self.resources.shared.budget);
        if may_linger && shutdown(&entry.socket, Shutdown::Write).is_ok() {
            let socket = Arc::clone(&entry.socket);
            let (index, until) = self.lingering.insert(entry.socket, entry.slot, self.resources.now);
            let buffer = self.resources.pool.take(DISCARD_BUFFER_BYTES);
            self.start_discard(&socket, buffer, index);
            self.check_at(until);
        }
    }

    /// Starts a discarding receive.
    fn start_discard(&mut self, socket: &Arc<OwnedFd>, buffer: Buffer, index: usize) {
        let transfer = Transfer { buffer, range: 0..DISCARD_BUFFER_BYTES, all: false };
        self.ring.recv(socket, transfer, Tag::Linger(index).pack());
    }

    fn lingered(&mut self, index: usize, buffer: Buffer, has_ended: bool) {
        match self.lingering.received(index, has_ended, self.resources.now).map(Arc::clone) {
            Some(socket) => self.start_discard(&socket, buffer, index),
            None => self.resources.pool.give(buffer),
        }
    }

    fn hung_up(&mut self, index: usize, result: io::Result<()>) {
        if let Some(entry) = self.entries.get_mut(index) {
            assert!(entry.hang_up_poll != HangUpPoll::None, "a hang-up poll ends once");
            entry.hang_up_poll = HangUpPoll::None;
        }
        self.with_connection(index, |connection, cx| connection.hung_up(result, cx));
    }

    fn check_at(&mut self, at: Instant) {
        self.next_check = Some(self.next_check.map_or(at, |check| check.min(at)));
    }

    fn check_deadlines(&mut self) {
        if self.next_check.is_none_or(|check| check > self.resources.now) {
            return;
        }
        self.next_check = None;
        for index in std::mem::take(&mut self.paused) {
            self.accept(index);
        }
        let stop_at = self.stop_at;
        if let Some(stop_at) = stop_at {
            let end = stop_at.checked_add(ABORT_GRACE).unwrap_or(stop_at);
            self.check_at(if stop_at > self.resources.now { stop_at } else { end });
        }
        let over = stop_at.is_some_and(|stop_at| stop_at <= self.resources.now);
        for socket in self.lingering.overdue(self.resources.now, over) {
            // Ends the receive. Fails if the peer has disconnected, which ends it too.
            let _ = shutdown(&socket, Shutdown::Both);
        }
        if let Some(check) = self.lingering.next_check() {
            self.check_at(check);
        }
        self.with_each_connection(|connection, cx| {
            if over {
                connection.abort("the shutdown timed out", cx);
            } else {
                connection.check_time(cx);
            }
        });
    }
}

impl Drop for RingThread {
    fn drop(&mut self) {
        let left = self.entries.iter().filter(|(_, entry)| entry.connection.has_work()).count();
        if left > 0 {
            tracing::warn!(connections = left, "a server thread ends with requests in progress");
        }
        // Connections of other threads may wait for the charged bytes.
        for entry in self.entries.drain() {
            entry.connection.release(&mut self.resources.pool, &self.resources.shared.budget);
        }
    }
}
