//! Stack of the layers of a volume.
//!
//! A stack is immutable; a freeze or a merge replaces it, and holders of the old one continue to read from
//! it. A read takes each block from the topmost layer that holds it, or zeroes.

use crate::{
    head::Head,
    head::live_map::BlockState,
    layer::cover::{self, Cover},
    layer::damage::DamageList,
    layer::data::LayerData,
    layer::location_cache::{Location, LocationCache},
    layer::set::{LayerSet, SetIdentity},
    layer::sums::BlockSums,
    lazy::base::LazyBase,
    meta::LayerEntry,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Epoch, Extent, VolumeId};
use std::{borrow::Cow, path::Path, sync::Arc};

/// Immutable layer.
pub(crate) struct FrozenLayer {
    /// Last epoch whose writes are in the layer.
    pub(crate) epoch: Epoch,
    /// Epoch that names its files.
    pub(crate) file: Epoch,
    pub(crate) generation: u32,
    /// Size of the volume at the end of its epoch.
    pub(crate) size_bytes: u64,
    pub(crate) data: Arc<LayerData>,
    /// Block sets; zeroes may be left out.
    pub(crate) set: LayerSet,
    /// True if no zeroes are left out of `set`.
    pub(crate) has_all_zeroes: bool,
}

impl FrozenLayer {
    /// Returns the entry of the layer in `volume.meta`.
    pub(crate) fn entry(&self) -> LayerEntry {
        LayerEntry {
            epoch: self.epoch,
            file: self.file,
            generation: self.generation,
            open: false,
            lazy: self.data.lazy().is_some(),
            size_bytes: self.size_bytes,
        }
    }

    /// Returns the checksums of its blocks; `dir` is the directory of the volume.
    pub(crate) fn sums(&self, dir: &Path, volume: VolumeId) -> &Arc<BlockSums> {
        self.data.sums_or_init(|| BlockSums::new(dir, volume, self.file))
    }

    /// Returns the list of its damaged blocks; `dir` is the directory of the volume.
    pub(crate) fn damage(&self, dir: &Path, volume: VolumeId) -> &Arc<DamageList> {
        self.data.damage_or_init(|| DamageList::new(dir, volume, self.file))
    }

    /// Creates the layer of an entry in `volume.meta`, with all zeroes.
    pub(crate) fn new(entry: &LayerEntry, data: LayerData, set: LayerSet) -> Self {
        Self::with_data(entry, Arc::new(data), set)
    }

    fn with_data(entry: &LayerEntry, data: Arc<LayerData>, set: LayerSet) -> Self {
        debug_assert!(set.held.last().is_none_or(|last| last.0 < entry.blocks()), "blocks beyond the layer");
        let LayerEntry { epoch, file, generation, size_bytes, .. } = *entry;
        Self { epoch, file, generation, size_bytes, data, set, has_all_zeroes: true }
    }

    /// Returns true if these may be the block sets of the layer's file.
    pub(crate) fn has_sets(&self, stored: &LayerSet) -> bool {
        if self.has_all_zeroes {
            return *stored == self.set;
        }
        stored.held == self.set.held && self.set.zero.is_subset(&stored.zero)
    }

    /// Leaves out zeroes that take too much memory. The set file has them.
    pub(crate) fn with_bounded_memory(mut self) -> Self {
        self.has_all_zeroes &= self.set.bound_memory(self.entry().blocks());
        self
    }

    /// Returns the block sets with the zeroes that were left out, for a copy that would write them as data;
    /// `dir` is the directory of the volume.
    pub(crate) fn set_with_zeroes(&self, dir: &Path, volume: VolumeId) -> Cow<'_, LayerSet> {
        if self.has_all_zeroes {
            return Cow::Borrowed(&self.set);
        }
        match LayerSet::load(dir, SetIdentity::of(volume, &self.entry())) {
            Ok(set) => Cow::Owned(set),
            // A merge replaced the layer of an open view.
            Err(error) => {
                tracing::debug!(%volume, %error, "loading the zeroes of a layer failed: they are copied as data");
                Cow::Borrowed(&self.set)
            }
        }
    }
}

/// Layer of a stack.
#[derive(Clone)]
pub(crate) enum Layer {
    /// Head, or layer with an unfinished freeze.
    Open(Arc<Head>),
    Frozen(Arc<FrozenLayer>),
}

impl Layer {
    pub(crate) fn epoch(&self) -> Epoch {
        match self {
            Self::Open(head) => head.epoch,
            Self::Frozen(layer) => layer.epoch,
        }
    }

    /// Returns the size of the volume at the end of the layer's epoch.
    pub(crate) fn size_bytes(&self) -> u64 {
        match self {
            Self::Open(head) => head.size_bytes,
            Self::Frozen(layer) => layer.size_bytes,
        }
    }

    /// Returns the current block sets of the layer; for a lazy base, the fetched blocks.
    pub(crate) fn set(&self) -> Cow<'_, LayerSet> {
        match self {
            Self::Open(head) => Cow::Owned(head.current_set()),
            Self::Frozen(layer) => match layer.data.lazy() {
                Some(base) => Cow::Owned(LayerSet { held: base.present().0, ..LayerSet::default() }),
                None => Cow::Borrowed(&layer.set),
            },
        }
    }

    /// Returns the current block sets with the zeroes that were left out; `dir` is the directory of the
    /// volume.
    pub(crate) fn set_with_zeroes(&self, dir: &Path, volume: VolumeId) -> Cow<'_, LayerSet> {
        match self {
            Self::Frozen(layer) if layer.data.lazy().is_none() => layer.set_with_zeroes(dir, volume),
            _ => self.set(),
        }
    }

    pub(crate) fn data(&self) -> &Arc<LayerData> {
        match self {
            Self::Open(head) => &head.data,
            Self::Frozen(layer) => &layer.data,
        }
    }
}

/// Minimum number of frozen layers for a cache of block locations.
const MIN_CACHED_LAYERS: usize = 3;

/// Maximum length of a range whose blocks are looked up one by one in the cache.
const MAX_CACHED_BLOCKS: u64 = 16;

/// Layers, top first.
#[derive(Default)]
pub(crate) struct Stack {
    layers: Vec<Layer>,
    covers: Vec<Cover>,
    /// Cache of block locations, if there are enough frozen layers.
    cache: Option<LocationCache>,
}

/// Source of an extent: a layer's data, or `None` for zeroes.
pub(crate) type Source<'a> = Option<&'a Arc<LayerData>>;

impl Stack {
    /// Creates a stack of layers, top first, reusing groups and cache of `old`.
    pub(crate) fn new(layers: Vec<Layer>, old: &Self) -> Self {
        debug_assert!(are_ordered(&layers), "newer layers are above older ones");
        let covers = Cover::build(&layers, &old.covers);
        let open = layers.iter().take_while(|layer| matches!(layer, Layer::Open(_))).count();
        // An open layer among the frozen ones, left by a failed freeze, could change.
        let is_deep = layers.len() - open >= MIN_CACHED_LAYERS
            && layers[open..].iter().all(|layer| matches!(layer, Layer::Frozen(_)));
        let blocks = layers.first().map_or(0, Layer::size_bytes) / BLOCK_SIZE_BYTES;
        let cache = is_deep.then(|| match &old.cache {
            Some(cache) => cache.next(blocks),
            None => LocationCache::new(blocks),
        });
        Self { layers, covers, cache }
    }

    /// Returns the same layers with the zeroes that were left out; `dir` is the directory of the volume.
    pub(crate) fn with_zeroes(&self, dir: &Path, volume: VolumeId) -> Self {
        let exact = |layer: &Layer| match layer {
            Layer::Frozen(bounded) if !bounded.has_all_zeroes => {
                let set = bounded.set_with_zeroes(dir, volume).into_owned();
                Layer::Frozen(Arc::new(FrozenLayer::with_data(&bounded.entry(), bounded.data.clone(), set)))
            }
            _ => layer.clone(),
        };
        let layers = self.layers.iter().map(exact).collect();
        // Without the cache, which may locate zeroes in data.
        Self::new(layers, &Self { covers: self.covers.clone(), ..Self::default() })
    }

    /// Returns the same layers below a new head.
    pub(crate) fn below(&self, head: Arc<Head>) -> Self {
        let mut layers = Vec::with_capacity(self.layers.len() + 1);
        layers.push(Layer::Open(head.clone()));
        layers.extend(self.layers.iter().cloned());
        debug_assert!(are_ordered(&layers), "newer layers are above older ones");
        let mut covers = Vec::with_capacity(self.covers.len() + 1);
        covers.push(Cover::Open(head));
        covers.extend(self.covers.iter().cloned());
        Self { layers, covers, cache: self.cache.clone() }
    }

    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Returns the lazy base, if any.
    pub(crate) fn lazy(&self) -> Option<&Arc<LazyBase>> {
        self.layers.last()?.data().lazy()
    }

    /// Returns the approximate memory of groups and cache, in bytes.
    pub(crate) fn cover_bytes(&self) -> u64 {
        cover::heap_bytes(&self.covers) + self.cache.as_ref().map_or(0, LocationCache::heap_bytes)
    }

    /// Reports the source of each extent of a range, ascending.
    pub(crate) fn resolve<'a, E>(
        &'a self,
        range: Extent,
        found: &mut dyn FnMut(Extent, Source<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.resolve_in(&self.covers, range, found)
    }

    /// Reports the source of each extent of a range in the layers below the head, ascending.
    pub(crate) fn resolve_below_head<'a, E>(
        &'a self,
        range: Extent,
        found: &mut dyn FnMut(Extent, Source<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.resolve_in(self.covers.get(1..).unwrap_or_default(), range, found)
    }

    fn resolve_in<'a, E>(
        &'a self,
        covers: &'a [Cover],
        range: Extent,
        found: &mut dyn FnMut(Extent, Source<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(cache) = self.cache.as_ref().filter(|_| (1..=MAX_CACHED_BLOCKS).contains(&range.len_blocks))
        else {
            return cover::resolve(covers, range, found);
        };
        let mut extent = Extent::new(range.start, 1);
        let mut source = self.source_of(covers, cache, range.start);
        for block in range.start.0 + 1..range.end().0 {
            let next = self.source_of(covers, cache, BlockIndex(block));
            if next.map(Arc::as_ptr) == source.map(Arc::as_ptr) {
                extent.len_blocks += 1;
            } else {
                found(extent, source)?;
                (extent, source) = (Extent::new(BlockIndex(block), 1), next);
            }
        }
        found(extent, source)
    }

    /// Returns the source of a block, cached unless it is in an open layer.
    fn source_of<'a>(
        &'a self,
        mut covers: &'a [Cover],
        cache: &LocationCache,
        block: BlockIndex,
    ) -> Source<'a> {
        while let Some((Cover::Open(head), below)) = covers.split_first() {
            match head.state(block) {
                BlockState::Absent => covers = below,
                BlockState::Data => return Some(&head.data),
                BlockState::Zero => return None,
            }
        }
        assert!(!self.layers.is_empty(), "a stack with a cache has layers");
        let bottom = self.layers.len() - 1;
        match cache.get(block) {
            Some(Location::Zeroes) => {
                debug_assert!(cover::source_of(covers, block).is_none(), "cached zeroes are zeroes");
                return None;
            }
            Some(Location::Layer(height)) if height <= bottom => {
                let data = self.layers[bottom - height].data();
                debug_assert!(
                    cover::source_of(covers, block).is_some_and(|found| Arc::ptr_eq(found, data)),
                    "the cached location is current"
                );
                return Some(data);
            }
            _ => {}
        }
        let source = cover::source_of(covers, block);
        let is_source = |layer: &Layer, data: &Arc<LayerData>| Arc::ptr_eq(layer.data(), data);
        match source {
            None => cache.put(block, Location::Zeroes),
            Some(data) => {
                if let Some(at) = self.layers.iter().position(|layer| is_source(layer, data)) {
                    cache.put(block, Location::Layer(bottom - at));
                }
            }
        }
        source
    }

    /// Reports the extents of a range, ascending, with true if they were dirtied after an epoch.
    pub(crate) fn dirtied_after<E>(
        &self,
        epoch: Epoch,
        range: Extent,
        found: &mut dyn FnMut(Extent, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        self.dirtied_from(0, epoch, range, found)
    }

    fn dirtied_from<E>(
        &self,
        level: usize,
        epoch: Epoch,
        range: Extent,
        found: &mut dyn FnMut(Extent, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        if range.is_empty() {
            return Ok(());
        }
        let mut at = range.start;
        match self.layers.get(level).filter(|layer| layer.epoch() > epoch) {
            None => return found(range, false),
            Some(Layer::Open(head)) => {
                for (extent, state) in head.states(range) {
                    at = extent.end();
                    match state {
                        BlockState::Absent => self.dirtied_from(level + 1, epoch, extent, found)?,
                        BlockState::Data | BlockState::Zero => found(extent, true)?,
                    }
                }
            }
            Some(Layer::Frozen(layer)) => {
                for extent in layer.set.held.extents_in(range) {
                    self.dirtied_from(level + 1, epoch, Extent::between(at, extent.start), found)?;
                    at = extent.end();
                    found(extent, true)?;
                }
            }
        }
        self.dirtied_from(level + 1, epoch, Extent::between(at, range.end()), found)
    }
}

/// Returns true if epochs descend and no layer is larger than a newer one; for assertions.
fn are_ordered(layers: &[Layer]) -> bool {
    layers
        .windows(2)
        .all(|pair| pair[0].epoch() > pair[1].epoch() && pair[0].size_bytes() >= pair[1].size_bytes())
}

/// Reports the zeroes and data of an extent that a frozen layer holds, ascending.
pub(crate) fn resolve_held<'a, E>(
    layer: &'a FrozenLayer,
    extent: Extent,
    found: &mut dyn FnMut(Extent, Source<'a>) -> Result<(), E>,
) -> Result<(), E> {
    debug_assert!(layer.set.held.contains_extent(extent), "only held blocks have a source here");
    let mut at = extent.start;
    for zero in layer.set.zero.extents_in(extent) {
        if zero.start > at {
            found(Extent::between(at, zero.start), Some(&layer.data))?;
        }
        found(zero, None)?;
        at = zero.end();
    }
    if extent.end() > at {
        found(Extent::between(at, extent.end()), Some(&layer.data))?;
    }
    Ok(())
}
