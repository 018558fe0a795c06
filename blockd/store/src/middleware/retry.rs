//! Retries with bounded exponential backoff and jitter, and a timeout for each attempt.

use super::store_time::StoreClock;
use crate::{BlobStore, MeterStore, Operation, Request, Requests, Response, StoreErrorKind, StoreFuture};
use backon::{BackoffBuilder, ExponentialBuilder};
use std::{sync::Arc, time::Duration};

/// Minimum transfer rate of a body, in bytes per second.
const MIN_BYTES_PER_S: u64 = 64 << 10;

/// Maximum pause that a store can request.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Retry policy of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RetryPolicy {
    /// Maximum number of attempts; at least 1.
    pub attempts: u32,
    /// Pause after the first failure; it doubles with each further one.
    pub base_ms: u64,
    /// Maximum pause.
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
    /// Returns the pauses between the attempts: half of each is fixed, half random, so that tasks that failed
    /// simultaneously do not retry simultaneously.
    fn pauses(&self) -> impl Iterator<Item = Duration> + use<> {
        ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(self.base_ms.min(self.max_ms)) / 2)
            .with_max_delay(Duration::from_millis(self.max_ms) / 2)
            .with_max_times(self.attempts.saturating_sub(1) as usize)
            .with_jitter()
            .build()
    }

    fn timeout(&self, body_len_bytes: u64) -> Duration {
        Duration::from_millis(
            self.request_timeout_ms.saturating_add(body_len_bytes.saturating_mul(1000) / MIN_BYTES_PER_S),
        )
    }
}

/// Returns the store of a task, which retries requests to `base` by `policy`, and its counters of all
/// attempts.
pub fn task_store(base: Arc<dyn BlobStore>, policy: RetryPolicy) -> (Arc<dyn BlobStore>, Arc<Requests>) {
    let requests = Arc::new(Requests::default());
    let metered = Arc::new(MeterStore::new(base, requests.clone()));
    (Arc::new(RetryStore::new(metered, policy)), requests)
}

/// Middleware that repeats requests after retryable errors.
///
/// An attempt whose response was lost may have succeeded: a retried create-if-absent can therefore report
/// that the object exists although the same request created it.
pub struct RetryStore {
    inner: Arc<dyn BlobStore>,
    policy: RetryPolicy,
}

impl RetryStore {
    /// Creates a store that retries requests to `inner` by `policy`.
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
            // A long response, or much work in the store: gets the time of a large body.
            Operation::List | Operation::MultipartComplete | Operation::DeleteMany => 32 << 20,
            _ => request.sent_bytes.max(request.wanted_bytes),
        };
        let limit = self.policy.timeout(body_len_bytes);
        Box::pin(async move {
            let mut pauses = self.policy.pauses();
            loop {
                let error = match StoreClock::start().timeout(limit, ask(self.inner.clone())).await {
                    Some(Ok(value)) => return Ok(value),
                    Some(Err(error)) => error,
                    None => request
                        .failed(StoreErrorKind::Timeout, self.inner.describe())
                        .with_detail(format!("waited {} s", limit.as_secs())),
                };
                let Some(pause) = pauses.next().filter(|_| error.is_retryable()) else { return Err(error) };
                let asked =
                    Duration::from_secs(error.retry_after_s.unwrap_or_default().into()).min(MAX_RETRY_AFTER);
                let pause = pause.max(asked);
                tracing::debug!(%error, pause_ms = pause.as_millis() as u64, "request failed: retrying");
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
        let pauses: Vec<u64> = policy.pauses().map(|pause| pause.as_millis() as u64).collect();
        for (pause, full) in pauses.iter().zip([200, 400, 800, 1600, 3200]) {
            assert!((full / 2..=full).contains(pause), "{pauses:?}");
        }
        assert_eq!(pauses.len(), 5);
        let long = RetryPolicy { attempts: 100, ..policy };
        assert!(long.pauses().skip(6).all(|pause| (5000..=10_000).contains(&pause.as_millis())));
    }
}
