//! Flow control of a connection: queued replies, running requests, and the bytes charged for both.

use std::sync::Arc;
use std::time::Instant;

use crate::connection::budget::{Budget, Ticket, Wake};
use crate::connection::buffer_pool::BufferPool;
use crate::connection::outbox::{BATCH_BYTES, Outbox};
use crate::connection::remote_budgets::RemoteBudgets;
use crate::connection::remote_reads::RemoteReads;
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
    pub(crate) looked_before: Instant,
}

/// Shared budget of remote data, with the ticket of a wait.
struct Reservation {
    budget: Arc<Budget>,
    ticket: Option<Ticket>,
}

/// Flow control of a connection.
pub(crate) struct Flow {
    pub(crate) outbox: Outbox,
    /// Number of outstanding jobs.
    pub(crate) jobs: usize,
    most_jobs: usize,
    /// Requests that wait for remote data.
    pub(crate) remote_reads: Arc<RemoteReads<Job>>,
    charged_bytes: u64,
    /// Ticket while a request waits for the total budget.
    ticket: Option<Ticket>,
    /// Budgets of remote data, charged before the total budget.
    levies: Vec<Reservation>,
    /// Number of remote budgets that the waiting request has charged, and the bytes.
    paid: (usize, u64),
    limit_bytes: u64,
    /// Earliest possible arrival of the processed input.
    pub(crate) received_at: Instant,
}

impl Flow {
    pub(crate) fn new(limit_bytes: u64, now: Instant) -> Self {
        Self {
            outbox: Outbox::default(),
            jobs: 0,
            most_jobs: MAX_JOBS,
            remote_reads: Arc::default(),
            charged_bytes: 0,
            ticket: None,
            levies: Vec::new(),
            paid: (0, 0),
            limit_bytes,
            received_at: now,
        }
    }

    /// Returns true if the maximum number of jobs is outstanding.
    pub(crate) fn has_all_jobs(&self) -> bool {
        self.jobs >= self.most_jobs
    }

    /// Adds the budgets of a remote-backed device. Must precede the first request.
    pub(crate) fn extend_for_remote_data(&mut self, budgets: Vec<Arc<Budget>>) {
        assert!(self.charged_bytes == 0 && self.levies.is_empty(), "budgets precede the first request");
        self.most_jobs = MAX_REMOTE_JOBS;
        self.levies = budgets.into_iter().map(|budget| Reservation { budget, ticket: None }).collect();
    }

    /// Returns true if requests may wait for remote data.
    pub(crate) fn may_wait_for_remote_data(&self) -> bool {
        !self.levies.is_empty() && !self.remote_reads.is_recalled()
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
        } else if !self.pay(shared_bytes, cx) || !cx.budget.charge(shared_bytes, &mut self.ticket, cx.wake) {
            return false;
        }
        self.paid = (0, 0);
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
    fn pay(&mut self, bytes: u64, cx: &Context<'_>) -> bool {
        let (count, paid_bytes) = self.paid;
        assert!(count <= self.levies.len(), "each remote budget is charged once");
        if paid_bytes != bytes {
            // Replies sent since the last attempt have reduced the shared part of the charge. It cannot have
            // grown, because the charge of a request is fixed at its first attempt.
            assert!(count == 0 || bytes <= paid_bytes, "the charge of a waiting request is fixed");
            for levy in self.levies.iter().take(count) {
                levy.budget.release(paid_bytes.saturating_sub(bytes));
            }
            self.paid = (count, bytes);
        }
        while let Some(levy) = self.levies.get_mut(self.paid.0) {
            if !levy.budget.charge(bytes, &mut levy.ticket, cx.wake) {
                return false;
            }
            self.paid.0 += 1;
        }
        true
    }

    fn release_shared(&self, bytes: u64, budget: &Budget) {
        budget.release(bytes);
        for levy in &self.levies {
            levy.budget.release(bytes);
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
        let (count, bytes) = std::mem::take(&mut self.paid);
        for (index, levy) in self.levies.iter_mut().enumerate() {
            levy.budget.leave(&mut levy.ticket);
            if index < count {
                levy.budget.release(bytes);
            }
        }
        debug_assert!(self.levies.iter().all(|levy| levy.ticket.is_none()), "no wait is left");
    }

    /// Returns true if other connections wait for budget.
    pub(crate) fn others_wait(&self, budget: &Budget) -> bool {
        budget.is_short_for_others(self.ticket)
            || self.levies.iter().any(|levy| levy.budget.is_short_for_others(levy.ticket))
    }

    /// Ends waiting requests and releases all charges.
    pub(crate) fn release_all(&mut self, budget: &Budget) {
        self.remote_reads.abandon();
        self.stop_waiting(budget);
        let charged_bytes = std::mem::take(&mut self.charged_bytes);
        self.release_shared(shared(charged_bytes), budget);
    }

    /// Returns true if the charges bound the memory of queued replies. The buffer of a large reply is up to
    /// twice as long as its data; batches and the negotiation use a few additional buffers.
    pub(crate) fn is_bounded(&self) -> bool {
        self.outbox.held_bytes() as u64 <= 2 * self.charged_bytes + 4 * BATCH_BYTES as u64
    }

    #[cfg(test)]
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// Queues a job.
    pub(crate) fn start(&mut self, work: Work, cx: &mut Context<'_>) {
        debug_assert!(self.jobs < self.most_jobs, "the number of jobs is bounded");
        self.jobs += 1;
        cx.work.push(work);
    }

    /// Queues a reply without data.
    pub(crate) fn reply(&mut self, to: &ReplyTo, errno: u32, charge_bytes: u64, cx: &mut Context<'_>) {
        if errno == 0 {
            self.outbox.push_small([&to.success(), &[]], charge_bytes, cx.pool);
        } else {
            self.outbox.push_small([&to.error(errno, errno_text(errno)), &[]], charge_bytes, cx.pool);
        }
    }
}

/// Returns the part of a connection's charge that counts against shared budgets.
fn shared(charged_bytes: u64) -> u64 {
    charged_bytes.saturating_sub(GUARANTEED_BYTES)
}
