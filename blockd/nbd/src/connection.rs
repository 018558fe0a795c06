//! One connection from its greeting to its end, without I/O: it says what to receive and what to send, and is
//! told what became of that. Receives stop while too much is in flight, so a client that does not read costs
//! no more than its limit.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::budget::Budget;
use crate::buffer_pool::{Buffer, BufferPool};
use crate::device::Client;
use crate::far::{FarRequests, LATE_AFTER};
use crate::flow::{Context, Flow, Wake};
use crate::handshake::{Answer, Handshake, Step};
use crate::inbox::{INBOX_BYTES, Inbox};
use crate::outbox::Chunk;
use crate::ring::Transfer;
use crate::tls::{Opened, TlsSession};
use crate::tls_identity::TlsIdentity;
use crate::tls_option::TlsStage;
use crate::transfer_deadline::TransferDeadline;
use crate::transmission::{self, Pause, Transmission};
use crate::worker::{Done, Work};

/// Times and bounds of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    pub(crate) handshake_timeout: Duration,
    /// How long a connection that is ending may take to send its last replies.
    pub(crate) drain_timeout: Duration,
    /// How long a client may read next to nothing of its replies while others wait for the memory that they
    /// hold.
    pub(crate) stalled_send_timeout: Duration,
    /// How long next to nothing of an announced payload may come while others wait for the memory that it was
    /// promised.
    pub(crate) stalled_receive_timeout: Duration,
    pub(crate) in_flight_bytes: u64,
    /// How long a connection in transmission may have nothing to do, unless it is from this host.
    pub(crate) idle_timeout: Option<Duration>,
}

/// The TLS that a connection can or must use.
#[derive(Clone)]
pub(crate) enum TlsOffer {
    Off,
    Allow(Arc<TlsIdentity>),
    Require(Arc<TlsIdentity>),
}

/// How a connection's bytes get to the socket.
enum Security {
    Plain,
    /// TLS begins when the acknowledgement has been sent.
    Starting,
    Tls(Box<TlsSession>),
    /// The session is with the thread that computes its handshake: nothing is received or sent until it is
    /// back.
    Away,
}

enum Phase {
    Handshake(Handshake),
    Transmission(Box<Transmission>),
    /// No more input is taken.
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Open,
    /// Takes nothing new; ends when the requests in flight are answered.
    Draining,
    /// Ends as soon as nothing uses its buffers.
    Aborted,
}

/// The payload that is to be received; its memory may be what others wait for.
struct Payload {
    number: u64,
    deadline: TransferDeadline,
}

/// A send under way.
struct Sending {
    range: Range<usize>,
    charge_bytes: u64,
}

/// One connection.
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
    /// A receive is under way. It ends with the first bytes that come.
    is_receiving: bool,
    payload: Option<Payload>,
    sending: Option<Sending>,
    /// For the client to read what there is to send.
    send_deadline: Option<TransferDeadline>,
    /// The rest of a send that was cut short.
    rest: Option<Chunk>,
    /// The client has closed its side.
    has_ended: bool,
    /// Nothing more is taken until everything is sent: the negotiation goes step by step.
    in_step: bool,
    /// A request waits until others have finished.
    full: bool,
    /// It did so since the last receive: what is received next may have waited in the socket since then.
    was_full: bool,
    deadline: Option<Instant>,
    /// When something was received or sent last.
    active_at: Instant,
}

impl Connection {
    /// A connection that begins with the greeting.
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

    /// Notes the socket of a client of this host, which is gone when it closes its side. Before the first
    /// request.
    pub(crate) fn watch_local_peer(&mut self, socket: &Arc<OwnedFd>) {
        if self.client.is_local {
            self.flow.far = Arc::new(FarRequests::of_local(Arc::clone(socket)));
        }
    }

    /// The receive to start now, if there is one.
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

    /// Whether the phase takes input now.
    fn wants_input(&self) -> bool {
        match &self.phase {
            Phase::Handshake(_) => self.flow.jobs == 0,
            Phase::Transmission(_) => true,
            Phase::Over => false,
        }
    }

    /// Where the phase wants its next input.
    fn place_for_input(&mut self) -> Option<Transfer> {
        match &mut self.phase {
            Phase::Handshake(_) if self.flow.jobs > 0 => None,
            Phase::Handshake(_) => self.inbox.start_receive(INBOX_BYTES),
            Phase::Transmission(transmission) => transmission.start_receive(&mut self.inbox),
            Phase::Over => None,
        }
    }

    /// Gives the phase its input.
    fn put_input(&mut self, buffer: Buffer, len_bytes: usize, cx: &mut Context<'_>) {
        match &mut self.phase {
            Phase::Transmission(transmission) => {
                transmission.end_receive(&mut self.inbox, buffer, len_bytes);
            }
            Phase::Handshake(_) => self.inbox.end_receive(buffer, len_bytes),
            Phase::Over => cx.pool.give(buffer),
        }
    }

    /// The receive is over.
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
            // No receive is under way then.
            Security::Away => cx.pool.give(buffer),
        }
        if self.life != Life::Open {
            return;
        }
        match result {
            // The kernel, which then sends the same requests on another connection, or a process that has
            // ended.
            Ok(0) if self.client.is_local => self.abort("the client closed the connection", cx),
            Ok(0) => {
                // What is near is still answered, for those who close one side only.
                self.flow.recall();
                self.drain("the client closed the connection", cx);
            }
            Ok(_) => self.take_input(cx),
            Err(error) => self.abort(&format!("receiving failed: {error}"), cx),
        }
    }

    /// Takes up what was received.
    fn take_input(&mut self, cx: &mut Context<'_>) {
        self.advance(cx);
        if matches!(self.security, Security::Tls(_)) {
            self.decrypt(cx);
        }
    }

    /// Decrypts for as long as there is somebody to take it.
    fn decrypt(&mut self, cx: &mut Context<'_>) {
        while self.life == Life::Open && !self.full && !self.in_step {
            if self.hand_handshake_over(cx) {
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

    /// Has another thread compute what the handshake needs, if it is not done yet. This one has others to
    /// serve.
    fn hand_handshake_over(&mut self, cx: &mut Context<'_>) -> bool {
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

    /// The session is back.
    fn handshake_done(
        &mut self,
        session: Box<TlsSession>,
        opened: Result<Opened, rustls::Error>,
        cx: &mut Context<'_>,
    ) {
        let session = match self.security {
            Security::Away => session,
            // It can only come back to where it was taken from.
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

    /// Takes up what the TLS session has come to; whether there is plaintext.
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
                // The alert that says so goes out; replies cannot.
                self.flow.outbox.clear(cx.pool);
                self.drain("the TLS session failed", cx);
            }
        }
        false
    }

    /// The send to start now, if there is one.
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

    /// The next replies, encrypted; behind the last ones of a connection that ends, the announcement of that.
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

    /// Everything that was to be sent is on its way or sent.
    fn is_flushed(&self) -> bool {
        self.rest.is_none()
            && self.flow.outbox.is_empty()
            && if let Security::Tls(session) = &self.security { session.is_flushed() } else { true }
    }

    /// The send is over.
    pub(crate) fn end_send(&mut self, buffer: Buffer, result: io::Result<usize>, cx: &mut Context<'_>) {
        let Some(Sending { mut range, charge_bytes }) = self.sending.take() else {
            return;
        };
        self.active_at = cx.now;
        let len_bytes = *result.as_ref().unwrap_or(&0);
        if let Some(deadline) = &mut self.send_deadline {
            // Short replies give back more than their length.
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
                // Who disconnected may have closed the socket already: its requests are carried out all the
                // same.
                if self.flow.has_taken_leave() && self.life == Life::Draining {
                    self.flow.recall();
                    self.drop_replies(&why, cx.pool);
                } else {
                    self.abort(&why, cx);
                }
            }
        }
    }

    /// Work that this connection handed out is done.
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

    /// Takes up requests that waited for bytes in flight to be released.
    pub(crate) fn retry(&mut self, cx: &mut Context<'_>) {
        if self.full {
            self.take_input(cx);
        }
    }

    /// Takes nothing new, and ends when the requests in flight are answered, or after the drain timeout.
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

    /// Ends at once; what is in flight is not answered.
    pub(crate) fn abort(&mut self, why: &str, cx: &mut Context<'_>) {
        self.flow.stop_waiting(cx.budget);
        self.drop_all(why, cx.pool);
    }

    fn drop_all(&mut self, why: &str, pool: &mut BufferPool) {
        self.flow.abandon();
        self.deadline = None;
        self.drop_replies(why, pool);
    }

    /// Sends nothing any more.
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

    /// Looks whether something took too long.
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

    /// Nothing is received, as so much is in flight: that a client of this host goes, or one whose data may
    /// be far away, has to be seen in another way.
    pub(crate) fn is_to_be_watched(&self) -> bool {
        let is_awaited = self.client.is_local || self.flow.may_wait_for_far_data();
        self.life == Life::Open && self.full && is_awaited
    }

    /// The client has closed its side. One of this host is gone; another one may be, and what it asked for is
    /// not waited for if it is far away.
    pub(crate) fn hung_up(&mut self, result: io::Result<()>, cx: &mut Context<'_>) {
        // When something is received, the end comes behind it.
        if !self.is_to_be_watched() {
            return;
        }
        match result {
            Ok(()) if self.client.is_local => self.abort("the client closed the connection", cx),
            Ok(()) => self.flow.recall(),
            Err(error) => self.abort(&format!("it cannot be seen whether the client goes: {error}"), cx),
        }
    }

    /// When [`check_time`](Self::check_time) should be called next.
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

    /// When an idle connection ends.
    fn idle_until(&self) -> Option<Instant> {
        // This host's devices are idle when nobody uses them, and must be there when somebody does.
        let is_waiting =
            self.life == Life::Open && matches!(self.phase, Phase::Transmission(_)) && !self.client.is_local;
        let timeout = self.limits.idle_timeout.filter(|_| is_waiting)?;
        self.active_at.checked_add(timeout)
    }

    fn is_idle(&self) -> bool {
        self.flow.jobs == 0 && self.sending.is_none() && !self.full && self.is_flushed()
    }

    /// A client that sees its replies, and then the end, may still have to come: it has not closed its side.
    pub(crate) fn may_linger(&self) -> bool {
        self.life == Life::Draining && !self.has_ended
    }

    /// The receive is to be cancelled: what it brings will not be used.
    pub(crate) fn refuses_input(&self) -> bool {
        self.life != Life::Open && self.is_receiving
    }

    /// The socket is to be shut down both ways.
    pub(crate) fn is_aborted(&self) -> bool {
        self.life == Life::Aborted
    }

    /// Nothing is under way and nothing is left to do.
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

    /// How much memory the replies in waiting take, in bytes.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn held_bytes(&self) -> usize {
        self.flow.outbox.held_bytes()
    }

    #[cfg(test)]
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.flow.charged_bytes()
    }

    /// Requests are under way on other threads.
    pub(crate) fn has_work(&self) -> bool {
        self.flow.jobs > 0
    }

    /// Gives back what the connection holds.
    pub(crate) fn release(mut self, pool: &mut BufferPool, budget: &Budget<Wake>) {
        self.inbox.discard(pool);
        if let Security::Tls(session) = self.security {
            session.discard(pool);
        }
        self.flow.outbox.clear(pool);
        self.flow.release_all(budget);
    }

    /// Takes from the inbox what can be taken.
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

    /// The client has been told that TLS may begin.
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
            // What came behind the option, in clear, is not the client's doing, or not what it wants.
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
                if device.may_be_far() {
                    self.flow.allow_for_far_data(cx.far_budgets.of(device.source_key()));
                }
                let transmission = Transmission::new(device, opened.size_bytes, opened.read_only, agreed);
                self.phase = Phase::Transmission(Box::new(transmission));
            }
        }
    }
}
