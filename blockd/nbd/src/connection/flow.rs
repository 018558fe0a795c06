//! Flow control of a connection: queued replies, running requests, and the bytes charged for both.

use std::sync::Arc;
use std::time::Instant;

use crate::connection::budget::{Budget, Ticket, Wake};
use crate::connection::buffer_pool::BufferPool;
use crate::connection::remote_budgets::RemoteBudgets;
use crate::connection::remote_requests::RemoteRequests;
use crate::connection::reply_queue::{BATCH_BYTES, ReplyQueue};
use crate::protocol::reply::{ReplyTo, errno_text};
use crate::server::worker::{Job, Work};

/// Charge of each request in addition to its payload, in bytes: it bounds the number of requests in flight.
pub(crate) const REQUEST_OVERHEAD_BYTES: u64 = 4096;
/// In-flight bytes of a connection that are not charged to shared budgets, so slow connections cannot stall
/// others.
pub(crate) const GUARANTEED_BYTES: u64 = 256 << 10;
/// Maximum number of requests of a connection that workers execute or have queued. It keeps slow requests
/// with a small charge from occupying all workers.
pub(crate) const MAX_JOBS: usize = 64;
/// Maximum number for remote-backed devices, where waiting requests occupy no worker.
pub(crate) const MAX_REMOTE_JOBS: usize = 512;

/// Resources for handling an event of a connection.
pub(crate) struct Context<'a> {
    pub(crate) pool: &'a mut BufferPool,
    pub(crate) budget: &'a Budget,
    pub(crate) remote_budgets: &'a RemoteBudgets,
    /// Creates callbacks that wake this thread when a waiting charge fits.
    pub(crate) wake: &'a dyn Fn() -> Wake,
    /// Work for threads that may block.
    pub(crate) work: &'a mut Vec<Work>,
    /// Number of accepted requests.
    pub(crate) requests: &'a mut usize,
    pub(crate) now: Instant,
    /// End of the previous wait for completions: the earliest arrival of input received at `now`, unless it
    /// waited in the socket.
    pub(crate) previous_wait_at: Instant,
}

/// Shared budget of remote data, with the ticket of a wait.
struct Reservation {
    budget: Arc<Budget>,
    ticket: Option<Ticket>,
}

/// Flow control of a connection.
pub(crate) struct Flow {
    pub(crate) reply_queue: ReplyQueue,
    /// Number of outstanding jobs.
    pub(crate) jobs: usize,
    max_jobs: usize,
    /// Requests that wait for remote data.
    pub(crate) remote_requests: Arc<RemoteRequests<Job>>,
    charged_bytes: u64,
    /// Ticket while a request waits for the total budget.
    ticket: Option<Ticket>,
    /// Budgets of remote data, charged before the total budget.
    remote_budgets: Vec<Reservation>,
    /// Number of remote budgets that the waiting request has charged, and the bytes.
    remote_charge: (usize, u64),
    limit_bytes: u64,
    /// Earliest possible arrival of the processed input.
    pub(crate) received_at: Instant,
}

impl Flow {
    pub(crate) fn new(limit_bytes: u64, now: Instant) -> Self {
        Self {
            reply_queue: ReplyQueue::default(),
            jobs: 0,
            max_jobs: MAX_JOBS,
            remote_requests: Arc::default(),
            charged_bytes: 0,
            ticket: None,
            remote_budgets: Vec::new(),
            remote_charge: (0, 0),
            limit_bytes,
            received_at: now,
        }
    }

    /// Returns true if the maximum number of jobs is outstanding.
    pub(crate) fn is_at_job_limit(&self) -> bool {
        self.jobs >= self.max_jobs
    }

    /// Adds the budgets of a remote-backed device. Must precede the first request.
    pub(crate) fn extend_for_remote_data(&mut self, budgets: Vec<Arc<Budget>>) {
        assert!(
            self.charged_bytes == 0 && self.remote_budgets.is_empty(),
            "budgets precede the first request"
        );
        self.max_jobs = MAX_REMOTE_JOBS;
        self.remote_budgets =
            budgets.into_iter().map(|budget| Reservation { budget, ticket: None }).collect();
    }

    /// Returns true if requests may wait for remote data.
    pub(crate) fn may_wait_for_remote_data(&self) -> bool {
        !self.remote_budgets.is_empty() && !self.remote_requests.is_closed()
    }

    /// Charges a request. Returns false if it must wait for a release; a charge within the guaranteed share
    /// waits only for releases of its own connection.
    pub(crate) fn admit(&mut self, bytes: u64, cx: &Context<'_>) -> bool {
        assert!(bytes >= REQUEST_OVERHEAD_BYTES, "a request is charged");
        let after = self.charged_bytes.saturating_add(bytes);
        if self.charged_bytes != 0 && after > self.limit_bytes {
            return false;
        }
        let shared_bytes = shared(after) - shared(self.charged_bytes);
        if shared_bytes == 0 {
            self.stop_waiting(cx.budget);
        } else if !self.charge_remote(shared_bytes, cx)
            || !cx.budget.charge(shared_bytes, &mut self.ticket, cx.wake)
        {
            return false;
        }
        self.remote_charge = (0, 0);
        assert!(
            after <= self.limit_bytes.max(bytes),
            "a connection stays within its limit, except for a single request"
        );
        assert!(self.ticket.is_none(), "an admitted request does not wait");
        self.charged_bytes = after;
        true
    }

    /// Charges the remote budgets in order; returns false if one must be waited for. Earlier charges are kept
    /// during the wait, without a deadlock: holders of a later budget do not wait for an earlier one.
    fn charge_remote(&mut self, bytes: u64, cx: &Context<'_>) -> bool {
        let (count, taken_bytes) = self.remote_charge;
        assert!(count <= self.remote_budgets.len(), "each remote budget is charged once");
        if taken_bytes != bytes {
            // Replies sent since the last attempt have reduced the shared part of the charge. It cannot have
            // grown, because the charge of a request is fixed at its first attempt.
            assert!(count == 0 || bytes <= taken_bytes, "the charge of a waiting request is fixed");
            for reservation in self.remote_budgets.iter().take(count) {
                reservation.budget.release(taken_bytes.saturating_sub(bytes));
            }
            self.remote_charge = (count, bytes);
        }
        while let Some(reservation) = self.remote_budgets.get_mut(self.remote_charge.0) {
            if !reservation.budget.charge(bytes, &mut reservation.ticket, cx.wake) {
                return false;
            }
            self.remote_charge.0 += 1;
        }
        true
    }

    fn release_shared(&self, bytes: u64, budget: &Budget) {
        budget.release(bytes);
        for reservation in &self.remote_budgets {
            reservation.budget.release(bytes);
        }
    }

    /// Releases the bytes of a request.
    pub(crate) fn release(&mut self, bytes: u64, cx: &Context<'_>) {
        assert!(bytes <= self.charged_bytes, "only charged bytes are released");
        let before = self.charged_bytes;
        self.charged_bytes -= bytes;
        self.release_shared(shared(before) - shared(self.charged_bytes), cx.budget);
    }

    /// Leaves the queues of all budgets, and releases the charges of the waiting request.
    pub(crate) fn stop_waiting(&mut self, budget: &Budget) {
        budget.leave(&mut self.ticket);
        let (count, bytes) = std::mem::take(&mut self.remote_charge);
        for (index, reservation) in self.remote_budgets.iter_mut().enumerate() {
            reservation.budget.leave(&mut reservation.ticket);
            if index < count {
                reservation.budget.release(bytes);
            }
        }
        debug_assert!(
            self.remote_budgets.iter().all(|reservation| reservation.ticket.is_none()),
            "no wait is left"
        );
    }

    /// Returns true if other connections wait for budget.
    pub(crate) fn others_wait(&self, budget: &Budget) -> bool {
        budget.is_short_for_others(self.ticket)
            || self
                .remote_budgets
                .iter()
                .any(|reservation| reservation.budget.is_short_for_others(reservation.ticket))
    }

    /// Ends waiting requests and releases all charges.
    pub(crate) fn release_all(&mut self, budget: &Budget) {
        self.remote_requests.abandon();
        self.stop_waiting(budget);
        let charged_bytes = std::mem::take(&mut self.charged_bytes);
        self.release_shared(shared(charged_bytes), budget);
    }

    /// Returns true if the charges bound the memory of queued replies. The buffer of a large reply is up to
    /// twice as long as its data; batches and the negotiation use a few additional buffers.
    pub(crate) fn is_bounded(&self) -> bool {
        self.reply_queue.held_bytes() as u64 <= 2 * self.charged_bytes + 4 * BATCH_BYTES as u64
    }

    #[cfg(test)]
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// Queues a job.
    pub(crate) fn start(&mut self, work: Work, cx: &mut Context<'_>) {
        debug_assert!(self.jobs < self.max_jobs, "the number of jobs is bounded");
        self.jobs += 1;
        cx.work.push(work);
    }

    /// Queues a reply without data.
    pub(crate) fn reply(&mut self, to: &ReplyTo, errno: u32, charge_bytes: u64, cx: &mut Context<'_>) {
        if errno == 0 {
            self.reply_queue.push_small([&to.success(), &[]], charge_bytes, cx.pool);
        } else {
            self.reply_queue.push_small([&to.error(errno, errno_text(errno)), &[]], charge_bytes, cx.pool);
        }
    }
}

/// Returns the part of a connection's charge that counts against shared budgets.
fn shared(charged_bytes: u64) -> u64 {
    charged_bytes.saturating_sub(GUARANTEED_BYTES)
}
