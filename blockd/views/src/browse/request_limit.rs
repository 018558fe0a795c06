//! Limit on concurrent browse requests.
//!
//! A request holds a blocking thread while it waits for work of the runtime, which may itself need a blocking
//! thread: requests that held all of them would deadlock. The limit leaves most threads to that work.

use blockd_engine::error::{ServiceError, blocking};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Maximum number of concurrent requests; others wait without a thread. The runtime has 512 blocking threads.
const MAX_CONCURRENT: usize = 32;

/// Semaphore of blocking requests.
pub struct RequestLimit(Arc<Semaphore>);

impl Default for RequestLimit {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_CONCURRENT)))
    }
}

impl RequestLimit {
    /// Runs `work` on a blocking thread once a permit is free. The permit is held until the work ends, even
    /// if the caller is dropped.
    ///
    /// # Errors
    /// The work failed or panicked.
    pub async fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<R, ServiceError> + Send + 'static,
    ) -> Result<R, ServiceError> {
        let permit = Arc::clone(&self.0).acquire_owned().await.map_err(|_| ServiceError::Stopping)?;
        blocking(move || {
            let _permit = permit;
            work()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::{runtime::Handle, task::JoinSet};

    /// Runs more requests than the runtime has threads; each waits for work that needs a thread.
    #[test]
    fn blocking_requests_leave_threads_to_their_dependencies() {
        let threads = MAX_CONCURRENT + 4;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).max_blocking_threads(threads).enable_all().build().unwrap();
        let done = runtime.block_on(async {
            let limit = Arc::new(RequestLimit::default());
            let mut requests = JoinSet::new();
            for number in 0..threads * 4 {
                let limit = Arc::clone(&limit);
                requests.spawn(async move {
                    let handle = Handle::current();
                    limit.run(move || handle.block_on(blocking(move || Ok::<_, ServiceError>(number)))).await
                });
            }
            // Without the limit, this deadlocks.
            tokio::time::timeout(Duration::from_secs(120), requests.join_all()).await
        });
        runtime.shutdown_background();
        let numbers = done.expect("the requests deadlocked").into_iter().map(Result::unwrap);
        assert_eq!(numbers.sum::<usize>(), (0..threads * 4).sum::<usize>());
    }
}
