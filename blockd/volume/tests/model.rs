//! Comparison of a volume with its model: an array of bytes, with a copy for each snapshot.

mod checks;

use crate::support::paths_in;
use blockd_extent::{BLOCK_SIZE_BYTES, Epoch, Extent, SnapshotId, VolumeId};
use blockd_volume::{
    ClosedSnapshot, ClosedVolume, Content, OpenOptions, Recovery, SnapshotInfo, Volume, VolumeErrorKind,
};
use checks::*;
use proptest::prelude::*;
use std::{fs::File, path::PathBuf, sync::Arc};

/// Initial size.
const SIZE_BYTES: u64 = 3 << 20;
/// Maximum size.
const MAX_BYTES: u64 = 6 << 20;
const BLOCKS: u64 = SIZE_BYTES / BLOCK_SIZE_BYTES;

#[derive(Clone, Debug)]
enum Step {
    Write {
        at: u64,
        len: u64,
        fill: u8,
        fua: bool,
    },
    Trim {
        at: u64,
        len: u64,
    },
    Zero {
        at: u64,
        len: u64,
        no_hole: bool,
    },
    Flush,
    /// Grows the volume by this number of blocks, up to the maximum size.
    Grow(u64),
    Freeze,
    /// Deletes the snapshot with this number, modulo the number of snapshots.
    Delete(usize),
    Merge,
    /// Rolls back to the snapshot with this number, modulo the number of snapshots.
    RollBack(usize),
    CleanRestart,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    // Few positions, so that writes overlap; odd bytes and block boundaries.
    let at = prop_oneof![
        // Wraps at the end of the volume.
        0..MAX_BYTES,
        (0..5u64).prop_map(|b| SIZE_BYTES - 4096 + b * 2048),
        (0..40u64).prop_map(|b| b * 4096),
        (0..40u64).prop_map(|b| b * 4096 + 511)
    ];
    let len = prop_oneof![1..3000u64, Just(4096u64), 1..40_000u64, Just(1u64 << 20)];
    let range = (at, len);
    prop_oneof![
        8 => (range.clone(), 1..=255u8, prop::bool::weighted(0.1)).prop_map(|((at, len), fill, fua)| Step::Write { at, len, fill, fua }),
        2 => range.clone().prop_map(|(at, len)| Step::Trim { at, len }),
        2 => (range, any::<bool>()).prop_map(|((at, len), no_hole)| Step::Zero { at, len, no_hole }),
        1 => Just(Step::Flush),
        1 => (1..300u64).prop_map(Step::Grow),
        3 => Just(Step::Freeze),
        2 => any::<usize>().prop_map(Step::Delete),
        2 => Just(Step::Merge),
        1 => any::<usize>().prop_map(Step::RollBack),
        1 => Just(Step::CleanRestart),
        1 => Just(Step::Kill),
    ]
}

struct FrozenModel {
    id: SnapshotId,
    epoch: Epoch,
    content: Vec<u8>,
    /// Blocks at the freeze.
    blocks: Vec<Block>,
    /// Blocks of the volume dirtied since.
    dirty: Vec<bool>,
    /// Blocks dirtied between this snapshot and newer ones.
    dirty_until: Vec<(SnapshotId, Vec<bool>)>,
}

/// Expected state of a block.
#[derive(Clone, Copy, Default)]
struct Block {
    has_data: bool,
    /// It was zeroed with its space kept, since the last freeze and restart.
    kept: bool,
    /// The head holds it.
    in_head: bool,
    /// Identifies its data on the disk: copies of a block have different versions.
    version: u64,
}

struct ModelRun {
    dir: PathBuf,
    volume: Arc<Volume>,
    model: Vec<u8>,
    blocks: Vec<Block>,
    snapshots: Vec<FrozenModel>,
    /// Contents at all freezes, including deleted snapshots.
    history: Vec<(Epoch, Vec<u8>)>,
    next_id: u64,
    last_version: u64,
}

/// Returns the bytes of the blocks inside a range.
fn trimmed(at: u64, len: u64) -> std::ops::Range<usize> {
    let inside = Extent::inside(at, len);
    inside.offset_bytes() as usize..(inside.offset_bytes() + inside.len_bytes()) as usize
}

impl ModelRun {
    fn new(dir: PathBuf) -> Self {
        let volume = Volume::create(&dir, VolumeId::from_u64(42), SIZE_BYTES).unwrap();
        Self {
            dir,
            volume,
            model: vec![0; SIZE_BYTES as usize],
            blocks: vec![Block::default(); BLOCKS as usize],
            snapshots: vec![],
            history: vec![],
            next_id: 1,
            last_version: 0,
        }
    }

    fn size(&self) -> u64 {
        self.model.len() as u64
    }

    fn inside(&self, at: u64, len: u64) -> (u64, u64) {
        let at = at % self.size();
        (at, len.min(self.size() - at))
    }

    fn touch(&mut self, blocks: Extent, change: impl Fn(&mut Block)) {
        for block in blocks.start.0 as usize..blocks.end().0 as usize {
            change(&mut self.blocks[block]);
            if self.blocks[block].in_head {
                for snapshot in &mut self.snapshots {
                    snapshot.dirty[block] = true;
                }
            }
        }
    }

    fn touch_written(&mut self, at: u64, len: u64) {
        self.last_version += 1;
        let version = self.last_version;
        self.touch(Extent::touching(at, len), |block| {
            *block = Block { has_data: true, kept: false, in_head: true, version };
        });
    }

    fn touch_zeroed(&mut self, at: u64, len: u64, kept: bool) {
        self.touch(Extent::inside(at, len), |block| {
            let in_head = block.in_head || block.has_data;
            *block = Block { has_data: false, kept, in_head, version: 0 };
        });
    }

    /// Replaces the head by an empty one.
    fn new_head(&mut self) {
        for block in &mut self.blocks {
            *block = Block { has_data: block.has_data, version: block.version, ..Block::default() };
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Write { at, len, fill, fua } => {
                let (at, len) = self.inside(at, len);
                self.touch_written(at, len);
                let data: Vec<u8> = (0..len).map(|i| fill.wrapping_add(i as u8) | 1).collect();
                let done = !fua && self.volume.try_write(at, &data).unwrap();
                if !done {
                    self.volume.write(at, &data, fua).unwrap();
                }
                self.model[at as usize..(at + len) as usize].copy_from_slice(&data);
            }
            Step::Trim { at, len } => {
                let (at, len) = self.inside(at, len);
                self.touch_zeroed(at, len, false);
                self.volume.trim(at, len, false).unwrap();
                self.model[trimmed(at, len)].fill(0);
            }
            Step::Zero { at, len, no_hole } => self.zero(at, len, no_hole),
            Step::Flush => self.volume.flush().unwrap(),
            Step::Grow(blocks) => self.grow(blocks),
            Step::Freeze => self.freeze(),
            Step::Delete(number) => {
                if !self.snapshots.is_empty() {
                    let deleted = self.snapshots.remove(number % self.snapshots.len());
                    self.volume.delete_snapshot(deleted.id).unwrap();
                }
            }
            Step::Merge => {
                self.volume.merge_next(&|_| true).unwrap();
            }
            Step::RollBack(number) => self.roll_back(number),
            Step::CleanRestart => {
                let dirty = self.volume.stats().head_dirty_bytes;
                self.volume.close().unwrap();
                assert_eq!(self.volume.write(0, b"x", false).unwrap_err().kind(), VolumeErrorKind::Closed);
                self.reopen(Recovery::Auto);
                assert_eq!(self.volume.stats().head_dirty_bytes, dirty);
            }
            // A drop without a close leaves the same files as a process crash.
            Step::Kill => {
                let dirty = self.volume.stats().head_dirty_bytes;
                self.reopen(Recovery::Auto);
                assert_eq!(self.volume.stats().head_dirty_bytes, dirty);
            }
        }
    }

    fn zero(&mut self, at: u64, len: u64, no_hole: bool) {
        let (at, len) = self.inside(at, len);
        self.touch_zeroed(at, len, no_hole);
        let end = at + len;
        for edge in [at, end] {
            let block = edge / 4096 * 4096;
            if !edge.is_multiple_of(4096) {
                self.touch_written(block, 4096);
            }
        }
        if !no_hole || self.volume.write_zeroes_fast(at, len, no_hole, false).is_err() {
            self.volume.write_zeroes(at, len, no_hole, false).unwrap();
        }
        self.model[at as usize..(at + len) as usize].fill(0);
    }

    fn grow(&mut self, blocks: u64) {
        let new = self.size() + blocks * BLOCK_SIZE_BYTES;
        assert_eq!(self.volume.grow(self.size()).ok(), Some(()), "growth to the same size");
        let error = self.volume.grow(self.size() - BLOCK_SIZE_BYTES).unwrap_err();
        assert_eq!(error.kind(), VolumeErrorKind::InvalidInput);
        if new <= MAX_BYTES {
            self.volume.grow(new).unwrap();
            self.new_head();
            self.model.resize(new as usize, 0);
            self.blocks.resize((new / BLOCK_SIZE_BYTES) as usize, Block::default());
            for snapshot in &mut self.snapshots {
                snapshot.dirty.resize(self.blocks.len(), false);
            }
        }
    }

    fn freeze(&mut self) {
        let id = SnapshotId::from_u64(self.next_id);
        self.next_id += 1;
        let frozen = self.volume.freeze(id).unwrap();
        for older in &mut self.snapshots {
            older.dirty_until.push((id, older.dirty.clone()));
        }
        self.snapshots.push(FrozenModel {
            id,
            epoch: frozen.epoch,
            content: self.model.clone(),
            blocks: self.blocks.iter().map(|block| Block { kept: false, ..*block }).collect(),
            dirty: vec![false; self.blocks.len()],
            dirty_until: vec![],
        });
        self.new_head();
        self.history.push((frozen.epoch, self.model.clone()));
    }

    fn roll_back(&mut self, number: usize) {
        let Some(number) = number.checked_rem(self.snapshots.len()) else { return };
        let snapshot = &self.snapshots[number];
        let done = self.volume.roll_back(snapshot.id, &|| true).unwrap();
        let changed = snapshot.dirty.clone();
        self.last_version += 1;
        for block in (0..changed.len()).filter(|&block| changed[block]) {
            let range = block * 4096..(block + 1) * 4096;
            let was = snapshot.blocks.get(block).copied().unwrap_or_default();
            match was.has_data {
                true => self.model[range.clone()].copy_from_slice(&snapshot.content[range]),
                false => self.model[range].fill(0),
            }
            // The rollback copies the data.
            let version = if was.has_data { self.last_version } else { 0 };
            self.blocks[block] = Block { version, ..was };
        }
        let has_data = |block: &usize| snapshot.blocks.get(*block).is_some_and(|block| block.has_data);
        let blocks = || (0..changed.len()).filter(|&block| changed[block]);
        assert_eq!(done.changed_blocks, blocks().count() as u64);
        assert_eq!(done.copied_blocks, blocks().filter(has_data).count() as u64);
        let frozen = &snapshot.content;
        assert_eq!(first_difference(&self.model, frozen), None, "the model differs from the snapshot");
        assert!(self.model[frozen.len()..].iter().all(|&byte| byte == 0));
        // The restored blocks are dirty relative to each snapshot.
        for snapshot in &mut self.snapshots {
            for (dirty, _) in snapshot.dirty.iter_mut().zip(&changed).filter(|pair| *pair.1) {
                *dirty = true;
            }
        }
        self.new_head();
        self.history.push((done.epoch, self.model.clone()));
    }

    /// Checks the space of each snapshot, block by block.
    fn check_space(&self) {
        let found = self.volume.snapshot_space();
        assert_eq!(found.len(), self.snapshots.len());
        for (space, snapshot) in found.iter().zip(&self.snapshots) {
            assert_eq!(space.id, snapshot.id, "snapshots out of order");
            let others = || self.snapshots.iter().filter(|other| other.id != snapshot.id);
            let is_shared = |at: usize, version| {
                let has = |blocks: &[Block]| {
                    blocks.get(at).is_some_and(|block| block.has_data && block.version == version)
                };
                has(&self.blocks) || others().any(|other| has(&other.blocks))
            };
            let (mut exclusive, mut shared) = (0, 0);
            for (at, block) in snapshot.blocks.iter().enumerate().filter(|pair| pair.1.has_data) {
                match is_shared(at, block.version) {
                    true => shared += BLOCK_SIZE_BYTES,
                    false => exclusive += BLOCK_SIZE_BYTES,
                }
            }
            let bytes = (space.exclusive_bytes, space.shared_bytes);
            assert_eq!(bytes, (exclusive, shared), "exclusive and shared bytes of {}", snapshot.id);
        }
    }

    /// Checks the differences between any two snapshots, and to the volume, block by block.
    fn check_differences(&self) {
        for (number, from) in self.snapshots.iter().enumerate() {
            let now = self.volume.difference(from.id, None).unwrap();
            check_difference(&now, &from.dirty, &self.blocks);
            assert_eq!((now.from_size_bytes, now.to_size_bytes), (from.content.len() as u64, self.size()));
            for to in &self.snapshots[number + 1..] {
                let then = from.dirty_until.iter().find(|point| point.0 == to.id).unwrap();
                let found = self.volume.difference(from.id, Some(to.id)).unwrap();
                check_difference(&found, &then.1, &to.blocks);
                let error = self.volume.difference(to.id, Some(from.id)).unwrap_err();
                assert_eq!(error.kind(), VolumeErrorKind::InvalidInput, "{error}");
            }
        }
    }

    fn reopen(&mut self, recovery: Recovery) {
        let options = OpenOptions { recovery, ..OpenOptions::default() };
        let closed = ClosedVolume::read(&self.dir, &options).unwrap();
        let of_meta = |found: &ClosedSnapshot| (found.id, found.epoch, found.size_bytes);
        let of_volume = |found: SnapshotInfo| (found.id, found.epoch, found.size_bytes);
        // A check opens and closes a volume before its first use.
        let checked = closed.open().unwrap();
        let stats = checked.stats();
        checked.close().unwrap();
        drop(checked);
        self.volume = closed.open().unwrap();
        let mut snapshots: Vec<_> = closed.snapshots().iter().map(of_meta).collect();
        snapshots.sort_unstable_by_key(|found| found.1);
        assert_eq!(snapshots, self.volume.snapshots().into_iter().map(of_volume).collect::<Vec<_>>());
        assert_eq!(closed.size_bytes(), self.volume.size_bytes());
        assert!(closed.may_merge() || stats.merge.layers == 0, "a closed volume knows its merges");
        assert_eq!(stats.head_dirty_bytes, self.volume.stats().head_dirty_bytes);
        self.last_version += 1;
        let file = File::open(self.head_file()).unwrap();
        for (number, block) in self.blocks.iter_mut().enumerate() {
            // A start detects zeroes of the head by the holes of its data file.
            if block.in_head && !block.has_data && !is_hole(&file, number as u64) {
                (block.has_data, block.version) = (true, self.last_version);
            }
            block.kept = false;
        }
    }

    /// Returns the data file of the newest layer.
    fn head_file(&self) -> PathBuf {
        let is_data = |path: &PathBuf| path.extension().is_some_and(|end| end == "data");
        paths_in(&self.dir).into_iter().rfind(is_data).unwrap()
    }

    fn check(&self) {
        assert_eq!(self.volume.size_bytes(), self.size());
        let mut found = vec![0xee; self.model.len()];
        self.volume.read(0, &mut found).unwrap();
        assert!(
            found == self.model,
            "the volume differs at byte {:?}",
            first_difference(&found, &self.model)
        );
        if self.volume.try_read_or_zeroes(1000, &mut found[..5000]).unwrap() == Some(Content::Data) {
            assert!(found[..5000] == self.model[1000..6000]);
        }
        check_reads(&self.model, &self.blocks, |at, buf| self.volume.read_or_zeroes(at, buf));
        check_extents(&self.blocks, |at, len, max| allocation(self.volume.allocation(at, len, max)));
        for snapshot in &self.snapshots {
            let view = self.volume.view(snapshot.id).unwrap();
            assert_eq!(view.size_bytes(), snapshot.content.len() as u64);
            let blocks = view.size_bytes() / BLOCK_SIZE_BYTES;
            let extents: Vec<Extent> = (0..blocks)
                .step_by(7)
                .map(|b| Extent::new(blockd_extent::BlockIndex(b), 7.min(blocks - b)))
                .collect();
            found.resize(snapshot.content.len(), 0);
            view.read_extents(&extents, &mut found).unwrap();
            assert!(found == snapshot.content, "snapshot {} differs", snapshot.id);
            check_reads(&snapshot.content, &snapshot.blocks, |at, buf| view.read(at, buf));
            if let Some(content) = view.try_read(500, &mut found[..10_000]).unwrap() {
                if content == Content::Zeroes {
                    found[..10_000].fill(0);
                }
                assert!(found[..10_000] == snapshot.content[500..10_500]);
            }
            assert!(view.read(view.size_bytes() - 1, &mut [0; 2]).is_err());
            check_extents(&snapshot.blocks, |at, len, max| allocation(view.allocation(at, len, max)));
            check_extents(&snapshot.dirty, |at, len, max| {
                dirty(self.volume.dirty_since(snapshot.id, at, len, max))
            });
            for (newer, then) in &snapshot.dirty_until {
                if let Ok(view) = self.volume.view(*newer) {
                    check_extents(then, |at, len, max| dirty(view.dirty_since(snapshot.id, at, len, max)));
                    assert!(view.dirty_since(SnapshotId::from_u64(u64::MAX), 0, 1, 1).is_err());
                }
            }
            let full = self.volume.changes(None, snapshot.epoch).unwrap();
            assert!(full.zero.is_empty());
            assert_covers(&vec![0; SIZE_BYTES as usize], &snapshot.content, &full.data, &full.zero);
        }
        self.check_space();
        self.check_differences();
        for pair in self.history.windows(2) {
            let changes = self.volume.changes(Some(pair[0].0), pair[1].0).unwrap();
            assert_covers(&pair[0].1, &pair[1].1, &changes.data, &changes.zero);
        }
        if let (Some(first), Some(last)) = (self.history.first(), self.history.last())
            && first.0 < last.0
        {
            let changes = self.volume.changes(Some(first.0), last.0).unwrap();
            assert_covers(&first.1, &last.1, &changes.data, &changes.zero);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 400, ..ProptestConfig::default() })]
    #[test]
    fn volume_behaves_as_byte_array(steps in prop::collection::vec(step(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut run = ModelRun::new(dir.path().join("v"));
        for step in &steps {
            run.apply(step);
        }
        run.check();
        run.reopen(Recovery::Auto);
        run.check();
    }

    /// A flushed block keeps its content; an unflushed one has its old or its new content. The page cache
    /// keeps all writes: `power.rs` loses unsynced ones.
    #[test]
    fn start_after_power_loss_keeps_logged_blocks(
        before in prop::collection::vec(step(), 1..15),
        after in prop::collection::vec((0..60u64, 1..=255u8), 1..20),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut run = ModelRun::new(dir.path().join("v"));
        for step in &before {
            run.apply(step);
        }
        run.volume.flush().unwrap();
        let flushed = run.model.clone();
        for &(block, fill) in &after {
            run.apply(&Step::Write { at: block * 4096, len: 4096, fill, fua: false });
        }
        run.reopen(Recovery::AfterPowerLoss);
        let mut found = vec![0; run.model.len()];
        prop_assert_eq!(run.volume.size_bytes(), run.size());
        run.volume.read(0, &mut found).unwrap();
        for block in 0..run.blocks.len() {
            let range = block * 4096..(block + 1) * 4096;
            let unflushed = after.iter().any(|&(at, _)| at as usize == block);
            let old = found[range.clone()] == flushed[range.clone()];
            let new = found[range.clone()] == run.model[range];
            prop_assert!(old || (unflushed && new), "block {} is neither old nor new", block);
        }
    }
}
