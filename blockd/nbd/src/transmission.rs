//! The transmission phase of one connection, without I/O: takes requests from the received bytes, carries out what
//! can be done at once, and hands the rest to the threads that may block.

use std::sync::Arc;

use crate::buffer_pool::{Buffer, HEADROOM_BYTES};
use crate::constants::*;
use crate::device::{BlockDevice, Progress};
use crate::flow::{Context, Flow, REQUEST_OVERHEAD_BYTES};
use crate::inbox::{INBOX_BYTES, Inbox};
use crate::reply::simple_reply;
use crate::request::{Operation, Request, Verdict};
use crate::ring::Transfer;
use crate::worker::{DeviceFailure, RequestDone, RequestWork, Work, call_device};

/// A write up to this long is received whole into the inbox; a longer one is received into its own buffer.
const INBOX_PAYLOAD_BYTES: usize = 32 << 10;
/// A read up to this long is answered from a batch, a longer one from its own buffer.
const BATCH_READ_BYTES: usize = 32 << 10;
/// A request up to this long is tried on the ring thread; a longer one would keep the others waiting.
const INLINE_BYTES: usize = 256 << 10;

/// The transmission phase of one connection.
pub(crate) struct Transmission {
    device: Arc<dyn BlockDevice>,
    size_bytes: u64,
    read_only: bool,
    input: Input,
    /// The last request was a write with a buffer of its own, and the next one likely is: receive no more than its
    /// header, so that its payload need not be copied out of the inbox.
    expects_large: bool,
    warned: bool,
}

/// What the next received bytes are.
enum Input {
    Requests,
    /// The payload of a write; its buffer is away while a receive is under way.
    Payload {
        request: Request,
        fua: bool,
        buffer: Option<Buffer>,
        filled_bytes: usize,
    },
    /// The payload of a request that is refused once it has been received.
    Discard {
        remaining_bytes: usize,
        errno: u32,
        cookie: u64,
    },
}

/// Why no more requests are taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// More bytes are needed.
    Input,
    /// Too much is in flight.
    Full,
    /// The client takes its leave.
    Disconnect,
    /// The client broke the protocol in a way that cannot be answered.
    Broken(&'static str),
}

impl Transmission {
    pub(crate) fn new(device: Arc<dyn BlockDevice>, size_bytes: u64, read_only: bool) -> Self {
        Self { device, size_bytes, read_only, input: Input::Requests, expects_large: false, warned: false }
    }

    /// Starts the receive of what is needed next.
    pub(crate) fn start_receive(&mut self, inbox: &mut Inbox) -> Option<Transfer> {
        match &mut self.input {
            Input::Payload { request, buffer, filled_bytes, .. } => {
                let buffer = buffer.take()?;
                let range = HEADROOM_BYTES + *filled_bytes..HEADROOM_BYTES + request.len_bytes as usize;
                Some(Transfer { buffer, range, all: false })
            }
            Input::Requests if self.expects_large && inbox.unread().is_empty() => {
                inbox.start_receive(REQUEST_LEN_BYTES)
            }
            Input::Requests | Input::Discard { .. } => inbox.start_receive(INBOX_BYTES),
        }
    }

    /// The next bytes are the payload of a request that has been admitted.
    pub(crate) fn awaits_payload(&self) -> bool {
        !matches!(self.input, Input::Requests)
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

    /// Takes every request that has been received.
    pub(crate) fn consume(&mut self, inbox: &mut Inbox, flow: &mut Flow, cx: &mut Context<'_>) -> Pause {
        loop {
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
                Input::Discard { remaining_bytes, errno, cookie } => {
                    let len_bytes = inbox.unread().len().min(*remaining_bytes);
                    inbox.consume(len_bytes);
                    *remaining_bytes -= len_bytes;
                    if *remaining_bytes > 0 {
                        return Pause::Input;
                    }
                    flow.reply(*errno, *cookie, REQUEST_OVERHEAD_BYTES, cx);
                    self.input = Input::Requests;
                    None
                }
            };
            if let Some(pause) = pause {
                return pause;
            }
        }
    }

    fn next_request(&mut self, inbox: &mut Inbox, flow: &mut Flow, cx: &mut Context<'_>) -> Option<Pause> {
        let Some(header) = inbox.unread().first_chunk::<REQUEST_LEN_BYTES>() else {
            return Some(Pause::Input);
        };
        let Some(request) = Request::decode(header) else {
            return Some(Pause::Broken("a request did not start with its magic"));
        };
        let len = request.len_bytes as usize;
        let verdict = request.judge(self.size_bytes, self.read_only);
        let is_write = matches!(verdict, Verdict::Execute(Operation::Write { .. }));
        if is_write && len <= INBOX_PAYLOAD_BYTES && inbox.unread().len() < REQUEST_LEN_BYTES + len {
            return Some(Pause::Input);
        }
        let data_bytes = match verdict {
            Verdict::Disconnect => return Some(Pause::Disconnect),
            Verdict::PayloadTooLong => return Some(Pause::Broken("a write is too long to be refused")),
            Verdict::Execute(Operation::Read | Operation::Write { .. }) => u64::from(request.len_bytes),
            Verdict::Execute(_) | Verdict::Refuse { .. } => 0,
        };
        if !flow.admit(REQUEST_OVERHEAD_BYTES + data_bytes, cx) {
            return Some(Pause::Full);
        }
        inbox.consume(REQUEST_LEN_BYTES);
        tracing::trace!(?request, ?verdict, "request");
        match verdict {
            Verdict::Execute(Operation::Write { fua }) => self.write(&request, fua, inbox, flow, cx),
            Verdict::Execute(operation) => {
                self.expects_large = false;
                self.execute(&request, operation, flow, cx);
            }
            Verdict::Refuse { errno } => {
                self.expects_large = false;
                self.input = Input::Discard {
                    remaining_bytes: request.payload_len_bytes() as usize,
                    errno,
                    cookie: request.cookie,
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
            self.input = Input::Payload { request: *request, fua, buffer: Some(buffer), filled_bytes };
            return;
        };
        self.expects_large = false;
        let charge_bytes = charge(request, true);
        let at_once = if len == 0 {
            Ok(Progress::Done)
        } else if fua || len > INLINE_BYTES {
            Ok(Progress::WouldBlock)
        } else {
            call_device(|| self.device.try_write(request.offset_bytes, data))
        };
        match at_once {
            Ok(Progress::Done | Progress::Zeroes) => flow.reply(0, request.cookie, charge_bytes, cx),
            Ok(Progress::WouldBlock) => {
                let mut buffer = cx.pool.take(len);
                buffer.payload_mut()[..len].copy_from_slice(data);
                self.start(request, Operation::Write { fua }, Some(buffer), charge_bytes, flow, cx);
            }
            Err(failure) => self.fail(request.cookie, &failure, charge_bytes, flow, cx),
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
        let charge_bytes = charge(request, true);
        let at_once = if fua || len > INLINE_BYTES {
            Ok(Progress::WouldBlock)
        } else {
            call_device(|| self.device.try_write(request.offset_bytes, &buffer.payload()[..len]))
        };
        match at_once {
            Ok(Progress::WouldBlock) => {
                self.start(request, Operation::Write { fua }, Some(buffer), charge_bytes, flow, cx);
                return;
            }
            Ok(_) => flow.reply(0, request.cookie, charge_bytes, cx),
            Err(failure) => self.fail(request.cookie, &failure, charge_bytes, flow, cx),
        }
        cx.pool.give(buffer);
    }

    /// Carries out what has no payload to receive.
    fn execute(&mut self, request: &Request, operation: Operation, flow: &mut Flow, cx: &mut Context<'_>) {
        let is_read = operation == Operation::Read;
        let charge_bytes = charge(request, is_read);
        if request.len_bytes == 0 && operation != Operation::Flush {
            flow.reply(0, request.cookie, charge_bytes, cx);
        } else if is_read {
            self.read(request, charge_bytes, flow, cx);
        } else {
            self.start(request, operation, None, charge_bytes, flow, cx);
        }
    }

    fn read(&mut self, request: &Request, charge_bytes: u64, flow: &mut Flow, cx: &mut Context<'_>) {
        let len = request.len_bytes as usize;
        if len <= BATCH_READ_BYTES {
            let room = flow.outbox.reserve(SIMPLE_REPLY_LEN_BYTES + len, cx.pool);
            let (header, payload) = room.split_at_mut(SIMPLE_REPLY_LEN_BYTES);
            match call_device(|| self.device.try_read(request.offset_bytes, payload)) {
                Ok(progress @ (Progress::Done | Progress::Zeroes)) => {
                    if progress == Progress::Zeroes {
                        payload.fill(0);
                    }
                    header.copy_from_slice(&simple_reply(0, request.cookie));
                    flow.outbox.commit(SIMPLE_REPLY_LEN_BYTES + len, charge_bytes);
                }
                Ok(Progress::WouldBlock) => {
                    let buffer = cx.pool.take(len);
                    self.start(request, Operation::Read, Some(buffer), charge_bytes, flow, cx);
                }
                Err(failure) => self.fail(request.cookie, &failure, charge_bytes, flow, cx),
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
            Ok(progress @ (Progress::Done | Progress::Zeroes)) => {
                if progress == Progress::Zeroes {
                    buffer.payload_mut()[..len].fill(0);
                }
                flow.outbox.push_large(request.cookie, buffer, len, charge_bytes);
            }
            Ok(Progress::WouldBlock) => {
                self.start(request, Operation::Read, Some(buffer), charge_bytes, flow, cx);
            }
            Err(failure) => {
                cx.pool.give(buffer);
                self.fail(request.cookie, &failure, charge_bytes, flow, cx);
            }
        }
    }

    fn start(
        &self,
        request: &Request,
        operation: Operation,
        buffer: Option<Buffer>,
        charge_bytes: u64,
        flow: &mut Flow,
        cx: &mut Context<'_>,
    ) {
        let work = RequestWork {
            device: Arc::clone(&self.device),
            operation,
            cookie: request.cookie,
            offset_bytes: request.offset_bytes,
            len_bytes: request.len_bytes,
            buffer,
            charge_bytes,
        };
        flow.start(Work::Request(work), cx);
    }

    fn fail(
        &mut self,
        cookie: u64,
        failure: &DeviceFailure,
        charge_bytes: u64,
        flow: &mut Flow,
        cx: &mut Context<'_>,
    ) {
        self.report(failure);
        flow.reply(failure.errno, cookie, charge_bytes, cx);
    }

    /// Logs the first failure of a device on this connection; the rest would flood the log.
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

/// What a request was charged when it was admitted.
fn charge(request: &Request, has_data: bool) -> u64 {
    REQUEST_OVERHEAD_BYTES + if has_data { u64::from(request.len_bytes) } else { 0 }
}

/// Queues the reply to a request that a worker has carried out.
pub(crate) fn finish(done: RequestDone, flow: &mut Flow, cx: &mut Context<'_>) {
    let errno = match &done.result {
        Ok(()) => 0,
        Err(failure) => failure.errno,
    };
    let len = done.len_bytes as usize;
    match done.buffer {
        Some(buffer) if errno == 0 && done.operation == Operation::Read => {
            if len > BATCH_READ_BYTES {
                flow.outbox.push_large(done.cookie, buffer, len, done.charge_bytes);
                return;
            }
            flow.outbox.push_copied(done.cookie, &buffer.payload()[..len], done.charge_bytes, cx.pool);
            cx.pool.give(buffer);
        }
        buffer => {
            flow.reply(errno, done.cookie, done.charge_bytes, cx);
            if let Some(buffer) = buffer {
                cx.pool.give(buffer);
            }
        }
    }
}
