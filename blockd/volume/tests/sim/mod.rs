//! Volume on a simulated disk, with a model of its possible contents.

#![allow(dead_code, reason = "each test uses its part")]

pub mod disk;
pub mod model;
pub mod source;

use blockd_extent::{BLOCK_SIZE_BYTES, SnapshotId, VolumeId};
use blockd_volume::{LazySource, OpenOptions, Recovery, Volume, VolumeError, VolumeErrorKind};
use disk::{Attached, Disk, Lie, OpKind, Operation, Rng};
use model::{Model, SECTOR_BYTES, content_of};
use source::VersionSource;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

/// Something done to a volume; positions and lengths are sectors.
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
    /// Makes the disk take the live map.
    SyncMaps,
    Freeze(u64),
    Delete(u64),
    /// Merges all that can be merged.
    Merge,
    /// To so many blocks.
    Grow(u64),
    /// Closes and opens again.
    Restart,
    /// The process dies and another one opens the volume.
    Kill,
    /// Reads, and compares with the model: of a lazy volume, what is not there is fetched.
    Read {
        start: u64,
        len: u64,
    },
    /// Runs one hydration step.
    Hydrate,
    /// Makes durable what was fetched.
    SyncHydration,
    /// Makes the base an ordinary layer, if it is all there.
    EndHydration,
}

/// After how many blocks a merge writes down how far it is: with each seed another one of these.
const NOTE_EVERY_BLOCKS: [u64; 3] = [1, 3, 100];

/// Initial number of blocks of the scripted life.
pub const BLOCKS: u64 = 24;

/// A life with everything in it, also a merge of an extent that is long enough to be shared. Sectors have 512
/// bytes, blocks eight of them.
pub const LIFE: &[Step] = &[
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

/// A volume under test.
pub struct Sim {
    root: tempfile::TempDir,
    generation: u64,
    lies: Vec<Lie>,
    /// The filesystem can share extents, for half of the seeds.
    shares_extents: bool,
    note_every_bytes: u64,
    /// Since the volume was last open, data may have been lost,
    lost_power: bool,
    /// because the power was cut: what is found then is on the disk, and not just in memory.
    was_cut: bool,
    pub disk: Attached,
    pub volume: Option<Arc<Volume>>,
    pub model: Model,
    pub rng: Rng,
    /// Of a lazy volume.
    source: Option<Arc<VersionSource>>,
}

pub const ID: VolumeId = VolumeId::from_u64(77);

/// The seed of a test, which it prints; `BLOCKD_TEST_SEED` repeats it.
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
    /// A disk without a volume.
    pub fn new(seed: u64) -> Self {
        // In memory where there is such a place: an ext4 writes a file out when another one is renamed over
        // it.
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let first = root.path().join("disk-0");
        std::fs::create_dir(&first).unwrap();
        let disk = Disk::attach(&first, seed).unwrap();
        let shares_extents = seed % 2 == 1;
        disk.set_shares_extents(shares_extents);
        let (model, rng) = (Model::default(), Rng::new(seed));
        Self {
            root,
            generation: 0,
            lies: vec![],
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

    pub fn plant(&mut self, lie: Lie) {
        self.lies.push(lie);
        self.disk.plant(lie);
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

    /// Makes a volume that begins as what a source holds.
    pub fn create_lazy(&mut self, blocks: u64) -> Result<(), VolumeError> {
        let source = Arc::new(VersionSource::new(blocks));
        self.model = Model::of(source.sectors());
        self.source = Some(source.clone());
        let size_bytes = blocks * BLOCK_SIZE_BYTES;
        self.volume = Some(Volume::create_lazy(&self.dir(), ID, size_bytes, source)?);
        Ok(())
    }

    /// Returns the volume to check: itself, or for a lazy one, whose check would fetch all of it, a copy of
    /// its directory opened again.
    fn looked_at(&self) -> Arc<Volume> {
        let Some(source) = &self.source else { return self.volume().clone() };
        let copy = self.root.path().join("looked-at");
        if copy.exists() {
            std::fs::remove_dir_all(&copy).unwrap();
        }
        std::fs::create_dir(&copy).unwrap();
        for name in names_in(&self.dir()) {
            std::fs::copy(self.dir().join(&name), copy.join(&name)).unwrap();
        }
        let volume = Volume::open(&copy, &OpenOptions::default()).unwrap();
        volume.set_lazy_source(source.clone());
        volume
    }

    /// Opens the volume as it lies there; `lost_power` says that what was not flushed may be lost.
    pub fn open(&mut self, recovery: Recovery, lost_power: bool) -> Result<(), VolumeError> {
        self.lost_power |= lost_power;
        let before = self.disk.failed().len();
        let result = Volume::open(&self.dir(), &OpenOptions { recovery, serves_remote: true });
        let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let fails_on_map = error.contains(".map") && !error.contains(".map.new");
        // What the process before could not write back, the first sync of the next one may be the first to
        // hear of. A map whose header cannot be read is not believed; one whose bits cannot be read fails the
        // start.
        let discards = |call: &Operation| {
            let end = call.path.extension().and_then(|end| end.to_str());
            match call.kind {
                OpKind::Sync => matches!(end, Some("data" | "map")),
                OpKind::Read => end == Some("map") && !fails_on_map,
                _ => false,
            }
        };
        self.lost_power |= self.disk.failed()[before..].iter().any(discards);
        self.tell(|sim| {
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

    /// Cuts the power, and goes on with a disk that has what was left. The volume is not opened.
    pub fn cut_power(&mut self) {
        self.volume = None;
        self.was_cut = true;
        self.tell(|sim| eprintln!("power cut at call {}", sim.disk.operations().len()));
        self.generation += 1;
        let next = self.disk_root();
        self.disk.power_cut(&mut self.rng, &next).unwrap();
        self.disk = Disk::attach(&next, self.rng.next_u64()).unwrap();
        self.disk.set_shares_extents(self.shares_extents);
        for &lie in &self.lies {
            self.disk.plant(lie);
        }
    }

    /// Does something, and tells the model how it went. After a `Restart` or `Kill` that failed there is no
    /// volume.
    pub fn apply(&mut self, step: Step) -> Result<(), VolumeError> {
        let first_call = self.disk.operations().len();
        let result = self.carry_out(step);
        self.tell(|sim| {
            let calls = sim.disk.operations().len();
            eprintln!("{step:?}, calls {first_call} to {calls}: {:?}", result.as_ref().err());
        });
        result
    }

    /// Prints a step if `BLOCKD_TEST_TRACE` is set.
    fn tell(&self, what: impl FnOnce(&Self)) {
        if std::env::var_os("BLOCKD_TEST_TRACE").is_some() {
            what(self);
        }
    }

    fn carry_out(&mut self, step: Step) -> Result<(), VolumeError> {
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
                // No later process believes the map until another call has written it.
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
                while self.volume().merge_next_noting(&|_| true, self.note_every_bytes)? {}
                Ok(())
            }
            Step::Grow(blocks) => {
                let result = self.volume().grow(blocks * BLOCK_SIZE_BYTES);
                let found = self.volume().size_bytes() / SECTOR_BYTES;
                let asked = blocks * BLOCK_SIZE_BYTES / SECTOR_BYTES;
                assert!(result.is_err() || found == asked);
                self.model.grow(asked, found, result.is_ok());
                result
            }
            Step::Restart => self.restart(),
            Step::Kill => {
                self.volume = None;
                self.open(Recovery::Auto, false)?;
                self.decide();
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
        self.decide();
        closed
    }

    /// Leads a script that is cut off at some call, and repeats what was not done then; returns the number of
    /// calls. `reopen` opens the volume after a creation that was cut off; `come_back` after a step.
    pub fn lead(
        &mut self,
        life: &[Step],
        mut before: impl FnMut(&mut Self, Step),
        reopen: impl Fn(&mut Self) -> Result<(), VolumeError>,
        come_back: impl Fn(&mut Self),
    ) -> u64 {
        if self.create(BLOCKS).is_err() {
            // It was never answered, so there is nothing, or a part, or all of it.
            if reopen(self).is_err() {
                Volume::delete_files(&self.dir()).unwrap();
                self.create(BLOCKS).unwrap();
            }
            self.decide();
        }
        let mut calls = self.disk.operations().len() as u64;
        for &step in life {
            before(self, step);
            let failed = self.apply(step).is_err();
            if !self.disk.is_off() {
                assert!(!failed, "{step:?} failed by itself");
                calls = self.disk.operations().len() as u64;
                continue;
            }
            come_back(self);
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
        come_back(self);
        calls
    }

    /// Compares everything that can be read with the model.
    pub fn check(&mut self) {
        let volume = self.looked_at();
        self.disk.aside(|| self.model.check(&volume));
    }

    pub fn observe(&mut self) {
        let volume = self.looked_at();
        self.disk.aside(|| self.model.observe(&volume));
    }

    /// The volume was just opened.
    pub fn decide(&mut self) {
        if self.volume().failure().is_none() {
            let volume = self.looked_at();
            self.disk.aside(|| self.model.decide(&volume, self.was_cut));
            (self.lost_power, self.was_cut) = (false, false);
        }
    }

    /// Nothing lies in the folder that the volume does not need; it must have been opened since anything
    /// failed.
    pub fn check_for_leaks(&self) {
        let stats = self.volume().stats();
        let files = names_in(&self.dir());
        let count = |end: &str| files.iter().filter(|name| name.ends_with(end)).count() as u64;
        assert_eq!(count(".data"), stats.layers, "{files:?}");
        let logs = 1 + u64::from(self.volume().hydration().is_some());
        assert_eq!((count(".map"), count(".log")), (1, logs), "{files:?}");
        assert_eq!(
            count(".data")
                + count(".map")
                + count(".log")
                + count(".set")
                + count("volume.meta")
                + count("volume.discarded")
                + count("volume.merge"),
            files.len() as u64,
            "{files:?}"
        );
        assert_eq!(names_in(&self.disk_root()), ["v"]);
    }
}

pub fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Once a sync has failed, nothing is acknowledged any more.
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
