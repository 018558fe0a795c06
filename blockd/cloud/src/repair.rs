//! Repair of a damaged snapshot: a snapshot of the same point in time whose own delta has the lost blocks.
//!
//! The new delta is above those of the damaged snapshot, so that it hides their damaged frames from every
//! reader. A delta with a damaged index is left out: its readable blocks are stored again. The repair of an
//! older snapshot is above that one's delta in the chains of all later ones, which share it.

use crate::{
    BackupSpec, CloudError, CloudSnapshotId, Manifest, Repository, SnapshotReader,
    backup_spec::RepairedSnapshot, fetch::DeltaReader, manifest::Delta, names::DeltaId,
    references::References,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, Extent, SnapshotId};
use jiff::Timestamp;
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};
use tokio::runtime::Handle;

/// Blocks that are read at a time.
const READ_BLOCKS: u64 = 1024;

/// Source of lost blocks.
#[derive(Clone)]
pub struct RepairSource {
    /// Blocks with the content of the damaged snapshot.
    pub blocks: BlockSet,
    /// Blocks that may have data; the others are zero.
    pub data: BlockSet,
    /// Reader.
    pub reader: Arc<dyn BlockSource>,
}

impl std::fmt::Debug for RepairSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RepairSource").field("blocks", &self.blocks.len_blocks()).finish_non_exhaustive()
    }
}

/// Planned repair.
#[derive(Debug)]
pub struct Repair {
    manifest: Manifest,
    /// Deltas that stay, newest first.
    chain: Vec<Delta>,
    /// Deltas that their visible references name.
    referenced: Vec<Delta>,
    owners: Vec<CloudSnapshotId>,
    /// Readable deltas of the damaged snapshot, newest first.
    readable: Vec<Delta>,
    /// Blocks behind a damaged index.
    unknown: BlockSet,
    wanted: BlockSet,
    missing: BlockSet,
    sources: Vec<RepairSource>,
}

impl Repair {
    /// Plans the repair of a snapshot with these damaged blocks. Reads the indexes of its chain. Repairs of
    /// older snapshots of its chain among `others` are used.
    ///
    /// # Errors
    /// [`CloudError::UnknownKey`]; errors of the store.
    pub async fn plan(
        repo: &Repository,
        manifest: &Manifest,
        damaged: &BlockSet,
        others: &[Manifest],
    ) -> Result<Self, CloudError> {
        let (deltas, repairs) = with_repairs(manifest, others);
        let mut survey = Survey {
            left: BlockSet::from_iter([Extent::whole(manifest.size_bytes)]),
            chain: Vec::new(),
            readable: Vec::new(),
            wanted: BlockSet::new(),
            unknown: BlockSet::new(),
            repaired: BlockSet::new(),
            referenced: BTreeMap::new(),
        };
        for delta in deltas {
            let is_repair = repairs.iter().any(|repair| repair.delta == delta);
            if !survey.take(repo, delta, is_repair).await? {
                break;
            }
        }
        let Survey { chain, readable, unknown, repaired, mut referenced, mut wanted, .. } = survey;
        let mut damaged = damaged.slice(Extent::whole(manifest.size_bytes));
        damaged.subtract(&repaired);
        wanted.union_with(&damaged);
        // A delta that is hidden now is left out, too: its damaged objects are no longer needed.
        let is_visible = |own: &BlockSet| {
            let mut visible = own.clone();
            visible.subtract(&wanted);
            !visible.is_empty()
        };
        let chain: Vec<Delta> =
            chain.into_iter().filter(|(_, own)| is_visible(own)).map(|(delta, _)| delta).collect();
        referenced.retain(|_, blocks| is_visible(blocks));
        let referenced =
            manifest.deltas().filter(|delta| referenced.contains_key(&delta.id())).cloned().collect();
        let used = repairs.iter().filter(|repair| chain.contains(&repair.delta)).map(|repair| repair.id());
        let owners = std::iter::once(manifest.id()).chain(used).collect();
        let missing = wanted.clone();
        let (manifest, sources) = (manifest.clone(), Vec::new());
        Ok(Self { manifest, chain, referenced, owners, readable, unknown, wanted, missing, sources })
    }

    /// Returns the blocks that the repair stores.
    pub fn wanted(&self) -> &BlockSet {
        &self.wanted
    }

    /// Returns true if the repair would equal the snapshot.
    pub fn changes_nothing(&self) -> bool {
        self.wanted.is_empty() && self.manifest.layers().eq(&self.chain)
    }

    /// Returns the blocks without a source.
    pub fn missing(&self) -> &BlockSet {
        &self.missing
    }

    /// Adds a source for the missing blocks that it has.
    pub fn add_source(&mut self, mut source: RepairSource) {
        source.blocks.intersect_with(&self.missing);
        source.data.intersect_with(&source.blocks);
        self.missing.subtract(&source.blocks);
        if !source.blocks.is_empty() {
            self.sources.push(source);
        }
    }

    /// Adds the blocks that another snapshot of the same point in time has. They are read once.
    ///
    /// # Errors
    /// [`CloudError::UnknownKey`]; errors of the store.
    pub async fn add_snapshot(&mut self, repo: &Repository, manifest: &Manifest) -> Result<(), CloudError> {
        let mut other = Self::plan(repo, manifest, &BlockSet::new(), &[]).await?;
        other.missing = self.missing.slice(Extent::whole(manifest.size_bytes));
        if let Some(source) = other.readable_source(repo).await? {
            self.add_source(source);
        }
        Ok(())
    }

    /// Adds the blocks of the damaged snapshot that are still readable: they are stored again if their index
    /// is damaged, or if they were wrongly taken for damaged.
    ///
    /// # Errors
    /// Those of [`add_snapshot`](Self::add_snapshot).
    pub async fn add_readable(&mut self, repo: &Repository) -> Result<(), CloudError> {
        if let Some(source) = self.readable_source(repo).await? {
            self.add_source(source);
        }
        Ok(())
    }

    /// Returns the missing blocks that are readable in the snapshot itself.
    async fn readable_source(&self, repo: &Repository) -> Result<Option<RepairSource>, CloudError> {
        let Some((delta, chain)) = self.readable.split_first() else { return Ok(None) };
        let sources =
            self.manifest.deltas().filter(|delta| !self.readable.contains(delta)).cloned().collect();
        let chain = chain.to_vec();
        let manifest = Manifest { delta: delta.clone(), chain, sources, ..self.manifest.clone() };
        let mut wanted = self.missing.clone();
        wanted.subtract(&self.unknown);
        readable_blocks(repo, &manifest, &wanted).await.map(Some)
    }

    /// Returns the backup that stores the repair under a new id of the volume, and the reader of its blocks.
    ///
    /// # Errors
    /// [`CloudError::InvalidRequest`] if blocks are missing.
    pub fn into_backup(
        self,
        snapshot: SnapshotId,
        started: Timestamp,
        delta_salt: [u8; 32],
    ) -> Result<(BackupSpec, Arc<dyn BlockSource>), CloudError> {
        let Self { manifest, chain, referenced, owners, wanted, missing, sources, .. } = self;
        if let Some(block) = missing.first() {
            let what = format!("block {block} of cloud snapshot {} has no source", manifest.id());
            return Err(CloudError::InvalidRequest { what });
        }
        let (mut data, mut zero) = (BlockSet::new(), wanted);
        sources.iter().for_each(|source| data.union_with(&source.data));
        zero.subtract(&data);
        let spec = BackupSpec {
            cluster: manifest.cluster,
            volume: manifest.volume,
            snapshot,
            description: manifest.description.clone(),
            size_bytes: manifest.size_bytes,
            started,
            data,
            zero,
            base: None,
            references: References::default(),
            donors: Vec::new(),
            deduplicated: BlockSet::new(),
            synthetic: false,
            repair: Some(RepairedSnapshot {
                id: manifest.id(),
                base: manifest.base,
                chain,
                sources: referenced,
                owners,
            }),
            delta_salt,
        };
        Ok((spec, Arc::new(Sources { size_bytes: manifest.size_bytes, sources })))
    }
}

/// Returns the deltas of a snapshot, newest first, each below the delta of its repair, and those repairs.
fn with_repairs<'a>(manifest: &Manifest, others: &'a [Manifest]) -> (Vec<Delta>, Vec<&'a Manifest>) {
    let mut deltas: Vec<Delta> = manifest.layers().cloned().collect();
    let mut used = Vec::new();
    let mut repaired: BTreeSet<_> = BTreeSet::from([manifest.delta.id()]);
    // A repair may have been repaired.
    loop {
        let next = others.iter().find_map(|other| {
            let of = other.repairs?;
            let is_of = |delta: &Delta| {
                (delta.cluster, delta.volume, delta.snapshot) == (of.cluster, of.volume, of.snapshot)
            };
            let at = deltas.iter().position(is_of)?;
            let is_new = !repaired.contains(&deltas[at].id()) && !deltas.contains(&other.delta);
            is_new.then_some((at, other))
        });
        let Some((at, other)) = next else { return (deltas, used) };
        repaired.insert(deltas[at].id());
        deltas.insert(at, other.delta.clone());
        used.push(other);
    }
}

/// Pass through the indexes of a chain, newest first.
struct Survey {
    /// Blocks in no delta so far.
    left: BlockSet,
    /// Deltas that stay, with their visible blocks.
    chain: Vec<(Delta, BlockSet)>,
    readable: Vec<Delta>,
    /// Blocks that a delta that is left out provides or hides.
    wanted: BlockSet,
    /// Those behind a damaged index.
    unknown: BlockSet,
    /// Blocks from repairs of older snapshots.
    repaired: BlockSet,
    /// Visible blocks whose content is in other deltas.
    referenced: BTreeMap<DeltaId, BlockSet>,
}

impl Survey {
    /// Adds the next delta; returns false if no delta below it is visible.
    async fn take(&mut self, repo: &Repository, delta: Delta, is_repair: bool) -> Result<bool, CloudError> {
        let mut keep = 0;
        let reader = match DeltaReader::open(repo, &delta, &mut keep).await {
            Ok(reader) => Arc::new(reader),
            Err(CloudError::Damaged { .. }) => {
                self.unknown.union_with(&self.left);
                self.wanted.union_with(&self.left);
                self.left = BlockSet::new();
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let (mut own, mut is_damaged, mut referenced) = (BlockSet::new(), false, Vec::new());
        for number in 0..reader.root.pages.len() {
            let mut visible = match reader.page(number).await {
                Ok(None) => continue,
                Ok(Some(page)) => {
                    let mut blocks = page.data.clone();
                    blocks.union_with(&page.zero);
                    blocks.union_with(&page.referenced);
                    for group in page.references {
                        let mut blocks = group.blocks;
                        blocks.intersect_with(&self.left);
                        referenced.push((reader.root.sources[group.source as usize], blocks));
                    }
                    blocks
                }
                Err(CloudError::Damaged { .. }) => {
                    let range = reader.root.pages.get(number).map(|page| page.range);
                    let lost: BlockSet =
                        range.iter().flat_map(|range| self.left.extents_in(*range)).collect();
                    // Also if nothing of it is visible: random reads need the pages of all deltas.
                    is_damaged = true;
                    self.unknown.union_with(&lost);
                    lost
                }
                Err(error) => return Err(error),
            };
            visible.intersect_with(&self.left);
            self.left.subtract(&visible);
            own.union_with(&visible);
        }
        self.readable.push(delta.clone());
        if is_damaged {
            self.wanted.union_with(&own);
        } else {
            for (source, blocks) in referenced {
                self.referenced.entry(source).or_default().union_with(&blocks);
            }
            if is_repair {
                self.repaired.union_with(&own);
            }
            self.chain.push((delta, own));
        }
        Ok(!self.left.is_empty())
    }
}

/// Returns the blocks of a set that a snapshot still has; each is read and authenticated.
async fn readable_blocks(
    repo: &Repository,
    manifest: &Manifest,
    wanted: &BlockSet,
) -> Result<RepairSource, CloudError> {
    let nothing = || Arc::new(Sources { size_bytes: manifest.size_bytes, sources: Vec::new() });
    let reader = match SnapshotReader::open(repo, manifest).await {
        Ok(reader) => reader,
        Err(CloudError::Damaged { .. }) => {
            return Ok(RepairSource { blocks: BlockSet::new(), data: BlockSet::new(), reader: nothing() });
        }
        Err(error) => return Err(error),
    };
    let (mut blocks, data) = (wanted.clone(), Arc::new(Mutex::new(BlockSet::new())));
    for part in parts(wanted.extents()) {
        let found = Arc::clone(&data);
        let take = move |start, content: &[u8]| {
            found.lock().insert_extent(Extent::new(start, content.len() as u64 / BLOCK_SIZE_BYTES));
            Ok(())
        };
        blocks.subtract(&reader.read_sound_blocks_to(part, false, take).await?.blocks);
    }
    let data = data.lock().clone();
    Ok(RepairSource { blocks, data, reader: Arc::new(Stored { reader, runtime: Handle::current() }) })
}

/// Returns those of the blocks, and of all blocks of its own delta, that cannot be read back from a repaired
/// snapshot.
///
/// # Errors
/// [`CloudError::UnknownKey`]; errors of the store.
pub async fn check_repaired(
    repo: &Repository,
    manifest: &Manifest,
    blocks: &BlockSet,
) -> Result<BlockSet, CloudError> {
    let mut unreadable = indexed_blocks(repo, &manifest.delta, manifest.size_bytes).await?;
    unreadable.union_with(blocks);
    unreadable.subtract(&readable_blocks(repo, manifest, &unreadable).await?.blocks);
    Ok(unreadable)
}

/// Returns the blocks of a delta. All those behind an unreadable index count.
async fn indexed_blocks(repo: &Repository, delta: &Delta, size_bytes: u64) -> Result<BlockSet, CloudError> {
    let (mut blocks, mut keep) = (BlockSet::new(), 0);
    let reader = match DeltaReader::open(repo, delta, &mut keep).await {
        Ok(reader) => Arc::new(reader),
        Err(CloudError::Damaged { .. }) => return Ok(BlockSet::from_iter([Extent::whole(size_bytes)])),
        Err(error) => return Err(error),
    };
    for (number, page) in reader.root.pages.iter().enumerate() {
        match reader.page(number).await {
            Ok(Some(page)) => {
                blocks.union_with(&page.data);
                blocks.union_with(&page.zero);
                blocks.union_with(&page.referenced);
            }
            Ok(None) => {}
            Err(CloudError::Damaged { .. }) => blocks.insert_extent(page.range),
            Err(error) => return Err(error),
        }
    }
    Ok(blocks)
}

/// Returns blocks whose content may differ between two snapshots; `None` if none is in the other's chain. An
/// unreadable index hides differences, so that all its blocks count.
///
/// # Errors
/// [`CloudError::UnknownKey`]; errors of the store.
pub async fn differing_blocks(
    repo: &Repository,
    one: &Manifest,
    other: &Manifest,
) -> Result<Option<BlockSet>, CloudError> {
    let above = |newer: &Manifest, older: &Manifest| {
        let at = newer.layers().position(|delta| *delta == older.delta)?;
        Some(newer.layers().take(at).cloned().collect::<Vec<_>>())
    };
    let Some(between) = above(one, other).or_else(|| above(other, one)) else { return Ok(None) };
    let mut differing = BlockSet::new();
    for delta in &between {
        let size_bytes = one.size_bytes.max(other.size_bytes);
        differing.union_with(&indexed_blocks(repo, delta, size_bytes).await?);
    }
    Ok(Some(differing))
}

/// Divides extents into those of one read.
fn parts(extents: impl Iterator<Item = Extent>) -> impl Iterator<Item = Extent> {
    extents.flat_map(|extent| {
        (extent.start.0..extent.end().0).step_by(READ_BLOCKS as usize).map(move |start| {
            Extent::between(BlockIndex(start), BlockIndex(start + READ_BLOCKS).min(extent.end()))
        })
    })
}

/// Reader of a damaged snapshot, for blocks that are known to be readable.
struct Stored {
    reader: SnapshotReader,
    runtime: Handle,
}

impl BlockSource for Stored {
    fn size_bytes(&self) -> u64 {
        self.reader.size_bytes()
    }

    /// Reads in bulk, as random reads need the pages of all deltas.
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let extent = Extent::touching(offset_bytes, buf.len() as u64);
        let content = self.runtime.block_on(self.reader.read_blocks(extent)).map_err(io::Error::other)?;
        let from = (offset_bytes - extent.offset_bytes()) as usize;
        buf.copy_from_slice(&content[from..from + buf.len()]);
        Ok(())
    }

    fn may_wait(&self) -> bool {
        true
    }
}

/// Sources of a repair as one.
struct Sources {
    size_bytes: u64,
    sources: Vec<RepairSource>,
}

impl BlockSource for Sources {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let extent = Extent::touching(offset_bytes, buf.len() as u64);
        let (mut content, mut found) = (vec![0; extent.len_bytes() as usize], 0);
        for source in &self.sources {
            for part in source.blocks.extents_in(extent).flat_map(|part| parts(std::iter::once(part))) {
                let from = (part.offset_bytes() - extent.offset_bytes()) as usize;
                let out = &mut content[from..from + part.len_bytes() as usize];
                source.reader.read_extents(&[part], out)?;
                found += part.len_blocks;
            }
        }
        if found != extent.len_blocks {
            return Err(io::Error::other(format!("{extent} has no source")));
        }
        let from = (offset_bytes - extent.offset_bytes()) as usize;
        buf.copy_from_slice(&content[from..from + buf.len()]);
        Ok(())
    }

    fn may_wait(&self) -> bool {
        self.sources.iter().any(|source| source.reader.may_wait())
    }
}
