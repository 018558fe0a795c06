//! Encoding of client messages, independent of the server's code.
#![allow(dead_code, reason = "each test uses a part")]

/// Negotiated headers and replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyMode {
    Simple,
    Structured,
    Extended,
}

/// Header of a request.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset_bytes: u64,
    pub len_bytes: u64,
}

impl Request {
    /// Returns the compact header.
    pub fn encode(&self) -> [u8; 28] {
        let mut bytes = [0; 28];
        self.put(0x2560_9513, &mut bytes[..24]);
        bytes[24..].copy_from_slice(&self.len_bytes.to_be_bytes()[4..]);
        bytes
    }

    /// Returns the extended header.
    pub fn encode_extended(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.put(0x21e4_1c71, &mut bytes[..24]);
        bytes[24..].copy_from_slice(&self.len_bytes.to_be_bytes());
        bytes
    }

    fn put(&self, magic: u32, bytes: &mut [u8]) {
        bytes[..4].copy_from_slice(&magic.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset_bytes.to_be_bytes());
    }
}

pub fn option_request(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Encodes client flags and options.
pub fn hello(options: &[(u32, &[u8])]) -> Vec<u8> {
    let options = options.iter().flat_map(|(option, data)| option_request(*option, data));
    3_u32.to_be_bytes().into_iter().chain(options).collect()
}

pub fn meta_request(name: &[u8], queries: &[&str]) -> Vec<u8> {
    let string = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| string(query.as_bytes())));
    data
}

pub fn info_request(name: &[u8], infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name);
    data.extend((infos.len() as u16).to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

/// Returns pseudo-random bytes.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}
