//! Payload buffers and a bounded pool of them.

/// Alignment of a payload in memory, as required for direct I/O.
const ALIGN_BYTES: usize = 4096;
/// Space before the payload for a reply header, so that one send has both.
pub(crate) const HEADROOM_BYTES: usize = 64;
/// Capacity of the smallest class; each class doubles it, up to 64 MiB.
const SMALLEST_BYTES: usize = 4096;
const CLASSES: usize = 15;

/// Payload buffer, aligned to 4096 in memory, with 64 bytes of headroom.
///
/// The `Vec` never grows, so its memory stays in place when the buffer is moved. Unlike a `Box`, it asserts
/// no unique access while the kernel uses the memory.
pub(crate) struct Buffer {
    memory: Vec<u8>,
    payload_start: usize,
}

impl Buffer {
    /// Creates a buffer for payloads up to `capacity_bytes`.
    pub(crate) fn new(capacity_bytes: usize) -> Self {
        let memory = vec![0_u8; capacity_bytes + HEADROOM_BYTES + ALIGN_BYTES];
        let first = memory.as_ptr().addr() + HEADROOM_BYTES;
        let payload_start = HEADROOM_BYTES + (first.next_multiple_of(ALIGN_BYTES) - first);
        assert!((memory.as_ptr().addr() + payload_start).is_multiple_of(ALIGN_BYTES), "payloads are aligned");
        assert!(payload_start + capacity_bytes <= memory.len(), "the payload follows the headroom");
        Self { memory, payload_start }
    }

    /// Returns the payload capacity, in bytes.
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.memory.len() - HEADROOM_BYTES - ALIGN_BYTES
    }

    /// Returns the payload area.
    pub(crate) fn payload(&self) -> &[u8] {
        &self.memory[self.payload_start..]
    }

    /// Returns the payload area.
    pub(crate) fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.payload_start..]
    }

    /// Returns headroom and payload as one slice: the payload starts at index [`HEADROOM_BYTES`].
    #[cfg(test)]
    pub(crate) fn framed(&self) -> &[u8] {
        &self.memory[self.payload_start - HEADROOM_BYTES..]
    }

    /// Returns headroom and payload as one slice: the payload starts at index [`HEADROOM_BYTES`].
    pub(crate) fn framed_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.payload_start - HEADROOM_BYTES..]
    }
}

/// Pool of unused buffers by size class, of bounded total size.
pub(crate) struct BufferPool {
    classes: [Vec<Buffer>; CLASSES],
    kept_bytes: usize,
    max_kept_bytes: usize,
}

impl BufferPool {
    pub(crate) fn new(max_kept_bytes: usize) -> Self {
        Self { classes: [const { Vec::new() }; CLASSES], kept_bytes: 0, max_kept_bytes }
    }

    /// Returns a buffer for at least `len_bytes` of payload, with unspecified content.
    pub(crate) fn take(&mut self, len_bytes: usize) -> Buffer {
        let capacity_bytes = len_bytes.max(SMALLEST_BYTES).next_power_of_two();
        match self.classes.get_mut(class_of(capacity_bytes)).and_then(Vec::pop) {
            Some(buffer) => {
                assert!(self.kept_bytes >= buffer.capacity_bytes(), "kept buffers are counted");
                assert!(buffer.capacity_bytes() >= len_bytes, "a buffer has the capacity of its class");
                self.kept_bytes -= buffer.capacity_bytes();
                buffer
            }
            None => Buffer::new(capacity_bytes),
        }
    }

    /// Returns a buffer to the pool, or frees it if the pool is full.
    pub(crate) fn give(&mut self, buffer: Buffer) {
        let capacity_bytes = buffer.capacity_bytes();
        assert!(capacity_bytes.is_power_of_two() && capacity_bytes >= SMALLEST_BYTES, "a buffer has a class");
        if self.kept_bytes + capacity_bytes > self.max_kept_bytes {
            return;
        }
        if let Some(class) = self.classes.get_mut(class_of(capacity_bytes)) {
            self.kept_bytes += capacity_bytes;
            assert!(self.kept_bytes <= self.max_kept_bytes, "the pool is bounded");
            class.push(buffer);
        }
    }
}

fn class_of(capacity_bytes: usize) -> usize {
    (capacity_bytes / SMALLEST_BYTES).trailing_zeros() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_payload_is_aligned_after_headroom() {
        for len_bytes in [1, 4096, 4097, 1 << 20, 64 << 20] {
            let mut buffer = BufferPool::new(0).take(len_bytes);
            assert!(buffer.payload().len() >= len_bytes);
            assert_eq!(buffer.payload().as_ptr().addr() % ALIGN_BYTES, 0);
            buffer.payload_mut()[0] = 7;
            assert_eq!(buffer.framed()[HEADROOM_BYTES], 7);
            assert_eq!(buffer.framed_mut().len(), buffer.payload().len() + HEADROOM_BYTES);
        }
    }

    #[test]
    fn pool_keeps_buffers_up_to_its_limit() {
        let mut pool = BufferPool::new(20_000);
        let mut buffer = pool.take(8000);
        buffer.payload_mut()[0] = 42;
        pool.give(buffer);
        assert_eq!(pool.kept_bytes, 8192);
        let again = pool.take(5000);
        assert_eq!(again.payload()[0], 42);
        assert_eq!(pool.kept_bytes, 0);
        pool.give(again);
        pool.give(Buffer::new(16384));
        assert_eq!(pool.kept_bytes, 8192, "the second buffer would exceed the limit");
        pool.give(Buffer::new(8192));
        assert_eq!(pool.kept_bytes, 16384);
        assert_eq!(pool.take(16384).payload()[0], 0);
    }
}
