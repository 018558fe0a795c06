//! State of a running backup, and requests for its objects.

use crate::{
    CloudError, Compression, CompressionLevel,
    adaptive::AdaptiveLevel,
    backup_spec::BackupSpec,
    buffers::{Buffers, Reused},
    clock::RunClock,
    frame::FrameWriter,
    journal::BackupJournal,
    keys::DataKey,
    names::DeltaId,
    plan::Layout,
    progress::Progress,
    repository::run_blocking,
    seal::Sealer,
    window::Window,
};
use blockd_extent::BlockSource;
use blockd_store::{BlobStore, PutMode, StoreErrorKind, TransferMemory, Work};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::{RwLock, Semaphore};

/// Maximum number of packs that are assembled concurrently; others in flight are being uploaded.
const BUILD_CONCURRENCY: usize = 2;
/// Maximum number of chunks in memory. Each takes 2 MiB, twice while it is sealed.
const MAX_CHUNKS: usize = 8;
/// Number of chunks read ahead of sealing, or sealed and not yet part of their pack.
const CHUNKS_AHEAD: usize = 1;

/// Limits and memory of pack assembly.
pub(crate) struct Packing {
    pub building: Semaphore,
    pub chunks: Semaphore,
    pub cores: Semaphore,
    pub buffers: Arc<Buffers>,
    pub cpu_threads: usize,
    /// Memory of packs, from the start of their assembly to the end of their upload.
    pub memory: TransferMemory,
    pub writers: Reused<FrameWriter>,
}

impl Packing {
    pub fn new(cpu_threads: usize, memory_bytes: usize) -> Self {
        Self {
            building: Semaphore::new(BUILD_CONCURRENCY),
            chunks: Semaphore::new(max_chunks(cpu_threads)),
            cores: Semaphore::new(cpu_threads),
            buffers: Arc::default(),
            cpu_threads,
            memory: TransferMemory::new(memory_bytes),
            writers: Reused::default(),
        }
    }
}

/// Returns the maximum number of chunks in memory.
pub(crate) fn max_chunks(cpu_threads: usize) -> usize {
    (cpu_threads + CHUNKS_AHEAD).min(MAX_CHUNKS)
}

/// Writer of the journal of one run.
#[derive(Clone)]
pub(crate) struct Recorder {
    journal: Arc<dyn BackupJournal>,
    writes: Arc<RwLock<()>>,
}

impl Recorder {
    pub fn new(journal: Arc<dyn BackupJournal>) -> Self {
        Self { journal, writes: Arc::default() }
    }

    pub fn journal(&self) -> &Arc<dyn BackupJournal> {
        &self.journal
    }

    /// Writes to the journal outside of the async threads.
    pub async fn write(
        &self,
        write: impl FnOnce(&dyn BackupJournal) -> Result<(), CloudError> + Send + 'static,
    ) -> Result<(), CloudError> {
        let (journal, writing) = (self.journal.clone(), self.writes.clone().read_owned().await);
        run_blocking(move || {
            let _writing = writing;
            write(&*journal)
        })
        .await
    }

    /// Waits for the writes whose callers were dropped, by a failure or a cancellation: the next run opens
    /// the same journal.
    pub async fn finish(&self) {
        drop(self.writes.write().await);
    }
}

/// Compression levels of the packs of a backup.
pub(crate) struct Levels {
    pub compression: Compression,
    pub adaptive: AdaptiveLevel,
    pub recorder: Recorder,
    /// Tells whether guests are active.
    pub work: Work,
}

impl Levels {
    /// Returns the level of a pack. A chosen one is recorded before the pack is sent: all puts of the pack
    /// have the same bytes, so that a late one cannot replace the frames of the index by others.
    pub async fn of_pack(&self, pack_no: u32) -> Result<CompressionLevel, CloudError> {
        if let Compression::Fixed(level) = self.compression {
            return Ok(level);
        }
        if let Some(level) = self.recorder.journal().level(pack_no) {
            return Ok(level);
        }
        let level = self.adaptive.next(self.work.yields());
        self.recorder.write(move |journal| journal.record_level(pack_no, level)).await?;
        Ok(level)
    }
}

/// State shared by all packs of a backup.
pub(crate) struct Job {
    pub spec: Arc<BackupSpec>,
    pub layout: Arc<Layout>,
    pub key: DataKey,
    pub sealer: Sealer,
    pub store: Arc<dyn BlobStore>,
    pub reader: Arc<dyn BlockSource>,
    pub recorder: Recorder,
    pub progress: Arc<Progress>,
    pub packing: Packing,
    /// Uploads of packs.
    pub uploads: Window,
    pub work: Work,
    pub write_once: bool,
    pub levels: Levels,
    /// An earlier run may have committed the snapshot, and another host may have deleted it since.
    pub was_committing: bool,
    /// Start of this run.
    pub clock: RunClock,
    /// An earlier run exists. It may have committed even without a commit record.
    pub is_resumed: bool,
}

impl Job {
    /// Returns true if a pack recorded by an earlier run is still in the store.
    pub(crate) async fn is_stored(self: &Arc<Self>, pack_no: u32) -> Result<bool, CloudError> {
        let job = Arc::clone(self);
        match run_blocking(move || job.has_object(pack_no)).await? {
            true => self.exists(&self.spec.delta_id().pack_key(pack_no)).await,
            false => Ok(true),
        }
    }

    /// Returns false for a recorded pack of zero blocks only.
    pub(crate) fn has_object(&self, pack_no: u32) -> Result<bool, CloudError> {
        let lens = self.recorder.journal().frame_lens(pack_no)?;
        debug_assert!(lens.is_some(), "pack {pack_no} is neither stored nor recorded");
        Ok(lens.unwrap_or_default().iter().any(|len| *len > 0))
    }

    pub(crate) async fn exists(&self, object: &str) -> Result<bool, CloudError> {
        match self.store.get_range(object, 0, 1).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Stores an object of the delta.
    ///
    /// No other task writes its key, and every attempt of this one writes the same bytes. If a copied daemon
    /// runs the same task, write-once objects keep the two runs apart: the committing run has verified that
    /// each object is its own.
    pub(crate) async fn put(&self, object: &str, body: Bytes) -> Result<(), CloudError> {
        assert!(!body.is_empty(), "an empty object at {object}");
        assert_eq!(DeltaId::of_object(object), Some(self.spec.delta_id()), "{object} is of another delta");
        if !self.write_once {
            return Ok(self.store.put(object, body, PutMode::Overwrite).await?);
        }
        match self.store.put(object, body.clone(), PutMode::CreateIfAbsent).await {
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                // A range: a budget knows its length before it is received. A longer object of this key
                // would differ before the end: all have the same frames.
                match self.store.get_range(object, 0, body.len() as u64).await {
                    Ok(found) if found == body => Ok(()),
                    Err(error) if error.kind != StoreErrorKind::RangeBeyondEnd => Err(error.into()),
                    _ => Err(CloudError::Conflict { key: object.to_owned() }),
                }
            }
            result => Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryJournal, adaptive::Stage};
    use blockd_store::{Workers, Yielding};
    use std::time::Duration;

    #[tokio::test]
    async fn level_of_a_backup_that_yields_to_guests_is_bounded() {
        let top = async |guests_are_active: bool| {
            let yielding = Arc::<Yielding>::default();
            let work = Work::yielding(Workers::start("yielding", 1, || {}).unwrap(), yielding.clone());
            let recorder = Recorder::new(Arc::new(MemoryJournal::default()));
            let adaptive = AdaptiveLevel::default();
            let levels = Levels { compression: Compression::Auto, adaptive, recorder, work };
            yielding.set(guests_are_active);
            // The store is the bottleneck.
            let _sending = levels.adaptive.enter(Stage::Sending);
            let mut top = CompressionLevel::None;
            for pack_no in 0..6 {
                std::thread::sleep(Duration::from_millis(21));
                let level = levels.of_pack(pack_no).await.unwrap();
                assert_eq!(levels.recorder.journal().level(pack_no), Some(level));
                assert_eq!(levels.of_pack(pack_no).await.unwrap(), level, "recorded");
                top = top.max(level);
            }
            top
        };
        assert_eq!(top(true).await, CompressionLevel::Zstd(3));
        assert_eq!(top(false).await, CompressionLevel::Zstd(9));
    }
}
