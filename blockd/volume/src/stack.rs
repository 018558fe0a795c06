//! The layers of a volume, and which of them a block is read from.
//!
//! A stack is immutable; a freeze or a merge puts a new one in its place, and whoever holds the old one reads on from
//! it. A read takes each block from the topmost layer that holds it, and zeroes where none does.

use crate::{data_files::DataFiles, head::Head, layer_set::LayerSet, live_map::BlockState};
use blockd_extent::{Epoch, Extent};
use std::sync::Arc;

/// A layer that never changes again.
pub(crate) struct FrozenLayer {
    /// The last epoch whose writes are in it.
    pub(crate) epoch: Epoch,
    /// Names its files.
    pub(crate) file: Epoch,
    pub(crate) generation: u32,
    /// How long the volume was at the end of its epoch.
    pub(crate) size_bytes: u64,
    pub(crate) data: Arc<DataFiles>,
    pub(crate) set: LayerSet,
}

#[derive(Clone)]
pub(crate) enum Layer {
    /// The head, or one whose freeze is not finished.
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

    /// How long the volume was at the end of the layer's epoch.
    pub(crate) fn size_bytes(&self) -> u64 {
        match self {
            Self::Open(head) => head.size_bytes,
            Self::Frozen(layer) => layer.size_bytes,
        }
    }

    pub(crate) fn data(&self) -> &Arc<DataFiles> {
        match self {
            Self::Open(head) => &head.data,
            Self::Frozen(layer) => &layer.data,
        }
    }
}

/// Layers, top first.
pub(crate) struct Stack {
    pub(crate) layers: Vec<Layer>,
}

/// Where a run of blocks is read from: a layer's data, or nowhere, because it is zeroes.
pub(crate) type Source<'a> = Option<&'a Arc<DataFiles>>;

impl Stack {
    /// Tells, in ascending order, where each run of a range is read from.
    pub(crate) fn resolve<'a, E>(
        &'a self,
        range: Extent,
        found: &mut dyn FnMut(Extent, Source<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.resolve_from(0, range, found)
    }

    /// The same, as if the layers above the one with number `level` were not there.
    pub(crate) fn resolve_from<'a, E>(
        &'a self,
        level: usize,
        range: Extent,
        found: &mut dyn FnMut(Extent, Source<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        if range.is_empty() {
            return Ok(());
        }
        match self.layers.get(level) {
            None => found(range, None),
            Some(Layer::Open(head)) => {
                let mut at = range.start;
                for (run, state) in head.states(range) {
                    at = run.end();
                    match state {
                        BlockState::Absent => self.resolve_from(level + 1, run, found)?,
                        BlockState::Data => found(run, Some(&head.data))?,
                        BlockState::Zero => found(run, None)?,
                    }
                }
                // An open layer below the head may be shorter than the volume, which has grown since.
                self.resolve_from(level + 1, Extent::between(at, range.end()), found)
            }
            Some(Layer::Frozen(layer)) => {
                let mut at = range.start;
                for run in layer.set.held.extents_in(range) {
                    self.resolve_from(level + 1, Extent::between(at, run.start), found)?;
                    at = run.end();
                    resolve_held(layer, run, found)?;
                }
                self.resolve_from(level + 1, Extent::between(at, range.end()), found)
            }
        }
    }

    /// Tells, in ascending order, which runs of a range a layer after this epoch holds: those that were dirtied since.
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
                for (run, state) in head.states(range) {
                    at = run.end();
                    match state {
                        BlockState::Absent => self.dirtied_from(level + 1, epoch, run, found)?,
                        BlockState::Data | BlockState::Zero => found(run, true)?,
                    }
                }
            }
            Some(Layer::Frozen(layer)) => {
                for run in layer.set.held.extents_in(range) {
                    self.dirtied_from(level + 1, epoch, Extent::between(at, run.start), found)?;
                    at = run.end();
                    found(run, true)?;
                }
            }
        }
        self.dirtied_from(level + 1, epoch, Extent::between(at, range.end()), found)
    }
}

/// Cuts a run that a frozen layer holds into zeroes and data.
fn resolve_held<'a, E>(
    layer: &'a FrozenLayer,
    run: Extent,
    found: &mut dyn FnMut(Extent, Source<'a>) -> Result<(), E>,
) -> Result<(), E> {
    let mut at = run.start;
    for zero in layer.set.zero.extents_in(run) {
        if zero.start > at {
            found(Extent::between(at, zero.start), Some(&layer.data))?;
        }
        found(zero, None)?;
        at = zero.end();
    }
    if run.end() > at {
        found(Extent::between(at, run.end()), Some(&layer.data))?;
    }
    Ok(())
}
