//! Scrubs and repairs of volumes with random histories: writes, snapshots, merges, clones and damage.

use crate::altered::{ID, snapshot, write};
use crate::sim::disk::Rng;
use crate::support::{merge_all, paths_in, volume_dir};
use blockd_extent::{BlockIndex, BlockSet, Epoch, VolumeId};
use blockd_volume::{ScrubPosition, Volume};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::Arc,
};

const BLOCKS: u64 = 16;
/// Content of the volume at the end of each epoch.
type History = BTreeMap<u64, [u8; BLOCKS as usize]>;
/// Blocks of layer files.
type Blocks = BTreeSet<(u64, u64)>;

struct Run {
    seed: u64,
    rng: Rng,
    root: tempfile::TempDir,
    volume: Arc<Volume>,
    clones: Vec<Arc<Volume>>,
    now: [u8; BLOCKS as usize],
    history: History,
}

/// Scrubs a volume and calls `between` after each step; returns the blocks found damaged.
fn scrub(volume: &Volume, mut between: impl FnMut()) -> Blocks {
    let (mut at, mut found) = (Some(ScrubPosition::START), Blocks::new());
    while let Some(from) = at {
        let step = volume.scrub_step(from).unwrap();
        for damage in step.found {
            found.extend(damage.blocks.blocks().map(|block| (damage.file.0, block.0)));
        }
        at = step.next;
        between();
    }
    found
}

/// Returns the frozen data files of a volume by their epoch.
fn frozen_files(dir: &Path) -> Vec<(u64, fs::File)> {
    let is_frozen = |path: &std::path::PathBuf| {
        path.extension().is_some_and(|end| end == "data") && !path.with_extension("map").exists()
    };
    let files = paths_in(dir).into_iter().filter(is_frozen);
    let opened = files.map(|path| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let epoch = u64::from_str_radix(name.strip_prefix("layer-").unwrap(), 16).unwrap();
        (epoch, fs::OpenOptions::new().read(true).write(true).open(path).unwrap())
    });
    opened.collect()
}

impl Run {
    fn new(seed: u64) -> Self {
        let (root, dir) = volume_dir();
        let volume = Volume::create(&dir, ID, BLOCKS * 4096).unwrap();
        let (now, history) = ([0; BLOCKS as usize], History::new());
        Self { seed, rng: Rng::fixed(seed), root, volume, clones: vec![], now, history }
    }

    fn delete_snapshot(&mut self) {
        let snapshots = self.volume.snapshots();
        if snapshots.len() > 1 {
            let at = self.rng.below(snapshots.len() as u64) as usize;
            self.volume.delete_snapshot(snapshots[at].id).unwrap();
        }
    }

    fn step(&mut self, number: u8) {
        for _ in 0..self.rng.below(6) {
            let block = self.rng.below(BLOCKS);
            self.now[block as usize] = number;
            write(&self.volume, block, number);
        }
        let epoch = self.volume.freeze(snapshot(number.into())).unwrap().epoch;
        self.history.insert(epoch.0, self.now);
        if self.rng.one_in(3) {
            self.delete_snapshot();
        }
        if self.rng.one_in(3) {
            let to = self.root.path().join(format!("clone-{number}"));
            let id = VolumeId::from_u64(100 + u64::from(number));
            self.clones.push(self.volume.clone_to(self.volume.snapshots()[0].id, &to, id).unwrap());
        }
        if self.rng.one_in(3) && !self.clones.is_empty() {
            let clone = self.clones.remove(0);
            let dir = clone.dir().to_owned();
            drop(clone);
            Volume::delete_files(&dir).unwrap();
        }
        if self.rng.one_in(2) {
            merge_all(&self.volume);
        }
    }

    /// Flips bits of random blocks of frozen layers; returns them with the inode numbers of the files.
    fn flip(&mut self) -> BTreeMap<(u64, u64), u64> {
        let mut flipped = BTreeMap::new();
        for (epoch, file) in frozen_files(self.volume.dir()) {
            for block in 0..BLOCKS {
                let mut byte = [0];
                let is_there = file.read_at(&mut byte, block * 4096 + 99).unwrap() == 1 && byte[0] != 0;
                if is_there && self.rng.one_in(3) {
                    file.write_at(&[byte[0] ^ 8], block * 4096 + 99).unwrap();
                    flipped.insert((epoch, block), file.metadata().unwrap().ino());
                }
            }
        }
        flipped
    }

    /// Offers the content of each epoch, also wrong content.
    fn repair(&mut self) {
        for damage in self.volume.damage() {
            for (&at, then) in &self.history {
                let blocks = self.volume.repairable(damage.file, Epoch(at)).unwrap();
                let content: Vec<_> =
                    blocks.blocks().map(|block| (block, [then[block.0 as usize]; 4096])).collect();
                let wrong: Vec<_> = content.iter().map(|(block, _)| (*block, &[251; 4096][..])).collect();
                let right: Vec<_> = content.iter().map(|(block, content)| (*block, &content[..])).collect();
                for (offered, is_right) in [(wrong, false), (right, true)] {
                    let done = self.volume.repair(damage.file, Epoch(at), &offered).unwrap();
                    let (all, none) = (blocks.clone(), BlockSet::new());
                    let expected = if is_right { (all, none) } else { (none, all) };
                    assert_eq!((done.blocks, done.mismatched), expected, "seed {}", self.seed);
                }
            }
        }
    }

    /// Reads all snapshots: each block has its content, or is on the list.
    fn check(&self) -> u64 {
        let is_listed =
            |block| self.volume.damage().iter().any(|damage| damage.blocks.contains(BlockIndex(block)));
        let mut failed = 0;
        for point in self.volume.snapshots().iter() {
            let view = self.volume.view(point.id).unwrap();
            for block in 0..BLOCKS {
                let mut found = [0; 4096];
                match view.read(block * 4096, &mut found) {
                    Ok(_) => assert_eq!(
                        found, [self.history[&point.epoch.0][block as usize]; 4096],
                        "seed {}",
                        self.seed
                    ),
                    Err(_) => {
                        assert!(is_listed(block), "seed {}, block {block}", self.seed);
                        failed += 1;
                    }
                }
            }
        }
        failed
    }
}

#[test]
fn random_damage_is_found_and_repaired_exactly() {
    let mut found = 0;
    for seed in 0..60 {
        let mut run = Run::new(seed);
        (1..=8).for_each(|number| run.step(number));
        // Layers are merged during the scrub.
        let volume = Arc::clone(&run.volume);
        let undamaged = scrub(&volume, || {
            if run.rng.one_in(2) {
                run.delete_snapshot();
                merge_all(&volume);
            }
        });
        assert_eq!(undamaged, Blocks::new(), "seed {seed}");
        for each in run.clones.iter().chain([&run.volume]) {
            assert_eq!(scrub(each, || {}), Blocks::new(), "seed {seed}");
        }
        let flipped = run.flip();
        let expected: Blocks = flipped.keys().copied().collect();
        assert_eq!(scrub(&run.volume, || {}), expected, "seed {seed}");
        found += expected.len();
        for clone in &run.clones {
            let files: BTreeSet<_> =
                frozen_files(clone.dir()).iter().map(|(_, file)| file.metadata().unwrap().ino()).collect();
            let shared = flipped.iter().filter(|(_, ino)| files.contains(ino)).map(|(block, _)| *block);
            assert_eq!(scrub(clone, || {}), shared.collect(), "seed {seed}: a clone has the same files");
        }
        run.repair();
        assert_eq!(run.check(), 0, "seed {seed}: the content of all epochs is offered");
        merge_all(&run.volume);
        run.check();
    }
    assert!(found > 300, "{found}");
}
