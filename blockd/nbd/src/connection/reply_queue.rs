//! Queue of unsent replies of a connection. Small replies are copied into batches, large ones are sent from
//! the buffer of their data. Sends alternate between both, because replies may be sent in any order.

use std::collections::VecDeque;
use std::ops::Range;

use crate::connection::buffer_pool::{Buffer, BufferPool, HEADROOM_BYTES};

/// Capacity of a batch, in bytes.
pub(crate) const BATCH_BYTES: usize = 128 << 10;

/// Bytes of one send.
pub(crate) struct Chunk {
    pub(crate) buffer: Buffer,
    /// Range of the buffer's frame to send.
    pub(crate) range: Range<usize>,
    /// Bytes to release after the send.
    pub(crate) charge_bytes: u64,
}

/// Queue of unsent replies. The charges of their requests bound their number.
#[derive(Default)]
pub(crate) struct ReplyQueue {
    /// Batch for further small replies.
    open: Option<Chunk>,
    full: VecDeque<Chunk>,
    large: VecDeque<Chunk>,
    large_is_next: bool,
}

impl ReplyQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.large.is_empty()
            && self.full.is_empty()
            && self.open.as_ref().is_none_or(|chunk| chunk.range.is_empty())
    }

    /// Reserves `len_bytes`, at most [`BATCH_BYTES`], at the end of the open batch. Only committed bytes are
    /// sent.
    pub(crate) fn reserve(&mut self, len_bytes: usize, pool: &mut BufferPool) -> &mut [u8] {
        assert!(len_bytes <= BATCH_BYTES, "a small reply fits a batch");
        if let Some(chunk) = self.open.take_if(|chunk| chunk.range.end + len_bytes > BATCH_BYTES) {
            self.full.push_back(chunk);
        }
        let chunk = self.open.get_or_insert_with(|| Chunk {
            buffer: pool.take(BATCH_BYTES),
            range: 0..0,
            charge_bytes: 0,
        });
        &mut chunk.buffer.framed_mut()[chunk.range.end..][..len_bytes]
    }

    /// Commits the first `len_bytes` of the last reservation.
    pub(crate) fn commit(&mut self, len_bytes: usize, charge_bytes: u64) {
        assert!(self.open.is_some(), "a reservation precedes its commit");
        if let Some(chunk) = &mut self.open {
            assert!(chunk.range.end + len_bytes <= BATCH_BYTES, "a batch is bounded");
            chunk.range.end += len_bytes;
            chunk.charge_bytes += charge_bytes;
        }
    }

    /// Copies a reply or chunk of at most [`BATCH_BYTES`] into one batch.
    pub(crate) fn push_small(&mut self, parts: [&[u8]; 2], charge_bytes: u64, pool: &mut BufferPool) {
        let [header, data] = parts;
        let len_bytes = header.len() + data.len();
        let (header_part, data_part) = self.reserve(len_bytes, pool).split_at_mut(header.len());
        header_part.copy_from_slice(header);
        data_part.copy_from_slice(data);
        self.commit(len_bytes, charge_bytes);
    }

    /// Appends the reply to a read with `len_bytes` of data in `buffer`. The header, of at most
    /// [`HEADROOM_BYTES`], is copied into the headroom.
    pub(crate) fn push_large(
        &mut self,
        header: &[u8],
        mut buffer: Buffer,
        len_bytes: usize,
        charge_bytes: u64,
    ) {
        assert!(header.len() <= HEADROOM_BYTES, "the header fits the headroom");
        let start = HEADROOM_BYTES - header.len();
        buffer.framed_mut()[start..HEADROOM_BYTES].copy_from_slice(header);
        self.push_framed(buffer, start..HEADROOM_BYTES + len_bytes, charge_bytes);
    }

    /// Appends a complete reply in a range of a buffer's frame.
    pub(crate) fn push_framed(&mut self, buffer: Buffer, range: Range<usize>, charge_bytes: u64) {
        assert!(!range.is_empty(), "a reply is not empty");
        assert!(range.end <= HEADROOM_BYTES + buffer.capacity_bytes(), "a reply is within its buffer");
        self.large.push_back(Chunk { buffer, range, charge_bytes });
    }

    /// Appends bytes of the negotiation, which are sent in order.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8], pool: &mut BufferPool) {
        for part in bytes.chunks(BATCH_BYTES) {
            self.reserve(part.len(), pool).copy_from_slice(part);
            self.commit(part.len(), 0);
        }
    }

    /// Removes the bytes of the next send.
    pub(crate) fn pop(&mut self) -> Option<Chunk> {
        self.large_is_next = !self.large_is_next;
        // The first pop prefers small replies: it sends the greeting.
        let chunk = if self.large_is_next {
            self.pop_small().or_else(|| self.large.pop_front())
        } else {
            self.large.pop_front().or_else(|| self.pop_small())
        };
        debug_assert!(chunk.is_some() || self.is_empty(), "every queued reply is sent");
        chunk
    }

    fn pop_small(&mut self) -> Option<Chunk> {
        self.full.pop_front().or_else(|| self.open.take_if(|chunk| !chunk.range.is_empty()))
    }

    /// Returns the memory of queued replies, in bytes.
    pub(crate) fn held_bytes(&self) -> usize {
        let chunks = self.open.iter().chain(&self.full).chain(&self.large);
        chunks.map(|chunk| chunk.buffer.capacity_bytes()).sum()
    }

    /// Drops all replies.
    pub(crate) fn clear(&mut self, pool: &mut BufferPool) {
        for chunk in self.open.take().into_iter().chain(self.full.drain(..)).chain(self.large.drain(..)) {
            pool.give(chunk.buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(reply_queue: &mut ReplyQueue) -> Option<(Vec<u8>, u64)> {
        let chunk = reply_queue.pop()?;
        Some((chunk.buffer.framed()[chunk.range].to_vec(), chunk.charge_bytes))
    }

    #[test]
    fn small_replies_share_one_send() {
        let mut pool = BufferPool::new(1 << 20);
        let mut reply_queue = ReplyQueue::default();
        assert!(reply_queue.is_empty());
        reply_queue.reserve(100, &mut pool);
        assert!(reply_queue.is_empty(), "reserved bytes are not committed");
        assert!(sent(&mut reply_queue).is_none());
        reply_queue.push_small([b"error", b""], 10, &mut pool);
        reply_queue.push_small([b"header", b"data"], 20, &mut pool);
        assert!(!reply_queue.is_empty());
        assert_eq!(sent(&mut reply_queue), Some((b"errorheaderdata".to_vec(), 30)));
        assert!(reply_queue.is_empty());
        assert_eq!(sent(&mut reply_queue), None);
    }

    #[test]
    fn large_and_small_replies_alternate() {
        let mut pool = BufferPool::new(1 << 20);
        let mut reply_queue = ReplyQueue::default();
        for cookie in 0..3 {
            let mut buffer = pool.take(4096);
            buffer.payload_mut()[..4].copy_from_slice(b"full");
            reply_queue.push_large(&[cookie; 16], buffer, 4, 1);
        }
        reply_queue.push_small([&[7; 16], b""], 2, &mut pool);
        let lens: Vec<usize> =
            std::iter::from_fn(|| sent(&mut reply_queue)).map(|(bytes, _)| bytes.len()).collect();
        assert_eq!(lens, [16, 20, 20, 20]);
    }

    #[test]
    fn negotiation_bytes_keep_their_order() {
        let mut pool = BufferPool::new(0);
        let mut reply_queue = ReplyQueue::default();
        let bytes: Vec<u8> = (0..3 * BATCH_BYTES + 17).map(|index| (index % 251) as u8).collect();
        reply_queue.push_bytes(b"first", &mut pool);
        reply_queue.push_bytes(&bytes, &mut pool);
        let mut got = Vec::new();
        while let Some((part, _)) = sent(&mut reply_queue) {
            got.extend(part);
        }
        assert_eq!(&got[..5], b"first");
        assert!(got[5..] == bytes);
    }
}
