//! Simulation: 200 days of normal work raise no alarm; encryption in place is found by the next backup.
//!
//! A filesystem is modelled as a class of content for each block, files of extents, and a next-fit allocator.
//! Deletion frees blocks and keeps their content, as ext4 does without discard.

use blockd_anomaly::{
    Anomaly, AnomalyKind, BackupActivity, BlockClass, ContentProfile, Observation, Sample, detect,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex};
use jiff::{SignedDuration, Timestamp};
use std::ops::Range;

const MIB: u64 = 1 << 20;
/// Units of allocation and writes, in blocks: without optimisation, 200 days take seconds.
const UNIT_BLOCKS: u64 = 16;
const UNIT_BYTES: u64 = UNIT_BLOCKS * BLOCK_SIZE_BYTES;
/// Volume of 8 GiB, in units.
const UNITS: u64 = (8 << 30) / UNIT_BYTES;
/// Interval of the backups.
const INTERVAL_S: u64 = 6 * 3600;
/// Archives that are kept.
const MAX_ARCHIVES: usize = 8;
const BACKUPS_PER_DAY: u64 = 24 * 3600 / INTERVAL_S;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    System,
    Archive,
}

struct File {
    extents: Vec<Range<u64>>,
    content: BlockClass,
    purpose: Purpose,
}

impl File {
    fn len_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.end - extent.start).sum::<u64>() * UNIT_BYTES
    }
}

struct Model {
    content: Vec<BlockClass>,
    is_used: Vec<bool>,
    is_dirty: Vec<bool>,
    files: Vec<File>,
    cursor: u64,
    random: u64,
    profile: ContentProfile,
    history: Vec<BackupActivity>,
    now: Timestamp,
}

impl Model {
    fn new(seed: u64) -> Self {
        let all = UNITS as usize;
        let mut model = Self {
            content: vec![BlockClass::Zero; all],
            is_used: vec![false; all],
            is_dirty: vec![false; all],
            files: Vec::new(),
            cursor: 0,
            random: seed | 1,
            profile: ContentProfile::default(),
            history: Vec::new(),
            now: Timestamp::UNIX_EPOCH,
        };
        for _ in 0..3000 {
            let content =
                if model.below(8) == 0 { BlockClass::Incompressible } else { BlockClass::Compressible };
            let len = model.between(1, 44) * UNIT_BYTES;
            model.create(len, content, Purpose::System);
        }
        model.backup(true);
        model
    }

    /// Returns a pseudorandom number (xorshift64*).
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }

    fn between(&mut self, min: u64, max: u64) -> u64 {
        min + self.below(max - min)
    }

    fn write(&mut self, unit: u64, content: BlockClass) {
        self.content[unit as usize] = content;
        self.is_dirty[unit as usize] = true;
    }

    fn create(&mut self, len_bytes: u64, content: BlockClass, purpose: Purpose) -> usize {
        let (mut left, mut extents) = (len_bytes / UNIT_BYTES, Vec::new());
        // Next-fit from a random goal, as ext4 spreads directories over its groups.
        self.cursor = self.below(UNITS);
        let mut seen = 0;
        while left > 0 {
            assert!(seen < UNITS, "the filesystem is full");
            let start = self.cursor;
            while left > 0 && self.cursor < UNITS && !self.is_used[self.cursor as usize] {
                self.is_used[self.cursor as usize] = true;
                self.write(self.cursor, content);
                self.cursor += 1;
                left -= 1;
            }
            if self.cursor > start {
                extents.push(start..self.cursor);
            }
            seen += self.cursor - start + 1;
            self.cursor = (self.cursor + 1) % UNITS;
        }
        self.files.push(File { extents, content, purpose });
        self.files.len() - 1
    }

    fn delete(&mut self, file: usize) {
        for unit in self.files.swap_remove(file).extents.into_iter().flatten() {
            self.is_used[unit as usize] = false;
        }
    }

    /// Deletes random files of the system of about `len_bytes` in total; returns the deleted bytes.
    fn delete_some(&mut self, len_bytes: u64) -> u64 {
        let mut deleted = 0;
        while deleted < len_bytes {
            let file = self.below(self.files.len() as u64) as usize;
            if self.files[file].purpose == Purpose::System {
                deleted += self.files[file].len_bytes();
                self.delete(file);
            }
        }
        deleted
    }

    /// Overwrites compressible files in place with random bytes, for about `len_bytes`.
    fn encrypt(&mut self, len_bytes: u64) {
        let mut left = len_bytes / UNIT_BYTES;
        for file in 0..self.files.len() {
            if self.files[file].content != BlockClass::Compressible {
                continue;
            }
            for unit in self.files[file].extents.clone().into_iter().flatten() {
                if left == 0 {
                    return;
                }
                left -= 1;
                self.write(unit, BlockClass::Incompressible);
            }
            self.files[file].content = BlockClass::Incompressible;
        }
    }

    /// Writes `len_bytes` in single units to random compressible files.
    fn update_database(&mut self, len_bytes: u64) {
        for _ in 0..len_bytes / UNIT_BYTES {
            let file = self.below(self.files.len() as u64) as usize;
            let Some(extent) = self.files[file].extents.first().cloned() else { continue };
            let (content, unit) = (self.files[file].content, self.between(extent.start, extent.end));
            self.write(unit, content);
        }
    }

    /// Writes a dump, compresses it to `percent` of its size, and deletes the dump and old archives.
    fn compress(&mut self, len_bytes: u64, percent: u64) {
        let dump = self.create(len_bytes, BlockClass::Compressible, Purpose::System);
        self.create(len_bytes * percent / 100, BlockClass::Incompressible, Purpose::Archive);
        self.delete(dump);
        let is_archive = |file: &File| file.purpose == Purpose::Archive;
        let archives = self.files.iter().filter(|file| is_archive(file)).count();
        if let Some(old) = self.files.iter().position(is_archive).filter(|_| archives > MAX_ARCHIVES) {
            self.delete(old);
        }
    }

    fn work(&mut self, number: u64) {
        let (day, part) = (number / BACKUPS_PER_DAY, number % BACKUPS_PER_DAY);
        let changed = self.between(20, 200) * MIB;
        self.update_database(changed);
        if part == 0 {
            // Log rotation, and the nightly dump.
            self.compress(200 * MIB, 10);
            let dump = self.between(800, 1300) * MIB;
            self.compress(dump, 30);
        }
        if day % 7 == 6 && part == 0 {
            // Vacuum: the table is rewritten.
            let table = self.create(900 * MIB, BlockClass::Compressible, Purpose::System);
            self.delete(table);
        }
        if self.below(10 * BACKUPS_PER_DAY) == 0 {
            // Package upgrade.
            let total = self.between(200, 600) * MIB;
            let mut left = self.delete_some(total);
            while left > 0 {
                let content =
                    if self.below(7) == 0 { BlockClass::Incompressible } else { BlockClass::Compressible };
                let len = (self.between(1, 44) * UNIT_BYTES).min(left);
                self.create(len, content, Purpose::System);
                left -= len;
            }
        }
    }

    fn backup(&mut self, full: bool) -> Vec<Anomaly> {
        self.now += SignedDuration::from_secs(INTERVAL_S as i64);
        let sample = Sample::of_volume(UNITS * UNIT_BYTES);
        let (mut observation, mut dirty) = (Observation::new(sample), 0);
        for unit in 0..UNITS {
            let content = self.content[unit as usize];
            if !std::mem::take(&mut self.is_dirty[unit as usize]) || content == BlockClass::Zero {
                continue;
            }
            dirty += UNIT_BYTES;
            let blocks = (unit * UNIT_BLOCKS..(unit + 1) * UNIT_BLOCKS).map(BlockIndex);
            blocks
                .filter(|block| sample.contains(*block))
                .for_each(|block| observation.add_class(block, content));
        }
        let activity = BackupActivity {
            point_in_time: self.now,
            interval_s: if full { 0 } else { INTERVAL_S },
            dirty_bytes: dirty,
            turned_incompressible_bytes: observation.turned_incompressible_bytes(&self.profile),
            compressible_bytes: self.profile.compressible_bytes(sample),
            files_before: self.profile.files,
            files: Some(self.files.len() as u64),
            usual_at_any_time: false,
        };
        let found = detect(&self.history, &activity);
        self.profile.apply(&observation, []);
        self.profile.files = activity.files;
        self.history.push(activity);
        found
    }
}

fn kinds(found: &[Anomaly]) -> Vec<AnomalyKind> {
    found.iter().map(|anomaly| anomaly.kind).collect()
}

#[test]
fn normal_work_of_200_days_raises_no_alarm() {
    for seed in [1, 2, 3] {
        let mut model = Model::new(seed * 7919);
        for number in 0..200 * BACKUPS_PER_DAY {
            model.work(number);
            let found = model.backup(false);
            let last = model.history.last();
            assert_eq!(found, [], "seed {seed}, backup {number}: {last:?}");
        }
    }
}

#[test]
fn encryption_at_three_speeds_is_found_by_the_next_backup() {
    let mut model = Model::new(4711);
    let mut number = 0;
    for day in 0..20 {
        for _ in 0..BACKUPS_PER_DAY {
            model.work(number);
            number += 1;
            assert_eq!(model.backup(false), [], "day {day}");
        }
    }
    for (mib_per_min, minutes) in [(20, 15), (200, 10), (1000, 3)] {
        // Not at the time of the nightly dump.
        let work = number.next_multiple_of(BACKUPS_PER_DAY) + 2;
        (number..work).for_each(|number| {
            model.work(number);
            model.backup(false);
        });
        number = work + 1;
        model.work(work);
        model.encrypt(mib_per_min * minutes * MIB);
        let found = model.backup(false);
        assert!(
            kinds(&found).contains(&AnomalyKind::TurnedIncompressible),
            "{mib_per_min} MiB/min: {found:?} {:?}",
            model.history.last()
        );
    }
}

#[test]
fn mass_deletion_and_runaway_job_are_found() {
    let mut model = Model::new(99);
    for number in 0..20 * BACKUPS_PER_DAY {
        model.work(number);
        model.backup(false);
    }
    let files = model.files.len();
    (0..files * 2 / 3).for_each(|_| {
        let file = model.below(model.files.len() as u64) as usize;
        model.delete(file);
    });
    assert_eq!(kinds(&model.backup(false)), [AnomalyKind::MassDeletion]);
    model.create(3000 * MIB, BlockClass::Compressible, Purpose::System);
    assert_eq!(kinds(&model.backup(false)), [AnomalyKind::ChangeRate]);
}
