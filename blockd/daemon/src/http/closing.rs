//! Closing descriptors that others made.
//!
//! To close a file waits for the filesystem that it is on, which may be one that never answers: nobody can be
//! made to stop waiting there. So one thread does nothing else, and what waits for it is bounded.

use std::{
    io,
    mem::ManuallyDrop,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, LazyLock,
        mpsc::{SyncSender, sync_channel},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many descriptors of others there are at once: those that a request needs, and those that are to be
/// closed.
const MOST: usize = 64;

type Queued = (OwnedFd, OwnedSemaphorePermit);

/// A thread that closes descriptors.
pub(super) struct Closer {
    room: Arc<Semaphore>,
    queue: SyncSender<Queued>,
}

impl Closer {
    /// One with room for so many, which ends when nobody has anything to close any more.
    pub(super) fn new(most: usize) -> io::Result<Self> {
        let (queue, queued) = sync_channel::<Queued>(most);
        std::thread::Builder::new().name("close-passed".into()).spawn(move || {
            for (descriptor, room) in queued {
                drop(descriptor);
                drop(room);
            }
        })?;
        Ok(Self { room: Arc::new(Semaphore::new(most)), queue })
    }

    /// That of this process, if its thread could be started.
    pub(super) fn shared() -> Option<Arc<Self>> {
        static SHARED: LazyLock<Option<Arc<Closer>>> = LazyLock::new(|| Closer::new(MOST).map(Arc::new).ok());
        SHARED.clone()
    }

    /// Room for so many descriptors that are about to come.
    pub(super) fn room_for(&self, count: u32) -> Option<Room> {
        let permits = Arc::clone(&self.room).try_acquire_many_owned(count).ok()?;
        Some(Room { permits, queue: self.queue.clone() })
    }
}

/// Room for descriptors that are about to come.
pub(super) struct Room {
    permits: OwnedSemaphorePermit,
    queue: SyncSender<Queued>,
}

impl Room {
    /// One that came. None, and it is left open, if there is no room for it.
    pub(super) fn take(&mut self, descriptor: OwnedFd) -> Option<Foreign> {
        let descriptor = ManuallyDrop::new(descriptor);
        let permit = self.permits.split(1)?;
        let held = Some((ManuallyDrop::into_inner(descriptor), permit));
        Some(Foreign { held, queue: self.queue.clone() })
    }
}

/// A descriptor of somebody else's. Dropped, it is closed by a thread that may wait.
pub(crate) struct Foreign {
    held: Option<Queued>,
    queue: SyncSender<Queued>,
}

impl Foreign {
    /// The descriptor, for who has seen what it is.
    pub(crate) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.held.as_ref().map(|(descriptor, _)| descriptor.as_fd())
    }

    /// The descriptor for good: it was seen to be one whose closing does not wait.
    pub(crate) fn into_owned(mut self) -> Option<OwnedFd> {
        self.held.take().map(|(descriptor, _)| descriptor)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            // The queue has room for all that there are; were it otherwise, one that is left open does less
            // harm.
            let _ = self.queue.try_send(held).map_err(ManuallyDrop::new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn room_comes_back_when_one_is_closed() {
        let closer = Closer::new(2).unwrap();
        let (mut far, near) = std::io::pipe().unwrap();
        let mut room = closer.room_for(2).unwrap();
        assert!(closer.room_for(1).is_none());
        let first = room.take(near.into()).unwrap();
        drop(room);
        assert!(closer.room_for(2).is_none() && closer.room_for(1).is_some());
        drop(first);
        assert_eq!(far.read(&mut [0]).unwrap(), 0, "it is closed");
        while closer.room_for(2).is_none() {
            std::thread::yield_now();
        }
    }
}
