//! References: blocks of a delta whose content is a data block of another delta, its *source*.
//!
//! A reference never leads to another reference: a read takes one further index page.

use crate::{
    CloudError, CloudSnapshotId, Manifest,
    dedup::MAX_FOUND_GROUPS,
    index::{Cursor, MAX_SOURCES, parse_set},
    manifest::Delta,
    names::DeltaId,
    plan::PAGE_BLOCKS,
    synthetic::MAX_UNCHANGED_GROUPS,
};
use blockd_extent::{BlockIndex, BlockSet, Extent, MAX_VOLUME_BYTES, SnapshotId, VolumeId};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Maximum number of groups of a planned backup, more than a page has.
const MAX_SAVED_GROUPS: u64 = (MAX_UNCHANGED_GROUPS + MAX_FOUND_GROUPS) as u64;

/// Blocks with the content of blocks of one source.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct ReferenceGroup {
    /// Position of the source among those of the delta.
    pub source: u32,
    /// Block `n` has the content of block `n + displacement` of the source.
    pub displacement: i64,
    pub blocks: BlockSet,
}

/// Moves blocks by a displacement; those that leave the range of volumes are dropped.
pub(crate) fn displaced(blocks: &BlockSet, displacement: i64) -> BlockSet {
    if displacement == 0 {
        return blocks.clone();
    }
    let moved = |block: BlockIndex| BlockIndex(block.0.saturating_add_signed(displacement));
    let whole = Extent::whole(MAX_VOLUME_BYTES);
    blocks.extents().map(|e| Extent::between(moved(e.start), moved(e.end())).intersection(whole)).collect()
}

/// Moves an extent by a displacement; `None` if it leaves the range of volumes.
pub(crate) fn displaced_extent(extent: Extent, displacement: i64) -> Option<Extent> {
    let start = extent.start.0.checked_add_signed(displacement)?;
    let end = start.checked_add(extent.len_blocks)?;
    (end <= Extent::whole(MAX_VOLUME_BYTES).end().0)
        .then(|| Extent::new(BlockIndex(start), extent.len_blocks))
}

/// Encodes the references of a page, which have ascending sources and displacements.
pub(crate) fn encode_groups(groups: &[ReferenceGroup]) -> Vec<u8> {
    debug_assert!(groups.is_sorted_by(|a, b| (a.source, a.displacement) < (b.source, b.displacement)));
    let mut out = (groups.len() as u32).to_le_bytes().to_vec();
    for group in groups {
        let blocks = group.blocks.to_bytes();
        out.extend_from_slice(&group.source.to_le_bytes());
        out.extend_from_slice(&group.displacement.to_le_bytes());
        out.extend_from_slice(&(blocks.len() as u32).to_le_bytes());
        out.extend_from_slice(&blocks);
    }
    out
}

/// Decodes the references of a page, whose blocks must be in its range.
pub(crate) fn parse_groups(
    bytes: &[u8],
    range: Extent,
    sources: usize,
) -> Result<Vec<ReferenceGroup>, &'static str> {
    parse_bounded(bytes, range, sources, PAGE_BLOCKS)
}

/// Decodes up to `max` groups.
fn parse_bounded(
    bytes: &[u8],
    range: Extent,
    sources: usize,
    max: u64,
) -> Result<Vec<ReferenceGroup>, &'static str> {
    let mut cursor = Cursor { rest: bytes };
    let count = cursor.u32()?;
    if u64::from(count) > max {
        return Err("it has too many groups of references");
    }
    let mut groups: Vec<ReferenceGroup> = Vec::new();
    for _ in 0..count {
        let (source, displacement) = (cursor.u32()?, cursor.u64()?.cast_signed());
        let len = cursor.u32()?;
        let blocks = parse_set(cursor.take(len as usize)?, range)?;
        if source as usize >= sources {
            return Err("a reference names a source that the root does not have");
        }
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
            return Err("a group of references is empty");
        };
        let hull = Extent::between(first, BlockIndex(last.0 + 1));
        if displaced_extent(hull, displacement).is_none() {
            return Err("a reference leaves the range of volumes");
        }
        if groups.last().is_some_and(|last| (last.source, last.displacement) >= (source, displacement)) {
            return Err("its references are not ascending");
        }
        groups.push(ReferenceGroup { source, displacement, blocks });
    }
    if !cursor.rest.is_empty() {
        return Err("there are bytes after its references");
    }
    Ok(groups)
}

/// References of a new delta.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct References {
    /// Ascending; the delta itself is one of them if it has blocks with equal content.
    sources: Vec<DeltaId>,
    /// The other sources, ascending by id.
    deltas: Vec<Delta>,
    groups: Vec<ReferenceGroup>,
}

impl References {
    /// Creates references from the blocks of each source and displacement. Sources are among `deltas`, or the
    /// new delta itself; of one that is not, the id is returned.
    pub(crate) fn new<'a>(
        blocks: BTreeMap<(DeltaId, i64), BlockSet>,
        deltas: impl Iterator<Item = &'a Delta>,
        own: Option<DeltaId>,
    ) -> Result<Self, DeltaId> {
        let known: BTreeMap<DeltaId, &Delta> = deltas.map(|delta| (delta.id(), delta)).collect();
        let mut references = Self::default();
        for ((id, displacement), blocks) in blocks {
            if blocks.is_empty() {
                continue;
            }
            if references.sources.last() != Some(&id) {
                if own != Some(id) {
                    references.deltas.push((*known.get(&id).ok_or(id)?).clone());
                }
                references.sources.push(id);
            }
            let source = references.sources.len() as u32 - 1;
            references.groups.push(ReferenceGroup { source, displacement, blocks });
        }
        Ok(references)
    }

    /// Returns the other deltas that have the content, ascending by id.
    pub fn sources(&self) -> &[Delta] {
        &self.deltas
    }

    /// Returns the other deltas that have the content of some of these blocks.
    pub fn sources_of(&self, blocks: &BlockSet) -> Vec<&Delta> {
        let is_used = |id: DeltaId| {
            let of_source = self.groups.iter().filter(|group| self.sources[group.source as usize] == id);
            let mut of_source = of_source.map(|group| &group.blocks);
            of_source.any(|group| {
                let mut both = group.clone();
                both.intersect_with(blocks);
                !both.is_empty()
            })
        };
        self.deltas.iter().filter(|delta| is_used(delta.id())).collect()
    }

    /// Returns the ids of all sources, ascending, with that of the delta itself.
    pub(crate) fn source_ids(&self) -> &[DeltaId] {
        &self.sources
    }

    /// Returns true without any.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Returns the number of blocks.
    pub fn len_blocks(&self) -> u64 {
        self.groups.iter().map(|group| group.blocks.len_blocks()).sum()
    }

    /// Adds references from other blocks.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        let mut blocks: BTreeMap<(DeltaId, i64), BlockSet> = BTreeMap::new();
        for references in [&self, &other] {
            for group in &references.groups {
                let key = (references.sources[group.source as usize], group.displacement);
                blocks.entry(key).or_default().union_with(&group.blocks);
            }
        }
        let deltas: BTreeMap<DeltaId, Delta> =
            self.deltas.into_iter().chain(other.deltas).map(|delta| (delta.id(), delta)).collect();
        let mut all = Self { deltas: deltas.into_values().collect(), ..Self::default() };
        for ((id, displacement), blocks) in blocks {
            if all.sources.last() != Some(&id) {
                all.sources.push(id);
            }
            all.groups.push(ReferenceGroup { source: all.sources.len() as u32 - 1, displacement, blocks });
        }
        all
    }

    /// Returns the blocks.
    pub fn blocks(&self) -> BlockSet {
        let mut all = BlockSet::new();
        self.groups.iter().for_each(|group| all.union_with(&group.blocks));
        all
    }

    /// Removes the references to these blocks of each source; returns the blocks that had them.
    pub(crate) fn take(&mut self, blocks_of: impl Fn(&Delta) -> BlockSet) -> BlockSet {
        let (sources, deltas) = (std::mem::take(&mut self.sources), std::mem::take(&mut self.deltas));
        let delta = |id: &DeltaId| deltas.iter().find(|delta| delta.id() == *id);
        let blocks_of: Vec<BlockSet> =
            sources.iter().map(|id| delta(id).map(&blocks_of).unwrap_or_default()).collect();
        let mut taken = BlockSet::new();
        for mut group in std::mem::take(&mut self.groups) {
            let number = group.source as usize;
            let mut gone = displaced(&blocks_of[number], -group.displacement);
            gone.intersect_with(&group.blocks);
            group.blocks.subtract(&gone);
            taken.union_with(&gone);
            if group.blocks.is_empty() {
                continue;
            }
            if self.sources.last() != Some(&sources[number]) {
                self.sources.push(sources[number]);
                self.deltas.extend(delta(&sources[number]).cloned());
            }
            group.source = self.sources.len() as u32 - 1;
            self.groups.push(group);
        }
        taken
    }

    /// Returns the references from a range.
    pub(crate) fn within(&self, range: Extent) -> Vec<ReferenceGroup> {
        let overlaps = |group: &&ReferenceGroup| group.blocks.intersection_len(range) > 0;
        let within = |group: &ReferenceGroup| {
            let mut blocks = BlockSet::from_iter([range]);
            blocks.intersect_with(&group.blocks);
            blocks.optimize();
            ReferenceGroup { blocks, ..*group }
        };
        self.groups.iter().filter(overlaps).map(within).collect()
    }

    /// Returns an error if a reference is not valid in a delta with these data and zero blocks.
    pub(crate) fn check(
        &self,
        own: DeltaId,
        data: &BlockSet,
        zero: &BlockSet,
        end: BlockIndex,
    ) -> Result<(), String> {
        let mut all = data.clone();
        all.union_with(zero);
        for group in &self.groups {
            let before = all.len_blocks();
            all.union_with(&group.blocks);
            if all.len_blocks() != before + group.blocks.len_blocks() {
                return Err("a referenced block has content of its own, or two sources".to_owned());
            }
        }
        if self.sources.len() > MAX_SOURCES {
            return Err(format!("a delta has at most {MAX_SOURCES} sources"));
        }
        if self.deltas.iter().any(|source| source.id() == own) {
            return Err("the delta of another backup has the id of this one".to_owned());
        }
        let of_own = self.groups.iter().filter(|group| self.sources[group.source as usize] == own);
        for group in of_own {
            let mut missing = displaced(&group.blocks, group.displacement);
            missing.subtract(data);
            if !missing.is_empty() {
                return Err("a block refers to one of its own delta that is no data block".to_owned());
            }
        }
        match self.blocks().last().filter(|last| *last >= end) {
            Some(last) => Err(format!("reference block {last} is beyond the end of the volume")),
            None => Ok(()),
        }
    }

    /// Encodes the references for a file of their host.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = (self.sources.len() as u32).to_le_bytes().to_vec();
        for source in &self.sources {
            out.extend_from_slice(source.cluster.as_bytes());
            out.extend_from_slice(&source.volume.as_u64().to_le_bytes());
            out.extend_from_slice(&source.snapshot.as_u64().to_le_bytes());
        }
        out.extend_from_slice(&encode_groups(&self.groups));
        out
    }

    /// Decodes [`to_bytes`](Self::to_bytes); the sources are the delta of the snapshot itself, and those that
    /// these manifests name.
    ///
    /// # Errors
    /// [`CloudError::InvalidRequest`] if the bytes are damaged, or the manifests lack a source.
    pub fn from_bytes(
        bytes: &[u8],
        own: CloudSnapshotId,
        manifests: &[Manifest],
    ) -> Result<Self, CloudError> {
        let own = DeltaId { cluster: own.cluster, volume: own.volume, snapshot: own.snapshot };
        let decode = || {
            let mut cursor = Cursor { rest: bytes };
            let count = cursor.u32()?;
            let (mut sources, mut deltas) = (Vec::new(), Vec::new());
            for _ in 0..count {
                let id = DeltaId {
                    cluster: Uuid::from_slice(cursor.take(16)?).map_err(|_| "an id is damaged")?,
                    volume: VolumeId::from_u64(cursor.u64()?),
                    snapshot: SnapshotId::from_u64(cursor.u64()?),
                };
                let delta = manifests.iter().flat_map(Manifest::deltas).find(|delta| delta.id() == id);
                match delta {
                    Some(delta) => deltas.push(delta.clone()),
                    None if id == own => {}
                    None => return Err("the base does not name a source"),
                }
                sources.push(id);
            }
            let groups =
                parse_bounded(cursor.rest, Extent::whole(MAX_VOLUME_BYTES), sources.len(), MAX_SAVED_GROUPS)?;
            Ok::<_, &'static str>(Self { sources, deltas, groups })
        };
        decode().map_err(|what| CloudError::InvalidRequest { what: format!("unusable references: {what}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        index::{Page, PageRef, encode_page},
        manifest::tests::sample,
    };

    fn set(runs: &[(u64, u64)]) -> BlockSet {
        runs.iter().map(|(start, len)| Extent::new(BlockIndex(*start), *len)).collect()
    }

    fn group(source: u32, displacement: i64, runs: &[(u64, u64)]) -> ReferenceGroup {
        ReferenceGroup { source, displacement, blocks: set(runs) }
    }

    fn parsed(groups: &[ReferenceGroup], count: u32) -> Result<Page, &'static str> {
        let bytes = encode_page(&set(&[(100, 5)]), &set(&[(10, 5)]), groups, 64, &[500]);
        let page = PageRef {
            range: Extent::new(BlockIndex(5), 1000),
            frame_base: 0,
            data_blocks: 5,
            reference_blocks: count,
            sealed_len: 0,
            offset_bytes: 64,
            tag: [0; 16],
        };
        Page::parse(&bytes, &page, 2)
    }

    #[test]
    fn references_of_a_page_round_trip() {
        let groups = [group(0, -20, &[(20, 3), (30, 1)]), group(0, 7, &[(60, 2)]), group(1, 0, &[(200, 9)])];
        let page = parsed(&groups, 15).unwrap();
        assert_eq!(page.references, groups);
        assert_eq!(page.referenced, set(&[(20, 3), (30, 1), (60, 2), (200, 9)]));
        assert_eq!(displaced(&groups[0].blocks, -20), set(&[(0, 3), (10, 1)]));
        assert_eq!(displaced(&groups[0].blocks, -21), set(&[(0, 2), (9, 1)]));
        assert!(parsed(&[], 0).is_ok());
    }

    #[test]
    fn hostile_references_are_refused() {
        let end = (MAX_VOLUME_BYTES / 4096) as i64;
        let refused = |groups: &[ReferenceGroup], count, what: &str| {
            let error = parsed(groups, count).unwrap_err();
            assert!(error.contains(what), "{error}");
        };
        refused(&[group(2, 0, &[(20, 1)])], 1, "a source that the root does not have");
        refused(&[group(0, -21, &[(20, 1)])], 1, "leaves the range");
        refused(&[group(0, end - 20, &[(20, 1)])], 1, "leaves the range");
        refused(&[group(0, i64::MAX, &[(20, 1)])], 1, "leaves the range");
        refused(&[group(0, i64::MIN, &[(20, 1)])], 1, "leaves the range");
        assert!(parsed(&[group(0, end - 21, &[(20, 1)])], 1).is_ok());
        refused(&[group(0, 0, &[])], 0, "empty");
        refused(&[group(0, 0, &[(4, 1)])], 1, "beyond its stretch");
        refused(&[group(0, 0, &[(1005, 1)])], 1, "beyond its stretch");
        refused(&[group(0, 0, &[(104, 1)])], 1, "two of its sets");
        refused(&[group(0, 0, &[(10, 1)])], 1, "two of its sets");
        refused(&[group(0, 0, &[(20, 2)]), group(1, 0, &[(21, 1)])], 3, "two of its sets");
        refused(&[group(0, 0, &[(20, 2)])], 1, "differs from the root");
    }

    #[test]
    fn groups_out_of_order_or_with_more_bytes_are_refused() {
        let range = Extent::new(BlockIndex(0), 100);
        let (one, other) = (group(0, 0, &[(20, 1)]), group(0, 1, &[(21, 1)]));
        let bytes = encode_groups(&[one.clone(), other.clone()]);
        assert_eq!(parse_groups(&bytes, range, 1), Ok(vec![one.clone(), other.clone()]));
        let entry = |group: &ReferenceGroup| encode_groups(std::slice::from_ref(group))[4..].to_vec();
        let twice = [&2u32.to_le_bytes()[..], &entry(&one), &entry(&one)].concat();
        assert_eq!(parse_groups(&twice, range, 1), Err("its references are not ascending"));
        let swapped = [&2u32.to_le_bytes()[..], &entry(&other), &entry(&one)].concat();
        assert_eq!(parse_groups(&swapped, range, 1), Err("its references are not ascending"));
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(parse_groups(&longer, range, 1), Err("there are bytes after its references"));
        assert!(parse_groups(&u32::MAX.to_le_bytes(), range, 1).is_err());
        for len in 0..bytes.len() {
            assert!(parse_groups(&bytes[..len], range, 1).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn taken_references_leave_no_unneeded_source() {
        let first = sample().delta;
        let second = Delta { snapshot: SnapshotId::from_u64(u64::MAX), ..first.clone() };
        let blocks = BTreeMap::from([
            ((first.id(), 0), set(&[(0, 4)])),
            ((second.id(), -10), set(&[(20, 4)])),
            ((second.id(), 3), set(&[(30, 4)])),
        ]);
        let all = References::new(blocks, [&first, &second].into_iter(), None).unwrap();
        let mut left = all.clone();
        let taken =
            left.take(|source| if *source == first { set(&[(0, 9)]) } else { set(&[(12, 1), (33, 9)]) });
        assert_eq!(taken, set(&[(0, 4), (22, 1), (30, 4)]));
        assert_eq!(
            (left.sources(), left.blocks()),
            (std::slice::from_ref(&second), set(&[(20, 2), (23, 1)]))
        );
        assert_eq!(all.sources_of(&set(&[(0, 1), (24, 6)])), [&first]);
        assert_eq!(all.sources_of(&set(&[(23, 8)])), [&second]);
        let mut whole = all.clone();
        assert!(whole.take(|_| BlockSet::new()).is_empty());
        assert_eq!(whole, all);
    }

    #[test]
    fn saved_references_may_have_more_groups_than_a_page() {
        let manifest = sample();
        let group = |n: u64| ((manifest.delta.id(), n as i64), set(&[(2 * n, 1)]));
        let blocks: BTreeMap<_, _> = (0..PAGE_BLOCKS + 9).map(group).collect();
        let references = References::new(blocks, manifest.deltas(), None).unwrap();
        let own = CloudSnapshotId { snapshot: SnapshotId::from_u64(9), ..manifest.id() };
        let saved = references.to_bytes();
        let loaded = References::from_bytes(&saved, own, std::slice::from_ref(&manifest)).unwrap();
        assert!(loaded == references);
        let range = Extent::whole(MAX_VOLUME_BYTES);
        assert!(parse_bounded(&saved[36..], range, 1, 9).is_err());
    }

    #[test]
    fn saved_references_need_their_sources() {
        let manifest = sample();
        let blocks = BTreeMap::from([((manifest.delta.id(), 0), set(&[(3, 4)]))]);
        let references = References::new(blocks.clone(), manifest.deltas(), None).unwrap();
        let bytes = references.to_bytes();
        let (own, all) =
            (CloudSnapshotId { snapshot: SnapshotId::from_u64(9), ..manifest.id() }, manifest.clone());
        let decoded = |bytes: &[u8], manifest: &Manifest| {
            References::from_bytes(bytes, own, std::slice::from_ref(manifest))
        };
        assert_eq!(decoded(&bytes, &all).unwrap(), references);
        let mut other = sample();
        other.delta.snapshot = SnapshotId::from_u64(77);
        assert!(decoded(&bytes, &other).is_err());
        assert_eq!(References::new(blocks, other.deltas(), None), Err(manifest.delta.id()));
        assert!(decoded(&bytes[..bytes.len() - 1], &manifest).is_err());
    }
}
