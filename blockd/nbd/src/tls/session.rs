//! TLS session of a connection, without I/O: it converts received bytes to plaintext and replies to bytes to
//! send.
//!
//! Plaintext is decrypted only on demand, and replies are encrypted only into the next send buffer; so a
//! session holds one buffer of each kind for any client.

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};

use crate::connection::buffer_pool::{Buffer, BufferPool};
use crate::connection::outbox::{Chunk, Outbox};
use crate::server::ring::Transfer;
use crate::tls::incoming::{CIPHER_INBOX_BYTES, Incoming};
use crate::tls::names::certificate_names;

/// Maximum size of one send, and of the buffer for small replies.
const SEALED_BYTES: usize = 256 << 10;
const SEALED_FEW_BYTES: usize = 16 << 10;
/// The most plaintext of one record.
const RECORD_BYTES: usize = 16 << 10;
/// Room for what a record has beside its plaintext, and for a key update before it.
const RECORD_OVERHEAD_BYTES: usize = 128;

/// Result of received bytes.
#[derive(Debug)]
pub(crate) enum Opened {
    /// So many bytes of plaintext.
    Plain(usize),
    /// More bytes are needed.
    NeedInput,
    /// The client has said that it sends nothing more.
    Closed,
}

/// Replies cannot be encrypted.
#[derive(Debug)]
pub(crate) struct SealError(pub(crate) &'static str);

/// One session.
pub(crate) struct TlsSession {
    session: UnbufferedServerConnection,
    incoming: Incoming,
    /// Plaintext that had to be decrypted and was not taken yet: never more than was received into one
    /// buffer.
    plain: Vec<u8>,
    plain_start: usize,
    /// Records of the session itself, to be sent before anything that is encrypted later.
    records: Vec<u8>,
    /// Rest of a chunk that did not fit into one send.
    sealing: Option<Chunk>,
    is_established: bool,
    /// Bytes were received that the handshake has not seen.
    has_news: bool,
    /// The client has closed its side. The session reports that once, at the next call.
    peer_closed: bool,
    /// Nothing more can be encrypted: our end was announced, or the session is broken.
    is_over: bool,
}

/// Data to encrypt.
enum Seal<'a> {
    Nothing,
    Data(&'a [u8], &'a mut [u8]),
    Close(&'a mut [u8]),
}

/// Result of [`TlsSession::drive`].
enum Driven {
    Plain(usize),
    Idle,
    Closed,
    /// So many bytes were written.
    Sealed(usize),
    /// Records must be sent first.
    Records,
    /// It does not fit.
    NoRoom,
    Exhausted,
}

impl TlsSession {
    pub(crate) fn new(session: UnbufferedServerConnection, pool: &mut BufferPool) -> Self {
        Self {
            session,
            incoming: Incoming::new(pool),
            plain: Vec::new(),
            plain_start: 0,
            records: Vec::new(),
            sealing: None,
            is_established: false,
            has_news: false,
            peer_closed: false,
            is_over: false,
        }
    }

    /// Starts a receive, unless what was received last is still to be taken.
    pub(crate) fn start_receive(&mut self) -> Option<Transfer> {
        if self.plain_start < self.plain.len() { None } else { self.incoming.start_receive() }
    }

    /// A receive is over.
    pub(crate) fn end_receive(&mut self, buffer: Buffer, len_bytes: usize) {
        self.incoming.end_receive(buffer, len_bytes);
        self.has_news = true;
    }

    /// The handshake is not done: what was received is for [`shake_hands`](Self::shake_hands), if there is
    /// anything new.
    pub(crate) fn is_handshaking(&self) -> bool {
        self.session.is_handshaking() && !self.is_over
    }

    /// Returns true if [`shake_hands`](Self::shake_hands) would make progress.
    pub(crate) fn has_news(&self) -> bool {
        self.has_news
    }

    /// Takes the handshake as far as what was received goes. This computes keys and signatures, for a
    /// millisecond and more.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn shake_hands(&mut self) -> Result<Opened, rustls::Error> {
        self.has_news = false;
        // Requests that came with the end of the handshake are kept for `open`.
        self.open(&mut [])
    }

    /// The session cannot be used any more; nothing is said about it.
    pub(crate) fn abandon(&mut self) {
        self.is_over = true;
        self.records.clear();
    }

    /// The session needs more bytes than there is room for: a handshake message without end.
    pub(crate) fn is_clogged(&self) -> bool {
        self.incoming.unread().len() == CIPHER_INBOX_BYTES
    }

    /// Decrypts up to one record into `plain`.
    ///
    /// # Errors
    /// The client broke the protocol or is refused; the alert is sent next.
    pub(crate) fn open(&mut self, plain: &mut [u8]) -> Result<Opened, rustls::Error> {
        assert!(self.plain_start <= self.plain.len(), "plaintext is taken once");
        let kept = &self.plain[self.plain_start..];
        if !kept.is_empty() {
            let len_bytes = kept.len().min(plain.len());
            plain[..len_bytes].copy_from_slice(&kept[..len_bytes]);
            self.plain_start += len_bytes;
            return Ok(Opened::Plain(len_bytes));
        }
        self.plain.clear();
        self.plain_start = 0;
        if self.peer_closed {
            return Ok(Opened::Closed);
        }
        match self.drive(Some(plain), Seal::Nothing) {
            Ok(Driven::Plain(len_bytes)) => Ok(Opened::Plain(len_bytes)),
            Ok(Driven::Closed) => Ok(Opened::Closed),
            Ok(_) => Ok(Opened::NeedInput),
            Err(error) => {
                self.take_alert();
                self.is_over = true;
                // The rest of a reply cannot be encrypted any more, and must not keep the alert back.
                self.sealing = None;
                Err(error)
            }
        }
    }

    /// Puts what the session has to say about its failure to the records. It must not see its input again for
    /// that: it would fail again.
    fn take_alert(&mut self) {
        while self.session.wants_write() {
            let UnbufferedStatus { state, .. } = self.session.process_tls_records(self.incoming.unread_mut());
            // What is to be sent comes before any input.
            let Ok(ConnectionState::EncodeTlsData(mut data)) = state else {
                return;
            };
            put_record(&mut data, &mut self.records);
        }
    }

    /// Returns the names in the client's certificate once the handshake is complete.
    pub(crate) fn established(&mut self) -> Option<Vec<String>> {
        if self.is_established || self.session.is_handshaking() {
            return None;
        }
        self.is_established = true;
        let certificate = self.session.peer_certificates().and_then(<[_]>::first);
        Some(certificate.map(|der| certificate_names(der)).unwrap_or_default())
    }

    /// Version and cipher suite, for the log.
    pub(crate) fn describe(&self) -> String {
        let version = self.session.protocol_version();
        let suite = self.session.negotiated_cipher_suite().map(|suite| suite.suite());
        format!(
            "{} {}",
            version.and_then(|v| v.as_str()).unwrap_or("?"),
            suite.and_then(|s| s.as_str()).unwrap_or("?")
        )
    }

    /// The next bytes to send: as many replies as one send takes. With `finish`, the announcement of our end
    /// goes behind the last of them.
    ///
    /// # Errors
    /// When nothing can be encrypted any more.
    pub(crate) fn seal(
        &mut self,
        outbox: &mut Outbox,
        pool: &mut BufferPool,
        finish: bool,
    ) -> Result<Option<Chunk>, SealError> {
        let mut next = self.sealing.take();
        if !self.is_over && next.is_none() {
            next = outbox.pop();
        }
        let finish = finish && !self.is_over;
        if next.is_none() && self.records.is_empty() && !finish {
            return Ok(None);
        }
        let few_bytes = self.records.len() + next.as_ref().map_or(0, |chunk| chunk.range.len());
        let is_few = few_bytes + 3 * RECORD_OVERHEAD_BYTES <= SEALED_FEW_BYTES && outbox.is_empty();
        let capacity_bytes = if is_few { SEALED_FEW_BYTES } else { SEALED_BYTES };
        let mut sealed =
            Sealed { buffer: pool.take(capacity_bytes), capacity_bytes, len_bytes: 0, charge_bytes: 0 };
        let result = self.fill(&mut sealed, next, outbox, pool, finish);
        if let Err(error) = result {
            pool.give(sealed.buffer);
            return Err(error);
        }
        assert!(sealed.len_bytes <= sealed.capacity_bytes, "a send stays in its buffer");
        if sealed.len_bytes == 0 {
            pool.give(sealed.buffer);
            return Ok(None);
        }
        Ok(Some(Chunk {
            buffer: sealed.buffer,
            range: 0..sealed.len_bytes,
            charge_bytes: sealed.charge_bytes,
        }))
    }

    fn fill(
        &mut self,
        sealed: &mut Sealed,
        mut next: Option<Chunk>,
        outbox: &mut Outbox,
        pool: &mut BufferPool,
        finish: bool,
    ) -> Result<(), SealError> {
        self.flush_records(sealed);
        while let Some(mut chunk) = next.take().or_else(|| if self.is_over { None } else { outbox.pop() }) {
            let mut written = self.seal_some(sealed, &mut chunk)?;
            if written.is_none() && !self.records.is_empty() {
                // The session had something to say first.
                self.flush_records(sealed);
                written = self.seal_some(sealed, &mut chunk)?;
            }
            if chunk.range.is_empty() {
                sealed.charge_bytes += chunk.charge_bytes;
                pool.give(chunk.buffer);
                continue;
            }
            assert!(self.sealing.is_none(), "one reply is sealed at a time");
            self.sealing = Some(chunk);
            if written.is_none() {
                return if sealed.len_bytes == 0 { Err(SealError("a record does not fit")) } else { Ok(()) };
            }
            next = self.sealing.take();
        }
        if finish && self.records.is_empty() {
            // Before the handshake is done there is nothing that could be closed.
            self.is_over = !matches!(self.seal_into(sealed, Seal::Close), Ok(None));
        }
        self.flush_records(sealed);
        Ok(())
    }

    /// Encrypts as much of a chunk as there is room for, behind what is there; `None` if there is none, or
    /// records must go first.
    fn seal_some(&mut self, sealed: &mut Sealed, chunk: &mut Chunk) -> Result<Option<usize>, SealError> {
        let len_bytes = sealed.plain_room_bytes().min(chunk.range.len());
        if len_bytes == 0 || !self.records.is_empty() {
            return Ok(None);
        }
        let range = chunk.range.start..chunk.range.start + len_bytes;
        let plain = &chunk.buffer.framed_mut()[range];
        let written = self.seal_into(sealed, |room| Seal::Data(plain, room))?;
        if written.is_some() {
            assert!(chunk.range.start + len_bytes <= chunk.range.end, "a reply is sealed once");
            chunk.range.start += len_bytes;
        }
        Ok(written)
    }

    /// Encrypts behind what is there; `None` if it does not fit.
    fn seal_into<'a>(
        &mut self,
        sealed: &'a mut Sealed,
        what: impl Fn(&'a mut [u8]) -> Seal<'a>,
    ) -> Result<Option<usize>, SealError> {
        let Sealed { buffer, capacity_bytes, len_bytes, .. } = sealed;
        let room = &mut buffer.framed_mut()[*len_bytes..*capacity_bytes];
        match self.drive(None, what(room)) {
            Ok(Driven::Sealed(written)) => {
                assert!(written > 0 && *len_bytes + written <= *capacity_bytes, "a record lies in the send");
                *len_bytes += written;
                Ok(Some(written))
            }
            Ok(Driven::NoRoom | Driven::Records) => Ok(None),
            Ok(Driven::Exhausted) => Err(SealError("the session's keys are used up")),
            Ok(_) => Err(SealError("the session is not established")),
            Err(_) => Err(SealError("the client broke the session")),
        }
    }

    fn flush_records(&mut self, sealed: &mut Sealed) {
        let len_bytes = self.records.len().min(sealed.capacity_bytes - sealed.len_bytes);
        let room = &mut sealed.buffer.framed_mut()[sealed.len_bytes..][..len_bytes];
        for (place, byte) in room.iter_mut().zip(self.records.drain(..len_bytes)) {
            *place = byte;
        }
        sealed.len_bytes += len_bytes;
    }

    /// Nothing more can be encrypted: our end was announced, or the session is broken.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Everything that was to be sent has been handed out.
    pub(crate) fn is_flushed(&self) -> bool {
        self.sealing.is_none() && self.records.is_empty()
    }

    /// Forgets what is to be sent.
    pub(crate) fn clear(&mut self, pool: &mut BufferPool) {
        self.is_over = true;
        self.records.clear();
        if let Some(chunk) = self.sealing.take() {
            pool.give(chunk.buffer);
        }
    }

    /// Gives the buffers up.
    pub(crate) fn discard(mut self, pool: &mut BufferPool) {
        self.clear(pool);
        self.incoming.discard(pool);
    }

    /// Lets the session work on what was received until there is plaintext, or it can encrypt, or it needs
    /// more.
    fn drive(&mut self, mut plain: Option<&mut [u8]>, mut seal: Seal<'_>) -> Result<Driven, rustls::Error> {
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.session.process_tls_records(self.incoming.unread_mut());
            let mut driven = None;
            match state? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    let mut taken_bytes = 0;
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        let room = plain.as_mut().map_or(&mut [][..], |plain| &mut plain[taken_bytes..]);
                        let len_bytes = room.len().min(record.payload.len());
                        let (now, later) = record.payload.split_at(len_bytes);
                        room[..len_bytes].copy_from_slice(now);
                        taken_bytes += len_bytes;
                        self.plain.extend_from_slice(later);
                    }
                    // An empty record is nothing.
                    if taken_bytes > 0 {
                        driven = Some(Driven::Plain(taken_bytes));
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => put_record(&mut data, &mut self.records),
                // The records go out before anything that is encrypted from now on.
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::WriteTraffic(mut traffic) => {
                    driven = Some(match &mut seal {
                        Seal::Nothing => Driven::Idle,
                        _ if !self.records.is_empty() => Driven::Records,
                        Seal::Data(data, room) => sealed(&traffic.encrypt(data, room)),
                        Seal::Close(room) => sealed(&traffic.queue_close_notify(room)),
                    });
                }
                ConnectionState::PeerClosed => {
                    self.peer_closed = true;
                    if matches!(seal, Seal::Nothing) {
                        driven = Some(Driven::Closed);
                    }
                }
                ConnectionState::Closed => driven = Some(Driven::Closed),
                // Early data is not offered.
                _ => driven = Some(Driven::Idle),
            }
            self.incoming.consume(discard);
            if let Some(driven) = driven {
                return Ok(driven);
            }
        }
    }
}

fn put_record(data: &mut EncodeTlsData<'_, ServerConnectionData>, records: &mut Vec<u8>) {
    let start = records.len();
    if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
        records.resize(start + size.required_size, 0);
        // Zeroes would be sent in its place.
        let encoded = data.encode(&mut records[start..]);
        assert!(encoded.is_ok_and(|len| len == size.required_size), "a record has the announced length");
    }
}

fn sealed(result: &Result<usize, EncryptError>) -> Driven {
    match result {
        Ok(len_bytes) => Driven::Sealed(*len_bytes),
        Err(EncryptError::InsufficientSize(_)) => Driven::NoRoom,
        Err(EncryptError::EncryptExhausted) => Driven::Exhausted,
    }
}

/// A send in the making.
struct Sealed {
    buffer: Buffer,
    capacity_bytes: usize,
    len_bytes: usize,
    /// Bytes charged by the replies that are completely in it or end in it.
    charge_bytes: u64,
}

impl Sealed {
    /// Returns the size of plaintext that fits, in bytes.
    fn plain_room_bytes(&self) -> usize {
        assert!(self.len_bytes <= self.capacity_bytes, "a send stays in its buffer");
        let room_bytes = self.capacity_bytes - self.len_bytes;
        let whole = room_bytes / (RECORD_BYTES + RECORD_OVERHEAD_BYTES);
        let rest = room_bytes % (RECORD_BYTES + RECORD_OVERHEAD_BYTES);
        whole * RECORD_BYTES + rest.saturating_sub(RECORD_OVERHEAD_BYTES).min(RECORD_BYTES)
    }
}
