//! Deduplication: blocks of a backup whose content this host stored before become references.
//!
//! A pass over the blocks before the plan of a backup is saved finds them, with the fingerprint files of
//! earlier backups, and writes that of the new delta. So the layout of the delta is known before the first
//! pack, and a resumed backup has the same one. The pass makes no request to the store.
//!
//! Memory: hooks (36 MiB), the start of each chunk of the sources (4 MiB per TiB), hooks of the new delta
//! (12 MiB per TiB), chunks (6 MiB), and the block sets of the references.

mod file;
mod fingerprint;
mod hooks;
mod search;

pub(crate) use search::MAX_FOUND_GROUPS;

pub use file::parse_fingerprint_file;
pub use fingerprint::FingerprintKey;

use crate::{
    CancelToken, CloudError, CloudSnapshotId,
    manifest::{Delta, Manifest},
    names::DeltaId,
    references::References,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, Extent, MAX_VOLUME_BYTES};
use file::{ENTRY_LEN, FileOf, FingerprintFile, FingerprintWriter, HOOK_BITS, entries_of};
use hooks::Hooks;
use search::Search;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

/// Bytes of fingerprints that a backup reads at least if there are so many. A larger one reads at most as
/// many as it has data.
const MIN_SAMPLE_BYTES: u64 = 16 << 20;

/// Blocks that are read at a time.
const READ_BLOCKS: u64 = 256;

/// Delta whose blocks may be referenced.
#[derive(Clone, Debug)]
pub struct DedupSource {
    /// Delta.
    pub delta: Delta,
    /// Fingerprint file.
    pub path: PathBuf,
    /// Snapshot that names the delta, if the base does not.
    pub donor: Option<CloudSnapshotId>,
}

/// Backup to deduplicate.
#[derive(Clone, Copy, Debug)]
pub struct DedupRequest<'a> {
    /// The new snapshot.
    pub id: CloudSnapshotId,
    /// Salt of the new delta.
    pub salt: [u8; 32],
    /// Blocks to store.
    pub data: &'a BlockSet,
    /// Those of them that do not become references, because their stored content is not to be used.
    pub again: &'a BlockSet,
    /// Deltas, the preferred one first.
    pub sources: &'a [DedupSource],
    /// New fingerprint file.
    pub path: &'a Path,
}

/// Deduplicated backup.
#[derive(Debug)]
pub struct Deduplicated {
    /// Blocks to store.
    pub data: BlockSet,
    /// The others.
    pub references: References,
    /// Snapshots that must exist after the commit, besides the base.
    pub donors: Vec<CloudSnapshotId>,
    /// Snapshots that name the sources which the base does not.
    named_by: BTreeMap<DeltaId, CloudSnapshotId>,
}

impl Deduplicated {
    /// Returns a backup that stores all blocks.
    #[must_use]
    pub fn none(data: BlockSet) -> Self {
        Self { data, references: References::default(), donors: Vec::new(), named_by: BTreeMap::new() }
    }

    /// Stores the blocks whose source, or its donor, must not be used any more.
    #[must_use]
    pub fn without(
        mut self,
        is_unusable: impl Fn(&Delta) -> bool,
        is_gone: impl Fn(&CloudSnapshotId) -> bool,
    ) -> Self {
        let named_by = &self.named_by;
        let stored_again = self.references.take(|source| {
            let is_left =
                named_by.get(&source.id()).is_none_or(|donor| !is_gone(donor)) && !is_unusable(source);
            if is_left { BlockSet::new() } else { BlockSet::from_iter([Extent::whole(MAX_VOLUME_BYTES)]) }
        });
        self.data.union_with(&stored_again);
        let used: BTreeSet<_> =
            self.references.sources().iter().filter_map(|one| named_by.get(&one.id())).collect();
        self.donors.retain(|donor| used.contains(donor));
        self
    }

    /// Adds the references of a synthetic full backup.
    #[must_use]
    pub fn with(self, references: References) -> Self {
        Self { references: self.references.and(references), ..self }
    }
}

/// Returns the name of the fingerprint file of a delta.
#[must_use]
pub fn fingerprint_file_name(delta: &Delta) -> String {
    format!("{}-{}", delta.volume, delta.snapshot)
}

/// Returns the name of the fingerprint file of the delta that an object belongs to; `None` for other objects.
#[must_use]
pub fn fingerprint_file_of(object: &str) -> Option<String> {
    DeltaId::of_object(object).map(|delta| format!("{}-{}", delta.volume, delta.snapshot))
}

/// Finds the blocks whose content is stored, and writes the fingerprint file of the new delta. Blocks; reads
/// all blocks of the backup once.
///
/// # Errors
/// [`CloudError::Cancelled`]; [`CloudError::CompareVolume`]; [`CloudError::Journal`] if the new file cannot
/// be written. Unusable files of sources are no errors.
pub fn deduplicate(
    request: &DedupRequest<'_>,
    key: &FingerprintKey,
    reader: &dyn BlockSource,
    cancel: &CancelToken,
) -> Result<Deduplicated, CloudError> {
    let own =
        DeltaId { cluster: request.id.cluster, volume: request.id.volume, snapshot: request.id.snapshot };
    let path = request.path.to_owned();
    let failed = |what| move |source: io::Error| CloudError::Journal { path: path.clone(), what, source };
    let of = FileOf { delta: own, salt: request.salt };
    let writer = FingerprintWriter::create(request.path, key, of).map_err(failed.clone()("creation"))?;
    let (hooks, files) = open_sources(request, key);
    let mut search = Search::new(writer, hooks, files);
    for_each_block(reader, request.data, cancel, |block, content| {
        search.block(block, key.of(content), request.again.contains(block)).map_err(failed.clone()("write"))
    })?;
    let groups = search.finish().map_err(failed("write"))?;
    let (mut by_id, mut donors, mut named_by) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
    for ((source, displacement), blocks) in groups {
        let id = match source.checked_sub(1).and_then(|source| request.sources.get(source as usize)) {
            Some(source) => {
                donors.extend(source.donor);
                named_by.extend(source.donor.map(|donor| (source.delta.id(), donor)));
                source.delta.id()
            }
            None => own,
        };
        by_id.insert((id, displacement), blocks);
    }
    let deltas = request.sources.iter().map(|source| &source.delta);
    let references = References::new(by_id, deltas, Some(own)).map_err(|missing| CloudError::Internal {
        what: "deduplication",
        detail: format!("{} is no source", missing.prefix()),
    })?;
    let mut data = request.data.clone();
    data.subtract(&references.blocks());
    Ok(Deduplicated { data, references, donors: donors.into_iter().collect(), named_by })
}

/// Reads blocks in parts of 1 MiB at most.
fn for_each_block(
    reader: &dyn BlockSource,
    blocks: &BlockSet,
    cancel: &CancelToken,
    mut take: impl FnMut(BlockIndex, &[u8]) -> Result<(), CloudError>,
) -> Result<(), CloudError> {
    let mut content = Vec::new();
    let (mut extents, mut len) = (Vec::new(), 0);
    let mut read = |extents: &mut Vec<Extent>| -> Result<(), CloudError> {
        let Some(start) = extents.first().map(|first| first.start) else { return Ok(()) };
        if cancel.is_cancelled() {
            return Err(CloudError::Cancelled);
        }
        content.resize(extents.iter().map(|extent| extent.len_bytes() as usize).sum(), 0);
        let failed = |source| CloudError::CompareVolume { start, source };
        reader.read_extents(extents, &mut content).map_err(failed)?;
        let numbers = extents.iter().flat_map(|extent| extent.start.0..extent.end().0);
        for (number, content) in numbers.zip(content.chunks_exact(BLOCK_SIZE_BYTES as usize)) {
            take(BlockIndex(number), content)?;
        }
        extents.clear();
        Ok(())
    };
    for extent in blocks.extents() {
        let mut start = extent.start.0;
        while start < extent.end().0 {
            let part = (extent.end().0 - start).min(READ_BLOCKS - len);
            extents.push(Extent::new(BlockIndex(start), part));
            (start, len) = (start + part, len + part);
            if len == READ_BLOCKS {
                read(&mut extents)?;
                len = 0;
            }
        }
    }
    read(&mut extents)
}

/// Source that a search uses; `None` if its file is unusable.
type Opened<'a> = (&'a DedupSource, Option<FingerprintFile>);

/// Opens the files of the sources, and collects their hooks.
fn open_sources<'a>(request: &DedupRequest<'a>, key: &FingerprintKey) -> (Hooks, Vec<Opened<'a>>) {
    let (mut hooks, mut opened) = (Hooks::new(), Vec::new());
    let mut left = request.data.len_bytes().max(MIN_SAMPLE_BYTES);
    let entries: u64 = request.sources.iter().map(|source| entries_of(&source.path)).sum();
    let takes_all = Hooks::bits_for(entries + request.data.len_blocks()) < HOOK_BITS;
    for (source, number) in request.sources.iter().zip(1..) {
        let of = FileOf { delta: source.delta.id(), salt: source.delta.salt };
        let file = match FingerprintFile::open(&source.path, key, &of) {
            Ok(mut file) => {
                left = sample(&mut file, number, &mut hooks, left, takes_all);
                Some(file)
            }
            Err(error) => {
                refuse(&source.path, &error);
                None
            }
        };
        opened.push((source, file));
    }
    (hooks, opened)
}

/// Deletes a file that stays unusable, such as one of a former data key.
fn refuse(path: &Path, error: &io::Error) {
    match error.kind() {
        io::ErrorKind::NotFound => return,
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => drop(std::fs::remove_file(path)),
        _ => {}
    }
    tracing::warn!(path = %path.display(), %error, "no deduplication with an unusable fingerprint file");
}

/// Collects all fingerprints of a file within a limit of bytes, or else its hooks; returns the rest of it.
fn sample(file: &mut FingerprintFile, number: u32, hooks: &mut Hooks, left: u64, takes_all: bool) -> u64 {
    use file::Chunks;
    let sampled = file.take_hooks();
    let all_len = file.len() * ENTRY_LEN as u64;
    if !takes_all || all_len > left {
        // They were read to open the file.
        sampled.into_iter().for_each(|(prefix, entry)| hooks.insert(prefix, number, entry));
        return left;
    }
    for chunk in 0..file.places() {
        let Ok(entries) = file.chunk(chunk) else { continue };
        for (entry, nth) in entries.iter().zip((chunk * file::CHUNK_ENTRIES) as u32..) {
            hooks.insert(entry.fingerprint.prefix(), number, nth);
        }
    }
    left - all_len
}

/// Returns the deltas of these snapshots that a backup on a base may reference, the preferred one first:
/// those that the base names, then those of the other snapshots. `path_of` returns the path of a fingerprint
/// file.
#[must_use]
pub fn dedup_sources(
    base: Option<&Manifest>,
    donors: &[Manifest],
    path_of: impl Fn(&Delta) -> PathBuf,
) -> Vec<DedupSource> {
    let (mut known, mut sources) = (BTreeSet::new(), Vec::new());
    let all = base.into_iter().map(|base| (base, None));
    for (manifest, donor) in all.chain(donors.iter().map(|donor| (donor, Some(donor.id())))) {
        for delta in manifest.deltas() {
            let path = path_of(delta);
            if known.insert(delta.id()) && path.exists() {
                sources.push(DedupSource { delta: delta.clone(), path, donor });
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::{fingerprint::Fingerprint, *};
    use fingerprint::Entry;

    #[test]
    fn file_above_the_limit_is_sampled() {
        let dir = tempfile::tempdir().unwrap();
        let key = FingerprintKey::for_tests();
        let delta = DeltaId {
            cluster: uuid::Uuid::nil(),
            volume: blockd_extent::VolumeId::from_u64(1),
            snapshot: blockd_extent::SnapshotId::from_u64(2),
        };
        let (of, path) = (FileOf { delta, salt: [3; 32] }, dir.path().join("file"));
        let mut writer = FingerprintWriter::create(&path, &key, of).unwrap();
        for n in 1..=2048 {
            writer.push(Entry { block: BlockIndex(n), fingerprint: Fingerprint(u128::from(n)) }).unwrap();
        }
        writer.finish().unwrap();
        let all_len = 2048 * ENTRY_LEN as u64;
        for (left, takes_all, rest, known) in
            [(all_len, true, 0, 2048), (all_len - 1, true, all_len - 1, 8), (all_len, false, all_len, 8)]
        {
            let mut file = FingerprintFile::open(&path, &key, &of).unwrap();
            let mut hooks = Hooks::new();
            assert_eq!(sample(&mut file, 1, &mut hooks, left, takes_all), rest);
            assert_eq!((1..=2048).filter(|prefix| hooks.get(*prefix).is_some()).count(), known);
        }
    }
}
