//! Tracing of damage to the snapshots that lose blocks.

use super::{AffectedSnapshot, VerifyFinding, VerifyReport};
use crate::{
    CloudError, CloudSnapshotId, Damage, Manifest, Repository,
    fetch::DeltaReader,
    listing::{ManifestCache, ManifestFilter},
    manifest::Delta,
    names::DeltaId,
};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// Maximum number of index readers kept in memory.
const MAX_READERS: usize = 64;

/// Finds the snapshots that lose blocks because of damage, including those that were not requested.
pub(super) async fn trace(
    repo: &Repository,
    manifests: &[Manifest],
    found: Damage,
    cache: &dyn ManifestCache,
    report: &mut VerifyReport,
) -> Result<BTreeMap<CloudSnapshotId, BlockSet>, CloudError> {
    let mut damaged: BTreeMap<CloudSnapshotId, BlockSet> = BTreeMap::new();
    report.findings_total += found.total;
    if found.is_empty() {
        return Ok(damaged);
    }
    let mut all: BTreeMap<CloudSnapshotId, Manifest> =
        manifests.iter().map(|manifest| (manifest.id(), manifest.clone())).collect();
    let volumes: BTreeSet<_> = all.keys().map(|id| (id.cluster, id.volume)).collect();
    for (cluster, volume) in volumes {
        let filter = ManifestFilter { cluster: Some(cluster), volume: Some(volume) };
        for listed in repo.list_manifests(&filter, cache).await? {
            if let Ok(manifest) = listed.manifest {
                all.entry(manifest.id()).or_insert(manifest);
            }
        }
    }
    let mut lost_of: BTreeMap<String, (DeltaId, BlockSet)> = BTreeMap::new();
    for (object, lost) in &found.objects {
        if let Some(delta) = DeltaId::of_object(object) {
            lost_of.entry(delta.prefix()).or_insert_with(|| (delta, BlockSet::new())).1.union_with(lost);
        }
    }
    // Uses all lost blocks of each delta, because only the first damaged parts are described.
    let mut hiding = Hiding { repo, readers: HashMap::new() };
    let mut affected_by: BTreeMap<String, Vec<AffectedSnapshot>> = BTreeMap::new();
    for (prefix, (delta, lost)) in lost_of {
        for (id, manifest) in &all {
            let Some(at) = manifest.deltas().position(|other| other.id() == delta) else { continue };
            let mut blocks = lost.slice(Extent::whole(manifest.size_bytes));
            for newer in manifest.deltas().take(at) {
                hiding.hide(newer, &mut blocks).await?;
            }
            debug_assert!(blocks.len_blocks() <= lost.len_blocks(), "more blocks are affected than are lost");
            if !blocks.is_empty() {
                damaged.entry(*id).or_default().union_with(&blocks);
                affected_by.entry(prefix.clone()).or_default().push(AffectedSnapshot { id: *id, blocks });
            }
        }
    }
    for part in found.parts {
        let lost: BlockSet = part.blocks.iter().copied().collect();
        let affected = DeltaId::of_object(&part.object).and_then(|delta| affected_by.get(&delta.prefix()));
        let mut affects = affected.cloned().unwrap_or_default();
        affects.iter_mut().for_each(|affected| affected.blocks.intersect_with(&lost));
        affects.retain(|affected| !affected.blocks.is_empty());
        let (object, offset_bytes, what) = (part.object, part.offset_bytes, part.what);
        report.findings.push(VerifyFinding { object, offset_bytes, what, affects });
    }
    let asked: BTreeSet<CloudSnapshotId> = manifests.iter().map(Manifest::id).collect();
    let others = damaged.iter().filter(|(id, _)| !asked.contains(id));
    report.others = others.map(|(id, blocks)| AffectedSnapshot { id: *id, blocks: blocks.clone() }).collect();
    Ok(damaged)
}

/// Blocks that deltas hide of those below them.
struct Hiding<'a> {
    repo: &'a Repository,
    readers: HashMap<String, Option<Arc<DeltaReader>>>,
}

impl Hiding<'_> {
    async fn hide(&mut self, delta: &Delta, blocks: &mut BlockSet) -> Result<(), CloudError> {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return Ok(()) };
        let hull = Extent::between(first, BlockIndex(last.0 + 1));
        let Some(reader) = self.reader(delta).await? else { return Ok(()) };
        for number in reader.root.pages_in(hull) {
            match reader.page(number).await {
                Ok(Some(page)) => {
                    blocks.subtract(&page.data);
                    blocks.subtract(&page.zero);
                }
                // The hidden blocks are unknown; the damaged index is a separate finding.
                Ok(None) | Err(CloudError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns the reader of a delta's index; `None` if its root is damaged.
    async fn reader(&mut self, delta: &Delta) -> Result<Option<Arc<DeltaReader>>, CloudError> {
        let key = delta.id().prefix();
        if let Some(reader) = self.readers.get(&key) {
            return Ok(reader.clone());
        }
        let mut keep = 0;
        let reader = match DeltaReader::open(self.repo, delta, &mut keep).await {
            Ok(reader) => Some(Arc::new(reader)),
            Err(CloudError::Damaged { .. }) => None,
            Err(error) => return Err(error),
        };
        if self.readers.len() >= MAX_READERS {
            self.readers.clear();
        }
        debug_assert!(self.readers.len() < MAX_READERS);
        self.readers.insert(key, reader.clone());
        Ok(reader)
    }
}
