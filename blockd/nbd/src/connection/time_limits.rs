//! Time limits of a connection, and the watch for clients that disconnect while nothing is received.

use std::io;
use std::time::Instant;

use super::flow::Context;
use super::transfer_deadline::TransferDeadline;
use super::{Connection, Life, Phase};

/// Payload being received, whose memory others may wait for.
pub(super) struct Payload {
    pub(super) number: u64,
    pub(super) deadline: TransferDeadline,
}

impl Connection {
    /// Checks the timeouts.
    pub(crate) fn check_time(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let what = if self.life == Life::Open {
                "the negotiation took too long"
            } else {
                "the end took too long"
            };
            self.abort(what, cx);
            return;
        }
        if self.idle_until().is_some_and(|until| until <= now) {
            if self.is_idle() {
                self.drain("it was idle for too long", cx);
            } else {
                self.active_at = now;
            }
        }
        let (sending, receiving) = (self.life != Life::Aborted, self.life == Life::Open && self.is_receiving);
        let payload_deadline = self.payload.as_mut().map(|payload| &mut payload.deadline);
        let transfers = [
            (
                self.send_deadline.as_mut().filter(|_| sending),
                "the client does not read its replies, and others wait for their memory",
            ),
            (
                payload_deadline.filter(|_| receiving),
                "the client does not send the payload that it announced, and others wait for its memory",
            ),
        ];
        let stalled = transfers.into_iter().find_map(|(deadline, why)| {
            let deadline = deadline.filter(|deadline| deadline.ends_at() <= now)?;
            let others_wait = self.flow.others_wait(cx.budget);
            if !others_wait {
                deadline.renew(now);
            }
            others_wait.then_some(why)
        });
        if let Some(why) = stalled {
            self.abort(why, cx);
        }
    }

    /// Returns the time of the next [`check_time`](Self::check_time).
    pub(crate) fn next_check(&self) -> Option<Instant> {
        let sending = self.send_deadline.as_ref().filter(|_| self.life != Life::Aborted);
        let receiving = self.payload.as_ref().filter(|_| self.life == Life::Open && self.is_receiving);
        let checks = [
            self.deadline,
            self.idle_until(),
            sending.map(TransferDeadline::ends_at),
            receiving.map(|payload| payload.deadline.ends_at()),
        ];
        checks.into_iter().flatten().min()
    }

    /// Returns the end of the idle timeout.
    fn idle_until(&self) -> Option<Instant> {
        // Kernel devices of this host may be idle and must stay connected.
        let is_waiting =
            self.life == Life::Open && matches!(self.phase, Phase::Transmission(_)) && !self.client.is_local;
        let timeout = self.config.idle_timeout.filter(|_| is_waiting)?;
        self.active_at.checked_add(timeout)
    }

    fn is_idle(&self) -> bool {
        self.flow.jobs == 0 && self.sending.is_none() && !self.full && self.is_flushed()
    }

    /// Returns true if no receive is in progress because too much is in flight: the disconnect of a local
    /// client, or of one with remote data, must be detected in another way.
    pub(crate) fn is_to_be_watched(&self) -> bool {
        let is_awaited = self.client.is_local || self.flow.may_wait_for_remote_data();
        self.life == Life::Open && self.full && is_awaited
    }

    /// Processes a hang-up. A local client is gone; another one may be, so its remote data is not waited for.
    pub(crate) fn hung_up(&mut self, result: io::Result<()>, cx: &mut Context<'_>) {
        // If input follows, the end of the stream follows behind it.
        if !self.is_to_be_watched() {
            return;
        }
        match result {
            Ok(()) if self.client.is_local => self.abort("the client closed the connection", cx),
            Ok(()) => self.flow.remote_reads.recall(),
            Err(error) => self.abort(&format!("it cannot be seen whether the client goes: {error}"), cx),
        }
    }
}
