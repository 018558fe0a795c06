//! Thread that closes removed files.
//!
//! The last close of a removed file frees its blocks. On ext4 that takes tens of seconds for a large layer of
//! scattered writes; on a filesystem mounted with `discard` and without a journal, the close also discards
//! each extent. The last reference to a stack of layers is often dropped by a thread that serves a client's
//! request, whose latency would include the close. So [`File`](crate::io::storage::File) passes removed files
//! to this thread on drop.
//!
//! The merge thread [waits](wait_for_removed_files) until the files of a merged layer are closed. So the
//! queue holds at most one removed layer of each merge thread, the removed files of freezes, which wait while
//! it has more than [`MAX_WAITING`] entries, and layers that a reader kept open. If those fill the queue, the
//! thread that releases one closes it.

use parking_lot::{Condvar, Mutex};
use std::{collections::VecDeque, thread};

/// Number of queued values above which a freeze waits.
const MAX_WAITING: u64 = 1024;
/// Capacity of the queue. Each value has an open file.
const MAX_QUEUED: usize = 4 << 10;

static CLOSER: Closer = Closer {
    queue: Mutex::new(Queue { waiting: VecDeque::new(), added: 0, done: 0, has_thread: false }),
    added: Condvar::new(),
    done: Condvar::new(),
};

struct Closer {
    queue: Mutex<Queue>,
    added: Condvar,
    done: Condvar,
}

struct Queue {
    waiting: VecDeque<Box<dyn Send>>,
    /// Values added since the process started.
    added: u64,
    /// Values dropped since the process started.
    done: u64,
    has_thread: bool,
}

impl Queue {
    /// Adds a value, or returns it if the queue is full.
    fn push(&mut self, value: Box<dyn Send>) -> Option<Box<dyn Send>> {
        if self.waiting.len() >= MAX_QUEUED {
            return Some(value);
        }
        self.waiting.push_back(value);
        self.added += 1;
        None
    }
}

/// Queues a value to be dropped by the closer thread. If the queue is full, the caller drops it and may wait
/// for the disk.
pub(crate) fn drop_later(value: impl Send + 'static) {
    let mut queue = CLOSER.queue.lock();
    if !queue.has_thread {
        match thread::Builder::new().name("closer".into()).spawn(run) {
            Ok(_) => queue.has_thread = true,
            Err(error) => {
                drop(queue);
                tracing::warn!(%error, "start failed on the closer thread: the caller closes the removed file and may wait for the disk");
                return;
            }
        }
    }
    let refused = queue.push(Box::new(value));
    drop(queue);
    CLOSER.added.notify_one();
    drop(refused);
}

/// Waits until all files that were removed and released before the call, of all volumes, are closed and their
/// space is free, except those that a full queue left to their threads. Merge threads call it between layers,
/// because the next merge may need that space. It can take tens of seconds: hold no contended lock.
pub fn wait_for_removed_files() {
    let added = CLOSER.queue.lock().added;
    wait_until(added);
}

/// Waits while the queue holds more than [`MAX_WAITING`] of the values added so far.
pub(crate) fn wait_for_capacity() {
    let added = CLOSER.queue.lock().added;
    wait_until(added.saturating_sub(MAX_WAITING));
}

/// Waits until this number of values was dropped since the process started.
fn wait_until(number: u64) {
    let mut queue = CLOSER.queue.lock();
    while queue.done < number {
        CLOSER.done.wait(&mut queue);
    }
}

fn run() {
    let mut queue = CLOSER.queue.lock();
    loop {
        let Some(value) = queue.waiting.pop_front() else {
            CLOSER.added.wait(&mut queue);
            continue;
        };
        drop(queue);
        drop(value);
        queue = CLOSER.queue.lock();
        queue.done += 1;
        assert!(queue.done <= queue.added, "only added values are dropped");
        CLOSER.done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{layer::stack::Stack, volume::Volume};
    use blockd_extent::{SnapshotId, VolumeId};
    use std::{
        path::{Path, PathBuf},
        sync::{
            Arc,
            mpsc::{Receiver, Sender, channel},
        },
    };

    /// Blocks the closer until its channel ends.
    struct Busy(Receiver<()>);

    impl Drop for Busy {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }

    /// Blocks the closer until the sender is dropped.
    fn block_closer() -> Sender<()> {
        let (sender, receiver) = channel();
        drop_later(Busy(receiver));
        sender
    }

    /// Returns the number of open, unlinked data files of a volume.
    fn removed_files(dir: &Path) -> usize {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let names = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        let is_removed = |name: &PathBuf| {
            let text = name.to_string_lossy();
            name.starts_with(dir) && text.contains(".data") && text.ends_with(" (deleted)")
        };
        names.filter(is_removed).count()
    }

    #[test]
    fn full_queue_returns_the_value() {
        let mut queue = Queue { waiting: VecDeque::new(), added: 0, done: 0, has_thread: false };
        for number in 0..MAX_QUEUED {
            assert!(queue.push(Box::new(number)).is_none());
        }
        assert!(queue.push(Box::new(())).is_some());
        assert_eq!((queue.waiting.len(), queue.added), (MAX_QUEUED, MAX_QUEUED as u64));
    }

    fn merged(dir: &Path) -> (Arc<Volume>, Arc<Stack>) {
        let volume = Volume::create(dir, VolumeId::from_u64(5), 1 << 20).unwrap();
        for number in 1..3 {
            volume.write(number * 4096, &[7; 4096], false).unwrap();
            volume.freeze(SnapshotId::from_u64(number)).unwrap();
        }
        // A flush holds the stack while it waits for the disk.
        let held = volume.current();
        volume.delete_snapshot(SnapshotId::from_u64(1)).unwrap();
        assert!(volume.merge_next(&|_| true).unwrap());
        (volume, held)
    }

    #[test]
    fn stack_released_after_a_merge_is_closed_by_the_closer() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap().join("v");
        let (_volume, held) = merged(&dir);
        assert_eq!(removed_files(&dir), 1, "the old stack keeps the removed file open");
        let busy = block_closer();
        drop(held);
        assert_eq!(removed_files(&dir), 1, "the thread that released the stack closed the file");
        drop(busy);
        wait_for_removed_files();
        assert_eq!(removed_files(&dir), 0);
    }
}
