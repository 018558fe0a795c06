//! Decoding and validation of transmission requests. Validation depends only on [`Terms`]: the size and
//! access of the export, and the negotiated options.

use crate::device::ZeroFlags;
use crate::protocol::constants::*;
use crate::protocol::reply::ReplyMode;
use crate::protocol::wire::Reader;

/// Decoded header of a request, before its validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// `NBD_CMD_FLAG_*`.
    pub flags: u16,
    /// `NBD_CMD_*`.
    pub command: u16,
    /// Identifier of the request, repeated in its reply.
    pub cookie: u64,
    /// Offset, in bytes.
    pub offset_bytes: u64,
    /// Length, in bytes. At most `u32::MAX` without extended headers.
    pub len_bytes: u64,
}

/// Negotiated terms for the validation of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The export's size, in bytes.
    pub size_bytes: u64,
    /// True if the server refuses writes.
    pub read_only: bool,
    /// Negotiated headers and replies.
    pub mode: ReplyMode,
    /// True if metadata contexts are selected.
    pub has_contexts: bool,
}

impl Terms {
    /// Returns true for a range within the export.
    #[must_use]
    pub fn contain(&self, offset_bytes: u64, len_bytes: u64) -> bool {
        offset_bytes.checked_add(len_bytes).is_some_and(|end| end <= self.size_bytes)
    }
}

impl Request {
    /// Decodes a header of [the mode's length](ReplyMode::request_len_bytes). Returns `None` for a wrong
    /// magic, after which the stream has no known message boundary.
    #[must_use]
    pub fn decode(header: &[u8], mode: ReplyMode) -> Option<Self> {
        debug_assert!(header.len() == mode.request_len_bytes(), "a header is complete");
        let mut reader = Reader::new(header);
        let is_extended = mode == ReplyMode::Extended;
        if reader.u32()? != if is_extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC } {
            return None;
        }
        Some(Self {
            flags: reader.u16()?,
            command: reader.u16()?,
            cookie: reader.u64()?,
            offset_bytes: reader.u64()?,
            len_bytes: if is_extended { reader.u64()? } else { u64::from(reader.u32()?) },
        })
    }

    /// Returns the length of the payload that follows the header, in bytes.
    ///
    /// With extended headers, `NBD_CMD_FLAG_PAYLOAD_LEN` announces a payload. A write has one without the
    /// flag too, because qemu 10.0 omits it.
    #[must_use]
    pub fn payload_len_bytes(&self, mode: ReplyMode) -> u64 {
        let has_payload = match mode {
            ReplyMode::Extended => {
                self.command == NBD_CMD_WRITE || self.flags & NBD_CMD_FLAG_PAYLOAD_LEN != 0
            }
            ReplyMode::Simple | ReplyMode::Structured => self.command == NBD_CMD_WRITE,
        };
        if has_payload { self.len_bytes } else { 0 }
    }

    /// Validates the request.
    #[must_use]
    pub fn validate(&self, terms: &Terms) -> Verdict {
        if self.command == NBD_CMD_DISC {
            return Verdict::Disconnect;
        }
        match self.operation(terms) {
            Ok(operation) => {
                debug_assert!(!terms.read_only || !operation.writes(), "a read-only export is not written");
                Verdict::Execute(operation)
            }
            Err(_) if self.payload_len_bytes(terms.mode) > u64::from(MAX_DISCARD_BYTES) => {
                Verdict::PayloadTooLong
            }
            Err(errno) => Verdict::Refuse { errno },
        }
    }

    fn operation(&self, terms: &Terms) -> Result<Operation, u32> {
        if self.flags & !self.known_flags(terms)? != 0 {
            return Err(NBD_EINVAL);
        }
        if self.command == NBD_CMD_BLOCK_STATUS {
            return self.block_status(terms, self.flags & NBD_CMD_FLAG_PAYLOAD_LEN != 0);
        }
        if self.command == NBD_CMD_FLUSH {
            let reserved_are_zero = self.offset_bytes == 0 && self.len_bytes == 0;
            return if reserved_are_zero { Ok(Operation::Flush) } else { Err(NBD_EINVAL) };
        }
        let only_reads = matches!(self.command, NBD_CMD_READ | NBD_CMD_CACHE);
        if !only_reads && terms.read_only {
            return Err(NBD_EPERM);
        }
        let moves_data = matches!(self.command, NBD_CMD_READ | NBD_CMD_WRITE);
        if moves_data && self.len_bytes > u64::from(MAX_PAYLOAD_BYTES) {
            return Err(NBD_EINVAL);
        }
        if !terms.contain(self.offset_bytes, self.len_bytes) {
            let grows = matches!(self.command, NBD_CMD_WRITE | NBD_CMD_WRITE_ZEROES);
            return Err(if grows { NBD_ENOSPC } else { NBD_EINVAL });
        }
        let has = |flag| self.flags & flag != 0;
        Ok(match self.command {
            NBD_CMD_READ => Operation::Read { dont_fragment: has(NBD_CMD_FLAG_DF) },
            NBD_CMD_WRITE => Operation::Write { fua: has(NBD_CMD_FLAG_FUA) },
            NBD_CMD_TRIM => Operation::Trim { fua: has(NBD_CMD_FLAG_FUA) },
            NBD_CMD_CACHE => Operation::Cache,
            _ => Operation::WriteZeroes(ZeroFlags {
                no_hole: has(NBD_CMD_FLAG_NO_HOLE),
                fast: has(NBD_CMD_FLAG_FAST_ZERO),
                fua: has(NBD_CMD_FLAG_FUA),
            }),
        })
    }

    /// Returns the valid flags of the command. FUA is valid with all: some clients set it on reads.
    fn known_flags(&self, terms: &Terms) -> Result<u16, u32> {
        let extended = terms.mode == ReplyMode::Extended;
        let own = match self.command {
            NBD_CMD_READ if terms.mode != ReplyMode::Simple => NBD_CMD_FLAG_DF,
            NBD_CMD_WRITE if extended => NBD_CMD_FLAG_PAYLOAD_LEN,
            NBD_CMD_BLOCK_STATUS if extended => NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_PAYLOAD_LEN,
            NBD_CMD_BLOCK_STATUS => NBD_CMD_FLAG_REQ_ONE,
            NBD_CMD_WRITE_ZEROES => NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
            NBD_CMD_READ | NBD_CMD_WRITE | NBD_CMD_FLUSH | NBD_CMD_TRIM | NBD_CMD_CACHE => 0,
            _ => return Err(NBD_EINVAL),
        };
        Ok(NBD_CMD_FLAG_FUA | own)
    }

    fn block_status(&self, terms: &Terms, has_payload: bool) -> Result<Operation, u32> {
        let one = self.flags & NBD_CMD_FLAG_REQ_ONE != 0;
        if !terms.has_contexts {
            return Err(NBD_EINVAL);
        }
        if has_payload {
            // The payload has the range, which is checked after its receipt.
            let is_valid_len =
                (STATUS_PAYLOAD_MIN_BYTES..=MAX_STATUS_PAYLOAD_BYTES).contains(&self.len_bytes);
            return if is_valid_len {
                Ok(Operation::BlockStatus { one, has_payload: true })
            } else {
                Err(NBD_EINVAL)
            };
        }
        if self.len_bytes == 0 || !terms.contain(self.offset_bytes, self.len_bytes) {
            return Err(NBD_EINVAL);
        }
        Ok(Operation::BlockStatus { one, has_payload: false })
    }
}

/// Result of the validation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Execute the request.
    Execute(Operation),
    /// Discard the payload, then reply with this error.
    Refuse {
        /// `NBD_E*`.
        errno: u32,
    },
    /// Close the connection: the request is invalid and its payload is too long to discard.
    PayloadTooLong,
    /// `NBD_CMD_DISC`: end the session.
    Disconnect,
}

/// Operation of a valid request, without its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read data.
    Read {
        /// Reply with one chunk (`NBD_CMD_FLAG_DF`).
        dont_fragment: bool,
    },
    /// Write the payload.
    Write {
        /// Durable before the reply.
        fua: bool,
    },
    /// Make all answered writes durable (`NBD_CMD_FLUSH`).
    Flush,
    /// Discard.
    Trim {
        /// Durable before the reply.
        fua: bool,
    },
    /// Fill with zeroes.
    WriteZeroes(ZeroFlags),
    /// Prefetch.
    Cache,
    /// Report the status in the metadata contexts.
    BlockStatus {
        /// One extent for each context (`NBD_CMD_FLAG_REQ_ONE`).
        one: bool,
        /// The payload has the length of the range and the context ids.
        has_payload: bool,
    },
}

impl Operation {
    /// Returns true for an operation that changes data.
    pub(crate) fn writes(self) -> bool {
        matches!(self, Self::Write { .. } | Self::Trim { .. } | Self::WriteZeroes(_))
    }

    /// Returns true for a flush and for operations with FUA.
    pub(crate) fn syncs(self) -> bool {
        match self {
            Self::Flush => true,
            Self::Write { fua } | Self::Trim { fua } => fua,
            Self::WriteZeroes(flags) => flags.fua,
            Self::Read { .. } | Self::Cache | Self::BlockStatus { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn terms(size_bytes: u64, read_only: bool) -> Terms {
        Terms { size_bytes, read_only, mode: ReplyMode::Simple, has_contexts: false }
    }

    fn request(command: u16, flags: u16, offset_bytes: u64, len_bytes: u32) -> Request {
        Request { flags, command, cookie: 7, offset_bytes, len_bytes: u64::from(len_bytes) }
    }

    fn validate(command: u16, flags: u16, offset_bytes: u64, len_bytes: u32) -> Verdict {
        request(command, flags, offset_bytes, len_bytes).validate(&terms(128 * MIB, false))
    }

    const fn refuse(errno: u32) -> Verdict {
        Verdict::Refuse { errno }
    }

    #[test]
    fn compact_request_matches_golden_bytes() {
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0,
        ];
        let request = Request {
            flags: NBD_CMD_FLAG_FUA,
            command: NBD_CMD_WRITE_ZEROES,
            cookie: 0x0102_0304_0506_0708,
            offset_bytes: 4096,
            len_bytes: 512,
        };
        assert_eq!(Request::decode(&bytes, ReplyMode::Simple), Some(request));
        let mut wrong = bytes;
        wrong[3] ^= 1;
        assert_eq!(Request::decode(&wrong, ReplyMode::Structured), None);
    }

    #[test]
    fn valid_requests_are_executed() {
        assert_eq!(
            validate(NBD_CMD_READ, 0, 0, 4096),
            Verdict::Execute(Operation::Read { dont_fragment: false })
        );
        assert_eq!(
            validate(NBD_CMD_READ, NBD_CMD_FLAG_FUA, 1, 1),
            Verdict::Execute(Operation::Read { dont_fragment: false })
        );
        assert_eq!(validate(NBD_CMD_WRITE, 1, 5, 64 << 20), Verdict::Execute(Operation::Write { fua: true }));
        assert_eq!(validate(NBD_CMD_FLUSH, 0, 0, 0), Verdict::Execute(Operation::Flush));
        assert_eq!(validate(NBD_CMD_TRIM, 0, 0, 128 << 20), Verdict::Execute(Operation::Trim { fua: false }));
        assert_eq!(
            validate(NBD_CMD_WRITE_ZEROES, 3, 0, 128 << 20),
            Verdict::Execute(Operation::WriteZeroes(ZeroFlags { no_hole: true, fast: false, fua: true }))
        );
        let huge = request(NBD_CMD_WRITE_ZEROES, 0, 0, u32::MAX).validate(&terms(64 << 40, false));
        assert_eq!(huge, Verdict::Execute(Operation::WriteZeroes(ZeroFlags::default())));
        assert_eq!(
            validate(NBD_CMD_READ, 0, 128 * MIB, 0),
            Verdict::Execute(Operation::Read { dont_fragment: false })
        );
        assert_eq!(validate(NBD_CMD_DISC, 0xffff, 9, 9), Verdict::Disconnect);
    }

    #[test]
    fn range_beyond_the_end_is_refused() {
        assert_eq!(validate(NBD_CMD_READ, 0, 128 * MIB - 1, 2), refuse(NBD_EINVAL));
        assert_eq!(validate(NBD_CMD_READ, 0, 1 << 63, 1), refuse(NBD_EINVAL));
        assert_eq!(validate(NBD_CMD_READ, 0, u64::MAX, 1), refuse(NBD_EINVAL));
        assert_eq!(validate(NBD_CMD_READ, 0, 128 * MIB + 1, 0), refuse(NBD_EINVAL));
        assert_eq!(validate(NBD_CMD_WRITE, 0, u64::MAX - 1, 4096), refuse(NBD_ENOSPC));
        assert_eq!(validate(NBD_CMD_WRITE_ZEROES, 0, 128 * MIB, 1), refuse(NBD_ENOSPC));
        assert_eq!(validate(NBD_CMD_TRIM, 0, 1 << 63, u32::MAX), refuse(NBD_EINVAL));
    }

    #[test]
    fn invalid_flag_command_or_length_is_refused() {
        assert_eq!(validate(NBD_CMD_READ, NBD_CMD_FLAG_NO_HOLE, 0, 1), refuse(NBD_EINVAL));
        assert_eq!(validate(NBD_CMD_READ, 1 << 2, 0, 1), refuse(NBD_EINVAL));
        assert_eq!(validate(NBD_CMD_WRITE_ZEROES, 1 << 2, 0, 1), refuse(NBD_EINVAL));
        assert_eq!(validate(NBD_CMD_FLUSH, 0, 0, 1), refuse(NBD_EINVAL));
        assert_eq!(validate(NBD_CMD_FLUSH, 0, 512, 0), refuse(NBD_EINVAL));
        for command in [7, 8, 0x7fff, 0xffff] {
            assert_eq!(validate(command, 0, 0, u32::MAX), refuse(NBD_EINVAL));
        }
        assert_eq!(validate(NBD_CMD_READ, 0, 0, MAX_PAYLOAD_BYTES + 1), refuse(NBD_EINVAL));
        assert_eq!(validate(NBD_CMD_WRITE, 0, 0, MAX_PAYLOAD_BYTES + 1), refuse(NBD_EINVAL));
        assert_eq!(validate(NBD_CMD_WRITE, 0, 0, MAX_DISCARD_BYTES), refuse(NBD_EINVAL));
        assert_eq!(validate(NBD_CMD_WRITE, 0, 0, MAX_DISCARD_BYTES + 1), Verdict::PayloadTooLong);
    }

    #[test]
    fn validity_depends_on_negotiated_options() {
        let validate = |mode, has_contexts, command, flags, offset_bytes, len_bytes| {
            let terms = Terms { size_bytes: 8 << 40, read_only: false, mode, has_contexts };
            Request { flags, command, cookie: 7, offset_bytes, len_bytes }.validate(&terms)
        };
        let (simple, structured, extended) = (ReplyMode::Simple, ReplyMode::Structured, ReplyMode::Extended);
        assert_eq!(validate(simple, false, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 1), refuse(NBD_EINVAL));
        for mode in [structured, extended] {
            let dont_fragment = Verdict::Execute(Operation::Read { dont_fragment: true });
            assert_eq!(validate(mode, false, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 1), dont_fragment);
            let status = validate(mode, true, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 5, 7);
            assert_eq!(status, Verdict::Execute(Operation::BlockStatus { one: true, has_payload: false }));
            assert_eq!(validate(mode, false, NBD_CMD_BLOCK_STATUS, 0, 0, 1), refuse(NBD_EINVAL));
            assert_eq!(validate(mode, true, NBD_CMD_BLOCK_STATUS, 0, 0, 0), refuse(NBD_EINVAL));
            assert_eq!(validate(mode, true, NBD_CMD_BLOCK_STATUS, 0, (8 << 40) - 1, 2), refuse(NBD_EINVAL));
        }
        let has_payload = NBD_CMD_FLAG_PAYLOAD_LEN;
        assert_eq!(validate(structured, true, NBD_CMD_BLOCK_STATUS, has_payload, 0, 8), refuse(NBD_EINVAL));
        assert_eq!(validate(structured, true, NBD_CMD_WRITE, has_payload, 0, 8), refuse(NBD_EINVAL));
        let write = Verdict::Execute(Operation::Write { fua: false });
        assert_eq!(validate(extended, false, NBD_CMD_WRITE, has_payload, 0, 8), write);
        assert_eq!(validate(extended, false, NBD_CMD_WRITE, 0, 0, 8), write, "qemu 10.0 omits the flag");
        assert_eq!(validate(extended, false, NBD_CMD_READ, has_payload, 0, 8), refuse(NBD_EINVAL));
        assert_eq!(validate(extended, false, NBD_CMD_READ, has_payload, 0, 1 << 40), Verdict::PayloadTooLong);
        let zeroes = validate(extended, false, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 4096, 6 << 40);
        let fast = ZeroFlags { fast: true, ..ZeroFlags::default() };
        assert_eq!(zeroes, Verdict::Execute(Operation::WriteZeroes(fast)));
        assert_eq!(
            validate(extended, false, NBD_CMD_CACHE, 0, 0, 8 << 40),
            Verdict::Execute(Operation::Cache)
        );
        let chosen = Verdict::Execute(Operation::BlockStatus { one: false, has_payload: true });
        assert_eq!(validate(extended, true, NBD_CMD_BLOCK_STATUS, has_payload, 0, 12), chosen);
        for wrong_len in [0, 7, 4 << 20] {
            let verdict = validate(extended, true, NBD_CMD_BLOCK_STATUS, has_payload, 0, wrong_len);
            assert_eq!(verdict, refuse(NBD_EINVAL), "{wrong_len}");
        }
    }

    #[test]
    fn extended_request_matches_golden_bytes() {
        let bytes = [
            0x21, 0xe4, 0x1c, 0x71, 0, 0x10, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0,
            1, 0, 0, 0, 2, 0,
        ];
        let request = Request {
            flags: NBD_CMD_FLAG_FAST_ZERO,
            command: NBD_CMD_WRITE_ZEROES,
            cookie: 0x0102_0304_0506_0708,
            offset_bytes: 4096,
            len_bytes: 0x0100_0000_0200,
        };
        assert_eq!(Request::decode(&bytes, ReplyMode::Extended), Some(request));
        let mut wrong = bytes;
        wrong[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        assert_eq!(Request::decode(&wrong, ReplyMode::Extended), None);
    }

    #[test]
    fn read_only_export_refuses_writes() {
        for command in [NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES] {
            assert_eq!(request(command, 0, 0, 512).validate(&terms(MIB, true)), refuse(NBD_EPERM));
        }
        assert_eq!(
            request(NBD_CMD_READ, 0, 0, 1).validate(&terms(MIB, true)),
            Verdict::Execute(Operation::Read { dont_fragment: false })
        );
        assert_eq!(
            request(NBD_CMD_FLUSH, 0, 0, 0).validate(&terms(MIB, true)),
            Verdict::Execute(Operation::Flush)
        );
    }
}
