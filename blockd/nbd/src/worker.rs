//! The threads on which requests may block, and those that look exports up: apart, so that clients can connect while
//! every worker waits for a slow device. The queues have no bound of their own: every request was charged to the
//! in-flight budget, every lookup belongs to one of a bounded number of connections.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};

use crate::buffer_pool::Buffer;
use crate::constants::NBD_EIO;
use crate::device::{BlockDevice, Client, DeviceError, ExportCatalog, Progress, ZeroFlags};
use crate::handshake::{Answer, Lookup};
use crate::mailbox::Mailbox;
use crate::request::Operation;
use crate::ring_thread::{ConnectionKey, Message};

/// Something that may block.
pub(crate) enum Work {
    Request(RequestWork),
    /// With who asks.
    Lookup(Lookup, Arc<Client>),
}

/// A request, with what it needs.
pub(crate) struct RequestWork {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) operation: Operation,
    pub(crate) cookie: u64,
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u32,
    /// For reads and writes.
    pub(crate) buffer: Option<Buffer>,
    pub(crate) charge_bytes: u64,
}

/// What became of some work.
pub(crate) enum Done {
    Request(RequestDone),
    Answer(Answer),
}

/// What became of a request; the device is no longer held.
pub(crate) struct RequestDone {
    pub(crate) operation: Operation,
    pub(crate) cookie: u64,
    pub(crate) len_bytes: u32,
    pub(crate) buffer: Option<Buffer>,
    pub(crate) charge_bytes: u64,
    pub(crate) result: Result<(), DeviceFailure>,
}

/// A device refused a request or panicked.
#[derive(Debug)]
pub(crate) struct DeviceFailure {
    pub(crate) errno: u32,
    pub(crate) message: String,
}

impl From<DeviceError> for DeviceFailure {
    fn from(error: DeviceError) -> Self {
        Self { errno: error.kind().nbd_errno(), message: error.message().to_owned() }
    }
}

/// Calls a device; a panic in it is an I/O error.
pub(crate) fn call_device<T>(call: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceFailure> {
    // Whatever the panic left half done is inside the device, which answers for it.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(DeviceFailure::from),
        Err(panic) => {
            let message = format!("the device panicked: {}", panic_message(panic.as_ref()));
            tracing::error!(message, "a request failed");
            Err(DeviceFailure { errno: NBD_EIO, message })
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

impl RequestWork {
    pub(crate) fn run(mut self) -> RequestDone {
        let (offset_bytes, len_bytes) = (self.offset_bytes, u64::from(self.len_bytes));
        let device = &*self.device;
        let payload_len = self.len_bytes as usize;
        let payload =
            self.buffer.as_mut().map_or(&mut [][..], |buffer| &mut buffer.payload_mut()[..payload_len]);
        let result = call_device(|| match self.operation {
            Operation::Read => device.read(offset_bytes, payload).map(|progress| {
                if progress == Progress::Zeroes {
                    payload.fill(0);
                }
            }),
            Operation::Write { fua } => device.write(offset_bytes, payload, fua),
            Operation::Flush => device.flush(),
            Operation::Trim { fua } => device.trim(offset_bytes, len_bytes, fua),
            Operation::WriteZeroes { no_hole, fua } => {
                device.write_zeroes(offset_bytes, len_bytes, ZeroFlags { no_hole, fua, fast: false })
            }
        });
        RequestDone {
            operation: self.operation,
            cookie: self.cookie,
            len_bytes: self.len_bytes,
            buffer: self.buffer,
            charge_bytes: self.charge_bytes,
            result,
        }
    }
}

impl Work {
    fn run(self, catalog: &dyn ExportCatalog) -> Done {
        match self {
            Self::Request(request) => Done::Request(request.run()),
            Self::Lookup(lookup, client) => {
                let answer = catch_unwind(AssertUnwindSafe(|| lookup.clone().resolve(catalog, &client)));
                Done::Answer(answer.unwrap_or_else(|panic| {
                    tracing::error!(message = panic_message(panic.as_ref()), "the export catalog panicked");
                    lookup.fail("the server failed to look it up")
                }))
            }
        }
    }
}

/// Work with the way back to whom it is for.
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) key: ConnectionKey,
    pub(crate) mailbox: Arc<Mailbox<Message>>,
}

/// Where work goes.
#[derive(Clone)]
pub(crate) struct Queues {
    pub(crate) requests: Sender<Job>,
    pub(crate) lookups: Sender<Job>,
}

impl Queues {
    /// Hands a job to the threads that are for it; they outlive every sender.
    pub(crate) fn send(&self, job: Job) {
        let queue = match job.work {
            Work::Request(_) => &self.requests,
            Work::Lookup(..) => &self.lookups,
        };
        if queue.send(job).is_err() {
            tracing::error!("the worker threads are gone");
        }
    }
}

/// What a worker thread does: jobs, until every sender of them is gone and the queue is empty.
pub(crate) fn work(jobs: &Receiver<Job>, catalog: &dyn ExportCatalog) {
    for job in jobs {
        let done = job.work.run(catalog);
        job.mailbox.post(Message::Done(job.key, done));
    }
}
