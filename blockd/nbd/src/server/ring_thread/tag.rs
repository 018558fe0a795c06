//! Tags of io_uring operations.

/// Kind of an operation with the index of its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    Wake,
    Accept(usize),
    Receive(usize),
    Send(usize),
    /// Discarding receive of a lingering socket.
    Linger(usize),
    HangUp(usize),
}

impl Tag {
    pub(super) fn pack(self) -> u64 {
        let (kind, index) = match self {
            Self::Wake => (0, 0),
            Self::Accept(index) => (1, index),
            Self::Receive(index) => (2, index),
            Self::Send(index) => (3, index),
            Self::Linger(index) => (4, index),
            Self::HangUp(index) => (5, index),
        };
        debug_assert!(kind < 8 && (index as u64) < 1 << 61, "kind and index fit into the tag");
        (index as u64) << 3 | kind
    }

    pub(super) fn unpack(tag: u64) -> Self {
        debug_assert!(tag & 7 <= 5, "a tag has a kind");
        let index = (tag >> 3) as usize;
        match tag & 7 {
            0 => Self::Wake,
            1 => Self::Accept(index),
            2 => Self::Receive(index),
            3 => Self::Send(index),
            4 => Self::Linger(index),
            _ => Self::HangUp(index),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_tag_unpacks_unchanged() {
        for tag in [
            Tag::Wake,
            Tag::Accept(1),
            Tag::Receive(0),
            Tag::Send(u32::MAX as usize),
            Tag::Linger(7),
            Tag::HangUp(8),
        ] {
            assert_eq!(Tag::unpack(tag.pack()), tag);
        }
    }
}
