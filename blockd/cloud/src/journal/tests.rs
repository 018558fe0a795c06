use super::*;

const BINDING: JournalBinding = JournalBinding([3; 32]);
const LEVEL: CompressionLevel = CompressionLevel::Zstd(3);

fn open(path: &Path) -> FileJournal {
    FileJournal::open(path, &BINDING).unwrap()
}

#[test]
fn records_survive_and_the_last_word_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = open(&path);
    journal.record(7, LEVEL, &[1, 2, 3]).unwrap();
    journal.record(0, LEVEL, &[]).unwrap();
    journal.record(7, LEVEL, &[4, 5]).unwrap();
    for journal in [journal, open(&path)] {
        assert_eq!(journal.completed(), [0, 7]);
        assert_eq!(journal.frame_lens(7).unwrap(), Some(vec![4, 5]));
        assert_eq!(journal.frame_lens(0).unwrap(), Some(vec![]));
        assert_eq!(journal.frame_lens(1).unwrap(), None);
    }
}

#[test]
fn that_the_commit_began_is_remembered_and_is_no_pack() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journals: [Box<dyn BackupJournal>; 2] = [Box::new(open(&path)), Box::<MemoryJournal>::default()];
    for journal in &journals {
        journal.record(0, LEVEL, &[1]).unwrap();
        assert!(!journal.may_be_committed());
        journal.record_commit().unwrap();
        journal.record_commit().unwrap();
        assert!(journal.may_be_committed());
        assert_eq!(journal.completed(), [0]);
    }
    let again = open(&path);
    assert!(again.may_be_committed());
    assert_eq!(again.completed(), [0]);
}

#[test]
fn level_of_an_unstored_pack_survives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journals: [Box<dyn BackupJournal>; 2] = [Box::new(open(&path)), Box::<MemoryJournal>::default()];
    for journal in &journals {
        journal.record_level(0, LEVEL).unwrap();
        journal.record_level(1, CompressionLevel::Lz4).unwrap();
        journal.record(0, LEVEL, &[5]).unwrap();
    }
    let [file, memory] = journals;
    for journal in [Box::new(open(&path)) as Box<dyn BackupJournal>, file, memory] {
        assert_eq!(journal.completed(), [0]);
        let levels = [0, 1, 2].map(|pack_no| journal.level(pack_no));
        assert_eq!(levels, [Some(LEVEL), Some(CompressionLevel::Lz4), None]);
    }
}

#[test]
fn truncated_journal_keeps_complete_records() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = open(&path);
    let mut ends = vec![HEADER_LEN];
    for pack in 0..4 {
        let lens = vec![100; pack as usize + 1];
        journal.record(pack, LEVEL, &lens).unwrap();
        ends.push(
            ends.last().unwrap() + {
                let frame_lens = Some(lens);
                Record { pack_no: pack, level: LEVEL, frame_lens }.encode().len()
            },
        );
    }
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len(), *ends.last().unwrap());
    for cut in 0..=bytes.len() {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let journal = open(&path);
        let whole = ends.iter().filter(|end| **end <= cut).count().saturating_sub(1);
        assert_eq!(journal.completed().len(), whole, "cut at {cut}");
        journal.record(9, LEVEL, &[50]).unwrap();
        assert_eq!(open(&path).completed().len(), whole + 1, "cut at {cut}");
    }
}

#[test]
fn flipped_journal_bit_drops_records_and_changes_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = open(&path);
    journal.record(0, LEVEL, &[11, 12]).unwrap();
    journal.record(1, LEVEL, &[13]).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &flipped).unwrap();
        match FileJournal::open(&path, &BINDING) {
            Err(CloudError::ForeignJournal { .. }) => assert!(bit / 8 < HEADER_LEN),
            Err(other) => panic!("bit {bit}: {other}"),
            Ok(journal) => {
                assert!(bit / 8 >= HEADER_LEN);
                for pack in journal.completed() {
                    let expected: &[u32] = if pack == 0 { &[11, 12] } else { &[13] };
                    assert_eq!(journal.frame_lens(pack).unwrap().unwrap(), expected, "bit {bit}");
                }
                assert!(journal.completed().len() < 2, "bit {bit}");
            }
        }
    }
}

#[test]
fn journal_with_a_lost_record_leaves_the_commit_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = open(&path);
    journal.record(0, LEVEL, &[11]).unwrap();
    journal.record(1, LEVEL, &[12]).unwrap();
    assert!(!open(&path).may_be_committed(), "nothing was lost");
    journal.record_commit().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    // In the first record, far before the mark.
    bytes[HEADER_LEN + RECORD_HEAD_LEN] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    // Once more: the first one to open it cut it.
    for journal in [open(&path), open(&path)] {
        assert!(journal.may_be_committed());
        assert!(journal.completed().is_empty());
    }
}

#[test]
fn stored_layout_is_stable() {
    let golden = include_bytes!("../../tests/golden/journal-v1.bin");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let journal = open(&path);
    journal.record_level(7, CompressionLevel::Zstd(9)).unwrap();
    journal.record(7, CompressionLevel::Zstd(9), &[1, 2, 0x0001_0203]).unwrap();
    journal.record(0, CompressionLevel::Lz4, &[5]).unwrap();
    journal.record_level(1, CompressionLevel::None).unwrap();
    journal.record_commit().unwrap();
    if std::env::var_os("BLOCKD_BLESS_GOLDEN").is_some() {
        std::fs::copy(&path, "tests/golden/journal-v1.bin").unwrap();
    }
    assert_eq!(std::fs::read(&path).unwrap(), golden);
    let copy = dir.path().join("copy");
    std::fs::write(&copy, golden).unwrap();
    let journal = open(&copy);
    assert_eq!(journal.completed(), [0, 7]);
    assert_eq!(journal.frame_lens(7).unwrap(), Some(vec![1, 2, 0x0001_0203]));
    assert_eq!(journal.frame_lens(0).unwrap(), Some(vec![5]));
    let levels = [0, 1, 2, 7].map(|pack_no| journal.level(pack_no));
    let expected = [Some(CompressionLevel::Lz4), Some(CompressionLevel::None), None];
    assert_eq!(levels[..3], expected);
    assert_eq!(levels[3], Some(CompressionLevel::Zstd(9)));
    assert!(journal.may_be_committed());
}

#[test]
fn journal_of_another_backup_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    open(&path);
    let error = FileJournal::open(&path, &JournalBinding([4; 32])).unwrap_err();
    assert!(matches!(error, CloudError::ForeignJournal { .. }));
}

#[test]
fn journal_that_must_be_complete_is_refused_if_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    let is_lost = |path: &Path| {
        let before = std::fs::read(path).ok();
        let lost = match FileJournal::open_complete(path, &BINDING) {
            Err(error) => {
                assert!(matches!(error, CloudError::JournalLost { .. }), "{error}");
                true
            }
            Ok(_) => false,
        };
        assert!(!lost || std::fs::read(path).ok() == before, "the journal is not changed");
        lost
    };
    assert!(is_lost(&path));
    std::fs::write(&path, []).unwrap();
    FileJournal::open_complete(&path, &BINDING).unwrap().record_level(0, LEVEL).unwrap();
    assert_eq!(FileJournal::open_complete(&path, &BINDING).unwrap().level(0), Some(LEVEL));
    let good = std::fs::read(&path).unwrap();
    for byte in 0..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert!(is_lost(&path), "byte {byte}");
    }
    for len in HEADER_LEN + 1..good.len() {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(is_lost(&path), "{len} bytes");
    }
}
