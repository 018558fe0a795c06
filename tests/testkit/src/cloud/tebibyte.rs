//! Cloud snapshot of a full tebibyte: a complete index, and a few of its packs.
//!
//! A resumed backup makes it, whose journal lists nearly all packs as uploaded.

use super::spec;
use blockd_cloud::{
    BackupJournal, CancelToken, CloudError, CompressionLevel, Manifest, MemoryJournal, Progress, Repository,
    UploadOptions, backup,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, Extent};
use blockd_store::{BlobStore, Middleware, Request, Requests, Response, StoreErrorKind, StoreFuture};
use bytes::Bytes;
use std::{io, sync::Arc};

/// Blocks of a frame and frames of a pack.
const FRAME_BLOCKS: u64 = 128;
const PACK_FRAMES: u64 = 64;
const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
const SIZE_BYTES: u64 = 1 << 40;
const BLOCKS: u64 = SIZE_BYTES / BLOCK_SIZE_BYTES;
const PACK_BLOCKS: u64 = PACK_FRAMES * FRAME_BLOCKS;
const PACKS: u64 = BLOCKS / PACK_BLOCKS;
/// Size of a frame of ordinary data.
const FRAME_LEN: u32 = 280_001;
/// Existing packs: the first one, the last one, and some within index pages.
const EXISTING_PACKS: [u64; 4] = [0, 12_345, 20_000, PACKS - 1];

/// A full tebibyte.
pub struct Tebibyte;

impl Tebibyte {
    /// Its size in bytes.
    pub const SIZE_BYTES: u64 = SIZE_BYTES;

    /// Returns distant blocks of the existing packs; the others cannot be read.
    pub fn places() -> impl Iterator<Item = BlockIndex> {
        EXISTING_PACKS.into_iter().zip(0..).map(|(pack, n)| BlockIndex(pack * PACK_BLOCKS + 1000 * n + 77))
    }

    /// Returns the content of a block: its number plus one, repeated.
    pub fn content(block: BlockIndex) -> [u8; BLOCK] {
        let mut bytes = [0; BLOCK];
        bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&(block.0 + 1).to_le_bytes()));
        bytes
    }

    /// Stores it in a repository.
    ///
    /// # Errors
    /// Those of a backup.
    pub async fn put(repo: &Repository) -> Result<Manifest, CloudError> {
        let journal = MemoryJournal::default();
        for pack in (0..PACKS).filter(|pack| !EXISTING_PACKS.contains(pack)) {
            journal.record(pack as u32, CompressionLevel::Lz4, &[FRAME_LEN; PACK_FRAMES as usize])?;
        }
        let data = BlockSet::from_iter([Extent::new(BlockIndex(0), BLOCKS)]);
        let spec = spec(1, SIZE_BYTES, data, BlockSet::new(), None);
        let repo = repo.with_store(Arc::new(ConfirmingStore(repo.store().clone())));
        let progress = Arc::new(Progress::new(Arc::<Requests>::default()));
        let (options, cancel) = (UploadOptions::default(), CancelToken::new());
        backup(&repo, Arc::new(spec), Arc::new(Numbered), Arc::new(journal), &options, progress, &cancel)
            .await
    }
}

/// Volume whose blocks contain their number plus one.
struct Numbered;

impl BlockSource for Numbered {
    fn size_bytes(&self) -> u64 {
        SIZE_BYTES
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        for (block, out) in (offset_bytes / BLOCK_SIZE_BYTES..).zip(buf.chunks_exact_mut(BLOCK)) {
            out.copy_from_slice(&Tebibyte::content(BlockIndex(block)));
        }
        Ok(())
    }
}

/// Fake store that confirms each object when a resumed backup requests its first byte.
struct ConfirmingStore(Arc<dyn BlobStore>);

impl Middleware for ConfirmingStore {
    fn describe(&self) -> &str {
        self.0.describe()
    }

    fn wrap<'a, T: Response + 'a>(
        &'a self,
        _: Request<'a>,
        ask: impl Fn(Arc<dyn BlobStore>) -> StoreFuture<'a, T> + Send + Sync + 'a,
    ) -> StoreFuture<'a, T> {
        ask(self.0.clone())
    }

    fn get_range<'a>(&'a self, key: &'a str, offset_bytes: u64, len_bytes: u64) -> StoreFuture<'a, Bytes> {
        Box::pin(async move {
            match self.0.get_range(key, offset_bytes, len_bytes).await {
                Err(error)
                    if error.kind == StoreErrorKind::NotFound && (offset_bytes, len_bytes) == (0, 1) =>
                {
                    Ok(Bytes::from_static(b"?"))
                }
                found => found,
            }
        })
    }
}
