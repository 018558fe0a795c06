//! State machine of a connection from greeting to end, without I/O: it requests receives and sends, and takes
//! their results. Receives pause while too much is in flight, so that a client that does not read is bounded.

pub(crate) mod budget;
pub(crate) mod buffer_pool;
pub(crate) mod flow;
mod inbox;
pub(crate) mod outbox;
pub(crate) mod remote_budgets;
pub(crate) mod remote_reads;
#[cfg(test)]
mod tests;
mod transfer_deadline;
mod transmission;

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::budget::Budget;
use crate::connection::buffer_pool::{Buffer, BufferPool};
use crate::connection::flow::{Context, Flow, Wake};
use crate::connection::inbox::{INBOX_BYTES, Inbox};
use crate::connection::outbox::Chunk;
use crate::connection::remote_reads::{LATE_AFTER, RemoteReads};
use crate::connection::transfer_deadline::TransferDeadline;
use crate::connection::transmission::{Pause, Transmission};
use crate::device::Client;
use crate::protocol::handshake::{Answer, Handshake, Step};
use crate::protocol::tls_option::TlsStage;
use crate::server::ring::Transfer;
use crate::server::worker::{Done, Work};
use crate::tls::identity::TlsIdentity;
use crate::tls::session::{Opened, TlsSession};

/// Timeouts and limits of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    pub(crate) handshake_timeout: Duration,
    /// Timeout for the last replies of an ending connection.
    pub(crate) drain_timeout: Duration,
    /// Timeout without progress in sending replies while others wait for their memory.
    pub(crate) stalled_send_timeout: Duration,
    /// Timeout without progress of an announced payload while others wait for its memory.
    pub(crate) stalled_receive_timeout: Duration,
    pub(crate) in_flight_bytes: u64,
    /// Idle timeout in transmission, for clients of other hosts.
    pub(crate) idle_timeout: Option<Duration>,
}

/// TLS that a connection can or must use.
#[derive(Clone)]
pub(crate) enum TlsOffer {
    Off,
    Allow(Arc<TlsIdentity>),
    Require(Arc<TlsIdentity>),
}

/// Encryption state of a connection.
enum Security {
    Plain,
    /// TLS starts when the acknowledgement has been sent.
    Starting,
    Tls(Box<TlsSession>),
    /// The handshake thread has the session: nothing is received or sent until it is back.
    Away,
}

enum Phase {
    Handshake(Handshake),
    Transmission(Box<Transmission>),
    /// No more input is processed.
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Open,
    /// Accepts no requests; ends when the requests in flight are answered.
    Draining,
    /// Ends as soon as its buffers are unused.
    Aborted,
}

/// Payload being received, whose memory others may wait for.
struct Payload {
    number: u64,
    deadline: TransferDeadline,
}

/// Send in progress.
struct Sending {
    range: Range<usize>,
    charge_bytes: u64,
}

/// Connection.
pub(crate) struct Connection {
    span: tracing::Span,
    client: Arc<Client>,
    limits: ConnectionLimits,
    life: Life,
    phase: Phase,
    tls: TlsOffer,
    security: Security,
    inbox: Inbox,
    flow: Flow,
    /// A receive is in progress. It ends with the first bytes.
    is_receiving: bool,
    payload: Option<Payload>,
    sending: Option<Sending>,
    /// Deadline for the client to read its replies.
    send_deadline: Option<TransferDeadline>,
    /// Rest of a short send.
    rest: Option<Chunk>,
    /// The client has closed its side.
    has_ended: bool,
    /// No input is processed until everything is sent: the negotiation is strictly sequential.
    in_step: bool,
    /// A request waits for others to finish.
    full: bool,
    /// A request waited since the last receive: the next input may have waited in the socket.
    was_full: bool,
    deadline: Option<Instant>,
    /// Time of the last receive or send.
    active_at: Instant,
}

impl Connection {
    /// Creates a connection that starts with the greeting.
    pub(crate) fn new(
        span: tracing::Span,
        client: Client,
        tls: TlsOffer,
        limits: ConnectionLimits,
        cx: &mut Context<'_>,
    ) -> Self {
        let stage = match tls {
            TlsOffer::Off => TlsStage::Unavailable,
            TlsOffer::Allow(_) => TlsStage::Offered,
            TlsOffer::Require(_) => TlsStage::Required,
        };
        let mut flow = Flow::new(limits.in_flight_bytes, cx.now);
        flow.outbox.push_bytes(&Handshake::greeting(), cx.pool);
        Self {
            span,
            client: Arc::new(client),
            limits,
            life: Life::Open,
            phase: Phase::Handshake(Handshake::with_tls(stage)),
            tls,
            security: Security::Plain,
            inbox: Inbox::new(cx.pool),
            flow,
            is_receiving: false,
            payload: None,
            sending: None,
            send_deadline: None,
            rest: None,
            has_ended: false,
            in_step: true,
            full: false,
            was_full: false,
            deadline: cx.now.checked_add(limits.handshake_timeout),
            active_at: cx.now,
        }
    }

    /// Registers the socket of a local client, which is gone when it closes its side. Call it before the
    /// first request.
    pub(crate) fn watch_local_peer(&mut self, socket: &Arc<OwnedFd>) {
        if self.client.is_local {
            self.flow.far = Arc::new(RemoteReads::of_local(Arc::clone(socket)));
        }
    }

    /// Returns the receive to start now, if any.
    pub(crate) fn start_receive(&mut self, now: Instant) -> Option<Transfer> {
        if self.life != Life::Open || self.is_receiving || self.full || self.in_step {
            return None;
        }
        let awaited = match &self.phase {
            Phase::Transmission(transmission) => transmission.awaited_payload(),
            Phase::Handshake(_) | Phase::Over => None,
        };
        if self.payload.as_ref().map(|payload| payload.number) != awaited {
            let deadline = TransferDeadline::new(self.limits.stalled_receive_timeout, now);
            self.payload = awaited.map(|number| Payload { number, deadline });
        }
        let wants_input = self.wants_input();
        let transfer = match &mut self.security {
            Security::Tls(session) if wants_input => session.start_receive(),
            Security::Tls(_) | Security::Away => None,
            Security::Plain | Security::Starting => self.place_for_input(),
        }?;
        self.is_receiving = true;
        Some(transfer)
    }

    /// Returns true if the current phase accepts input.
    fn wants_input(&self) -> bool {
        match &self.phase {
            Phase::Handshake(_) => self.flow.jobs == 0,
            Phase::Transmission(_) => true,
            Phase::Over => false,
        }
    }

    /// Returns the destination of the next input.
    fn place_for_input(&mut self) -> Option<Transfer> {
        match &mut self.phase {
            Phase::Handshake(_) if self.flow.jobs > 0 => None,
            Phase::Handshake(_) => self.inbox.start_receive(INBOX_BYTES),
            Phase::Transmission(transmission) => transmission.start_receive(&mut self.inbox),
            Phase::Over => None,
        }
    }

    /// Passes input to the current phase.
    fn put_input(&mut self, buffer: Buffer, len_bytes: usize, cx: &mut Context<'_>) {
        match &mut self.phase {
            Phase::Transmission(transmission) => {
                transmission.end_receive(&mut self.inbox, buffer, len_bytes);
            }
            Phase::Handshake(_) => self.inbox.end_receive(buffer, len_bytes),
            Phase::Over => cx.pool.give(buffer),
        }
    }

    /// Ends a receive.
    pub(crate) fn end_receive(&mut self, buffer: Buffer, result: io::Result<usize>, cx: &mut Context<'_>) {
        self.is_receiving = false;
        self.active_at = cx.now;
        if !std::mem::take(&mut self.was_full) {
            let is_late = cx.now.duration_since(cx.looked_before) >= LATE_AFTER;
            self.flow.received_at = if is_late { cx.looked_before } else { cx.now };
        }
        self.has_ended |= matches!(result, Ok(0));
        let len_bytes = *result.as_ref().unwrap_or(&0);
        if let Some(payload) = &mut self.payload {
            payload.deadline.moved(len_bytes as u64, cx.now);
        }
        match &mut self.security {
            Security::Tls(session) => session.end_receive(buffer, len_bytes),
            Security::Plain | Security::Starting => self.put_input(buffer, len_bytes, cx),
            // No receive is in progress then.
            Security::Away => cx.pool.give(buffer),
        }
        if self.life != Life::Open {
            return;
        }
        match result {
            // Either the kernel, which resends the requests on another connection, or a process that has
            // ended.
            Ok(0) if self.client.is_local => self.abort("the client closed the connection", cx),
            Ok(0) => {
                // Requests on local data are still answered, for clients that close one side only.
                self.flow.recall();
                self.drain("the client closed the connection", cx);
            }
            Ok(_) => self.take_input(cx),
            Err(error) => self.abort(&format!("receiving failed: {error}"), cx),
        }
    }

    /// Processes received bytes.
    fn take_input(&mut self, cx: &mut Context<'_>) {
        self.advance(cx);
        if matches!(self.security, Security::Tls(_)) {
            self.decrypt(cx);
        }
    }

    /// Decrypts as long as the phase accepts input.
    fn decrypt(&mut self, cx: &mut Context<'_>) {
        while self.life == Life::Open && !self.full && !self.in_step {
            if self.start_handshake_job(cx) {
                return;
            }
            let Some(mut place) = self.place_for_input() else {
                return;
            };
            let Security::Tls(session) = &mut self.security else {
                return;
            };
            let opened = session.open(&mut place.buffer.framed_mut()[place.range]);
            let len_bytes = if let Ok(Opened::Plain(len_bytes)) = opened { len_bytes } else { 0 };
            self.put_input(place.buffer, len_bytes, cx);
            match self.opened(opened, cx) {
                true => self.advance(cx),
                false => return,
            }
        }
    }

    /// Hands an incomplete handshake to another thread: its computation would delay other connections.
    fn start_handshake_job(&mut self, cx: &mut Context<'_>) -> bool {
        match std::mem::replace(&mut self.security, Security::Away) {
            Security::Tls(session) if session.is_handshaking() && session.has_news() => {
                self.flow.start(Work::Handshake(session), cx);
                true
            }
            security => {
                let waits = matches!(&security, Security::Tls(session) if session.is_handshaking());
                self.security = security;
                waits
            }
        }
    }

    /// Takes the session back.
    fn handshake_done(
        &mut self,
        session: Box<TlsSession>,
        opened: Result<Opened, rustls::Error>,
        cx: &mut Context<'_>,
    ) {
        let session = match self.security {
            Security::Away => session,
            // It can only return to this connection.
            _ => return session.discard(cx.pool),
        };
        self.security = Security::Tls(session);
        match self.life {
            Life::Open => {
                self.opened(opened, cx);
                self.take_input(cx);
            }
            Life::Draining => {}
            Life::Aborted => self.clear_session(cx.pool),
        }
    }

    fn clear_session(&mut self, pool: &mut BufferPool) {
        if let Security::Tls(session) = &mut self.security {
            session.clear(pool);
        }
    }

    /// Processes the result of the TLS session; returns true if there is plaintext.
    fn opened(&mut self, opened: Result<Opened, rustls::Error>, cx: &mut Context<'_>) -> bool {
        let Security::Tls(session) = &mut self.security else {
            return false;
        };
        if let Some(certificate_names) = session.established() {
            let suite = session.describe();
            let span = &self.span;
            tracing::debug!(parent: span, suite, names = ?certificate_names, "TLS is in use");
            self.client = Arc::new(Client { certificate_names, ..Client::clone(&self.client) });
        }
        match opened {
            Ok(Opened::Plain(_)) => return true,
            Ok(Opened::NeedInput) if session.is_clogged() => {
                self.abort("a TLS handshake message is too long", cx);
            }
            Ok(Opened::NeedInput) => {}
            Ok(Opened::Closed) => self.drain("the client closed the TLS session", cx),
            Err(error) => {
                tracing::info!(parent: &self.span, %error, "the TLS session failed");
                // The alert is still sent; replies cannot be.
                self.flow.outbox.clear(cx.pool);
                self.drain("the TLS session failed", cx);
            }
        }
        false
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
                Security::Away => return None,
                Security::Plain | Security::Starting => self.flow.outbox.pop()?,
            },
        };
        self.send_deadline
            .get_or_insert_with(|| TransferDeadline::new(self.limits.stalled_send_timeout, now));
        self.sending = Some(Sending { range: chunk.range.clone(), charge_bytes: chunk.charge_bytes });
        Some(Transfer { buffer: chunk.buffer, range: chunk.range, all: true })
    }

    /// Encrypts the next replies; the last ones of an ending connection are followed by a close alert.
    fn encrypt(&mut self, pool: &mut BufferPool) -> Option<Chunk> {
        let Security::Tls(session) = &mut self.security else {
            return None;
        };
        let is_last = self.life == Life::Draining && self.flow.jobs == 0;
        match session.seal(&mut self.flow.outbox, pool, is_last) {
            Ok(chunk) => chunk,
            Err(error) => {
                self.drop_all(error.0, pool);
                None
            }
        }
    }

    /// Returns true if everything is being sent or was sent.
    fn is_flushed(&self) -> bool {
        self.rest.is_none()
            && self.flow.outbox.is_empty()
            && if let Security::Tls(session) = &self.security { session.is_flushed() } else { true }
    }

    /// Ends a send.
    pub(crate) fn end_send(&mut self, buffer: Buffer, result: io::Result<usize>, cx: &mut Context<'_>) {
        let Some(Sending { mut range, charge_bytes }) = self.sending.take() else {
            return;
        };
        self.active_at = cx.now;
        let len_bytes = *result.as_ref().unwrap_or(&0);
        if let Some(deadline) = &mut self.send_deadline {
            // Short replies release more than their length.
            let given_back = if len_bytes < range.len() { 0 } else { charge_bytes };
            deadline.moved(given_back.max(len_bytes as u64), cx.now);
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
                if self.in_step && self.is_flushed() {
                    self.in_step = false;
                    if matches!(self.security, Security::Starting) {
                        self.start_tls(cx);
                    }
                    self.take_input(cx);
                } else if self.full {
                    self.take_input(cx);
                }
            }
            Err(error) => {
                cx.pool.give(buffer);
                self.flow.release(charge_bytes, cx);
                let why = format!("sending failed: {error}");
                // A client that sent DISC may have closed the socket: its requests are executed anyway.
                if self.flow.has_taken_leave() && self.life == Life::Draining {
                    self.flow.recall();
                    self.drop_replies(&why, cx.pool);
                } else {
                    self.abort(&why, cx);
                }
            }
        }
    }

    /// Processes the result of work.
    pub(crate) fn work_done(&mut self, done: Done, cx: &mut Context<'_>) {
        self.flow.jobs -= 1;
        match done {
            Done::Request(done) => {
                if let (Phase::Transmission(transmission), Err(failure)) = (&mut self.phase, &done.result) {
                    let _entered = self.span.enter();
                    transmission.report(failure);
                }
                transmission::finish(done, &mut self.flow, cx);
                let is_over = match &self.security {
                    Security::Tls(session) => session.is_over(),
                    Security::Plain | Security::Starting | Security::Away => false,
                };
                if is_over || self.life == Life::Aborted {
                    self.flow.outbox.clear(cx.pool);
                }
                if self.full {
                    self.take_input(cx);
                }
            }
            Done::Answer(answer) if self.life == Life::Open => self.answer(answer, cx),
            Done::Answer(_) => {}
            Done::Handshake(session, opened) => self.handshake_done(session, opened, cx),
        }
    }

    /// Retries requests that waited for budget.
    pub(crate) fn retry(&mut self, cx: &mut Context<'_>) {
        if self.full {
            self.take_input(cx);
        }
    }

    /// Stops accepting requests and ends when those in flight are answered, or after the drain timeout.
    pub(crate) fn drain(&mut self, why: &str, cx: &mut Context<'_>) {
        if self.life != Life::Open {
            return;
        }
        if !matches!(self.phase, Phase::Over) {
            tracing::debug!(parent: &self.span, reason = why, "the connection ends");
        }
        self.life = Life::Draining;
        self.phase = Phase::Over;
        self.full = false;
        self.flow.stop_waiting(cx.budget);
        self.deadline = cx.now.checked_add(self.limits.drain_timeout);
    }

    /// Ends at once, without answering requests in flight.
    pub(crate) fn abort(&mut self, why: &str, cx: &mut Context<'_>) {
        self.flow.stop_waiting(cx.budget);
        self.drop_all(why, cx.pool);
    }

    fn drop_all(&mut self, why: &str, pool: &mut BufferPool) {
        self.flow.abandon();
        self.deadline = None;
        self.drop_replies(why, pool);
    }

    /// Stops sending.
    fn drop_replies(&mut self, why: &str, pool: &mut BufferPool) {
        if self.life == Life::Aborted {
            return;
        }
        tracing::debug!(parent: &self.span, reason = why, "the connection is dropped");
        self.life = Life::Aborted;
        self.phase = Phase::Over;
        self.full = false;
        if let Some(rest) = self.rest.take() {
            pool.give(rest.buffer);
        }
        self.flow.outbox.clear(pool);
        self.clear_session(pool);
    }

    /// Checks the timeouts.
    pub(crate) fn check_time(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let what = if self.life == Life::Open {
                "the negotiation took too long"
            } else {
                "the end took too long"
            };
            self.abort(what, cx);
            return;
        }
        if self.idle_until().is_some_and(|until| until <= now) {
            if self.is_idle() {
                self.drain("it was idle for too long", cx);
            } else {
                self.active_at = now;
            }
        }
        if self.life != Life::Aborted
            && let Some(deadline) = &mut self.send_deadline
            && deadline.ends_at() <= now
        {
            if self.flow.others_wait(cx.budget) {
                self.abort("the client does not read its replies, and others wait for their memory", cx);
            } else {
                deadline.renew(now);
            }
        }
        if self.life == Life::Open
            && self.is_receiving
            && let Some(payload) = &mut self.payload
            && payload.deadline.ends_at() <= now
        {
            if self.flow.others_wait(cx.budget) {
                let why =
                    "the client does not send the payload that it announced, and others wait for its memory";
                self.abort(why, cx);
            } else {
                payload.deadline.renew(now);
            }
        }
    }

    /// Returns true if no receive is in progress because too much is in flight: the disconnect of a local
    /// client, or of one with remote data, must be detected in another way.
    pub(crate) fn is_to_be_watched(&self) -> bool {
        let is_awaited = self.client.is_local || self.flow.may_wait_for_remote_data();
        self.life == Life::Open && self.full && is_awaited
    }

    /// Processes a hang-up. A local client is gone; another one may be, so its remote data is not waited for.
    pub(crate) fn hung_up(&mut self, result: io::Result<()>, cx: &mut Context<'_>) {
        // If input follows, the end of the stream follows behind it.
        if !self.is_to_be_watched() {
            return;
        }
        match result {
            Ok(()) if self.client.is_local => self.abort("the client closed the connection", cx),
            Ok(()) => self.flow.recall(),
            Err(error) => self.abort(&format!("it cannot be seen whether the client goes: {error}"), cx),
        }
    }

    /// Returns the time of the next [`check_time`](Self::check_time).
    pub(crate) fn next_check(&self) -> Option<Instant> {
        let sending = self.send_deadline.as_ref().filter(|_| self.life != Life::Aborted);
        let receiving = self.payload.as_ref().filter(|_| self.life == Life::Open && self.is_receiving);
        let checks = [
            self.deadline,
            self.idle_until(),
            sending.map(TransferDeadline::ends_at),
            receiving.map(|payload| payload.deadline.ends_at()),
        ];
        checks.into_iter().flatten().min()
    }

    /// Returns the end of the idle timeout.
    fn idle_until(&self) -> Option<Instant> {
        // Kernel devices of this host may be idle and must stay connected.
        let is_waiting =
            self.life == Life::Open && matches!(self.phase, Phase::Transmission(_)) && !self.client.is_local;
        let timeout = self.limits.idle_timeout.filter(|_| is_waiting)?;
        self.active_at.checked_add(timeout)
    }

    fn is_idle(&self) -> bool {
        self.flow.jobs == 0 && self.sending.is_none() && !self.full && self.is_flushed()
    }

    /// Returns true if the client has not closed its side and may still have to read its replies.
    pub(crate) fn may_linger(&self) -> bool {
        self.life == Life::Draining && !self.has_ended
    }

    /// Returns true if the receive should be cancelled.
    pub(crate) fn refuses_input(&self) -> bool {
        self.life != Life::Open && self.is_receiving
    }

    /// Returns true if the socket should be shut down.
    pub(crate) fn is_aborted(&self) -> bool {
        self.life == Life::Aborted
    }

    /// Returns true if nothing is in progress or left to do.
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

    /// Returns the memory of queued replies, in bytes.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn held_bytes(&self) -> usize {
        self.flow.outbox.held_bytes()
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
    pub(crate) fn release(mut self, pool: &mut BufferPool, budget: &Budget<Wake>) {
        self.inbox.discard(pool);
        if let Security::Tls(session) = self.security {
            session.discard(pool);
        }
        self.flow.outbox.clear(pool);
        self.flow.release_all(budget);
    }

    /// Processes the inbox as far as possible.
    fn advance(&mut self, cx: &mut Context<'_>) {
        if self.life != Life::Open || self.in_step {
            return;
        }
        match &mut self.phase {
            Phase::Handshake(_) => self.negotiate(cx),
            Phase::Transmission(transmission) => {
                let pause = {
                    let _entered = self.span.enter();
                    transmission.consume(&mut self.inbox, &mut self.flow, cx)
                };
                self.full = pause == Pause::Full;
                self.was_full |= self.full;
                match pause {
                    Pause::Input | Pause::Full => {}
                    Pause::Disconnect => {
                        self.flow.take_leave();
                        self.drain("the client disconnected", cx);
                    }
                    Pause::Gone => self.abort("the client closed the connection", cx),
                    Pause::Broken(why) => self.drain(why, cx),
                }
            }
            Phase::Over => {}
        }
    }

    fn negotiate(&mut self, cx: &mut Context<'_>) {
        while let Phase::Handshake(handshake) = &mut self.phase {
            if self.life != Life::Open || self.in_step || self.flow.jobs > 0 {
                return;
            }
            let mut out = Vec::new();
            let (consumed_bytes, step) = handshake.feed(self.inbox.unread(), &mut out);
            self.inbox.consume(consumed_bytes);
            if matches!(step, Step::NeedInput) {
                return;
            }
            self.step(step, &out, cx);
        }
    }

    fn answer(&mut self, answer: Answer, cx: &mut Context<'_>) {
        if let Phase::Handshake(handshake) = &mut self.phase {
            let mut out = Vec::new();
            let step = handshake.answer(answer, &mut out);
            self.step(step, &out, cx);
            self.take_input(cx);
        }
    }

    /// Starts TLS after its acknowledgement.
    fn start_tls(&mut self, cx: &mut Context<'_>) {
        let session = match &self.tls {
            TlsOffer::Allow(identity) | TlsOffer::Require(identity) => identity.accept(),
            TlsOffer::Off => return self.abort("there is no TLS here", cx),
        };
        match session {
            Ok(session) => {
                self.security = Security::Tls(Box::new(TlsSession::new(session, cx.pool)));
                if let Phase::Handshake(handshake) = &mut self.phase {
                    handshake.secured();
                }
            }
            Err(error) => self.abort(&format!("TLS could not be started: {error}"), cx),
        }
    }

    fn step(&mut self, step: Step, out: &[u8], cx: &mut Context<'_>) {
        if !out.is_empty() {
            self.flow.outbox.push_bytes(out, cx.pool);
            self.in_step = true;
        }
        match step {
            Step::NeedInput | Step::Continue => {}
            Step::Lookup(lookup) => self.flow.start(Work::Lookup(lookup, Arc::clone(&self.client)), cx),
            // Plaintext behind the option is injected or erroneous.
            Step::StartTls if !self.inbox.unread().is_empty() => {
                self.abort("bytes came between STARTTLS and its acknowledgement", cx);
            }
            Step::StartTls => self.security = Security::Starting,
            Step::Close(reason) => self.drain(&reason.to_string(), cx),
            Step::Transmit(opened, agreed) => {
                let Some(device) = opened.device else {
                    return self.drain("the export came without its device", cx);
                };
                self.span.record("export", opened.name.as_str());
                tracing::info!(
                    parent: &self.span,
                    size_bytes = opened.size_bytes,
                    read_only = opened.read_only,
                    "the client entered transmission"
                );
                self.deadline = None;
                if device.may_be_remote() {
                    self.flow.extend_for_remote_data(cx.remote_budgets.of(device.source_key()));
                }
                let transmission = Transmission::new(device, opened.size_bytes, opened.read_only, agreed);
                self.phase = Phase::Transmission(Box::new(transmission));
            }
        }
    }
}
