//! Noticing the end of a ring thread, however it comes: a ring that fails, or a panic. Connections are handed
//! to it no longer, and if it was the one that accepts them, whoever started the server is told that it
//! serves no more.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::mailbox::Mailbox;
use crate::ring_thread::Message;

/// Is told that a server accepts no more connections. To be quick: it is called on a thread that ends.
pub type FailureListener = Box<dyn FnOnce() + Send>;

/// Whether a server still accepts connections, and who wants to know when it does not.
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
    /// It ends because it was told to, or was never there.
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
