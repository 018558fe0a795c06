//! Timeouts of a connection, and the detection of a disconnect while no receive is in progress.

use std::io;
use std::time::Instant;

use super::flow::Context;
use super::transfer_deadline::TransferDeadline;
use super::{Connection, Life, Phase};

impl Connection {
    /// Checks the timeouts.
    pub(crate) fn check_time(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let reason =
                if self.life == Life::Open { "the negotiation timed out" } else { "the drain timed out" };
            self.abort(reason, cx);
            return;
        }
        if self.idle_until().is_some_and(|until| until <= now) {
            if self.is_idle() {
                self.drain("the connection was idle", cx);
            } else {
                self.active_at = now;
            }
        }
        let (sending, receiving) = (self.life != Life::Aborted, self.life == Life::Open && self.is_receiving);
        let payload_deadline = self.payload.as_mut().map(|payload| &mut payload.deadline);
        let transfers = [
            (
                self.send_deadline.as_mut().filter(|_| sending),
                "the client does not read its replies while other connections wait for memory",
            ),
            (
                payload_deadline.filter(|_| receiving),
                "the client does not send an announced payload while other connections wait for memory",
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
        // Idle kernel devices of this host must stay connected.
        let is_waiting =
            self.life == Life::Open && matches!(self.phase, Phase::Transmission(_)) && !self.client.is_local;
        let timeout = self.config.idle_timeout.filter(|_| is_waiting)?;
        self.active_at.checked_add(timeout)
    }

    fn is_idle(&self) -> bool {
        self.flow.jobs == 0 && self.sending.is_none() && !self.is_throttled && self.is_flushed()
    }

    /// Returns true if an in-flight limit has stopped receives, and the disconnect of the client must be
    /// detected by a poll: for local clients, and for requests that may wait for remote data.
    pub(crate) fn needs_hang_up_poll(&self) -> bool {
        let needs_poll = self.client.is_local || self.flow.may_wait_for_remote_data();
        self.life == Life::Open && self.is_throttled && needs_poll
    }

    /// Processes a hang-up. A local client has disconnected. Another client may have closed one side only, so
    /// only its requests for remote data end.
    pub(crate) fn hung_up(&mut self, result: io::Result<()>, cx: &mut Context<'_>) {
        // A resumed receive reaches the end of the stream after the remaining input.
        if !self.needs_hang_up_poll() {
            return;
        }
        match result {
            Ok(()) if self.client.is_local => self.abort("the client closed the connection", cx),
            Ok(()) => self.flow.remote_requests.close_waiting(),
            Err(error) => self.abort(&format!("poll for a disconnect failed: {error}"), cx),
        }
    }
}
