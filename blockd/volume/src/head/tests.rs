use super::*;
use blockd_extent::VolumeId;

const TERABYTE_FRACTION: u64 = 64;
/// Maximum memory of 1 TiB according to `kernel-notes/live-map.md`.
const TERABYTE_MAX_BYTES: u64 = 33 << 20;

#[test]
fn worst_case_memory_matches_documentation() {
    let dir = tempfile::tempdir().unwrap();
    let size_bytes = (1 << 40) / TERABYTE_FRACTION;
    let volume_dir = VolumeDir { path: dir.path(), volume: VolumeId::from_u64(1), size_bytes };
    let head = Head::create(volume_dir, Epoch(1)).unwrap();
    let hold = |first: u64, step: usize| {
        for block in (first..volume_dir.blocks()).step_by(step) {
            let one = Extent::new(BlockIndex(block), 1);
            head.note_held(one).unwrap();
        }
    };
    let max = TERABYTE_MAX_BYTES / TERABYTE_FRACTION;
    // Every other block; half of them are logged.
    hold(0, 4);
    assert!(head.sync().is_ok());
    assert!(head.tracking_bytes() <= max, "{}", head.tracking_bytes());
    hold(2, 4);
    assert!(head.tracking_bytes() <= 2 * max, "{}", head.tracking_bytes());
    assert!(head.sync().is_ok());
    assert_eq!(head.dirty_blocks(), volume_dir.blocks() / 2);
    assert!(head.tracking_bytes() <= max, "{}", head.tracking_bytes());
    let LayerSet { held, zero } = head.final_set();
    assert_eq!((held.len_blocks(), zero.len_blocks()), (volume_dir.blocks() / 2, 0));
    assert!(held.heap_bytes_estimate() <= max, "{}", held.heap_bytes_estimate());
}

#[test]
fn work_of_a_flush_is_independent_of_the_head() {
    let dir = tempfile::tempdir().unwrap();
    let volume_dir = VolumeDir { path: dir.path(), volume: VolumeId::from_u64(1), size_bytes: 1 << 36 };
    let head = Head::create(volume_dir, Epoch(1)).unwrap();
    for block in (0..volume_dir.blocks()).step_by(2) {
        head.note_held(Extent::new(BlockIndex(block), 1)).unwrap();
    }
    assert!(head.sync().is_ok());
    let large = head.log.lock().len_bytes();
    assert!(large > 1 << 20, "the log has the set of the head");
    for block in 0..100 {
        head.note_held(Extent::new(BlockIndex(block * 2 + 1), 1)).unwrap();
        assert!(!head.log.lock().may_need_compaction(), "a flush derives no set of the head");
        assert!(head.sync().is_ok());
    }
    assert!(head.log.lock().len_bytes() - large < 100 << 10);
    assert!(head.tracked.lock().unlogged.is_empty());
    // A start finds the blocks of all records.
    let held = head.current_set().held;
    assert_eq!(head.count_log_mismatches().unwrap(), 0);
    // A record that the head has not written.
    let more = BlockSet::from_iter([Extent::new(BlockIndex(volume_dir.blocks() - 1), 1)]);
    let path = files::log_path(dir.path(), Epoch(1));
    drop(head);
    let (mut log, logged) = HeadLog::open(&path, volume_dir.identity(Epoch(1))).unwrap();
    assert!(logged == held);
    log.append(&more).unwrap();
    let options = OpenOptions { recovery: Recovery::AfterPowerLoss, ..OpenOptions::default() };
    let head = Head::recover(volume_dir, Epoch(1), &options).unwrap();
    assert_eq!(head.count_log_mismatches().unwrap(), 0);
    log.append(&BlockSet::from_iter([Extent::new(BlockIndex(volume_dir.blocks() - 3), 1)])).unwrap();
    assert_eq!(head.count_log_mismatches().unwrap(), 1);
}
