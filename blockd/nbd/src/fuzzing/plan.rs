//! Plan of a fuzzed connection: the first bytes of an input give the boundaries and the end.

/// End of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The client closes it.
    Closed,
    /// A receive fails.
    ReceiveFails,
    /// A send fails.
    SendFails,
    /// The server drops it.
    Aborted,
}

/// Flow control of a connection.
pub(super) struct Plan<'a> {
    /// Bits that select variants of a target.
    pub(super) choice: u8,
    pub(super) end: End,
    /// Sizes of receives and sends.
    pub(super) steps: Vec<usize>,
    /// Rest of the input.
    pub(super) rest: &'a [u8],
}

impl<'a> Plan<'a> {
    /// Parses a byte of choices, one of end and number of steps, and two bytes per step.
    pub(super) fn of(data: &'a [u8]) -> Option<Self> {
        let [choice, shape, rest @ ..] = data else {
            return None;
        };
        let end = match shape >> 5 {
            0 => End::ReceiveFails,
            1 => End::SendFails,
            2 => End::Aborted,
            // The usual end.
            _ => End::Closed,
        };
        let (raw, rest) = rest.split_at_checked(2 * (usize::from(shape % 16) + 1))?;
        let size = |raw: &[u8]| match u16::from_le_bytes([raw[0], raw[1]]) {
            // Everything.
            0xff00.. => 1 << 20,
            size => usize::from(size) + 1,
        };
        Some(Self { choice: *choice, end, steps: raw.chunks_exact(2).map(size).collect(), rest })
    }
}
