//! Detection of a failed ring thread: its ring failed, or it panicked. It gets no more connections. If it was
//! the accepting thread, the server's owner is notified.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::server::mailbox::{Mailbox, Message};

/// Callback of [`Server::on_failure`](crate::Server::on_failure). It must not block: it may run on the failed
/// thread.
pub type FailureListener = Box<dyn FnOnce() + Send>;

/// Failure state of the accepting thread, and the callback.
#[derive(Default)]
pub(crate) struct Failure(Mutex<FailureState>);

#[derive(Default)]
struct FailureState {
    has_failed: bool,
    listener: Option<FailureListener>,
}

impl Failure {
    /// Registers the callback, or calls it at once after a failure.
    pub(crate) fn listen(&self, listener: FailureListener) {
        let mut state = self.0.lock();
        if state.has_failed {
            drop(state);
            listener();
        } else {
            state.listener = Some(listener);
        }
    }

    fn notify(&self) {
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

/// Guard of a ring thread, dropped after the other values of the thread.
pub(crate) struct ThreadEnd {
    pub(crate) thread: usize,
    pub(crate) mailbox: Arc<Mailbox<Message>>,
    /// Notified by the first thread, which accepts the connections of all.
    pub(crate) failure: Arc<Failure>,
    /// True unless the thread runs: its start failed, or it was shut down.
    pub(crate) is_expected: bool,
}

impl Drop for ThreadEnd {
    fn drop(&mut self) {
        self.mailbox.close();
        if self.is_expected {
            return;
        }
        let panicked = std::thread::panicking();
        tracing::error!(thread = self.thread, panicked, "a server thread failed; its connections are lost");
        if self.thread == 0 {
            self.failure.notify();
        }
    }
}
