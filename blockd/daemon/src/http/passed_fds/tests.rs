//! Tests of passed descriptors.

use super::*;
use blockd_api::roles::Role;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::{
    fs::File,
    io::{IoSlice, Read, Write},
    os::fd::{AsFd, BorrowedFd},
};
use tokio::io::AsyncReadExt;

/// Head of a request with a descriptor.
const HEAD: &[u8] = b"POST /v1/browse/handed HTTP/1.1\r\n";

fn pair_of(closer: Option<Arc<Closer>>) -> (std::os::unix::net::UnixStream, Receiving, PassedFds) {
    let (far, near) = std::os::unix::net::UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let (near, passed) = Receiving::new(UnixStream::from_std(near).unwrap(), closer);
    (far, near, passed)
}

fn pair() -> (std::os::unix::net::UnixStream, Receiving, PassedFds) {
    pair_of(Some(Arc::new(Closer::new(64).unwrap())))
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

/// Pipe whose reader detects the last close of its writing end.
struct Watched(std::io::PipeReader, Option<std::io::PipeWriter>);

impl Watched {
    fn new() -> Self {
        let (read, write) = std::io::pipe().unwrap();
        Self(read, Some(write))
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.1.as_ref().unwrap().as_fd()
    }

    /// Closes the test's writing end, and returns true if there was no other.
    fn is_closed_by_peer(&mut self) -> bool {
        self.1 = None;
        let mut polled = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
        // Another thread closes the descriptor.
        let now = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
        rustix::event::poll(&mut polled, Some(&now)).unwrap();
        polled[0].revents().contains(rustix::event::PollFlags::HUP)
    }
}

#[tokio::test]
async fn descriptor_arrives_with_its_bytes() {
    let (far, mut near, passed) = pair();
    let mut watched = Watched::new();
    send(&far, HEAD, &[watched.descriptor()]);
    assert_eq!(read(&mut near, HEAD.len()).await, HEAD);
    let taken = passed.take();
    let descriptor = taken.only().unwrap().into_owned().unwrap();
    assert!(rustix::io::fcntl_getfd(&descriptor).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    File::from(descriptor).write_all(b"x").unwrap();
    let mut byte = [0];
    watched.0.read_exact(&mut byte).unwrap();
    assert!(watched.is_closed_by_peer() && taken.only().is_err());
}

#[tokio::test]
async fn no_match_and_several_matches_are_distinct_errors() {
    let (far, mut near, passed) = pair();
    send(&far, HEAD, &[]);
    read(&mut near, HEAD.len()).await;
    assert!(passed.take().only().err().unwrap().starts_with("no descriptor"));
    // In one message, in several, and more than fit.
    for (count, times) in [(2, 1), (1, 2), (16, 1), (3, 3)] {
        let (far, mut near, passed) = pair();
        let mut watched = Watched::new();
        for _ in 0..times {
            send(&far, HEAD, &vec![watched.descriptor(); count]);
        }
        read(&mut near, HEAD.len() * times).await;
        let taken = passed.take();
        assert!(taken.only().err().unwrap().starts_with("more than one"), "{count} {times}");
        assert!(watched.is_closed_by_peer(), "{count} {times}");
    }
}

#[tokio::test]
async fn unwanted_descriptors_are_closed() {
    let (far, mut near, passed) = pair();
    let (mut first, mut late) = (Watched::new(), Watched::new());
    send(&far, HEAD, &[first.descriptor()]);
    read(&mut near, HEAD.len()).await;
    drop(passed.take());
    assert!(first.is_closed_by_peer());
    send(&far, b"b", &[late.descriptor()]);
    read(&mut near, 1).await;
    assert!(late.is_closed_by_peer());
}

#[tokio::test]
async fn descriptors_of_other_requests_are_refused() {
    let closer = || Some(Arc::new(Closer::new(64).unwrap()));
    let others: [(Option<Arc<Closer>>, &[u8]); 4] = [
        (None, HEAD),
        (closer(), b"GET /v1/status HTTP/1.1"),
        (closer(), b"P"),
        (closer(), b"POST /v1/browse/handed2"),
    ];
    for (closer, head) in others {
        let (far, mut near, passed) = pair_of(closer);
        let mut watched = Watched::new();
        send(&far, head, &[watched.descriptor()]);
        assert_eq!(read(&mut near, head.len()).await, head);
        assert!(passed.0.lock().descriptor.is_none(), "{head:?}");
        assert!(watched.is_closed_by_peer(), "{head:?}");
    }
}

#[tokio::test]
async fn descriptors_are_refused_while_too_many_wait_to_be_closed() {
    let closer = Arc::new(Closer::new(2).unwrap());
    let _room = closer.room_for(1).unwrap();
    let (far, mut near, passed) = pair_of(Some(closer));
    let mut watched = Watched::new();
    send(&far, HEAD, &[watched.descriptor()]);
    read(&mut near, HEAD.len()).await;
    assert!(passed.take().only().err().unwrap().starts_with("too many"));
    assert!(watched.is_closed_by_peer());
}

#[test]
fn read_only_caller_passes_no_descriptors() {
    let caller = |role| Caller { role, name: String::new(), user: None };
    assert!(may_pass(&caller(Some(Role::Operator))) && may_pass(&Caller::owner()));
    assert!(!may_pass(&caller(Some(Role::ReadOnly))) && !may_pass(&caller(None)));
}
