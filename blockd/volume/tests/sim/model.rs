//! Model of a volume: for each sector the versions that it may read as, and those that may survive a power
//! cut.

use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, Extent};
use blockd_volume::Volume;
use std::collections::BTreeMap;

pub const SECTOR_BYTES: u64 = 512;
pub const SECTORS_PER_BLOCK: u64 = BLOCK_SIZE_BYTES / SECTOR_BYTES;

/// Content of a sector: the number of its write, or 0 for zeroes.
pub type Version = u64;

#[derive(Clone)]
struct Sector {
    /// Possible versions; several after a failed write.
    now: Vec<Version>,
    /// Possible versions after a power cut: a superset of `now`.
    after_cut: Vec<Version>,
}

impl Sector {
    fn of(version: Version) -> Self {
        Self { now: vec![version], after_cut: vec![version] }
    }

    /// Adds a version; an answered write rules out the earlier ones until a power cut.
    fn add_version(&mut self, version: Version, is_answered: bool) {
        if is_answered {
            self.now.clear();
        }
        for list in [&mut self.now, &mut self.after_cut] {
            if !list.contains(&version) {
                list.push(version);
            }
        }
    }
}

#[derive(Clone)]
pub struct Snapshot {
    /// Possible contents; several if a freeze with this id failed before.
    contents: Vec<Vec<Version>>,
    /// It was found or its freeze was answered.
    is_certain: bool,
    /// No deletion of it has failed.
    is_kept: bool,
}

/// Model of a volume.
#[derive(Clone, Default)]
pub struct Model {
    sectors: Vec<Sector>,
    /// Possible sizes after failed growths, in sectors.
    sizes: Vec<usize>,
    pub snapshots: BTreeMap<u64, Snapshot>,
    last_version: Version,
}

/// Returns the content of a version of a sector.
pub fn content_of(sector: u64, version: Version) -> [u8; SECTOR_BYTES as usize] {
    let mut content = [0; SECTOR_BYTES as usize];
    if version != 0 {
        for (number, word) in content.chunks_exact_mut(8).enumerate() {
            let value = if number % 2 == 0 { sector + 1 } else { version };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
    content
}

fn version_in(sector: u64, content: &[u8]) -> Version {
    let version = u64::from_le_bytes(content[8..16].try_into().unwrap());
    assert!(
        content == content_of(sector, version),
        "sector {sector} has the content of no version: it starts with {:?}",
        &content[..16]
    );
    version
}

impl Model {
    pub fn new(size_bytes: u64) -> Self {
        let sectors = (size_bytes / SECTOR_BYTES) as usize;
        Self { sectors: vec![Sector::of(0); sectors], sizes: vec![sectors], ..Self::default() }
    }

    /// Creates the model of a volume with these versions.
    pub fn of(versions: Vec<Version>) -> Self {
        let sizes = vec![versions.len()];
        Self { sectors: versions.into_iter().map(Sector::of).collect(), sizes, ..Self::default() }
    }

    /// Compares a part of a volume's content with its possible versions.
    pub fn compare(&self, start: u64, content: &[u8]) {
        for (number, content) in (start..).zip(content.chunks_exact(SECTOR_BYTES as usize)) {
            let version = version_in(number, content);
            let now = &self.sectors[number as usize].now;
            assert!(now.contains(&version), "sector {number} has version {version}, expected one of {now:?}");
        }
    }

    pub fn sectors(&self) -> u64 {
        self.sectors.len() as u64
    }

    pub fn next_version(&mut self) -> Version {
        self.last_version += 1;
        self.last_version
    }

    pub fn write(&mut self, start: u64, len: u64, version: Version, is_answered: bool) {
        for sector in &mut self.sectors[start as usize..(start + len) as usize] {
            sector.add_version(version, is_answered);
        }
    }

    /// Records an answered flush.
    pub fn flush(&mut self) {
        for sector in &mut self.sectors {
            sector.after_cut.clone_from(&sector.now);
        }
    }

    /// Records a power cut, or a restart after a failed sync, which can lose the same writes.
    pub fn lose_power(&mut self) {
        for sector in &mut self.sectors {
            sector.now.clone_from(&sector.after_cut);
        }
    }

    fn current(&self) -> Vec<Version> {
        self.sectors.iter().map(|sector| *sector.now.last().unwrap()).collect()
    }

    pub fn freeze(&mut self, id: u64, is_answered: bool) {
        assert!(
            self.sectors.iter().all(|sector| sector.now.len() == 1),
            "observe the volume before a freeze"
        );
        let content = self.current();
        if is_answered {
            self.flush();
            let snapshot = Snapshot { contents: vec![content], is_certain: true, is_kept: true };
            self.snapshots.insert(id, snapshot);
        } else {
            let snapshot = self.snapshots.entry(id).or_insert(Snapshot {
                contents: vec![],
                is_certain: false,
                is_kept: true,
            });
            snapshot.contents.push(content);
        }
    }

    pub fn delete(&mut self, id: u64, is_answered: bool) {
        if is_answered {
            self.snapshots.remove(&id);
        } else if let Some(snapshot) = self.snapshots.get_mut(&id) {
            snapshot.is_kept = false;
            snapshot.is_certain = false;
        }
    }

    fn resize(&mut self, sectors: usize) {
        self.sectors.resize(sectors, Sector::of(0));
    }

    /// Records a growth to `requested` sectors, after which the volume reports `found` sectors.
    pub fn grow(&mut self, requested: u64, found: u64, is_answered: bool) {
        let (requested, found) = (requested as usize, found as usize);
        assert!(
            found == requested || found == self.sectors.len(),
            "neither the old nor the new size: {found}"
        );
        // A visible new size is durable, and an answer rules out the sizes of earlier, failed growths.
        let is_certain = is_answered || found != self.sectors.len();
        self.sizes = match found == requested && is_certain {
            true => vec![requested],
            false => [&self.sizes[..], &[requested]].concat(),
        };
        self.resize(found);
    }

    /// Compares a volume with the model, and removes versions that it does not have.
    pub fn observe(&mut self, volume: &Volume) {
        let found = (volume.size_bytes() / SECTOR_BYTES) as usize;
        assert!(self.sizes.contains(&found), "{found} sectors, not one of {:?}", self.sizes);
        self.resize(found);
        let mut bytes = vec![0xee; volume.size_bytes() as usize];
        volume.read(0, &mut bytes).unwrap();
        for (number, content) in bytes.chunks_exact(SECTOR_BYTES as usize).enumerate() {
            let version = version_in(number as u64, content);
            let sector = &mut self.sectors[number];
            assert!(
                sector.now.contains(&version),
                "sector {number} (block {}) has version {version}, expected one of {:?}",
                number as u64 / SECTORS_PER_BLOCK,
                sector.now
            );
            sector.now = vec![version];
        }
    }

    /// Resolves uncertain sizes, contents and snapshots from a volume that was just opened.
    pub fn resolve(&mut self, volume: &Volume, is_durable: bool) {
        self.observe(volume);
        self.sizes = vec![self.sectors.len()];
        if is_durable {
            self.flush();
        }
        let found: Vec<u64> = volume.snapshots().iter().map(|snapshot| snapshot.id.as_u64()).collect();
        for id in &found {
            assert!(self.snapshots.contains_key(id), "snapshot {id} was never taken");
        }
        self.snapshots.retain(|id, snapshot| {
            let exists = found.contains(id);
            assert!(exists || !snapshot.is_certain || !snapshot.is_kept, "snapshot {id} is missing");
            snapshot.is_certain = true;
            snapshot.is_kept = true;
            exists
        });
    }

    /// Compares all snapshots and dirty sets; the volume must have been observed.
    pub fn check(&mut self, volume: &Volume) {
        self.observe(volume);
        let current = self.current();
        let infos = volume.snapshots();
        for info in &infos {
            let id = info.id.as_u64();
            let view = volume.view(info.id).unwrap();
            let mut bytes = vec![0; view.size_bytes() as usize];
            // Also compares and stores checksums, which must not outlive their blocks.
            view.read_extents(&[Extent::whole(view.size_bytes())], &mut bytes).unwrap();
            let content: Vec<Version> = bytes
                .chunks_exact(SECTOR_BYTES as usize)
                .enumerate()
                .map(|(number, content)| version_in(number as u64, content))
                .collect();
            let snapshot = self.snapshots.get_mut(&id).unwrap();
            assert!(
                snapshot.contents.contains(&content),
                "snapshot {id} differs from its freeze, first at sector {:?}",
                snapshot.contents.last().unwrap().iter().zip(&content).position(|(a, b)| a != b)
            );
            // A snapshot that was read once never changes.
            snapshot.contents = vec![content.clone()];
            let mut at = 0;
            while at < volume.size_bytes() {
                for run in volume.dirty_since(info.id, at, volume.size_bytes() - at, 1000).unwrap() {
                    let blocks = at / BLOCK_SIZE_BYTES..(at + run.len_bytes) / BLOCK_SIZE_BYTES;
                    for block in blocks.filter(|_| !run.dirty) {
                        assert!(
                            !differs(&content, &current, block),
                            "block {block} changed since snapshot {id} and is not dirty"
                        );
                    }
                    at += run.len_bytes;
                }
            }
        }
        for pair in infos.windows(2) {
            let changes = volume.changes(Some(pair[0].epoch), pair[1].epoch).unwrap();
            let content = |at: usize| &self.snapshots[&pair[at].id.as_u64()].contents[0];
            let blocks = content(1).len() as u64 / SECTORS_PER_BLOCK;
            for block in (0..blocks).filter(|&block| differs(content(0), content(1), block)) {
                let index = BlockIndex(block);
                assert!(
                    changes.data.contains(index) || changes.zero.contains(index),
                    "block {block} changed between {} and {} and is not in the interval",
                    pair[0].id,
                    pair[1].id
                );
            }
            for block in changes.zero.blocks() {
                let sectors = (block.0 * SECTORS_PER_BLOCK) as usize..;
                assert!(
                    content(1)[sectors][..SECTORS_PER_BLOCK as usize].iter().all(|&version| version == 0),
                    "block {block} is not zero"
                );
            }
        }
    }
}

fn differs(old: &[Version], new: &[Version], block: u64) -> bool {
    (block * SECTORS_PER_BLOCK..(block + 1) * SECTORS_PER_BLOCK)
        .map(|sector| sector as usize)
        .any(|sector| old.get(sector).copied().unwrap_or(0) != new.get(sector).copied().unwrap_or(0))
}
