//! Hydration: the blocks that readers have not requested, and the zeroes that need no fetch.

use super::{LazyBase, wait};
use crate::{
    error::VolumeError,
    lazy::{FetchFailure, Hydration, Urgency},
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent};
use std::sync::Arc;

/// Length of one survey of the source for zeroes: 16 GiB.
const SURVEY_BLOCKS: u64 = (16 << 30) / BLOCK_SIZE_BYTES;

impl LazyBase {
    pub(crate) fn hydration(&self) -> Hydration {
        let flights = self.flights.lock();
        Hydration {
            total_bytes: self.blocks * BLOCK_SIZE_BYTES,
            done_bytes: flights.there.len_bytes(),
            fetched_bytes: flights.fetched_blocks * BLOCK_SIZE_BYTES,
            waiting: flights.waiting(),
            refused_bytes: flights.refused_blocks() * BLOCK_SIZE_BYTES,
        }
    }

    /// Makes `hydrate_next` retry permanently refused blocks.
    pub(crate) fn retry_refused(&self) {
        self.flights.lock().retry_refused();
    }

    /// Prefers these blocks in hydration.
    pub(crate) fn prefer(&self, extents: &[Extent]) {
        let whole = Extent::new(BlockIndex(0), self.blocks);
        let inside: Vec<Extent> = extents.iter().map(|extent| extent.intersection(whole)).collect();
        self.flights.lock().preferred.push(&inside);
    }

    /// Returns the extent surveyed together with a block.
    fn stretch_of(&self, block: BlockIndex) -> Extent {
        let start = block.0 / SURVEY_BLOCKS * SURVEY_BLOCKS;
        Extent::between(BlockIndex(start), BlockIndex((start + SURVEY_BLOCKS).min(self.blocks)))
    }

    /// Asks the source for zeroes around a block, so that they need not be fetched.
    fn survey(&self, block: BlockIndex) -> Result<(), FetchFailure> {
        let stretch = self.stretch_of(block);
        if self.surveyed.lock().contains(block) {
            return Ok(());
        }
        assert!(!stretch.is_empty() && stretch.end().0 <= self.blocks, "a survey covers blocks of the base");
        let source = self.source_for_fetch()?;
        let data = source.data_blocks(stretch)?;
        let open = self.open.read();
        if !*open {
            return Err(FetchFailure::Closed);
        }
        let mut flights = self.flights.lock();
        for gap in data.gaps_in(stretch) {
            // A present block may have data although the source reports zeroes.
            let missing: Vec<Extent> = flights.there.gaps_in(gap).collect();
            for run in missing {
                flights.have(run, &BlockSet::from_iter([run]));
            }
        }
        drop(flights);
        self.surveyed.lock().insert_extent(stretch);
        Ok(())
    }

    /// Returns all blocks that may have data; asks the source where unknown.
    pub(crate) fn data_set(&self) -> Result<BlockSet, VolumeError> {
        let mut at = BlockIndex(0);
        while at.0 < self.blocks && !self.is_complete() {
            self.survey(at).map_err(|failure| self.failed(at, failure))?;
            at = BlockIndex(at.0 + SURVEY_BLOCKS);
        }
        let mut data = BlockSet::from_iter([Extent::new(BlockIndex(0), self.blocks)]);
        data.subtract(&self.flights.lock().zero);
        Ok(data)
    }

    /// Fetches and waits for the next blocks of hydration; returns the bytes, or `None` if all are present,
    /// in flight or refused. Permanently refused blocks are skipped from then on.
    pub(crate) fn hydrate_next(self: &Arc<Self>) -> Result<Option<u64>, VolumeError> {
        loop {
            let mut next = None;
            let mut is_surveyed = true;
            // The wait does not make the background fetch urgent. It is created and joined under one lock, so
            // that it cannot end in between.
            let landed = wait(|then| {
                let mut flights = self.flights.lock();
                next = flights.next_in_background();
                let Some(next) = next else { return false };
                is_surveyed = self.surveyed.lock().contains(next.start);
                if !is_surveyed {
                    return false;
                }
                flights.launch(next, 1, Urgency::Background);
                let waits = flights.join(next, then);
                drop(flights);
                self.start_flights();
                waits
            });
            let Some(next) = next else { return Ok(None) };
            if is_surveyed {
                return match landed {
                    Ok(()) => Ok(Some(next.len_bytes())),
                    Err(failure) => Err(self.failed(next.start, failure)),
                };
            }
            self.survey(next.start).map_err(|failure| {
                if matches!(&failure, FetchFailure::Source(error) if !error.is_retryable()) {
                    self.flights.lock().refuse(self.stretch_of(next.start));
                }
                self.failed(next.start, failure)
            })?;
        }
    }
}
