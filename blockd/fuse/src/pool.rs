//! Threads for requests that may have to wait for a store, so that no request waits for another one's.

use crossbeam::channel::{Sender, bounded};
use std::io;

type Work = Box<dyn FnOnce() + Send>;

/// A number of threads. They end when this is dropped and the last request is done.
pub(crate) struct Pool {
    send: Sender<Work>,
}

impl Pool {
    /// So many threads, for which up to `queue` requests wait.
    pub fn new(threads: usize, queue: usize) -> io::Result<Self> {
        let (send, receive) = bounded::<Work>(queue);
        for number in 0..threads {
            let receive = receive.clone();
            std::thread::Builder::new().name(format!("browse-{number}")).spawn(move || {
                while let Ok(work) = receive.recv() {
                    // A panicking request fails: its reply reports that on drop.
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                        tracing::error!("a request for a browsed file panicked");
                    }
                }
            })?;
        }
        Ok(Self { send })
    }

    /// Has one of the threads do it. Waits if too many requests wait already.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) {
        // The threads live as long as the pool. Otherwise the reply reports the failure on drop.
        let _ = self.send.send(Box::new(work));
    }
}
