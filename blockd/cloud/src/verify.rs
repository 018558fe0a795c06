//! Verification of snapshots: objects exist (quick), frames decrypt (full), or content matches (deep).
//!
//! A delta is read once, independent of the number of snapshots that share it. Damage is traced to the
//! snapshots that lose blocks: those in which no newer delta hides the damaged blocks.

mod trace;

use trace::trace;

use crate::{
    CloudError, CloudSnapshotId, Damage, Manifest, ManifestKey, Repository, SnapshotReader,
    damage::DamageList,
    delta_listings::DeltaListings,
    fetch::{BlockSink, DeltaReader},
    listing::ManifestCache,
    manifest::Delta,
    progress::{CancelToken, Phase, Progress},
    reader::BulkRead,
    slots::SlotFinding,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent, MAX_VOLUME_BYTES};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, io,
    sync::Arc,
};

/// Depth of a verification.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VerifyDepth {
    /// Manifests decrypt, and their objects exist with the right lengths: one listing for each delta, or for
    /// many of a volume, and no reads.
    Quick,
    /// Every frame of every delta decrypts.
    Full,
    /// Every block is restored and discarded, and compared with the expected content if that is known.
    Deep,
}

impl fmt::Display for VerifyDepth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quick => "quick",
            Self::Full => "full",
            Self::Deep => "deep",
        })
    }
}

/// Comparison of a snapshot's content with the expected one.
pub trait BlockCheck: Send + Sync {
    /// Compares whole blocks from `start` on. Called concurrently, on threads that may block, in no
    /// particular order; blocks that are not passed are zero.
    ///
    /// # Errors
    /// The expected content cannot be read. The implementation records differing blocks itself.
    fn blocks(&self, start: BlockIndex, data: &[u8]) -> io::Result<()>;
}

/// Options of a verification.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifyOptions {
    /// Depth.
    pub depth: VerifyDepth,
    /// Maximum number of concurrent requests; their number follows latency and bandwidth.
    pub download_concurrency: usize,
    /// Threads that decrypt and decompress; 0 is one for each core.
    pub cpu_threads: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { depth: VerifyDepth::Full, download_concurrency: 32, cpu_threads: 0 }
    }
}

/// Blocks that a snapshot loses.
#[derive(Clone, PartialEq, Debug)]
pub struct AffectedSnapshot {
    /// Id.
    pub id: CloudSnapshotId,
    /// Lost blocks.
    pub blocks: BlockSet,
}

/// Finding of a verification.
#[derive(Clone, PartialEq, Debug)]
pub struct VerifyFinding {
    /// Key of the object.
    pub object: String,
    /// Offset, in bytes.
    pub offset_bytes: u64,
    /// Cause.
    pub what: String,
    /// Snapshots that lose blocks; none if newer deltas hide all of them.
    pub affects: Vec<AffectedSnapshot>,
}

/// Result for one snapshot.
#[derive(Clone, PartialEq, Debug)]
pub struct VerifiedSnapshot {
    /// Id.
    pub id: CloudSnapshotId,
    /// Unreadable blocks. Empty if the manifest is unreadable.
    pub damaged: BlockSet,
    /// The manifest is readable.
    pub has_manifest: bool,
    /// Digest of the content, if it was restored completely: XOR of SHA-256(block number, block) over all
    /// nonzero blocks.
    pub digest: Option<[u8; 32]>,
}

impl VerifiedSnapshot {
    /// Returns true without damage.
    pub fn is_sound(&self) -> bool {
        self.has_manifest && self.damaged.is_empty()
    }
}

/// Report of a verification.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct VerifyReport {
    /// Requested snapshots that exist.
    pub snapshots: Vec<VerifiedSnapshot>,
    /// Findings by object; at most [`MAX_DAMAGE_DESCRIBED`](crate::MAX_DAMAGE_DESCRIBED).
    pub findings: Vec<VerifyFinding>,
    /// Keys of all damaged objects, also of those in which no snapshot loses blocks.
    pub damaged_objects: BTreeSet<String>,
    /// Other snapshots that lose blocks.
    pub others: Vec<AffectedSnapshot>,
    /// Copies of key slots that were damaged, missing or forged, some of them repaired. They are also among
    /// the findings and affect no snapshot.
    pub slots: Vec<SlotFinding>,
    /// Total number of findings, including those not described.
    pub findings_total: u64,
    /// Number of checked deltas.
    pub deltas: u64,
    /// Number of checked objects without manifests: index and packs of each delta, including missing ones.
    pub objects: u64,
    /// Bytes of restored blocks.
    pub block_bytes: u64,
}

/// Verifies snapshots, and checks both copies of the key slots, which other hosts need. Damaged or missing
/// copies are rewritten if a genuine one is known.
///
/// `check_of` returns the comparison for a snapshot whose content is known; it is called at the depth
/// [`VerifyDepth::Deep`] only. Damage is reported, not returned as an error. A snapshot that was deleted
/// concurrently is skipped.
///
/// # Errors
/// [`CloudError::Cancelled`]; errors of a check; errors of the store that are not about its content.
pub async fn verify(
    repo: &Repository,
    ids: &[CloudSnapshotId],
    options: &VerifyOptions,
    check_of: &(dyn Fn(&CloudSnapshotId) -> Option<Arc<dyn BlockCheck>> + Send + Sync),
    cache: &dyn ManifestCache,
    progress: Arc<Progress>,
    cancel: &CancelToken,
) -> Result<VerifyReport, CloudError> {
    cancel.guard(run(repo, ids, options, check_of, cache, progress)).await
}

async fn run(
    repo: &Repository,
    ids: &[CloudSnapshotId],
    options: &VerifyOptions,
    check_of: &(dyn Fn(&CloudSnapshotId) -> Option<Arc<dyn BlockCheck>> + Send + Sync),
    cache: &dyn ManifestCache,
    progress: Arc<Progress>,
) -> Result<VerifyReport, CloudError> {
    progress.enter(Phase::Planning);
    let mut report = VerifyReport { slots: repo.check_key_slots().await?, ..VerifyReport::default() };
    report.findings_total += report.slots.len() as u64;
    report.findings.extend(report.slots.iter().map(|slot| VerifyFinding {
        object: slot.object.clone(),
        offset_bytes: slot.offset_bytes,
        what: slot.outcome(),
        affects: Vec::new(),
    }));
    let manifests = load(repo, ids, &mut report).await?;
    read_all(repo, &manifests, options, check_of, cache, &progress, &mut report).await?;
    assert!(report.snapshots.len() <= ids.len(), "more snapshots than were requested");
    progress.finish();
    Ok(report)
}

/// Verifies snapshots with given manifests, as [`verify`] does, but without the key slots and without a
/// comparison.
///
/// # Errors
/// [`CloudError::Cancelled`]; errors of the store that are not about its content.
pub async fn verify_manifests(
    repo: &Repository,
    manifests: &[Manifest],
    options: &VerifyOptions,
    cache: &dyn ManifestCache,
    progress: &Progress,
    cancel: &CancelToken,
) -> Result<VerifyReport, CloudError> {
    let mut report = VerifyReport::default();
    cancel.guard(read_all(repo, manifests, options, &|_| None, cache, progress, &mut report)).await?;
    Ok(report)
}

/// Checks all deltas of snapshots and adds the results to the report.
async fn read_all(
    repo: &Repository,
    manifests: &[Manifest],
    options: &VerifyOptions,
    check_of: &(dyn Fn(&CloudSnapshotId) -> Option<Arc<dyn BlockCheck>> + Send + Sync),
    cache: &dyn ManifestCache,
    progress: &Progress,
    report: &mut VerifyReport,
) -> Result<(), CloudError> {
    let mut found = Damage::default();
    let deltas = distinct_deltas(manifests);
    report.deltas = deltas.len() as u64;
    let block_bytes = |delta: &Delta| delta.data_blocks * BLOCK_SIZE_BYTES;
    progress.begin(match options.depth {
        VerifyDepth::Quick => 0,
        VerifyDepth::Full => deltas.values().map(|(manifest, at)| block_bytes(nth(manifest, *at))).sum(),
        VerifyDepth::Deep => {
            let read = |delta: &Delta| block_bytes(delta) + delta.reference_blocks * BLOCK_SIZE_BYTES;
            manifests.iter().flat_map(Manifest::layers).map(read).sum()
        }
    });
    let mut listings = DeltaListings::of(deltas.values().map(|(manifest, at)| nth(manifest, *at)));
    for (manifest, at) in deltas.values() {
        let alone = alone(manifest, *at);
        report.objects += 1 + u64::from(nth(manifest, *at).pack_count);
        let lens = listings.lens(repo, &alone.delta.id()).await?;
        quick(repo, &alone, lens, &mut found).await?;
        if options.depth == VerifyDepth::Full {
            let discard = Arc::new(|_, _: &[u8]| Ok(()));
            let (damage, blocks) = frames(repo, &alone, options, discard, progress, true).await?;
            found.merge(damage);
            report.block_bytes += blocks * BLOCK_SIZE_BYTES;
        }
    }
    let mut digests = HashMap::new();
    if options.depth == VerifyDepth::Deep {
        for manifest in manifests {
            let id = manifest.id();
            let content = Arc::new(Content { check: check_of(&id), digest: Mutex::default() });
            let taken = content.clone();
            let sink: Arc<BlockSink> = Arc::new(move |start, data: &[u8]| taken.take(start, data));
            let (damage, blocks) = frames(repo, manifest, options, sink, progress, false).await?;
            if damage.is_empty() {
                digests.insert(id, *content.digest.lock());
            }
            found.merge(damage);
            report.block_bytes += blocks * BLOCK_SIZE_BYTES;
        }
    }
    let damaged = trace(repo, manifests, found, cache, report).await?;
    for manifest in manifests {
        let id = manifest.id();
        let damaged = damaged.get(&id).cloned().unwrap_or_default();
        let digest = digests.get(&id).copied();
        report.snapshots.push(VerifiedSnapshot { id, damaged, has_manifest: true, digest });
    }
    assert!(report.findings_total >= report.findings.len() as u64, "findings that are not counted");
    report.snapshots.sort_by_key(|snapshot| snapshot.id);
    report.findings.sort_by(|a, b| (&a.object, a.offset_bytes).cmp(&(&b.object, b.offset_bytes)));
    Ok(())
}

/// All blocks that a delta may have.
const EVERYTHING: Extent = Extent::whole(MAX_VOLUME_BYTES);

/// Reads the manifests of the snapshots; an unreadable one is a finding, a missing one is skipped.
async fn load(
    repo: &Repository,
    ids: &[CloudSnapshotId],
    report: &mut VerifyReport,
) -> Result<Vec<Manifest>, CloudError> {
    let mut manifests = Vec::new();
    for id in ids {
        match repo.manifest(id).await {
            Ok(manifest) => manifests.push(manifest),
            Err(CloudError::SnapshotNotFound { .. }) => {}
            Err(error @ (CloudError::Store(_) | CloudError::Internal { .. })) => return Err(error),
            Err(error) => {
                let (offset_bytes, what) = match &error {
                    CloudError::Damaged { offset_bytes, what, .. } => (*offset_bytes, what.clone()),
                    error => (0, error.to_string()),
                };
                report.findings_total += 1;
                report.findings.push(VerifyFinding {
                    object: id.manifest_key(),
                    offset_bytes,
                    what,
                    affects: vec![AffectedSnapshot { id: *id, blocks: BlockSet::new() }],
                });
                let damaged = BlockSet::new();
                report.snapshots.push(VerifiedSnapshot {
                    id: *id,
                    damaged,
                    has_manifest: false,
                    digest: None,
                });
            }
        }
    }
    Ok(manifests)
}

/// Sink that compares and digests restored blocks.
struct Content {
    check: Option<Arc<dyn BlockCheck>>,
    digest: Mutex<[u8; 32]>,
}

impl Content {
    fn take(&self, start: BlockIndex, data: &[u8]) -> Result<(), CloudError> {
        debug_assert!(data.len().is_multiple_of(BLOCK_SIZE_BYTES as usize), "{} bytes", data.len());
        let mut sum = [0; 32];
        for (n, block) in data.chunks(BLOCK_SIZE_BYTES as usize).enumerate() {
            let mut hasher = Sha256::new();
            hasher.update((start.0 + n as u64).to_le_bytes());
            hasher.update(block);
            sum.iter_mut().zip(hasher.finalize()).for_each(|(sum, byte)| *sum ^= byte);
        }
        self.digest.lock().iter_mut().zip(sum).for_each(|(digest, byte)| *digest ^= byte);
        match &self.check {
            Some(check) => {
                check.blocks(start, data).map_err(|source| CloudError::CompareVolume { start, source })
            }
            None => Ok(()),
        }
    }
}

/// Returns each delta once, with a manifest that references it and its position there.
fn distinct_deltas(manifests: &[Manifest]) -> BTreeMap<String, (&Manifest, usize)> {
    let mut deltas = BTreeMap::new();
    for manifest in manifests {
        for (at, delta) in manifest.deltas().enumerate() {
            deltas.entry(delta.id().prefix()).or_insert((manifest, at));
        }
    }
    deltas
}

fn nth(manifest: &Manifest, at: usize) -> &Delta {
    manifest.deltas().nth(at).unwrap_or(&manifest.delta)
}

/// Returns a manifest reduced to its delta at position `at`, which the others may be sources of.
fn alone(manifest: &Manifest, at: usize) -> Manifest {
    let (mut delta, mut sources) = (manifest.delta.clone(), Vec::new());
    for (n, other) in manifest.deltas().enumerate() {
        if n == at { delta = other.clone() } else { sources.push(other.clone()) }
    }
    Manifest { delta, chain: Vec::new(), sources, ..manifest.clone() }
}

/// Returns true if all objects of a manifest's deltas exist with the right lengths.
pub(crate) async fn is_whole(repo: &Repository, manifest: &Manifest) -> Result<bool, CloudError> {
    let mut found = Damage::default();
    let mut listings = DeltaListings::of(manifest.deltas());
    for at in 0..manifest.deltas().count() {
        let alone = alone(manifest, at);
        let lens = listings.lens(repo, &alone.delta.id()).await?;
        quick(repo, &alone, lens, &mut found).await?;
    }
    Ok(found.is_empty())
}

/// Checks existence and lengths of the objects of a manifest's only delta.
async fn quick(
    repo: &Repository,
    alone: &Manifest,
    lens: BTreeMap<String, u64>,
    found: &mut Damage,
) -> Result<(), CloudError> {
    let delta = &alone.delta;
    let id = delta.id();
    let index_len = lens.get(&id.index_key()).copied();
    let total: u64 = lens.values().sum();
    // Also by name: a foreign object could hide a missing one of the same size.
    let has_all = id.keys(delta.pack_count).all(|key| lens.contains_key(&key));
    if index_len == Some(delta.index.len_bytes) && total == delta.stored_bytes && has_all {
        return Ok(());
    }
    let wrong = |key: &str, len: Option<u64>, expected: u64| match len {
        Some(len) => {
            let what = format!("the object has {len} bytes, {expected} were stored");
            CloudError::damaged(key, len.min(expected), what)
        }
        None => CloudError::damaged(key, 0, "the object is missing"),
    };
    if index_len != Some(delta.index.len_bytes) {
        found.add(wrong(&id.index_key(), index_len, delta.index.len_bytes), [EVERYTHING]);
        return Ok(());
    }
    // The index determines which object is missing or has a wrong length.
    let packs = match packs(repo, delta).await {
        Ok(packs) => packs,
        Err(error @ CloudError::Damaged { .. }) => {
            found.add(error, [EVERYTHING]);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for (pack_no, (expected, blocks)) in &packs {
        let key = id.pack_key(*pack_no);
        let len = lens.get(&key).copied();
        if len != Some(*expected) {
            found.add(wrong(&key, len, *expected), blocks.extents());
        }
    }
    Ok(())
}

/// Returns the length and the blocks of each stored pack of a delta.
async fn packs(repo: &Repository, delta: &Delta) -> Result<BTreeMap<u32, (u64, BlockSet)>, CloudError> {
    let mut keep = 0;
    let reader = Arc::new(DeltaReader::open(repo, delta, &mut keep).await?);
    let mut packs: BTreeMap<u32, (u64, BlockSet)> = BTreeMap::new();
    for number in 0..reader.root.pages.len() {
        let Some(page) = reader.page(number).await? else { continue };
        for job in reader.jobs(number, &page, &page.data) {
            let (len, blocks) = packs.entry(job.pack_no()).or_default();
            debug_assert!(job.pack_no() < delta.pack_count, "pack {} of {}", job.pack_no(), delta.pack_count);
            *len = (*len).max(job.end().into());
            job.wanted().for_each(|extent| blocks.insert_extent(extent));
        }
    }
    Ok(packs)
}

/// Reads all visible blocks of a manifest; returns the damage and the number of blocks. With
/// `check_references`, only the index of referenced blocks is read.
async fn frames(
    repo: &Repository,
    manifest: &Manifest,
    options: &VerifyOptions,
    sink: Arc<BlockSink>,
    progress: &Progress,
    check_references: bool,
) -> Result<(Damage, u64), CloudError> {
    let damage = Arc::<DamageList>::default();
    let everything = Extent::whole(manifest.size_bytes);
    let reader = match SnapshotReader::open_with(repo, manifest, options.cpu_threads).await {
        Ok(reader) => reader,
        Err(error @ CloudError::Damaged { .. }) => {
            damage.add(error, [EVERYTHING]);
            return Ok((damage.take(), 0));
        }
        Err(error) => return Err(error),
    };
    let (progress, damaged) = (Some(progress), Some(&damage));
    let what = BulkRead { progress, damage: damaged, check_references, ..BulkRead::default() };
    let totals = reader.read_in_bulk(everything, sink, options.download_concurrency, &what).await?;
    Ok((damage.take(), totals.blocks))
}
