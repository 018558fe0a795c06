//! Signals that a command handles, such as those that end it.

use std::{future::poll_fn, io, task::Poll};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that the command handles, in place of the kernel's default action.
pub struct Signals(Vec<Signal>);

impl Signals {
    /// Listens for these signals.
    pub fn listen(kinds: &[SignalKind]) -> io::Result<Self> {
        kinds.iter().copied().map(signal).collect::<io::Result<_>>().map(Self)
    }

    /// Waits for one of the signals.
    pub async fn received(&mut self) {
        poll_fn(|context| match self.0.iter_mut().any(|signal| signal.poll_recv(context).is_ready()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}
