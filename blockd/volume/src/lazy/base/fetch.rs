//! Fetches of a lazy base: start within the budget, writes of replies, and completion.

use super::{BLOCK, LOG_EVERY_BLOCKS, LazyBase, run_callbacks};
use crate::{
    lazy::fetch_budget::{BudgetShare, FetchStarter},
    lazy::{FetchFailure, FetchReceiver, FetchReply, Loss, SourceError},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

impl LazyBase {
    /// Starts as many fetches as limits and budget allow. Only one thread does so at a time: a source that
    /// replies immediately calls this recursively.
    pub(super) fn start_fetches(self: &Arc<Self>) {
        {
            let mut in_flight = self.in_flight.lock();
            if std::mem::replace(&mut in_flight.is_starting, true) {
                return;
            }
        }
        loop {
            let (next, share) = {
                let mut in_flight = self.in_flight.lock();
                let wanted = in_flight.peek_to_start();
                let share =
                    wanted.and_then(|(blocks, urgency)| self.budget.take(self.starter(), blocks, urgency));
                let next = share.as_ref().and_then(|_| in_flight.next_to_start());
                let is_peeked =
                    |(extent, _): &(Extent, _)| Some(extent.len_blocks) == wanted.map(|(len, _)| len);
                assert!(next.as_ref().is_none_or(is_peeked), "the fetch that starts is the one with budget");
                in_flight.is_starting = next.is_some();
                (next, share)
            };
            let (Some((extent, urgency)), Some(share)) = (next, share) else {
                self.budget.release_grant(&self.starter());
                return;
            };
            let source = match self.source_for_fetch() {
                Ok(source) => source,
                Err(failure) => {
                    drop(share);
                    self.finish_fetch(extent, Err(failure), None);
                    continue;
                }
            };
            let fetch = BaseFetch {
                base: self.clone(),
                extent,
                invalidations: self.in_flight.lock().invalidations,
                data: Mutex::default(),
                share: Mutex::new(Some(share)),
            };
            source.fetch(extent, urgency, FetchReply::new(extent, Box::new(fetch)));
        }
    }

    fn starter(self: &Arc<Self>) -> Weak<dyn FetchStarter> {
        let base: Weak<Self> = Arc::downgrade(self);
        base
    }

    /// Ends a fetch, with the zeroes among its blocks and the number of invalidations before its first write,
    /// and with failed blocks if any.
    pub(super) fn finish_fetch(
        self: &Arc<Self>,
        extent: Extent,
        stored: Result<(BlockSet, u64), FetchFailure>,
        lost: Option<&(BlockSet, FetchFailure)>,
    ) {
        let (callbacks, is_log_due) = {
            let mut in_flight = self.in_flight.lock();
            let stored = stored.and_then(|(zero, invalidations)| match in_flight.invalidations == invalidations {
                    true => Ok(zero),
                // A sync failed since the fetch started. The kernel may have dropped part of the written
                // data, and the next sync does not report that.
                    false => {
                        let message =
                            "fetch failed: a concurrent sync of the data failed; the blocks will be fetched again";
                        Err(SourceError::new(message, true).into())
                    }
                });
            let callbacks = match (&stored, lost) {
                (Ok(zero), Some((lost, failure))) => {
                    in_flight.finish_fetch_partially(extent, zero, Some((lost, failure)))
                }
                _ => in_flight.finish_fetch(extent, stored.as_ref()),
            };
            (callbacks, in_flight.unlogged.len_blocks() >= LOG_EVERY_BLOCKS)
        };
        run_callbacks(callbacks);
        if is_log_due && let Err(error) = self.try_log() {
            tracing::warn!(volume = %self.volume, %error, "write failed on the hydration log: will be retried");
        }
        self.start_fetches();
    }

    /// Writes the nonzero blocks of a reply to the files and reports their extents to `has_data`.
    pub(super) fn store_blocks(
        &self,
        start: BlockIndex,
        data: &[u8],
        mut has_data: impl FnMut(Extent),
    ) -> Result<(), FetchFailure> {
        assert!(data.len().is_multiple_of(BLOCK), "a source replies with whole blocks");
        assert!(start.0 + (data.len() / BLOCK) as u64 <= self.blocks, "blocks beyond the end of the base");
        let open = self.open.read();
        if !*open {
            return Err(FetchFailure::Closed);
        }
        let mut write = |from: usize, to: usize| -> Result<(), FetchFailure> {
            if from < to {
                let offset_bytes = start.0 * BLOCK_SIZE_BYTES + from as u64;
                let guard = self.writing.lock();
                let written = self.files.write(offset_bytes, &data[from..to]);
                drop(guard);
                written.map_err(|error| FetchFailure::Disk(Arc::new(error)))?;
                has_data(Extent::inside(offset_bytes, (to - from) as u64));
            }
            Ok(())
        };
        let mut run_start = 0;
        for (number, block) in data.chunks_exact(BLOCK).enumerate() {
            // Zeroes stay a hole: no other data is written to the file.
            if block.iter().all(|&byte| byte == 0) {
                write(run_start, number * BLOCK)?;
                run_start = (number + 1) * BLOCK;
            }
        }
        write(run_start, data.len())
    }
}

/// Running fetch of a lazy base and its progress.
struct BaseFetch {
    base: Arc<LazyBase>,
    extent: Extent,
    /// Number of invalidations before the first write.
    invalidations: u64,
    /// Blocks written with data.
    data: Mutex<BlockSet>,
    share: Mutex<Option<BudgetShare>>,
}

impl FetchReceiver for BaseFetch {
    fn store(&self, start: BlockIndex, data: &[u8]) -> Result<(), FetchFailure> {
        self.base.store_blocks(start, data, |run| self.data.lock().insert_extent(run))
    }

    fn finish(&self, result: Result<(), Loss>) {
        // First, so that other volumes get the budget before the next fetch of this one.
        drop(self.share.lock().take());
        let zero = || {
            let mut zero = BlockSet::from_iter([self.extent]);
            let data = self.data.lock();
            debug_assert!(data.intersection_len(self.extent) == data.len_blocks(), "only requested blocks");
            zero.subtract(&data);
            zero
        };
        let (stored, lost) = match result {
            Ok(()) => (Ok((zero(), self.invalidations)), None),
            Err(Loss { blocks: Some(lost), failure }) => {
                (Ok((zero(), self.invalidations)), Some((lost, failure)))
            }
            Err(Loss { blocks: None, failure }) => (Err(failure), None),
        };
        self.base.finish_fetch(self.extent, stored, lost.as_ref());
    }
}

impl FetchStarter for LazyBase {
    fn on_grant(self: Arc<Self>) {
        self.start_fetches();
    }
}
