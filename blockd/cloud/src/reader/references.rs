//! Resolution of references: the deltas that a snapshot's layers name as sources, and the frames there.
//!
//! A source is opened when a read first needs it, so that a damaged one affects only the blocks that it
//! provides.

use super::{Inner, bulk::BulkRead, run::FrameRun, visible::VisiblePage};
use crate::{
    CloudError, Manifest,
    cache::{INDEX_CONCURRENCY, SharedDelta},
    fetch::DeltaReader,
    index::Page,
    manifest::Delta,
    names::DeltaId,
    references::{displaced, displaced_extent},
    wanted::{FetchJob, MAX_GAP, WantedFrame, group, merge_frames},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use futures::{StreamExt, TryStreamExt};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::{OnceCell, mpsc};

/// Delta that references may name.
pub(super) struct Source {
    delta: Delta,
    open: OnceCell<Arc<SharedDelta>>,
}

/// Returns the sources of a snapshot with these open layers.
pub(super) fn sources(manifest: &Manifest, layers: &[Arc<SharedDelta>]) -> BTreeMap<DeltaId, Source> {
    let open = layers.iter().map(|layer| OnceCell::new_with(Some(Arc::clone(layer))));
    let open = open.chain(std::iter::repeat_with(OnceCell::new));
    let all = manifest.deltas().zip(open);
    all.map(|(delta, open)| (delta.id(), Source { delta: delta.clone(), open })).collect()
}

/// Visible references of one layer, source and displacement.
struct Visible {
    layer: Arc<SharedDelta>,
    source: DeltaId,
    displacement: i64,
    blocks: BlockSet,
}

/// Blocks of a page of a source that references name.
pub(super) struct Referenced {
    pub delta: Arc<SharedDelta>,
    number: usize,
    page: Arc<Page>,
    displacement: i64,
    /// Blocks of the source.
    blocks: BlockSet,
}

impl Referenced {
    /// Returns the frames, with the blocks that refer to them.
    pub fn frames(&self) -> Vec<WantedFrame> {
        let frames = self.delta.reader.frames_of(self.number, &self.page, &self.blocks);
        frames.into_iter().map(|frame| frame.referenced_from(self.displacement)).collect()
    }
}

/// Returns the pages of a delta that have some of the blocks.
fn pages_of(delta: &DeltaReader, blocks: &BlockSet) -> Vec<usize> {
    let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return Vec::new() };
    let pages = delta.root.pages_in(Extent::between(first, BlockIndex(last.0 + 1)));
    let is_wanted = |number: &usize| {
        delta.root.pages.get(*number).is_some_and(|page| blocks.intersection_len(page.range) > 0)
    };
    pages.filter(is_wanted).collect()
}

/// Returns the error of references to a source that the manifest does not name.
fn unknown(layer: &SharedDelta, source: DeltaId) -> CloudError {
    let what = format!("its references name {}, which the manifest does not", source.prefix());
    CloudError::damaged(&layer.reader.id().index_key(), 0, what)
}

/// Returns the error of references to blocks that the source does not have.
fn dangling(layer: &SharedDelta, source: DeltaId) -> CloudError {
    let what = format!("its references name blocks that {}does not have", source.prefix());
    CloudError::damaged(&layer.reader.id().index_key(), 0, what)
}

fn common(one: &BlockSet, other: &BlockSet) -> BlockSet {
    let mut common = one.clone();
    common.intersect_with(other);
    common
}

impl Inner {
    /// Returns a source if it is open.
    fn ready_source(&self, id: DeltaId) -> Option<&Arc<SharedDelta>> {
        self.sources.get(&id)?.open.get()
    }

    /// Returns a source that a layer names.
    async fn source(&self, id: DeltaId, layer: &SharedDelta) -> Result<Arc<SharedDelta>, CloudError> {
        let Some(source) = self.sources.get(&id) else { return Err(unknown(layer, id)) };
        let keep = self.cache.index_keep_bytes / self.sources.len().max(1) as u64;
        let open = source.open.get_or_try_init(|| {
            let opened = self.cache.delta(&self.repo, &source.delta, keep);
            self.cache.with_stall_timeout(self.repo.store().describe(), "the index", opened)
        });
        open.await.cloned()
    }

    fn visible_references(&self, run: &FrameRun) -> Vec<Visible> {
        let mut found = Vec::new();
        if !run.has_references() {
            return found;
        }
        run.visible(|level, _, page, mut left| {
            left.intersect_with(&page.referenced);
            let layer = &self.deltas[level];
            for group in &page.references {
                if left.is_empty() {
                    break;
                }
                let blocks = common(&left, &group.blocks);
                if !blocks.is_empty() {
                    left.subtract(&blocks);
                    let (source, displacement) = (layer.reader.source(group), group.displacement);
                    found.push(Visible { layer: Arc::clone(layer), source, displacement, blocks });
                }
            }
        });
        found
    }

    /// Resolves the references of a run from memory; `None` if a page is missing, or a reference is invalid.
    pub(super) fn ready_references(&self, run: &FrameRun) -> Option<Vec<Referenced>> {
        let mut found = Vec::new();
        for visible in self.visible_references(run) {
            let delta = self.ready_source(visible.source)?;
            let mut left = displaced(&visible.blocks, visible.displacement);
            for number in pages_of(&delta.reader, &left) {
                let page = self.cache.ready_page(delta, number)??;
                let blocks = common(&left, &page.data);
                left.subtract(&blocks);
                let displacement = visible.displacement;
                found.push(Referenced { delta: Arc::clone(delta), number, page, displacement, blocks });
            }
            if !left.is_empty() {
                return None;
            }
        }
        Some(found)
    }

    /// Resolves the references of a run, several at a time.
    pub(super) async fn load_references(&self, run: &FrameRun) -> Result<Vec<Referenced>, CloudError> {
        let loads = futures::stream::iter(self.visible_references(run)).map(|visible| async move {
            let delta = self.source(visible.source, &visible.layer).await?;
            let mut left = displaced(&visible.blocks, visible.displacement);
            let mut found = Vec::new();
            for number in pages_of(&delta.reader, &left) {
                let Some(page) = self.cache.page(&delta, number).await? else { continue };
                let blocks = common(&left, &page.data);
                left.subtract(&blocks);
                let (delta, displacement) = (Arc::clone(&delta), visible.displacement);
                found.push(Referenced { delta, number, page, displacement, blocks });
            }
            if left.is_empty() { Ok(found) } else { Err(dangling(&visible.layer, visible.source)) }
        });
        Ok(loads.buffered(INDEX_CONCURRENCY).try_collect::<Vec<_>>().await?.into_iter().flatten().collect())
    }
}

/// References of a region that a bulk read has yet to follow. They are collected so that each page and pack
/// of a source is read once.
#[derive(Default)]
pub(super) struct PendingReferences {
    region: Option<Extent>,
    /// By source and displacement: a layer that names it, and the blocks of the snapshot.
    groups: BTreeMap<(DeltaId, i64), (Arc<SharedDelta>, BlockSet)>,
}

/// Channel of planned requests.
pub(super) type Jobs = mpsc::Sender<(Arc<DeltaReader>, FetchJob)>;

impl PendingReferences {
    /// Returns the references of the previous region, if the page is in another one.
    pub fn take_if_before(&mut self, page: &VisiblePage) -> Option<Self> {
        let is_before = self.region.is_some_and(|region| region != page.region);
        is_before.then(|| std::mem::take(self))
    }

    pub fn add(&mut self, page: &VisiblePage) {
        self.region = Some(page.region);
        for group in &page.page.references {
            let blocks = common(&group.blocks, &page.visible);
            if !blocks.is_empty() {
                let key = (page.delta.reader.source(group), group.displacement);
                let entry =
                    self.groups.entry(key).or_insert_with(|| (Arc::clone(&page.delta), BlockSet::new()));
                entry.1.union_with(&blocks);
            }
        }
    }

    /// Plans the requests for the blocks, source by source.
    pub async fn send(self, inner: &Inner, what: &BulkRead<'_>, jobs: &Jobs) -> Result<(), CloudError> {
        let mut by_source: BTreeMap<DeltaId, Vec<Wanted>> = BTreeMap::new();
        for ((source, displacement), (layer, blocks)) in self.groups {
            let left = displaced(&blocks, displacement);
            by_source.entry(source).or_default().push(Wanted { layer, displacement, left });
        }
        for (source, mut wanted) in by_source {
            let Some(first) = wanted.first() else { continue };
            if !inner.sources.contains_key(&source) {
                // A delta that is checked alone has also those that the layers above it hide, and those of
                // a source, which a manifest does not name.
                for wanted in wanted.iter().filter(|_| !what.check_references) {
                    what.lose(unknown(&wanted.layer, source), wanted.own(&wanted.left))?;
                }
                continue;
            }
            let delta = match inner.source(source, &first.layer).await {
                Err(error @ CloudError::Damaged { .. }) => {
                    what.lose(error, wanted.iter().flat_map(|wanted| wanted.runs(&wanted.left)))?;
                    continue;
                }
                opened => opened?,
            };
            let mut all = BlockSet::new();
            wanted.iter().for_each(|wanted| all.union_with(&wanted.left));
            for number in pages_of(&delta.reader, &all) {
                send_page(inner, &delta, number, &mut wanted, what, jobs).await?;
            }
            for wanted in wanted.iter().filter(|wanted| !wanted.left.is_empty()) {
                what.lose(dangling(&wanted.layer, source), wanted.own(&wanted.left))?;
            }
        }
        Ok(())
    }
}

/// Blocks of a source that references of one displacement name.
struct Wanted {
    layer: Arc<SharedDelta>,
    displacement: i64,
    /// Blocks of the source that no page had so far.
    left: BlockSet,
}

impl Wanted {
    /// Returns the blocks of the snapshot that refer to these blocks of the source, for damage of the source.
    fn runs(&self, blocks: &BlockSet) -> Vec<(Extent, i64)> {
        let target = |extent| Some((displaced_extent(extent, -self.displacement)?, self.displacement));
        blocks.extents().filter_map(target).collect()
    }

    /// Returns the same blocks for damage of the layer.
    fn own(&self, blocks: &BlockSet) -> Vec<(Extent, i64)> {
        self.runs(blocks).into_iter().map(|(extent, _)| (extent, 0)).collect()
    }
}

/// Plans the requests for the wanted blocks of one page of a source.
async fn send_page(
    inner: &Inner,
    delta: &Arc<SharedDelta>,
    number: usize,
    wanted: &mut [Wanted],
    what: &BulkRead<'_>,
    jobs: &Jobs,
) -> Result<(), CloudError> {
    let Some(place) = delta.reader.root.pages.get(number) else { return Ok(()) };
    let page = match inner.cache.page(delta, number).await {
        Err(error @ CloudError::Damaged { .. }) => {
            let mut lost = Vec::new();
            for wanted in wanted {
                let blocks = common(&wanted.left, &BlockSet::from_iter([place.range]));
                wanted.left.subtract(&blocks);
                lost.extend(wanted.runs(&blocks));
            }
            return what.lose(error, lost);
        }
        page => page?,
    };
    let Some(page) = page else { return Ok(()) };
    let (mut frames, mut listed) = (Vec::new(), 0);
    for wanted in wanted {
        let blocks = common(&wanted.left, &page.data);
        wanted.left.subtract(&blocks);
        if !what.check_references {
            listed += blocks.len_blocks();
            let found = delta.reader.frames_in_bulk(number, &page, &blocks).into_iter();
            let found = found.map(|frame| frame.referenced_from(wanted.displacement)).collect();
            frames = merge_frames(frames, found);
        }
    }
    let planned = group(frames, MAX_GAP, u32::MAX);
    if let Some(progress) = what.progress {
        let moved: u64 = planned.iter().map(FetchJob::wanted_blocks).sum();
        debug_assert!(moved <= listed, "{moved} of {listed} referenced blocks");
        progress.subtract_from_total(listed.saturating_sub(moved) * BLOCK_SIZE_BYTES);
    }
    for job in planned {
        // Cannot fail: the receiver is dropped together with this future.
        let _ = jobs.send((Arc::clone(&delta.reader), job)).await;
    }
    Ok(())
}
