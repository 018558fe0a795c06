//! In which order a lazy volume is read, and in which order it had better be fetched.
//!
//! What is read for the first time is taken down, so that the next volume that begins as the same one can fetch that before it
//! is asked for. Pure bookkeeping; what keeps it from one volume to the next is not here.

use crate::flights::MISS_BLOCKS;
use blockd_extent::{BlockIndex, Extent};
use std::collections::{HashSet, VecDeque};

/// What is taken down, and fetched, together: as much as a read brings, 256 KiB.
pub(crate) const UNIT_BLOCKS: u64 = MISS_BLOCKS;
/// After so many places nothing more is taken down: 8 GiB were read by then, and what comes first matters most.
const TAKEN_DOWN_MOST: usize = 32_768;
/// The most places that are preferred at once.
const PREFERRED_MOST: usize = 131_072;

#[derive(Default)]
pub(crate) struct ReadOrder {
    read: Vec<u64>,
    known: HashSet<u64>,
    preferred: VecDeque<Extent>,
}

fn units(extent: Extent) -> std::ops::Range<u64> {
    extent.start.0 / UNIT_BLOCKS..extent.end().0.div_ceil(UNIT_BLOCKS)
}

impl ReadOrder {
    /// These blocks are read.
    pub(crate) fn note(&mut self, extent: Extent) {
        for unit in units(extent) {
            if self.read.len() >= TAKEN_DOWN_MOST {
                return;
            }
            if self.known.insert(unit) {
                self.read.push(unit);
            }
        }
    }

    /// What was read, in the order of the first time, as runs of whole units.
    pub(crate) fn read(&self) -> Vec<Extent> {
        let mut runs: Vec<Extent> = Vec::new();
        for &unit in &self.read {
            let start = BlockIndex(unit * UNIT_BLOCKS);
            match runs.last_mut() {
                Some(last) if last.end() == start => last.len_blocks += UNIT_BLOCKS,
                _ => runs.push(Extent::new(start, UNIT_BLOCKS)),
            }
        }
        runs
    }

    /// These places are to be fetched before others, behind those that already are.
    pub(crate) fn prefer(&mut self, extents: &[Extent]) {
        let mut last = None;
        for extent in extents.iter().filter(|extent| !extent.is_empty()) {
            let units = units(*extent);
            let wide =
                Extent::between(BlockIndex(units.start * UNIT_BLOCKS), BlockIndex(units.end * UNIT_BLOCKS));
            if self.preferred.len() >= PREFERRED_MOST {
                return;
            }
            if last.replace(wide) != Some(wide) {
                self.preferred.push_back(wide);
            }
        }
    }

    /// The place that is preferred most.
    pub(crate) fn first(&self) -> Option<Extent> {
        self.preferred.front().copied()
    }

    /// Nothing of the first place is missing any more.
    pub(crate) fn pass_first(&mut self) {
        self.preferred.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: u64, len: u64) -> Extent {
        Extent::new(BlockIndex(start), len)
    }

    #[test]
    fn what_is_read_is_taken_down_once_and_in_order() {
        let mut order = ReadOrder::default();
        for extent in [at(1000, 1), at(1001, 3), at(64, 65), at(1, 1), at(128, 1), at(192, 64)] {
            order.note(extent);
        }
        assert_eq!(order.read(), [at(960, 64), at(64, 128), at(0, 64), at(192, 64)]);
        order.note(at(0, u64::MAX / 4096));
        assert_eq!(order.read.len(), TAKEN_DOWN_MOST, "it is bounded");
    }

    #[test]
    fn what_is_preferred_comes_in_its_order_and_whole_units() {
        let mut order = ReadOrder::default();
        order.prefer(&[at(70, 1), at(80, 2), at(5000, 0), at(3, 100), at(70, 1)]);
        let mut seen = vec![];
        while let Some(first) = order.first() {
            seen.push(first);
            order.pass_first();
        }
        assert_eq!(seen, [at(64, 64), at(0, 128), at(64, 64)]);
        order.prefer(&[at(0, 1); 3]);
        (0..2 * PREFERRED_MOST as u64).for_each(|unit| order.prefer(&[at(unit * UNIT_BLOCKS, 1)]));
        assert_eq!(order.preferred.len(), PREFERRED_MOST);
    }
}
