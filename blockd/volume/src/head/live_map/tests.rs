use super::{
    header::{HEADER_READ_BYTES, Rejection},
    recovery::Rejected,
    *,
};
use crate::head::mount::mount_number;
use blockd_extent::{Epoch, VolumeId};
use header::MOUNT_AT;
use proptest::prelude::*;

const BLOCKS: u64 = 7 * BLOCKS_PER_CHUNK / 2;
const IDENTITY: Identity = Identity { volume: VolumeId::from_u64(7), epoch: Epoch(3), blocks: BLOCKS };

fn map(dir: &tempfile::TempDir) -> LiveMap {
    LiveMap::create(&dir.path().join("m"), IDENTITY).unwrap()
}

fn extent(start: u64, len: u64) -> Extent {
    Extent::new(BlockIndex(start), len)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    #[test]
    fn map_behaves_like_a_set(runs in prop::collection::vec((0..3u8, 0..2 * BLOCKS_PER_CHUNK, 0..900u64), 1..20)) {
        let dir = tempfile::tempdir().unwrap();
        let map = map(&dir);
        let (mut held, mut zero) = (BlockSet::new(), BlockSet::new());
        for (what, start, len) in runs {
            let run = extent(start, len);
            match what {
                0 => {
                    let mut expected = BlockSet::from_iter([run]);
                    expected.subtract(&held);
                    let mut new = BlockSet::new();
                    map.set_held(run, || (), |(), run| new.insert_extent(run)).unwrap();
                    prop_assert_eq!(new, expected);
                    held.insert_extent(run);
                }
                1 => { map.set_zero(run); zero.insert_extent(run); }
                _ => { map.clear_zero(run); zero.remove_extent(run); }
            }
        }
        let mut both = zero.clone();
        both.intersect_with(&held);
        prop_assert_eq!(map.held_set(), held.clone());
        let mut found = map.zero_set();
        found.intersect_with(&held);
        prop_assert_eq!(found, both);
        let mut next = 10;
        for (run, state) in map.states(extent(10, 70_000)) {
            prop_assert_eq!(run.start.0, next);
            next = run.end().0;
            for block in [run.start.0, run.end().0 - 1].map(BlockIndex) {
                let expected = match (held.contains(block), zero.contains(block)) {
                    (false, _) => BlockState::Absent,
                    (true, false) => BlockState::Data,
                    (true, true) => BlockState::Zero,
                };
                prop_assert_eq!(state, expected);
            }
        }
        prop_assert_eq!(next, 70_010);
        // The next process reads the same bits from the file.
        drop(map);
        let found = LiveMap::open(&dir.path().join("m"), IDENTITY, true).unwrap().unwrap();
        prop_assert_eq!(found.map.held_set(), held);
    }
}

#[test]
fn invalid_map_is_rejected_and_valid_one_can_be_inspected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let inspect = || match LiveMap::inspect(&path, IDENTITY) {
        Ok(Inspection::Trusted(found)) => Some(found),
        Ok(Inspection::Suspect(_)) | Err(VolumeError::NewerFormat { .. }) => None,
        Err(error) => panic!("{error}"),
        Ok(Inspection::Stale) => panic!("the map is of this boot and mount"),
    };
    assert!(inspect().is_none());
    let map = LiveMap::create_invalid(&path, IDENTITY).unwrap();
    let runs = [extent(3, 70), extent(BLOCKS_PER_CHUNK * 2, 1), extent(BLOCKS - 1, 1)];
    for run in runs {
        map.set_held(run, || (), |(), _| {}).unwrap();
    }
    assert!(inspect().is_none());
    let opened = LiveMap::open(&path, IDENTITY, true).unwrap();
    assert!(matches!(opened, Err(Rejected { why: Rejection::Unfinished, clean: false })));
    map.mark_valid().unwrap();
    let found = inspect().unwrap();
    assert_eq!((found.held, found.unread), (BlockSet::from_iter(runs), None));
    drop(map);
    let before = std::fs::read(&path).unwrap();
    inspect();
    assert!(std::fs::read(&path).unwrap() == before, "the inspection changed the file");
    // No flipped bit makes it a header of another boot or mount; all fields but two are checked.
    for bit in 0..HEADER_READ_BYTES * 8 {
        let mut bad = before.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bad).unwrap();
        let may_pass = bit == CLEAN_AT * 8 || (MOUNT_AT..MOUNT_AT + 8).contains(&(bit / 8));
        assert!(inspect().is_none() || may_pass, "bit {bit}");
    }
    let mut other = before.clone();
    other[BOOT_ID_AT..BOOT_ID_AT + BOOT_ID_BYTES].copy_from_slice(b"01234567-89ab-cdef-0123-456789abcdef");
    std::fs::write(&path, other).unwrap();
    assert!(matches!(LiveMap::inspect(&path, IDENTITY), Ok(Inspection::Stale)));
    std::fs::write(&path, &before).unwrap();
    File::open(&path).unwrap().set_len(HEADER_BYTES + 8).unwrap();
    let found = inspect().unwrap();
    assert_eq!((found.held, found.unread), (BlockSet::from_iter([extent(3, 61)]), Some(BlockIndex(64))));
    let opened = LiveMap::open(&path, IDENTITY, true);
    assert!(matches!(opened, Err(VolumeError::Damaged { .. })));
}

#[test]
fn map_of_a_dead_process_is_trusted_in_its_boot_and_mount_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let first = map(&dir);
    let far = extent(BLOCKS - 5, 5);
    first.set_held(far, || (), |(), _| {}).unwrap();
    drop(first);
    let open = |volume, epoch| {
        let identity = Identity { volume: VolumeId::from_u64(volume), epoch: Epoch(epoch), blocks: BLOCKS };
        LiveMap::open(&path, identity, true).unwrap()
    };
    let found = open(7, 3).unwrap();
    assert!(!found.clean);
    assert_eq!(found.map.held_set(), BlockSet::from_iter([far]));
    found.map.set_clean(true).unwrap();
    drop(found);
    for (volume, epoch) in [(8, 3), (7, 4)] {
        let rejected = open(volume, epoch).err().unwrap();
        assert!(matches!(rejected, Rejected { why: Rejection::NotOurs, clean: false }), "{rejected:?}");
    }
    let found = open(7, 3).unwrap();
    assert!(found.clean);
    found.map.set_clean(false).unwrap();
    drop(found);
    assert!(!open(7, 3).unwrap().clean);
    open(7, 3).unwrap().map.set_clean(true).unwrap();
    let file = File::open(&path).unwrap();
    // Without a mount number, a stored one cannot be compared.
    file.write_all_at(&u64::MAX.to_le_bytes(), MOUNT_AT as u64).unwrap();
    match mount_number(&file) {
        Some(_) => assert!(matches!(open(7, 3), Err(Rejected { why: Rejection::OtherMount, clean: true }))),
        None => assert!(open(7, 3).is_ok()),
    }
    file.write_all_at(&[0; 8], MOUNT_AT as u64).unwrap();
    open(7, 3).unwrap().map.set_clean(true).unwrap();
    let other_boot = b"01234567-89ab-cdef-0123-456789abcdef";
    file.write_all_at(other_boot, BOOT_ID_AT as u64).unwrap();
    assert!(matches!(open(7, 3), Err(Rejected { why: Rejection::OtherBoot, clean: true })));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(open(7, 3), Err(Rejected { why: Rejection::NotOurs, clean: false })));
}

#[test]
fn golden_file_round_trips() {
    // The header up to the mount number, then the first two words of the bitmap; the rest is zero.
    let golden = include_bytes!("../../../tests/golden/layer-v1.map");
    let (fields, words) = golden.split_at(MOUNT_AT + 8);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    let held = extent(3, 70);
    let map = map(&dir);
    map.set_held(held, || (), |(), _| {}).unwrap();
    map.set_clean(true).unwrap();
    let mount = mount_number(&File::open(&path).unwrap()).map_or(0, std::num::NonZero::get);
    drop(map);
    let mut expected = vec![0; (HEADER_BYTES + bitmap_bytes(BLOCKS)) as usize];
    expected[..fields.len()].copy_from_slice(fields);
    // The golden file has zeroes for the boot and the mount of the test.
    expected[BOOT_ID_AT..BOOT_ID_AT + BOOT_ID_BYTES].copy_from_slice(boot_id().unwrap().as_bytes());
    expected[MOUNT_AT..MOUNT_AT + 8].copy_from_slice(&mount.to_le_bytes());
    expected[HEADER_BYTES as usize..][..words.len()].copy_from_slice(words);
    let written = std::fs::read(&path).unwrap();
    let differing = written.iter().zip(&expected).position(|(one, other)| one != other);
    assert_eq!((written.len(), differing), (expected.len(), None));
    std::fs::write(&path, expected).unwrap();
    let found = LiveMap::open(&path, IDENTITY, true).unwrap().unwrap();
    assert_eq!((found.map.held_set(), found.clean), (BlockSet::from_iter([held]), true));
}

#[test]
fn map_with_bits_beyond_the_last_block_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(map(&dir));
    let path = dir.path().join("m");
    File::open(&path).unwrap().write_all_at(&[1], HEADER_BYTES + BLOCKS / 8).unwrap();
    let opened = LiveMap::open(&path, IDENTITY, true);
    assert!(matches!(opened, Err(VolumeError::Damaged { .. })));
}

#[test]
fn threads_that_set_bits_of_one_word_lose_none_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let map = map(&dir);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let map = &map;
            scope.spawn(move || {
                (thread..4096)
                    .step_by(4)
                    .for_each(|block| map.set_held(extent(block, 1), || (), |(), _| {}).unwrap());
            });
        }
    });
    drop(map);
    let found = LiveMap::open(&dir.path().join("m"), IDENTITY, true).unwrap();
    assert_eq!(found.unwrap().map.held_set(), BlockSet::from_iter([extent(0, 4096)]));
}
