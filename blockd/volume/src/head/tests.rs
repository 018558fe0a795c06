use super::*;
use blockd_extent::VolumeId;

const PARTS_OF_TERABYTE: u64 = 64;
/// Memory of a terabyte according to `kernel-notes/live-map.md`.
const TERABYTE_MAX_BYTES: u64 = 33 << 20;

#[test]
fn worst_case_memory_matches_documentation() {
    let dir = tempfile::tempdir().unwrap();
    let size_bytes = (1 << 40) / PARTS_OF_TERABYTE;
    let place = Place { dir: dir.path(), volume: VolumeId::from_u64(1), size_bytes };
    let head = Head::create(place, Epoch(1)).unwrap();
    let hold = |first: u64, step: usize| {
        for block in (first..place.blocks()).step_by(step) {
            let one = Extent::new(BlockIndex(block), 1);
            head.note_held(one).unwrap();
        }
    };
    let most = TERABYTE_MAX_BYTES / PARTS_OF_TERABYTE;
    // Every other block; half of them are logged.
    hold(0, 4);
    assert!(head.sync().is_ok());
    hold(2, 4);
    assert!(head.tracking_bytes() <= 2 * most, "{}", head.tracking_bytes());
    assert!(head.sync().is_ok());
    assert_eq!(head.dirty_blocks(), place.blocks() / 2);
    assert!(head.tracking_bytes() <= most, "{}", head.tracking_bytes());
    let LayerSet { held, zero } = head.final_set();
    assert_eq!((held.len_blocks(), zero.len_blocks()), (place.blocks() / 2, 0));
    assert!(held.heap_bytes_estimate() <= most, "{}", held.heap_bytes_estimate());
}
