//! Encoding and parsing of generic netlink messages, without I/O.
//!
//! Numbers are in native byte order; messages and attributes are padded to four bytes. The parser accepts
//! arbitrary input: a truncated message or invalid length ends it.

/// `NLMSG_NOOP`: no content.
const NLMSG_NOOP: u16 = 1;
/// `NLMSG_ERROR`: an error, or an acknowledgement with error 0.
const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a multipart message.
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST`: a request.
const NLM_F_REQUEST: u16 = 1;
/// `NLM_F_ACK`: requests an acknowledgement.
const NLM_F_ACK: u16 = 4;
/// `NLA_F_NESTED`: the attribute contains attributes.
const NLA_F_NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`: the type without flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

const HEADER_LEN_BYTES: usize = 16;
const GENERIC_LEN_BYTES: usize = 4;
const ATTRIBUTE_LEN_BYTES: usize = 4;

/// Builder of a request.
#[derive(Debug)]
pub(crate) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// Creates a request that requires an acknowledgement.
    pub(crate) fn new(family: u16, command: u8, version: u8, sequence: u32) -> Self {
        let mut bytes = Vec::with_capacity(256);
        // Length, set by `finish`.
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(family.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        // Port of the sender, set by the kernel.
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend([command, version, 0, 0]);
        Self { bytes }
    }

    fn attribute(&mut self, kind: u16, payload: &[u8]) {
        let len_bytes = ATTRIBUTE_LEN_BYTES + payload.len();
        self.bytes.extend(u16::try_from(len_bytes).unwrap_or(u16::MAX).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds a 32-bit number.
    pub(crate) fn u32(mut self, kind: u16, value: u32) -> Self {
        self.attribute(kind, &value.to_ne_bytes());
        self
    }

    /// Adds a 64-bit number.
    pub(crate) fn u64(mut self, kind: u16, value: u64) -> Self {
        self.attribute(kind, &value.to_ne_bytes());
        self
    }

    /// Adds a NUL-terminated string.
    pub(crate) fn text(mut self, kind: u16, value: &str) -> Self {
        let mut payload = value.as_bytes().to_vec();
        payload.push(0);
        self.attribute(kind, &payload);
        self
    }

    /// Adds a nested attribute.
    pub(crate) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.attribute(kind | NLA_F_NESTED, &[]);
        let mut filled = fill(self);
        let len_bytes = u16::try_from(filled.bytes.len() - start).unwrap_or(u16::MAX);
        if let Some(place) = filled.bytes.get_mut(start..start + 2) {
            place.copy_from_slice(&len_bytes.to_ne_bytes());
        }
        filled
    }

    /// Returns the encoded request.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let len_bytes = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.first_chunk_mut() {
            *place = len_bytes.to_ne_bytes();
        }
        self.bytes
    }
}

/// Received message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Message<'a> {
    /// Acknowledgement or error of a request.
    Outcome {
        /// Sequence number of the request.
        sequence: u32,
        /// Positive error number; 0 for success.
        errno: i32,
    },
    /// Message of a family.
    Generic {
        /// Sequence number of the request; 0 for notifications.
        sequence: u32,
        /// Id of the family.
        family: u16,
        /// Command.
        command: u8,
        /// Attributes.
        attributes: Attributes<'a>,
    },
    /// Message without content.
    Other,
}

/// Returns the messages in a datagram.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let len_bytes = usize::try_from(u32_at(rest, 0)?).ok()?;
        if len_bytes < HEADER_LEN_BYTES {
            return None;
        }
        let message = rest.get(..len_bytes)?;
        rest = rest.get(len_bytes.next_multiple_of(4)..).unwrap_or_default();
        Some(parse(message))
    })
}

fn parse(message: &[u8]) -> Message<'_> {
    let (Some(kind), Some(sequence)) = (u16_at(message, 4), u32_at(message, 8)) else {
        return Message::Other;
    };
    match kind {
        NLMSG_NOOP | NLMSG_DONE => Message::Other,
        NLMSG_ERROR => match u32_at(message, HEADER_LEN_BYTES) {
            Some(number) => Message::Outcome { sequence, errno: number.cast_signed().saturating_neg() },
            None => Message::Other,
        },
        family => {
            match (message.get(HEADER_LEN_BYTES), message.get(HEADER_LEN_BYTES + GENERIC_LEN_BYTES..)) {
                (Some(command), Some(rest)) => {
                    Message::Generic { sequence, family, command: *command, attributes: Attributes { rest } }
                }
                _ => Message::Other,
            }
        }
    }
}

/// Sequence of attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Returns the first attribute of a type.
    pub(crate) fn find(self, kind: u16) -> Option<Attribute<'a>> {
        let mut all = self;
        all.find_map(|(found, attribute)| (found == kind).then_some(attribute))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, Attribute<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (len_bytes, kind) = (usize::from(u16_at(self.rest, 0)?), u16_at(self.rest, 2)?);
        let payload = self.rest.get(ATTRIBUTE_LEN_BYTES..len_bytes)?;
        self.rest = self.rest.get(len_bytes.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & NLA_TYPE_MASK, Attribute { payload }))
    }
}

/// Value of an attribute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Attribute<'a> {
    payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// Returns an 8-bit number.
    pub(crate) fn u8(self) -> Option<u8> {
        self.payload.first().copied()
    }

    /// Returns a 16-bit number.
    pub(crate) fn u16(self) -> Option<u16> {
        u16_at(self.payload, 0)
    }

    /// Returns a 32-bit number.
    pub(crate) fn u32(self) -> Option<u32> {
        u32_at(self.payload, 0)
    }

    /// Returns a string up to its NUL.
    pub(crate) fn text(self) -> Option<&'a str> {
        let end = self.payload.iter().position(|byte| *byte == 0).unwrap_or(self.payload.len());
        std::str::from_utf8(self.payload.get(..end)?).ok()
    }

    /// Returns the nested attributes.
    pub(crate) fn nested(self) -> Attributes<'a> {
        Attributes { rest: self.payload }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family;
    use proptest::prelude::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn request_layout_matches_kernel() {
        let request = Request::new(0x1c, 1, 1, 7).text(2, "nbd").nested(7, |list| list.u32(1, 5)).finish();
        let expected = [
            40, 0, 0, 0, 0x1c, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, // header
            1, 1, 0, 0, // command and version
            8, 0, 2, 0, b'n', b'b', b'd', 0, // a string with its NUL
            12, 0, 7, 0x80, 8, 0, 1, 0, 5, 0, 0, 0, // a nested attribute
        ];
        assert_eq!(request, expected);
    }

    #[test]
    fn built_request_parses_back() {
        let bytes = Request::new(40, 3, 1, 9)
            .u32(1, u32::MAX)
            .text(2, "x")
            .nested(3, |list| list.nested(1, |item| item.u64(1, 5)))
            .finish();
        let all: Vec<_> = messages(&bytes).collect();
        let [Message::Generic { sequence: 9, family: 40, command: 3, attributes }] = all[..] else {
            panic!("{all:?}")
        };
        assert_eq!(attributes.find(1).and_then(Attribute::u32), Some(u32::MAX));
        assert_eq!(attributes.find(2).and_then(Attribute::text), Some("x"));
        let nested = attributes.find(3).unwrap().nested().find(1).unwrap().nested();
        assert_eq!(
            nested.find(1).and_then(Attribute::u32),
            Some(if cfg!(target_endian = "little") { 5 } else { 0 })
        );
        assert!(attributes.find(4).is_none());
    }

    #[test]
    fn acknowledgement_and_error_are_parsed() {
        let mut bytes = Vec::new();
        for (sequence, errno) in [(3u32, 0i32), (4, -16)] {
            bytes.extend(36u32.to_ne_bytes());
            bytes.extend(2u16.to_ne_bytes());
            bytes.extend(0u16.to_ne_bytes());
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend(0u32.to_ne_bytes());
            bytes.extend(errno.to_ne_bytes());
            bytes.extend([0; 16]);
        }
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(
            all,
            [Message::Outcome { sequence: 3, errno: 0 }, Message::Outcome { sequence: 4, errno: 16 }]
        );
    }

    /// Encodes a family reply and a status reply.
    fn replies() -> Vec<u8> {
        let family = Request::new(16, 1, 2, 9)
            .text(2, "nbd")
            .u32(1, 33)
            .nested(7, |groups| groups.nested(1, |group| group.u32(2, 5).text(1, "nbd_mc_group")));
        let item = |item: Request| item.u32(1, 4).u32(2, 1);
        let devices = Request::new(33, 5, 1, 9).nested(9, |list| list.nested(1, item).nested(1, item));
        [family.finish(), devices.finish()].concat()
    }

    proptest! {
        #[test]
        fn altered_datagram_is_parsed_within_its_bounds(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            garbage in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
            len in 0_usize..300,
        ) {
            let mut bytes = garbage.unwrap_or_else(replies);
            bytes.truncate(len);
            for (at, value) in changes {
                if let Some(len) = std::num::NonZero::new(bytes.len()) {
                    bytes[at.index(len.get())] = value;
                }
            }
            let (mut header_bytes, mut text_bytes) = (0, 0);
            for message in messages(&bytes) {
                header_bytes += HEADER_LEN_BYTES;
                let Message::Generic { attributes, .. } = message else { continue };
                let _ = (family::family(attributes), family::index(attributes));
                // A device has two attributes of at least 4 bytes each.
                prop_assert!(family::devices(attributes).len() * 8 <= bytes.len());
                for (_, attribute) in attributes {
                    let _ = (attribute.u8(), attribute.u16());
                    text_bytes += attribute.text().map_or(0, str::len);
                }
            }
            prop_assert!(header_bytes <= bytes.len() && text_bytes <= bytes.len());
        }
    }
}
