//! Requests of a client in the transmission phase, and the replies allowed by `PROTOCOL.md`.

use blockd_nbd::constants::*;

use super::device::{BAD, Change, FAST_ZERO_BYTES, FULL, SIZE_BYTES, touches};

/// Maximum total length of the reads of an input; longer inputs are truncated.
const MAX_READ_BYTES: u64 = 2 << 20;

/// Negotiated headers and replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyMode {
    Simple,
    Structured,
    Extended,
}

/// Negotiated terms.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) mode: ReplyMode,
    pub(super) read_only: bool,
    /// Selected contexts by id, from 1.
    pub(super) contexts: Vec<String>,
}

/// Complete request.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) command: u16,
    pub(super) flags: u16,
    pub(super) offset_bytes: u64,
    pub(super) len_bytes: u64,
    /// Context ids of a block status.
    pub(super) contexts: Vec<u32>,
    /// Effect on the device.
    pub(super) change: Option<Change>,
    /// Allowed errors.
    pub(super) errors: Vec<u32>,
    /// True if success is allowed.
    pub(super) may_succeed: bool,
}

/// Reader of numbers from a slice.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub(super) fn number(&mut self, len: usize) -> Option<u64> {
        Some(self.take(len)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

/// Splits the bytes of a client into requests. Writes a unique cookie, the index, into each, and truncates
/// `stream` at the read limit.
pub(super) fn number_requests(stream: &mut Vec<u8>, terms: &Terms) -> Vec<Asked> {
    let header_len = if terms.mode == ReplyMode::Extended { 32 } else { 28 };
    let magic = if terms.mode == ReplyMode::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
    let (mut asked, mut at, mut read_bytes) = (Vec::new(), 0, 0);
    while let Some(header) = stream.get(at..at + header_len) {
        let mut bytes = Bytes(header);
        let mut number = |len| bytes.number(len).unwrap();
        if number(4) != u64::from(magic) {
            break;
        }
        let (flags, command) = (number(2) as u16, number(2) as u16);
        let _cookie = number(8);
        let offset_bytes = number(8);
        let len_bytes = number(header_len - 24);
        stream[at + 8..at + 16].copy_from_slice(&(asked.len() as u64).to_be_bytes());
        if command == NBD_CMD_DISC {
            break;
        }
        let announced = command == NBD_CMD_WRITE
            || (terms.mode == ReplyMode::Extended && flags & NBD_CMD_FLAG_PAYLOAD_LEN != 0);
        let payload_len = if announced { len_bytes } else { 0 };
        let mut request = Asked {
            command,
            flags,
            offset_bytes,
            len_bytes,
            contexts: (1..=terms.contexts.len() as u32).collect(),
            change: None,
            errors: Vec::new(),
            may_succeed: false,
        };
        request.refuse(terms);
        let payload_at = at + header_len;
        let payload = usize::try_from(payload_len).ok().and_then(|len| stream.get(payload_at..)?.get(..len));
        let Some(payload) = payload else {
            // Incomplete, or too long to be discarded: no reply.
            break;
        };
        if request.errors.is_empty() {
            request.serve(payload);
            if command == NBD_CMD_READ {
                read_bytes += len_bytes;
            }
        }
        if read_bytes > MAX_READ_BYTES {
            stream.truncate(at);
            break;
        }
        at = payload_at + payload.len();
        asked.push(request);
    }
    asked
}

impl Asked {
    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    fn fits(&self) -> bool {
        self.offset_bytes.checked_add(self.len_bytes).is_some_and(|end| end <= SIZE_BYTES as u64)
    }

    /// Collects all applicable errors.
    fn refuse(&mut self, terms: &Terms) {
        let extended = terms.mode == ReplyMode::Extended;
        let known = match self.command {
            NBD_CMD_READ if terms.mode != ReplyMode::Simple => NBD_CMD_FLAG_DF,
            NBD_CMD_WRITE if extended => NBD_CMD_FLAG_PAYLOAD_LEN,
            NBD_CMD_WRITE_ZEROES => NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
            NBD_CMD_BLOCK_STATUS if extended => NBD_CMD_FLAG_REQ_ONE | NBD_CMD_FLAG_PAYLOAD_LEN,
            NBD_CMD_BLOCK_STATUS => NBD_CMD_FLAG_REQ_ONE,
            NBD_CMD_READ | NBD_CMD_WRITE | NBD_CMD_FLUSH | NBD_CMD_TRIM | NBD_CMD_CACHE => 0,
            _ => {
                self.errors.push(NBD_EINVAL);
                return;
            }
        };
        let mut refuse_if = |applies: bool, errno| {
            if applies {
                self.errors.push(errno);
            }
        };
        let (command, len_bytes) = (self.command, self.len_bytes);
        let fits = self.offset_bytes.checked_add(len_bytes).is_some_and(|end| end <= SIZE_BYTES as u64);
        let chosen = self.flags & NBD_CMD_FLAG_PAYLOAD_LEN != 0;
        refuse_if(self.flags & !(known | NBD_CMD_FLAG_FUA) != 0, NBD_EINVAL);
        refuse_if(
            terms.read_only && [NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES].contains(&command),
            NBD_EPERM,
        );
        refuse_if([NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_CACHE].contains(&command) && !fits, NBD_EINVAL);
        refuse_if([NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES].contains(&command) && !fits, NBD_ENOSPC);
        refuse_if(
            [NBD_CMD_READ, NBD_CMD_WRITE].contains(&command) && len_bytes > u64::from(MAX_PAYLOAD_BYTES),
            NBD_EINVAL,
        );
        refuse_if(command == NBD_CMD_FLUSH && (self.offset_bytes, len_bytes) != (0, 0), NBD_EINVAL);
        if command == NBD_CMD_BLOCK_STATUS {
            refuse_if(terms.contexts.is_empty(), NBD_EINVAL);
            refuse_if(!chosen && (len_bytes == 0 || !fits), NBD_EINVAL);
            refuse_if(chosen && !(8..=8 + 4 * 1024).contains(&len_bytes), NBD_EINVAL);
        }
    }

    /// Records the effect and possible device errors of an executed request.
    fn serve(&mut self, payload: &[u8]) {
        self.may_succeed = true;
        if self.command == NBD_CMD_BLOCK_STATUS {
            if self.has(NBD_CMD_FLAG_PAYLOAD_LEN) {
                self.choose(payload);
            }
            return;
        }
        if self.len_bytes == 0 {
            return;
        }
        let (offset_bytes, len_bytes) = (self.offset_bytes, self.len_bytes);
        let zeroes = Change::Zeroes { offset_bytes, len_bytes };
        let (bad, full) = (touches(&BAD, offset_bytes, len_bytes), touches(&FULL, offset_bytes, len_bytes));
        match self.command {
            NBD_CMD_READ if bad => self.errors.push(NBD_EIO),
            NBD_CMD_WRITE => {
                self.change = Some(Change::Data { offset_bytes, data: payload.to_vec() });
                self.fails_with(full.then_some(NBD_ENOSPC));
            }
            NBD_CMD_TRIM => {
                self.change = Some(zeroes);
                self.fails_with(if bad { Some(NBD_EIO) } else { full.then_some(NBD_ENOSPC) });
            }
            NBD_CMD_WRITE_ZEROES => {
                self.change = Some(zeroes);
                let slow = self.has(NBD_CMD_FLAG_FAST_ZERO) && len_bytes > FAST_ZERO_BYTES;
                self.fails_with(if slow { Some(NBD_ENOTSUP) } else { full.then_some(NBD_ENOSPC) });
            }
            _ => {}
        }
    }

    fn fails_with(&mut self, errno: Option<u32>) {
        self.may_succeed = errno.is_none();
        self.errors.extend(errno);
    }

    /// Parses the payload of a block status: length of the range, and ids.
    fn choose(&mut self, payload: &[u8]) {
        let mut bytes = Bytes(payload);
        self.len_bytes = bytes.number(8).unwrap();
        let known = std::mem::take(&mut self.contexts);
        let is_valid = bytes.0.len() % 4 == 0 && !bytes.0.is_empty() && self.len_bytes > 0 && self.fits();
        while let Some(id) = bytes.number(4) {
            let id = id as u32;
            if !known.contains(&id) {
                self.fails_with(Some(NBD_EINVAL));
            } else if !self.contexts.contains(&id) {
                self.contexts.push(id);
            }
        }
        if !is_valid {
            self.fails_with(Some(NBD_EINVAL));
        }
    }
}

/// Builds mostly valid requests from seven bytes each: command, flags, offset, length, and a seed of the
/// payload.
pub(super) fn compose(mut short: &[u8], mode: ReplyMode) -> Vec<u8> {
    let mut stream = Vec::new();
    while let [kind, flags, offset_low, offset_high, len_low, len_high, seed, rest @ ..] = short {
        short = rest;
        if stream.len() > 1 << 20 {
            break;
        }
        let command = match kind % 16 {
            8..=10 => NBD_CMD_READ,
            11..=13 => NBD_CMD_WRITE,
            14 => NBD_CMD_BLOCK_STATUS,
            15 => NBD_CMD_DISC,
            command => u16::from(command),
        };
        let offset = u64::from(u16::from_le_bytes([*offset_low, *offset_high]));
        let len = u64::from(u16::from_le_bytes([*len_low, *len_high]));
        // Fine and short, or coarse and long.
        let (offset_bytes, mut len_bytes) =
            if kind & 0x40 == 0 { (offset * 8 + u64::from(seed % 8), len) } else { (offset * 512, len * 8) };
        let mut flags = u16::from(*flags) & 0x3f;
        // Flags unknown to a mode are tried less often.
        if kind & 0x80 == 0 {
            flags &= if mode == ReplyMode::Extended { 0x3d } else { 0x0d };
        }
        let is_write = command == NBD_CMD_WRITE;
        let mut payload = Vec::new();
        if is_write {
            payload = (0..len_bytes).map(|at| (at % 249) as u8 ^ seed).collect();
        } else if mode == ReplyMode::Extended && flags & NBD_CMD_FLAG_PAYLOAD_LEN != 0 {
            payload.extend(len_bytes.to_be_bytes());
            payload.extend((1..=u32::from(seed % 5)).flat_map(u32::to_be_bytes));
            len_bytes = payload.len() as u64;
        }
        let magic: u32 = if mode == ReplyMode::Extended { EXTENDED_REQUEST_MAGIC } else { REQUEST_MAGIC };
        stream.extend(magic.to_be_bytes());
        stream.extend(flags.to_be_bytes());
        stream.extend(command.to_be_bytes());
        stream.extend([0; 8]);
        stream.extend(offset_bytes.to_be_bytes());
        match mode {
            ReplyMode::Extended => stream.extend(len_bytes.to_be_bytes()),
            ReplyMode::Simple | ReplyMode::Structured => stream.extend((len_bytes as u32).to_be_bytes()),
        }
        stream.extend(payload);
    }
    stream
}
