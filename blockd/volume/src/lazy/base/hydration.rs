//! Hydration: background fetches of missing blocks, and surveys for zeroes that need no fetch.

use super::{LazyBase, wait};
use crate::{
    error::VolumeError,
    lazy::{FetchFailure, Hydration, Urgency},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use std::sync::Arc;

/// Length and alignment of a survey, one query of the source for zeroes: 16 GiB.
const SURVEY_BLOCKS: u64 = (16 << 30) / BLOCK_SIZE_BYTES;

impl LazyBase {
    pub(crate) fn hydration(&self) -> Hydration {
        let in_flight = self.in_flight.lock();
        Hydration {
            total_bytes: self.blocks * BLOCK_SIZE_BYTES,
            done_bytes: in_flight.present.len_bytes(),
            fetched_bytes: in_flight.fetched_blocks * BLOCK_SIZE_BYTES,
            waiting: in_flight.waiting(),
            refused_bytes: in_flight.refused_blocks() * BLOCK_SIZE_BYTES,
        }
    }

    /// Includes permanently refused blocks in hydration again.
    pub(crate) fn retry_refused(&self) {
        self.in_flight.lock().retry_refused();
    }

    /// Queues blocks that hydration prefers.
    pub(crate) fn prefer(&self, extents: &[Extent]) {
        let whole = Extent::new(BlockIndex(0), self.blocks);
        let inside: Vec<Extent> = extents.iter().map(|extent| extent.intersection(whole)).collect();
        self.in_flight.lock().hydration_order.preferred.push(&inside);
    }

    /// Returns the extent of the survey of a block.
    fn survey_extent(&self, block: BlockIndex) -> Extent {
        let start = block.0 / SURVEY_BLOCKS * SURVEY_BLOCKS;
        Extent::between(BlockIndex(start), BlockIndex((start + SURVEY_BLOCKS).min(self.blocks)))
    }

    /// Queries the source for the zeroes around a block and marks them present, unless done before.
    fn survey(&self, block: BlockIndex) -> Result<(), FetchFailure> {
        let extent = self.survey_extent(block);
        if self.surveyed.lock().contains(block) {
            return Ok(());
        }
        assert!(!extent.is_empty() && extent.end().0 <= self.blocks, "a survey covers blocks of the base");
        let source = self.source_for_fetch()?;
        let data = source.data_blocks(extent)?;
        let open = self.open.read();
        if !*open {
            return Err(FetchFailure::Closed);
        }
        let mut in_flight = self.in_flight.lock();
        for gap in data.gaps_in(extent) {
            // Not present blocks: the file may have data for them.
            let missing: Vec<Extent> = in_flight.present.gaps_in(gap).collect();
            for run in missing {
                in_flight.mark_present(run, &BlockSet::from_iter([run]));
            }
        }
        drop(in_flight);
        self.surveyed.lock().insert_extent(extent);
        Ok(())
    }

    /// Returns all blocks that may have data; surveys the source.
    pub(crate) fn data_set(&self) -> Result<BlockSet, VolumeError> {
        let mut at = BlockIndex(0);
        while at.0 < self.blocks && !self.is_complete() {
            self.survey(at).map_err(|failure| self.failed(at, failure))?;
            at = BlockIndex(at.0 + SURVEY_BLOCKS);
        }
        let mut data = BlockSet::from_iter([Extent::new(BlockIndex(0), self.blocks)]);
        data.subtract(&self.in_flight.lock().zero);
        Ok(data)
    }

    /// Fetches the next blocks of hydration and waits for them. Returns the bytes, or `None` if all blocks
    /// are present, in flight or refused. Later calls skip permanently refused blocks.
    pub(crate) fn hydrate_next(self: &Arc<Self>) -> Result<Option<u64>, VolumeError> {
        loop {
            let mut next = None;
            let mut is_surveyed = true;
            // `join`, unlike `request`, keeps the fetch in the background. Queued and joined under one lock,
            // so that the fetch cannot end in between.
            let result = wait(|on_done| {
                let mut in_flight = self.in_flight.lock();
                next = in_flight.next_in_background();
                let Some(next) = next else { return false };
                is_surveyed = self.surveyed.lock().contains(next.start);
                if !is_surveyed {
                    return false;
                }
                in_flight.launch(next, 1, Urgency::Background);
                let waits = in_flight.join(next, on_done);
                drop(in_flight);
                self.start_fetches();
                waits
            });
            let Some(next) = next else { return Ok(None) };
            if is_surveyed {
                return match result {
                    Ok(()) => Ok(Some(next.len_bytes())),
                    Err(failure) => Err(self.failed(next.start, failure)),
                };
            }
            self.survey(next.start).map_err(|failure| {
                if matches!(&failure, FetchFailure::Source(error) if !error.is_retryable()) {
                    self.in_flight.lock().refuse(self.survey_extent(next.start));
                }
                self.failed(next.start, failure)
            })?;
        }
    }
}
