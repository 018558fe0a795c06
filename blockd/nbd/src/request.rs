//! Requests of the transmission phase: decoding the 28 bytes, and deciding whether they may be carried out.
//! The decision needs nothing but the export's size and whether it is read-only, so it can be tested without one.

use crate::constants::*;
use crate::wire::Reader;

/// A request's 28 bytes, decoded and not yet judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// `NBD_CMD_FLAG_*`.
    pub flags: u16,
    /// `NBD_CMD_*`.
    pub command: u16,
    /// Chosen by the client, given back with the reply.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset_bytes: u64,
    /// How much, in bytes.
    pub len_bytes: u32,
}

impl Request {
    /// Decodes a request, or returns `None` if the magic is wrong (the stream is out of step and cannot be used on).
    #[must_use]
    pub fn decode(bytes: &[u8; REQUEST_LEN_BYTES]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        if reader.u32()? != REQUEST_MAGIC {
            return None;
        }
        Some(Self {
            flags: reader.u16()?,
            command: reader.u16()?,
            cookie: reader.u64()?,
            offset_bytes: reader.u64()?,
            len_bytes: reader.u32()?,
        })
    }

    /// The request as a client sends it.
    #[must_use]
    pub fn encode(&self) -> [u8; REQUEST_LEN_BYTES] {
        let mut bytes = [0; REQUEST_LEN_BYTES];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset_bytes.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.len_bytes.to_be_bytes());
        bytes
    }

    /// Bytes of data that follow the request on the wire.
    #[must_use]
    pub fn payload_len_bytes(&self) -> u32 {
        if self.command == NBD_CMD_WRITE { self.len_bytes } else { 0 }
    }

    /// Judges the request against the export that it is for.
    #[must_use]
    pub fn judge(&self, size_bytes: u64, read_only: bool) -> Verdict {
        if self.command == NBD_CMD_DISC {
            return Verdict::Disconnect;
        }
        match self.operation(size_bytes, read_only) {
            Ok(operation) => Verdict::Execute(operation),
            Err(_) if self.payload_len_bytes() > MAX_DISCARD_BYTES => Verdict::PayloadTooLong,
            Err(errno) => Verdict::Refuse { errno },
        }
    }

    fn operation(&self, size_bytes: u64, read_only: bool) -> Result<Operation, u32> {
        // FUA may come with any command: clients are known to set it on reads.
        let known_flags = match self.command {
            NBD_CMD_WRITE_ZEROES => NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE,
            NBD_CMD_READ | NBD_CMD_WRITE | NBD_CMD_FLUSH | NBD_CMD_TRIM => NBD_CMD_FLAG_FUA,
            _ => return Err(NBD_EINVAL),
        };
        if self.flags & !known_flags != 0 {
            return Err(NBD_EINVAL);
        }
        if self.command == NBD_CMD_FLUSH {
            let reserved_are_zero = self.offset_bytes == 0 && self.len_bytes == 0;
            return if reserved_are_zero { Ok(Operation::Flush) } else { Err(NBD_EINVAL) };
        }
        if self.command != NBD_CMD_READ && read_only {
            return Err(NBD_EPERM);
        }
        let has_payload = matches!(self.command, NBD_CMD_READ | NBD_CMD_WRITE);
        if has_payload && self.len_bytes > MAX_PAYLOAD_BYTES {
            return Err(NBD_EINVAL);
        }
        let fits =
            self.offset_bytes.checked_add(u64::from(self.len_bytes)).is_some_and(|end| end <= size_bytes);
        if !fits {
            let grows = matches!(self.command, NBD_CMD_WRITE | NBD_CMD_WRITE_ZEROES);
            return Err(if grows { NBD_ENOSPC } else { NBD_EINVAL });
        }
        let fua = self.flags & NBD_CMD_FLAG_FUA != 0;
        let no_hole = self.flags & NBD_CMD_FLAG_NO_HOLE != 0;
        Ok(match self.command {
            NBD_CMD_READ => Operation::Read,
            NBD_CMD_WRITE => Operation::Write { fua },
            NBD_CMD_TRIM => Operation::Trim { fua },
            _ => Operation::WriteZeroes { no_hole, fua },
        })
    }
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Carry it out.
    Execute(Operation),
    /// Throw its payload away, then answer with this error.
    Refuse {
        /// `NBD_E*`.
        errno: u32,
    },
    /// It cannot be carried out and its payload is too long to throw away: close the connection.
    PayloadTooLong,
    /// The client takes its leave.
    Disconnect,
}

/// A request that may be carried out, less its place and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read data.
    Read,
    /// Write the payload.
    Write {
        /// Durable before the reply.
        fua: bool,
    },
    /// Make all answered writes durable.
    Flush,
    /// Discard.
    Trim {
        /// Durable before the reply.
        fua: bool,
    },
    /// Fill with zeroes.
    WriteZeroes {
        /// Keep the space allocated.
        no_hole: bool,
        /// Durable before the reply.
        fua: bool,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn request(command: u16, flags: u16, offset_bytes: u64, len_bytes: u32) -> Request {
        Request { flags, command, cookie: 7, offset_bytes, len_bytes }
    }

    fn judge(command: u16, flags: u16, offset_bytes: u64, len_bytes: u32) -> Verdict {
        request(command, flags, offset_bytes, len_bytes).judge(128 * MIB, false)
    }

    const fn refuse(errno: u32) -> Verdict {
        Verdict::Refuse { errno }
    }

    #[test]
    fn golden_request() {
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
        assert_eq!(Request::decode(&bytes), Some(request));
        assert_eq!(request.encode(), bytes);
        let mut wrong = bytes;
        wrong[3] ^= 1;
        assert_eq!(Request::decode(&wrong), None);
    }

    #[test]
    fn good_requests_are_executed() {
        assert_eq!(judge(NBD_CMD_READ, 0, 0, 4096), Verdict::Execute(Operation::Read));
        assert_eq!(judge(NBD_CMD_READ, NBD_CMD_FLAG_FUA, 1, 1), Verdict::Execute(Operation::Read));
        assert_eq!(judge(NBD_CMD_WRITE, 1, 5, 32 << 20), Verdict::Execute(Operation::Write { fua: true }));
        assert_eq!(judge(NBD_CMD_FLUSH, 0, 0, 0), Verdict::Execute(Operation::Flush));
        assert_eq!(judge(NBD_CMD_TRIM, 0, 0, 128 << 20), Verdict::Execute(Operation::Trim { fua: false }));
        assert_eq!(
            judge(NBD_CMD_WRITE_ZEROES, 3, 0, 128 << 20),
            Verdict::Execute(Operation::WriteZeroes { no_hole: true, fua: true })
        );
        let huge = request(NBD_CMD_WRITE_ZEROES, 0, 0, u32::MAX).judge(64 << 40, false);
        assert_eq!(huge, Verdict::Execute(Operation::WriteZeroes { no_hole: false, fua: false }));
        assert_eq!(judge(NBD_CMD_READ, 0, 128 * MIB, 0), Verdict::Execute(Operation::Read));
        assert_eq!(judge(NBD_CMD_DISC, 0xffff, 9, 9), Verdict::Disconnect);
    }

    #[test]
    fn ranges_beyond_the_end_are_refused() {
        assert_eq!(judge(NBD_CMD_READ, 0, 128 * MIB - 1, 2), refuse(NBD_EINVAL));
        assert_eq!(judge(NBD_CMD_READ, 0, 1 << 63, 1), refuse(NBD_EINVAL));
        assert_eq!(judge(NBD_CMD_READ, 0, u64::MAX, 1), refuse(NBD_EINVAL));
        assert_eq!(judge(NBD_CMD_READ, 0, 128 * MIB + 1, 0), refuse(NBD_EINVAL));
        assert_eq!(judge(NBD_CMD_WRITE, 0, u64::MAX - 1, 4096), refuse(NBD_ENOSPC));
        assert_eq!(judge(NBD_CMD_WRITE_ZEROES, 0, 128 * MIB, 1), refuse(NBD_ENOSPC));
        assert_eq!(judge(NBD_CMD_TRIM, 0, 1 << 63, u32::MAX), refuse(NBD_EINVAL));
    }

    #[test]
    fn flags_commands_and_lengths_are_checked() {
        assert_eq!(judge(NBD_CMD_READ, NBD_CMD_FLAG_NO_HOLE, 0, 1), refuse(NBD_EINVAL));
        assert_eq!(judge(NBD_CMD_READ, 1 << 2, 0, 1), refuse(NBD_EINVAL));
        assert_eq!(judge(NBD_CMD_WRITE_ZEROES, 1 << 4, 0, 1), refuse(NBD_EINVAL));
        assert_eq!(judge(NBD_CMD_FLUSH, 0, 0, 1), refuse(NBD_EINVAL));
        assert_eq!(judge(NBD_CMD_FLUSH, 0, 512, 0), refuse(NBD_EINVAL));
        for command in [5, 7, 8, 0x7fff, 0xffff] {
            assert_eq!(judge(command, 0, 0, u32::MAX), refuse(NBD_EINVAL));
        }
        assert_eq!(judge(NBD_CMD_READ, 0, 0, MAX_PAYLOAD_BYTES + 1), refuse(NBD_EINVAL));
        assert_eq!(judge(NBD_CMD_WRITE, 0, 0, MAX_PAYLOAD_BYTES + 1), refuse(NBD_EINVAL));
        assert_eq!(judge(NBD_CMD_WRITE, 0, 0, MAX_DISCARD_BYTES), refuse(NBD_EINVAL));
        assert_eq!(judge(NBD_CMD_WRITE, 0, 0, MAX_DISCARD_BYTES + 1), Verdict::PayloadTooLong);
    }

    #[test]
    fn a_read_only_export_is_not_written() {
        for command in [NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES] {
            assert_eq!(request(command, 0, 0, 512).judge(MIB, true), refuse(NBD_EPERM));
        }
        assert_eq!(request(NBD_CMD_READ, 0, 0, 1).judge(MIB, true), Verdict::Execute(Operation::Read));
        assert_eq!(request(NBD_CMD_FLUSH, 0, 0, 0).judge(MIB, true), Verdict::Execute(Operation::Flush));
    }

    proptest! {
        #[test]
        fn what_is_executed_is_in_range(bytes: [u8; REQUEST_LEN_BYTES], size_bytes: u64, read_only: bool) {
            let mut bytes = bytes;
            bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            // Keep the command among the known ones often enough to matter.
            bytes[6] = 0;
            bytes[7] %= 9;
            bytes[4] = 0;
            bytes[5] %= 4;
            let request = Request::decode(&bytes).unwrap();
            prop_assert_eq!(request.encode(), bytes);
            if let Verdict::Execute(operation) = request.judge(size_bytes, read_only) {
                let end = u128::from(request.offset_bytes) + u128::from(request.len_bytes);
                prop_assert!(end <= u128::from(size_bytes) || operation == Operation::Flush);
                prop_assert!(!read_only || matches!(operation, Operation::Read | Operation::Flush));
                if matches!(operation, Operation::Read | Operation::Write { .. }) {
                    prop_assert!(request.len_bytes <= MAX_PAYLOAD_BYTES);
                }
            }
        }
    }
}
