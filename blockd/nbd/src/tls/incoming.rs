//! Receive buffer of a TLS session.

use std::ops::Range;

use crate::connection::buffer_pool::{Buffer, BufferPool, HEADROOM_BYTES};
use crate::server::ring::Transfer;

/// Capacity in bytes: above the longest handshake message that rustls accepts.
pub(super) const ENCRYPTED_INPUT_BYTES: usize = 128 << 10;

/// Received, unconsumed bytes. The session needs them for every call, also while a receive owns the buffer.
/// Then it uses a copy, which has at most one record or handshake message.
pub(super) struct Incoming {
    buffer: Option<Buffer>,
    range: Range<usize>,
    copy: Vec<u8>,
}

impl Incoming {
    pub(super) fn new(pool: &mut BufferPool) -> Self {
        Self { buffer: Some(pool.take(ENCRYPTED_INPUT_BYTES)), range: 0..0, copy: Vec::new() }
    }

    pub(super) fn unread(&self) -> &[u8] {
        match &self.buffer {
            Some(buffer) => &buffer.payload()[self.range.clone()],
            None => &self.copy,
        }
    }

    pub(super) fn unread_mut(&mut self) -> &mut [u8] {
        match &mut self.buffer {
            Some(buffer) => &mut buffer.payload_mut()[self.range.clone()],
            None => &mut self.copy,
        }
    }

    pub(super) fn consume(&mut self, len_bytes: usize) {
        assert!(len_bytes <= self.unread().len(), "only received bytes are consumed");
        if self.buffer.is_none() {
            self.copy.drain(..len_bytes);
            return;
        }
        self.range.start += len_bytes;
        if self.range.is_empty() {
            self.range = 0..0;
        }
    }

    pub(super) fn start_receive(&mut self) -> Option<Transfer> {
        if self.range.len() == ENCRYPTED_INPUT_BYTES {
            return None;
        }
        let mut buffer = self.buffer.take()?;
        self.copy.clear();
        self.copy.extend_from_slice(&buffer.payload()[self.range.clone()]);
        buffer.payload_mut().copy_within(self.range.clone(), 0);
        self.range = 0..self.copy.len();
        assert!(self.range.end < ENCRYPTED_INPUT_BYTES, "a receive is not empty");
        let from = HEADROOM_BYTES + self.range.end;
        Some(Transfer { buffer, range: from..HEADROOM_BYTES + ENCRYPTED_INPUT_BYTES, all: false })
    }

    pub(super) fn end_receive(&mut self, mut buffer: Buffer, len_bytes: usize) {
        assert!(self.buffer.is_none(), "a receive owns the buffer");
        assert!(self.range.end + len_bytes <= ENCRYPTED_INPUT_BYTES, "a receive is within the buffer");
        // The session may have consumed a part of the copy, and changed the rest.
        let start = self.range.end - self.copy.len().min(self.range.end);
        buffer.payload_mut()[start..self.range.end].copy_from_slice(&self.copy);
        self.copy.clear();
        self.range = start..(self.range.end + len_bytes).min(ENCRYPTED_INPUT_BYTES);
        self.buffer = Some(buffer);
    }

    pub(super) fn discard(&mut self, pool: &mut BufferPool) {
        if let Some(buffer) = self.buffer.take() {
            pool.give(buffer);
        }
    }
}
