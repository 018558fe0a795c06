//! Worker threads of backups, restores and verifications, separate from latency-sensitive threads.
//!
//! The threads are few and permanent, so that they can have their own priority: the runtime's threads serve
//! all requests, and an unprivileged process cannot raise a lowered priority again. The queue has one slot
//! per thread; callers wait for a slot.

use crossbeam::channel::{Sender, bounded};
use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
};
use tokio::sync::{Semaphore, oneshot};

/// Work item.
type Work = Box<dyn FnOnce() + Send>;

/// Cause of a missing result.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Lost {
    /// The work panicked.
    #[error("the work panicked")]
    Panicked,
    /// The threads have ended.
    #[error("the threads have ended")]
    Ended,
}

/// Thread pool; the threads end when the last handle is dropped.
#[derive(Clone)]
pub struct Workers {
    queue: Sender<Work>,
    /// Permits for the queue's slots: a holder enqueues without waiting.
    room: Arc<Semaphore>,
    threads: usize,
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Workers {
    /// Starts `threads` threads, at least one; each first runs `at_start`.
    ///
    /// # Errors
    /// A thread cannot be created.
    pub fn start(
        name: &str,
        threads: usize,
        at_start: impl Fn() + Clone + Send + 'static,
    ) -> io::Result<Self> {
        let threads = threads.max(1);
        let (queue, waiting) = bounded::<Work>(threads);
        for _ in 0..threads {
            let (waiting, at_start) = (waiting.clone(), at_start.clone());
            thread::Builder::new().name(name.to_owned()).spawn(move || {
                at_start();
                waiting.iter().for_each(|work| work());
            })?;
        }
        Ok(Self { queue, room: Arc::new(Semaphore::new(threads)), threads })
    }

    /// Runs a work item and waits for it. The item completes also if the caller is cancelled.
    ///
    /// # Errors
    /// The work panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let room = self.room.clone().acquire_owned().await.map_err(|_| Lost::Ended)?;
        let (tell, told) = oneshot::channel();
        let work = move || {
            // The item has left the queue: frees its slot.
            drop(room);
            let _ = tell.send(catch_unwind(AssertUnwindSafe(work)).map_err(|_| Lost::Panicked));
        };
        self.queue.try_send(Box::new(work)).map_err(|_| Lost::Ended)?;
        told.await.map_err(|_| Lost::Ended)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn work_is_done_by_so_many_threads_and_no_more() {
        let started = Arc::new(AtomicUsize::new(0));
        let count = started.clone();
        let workers = Workers::start("test", 2, move || {
            count.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
        let (busy, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let pieces = (0..50).map(|n| {
            let (busy, most) = (busy.clone(), most.clone());
            workers.run(move || {
                most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::yield_now();
                busy.fetch_sub(1, Ordering::SeqCst);
                n
            })
        });
        let done: u64 = futures::future::try_join_all(pieces).await.unwrap().into_iter().sum();
        assert_eq!(done, 49 * 50 / 2);
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert!((1..=2).contains(&started.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn worker_panic_is_an_error_and_the_thread_continues() {
        let workers = Workers::start("test", 1, || {}).unwrap();
        assert_eq!(workers.run(|| panic!("on purpose")).await, Err::<(), _>(Lost::Panicked));
        assert_eq!(workers.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn abandoned_work_is_completed() {
        let workers = Workers::start("test", 1, || {}).unwrap();
        let (tell, told) = oneshot::channel();
        let mut abandoned = Box::pin(workers.run(move || {
            let _ = tell.send(());
        }));
        let _ = futures::poll!(abandoned.as_mut());
        drop(abandoned);
        told.await.unwrap();
    }
}
