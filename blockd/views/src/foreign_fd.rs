//! Close of foreign descriptors.
//!
//! A close may block on the filesystem of the file, without a way to interrupt it. So one thread closes them,
//! with a bounded queue.

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
const MOST: usize = 64;

type Queued = (OwnedFd, OwnedSemaphorePermit);

/// Thread that closes descriptors.
pub struct Closer {
    room: Arc<Semaphore>,
    queue: SyncSender<Queued>,
}

impl Closer {
    /// Starts a closer with this capacity, which ends with its last user.
    pub fn new(most: usize) -> io::Result<Self> {
        let (queue, queued) = sync_channel::<Queued>(most);
        std::thread::Builder::new().name("close-passed".into()).spawn(move || {
            for (descriptor, room) in queued {
                drop(descriptor);
                drop(room);
            }
        })?;
        Ok(Self { room: Arc::new(Semaphore::new(most)), queue })
    }

    /// Returns the closer of this process, if its thread could be started.
    pub fn shared() -> Option<Arc<Self>> {
        static SHARED: LazyLock<Option<Arc<Closer>>> = LazyLock::new(|| Closer::new(MOST).map(Arc::new).ok());
        SHARED.clone()
    }

    /// Reserves capacity for descriptors.
    pub fn room_for(&self, count: u32) -> Option<Room> {
        let permits = Arc::clone(&self.room).try_acquire_many_owned(count).ok()?;
        Some(Room { permits, queue: self.queue.clone() })
    }
}

/// Reserved capacity.
pub struct Room {
    permits: OwnedSemaphorePermit,
    queue: SyncSender<Queued>,
}

impl Room {
    /// Wraps a received descriptor. `None` without capacity; the descriptor stays open then.
    pub fn take(&mut self, descriptor: OwnedFd) -> Option<Foreign> {
        let descriptor = ManuallyDrop::new(descriptor);
        let permit = self.permits.split(1)?;
        let held = Some((ManuallyDrop::into_inner(descriptor), permit));
        Some(Foreign { held, queue: self.queue.clone() })
    }
}

/// Foreign descriptor, which a thread that may block closes on drop.
pub struct Foreign {
    held: Option<Queued>,
    queue: SyncSender<Queued>,
}

impl Foreign {
    /// Returns the descriptor.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.held.as_ref().map(|(descriptor, _)| descriptor.as_fd())
    }

    /// Returns the descriptor, after a check that its close does not block.
    pub fn into_owned(mut self) -> Option<OwnedFd> {
        self.held.take().map(|(descriptor, _)| descriptor)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            // The queue has capacity for all; otherwise a leaked descriptor is the lesser harm.
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
        assert_eq!(far.read(&mut [0]).unwrap(), 0, "it is closed");
        while closer.room_for(2).is_none() {
            std::thread::yield_now();
        }
    }
}
