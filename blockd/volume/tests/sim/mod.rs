//! Volume on a simulated disk, with a model of its possible contents.

pub mod disk;
pub mod model;
pub mod source;

use crate::support::{memory_disk, names_in, open};
use blockd_extent::{BLOCK_SIZE_BYTES, SnapshotId, VolumeId};
use blockd_volume::{ClosedVolume, LazySource, OpenOptions, Recovery, Volume, VolumeError, VolumeErrorKind};
use disk::{Attached, Disk, DiskBug, OpKind, Operation, Rng};
use model::{Model, SECTOR_BYTES, content_of};
use source::VersionSource;
use std::{path::PathBuf, sync::Arc};

/// Operation on a volume; positions and lengths in sectors, sizes in blocks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    Write {
        start: u64,
        len: u64,
        fua: bool,
    },
    Trim {
        start: u64,
        len: u64,
    },
    Zero {
        start: u64,
        len: u64,
        no_hole: bool,
    },
    Flush,
    /// Syncs the live map.
    SyncMaps,
    Freeze(u64),
    Delete(u64),
    /// Merges all pairs of layers that can be merged.
    Merge,
    /// Grows the volume to this number of blocks.
    Grow(u64),
    /// Closes and reopens the volume.
    Restart,
    /// Crashes the process; another one opens the volume.
    Kill,
    /// Reads and compares with the model; a lazy volume fetches missing blocks.
    Read {
        start: u64,
        len: u64,
    },
    /// Runs one hydration step.
    Hydrate,
    /// Makes fetched blocks durable.
    SyncHydration,
    /// Turns a complete lazy base into a frozen layer.
    EndHydration,
}

/// Blocks between two progress notes of a merge; the seed selects one.
const NOTE_EVERY_BLOCKS: [u64; 3] = [1, 3, 100];

/// Initial number of blocks of the script.
pub const BLOCKS: u64 = 24;

/// Script with all operations except those of lazy volumes; one merge has an extent that is long enough to be
/// shared.
pub const SCRIPT: &[Step] = &[
    Step::Write { start: 0, len: 160, fua: false },
    Step::Write { start: 3, len: 2, fua: false },
    Step::Flush,
    Step::Write { start: 100, len: 9, fua: true },
    Step::Trim { start: 8, len: 16 },
    Step::Zero { start: 30, len: 21, no_hole: false },
    Step::Write { start: 16, len: 8, fua: false },
    Step::Freeze(1),
    Step::Write { start: 1, len: 1, fua: false },
    Step::Write { start: 16, len: 24, fua: false },
    Step::SyncMaps,
    Step::Kill,
    Step::Zero { start: 96, len: 16, no_hole: true },
    Step::Flush,
    Step::Write { start: 96, len: 8, fua: false },
    Step::Freeze(2),
    Step::Trim { start: 0, len: 16 },
    Step::Write { start: 120, len: 72, fua: false },
    Step::Grow(40),
    Step::Write { start: 190, len: 10, fua: false },
    Step::Write { start: 120, len: 3, fua: true },
    Step::Freeze(3),
    Step::Write { start: 250, len: 30, fua: false },
    Step::Delete(1),
    Step::Merge,
    Step::Restart,
    Step::Write { start: 255, len: 2, fua: false },
    Step::Delete(2),
    Step::Merge,
    Step::Freeze(4),
    Step::Write { start: 0, len: 8, fua: false },
    Step::Flush,
    Step::Delete(3),
    Step::Merge,
    Step::Restart,
];

/// Volume under test.
pub struct Sim {
    root: tempfile::TempDir,
    generation: u64,
    bugs: Vec<DiskBug>,
    /// The filesystem can share extents: for odd seeds.
    shares_extents: bool,
    note_every_bytes: u64,
    /// Unflushed writes may have been lost since the volume was last open.
    lost_power: bool,
    /// The power was cut since then: the found content is durable.
    was_cut: bool,
    pub disk: Attached,
    pub volume: Option<Arc<Volume>>,
    pub model: Model,
    pub rng: Rng,
    /// Source of a lazy volume.
    source: Option<Arc<VersionSource>>,
}

pub const ID: VolumeId = VolumeId::from_u64(77);

/// Returns and prints the random seed of a test; `BLOCKD_TEST_SEED` sets it.
pub fn seed_of_test(name: &str) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    let seed = match std::env::var("BLOCKD_TEST_SEED") {
        Ok(text) => text.parse().unwrap_or_else(|error| panic!("BLOCKD_TEST_SEED={text}: {error}")),
        Err(_) => RandomState::new().hash_one(name) >> 16,
    };
    eprintln!("{name}: repeat this run with BLOCKD_TEST_SEED={seed}");
    seed
}

impl Sim {
    /// Creates a disk without a volume.
    pub fn new(seed: u64) -> Self {
        let (root, disk) = memory_disk(seed);
        let shares_extents = seed % 2 == 1;
        disk.set_shares_extents(shares_extents);
        let (model, rng) = (Model::default(), Rng::fixed(seed));
        Self {
            root,
            generation: 0,
            bugs: vec![],
            shares_extents,
            note_every_bytes: NOTE_EVERY_BLOCKS[(seed / 2 % 3) as usize] * BLOCK_SIZE_BYTES,
            lost_power: false,
            was_cut: false,
            disk,
            volume: None,
            model,
            rng,
            source: None,
        }
    }

    /// Adds a bug to this disk and to those after power cuts.
    pub fn add_bug(&mut self, bug: DiskBug) {
        self.bugs.push(bug);
        self.disk.add_bug(bug);
    }

    pub fn disk_root(&self) -> PathBuf {
        self.root.path().join(format!("disk-{}", self.generation))
    }

    /// Returns the directory of the volume.
    pub fn dir(&self) -> PathBuf {
        self.disk_root().join("v")
    }

    pub fn volume(&self) -> &Arc<Volume> {
        self.volume.as_ref().unwrap()
    }

    pub fn create(&mut self, blocks: u64) -> Result<(), VolumeError> {
        self.model = Model::new(blocks * BLOCK_SIZE_BYTES);
        self.volume = Some(Volume::create(&self.dir(), ID, blocks * BLOCK_SIZE_BYTES)?);
        Ok(())
    }

    /// Creates a lazy volume.
    pub fn create_lazy(&mut self, blocks: u64) -> Result<(), VolumeError> {
        let source = Arc::new(VersionSource::new(blocks));
        self.model = Model::of(source.sectors());
        self.source = Some(source.clone());
        let size_bytes = blocks * BLOCK_SIZE_BYTES;
        self.volume = Some(Volume::create_lazy(&self.dir(), ID, size_bytes, source)?);
        Ok(())
    }

    /// Returns the volume to inspect. For a lazy one it is an opened copy of the directory, because an
    /// inspection fetches all blocks.
    fn inspected_volume(&self) -> Arc<Volume> {
        let Some(source) = &self.source else { return self.volume().clone() };
        let copy = self.root.path().join("inspected");
        if copy.exists() {
            std::fs::remove_dir_all(&copy).unwrap();
        }
        std::fs::create_dir(&copy).unwrap();
        for name in names_in(&self.dir()) {
            std::fs::copy(self.dir().join(&name), copy.join(&name)).unwrap();
        }
        let volume = open(&copy);
        volume.set_lazy_source(source.clone());
        volume
    }

    /// Opens the volume; with `lost_power`, unflushed writes may be lost.
    pub fn open(&mut self, recovery: Recovery, lost_power: bool) -> Result<(), VolumeError> {
        self.lost_power |= lost_power;
        let before = self.disk.failed().len();
        let options = OpenOptions { recovery, serves_remote: true };
        let result = ClosedVolume::read(&self.dir(), &options).and_then(|closed| closed.open());
        let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let fails_on_map = error.contains(".map") && !error.contains(".map.new");
        // The first sync of this process may report a failed writeback of the previous one. A start rejects a
        // map with an unreadable header, and fails on one with unreadable bits.
        let discards = |call: &Operation| {
            let end = call.path.extension().and_then(|end| end.to_str());
            match call.kind {
                OpKind::Sync => matches!(end, Some("data" | "map")),
                OpKind::Read => end == Some("map") && !fails_on_map,
                _ => false,
            }
        };
        self.lost_power |= self.disk.failed()[before..].iter().any(discards);
        self.trace(|sim| {
            let error = result.as_ref().err();
            eprintln!(
                "opened {recovery:?}, lost power {}, failed {:?}: {error:?}",
                sim.lost_power,
                sim.disk.failed()
            );
        });
        let volume = result?;
        if let Some(source) = &self.source {
            volume.set_lazy_source(source.clone() as Arc<dyn LazySource>);
        }
        self.volume = Some(volume);
        if self.lost_power {
            self.model.lose_power();
        }
        Ok(())
    }

    /// Cuts the power and continues on a disk with the surviving data. The volume is not opened.
    pub fn cut_power(&mut self) {
        self.volume = None;
        self.was_cut = true;
        self.trace(|sim| eprintln!("power cut at call {}", sim.disk.operations().len()));
        self.generation += 1;
        let next = self.disk_root();
        self.disk.power_cut(&mut self.rng, &next).unwrap();
        self.disk = Disk::attach(&next, self.rng.next_u64()).unwrap();
        self.disk.set_shares_extents(self.shares_extents);
        for &bug in &self.bugs {
            self.disk.add_bug(bug);
        }
    }

    /// Runs a step and updates the model. After a failed `Restart` or `Kill` no volume is open.
    pub fn apply(&mut self, step: Step) -> Result<(), VolumeError> {
        let first_call = self.disk.operations().len();
        let result = self.execute(step);
        self.trace(|sim| {
            let calls = sim.disk.operations().len();
            eprintln!("{step:?}, calls {first_call} to {calls}: {:?}", result.as_ref().err());
        });
        result
    }

    /// Calls `print` if `BLOCKD_TEST_TRACE` is set.
    fn trace(&self, print: impl FnOnce(&Self)) {
        if std::env::var_os("BLOCKD_TEST_TRACE").is_some() {
            print(self);
        }
    }

    fn execute(&mut self, step: Step) -> Result<(), VolumeError> {
        match step {
            Step::Write { start, len, fua } => self.write(start, len, fua),
            Step::Trim { start, len } => {
                let result = self.volume().trim(start * SECTOR_BYTES, len * SECTOR_BYTES, false);
                let inside = blockd_extent::Extent::inside(start * SECTOR_BYTES, len * SECTOR_BYTES);
                let (from, bytes) = (inside.offset_bytes() / SECTOR_BYTES, inside.len_bytes());
                self.model.write(from, bytes / SECTOR_BYTES, 0, result.is_ok());
                result
            }
            Step::Zero { start, len, no_hole } => {
                let (at, bytes) = (start * SECTOR_BYTES, len * SECTOR_BYTES);
                let result = self.volume().write_zeroes(at, bytes, no_hole, false);
                self.model.write(start, len, 0, result.is_ok());
                result
            }
            Step::Flush => {
                let result = self.volume().flush();
                if result.is_ok() {
                    self.model.flush();
                }
                result
            }
            Step::SyncMaps => {
                let synced = self.volume().sync_maps();
                // After a failure, the next start rejects the map.
                self.lost_power = synced.is_err();
                synced
            }
            Step::Freeze(id) => {
                let result = self.volume().freeze(SnapshotId::from_u64(id));
                self.model.freeze(id, result.is_ok());
                result.map(|_| ())
            }
            Step::Delete(id) => {
                let result = self.volume().delete_snapshot(SnapshotId::from_u64(id));
                self.model.delete(id, result.is_ok());
                result
            }
            Step::Merge => {
                while self.volume().merge_next_with_progress(&|_| true, self.note_every_bytes)? {}
                Ok(())
            }
            Step::Grow(blocks) => {
                let result = self.volume().grow(blocks * BLOCK_SIZE_BYTES);
                let found = self.volume().size_bytes() / SECTOR_BYTES;
                let requested = blocks * BLOCK_SIZE_BYTES / SECTOR_BYTES;
                assert!(result.is_err() || found == requested);
                self.model.grow(requested, found, result.is_ok());
                result
            }
            Step::Restart => self.restart(),
            Step::Kill => {
                self.volume = None;
                self.open(Recovery::Auto, false)?;
                self.resolve();
                Ok(())
            }
            Step::Read { start, len } => {
                let mut bytes = vec![0; (len * SECTOR_BYTES) as usize];
                self.volume().read(start * SECTOR_BYTES, &mut bytes)?;
                self.model.compare(start, &bytes);
                Ok(())
            }
            Step::Hydrate => self.volume().hydrate_next().map(|_| ()),
            Step::SyncHydration => self.volume().sync_hydration(),
            Step::EndHydration => self.volume().end_hydration().map(|_| ()),
        }
    }

    fn write(&mut self, start: u64, len: u64, fua: bool) -> Result<(), VolumeError> {
        let version = self.model.next_version();
        let data: Vec<u8> = (start..start + len).flat_map(|sector| content_of(sector, version)).collect();
        let result = self.volume().write(start * SECTOR_BYTES, &data, fua);
        self.model.write(start, len, version, result.is_ok());
        if fua && result.is_ok() {
            self.model.flush();
        }
        result
    }

    fn restart(&mut self) -> Result<(), VolumeError> {
        let closed = match &self.volume {
            Some(volume) => volume.close(),
            None => Ok(()),
        };
        if let (Ok(()), Some(_)) = (&closed, &self.volume) {
            self.model.flush();
        }
        let has_failed = self.volume.take().is_some_and(|volume| volume.failure().is_some());
        self.open(Recovery::Auto, has_failed)?;
        self.resolve();
        closed
    }

    /// Runs a script that is interrupted at some call, and repeats the interrupted step; returns the number
    /// of calls. `reopen` opens the volume after an interrupted creation, `recover` after an interrupted
    /// step.
    pub fn run_script(
        &mut self,
        script: &[Step],
        mut before: impl FnMut(&mut Self, Step),
        reopen: impl Fn(&mut Self) -> Result<(), VolumeError>,
        recover: impl Fn(&mut Self),
    ) -> u64 {
        if self.create(BLOCKS).is_err() {
            // An unanswered creation leaves no, a partial or a complete volume.
            if reopen(self).is_err() {
                Volume::delete_files(&self.dir()).unwrap();
                self.create(BLOCKS).unwrap();
            }
            self.resolve();
        }
        let mut calls = self.disk.operations().len() as u64;
        for &step in script {
            before(self, step);
            let failed = self.apply(step).is_err();
            if !self.disk.is_off() {
                assert!(!failed, "{step:?} failed without an interruption");
                calls = self.disk.operations().len() as u64;
                continue;
            }
            recover(self);
            let is_done = match step {
                Step::Freeze(id) => self.model.snapshots.contains_key(&id),
                Step::Delete(id) => !self.model.snapshots.contains_key(&id),
                _ => false,
            };
            if !is_done {
                self.apply(step).unwrap();
            }
            self.check();
        }
        self.check();
        recover(self);
        calls
    }

    /// Compares the volume, its snapshots and its dirty sets with the model.
    pub fn check(&mut self) {
        let volume = self.inspected_volume();
        self.disk.bypass(|| self.model.check(&volume));
    }

    /// Compares the volume with the model.
    pub fn observe(&mut self) {
        let volume = self.inspected_volume();
        self.disk.bypass(|| self.model.observe(&volume));
    }

    /// Resolves the uncertainties of the model after an open.
    pub fn resolve(&mut self) {
        if self.volume().failure().is_none() {
            let volume = self.inspected_volume();
            self.disk.bypass(|| self.model.resolve(&volume, self.was_cut));
            (self.lost_power, self.was_cut) = (false, false);
        }
    }

    /// Checks that the directory has no unreferenced files. The volume must have been opened after the last
    /// failure.
    pub fn check_for_leaks(&self) {
        let stats = self.volume().stats();
        let files = names_in(&self.dir());
        let count = |end: &str| files.iter().filter(|name| name.ends_with(end)).count() as u64;
        assert_eq!(count(".data"), stats.layers, "{files:?}");
        let logs = 1 + u64::from(self.volume().hydration().is_some());
        assert_eq!((count(".map"), count(".log")), (1, logs), "{files:?}");
        assert!(count(".sums") < stats.layers, "{files:?}");
        assert_eq!(
            count(".data")
                + count(".map")
                + count(".log")
                + count(".set")
                + count(".sums")
                + count("volume.meta")
                + count("volume.discarded")
                + count("volume.merge"),
            files.len() as u64,
            "{files:?}"
        );
        assert_eq!(names_in(&self.disk_root()), ["v"]);
    }
}

/// Checks that a failed volume refuses all requests.
pub fn assert_sticky(volume: &Volume) {
    let mut buf = [0; 512];
    let errors = [
        volume.flush().unwrap_err(),
        volume.write(0, &buf, false).unwrap_err(),
        volume.write(0, &buf, true).unwrap_err(),
        volume.trim(0, 4096, false).unwrap_err(),
        volume.write_zeroes(0, 512, false, true).unwrap_err(),
        volume.freeze(SnapshotId::from_u64(u64::MAX)).unwrap_err(),
        volume.grow(64 << 20).unwrap_err(),
        volume.read(0, &mut buf).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), VolumeErrorKind::Failed, "{error}");
    }
}
