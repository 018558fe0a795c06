//! Search for stored blocks with the content of those of a backup, in one pass.

use super::{
    DedupSource,
    file::{CHUNK_ENTRIES, Chunks, FingerprintFile, FingerprintWriter},
    fingerprint::{Entry, Fingerprint},
    hooks::Hooks,
};
use crate::{CloudSnapshotId, synthetic::MAX_PLANNED_SOURCES};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use hashlink::LruCache;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::Arc,
};

/// Number of the new delta among the sources.
const OWN: u32 = 0;
/// Blocks of a run that opens a group with another displacement: a group takes some 60 bytes of an index,
/// and a restore of a shorter run reads a frame of 128 blocks for it.
const MIN_RUN: usize = 4;
/// Blocks found in a further snapshot before it is used: 256 KiB, for a request after the commit.
const MIN_DONATION: usize = 64;
/// Blocks of a run in memory; the next run continues it.
const MAX_RUN: usize = 1024;
/// Maximum number of snapshots besides the base that a backup needs, and requests after its commit.
const MAX_DONORS: usize = 7;
/// Maximum number of sets by source and displacement: the index writer intersects each with each page.
pub(crate) const MAX_FOUND_GROUPS: usize = 16_384;
/// Pairs of source and displacement that are tried for each block.
const MAX_RECENT: usize = 8;
/// Blocks without a match that a later run can still extend to.
const MAX_PENDING: usize = 256;
/// Chunks in memory: 6 MiB.
const MAX_CHUNKS: usize = 256;

/// Source and displacement.
pub(super) type Pair = (u32, i64);

/// Consecutive blocks with the content of consecutive blocks of a source.
struct Run {
    pair: Pair,
    entries: VecDeque<Entry>,
}

/// Block without a match.
struct Pending {
    block: BlockIndex,
    fingerprint: Option<Fingerprint>,
    /// No run may extend to it.
    is_final: bool,
}

pub(super) struct Search<'a> {
    own: FingerprintWriter,
    sources: Vec<(&'a DedupSource, Option<FingerprintFile>)>,
    hooks: Hooks,
    chunks: LruCache<(u32, usize), Arc<[Entry]>>,
    /// The last one used is the first.
    recent: VecDeque<Pair>,
    run: Option<Run>,
    pending: VecDeque<Pending>,
    groups: BTreeMap<Pair, BlockSet>,
    donors: BTreeSet<CloudSnapshotId>,
    /// Blocks found in other snapshots, which are not used so far.
    offered: BTreeMap<CloudSnapshotId, usize>,
    used: BTreeSet<u32>,
}

impl<'a> Search<'a> {
    pub fn new(
        own: FingerprintWriter,
        hooks: Hooks,
        sources: Vec<(&'a DedupSource, Option<FingerprintFile>)>,
    ) -> Self {
        // Content returns to its former place, and clones have it at the same one.
        let recent = sources.iter().zip(1..).filter(|((_, file), _)| file.is_some());
        let recent = recent.map(|(_, number)| (number, 0)).take(MAX_RECENT).collect();
        Self {
            own,
            sources,
            hooks,
            chunks: LruCache::new(MAX_CHUNKS),
            recent,
            run: None,
            pending: VecDeque::new(),
            groups: BTreeMap::new(),
            donors: BTreeSet::new(),
            offered: BTreeMap::new(),
            used: BTreeSet::new(),
        }
    }

    /// Adds the next block of the backup. It is stored without a fingerprint, or if it must be.
    ///
    /// # Errors
    /// The fingerprint file cannot be written.
    pub fn block(
        &mut self,
        block: BlockIndex,
        fingerprint: Option<Fingerprint>,
        is_final: bool,
    ) -> io::Result<()> {
        let Some(fingerprint) = fingerprint.filter(|_| !is_final) else {
            self.end_run()?;
            return self.keep(Pending { block, fingerprint, is_final: true });
        };
        let entry = Entry { block, fingerprint };
        if let Some(run) = &self.run {
            let pair = run.pair;
            let follows = run.entries.back().is_some_and(|last| last.block.0 + 1 == block.0);
            let is_full = run.entries.len() >= MAX_RUN;
            if follows && !is_full && self.matches(pair, entry) {
                if let Some(run) = &mut self.run {
                    run.entries.push_back(entry);
                }
                return Ok(());
            }
            self.end_run()?;
        }
        for at in 0..self.recent.len() {
            let pair = self.recent[at];
            if self.matches(pair, entry) {
                self.run = Some(Run { pair, entries: VecDeque::from([entry]) });
                return Ok(());
            }
        }
        let Some(pair) = self.hooked(entry) else {
            return self.keep(Pending { block, fingerprint: Some(fingerprint), is_final: false });
        };
        let mut entries = VecDeque::from([entry]);
        // Only a sample of the fingerprints is known by its content: the run may have begun before.
        while let Some(Pending { block, fingerprint: Some(fingerprint), is_final: false }) =
            self.pending.back()
        {
            let before = Entry { block: *block, fingerprint: *fingerprint };
            let follows = entries.front().is_some_and(|first| before.block.0 + 1 == first.block.0);
            if !follows || !self.matches(pair, before) {
                break;
            }
            self.pending.pop_back();
            entries.push_front(before);
        }
        self.run = Some(Run { pair, entries });
        Ok(())
    }

    /// Ends the pass and completes the fingerprint file; returns the referenced blocks by source (0 is the
    /// new delta, n is the n-th other one) and displacement.
    pub fn finish(mut self) -> io::Result<BTreeMap<Pair, BlockSet>> {
        self.end_run()?;
        while let Some(pending) = self.pending.pop_front() {
            self.store(&pending)?;
        }
        self.own.finish()?;
        Ok(self.groups)
    }

    fn chunk(&mut self, source: u32, number: usize) -> Option<Arc<[Entry]>> {
        if let Some(known) = self.chunks.get(&(source, number)) {
            return Some(Arc::clone(known));
        }
        let read = match source.checked_sub(1) {
            None => self.own.chunk(number),
            Some(at) => self.sources.get(at as usize)?.1.as_ref()?.chunk(number),
        };
        match read {
            Ok(entries) => {
                let entries: Arc<[Entry]> = entries.into();
                self.chunks.insert((source, number), Arc::clone(&entries));
                Some(entries)
            }
            Err(error) => {
                tracing::warn!(%error, "no further deduplication with an unusable fingerprint file");
                if let Some(source) = source.checked_sub(1).and_then(|at| self.sources.get_mut(at as usize)) {
                    source.1 = None;
                }
                None
            }
        }
    }

    /// Returns true if the block of the source has this content.
    fn matches(&mut self, (source, displacement): Pair, entry: Entry) -> bool {
        let Some(block) = entry.block.0.checked_add_signed(displacement).map(BlockIndex) else {
            return false;
        };
        let number = match source.checked_sub(1) {
            None => self.own.chunk_of(block),
            Some(at) => {
                let Some((_, Some(file))) = self.sources.get(at as usize) else { return false };
                file.chunk_of(block)
            }
        };
        let Some(chunk) = number.and_then(|number| self.chunk(source, number)) else { return false };
        let found = chunk.binary_search_by_key(&block, |entry| entry.block);
        found.is_ok_and(|at| chunk[at].fingerprint == entry.fingerprint)
    }

    /// Finds a block with this content by its hook.
    fn hooked(&mut self, entry: Entry) -> Option<Pair> {
        let (source, number) = self.hooks.get(entry.fingerprint.prefix())?;
        if source == OWN && number as usize / CHUNK_ENTRIES >= self.own.places() {
            return None;
        }
        let chunk = self.chunk(source, number as usize / CHUNK_ENTRIES)?;
        let found = chunk.get(number as usize % CHUNK_ENTRIES)?;
        let pair = (source, found.block.0.cast_signed() - entry.block.0.cast_signed());
        self.matches(pair, entry).then_some(pair)
    }

    fn end_run(&mut self) -> io::Result<()> {
        let Some(run) = self.run.take() else { return Ok(()) };
        if !self.admits(run.pair, run.entries.len()) {
            for Entry { block, fingerprint } in run.entries {
                self.keep(Pending { block, fingerprint: Some(fingerprint), is_final: false })?;
            }
            return Ok(());
        }
        if let Some(first) = run.entries.front() {
            let extent = Extent::new(first.block, run.entries.len() as u64);
            self.groups.entry(run.pair).or_default().insert_extent(extent);
        }
        self.recent.retain(|pair| *pair != run.pair);
        self.recent.push_front(run.pair);
        self.recent.truncate(MAX_RECENT);
        Ok(())
    }

    /// Decides about a run, and counts its source.
    fn admits(&mut self, pair: Pair, len: usize) -> bool {
        if self.groups.contains_key(&pair) {
            return true;
        }
        let (source, displacement) = pair;
        let of = source.checked_sub(1).and_then(|at| self.sources.get(at as usize));
        let donor = of.and_then(|(of, _)| of.donor);
        let new_donor = donor.filter(|donor| !self.donors.contains(donor));
        if let Some(donor) = new_donor {
            let offered = self.offered.entry(donor).or_default();
            *offered += len;
            if *offered < MIN_DONATION {
                return false;
            }
        }
        let least = if displacement == 0 { 1 } else { MIN_RUN };
        let has_room = self.groups.len() < MAX_FOUND_GROUPS
            && (self.used.contains(&source) || self.used.len() < MAX_PLANNED_SOURCES)
            && (new_donor.is_none() || self.donors.len() < MAX_DONORS);
        if len < least || !has_room {
            return false;
        }
        self.used.insert(source);
        self.donors.extend(new_donor);
        true
    }

    fn keep(&mut self, pending: Pending) -> io::Result<()> {
        self.pending.push_back(pending);
        while self.pending.len() > MAX_PENDING {
            let Some(pending) = self.pending.pop_front() else { break };
            self.store(&pending)?;
        }
        Ok(())
    }

    /// Stores a block: later ones may refer to it.
    fn store(&mut self, pending: &Pending) -> io::Result<()> {
        let Pending { block, fingerprint: Some(fingerprint), .. } = *pending else { return Ok(()) };
        if let Some(number) = self.own.push(Entry { block, fingerprint })? {
            self.hooks.insert(fingerprint.prefix(), OWN, number);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dedup::{file::FileOf, fingerprint::FingerprintKey},
        manifest::tests::sample,
    };

    #[test]
    fn run_does_not_extend_to_blocks_to_store_again() {
        let (dir, key, delta) = (tempfile::tempdir().unwrap(), FingerprintKey::for_tests(), sample().delta);
        let of = FileOf { delta: delta.id(), salt: delta.salt };
        let (path, own) = (dir.path().join("source"), dir.path().join("own"));
        let entry = |block, n: u64| Entry { block: BlockIndex(block), fingerprint: Fingerprint(n.into()) };
        let mut writer = FingerprintWriter::create(&path, &key, of).unwrap();
        (0..1000).for_each(|n| assert!(writer.push(entry(n, n + 1)).unwrap().is_some()));
        writer.finish().unwrap();
        let file = FingerprintFile::open(&path, &key, &of).unwrap();
        let source = DedupSource { delta, path, donor: None };
        // The only sampled block is the last one.
        let mut hooks = Hooks::new();
        hooks.insert(300, 1, 299);
        let own = FingerprintWriter::create(&own, &key, of).unwrap();
        let mut search = Search::new(own, hooks, vec![(&source, Some(file))]);
        for n in 0..300 {
            let Entry { block, fingerprint } = entry(5000 + n, n + 1);
            search.block(block, Some(fingerprint), (100..110).contains(&n)).unwrap();
        }
        let found = BlockSet::from_iter([Extent::new(BlockIndex(5110), 190)]);
        assert_eq!(search.finish().unwrap(), BTreeMap::from([((1, -5000), found)]));
    }
}
