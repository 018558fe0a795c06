//! TLS session of a connection, without I/O: it decrypts received bytes and encrypts replies.
//!
//! Input is decrypted on demand only, and replies are encrypted into the next send buffer only, so a session
//! holds at most one buffer for each direction.

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};

use crate::connection::buffer_pool::{Buffer, BufferPool};
use crate::connection::reply_queue::{Chunk, ReplyQueue};
use crate::server::ring::Transfer;
use crate::tls::incoming::{ENCRYPTED_INPUT_BYTES, Incoming};
use crate::tls::names::certificate_names;

/// Maximum size of a send in bytes, and the size of a send with few bytes.
const SEND_BYTES: usize = 256 << 10;
const SMALL_SEND_BYTES: usize = 16 << 10;
/// Maximum plaintext of a record, in bytes.
const RECORD_BYTES: usize = 16 << 10;
/// Maximum size of a record in addition to its plaintext, and of a key update before it, in bytes.
const RECORD_OVERHEAD_BYTES: usize = 128;

/// Result of a decryption.
#[derive(Debug)]
pub(crate) enum Decrypted {
    /// Plaintext of this length, in bytes.
    Plain(usize),
    /// More input is needed.
    NeedInput,
    /// The client sent `close_notify`.
    Closed,
}

/// Failure to encrypt replies, with its reason.
#[derive(Debug)]
pub(crate) struct SealError(pub(crate) &'static str);

/// TLS session of a connection.
pub(crate) struct TlsSession {
    session: UnbufferedServerConnection,
    incoming: Incoming,
    /// Decrypted plaintext that is not consumed yet, at most the content of the receive buffer.
    plain: Vec<u8>,
    plain_start: usize,
    /// Records of the TLS protocol itself, to be sent before later encrypted data.
    records: Vec<u8>,
    /// Rest of a chunk that exceeds one send.
    sealing: Option<Chunk>,
    is_established: bool,
    /// Input was received since the last handshake step.
    has_new_input: bool,
    /// The client has closed its side; rustls reports that once.
    peer_closed: bool,
    /// Nothing more can be encrypted: `close_notify` was queued, or the session failed.
    is_over: bool,
}

/// Encryption requested from [`TlsSession::drive`].
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
    /// Encrypted data of this length, in bytes.
    Sealed(usize),
    /// Protocol records must be sent first.
    Records,
    /// The data does not fit into the send.
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
            has_new_input: false,
            peer_closed: false,
            is_over: false,
        }
    }

    /// Starts a receive, unless decrypted plaintext is unconsumed.
    pub(crate) fn start_receive(&mut self) -> Option<Transfer> {
        if self.plain_start < self.plain.len() { None } else { self.incoming.start_receive() }
    }

    /// Ends a receive.
    pub(crate) fn end_receive(&mut self, buffer: Buffer, len_bytes: usize) {
        self.incoming.end_receive(buffer, len_bytes);
        self.has_new_input = true;
    }

    /// Returns true while the handshake is incomplete: input is for
    /// [`advance_handshake`](Self::advance_handshake).
    pub(crate) fn is_handshaking(&self) -> bool {
        self.session.is_handshaking() && !self.is_over
    }

    /// Returns true if [`advance_handshake`](Self::advance_handshake) has new input.
    pub(crate) fn has_new_input(&self) -> bool {
        self.has_new_input
    }

    /// Advances the handshake with the received bytes. It computes keys and signatures, which may take more
    /// than a millisecond.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn advance_handshake(&mut self) -> Result<Decrypted, rustls::Error> {
        self.has_new_input = false;
        // Requests received together with the end of the handshake are kept for later calls of `open`.
        self.open(&mut [])
    }

    /// Ends the session without an alert.
    pub(crate) fn abandon(&mut self) {
        self.is_over = true;
        self.records.clear();
    }

    /// Returns true if the receive buffer is full of unconsumed bytes: a handshake message is too long.
    pub(crate) fn is_input_full(&self) -> bool {
        self.incoming.unread().len() == ENCRYPTED_INPUT_BYTES
    }

    /// Decrypts up to one record into `plain`.
    ///
    /// # Errors
    /// The client violated the protocol or is refused; the next send has the alert.
    pub(crate) fn open(&mut self, plain: &mut [u8]) -> Result<Decrypted, rustls::Error> {
        assert!(self.plain_start <= self.plain.len(), "plaintext is consumed once");
        let kept = &self.plain[self.plain_start..];
        if !kept.is_empty() {
            let len_bytes = kept.len().min(plain.len());
            plain[..len_bytes].copy_from_slice(&kept[..len_bytes]);
            self.plain_start += len_bytes;
            return Ok(Decrypted::Plain(len_bytes));
        }
        self.plain.clear();
        self.plain_start = 0;
        if self.peer_closed {
            return Ok(Decrypted::Closed);
        }
        match self.drive(Some(plain), Seal::Nothing) {
            Ok(Driven::Plain(len_bytes)) => Ok(Decrypted::Plain(len_bytes)),
            Ok(Driven::Closed) => Ok(Decrypted::Closed),
            Ok(_) => Ok(Decrypted::NeedInput),
            Err(error) => {
                self.take_alert();
                self.is_over = true;
                // The rest of a reply can no longer be encrypted, and must not delay the alert.
                self.sealing = None;
                Err(error)
            }
        }
    }

    /// Moves the alert of a failed session to the records. rustls yields it before it processes input, which
    /// would fail again.
    fn take_alert(&mut self) {
        while self.session.wants_write() {
            let UnbufferedStatus { state, .. } = self.session.process_tls_records(self.incoming.unread_mut());
            // Pending output precedes the processing of input.
            let Ok(ConnectionState::EncodeTlsData(mut data)) = state else {
                return;
            };
            put_record(&mut data, &mut self.records);
        }
    }

    /// Returns the names in the client certificate, once, after the handshake.
    pub(crate) fn established(&mut self) -> Option<Vec<String>> {
        if self.is_established || self.session.is_handshaking() {
            return None;
        }
        self.is_established = true;
        let certificate = self.session.peer_certificates().and_then(<[_]>::first);
        Some(certificate.map(|der| certificate_names(der)).unwrap_or_default())
    }

    /// Returns version and cipher suite, for the log.
    pub(crate) fn describe(&self) -> String {
        let version = self.session.protocol_version();
        let suite = self.session.negotiated_cipher_suite().map(|suite| suite.suite());
        format!(
            "{} {}",
            version.and_then(|v| v.as_str()).unwrap_or("?"),
            suite.and_then(|s| s.as_str()).unwrap_or("?")
        )
    }

    /// Encrypts the next send: as many replies as fit. With `finish`, `close_notify` follows the last reply.
    ///
    /// # Errors
    /// The session can no longer encrypt.
    pub(crate) fn seal(
        &mut self,
        reply_queue: &mut ReplyQueue,
        pool: &mut BufferPool,
        finish: bool,
    ) -> Result<Option<Chunk>, SealError> {
        let mut next = self.sealing.take();
        if !self.is_over && next.is_none() {
            next = reply_queue.pop();
        }
        let finish = finish && !self.is_over;
        if next.is_none() && self.records.is_empty() && !finish {
            return Ok(None);
        }
        let small_bytes = self.records.len() + next.as_ref().map_or(0, |chunk| chunk.range.len());
        let is_small = small_bytes + 3 * RECORD_OVERHEAD_BYTES <= SMALL_SEND_BYTES && reply_queue.is_empty();
        let capacity_bytes = if is_small { SMALL_SEND_BYTES } else { SEND_BYTES };
        let mut sealed =
            Sealed { buffer: pool.take(capacity_bytes), capacity_bytes, len_bytes: 0, charge_bytes: 0 };
        let result = self.fill(&mut sealed, next, reply_queue, pool, finish);
        if let Err(error) = result {
            pool.give(sealed.buffer);
            return Err(error);
        }
        assert!(sealed.len_bytes <= sealed.capacity_bytes, "a send is within its buffer");
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
        reply_queue: &mut ReplyQueue,
        pool: &mut BufferPool,
        finish: bool,
    ) -> Result<(), SealError> {
        self.flush_records(sealed);
        while let Some(mut chunk) =
            next.take().or_else(|| if self.is_over { None } else { reply_queue.pop() })
        {
            let mut written = self.seal_some(sealed, &mut chunk)?;
            if written.is_none() && !self.records.is_empty() {
                // Protocol records, such as a key update, precede the data.
                self.flush_records(sealed);
                written = self.seal_some(sealed, &mut chunk)?;
            }
            if chunk.range.is_empty() {
                sealed.charge_bytes += chunk.charge_bytes;
                pool.give(chunk.buffer);
                continue;
            }
            assert!(self.sealing.is_none(), "one chunk is encrypted at a time");
            self.sealing = Some(chunk);
            if written.is_none() {
                return if sealed.len_bytes == 0 {
                    Err(SealError("internal error: a TLS record does not fit into an empty send"))
                } else {
                    Ok(())
                };
            }
            next = self.sealing.take();
        }
        if finish && self.records.is_empty() {
            // Before the end of the handshake there is no session to close.
            self.is_over = !matches!(self.seal_into(sealed, Seal::Close), Ok(None));
        }
        self.flush_records(sealed);
        Ok(())
    }

    /// Appends as much of a chunk as fits; `None` if nothing fits or records must precede it.
    fn seal_some(&mut self, sealed: &mut Sealed, chunk: &mut Chunk) -> Result<Option<usize>, SealError> {
        let len_bytes = sealed.plain_room_bytes().min(chunk.range.len());
        if len_bytes == 0 || !self.records.is_empty() {
            return Ok(None);
        }
        let range = chunk.range.start..chunk.range.start + len_bytes;
        let plain = &chunk.buffer.framed_mut()[range];
        let written = self.seal_into(sealed, |room| Seal::Data(plain, room))?;
        if written.is_some() {
            assert!(chunk.range.start + len_bytes <= chunk.range.end, "a chunk is encrypted once");
            chunk.range.start += len_bytes;
        }
        Ok(written)
    }

    /// Appends encrypted data; `None` if it does not fit or records must precede it.
    fn seal_into<'a>(
        &mut self,
        sealed: &'a mut Sealed,
        seal: impl Fn(&'a mut [u8]) -> Seal<'a>,
    ) -> Result<Option<usize>, SealError> {
        let Sealed { buffer, capacity_bytes, len_bytes, .. } = sealed;
        let room = &mut buffer.framed_mut()[*len_bytes..*capacity_bytes];
        match self.drive(None, seal(room)) {
            Ok(Driven::Sealed(written)) => {
                assert!(
                    written > 0 && *len_bytes + written <= *capacity_bytes,
                    "a record is within the send"
                );
                *len_bytes += written;
                Ok(Some(written))
            }
            Ok(Driven::NoRoom | Driven::Records) => Ok(None),
            Ok(Driven::Exhausted) => Err(SealError("the TLS session keys are exhausted")),
            Ok(_) => Err(SealError("the TLS session is not established")),
            Err(_) => Err(SealError("the TLS session failed")),
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

    /// Returns true if nothing more can be encrypted.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Returns true if no encrypted or partially encrypted output is pending.
    pub(crate) fn is_flushed(&self) -> bool {
        self.sealing.is_none() && self.records.is_empty()
    }

    /// Ends the session and drops its pending output.
    pub(crate) fn clear(&mut self, pool: &mut BufferPool) {
        self.is_over = true;
        self.records.clear();
        if let Some(chunk) = self.sealing.take() {
            pool.give(chunk.buffer);
        }
    }

    /// Returns the buffers to the pool.
    pub(crate) fn discard(mut self, pool: &mut BufferPool) {
        self.clear(pool);
        self.incoming.discard(pool);
    }

    /// Processes received records until plaintext is available, data is encrypted, or more input is needed.
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
                    // Empty records are skipped.
                    if taken_bytes > 0 {
                        driven = Some(Driven::Plain(taken_bytes));
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => put_record(&mut data, &mut self.records),
                // `records` precede later encrypted data.
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
                // More input is needed; early data is not offered.
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
        // A failed encode would send zeroes.
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

/// Send that is being filled.
struct Sealed {
    buffer: Buffer,
    capacity_bytes: usize,
    len_bytes: usize,
    /// Bytes charged by the replies whose end is in this send.
    charge_bytes: u64,
}

impl Sealed {
    /// Returns the length of plaintext that fits, in bytes.
    fn plain_room_bytes(&self) -> usize {
        assert!(self.len_bytes <= self.capacity_bytes, "a send is within its buffer");
        let room_bytes = self.capacity_bytes - self.len_bytes;
        let whole = room_bytes / (RECORD_BYTES + RECORD_OVERHEAD_BYTES);
        let rest = room_bytes % (RECORD_BYTES + RECORD_OVERHEAD_BYTES);
        whole * RECORD_BYTES + rest.saturating_sub(RECORD_OVERHEAD_BYTES).min(RECORD_BYTES)
    }
}
