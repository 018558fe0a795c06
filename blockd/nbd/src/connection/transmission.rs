//! Transmission phase of a connection, without I/O: parses requests, executes them at once where possible,
//! and passes the others to threads that may block.

use std::sync::Arc;

use crate::connection::buffer_pool::{Buffer, HEADROOM_BYTES};
use crate::connection::flow::{Context, Flow, REQUEST_OVERHEAD_BYTES};
use crate::connection::inbox::{INBOX_BYTES, Inbox};
use crate::device::{BlockDevice, Progress};
use crate::protocol::constants::*;
use crate::protocol::handshake::NegotiatedExport;
use crate::protocol::meta_context::MetaContext;
use crate::protocol::reply::{ReplyMode, ReplyTo};
use crate::protocol::request::{Operation, Request, Terms, Verdict};
use crate::protocol::wire::Reader;
use crate::server::ring::Transfer;
use crate::server::worker::{DeviceFailure, RequestDone, RequestWork, Success, Work, call_device};

/// Maximum length of a write received into the inbox; a longer one gets its own buffer.
const INBOX_PAYLOAD_BYTES: usize = 32 << 10;
/// Maximum length of a read answered from a batch; a longer one gets its own buffer.
const BATCH_READ_BYTES: usize = 32 << 10;
/// Maximum length of a request executed on the ring thread; a longer one would delay others.
const INLINE_BYTES: usize = 256 << 10;

/// Transmission phase of a connection.
pub(crate) struct Transmission {
    device: Arc<dyn BlockDevice>,
    terms: Terms,
    contexts: Arc<[MetaContext]>,
    input: Input,
    /// The last request was a write with its own buffer, and the next one likely is: receive only its header,
    /// so that its payload need not be copied from the inbox.
    expects_large: bool,
    warned: bool,
    /// Number of awaited payloads.
    payloads: u64,
    /// Verdict on the next request, which waits for admission: it must not change once part of its charge is
    /// paid.
    judged: Option<Verdict>,
}

/// Kind of the next input.
enum Input {
    Requests,
    /// Payload of a write; its buffer is away during a receive.
    Payload {
        request: Request,
        fua: bool,
        buffer: Option<Buffer>,
        filled_bytes: usize,
    },
    /// Payload of a request that is refused after its receipt.
    Discard {
        remaining_bytes: usize,
        errno: u32,
        to: ReplyTo,
    },
}

/// Reason for not accepting requests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// More bytes are needed.
    Input,
    /// Too much is in flight.
    Full,
    /// The client takes its leave.
    Disconnect,
    /// The client is gone without DISC.
    Gone,
    /// Protocol violation without a possible reply.
    Broken(&'static str),
}

impl Transmission {
    pub(crate) fn new(
        device: Arc<dyn BlockDevice>,
        size_bytes: u64,
        read_only: bool,
        agreed: NegotiatedExport,
    ) -> Self {
        let NegotiatedExport { mode, contexts } = agreed;
        let terms = Terms { size_bytes, read_only, mode, has_contexts: !contexts.is_empty() };
        Self {
            device,
            terms,
            contexts: contexts.into(),
            input: Input::Requests,
            expects_large: false,
            warned: false,
            payloads: 0,
            judged: None,
        }
    }

    fn header_len_bytes(&self) -> usize {
        match self.terms.mode {
            ReplyMode::Simple | ReplyMode::Structured => REQUEST_LEN_BYTES,
            ReplyMode::Extended => EXTENDED_REQUEST_LEN_BYTES,
        }
    }

    fn reply_to(&self, request: &Request) -> ReplyTo {
        ReplyTo { mode: self.terms.mode, cookie: request.cookie, offset_bytes: request.offset_bytes }
    }

    /// Starts the next receive.
    pub(crate) fn start_receive(&mut self, inbox: &mut Inbox) -> Option<Transfer> {
        let header_len_bytes = self.header_len_bytes();
        match &mut self.input {
            Input::Payload { request, buffer, filled_bytes, .. } => {
                let buffer = buffer.take()?;
                let range = HEADROOM_BYTES + *filled_bytes..HEADROOM_BYTES + request.len_bytes as usize;
                Some(Transfer { buffer, range, all: false })
            }
            Input::Requests if self.expects_large && inbox.unread().is_empty() => {
                inbox.start_receive(header_len_bytes)
            }
            Input::Requests | Input::Discard { .. } => inbox.start_receive(INBOX_BYTES),
        }
    }

    /// Returns the number of the admitted payload that is awaited, if any.
    pub(crate) fn awaited_payload(&self) -> Option<u64> {
        (!matches!(self.input, Input::Requests)).then_some(self.payloads)
    }

    /// A receive is over.
    pub(crate) fn end_receive(&mut self, inbox: &mut Inbox, received: Buffer, len_bytes: usize) {
        match &mut self.input {
            Input::Payload { buffer, filled_bytes, .. } => {
                *buffer = Some(received);
                *filled_bytes += len_bytes;
            }
            Input::Requests | Input::Discard { .. } => inbox.end_receive(received, len_bytes),
        }
    }

    /// Processes all received requests.
    pub(crate) fn consume(&mut self, inbox: &mut Inbox, flow: &mut Flow, cx: &mut Context<'_>) -> Pause {
        loop {
            if flow.is_stale() {
                return Pause::Gone;
            }
            let pause = match &mut self.input {
                Input::Requests => self.next_request(inbox, flow, cx),
                Input::Payload { request, fua, buffer, filled_bytes } => {
                    if *filled_bytes < request.len_bytes as usize {
                        return Pause::Input;
                    }
                    let (request, fua, buffer) = (*request, *fua, buffer.take());
                    self.input = Input::Requests;
                    if let Some(buffer) = buffer {
                        self.write_buffer(&request, fua, buffer, flow, cx);
                    }
                    None
                }
                Input::Discard { remaining_bytes, errno, to } => {
                    let len_bytes = inbox.unread().len().min(*remaining_bytes);
                    inbox.consume(len_bytes);
                    *remaining_bytes -= len_bytes;
                    if *remaining_bytes > 0 {
                        return Pause::Input;
                    }
                    flow.reply(to, *errno, REQUEST_OVERHEAD_BYTES, cx);
                    self.input = Input::Requests;
                    None
                }
            };
            if let Some(pause) = pause {
                return pause;
            }
        }
    }

    /// Decodes the next request, if its header is complete; `None` if it is invalid.
    fn decode(&self, bytes: &[u8]) -> Option<Result<Request, ()>> {
        let request = match self.terms.mode {
            ReplyMode::Simple | ReplyMode::Structured => Request::decode(bytes.first_chunk()?),
            ReplyMode::Extended => Request::decode_extended(bytes.first_chunk()?),
        };
        Some(request.ok_or(()))
    }

    fn judge(&mut self, request: &Request) -> Verdict {
        self.fits(request);
        request.judge(&self.terms)
    }

    /// Returns true if a request is within the device, which may have grown since the negotiation.
    fn fits(&mut self, request: &Request) -> bool {
        if !request.fits(&self.terms) {
            self.terms.size_bytes = self.terms.size_bytes.max(self.device.size_bytes());
        }
        request.fits(&self.terms)
    }

    fn next_request(&mut self, inbox: &mut Inbox, flow: &mut Flow, cx: &mut Context<'_>) -> Option<Pause> {
        if flow.has_all_jobs() {
            return Some(Pause::Full);
        }
        let request = match self.decode(inbox.unread()) {
            None => return Some(Pause::Input),
            Some(Err(())) => return Some(Pause::Broken("a request did not start with its magic")),
            Some(Ok(request)) => request,
        };
        let verdict = self.judged.take().unwrap_or_else(|| self.judge(&request));
        let payload_len_bytes = request.payload_len_bytes(self.terms.mode);
        let is_taken_whole = match verdict {
            Verdict::Execute(Operation::Write { .. }) => payload_len_bytes <= INBOX_PAYLOAD_BYTES as u64,
            Verdict::Execute(Operation::BlockStatus { .. }) => true,
            _ => false,
        };
        // A payload received with its header is short and fits into the inbox.
        let missing =
            is_taken_whole && inbox.unread().len() < self.header_len_bytes() + payload_len_bytes as usize;
        if missing {
            return Some(Pause::Input);
        }
        let charge_bytes = match verdict {
            Verdict::Disconnect => return Some(Pause::Disconnect),
            Verdict::PayloadTooLong => return Some(Pause::Broken("a payload is too long to be refused")),
            Verdict::Execute(operation) => charge(&request, operation),
            Verdict::Refuse { .. } => REQUEST_OVERHEAD_BYTES,
        };
        if !flow.admit(charge_bytes, cx) {
            self.judged = Some(verdict);
            return Some(Pause::Full);
        }
        inbox.consume(self.header_len_bytes());
        *cx.requests += 1;
        tracing::trace!(?request, ?verdict, "request");
        match verdict {
            Verdict::Execute(Operation::Write { fua }) => self.write(&request, fua, inbox, flow, cx),
            Verdict::Execute(Operation::BlockStatus { one, chosen: true }) => {
                self.expects_large = false;
                self.chosen_block_status(&request, one, inbox, flow, cx);
            }
            Verdict::Execute(operation) => {
                self.expects_large = false;
                self.execute(&request, operation, flow, cx);
            }
            Verdict::Refuse { errno } => {
                self.expects_large = false;
                self.payloads += 1;
                self.input = Input::Discard {
                    // A payload too long to discard has ended the connection.
                    remaining_bytes: payload_len_bytes as usize,
                    errno,
                    to: self.reply_to(&request),
                };
            }
            Verdict::Disconnect | Verdict::PayloadTooLong => {}
        }
        None
    }

    fn write(
        &mut self,
        request: &Request,
        fua: bool,
        inbox: &mut Inbox,
        flow: &mut Flow,
        cx: &mut Context<'_>,
    ) {
        let len = request.len_bytes as usize;
        let unread = inbox.unread();
        let Some(data) = unread.get(..len) else {
            let mut buffer = cx.pool.take(len);
            let filled_bytes = unread.len();
            buffer.payload_mut()[..filled_bytes].copy_from_slice(unread);
            inbox.consume(filled_bytes);
            self.expects_large = true;
            self.payloads += 1;
            self.input = Input::Payload { request: *request, fua, buffer: Some(buffer), filled_bytes };
            return;
        };
        self.expects_large = false;
        let charge_bytes = charge(request, Operation::Write { fua });
        let at_once = if len == 0 {
            Ok(Progress::Done)
        } else if fua || len > INLINE_BYTES {
            Ok(Progress::WouldBlock)
        } else {
            call_device(|| self.device.try_write(request.offset_bytes, data))
        };
        match at_once {
            Ok(Progress::Done | Progress::Zeroes) => flow.reply(&self.reply_to(request), 0, charge_bytes, cx),
            Ok(Progress::WouldBlock) => {
                let mut buffer = cx.pool.take(len);
                buffer.payload_mut()[..len].copy_from_slice(data);
                self.start(request, Operation::Write { fua }, Some(buffer), flow, cx);
            }
            Err(failure) => self.fail(request, &failure, charge_bytes, flow, cx),
        }
        inbox.consume(len);
    }

    fn write_buffer(
        &mut self,
        request: &Request,
        fua: bool,
        buffer: Buffer,
        flow: &mut Flow,
        cx: &mut Context<'_>,
    ) {
        let len = request.len_bytes as usize;
        let charge_bytes = charge(request, Operation::Write { fua });
        let at_once = if fua || len > INLINE_BYTES {
            Ok(Progress::WouldBlock)
        } else {
            call_device(|| self.device.try_write(request.offset_bytes, &buffer.payload()[..len]))
        };
        match at_once {
            Ok(Progress::WouldBlock) => {
                self.start(request, Operation::Write { fua }, Some(buffer), flow, cx);
                return;
            }
            Ok(_) => flow.reply(&self.reply_to(request), 0, charge_bytes, cx),
            Err(failure) => self.fail(request, &failure, charge_bytes, flow, cx),
        }
        cx.pool.give(buffer);
    }

    /// Executes a request without a payload.
    fn execute(&mut self, request: &Request, operation: Operation, flow: &mut Flow, cx: &mut Context<'_>) {
        let charge_bytes = charge(request, operation);
        match operation {
            Operation::Read { .. } if request.len_bytes == 0 => {
                flow.outbox.push_small([&self.reply_to(request).empty_read(), &[]], charge_bytes, cx.pool);
            }
            Operation::Read { .. } => self.read(request, operation, flow, cx),
            Operation::Flush => self.start(request, operation, None, flow, cx),
            _ if request.len_bytes == 0 => flow.reply(&self.reply_to(request), 0, charge_bytes, cx),
            _ => self.start(request, operation, None, flow, cx),
        }
    }

    /// Executes a block status request whose payload in the inbox has the length of the range and the
    /// contexts.
    fn chosen_block_status(
        &mut self,
        request: &Request,
        one: bool,
        inbox: &mut Inbox,
        flow: &mut Flow,
        cx: &mut Context<'_>,
    ) {
        let operation = Operation::BlockStatus { one, chosen: true };
        let charge_bytes = charge(request, operation);
        // At most `MAX_STATUS_PAYLOAD_BYTES`.
        let payload_len = request.len_bytes as usize;
        let chosen = inbox.unread().get(..payload_len).and_then(|payload| self.choose(payload));
        inbox.consume(payload_len);
        match chosen {
            Some((len_bytes, contexts)) if len_bytes > 0 && self.fits(&Request { len_bytes, ..*request }) => {
                let mut work = self.work(request, operation, None, flow);
                work.len_bytes = len_bytes;
                work.contexts = contexts;
                flow.start(Work::Request(work), cx);
            }
            _ => flow.reply(&self.reply_to(request), NBD_EINVAL, charge_bytes, cx),
        }
    }

    /// Parses the payload of a block status; `None` if it is invalid or a context was not negotiated.
    fn choose(&self, payload: &[u8]) -> Option<(u64, Arc<[MetaContext]>)> {
        let mut reader = Reader::new(payload);
        let len_bytes = reader.u64()?;
        let mut contexts = Vec::new();
        let mut is_chosen = vec![false; self.contexts.len()];
        while !reader.is_empty() {
            let id = reader.u32()?;
            // Numbered from 1.
            let index = (id as usize).checked_sub(1)?;
            let context = self.contexts.get(index).filter(|context| context.id == id)?;
            if !std::mem::replace(is_chosen.get_mut(index)?, true) {
                contexts.push(context.clone());
            }
        }
        (!contexts.is_empty()).then(|| (len_bytes, contexts.into()))
    }

    fn read(&mut self, request: &Request, operation: Operation, flow: &mut Flow, cx: &mut Context<'_>) {
        // Judged to be at most `MAX_PAYLOAD_BYTES`.
        let len = request.len_bytes as usize;
        let (to, charge_bytes) = (self.reply_to(request), charge(request, operation));
        if len <= BATCH_READ_BYTES {
            let header_len = to.mode.data_header_len_bytes();
            let room = flow.outbox.reserve(header_len + len, cx.pool);
            let (header, payload) = room.split_at_mut(header_len);
            match call_device(|| self.device.try_read(request.offset_bytes, payload)) {
                Ok(Progress::Zeroes) if to.mode != ReplyMode::Simple => {
                    push_zeroes(&to, len, charge_bytes, flow, cx);
                }
                Ok(progress @ (Progress::Done | Progress::Zeroes)) => {
                    if progress == Progress::Zeroes {
                        payload.fill(0);
                    }
                    header.copy_from_slice(&to.data(to.offset_bytes, len, true));
                    flow.outbox.commit(header_len + len, charge_bytes);
                }
                Ok(Progress::WouldBlock) => {
                    let buffer = cx.pool.take(len);
                    self.start(request, operation, Some(buffer), flow, cx);
                }
                Err(failure) => self.fail(request, &failure, charge_bytes, flow, cx),
            }
            return;
        }
        let mut buffer = cx.pool.take(len);
        let at_once = if len > INLINE_BYTES {
            Ok(Progress::WouldBlock)
        } else {
            call_device(|| self.device.try_read(request.offset_bytes, &mut buffer.payload_mut()[..len]))
        };
        match at_once {
            Ok(Progress::WouldBlock) => self.start(request, operation, Some(buffer), flow, cx),
            Ok(progress) => push_read(&to, buffer, len, progress == Progress::Zeroes, charge_bytes, flow, cx),
            Err(failure) => {
                cx.pool.give(buffer);
                self.fail(request, &failure, charge_bytes, flow, cx);
            }
        }
    }

    fn work(
        &self,
        request: &Request,
        operation: Operation,
        buffer: Option<Buffer>,
        flow: &Flow,
    ) -> RequestWork {
        RequestWork {
            device: Arc::clone(&self.device),
            operation,
            to: self.reply_to(request),
            offset_bytes: request.offset_bytes,
            len_bytes: request.len_bytes,
            buffer,
            contexts: Arc::clone(&self.contexts),
            charge_bytes: charge(request, operation),
            received_at: flow.received_at,
            far: Arc::clone(&flow.far),
        }
    }

    fn start(
        &self,
        request: &Request,
        operation: Operation,
        buffer: Option<Buffer>,
        flow: &mut Flow,
        cx: &mut Context<'_>,
    ) {
        let work = self.work(request, operation, buffer, flow);
        flow.start(Work::Request(work), cx);
    }

    fn fail(
        &mut self,
        request: &Request,
        failure: &DeviceFailure,
        charge_bytes: u64,
        flow: &mut Flow,
        cx: &mut Context<'_>,
    ) {
        self.report(failure);
        flow.reply(&self.reply_to(request), failure.errno, charge_bytes, cx);
    }

    /// Logs the first failure of a device on this connection; others would flood the log.
    pub(crate) fn report(&mut self, failure: &DeviceFailure) {
        if std::mem::replace(&mut self.warned, true) {
            tracing::trace!(errno = failure.errno, error = failure.message, "the device refused a request");
        } else {
            tracing::warn!(
                errno = failure.errno,
                error = failure.message,
                "the device refused a request; further ones of this connection are logged at level trace"
            );
        }
    }
}

/// Returns the charge of a request: the maximum memory of it and its reply.
fn charge(request: &Request, operation: Operation) -> u64 {
    REQUEST_OVERHEAD_BYTES
        + match operation {
            Operation::Read { .. } | Operation::Write { .. } => request.len_bytes,
            Operation::BlockStatus { .. } => 16 * MAX_STATUS_EXTENTS as u64,
            Operation::Flush | Operation::Trim { .. } | Operation::WriteZeroes(_) | Operation::Cache => 0,
        }
}

/// Queues the reply to a structured read of zeroes.
fn push_zeroes(to: &ReplyTo, len: usize, charge_bytes: u64, flow: &mut Flow, cx: &mut Context<'_>) {
    // No read is longer than 64 MiB.
    let hole = to.hole(to.offset_bytes, len as u32, true);
    flow.outbox.push_small([&hole, &[]], charge_bytes, cx.pool);
}

/// Queues the reply to a read with its data in `buffer`, unless it is all zeroes.
fn push_read(
    to: &ReplyTo,
    mut buffer: Buffer,
    len: usize,
    is_zero: bool,
    charge_bytes: u64,
    flow: &mut Flow,
    cx: &mut Context<'_>,
) {
    if is_zero && to.mode != ReplyMode::Simple {
        push_zeroes(to, len, charge_bytes, flow, cx);
        cx.pool.give(buffer);
        return;
    }
    if is_zero {
        buffer.payload_mut()[..len].fill(0);
    }
    let header = to.data(to.offset_bytes, len, true);
    if len > BATCH_READ_BYTES {
        flow.outbox.push_large(&header, buffer, len, charge_bytes);
    } else {
        flow.outbox.push_small([&header, &buffer.payload()[..len]], charge_bytes, cx.pool);
        cx.pool.give(buffer);
    }
}

/// Queues the reply to a request executed by a worker.
pub(crate) fn finish(done: RequestDone, flow: &mut Flow, cx: &mut Context<'_>) {
    let RequestDone { operation, to, len_bytes, buffer, charge_bytes, result } = done;
    let is_read = matches!(operation, Operation::Read { .. });
    let unused = match (result, buffer) {
        (Ok(success @ (Success::Plain | Success::Zeroes)), Some(buffer)) if is_read => {
            let is_zero = success == Success::Zeroes;
            // Judged to be at most `MAX_PAYLOAD_BYTES`.
            return push_read(&to, buffer, len_bytes as usize, is_zero, charge_bytes, flow, cx);
        }
        (Ok(Success::Framed(range)), Some(buffer)) => {
            return flow.outbox.push_framed(buffer, range, charge_bytes);
        }
        (Ok(Success::Chunks(chunks)), buffer) => {
            let mut charge_bytes = charge_bytes;
            for chunk in &chunks {
                // The whole charge belongs to the first one, which exists: a block status has at least one
                // context.
                flow.outbox.push_small([chunk, &[]], std::mem::take(&mut charge_bytes), cx.pool);
            }
            buffer
        }
        (Ok(_), buffer) => {
            flow.reply(&to, 0, charge_bytes, cx);
            buffer
        }
        (Err(failure), buffer) => {
            flow.reply(&to, failure.errno, charge_bytes, cx);
            buffer
        }
    };
    if let Some(buffer) = unused {
        cx.pool.give(buffer);
    }
}
