//! Body of a read that is received in pieces, each in memory of its own: the first ones are processed, and
//! their memory is free again, while the others arrive.

use crate::{StoreError, StoreErrorKind, TransferBuffer, TransferMemory, middleware::wait_locally};
use bytes::{Bytes, BytesMut};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Receiver of a range in pieces. A repeated request continues after the last complete piece.
pub struct Pieces {
    memory: TransferMemory,
    /// End of each piece in the range, ascending.
    ends: Vec<u64>,
    /// Number of complete pieces.
    complete: AtomicUsize,
    pass: Box<dyn Fn(u64, Bytes) + Send + Sync>,
}

/// Number of bytes that a request received in pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received(pub u64);

impl Pieces {
    /// Creates a receiver of pieces with these ends in the range, ascending and positive. Calls `pass` with
    /// the offset and the content of each complete piece, in their order; a content keeps its room in
    /// `memory` until it is dropped.
    pub fn new(
        memory: TransferMemory,
        ends: Vec<u64>,
        pass: impl Fn(u64, Bytes) + Send + Sync + 'static,
    ) -> Self {
        debug_assert!(ends.first() != Some(&0) && ends.is_sorted_by(|a, b| a < b), "ends ascend: {ends:?}");
        Self { memory, ends, complete: AtomicUsize::new(0), pass: Box::new(pass) }
    }

    /// Returns the length of the range in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or_default()
    }

    /// Returns the offset of the first missing piece.
    pub fn offset_bytes(&self) -> u64 {
        self.start(self.complete.load(Relaxed))
    }

    fn start(&self, piece: usize) -> u64 {
        piece.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or_default()
    }

    /// Passes on the missing pieces from a body of all of them.
    ///
    /// # Errors
    /// [`StoreErrorKind::ShortBody`] if the body is not as long as they are.
    pub fn receive(&self, key: &str, store: &str, body: &Bytes) -> Result<Received, StoreError> {
        let offset = self.offset_bytes();
        if body.len() as u64 != self.len_bytes() - offset {
            let error = StoreError::new(StoreErrorKind::ShortBody, "GET", key, store);
            return Err(error.with_detail(format!("{} bytes received", body.len())));
        }
        for piece in self.complete.load(Relaxed)..self.ends.len() {
            let (start, end) = (self.start(piece), self.ends[piece]);
            self.pass(piece, body.slice((start - offset) as usize..(end - offset) as usize));
        }
        Ok(Received(body.len() as u64))
    }

    fn pass(&self, piece: usize, content: Bytes) {
        self.complete.store(piece + 1, Relaxed);
        (self.pass)(self.start(piece), content);
    }

    /// Reserves memory for all missing pieces.
    pub(crate) async fn reserve(&self) -> TransferBuffer {
        let missing = self.len_bytes() - self.offset_bytes();
        wait_locally(self.memory.reserve(missing as usize)).await
    }

    /// Receives the missing pieces one after the other: calls `read` with the offset in the range and the
    /// length of each, once there is room for it.
    ///
    /// # Errors
    /// Those of `read`; a repeated call continues.
    pub(crate) async fn read_each<F>(&self, read: impl Fn(u64, u64) -> F) -> Result<Received, StoreError>
    where
        F: Future<Output = Result<Bytes, StoreError>>,
    {
        let first_bytes = self.offset_bytes();
        for piece in self.complete.load(Relaxed)..self.ends.len() {
            let (start, end) = (self.start(piece), self.ends[piece]);
            let room = wait_locally(self.memory.reserve((end - start) as usize)).await;
            self.pass(piece, room.hold(read(start, end - start).await?));
        }
        Ok(Received(self.len_bytes() - first_bytes))
    }

    /// Begins to receive the body of the missing pieces.
    pub(crate) fn begin(&self) -> PieceWriter<'_> {
        PieceWriter { pieces: self, piece: self.complete.load(Relaxed), buffer: None }
    }
}

/// Destination of the body of a response.
pub(crate) enum Body<'a> {
    Whole(BytesMut),
    Pieces(PieceWriter<'a>),
}

impl Body<'_> {
    /// Appends a part; see [`PieceWriter::append`].
    pub async fn append(&mut self, part: &[u8]) {
        match self {
            Self::Whole(content) => content.extend_from_slice(part),
            Self::Pieces(pieces) => pieces.append(part).await,
        }
    }

    /// Returns the content, unless pieces received it.
    pub fn content(self) -> Bytes {
        match self {
            Self::Whole(content) => content.freeze(),
            Self::Pieces(_) => Bytes::new(),
        }
    }
}

/// Writer of the missing pieces.
pub(crate) struct PieceWriter<'a> {
    pieces: &'a Pieces,
    /// Number of the piece in `buffer`.
    piece: usize,
    buffer: Option<TransferBuffer>,
}

impl PieceWriter<'_> {
    /// Appends a part of the body. Waits for room at the start of each piece; the request is in flight
    /// meanwhile: its latency needs no memory. The wait does not count as time of the store.
    pub async fn append(&mut self, mut part: &[u8]) {
        while !part.is_empty() {
            let start = self.pieces.start(self.piece);
            // The caller checks the length of the body.
            let Some(&end) = self.pieces.ends.get(self.piece) else { return };
            let len_bytes = (end - start) as usize;
            let mut buffer = match self.buffer.take() {
                Some(buffer) => buffer,
                None => wait_locally(self.pieces.memory.reserve(len_bytes)).await,
            };
            let (here, rest) = part.split_at(part.len().min(len_bytes - buffer.len_bytes()));
            buffer.appendable().extend_from_slice(here);
            part = rest;
            if buffer.len_bytes() < len_bytes {
                self.buffer = Some(buffer);
            } else {
                self.pieces.pass(self.piece, buffer.freeze());
                self.piece += 1;
            }
        }
    }
}
