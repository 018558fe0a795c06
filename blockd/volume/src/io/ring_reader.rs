//! Concurrent file reads through io_uring.
//!
//! Dirty blocks of a frozen layer are scattered; with up to 64 reads in flight the disk can order them. Reads
//! target slices of one borrowed buffer, so no call returns before all of its reads have completed, also on
//! errors. Without io_uring (disabled by seccomp or sysctl) parts are read sequentially.

#![allow(unsafe_code, reason = "io_uring")]

use crate::{
    error::{IoContext, VolumeError},
    layer::data_files::FilePart,
    read::ReadPart,
};
use io_uring::{IoUring, opcode, types};
use std::{marker::PhantomData, os::fd::AsRawFd};

/// Maximum number of reads in flight.
const DEPTH: usize = 64;
/// Maximum length of a read: splits a long extent into reads that run concurrently.
const READ_MAX_BYTES: u64 = 256 << 10;

/// Delay before a retry after a temporary shortage in the kernel.
const RETRY_DELAY: std::time::Duration = std::time::Duration::from_millis(1);

/// Reader through io_uring, with sequential reads as fallback.
pub(crate) struct RingReader {
    /// `None` without kernel support, or after an error.
    ring: Option<IoUring>,
}

/// Read submitted to the kernel.
struct Slot<'a> {
    part: FilePart<'a>,
    at: usize,
    done_bytes: u64,
}

impl RingReader {
    pub(crate) fn new() -> Self {
        let ring = match IoUring::new(DEPTH as u32) {
            Ok(ring) => Some(ring),
            Err(error) => {
                tracing::debug!(%error, "io_uring setup failed: reading sequentially");
                None
            }
        };
        Self { ring }
    }

    /// Reads all parts into their positions in `buf`.
    pub(crate) fn read(&mut self, parts: &[ReadPart], buf: &mut [u8]) -> Result<(), VolumeError> {
        match &mut self.ring {
            // A single read gains nothing from the ring.
            Some(ring) if parts.len() > 1 || parts.iter().any(|p| p.len_bytes as u64 > READ_MAX_BYTES) => {
                let result = InFlightRead::new(ring, buf).run(parts);
                if result.is_err() {
                    self.ring = None;
                }
                result
            }
            _ => parts.iter().try_for_each(|part| {
                part.data.read(part.offset_bytes, &mut buf[part.at..][..part.len_bytes])
            }),
        }
    }
}

/// Reads of one call; the kernel owns `busy` slots.
struct InFlightRead<'ring, 'a> {
    ring: &'ring mut IoUring,
    slots: [Option<Slot<'a>>; DEPTH],
    busy: usize,
    /// Start of the caller's buffer. All targets derive from this pointer, since a new reference to the
    /// buffer would claim the memory that the kernel writes to.
    buf: *mut u8,
    buf_len: usize,
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'ring, 'a> InFlightRead<'ring, 'a> {
    fn new(ring: &'ring mut IoUring, buf: &'a mut [u8]) -> Self {
        let (slots, buf_len) = ([const { None }; DEPTH], buf.len());
        Self { ring, slots, busy: 0, buf: buf.as_mut_ptr(), buf_len, borrowed: PhantomData }
    }

    fn run(mut self, parts: &'a [ReadPart]) -> Result<(), VolumeError> {
        let mut wanted = parts.iter().flat_map(slots_of).peekable();
        while self.busy > 0 || wanted.peek().is_some() {
            while self.busy < DEPTH {
                let Some(slot) = wanted.next() else { break };
                slot.part.file.before_read().during("read", slot.part.path)?;
                self.submit(slot);
            }
            self.wait()?;
            self.reap()?;
        }
        assert!(self.slots.iter().all(Option::is_none), "each read has completed");
        Ok(())
    }

    /// Queues a read in a free slot; the submission queue has as many entries as there are slots.
    fn submit(&mut self, slot: Slot<'a>) {
        let free = self.slots.iter().position(Option::is_none);
        assert!(free.is_some() && self.busy < DEPTH, "each read has a slot");
        let Some(number) = free else { return };
        assert!(slot.done_bytes < slot.part.len_bytes, "only an incomplete read is submitted");
        let len = slot.part.len_bytes - slot.done_bytes;
        let start = slot.at + slot.done_bytes as usize;
        assert!(start <= self.buf_len && len as usize <= self.buf_len - start, "a read is within the buffer");
        let target = self.buf.wrapping_add(start);
        let entry = opcode::Read::new(types::Fd(slot.part.file.as_raw_fd()), target, len as u32)
            .offset(slot.part.offset_bytes + slot.done_bytes)
            .build()
            .user_data(number as u64);
        self.slots[number] = Some(slot);
        self.busy += 1;
        // SAFETY: `target` and `len` are within the caller's buffer, as asserted. `self` borrows that buffer
        // and the file of the slot for `'a`. `run` owns `self` and never leaks it, and `Drop` ends only when
        // no read is in flight, so both outlive the read. Until then no code makes a reference to the buffer:
        // `new` keeps its pointer only, and the caller's reference is borrowed. Other reads in flight have
        // other bytes, since neither the parts of a call nor their slots overlap.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // Unreachable: the queue has an entry for each slot. The kernel does not own the read.
            self.slots[number] = None;
            self.busy -= 1;
        }
    }

    /// Submits queued reads and waits for a completion.
    fn wait(&mut self) -> Result<(), VolumeError> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(error) if is_transient(&error) => std::thread::sleep(RETRY_DELAY),
                Err(error) => {
                    return Err(error).during("io_uring wait", std::path::Path::new("the data files"));
                }
            }
        }
    }

    /// Reaps completed reads; short reads are continued.
    fn reap(&mut self) -> Result<(), VolumeError> {
        let ended: Vec<(usize, i32)> =
            self.ring.completion().map(|entry| (entry.user_data() as usize, entry.result())).collect();
        // The kernel no longer owns them. `Drop`, also after a panic below, must not wait for them.
        self.busy = self.busy.saturating_sub(ended.len());
        let mut first_error = Ok(());
        for (number, result) in ended {
            let Some(mut slot) = self.slots.get_mut(number).and_then(Option::take) else { continue };
            match u64::try_from(result) {
                Ok(0) => {
                    let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                    first_error = first_error.and(Err(error).during("read", slot.part.path));
                }
                Ok(count) => {
                    assert!(
                        count <= slot.part.len_bytes - slot.done_bytes,
                        "a completion is within its read"
                    );
                    slot.done_bytes += count;
                    if slot.done_bytes < slot.part.len_bytes {
                        self.submit(slot);
                    }
                }
                Err(_) if result == -rustix::io::Errno::INTR.raw_os_error() => self.submit(slot),
                Err(_) => {
                    let error = std::io::Error::from_raw_os_error(-result);
                    first_error = first_error.and(Err(error).during("read", slot.part.path));
                }
            }
        }
        first_error
    }
}

impl Drop for InFlightRead<'_, '_> {
    /// Waits for all reads in flight: the kernel may still write to the borrowed buffer.
    fn drop(&mut self) {
        while self.busy > 0 {
            let ended = self.ring.completion().count();
            self.busy = self.busy.saturating_sub(ended);
            if self.busy > 0 && self.wait().is_err() {
                // The kernel may write to the buffer at any later time: continuing could corrupt memory.
                tracing::error!(
                    "io_uring wait failed with reads in flight: aborting to prevent memory corruption"
                );
                std::process::abort();
            }
        }
    }
}

/// Returns true for an interruption or a shortage of memory or completion entries.
fn is_transient(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [Errno::INTR, Errno::AGAIN, Errno::BUSY, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| passing.iter().any(|errno| errno.raw_os_error() == code))
}

/// Splits a part at segment boundaries and into reads of limited length.
fn slots_of(part: &ReadPart) -> impl Iterator<Item = Slot<'_>> {
    let mut at = part.at;
    part.data.parts(part.offset_bytes, part.len_bytes as u64).flat_map(move |part| {
        let start = at;
        at += part.len_bytes as usize;
        (0..part.len_bytes.div_ceil(READ_MAX_BYTES)).map(move |n| {
            let skip = n * READ_MAX_BYTES;
            Slot {
                part: FilePart {
                    file: part.file,
                    path: part.path,
                    offset_bytes: part.offset_bytes + skip,
                    len_bytes: (part.len_bytes - skip).min(READ_MAX_BYTES),
                },
                at: start + skip as usize,
                done_bytes: 0,
            }
        })
    })
}
