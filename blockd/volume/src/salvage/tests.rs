//! Property tests of random volumes with random damage: returned content is correct, and refused content was
//! damaged or is unknown.

use super::*;
use crate::{
    FetchReply, LazySource, OpenOptions, SourceError, Urgency, Volume, head::log::HeadLog,
    head::volume_dir::Identity, io::files, layer::stack::Layer,
};
use blockd_extent::BLOCK_SIZE_BYTES;
use blockd_extent::BlockIndex;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions as How},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
};

mod damage;

use damage::*;

const BLOCKS: u64 = 40;
const MAX_BLOCKS: u64 = 60;
const BLOCK: usize = BLOCK_SIZE_BYTES as usize;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Zero(u64, u64),
    Flush,
    Freeze,
    Delete(usize),
    Merge,
    Grow(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let run = || (0..MAX_BLOCKS, 1..9u64);
    prop_oneof![
        8 => (run(), 1..=255u8).prop_map(|((at, len), fill)| Step::Write(at, len, fill)),
        2 => run().prop_map(|(at, len)| Step::Zero(at, len)),
        2 => Just(Step::Flush),
        3 => Just(Step::Freeze),
        1 => any::<usize>().prop_map(Step::Delete),
        1 => Just(Step::Merge),
        1 => (1..8u64).prop_map(Step::Grow),
        1 => Just(Step::Reopen),
    ]
}

/// One byte stands for the content of each block.
struct Model {
    dir: PathBuf,
    volume: Arc<Volume>,
    now: Vec<u8>,
    snapshots: Vec<(SnapshotId, Vec<u8>)>,
    next: u64,
}

impl Model {
    fn new(dir: PathBuf) -> Self {
        let size_bytes = BLOCKS * BLOCK_SIZE_BYTES;
        let volume = Volume::create(&dir, VolumeId::from_u64(7), size_bytes).unwrap();
        Self { dir, volume, now: vec![0; BLOCKS as usize], snapshots: vec![], next: 1 }
    }

    fn take(&mut self, step: &Step) {
        let run = |at: u64, len: u64| {
            let at = at % self.now.len() as u64;
            at as usize..(at + len).min(self.now.len() as u64) as usize
        };
        match *step {
            Step::Write(at, len, fill) => {
                let range = run(at, len);
                let data = vec![fill; range.len() * BLOCK];
                self.volume.write(range.start as u64 * BLOCK_SIZE_BYTES, &data, false).unwrap();
                self.now[range].fill(fill);
            }
            Step::Zero(at, len) => {
                let range = run(at, len);
                let len_bytes = (range.len() * BLOCK) as u64;
                let offset_bytes = range.start as u64 * BLOCK_SIZE_BYTES;
                self.volume.write_zeroes(offset_bytes, len_bytes, false, false).unwrap();
                self.now[range].fill(0);
            }
            Step::Flush => self.volume.flush().unwrap(),
            Step::Freeze => {
                let id = SnapshotId::from_u64(self.next);
                self.next += 1;
                self.volume.freeze(id).unwrap();
                self.snapshots.push((id, self.now.clone()));
            }
            Step::Delete(nth) if !self.snapshots.is_empty() => {
                let (id, _) = self.snapshots.remove(nth % self.snapshots.len());
                self.volume.delete_snapshot(id).unwrap();
            }
            Step::Delete(_) => {}
            Step::Merge => while self.volume.merge_next(&|_| true).unwrap() {},
            Step::Grow(more) => {
                let blocks = (self.now.len() as u64 + more).min(MAX_BLOCKS);
                if blocks > self.now.len() as u64 {
                    self.volume.grow(blocks * BLOCK_SIZE_BYTES).unwrap();
                    self.now.resize(blocks as usize, 0);
                }
            }
            Step::Reopen => {
                self.volume.close().unwrap();
                self.volume = Volume::open(&self.dir, &OpenOptions::default()).unwrap();
            }
        }
    }
}

/// Layer before the damage, with the applied damage.
struct Truth {
    epoch: Epoch,
    blocks: u64,
    set: LayerSet,
    open: bool,
    /// Start of the lost data.
    data_until_bytes: u64,
    /// True if the damage makes its blocks unknown.
    is_unknown: bool,
    /// Blocks of an open layer's log; all blocks of a frozen one.
    proven: BlockSet,
    data: PathBuf,
    /// Block set file, or log and map.
    tracking: Vec<PathBuf>,
}

fn truth(volume: &Volume) -> Vec<Truth> {
    let meta = Meta::load(&volume.dir).unwrap();
    let of = |(layer, entry): (&Layer, &crate::meta::LayerEntry)| Truth {
        epoch: layer.epoch(),
        blocks: layer.size_bytes() / BLOCK_SIZE_BYTES,
        set: layer.set().into_owned(),
        proven: layer.set().into_owned().held,
        open: entry.open,
        data_until_bytes: u64::MAX,
        is_unknown: false,
        data: files::data_path(&volume.dir, entry.file),
        tracking: match entry.open {
            true => vec![files::log_path(&volume.dir, entry.file), files::map_path(&volume.dir, entry.file)],
            false => vec![files::set_path(&volume.dir, entry.file, entry.generation)],
        },
    };
    volume.current().layers().iter().zip(&meta.layers).map(of).collect()
}

/// Damages a layer's data.
fn damage_data(layer: &mut Truth, damage: Damage) {
    match damage {
        Damage::Remove => {
            fs::remove_file(&layer.data).unwrap();
            layer.data_until_bytes = 0;
        }
        Damage::Cut(part) | Damage::Flip(part) | Damage::FlipTwo(part) => {
            // Data has no checksums: flipped bits are not detected, so truncate instead.
            layer.data_until_bytes = at_part(&layer.data, part);
            cut(&layer.data, layer.data_until_bytes);
        }
    }
}

/// Damages a frozen layer's block set, or an open one's log and map.
fn damage_tracking(layer: &mut Truth, damage: Damage, map_damage: Option<Damage>, is_power_loss: bool) {
    let path = layer.tracking[0].clone();
    if !layer.open {
        layer.is_unknown = match damage {
            Damage::Remove => fs::remove_file(&path).is_ok(),
            Damage::Cut(part) => {
                cut(&path, at_part(&path, part));
                true
            }
            // One flipped bit is corrected.
            Damage::Flip(_) | Damage::FlipTwo(_) => flip_some(&path, damage) > 1,
        };
        return;
    }
    let log_is_damaged = map_damage.is_none() || !matches!(damage, Damage::FlipTwo(_));
    // Preallocated zeroes only mark the end of the log.
    let used = fs::read(&path).unwrap().iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1;
    match damage {
        // Damages only the map.
        _ if !log_is_damaged => {}
        Damage::Remove => fs::remove_file(&path).unwrap(),
        Damage::Cut(part) => cut(&path, used * part / 1000),
        Damage::Flip(part) => flip(&path, &[used * part / 1000 * 8 + 1]),
        Damage::FlipTwo(part) => flip(&path, &[used * part / 1000 * 8 + 1, used * part / 1000 * 8 + 6]),
    }
    let map = layer.tracking[1].clone();
    match map_damage {
        Some(Damage::Remove) => fs::remove_file(&map).unwrap(),
        Some(Damage::Cut(part)) => cut(&map, at_part(&map, part)),
        // Up to the mount number.
        Some(Damage::Flip(part)) => flip(&map, &[80 * part / 1000 * 8 + part % 8]),
        Some(Damage::FlipTwo(part)) => flip(&map, &[80 * part / 1000 * 8, 80 * part / 1000 * 8 + 3]),
        None => {}
    }
    if log_is_damaged {
        layer.proven = BlockSet::new();
    }
    // After a power cut only the log is used; otherwise a trusted map determines the held blocks.
    layer.is_unknown = if is_power_loss { log_is_damaged } else { map_damage.is_some() };
}

/// Returns names and content of all files of a directory.
fn content_of(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    names.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Returns true if a block may be refused at a point.
fn may_be_refused(layers: &[Truth], until: Option<Epoch>, block: u64) -> bool {
    for layer in layers.iter().filter(|layer| until.is_none_or(|until| layer.epoch <= until)) {
        if layer.set.held.contains(BlockIndex(block)) {
            let is_lost = (block + 1) * BLOCK_SIZE_BYTES > layer.data_until_bytes;
            let is_zero = !layer.open && layer.set.zero.contains(BlockIndex(block));
            let is_unflushed = !layer.proven.contains(BlockIndex(block));
            return layer.is_unknown || is_unflushed || is_lost && !is_zero;
        }
        if layer.is_unknown && block < layer.blocks {
            return true;
        }
    }
    false
}

fn check(view: &SalvageView, expected: &[u8], may_be_refused: impl Fn(u64) -> bool) {
    assert_eq!(view.size_bytes(), (expected.len() * BLOCK) as u64);
    let whole = Extent::whole(view.size_bytes());
    let named = BlockSet::from_iter(view.unproven_in(whole).map(|run| run.extent));
    let mut refused = 0;
    for (block, &fill) in (0u64..).zip(expected) {
        let mut found = [0; BLOCK];
        match view.read(block * BLOCK_SIZE_BYTES, &mut found) {
            Ok(_) => {
                assert!(found == [fill; BLOCK], "block {block} is {} and not {fill}", found[0]);
                assert!(!named.contains(BlockIndex(block)), "block {block} is readable and refused");
            }
            Err(error) => {
                assert!(matches!(error, VolumeError::Unproven { .. }), "block {block}: {error}");
                assert!(may_be_refused(block), "block {block} is refused and undamaged: {error}");
                assert!(named.contains(BlockIndex(block)), "block {block} is refused and not listed");
                refused += BLOCK_SIZE_BYTES;
            }
        }
    }
    assert_eq!(view.unproven_bytes(), refused);
    assert_eq!(named.len_bytes(), refused);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn salvage_serves_correct_content_or_an_error(
        steps in prop::collection::vec(step(), 1..40),
        is_flushed in any::<bool>(),
        is_closed in any::<bool>(),
        is_power_loss in any::<bool>(),
        damages in prop::collection::vec((any::<usize>(), any::<bool>(), damage(), prop::option::of(damage())), 0..4),
        meta_damage in prop::option::weighted(0.1, damage()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut model = Model::new(dir.path().join("v"));
        for step in &steps {
            model.take(step);
        }
        // Without a flush, old or new data would be correct after a power cut.
        if is_flushed || is_power_loss {
            model.volume.flush().unwrap();
        }
        let mut layers = truth(&model.volume);
        if is_closed {
            model.volume.close().unwrap();
        }
        let Model { dir, now, snapshots, volume, .. } = model;
        let identity = |layer: &Truth| Identity { volume: volume.id(), epoch: layer.epoch, blocks: layer.blocks };
        for layer in layers.iter_mut().filter(|layer| layer.open) {
            layer.proven = HeadLog::inspect(&layer.tracking[0], identity(layer)).unwrap().named;
            prop_assert!(layer.proven == layer.set.held || !(is_flushed || is_closed || is_power_loss));
        }
        drop(volume);
        let mut damaged = Vec::new();
        for (nth, is_data, damage, map_damage) in damages {
            let nth = nth % layers.len();
            if damaged.contains(&(nth, is_data)) {
                continue;
            }
            damaged.push((nth, is_data));
            match is_data {
                true => damage_data(&mut layers[nth], damage),
                false => damage_tracking(&mut layers[nth], damage, map_damage, is_power_loss),
            }
        }
        let path = dir.join(files::META);
        let is_lost = match meta_damage {
            None => false,
            Some(Damage::Remove) => fs::remove_file(&path).is_ok(),
            Some(Damage::Cut(part)) => {
                cut(&path, at_part(&path, part));
                true
            }
            Some(damage) => flip_some(&path, damage) > 1,
        };
        let before = content_of(&dir);
        let recovery = if is_power_loss { Recovery::AfterPowerLoss } else { Recovery::Auto };
        match Salvage::open(&dir, &OpenOptions { recovery, ..OpenOptions::default() }) {
            Err(error) => prop_assert!(is_lost, "{error}"),
            Ok(salvage) => {
                prop_assert!(!is_lost, "volume.meta is damaged");
                prop_assert_eq!(salvage.snapshots().len(), snapshots.len());
                check(&salvage.latest(), &now, |block| may_be_refused(&layers, None, block));
                for (id, expected) in &snapshots {
                    let epoch = salvage.snapshots().iter().find(|info| info.id == *id).unwrap().epoch;
                    let view = salvage.snapshot(*id).unwrap();
                    check(&view, expected, |block| may_be_refused(&layers, Some(epoch), block));
                }
            }
        }
        prop_assert!(content_of(&dir) == before, "salvage changed a file");
    }
}

/// Source whose blocks contain their number plus one.
struct Numbers;

impl LazySource for Numbers {
    fn fetch(&self, extent: Extent, _: Urgency, reply: FetchReply) {
        let blocks = extent.start.0..extent.end().0;
        reply.complete(Ok(blocks.flat_map(|block| [block as u8 + 1; BLOCK]).collect()));
    }

    fn data_blocks(&self, extent: Extent) -> Result<BlockSet, SourceError> {
        Ok(BlockSet::from_iter([extent]))
    }
}

#[test]
fn lazy_volume_salvage_shows_fetched_and_written_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("v");
    let id = VolumeId::from_u64(7);
    let volume = Volume::create_lazy(&dir, id, BLOCKS * BLOCK_SIZE_BYTES, Arc::new(Numbers)).unwrap();
    volume.read(3 * BLOCK_SIZE_BYTES, &mut [0; BLOCK]).unwrap();
    volume.write(20 * BLOCK_SIZE_BYTES, &[99; BLOCK], false).unwrap();
    volume.sync_hydration().unwrap();
    volume.flush().unwrap();
    let present = volume.current().layers().last().unwrap().set().held.clone();
    assert!(present.contains(BlockIndex(3)));
    volume.close().unwrap();
    drop(volume);
    let mut expected: Vec<u8> = (1..=BLOCKS as u8).collect();
    expected[20] = 99;
    let is_missing = |block| block != 20 && !present.contains(BlockIndex(block));
    let salvage = Salvage::open(&dir, &OpenOptions::default()).unwrap();
    check(&salvage.latest(), &expected, is_missing);
    let why = salvage.findings();
    assert!(is_missing(BLOCKS - 1) != why.is_empty(), "{why:?}");
    // The log of the base determines the present blocks.
    fs::remove_file(files::log_path(&dir, salvage.layers.last().unwrap().layer.file)).unwrap();
    check(&Salvage::open(&dir, &OpenOptions::default()).unwrap().latest(), &expected, |block| block != 20);
}

/// Creates a volume whose head holds flushed blocks 0 to 3 and unflushed blocks 4 and 5, above a snapshot
/// with other content.
fn partly_flushed(dir: &Path) -> PathBuf {
    let mut model = Model::new(dir.join("v"));
    let steps = [
        Step::Write(0, BLOCKS, 1),
        Step::Freeze,
        Step::Write(0, 2, 2),
        Step::Flush,
        Step::Write(2, 2, 2),
        Step::Flush,
        Step::Write(4, 1, 2),
        Step::Zero(5, 1),
    ];
    steps.iter().for_each(|step| model.take(step));
    model.dir
}

/// Returns the refused blocks and the findings; checks the returned content.
fn refused(dir: &Path, recovery: Recovery, expected: &[u8]) -> (Vec<u64>, String) {
    let salvage = Salvage::open(dir, &OpenOptions { recovery, ..OpenOptions::default() }).unwrap();
    let view = salvage.latest();
    check(&view, expected, |_| true);
    let blocks = view
        .unproven_in(Extent::whole(view.size_bytes()))
        .flat_map(|run| (run.extent.start.0..run.extent.end().0).collect::<Vec<_>>());
    (blocks.collect(), salvage.findings().join("; "))
}

fn now(unflushed: [u8; 2]) -> Vec<u8> {
    let mut all = vec![1; BLOCKS as usize];
    all[..4].fill(2);
    all[4..6].copy_from_slice(&unflushed);
    all
}

#[test]
fn unflushed_blocks_are_unproven() {
    let dir = tempfile::tempdir().unwrap();
    let dir = partly_flushed(dir.path());
    let (blocks, why) = refused(&dir, Recovery::Auto, &now([2, 0]));
    assert_eq!(blocks, [4, 5]);
    assert!(why.contains("unproven"), "{why}");
    // After a declared power cut only flushed data is returned.
    assert_eq!(refused(&dir, Recovery::AfterPowerLoss, &now([1, 1])), (vec![], String::new()));
    // Without the map, further blocks of the head are unknown.
    let head = Meta::load(&dir).unwrap().layers[0].file;
    fs::remove_file(files::map_path(&dir, head)).unwrap();
    let (blocks, why) = refused(&dir, Recovery::Auto, &now([2, 0]));
    assert_eq!((blocks, why.contains(".map")), ((4..BLOCKS).collect(), true), "{why}");
}

#[test]
fn log_with_unknown_end_hides_lower_layers() {
    let dir = tempfile::tempdir().unwrap();
    let dir = partly_flushed(dir.path());
    let head = Meta::load(&dir).unwrap().layers[0].file;
    let log = files::log_path(&dir, head);
    let bytes = fs::read(&log).unwrap();
    let last = bytes.windows(4).rposition(|bytes| bytes == b"BREC").unwrap();
    // At the boundary of a record, inside of one, and a bit of the last one.
    let mut altered = bytes.clone();
    altered[last + 30] ^= 1;
    for bad in [&bytes[..last], &bytes[..last + 9], &altered] {
        fs::write(&log, bad).unwrap();
        let (blocks, why) = refused(&dir, Recovery::AfterPowerLoss, &now([1, 1]));
        assert_eq!(blocks, (2..BLOCKS).collect::<Vec<_>>());
        assert!(why.contains("unproven"), "{why}");
        // The map names them.
        assert_eq!(refused(&dir, Recovery::Auto, &now([2, 0])).0, [2, 3, 4, 5]);
    }
    // A start that fails because of another file leaves the log unchanged.
    let frozen = Meta::load(&dir).unwrap().layers[1];
    let set = files::set_path(&dir, frozen.file, frozen.generation);
    let kept = fs::read(&set).unwrap();
    fs::remove_file(&set).unwrap();
    let before = content_of(&dir);
    Volume::open(&dir, &OpenOptions::default()).map(drop).unwrap_err();
    // Except for unreferenced files, which it removes.
    assert!(
        content_of(&dir).iter().all(|(path, content)| before[path] == *content),
        "a failed start changed a file"
    );
    fs::write(&set, kept).unwrap();
    assert_eq!(refused(&dir, Recovery::AfterPowerLoss, &now([1, 1])).0, (2..BLOCKS).collect::<Vec<_>>());
}
