use super::*;
use blockd_extent::{BlockIndex, Extent};
use blockd_extent::{Epoch, VolumeId};

const IDENTITY: Identity = Identity { volume: VolumeId::from_u64(9), epoch: Epoch(2), blocks: 1 << 20 };

fn set(start: u64, len: u64) -> BlockSet {
    BlockSet::from_iter([Extent::new(BlockIndex(start), len)])
}

fn block(number: u64) -> Extent {
    Extent::new(BlockIndex(number), 1)
}

#[test]
fn torn_ends_are_cut_and_altered_bytes_detected() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let mut log = HeadLog::create(&path, IDENTITY).unwrap();
    log.append(&set(5, 10)).unwrap();
    let first_end = log.end_bytes as usize;
    log.append(&set(100, 3)).unwrap();
    let end = log.end_bytes as usize;
    drop(log);
    let ahead = std::fs::read(&path).unwrap();
    assert!(ahead.len() as u64 >= ZEROES_BYTES && ahead[end..].iter().all(|byte| *byte == 0));
    let whole = ahead[..end].to_vec();
    let mut both = set(5, 10);
    both.union_with(&set(100, 3));

    for cut in HEADER_BYTES..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert!(!HeadLog::inspect(&path, IDENTITY).unwrap().has_intact_end, "cut at {cut}");
        let (mut log, found) = HeadLog::open(&path, IDENTITY).unwrap();
        let expected = if cut == whole.len() {
            both.clone()
        } else if cut >= first_end {
            set(5, 10)
        } else {
            BlockSet::new()
        };
        assert_eq!(found, expected, "cut at {cut}");
        assert!(HeadLog::inspect(&path, IDENTITY).unwrap().has_intact_end, "cut at {cut}, and opened");
        log.append(&set(7000, 1)).unwrap();
        assert!(HeadLog::open(&path, IDENTITY).unwrap().1.contains(BlockIndex(7000)));
    }
    for at in first_end..end {
        let mut bytes = ahead.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        assert!(!HeadLog::inspect(&path, IDENTITY).unwrap().has_intact_end, "byte {at}");
    }
    // A flipped bit before the last record is damage; in the last one it looks like a torn end.
    for at in 0..first_end {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        assert!(HeadLog::open(&path, IDENTITY).is_err(), "byte {at}");
        let left = if at < HEADER_BYTES { both.clone() } else { set(100, 3) };
        assert_eq!(HeadLog::rescue(&path, IDENTITY), left, "byte {at}");
    }
}

#[test]
fn record_longer_than_buffers_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let identity = Identity { blocks: 1 << 25, ..IDENTITY };
    let mut log = HeadLog::create(&path, identity).unwrap();
    let long = BlockSet::from_iter((0..1 << 24).step_by(2).map(block));
    assert!(long.serialized_len() > 2 * Window::MAX_BYTES);
    log.append(&set(1 << 24, 3)).unwrap();
    log.append(&long).unwrap();
    let mut all = long;
    all.union_with(&set(1 << 24, 3));
    for round in 0..2 {
        let (mut log, found) = HeadLog::open(&path, identity).unwrap();
        assert!(found == all);
        // The last record is a short one from here on.
        log.append(&set((1 << 24) + 10 + round, 1)).unwrap();
        all.union_with(&set((1 << 24) + 10 + round, 1));
    }
    let whole = std::fs::read(&path).unwrap();
    for at in [HEADER_BYTES + 200, HEADER_BYTES + Window::MAX_BYTES, 2 * Window::MAX_BYTES] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        let error = HeadLog::open(&path, identity).err().unwrap().to_string();
        assert!(
            error.contains("record 1 at byte") && error.contains("record 2 is valid"),
            "byte {at}: {error}"
        );
    }
}

#[test]
fn failed_read_is_no_torn_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let identity = Identity { blocks: 1 << 25, ..IDENTITY };
    let mut log = HeadLog::create(&path, identity).unwrap();
    log.append(&BlockSet::from_iter((0..1 << 24).step_by(2).map(block))).unwrap();
    let whole = std::fs::metadata(&path).unwrap().len();
    // The file is shorter than its reader expects: its last part cannot be read.
    let file = File::open(&path).unwrap();
    file.set_len(log.end_bytes - 4096).unwrap();
    assert!(identity.parse(&mut Window::new(&file, whole), HEADER_BYTES as u64, 0).is_err());
}

#[test]
fn record_that_changed_between_reads_is_not_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let mut log = HeadLog::create(&path, IDENTITY).unwrap();
    log.append(&set(5, 10)).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let (start, end) = (HEADER_BYTES as u64, log.end_bytes);
    let copy = |out: &mut Vec<u8>| {
        let file = File::open(&path).unwrap();
        IDENTITY.copy_record(FileReader::new(&file, start, end), out)
    };
    let mut copied = Vec::new();
    copy(&mut copied).unwrap();
    assert_eq!(copied, bytes[HEADER_BYTES..end as usize]);
    for at in HEADER_BYTES..end as usize {
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        assert!(copy(&mut Vec::new()).is_err(), "byte {at}");
        bytes[at] ^= 0x10;
    }
}

#[test]
fn golden_file_round_trips() {
    let golden = include_bytes!("../../../tests/golden/layer-v1.log");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let mut log = HeadLog::create(&path, IDENTITY).unwrap();
    let (first, second) = (set(5, 10), BlockSet::from_iter([100, (1 << 20) - 1].map(block)));
    log.append(&first).unwrap();
    log.append(&second).unwrap();
    let written = std::fs::read(&path).unwrap();
    let (records, zeroes) = written.split_at(golden.len());
    assert_eq!(records, golden);
    assert!(!zeroes.is_empty() && zeroes.iter().all(|byte| *byte == 0), "zeroes follow the records");
    drop(log);
    std::fs::write(&path, golden).unwrap();
    let mut all = first;
    all.union_with(&second);
    assert_eq!(HeadLog::open(&path, IDENTITY).unwrap().1, all);
}

#[test]
fn compacted_log_describes_the_same_set() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    let mut log = HeadLog::create(&path, IDENTITY).unwrap();
    let mut all = BlockSet::new();
    for i in 0..100 {
        let more = set(i * 3, 1);
        all.union_with(&more);
        log.append(&more).unwrap();
    }
    let before = log.end_bytes;
    log.compact(&all).unwrap();
    assert!(log.end_bytes < before / 4);
    log.append(&set(5000, 1)).unwrap();
    all.insert(BlockIndex(5000));
    assert_eq!(HeadLog::open(&path, IDENTITY).unwrap().1, all);
}

#[test]
fn log_of_other_head_or_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l");
    HeadLog::create(&path, IDENTITY).unwrap();
    assert!(HeadLog::open(&path, Identity { epoch: Epoch(3), ..IDENTITY }).is_err());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 2;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(HeadLog::open(&path, IDENTITY), Err(VolumeError::NewerFormat { found: 2, .. })));
}
