//! Descriptors passed by other processes, and their close.
//!
//! A close may block on the filesystem of the file and cannot be interrupted, so a separate thread with a
//! bounded queue closes them.

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

/// Maximum number of foreign descriptors, in requests and in the queue.
const MAX_DESCRIPTORS: usize = 64;

type Queued = (OwnedFd, OwnedSemaphorePermit);

/// Thread that closes descriptors.
pub struct Closer {
    capacity: Arc<Semaphore>,
    queue: SyncSender<Queued>,
}

impl Closer {
    /// Starts a closer for at most `max` descriptors. Its thread ends after the last reference.
    pub fn new(max: usize) -> io::Result<Self> {
        let (queue, queued) = sync_channel::<Queued>(max);
        std::thread::Builder::new().name("close-passed".into()).spawn(move || {
            for (descriptor, permit) in queued {
                drop(descriptor);
                drop(permit);
            }
        })?;
        Ok(Self { capacity: Arc::new(Semaphore::new(max)), queue })
    }

    /// Returns the closer of this process, if its thread could be started.
    pub fn shared() -> Option<Arc<Self>> {
        static SHARED: LazyLock<Option<Arc<Closer>>> =
            LazyLock::new(|| Closer::new(MAX_DESCRIPTORS).map(Arc::new).ok());
        SHARED.clone()
    }

    /// Reserves capacity for descriptors.
    pub fn room_for(&self, count: u32) -> Option<ReservedFds> {
        let permits = Arc::clone(&self.capacity).try_acquire_many_owned(count).ok()?;
        Some(ReservedFds { permits, queue: self.queue.clone() })
    }
}

/// Reserved capacity.
pub struct ReservedFds {
    permits: OwnedSemaphorePermit,
    queue: SyncSender<Queued>,
}

impl ReservedFds {
    /// Wraps a received descriptor. Returns `None` without capacity, and leaks the descriptor.
    pub fn take(&mut self, descriptor: OwnedFd) -> Option<ForeignFd> {
        let descriptor = ManuallyDrop::new(descriptor);
        let permit = self.permits.split(1)?;
        let held = Some((ManuallyDrop::into_inner(descriptor), permit));
        Some(ForeignFd { held, queue: self.queue.clone() })
    }
}

/// Foreign descriptor. After drop, the thread of the closer closes it.
pub struct ForeignFd {
    held: Option<Queued>,
    queue: SyncSender<Queued>,
}

impl ForeignFd {
    /// Returns the descriptor.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.held.as_ref().map(|(descriptor, _)| descriptor.as_fd())
    }

    /// Returns the descriptor, for a caller that has checked that its close does not block.
    pub fn into_owned(mut self) -> Option<OwnedFd> {
        self.held.take().map(|(descriptor, _)| descriptor)
    }
}

impl Drop for ForeignFd {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            // The queue has capacity for all. A failure leaks the descriptor, as a close here could block.
            let _ = self.queue.try_send(held).map_err(ManuallyDrop::new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn closed_descriptor_returns_its_slot() {
        let closer = Closer::new(2).unwrap();
        let (mut far, near) = std::io::pipe().unwrap();
        let mut room = closer.room_for(2).unwrap();
        assert!(closer.room_for(1).is_none());
        let first = room.take(near.into()).unwrap();
        drop(room);
        assert!(closer.room_for(2).is_none() && closer.room_for(1).is_some());
        drop(first);
        assert_eq!(far.read(&mut [0]).unwrap(), 0, "the descriptor is closed");
        while closer.room_for(2).is_none() {
            std::thread::yield_now();
        }
    }
}
