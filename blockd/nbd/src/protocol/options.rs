//! Decoding of option data and encoding of option replies.

use crate::device::ExportInfo;
use crate::protocol::constants::*;
use crate::protocol::reply::ReplyMode;
use crate::protocol::wire::Reader;

/// Request of `NBD_OPT_INFO` or `NBD_OPT_GO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InfoRequest {
    /// Export name; empty for the default export.
    pub(crate) name: String,
    /// The client requests `NBD_INFO_NAME`.
    pub(crate) wants_name: bool,
    /// The client requests `NBD_INFO_DESCRIPTION`.
    pub(crate) wants_description: bool,
}

/// Error reply to an option: type and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reply_type: u32,
    pub(crate) message: String,
}

impl Refusal {
    pub(crate) fn new(reply_type: u32, message: impl Into<String>) -> Self {
        Self { reply_type, message: message.into() }
    }

    pub(crate) fn malformed() -> Self {
        Self::new(NBD_REP_ERR_INVALID, "malformed option data: inconsistent lengths")
    }
}

/// Decodes the header of an option request into option and data length, in bytes; `None` for a wrong magic.
pub(crate) fn decode_header(bytes: &[u8; OPTION_HEADER_LEN_BYTES]) -> Option<(u32, u32)> {
    let mut reader = Reader::new(bytes);
    if reader.u64()? != OPTION_MAGIC {
        return None;
    }
    Some((reader.u32()?, reader.u32()?))
}

/// Decodes a string of the protocol: UTF-8 of at most [`MAX_NAME_LEN_BYTES`].
pub(crate) fn decode_name(bytes: &[u8]) -> Result<String, Refusal> {
    if bytes.len() > MAX_NAME_LEN_BYTES {
        let message =
            format!("name of {} bytes exceeds the limit of {MAX_NAME_LEN_BYTES} bytes", bytes.len());
        return Err(Refusal::new(NBD_REP_ERR_TOO_BIG, message));
    }
    let name = std::str::from_utf8(bytes);
    name.map(str::to_owned).map_err(|_| Refusal::new(NBD_REP_ERR_INVALID, "the name is not UTF-8"))
}

/// Reads a u32 length and a string of this length.
pub(crate) fn take_name(reader: &mut Reader<'_>) -> Result<String, Refusal> {
    let len_bytes = reader.u32().ok_or_else(Refusal::malformed)?;
    decode_name(reader.take(len_bytes as usize).ok_or_else(Refusal::malformed)?)
}

/// Decodes the data of `NBD_OPT_INFO` and `NBD_OPT_GO`: u32 length, name, u16 count, u16 × count.
pub(crate) fn decode_info_request(data: &[u8]) -> Result<InfoRequest, Refusal> {
    let mut reader = Reader::new(data);
    let name = take_name(&mut reader)?;
    let count = reader.u16().ok_or_else(Refusal::malformed)?;
    let mut request = InfoRequest { name, wants_name: false, wants_description: false };
    for _ in 0..count {
        match reader.u16().ok_or_else(Refusal::malformed)? {
            NBD_INFO_NAME => request.wants_name = true,
            NBD_INFO_DESCRIPTION => request.wants_description = true,
            // Replies always contain NBD_INFO_EXPORT and NBD_INFO_BLOCK_SIZE; unknown types are ignored.
            _ => {}
        }
    }
    if reader.is_empty() { Ok(request) } else { Err(Refusal::malformed()) }
}

/// Appends an option reply: magic, option, type, length, and the concatenated parts of its data.
pub(crate) fn put_reply(out: &mut Vec<u8>, option: u32, reply_type: u32, parts: &[&[u8]]) {
    let len_bytes: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&reply_type.to_be_bytes());
    out.extend_from_slice(&wire_len(len_bytes).to_be_bytes());
    let start = out.len();
    for part in parts {
        out.extend_from_slice(part);
    }
    assert!(out.len() - start == len_bytes, "a reply has its announced length");
}

/// Appends an error reply.
pub(crate) fn put_refusal(out: &mut Vec<u8>, option: u32, refusal: &Refusal) {
    put_reply(out, option, refusal.reply_type, &[clip(&refusal.message).as_bytes()]);
}

/// Appends the `NBD_REP_SERVER` of an export; omits one with a name above the protocol's limit.
pub(crate) fn put_server(out: &mut Vec<u8>, info: &ExportInfo) {
    if info.name.len() > MAX_NAME_LEN_BYTES {
        return;
    }
    let name_len = wire_len(info.name.len()).to_be_bytes();
    let parts = [&name_len, info.name.as_bytes(), clip(&info.description).as_bytes()];
    put_reply(out, NBD_OPT_LIST, NBD_REP_SERVER, &parts);
}

/// Appends the `NBD_INFO_EXPORT` of an export.
pub(crate) fn put_info_export(out: &mut Vec<u8>, option: u32, size_bytes: u64, flags: u16) {
    let parts = [&NBD_INFO_EXPORT.to_be_bytes()[..], &size_bytes.to_be_bytes(), &flags.to_be_bytes()];
    put_reply(out, option, NBD_REP_INFO, &parts);
}

/// Appends the `NBD_INFO_BLOCK_SIZE`, which is the same for all exports.
pub(crate) fn put_info_block_size(out: &mut Vec<u8>, option: u32) {
    let parts = [
        &NBD_INFO_BLOCK_SIZE.to_be_bytes()[..],
        &MIN_BLOCK_BYTES.to_be_bytes(),
        &PREFERRED_BLOCK_BYTES.to_be_bytes(),
        &MAX_PAYLOAD_BYTES.to_be_bytes(),
    ];
    put_reply(out, option, NBD_REP_INFO, &parts);
}

/// Appends a text item: `NBD_INFO_NAME` or `NBD_INFO_DESCRIPTION`.
pub(crate) fn put_info_text(out: &mut Vec<u8>, option: u32, info_type: u16, text: &str) {
    put_reply(out, option, NBD_REP_INFO, &[&info_type.to_be_bytes(), clip(text).as_bytes()]);
}

/// Returns the transmission flags of an export.
pub(crate) fn transmission_flags(read_only: bool, mode: ReplyMode) -> u16 {
    let always = NBD_FLAG_HAS_FLAGS
        | NBD_FLAG_SEND_FLUSH
        | NBD_FLAG_SEND_FUA
        | NBD_FLAG_CAN_MULTI_CONN
        | NBD_FLAG_SEND_CACHE;
    let writing = match read_only {
        true => NBD_FLAG_READ_ONLY,
        false => NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO,
    };
    let negotiated = match mode {
        ReplyMode::Simple => 0,
        ReplyMode::Structured => NBD_FLAG_SEND_DF,
        ReplyMode::Extended => NBD_FLAG_SEND_DF | NBD_FLAG_BLOCK_STAT_PAYLOAD,
    };
    always | writing | negotiated
}

/// Truncates a text to the protocol's limit of 4096 bytes, at a character boundary.
fn clip(text: &str) -> &str {
    let mut end = text.len().min(MAX_NAME_LEN_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Converts the length of a reply, which has at most a few truncated strings.
fn wire_len(len_bytes: usize) -> u32 {
    debug_assert!(len_bytes <= 4 * MAX_NAME_LEN_BYTES);
    len_bytes as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info_data(name: &[u8], infos: &[u16]) -> Vec<u8> {
        let mut data = (name.len() as u32).to_be_bytes().to_vec();
        data.extend_from_slice(name);
        data.extend_from_slice(&(infos.len() as u16).to_be_bytes());
        data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
        data
    }

    #[test]
    fn info_request_is_decoded() {
        let request =
            decode_info_request(&info_data(b"vol", &[NBD_INFO_NAME, 77, NBD_INFO_BLOCK_SIZE])).unwrap();
        assert_eq!(
            request,
            InfoRequest { name: "vol".to_owned(), wants_name: true, wants_description: false }
        );
        assert_eq!(decode_info_request(&info_data(b"", &[])).unwrap().name, "");
    }

    #[test]
    fn malformed_info_request_is_refused() {
        let good = info_data(b"vol", &[NBD_INFO_NAME]);
        for len in 0..good.len() {
            let refusal = decode_info_request(&good[..len]).unwrap_err();
            assert_eq!(refusal.reply_type, NBD_REP_ERR_INVALID, "cut at {len}");
        }
        let mut long = good.clone();
        long.push(0);
        assert_eq!(decode_info_request(&long).unwrap_err().reply_type, NBD_REP_ERR_INVALID);
        let mut huge = good;
        huge[0] = 0xff;
        assert_eq!(decode_info_request(&huge).unwrap_err().reply_type, NBD_REP_ERR_INVALID);
        let refusal = decode_info_request(&info_data(&[b'a'; 4097], &[])).unwrap_err();
        assert_eq!(refusal.reply_type, NBD_REP_ERR_TOO_BIG);
        assert!(decode_info_request(&info_data(&[b'a'; 4096], &[])).is_ok());
        let refusal = decode_info_request(&info_data(&[0xff], &[])).unwrap_err();
        assert_eq!(refusal.reply_type, NBD_REP_ERR_INVALID);
    }

    #[test]
    fn option_replies_match_golden_bytes() {
        let mut out = Vec::new();
        put_info_export(&mut out, NBD_OPT_GO, 0x0102_0304, 0x016d);
        assert_eq!(
            out,
            [
                0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 12, // header
                0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0x01, 0x6d, // info type, size, flags
            ]
        );
        out.clear();
        put_info_block_size(&mut out, NBD_OPT_INFO);
        assert_eq!(out[20..], [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 4, 0, 0, 0]);
        out.clear();
        let info =
            ExportInfo { name: "v".into(), description: "d é".into(), size_bytes: 1, read_only: false };
        put_server(&mut out, &info);
        assert_eq!(out[16..], [0, 0, 0, 9, 0, 0, 0, 1, b'v', b'd', b' ', 0xc3, 0xa9]);
        assert_eq!(transmission_flags(true, ReplyMode::Simple), 0x050f);
        assert_eq!(transmission_flags(false, ReplyMode::Simple), 0x0d6d);
        assert_eq!(transmission_flags(false, ReplyMode::Structured), 0x0ded);
        assert_eq!(transmission_flags(false, ReplyMode::Extended), 0x1ded);
    }

    #[test]
    fn long_text_is_truncated_at_a_character() {
        let text = "é".repeat(3000);
        assert_eq!(clip(&text).len(), 4096);
        let shifted = format!("a{text}");
        assert_eq!(clip(&shifted).len(), 4095);
    }
}
