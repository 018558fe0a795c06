//! Receive buffer of a connection.

use crate::connection::buffer_pool::{Buffer, BufferPool, HEADROOM_BYTES};
use crate::server::ring::Transfer;

/// Capacity in bytes: for the longest option, and for many small writes.
pub(crate) const RECEIVE_BUFFER_BYTES: usize = 128 << 10;

/// Received, unconsumed bytes. A receive in progress owns the buffer.
pub(crate) struct ReceiveBuffer {
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
}

impl ReceiveBuffer {
    pub(crate) fn new(pool: &mut BufferPool) -> Self {
        Self { buffer: Some(pool.take(RECEIVE_BUFFER_BYTES)), start: 0, end: 0 }
    }

    /// Returns the unconsumed bytes; empty during a receive.
    pub(crate) fn unread(&self) -> &[u8] {
        debug_assert!(
            self.start <= self.end && self.end <= RECEIVE_BUFFER_BYTES,
            "unread bytes are within the buffer"
        );
        self.buffer.as_ref().map_or(&[], |buffer| &buffer.payload()[self.start..self.end])
    }

    /// Removes `len_bytes` from the front.
    pub(crate) fn consume(&mut self, len_bytes: usize) {
        assert!(self.start + len_bytes <= self.end, "only received bytes are consumed");
        self.start += len_bytes;
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Starts a receive of at most `max_bytes` after the unread bytes; `None` without free space or during a
    /// receive.
    pub(crate) fn start_receive(&mut self, max_bytes: usize) -> Option<Transfer> {
        let mut buffer = self.buffer.take()?;
        if self.start > 0 {
            buffer.payload_mut().copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let free_bytes = max_bytes.min(RECEIVE_BUFFER_BYTES - self.end);
        if free_bytes == 0 {
            self.buffer = Some(buffer);
            return None;
        }
        assert!(
            self.start == 0 && self.end + free_bytes <= RECEIVE_BUFFER_BYTES,
            "a receive is within the buffer"
        );
        let from = HEADROOM_BYTES + self.end;
        Some(Transfer { buffer, range: from..from + free_bytes, all: false })
    }

    /// Ends a receive of `len_bytes`.
    pub(crate) fn end_receive(&mut self, buffer: Buffer, len_bytes: usize) {
        assert!(self.buffer.is_none(), "a receive owns the buffer");
        assert!(self.end + len_bytes <= RECEIVE_BUFFER_BYTES, "a receive is within the buffer");
        self.buffer = Some(buffer);
        self.end += len_bytes;
    }

    /// Returns the buffer to the pool.
    pub(crate) fn discard(&mut self, pool: &mut BufferPool) {
        if let Some(buffer) = self.buffer.take() {
            pool.give(buffer);
        }
        self.start = 0;
        self.end = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consumed_bytes_free_the_buffer() {
        let mut pool = BufferPool::new(0);
        let mut receive_buffer = ReceiveBuffer::new(&mut pool);
        let put = |receive_buffer: &mut ReceiveBuffer, bytes: &[u8]| {
            let mut transfer = receive_buffer.start_receive(usize::MAX).unwrap();
            assert!(receive_buffer.start_receive(1).is_none(), "a receive is in progress");
            transfer.buffer.framed_mut()[transfer.range][..bytes.len()].copy_from_slice(bytes);
            receive_buffer.end_receive(transfer.buffer, bytes.len());
        };
        put(&mut receive_buffer, b"abc");
        put(&mut receive_buffer, b"def");
        receive_buffer.consume(2);
        assert_eq!(receive_buffer.unread(), b"cdef");
        put(&mut receive_buffer, b"g");
        assert_eq!(receive_buffer.unread(), b"cdefg");
        put(&mut receive_buffer, &vec![7; RECEIVE_BUFFER_BYTES - 5]);
        assert!(receive_buffer.start_receive(usize::MAX).is_none(), "the buffer is full");
        receive_buffer.consume(5);
        assert_eq!(receive_buffer.start_receive(usize::MAX).unwrap().range.len(), 5);
    }
}
