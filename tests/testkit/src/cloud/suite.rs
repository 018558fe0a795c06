//! Test suite for repositories on any store.

use super::{FAST_KDF, back_up, spec};
use blockd_cloud::{
    BlockWriter, CancelToken, CloudError, DeleteMode, Manifest, ManifestFilter, MemoryCache, NoCache,
    OpenOptions, Progress, Repository, RestoreOptions, RestoreRequest, SnapshotReader, delete_snapshot,
    restore,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, Extent, MAX_VOLUME_BYTES};
use blockd_store::{BlobStore, Requests};
use parking_lot::Mutex;
use std::{collections::BTreeMap, io, sync::Arc};

const BLOCK: usize = BLOCK_SIZE_BYTES as usize;

/// Volume in memory: blocks by number; absent ones are zero. Records which blocks were read.
#[derive(Default)]
pub struct MemoryVolume {
    blocks: Mutex<BTreeMap<u64, Box<[u8]>>>,
    read: Mutex<BlockSet>,
}

impl MemoryVolume {
    /// Returns the content of a block.
    pub fn block(&self, block: u64) -> Vec<u8> {
        self.blocks.lock().get(&block).map_or_else(|| vec![0; BLOCK], |data| data.to_vec())
    }

    /// Sets the content of a block.
    pub fn set(&self, block: u64, data: &[u8]) {
        self.blocks.lock().insert(block, data.into());
    }

    /// Makes a block zero.
    pub fn clear(&self, block: u64) {
        self.blocks.lock().remove(&block);
    }

    /// Returns all blocks that are not zero.
    pub fn content(&self) -> BTreeMap<u64, Box<[u8]>> {
        let mut blocks = self.blocks.lock().clone();
        blocks.retain(|_, data| data.iter().any(|byte| *byte != 0));
        blocks
    }

    /// Returns a volume with the same content.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { blocks: Mutex::new(self.blocks.lock().clone()), read: Mutex::default() }
    }

    /// Returns all blocks read so far.
    pub fn blocks_read(&self) -> BlockSet {
        self.read.lock().clone()
    }
}

/// Reads complete blocks.
impl BlockSource for MemoryVolume {
    fn size_bytes(&self) -> u64 {
        MAX_VOLUME_BYTES
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let blocks = self.blocks.lock();
        let mut read = self.read.lock();
        assert!(offset_bytes.is_multiple_of(BLOCK_SIZE_BYTES) && buf.len().is_multiple_of(BLOCK));
        for (block, out) in (offset_bytes / BLOCK_SIZE_BYTES..).zip(buf.chunks_exact_mut(BLOCK)) {
            match blocks.get(&block) {
                Some(data) => out.copy_from_slice(data),
                None => out.fill(0),
            }
            read.insert(BlockIndex(block));
        }
        Ok(())
    }
}

impl BlockWriter for MemoryVolume {
    fn write_blocks(&self, start: BlockIndex, data: &[u8]) -> io::Result<()> {
        assert!(data.len().is_multiple_of(BLOCK) && !data.is_empty());
        let mut blocks = self.blocks.lock();
        for (block, data) in (start.0..).zip(data.chunks_exact(BLOCK)) {
            if blocks.insert(block, data.into()).is_some() {
                return Err(io::Error::other(format!("block {block} was written twice")));
            }
        }
        Ok(())
    }
}

/// Xorshift generator of reproducible numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

const BLOCKS: u64 = 20_000;

/// Makes, restores, reads, lists and deletes a full backup and incremental ones on an empty store.
///
/// # Panics
/// If the repository misbehaves.
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
pub async fn repository_suite(store: Arc<dyn BlobStore>, passphrase: Option<&str>) {
    let options = OpenOptions { kdf: FAST_KDF };
    let repo = Repository::open(store.clone(), passphrase, &options).await.unwrap();
    let again = Repository::open(store.clone(), passphrase, &options).await.unwrap();
    assert_eq!(repo.keys()[0].key_id(), again.keys()[0].key_id());
    check_wrong_passphrases(&store, passphrase, &options).await;
    let mut random = Random(0x5eed);
    let made = back_up_chain(&repo, &mut random).await;
    let listed = again.list_manifests(&ManifestFilter::default(), &MemoryCache::default()).await.unwrap();
    assert_eq!(listed.len(), made.len());
    for (manifest, expected) in &made {
        check_restore(&again, &again.manifest(&manifest.id()).await.unwrap(), expected).await;
    }
    let (newest, expected) = made.last().unwrap();
    let reader = SnapshotReader::open(&again, newest).await.unwrap();
    for _ in 0..20 {
        let extent = Extent::new(BlockIndex(random.next() % BLOCKS), 1 + random.next() % 100);
        let read = reader.read_blocks(extent).await.unwrap();
        for (block, content) in (extent.start.0..).zip(read.chunks_exact(BLOCK)) {
            assert!(expected.block(block) == content, "wrong content of block {block}");
        }
    }
    check_deletions(&repo, &made).await;
    assert!(store.list("blockd/manifests/").await.unwrap().is_empty());
    assert!(store.list("blockd/data/").await.unwrap().is_empty(), "orphaned objects");
}

#[allow(clippy::unwrap_used, reason = "a failed test panics")]
async fn check_wrong_passphrases(
    store: &Arc<dyn BlobStore>,
    passphrase: Option<&str>,
    options: &OpenOptions,
) {
    let open = |passphrase| Repository::open(store.clone(), passphrase, options);
    if passphrase.is_some() {
        let wrong = open(Some("not it")).await.unwrap_err();
        assert!(matches!(wrong, CloudError::WrongPassphrase { .. }), "{wrong}");
        let none = open(None).await.unwrap_err();
        assert!(matches!(none, CloudError::EncryptedRepository { .. }), "{none}");
    } else {
        let some = open(Some("any")).await.unwrap_err();
        assert!(matches!(some, CloudError::PlainRepository { .. }), "{some}");
    }
}

/// Writes to a volume; returns the written blocks and the zeroed ones.
fn change(live: &MemoryVolume, generation: u64, random: &mut Random) -> (BlockSet, BlockSet) {
    let (mut data, mut zero) = (BlockSet::new(), BlockSet::new());
    let writes = if generation == 0 { 9_000 } else { 300 };
    for _ in 0..writes {
        let block = random.next() % BLOCKS;
        let content: Vec<u8> = match random.next() % 4 {
            0 => vec![0; BLOCK],
            1 => vec![block as u8; BLOCK],
            _ => (0..BLOCK).map(|_| random.next() as u8).collect(),
        };
        live.set(block, &content);
        data.insert(BlockIndex(block));
    }
    for _ in 0..generation * 50 {
        let block = BlockIndex(random.next() % BLOCKS);
        live.clear(block.0);
        data.remove(block);
        zero.insert(block);
    }
    (data, zero)
}

/// Backs up a changing volume; returns the snapshots with their content, oldest first.
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
async fn back_up_chain(repo: &Repository, random: &mut Random) -> Vec<(Manifest, MemoryVolume)> {
    let live = MemoryVolume::default();
    let mut made: Vec<(Manifest, MemoryVolume)> = Vec::new();
    for generation in 0..4u64 {
        let (data, zero) = change(&live, generation, random);
        let base = made.last().map(|(manifest, _)| manifest);
        let spec = spec(generation + 1, BLOCKS * BLOCK_SIZE_BYTES, data.clone(), zero, base);
        let reader = Arc::new(live.fork());
        let manifest = back_up(repo, spec, reader.clone()).await.unwrap();
        assert!(reader.blocks_read() == data, "the backup read other blocks than those of its specification");
        made.push((manifest, live.fork()));
    }
    made
}

#[allow(clippy::unwrap_used, reason = "a failed test panics")]
async fn check_restore(repo: &Repository, manifest: &Manifest, expected: &MemoryVolume) {
    let target = Arc::new(MemoryVolume::default());
    let progress = Arc::new(Progress::new(Arc::new(Requests::default())));
    let (request, options) = (RestoreRequest::default(), RestoreOptions::default());
    let cancel = CancelToken::new();
    restore(repo, manifest, target.clone(), &request, &options, progress, &cancel).await.unwrap();
    assert!(target.content() == expected.content(), "wrong content of {}", manifest.id());
}

/// Deletes the snapshots one by one; the others stay restorable.
#[allow(clippy::unwrap_used, reason = "a failed test panics")]
async fn check_deletions(repo: &Repository, made: &[(Manifest, MemoryVolume)]) {
    let mut left: Vec<_> = made.iter().collect();
    for index in [1, 0, 1, 0] {
        let (manifest, _) = left.remove(index);
        let id = manifest.id();
        let delete =
            || delete_snapshot(repo, &id, &[], &NoCache, DeleteMode::Checked { host: uuid::Uuid::nil() });
        delete().await.unwrap();
        let again = delete().await.unwrap_err();
        assert!(matches!(again, CloudError::SnapshotNotFound { .. }), "{again}");
        for (manifest, expected) in &left {
            check_restore(repo, manifest, expected).await;
        }
    }
}
