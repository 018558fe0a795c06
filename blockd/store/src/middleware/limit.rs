//! Bandwidth limits for uploads to and downloads from a store.

use super::layer::{Middleware, Operation, Request, Response, downcast};
use crate::{BlobStore, StoreFuture};
use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};

/// Unused time that counts for later transfers, in seconds: the transfer itself takes time, too.
const MAX_UNUSED_S: f64 = 0.1;
/// Units of a request in the limit of requests, so that less than one unit is a rounding error.
const REQUEST_UNITS: u64 = 1000;
/// Maximum sleep before the limit is checked again.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// Rate limiter of one direction. Each transfer waits until the rate has cleared its bytes after those of all
/// earlier ones, so that the average since the start is never above the rate, also of parallel transfers.
#[derive(Debug)]
struct Direction {
    flow: Mutex<Flow>,
    /// Notified when waiting transfers have to compute their time again.
    changed: Notify,
}

#[derive(Debug)]
struct Flow {
    /// Rate; `None` is unlimited.
    bytes_per_s: Option<u64>,
    /// Bytes of all transfers so far.
    booked: f64,
    /// Bytes cleared by the rate.
    cleared: f64,
    at: Instant,
    /// Value of `cleared` at which each waiting transfer starts, in their order.
    waiting: BTreeMap<u64, f64>,
    next: u64,
}

impl Flow {
    fn advance(&mut self) {
        let now = Instant::now();
        match self.bytes_per_s {
            None => self.cleared = self.booked,
            Some(rate) => {
                self.cleared += now.duration_since(self.at).as_secs_f64() * rate as f64;
            }
        }
        self.at = now;
    }

    /// Drops the unused time before a transfer began, up to a maximum.
    fn drop_unused(&mut self, began: Instant) {
        let unused_s = self.at.duration_since(began).as_secs_f64() + MAX_UNUSED_S;
        let rate = self.bytes_per_s.unwrap_or(0) as f64;
        self.cleared = self.cleared.min(self.booked + rate * unused_s);
    }

    /// Removes a transfer that starts or was cancelled. The later ones do not wait for bytes that it leaves;
    /// returns true if there are such.
    fn leave(&mut self, number: u64, len_bytes: u64) -> bool {
        self.advance();
        let Some(end) = self.waiting.remove(&number) else { return false };
        let left = (end - self.cleared).clamp(0.0, len_bytes as f64);
        self.booked -= left;
        self.waiting.range_mut(number..).for_each(|(_, end)| *end -= left);
        left >= 1.0
    }
}

impl Direction {
    fn new(bytes_per_s: Option<u64>) -> Self {
        let flow = Flow {
            bytes_per_s: bytes_per_s.map(|rate| rate.max(1)),
            booked: 0.0,
            cleared: 0.0,
            at: Instant::now(),
            waiting: BTreeMap::new(),
            next: 0,
        };
        Self { flow: Mutex::new(flow), changed: Notify::new() }
    }

    fn set(&self, bytes_per_s: Option<u64>) {
        let mut flow = self.flow.lock();
        flow.advance();
        flow.bytes_per_s = bytes_per_s.map(|rate| rate.max(1));
        flow.advance();
        drop(flow);
        self.changed.notify_waiters();
    }

    fn is_limited(&self) -> bool {
        self.flow.lock().bytes_per_s.is_some()
    }

    /// Waits until the rate has cleared these bytes of a transfer, which may have waited for other limits
    /// since it began.
    async fn wait(&self, len_bytes: u64, began: Instant) {
        let transfer = Transfer::book(self, len_bytes, began);
        loop {
            // Registered before the check, so that no change is missed.
            let changed = self.changed.notified();
            let Some(left) = transfer.left() else { return };
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                () = changed => {}
            }
        }
    }
}

/// Transfer that waits; dropped, it no longer does.
struct Transfer<'a> {
    direction: &'a Direction,
    number: u64,
    len_bytes: u64,
}

impl<'a> Transfer<'a> {
    fn book(direction: &'a Direction, len_bytes: u64, began: Instant) -> Self {
        let mut flow = direction.flow.lock();
        flow.advance();
        flow.drop_unused(began);
        let number = flow.next;
        flow.next += 1;
        flow.booked += len_bytes as f64;
        flow.advance();
        let end = flow.booked;
        flow.waiting.insert(number, end);
        Self { direction, number, len_bytes }
    }

    /// Returns the time to wait, up to a maximum; `None` if the transfer can start.
    fn left(&self) -> Option<Duration> {
        let mut flow = self.direction.flow.lock();
        flow.advance();
        let missing = flow.waiting.get(&self.number)? - flow.cleared;
        let rate = flow.bytes_per_s?;
        // Less than a byte is a rounding error.
        let left = (missing >= 1.0).then_some(missing / rate as f64)?;
        Some(Duration::try_from_secs_f64(left).unwrap_or(MAX_SLEEP).min(MAX_SLEEP))
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        let has_left = self.direction.flow.lock().leave(self.number, self.len_bytes);
        if has_left {
            self.direction.changed.notify_waiters();
        }
    }
}

/// Bandwidth limits of a credential, shared by its tasks, or of one task.
#[derive(Debug)]
pub struct Bandwidth {
    up: Direction,
    down: Direction,
    requests: Direction,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Self::new(None, None)
    }
}

impl Bandwidth {
    /// Creates limits in bytes per second; `None` is unlimited.
    pub fn new(upload_bytes_per_s: Option<u64>, download_bytes_per_s: Option<u64>) -> Self {
        let requests = Direction::new(None);
        Self { up: Direction::new(upload_bytes_per_s), down: Direction::new(download_bytes_per_s), requests }
    }

    /// Creates a limit of requests per second, without one of bytes.
    pub fn of_requests(per_s: u64) -> Self {
        let requests = Direction::new(Some(per_s.saturating_mul(REQUEST_UNITS)));
        Self { requests, ..Self::default() }
    }

    /// Changes both limits, also for waiting requests.
    pub fn set(&self, upload_bytes_per_s: Option<u64>, download_bytes_per_s: Option<u64>) {
        self.up.set(upload_bytes_per_s);
        self.down.set(download_bytes_per_s);
    }

    /// Returns true if there is a limit.
    pub fn is_limited(&self) -> bool {
        [&self.up, &self.down, &self.requests].into_iter().any(Direction::is_limited)
    }
}

/// Store middleware with bandwidth limits, such as those of a task, the host and a credential.
///
/// A request waits for the limit of requests. One with a body of known length waits before it is sent, until
/// each limit has cleared the body. The reply to a read of a whole object waits before it is returned, as
/// its length is not known before. A dropped request stops waiting. Must be in front of the retrying store,
/// whose timeouts would include the wait; so repeated bodies are not counted.
pub struct LimitStore {
    inner: Arc<dyn BlobStore>,
    /// Limit of the task last; waits start with it.
    limits: Vec<Arc<Bandwidth>>,
}

impl LimitStore {
    /// Limits the requests to `inner`. If `inner` is a `LimitStore`, the limit is added to it: limits do not
    /// nest.
    pub fn new(inner: Arc<dyn BlobStore>, bandwidth: Arc<Bandwidth>) -> Self {
        let (inner, mut limits) = match downcast::<Self>(&inner) {
            Some(limited) => (Arc::clone(&limited.inner), limited.limits.clone()),
            None => (inner, Vec::new()),
        };
        debug_assert!(downcast::<Self>(&inner).is_none(), "limits are nested");
        limits.push(bandwidth);
        Self { inner, limits }
    }
}

impl Middleware for LimitStore {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        let wait = async |direction: fn(&Bandwidth) -> &Direction, len_bytes| {
            let began = Instant::now();
            // One after the other: what waits for the task's limit must not delay other tasks in a shared
            // one.
            for limit in self.limits.iter().rev() {
                direction(limit).wait(len_bytes, began).await;
            }
        };
        Box::pin(async move {
            wait(|limit| &limit.requests, REQUEST_UNITS).await;
            match request.operation {
                Operation::Put | Operation::MultipartPut => {
                    wait(|limit| &limit.up, request.sent_bytes).await;
                }
                Operation::GetRange => {
                    wait(|limit| &limit.down, request.wanted_bytes).await;
                }
                _ => {}
            }
            let answer = ask(self.inner.clone()).await?;
            if request.operation == Operation::Get {
                wait(|limit| &limit.down, answer.received_bytes()).await;
            }
            Ok(answer)
        })
    }
}
