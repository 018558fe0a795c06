//! Thread that drives the fetches of lazy volumes.
//!
//! The futures of the cloud crate cannot move between threads, and a thread for each would exhaust the pool
//! while a store is silent. So one thread drives all of them concurrently; CPU and disk work goes to worker
//! threads.

use std::{future::Future, pin::Pin, sync::OnceLock};
use tokio::{
    runtime::Handle,
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::LocalSet,
};

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;
type Job = Box<dyn FnOnce() -> LocalFuture + Send>;

/// Executor of fetches on one thread, which starts on first use.
#[derive(Default)]
pub struct Fetcher {
    /// Unbounded, because each volume bounds its fetches in flight.
    jobs: OnceLock<Option<UnboundedSender<Job>>>,
}

impl Fetcher {
    /// Runs the future of `job` on the thread. If the thread cannot be started, `job` is dropped.
    pub fn submit<F>(&self, handle: &Handle, job: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let jobs = self.jobs.get_or_init(|| start(handle.clone()));
        if let Some(jobs) = jobs {
            // The thread receives as long as there is a sender.
            let _ = jobs.send(Box::new(move || Box::pin(job())));
        }
    }
}

fn start(handle: Handle) -> Option<UnboundedSender<Job>> {
    let (send, mut receive) = unbounded_channel::<Job>();
    let drive = move || {
        let local = LocalSet::new();
        handle.block_on(local.run_until(async move {
            while let Some(job) = receive.recv().await {
                tokio::task::spawn_local(job());
            }
        }));
    };
    match std::thread::Builder::new().name("lazy-fetch".into()).spawn(drive) {
        Ok(_) => Some(send),
        Err(error) => {
            tracing::error!(%error, "starting the fetch thread failed: lazy volumes cannot fetch blocks");
            None
        }
    }
}
