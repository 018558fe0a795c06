//! Descriptors that come with a request through a unix socket.
//!
//! Only who may hand a mount over, and begins to ask for that, can pass any: for all others the kernel drops
//! what comes, before this process has it. One is kept for the request that is being read, and none is taken
//! when it was read. What is not wanted is closed where that may wait.

use super::{
    Failure,
    caller::Caller,
    closing::{Closer, Foreign},
    invalid,
};
use axum::{extract::FromRequestParts, http::request::Parts};
use blockd_api::{operations::role_for, paths, roles::Role};
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

/// How many descriptors are taken at once: one more than is wanted, to see that there were more.
const AT_ONCE: usize = 2;
/// The space for them, which the kernel fills: with padding, more may fit.
const SPACE_LEN: usize = rustix::cmsg_space!(ScmRights(AT_ONCE));
/// No more than these fit into it.
#[allow(clippy::cast_possible_truncation, reason = "it is some tens of bytes")]
const MAX_FIT: u32 = (SPACE_LEN / size_of::<i32>()) as u32;

#[derive(Default)]
struct Kept {
    descriptor: Option<Foreign>,
    /// Whether there were more.
    were_more: bool,
    /// Whether what came was not taken, as there are too many already.
    had_no_room: bool,
    /// Whether nothing is taken any more.
    is_over: bool,
}

impl Kept {
    fn add(&mut self, descriptor: Option<Foreign>) {
        if self.descriptor.is_some() || descriptor.is_none() {
            self.were_more = true;
        } else {
            self.descriptor = descriptor;
        }
    }
}

/// What came through a connection so far.
#[derive(Clone, Default)]
pub(super) struct Passed(Arc<Mutex<Kept>>);

impl Passed {
    /// What came so far, for the request that was read; what comes later is not taken.
    pub(super) fn take(&self) -> Self {
        let mut kept = self.0.lock();
        let taken = std::mem::take(&mut *kept);
        kept.is_over = true;
        Self(Arc::new(Mutex::new(taken)))
    }

    /// The only one that came.
    fn only(&self) -> Result<Foreign, &'static str> {
        let mut kept = self.0.lock();
        match kept.descriptor.take() {
            Some(_) if kept.were_more => Err("more than one descriptor came with the request"),
            Some(descriptor) => Ok(descriptor),
            None if kept.had_no_room => {
                Err("too many descriptors of others wait to be closed: try again later")
            }
            None => {
                Err("no descriptor came with the request: only programs of this host can hand one over, \
                through a unix socket, in one message with the head of the request")
            }
        }
    }
}

/// The one descriptor that came with a request.
pub(super) struct Descriptor(pub(super) Foreign);

impl<S: Send + Sync> FromRequestParts<S> for Descriptor {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let passed = parts.extensions.remove::<Passed>().unwrap_or_default();
        passed.only().map(Self).map_err(invalid)
    }
}

/// Whether this caller may hand anything over.
pub(super) fn may_pass(caller: &Caller) -> bool {
    let least = role_for("POST", paths::BROWSE_HANDED).unwrap_or(Role::Admin);
    caller.role.is_some_and(|has| has >= least)
}

/// A connection that keeps what descriptor comes through it.
pub(super) struct Receiving {
    stream: UnixStream,
    passed: Passed,
    /// None if nothing is taken from this caller.
    closer: Option<Arc<Closer>>,
    /// Whether the request is one that hands something over, as soon as its beginning is there.
    is_wanted: OnceCell<bool>,
}

impl Receiving {
    /// The connection, and where its descriptors go, if there is who closes them.
    pub(super) fn new(stream: UnixStream, closer: Option<Arc<Closer>>) -> (Self, Passed) {
        let passed = Passed::default();
        (Self { stream, passed: passed.clone(), closer, is_wanted: OnceCell::new() }, passed)
    }

    /// Whether the request begins as one that hands something over.
    fn is_wanted(&self) -> io::Result<bool> {
        if let Some(is_wanted) = self.is_wanted.get() {
            return Ok(*is_wanted);
        }
        let head = format!("POST {} ", paths::BROWSE_HANDED);
        let mut begin = vec![0; head.len()];
        // A look without room for descriptors takes none.
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
        // The kernel itself drops what there is no room for.
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
