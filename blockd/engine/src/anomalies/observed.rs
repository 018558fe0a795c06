//! Source of a backup that observes the content of the blocks that are read.

use super::ObservedBlocks;
use crate::{
    backup::shared_reader::SharedReader,
    error::{ServiceError, blocking},
};
use blockd_anomaly::{BlockClass, Observation, Sample};
use blockd_cloud::{BackupSpec, CancelToken};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, Extent};
use parking_lot::Mutex;
use std::{io, sync::Arc};

/// Blocks of the sample that are read at a time.
const SAMPLED_AT_ONCE: usize = 256;

/// Source whose extents are observed as they are read.
pub(crate) struct ObservedSource {
    reader: Arc<SharedReader>,
    sample: Sample,
    observation: Mutex<Observation>,
}

impl ObservedSource {
    /// Creates the source of a backup, and observes the blocks that it does not read because their content is
    /// stored. That comes before the upload: the commit must be recorded at once.
    ///
    /// # Errors
    /// The daemon stops.
    pub(crate) async fn of_backup(
        reader: Arc<SharedReader>,
        spec: &BackupSpec,
        cancel: CancelToken,
    ) -> Result<Arc<Self>, ServiceError> {
        let sample = Sample::of_volume(reader.size_bytes());
        let observation = Mutex::new(Observation::new(sample));
        let (source, unread) = (Self { reader, sample, observation }, spec.deduplicated.clone());
        blocking(move || {
            if let Err(error) = source.read_sampled(&unread, &cancel) {
                tracing::warn!(%error, "the content of the deduplicated blocks is not observed");
            }
            Ok::<_, ServiceError>(Arc::new(source))
        })
        .await
    }

    fn read_sampled(&self, blocks: &BlockSet, cancel: &CancelToken) -> io::Result<()> {
        let sampled = blocks.blocks().filter(|block| self.sample.contains(*block));
        let sampled: Vec<Extent> = sampled.map(|block| Extent::new(block, 1)).collect();
        for part in sampled.chunks(SAMPLED_AT_ONCE) {
            if cancel.is_cancelled() {
                break;
            }
            self.read_extents(part, &mut vec![0; part.len() * BLOCK_SIZE_BYTES as usize])?;
        }
        Ok(())
    }

    /// Returns the observation of all blocks that were read, and counts the files.
    pub(crate) fn finish(&self) -> ObservedBlocks {
        let classes = std::mem::replace(&mut *self.observation.lock(), Observation::new(self.sample));
        let image = Arc::clone(&self.reader) as Arc<dyn BlockSource>;
        // The rest of a lazy volume is in a store.
        let files =
            if image.may_wait() { None } else { blockd_fuse::inside::count_files(&image).unwrap_or(None) };
        ObservedBlocks { classes, files }
    }
}

impl BlockSource for ObservedSource {
    fn size_bytes(&self) -> u64 {
        self.reader.size_bytes()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.reader.read_at(offset_bytes, buf)
    }

    fn may_wait(&self) -> bool {
        self.reader.may_wait()
    }

    fn read_extents(&self, extents: &[Extent], buf: &mut [u8]) -> io::Result<()> {
        self.reader.read_extents(extents, buf)?;
        let blocks = extents.iter().flat_map(|extent| extent.start.0..extent.end().0).map(BlockIndex);
        let sampled: Vec<_> = blocks
            .zip(buf.chunks_exact(BLOCK_SIZE_BYTES as usize))
            .filter(|(block, _)| self.sample.contains(*block))
            .map(|(block, bytes)| (block, BlockClass::of(bytes)))
            .collect();
        let mut observation = self.observation.lock();
        sampled.into_iter().for_each(|(block, class)| observation.add_class(block, class));
        Ok(())
    }
}
