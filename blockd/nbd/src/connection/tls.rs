//! TLS of a connection: decryption of its input, encryption of its replies, handshakes on the handshake
//! thread.

use std::sync::Arc;

use super::buffer_pool::BufferPool;
use super::flow::Context;
use super::reply_queue::Chunk;
use super::{Connection, Life, Phase, Security};
use crate::device::Client;
use crate::server::worker::Work;
use crate::tls::session::{Decrypted, TlsSession};

impl Connection {
    /// Decrypts and processes input while the phase accepts it.
    pub(super) fn decrypt(&mut self, cx: &mut Context<'_>) {
        while self.life == Life::Open && !self.is_throttled && !self.awaits_flush {
            if self.start_handshake_job(cx) {
                return;
            }
            let Some(mut target) = self.input_target() else {
                return;
            };
            let Security::Tls(session) = &mut self.security else {
                return;
            };
            let opened = session.open(&mut target.buffer.framed_mut()[target.range]);
            let len_bytes = if let Ok(Decrypted::Plain(len_bytes)) = opened { len_bytes } else { 0 };
            self.put_input(target.buffer, len_bytes, cx);
            match self.opened(opened, cx) {
                true => self.advance(cx),
                false => return,
            }
        }
    }

    /// Passes the session to the handshake thread if its handshake has new input. Its computation would delay
    /// other connections of the ring thread. Returns true while the handshake is incomplete.
    fn start_handshake_job(&mut self, cx: &mut Context<'_>) -> bool {
        match std::mem::replace(&mut self.security, Security::InHandshakeJob) {
            Security::Tls(session) if session.is_handshaking() && session.has_new_input() => {
                assert!(
                    !self.is_receiving && self.sending.is_none(),
                    "no transfer is in progress during a handshake job"
                );
                self.flow.start(Work::Handshake(session), cx);
                true
            }
            security => {
                let waits = matches!(&security, Security::Tls(session) if session.is_handshaking());
                self.security = security;
                waits
            }
        }
    }

    /// Processes the end of a handshake job.
    pub(super) fn handshake_done(
        &mut self,
        session: Box<TlsSession>,
        opened: Result<Decrypted, rustls::Error>,
        cx: &mut Context<'_>,
    ) {
        assert!(matches!(self.security, Security::InHandshakeJob), "the handshake thread owned the session");
        self.security = Security::Tls(session);
        match self.life {
            Life::Open => {
                self.opened(opened, cx);
                self.take_input(cx);
            }
            Life::Draining => {}
            Life::Aborted => self.clear_session(cx.pool),
        }
    }

    pub(super) fn clear_session(&mut self, pool: &mut BufferPool) {
        if let Security::Tls(session) = &mut self.security {
            session.clear(pool);
        }
    }

    /// Processes a decryption result; returns true for plaintext.
    pub(super) fn opened(&mut self, opened: Result<Decrypted, rustls::Error>, cx: &mut Context<'_>) -> bool {
        let Security::Tls(session) = &mut self.security else {
            return false;
        };
        if let Some(certificate_names) = session.established() {
            let suite = session.describe();
            let span = &self.span;
            tracing::debug!(parent: span, suite, names = ?certificate_names, "TLS handshake completed");
            self.client = Arc::new(Client { certificate_names, ..Client::clone(&self.client) });
        }
        match opened {
            Ok(Decrypted::Plain(_)) => return true,
            Ok(Decrypted::NeedInput) if session.is_input_full() => {
                self.abort("a TLS handshake message exceeds the buffer", cx);
            }
            Ok(Decrypted::NeedInput) => {}
            Ok(Decrypted::Closed) => self.drain("the client closed the TLS session", cx),
            Err(error) => {
                tracing::info!(parent: &self.span, %error, "the TLS session failed");
                // Only the alert can be sent.
                self.flow.reply_queue.clear(cx.pool);
                self.drain("the TLS session failed", cx);
            }
        }
        false
    }

    /// Encrypts the next send; `close_notify` follows the last replies of an ending connection.
    pub(super) fn encrypt(&mut self, pool: &mut BufferPool) -> Option<Chunk> {
        let Security::Tls(session) = &mut self.security else {
            return None;
        };
        let is_last = self.life == Life::Draining && self.flow.jobs == 0;
        match session.seal(&mut self.flow.reply_queue, pool, is_last) {
            Ok(chunk) => chunk,
            Err(error) => {
                self.drop_all(error.0, pool);
                None
            }
        }
    }

    /// Starts the TLS session after the acknowledgement of STARTTLS.
    pub(super) fn start_tls(&mut self, cx: &mut Context<'_>) {
        assert!(self.is_flushed() && !self.is_receiving, "TLS starts after its acknowledgement");
        let Some(identity) = &self.config.tls else {
            return self.abort("internal error: TLS was offered without an identity", cx);
        };
        match identity.accept() {
            Ok(session) => {
                self.security = Security::Tls(Box::new(TlsSession::new(session, cx.pool)));
                if let Phase::Handshake(handshake) = &mut self.phase {
                    handshake.secured();
                }
            }
            Err(error) => self.abort(&format!("start of the TLS session failed: {error}"), cx),
        }
    }
}
