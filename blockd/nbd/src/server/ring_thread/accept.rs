//! Accepts, and distribution of new connections to the ring threads.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::RingThread;
use super::tag::Tag;
use crate::server::mailbox::{Message, NewConnection};

/// Pause of accepts after an error of the listening socket, such as a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl RingThread {
    pub(super) fn accept(&mut self, index: usize) {
        if let Some(listener) = self.listeners.get(index) {
            self.ring.accept(&listener.socket, Tag::Accept(index).pack());
            self.accepting += 1;
        }
    }

    pub(super) fn accepted(&mut self, index: usize, result: io::Result<OwnedFd>) {
        assert!(self.accepting > 0, "accepts in progress are counted");
        self.accepting -= 1;
        if self.stop_at.is_some() {
            return;
        }
        match result {
            Ok(socket) => {
                self.dispatch(index, socket);
                self.accept(index);
            }
            Err(error) if is_about_one_connection(&error) => {
                tracing::debug!(%error, "accepting a connection failed");
                self.accept(index);
            }
            Err(error) => {
                tracing::warn!(%error, "accepting connections failed; retrying");
                self.paused.push(index);
                if let Some(later) = self.resources.now.checked_add(ACCEPT_PAUSE) {
                    self.check_at(later);
                }
            }
        }
    }

    /// Passes a new connection to the next running thread.
    fn dispatch(&mut self, index: usize, socket: OwnedFd) {
        let Some(listener) = self.listeners.get(index) else {
            return;
        };
        let peer = listener.prepare(&socket);
        let Some(slot) = self.resources.shared.connections.enter(listener.is_tcp) else {
            if let Some(refused) = self.refusals.count(self.resources.now) {
                tracing::warn!(%peer, refused, "connections were refused at the connection limit");
            }
            return;
        };
        let shared = Arc::clone(&self.resources.shared);
        let new_connection = NewConnection { socket, peer, slot };
        for _ in 0..shared.mailboxes.len() {
            self.next_thread = (self.next_thread + 1) % shared.mailboxes.len();
            if self.next_thread == self.id {
                break;
            }
            if let Some(mailbox) = shared.mailboxes.get(self.next_thread)
                && !mailbox.is_dead()
            {
                mailbox.post(Message::Adopt(new_connection));
                return;
            }
        }
        self.adopt(new_connection);
    }
}

/// Returns true for an accept error of a single connection.
fn is_about_one_connection(error: &io::Error) -> bool {
    let about_one = [Errno::CONNABORTED, Errno::INTR, Errno::PROTO, Errno::AGAIN];
    error.raw_os_error().is_some_and(|code| about_one.iter().any(|errno| errno.raw_os_error() == code))
}
