//! Negotiation phase of a connection.

use std::sync::Arc;

use super::flow::Context;
use super::transmission::Transmission;
use super::{Connection, Life, Phase, Security};
use crate::protocol::handshake::{LookupResult, Step};
use crate::server::worker::Work;

impl Connection {
    pub(super) fn negotiate(&mut self, cx: &mut Context<'_>) {
        while let Phase::Handshake(handshake) = &mut self.phase {
            if self.life != Life::Open || self.awaits_flush || self.flow.jobs > 0 {
                return;
            }
            let mut out = Vec::new();
            let (consumed_bytes, step) = handshake.feed(self.receive_buffer.unread(), &mut out);
            debug_assert!(consumed_bytes > 0 || !matches!(step, Step::Continue), "the negotiation advances");
            self.receive_buffer.consume(consumed_bytes);
            if matches!(step, Step::NeedInput) {
                return;
            }
            self.step(step, &out, cx);
        }
    }

    pub(super) fn lookup_done(&mut self, result: LookupResult, cx: &mut Context<'_>) {
        assert!(self.flow.jobs == 0, "the negotiation has one lookup at a time");
        if let Phase::Handshake(handshake) = &mut self.phase {
            let mut out = Vec::new();
            let step = handshake.resume(result, &mut out);
            self.step(step, &out, cx);
            self.take_input(cx);
        }
    }

    fn step(&mut self, step: Step, out: &[u8], cx: &mut Context<'_>) {
        if !out.is_empty() {
            self.flow.reply_queue.push_bytes(out, cx.pool);
            self.awaits_flush = true;
        }
        match step {
            Step::NeedInput | Step::Continue => {}
            Step::Lookup(lookup) => self.flow.start(Work::Lookup(lookup, Arc::clone(&self.client)), cx),
            // Plaintext after STARTTLS may be injected.
            Step::StartTls if !self.receive_buffer.unread().is_empty() => {
                self.abort("plaintext was received between STARTTLS and its acknowledgement", cx);
            }
            Step::StartTls => self.security = Security::Starting,
            Step::Close(reason) => self.drain(&reason, cx),
            Step::Transmit(opened, negotiated) => {
                let Some(device) = opened.device else {
                    return self.drain("internal error: an opened export has no device", cx);
                };
                self.span.record("export", opened.name.as_str());
                tracing::info!(
                    parent: &self.span,
                    size_bytes = opened.size_bytes,
                    read_only = opened.read_only,
                    "transmission started"
                );
                assert!(self.flow.jobs == 0, "transmission starts after the last lookup");
                self.deadline = None;
                if device.may_be_remote() {
                    self.flow.extend_for_remote_data(cx.remote_budgets.of(device.source_key()));
                }
                let transmission = Transmission::new(device, opened.size_bytes, opened.read_only, negotiated);
                self.phase = Phase::Transmission(Box::new(transmission));
            }
        }
    }
}
