//! Encoding of transmission replies: simple replies, and chunks of structured replies with compact or
//! extended headers. [`ReplyTo`] has the negotiated kind and the request's cookie.

use std::ops::Deref;

use crate::device::StatusExtent;
use crate::protocol::constants::*;

/// Negotiated headers and replies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyMode {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests; reads, block status and errors are answered with structured replies.
    Structured,
    /// Extended requests and replies.
    Extended,
}

/// Capacity of a [`Header`], in bytes.
const MAX_HEADER_BYTES: usize = 48;

/// Address of a reply: the fields that it repeats from its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// Negotiated mode.
    pub mode: ReplyMode,
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset, which extended replies contain.
    pub offset_bytes: u64,
}

/// Header of a reply or chunk, on the stack.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; MAX_HEADER_BYTES],
    len: usize,
}

impl Deref for Header {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Header {
    fn new() -> Self {
        Self { bytes: [0; MAX_HEADER_BYTES], len: 0 }
    }

    fn put(mut self, bytes: &[u8]) -> Self {
        // All callers append fixed lengths: 32 bytes of a chunk header and at most 12 more.
        assert!(self.len + bytes.len() <= MAX_HEADER_BYTES, "a header is bounded");
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }
}

impl ReplyMode {
    /// Returns the length of a request header, in bytes.
    #[must_use]
    pub fn request_len_bytes(self) -> usize {
        match self {
            Self::Simple | Self::Structured => REQUEST_LEN_BYTES,
            Self::Extended => EXTENDED_REQUEST_LEN_BYTES,
        }
    }

    /// Returns the length of the header before the data of a read with one chunk, in bytes.
    #[must_use]
    pub fn data_header_len_bytes(self) -> usize {
        match self {
            Self::Simple => 16,
            Self::Structured => 28,
            Self::Extended => 40,
        }
    }
}

impl ReplyTo {
    /// Returns the reply to a successful request without data.
    #[must_use]
    pub fn success(&self) -> Header {
        match self.mode {
            // Structured replies are mandatory for reads and block status only.
            ReplyMode::Simple | ReplyMode::Structured => self.simple(0),
            ReplyMode::Extended => self.chunk(true, NBD_REPLY_TYPE_NONE, 0),
        }
    }

    /// Returns the reply to a read of length 0, which is structured if structured replies are negotiated.
    #[must_use]
    pub fn empty_read(&self) -> Header {
        match self.mode {
            ReplyMode::Simple => self.simple(0),
            ReplyMode::Structured | ReplyMode::Extended => self.chunk(true, NBD_REPLY_TYPE_NONE, 0),
        }
    }

    /// Returns an error reply; `message` is truncated to 200 bytes and omitted from simple replies.
    #[must_use]
    pub fn error(&self, errno: u32, message: &str) -> Vec<u8> {
        if self.mode == ReplyMode::Simple {
            return self.simple(errno).to_vec();
        }
        let mut end = message.len().min(200);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let message = &message.as_bytes()[..end];
        assert!(errno != 0 && message.len() <= 200, "an error has a number and a short message");
        let message_len = message.len() as u16;
        let mut bytes = self.chunk(true, NBD_REPLY_TYPE_ERROR, 6 + u64::from(message_len)).to_vec();
        bytes.extend_from_slice(&errno.to_be_bytes());
        bytes.extend_from_slice(&message_len.to_be_bytes());
        bytes.extend_from_slice(message);
        debug_assert!(std::str::from_utf8(message).is_ok(), "a message is truncated between characters");
        bytes
    }

    /// Returns the header before `len_bytes` of read data at `offset_bytes`; `done` marks the last chunk. A
    /// simple reply has one header for all its data.
    #[must_use]
    pub fn data(&self, offset_bytes: u64, len_bytes: usize, done: bool) -> Header {
        match self.mode {
            ReplyMode::Simple => self.simple(0),
            ReplyMode::Structured | ReplyMode::Extended => self
                .chunk(done, NBD_REPLY_TYPE_OFFSET_DATA, 8 + len_bytes as u64)
                .put(&offset_bytes.to_be_bytes()),
        }
    }

    /// Returns the chunk of a hole of `len_bytes`. Not for simple replies.
    #[must_use]
    pub fn hole(&self, offset_bytes: u64, len_bytes: u32, done: bool) -> Header {
        assert!(self.mode != ReplyMode::Simple && len_bytes > 0, "a hole is a non-empty chunk");
        self.chunk(done, NBD_REPLY_TYPE_OFFSET_HOLE, 12)
            .put(&offset_bytes.to_be_bytes())
            .put(&len_bytes.to_be_bytes())
    }

    /// Returns the block status chunk of a metadata context. Not for simple replies.
    #[must_use]
    pub fn block_status(&self, context_id: u32, extents: &[StatusExtent], done: bool) -> Vec<u8> {
        assert!(self.mode != ReplyMode::Simple, "block status is a chunk");
        assert!(
            (1..=MAX_STATUS_EXTENTS).contains(&extents.len()),
            "a context has 1 to MAX_STATUS_EXTENTS extents"
        );
        let mut bytes = Vec::with_capacity(64 + 16 * extents.len());
        if self.mode == ReplyMode::Extended {
            let len_bytes = 8 + 16 * extents.len() as u64;
            bytes.extend_from_slice(&self.chunk(done, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, len_bytes));
            bytes.extend_from_slice(&context_id.to_be_bytes());
            // At most `MAX_STATUS_EXTENTS`.
            bytes.extend_from_slice(&(extents.len() as u32).to_be_bytes());
            for extent in extents {
                bytes.extend_from_slice(&extent.len_bytes.to_be_bytes());
                bytes.extend_from_slice(&u64::from(extent.flags).to_be_bytes());
            }
        } else {
            let len_bytes = 4 + 8 * extents.len() as u64;
            bytes.extend_from_slice(&self.chunk(done, NBD_REPLY_TYPE_BLOCK_STATUS, len_bytes));
            bytes.extend_from_slice(&context_id.to_be_bytes());
            for extent in extents {
                debug_assert!(
                    u32::try_from(extent.len_bytes).is_ok(),
                    "compact requests have 32-bit lengths"
                );
                let len_bytes = u32::try_from(extent.len_bytes).unwrap_or(u32::MAX);
                bytes.extend_from_slice(&len_bytes.to_be_bytes());
                bytes.extend_from_slice(&extent.flags.to_be_bytes());
            }
        }
        bytes
    }

    fn simple(&self, errno: u32) -> Header {
        Header::new()
            .put(&SIMPLE_REPLY_MAGIC.to_be_bytes())
            .put(&errno.to_be_bytes())
            .put(&self.cookie.to_be_bytes())
    }

    fn chunk(&self, done: bool, chunk_type: u16, len_bytes: u64) -> Header {
        let extended = self.mode == ReplyMode::Extended;
        let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        let flags = if done { NBD_REPLY_FLAG_DONE } else { 0 };
        let header = Header::new()
            .put(&magic.to_be_bytes())
            .put(&flags.to_be_bytes())
            .put(&chunk_type.to_be_bytes())
            .put(&self.cookie.to_be_bytes());
        if extended {
            header.put(&self.offset_bytes.to_be_bytes()).put(&len_bytes.to_be_bytes())
        } else {
            assert!(u32::try_from(len_bytes).is_ok(), "compact chunks have 32-bit lengths");
            header.put(&(len_bytes as u32).to_be_bytes())
        }
    }
}

/// Returns the description of an error number.
#[must_use]
pub fn errno_text(errno: u32) -> &'static str {
    match errno {
        NBD_EPERM => "operation not permitted, for example because the export is read-only",
        NBD_EIO => "input/output error; see the server's log",
        NBD_EINVAL => "invalid request: unknown command or flag, or a range beyond the export",
        NBD_ENOSPC => "no space left: the server's storage is full, or the range ends beyond the export",
        NBD_ENOTSUP => "operation not supported with these flags",
        NBD_ESHUTDOWN => "the export or its connection is shutting down",
        _ => "request failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(mode: ReplyMode) -> ReplyTo {
        ReplyTo { mode, cookie: 0x0102_0304_0506_0708, offset_bytes: 0x1000 }
    }

    #[test]
    fn simple_replies_match_golden_bytes() {
        let to = to(ReplyMode::Simple);
        assert_eq!(to.error(22, "no"), [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(to.success()[4..8], [0; 4]);
        assert_eq!(to.data(0, 4096, true)[..], to.success()[..]);
        assert_eq!(to.empty_read()[..], to.success()[..]);
    }

    #[test]
    fn structured_replies_match_golden_bytes() {
        let to = to(ReplyMode::Structured);
        assert_eq!(to.success().len(), SIMPLE_REPLY_LEN_BYTES);
        assert_eq!(
            to.data(0x2000, 512, false)[..],
            [
                0x66, 0x8e, 0x33, 0xef, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 2, 8, 0, 0, 0, 0, 0, 0,
                0x20, 0
            ]
        );
        assert_eq!(
            to.hole(0x2000, 4096, true)[..],
            [
                0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0,
                0x20, 0, 0, 0, 0x10, 0
            ]
        );
        assert_eq!(
            to.error(5, "é"),
            [
                0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 8, 0, 0, 0, 5, 0, 2,
                0xc3, 0xa9
            ]
        );
        assert_eq!(to.error(5, &"é".repeat(300)).len(), 20 + 6 + 200);
        assert_eq!(to.error(5, &format!("a{}", "é".repeat(300))).len(), 20 + 6 + 199);
        let extents = [StatusExtent { len_bytes: 4096, flags: 3 }, StatusExtent { len_bytes: 1, flags: 0 }];
        assert_eq!(
            to.block_status(9, &extents, true),
            [
                0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 20, 0, 0, 0, 9, 0, 0,
                0x10, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0
            ]
        );
        assert_eq!(to.empty_read().len(), 20);
    }

    #[test]
    fn extended_replies_match_golden_bytes() {
        let to = to(ReplyMode::Extended);
        let start = |flags: u8, chunk_type: [u8; 2], len_bytes: u8| {
            let mut bytes = vec![0x6e, 0x8a, 0x27, 0x8c, 0, flags, chunk_type[0], chunk_type[1]];
            bytes.extend([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, len_bytes]);
            bytes
        };
        assert_eq!(to.success()[..], start(1, [0, 0], 0));
        let mut data = start(0, [0, 1], 8 + 16);
        data.extend(0x2000_u64.to_be_bytes());
        assert_eq!(to.data(0x2000, 16, false)[..], data);
        let mut hole = start(1, [0, 2], 12);
        hole.extend(0x2000_u64.to_be_bytes());
        hole.extend(4096_u32.to_be_bytes());
        assert_eq!(to.hole(0x2000, 4096, true)[..], hole);
        let mut status = start(1, [0, 6], 24);
        status.extend([0, 0, 0, 9, 0, 0, 0, 1]);
        status.extend((1_u64 << 40).to_be_bytes());
        status.extend(3_u64.to_be_bytes());
        let extents = [StatusExtent { len_bytes: 1 << 40, flags: 3 }];
        assert_eq!(to.block_status(9, &extents, true), status);
        let mut error = start(1, [0x80, 1], 8);
        error.extend([0, 0, 0, 28, 0, 2, b'n', b'o']);
        assert_eq!(to.error(28, "no"), error);
    }

    #[test]
    fn data_headers_have_the_announced_length() {
        for mode in [ReplyMode::Simple, ReplyMode::Structured, ReplyMode::Extended] {
            assert_eq!(to(mode).data(0, 1, true).len(), mode.data_header_len_bytes());
            assert!(mode.data_header_len_bytes() <= crate::connection::buffer_pool::HEADROOM_BYTES);
        }
    }
}
