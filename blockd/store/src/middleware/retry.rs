//! Asking again: bounded exponential backoff with jitter, and a time limit on every request.

use crate::{BlobStore, MeterStore, Operation, Request, Requests, Response, StoreErrorKind, StoreFuture};
use std::{sync::Arc, time::Duration};

/// The slowest rate at which a body is still waited for, in bytes per second.
const SLOWEST_BYTES_PER_S: u64 = 64 << 10;

/// The longest pause that a store can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Retry policy of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryPolicy {
    /// Maximum number of attempts; at least 1.
    pub attempts: u32,
    /// The pause after the first failure; it doubles with each one.
    pub base_ms: u64,
    /// The longest pause.
    pub max_ms: u64,
    /// Timeout of one attempt, in addition to the time of its body at 64 KiB/s.
    pub request_timeout_ms: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 6, base_ms: 200, max_ms: 10_000, request_timeout_ms: 60_000 }
    }
}

impl RetryPolicy {
    /// The pause after failure number `failures` (from 1): half of it fixed, half random, so that tasks that
    /// failed together do not come back together.
    fn pause(&self, failures: u32) -> Duration {
        let doubled = self.base_ms.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(self.max_ms);
        let jitter = getrandom::u64().unwrap_or_default() % (doubled / 2 + 1);
        Duration::from_millis(doubled / 2 + jitter)
    }

    fn timeout(&self, body_len_bytes: u64) -> Duration {
        Duration::from_millis(
            self.request_timeout_ms.saturating_add(body_len_bytes.saturating_mul(1000) / SLOWEST_BYTES_PER_S),
        )
    }
}

/// The store of one task: requests to `base` are retried by `policy`, and every attempt is counted.
pub fn task_store(base: Arc<dyn BlobStore>, policy: RetryPolicy) -> (Arc<dyn BlobStore>, Arc<Requests>) {
    let requests = Arc::new(Requests::default());
    let metered = Arc::new(MeterStore::new(base, requests.clone()));
    (Arc::new(RetryStore::new(metered, policy)), requests)
}

/// A store that asks another one again when that can help.
///
/// An attempt whose answer is lost may have been carried out: a create-if-absent that was retried can
/// therefore report that the object exists although it was this very request that made it.
pub struct RetryStore {
    inner: Arc<dyn BlobStore>,
    policy: RetryPolicy,
}

impl RetryStore {
    /// Retries requests to `inner` by `policy`.
    pub fn new(inner: Arc<dyn BlobStore>, policy: RetryPolicy) -> Self {
        Self { inner, policy }
    }
}

impl crate::Middleware for RetryStore {
    fn describe(&self) -> &str {
        self.inner.describe()
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        request: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        let body_len_bytes = match request.operation {
            // A long answer, or much to do for the store: they get the time of a large body.
            Operation::List | Operation::MultipartComplete => 32 << 20,
            _ => request.sent_bytes.max(request.wanted_bytes),
        };
        let limit = self.policy.timeout(body_len_bytes);
        Box::pin(async move {
            let mut failures = 0;
            loop {
                let error = match tokio::time::timeout(limit, ask(self.inner.clone())).await {
                    Ok(Ok(value)) => return Ok(value),
                    Ok(Err(error)) => error,
                    Err(_) => request
                        .failed(StoreErrorKind::Timeout, self.inner.describe())
                        .with_detail(format!("waited {} s", limit.as_secs())),
                };
                failures += 1;
                if !error.is_retryable() || failures >= self.policy.attempts {
                    return Err(error);
                }
                let asked =
                    Duration::from_secs(error.retry_after_s.unwrap_or_default().into()).min(MAX_RETRY_AFTER);
                let pause = self.policy.pause(failures).max(asked);
                tracing::debug!(%error, failures, pause_ms = pause.as_millis() as u64, "the store failed, trying again");
                tokio::time::sleep(pause).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        let policy = RetryPolicy::default();
        for failures in 1..100 {
            let full = (200u64 << (failures - 1).min(20)).min(10_000);
            let pause = policy.pause(failures).as_millis() as u64;
            assert!((full / 2..=full).contains(&pause), "{failures}: {pause}");
        }
    }
}
