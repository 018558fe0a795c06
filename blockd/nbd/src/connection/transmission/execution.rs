//! Execution of requests, at once on the ring thread where the device can, else by a worker; their replies.

use std::sync::Arc;

use super::{Input, Transmission, charge};
use crate::connection::buffer_pool::Buffer;
use crate::connection::flow::{Context, Flow};
use crate::connection::inbox::Inbox;
use crate::device::Progress;
use crate::protocol::constants::{MAX_PAYLOAD_BYTES, NBD_EINVAL};
use crate::protocol::meta_context::MetaContext;
use crate::protocol::reply::{ReplyMode, ReplyTo};
use crate::protocol::request::{Operation, Request};
use crate::protocol::wire::Reader;
use crate::server::worker::{DeviceFailure, RequestDone, RequestWork, Success, Work, call_device};

/// Maximum length of a request executed on the ring thread; a longer one would delay others.
const INLINE_BYTES: usize = 256 << 10;
/// Maximum length of a read answered from a batch; a longer one gets its own buffer.
const BATCH_READ_BYTES: usize = 32 << 10;

impl Transmission {
    pub(super) fn write(
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
            assert!(
                filled_bytes < len && len <= MAX_PAYLOAD_BYTES as usize,
                "the rest of the payload follows"
            );
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

    pub(super) fn write_buffer(
        &mut self,
        request: &Request,
        fua: bool,
        buffer: Buffer,
        flow: &mut Flow,
        cx: &mut Context<'_>,
    ) {
        let len = request.len_bytes as usize;
        assert!(len <= buffer.capacity_bytes(), "the payload of a write lies in its buffer");
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
    pub(super) fn execute(
        &mut self,
        request: &Request,
        operation: Operation,
        flow: &mut Flow,
        cx: &mut Context<'_>,
    ) {
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

    fn read(&mut self, request: &Request, operation: Operation, flow: &mut Flow, cx: &mut Context<'_>) {
        let len = request.len_bytes as usize;
        assert!(0 < len && len <= MAX_PAYLOAD_BYTES as usize, "the length of a read is judged");
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

    /// Executes a block status request whose payload in the inbox has the length of the range and the
    /// contexts.
    pub(super) fn chosen_block_status(
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
            debug_assert!(context.id as usize == index + 1, "contexts are numbered from 1");
            if !std::mem::replace(is_chosen.get_mut(index)?, true) {
                contexts.push(context.clone());
            }
        }
        (!contexts.is_empty()).then(|| (len_bytes, contexts.into()))
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
    assert!(len <= buffer.capacity_bytes(), "the data of a read lies in its buffer");
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
pub(in crate::connection) fn finish(done: RequestDone, flow: &mut Flow, cx: &mut Context<'_>) {
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
            assert!(!chunks.is_empty(), "a block status has a context, whose chunk releases the charge");
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
