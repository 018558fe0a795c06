//! Descriptors that come with a request through a unix socket.
//!
//! One is kept for the request that is being read; what comes beside it, or after the request was read, is closed at once, and
//! the one is closed with the request if that does not want it.

use super::{Failure, invalid};
use axum::{extract::FromRequestParts, http::request::Parts};
use parking_lot::Mutex;
use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags},
};
use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::UnixStream,
};

#[derive(Default)]
struct Kept {
    descriptor: Option<OwnedFd>,
    /// Whether there were more.
    were_more: bool,
    /// Whether whatever comes now is closed.
    is_over: bool,
}

impl Kept {
    fn add(&mut self, descriptor: OwnedFd) {
        if self.is_over {
            return;
        }
        if self.descriptor.is_some() {
            self.were_more = true;
        } else {
            self.descriptor = Some(descriptor);
        }
    }
}

/// What came through a connection so far.
#[derive(Clone, Default)]
pub(super) struct Passed(Arc<Mutex<Kept>>);

impl Passed {
    /// What came so far, for the request that was read; what comes later is closed.
    pub(super) fn take(&self) -> Self {
        let mut kept = self.0.lock();
        let taken = std::mem::take(&mut *kept);
        kept.is_over = true;
        Self(Arc::new(Mutex::new(taken)))
    }

    /// The only one that came.
    fn only(&self) -> Result<OwnedFd, &'static str> {
        let mut kept = self.0.lock();
        match kept.descriptor.take() {
            Some(_) if kept.were_more => Err("more than one descriptor came with the request"),
            Some(descriptor) => Ok(descriptor),
            None => {
                Err("no descriptor came with the request: only programs of this host can hand one over, \
                through a unix socket, with the first byte")
            }
        }
    }
}

/// The one descriptor that came with a request.
pub(super) struct Descriptor(pub(super) OwnedFd);

impl<S: Send + Sync> FromRequestParts<S> for Descriptor {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let passed = parts.extensions.remove::<Passed>().unwrap_or_default();
        passed.only().map(Self).map_err(invalid)
    }
}

/// A connection that keeps what descriptor comes through it.
pub(super) struct Receiving {
    stream: UnixStream,
    passed: Passed,
}

impl Receiving {
    /// The connection, and where its descriptors go.
    pub(super) fn new(stream: UnixStream) -> (Self, Passed) {
        let passed = Passed::default();
        (Self { stream, passed: passed.clone() }, passed)
    }

    fn receive(&self, bytes: &mut [u8]) -> io::Result<usize> {
        // The kernel itself closes what there is no room for.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut buffers = [IoSliceMut::new(bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match rustix::net::recvmsg(&self.stream, &mut buffers, &mut control, flags) {
                Err(Errno::INTR) => {}
                received => break received?,
            }
        };
        let mut kept = self.passed.0.lock();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                descriptors.for_each(|descriptor| kept.add(descriptor));
            }
        }
        kept.were_more |= received.flags.contains(ReturnFlags::CTRUNC);
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
mod tests {
    use super::*;
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use std::{
        fs::File,
        io::{IoSlice, Read, Write},
        os::fd::{AsFd, BorrowedFd},
    };
    use tokio::io::AsyncReadExt;

    fn pair() -> (std::os::unix::net::UnixStream, Receiving, Passed) {
        let (far, near) = std::os::unix::net::UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let (near, passed) = Receiving::new(UnixStream::from_std(near).unwrap());
        (far, near, passed)
    }

    fn send(far: &std::os::unix::net::UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
        rustix::net::sendmsg(far, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    }

    async fn read(near: &mut Receiving, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        near.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    /// A pipe whose reading end says when the last copy of its writing end was closed.
    struct Watched(std::io::PipeReader, Option<std::io::PipeWriter>);

    impl Watched {
        fn new() -> Self {
            let (read, write) = std::io::pipe().unwrap();
            Self(read, Some(write))
        }

        fn descriptor(&self) -> BorrowedFd<'_> {
            self.1.as_ref().unwrap().as_fd()
        }

        /// Whether nobody but the test has the writing end; with that the test's is closed.
        fn is_closed_elsewhere(&mut self) -> bool {
            self.1 = None;
            let mut polled = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            rustix::event::poll(&mut polled, Some(&now)).unwrap();
            polled[0].revents().contains(rustix::event::PollFlags::HUP)
        }
    }

    #[tokio::test]
    async fn one_descriptor_comes_with_the_bytes() {
        let (far, mut near, passed) = pair();
        let mut watched = Watched::new();
        send(&far, b"hello", &[watched.descriptor()]);
        assert_eq!(read(&mut near, 5).await, b"hello");
        let taken = passed.take();
        let descriptor = taken.only().unwrap();
        assert!(rustix::io::fcntl_getfd(&descriptor).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        File::from(descriptor).write_all(b"x").unwrap();
        let mut byte = [0];
        watched.0.read_exact(&mut byte).unwrap();
        assert!(watched.is_closed_elsewhere() && taken.only().is_err());
    }

    #[tokio::test]
    async fn none_and_more_than_one_are_told_apart() {
        let (far, mut near, passed) = pair();
        send(&far, b"a", &[]);
        read(&mut near, 1).await;
        assert!(passed.take().only().unwrap_err().starts_with("no descriptor"));
        // In one message, in several, and more than there is room for.
        for (count, times) in [(2, 1), (1, 2), (16, 1), (3, 3)] {
            let (far, mut near, passed) = pair();
            let mut watched = Watched::new();
            for _ in 0..times {
                send(&far, b"a", &vec![watched.descriptor(); count]);
            }
            read(&mut near, times).await;
            let taken = passed.take();
            assert!(taken.only().unwrap_err().starts_with("more than one"), "{count} {times}");
            assert!(watched.is_closed_elsewhere(), "{count} {times}");
        }
    }

    #[tokio::test]
    async fn what_nobody_wants_is_closed() {
        let (far, mut near, passed) = pair();
        let (mut first, mut late) = (Watched::new(), Watched::new());
        send(&far, b"a", &[first.descriptor()]);
        read(&mut near, 1).await;
        drop(passed.take());
        assert!(first.is_closed_elsewhere());
        send(&far, b"b", &[late.descriptor()]);
        read(&mut near, 1).await;
        assert!(late.is_closed_elsewhere());
    }
}
