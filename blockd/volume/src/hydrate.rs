//! Lazy volumes: usable at once, filled from their source as they are read and in the background.
//!
//! Such a volume begins with two layers: a head, and below it a [base](crate::lazy_base) that holds every
//! block as far as the layers above it are concerned, and fetches those that it does not have yet. Everything
//! else is as in any volume: what guests write is in the head and in no other place, so it is exactly what is
//! dirty. When all is there, one commit turns the base into a frozen layer like any other.

use crate::{
    data_files::DataFiles,
    error::{IoContext, VolumeError},
    files,
    head::{Head, Place},
    layer_set::{LayerSet, SetIdentity},
    lazy::{Hydration, LazySource, WhenNear},
    lazy_base::LazyBase,
    meta::{self, LayerEntry, Meta},
    open::{load_lazy, sync_parent},
    reserve,
    stack::{FrozenLayer, Layer, Stack},
    storage::{self, Bug},
    view::SnapshotView,
    volume::Volume,
    write::partial_blocks,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockSet, Epoch, Extent, VolumeId};
use parking_lot::Mutex;
use std::{path::Path, sync::Arc};

const BASE: Epoch = Epoch(1);
const HEAD: Epoch = Epoch(2);

/// What somebody is about to do with a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read all of it.
    Read,
    /// Write all of it, which needs the blocks at its ends that it covers in part.
    Write,
}

impl Volume {
    /// Makes a volume that begins as what `source` holds, without fetching anything; it survives a power cut
    /// from then on. Nothing is dirty in it.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_lazy(
        dir: &Path,
        id: VolumeId,
        size_bytes: u64,
        source: Arc<dyn LazySource>,
    ) -> Result<Arc<Self>, VolumeError> {
        meta::check_size(size_bytes).map_err(VolumeError::InvalidInput)?;
        storage::create_dir(dir).during("create", dir)?;
        let place = Place { dir, volume: id, size_bytes };
        let entry =
            |epoch, open| LayerEntry { epoch, file: epoch, generation: 0, open, lazy: !open, size_bytes };
        let make = || {
            drop(DataFiles::create(&files::data_path(dir, BASE), size_bytes)?);
            LazyBase::create_log(place, BASE, &BlockSet::new())?;
            let base = load_lazy(place, entry(BASE, false))?;
            let head = Head::create(place, HEAD)?;
            let meta = Meta {
                volume: id,
                size_bytes,
                next_epoch: HEAD.next(),
                layers: vec![entry(HEAD, true), entry(BASE, false)],
                snapshots: vec![],
                intervals: vec![],
            };
            // Also makes the names durable: it syncs the folder.
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

    /// The epoch of a lazy volume's base: everything that was written later is in later ones.
    pub const LAZY_BASE_EPOCH: Epoch = BASE;

    /// Says where the rest of a lazy volume is: to be called after it was opened. Nothing happens if it is
    /// not lazy.
    pub fn set_lazy_source(&self, source: Arc<dyn LazySource>) {
        if let Some(base) = self.current().lazy() {
            base.set_source(source);
        }
    }

    /// Whether the volume may have to fetch what is read.
    pub fn is_lazy(&self) -> bool {
        self.stack.read().lazy().is_some_and(|base| !base.is_complete())
    }

    /// How much of a lazy volume is there; nothing if it is not lazy, or not any more.
    pub fn hydration(&self) -> Option<Hydration> {
        self.current().lazy().map(|base| base.hydration())
    }

    /// Fetches some blocks that nobody has asked for yet, first around those that were read last, and waits
    /// until they are there: how many bytes, at most 4 MiB, or nothing if all is there, on its way or
    /// refused. Several threads may do this. What the source refuses for good is an error once and is left
    /// out afterwards, so that the rest comes.
    ///
    /// # Errors
    /// The source or the disk fails; it may be tried again.
    pub fn hydrate_next(&self) -> Result<Option<u64>, VolumeError> {
        self.check_usable()?;
        if reserve::is_released() {
            return Err(self.no_space("hydrate"));
        }
        match self.current().lazy() {
            Some(base) => base.hydrate_next(),
            None => Ok(None),
        }
    }

    /// Has [`hydrate_next`](Self::hydrate_next) fetch these blocks before others, in this order, after what
    /// was read and what lies around it. It is a hint: only some 100,000 places are kept, and a volume that
    /// is opened again knows nothing of them.
    pub fn prefer(&self, extents: &[Extent]) {
        if let Some(base) = self.current().lazy() {
            base.prefer(extents);
        }
    }

    /// Has [`hydrate_next`](Self::hydrate_next) try again what the source refused for good.
    pub fn retry_refused(&self) {
        if let Some(base) = self.current().lazy() {
            base.retry_refused();
        }
    }

    /// Makes durable what has come so far, so that the next start does not fetch it again. It is done by
    /// itself after every 64 MiB.
    ///
    /// # Errors
    /// The disk is full or fails; what is not sure to be durable is fetched again.
    pub fn sync_hydration(&self) -> Result<(), VolumeError> {
        match self.current().lazy() {
            Some(base) => base.write_log(),
            None => Ok(()),
        }
    }

    /// Turns the base of a lazy volume into an ordinary layer, if all of it is there; says whether the volume
    /// needs its source no more.
    ///
    /// # Errors
    /// The disk is full or fails; it may be tried again.
    pub fn end_hydration(&self) -> Result<bool, VolumeError> {
        let _no_merge = self.keep_merges_out();
        self.check_usable()?;
        let stack = self.current();
        let Some(Layer::Frozen(old)) = stack.layers().last() else { return Ok(true) };
        let Some(base) = old.data.lazy() else { return Ok(true) };
        if !base.note_complete() && !old.data.has(Bug::HydrationEndsEarly) {
            return Ok(false);
        }
        if !old.data.has(Bug::HydrationEndsUnsynced) {
            base.write_log()?;
        }
        let blocks = old.size_bytes / BLOCK_SIZE_BYTES;
        // A sync that failed, now or a moment ago, has taken blocks away.
        let is_logged = base.logged().len_blocks() == blocks;
        let is_excused = old.data.has(Bug::HydrationEndsUnsynced) || old.data.has(Bug::HydrationEndsEarly);
        if !is_logged && !is_excused {
            return Ok(false);
        }
        let mut admin = self.admin.lock();
        self.settle(&admin)?;
        let generation = old.generation + 1;
        let set = LayerSet { held: base.final_set(old.size_bytes)?, zero: BlockSet::new() };
        set.store(&self.dir, SetIdentity { volume: self.id, file: old.file, generation, blocks })?;
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
            data: Arc::new(data),
            set,
        }));
        self.replace_layers(|layer| match layer.epoch() == old.epoch {
            true => Some(whole.clone()),
            false => Some(layer.clone()),
        });
        drop(admin);
        if let Err(error) = crate::data_files::remove_if_there(&files::log_path(&self.dir, old.file)) {
            tracing::warn!(volume = %self.id, %error, "the log of the hydration stays until the next start");
        }
        Ok(true)
    }

    /// Whether what a request needs is near: gives `then` back if nothing has to be fetched for it. Otherwise
    /// it is fetched, and `then` is called when it is there or cannot be had, by another thread.
    ///
    /// So whoever serves many requests need not have a thread wait for each. A request that is made
    /// afterwards does not wait for the source, save after an error of the disk.
    pub fn when_near(
        &self,
        access: Access,
        offset_bytes: u64,
        len_bytes: u64,
        then: WhenNear,
    ) -> Option<WhenNear> {
        if self.check_range(offset_bytes, len_bytes).is_err() {
            // The request itself will say so.
            return Some(then);
        }
        when_near(&self.current(), access, offset_bytes, len_bytes, then)
    }

    /// Fetches the blocks that a write covers in part, if they are not there; `false` if that would have to
    /// be waited for and may not.
    pub(crate) fn bring_edges(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        may_wait: bool,
    ) -> Result<bool, VolumeError> {
        let stack = self.current();
        let Some(base) = stack.lazy().filter(|base| !base.is_complete()) else { return Ok(true) };
        for edge in partial_blocks(offset_bytes, len_bytes) {
            let wanted = lazy_runs(&stack, Extent::new(edge, 1));
            if wanted.is_empty() || base.has_all(&wanted) {
                continue;
            }
            if !may_wait {
                return Ok(false);
            }
            self.check_usable()?;
            base.bring(&wanted).map_err(|failure| base.failed(edge, failure))?;
        }
        Ok(true)
    }
}

impl SnapshotView {
    /// Whether the snapshot may have to fetch what is read.
    pub fn is_lazy(&self) -> bool {
        self.stack.lazy().is_some_and(|base| !base.is_complete())
    }

    /// The same as [`Volume::when_near`] for a read of the snapshot.
    pub fn when_near(&self, offset_bytes: u64, len_bytes: u64, then: WhenNear) -> Option<WhenNear> {
        if self.check_range(offset_bytes, len_bytes).is_err() {
            return Some(then);
        }
        when_near(&self.stack, Access::Read, offset_bytes, len_bytes, then)
    }
}

fn when_near(
    stack: &Stack,
    access: Access,
    offset_bytes: u64,
    len_bytes: u64,
    then: WhenNear,
) -> Option<WhenNear> {
    let Some(base) = stack.lazy().filter(|base| !base.is_complete()) else { return Some(then) };
    let wanted: Vec<Extent> = match access {
        Access::Read => lazy_runs(stack, Extent::touching(offset_bytes, len_bytes)),
        Access::Write => partial_blocks(offset_bytes, len_bytes)
            .flat_map(|edge| lazy_runs(stack, Extent::new(edge, 1)))
            .collect(),
    };
    let Some(start) = wanted.first().map(|run| run.start).filter(|_| !base.has_all(&wanted)) else {
        return Some(then);
    };
    let (told, then) = (base.clone(), Arc::new(Mutex::new(Some(then))));
    let kept = then.clone();
    let waiting = base.want(
        &wanted,
        Box::new(move |result| {
            if let Some(then) = kept.lock().take() {
                then(result.map_err(|failure| told.failed(start, failure)));
            }
        }),
    );
    // What was given back is only the wrapping.
    waiting.and_then(|_| then.lock().take())
}

/// The runs of a range that are read from the lazy base.
fn lazy_runs(stack: &Stack, range: Extent) -> Vec<Extent> {
    let mut runs = Vec::new();
    let _ = stack.resolve(range, &mut |run, source| {
        if source.is_some_and(|data| data.lazy().is_some()) {
            runs.push(run);
        }
        Ok::<(), std::convert::Infallible>(())
    });
    runs
}
