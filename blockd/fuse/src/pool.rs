//! Thread pool for requests that may wait for a store, so that they do not block the threads of the session.

use crossbeam::channel::{Sender, bounded};
use std::io;

type Work = Box<dyn FnOnce() + Send>;

/// Thread pool. Its threads end after drop and the last request.
pub(crate) struct Pool {
    send: Sender<Work>,
}

impl Pool {
    /// Starts `threads` threads with a queue of up to `queue` requests.
    pub fn new(threads: usize, queue: usize) -> io::Result<Self> {
        let (send, receive) = bounded::<Work>(queue);
        for number in 0..threads {
            let receive = receive.clone();
            std::thread::Builder::new().name(format!("browse-{number}")).spawn(move || {
                while let Ok(work) = receive.recv() {
                    // A panicking request fails: its reply reports that on drop.
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
                        tracing::error!("a FUSE request panicked");
                    }
                }
            })?;
        }
        Ok(Self { send })
    }

    /// Queues work for a thread. Blocks while the queue is full.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) {
        // Never fails while a thread runs; otherwise the reply reports an error on drop.
        let _ = self.send.send(Box::new(work));
    }
}
