//! Safe wrapper of io_uring for sockets: an operation owns its buffer until the completion returns it. All
//! `unsafe` code of the server is in this module.
//!
//! The in-flight table owns the buffer and descriptor of an operation from before its submission until its
//! completion has been reaped. A dropped ring cancels its operations and waits for them. If the wait fails,
//! it leaks the table, because the kernel may still use the buffers.

#![allow(unsafe_code, reason = "io_uring")]

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};
use rustix::event::PollFlags;
use rustix::net::{RecvFlags, SendFlags, SocketFlags};

use crate::connection::buffer_pool::Buffer;

const SUBMISSIONS: u32 = 256;
const COMPLETIONS: u32 = 2048;
/// User data of cancellations, whose completions are ignored.
const CANCELLATION: u64 = u64::MAX;
/// Maximum number of waits of a dropped ring for the last completions, and the timeout of each.
const DRAIN_ROUNDS: usize = 50;
const DRAIN_WAIT: Duration = Duration::from_millis(100);

/// Transfer between a socket and a range of a buffer's frame (see [`Buffer::framed_mut`]).
pub(crate) struct Transfer {
    pub(crate) buffer: Buffer,
    pub(crate) range: Range<usize>,
    /// A send completes only when the whole range is sent or the connection fails. Receives ignore it and
    /// complete with the first bytes.
    pub(crate) all: bool,
}

/// Completion of an operation.
pub(crate) struct Completion {
    /// Tag of the operation.
    pub(crate) tag: u64,
    pub(crate) outcome: Outcome,
}

pub(crate) enum Outcome {
    /// Result of a transfer in bytes, with its buffer.
    Transferred { buffer: Buffer, result: io::Result<usize> },
    /// Result of an accept.
    Accepted(io::Result<OwnedFd>),
    /// Result of a hang-up poll.
    HungUp(io::Result<()>),
}

/// Kind of an operation, with its buffer.
enum Subject {
    Transfer(Buffer),
    Accept,
    HangUp,
}

struct InFlight {
    tag: u64,
    subject: Subject,
    /// Held open until the completion, so that its number is not reused.
    _fd: Arc<OwnedFd>,
}

/// An io_uring with its in-flight table, for use on the thread that created it.
pub(crate) struct Ring {
    uring: IoUring,
    in_flight: ManuallyDrop<Vec<Option<InFlight>>>,
    free: Vec<usize>,
    /// Operations that could not be submitted; they complete with an error at the next wait.
    refused: Vec<Completion>,
}

impl Ring {
    /// Creates a ring.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it or lacks a required feature.
    pub(crate) fn new() -> io::Result<Self> {
        let uring = setup()?;
        let params = uring.params();
        if !params.is_feature_nodrop() || !params.is_feature_ext_arg() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the kernel's io_uring lacks NODROP or EXT_ARG",
            ));
        }
        Ok(Self { uring, in_flight: ManuallyDrop::new(Vec::new()), free: Vec::new(), refused: Vec::new() })
    }

    /// Starts a receive into the transfer's range, which completes with the available bytes.
    pub(crate) fn recv(&mut self, fd: &Arc<OwnedFd>, transfer: Transfer, tag: u64) {
        self.transfer(fd, transfer, tag, |fd, pointer, len| opcode::Recv::new(fd, pointer, len).build());
    }

    /// Starts a send of the transfer's range. A disconnected peer causes an error, not a signal.
    pub(crate) fn send(&mut self, fd: &Arc<OwnedFd>, transfer: Transfer, tag: u64) {
        let mut flags = SendFlags::NOSIGNAL;
        if transfer.all {
            // Linux 5.19 and newer support the flag for sends; older kernels make short sends.
            flags |= SendFlags::from_bits_retain(RecvFlags::WAITALL.bits());
        }
        self.transfer(fd, transfer, tag, |fd, pointer, len| {
            opcode::Send::new(fd, pointer.cast_const(), len).flags(flags.bits().cast_signed()).build()
        });
    }

    /// Starts a read from a descriptor other than a socket.
    pub(crate) fn read(&mut self, fd: &Arc<OwnedFd>, transfer: Transfer, tag: u64) {
        self.transfer(fd, transfer, tag, |fd, pointer, len| opcode::Read::new(fd, pointer, len).build());
    }

    /// Starts an accept of one connection.
    pub(crate) fn accept(&mut self, fd: &Arc<OwnedFd>, tag: u64) {
        let flags = SocketFlags::CLOEXEC.bits().cast_signed();
        let entry = opcode::Accept::new(Fd(fd.as_raw_fd()), std::ptr::null_mut(), std::ptr::null_mut())
            .flags(flags)
            .build();
        let index = self.insert(InFlight { tag, subject: Subject::Accept, _fd: Arc::clone(fd) });
        self.push(index, entry);
    }

    /// Starts a poll that completes when the peer of a socket closes its side, regardless of unread data.
    pub(crate) fn hang_up(&mut self, fd: &Arc<OwnedFd>, tag: u64) {
        let events = u32::from(PollFlags::RDHUP.bits());
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events).build();
        let index = self.insert(InFlight { tag, subject: Subject::HangUp, _fd: Arc::clone(fd) });
        self.push(index, entry);
    }

    /// Cancels the operations with this tag; they complete with an error unless they have already completed.
    pub(crate) fn cancel(&mut self, tag: u64) {
        for index in 0..self.in_flight.len() {
            if self.in_flight[index].as_ref().is_some_and(|operation| operation.tag == tag) {
                self.push_cancellation(index);
            }
        }
    }

    /// Submits the started operations. Returns a check without a system call, which is true if a wait would
    /// end at once.
    ///
    /// # Errors
    /// The kernel refuses the submission.
    pub(crate) fn start_and_poll(&mut self) -> io::Result<impl FnMut() -> bool> {
        match self.uring.submit() {
            Err(error) if !is_transient(&error) => return Err(error),
            _ => {}
        }
        let has_refused = !self.refused.is_empty();
        let uring = &mut self.uring;
        Ok(move || has_refused || !uring.completion().is_empty() || uring.submission().taskrun())
    }

    /// Submits the started operations, waits for a completion or the timeout, and appends the completions.
    ///
    /// # Errors
    /// The kernel refuses the submission or the wait.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        completions.append(&mut self.refused);
        let timeout = if completions.is_empty() { timeout } else { Some(Duration::ZERO) };
        let result = match timeout {
            None => self.uring.submit_and_wait(1),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
        };
        self.reap(completions);
        match result {
            Ok(_) => Ok(()),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn transfer(
        &mut self,
        fd: &Arc<OwnedFd>,
        mut transfer: Transfer,
        tag: u64,
        build: impl FnOnce(Fd, *mut u8, u32) -> squeue::Entry,
    ) {
        assert!(!transfer.range.is_empty(), "an empty transfer has the same result as the end of the stream");
        // Slicing checks the range, so pointer and length are within the buffer.
        let bytes = &mut transfer.buffer.framed_mut()[transfer.range];
        // A longer transfer is short.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry = build(Fd(fd.as_raw_fd()), bytes.as_mut_ptr(), len);
        let subject = Subject::Transfer(transfer.buffer);
        let index = self.insert(InFlight { tag, subject, _fd: Arc::clone(fd) });
        self.push(index, entry);
    }

    fn insert(&mut self, operation: InFlight) -> usize {
        match self.free.pop() {
            Some(index) => {
                // An overwritten operation would free a buffer that the kernel uses.
                assert!(self.in_flight[index].is_none(), "a slot has one operation");
                self.in_flight[index] = Some(operation);
                index
            }
            None => {
                self.in_flight.push(Some(operation));
                self.in_flight.len() - 1
            }
        }
    }

    fn push(&mut self, index: usize, entry: squeue::Entry) {
        let entry = entry.user_data(index as u64);
        // SAFETY: the entry's pointer, if it has one, leads into the buffer that the in-flight table owns
        // under `index`; the table keeps it, and the descriptor, until the completion with this index has
        // been reaped, also when the ring is dropped (see `Drop`). Its memory stays in place when the table
        // grows, because a `Buffer` never reallocates (see there). No code accesses it in between: it is
        // reachable through the table only.
        let pushed = unsafe { push_or_submit(&mut self.uring, &entry) };
        if let Err(error) = pushed
            && let Some(operation) = self.remove(index)
        {
            self.refused.push(complete(operation, Err(error)));
        }
    }

    fn push_cancellation(&mut self, index: usize) {
        let entry = opcode::AsyncCancel::new(index as u64).build().user_data(CANCELLATION);
        // SAFETY: a cancellation refers to no memory and no descriptor.
        let pushed = unsafe { push_or_submit(&mut self.uring, &entry) };
        if let Err(error) = pushed {
            tracing::debug!(%error, "cancelling an operation failed");
        }
    }

    fn remove(&mut self, index: usize) -> Option<InFlight> {
        let operation = self.in_flight.get_mut(index)?.take()?;
        self.free.push(index);
        assert!(self.free.len() <= self.in_flight.len(), "a slot is freed once");
        Some(operation)
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        loop {
            let Some((user_data, result)) =
                self.uring.completion().next().map(|entry| (entry.user_data(), entry.result()))
            else {
                return;
            };
            if user_data == CANCELLATION {
                continue;
            }
            let Some(operation) = usize::try_from(user_data).ok().and_then(|index| self.remove(index)) else {
                continue;
            };
            let result = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result) };
            completions.push(complete(operation, result));
        }
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.in_flight.len()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for index in 0..self.in_flight.len() {
            if self.in_flight[index].is_some() {
                self.push_cancellation(index);
            }
        }
        let mut completions = Vec::new();
        for _ in 0..DRAIN_ROUNDS {
            if self.is_idle() || self.wait(Some(DRAIN_WAIT), &mut completions).is_err() {
                break;
            }
            completions.clear();
        }
        if self.is_idle() {
            // SAFETY: the table is not used again; this is the end of `drop`.
            unsafe { ManuallyDrop::drop(&mut self.in_flight) };
        } else {
            tracing::error!("operations of a dropped ring did not complete; their buffers are leaked");
        }
    }
}

fn complete(operation: InFlight, result: io::Result<i32>) -> Completion {
    let outcome = match operation.subject {
        Subject::Transfer(buffer) => {
            // Errors are mapped, so the result is not negative.
            Outcome::Transferred { buffer, result: result.map(|len| len.unsigned_abs() as usize) }
        }
        Subject::HangUp => Outcome::HungUp(result.map(|_| ())),
        Subject::Accept => Outcome::Accepted(result.map(|fd: RawFd| {
            // SAFETY: only `accept` inserts this subject, with an accept entry; the result of a successful
            // accept is a new descriptor with no other owner.
            unsafe { OwnedFd::from_raw_fd(fd) }
        })),
    };
    Completion { tag: operation.tag, outcome }
}

/// Pushes an entry; submits the queue first if it is full.
///
/// # Safety
/// Until the completion of the entry, the memory and the descriptor that it refers to must stay valid, and no
/// other code may access memory that it writes, or write memory that it reads.
unsafe fn push_or_submit(uring: &mut IoUring, entry: &squeue::Entry) -> io::Result<()> {
    // SAFETY: the caller keeps memory and descriptor as `push` requires until the completion.
    if unsafe { uring.submission().push(entry) }.is_ok() {
        return Ok(());
    }
    uring.submit()?;
    // SAFETY: as above. The failed push kept nothing of the entry, so the kernel receives it once.
    unsafe { uring.submission().push(entry) }
        .map_err(|_| io::Error::new(io::ErrorKind::WouldBlock, "the submission queue is full after a submit"))
}

/// Creates a ring whose completions do not interrupt the thread, if the kernel supports it.
fn setup() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETIONS).dontfork();
    let mut deferred = builder.clone();
    let deferred =
        deferred.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().build(SUBMISSIONS);
    if deferred.is_ok() {
        return deferred;
    }
    let mut cooperative = builder.clone();
    let cooperative = cooperative.setup_coop_taskrun().setup_taskrun_flag().build(SUBMISSIONS);
    if cooperative.is_ok() { cooperative } else { builder.build(SUBMISSIONS) }
}

/// Returns true for an error without consequences: a timeout, a signal, or completions that must be reaped
/// first.
fn is_transient(error: &io::Error) -> bool {
    let passing =
        [rustix::io::Errno::INTR, rustix::io::Errno::TIME, rustix::io::Errno::BUSY, rustix::io::Errno::AGAIN];
    error.raw_os_error().is_some_and(|code| passing.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::connection::buffer_pool::BufferPool;

    fn transfer(range: Range<usize>, fill: &[u8]) -> Transfer {
        let mut buffer = BufferPool::new(0).take(range.end);
        buffer.framed_mut()[range.start..][..fill.len()].copy_from_slice(fill);
        Transfer { buffer, range, all: false }
    }

    fn wait_one(ring: &mut Ring) -> Completion {
        let mut completions = Vec::new();
        while completions.is_empty() {
            ring.wait(None, &mut completions).unwrap();
        }
        assert_eq!(completions.len(), 1);
        completions.remove(0)
    }

    #[test]
    fn transfers_return_their_buffers() {
        let mut ring = Ring::new().unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = Arc::new(OwnedFd::from(ours));
        ring.send(&ours, transfer(3..8, b"hello"), 1);
        let done = wait_one(&mut ring);
        assert_eq!(done.tag, 1);
        assert!(matches!(done.outcome, Outcome::Transferred { result: Ok(5), .. }));
        let mut got = [0; 5];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");

        ring.recv(&ours, transfer(10..20, b""), 2);
        theirs.write_all(b"world").unwrap();
        let Outcome::Transferred { buffer, result } = wait_one(&mut ring).outcome else {
            panic!("not a transfer")
        };
        assert_eq!(result.unwrap(), 5);
        assert_eq!(&buffer.framed()[10..15], b"world");
        assert!(ring.is_idle());
    }

    #[test]
    fn transfer_with_disconnected_peer_fails() {
        let mut ring = Ring::new().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = Arc::new(OwnedFd::from(ours));
        drop(theirs);
        ring.send(&ours, transfer(0..1, b"x"), 1);
        let Outcome::Transferred { result, .. } = wait_one(&mut ring).outcome else {
            panic!("not a transfer")
        };
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        ring.recv(&ours, transfer(0..1, b""), 2);
        let Outcome::Transferred { result, .. } = wait_one(&mut ring).outcome else {
            panic!("not a transfer")
        };
        assert_eq!(result.unwrap(), 0);
    }

    #[test]
    fn cancelled_accept_completes_with_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = Arc::new(OwnedFd::from(UnixListener::bind(&path).unwrap()));
        let mut ring = Ring::new().unwrap();
        ring.accept(&listener, 9);
        let _client = UnixStream::connect(&path).unwrap();
        assert!(matches!(wait_one(&mut ring).outcome, Outcome::Accepted(Ok(_))));
        ring.accept(&listener, 10);
        ring.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        ring.cancel(10);
        assert!(matches!(wait_one(&mut ring).outcome, Outcome::Accepted(Err(_))));
    }

    #[test]
    fn hang_up_poll_completes_when_the_peer_closes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = Arc::new(OwnedFd::from(ours));
        let mut ring = Ring::new().unwrap();
        let mut completions = Vec::new();
        ring.hang_up(&ours, 1);
        theirs.write_all(b"data").unwrap();
        ring.wait(Some(Duration::ZERO), &mut completions).unwrap();
        assert!(completions.is_empty(), "received bytes are no hang-up");
        theirs.shutdown(Shutdown::Write).unwrap();
        assert!(matches!(wait_one(&mut ring), Completion { tag: 1, outcome: Outcome::HungUp(Ok(())) }));
        ring.hang_up(&ours, 2);
        assert!(
            matches!(wait_one(&mut ring), Completion { tag: 2, outcome: Outcome::HungUp(Ok(())) }),
            "a later poll completes too"
        );

        let (ours, _theirs) = UnixStream::pair().unwrap();
        ring.hang_up(&Arc::new(OwnedFd::from(ours)), 3);
        ring.wait(Some(Duration::ZERO), &mut completions).unwrap();
        assert!(completions.is_empty());
        ring.cancel(3);
        assert!(matches!(wait_one(&mut ring), Completion { tag: 3, outcome: Outcome::HungUp(Err(_)) }));
    }

    #[test]
    fn operations_beyond_the_queue_size_complete() {
        let mut ring = Ring::new().unwrap();
        let pairs: Vec<_> = (0..3 * u64::from(SUBMISSIONS))
            .map(|tag| {
                let (ours, theirs) = UnixStream::pair().unwrap();
                let ours = Arc::new(OwnedFd::from(ours));
                ring.recv(&ours, transfer(0..4, b""), tag);
                (ours, theirs)
            })
            .collect();
        for (_, theirs) in &pairs {
            (&mut &*theirs).write_all(b"data").unwrap();
        }
        let mut completions = Vec::new();
        while completions.len() < pairs.len() {
            ring.wait(None, &mut completions).unwrap();
        }
        assert!(
            completions.iter().all(|completion| {
                matches!(completion.outcome, Outcome::Transferred { result: Ok(4), .. })
            })
        );
        let mut tags: Vec<u64> = completions.iter().map(|completion| completion.tag).collect();
        tags.sort_unstable();
        assert!(tags.into_iter().eq(0..pairs.len() as u64));
    }

    #[test]
    fn dropped_ring_cancels_its_operations() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let ours = Arc::new(OwnedFd::from(ours));
        let mut ring = Ring::new().unwrap();
        ring.recv(&ours, transfer(0..4, b""), 1);
        ring.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        assert_eq!(Arc::strong_count(&ours), 2);
        drop(ring);
        assert_eq!(Arc::strong_count(&ours), 1, "the table was freed");
        drop(ours);
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "the kernel released the socket");
    }
}
