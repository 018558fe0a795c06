//! Lazy volumes: usable immediately, hydrated from their source on read and in the background.
//!
//! A lazy volume starts with a head above a [base](crate::lazy::base), which holds every block for the layers
//! above and fetches missing ones. Writes go to the head only, as in any volume, so the dirty set is exact.
//! When all blocks are present, one commit turns the base into a frozen layer.

use crate::{
    error::{IoContext, VolumeError},
    head::Head,
    head::volume_dir::VolumeDir,
    io::files,
    io::reserve,
    io::storage,
    layer::data_files::DataFiles,
    layer::set::{LayerSet, SetIdentity},
    layer::stack::{FrozenLayer, Layer, Stack},
    lazy::base::LazyBase,
    lazy::{Hydration, LazySource, OnFetched},
    meta::{self, LayerEntry, Meta},
    open::{load_lazy, sync_parent},
    view::SnapshotView,
    volume::Volume,
    write::partial_blocks,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet, Epoch, Extent, VolumeId};
use parking_lot::Mutex;
use std::{path::Path, sync::Arc};

const BASE: Epoch = Epoch(1);
const HEAD: Epoch = Epoch(2);

/// Access to a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read of the whole range.
    Read,
    /// Write of the whole range, which reads the partial blocks at its ends.
    Write,
}

impl Volume {
    /// Creates a volume with the content of `source`, without fetching data; durable when the call returns.
    /// No block is dirty.
    ///
    /// # Errors
    /// As for [`create`](Self::create).
    pub fn create_lazy(
        dir: &Path,
        id: VolumeId,
        size_bytes: u64,
        source: Arc<dyn LazySource>,
    ) -> Result<Arc<Self>, VolumeError> {
        meta::check_size(size_bytes).map_err(VolumeError::InvalidInput)?;
        storage::create_dir(dir).during("create", dir)?;
        let volume_dir = VolumeDir { path: dir, volume: id, size_bytes };
        let base_entry = LayerEntry { lazy: true, ..LayerEntry::frozen(BASE, size_bytes) };
        let make = || {
            drop(DataFiles::create(&files::data_path(dir, BASE), size_bytes)?);
            LazyBase::create_log(volume_dir, BASE, &BlockSet::new())?;
            let base = load_lazy(volume_dir, base_entry)?;
            let head = Head::create(volume_dir, HEAD)?;
            let meta = Meta::new(id, vec![LayerEntry::head(HEAD, size_bytes), base_entry]);
            // Also syncs the directory, which makes the file names durable.
            meta.store(dir)?;
            sync_parent(dir)?;
            let layers = vec![Layer::Open(Arc::new(head)), Layer::Frozen(Arc::new(base))];
            let volume = Self::assemble(dir.to_owned(), meta, Stack::new(layers, &Stack::default()));
            volume.set_lazy_source(source);
            Ok(volume)
        };
        let made = make();
        if made.is_err() {
            let _ = storage::remove_dir_all(dir);
        }
        made
    }

    /// Epoch of a lazy volume's base; all writes are in later epochs.
    pub const LAZY_BASE_EPOCH: Epoch = BASE;

    /// Sets the source of a lazy volume after it was opened. No effect on other volumes.
    pub fn set_lazy_source(&self, source: Arc<dyn LazySource>) {
        if let Some(base) = self.current().lazy() {
            base.set_source(source);
        }
    }

    /// Returns true if reads may fetch data.
    pub fn is_lazy(&self) -> bool {
        self.stack.read().lazy().is_some_and(|base| !base.is_complete())
    }

    /// Returns the hydration state; `None` if the volume is not lazy or its hydration has ended.
    pub fn hydration(&self) -> Option<Hydration> {
        self.current().lazy().map(|base| base.hydration())
    }

    /// Fetches the next blocks of hydration, first around recent reads, and waits for them. Returns the
    /// bytes, at most 4 MiB, or `None` if all blocks are present, in flight or refused. Several threads may
    /// call it. A permanent refusal by the source is an error once; later calls skip the blocks.
    ///
    /// # Errors
    /// The source or the disk fails; a retry is possible.
    pub fn hydrate_next(&self) -> Result<Option<u64>, VolumeError> {
        self.check_usable()?;
        reserve::check_free("hydration", &self.dir)?;
        match self.current().lazy() {
            Some(base) => base.hydrate_next(),
            None => Ok(None),
        }
    }

    /// Makes [`hydrate_next`](Self::hydrate_next) prefer these blocks, in this order, after the areas around
    /// recent reads. A hint: at most 131,072 extents are queued, not persistently.
    pub fn prefer(&self, extents: &[Extent]) {
        if let Some(base) = self.current().lazy() {
            base.prefer(extents);
        }
    }

    /// Makes [`hydrate_next`](Self::hydrate_next) retry permanently refused blocks.
    pub fn retry_refused(&self) {
        if let Some(base) = self.current().lazy() {
            base.retry_refused();
        }
    }

    /// Makes fetched blocks durable, so that the next start does not fetch them again. Fetches also do so
    /// every 64 MiB.
    ///
    /// # Errors
    /// The disk is full or fails; blocks that may be lost are fetched again.
    pub fn sync_hydration(&self) -> Result<(), VolumeError> {
        match self.current().lazy() {
            Some(base) => base.write_log(),
            None => Ok(()),
        }
    }

    /// Turns the base of a lazy volume into an ordinary layer if it is complete; returns true if the source
    /// is no longer needed.
    ///
    /// # Errors
    /// The disk is full or fails; a retry is possible.
    pub fn end_hydration(&self) -> Result<bool, VolumeError> {
        let _no_merge = self.pause_merges();
        self.check_usable()?;
        let stack = self.current();
        let Some(Layer::Frozen(old)) = stack.layers().last() else { return Ok(true) };
        let Some(base) = old.data.lazy() else { return Ok(true) };
        if !base.note_complete() {
            return Ok(false);
        }
        base.write_log()?;
        let blocks = old.size_bytes / BLOCK_SIZE_BYTES;
        // A failed sync has invalidated blocks.
        if base.logged().len_blocks() != blocks {
            return Ok(false);
        }
        let mut admin = self.admin.lock();
        self.settle(&admin)?;
        let generation = old.generation + 1;
        let set = LayerSet { held: base.final_set(old.size_bytes)?, zero: BlockSet::new() };
        set.store(&self.dir, SetIdentity { volume: self.id, file: old.file, generation, blocks })?;
        assert!(admin.layers.last().is_some_and(|bottom| bottom.lazy), "the base is the bottom layer");
        let mut meta = admin.clone();
        for entry in meta.layers.iter_mut().filter(|entry| entry.lazy) {
            (entry.lazy, entry.generation) = (false, generation);
        }
        let data = DataFiles::open(&files::data_path(&self.dir, old.file), old.size_bytes)?;
        self.commit(&mut admin, meta)?;
        let whole = Layer::Frozen(Arc::new(FrozenLayer {
            epoch: old.epoch,
            file: old.file,
            generation,
            size_bytes: old.size_bytes,
            data: Arc::new(data.into()),
            set,
            has_all_zeroes: true,
        }));
        self.replace_layers(|layer| match layer.epoch() == old.epoch {
            true => Some(whole.clone()),
            false => Some(layer.clone()),
        });
        drop(admin);
        if let Err(error) = files::remove_if_exists(&files::log_path(&self.dir, old.file)) {
            tracing::warn!(volume = %self.id, %error, "removal failed on the hydration log: left to the next start");
        }
        Ok(true)
    }

    /// Fetches the missing blocks of a request without blocking. Returns `on_done` if none is missing;
    /// otherwise another thread calls `on_done` when they are present or failed.
    ///
    /// So a server needs no waiting thread per request. The request, made afterwards, does not wait for the
    /// source, except after a disk error.
    pub fn prefetch_async(
        &self,
        access: Access,
        offset_bytes: u64,
        len_bytes: u64,
        on_done: OnFetched,
    ) -> Option<OnFetched> {
        if self.check_range(offset_bytes, len_bytes).is_err() {
            // The request itself fails.
            return Some(on_done);
        }
        prefetch_async(&self.current(), access, offset_bytes, len_bytes, on_done)
    }

    /// Fetches the missing blocks that a write covers partially. Returns false if that would block and
    /// `may_wait` is false.
    pub(crate) fn fetch_partial_blocks(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        may_wait: bool,
    ) -> Result<bool, VolumeError> {
        let stack = self.current();
        let Some(base) = stack.lazy().filter(|base| !base.is_complete()) else { return Ok(true) };
        for block in partial_blocks(offset_bytes, len_bytes) {
            let wanted = lazy_extents(&stack, Extent::new(block, 1));
            if wanted.is_empty() || base.has_all(&wanted) {
                continue;
            }
            if !may_wait {
                return Ok(false);
            }
            self.check_usable()?;
            base.fetch_extents(&wanted).map_err(|failure| base.failed(block, failure))?;
        }
        Ok(true)
    }
}

impl SnapshotView {
    /// Returns true if reads of the snapshot may fetch data.
    pub fn is_lazy(&self) -> bool {
        self.stack.lazy().is_some_and(|base| !base.is_complete())
    }

    /// Runs [`Volume::prefetch_async`] for a read of the snapshot.
    pub fn prefetch_async(&self, offset_bytes: u64, len_bytes: u64, on_done: OnFetched) -> Option<OnFetched> {
        if self.check_range(offset_bytes, len_bytes).is_err() {
            return Some(on_done);
        }
        prefetch_async(&self.stack, Access::Read, offset_bytes, len_bytes, on_done)
    }
}

fn prefetch_async(
    stack: &Stack,
    access: Access,
    offset_bytes: u64,
    len_bytes: u64,
    on_done: OnFetched,
) -> Option<OnFetched> {
    let Some(base) = stack.lazy().filter(|base| !base.is_complete()) else { return Some(on_done) };
    let wanted: Vec<Extent> = match access {
        Access::Read => lazy_extents(stack, Extent::touching(offset_bytes, len_bytes)),
        Access::Write => partial_blocks(offset_bytes, len_bytes)
            .flat_map(|block| lazy_extents(stack, Extent::new(block, 1)))
            .collect(),
    };
    let Some(start) = wanted.first().map(|extent| extent.start).filter(|_| !base.has_all(&wanted)) else {
        return Some(on_done);
    };
    let (failing_base, on_done) = (base.clone(), Arc::new(Mutex::new(Some(on_done))));
    let shared = on_done.clone();
    let unused = base.request(
        &wanted,
        Box::new(move |result| {
            if let Some(on_done) = shared.lock().take() {
                on_done(result.map_err(|failure| failing_base.failed(start, failure)));
            }
        }),
    );
    // `request` returns the wrapper, not `on_done`.
    unused.and_then(|_| on_done.lock().take())
}

/// Returns the extents of a range that are read from the lazy base.
fn lazy_extents(stack: &Stack, range: Extent) -> Vec<Extent> {
    let mut extents = Vec::new();
    let _ = stack.resolve(range, &mut |extent, source| {
        if source.is_some_and(|data| data.lazy().is_some()) {
            extents.push(extent);
        }
        Ok::<(), std::convert::Infallible>(())
    });
    extents
}
