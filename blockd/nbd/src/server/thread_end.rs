//! Detection of the end of a ring thread, by a failed ring or a panic. It gets no more connections, and if it
//! was the accepting one, the owner of the server is notified.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::server::mailbox::{Mailbox, Message};

/// Callback for the end of accepts. It must be quick: it runs on an ending thread.
pub type FailureListener = Box<dyn FnOnce() + Send>;

/// State of a server's accepts, and the callback for their end.
#[derive(Default)]
pub(crate) struct Failure(Mutex<State>);

#[derive(Default)]
struct State {
    has_failed: bool,
    listener: Option<FailureListener>,
}

impl Failure {
    /// Has `listener` called when the server fails, or at once if it has failed.
    pub(crate) fn listen(&self, listener: FailureListener) {
        let mut state = self.0.lock();
        if state.has_failed {
            drop(state);
            listener();
        } else {
            state.listener = Some(listener);
        }
    }

    fn happen(&self) {
        let listener = {
            let mut state = self.0.lock();
            state.has_failed = true;
            state.listener.take()
        };
        if let Some(listener) = listener {
            listener();
        }
    }
}

/// To be dropped at the end of a ring thread, behind all that the thread has.
pub(crate) struct ThreadEnd {
    pub(crate) thread: usize,
    pub(crate) mailbox: Arc<Mailbox<Message>>,
    /// The first thread accepts for all.
    pub(crate) failure: Arc<Failure>,
    /// The end was requested, or the thread was never started.
    pub(crate) is_expected: bool,
}

impl Drop for ThreadEnd {
    fn drop(&mut self) {
        self.mailbox.close();
        if self.is_expected {
            return;
        }
        let panicked = std::thread::panicking();
        tracing::error!(thread = self.thread, panicked, "a server thread died; its connections are dropped");
        if self.thread == 0 {
            self.failure.happen();
        }
    }
}
