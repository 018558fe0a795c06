//! Descriptors passed with a request through a Unix socket.
//!
//! Descriptors are accepted only from callers with the permission to pass a mount, and only for that request;
//! otherwise the kernel drops them before this process receives them. One descriptor is kept for the first
//! request of a connection, and none is accepted after it. A thread that may block closes surplus ones.

use super::{
    caller::Caller,
    replies::{Failure, invalid},
};
use axum::{extract::FromRequestParts, http::request::Parts};
use blockd_api::operations::HAND_MOUNT;
use blockd_views::foreign_fd::{Closer, ForeignFd};
use parking_lot::Mutex;
use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags},
};
use std::{
    cell::OnceCell,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
};

/// Descriptors accepted per message: one more than needed, to detect surplus ones.
const AT_ONCE: usize = 2;
/// Space for control messages; with padding, more may fit.
const SPACE_LEN: usize = rustix::cmsg_space!(ScmRights(AT_ONCE));
/// Maximum number of descriptors in this space.
#[allow(clippy::cast_possible_truncation, reason = "it is some tens of bytes")]
const MAX_FIT: u32 = (SPACE_LEN / size_of::<i32>()) as u32;

#[derive(Default)]
struct PassedFdsState {
    descriptor: Option<ForeignFd>,
    /// More than one descriptor came.
    were_more: bool,
    /// Descriptors were refused, as there are too many already.
    had_no_room: bool,
    /// No more descriptors are accepted.
    is_over: bool,
}

impl PassedFdsState {
    fn add(&mut self, descriptor: Option<ForeignFd>) {
        if self.descriptor.is_some() || descriptor.is_none() {
            self.were_more = true;
        } else {
            self.descriptor = descriptor;
        }
    }
}

/// Descriptors of a connection.
#[derive(Clone, Default)]
pub(super) struct PassedFds(Arc<Mutex<PassedFdsState>>);

impl PassedFds {
    /// Takes the descriptors of the request; later ones are refused.
    pub(super) fn take(&self) -> Self {
        let mut kept = self.0.lock();
        let taken = std::mem::take(&mut *kept);
        kept.is_over = true;
        Self(Arc::new(Mutex::new(taken)))
    }

    /// Returns the single descriptor.
    fn only(&self) -> Result<ForeignFd, &'static str> {
        let mut kept = self.0.lock();
        match kept.descriptor.take() {
            Some(_) if kept.were_more => Err("more than one descriptor came with the request"),
            Some(descriptor) => Ok(descriptor),
            None if kept.had_no_room => {
                Err("too many descriptors of others wait to be closed: try again later")
            }
            None => {
                Err("no descriptor came with the request: only programs of this host can hand one over, \
                through a unix socket, in one message with the head of the first request of a connection")
            }
        }
    }
}

/// Descriptor passed with a request.
pub(super) struct Descriptor(pub(super) ForeignFd);

impl<S: Send + Sync> FromRequestParts<S> for Descriptor {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let passed = parts.extensions.remove::<PassedFds>().unwrap_or_default();
        passed.only().map(Self).map_err(invalid)
    }
}

/// Returns true if the caller may pass descriptors.
pub(super) fn may_pass(caller: &Caller) -> bool {
    caller.role.is_some_and(|has| has >= HAND_MOUNT.info.role)
}

/// Connection that receives descriptors.
pub(super) struct Receiving {
    stream: UnixStream,
    passed: PassedFds,
    /// `None` if no descriptors are accepted from this caller.
    closer: Option<Arc<Closer>>,
    /// True if the request passes a descriptor, once its head is known.
    is_wanted: OnceCell<bool>,
}

impl Receiving {
    /// Creates a connection that accepts descriptors if there is a closer.
    pub(super) fn new(stream: UnixStream, closer: Option<Arc<Closer>>) -> (Self, PassedFds) {
        let passed = PassedFds::default();
        (Self { stream, passed: passed.clone(), closer, is_wanted: OnceCell::new() }, passed)
    }

    /// Returns true if the request's head matches one with a descriptor.
    fn is_wanted(&self) -> io::Result<bool> {
        if let Some(is_wanted) = self.is_wanted.get() {
            return Ok(*is_wanted);
        }
        let head = format!("{} {} ", HAND_MOUNT.info.method.as_str(), HAND_MOUNT.info.path);
        let mut begin = vec![0; head.len()];
        // A peek without space for descriptors accepts none.
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let (count, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.stream, &mut begin[..], flags))?;
        let is_wanted = begin[..count] == *head.as_bytes();
        Ok(*self.is_wanted.get_or_init(|| is_wanted))
    }

    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let closer = match &self.closer {
            Some(closer) if self.is_wanted()? => Some(closer),
            _ => None,
        };
        let mut kept = self.passed.0.lock();
        let closer = closer.filter(|_| !kept.is_over);
        let mut room = closer.and_then(|closer| closer.room_for(MAX_FIT));
        // The kernel drops descriptors without space.
        let mut space = [MaybeUninit::uninit(); SPACE_LEN];
        let mut control = match &room {
            Some(_) => RecvAncillaryBuffer::new(&mut space),
            None => RecvAncillaryBuffer::default(),
        };
        let received = loop {
            let mut buffers = [IoSliceMut::new(bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match rustix::net::recvmsg(&self.stream, &mut buffers, &mut control, flags) {
                Err(Errno::INTR) => {}
                received => break received?,
            }
        };
        let was_cut = received.flags.contains(ReturnFlags::CTRUNC);
        let Some(room) = &mut room else {
            kept.had_no_room |= was_cut && closer.is_some();
            kept.were_more |= was_cut && kept.descriptor.is_some();
            return Ok(received.bytes);
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                descriptors.for_each(|descriptor| kept.add(room.take(descriptor)));
            }
        }
        kept.were_more |= was_cut;
        Ok(received.bytes)
    }
}

impl AsyncRead for Receiving {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let bytes = buf.initialize_unfilled();
            match self.stream.try_io(Interest::READABLE, || self.receive(bytes)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(received) => {
                    buf.advance(received);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Receiving {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
