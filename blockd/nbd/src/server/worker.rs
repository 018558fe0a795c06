//! Jobs of the worker threads. Separate threads execute requests that may block, syncs, export lookups,
//! lookups that may wait for the network, and TLS handshakes: other requests do not wait for syncs, clients
//! can connect while a slow device blocks all request workers or remote exports cannot be opened, and
//! connecting clients use at most one thread. Each connection has a limited number of queued jobs.
//!
//! A request that waits for remote data occupies no worker: the device keeps a callback, and the thread that
//! calls it executes the request. The request is in flight until then, or until the client disconnects.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::Receiver;

use crate::connection::buffer_pool::Buffer;
use crate::connection::remote_requests::{RemoteRequests, WaitingRequest};
use crate::device::{
    Access, BlockDevice, Client, DeviceError, DeviceErrorKind, ExportCatalog, OnFetched, Progress,
    StatusExtent,
};
use crate::protocol::constants::{MAX_STATUS_EXTENTS, NBD_EIO, NBD_ESHUTDOWN};
use crate::protocol::handshake::{Lookup, LookupResult};
use crate::protocol::meta_context::MetaContext;
use crate::protocol::reply::ReplyTo;
use crate::protocol::request::Operation;
use crate::server::mailbox::{ConnectionKey, Mailbox, Message};
use crate::server::sparse_read::read_with_holes;
use crate::tls::session::{Decrypted, TlsSession};

/// Job that may block or needs much processor time.
pub(crate) enum Work {
    Request(RequestWork),
    /// Export lookup of a client.
    Lookup(Lookup, Arc<Client>),
    /// Next step of a TLS handshake.
    Handshake(Box<TlsSession>),
}

/// Validated request whose charge is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admitted {
    pub(crate) operation: Operation,
    /// Address of the reply, which has the offset of the request.
    pub(crate) to: ReplyTo,
    pub(crate) len_bytes: u64,
    pub(crate) charge_bytes: u64,
}

/// Request with its resources.
pub(crate) struct RequestWork {
    pub(crate) request: Admitted,
    pub(crate) device: Arc<dyn BlockDevice>,
    /// Buffer of reads and writes.
    pub(crate) buffer: Option<Buffer>,
    /// Contexts of block status.
    pub(crate) contexts: Arc<[MetaContext]>,
    /// Earliest possible time of receipt.
    pub(crate) received_at: Instant,
    /// Table of the connection's requests that wait for remote data.
    pub(crate) remote_requests: Arc<RemoteRequests<Job>>,
}

/// Result of a job.
pub(crate) enum Done {
    Request(RequestDone),
    LookupResult(LookupResult),
    /// Session, with the result of its handshake step.
    Handshake(Box<TlsSession>, Result<Decrypted, rustls::Error>),
}

/// Result of a request, without its device.
pub(crate) struct RequestDone {
    pub(crate) request: Admitted,
    pub(crate) buffer: Option<Buffer>,
    pub(crate) result: Result<Success, DeviceFailure>,
}

/// Output of a successful request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Success {
    /// No output, or the data in the buffer.
    Plain,
    /// The range is zero; the buffer's content is unspecified.
    Zeroes,
    /// Encoded chunks in this range of the buffer's frame.
    Framed(Range<usize>),
    /// Encoded chunks, to be sent in this order.
    Chunks(Vec<Vec<u8>>),
}

/// Failure or panic of a device.
#[derive(Clone, Debug)]
pub(crate) struct DeviceFailure {
    pub(crate) errno: u32,
    pub(crate) message: String,
}

impl From<DeviceError> for DeviceFailure {
    fn from(error: DeviceError) -> Self {
        Self { errno: error.kind().nbd_errno(), message: error.message().to_owned() }
    }
}

impl DeviceFailure {
    /// Returns the failure of a request whose client has disconnected.
    fn client_disconnected() -> Self {
        Self { errno: NBD_ESHUTDOWN, message: "the client disconnected".to_owned() }
    }
}

/// Calls a device; a panic becomes an I/O error.
pub(crate) fn call_device<T>(call: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceFailure> {
    // Only the device's own state may be inconsistent after a panic, and the device is responsible for it.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(DeviceFailure::from),
        Err(panic) => {
            let message = format!("the device panicked: {}", panic_message(panic.as_ref()));
            tracing::error!(message, "a device request panicked");
            Err(DeviceFailure { errno: NBD_EIO, message })
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

impl RequestWork {
    pub(crate) fn run(mut self) -> RequestDone {
        let mut buffer = self.buffer.take();
        // A request may have waited long for a slow device; the client may have disconnected since.
        let result = if self.remote_requests.is_abandoned(self.received_at) {
            Err(DeviceFailure::client_disconnected())
        } else {
            call_device(|| self.carry_out(buffer.as_mut()))
        };
        RequestDone { request: self.request, buffer, result }
    }

    /// Ends the request with a result, without a call of its device.
    fn ended(self, result: Result<Success, DeviceFailure>) -> RequestDone {
        RequestDone { request: self.request, buffer: self.buffer, result }
    }

    /// Returns the access of a request that may need remote data.
    fn access(&self) -> Option<Access> {
        match self.request.operation {
            _ if !self.device.may_be_remote() || self.remote_requests.is_abandoned(self.received_at) => None,
            Operation::Read { .. } => Some(Access::Read),
            Operation::Write { .. } | Operation::WriteZeroes(_) => Some(Access::Write),
            Operation::BlockStatus { .. } => Some(Access::Status),
            _ => None,
        }
    }

    fn carry_out(&self, buffer: Option<&mut Buffer>) -> Result<Success, DeviceError> {
        let Admitted { operation, to, len_bytes, .. } = self.request;
        let (device, offset_bytes) = (&*self.device, to.offset_bytes);
        debug_assert!(
            offset_bytes.checked_add(len_bytes).is_some_and(|end| end <= device.size_bytes()),
            "a request is within its device"
        );
        // Only reads and writes have a buffer; they are at most 64 MiB long.
        let payload_len = len_bytes as usize;
        assert!(
            buffer.as_ref().is_none_or(|buffer| payload_len <= buffer.capacity_bytes()),
            "the payload is within its buffer"
        );
        match (operation, buffer) {
            (Operation::Read { dont_fragment }, Some(buffer)) => {
                if !dont_fragment && let Some(success) = read_with_holes(device, &to, len_bytes, buffer)? {
                    return Ok(success);
                }
                let progress = device.read(offset_bytes, &mut buffer.payload_mut()[..payload_len])?;
                assert!(progress != Progress::WouldBlock, "BlockDevice::read does not return WouldBlock");
                return Ok(if progress == Progress::Zeroes { Success::Zeroes } else { Success::Plain });
            }
            (Operation::Write { fua }, Some(buffer)) => {
                device.write(offset_bytes, &buffer.payload()[..payload_len], fua)?;
            }
            (Operation::Read { .. } | Operation::Write { .. }, None) => {
                return Err(DeviceError::new(DeviceErrorKind::Io, "internal error: a request has no buffer"));
            }
            (Operation::Flush, _) => device.flush()?,
            (Operation::Trim { fua }, _) => device.trim(offset_bytes, len_bytes, fua)?,
            (Operation::WriteZeroes(flags), _) => device.write_zeroes(offset_bytes, len_bytes, flags)?,
            (Operation::Cache, _) => device.cache(offset_bytes, len_bytes)?,
            (Operation::BlockStatus { one, .. }, _) => return self.block_status(one),
        }
        Ok(Success::Plain)
    }

    fn block_status(&self, one: bool) -> Result<Success, DeviceError> {
        assert!(!self.contexts.is_empty(), "block status has contexts");
        let Admitted { to, len_bytes, .. } = self.request;
        let max_extents = if one { 1 } else { (MAX_STATUS_EXTENTS / self.contexts.len().max(1)).max(1) };
        let mut chunks = Vec::with_capacity(self.contexts.len());
        let mut extents = Vec::new();
        for (index, context) in self.contexts.iter().enumerate() {
            extents.clear();
            self.device.block_status(&context.name, to.offset_bytes, len_bytes, max_extents, &mut extents)?;
            if !are_within(&extents, len_bytes) || extents.len() > max_extents {
                let message = format!(
                    "block status failed on context {}: the device returned invalid extents",
                    context.name
                );
                return Err(DeviceError::new(DeviceErrorKind::Io, message));
            }
            let is_last = index + 1 == self.contexts.len();
            assert!(!is_last || chunks.len() == index, "each context has a chunk");
            chunks.push(to.block_status(context.id, &extents, is_last));
        }
        Ok(Success::Chunks(chunks))
    }
}

/// Returns true for one or more non-empty extents of at most `len_bytes` in total.
fn are_within(extents: &[StatusExtent], len_bytes: u64) -> bool {
    let total = extents.iter().try_fold(0_u64, |total, extent| total.checked_add(extent.len_bytes));
    !extents.is_empty()
        && extents.iter().all(|extent| extent.len_bytes > 0)
        && total.is_some_and(|total| total <= len_bytes)
}

impl Work {
    fn run(self, catalog: &dyn ExportCatalog) -> Done {
        match self {
            Self::Request(request) => Done::Request(request.run()),
            Self::Lookup(lookup, client) => {
                let answer = catch_unwind(AssertUnwindSafe(|| lookup.clone().resolve(catalog, &client)));
                Done::LookupResult(answer.unwrap_or_else(|panic| {
                    tracing::error!(message = panic_message(panic.as_ref()), "the export catalog panicked");
                    lookup.fail("internal error of the server")
                }))
            }
            Self::Handshake(mut session) => {
                let step = catch_unwind(AssertUnwindSafe(|| session.advance_handshake()));
                let opened = step.unwrap_or_else(|panic| {
                    let message = format!("the TLS handshake panicked: {}", panic_message(panic.as_ref()));
                    tracing::error!(message, "closing a connection");
                    session.abandon();
                    Err(rustls::Error::General(message))
                });
                Done::Handshake(session, opened)
            }
        }
    }
}

/// Work with the mailbox and key of its connection.
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) key: ConnectionKey,
    pub(crate) mailbox: Arc<Mailbox<Message>>,
}

impl Job {
    /// Returns the device of a flush; `None` for other jobs.
    pub(crate) fn flushed_device(&self) -> Option<Arc<dyn BlockDevice>> {
        match &self.work {
            Work::Request(request) if matches!(request.request.operation, Operation::Flush) => {
                Some(Arc::clone(&request.device))
            }
            Work::Request(_) | Work::Lookup(..) | Work::Handshake(_) => None,
        }
    }

    fn is_abandoned(&self) -> bool {
        matches!(&self.work, Work::Request(request) if request.remote_requests.is_abandoned(request.received_at))
    }

    /// Starts the prefetch of remote data for a request. Returns the job if it can run at once; otherwise the
    /// completion callback runs it.
    fn start_prefetch(self) -> Option<Self> {
        let Work::Request(request) = &self.work else { return Some(self) };
        let Some(access) = request.access() else { return Some(self) };
        let (device, range) = (Arc::clone(&request.device), request.request);
        let remote_requests = Arc::clone(&request.remote_requests);
        let key = remote_requests.insert(self);
        // Weak, so that a slow fetch does not keep the socket of a closed connection open.
        let table = Arc::downgrade(&remote_requests);
        let then = move |result: Result<(), DeviceError>| {
            if let Some(job) = table.upgrade().and_then(|table| table.remove(key)) {
                job.resume(result);
            }
        };
        let mut then = Some(Box::new(then) as OnFetched);
        let started = call_device(|| {
            let Some(then) = then.take() else { return Ok(None) };
            Ok(device.prefetch_async(access, range.to.offset_bytes, range.len_bytes, then))
        });
        match started {
            // The client disconnected before the request was stored.
            Ok(None) if remote_requests.is_closed() => {
                if let Some(job) = remote_requests.remove(key) {
                    job.cancel();
                }
                None
            }
            Ok(None) => None,
            Ok(Some(_)) => remote_requests.remove(key),
            // The device panicked and has no callback.
            Err(failure) => {
                if let Some(job) = remote_requests.remove(key) {
                    job.end(|request| request.ended(Err(failure)));
                }
                None
            }
        }
    }

    /// Executes the request after its prefetch, or ends it with the error of the prefetch.
    fn resume(self, result: Result<(), DeviceError>) {
        match result {
            Ok(()) => self.end(RequestWork::run),
            Err(error) => self.end(|request| request.ended(Err(error.into()))),
        }
    }

    fn end(self, how: impl FnOnce(RequestWork) -> RequestDone) {
        if let Work::Request(request) = self.work {
            self.mailbox.post(Message::Done(self.key, Done::Request(how(request))));
        }
    }
}

impl WaitingRequest for Job {
    fn cancel(self) {
        self.end(|request| request.ended(Err(DeviceFailure::client_disconnected())));
    }
}

/// Executes jobs until the queue is disconnected and empty.
pub(crate) fn work(jobs: &Receiver<Job>, catalog: &dyn ExportCatalog) {
    for job in jobs {
        serve(job, catalog);
    }
}

/// Executes a job, or starts the prefetch that it needs.
pub(crate) fn serve(job: Job, catalog: &dyn ExportCatalog) {
    let Some(job) = job.start_prefetch() else { return };
    let done = job.work.run(catalog);
    job.mailbox.post(Message::Done(job.key, done));
}

/// Executes one flush for all jobs, which are flushes with the same key.
pub(crate) fn flush_coalesced(jobs: Vec<Job>) {
    let (cancelled, active): (Vec<_>, Vec<_>) = jobs.into_iter().partition(Job::is_abandoned);
    cancelled.into_iter().for_each(Job::cancel);
    let Some(device) = active.first().and_then(Job::flushed_device) else { return };
    debug_assert!(active.iter().all(|job| job.flushed_device().is_some()), "coalesced jobs are flushes");
    let result = call_device(|| device.flush());
    // A finished job must not hold its device.
    drop(device);
    for job in active {
        let result = result.clone().map(|()| Success::Plain);
        job.end(|request| request.ended(result));
    }
}
