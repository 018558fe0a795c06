//! Fetches of frames before they are read: for sequential readers, and of announced blocks.

use super::{Inner, random::Wanted};
use crate::{cache::frames::Claim, wanted::WantedFrame};
use blockd_extent::{BlockSet, Extent};
use futures::StreamExt;
use std::collections::BTreeMap;

/// Extents whose pages a prefetch loads concurrently.
const PREFETCH_RUNS: usize = 8;

impl Inner {
    /// Records a read, and reads ahead for sequential readers, as far as pages are in memory: a missing page
    /// is fetched by the read that needs it.
    pub(super) fn read_ahead(&self, read: Extent) {
        let Some(next) = self.readahead.lock().record(&self.limits, read) else { return };
        let next = next.intersection(Extent::whole(self.size_bytes));
        let mut plan = Vec::new();
        for range in self.stretches(next) {
            let Some(stretch) = self.ready(range) else { break };
            self.add_to_plan(&stretch, &mut plan);
        }
        self.fetch_ahead(plan);
    }

    /// Fetches the missing frames of blocks into memory, after the pages that list them.
    pub(super) async fn prefetch(&self, blocks: &BlockSet) {
        let runs = blocks.extents().flat_map(|extent| self.stretches(extent)).collect::<Vec<_>>();
        let mut loaded = futures::stream::iter(runs).map(|run| self.load(run)).buffered(PREFETCH_RUNS);
        let mut plan = Vec::new();
        while let Some(run) = loaded.next().await {
            // The read that needs the page reports its error.
            if let Ok(run) = run {
                self.add_to_plan(&run, &mut plan);
            }
        }
        drop(loaded);
        self.fetch_ahead(plan);
    }

    /// Fetches the missing frames of a plan in the background, neighbouring ones together.
    fn fetch_ahead(&self, plan: Vec<Wanted>) {
        let mut deltas: BTreeMap<u64, Wanted> = BTreeMap::new();
        for (delta, frames) in plan {
            deltas.entry(delta.number).or_insert_with(|| (delta, Vec::new())).1.extend(frames);
        }
        for (delta, mut frames) in deltas.into_values() {
            // References do not follow the order of their sources' blocks.
            frames.sort_by_key(WantedFrame::ordinal);
            let mine = frames.into_iter().filter_map(|frame| {
                let key = (delta.number, frame.ordinal());
                match self.cache.frames.claim(key) {
                    Claim::Mine(flight, _) => Some((frame, flight)),
                    _ => None,
                }
            });
            let mine: Vec<_> = mine.collect();
            if !mine.is_empty() {
                self.fetch_frames(&delta, mine, true);
            }
        }
    }
}
