//! What a connection has in flight: replies to be sent, requests being carried out, and the bytes charged for
//! both.

use std::sync::Arc;
use std::time::Instant;

use crate::budget::{Budget, Ticket};
use crate::buffer_pool::BufferPool;
use crate::far::FarRequests;
use crate::far_budgets::FarBudgets;
use crate::outbox::Outbox;
use crate::reply::{ReplyTo, errno_text};
use crate::worker::Work;

/// Charged for every request on top of its payload: bounds the number of requests in flight, not only their
/// bytes.
pub(crate) const REQUEST_OVERHEAD_BYTES: u64 = 4096;
/// What a connection may have in flight even when all connections together have used up theirs, in bytes:
/// slow ones cannot bring the others to a halt.
pub(crate) const GUARANTEED_BYTES: u64 = 256 << 10;
/// Requests of one connection that may wait for a worker or be with one. Some take long and cost next to no
/// bytes: more of them would keep the workers from everybody else.
pub(crate) const MAX_JOBS: usize = 64;
/// The same where the data of some may be far away: those keep no worker, and must not keep the others from
/// theirs.
pub(crate) const MAX_JOBS_FAR: usize = 512;

/// Wakes the ring thread of a connection that waits for the budget.
pub(crate) type Wake = Box<dyn Fn() + Send>;

/// What a connection may use while it handles an event.
pub(crate) struct Context<'a> {
    pub(crate) pool: &'a mut BufferPool,
    pub(crate) budget: &'a Budget<Wake>,
    pub(crate) far_budgets: &'a FarBudgets,
    /// What wakes this thread when it is a connection's turn to take from the budget.
    pub(crate) wake: &'a dyn Fn() -> Wake,
    /// Work for the threads that may block.
    pub(crate) work: &'a mut Vec<Work>,
    /// Counts the requests that were taken up.
    pub(crate) requests: &'a mut usize,
    pub(crate) now: Instant,
    /// Nothing that is received at `now` came before this time, unless it waited in the socket.
    pub(crate) looked_before: Instant,
}

/// A budget that is not for all.
struct Levy {
    budget: Arc<Budget<Wake>>,
    ticket: Option<Ticket>,
}

/// See the module.
pub(crate) struct Flow {
    pub(crate) outbox: Outbox,
    /// Work handed out and not yet done.
    pub(crate) jobs: usize,
    most_jobs: usize,
    /// The requests whose data is far away.
    pub(crate) far: Arc<FarRequests>,
    charged_bytes: u64,
    /// While a request waits for the budget of all.
    ticket: Option<Ticket>,
    /// Other budgets that are taken from before that of all.
    levies: Vec<Levy>,
    /// What the request that waits has taken from the first ones of these: how many they are, and how many
    /// bytes.
    paid: (usize, u64),
    limit_bytes: u64,
    /// A time at which the input that is taken up had not been received yet, or was just received.
    pub(crate) received_at: Instant,
}

impl Flow {
    pub(crate) fn new(limit_bytes: u64, now: Instant) -> Self {
        Self {
            outbox: Outbox::default(),
            jobs: 0,
            most_jobs: MAX_JOBS,
            far: Arc::default(),
            charged_bytes: 0,
            ticket: None,
            levies: Vec::new(),
            paid: (0, 0),
            limit_bytes,
            received_at: now,
        }
    }

    /// The input may be late, and its client has gone: it may have sent the same on another connection.
    pub(crate) fn is_stale(&self) -> bool {
        self.far.is_stale(self.received_at)
    }

    /// As much work is handed out as may be.
    pub(crate) fn has_all_jobs(&self) -> bool {
        self.jobs >= self.most_jobs
    }

    /// The data of some requests may be far away; what is in flight is held to these budgets as well. Before
    /// the first request.
    pub(crate) fn allow_for_far_data(&mut self, budgets: Vec<Arc<Budget<Wake>>>) {
        self.most_jobs = MAX_JOBS_FAR;
        self.levies = budgets.into_iter().map(|budget| Levy { budget, ticket: None }).collect();
    }

    /// Whether requests may wait for data that is far away.
    pub(crate) fn may_wait_for_far_data(&self) -> bool {
        !self.levies.is_empty() && !self.far.is_recalled()
    }

    /// Work that was handed out need not be carried out any more.
    pub(crate) fn abandon(&self) {
        self.far.abandon();
    }

    /// The client took its leave: its requests are carried out, also when it closes the socket.
    pub(crate) fn take_leave(&self) {
        self.far.take_leave();
    }

    pub(crate) fn has_taken_leave(&self) -> bool {
        self.far.has_taken_leave()
    }

    /// What waits for data that is far away need not wait any more.
    pub(crate) fn recall(&self) {
        self.far.recall();
    }

    /// Charges a request's bytes, or returns `false`: then the request must wait until something is released.
    /// Up to the guaranteed share it never waits for others.
    pub(crate) fn admit(&mut self, bytes: u64, cx: &Context<'_>) -> bool {
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
        self.charged_bytes = after;
        true
    }

    /// Takes bytes from each budget that is not for all, in their order, or waits at one of them. What was
    /// taken is kept while the request waits for the next: those who hold that one do not wait for this.
    fn pay(&mut self, bytes: u64, cx: &Context<'_>) -> bool {
        let (count, paid_bytes) = self.paid;
        if paid_bytes != bytes {
            // Replies that were sent meanwhile have made the request's part of what is shared smaller. It
            // cannot have grown: what a request is charged is settled when it is first tried.
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

    fn release_shared(&self, bytes: u64, budget: &Budget<Wake>) {
        budget.release(bytes);
        for levy in &self.levies {
            levy.budget.release(bytes);
        }
    }

    /// Gives a request's bytes back.
    pub(crate) fn release(&mut self, bytes: u64, cx: &Context<'_>) {
        let before = self.charged_bytes;
        self.charged_bytes -= bytes;
        self.release_shared(shared(before) - shared(self.charged_bytes), cx.budget);
    }

    /// No request waits for the budget any longer.
    pub(crate) fn stop_waiting(&mut self, budget: &Budget<Wake>) {
        budget.leave(&mut self.ticket);
        let (count, bytes) = std::mem::take(&mut self.paid);
        for (index, levy) in self.levies.iter_mut().enumerate() {
            levy.budget.leave(&mut levy.ticket);
            if index < count {
                levy.budget.release(bytes);
            }
        }
    }

    /// Whether other connections wait for the budget.
    pub(crate) fn others_wait(&self, budget: &Budget<Wake>) -> bool {
        budget.is_short_for_others(self.ticket)
            || self.levies.iter().any(|levy| levy.budget.is_short_for_others(levy.ticket))
    }

    /// Gives everything back.
    pub(crate) fn release_all(&mut self, budget: &Budget<Wake>) {
        self.abandon();
        self.stop_waiting(budget);
        let charged_bytes = std::mem::take(&mut self.charged_bytes);
        self.release_shared(shared(charged_bytes), budget);
    }

    #[cfg(test)]
    pub(crate) fn charged_bytes(&self) -> u64 {
        self.charged_bytes
    }

    /// Hands work out.
    pub(crate) fn start(&mut self, work: Work, cx: &mut Context<'_>) {
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

/// How much of what a connection has charged is taken from the budget of all.
fn shared(charged_bytes: u64) -> u64 {
    charged_bytes.saturating_sub(GUARANTEED_BYTES)
}
