//! Request counters by kind, with bytes sent and received; each attempt of a retry counts.

use super::{
    layer::{Middleware, Operation, Request, RequestKind, Response, downcast},
    store_time::StoreClock,
};
use crate::{BlobStore, StoreErrorKind, StoreFuture};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Counters of a task, cheap to read while it runs, and its budget.
#[derive(Default, Debug)]
pub struct Requests {
    by_kind: [AtomicU64; RequestKind::ALL.len()],
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    /// Duration of the shortest successful request; 0 before the first one.
    shortest_nanos: AtomicU64,
    budget: Mutex<Option<Budget>>,
}

/// Check of counts against the limits of a task; returns the exceeded limit.
pub type BudgetCheck = Arc<dyn Fn(&RequestCounts) -> Option<String> + Send + Sync>;

/// Budget of a task.
struct Budget {
    check: BudgetCheck,
    /// Counts of earlier runs.
    before: RequestCounts,
    /// Bytes that unanswered requests can receive.
    expected_bytes: u64,
    /// Requests that are set aside for the end of the task.
    reserved: RequestCounts,
    /// All requests of the next run, if this one ends now; for the error.
    next_run: Option<RequestCounts>,
    /// The last requests are never refused.
    is_closing: bool,
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("before", &self.before).finish_non_exhaustive()
    }
}

impl Budget {
    /// Returns the limit that further requests would exceed.
    fn exceeded(&self, spent: RequestCounts, more: RequestCounts) -> Option<String> {
        let all = self.before.plus(spent).plus(more).plus(self.reserved);
        let all = RequestCounts { bytes_down: all.bytes_down + self.expected_bytes, ..all };
        let limit = (self.check)(&all).filter(|_| !self.is_closing)?;
        Some(match self.next_run {
            None if self.reserved.total() == 0 => limit,
            None => format!("{limit}; the task needs at least {} requests", all.total()),
            Some(next) => {
                let all = self.before.plus(spent).plus(next);
                format!("{limit}; the task needs about {} requests in all", all.total())
            }
        })
    }
}

impl Requests {
    /// Sets the budget of the task: a request that would exceed it is refused, with
    /// [`StoreErrorKind::BudgetExhausted`]. The requests of earlier runs count.
    pub fn set_budget(&self, before: RequestCounts, check: BudgetCheck) {
        *self.budget.lock() = Some(Budget {
            check,
            before,
            expected_bytes: 0,
            reserved: RequestCounts::default(),
            next_run: None,
            is_closing: false,
        });
    }

    /// Sets requests aside for the end of the task, until the reservation is dropped. Another run would make
    /// `next_run`, if that is known, after what this run has sent so far, which it repeats.
    ///
    /// # Errors
    /// They would exceed the budget; returns the exceeded limit, and the requests that the task needs.
    pub fn reserve(
        self: &Arc<Self>,
        last: RequestCounts,
        next_run: Option<RequestCounts>,
    ) -> Result<Reservation, String> {
        let reservation = Reservation { requests: Arc::clone(self), opening: self.snapshot() };
        reservation.set(last, next_run)?;
        Ok(reservation)
    }

    /// Returns the duration of the shortest successful request, which is close to the latency of the store;
    /// `None` before the first one.
    pub fn latency(&self) -> Option<Duration> {
        Some(self.shortest_nanos.load(Relaxed)).filter(|nanos| *nanos > 0).map(Duration::from_nanos)
    }

    /// Returns the current values.
    pub fn snapshot(&self) -> RequestCounts {
        let of = |kind: RequestKind| self.by_kind[kind as usize].load(Relaxed);
        RequestCounts {
            put: of(RequestKind::Put),
            get: of(RequestKind::Get),
            list: of(RequestKind::List),
            delete: of(RequestKind::Delete),
            multipart: of(RequestKind::Multipart),
            bytes_up: self.bytes_up.load(Relaxed),
            bytes_down: self.bytes_down.load(Relaxed),
        }
    }
}

/// Requests that are set aside for the end of a task; dropped, the budget has none.
#[derive(Debug)]
pub struct Reservation {
    requests: Arc<Requests>,
    /// Requests of this run before the reservation: each run has them.
    opening: RequestCounts,
}

impl Reservation {
    /// Replaces the reserved requests, and those of another run.
    ///
    /// # Errors
    /// As for [`Requests::reserve`].
    pub fn set(&self, last: RequestCounts, next_run: Option<RequestCounts>) -> Result<(), String> {
        let mut budget = self.requests.budget.lock();
        let Some(budget) = &mut *budget else { return Ok(()) };
        (budget.reserved, budget.next_run) = (last, next_run.map(|next| self.opening.plus(next)));
        budget.exceeded(self.requests.snapshot(), RequestCounts::default()).map_or(Ok(()), Err)
    }

    /// Begins the last requests of the task, which must not be interrupted: none of them is refused.
    ///
    /// # Errors
    /// As for [`Requests::reserve`].
    pub fn begin_closing(&self, last: RequestCounts, next_run: Option<RequestCounts>) -> Result<(), String> {
        self.set(last, next_run)?;
        if let Some(budget) = &mut *self.requests.budget.lock() {
            budget.is_closing = true;
        }
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(budget) = &mut *self.requests.budget.lock() {
            (budget.reserved, budget.next_run, budget.is_closing) = (RequestCounts::default(), None, false);
        }
    }
}

/// Request counts by kind.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestCounts {
    /// Objects stored.
    pub put: u64,
    /// Objects, or ranges of objects, read.
    pub get: u64,
    /// Pages of listings.
    pub list: u64,
    /// Objects removed.
    pub delete: u64,
    /// Requests of multipart uploads: start, each part, completion, abort.
    pub multipart: u64,
    /// Bytes of bodies sent.
    pub bytes_up: u64,
    /// Bytes of bodies received.
    pub bytes_down: u64,
}

impl RequestCounts {
    /// Returns the total number of requests.
    pub const fn total(&self) -> u64 {
        self.put + self.get + self.list + self.delete + self.multipart
    }

    /// Returns the sums.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            put: self.put + other.put,
            get: self.get + other.get,
            list: self.list + other.list,
            delete: self.delete + other.delete,
            multipart: self.multipart + other.multipart,
            bytes_up: self.bytes_up + other.bytes_up,
            bytes_down: self.bytes_down + other.bytes_down,
        }
    }

    /// Returns the counts of a request that is about to be sent. The length of a whole object is unknown
    /// then.
    const fn of(request: &Request<'_>) -> Self {
        let kind = request.operation.kind();
        Self {
            put: matches!(kind, RequestKind::Put) as u64,
            get: matches!(kind, RequestKind::Get) as u64,
            list: matches!(kind, RequestKind::List) as u64,
            delete: (matches!(kind, RequestKind::Delete) && is_request(request)) as u64,
            multipart: matches!(kind, RequestKind::Multipart) as u64,
            bytes_up: request.sent_bytes,
            bytes_down: expected_bytes(request),
        }
    }
}

/// Returns false for a removal of unfinished uploads: buckets get no request for it, and the number of those
/// of others is unknown.
const fn is_request(request: &Request<'_>) -> bool {
    !matches!(request.operation, Operation::RemoveUnfinished)
}

/// Returns the length of the response body as far as it is known.
const fn expected_bytes(request: &Request<'_>) -> u64 {
    if matches!(request.operation, Operation::GetRange) { request.wanted_bytes } else { 0 }
}

/// Observer of the requests to a store. A retry is a request of its own.
pub trait RequestObserver: Send + Sync {
    /// Called before a request is sent; an error, the exceeded limit, refuses it.
    ///
    /// # Errors
    /// The request would exceed a budget.
    fn admit(&self, _: &Request<'_>) -> Result<(), String> {
        Ok(())
    }

    /// Called at the start of a request.
    fn started(&self, request: &Request<'_>);

    /// Called at the end of a request with its duration, without waits for memory, and the length of the
    /// response body or the kind of the error; not called for a cancelled request.
    fn ended(&self, request: &Request<'_>, elapsed: Duration, outcome: Result<u64, StoreErrorKind>);

    /// Called at the end of each admitted request, also of a failed or cancelled one, with the received
    /// bytes.
    fn settled(&self, _: &Request<'_>, _received_bytes: u64) {}
}

impl RequestObserver for Requests {
    fn admit(&self, request: &Request<'_>) -> Result<(), String> {
        // Checks and counts under one lock: concurrent requests share the budget.
        let mut budget = self.budget.lock();
        if let Some(budget) = &mut *budget {
            if let Some(limit) = budget.exceeded(self.snapshot(), RequestCounts::of(request)) {
                return Err(limit);
            }
            budget.expected_bytes += expected_bytes(request);
        }
        self.by_kind[request.operation.kind() as usize].fetch_add(u64::from(is_request(request)), Relaxed);
        self.bytes_up.fetch_add(request.sent_bytes, Relaxed);
        Ok(())
    }

    fn started(&self, _: &Request<'_>) {}

    fn ended(&self, _: &Request<'_>, elapsed: Duration, outcome: Result<u64, StoreErrorKind>) {
        if outcome.is_ok() {
            let nanos = (elapsed.as_nanos() as u64).max(1);
            let shorter = |shortest| (shortest == 0 || nanos < shortest).then_some(nanos);
            let _ = self.shortest_nanos.fetch_update(Relaxed, Relaxed, shorter);
        }
    }

    fn settled(&self, request: &Request<'_>, received_bytes: u64) {
        // Under the lock: no check sees the bytes neither expected nor received.
        let mut budget = self.budget.lock();
        if let Some(budget) = &mut *budget {
            budget.expected_bytes = budget.expected_bytes.saturating_sub(expected_bytes(request));
        }
        self.bytes_down.fetch_add(received_bytes, Relaxed);
    }
}

tokio::task_local! {
    /// Bytes of the body that the running request has received.
    static RECEIVED: Arc<AtomicU64>;
}

/// Counts a part of the body that the running request receives: it costs egress even if the request fails.
pub(crate) fn note_received(len_bytes: usize) {
    // Without a meter nothing counts.
    let _ = RECEIVED.try_with(|received| received.fetch_add(len_bytes as u64, Relaxed));
}

/// Admitted request, which its observers settle at its end; a retry that gives up on it drops it.
struct Admitted<'a> {
    observers: &'a [Arc<dyn RequestObserver>],
    request: Request<'a>,
    received: Arc<AtomicU64>,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        let received_bytes = self.received.load(Relaxed);
        self.observers.iter().for_each(|observer| observer.settled(&self.request, received_bytes));
    }
}

/// Store middleware that reports each request to its observers.
pub struct MeterStore {
    inner: Arc<dyn BlobStore>,
    observers: Vec<Arc<dyn RequestObserver>>,
}

impl MeterStore {
    /// Reports the requests to `inner`. If `inner` is a `MeterStore`, the observer is added to it: meters do
    /// not nest.
    pub fn new(inner: Arc<dyn BlobStore>, observer: Arc<dyn RequestObserver>) -> Self {
        let (inner, mut observers) = match downcast::<Self>(&inner) {
            Some(meter) => (Arc::clone(&meter.inner), meter.observers.clone()),
            None => (inner, Vec::new()),
        };
        debug_assert!(downcast::<Self>(&inner).is_none(), "meters are nested");
        observers.push(observer);
        Self { inner, observers }
    }
}

impl Middleware for MeterStore {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        // The newest observer, that of a task, is the one with a budget.
        let refused = self.observers.iter().rev().find_map(|observer| observer.admit(&request).err());
        if let Some(limit) = refused {
            let error =
                request.failed(StoreErrorKind::BudgetExhausted, self.inner.describe()).with_detail(limit);
            return Box::pin(std::future::ready(Err(error)));
        }
        self.observers.iter().for_each(|observer| observer.started(&request));
        let admitted = Admitted { observers: &self.observers, request, received: Arc::default() };
        Box::pin(async move {
            let clock = StoreClock::start();
            let asked = RECEIVED.scope(Arc::clone(&admitted.received), ask(Arc::clone(&self.inner)));
            let answer = clock.run(asked).await;
            let elapsed = clock.elapsed();
            let outcome = answer.as_ref().map(Response::received_bytes).map_err(|error| error.kind);
            if let Ok(received_bytes) = outcome {
                admitted.received.store(received_bytes, Relaxed);
            }
            self.observers.iter().for_each(|observer| observer.ended(&request, elapsed, outcome));
            answer
        })
    }
}
