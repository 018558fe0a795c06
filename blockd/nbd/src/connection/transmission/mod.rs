//! Transmission phase of a connection, without I/O: parses requests, executes them at once if possible, and
//! passes the others to threads that may block.

mod execution;
mod failure_log;

use std::sync::Arc;
use std::time::Instant;

use crate::connection::buffer_pool::{Buffer, HEADROOM_BYTES};
use crate::connection::flow::{Context, Flow, REQUEST_OVERHEAD_BYTES};
use crate::connection::receive_buffer::{RECEIVE_BUFFER_BYTES, ReceiveBuffer};
use crate::device::BlockDevice;
use crate::protocol::constants::*;
use crate::protocol::handshake::NegotiatedExport;
use crate::protocol::meta_context::MetaContext;
use crate::protocol::reply::ReplyTo;
use crate::protocol::request::{Operation, Request, Terms, Verdict};
use crate::server::ring::Transfer;
use crate::server::worker::{Admitted, DeviceFailure};
use failure_log::FailureLog;

pub(super) use execution::finish;

/// Maximum payload of a write that is executed from the receive buffer; longer ones get their own buffer.
const BUFFERED_PAYLOAD_BYTES: usize = 32 << 10;

/// Transmission phase of a connection.
pub(crate) struct Transmission {
    device: Arc<dyn BlockDevice>,
    terms: Terms,
    contexts: Arc<[MetaContext]>,
    input: Input,
    /// The last request was a write with its own buffer, and the next one probably is: receive only its
    /// header, which avoids a copy of its payload.
    expects_large: bool,
    failure_log: FailureLog,
    /// Number of payloads awaited so far.
    payloads: u64,
    /// Verdict on the next request, which waits for admission. It is kept because a part of its charge may be
    /// taken.
    pending_verdict: Option<Verdict>,
}

/// Content of the next input.
enum Input {
    Requests,
    /// Payload of a write; the receive in progress owns its buffer.
    Payload {
        request: Admitted,
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

/// Parts of a connection that its requests use.
pub(crate) struct Scope<'a, 'c> {
    pub(crate) receive_buffer: &'a mut ReceiveBuffer,
    pub(crate) flow: &'a mut Flow,
    pub(crate) cx: &'a mut Context<'c>,
}

/// Reason for a pause in the processing of requests.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// More input is needed.
    Input,
    /// An in-flight limit is reached.
    Throttled,
    /// The client sent DISC.
    Disconnect,
    /// The client disconnected without DISC.
    HungUp,
    /// Protocol violation without a possible reply.
    Violation(&'static str),
}

impl Transmission {
    pub(crate) fn new(
        device: Arc<dyn BlockDevice>,
        size_bytes: u64,
        read_only: bool,
        negotiated: NegotiatedExport,
    ) -> Self {
        let NegotiatedExport { mode, contexts } = negotiated;
        debug_assert!(
            (1..).zip(&contexts).all(|(id, context)| context.id == id),
            "context ids are numbered from 1"
        );
        let terms = Terms { size_bytes, read_only, mode, has_contexts: !contexts.is_empty() };
        Self {
            device,
            terms,
            contexts: contexts.into(),
            input: Input::Requests,
            expects_large: false,
            failure_log: FailureLog::default(),
            payloads: 0,
            pending_verdict: None,
        }
    }

    /// Starts the next receive.
    pub(crate) fn start_receive(&mut self, receive_buffer: &mut ReceiveBuffer) -> Option<Transfer> {
        match &mut self.input {
            Input::Payload { request, buffer, filled_bytes, .. } => {
                let buffer = buffer.take()?;
                assert!((*filled_bytes as u64) < request.len_bytes, "a complete payload is not awaited");
                let range = HEADROOM_BYTES + *filled_bytes..HEADROOM_BYTES + request.len_bytes as usize;
                Some(Transfer { buffer, range, all: false })
            }
            Input::Requests if self.expects_large && receive_buffer.unread().is_empty() => {
                receive_buffer.start_receive(self.terms.mode.request_len_bytes())
            }
            Input::Requests | Input::Discard { .. } => receive_buffer.start_receive(RECEIVE_BUFFER_BYTES),
        }
    }

    /// Returns the number of the awaited payload, if any.
    pub(crate) fn awaited_payload(&self) -> Option<u64> {
        (!matches!(self.input, Input::Requests)).then_some(self.payloads)
    }

    /// Ends a receive.
    pub(crate) fn end_receive(
        &mut self,
        receive_buffer: &mut ReceiveBuffer,
        received: Buffer,
        len_bytes: usize,
    ) {
        match &mut self.input {
            Input::Payload { request, buffer, filled_bytes, .. } => {
                assert!(
                    (*filled_bytes + len_bytes) as u64 <= request.len_bytes,
                    "a payload has its announced length"
                );
                assert!(buffer.is_none(), "a receive owns the buffer");
                *buffer = Some(received);
                *filled_bytes += len_bytes;
            }
            Input::Requests | Input::Discard { .. } => receive_buffer.end_receive(received, len_bytes),
        }
    }

    /// Processes all received requests.
    pub(crate) fn consume(&mut self, scope: &mut Scope<'_, '_>) -> Pause {
        loop {
            if scope.flow.remote_requests.is_stale(scope.flow.received_at) {
                return Pause::HungUp;
            }
            let pause = match &mut self.input {
                Input::Requests => self.next_request(scope),
                Input::Payload { request, buffer, filled_bytes } => {
                    if (*filled_bytes as u64) < request.len_bytes {
                        return Pause::Input;
                    }
                    assert!(*filled_bytes as u64 == request.len_bytes, "a payload has its announced length");
                    let (request, buffer) = (*request, buffer.take());
                    self.input = Input::Requests;
                    if let Some(buffer) = buffer {
                        self.write_buffer(request, buffer, scope);
                    }
                    None
                }
                Input::Discard { remaining_bytes, errno, to } => {
                    let len_bytes = scope.receive_buffer.unread().len().min(*remaining_bytes);
                    scope.receive_buffer.consume(len_bytes);
                    *remaining_bytes -= len_bytes;
                    if *remaining_bytes > 0 {
                        return Pause::Input;
                    }
                    assert!(*errno != 0, "a refused request has an error number");
                    scope.flow.reply(to, *errno, REQUEST_OVERHEAD_BYTES, scope.cx);
                    self.input = Input::Requests;
                    None
                }
            };
            if let Some(pause) = pause {
                return pause;
            }
        }
    }

    fn validate(&mut self, request: &Request) -> Verdict {
        self.fits(request.offset_bytes, request.len_bytes);
        request.validate(&self.terms)
    }

    /// Returns true if a range is within the device, which may have grown since the negotiation.
    fn fits(&mut self, offset_bytes: u64, len_bytes: u64) -> bool {
        if !self.terms.contain(offset_bytes, len_bytes) {
            self.terms.size_bytes = self.terms.size_bytes.max(self.device.size_bytes());
        }
        self.terms.contain(offset_bytes, len_bytes)
    }

    fn next_request(&mut self, scope: &mut Scope<'_, '_>) -> Option<Pause> {
        if scope.flow.is_at_job_limit() {
            return Some(Pause::Throttled);
        }
        let mode = self.terms.mode;
        let Some(header) = scope.receive_buffer.unread().get(..mode.request_len_bytes()) else {
            return Some(Pause::Input);
        };
        let Some(request) = Request::decode(header, mode) else {
            return Some(Pause::Violation("wrong magic in a request"));
        };
        let verdict = self.pending_verdict.take().unwrap_or_else(|| self.validate(&request));
        let payload_len_bytes = request.payload_len_bytes(mode);
        let needs_whole_payload = match verdict {
            Verdict::Execute(Operation::Write { .. }) => payload_len_bytes <= BUFFERED_PAYLOAD_BYTES as u64,
            Verdict::Execute(Operation::BlockStatus { .. }) => true,
            _ => false,
        };
        // Such payloads fit into the receive buffer together with their header.
        if needs_whole_payload
            && scope.receive_buffer.unread().len() < mode.request_len_bytes() + payload_len_bytes as usize
        {
            return Some(Pause::Input);
        }
        let charge_bytes = match verdict {
            Verdict::Disconnect => return Some(Pause::Disconnect),
            Verdict::PayloadTooLong => {
                return Some(Pause::Violation("the payload of an invalid request is too long"));
            }
            Verdict::Execute(operation) => charge(&request, operation),
            Verdict::Refuse { .. } => REQUEST_OVERHEAD_BYTES,
        };
        if !scope.flow.admit(charge_bytes, scope.cx) {
            self.pending_verdict = Some(verdict);
            return Some(Pause::Throttled);
        }
        scope.receive_buffer.consume(mode.request_len_bytes());
        *scope.cx.requests += 1;
        tracing::trace!(?request, ?verdict, "request");
        let to = ReplyTo { mode, cookie: request.cookie, offset_bytes: request.offset_bytes };
        self.expects_large = false;
        match verdict {
            Verdict::Execute(operation) => {
                let range_is_in_payload =
                    matches!(operation, Operation::BlockStatus { has_payload: true, .. });
                assert!(
                    range_is_in_payload || self.terms.contain(to.offset_bytes, request.len_bytes),
                    "a request is within its export"
                );
                assert!(!self.terms.read_only || !operation.writes(), "a read-only export is not written");
                self.execute(Admitted { operation, to, len_bytes: request.len_bytes, charge_bytes }, scope);
            }
            Verdict::Refuse { errno } => {
                self.payloads += 1;
                // A longer payload has ended the connection.
                assert!(payload_len_bytes <= u64::from(MAX_DISCARD_BYTES), "a discarded payload is bounded");
                self.input = Input::Discard { remaining_bytes: payload_len_bytes as usize, errno, to };
            }
            Verdict::Disconnect | Verdict::PayloadTooLong => {}
        }
        None
    }

    /// Logs a failure of the device.
    pub(crate) fn report(&mut self, request: &Admitted, failure: &DeviceFailure, now: Instant) {
        self.failure_log.note(request, failure, now);
    }
}

/// Returns the charge of a request in bytes: the maximum memory of the request and its reply.
fn charge(request: &Request, operation: Operation) -> u64 {
    REQUEST_OVERHEAD_BYTES
        + match operation {
            Operation::Read { .. } | Operation::Write { .. } => request.len_bytes,
            Operation::BlockStatus { .. } => 16 * MAX_STATUS_EXTENTS as u64,
            Operation::Flush | Operation::Trim { .. } | Operation::WriteZeroes(_) | Operation::Cache => 0,
        }
}
