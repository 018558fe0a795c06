//! Tracing of damage to the snapshots that lose blocks.

use super::{AffectedSnapshot, VerifyFinding, VerifyReport};
use crate::{
    CloudError, CloudSnapshotId, Damage, Manifest, Repository,
    fetch::DeltaReader,
    listing::{ManifestCache, ManifestFilter},
    manifest::Delta,
    names::DeltaId,
    references::displaced,
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
    report.damaged_objects.extend(found.objects().map(str::to_owned));
    if found.is_empty() {
        return Ok(damaged);
    }
    let mut all: BTreeMap<CloudSnapshotId, Manifest> =
        manifests.iter().map(|manifest| (manifest.id(), manifest.clone())).collect();
    // Snapshots of any volume may refer to the damaged deltas.
    for listed in repo.list_manifests(&ManifestFilter::default(), cache).await? {
        if let Ok(manifest) = listed.manifest {
            all.entry(manifest.id()).or_insert(manifest);
        }
    }
    let mut lost_of: BTreeMap<String, (DeltaId, BlockSet)> = BTreeMap::new();
    for (object, lost) in &found.objects {
        if let Some(delta) = DeltaId::of_object(object) {
            lost_of.entry(delta.prefix()).or_insert_with(|| (delta, BlockSet::new())).1.union_with(lost);
        }
    }
    // Uses all lost blocks of each delta, because only the first damaged parts are described.
    let mut hiding = Hiding { repo, readers: HashMap::new(), references: HashMap::new() };
    let mut affected_by: BTreeMap<String, Vec<(CloudSnapshotId, Displaced)>> = BTreeMap::new();
    for (prefix, (delta, lost)) in lost_of {
        hiding.references.clear();
        for (id, manifest) in &all {
            if manifest.deltas().all(|other| other.id() != delta) {
                continue;
            }
            let affected = hiding.affected(manifest, delta, &lost).await?;
            if !affected.is_empty() {
                let blocks = damaged.entry(*id).or_default();
                affected.iter().for_each(|(_, affected)| blocks.union_with(affected));
                affected_by.entry(prefix.clone()).or_default().push((*id, affected));
            }
        }
    }
    for part in found.parts {
        let lost: BlockSet = part.stored.iter().copied().collect();
        let affected = DeltaId::of_object(&part.object).and_then(|delta| affected_by.get(&delta.prefix()));
        let mut affects = Vec::new();
        for (id, affected) in affected.into_iter().flatten() {
            let mut blocks = BlockSet::new();
            for (displacement, affected) in affected {
                let mut lost = displaced(&lost, -displacement);
                lost.intersect_with(affected);
                blocks.union_with(&lost);
            }
            if !blocks.is_empty() {
                affects.push(AffectedSnapshot { id: *id, blocks });
            }
        }
        let (object, offset_bytes, what) = (part.object, part.offset_bytes, part.what);
        report.findings.push(VerifyFinding { object, offset_bytes, what, affects });
    }
    let asked: BTreeSet<CloudSnapshotId> = manifests.iter().map(Manifest::id).collect();
    let others = damaged.iter().filter(|(id, _)| !asked.contains(id));
    report.others = others.map(|(id, blocks)| AffectedSnapshot { id: *id, blocks: blocks.clone() }).collect();
    Ok(damaged)
}

/// Blocks of a snapshot, by their displacement to those of a delta.
type Displaced = Vec<(i64, BlockSet)>;

/// Blocks that deltas hide of those below them.
struct Hiding<'a> {
    repo: &'a Repository,
    readers: HashMap<String, Option<Arc<DeltaReader>>>,
    /// References of layers to the lost blocks of the current delta.
    references: HashMap<String, Displaced>,
}

impl Hiding<'_> {
    /// Returns the visible blocks of a snapshot whose content is in the lost blocks of a delta.
    async fn affected(
        &mut self,
        manifest: &Manifest,
        delta: DeltaId,
        lost: &BlockSet,
    ) -> Result<Displaced, CloudError> {
        let (mut affected, whole) = (Vec::new(), Extent::whole(manifest.size_bytes));
        for (at, layer) in manifest.layers().enumerate() {
            let mut found = self.referring(layer, delta, lost).await?;
            if layer.id() == delta {
                found.push((0, lost.slice(whole)));
            }
            for (_, blocks) in &mut found {
                for newer in manifest.layers().take(at) {
                    self.hide(newer, blocks).await?;
                }
            }
            affected.extend(found.into_iter().filter(|(_, blocks)| !blocks.is_empty()));
        }
        Ok(affected)
    }

    /// Returns the blocks of a layer that refer to lost blocks of a delta.
    async fn referring(
        &mut self,
        layer: &Delta,
        delta: DeltaId,
        lost: &BlockSet,
    ) -> Result<Displaced, CloudError> {
        let key = layer.id().prefix();
        if let Some(known) = self.references.get(&key) {
            return Ok(known.clone());
        }
        let mut found: BTreeMap<i64, BlockSet> = BTreeMap::new();
        let reader = self.reader(layer).await?.filter(|reader| reader.root.sources.contains(&delta));
        for number in 0..reader.as_ref().map_or(0, |reader| reader.root.pages.len()) {
            let Some(reader) = &reader else { break };
            let page = match reader.page(number).await {
                Ok(Some(page)) => page,
                // The damaged index is a separate finding.
                Ok(None) | Err(CloudError::Damaged { .. }) => continue,
                Err(error) => return Err(error),
            };
            for group in page.references.iter().filter(|group| reader.source(group) == delta) {
                let mut blocks = displaced(lost, -group.displacement);
                blocks.intersect_with(&group.blocks);
                found.entry(group.displacement).or_default().union_with(&blocks);
            }
        }
        let found: Displaced = found.into_iter().filter(|(_, blocks)| !blocks.is_empty()).collect();
        self.references.insert(key, found.clone());
        Ok(found)
    }

    async fn hide(&mut self, delta: &Delta, blocks: &mut BlockSet) -> Result<(), CloudError> {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return Ok(()) };
        let hull = Extent::between(first, BlockIndex(last.0 + 1));
        let Some(reader) = self.reader(delta).await? else { return Ok(()) };
        for number in reader.root.pages_in(hull) {
            match reader.page(number).await {
                Ok(Some(page)) => {
                    blocks.subtract(&page.data);
                    blocks.subtract(&page.zero);
                    blocks.subtract(&page.referenced);
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
