use super::*;
use blockd_extent::Extent;
use proptest::prelude::*;
use std::collections::BTreeMap;

const VOLUME: VolumeId = VolumeId::from_u64(0x0102_0304);

fn sums(dir: &Path, file: u64) -> BlockSums {
    BlockSums::new(dir, VOLUME, Epoch(file))
}

fn set_of(runs: &[(u64, u64)]) -> BlockSet {
    runs.iter().map(|&(start, len)| Extent::new(BlockIndex(start), len)).collect()
}

fn checked(sums: &BlockSums, blocks: &[(u64, u32)]) -> Vec<u64> {
    let blocks: Vec<_> = blocks.iter().map(|&(block, sum)| (BlockIndex(block), sum)).collect();
    sums.check(&blocks).into_iter().map(|block| block.0).collect()
}

#[test]
fn sum_of_a_block_is_never_unknown() {
    assert_eq!([known(0), known(1), known(u32::MAX)], [1, 1, u32::MAX]);
    assert_ne!(sum_of(&[0; 4096]), sum_of(&[1; 4096]));
}

#[test]
fn golden_file_round_trips() {
    let dir = tempfile::tempdir().unwrap();
    let golden = include_bytes!("../../../tests/golden/layer-v1.sums");
    let path = files::sums_path(dir.path(), Epoch(5));
    assert_eq!(checked(&sums(dir.path(), 5), &[(1, 7), (1022, 0x0a0b_0c0d)]), [0; 0]);
    assert!(std::fs::read(&path).unwrap() == golden, "the file differs from tests/golden");
    std::fs::write(&path, golden).unwrap();
    assert_eq!(checked(&sums(dir.path(), 5), &[(0, 9), (1, 8), (1022, 0x0a0b_0c0e)]), [1, 1022]);
}

#[test]
fn torn_or_foreign_pages_are_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let path = files::sums_path(dir.path(), Epoch(5));
    let stored = || {
        let _ = std::fs::remove_file(&path);
        assert_eq!(checked(&sums(dir.path(), 5), &[(1, 7), (1022, 8)]), [0; 0]);
        std::fs::read(&path).unwrap()
    };
    // Header, then sums of the two pages: the last value is what a wrong sum of both blocks finds.
    let cases: [(usize, &[u64]); 5] =
        [(9, &[]), (16, &[]), (4096 + 4, &[1022]), (8191, &[1022]), (8192, &[1])];
    for (at, expected) in cases {
        let mut bytes = stored();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(checked(&sums(dir.path(), 5), &[(1, 70), (1022, 80)]), expected, "byte {at}");
    }
    let bytes = stored();
    let swapped = [&bytes[..4096], &bytes[8192..], &bytes[4096..8192]].concat();
    std::fs::write(&path, swapped).unwrap();
    assert_eq!(
        checked(&sums(dir.path(), 5), &[(0, 1), (1, 70), (1022, 80)]),
        [0; 0],
        "pages are in their place"
    );
    std::fs::write(&path, &stored()[..5000]).unwrap();
    assert_eq!(checked(&sums(dir.path(), 5), &[(1, 70), (1022, 80)]), [0; 0], "a short page");
}

#[test]
fn failing_file_is_not_compared_and_not_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let path = files::sums_path(dir.path(), Epoch(5));
    std::fs::create_dir(&path).unwrap();
    let failing = sums(dir.path(), 5);
    assert_eq!(checked(&failing, &[(1, 7)]), [0; 0]);
    std::fs::remove_dir(&path).unwrap();
    assert_eq!(checked(&failing, &[(1, 8)]), [0; 0], "not used until the next start");
    // Another process left sums; a merge must not leave them behind.
    assert_eq!(checked(&sums(dir.path(), 5), &[(1, 7)]), [0; 0]);
    assert!(failing.forget(&set_of(&[(1, 1)]), &|| true).unwrap());
    assert!(!path.exists());
}

#[test]
fn linked_sums_are_updated_by_both_at_once() {
    const BLOCKS: u64 = 4000;
    let (dir, clone) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = sums(dir.path(), 5);
    assert_eq!(checked(&first, &[(BLOCKS, 9)]), [0; 0]);
    first.link_to(clone.path()).unwrap();
    let second = BlockSums::new(clone.path(), VolumeId::from_u64(8), Epoch(5));
    assert_eq!(checked(&second, &[(BLOCKS, 8)]), [BLOCKS]);
    // Both store sums in the same page at the same time.
    let barrier = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        for (sums, odd) in [(&first, 0), (&second, 1)] {
            let barrier = &barrier;
            scope.spawn(move || {
                for at in 0..BLOCKS / 2 {
                    barrier.wait();
                    assert_eq!(checked(sums, &[(2 * at + odd, 7)]), [0; 0]);
                }
            });
        }
    });
    let known = second.known(&set_of(&[(0, BLOCKS)]));
    assert_eq!((known.len() as u64, known.iter().all(|(_, sum)| *sum == 7)), (BLOCKS, true));
    first.remove().unwrap();
    assert_eq!(second.known(&set_of(&[(0, BLOCKS)])), known);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn sums_agree_with_a_map(
        steps in prop::collection::vec((0..4u8, 0..3000u64, 1..40u64, 1..4u32, any::<bool>()), 1..30),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut open = [sums(dir.path(), 1), sums(dir.path(), 2)];
        let mut models: [BTreeMap<u64, u32>; 2] = Default::default();
        for (kind, start, len, sum, is_second) in steps {
            let (at, other) = (usize::from(is_second), usize::from(!is_second));
            let blocks = start..start + len;
            match kind {
                0 => {
                    let read: Vec<_> = blocks.map(|block| (block, sum)).collect();
                    let expected: Vec<u64> = read
                        .iter()
                        .filter(|&&(block, sum)| *models[at].entry(block).or_insert(sum) != sum)
                        .map(|&(block, _)| block)
                        .collect();
                    prop_assert_eq!(checked(&open[at], &read), expected);
                }
                1 => {
                    open[at].forget(&set_of(&[(start, len)]), &|| true).unwrap();
                    models[at].retain(|block, _| !blocks.contains(block));
                }
                2 => {
                    open[at].take_from(&open[other], &set_of(&[(start, len)]), &|| true);
                    let taken: Vec<_> = models[other].range(blocks).map(|(&block, &sum)| (block, sum)).collect();
                    models[at].extend(taken);
                }
                _ => open[at] = sums(dir.path(), at as u64 + 1),
            }
        }
    }
}
