//! Bandwidth limits for uploads to and downloads from a store.

use super::layer::{Middleware, Operation, Request, Response, downcast};
use crate::{BlobStore, StoreFuture};
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};

/// Maximum burst, in seconds of the rate.
const MAX_BURST_S: f64 = 1.0;
/// Maximum sleep before the limit is checked again.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// Rate limiter of one direction.
#[derive(Debug)]
struct Bucket {
    flow: Mutex<Flow>,
    /// Notified when the rate changes.
    changed: Notify,
}

#[derive(Debug)]
struct Flow {
    /// Rate; `None` is unlimited.
    bytes_per_s: Option<u64>,
    /// Bytes of all bodies so far.
    booked: f64,
    /// Bytes cleared by the rate, plus the burst.
    cleared: f64,
    at: Instant,
}

impl Flow {
    fn advance(&mut self) {
        let now = Instant::now();
        match self.bytes_per_s {
            None => self.cleared = self.booked,
            Some(rate) => {
                let rate = rate as f64;
                let more = now.duration_since(self.at).as_secs_f64() * rate;
                self.cleared = (self.cleared + more).min(self.booked + rate * MAX_BURST_S);
            }
        }
        self.at = now;
    }
}

impl Bucket {
    fn new(bytes_per_s: Option<u64>) -> Self {
        let flow = Flow {
            bytes_per_s: bytes_per_s.map(|rate| rate.max(1)),
            booked: 0.0,
            cleared: 0.0,
            at: Instant::now(),
        };
        Self { flow: Mutex::new(flow), changed: Notify::new() }
    }

    fn set(&self, bytes_per_s: Option<u64>) {
        let mut flow = self.flow.lock();
        flow.advance();
        flow.bytes_per_s = bytes_per_s.map(|rate| rate.max(1));
        // Waiting requests continue at the new rate.
        flow.advance();
        drop(flow);
        self.changed.notify_waiters();
    }

    fn is_limited(&self) -> bool {
        self.flow.lock().bytes_per_s.is_some()
    }

    /// Books bytes; returns the number of bytes that must be cleared before they may be sent.
    fn book(&self, bytes: u64) -> f64 {
        let mut flow = self.flow.lock();
        flow.advance();
        let before = flow.booked;
        // These bytes are sent at line speed; later ones wait for the rate.
        flow.booked += bytes as f64;
        if flow.bytes_per_s.is_none() {
            flow.cleared = flow.booked;
        }
        before
    }

    async fn wait(&self, bytes: u64) {
        let before = self.book(bytes);
        loop {
            // Registered before the check, so that no change is missed.
            let changed = self.changed.notified();
            let left = {
                let mut flow = self.flow.lock();
                flow.advance();
                let missing = before - flow.cleared;
                match flow.bytes_per_s {
                    // Less than a byte is a rounding error.
                    Some(rate) if missing >= 1.0 => missing / rate as f64,
                    _ => return,
                }
            };
            let pause = Duration::try_from_secs_f64(left).unwrap_or(MAX_SLEEP).min(MAX_SLEEP);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = changed => {}
            }
        }
    }
}

/// Bandwidth limits of a credential, shared by its tasks, or of one task.
#[derive(Debug)]
pub struct Bandwidth {
    up: Bucket,
    down: Bucket,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Self::new(None, None)
    }
}

impl Bandwidth {
    /// Creates limits in bytes per second; `None` is unlimited.
    pub fn new(upload_bytes_per_s: Option<u64>, download_bytes_per_s: Option<u64>) -> Self {
        Self { up: Bucket::new(upload_bytes_per_s), down: Bucket::new(download_bytes_per_s) }
    }

    /// Changes both limits, also for waiting requests.
    pub fn set(&self, upload_bytes_per_s: Option<u64>, download_bytes_per_s: Option<u64>) {
        self.up.set(upload_bytes_per_s);
        self.down.set(download_bytes_per_s);
    }

    /// Returns true if there is a limit.
    pub fn is_limited(&self) -> bool {
        self.up.is_limited() || self.down.is_limited()
    }
}

/// Store middleware with bandwidth limits, such as those of a task, the host and a credential.
///
/// Each body is booked as a whole and sent at line speed; the next one waits until the average is within all
/// limits. Must be in front of the retrying store, whose timeouts would include the wait; so repeated bodies
/// are not counted.
pub struct LimitStore {
    inner: Arc<dyn BlobStore>,
    /// Outermost limit last; waits start with it.
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
        Box::pin(async move {
            for Bandwidth { up, down } in self.limits.iter().rev().map(|limit| &**limit) {
                match request.operation {
                    Operation::Put | Operation::MultipartPut => up.wait(request.sent_bytes).await,
                    Operation::Get => down.wait(0).await,
                    Operation::GetRange => down.wait(request.wanted_bytes).await,
                    _ => {}
                }
            }
            let answer = ask(self.inner.clone()).await?;
            if request.operation == Operation::Get {
                // The length is known only now; later requests wait for it.
                for limit in &self.limits {
                    limit.down.book(answer.received_bytes());
                }
            }
            Ok(answer)
        })
    }
}
