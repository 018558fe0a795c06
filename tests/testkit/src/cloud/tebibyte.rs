//! The snapshot of a full tebibyte, with the index that a backup of it would make, and next to none of what
//! that index names.
//!
//! It is made by a backup that is resumed after nearly all of its packs: those are in the journal and nowhere
//! else.

use super::spec;
use blockd_cloud::{
    BackupJournal, CancelToken, CloudError, Manifest, MemoryJournal, Progress, Repository, UploadOptions,
    backup,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, Extent};
use blockd_store::{BlobStore, Middleware, Request, Requests, Response, StoreErrorKind, StoreFuture};
use bytes::Bytes;
use std::{io, sync::Arc};

/// Blocks of a frame and frames of a pack.
const FRAME_BLOCKS: u64 = 32;
const PACK_FRAMES: u64 = 256;
const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
const SIZE_BYTES: u64 = 1 << 40;
const BLOCKS: u64 = SIZE_BYTES / BLOCK_SIZE_BYTES;
const PACK_BLOCKS: u64 = PACK_FRAMES * FRAME_BLOCKS;
const PACKS: u64 = BLOCKS / PACK_BLOCKS;
/// Size of a frame of ordinary data.
const FRAME_LEN: u32 = 70_001;
/// Packs that are there: at the beginning, at the end, and within index pages.
const MADE: [u64; 4] = [0, 12_345, 20_000, PACKS - 1];

/// A full tebibyte.
pub struct Tebibyte;

impl Tebibyte {
    /// Its size in bytes.
    pub const SIZE_BYTES: u64 = SIZE_BYTES;

    /// Blocks, far from each other, that can be read. Others cannot: their packs are not there.
    pub fn places() -> impl Iterator<Item = BlockIndex> {
        MADE.into_iter().zip(0..).map(|(pack, n)| BlockIndex(pack * PACK_BLOCKS + 1000 * n + 77))
    }

    /// Returns the content of a block: its number plus one, repeated.
    pub fn content(block: BlockIndex) -> [u8; BLOCK] {
        let mut bytes = [0; BLOCK];
        bytes.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&(block.0 + 1).to_le_bytes()));
        bytes
    }

    /// Puts it into a repository.
    ///
    /// # Errors
    /// Those of a backup.
    pub async fn put(repo: &Repository) -> Result<Manifest, CloudError> {
        let journal = MemoryJournal::default();
        for pack in (0..PACKS).filter(|pack| !MADE.contains(pack)) {
            journal.record(pack as u32, &[FRAME_LEN; PACK_FRAMES as usize])?;
        }
        let data = BlockSet::from_iter([Extent::new(BlockIndex(0), BLOCKS)]);
        let spec = spec(1, SIZE_BYTES, data, BlockSet::new(), None);
        let repo = repo.with_store(Arc::new(Claiming(repo.store().clone())));
        let progress = Arc::new(Progress::new(Arc::<Requests>::default()));
        let (options, cancel) = (UploadOptions::default(), CancelToken::new());
        backup(&repo, Arc::new(spec), Arc::new(Numbered), Arc::new(journal), &options, progress, &cancel)
            .await
    }
}

/// A volume each of whose blocks says where it is.
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

/// Fake store that confirms each object to a request for its first byte, as a resumed backup makes it.
struct Claiming(Arc<dyn BlobStore>);

impl Middleware for Claiming {
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
