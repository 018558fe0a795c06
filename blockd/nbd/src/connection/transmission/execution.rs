//! Execution of requests, on the ring thread if the device can complete them at once or else by a worker, and
//! their replies.

use std::sync::Arc;

use super::{Input, Scope, Transmission};
use crate::connection::buffer_pool::Buffer;
use crate::connection::flow::{Context, Flow, REQUEST_OVERHEAD_BYTES};
use crate::device::Progress;
use crate::protocol::constants::{MAX_PAYLOAD_BYTES, NBD_EINVAL};
use crate::protocol::meta_context::MetaContext;
use crate::protocol::reply::ReplyMode;
use crate::protocol::request::Operation;
use crate::protocol::wire::Reader;
use crate::server::worker::{Admitted, DeviceFailure, RequestDone, RequestWork, Success, Work, call_device};

/// Maximum length of a request executed on the ring thread; a longer one would delay others.
const INLINE_BYTES: usize = 256 << 10;
/// Maximum length of a read into a reply batch; a longer one gets its own buffer.
const BATCH_READ_BYTES: usize = 32 << 10;

impl Transmission {
    /// Executes a request whose payload, if any, is at the front of the receive buffer.
    pub(super) fn execute(&mut self, request: Admitted, scope: &mut Scope<'_, '_>) {
        match request.operation {
            Operation::Write { .. } => self.write(request, scope),
            Operation::Read { .. } if request.len_bytes == 0 => {
                let header = request.to.empty_read();
                scope.flow.reply_queue.push_small([&header, &[]], request.charge_bytes, scope.cx.pool);
            }
            Operation::Read { .. } if request.len_bytes <= BATCH_READ_BYTES as u64 => {
                self.read_into_batch(request, scope);
            }
            Operation::Read { .. } => self.read(request, scope),
            Operation::BlockStatus { has_payload: true, .. } => self.selected_block_status(request, scope),
            Operation::Flush => self.start(request, None, scope),
            _ if request.len_bytes == 0 => self.reply(&request, Ok(Progress::Done), scope),
            _ => self.start(request, None, scope),
        }
    }

    fn write(&mut self, request: Admitted, scope: &mut Scope<'_, '_>) {
        let len = request.len_bytes as usize;
        let unread = scope.receive_buffer.unread();
        let Some(data) = unread.get(..len) else {
            let mut buffer = scope.cx.pool.take(len);
            let filled_bytes = unread.len();
            assert!(
                filled_bytes < len && len <= MAX_PAYLOAD_BYTES as usize,
                "the rest of the payload follows"
            );
            buffer.payload_mut()[..filled_bytes].copy_from_slice(unread);
            scope.receive_buffer.consume(filled_bytes);
            self.expects_large = true;
            self.payloads += 1;
            self.input = Input::Payload { request, buffer: Some(buffer), filled_bytes };
            return;
        };
        match self.try_write(&request, data) {
            Ok(Progress::WouldBlock) => {
                let mut buffer = scope.cx.pool.take(len);
                buffer.payload_mut()[..len].copy_from_slice(data);
                self.start(request, Some(buffer), scope);
            }
            result => self.reply(&request, result, scope),
        }
        scope.receive_buffer.consume(len);
    }

    pub(super) fn write_buffer(&mut self, request: Admitted, buffer: Buffer, scope: &mut Scope<'_, '_>) {
        let len = request.len_bytes as usize;
        assert!(len <= buffer.capacity_bytes(), "the payload of a write is within its buffer");
        match self.try_write(&request, &buffer.payload()[..len]) {
            Ok(Progress::WouldBlock) => self.start(request, Some(buffer), scope),
            result => {
                self.reply(&request, result, scope);
                scope.cx.pool.give(buffer);
            }
        }
    }

    /// Attempts a write on the ring thread, unless it is long or has FUA.
    fn try_write(&self, request: &Admitted, data: &[u8]) -> Result<Progress, DeviceFailure> {
        if data.is_empty() {
            return Ok(Progress::Done);
        }
        if request.operation.syncs() || data.len() > INLINE_BYTES {
            return Ok(Progress::WouldBlock);
        }
        call_device(|| self.device.try_write(request.to.offset_bytes, data))
    }

    fn read_into_batch(&mut self, request: Admitted, scope: &mut Scope<'_, '_>) {
        let Admitted { to, charge_bytes, .. } = request;
        let len = request.len_bytes as usize;
        let header_len = to.mode.data_header_len_bytes();
        let reserved = scope.flow.reply_queue.reserve(header_len + len, scope.cx.pool);
        assert!(reserved.len() == header_len + len, "a batch has room for header and data");
        let (header, payload) = reserved.split_at_mut(header_len);
        match call_device(|| self.device.try_read(to.offset_bytes, payload)) {
            Ok(Progress::Zeroes) if to.mode != ReplyMode::Simple => {
                push_zeroes(&request, scope.flow, scope.cx);
            }
            Ok(progress @ (Progress::Done | Progress::Zeroes)) => {
                if progress == Progress::Zeroes {
                    payload.fill(0);
                }
                header.copy_from_slice(&to.data(to.offset_bytes, len, true));
                scope.flow.reply_queue.commit(header_len + len, charge_bytes);
            }
            Ok(Progress::WouldBlock) => {
                let buffer = scope.cx.pool.take(len);
                self.start(request, Some(buffer), scope);
            }
            failed => self.reply(&request, failed, scope),
        }
    }

    fn read(&mut self, request: Admitted, scope: &mut Scope<'_, '_>) {
        let len = request.len_bytes as usize;
        assert!(0 < len && len <= MAX_PAYLOAD_BYTES as usize, "the length of a read is validated");
        let mut buffer = scope.cx.pool.take(len);
        let attempt = if len > INLINE_BYTES {
            Ok(Progress::WouldBlock)
        } else {
            let data = &mut buffer.payload_mut()[..len];
            call_device(|| self.device.try_read(request.to.offset_bytes, data))
        };
        match attempt {
            Ok(Progress::WouldBlock) => self.start(request, Some(buffer), scope),
            Ok(progress) => {
                push_read(&request, buffer, progress == Progress::Zeroes, scope.flow, scope.cx);
            }
            failed => {
                scope.cx.pool.give(buffer);
                self.reply(&request, failed, scope);
            }
        }
    }

    fn start(&self, request: Admitted, buffer: Option<Buffer>, scope: &mut Scope<'_, '_>) {
        self.start_with(request, buffer, Arc::clone(&self.contexts), scope);
    }

    fn start_with(
        &self,
        request: Admitted,
        buffer: Option<Buffer>,
        contexts: Arc<[MetaContext]>,
        scope: &mut Scope<'_, '_>,
    ) {
        let work = RequestWork {
            request,
            device: Arc::clone(&self.device),
            buffer,
            contexts,
            received_at: scope.flow.received_at,
            remote_requests: Arc::clone(&scope.flow.remote_requests),
        };
        scope.flow.start(Work::Request(work), scope.cx);
    }

    /// Queues a reply without data.
    fn reply(
        &mut self,
        request: &Admitted,
        result: Result<Progress, DeviceFailure>,
        scope: &mut Scope<'_, '_>,
    ) {
        let errno = result.map_or_else(
            |failure| {
                self.report(request, &failure, scope.cx.now);
                failure.errno
            },
            |_| 0,
        );
        scope.flow.reply(&request.to, errno, request.charge_bytes, scope.cx);
    }

    /// Executes a block status request with a payload: the length of the range and the context ids.
    fn selected_block_status(&mut self, request: Admitted, scope: &mut Scope<'_, '_>) {
        // At most `MAX_STATUS_PAYLOAD_BYTES`.
        let payload_len = request.len_bytes as usize;
        let chosen =
            scope.receive_buffer.unread().get(..payload_len).and_then(|payload| self.choose(payload));
        scope.receive_buffer.consume(payload_len);
        match chosen {
            Some((len_bytes, contexts)) if len_bytes > 0 && self.fits(request.to.offset_bytes, len_bytes) => {
                self.start_with(Admitted { len_bytes, ..request }, None, contexts, scope);
            }
            _ => scope.flow.reply(&request.to, NBD_EINVAL, request.charge_bytes, scope.cx),
        }
    }

    /// Parses the payload of a block status request; `None` if it is invalid or has an unselected context.
    fn choose(&self, payload: &[u8]) -> Option<(u64, Arc<[MetaContext]>)> {
        let mut reader = Reader::new(payload);
        let len_bytes = reader.u64()?;
        let mut contexts = Vec::new();
        let mut is_chosen = vec![false; self.contexts.len()];
        while !reader.is_empty() {
            let id = reader.u32()?;
            // Context ids are numbered from 1.
            let index = (id as usize).checked_sub(1)?;
            let context = self.contexts.get(index).filter(|context| context.id == id)?;
            debug_assert!(context.id as usize == index + 1, "context ids are numbered from 1");
            if !std::mem::replace(is_chosen.get_mut(index)?, true) {
                contexts.push(context.clone());
            }
        }
        (!contexts.is_empty()).then(|| (len_bytes, contexts.into()))
    }
}

/// Queues the structured reply to a read of zeroes: one hole.
fn push_zeroes(request: &Admitted, flow: &mut Flow, cx: &mut Context<'_>) {
    // No read is longer than 64 MiB.
    let hole = request.to.hole(request.to.offset_bytes, request.len_bytes as u32, true);
    flow.reply_queue.push_small([&hole, &[]], request.charge_bytes, cx.pool);
}

/// Queues the reply to a read with its data in `buffer`, whose content is unspecified for zeroes.
fn push_read(request: &Admitted, mut buffer: Buffer, is_zero: bool, flow: &mut Flow, cx: &mut Context<'_>) {
    let (to, len) = (request.to, request.len_bytes as usize);
    assert!(len <= buffer.capacity_bytes(), "the data of a read is within its buffer");
    if is_zero && to.mode != ReplyMode::Simple {
        push_zeroes(request, flow, cx);
        cx.pool.give(buffer);
        return;
    }
    if is_zero {
        buffer.payload_mut()[..len].fill(0);
    }
    let header = to.data(to.offset_bytes, len, true);
    if len > BATCH_READ_BYTES {
        flow.reply_queue.push_large(&header, buffer, len, request.charge_bytes);
    } else {
        flow.reply_queue.push_small([&header, &buffer.payload()[..len]], request.charge_bytes, cx.pool);
        cx.pool.give(buffer);
    }
}

/// Queues the reply to a request executed by a worker.
pub(in crate::connection) fn finish(done: RequestDone, flow: &mut Flow, cx: &mut Context<'_>) {
    let RequestDone { request, buffer, result } = done;
    let Admitted { operation, to, mut charge_bytes, .. } = request;
    assert!(charge_bytes >= REQUEST_OVERHEAD_BYTES, "each request is charged");
    match (result, buffer) {
        (Ok(success @ (Success::Plain | Success::Zeroes)), Some(buffer))
            if matches!(operation, Operation::Read { .. }) =>
        {
            push_read(&request, buffer, success == Success::Zeroes, flow, cx);
        }
        (Ok(Success::Framed(range)), Some(buffer)) => {
            flow.reply_queue.push_framed(buffer, range, charge_bytes);
        }
        (result, buffer) => {
            match result {
                Ok(Success::Chunks(chunks)) => {
                    assert!(!chunks.is_empty(), "the chunk of the first context releases the charge");
                    for chunk in &chunks {
                        // The first chunk has the whole charge.
                        flow.reply_queue.push_small([chunk, &[]], std::mem::take(&mut charge_bytes), cx.pool);
                    }
                }
                Ok(_) => flow.reply(&to, 0, charge_bytes, cx),
                Err(failure) => flow.reply(&to, failure.errno, charge_bytes, cx),
            }
            if let Some(buffer) = buffer {
                cx.pool.give(buffer);
            }
        }
    }
}
