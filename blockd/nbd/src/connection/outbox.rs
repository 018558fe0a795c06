//! Replies that wait to be sent on one connection: small ones are gathered into batches, large ones go out
//! from the buffer that they were read into. Small and large take turns, as replies may go out in any order.

use std::collections::VecDeque;
use std::ops::Range;

use crate::connection::buffer_pool::{Buffer, BufferPool, HEADROOM_BYTES};

/// Capacity of a batch, in bytes.
pub(crate) const BATCH_BYTES: usize = 128 << 10;

/// Bytes that go out in one send.
pub(crate) struct Chunk {
    pub(crate) buffer: Buffer,
    /// Range of the buffer's frame to send.
    pub(crate) range: Range<usize>,
    /// Bytes charged by its replies.
    pub(crate) charge_bytes: u64,
}

/// Replies in waiting. Their number is bounded by what their requests charged.
#[derive(Default)]
pub(crate) struct Outbox {
    /// The batch that small replies are appended to.
    open: Option<Chunk>,
    full: VecDeque<Chunk>,
    large: VecDeque<Chunk>,
    large_is_next: bool,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.large.is_empty()
            && self.full.is_empty()
            && self.open.as_ref().is_none_or(|chunk| chunk.range.is_empty())
    }

    /// Room for `len_bytes`, at most [`BATCH_BYTES`], at the end of the open batch. It is sent once it is
    /// committed.
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

    /// Makes the first `len_bytes` of the last reservation part of the batch.
    pub(crate) fn commit(&mut self, len_bytes: usize, charge_bytes: u64) {
        assert!(self.open.is_some(), "a reservation precedes its commit");
        if let Some(chunk) = &mut self.open {
            assert!(chunk.range.end + len_bytes <= BATCH_BYTES, "a batch is bounded");
            chunk.range.end += len_bytes;
            chunk.charge_bytes += charge_bytes;
        }
    }

    /// Appends a reply, or a chunk of one, of at most [`BATCH_BYTES`]: by copying, all in one batch.
    pub(crate) fn push_small(&mut self, parts: [&[u8]; 2], charge_bytes: u64, pool: &mut BufferPool) {
        let [header, data] = parts;
        let len_bytes = header.len() + data.len();
        let (header_room, data_room) = self.reserve(len_bytes, pool).split_at_mut(header.len());
        header_room.copy_from_slice(header);
        data_room.copy_from_slice(data);
        self.commit(len_bytes, charge_bytes);
    }

    /// Appends a successful read's reply that goes out from `buffer`, which holds `len_bytes` of data. The
    /// header takes the room before the payload, so it is at most [`HEADROOM_BYTES`] long.
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

    /// Appends a reply that stands ready in a buffer's frame.
    pub(crate) fn push_framed(&mut self, buffer: Buffer, range: Range<usize>, charge_bytes: u64) {
        assert!(!range.is_empty(), "a reply has bytes");
        assert!(range.end <= HEADROOM_BYTES + buffer.capacity_bytes(), "a reply lies in its buffer");
        self.large.push_back(Chunk { buffer, range, charge_bytes });
    }

    /// Appends bytes of the negotiation; they go out in order.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8], pool: &mut BufferPool) {
        for part in bytes.chunks(BATCH_BYTES) {
            self.reserve(part.len(), pool).copy_from_slice(part);
            self.commit(part.len(), 0);
        }
    }

    /// The next bytes to send.
    pub(crate) fn pop(&mut self) -> Option<Chunk> {
        self.large_is_next = !self.large_is_next;
        // The first chunk of all is the greeting, which is small.
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

    /// Forgets everything.
    pub(crate) fn clear(&mut self, pool: &mut BufferPool) {
        for chunk in self.open.take().into_iter().chain(self.full.drain(..)).chain(self.large.drain(..)) {
            pool.give(chunk.buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(outbox: &mut Outbox) -> Option<(Vec<u8>, u64)> {
        let chunk = outbox.pop()?;
        Some((chunk.buffer.framed()[chunk.range].to_vec(), chunk.charge_bytes))
    }

    #[test]
    fn small_replies_share_a_send() {
        let mut pool = BufferPool::new(1 << 20);
        let mut outbox = Outbox::default();
        assert!(outbox.is_empty());
        outbox.reserve(100, &mut pool);
        assert!(outbox.is_empty(), "reserved is not committed");
        assert!(sent(&mut outbox).is_none());
        outbox.push_small([b"error", b""], 10, &mut pool);
        outbox.push_small([b"header", b"data"], 20, &mut pool);
        assert!(!outbox.is_empty());
        assert_eq!(sent(&mut outbox), Some((b"errorheaderdata".to_vec(), 30)));
        assert!(outbox.is_empty());
        assert_eq!(sent(&mut outbox), None);
    }

    #[test]
    fn large_and_small_take_turns() {
        let mut pool = BufferPool::new(1 << 20);
        let mut outbox = Outbox::default();
        for cookie in 0..3 {
            let mut buffer = pool.take(4096);
            buffer.payload_mut()[..4].copy_from_slice(b"full");
            outbox.push_large(&[cookie; 16], buffer, 4, 1);
        }
        outbox.push_small([&[7; 16], b""], 2, &mut pool);
        let lens: Vec<usize> =
            std::iter::from_fn(|| sent(&mut outbox)).map(|(bytes, _)| bytes.len()).collect();
        assert_eq!(lens, [16, 20, 20, 20]);
    }

    #[test]
    fn large_transfers_keep_byte_order() {
        let mut pool = BufferPool::new(0);
        let mut outbox = Outbox::default();
        let bytes: Vec<u8> = (0..3 * BATCH_BYTES + 17).map(|index| (index % 251) as u8).collect();
        outbox.push_bytes(b"first", &mut pool);
        outbox.push_bytes(&bytes, &mut pool);
        let mut got = Vec::new();
        while let Some((part, _)) = sent(&mut outbox) {
            got.extend(part);
        }
        assert_eq!(&got[..5], b"first");
        assert!(got[5..] == bytes);
    }
}
