//! Buffer pool for chunks of blocks during read and seal, for the reasons of
//! [`TransferMemory`](blockd_store::TransferMemory), which has the packs. Buffers are aligned for direct I/O.

use blockd_store::ALIGNMENT_BYTES;
use parking_lot::Mutex;
use std::{fmt, mem, sync::Arc};

/// Capacity of pooled buffers in bytes: a chunk of frames with the overhead of sealing. The kernel backs only
/// written pages with memory.
const POOLED_BYTES: usize = 2_176 << 10;
/// Minimum length of pooled buffers.
const POOLED_FROM_BYTES: usize = 256 << 10;
/// Maximum total of buffers in use and pooled buffers; buffers beyond it are freed.
const MAX_KEPT_BYTES: usize = 16 << 20;

/// Values whose memory is reused, as many as are in use concurrently.
#[derive(Default)]
pub(crate) struct Reused<T>(Mutex<Vec<T>>);

impl<T: Default> Reused<T> {
    /// Runs `run` with one of the values.
    pub fn with<R>(&self, run: impl FnOnce(&mut T) -> R) -> R {
        let mut value = self.0.lock().pop().unwrap_or_default();
        let result = run(&mut value);
        self.0.lock().push(value);
        result
    }
}

/// Pool of unused buffers.
#[derive(Default)]
pub(crate) struct Buffers {
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    free: Vec<Vec<u8>>,
    free_bytes: usize,
    in_use_bytes: usize,
}

impl PoolState {
    /// Frees pooled buffers to make room.
    fn make_room(&mut self, bytes: usize) {
        while self.in_use_bytes + self.free_bytes + bytes > MAX_KEPT_BYTES {
            let Some(last) = self.free.pop() else {
                debug_assert_eq!(self.free_bytes, 0, "pooled bytes are counted without a pooled buffer");
                return;
            };
            self.free_bytes -= last.capacity();
        }
    }
}

impl Buffers {
    /// Returns a buffer of `len_bytes` bytes with unspecified content.
    pub(crate) fn filled(self: &Arc<Self>, len_bytes: usize) -> Buffer {
        let mut buffer = self.take(len_bytes);
        let end = buffer.start + len_bytes;
        buffer.bytes.resize(end, 0);
        buffer
    }

    /// Returns an empty buffer with capacity for `len_bytes` bytes.
    pub(crate) fn empty(self: &Arc<Self>, len_bytes: usize) -> Buffer {
        let mut buffer = self.take(len_bytes);
        let start = buffer.start;
        buffer.bytes.resize(start, 0);
        buffer
    }

    fn take(self: &Arc<Self>, len_bytes: usize) -> Buffer {
        let needed = len_bytes + ALIGNMENT_BYTES;
        let is_pooled = (POOLED_FROM_BYTES..=POOLED_BYTES).contains(&needed);
        let capacity = if is_pooled { POOLED_BYTES } else { needed };
        let mut state = self.state.lock();
        let free = if is_pooled { state.free.pop() } else { None };
        let bytes = match free {
            Some(bytes) => {
                state.free_bytes -= capacity;
                bytes
            }
            None => {
                state.make_room(capacity);
                Vec::with_capacity(capacity)
            }
        };
        // The requested length; the allocator may return more.
        state.in_use_bytes += capacity;
        drop(state);
        assert!(bytes.capacity() >= needed, "a pooled buffer is shorter than its class");
        let start = bytes.as_ptr().align_offset(ALIGNMENT_BYTES);
        Buffer {
            bytes,
            start: if start < ALIGNMENT_BYTES { start } else { 0 },
            counted_bytes: capacity,
            home: Arc::clone(self),
        }
    }
}

/// Buffer that returns to the pool on drop.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    /// Offset of the content.
    start: usize,
    counted_bytes: usize,
    home: Arc<Buffers>,
}

impl Buffer {
    /// Returns the content, behind alignment bytes, for appending.
    pub(crate) fn appendable(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..).unwrap_or_default()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut state = self.home.state.lock();
        debug_assert!(state.in_use_bytes >= self.counted_bytes, "a buffer is returned twice");
        state.in_use_bytes -= self.counted_bytes;
        // Not a buffer that grew, or is larger than requested.
        let is_pooled = self.counted_bytes == POOLED_BYTES && self.bytes.capacity() == POOLED_BYTES;
        if is_pooled && state.in_use_bytes + state.free_bytes + self.counted_bytes <= MAX_KEPT_BYTES {
            state.free_bytes += self.counted_bytes;
            state.free.push(mem::take(&mut self.bytes));
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len_bytes", &self.as_ref().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused_and_aligned_for_direct_io() {
        let buffers = Arc::<Buffers>::default();
        let mut one = buffers.filled(2 << 20);
        assert_eq!(one.as_ref(), vec![0; 2 << 20]);
        assert_eq!(one.as_ref().as_ptr().align_offset(ALIGNMENT_BYTES), 0);
        one.as_mut().fill(7);
        let place = one.as_ref().as_ptr();
        drop(one);
        let mut two = buffers.empty(1 << 20);
        assert!(two.as_ref().is_empty());
        two.appendable().extend_from_slice(&[1; 9_000]);
        assert_eq!((two.as_ref().as_ptr(), two.as_ref()), (place, &[1; 9_000][..]));
        // In use.
        assert_ne!(buffers.filled(2 << 20).as_ref().as_ptr(), place);
        drop(two);
        // Too small, and too large.
        for len in [100, 40 << 20] {
            let other = buffers.filled(len);
            assert_ne!(other.as_ref().as_ptr(), place);
            assert_eq!(other.as_ref().len(), len);
        }
        assert_eq!(buffers.state.lock().in_use_bytes, 0);
    }

    #[test]
    fn pooled_buffers_stay_within_the_limit() {
        let buffers = Arc::<Buffers>::default();
        let mut in_flight = std::collections::VecDeque::new();
        for nth in 0..2_000_usize {
            // Of different lengths, some of them not pooled, a few at a time.
            let len = if nth % 5 == 0 { (2 << 20) + nth * 4_099 } else { (1 << 20) + nth * 97 };
            in_flight.push_back(buffers.empty(len));
            if in_flight.len() > 20 {
                in_flight.pop_front();
            }
            let state = buffers.state.lock();
            let capacities = |all: &mut dyn Iterator<Item = usize>| all.sum::<usize>();
            assert_eq!(
                state.in_use_bytes,
                capacities(&mut in_flight.iter().map(|buffer| buffer.bytes.capacity()))
            );
            assert_eq!(state.free_bytes, capacities(&mut state.free.iter().map(Vec::capacity)));
            assert!(state.in_use_bytes + state.free_bytes <= MAX_KEPT_BYTES.max(state.in_use_bytes));
        }
        drop(in_flight);
        let state = buffers.state.lock();
        assert!(state.in_use_bytes == 0 && state.free_bytes > 0 && state.free_bytes <= MAX_KEPT_BYTES);
    }
}
