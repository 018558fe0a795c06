//! State machine of a connection from greeting to end, without I/O: it requests receives and sends, and
//! processes their results. It stops receiving at the in-flight limits, which bound the memory of clients
//! that do not read.

pub(crate) mod budget;
pub(crate) mod buffer_pool;
pub(crate) mod flow;
mod negotiation;
mod receive_buffer;
pub(crate) mod remote_budgets;
pub(crate) mod remote_requests;
pub(crate) mod reply_queue;
#[cfg(test)]
mod tests;
mod time_limits;
mod tls;
mod transfer_deadline;
mod transmission;

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use crate::config::ServerConfig;
use crate::connection::budget::Budget;
use crate::connection::buffer_pool::{Buffer, BufferPool};
use crate::connection::flow::{Context, Flow};
use crate::connection::receive_buffer::{RECEIVE_BUFFER_BYTES, ReceiveBuffer};
use crate::connection::remote_requests::{LATE_AFTER, RemoteRequests};
use crate::connection::reply_queue::Chunk;
use crate::connection::transfer_deadline::{Payload, TransferDeadline};
use crate::connection::transmission::{Pause, Scope, Transmission};
use crate::device::Client;
use crate::protocol::handshake::Handshake;
use crate::protocol::tls_option::TlsStage;
use crate::server::ring::Transfer;
use crate::server::worker::Done;
use crate::tls::identity::TlsMode;
use crate::tls::session::TlsSession;

enum Phase {
    Handshake(Handshake),
    Transmission(Box<Transmission>),
    /// Input is no longer processed.
    Ended,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Open,
    /// Accepts no new requests; ends when the requests in flight are answered.
    Draining,
    /// Sends nothing; ends when no operation is in progress.
    Aborted,
}

/// Encryption state of a connection.
enum Security {
    Plain,
    /// TLS starts once the acknowledgement of STARTTLS is sent.
    Starting,
    Tls(Box<TlsSession>),
    /// The handshake thread owns the session; the connection neither receives nor sends.
    InHandshakeJob,
}

/// Send in progress.
struct Sending {
    range: Range<usize>,
    charge_bytes: u64,
}

/// Connection of one client.
pub(crate) struct Connection {
    span: tracing::Span,
    client: Arc<Client>,
    config: Arc<ServerConfig>,
    life: Life,
    phase: Phase,
    security: Security,
    receive_buffer: ReceiveBuffer,
    flow: Flow,
    /// A receive is in progress. It completes with the first bytes.
    is_receiving: bool,
    payload: Option<Payload>,
    sending: Option<Sending>,
    /// Deadline for the client to read its replies, while some are unsent.
    send_deadline: Option<TransferDeadline>,
    /// Unsent rest of a short send.
    rest: Option<Chunk>,
    /// The client has closed its side.
    peer_closed: bool,
    /// Input is not processed until everything is sent: the negotiation is strictly sequential.
    awaits_flush: bool,
    /// A request waits for the completion of others or for budget.
    is_throttled: bool,
    /// A request has waited since the last receive, so the next input may have waited in the socket.
    was_throttled: bool,
    deadline: Option<Instant>,
    /// Time of the last receive or send.
    active_at: Instant,
}

impl Connection {
    /// Creates a connection that starts with the greeting.
    pub(crate) fn new(
        span: tracing::Span,
        client: Client,
        tls: TlsMode,
        config: Arc<ServerConfig>,
        now: Instant,
        pool: &mut BufferPool,
    ) -> Self {
        let stage = match tls {
            TlsMode::Off => TlsStage::Unavailable,
            TlsMode::Allow => TlsStage::Offered,
            TlsMode::Require => TlsStage::Required,
        };
        assert!(tls == TlsMode::Off || config.tls.is_some(), "offered TLS has a certificate");
        let mut flow = Flow::new(config.in_flight_bytes_per_connection, now);
        flow.reply_queue.push_bytes(&Handshake::greeting(), pool);
        Self {
            span,
            client: Arc::new(client),
            life: Life::Open,
            phase: Phase::Handshake(Handshake::with_tls(stage)),
            security: Security::Plain,
            receive_buffer: ReceiveBuffer::new(pool),
            flow,
            is_receiving: false,
            payload: None,
            sending: None,
            send_deadline: None,
            rest: None,
            peer_closed: false,
            awaits_flush: true,
            is_throttled: false,
            was_throttled: false,
            deadline: now.checked_add(config.handshake_timeout),
            active_at: now,
            config,
        }
    }

    /// Registers the socket of a local client, which has disconnected when it closes its side. Must precede
    /// the first request.
    pub(crate) fn register_local_socket(&mut self, socket: &Arc<OwnedFd>) {
        if self.client.is_local {
            self.flow.remote_requests = Arc::new(RemoteRequests::of_local(Arc::clone(socket)));
        }
    }

    /// Returns the receive to start now, if any.
    pub(crate) fn start_receive(&mut self, now: Instant) -> Option<Transfer> {
        if self.life != Life::Open || self.is_receiving || self.is_throttled || self.awaits_flush {
            return None;
        }
        let awaited = match &self.phase {
            Phase::Transmission(transmission) => transmission.awaited_payload(),
            Phase::Handshake(_) | Phase::Ended => None,
        };
        if self.payload.as_ref().map(|payload| payload.number) != awaited {
            let deadline = TransferDeadline::new(self.config.stalled_receive_timeout, now);
            self.payload = awaited.map(|number| Payload { number, deadline });
        }
        let accepts_input = self.accepts_input();
        let transfer = match &mut self.security {
            Security::Tls(session) if accepts_input => session.start_receive(),
            Security::Tls(_) | Security::InHandshakeJob => None,
            Security::Plain | Security::Starting => self.input_target(),
        }?;
        // The result of an empty receive is the same as the end of the stream.
        assert!(!transfer.range.is_empty(), "a receive is not empty");
        self.is_receiving = true;
        Some(transfer)
    }

    /// Returns true if the current phase accepts input.
    fn accepts_input(&self) -> bool {
        match &self.phase {
            Phase::Handshake(_) => self.flow.jobs == 0,
            Phase::Transmission(_) => true,
            Phase::Ended => false,
        }
    }

    /// Returns the buffer range for the next input of the current phase.
    fn input_target(&mut self) -> Option<Transfer> {
        match &mut self.phase {
            Phase::Handshake(_) if self.flow.jobs > 0 => None,
            Phase::Handshake(_) => self.receive_buffer.start_receive(RECEIVE_BUFFER_BYTES),
            Phase::Transmission(transmission) => transmission.start_receive(&mut self.receive_buffer),
            Phase::Ended => None,
        }
    }

    /// Passes input to the current phase.
    fn put_input(&mut self, buffer: Buffer, len_bytes: usize, cx: &mut Context<'_>) {
        match &mut self.phase {
            Phase::Transmission(transmission) => {
                transmission.end_receive(&mut self.receive_buffer, buffer, len_bytes);
            }
            Phase::Handshake(_) => self.receive_buffer.end_receive(buffer, len_bytes),
            Phase::Ended => cx.pool.give(buffer),
        }
    }

    /// Ends a receive.
    pub(crate) fn end_receive(&mut self, buffer: Buffer, result: io::Result<usize>, cx: &mut Context<'_>) {
        assert!(self.is_receiving, "a receive ends once");
        self.is_receiving = false;
        self.active_at = cx.now;
        if !std::mem::take(&mut self.was_throttled) {
            let is_late = cx.now.duration_since(cx.previous_wait_at) >= LATE_AFTER;
            self.flow.received_at = if is_late { cx.previous_wait_at } else { cx.now };
        }
        self.peer_closed |= matches!(result, Ok(0));
        let len_bytes = *result.as_ref().unwrap_or(&0);
        if let Some(payload) = &mut self.payload {
            payload.deadline.moved(len_bytes as u64, cx.now);
        }
        match &mut self.security {
            Security::Tls(session) => session.end_receive(buffer, len_bytes),
            Security::Plain | Security::Starting => self.put_input(buffer, len_bytes, cx),
            // No receive is in progress then.
            Security::InHandshakeJob => cx.pool.give(buffer),
        }
        if self.life != Life::Open {
            return;
        }
        match result {
            // The kernel resends the requests on another connection; a process has ended.
            Ok(0) if self.client.is_local => self.abort("the client closed the connection", cx),
            Ok(0) => {
                // Requests on local data are still answered: the client may have closed one side only.
                self.flow.remote_requests.close_waiting();
                self.drain("the client closed the connection", cx);
            }
            Ok(_) => self.take_input(cx),
            Err(error) => self.abort(&format!("receive failed: {error}"), cx),
        }
    }

    /// Processes received bytes.
    fn take_input(&mut self, cx: &mut Context<'_>) {
        self.advance(cx);
        if matches!(self.security, Security::Tls(_)) {
            self.decrypt(cx);
        }
        debug_assert!(self.flow.is_bounded(), "the charges bound the memory of replies");
    }

    /// Returns the send to start now, if any.
    pub(crate) fn start_send(&mut self, now: Instant, pool: &mut BufferPool) -> Option<Transfer> {
        if self.sending.is_some() || self.life == Life::Aborted {
            return None;
        }
        let chunk = match self.rest.take() {
            Some(rest) => rest,
            None => match self.security {
                Security::Tls(_) => self.encrypt(pool)?,
                Security::InHandshakeJob => return None,
                Security::Plain | Security::Starting => self.flow.reply_queue.pop()?,
            },
        };
        self.send_deadline
            .get_or_insert_with(|| TransferDeadline::new(self.config.stalled_send_timeout, now));
        assert!(!chunk.range.is_empty(), "a send has bytes");
        self.sending = Some(Sending { range: chunk.range.clone(), charge_bytes: chunk.charge_bytes });
        Some(Transfer { buffer: chunk.buffer, range: chunk.range, all: true })
    }

    /// Returns true if no bytes are queued for a send.
    fn is_flushed(&self) -> bool {
        self.rest.is_none()
            && self.flow.reply_queue.is_empty()
            && if let Security::Tls(session) = &self.security { session.is_flushed() } else { true }
    }

    /// Ends a send.
    pub(crate) fn end_send(&mut self, buffer: Buffer, result: io::Result<usize>, cx: &mut Context<'_>) {
        assert!(self.sending.is_some() && self.rest.is_none(), "a send ends once");
        let Some(Sending { mut range, charge_bytes }) = self.sending.take() else {
            return;
        };
        self.active_at = cx.now;
        let len_bytes = *result.as_ref().unwrap_or(&0);
        assert!(len_bytes <= range.len(), "a send moves at most its range");
        if let Some(deadline) = &mut self.send_deadline {
            // The charge of short replies exceeds their length.
            let released_bytes = if len_bytes < range.len() { 0 } else { charge_bytes };
            deadline.moved(released_bytes.max(len_bytes as u64), cx.now);
        }
        match result {
            Ok(_) if len_bytes < range.len() => {
                range.start += len_bytes;
                self.rest = Some(Chunk { buffer, range, charge_bytes });
            }
            Ok(_) => {
                cx.pool.give(buffer);
                self.flow.release(charge_bytes, cx);
                if self.is_flushed() {
                    self.send_deadline = None;
                }
                if self.awaits_flush && self.is_flushed() {
                    self.awaits_flush = false;
                    if matches!(self.security, Security::Starting) {
                        self.start_tls(cx);
                    }
                    self.take_input(cx);
                } else if self.is_throttled {
                    self.take_input(cx);
                }
            }
            Err(error) => {
                cx.pool.give(buffer);
                self.flow.release(charge_bytes, cx);
                let why = format!("send failed: {error}");
                // A client may close its socket after DISC; its requests are executed.
                if self.flow.remote_requests.has_sent_disconnect() && self.life == Life::Draining {
                    self.flow.remote_requests.close_waiting();
                    self.drop_replies(&why, cx.pool);
                } else {
                    self.abort(&why, cx);
                }
            }
        }
    }

    /// Processes the result of work.
    pub(crate) fn work_done(&mut self, done: Done, cx: &mut Context<'_>) {
        assert!(self.flow.jobs > 0, "work ends once");
        self.flow.jobs -= 1;
        match done {
            Done::Request(done) => {
                if let (Phase::Transmission(transmission), Err(failure)) = (&mut self.phase, &done.result) {
                    let _entered = self.span.enter();
                    transmission.report(&done.request, failure, cx.now);
                }
                transmission::finish(done, &mut self.flow, cx);
                let is_over = match &self.security {
                    Security::Tls(session) => session.is_over(),
                    Security::Plain | Security::Starting | Security::InHandshakeJob => false,
                };
                if is_over || self.life == Life::Aborted {
                    self.flow.reply_queue.clear(cx.pool);
                }
                if self.is_throttled {
                    self.take_input(cx);
                }
            }
            Done::LookupResult(result) if self.life == Life::Open => self.lookup_done(result, cx),
            Done::LookupResult(_) => {}
            Done::Handshake(session, opened) => self.handshake_done(session, opened, cx),
        }
    }

    /// Retries requests that waited for budget.
    pub(crate) fn retry(&mut self, cx: &mut Context<'_>) {
        if self.is_throttled {
            self.take_input(cx);
        }
    }

    /// Stops accepting requests; the connection ends when those in flight are answered, or after the drain
    /// timeout.
    pub(crate) fn drain(&mut self, why: &str, cx: &mut Context<'_>) {
        if self.life != Life::Open {
            return;
        }
        if !matches!(self.phase, Phase::Ended) {
            tracing::debug!(parent: &self.span, reason = why, "draining the connection");
        }
        self.life = Life::Draining;
        self.phase = Phase::Ended;
        self.is_throttled = false;
        self.flow.stop_waiting(cx.budget);
        self.deadline = cx.now.checked_add(self.config.drain_timeout);
    }

    /// Aborts the connection without answering requests in flight.
    pub(crate) fn abort(&mut self, why: &str, cx: &mut Context<'_>) {
        self.flow.stop_waiting(cx.budget);
        self.drop_all(why, cx.pool);
    }

    fn drop_all(&mut self, why: &str, pool: &mut BufferPool) {
        self.flow.remote_requests.abandon();
        self.deadline = None;
        self.drop_replies(why, pool);
    }

    /// Aborts the connection, but lets its requests run.
    fn drop_replies(&mut self, why: &str, pool: &mut BufferPool) {
        if self.life == Life::Aborted {
            return;
        }
        tracing::debug!(parent: &self.span, reason = why, "aborting the connection");
        self.life = Life::Aborted;
        self.phase = Phase::Ended;
        self.is_throttled = false;
        if let Some(rest) = self.rest.take() {
            pool.give(rest.buffer);
        }
        self.flow.reply_queue.clear(pool);
        self.clear_session(pool);
        debug_assert!(self.is_flushed(), "an aborted connection sends nothing more");
    }

    /// Returns true if the client has not closed its side and may still read replies.
    pub(crate) fn may_linger(&self) -> bool {
        self.life == Life::Draining && !self.peer_closed
    }

    /// Returns true if the receive should be cancelled.
    pub(crate) fn should_cancel_receive(&self) -> bool {
        self.life != Life::Open && self.is_receiving
    }

    /// Returns true if the socket should be shut down.
    pub(crate) fn is_aborted(&self) -> bool {
        self.life == Life::Aborted
    }

    /// Returns true if nothing is in progress and nothing remains to be sent.
    pub(crate) fn is_finished(&self) -> bool {
        let idle = !self.is_receiving && self.sending.is_none() && self.flow.jobs == 0;
        let closed = if let Security::Tls(session) = &self.security { session.is_over() } else { true };
        let sent = closed && self.is_flushed();
        idle && match self.life {
            Life::Open => false,
            Life::Draining => sent,
            Life::Aborted => true,
        }
    }

    #[cfg(test)]
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.flow.charged_bytes()
    }

    /// Returns true if requests run on other threads.
    pub(crate) fn has_work(&self) -> bool {
        self.flow.jobs > 0
    }

    /// Releases all resources of the connection.
    pub(crate) fn release(mut self, pool: &mut BufferPool, budget: &Budget) {
        self.receive_buffer.discard(pool);
        if let Security::Tls(session) = self.security {
            session.discard(pool);
        }
        self.flow.reply_queue.clear(pool);
        self.flow.release_all(budget);
    }

    /// Processes received bytes as far as possible.
    fn advance(&mut self, cx: &mut Context<'_>) {
        if self.life != Life::Open || self.awaits_flush {
            return;
        }
        match &mut self.phase {
            Phase::Handshake(_) => self.negotiate(cx),
            Phase::Transmission(transmission) => {
                let pause = {
                    let _entered = self.span.enter();
                    let (receive_buffer, flow) = (&mut self.receive_buffer, &mut self.flow);
                    transmission.consume(&mut Scope { receive_buffer, flow, cx })
                };
                self.is_throttled = pause == Pause::Throttled;
                self.was_throttled |= self.is_throttled;
                match pause {
                    Pause::Input | Pause::Throttled => {}
                    Pause::Disconnect => {
                        self.flow.remote_requests.record_disconnect();
                        self.drain("the client disconnected", cx);
                    }
                    Pause::HungUp => self.abort("the client closed the connection", cx),
                    Pause::Violation(why) => self.drain(why, cx),
                }
            }
            Phase::Ended => {}
        }
    }
}
