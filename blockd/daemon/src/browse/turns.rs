//! How many requests may look into snapshots at once.
//!
//! Each takes a thread that blocks while it waits for work of the runtime, and that work may need such a
//! thread too: if all of them waited, none would go on. So most threads are kept for the work.

use crate::error::{ServiceError, blocking};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Requests at once; the others wait, holding no thread. The runtime has 512 threads that may block.
const AT_ONCE: usize = 32;

/// Turns of requests that block.
pub(crate) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Turns {
    /// Does it on a thread that may block, when it is its turn. The turn ends with the work, also if nobody
    /// waits for that any more.
    ///
    /// # Errors
    /// Those of the work; or it panicked.
    pub async fn run<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<R, ServiceError> + Send + 'static,
    ) -> Result<R, ServiceError> {
        let turn = Arc::clone(&self.0).acquire_owned().await.map_err(|_| ServiceError::Stopping)?;
        blocking(move || {
            let _turn = turn;
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

    /// More requests than there are threads, each of which waits for work that needs one.
    #[test]
    fn requests_leave_threads_to_what_they_wait_for() {
        let threads = AT_ONCE + 4;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).max_blocking_threads(threads).enable_all().build().unwrap();
        let done = runtime.block_on(async {
            let turns = Arc::new(Turns::default());
            let mut requests = JoinSet::new();
            for number in 0..threads * 4 {
                let turns = Arc::clone(&turns);
                requests.spawn(async move {
                    let handle = Handle::current();
                    turns.run(move || handle.block_on(blocking(move || Ok::<_, ServiceError>(number)))).await
                });
            }
            // Far longer than it takes: without turns it would never end.
            tokio::time::timeout(Duration::from_secs(120), requests.join_all()).await
        });
        runtime.shutdown_background();
        let numbers = done.expect("it goes on").into_iter().map(Result::unwrap);
        assert_eq!(numbers.sum::<usize>(), (0..threads * 4).sum::<usize>());
    }
}
