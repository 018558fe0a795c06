//! State machine of the negotiation, without I/O: bytes in, replies and decisions out. Requests to
//! the export catalog are returned as a [`Lookup`], which may be resolved on another thread.

use std::borrow::Cow;

use crate::device::ExportError;
use crate::protocol::constants::*;
use crate::protocol::lookup::LIST_PART;
pub use crate::protocol::lookup::{Lookup, LookupResult, OpenedExport};
use crate::protocol::meta_context::{self, MetaContext, MetaRequest};
use crate::protocol::options::{self, InfoRequest, Refusal};
use crate::protocol::reply::ReplyMode;
use crate::protocol::tls_option::{self, TlsStage, TlsVerdict};

/// Length of the replies prepared for one page of the list, exceeded by at most one export.
const LIST_PART_BYTES: usize = 128 << 10;
/// Reason for closing: `NBD_OPT_EXPORT_NAME` has no error reply.
const EXPORT_UNAVAILABLE: &str = "the export of NBD_OPT_EXPORT_NAME is not available";

/// Negotiation of a connection.
#[derive(Debug)]
pub struct Handshake {
    state: HandshakeState,
    no_zeroes: bool,
    fixed_newstyle: bool,
    mode: ReplyMode,
    /// Selected metadata contexts and their export.
    contexts: Option<(String, Vec<MetaContext>)>,
    tls: TlsStage,
}

#[derive(Debug)]
enum HandshakeState {
    ClientFlags,
    Option,
    /// Discarding the data of an oversized option.
    Discard {
        option: u32,
        len_bytes: u32,
        remaining_bytes: u32,
    },
    /// Waiting for a page of the list from the catalog.
    List {
        /// Number of listed exports.
        skip: usize,
    },
    /// A page of the list was written; the next one is requested once it is sent.
    ListMore {
        skip: usize,
    },
    ExportName,
    Info {
        option: u32,
        request: InfoRequest,
    },
    Contexts {
        option: u32,
        request: MetaRequest,
    },
    Ended,
}

/// Next step of a negotiation.
#[derive(Debug)]
pub enum Step {
    /// More bytes are needed; nothing was consumed.
    NeedInput,
    /// Bytes were consumed and replies may have been written: call again once the replies are sent.
    Continue,
    /// Resolve the lookup and pass its result to [`Handshake::resume`]; no input is accepted until then.
    Lookup(Lookup),
    /// Send the output, then enter transmission.
    Transmit(OpenedExport, NegotiatedExport),
    /// Send the output, start TLS, and call [`Handshake::secured`].
    StartTls,
    /// Send the output, then close the connection for this reason.
    Close(Cow<'static, str>),
}

/// Negotiated terms of the transmission phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NegotiatedExport {
    /// Kind of headers and replies.
    pub mode: ReplyMode,
    /// Contexts of block status.
    pub contexts: Vec<MetaContext>,
}

impl Handshake {
    /// Creates a negotiation that waits for the client flags.
    #[must_use]
    pub fn with_tls(tls: TlsStage) -> Self {
        Self {
            state: HandshakeState::ClientFlags,
            no_zeroes: false,
            fixed_newstyle: false,
            mode: ReplyMode::Simple,
            contexts: None,
            tls,
        }
    }

    /// Restarts the negotiation over TLS. Earlier options may be injected, so only the client flags are kept.
    pub fn secured(&mut self) {
        assert!(matches!(self.state, HandshakeState::Ended), "TLS starts after STARTTLS");
        assert!(matches!(self.tls, TlsStage::Offered | TlsStage::Required), "TLS starts once, if offered");
        let (no_zeroes, fixed_newstyle) = (self.no_zeroes, self.fixed_newstyle);
        *self = Self {
            state: HandshakeState::Option,
            no_zeroes,
            fixed_newstyle,
            ..Self::with_tls(TlsStage::Active)
        };
    }

    /// Returns the greeting of the server.
    #[must_use]
    pub fn greeting() -> [u8; GREETING_LEN_BYTES] {
        let mut bytes = [0; GREETING_LEN_BYTES];
        bytes[0..8].copy_from_slice(&NBD_MAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[16..18].copy_from_slice(&(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES).to_be_bytes());
        bytes
    }

    /// Processes at most one message at the front of `input` and appends the replies to `out`; returns the
    /// number of consumed bytes. Messages have up to [`MAX_OPTION_LEN_BYTES`] + 16 bytes, so `input` must be
    /// able to hold as many.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Step) {
        match &mut self.state {
            HandshakeState::ClientFlags => match input.first_chunk::<4>() {
                None => (0, Step::NeedInput),
                Some(bytes) => (4, self.client_flags(u32::from_be_bytes(*bytes))),
            },
            HandshakeState::Option => self.option(input, out),
            HandshakeState::Discard { option, len_bytes, remaining_bytes } => {
                if input.is_empty() {
                    return (0, Step::NeedInput);
                }
                let consumed = input.len().min(*remaining_bytes as usize);
                assert!(consumed > 0, "an option without data is not discarded");
                // At most `remaining_bytes`, which is a u32.
                *remaining_bytes -= consumed as u32;
                if *remaining_bytes == 0 {
                    let message = format!(
                        "option data of {len_bytes} bytes exceeds the limit of {MAX_OPTION_LEN_BYTES} bytes"
                    );
                    options::put_refusal(out, *option, &Refusal::new(NBD_REP_ERR_TOO_BIG, message));
                    self.state = HandshakeState::Option;
                }
                (consumed, Step::Continue)
            }
            HandshakeState::ListMore { skip } => {
                let skip = *skip;
                self.state = HandshakeState::List { skip };
                (0, Step::Lookup(Lookup::List { skip }))
            }
            HandshakeState::List { .. }
            | HandshakeState::ExportName
            | HandshakeState::Info { .. }
            | HandshakeState::Contexts { .. }
            | HandshakeState::Ended => (0, Step::NeedInput),
        }
    }

    fn client_flags(&mut self, flags: u32) -> Step {
        let unknown = flags & !(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES);
        if unknown != 0 {
            return self.close(format!("unknown client flags {unknown:#x}"));
        }
        self.fixed_newstyle = flags & NBD_FLAG_C_FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & NBD_FLAG_C_NO_ZEROES != 0;
        self.state = HandshakeState::Option;
        Step::Continue
    }

    fn option(&mut self, input: &[u8], out: &mut Vec<u8>) -> (usize, Step) {
        let Some(header) = input.first_chunk::<OPTION_HEADER_LEN_BYTES>() else {
            return (0, Step::NeedInput);
        };
        let Some((option, len_bytes)) = options::decode_header(header) else {
            return (OPTION_HEADER_LEN_BYTES, self.close("wrong magic in an option request"));
        };
        if !self.fixed_newstyle && option != NBD_OPT_EXPORT_NAME {
            return (
                OPTION_HEADER_LEN_BYTES,
                self.close(format!("option {option} requires fixed newstyle negotiation")),
            );
        }
        if len_bytes > MAX_OPTION_LEN_BYTES {
            // NBD_OPT_EXPORT_NAME has no error reply.
            if option == NBD_OPT_EXPORT_NAME || len_bytes > MAX_OPTION_DISCARD_BYTES {
                return (
                    OPTION_HEADER_LEN_BYTES,
                    self.close(format!("option data of {len_bytes} bytes is too long")),
                );
            }
            self.clear_contexts(option);
            assert!(len_bytes <= MAX_OPTION_DISCARD_BYTES, "a longer option ends the connection");
            self.state = HandshakeState::Discard { option, len_bytes, remaining_bytes: len_bytes };
            return (OPTION_HEADER_LEN_BYTES, Step::Continue);
        }
        let total_len_bytes = OPTION_HEADER_LEN_BYTES + len_bytes as usize;
        let Some(data) = input.get(OPTION_HEADER_LEN_BYTES..total_len_bytes) else {
            return (0, Step::NeedInput);
        };
        (total_len_bytes, or_refuse(self.process_option(option, data, out), option, out))
    }

    fn process_option(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Result<Step, Refusal> {
        match tls_option::validate(self.tls, option, data.len())? {
            TlsVerdict::Pass => {}
            TlsVerdict::Start => {
                options::put_reply(out, option, NBD_REP_ACK, &[]);
                // No input is accepted until TLS is active.
                self.state = HandshakeState::Ended;
                return Ok(Step::StartTls);
            }
            TlsVerdict::Close => {
                return Ok(self.close("NBD_OPT_EXPORT_NAME was sent before the required TLS"));
            }
        }
        Ok(match option {
            NBD_OPT_EXPORT_NAME => {
                let Ok(name) = options::decode_name(data) else {
                    return Ok(self.close(EXPORT_UNAVAILABLE));
                };
                self.state = HandshakeState::ExportName;
                Step::Lookup(Lookup::Open { name, keep_device: true, describe: false })
            }
            NBD_OPT_ABORT => {
                options::put_reply(out, option, NBD_REP_ACK, &[]);
                self.close("the client aborted the negotiation")
            }
            NBD_OPT_LIST if data.is_empty() => {
                self.state = HandshakeState::List { skip: 0 };
                Step::Lookup(Lookup::List { skip: 0 })
            }
            NBD_OPT_LIST => return Err(Refusal::new(NBD_REP_ERR_INVALID, "NBD_OPT_LIST takes no data")),
            NBD_OPT_INFO | NBD_OPT_GO => {
                let request = options::decode_info_request(data)?;
                let lookup = Lookup::Open {
                    name: request.name.clone(),
                    keep_device: option == NBD_OPT_GO,
                    describe: request.wants_name || request.wants_description,
                };
                self.state = HandshakeState::Info { option, request };
                Step::Lookup(lookup)
            }
            NBD_OPT_STRUCTURED_REPLY | NBD_OPT_EXTENDED_HEADERS => {
                self.negotiate_mode(option, data)?;
                options::put_reply(out, option, NBD_REP_ACK, &[]);
                Step::Continue
            }
            NBD_OPT_LIST_META_CONTEXT | NBD_OPT_SET_META_CONTEXT => {
                let request = self.meta_request(option, data)?;
                let lookup = Lookup::Contexts { name: request.name.clone() };
                self.state = HandshakeState::Contexts { option, request };
                Step::Lookup(lookup)
            }
            _ => return Err(Refusal::new(NBD_REP_ERR_UNSUP, format!("option {option} is not supported"))),
        })
    }

    fn negotiate_mode(&mut self, option: u32, data: &[u8]) -> Result<(), Refusal> {
        if !data.is_empty() {
            return Err(Refusal::new(NBD_REP_ERR_INVALID, "the option takes no data"));
        }
        match (option, self.mode) {
            (NBD_OPT_EXTENDED_HEADERS, _) => self.mode = ReplyMode::Extended,
            (_, ReplyMode::Extended) => {
                let message = "extended headers are negotiated and include structured replies";
                return Err(Refusal::new(NBD_REP_ERR_EXT_HEADER_REQD, message));
            }
            _ => self.mode = ReplyMode::Structured,
        }
        Ok(())
    }

    fn meta_request(&mut self, option: u32, data: &[u8]) -> Result<MetaRequest, Refusal> {
        self.clear_contexts(option);
        if self.mode == ReplyMode::Simple {
            let message = "metadata contexts require structured replies or extended headers";
            return Err(Refusal::new(NBD_REP_ERR_INVALID, message));
        }
        meta_context::decode_meta_request(data)
    }

    /// Ends the previous context selection, even if the new one fails.
    fn clear_contexts(&mut self, option: u32) {
        if option == NBD_OPT_SET_META_CONTEXT {
            self.contexts = None;
        }
    }

    fn contexts_reply(
        &mut self,
        option: u32,
        request: MetaRequest,
        result: Result<Vec<String>, ExportError>,
        out: &mut Vec<u8>,
    ) -> Result<Step, Refusal> {
        let contexts = result.map_err(|error| refuse_export(&request.name, &error))?;
        if option == NBD_OPT_LIST_META_CONTEXT {
            for name in meta_context::list(&contexts, &request.queries) {
                meta_context::put_context(out, option, 0, name);
            }
        } else {
            let chosen = meta_context::select(contexts, &request.queries);
            for context in &chosen {
                meta_context::put_context(out, option, context.id, &context.name);
            }
            self.contexts = Some((request.name, chosen));
        }
        options::put_reply(out, option, NBD_REP_ACK, &[]);
        Ok(Step::Continue)
    }

    /// Returns the negotiated terms for an export. Contexts selected for another export do not apply.
    fn negotiated(&mut self, name: &str) -> NegotiatedExport {
        let chosen = self.contexts.take().filter(|(chosen_for, _)| chosen_for == name);
        NegotiatedExport {
            mode: self.mode,
            contexts: chosen.map(|(_, contexts)| contexts).unwrap_or_default(),
        }
    }

    /// Continues with the result of the last [`Step::Lookup`]. A result of another kind has no effect.
    pub fn resume(&mut self, result: LookupResult, out: &mut Vec<u8>) -> Step {
        match (std::mem::replace(&mut self.state, HandshakeState::Option), result) {
            (HandshakeState::List { skip }, LookupResult::List(list)) => {
                let mut listed = 0;
                for info in &list {
                    if out.len() >= LIST_PART_BYTES {
                        break;
                    }
                    options::put_server(out, info);
                    listed += 1;
                }
                assert!(listed > 0 || list.is_empty(), "each page of a list writes an export");
                if listed < list.len() || list.len() >= LIST_PART {
                    self.state = HandshakeState::ListMore { skip: skip + listed };
                } else {
                    options::put_reply(out, NBD_OPT_LIST, NBD_REP_ACK, &[]);
                }
                Step::Continue
            }
            (HandshakeState::ExportName, LookupResult::Open(Ok(opened))) => {
                out.extend_from_slice(&opened.size_bytes.to_be_bytes());
                let flags = options::transmission_flags(opened.read_only, self.mode);
                out.extend_from_slice(&flags.to_be_bytes());
                if !self.no_zeroes {
                    out.extend_from_slice(&[0; EXPORT_NAME_ZEROES_LEN_BYTES]);
                }
                self.state = HandshakeState::Ended;
                let negotiated = self.negotiated(&opened.name);
                Step::Transmit(opened, negotiated)
            }
            (HandshakeState::ExportName, LookupResult::Open(Err(_))) => self.close(EXPORT_UNAVAILABLE),
            (HandshakeState::Info { option, request }, LookupResult::Open(result)) => {
                or_refuse(self.info_reply(option, &request, result, out), option, out)
            }
            (HandshakeState::Contexts { option, request }, LookupResult::Contexts(result)) => {
                or_refuse(self.contexts_reply(option, request, result, out), option, out)
            }
            (state, _) => {
                self.state = state;
                Step::NeedInput
            }
        }
    }

    fn info_reply(
        &mut self,
        option: u32,
        request: &InfoRequest,
        result: Result<OpenedExport, ExportError>,
        out: &mut Vec<u8>,
    ) -> Result<Step, Refusal> {
        let opened = result.map_err(|error| refuse_export(&request.name, &error))?;
        let flags = options::transmission_flags(opened.read_only, self.mode);
        options::put_info_export(out, option, opened.size_bytes, flags);
        if let Some(info) = &opened.info {
            if request.wants_name {
                options::put_info_text(out, option, NBD_INFO_NAME, &info.name);
            }
            if request.wants_description && !info.description.is_empty() {
                options::put_info_text(out, option, NBD_INFO_DESCRIPTION, &info.description);
            }
        }
        options::put_info_block_size(out, option);
        options::put_reply(out, option, NBD_REP_ACK, &[]);
        if option == NBD_OPT_GO {
            debug_assert!(self.fixed_newstyle, "only fixed newstyle clients send NBD_OPT_GO");
            self.state = HandshakeState::Ended;
            let negotiated = self.negotiated(&opened.name);
            return Ok(Step::Transmit(opened, negotiated));
        }
        Ok(Step::Continue)
    }

    fn close(&mut self, reason: impl Into<Cow<'static, str>>) -> Step {
        self.state = HandshakeState::Ended;
        Step::Close(reason.into())
    }
}

/// Writes the error reply of a refused option.
fn or_refuse(result: Result<Step, Refusal>, option: u32, out: &mut Vec<u8>) -> Step {
    result.unwrap_or_else(|refusal| {
        options::put_refusal(out, option, &refusal);
        Step::Continue
    })
}

fn refuse_export(name: &str, error: &ExportError) -> Refusal {
    match error {
        ExportError::Unknown if name.is_empty() => {
            Refusal::new(NBD_REP_ERR_UNKNOWN, "no default export: specify a name")
        }
        ExportError::Unknown => Refusal::new(NBD_REP_ERR_UNKNOWN, format!("no export {name:?}")),
        ExportError::Denied { reason } => {
            Refusal::new(NBD_REP_ERR_POLICY, format!("access to export {name:?} is denied: {reason}"))
        }
        ExportError::Unavailable { reason } => {
            Refusal::new(NBD_REP_ERR_POLICY, format!("export {name:?} is not available: {reason}"))
        }
    }
}
