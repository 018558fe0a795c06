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

/// Charge of each request beside its payload: bounds the number of requests in flight.
pub(crate) const REQUEST_OVERHEAD_BYTES: u64 = 4096;
/// Guaranteed in-flight bytes of a connection, even if the total budget is exhausted: slow connections cannot
/// stall others.
pub(crate) const GUARANTEED_BYTES: u64 = 256 << 10;
/// Maximum number of a connection's requests that wait for or occupy workers. Some take long and cost few
/// bytes: more of them would occupy all workers.
pub(crate) const MAX_JOBS: usize = 64;
/// The same for remote-backed devices: requests for remote data occupy no worker and must not delay others.
pub(crate) const MAX_REMOTE_JOBS: usize = 512;

/// Resources for handling an event of a connection.
pub(crate) struct Context<'a> {
    pub(crate) pool: &'a mut BufferPool,
    pub(crate) budget: &'a Budget,
    pub(crate) remote_budgets: &'a RemoteBudgets,
    /// Wakes this thread when a connection can take budget.
    pub(crate) wake: &'a dyn Fn() -> Wake,
    /// Work for threads that may block.
    pub(crate) work: &'a mut Vec<Work>,
    /// Number of accepted requests.
    pub(crate) requests: &'a mut usize,
    pub(crate) now: Instant,
    /// Lower bound of the arrival of input received at `now`, unless it waited in the socket.
    pub(crate) looked_before: Instant,
}

/// Additional budget.
struct Reservation {
    budget: Arc<Budget>,
    ticket: Option<Ticket>,
}

/// Flow control of a connection.
pub(crate) struct Flow {
    pub(crate) outbox: Outbox,
    /// Outstanding work.
    pub(crate) jobs: usize,
    most_jobs: usize,
    /// Requests waiting for remote data.
    pub(crate) remote_reads: Arc<RemoteReads<Job>>,
    charged_bytes: u64,
    /// Ticket while a request waits for the total budget.
    ticket: Option<Ticket>,
    /// Additional budgets, charged before the total one.
    levies: Vec<Reservation>,
    /// Number of additional budgets that the waiting request has charged, and the bytes.
    paid: (usize, u64),
    limit_bytes: u64,
    /// Lower bound of the receipt of the processed input.
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

    /// Returns true if the maximum of work is outstanding.
    pub(crate) fn has_all_jobs(&self) -> bool {
        self.jobs >= self.most_jobs
    }

    /// Adds budgets for remote data. Call it before the first request.
    pub(crate) fn extend_for_remote_data(&mut self, budgets: Vec<Arc<Budget>>) {
        assert!(self.charged_bytes == 0 && self.levies.is_empty(), "budgets precede the first request");
        self.most_jobs = MAX_REMOTE_JOBS;
        self.levies = budgets.into_iter().map(|budget| Reservation { budget, ticket: None }).collect();
    }

    /// Returns true if requests may wait for remote data.
    pub(crate) fn may_wait_for_remote_data(&self) -> bool {
        !self.levies.is_empty() && !self.remote_reads.is_recalled()
    }

    /// Charges a request, or returns false: then it waits for a release. Up to the guaranteed share it never
    /// waits.
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
            "a connection has its limit, or one request, in flight"
        );
        assert!(self.ticket.is_none(), "an admitted request does not wait");
        self.charged_bytes = after;
        true
    }

    /// Charges the additional budgets in order, or waits at one of them. Charges are kept during the wait:
    /// holders of the later budget do not wait for the earlier one.
    fn pay(&mut self, bytes: u64, cx: &Context<'_>) -> bool {
        let (count, paid_bytes) = self.paid;
        assert!(count <= self.levies.len(), "each additional budget is charged once");
        if paid_bytes != bytes {
            // Replies sent meanwhile have reduced the request's shared part. It cannot have grown: the charge
            // of a request is fixed at its first attempt.
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

    /// Stops waiting for budget.
    pub(crate) fn stop_waiting(&mut self, budget: &Budget) {
        budget.leave(&mut self.ticket);
        let (count, bytes) = std::mem::take(&mut self.paid);
        for (index, levy) in self.levies.iter_mut().enumerate() {
            levy.budget.leave(&mut levy.ticket);
            if index < count {
                levy.budget.release(bytes);
            }
        }
        debug_assert!(self.levies.iter().all(|levy| levy.ticket.is_none()), "no budget is waited for");
    }

    /// Returns true if other connections wait for budget.
    pub(crate) fn others_wait(&self, budget: &Budget) -> bool {
        budget.is_short_for_others(self.ticket)
            || self.levies.iter().any(|levy| levy.budget.is_short_for_others(levy.ticket))
    }

    /// Releases everything.
    pub(crate) fn release_all(&mut self, budget: &Budget) {
        self.remote_reads.abandon();
        self.stop_waiting(budget);
        let charged_bytes = std::mem::take(&mut self.charged_bytes);
        self.release_shared(shared(charged_bytes), budget);
    }

    /// Returns true if the memory of queued replies is bounded by their charges: the buffer of a large reply
    /// is up to twice as long as its data, batches and the negotiation take a few buffers more.
    pub(crate) fn is_bounded(&self) -> bool {
        self.outbox.held_bytes() as u64 <= 2 * self.charged_bytes + 4 * BATCH_BYTES as u64
    }

    #[cfg(test)]
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// Starts work.
    pub(crate) fn start(&mut self, work: Work, cx: &mut Context<'_>) {
        debug_assert!(self.jobs < self.most_jobs, "requests at the workers are bounded");
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

/// Returns the part of a connection's charge that counts against the total budget.
fn shared(charged_bytes: u64) -> u64 {
    charged_bytes.saturating_sub(GUARANTEED_BYTES)
}
