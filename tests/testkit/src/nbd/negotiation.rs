//! Independent check of negotiations, from the protocol document and `PROTOCOL.md`.

use blockd_nbd::constants::*;

use super::device::{BITMAPS, Export, LISTED, SIZE_BYTES, export};
use super::requests::{Bytes, ReplyMode, Terms};

/// Expected reply to an option.
#[derive(Debug)]
enum Due {
    Export { read_only: bool, zeroes: bool, mode: ReplyMode },
    Ack { option: u32 },
    Refusal { option: u32, errors: Vec<u32> },
    List,
    Info { option: u32, name: String, read_only: bool, infos: Vec<u64>, mode: ReplyMode },
    Contexts { option: u32, names: Vec<&'static str> },
}

/// Continuation of a negotiation.
#[derive(Debug)]
pub(super) enum Next {
    /// The server closes the connection, or waits for more.
    Nothing,
    /// The transmission phase starts at this byte of the client.
    Transmission { at: usize, terms: Terms },
}

/// Negotiation as requested by the client's bytes.
#[derive(Debug)]
pub(super) struct Negotiation {
    due: Vec<Due>,
    pub(super) next: Next,
}

fn contexts() -> [&'static str; 3] {
    ["base:allocation", BITMAPS[0], BITMAPS[1]]
}

/// Reads a string with its length; sets `too_big` if it is too long.
fn string(bytes: &mut Bytes<'_>, too_big: &mut bool) -> Option<String> {
    let len = bytes.number(4)? as usize;
    let raw = bytes.take(len)?;
    *too_big |= len > MAX_NAME_LEN_BYTES;
    String::from_utf8(raw.to_vec()).ok().filter(|_| len <= MAX_NAME_LEN_BYTES)
}

fn malformed(option: u32, too_big: bool) -> Due {
    let errors =
        if too_big { vec![NBD_REP_ERR_TOO_BIG, NBD_REP_ERR_INVALID] } else { vec![NBD_REP_ERR_INVALID] };
    Due::Refusal { option, errors }
}

fn refusal(option: u32, name: &str) -> Option<Due> {
    let code = match export(name) {
        Export::Unknown => NBD_REP_ERR_UNKNOWN,
        Export::Refused => NBD_REP_ERR_POLICY,
        Export::Writable | Export::ReadOnly => return None,
    };
    Some(Due::Refusal { option, errors: vec![code] })
}

/// Parses the bytes of a client.
pub(super) fn read(stream: &[u8]) -> Negotiation {
    let mut reader =
        Reader { bytes: Bytes(stream), due: Vec::new(), mode: ReplyMode::Simple, chosen: None, flags: 0 };
    let entered = reader.read();
    let at = stream.len() - reader.bytes.0.len();
    let next = match entered {
        Some((name, read_only)) => {
            let chosen = reader.chosen.filter(|(chosen_for, _)| *chosen_for == name);
            let contexts = chosen.map(|(_, contexts)| contexts).unwrap_or_default();
            let contexts = contexts.into_iter().map(str::to_owned).collect();
            Next::Transmission { at, terms: Terms { mode: reader.mode, read_only, contexts } }
        }
        None => Next::Nothing,
    };
    Negotiation { due: reader.due, next }
}

struct Reader<'a> {
    bytes: Bytes<'a>,
    due: Vec<Due>,
    mode: ReplyMode,
    chosen: Option<(String, Vec<&'static str>)>,
    flags: u64,
}

impl Reader<'_> {
    /// Returns the selected export, and whether it is read-only.
    fn read(&mut self) -> Option<(String, bool)> {
        self.flags = self.bytes.number(4).filter(|flags| *flags < 4)?;
        loop {
            if self.bytes.number(8)? != OPTION_MAGIC {
                return None;
            }
            let (option, len) = (self.bytes.number(4)? as u32, self.bytes.number(4)?);
            if self.flags & 1 == 0 && option != NBD_OPT_EXPORT_NAME {
                return None;
            }
            if len > u64::from(MAX_OPTION_LEN_BYTES)
                && (option == NBD_OPT_EXPORT_NAME || len > u64::from(MAX_OPTION_DISCARD_BYTES))
            {
                return None;
            }
            let data = self.bytes.take(len as usize)?;
            if len > u64::from(MAX_OPTION_LEN_BYTES) {
                self.due.push(Due::Refusal { option, errors: vec![NBD_REP_ERR_TOO_BIG] });
                continue;
            }
            match option {
                NBD_OPT_EXPORT_NAME => {
                    let name =
                        std::str::from_utf8(data).ok().filter(|name| name.len() <= MAX_NAME_LEN_BYTES)?;
                    if !matches!(export(name), Export::Writable | Export::ReadOnly) {
                        return None;
                    }
                    let read_only = export(name) == Export::ReadOnly;
                    let zeroes = self.flags & 2 == 0;
                    self.due.push(Due::Export { read_only, zeroes, mode: self.mode });
                    return Some((name.to_owned(), read_only));
                }
                NBD_OPT_ABORT => {
                    self.due.push(Due::Ack { option });
                    return None;
                }
                NBD_OPT_INFO | NBD_OPT_GO => {
                    let due = self.info(option, data);
                    let entered = match &due {
                        Due::Info { option: NBD_OPT_GO, name, read_only, .. } => {
                            Some((name.clone(), *read_only))
                        }
                        _ => None,
                    };
                    self.due.push(due);
                    if entered.is_some() {
                        return entered;
                    }
                }
                _ => {
                    let due = self.other(option, data);
                    self.due.push(due);
                }
            }
        }
    }

    fn info(&self, option: u32, data: &[u8]) -> Due {
        let (mut bytes, mut too_big, mut infos) = (Bytes(data), false, Vec::new());
        let name = string(&mut bytes, &mut too_big);
        let count = bytes.number(2);
        for _ in 0..count.unwrap_or(0) {
            match bytes.number(2) {
                Some(info) => infos.push(info),
                None => return malformed(option, too_big),
            }
        }
        let (Some(name), Some(_), true) = (name, count, bytes.0.is_empty()) else {
            return malformed(option, too_big);
        };
        refusal(option, &name).unwrap_or_else(|| {
            let read_only = export(&name) == Export::ReadOnly;
            Due::Info { option, name, read_only, infos, mode: self.mode }
        })
    }

    fn other(&mut self, option: u32, data: &[u8]) -> Due {
        let refuse = |code| Due::Refusal { option, errors: vec![code] };
        match option {
            NBD_OPT_LIST if data.is_empty() => Due::List,
            NBD_OPT_STARTTLS => refuse(NBD_REP_ERR_POLICY),
            NBD_OPT_LIST | NBD_OPT_STRUCTURED_REPLY | NBD_OPT_EXTENDED_HEADERS if !data.is_empty() => {
                refuse(NBD_REP_ERR_INVALID)
            }
            NBD_OPT_STRUCTURED_REPLY if self.mode == ReplyMode::Extended => {
                refuse(NBD_REP_ERR_EXT_HEADER_REQD)
            }
            NBD_OPT_STRUCTURED_REPLY | NBD_OPT_EXTENDED_HEADERS => {
                let extended = option == NBD_OPT_EXTENDED_HEADERS;
                self.mode = if extended { ReplyMode::Extended } else { ReplyMode::Structured };
                Due::Ack { option }
            }
            NBD_OPT_LIST_META_CONTEXT | NBD_OPT_SET_META_CONTEXT => self.contexts(option, data),
            _ => refuse(NBD_REP_ERR_UNSUP),
        }
    }

    fn contexts(&mut self, option: u32, data: &[u8]) -> Due {
        if option == NBD_OPT_SET_META_CONTEXT {
            self.chosen = None;
        }
        if self.mode == ReplyMode::Simple {
            return Due::Refusal { option, errors: vec![NBD_REP_ERR_INVALID] };
        }
        let (mut bytes, mut too_big, mut queries) = (Bytes(data), false, Vec::new());
        let name = string(&mut bytes, &mut too_big);
        let count = bytes.number(4);
        for _ in 0..count.unwrap_or(0) {
            match string(&mut bytes, &mut too_big) {
                Some(query) => queries.push(query),
                None => return malformed(option, too_big),
            }
        }
        let (Some(name), Some(_), true) = (name, count, bytes.0.is_empty()) else {
            return malformed(option, too_big);
        };
        if let Some(refusal) = refusal(option, &name) {
            return refusal;
        }
        let is_list = option == NBD_OPT_LIST_META_CONTEXT;
        let matches = |context: &&'static str| {
            let by = |query: &String| {
                query == context || (is_list && query.ends_with(':') && context.starts_with(query))
            };
            (is_list && queries.is_empty()) || queries.iter().any(by)
        };
        let names: Vec<&'static str> = contexts().into_iter().filter(matches).collect();
        if !is_list {
            self.chosen = Some((name, names.clone()));
        }
        Due::Contexts { option, names }
    }
}

fn transmission_flags(read_only: bool, mode: ReplyMode) -> u64 {
    let writing = if read_only { 2 } else { 32 + 64 + 2048 };
    let negotiated = match mode {
        ReplyMode::Simple => 0,
        ReplyMode::Structured => 128,
        ReplyMode::Extended => 128 + 4096,
    };
    1 + 4 + 8 + 256 + 1024 + writing + negotiated
}

impl Negotiation {
    /// Checks the bytes of the server and returns their length; `None` if they end early.
    pub(super) fn check(&self, sent: &[u8]) -> Option<usize> {
        let mut bytes = Bytes(sent);
        assert_eq!(bytes.number(8)?, NBD_MAGIC, "the greeting");
        assert_eq!(bytes.number(8)?, OPTION_MAGIC);
        assert_eq!(bytes.number(2)?, 3);
        for due in &self.due {
            due.check(&mut bytes)?;
        }
        Some(sent.len() - bytes.0.len())
    }
}

fn reply<'a>(bytes: &mut Bytes<'a>, option: u32) -> Option<(u32, Bytes<'a>)> {
    assert_eq!(bytes.number(8)?, OPTION_REPLY_MAGIC, "a reply to option {option}");
    assert_eq!(bytes.number(4)?, u64::from(option));
    let (kind, len) = (bytes.number(4)? as u32, bytes.number(4)?);
    assert!(len <= 20_000, "a reply of {len} bytes");
    Some((kind, Bytes(bytes.take(len as usize)?)))
}

impl Due {
    fn check(&self, bytes: &mut Bytes<'_>) -> Option<()> {
        match self {
            Self::Export { read_only, zeroes, mode } => {
                assert_eq!(bytes.number(8)?, SIZE_BYTES as u64);
                assert_eq!(bytes.number(2)?, transmission_flags(*read_only, *mode));
                if *zeroes {
                    assert!(bytes.take(124)?.iter().all(|byte| *byte == 0));
                }
            }
            Self::Ack { option } => {
                let (kind, data) = reply(bytes, *option)?;
                assert!(kind == NBD_REP_ACK && data.0.is_empty(), "{kind:#x} for {self:?}");
            }
            Self::Refusal { option, errors } => {
                let (kind, data) = reply(bytes, *option)?;
                assert!(errors.contains(&kind), "{kind:#x} for {self:?}");
                assert!(data.0.len() <= MAX_NAME_LEN_BYTES && std::str::from_utf8(data.0).is_ok());
            }
            Self::List => {
                for name in LISTED {
                    let (kind, mut data) = reply(bytes, NBD_OPT_LIST)?;
                    let len = data.number(4).expect("a length") as usize;
                    assert!(kind == NBD_REP_SERVER && data.take(len) == Some(name.as_bytes()));
                }
                Self::Ack { option: NBD_OPT_LIST }.check(bytes)?;
            }
            Self::Info { option, name, read_only, infos, mode } => {
                let flags = transmission_flags(*read_only, *mode);
                check_info(bytes, *option, name, flags, infos)?;
            }
            Self::Contexts { option, names } => {
                for (index, name) in names.iter().enumerate() {
                    let (kind, mut data) = reply(bytes, *option)?;
                    let id = data.number(4).expect("an id");
                    assert!(kind == NBD_REP_META_CONTEXT && data.0 == name.as_bytes(), "for {self:?}");
                    assert!(*option == NBD_OPT_LIST_META_CONTEXT || id == index as u64 + 1);
                }
                Self::Ack { option: *option }.check(bytes)?;
            }
        }
        Some(())
    }
}

/// Checks the information about an export, up to the acknowledgement.
fn check_info(bytes: &mut Bytes<'_>, option: u32, name: &str, flags: u64, infos: &[u64]) -> Option<()> {
    let mut seen = Vec::new();
    loop {
        let (kind, mut data) = reply(bytes, option)?;
        if kind == NBD_REP_ACK {
            assert!(data.0.is_empty());
            break;
        }
        assert_eq!(kind, NBD_REP_INFO, "for option {option} on {name}");
        let info = data.number(2).expect("its kind");
        match info {
            0 => {
                assert_eq!(data.number(8), Some(SIZE_BYTES as u64));
                assert_eq!(data.number(2), Some(flags));
                assert!(data.0.is_empty());
            }
            1 => assert_eq!(data.0, name.as_bytes()),
            2 => assert_eq!(data.0, format!("the export {name}").as_bytes()),
            3 => {
                let sizes = [data.number(4), data.number(4), data.number(4)];
                assert_eq!(sizes, [Some(1), Some(4096), Some(64 << 20)]);
            }
            _ => panic!("information {info}"),
        }
        seen.push(info);
    }
    seen.sort_unstable();
    let expected = |info: &u64| match info {
        0 | 3 => true,
        _ => infos.contains(info) && LISTED.contains(&name),
    };
    let due: Vec<u64> = (0..4).filter(expected).collect();
    assert_eq!(seen, due, "for option {option} on {name}");
    Some(())
}

/// Appends an option.
pub(super) fn put_option(stream: &mut Vec<u8>, option: u32, data: &[u8]) {
    stream.extend(OPTION_MAGIC.to_be_bytes());
    stream.extend(option.to_be_bytes());
    stream.extend((data.len() as u32).to_be_bytes());
    stream.extend(data);
}

fn put_string(data: &mut Vec<u8>, text: &str) {
    data.extend((text.len() as u32).to_be_bytes());
    data.extend(text.as_bytes());
}

/// Returns the data of NBD_OPT_GO.
pub(super) fn go_data(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(&mut data, name);
    data.extend((infos.len() as u16).to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

/// Returns the data of SET_META_CONTEXT.
pub(super) fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    put_string(&mut data, name);
    data.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|query| put_string(&mut data, query));
    data
}

/// Builds the bytes of a client from options: a byte for the option, one for a length, and that many bytes,
/// which are its data or select it. The last part holds the requests, see [`super::requests::compose`].
pub(super) fn compose(mut short: &[u8]) -> Vec<u8> {
    const NAMES: [&str; 8] = ["", "a", "ro", "busy", "secret", "b", "é", "\u{1}\""];
    const QUERIES: [&str; 8] = [
        "base:allocation",
        "qemu:dirty-bitmap:odd",
        "qemu:dirty-bitmap:none",
        "base:",
        "qemu:",
        "qemu:dirty-bitmap:",
        "",
        ":",
    ];
    let mut mode = ReplyMode::Simple;
    let (flags, rest) = short.split_first().unwrap_or((&3, &[]));
    let mut stream = u32::from(*flags).to_be_bytes().to_vec();
    short = rest;
    while let [kind, len, rest @ ..] = short {
        let option = match kind % 16 {
            12 => 0,
            13 => 0x7fff_0001,
            14 => NBD_OPT_GO,
            15 => break,
            option => u32::from(option),
        };
        let (raw, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        short = rest;
        let name = NAMES[usize::from(raw.first().copied().unwrap_or(0) % 8)];
        let more = raw.get(1..).unwrap_or_default();
        let data = match option {
            _ if kind & 0x80 != 0 => raw.to_vec(),
            NBD_OPT_EXPORT_NAME => name.as_bytes().to_vec(),
            NBD_OPT_INFO | NBD_OPT_GO => {
                go_data(name, &more.iter().map(|byte| u16::from(byte % 8)).collect::<Vec<_>>())
            }
            NBD_OPT_LIST_META_CONTEXT | NBD_OPT_SET_META_CONTEXT => {
                let queries: Vec<&str> = more.iter().map(|byte| QUERIES[usize::from(byte % 8)]).collect();
                meta_data(name, &queries)
            }
            _ => raw.to_vec(),
        };
        match option {
            NBD_OPT_STRUCTURED_REPLY if mode == ReplyMode::Simple => mode = ReplyMode::Structured,
            NBD_OPT_EXTENDED_HEADERS => mode = ReplyMode::Extended,
            _ => {}
        }
        put_option(&mut stream, option, &data);
    }
    if let [_, rest @ ..] = short {
        stream.extend(super::requests::compose(rest, mode));
    }
    stream
}
