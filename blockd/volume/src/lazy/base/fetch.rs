//! Fetches: their start within the budget, the writes of their replies, and their end.

use super::{BLOCK, LOG_EVERY_BLOCKS, LazyBase, tell};
use crate::{
    lazy::fetch_budget::{Room, Starter},
    lazy::{Arrivals, FetchFailure, FetchReply, Loss, SourceError},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

impl LazyBase {
    /// Starts as many fetches as allowed. One thread at a time does so; a source that replies at once calls
    /// back into this.
    pub(super) fn start_flights(self: &Arc<Self>) {
        {
            let mut flights = self.flights.lock();
            if std::mem::replace(&mut flights.is_starting, true) {
                return;
            }
        }
        loop {
            let (next, room) = {
                let mut flights = self.flights.lock();
                let wanted = flights.peek_to_start();
                let room =
                    wanted.and_then(|(blocks, urgency)| self.budget.take(self.starter(), blocks, urgency));
                let next = room.as_ref().and_then(|_| flights.next_to_start());
                let is_peeked =
                    |(extent, _): &(Extent, _)| Some(extent.len_blocks) == wanted.map(|(len, _)| len);
                assert!(next.as_ref().is_none_or(is_peeked), "the fetch that starts is the one with budget");
                flights.is_starting = next.is_some();
                (next, room)
            };
            let (Some((extent, urgency)), Some(room)) = (next, room) else {
                self.budget.pass_on(&self.starter());
                return;
            };
            let source = match self.source_for_fetch() {
                Ok(source) => source,
                Err(failure) => {
                    drop(room);
                    self.landed(extent, Err(failure), None);
                    continue;
                }
            };
            let flight = BaseFlight {
                base: self.clone(),
                extent,
                // Before the first block is written.
                forgets: self.flights.lock().forgets,
                data: Mutex::default(),
                room: Mutex::new(Some(room)),
            };
            source.fetch(extent, urgency, FetchReply::new(extent, Box::new(flight)));
        }
    }

    fn starter(self: &Arc<Self>) -> Weak<dyn Starter> {
        let base: Weak<Self> = Arc::downgrade(self);
        base
    }

    /// Ends a fetch with the zeroes among its blocks, the number of forgets before its first write, and lost
    /// blocks if any.
    pub(super) fn landed(
        self: &Arc<Self>,
        extent: Extent,
        kept: Result<(BlockSet, u64), FetchFailure>,
        lost: Option<&(BlockSet, FetchFailure)>,
    ) {
        let (calls, is_time) = {
            let mut flights = self.flights.lock();
            let kept = kept.and_then(|(zero, forgets)| match flights.forgets == forgets {
                true => Ok(zero),
                // A sync failed during the write. The kernel may have dropped part of it, and the next sync
                // does not report that.
                false => {
                    let message = "the disk failed while the blocks were written; they have to come again";
                    Err(SourceError::new(message, true).into())
                }
            });
            let calls = match (&kept, lost) {
                (Ok(zero), Some((lost, failure))) => {
                    flights.landed_without(extent, zero, Some((lost, failure)))
                }
                _ => flights.landed(extent, kept.as_ref()),
            };
            (calls, flights.unlogged.len_blocks() >= LOG_EVERY_BLOCKS)
        };
        tell(calls);
        if is_time && let Err(error) = self.try_log() {
            tracing::warn!(volume = %self.volume, %error, "how far the hydration is cannot be written down for now");
        }
        self.start_flights();
    }

    /// Writes fetched blocks to the files; reports extents that are not zeroes.
    pub(super) fn keep(
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
                let turn = self.writing.lock();
                let written = self.files.write(offset_bytes, &data[from..to]);
                drop(turn);
                written.map_err(|error| FetchFailure::Disk(Arc::new(error)))?;
                has_data(Extent::inside(offset_bytes, (to - from) as u64));
            }
            Ok(())
        };
        let mut run_start = 0;
        for (number, block) in data.chunks_exact(BLOCK).enumerate() {
            // The file has a hole there and keeps it: only replies of the source are written.
            if block.iter().all(|&byte| byte == 0) {
                write(run_start, number * BLOCK)?;
                run_start = (number + 1) * BLOCK;
            }
        }
        write(run_start, data.len())
    }
}

/// Running fetch of a lazy base and its progress.
struct BaseFlight {
    base: Arc<LazyBase>,
    extent: Extent,
    /// Number of forgets before the first write.
    forgets: u64,
    /// Written blocks.
    data: Mutex<BlockSet>,
    room: Mutex<Option<Room>>,
}

impl Arrivals for BaseFlight {
    fn keep(&self, start: BlockIndex, data: &[u8]) -> Result<(), FetchFailure> {
        self.base.keep(start, data, |run| self.data.lock().insert_extent(run))
    }

    fn ended(&self, result: Result<(), Loss>) {
        // Others precede this one's next fetch.
        drop(self.room.lock().take());
        let zero = || {
            let mut zero = BlockSet::from_iter([self.extent]);
            let data = self.data.lock();
            debug_assert!(data.intersection_len(self.extent) == data.len_blocks(), "only requested blocks");
            zero.subtract(&data);
            zero
        };
        let (kept, lost) = match result {
            Ok(()) => (Ok((zero(), self.forgets)), None),
            Err(Loss { blocks: Some(lost), failure }) => (Ok((zero(), self.forgets)), Some((lost, failure))),
            Err(Loss { blocks: None, failure }) => (Err(failure), None),
        };
        self.base.landed(self.extent, kept, lost.as_ref());
    }
}

impl Starter for LazyBase {
    fn take_turn(self: Arc<Self>) {
        self.start_flights();
    }
}
