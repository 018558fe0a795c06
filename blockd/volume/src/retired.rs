//! What is left of a head when it was frozen: its map and its log, which nobody needs any more.
//!
//! A file that is removed gives its space back when the last one who has it open closes it, and that can take long: a
//! filesystem that is mounted with `discard` and has no journal tells the disk of each piece at once, and a map of scattered
//! writes is in thousands of pieces. Neither a freeze nor, still less, a write that happens to let go of the old head last
//! may wait for that.
//!
//! So the map is not removed but kept, as `spare.map`, for the next head, which then needs neither a new file nor new
//! space for the bits of blocks that are written again and again. A map that would take much memory is removed and closed by a
//! thread of its own. The log is closed by the next freeze.
//!
//! A spare map belongs to the process that has it: a start removes it, as it does all that `volume.meta` does not name.

use crate::{
    data_files::remove_if_there, error::VolumeError, files, head::Head, head_log::HeadLog, live_map::LiveMap,
    storage, volume::Volume,
};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc, OnceLock,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

/// How many maps wait to be closed. Beyond that, whoever has one closes it himself.
const CLOSING_MOST: usize = 64;
/// How often it is looked whether a reader still has a map.
const CLOSING_PAUSE: Duration = Duration::from_millis(100);

/// The files of a head that was frozen.
pub(crate) struct Retired {
    /// Lies in `spare.map`.
    map: Option<Arc<LiveMap>>,
    /// Has no name any more. Held so that no write is the last one to let go of it.
    _log: Arc<Mutex<HeadLog>>,
}

impl Volume {
    /// Puts the map and the log of a frozen head away. The caller holds `admin`.
    pub(crate) fn retire(&self, head: &Head) {
        let warn = |error: VolumeError| {
            tracing::warn!(volume = %self.id, %error, "files of an old head stay until the next start");
        };
        let map_path = files::map_path(&self.dir, head.epoch);
        let is_kept = head.map.is_worth_keeping()
            && storage::rename(&map_path, &files::spare_map_path(&self.dir)).is_ok();
        if !is_kept {
            remove_if_there(&map_path).unwrap_or_else(warn);
            close_later(head.map.clone());
        }
        remove_if_there(&files::log_path(&self.dir, head.epoch)).unwrap_or_else(warn);
        let map = is_kept.then(|| head.map.clone());
        *self.retired.lock() = Some(Retired { map, _log: head.log().clone() });
    }

    /// The map of an earlier head, for a head of this size. The caller holds `admin`.
    pub(crate) fn take_spare_map(&self, blocks: u64) -> Option<LiveMap> {
        let map = self.retired.lock().take()?.map?;
        // A snapshot that was opened while the head was being frozen may still ask it.
        match Arc::try_unwrap(map) {
            Ok(map) if map.fits(blocks) => return Some(map),
            Ok(map) => close_later(Arc::new(map)),
            Err(map) => close_later(map),
        }
        self.remove_spare_file();
        None
    }

    /// Removes the spare map, if there is one. The caller holds `admin`.
    pub(crate) fn remove_spare_map(&self) {
        if self.retired.lock().take().is_some_and(|retired| retired.map.is_some()) {
            self.remove_spare_file();
        }
    }

    fn remove_spare_file(&self) {
        if let Err(error) = remove_if_there(&files::spare_map_path(&self.dir)) {
            tracing::warn!(volume = %self.id, %error, "a spare map stays until the next start");
        }
    }
}

/// Has a map without a name closed, once nobody else has it, by a thread that has the time.
fn close_later(map: Arc<LiveMap>) {
    static QUEUE: OnceLock<Option<SyncSender<Arc<LiveMap>>>> = OnceLock::new();
    let queue = QUEUE.get_or_init(|| {
        let (sender, receiver) = sync_channel(CLOSING_MOST);
        let started = thread::Builder::new().name("close-maps".into()).spawn(move || close_maps(&receiver));
        started.is_ok().then_some(sender)
    });
    if let Some(queue) = queue {
        // What does not fit in is closed by whoever lets go of it last.
        let _ = queue.try_send(map);
    }
}

/// Closes maps as they come in, each when nobody else has it.
fn close_maps(receiver: &Receiver<Arc<LiveMap>>) {
    let mut waiting: Vec<Arc<LiveMap>> = Vec::new();
    loop {
        let next = match waiting.is_empty() {
            true => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => receiver.recv_timeout(CLOSING_PAUSE),
        };
        match next {
            Ok(map) if waiting.len() < CLOSING_MOST => waiting.push(map),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        waiting.retain(|map| Arc::strong_count(map) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, storage::identity_and_len};
    use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Epoch, SnapshotId, VolumeId};
    use std::path::Path;

    const SIZE_BYTES: u64 = 1 << 40;

    fn make(dir: &Path) -> Arc<Volume> {
        Volume::create(dir, VolumeId::from_u64(5), SIZE_BYTES).unwrap()
    }

    fn write(volume: &Volume, block: u64) {
        volume.write(block * BLOCK_SIZE_BYTES, &[block as u8 | 1; 4096], false).unwrap();
    }

    fn dirty_blocks(volume: &Volume) -> u64 {
        volume.stats().head_dirty_bytes / BLOCK_SIZE_BYTES
    }

    fn freeze(volume: &Volume, number: u64) -> Epoch {
        volume.freeze(SnapshotId::from_u64(number)).unwrap().epoch
    }

    fn map_number(volume: &Volume, epoch: Epoch) -> (u64, u64) {
        identity_and_len(&files::map_path(&volume.dir, epoch)).unwrap().0
    }

    #[test]
    fn a_head_takes_the_map_over_and_none_of_its_bits() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("v");
        let volume = make(&dir);
        let first = map_number(&volume, Epoch(1));
        let far = SIZE_BYTES / BLOCK_SIZE_BYTES - 1;
        for block in [0, 7, far] {
            write(&volume, block);
        }
        volume.write_zeroes(7 * BLOCK_SIZE_BYTES, 4096, false, false).unwrap();
        assert_eq!(freeze(&volume, 1), Epoch(1));
        assert!(files::spare_map_path(&dir).exists());
        assert_eq!(volume.check().findings, Vec::<String>::new());
        write(&volume, 9);
        freeze(&volume, 2);
        assert_eq!(map_number(&volume, Epoch(3)), first, "the file of the first map is not used again");
        assert_eq!(dirty_blocks(&volume), 0);
        write(&volume, 7);
        let head = volume.current();
        let head = crate::volume::head_of(&head);
        assert_eq!((head.map.held_set().len_blocks(), head.map.zero_set().len_blocks()), (1, 0));
        assert!(head.holds(BlockIndex(7)) && !head.holds(BlockIndex(far)));
        // As if the process had died: the next one believes the map, and has no use for the spare one.
        drop(volume);
        let volume = Volume::open(&dir, &OpenOptions::default()).unwrap();
        assert_eq!(dirty_blocks(&volume), 1);
        assert!(!files::spare_map_path(&dir).exists());
        let mut found = [0; 4096];
        volume.read(7 * BLOCK_SIZE_BYTES, &mut found).unwrap();
        assert_eq!(found, [7; 4096]);
        volume.read(far * BLOCK_SIZE_BYTES, &mut found).unwrap();
        assert_eq!(found, [far as u8 | 1; 4096]);
        freeze(&volume, 3);
        volume.close().unwrap();
        assert!(!files::spare_map_path(&dir).exists(), "a stop leaves a spare map");
    }

    #[test]
    fn a_map_that_somebody_reads_or_that_has_another_size_is_not_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("v");
        let volume = make(&dir);
        write(&volume, 3);
        let old = volume.current();
        freeze(&volume, 1);
        let spare = identity_and_len(&files::spare_map_path(&dir)).unwrap().0;
        freeze(&volume, 2);
        assert_ne!(map_number(&volume, Epoch(3)), spare);
        assert!(crate::volume::head_of(&old).holds(BlockIndex(3)), "the bits of somebody's map are gone");
        drop(old);
        volume.grow(2 * SIZE_BYTES).unwrap();
        volume.grow(3 * SIZE_BYTES).unwrap();
        // A map of the size before has no bit for this.
        write(&volume, 2 * SIZE_BYTES / BLOCK_SIZE_BYTES + 5);
        assert_eq!(dirty_blocks(&volume), 1);
    }
}
