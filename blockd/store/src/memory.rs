//! Memory of transfers: a bounded number of bytes for the objects in flight, in buffers that are reused.
//!
//! A backup copies the volume's data through memory. Without reuse the kernel would allocate, clear and map
//! each page: a tenth of the CPU time, under a lock that guest I/O also needs. Buffers are aligned for direct
//! I/O.

use crate::ALIGNMENT_BYTES;
use bytes::Bytes;
use parking_lot::Mutex;
use std::{fmt, mem, sync::Arc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Unit in which memory is reserved.
const UNIT_BYTES: usize = 256 << 10;
/// Capacities of reused buffers: pieces of objects, and whole packs. The kernel backs only written pages with
/// memory, but a host without overcommit counts all of them.
const REUSED_CAPACITIES_BYTES: [usize; 2] = [(2 << 20) + (64 << 10), 34 << 20];
/// Minimum length of reused buffers.
const REUSED_FROM_BYTES: usize = 256 << 10;
/// Written bytes beyond the content with which a buffer is still reused.
const MAX_SLACK_BYTES: usize = 4 << 20;

/// Memory for the objects that a task has in flight. Clones share it.
#[derive(Clone)]
pub struct TransferMemory {
    shared: Arc<Shared>,
}

struct Shared {
    limit_bytes: usize,
    room: Arc<Semaphore>,
    buffers: Mutex<Buffers>,
}

/// Buffers for reuse, within the limit together with the taken room.
#[derive(Default)]
struct Buffers {
    /// Each with its written bytes: the memory that it occupies.
    unused: Vec<(Vec<u8>, usize)>,
    /// Room of the buffers in use. Reservations that have their room, but no buffer yet, are not part of it:
    /// they take a buffer that returns with that room.
    taken_bytes: usize,
}

impl TransferMemory {
    /// Creates a memory of at most `limit_bytes` bytes, and at least that of one buffer.
    pub fn new(limit_bytes: usize) -> Self {
        let units = limit_bytes.div_ceil(UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let (limit_bytes, room) = (units * UNIT_BYTES, Arc::new(Semaphore::new(units)));
        Self { shared: Arc::new(Shared { limit_bytes, room, buffers: Mutex::default() }) }
    }

    /// Waits until there is room for `len_bytes` bytes and returns an empty buffer for them. A buffer longer
    /// than the limit takes all of it.
    pub async fn reserve(&self, len_bytes: usize) -> TransferBuffer {
        let shared = Arc::clone(&self.shared);
        let units = shared.units(len_bytes);
        // Cannot fail: the semaphore is never closed.
        let permit = Arc::clone(&shared.room).acquire_many_owned(units as u32).await.ok();
        let (mut bytes, written_bytes) = shared.take(len_bytes);
        let start = match bytes.as_ptr().align_offset(ALIGNMENT_BYTES) {
            start if start < ALIGNMENT_BYTES => start,
            _ => 0,
        };
        bytes.resize(start, 0);
        TransferBuffer { bytes, start, written_bytes, room: Room { permit, shared } }
    }

    /// Returns the reserved bytes.
    pub fn reserved_bytes(&self) -> usize {
        self.shared.limit_bytes - self.shared.room.available_permits() * UNIT_BYTES
    }
}

impl fmt::Debug for TransferMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("TransferMemory");
        debug.field("limit_bytes", &self.shared.limit_bytes).finish_non_exhaustive()
    }
}

impl Shared {
    fn units(&self, len_bytes: usize) -> usize {
        len_bytes.div_ceil(UNIT_BYTES).clamp(1, self.limit_bytes / UNIT_BYTES)
    }

    /// Returns a buffer and its written bytes. Frees unused ones until all buffers are within the limit.
    fn take(&self, len_bytes: usize) -> (Vec<u8>, usize) {
        let (needed, room_bytes) = (len_bytes + ALIGNMENT_BYTES, self.units(len_bytes) * UNIT_BYTES);
        let reused = REUSED_CAPACITIES_BYTES.into_iter().find(|capacity| needed <= *capacity);
        let reused = reused.filter(|_| needed >= REUSED_FROM_BYTES);
        let mut buffers = self.buffers.lock();
        let taken = reused.and_then(|capacity| buffers.take(capacity, room_bytes));
        buffers.taken_bytes += room_bytes;
        buffers.shrink_to(self.limit_bytes);
        drop(buffers);
        taken.unwrap_or_else(|| (Vec::with_capacity(reused.unwrap_or(needed)), 0))
    }
}

impl Buffers {
    /// Returns the unused buffer of this capacity with the most written bytes up to a maximum.
    fn take(&mut self, capacity: usize, max_written_bytes: usize) -> Option<(Vec<u8>, usize)> {
        let is_fitting = |(bytes, written): &(Vec<u8>, usize)| {
            bytes.capacity() == capacity && *written <= max_written_bytes
        };
        let fitting = self.unused.iter().enumerate().filter(|(_, buffer)| is_fitting(buffer));
        let (at, _) = fitting.max_by_key(|(_, (_, written))| *written)?;
        Some(self.unused.swap_remove(at))
    }

    /// Returns the bytes of all buffers.
    fn occupied_bytes(&self) -> usize {
        self.taken_bytes + self.unused.iter().map(|(_, written_bytes)| written_bytes).sum::<usize>()
    }

    /// Frees unused buffers until all occupy at most `bytes`.
    fn shrink_to(&mut self, bytes: usize) {
        while self.occupied_bytes() > bytes && self.unused.pop().is_some() {}
    }

    /// Frees unused buffers until they occupy at most as much as those in use, but keeps one: a memory that
    /// is used little does not keep what it once had.
    fn shrink_to_use(&mut self) {
        while self.unused.len() > 1 && self.occupied_bytes() > 2 * self.taken_bytes {
            self.unused.pop();
        }
    }
}

/// Room of a buffer.
struct Room {
    permit: Option<OwnedSemaphorePermit>,
    shared: Arc<Shared>,
}

impl Room {
    fn bytes(&self) -> usize {
        self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) * UNIT_BYTES
    }

    /// Returns the room beyond `kept_bytes`, and an unused buffer, which the next owner of the room finds.
    fn release(&mut self, kept_bytes: usize, buffer: Option<(Vec<u8>, usize)>) {
        let surplus_bytes = self.bytes().saturating_sub(kept_bytes);
        let mut buffers = self.shared.buffers.lock();
        buffers.taken_bytes -= surplus_bytes;
        buffers.unused.extend(buffer);
        buffers.shrink_to(self.shared.limit_bytes);
        buffers.shrink_to_use();
        drop(buffers);
        drop(self.permit.as_mut().and_then(|permit| permit.split(surplus_bytes / UNIT_BYTES)));
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.release(0, None);
    }
}

/// Buffer of a [`TransferMemory`]; its room is free again when it is dropped.
pub struct TransferBuffer {
    bytes: Vec<u8>,
    /// Offset of the content.
    start: usize,
    /// Bytes of the allocation that have been written since it exists.
    written_bytes: usize,
    room: Room,
}

impl TransferBuffer {
    /// Returns the content, behind alignment bytes, for appending.
    pub fn appendable(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Returns the length of the content in bytes.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Returns room that a content of `len_bytes` bytes does not need.
    pub fn release_beyond(&mut self, len_bytes: usize) {
        self.written_bytes = self.written_bytes.max(self.len_bytes());
        let kept = self.room.shared.units(len_bytes.max(self.written_bytes));
        self.room.release(kept * UNIT_BYTES, None);
    }

    /// Returns the content; its room is free again when the last clone is dropped.
    pub fn freeze(mut self) -> Bytes {
        self.release_beyond(self.len_bytes());
        Bytes::from_owner(self)
    }

    /// Returns content of another allocation that occupies the room of this buffer.
    pub(crate) fn hold(mut self, content: Bytes) -> Bytes {
        struct Held {
            content: Bytes,
            _room: Room,
        }
        impl AsRef<[u8]> for Held {
            fn as_ref(&self) -> &[u8] {
                &self.content
            }
        }
        let none = Room { permit: None, shared: Arc::clone(&self.room.shared) };
        Bytes::from_owner(Held { content, _room: mem::replace(&mut self.room, none) })
    }
}

impl AsRef<[u8]> for TransferBuffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

impl Drop for TransferBuffer {
    fn drop(&mut self) {
        let written_bytes = self.written_bytes.max(self.len_bytes());
        // Neither a buffer that grew, nor one that occupies much more than its last content.
        let is_reused = REUSED_CAPACITIES_BYTES.contains(&self.bytes.capacity())
            && written_bytes <= 2 * self.len_bytes() + MAX_SLACK_BYTES;
        self.room.release(0, is_reused.then(|| (mem::take(&mut self.bytes), written_bytes)));
    }
}

impl fmt::Debug for TransferBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransferBuffer").field("len_bytes", &self.len_bytes()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const MIB: usize = 1 << 20;

    fn fill(buffer: &mut TransferBuffer, len_bytes: usize) {
        let end = buffer.start + len_bytes;
        buffer.appendable().resize(end, 7);
    }

    #[tokio::test]
    async fn buffers_are_reused_and_aligned_for_direct_io() {
        let memory = TransferMemory::new(64 * MIB);
        let mut first = memory.reserve(4 * MIB).await;
        fill(&mut first, 4 * MIB);
        let place = first.as_ref().as_ptr();
        let piece = memory.reserve(2 * MIB).await;
        assert!(piece.bytes.capacity() < 3 * MIB, "pieces do not occupy address space of packs");
        drop(piece);
        assert_eq!((first.len_bytes(), place.align_offset(ALIGNMENT_BYTES)), (4 * MIB, 0));
        drop(first);
        let second = memory.reserve(32 * MIB).await;
        assert!(second.as_ref().is_empty());
        assert_eq!(second.bytes[second.start..].as_ptr(), place);
        let other = memory.reserve(MIB).await;
        assert_ne!(other.bytes[other.start..].as_ptr(), place, "in use");
        // Too short, and too long.
        for len_bytes in [100, 40 * MIB] {
            let memory = TransferMemory::new(64 * MIB);
            let mut buffer = memory.reserve(len_bytes).await;
            fill(&mut buffer, len_bytes);
            drop(buffer);
            assert!(memory.shared.buffers.lock().unused.is_empty(), "{len_bytes} bytes");
        }
    }

    #[tokio::test]
    async fn reservation_waits_for_room_and_returns_the_rest() {
        let memory = TransferMemory::new(64 * MIB);
        let mut first = memory.reserve(33 * MIB).await;
        assert!(memory.reserve(32 * MIB).now_or_never().is_none());
        fill(&mut first, 10 * MIB);
        first.release_beyond(20 * MIB);
        assert_eq!(memory.reserved_bytes(), 20 * MIB);
        let second = memory.reserve(32 * MIB).now_or_never().unwrap();
        let body = first.freeze();
        assert_eq!((body.len(), memory.reserved_bytes()), (10 * MIB, 42 * MIB));
        let part = body.slice(..10);
        drop(body);
        assert_eq!(memory.reserved_bytes(), 42 * MIB, "a clone is in use");
        drop(part);
        let held = second.hold(Bytes::from_static(b"other"));
        assert_eq!((&held[..], memory.reserved_bytes()), (&b"other"[..], 32 * MIB));
        drop(held);
        let whole = memory.reserve(100 * MIB).now_or_never().unwrap();
        assert_eq!(memory.reserved_bytes(), 64 * MIB);
        drop(whole);
        assert_eq!(memory.reserved_bytes(), 0);
    }

    #[tokio::test]
    async fn written_buffers_stay_within_the_limit() {
        let memory = TransferMemory::new(96 * MIB);
        let mut in_flight = std::collections::VecDeque::new();
        let lens = (0..600_usize).map(|nth| match nth / 100 {
            // Short ones, then long ones, then a mix.
            0 => MIB + nth * 4_099,
            1 => 30 * MIB,
            _ => (nth * 7_654_321) % (32 * MIB),
        });
        for len_bytes in lens {
            while memory.reserved_bytes() + 33 * MIB > 96 * MIB {
                in_flight.pop_front();
            }
            let mut buffer = memory.reserve(33 * MIB).await;
            fill(&mut buffer, len_bytes);
            buffer.release_beyond(len_bytes);
            in_flight.push_back(buffer);
            let written = |buffer: &TransferBuffer| buffer.written_bytes.max(buffer.len_bytes());
            let used: usize = in_flight.iter().map(written).sum();
            let buffers = memory.shared.buffers.lock();
            assert_eq!(buffers.taken_bytes, memory.reserved_bytes());
            let unused = buffers.occupied_bytes() - buffers.taken_bytes;
            assert!(used + unused <= 96 * MIB, "{used} + {unused}");
        }
        assert!(in_flight.len() >= 3);
        in_flight.clear();
        assert_eq!(memory.reserved_bytes(), 0);
        assert_eq!(memory.shared.buffers.lock().unused.len(), 1, "what is not used again is freed");
    }

    #[tokio::test]
    async fn waiting_reservation_gets_the_returned_buffer() {
        let memory = TransferMemory::new(33 * MIB);
        let mut first = memory.reserve(32 * MIB).await;
        fill(&mut first, 32 * MIB);
        let mut second = std::pin::pin!(memory.reserve(32 * MIB));
        assert!(second.as_mut().now_or_never().is_none());
        // Before the waiting one continues.
        drop(first);
        let second = second.now_or_never().unwrap();
        assert!(second.written_bytes >= 32 * MIB, "it is not new");
    }
}
