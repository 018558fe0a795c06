//! Budget of bytes in flight, shared by connections beyond the guaranteed share of each.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

/// Callback that wakes the thread of a waiting connection.
pub(crate) type Wake = Box<dyn Fn() + Send>;

/// Budget of bytes in flight. Requests beyond it wait for releases in order of arrival. While one waits,
/// others get no budget, so even a large request is admitted eventually.
///
/// No release is missed: it either precedes the last attempt of the first waiter, which then succeeds, or
/// wakes that waiter.
pub(crate) struct Budget {
    limit_bytes: u64,
    used_bytes: AtomicU64,
    has_waiters: AtomicBool,
    queue: Mutex<Queue>,
}

struct Queue {
    waiters: VecDeque<Waiter>,
    next_ticket: u64,
}

struct Waiter {
    ticket: Ticket,
    bytes: u64,
    wake: Wake,
    /// The waiter was woken and has made no attempt since.
    is_woken: bool,
}

/// Position in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Budget {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            used_bytes: AtomicU64::new(0),
            has_waiters: AtomicBool::new(false),
            queue: Mutex::new(Queue { waiters: VecDeque::new(), next_ticket: 0 }),
        }
    }

    /// Charges `bytes` if they fit and no earlier waiter exists; otherwise queues the caller with a ticket
    /// until a later call succeeds or it [leaves](Self::leave). An unused budget fits any charge.
    pub(crate) fn charge(
        &self,
        bytes: u64,
        ticket: &mut Option<Ticket>,
        wake: impl FnOnce() -> Wake,
    ) -> bool {
        assert!(bytes > 0, "a charge is not zero");
        if ticket.is_none() && !self.has_waiters.load(Ordering::SeqCst) && self.try_charge(bytes) {
            return true;
        }
        let mut queue = self.queue.lock();
        let queue = &mut *queue;
        let mine = *ticket.get_or_insert_with(|| {
            let ticket = Ticket(queue.next_ticket);
            queue.next_ticket += 1;
            queue.waiters.push_back(Waiter { ticket, bytes, wake: wake(), is_woken: false });
            ticket
        });
        // Precedes the attempt, so that a later release sees the waiter.
        self.has_waiters.store(true, Ordering::SeqCst);
        let Some(first) = queue.waiters.front_mut().filter(|first| first.ticket == mine) else {
            return false;
        };
        first.is_woken = false;
        first.bytes = bytes;
        if !self.try_charge(bytes) {
            return false;
        }
        queue.waiters.pop_front();
        *ticket = None;
        self.first_changed(queue);
        true
    }

    fn try_charge(&self, bytes: u64) -> bool {
        self.used_bytes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
                self.fits(used, bytes).then(|| used.saturating_add(bytes))
            })
            .is_ok()
    }

    fn fits(&self, used: u64, bytes: u64) -> bool {
        used == 0 || used.saturating_add(bytes) <= self.limit_bytes
    }

    /// Releases `bytes`, and wakes the first waiter if its charge fits.
    pub(crate) fn release(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let before = self.used_bytes.fetch_sub(bytes, Ordering::SeqCst);
        assert!(before >= bytes, "only charged bytes are released");
        if self.has_waiters.load(Ordering::SeqCst) {
            self.wake_first(&mut self.queue.lock());
        }
    }

    /// Removes the caller from the queue, if it waits.
    pub(crate) fn leave(&self, ticket: &mut Option<Ticket>) {
        let Some(left) = ticket.take() else {
            return;
        };
        let mut queue = self.queue.lock();
        queue.waiters.retain(|waiter| waiter.ticket != left);
        self.first_changed(&mut queue);
    }

    fn first_changed(&self, queue: &mut Queue) {
        if queue.waiters.is_empty() {
            self.has_waiters.store(false, Ordering::SeqCst);
        }
        self.wake_first(queue);
    }

    fn wake_first(&self, queue: &mut Queue) {
        if let Some(first) = queue.waiters.front_mut()
            && !first.is_woken
            && self.fits(self.used_bytes.load(Ordering::SeqCst), first.bytes)
        {
            first.is_woken = true;
            (first.wake)();
        }
    }

    /// Returns the bytes in flight.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::SeqCst)
    }

    /// Returns true if a waiter other than `ticket` exists.
    pub(crate) fn is_short_for_others(&self, ticket: Option<Ticket>) -> bool {
        self.has_waiters.load(Ordering::SeqCst)
            && self.queue.lock().waiters.iter().any(|waiter| Some(waiter.ticket) != ticket)
    }
}

#[cfg(test)]
impl Budget {
    pub(crate) fn is_exhausted(&self) -> bool {
        self.is_short_for_others(None)
    }

    /// Charges the whole budget, as other connections would.
    pub(crate) fn exhaust(&self) {
        self.used_bytes.fetch_add(self.limit_bytes, Ordering::SeqCst);
    }

    /// Adds a waiter whose charge never fits.
    pub(crate) fn add_stuck_waiter(&self, wake: Wake) {
        let ticket = Ticket(u64::MAX);
        self.queue.lock().waiters.push_back(Waiter { ticket, bytes: u64::MAX, wake, is_woken: true });
        self.has_waiters.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Requester, and the number of its wake-ups.
    #[derive(Default)]
    struct Requester {
        ticket: Option<Ticket>,
        woken: Arc<AtomicUsize>,
    }

    impl Requester {
        fn request(&mut self, budget: &Budget, bytes: u64) -> bool {
            let woken = Arc::clone(&self.woken);
            let wake = move || {
                woken.fetch_add(1, Ordering::SeqCst);
            };
            budget.charge(bytes, &mut self.ticket, || Box::new(wake))
        }

        fn woken(&self) -> usize {
            self.woken.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn release_wakes_a_waiter_whose_charge_fits() {
        let budget = Budget::new(100);
        let mut requester = Requester::default();
        assert!(requester.request(&budget, 1000), "an unused budget fits any charge");
        assert!(!requester.request(&budget, 60));
        assert!(!requester.request(&budget, 60), "a waiter may retry");
        assert!(budget.is_exhausted());
        assert!(!budget.is_short_for_others(requester.ticket));
        budget.release(950);
        assert_eq!(requester.woken(), 0, "the charge does not fit yet");
        budget.release(10);
        budget.release(1);
        assert_eq!(requester.woken(), 1, "a waiter is woken once");
        assert!(requester.request(&budget, 60));
        assert!(!budget.is_exhausted());
        budget.release(1);
        assert_eq!(requester.woken(), 1);
        assert_eq!(budget.used_bytes(), 98);
    }

    #[test]
    fn small_charge_does_not_overtake_a_large_one() {
        let budget = Budget::new(100);
        let (mut large, mut small, mut other) =
            (Requester::default(), Requester::default(), Requester::default());
        assert!(small.request(&budget, 50));
        assert!(!large.request(&budget, 80));
        assert!(!small.request(&budget, 10), "an earlier waiter exists");
        assert!(!other.request(&budget, 10));
        budget.release(50);
        assert_eq!([large.woken(), small.woken(), other.woken()], [1, 0, 0]);
        assert!(!small.request(&budget, 10));
        assert!(large.request(&budget, 80));
        assert_eq!([small.woken(), other.woken()], [1, 0], "the next waiter is woken");
        assert!(!other.request(&budget, 10));
        assert!(small.request(&budget, 10));
        assert!(other.request(&budget, 10));
        assert!(!budget.is_exhausted());
    }

    #[test]
    fn leaving_waiter_unblocks_the_next() {
        let budget = Budget::new(100);
        let (mut first, mut second) = (Requester::default(), Requester::default());
        budget.exhaust();
        assert!(!first.request(&budget, 80));
        assert!(!second.request(&budget, 20));
        budget.release(20);
        assert_eq!([first.woken(), second.woken()], [0, 0]);
        budget.leave(&mut first.ticket);
        assert_eq!([first.woken(), second.woken()], [0, 1]);
        budget.leave(&mut second.ticket);
        budget.leave(&mut second.ticket);
        assert!(!budget.is_exhausted());
    }
}
