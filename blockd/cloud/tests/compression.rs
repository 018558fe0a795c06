//! Backups with several compression levels.
use crate::common::{BLOCK, Noise, fixed, restored, run_as, set};
use blockd_cloud::{
    BackupJournal, CancelToken, CloudError, Compression, CompressionLevel, EncryptionMode, FileJournal,
    JournalBinding, Manifest, MemoryJournal, Repository, SnapshotReader, UploadOptions,
};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use blockd_testkit::{
    cloud::{MemoryVolume, spec},
    store::{Fault, FaultStore, MemoryStore},
};
use bytes::Bytes;
use proptest::prelude::*;
use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

const PACK_BLOCKS: u64 = 8192;
const PACKS: u64 = 3;
const SIZE: u64 = PACKS * PACK_BLOCKS * BLOCK as u64;
const LEVELS: [CompressionLevel; 5] = [
    CompressionLevel::None,
    CompressionLevel::Lz4,
    CompressionLevel::Zstd(1),
    CompressionLevel::Zstd(6),
    CompressionLevel::Zstd(19),
];

/// Text, noise and zeroes, a few blocks of each pack.
fn volume(seed: u64) -> (MemoryVolume, BlockSet) {
    let (live, mut noise) = (MemoryVolume::default(), Noise(seed | 1));
    for pack in 0..PACKS {
        for block in 0..200 {
            let number = pack * PACK_BLOCKS + block;
            match noise.next() % 4 {
                0 => live.set(number, &noise.block()),
                1 => {}
                _ => {
                    let line = format!("block {number} of {seed}; ");
                    live.set(number, &line.into_bytes().into_iter().cycle().take(BLOCK).collect::<Vec<u8>>());
                }
            }
        }
    }
    (live, BlockSet::from_iter([Extent::new(BlockIndex(0), PACKS * PACK_BLOCKS)]))
}

/// Returns the packs in a store.
fn packs(store: &MemoryStore) -> BTreeMap<String, Bytes> {
    let mut objects = store.objects();
    objects.retain(|key, _| key.contains("/pack-"));
    objects
}

/// Backs up with levels that an earlier run chose.
async fn backed_up(
    repo: &Repository,
    live: &MemoryVolume,
    data: BlockSet,
    levels: &[CompressionLevel],
) -> Result<Manifest, CloudError> {
    let journal = Arc::new(MemoryJournal::default());
    for (pack_no, level) in (0..).zip(levels) {
        journal.record_level(pack_no, *level).unwrap();
    }
    let options = UploadOptions { compression: Compression::Auto, ..UploadOptions::default() };
    let (spec, reader) = (spec(7, SIZE, data, set([]), None), Arc::new(live.fork()));
    run_as(repo, spec, reader, journal, &options, &CancelToken::new()).await.map(|run| run.manifest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn mixed_levels_restore(
        levels in prop::collection::vec(prop::sample::select(LEVELS.to_vec()), PACKS as usize), seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(async {
            let (live, data) = volume(seed);
            let store = Arc::new(MemoryStore::default());
            let repo = fixed(store.clone(), EncryptionMode::Aes256GcmSiv);
            let manifest = backed_up(&repo, &live, data, &levels).await.unwrap();
            prop_assert_eq!(restored(&repo, &manifest).await.unwrap(), live.content());
            let reader = SnapshotReader::open(&repo, &manifest).await.unwrap();
            for block in [0, 77, PACK_BLOCKS + 5, 2 * PACK_BLOCKS + 199] {
                let read = reader.read_blocks(Extent::new(BlockIndex(block), 1)).await.unwrap();
                prop_assert_eq!(&read[..], &live.block(block)[..]);
            }
            // The manifest accounts for all packs.
            let used = &manifest.compression.levels;
            prop_assert!(used.iter().all(|used| levels.contains(&used.level)));
            prop_assert_eq!(used.iter().map(|used| u64::from(used.packs)).sum::<u64>(), PACKS);
            prop_assert_eq!(used.iter().map(|used| used.data_bytes).sum::<u64>(), SIZE);
            let frames_bytes = manifest.stored_bytes - manifest.delta.index.len_bytes - 64 * PACKS;
            prop_assert_eq!(used.iter().map(|used| used.stored_bytes).sum::<u64>(), frames_bytes);
            Ok(())
        })?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_level_of_a_pack_is_used_again() {
    let (live, data) = volume(1);
    for level in LEVELS {
        let [resumed, whole] = [(); 2].map(|()| Arc::new(MemoryStore::default()));
        let repo = fixed(resumed.clone(), EncryptionMode::Aes256GcmSiv);
        let manifest = backed_up(&repo, &live, data.clone(), &[level; PACKS as usize]).await.unwrap();
        assert_eq!(manifest.compression.mode, Some(Compression::Auto));
        let compression = Compression::Fixed(level);
        let options = UploadOptions { compression, ..UploadOptions::default() };
        let (repo, spec) =
            (fixed(whole.clone(), EncryptionMode::Aes256GcmSiv), spec(7, SIZE, data.clone(), set([]), None));
        let (reader, journal) = (Arc::new(live.fork()), Arc::new(MemoryJournal::default()));
        run_as(&repo, spec, reader, journal, &options, &CancelToken::new()).await.unwrap();
        assert!(packs(&resumed) == packs(&whole), "{level}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn level_is_recorded_before_its_pack_is_sent() {
    let (live, data) = volume(2);
    let faults = Arc::new(FaultStore::new(Arc::new(MemoryStore::default())));
    faults.fail_from(0, Fault::AfterApply);
    let repo = fixed(faults, EncryptionMode::Aes256GcmSiv);
    let journal = Arc::new(MemoryJournal::default());
    let options = UploadOptions { compression: Compression::Auto, ..UploadOptions::default() };
    let (spec, reader) = (spec(7, SIZE, data, set([]), None), Arc::new(live));
    let failed = run_as(&repo, spec, reader, journal.clone(), &options, &CancelToken::new()).await;
    assert!(failed.is_err());
    assert!(journal.completed().is_empty());
    assert!(journal.level(0).is_some(), "the pack may be in the store");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_journal_ends_a_resumed_backup() {
    let (live, data) = volume(3);
    let memory = Arc::new(MemoryStore::default());
    let faults = Arc::new(FaultStore::new(memory.clone()));
    let repo = fixed(faults.clone(), EncryptionMode::Aes256GcmSiv);
    let options =
        UploadOptions { compression: Compression::Auto, write_once: true, ..UploadOptions::default() };
    let run = |snapshot, journal, resumed| {
        let (spec, reader) = (spec(snapshot, SIZE, data.clone(), set([]), None), Arc::new(live.fork()));
        let options = UploadOptions { resumed, ..options };
        let repo = repo.clone();
        async move { run_as(&repo, spec, reader, journal, &options, &CancelToken::new()).await }
    };
    let first = Arc::new(MemoryJournal::default());
    for pack_no in 0..PACKS as u32 {
        first.record_level(pack_no, CompressionLevel::Zstd(19)).unwrap();
    }
    faults.fail_from(PACKS, Fault::BeforeApply);
    assert!(run(7, first, false).await.is_err());
    assert_eq!(packs(&memory).len() as u64, PACKS, "all packs are stored with other levels");
    faults.heal();
    let lost = run(7, Arc::new(MemoryJournal::default()), true).await.map(|_| ()).unwrap_err();
    assert!(matches!(&lost, CloudError::JournalLost { .. }), "{lost}");
    assert!(!lost.is_retryable());
    let next = run(8, Arc::new(MemoryJournal::default()), false).await.unwrap();
    assert_eq!(restored(&repo, &next.manifest).await.unwrap(), live.content());
}

/// Loses the journal in one of several ways; returns false for the last one, which loses nothing.
fn lose_journal(path: &Path, kind: u8, at: usize) -> bool {
    let mut bytes = fs::read(path).unwrap();
    match kind {
        0 => fs::remove_file(path).unwrap(),
        1 => {
            let at = at % bytes.len();
            bytes[at] ^= 1;
            fs::write(path, bytes).unwrap();
        }
        2 => {
            // Within the last record.
            bytes.truncate(bytes.len() - 1 - at % 15);
            fs::write(path, bytes).unwrap();
        }
        _ => return false,
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Without create-if-absent, puts of a failed run replace the packs of the next one.
    #[test]
    fn late_puts_with_a_lost_journal_mix_no_packs(kind in 0u8..4, at: usize, late: [bool; PACKS as usize], seed: u64) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(async {
            let (live, data) = volume(seed);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("journal");
            fs::write(&path, []).unwrap();
            let store = Arc::new(MemoryStore::ignoring_conditions());
            let faults = Arc::new(FaultStore::new(store.clone()));
            let repo = fixed(faults.clone(), EncryptionMode::Aes256GcmSiv);
            let asked = spec(7, SIZE, data, set([]), None);
            let binding = JournalBinding::of(&repo, &asked);
            let run = async |journal: FileJournal, resumed| {
                let options = UploadOptions { compression: Compression::Auto, resumed, ..UploadOptions::default() };
                let (reader, cancel) = (Arc::new(live.fork()), CancelToken::new());
                run_as(&repo, asked.clone(), reader, Arc::new(journal), &options, &cancel).await
            };
            // Another level than the one with which `auto` begins.
            let journal = FileJournal::open_complete(&path, &binding).unwrap();
            for pack_no in 0..PACKS as u32 {
                journal.record_level(pack_no, CompressionLevel::None).unwrap();
            }
            faults.fail_from(PACKS, Fault::BeforeApply);
            prop_assert!(run(journal, false).await.is_err());
            faults.heal();
            let sent = packs(&store);
            prop_assert_eq!(sent.len() as u64, PACKS);
            sent.keys().for_each(|key| drop(store.remove(key)));
            let is_lost = lose_journal(&path, kind, at);
            for _ in 0..2 {
                let Err(error) = FileJournal::open_complete(&path, &binding) else { break };
                prop_assert!(is_lost && matches!(error, CloudError::JournalLost { .. }), "{error}");
            }
            let Ok(journal) = FileJournal::open_complete(&path, &binding) else { return Ok(()) };
            let manifest = run(journal, true).await.unwrap().manifest;
            for ((key, body), _) in sent.into_iter().zip(late).filter(|(_, is_late)| *is_late) {
                store.insert(&key, body);
            }
            prop_assert_eq!(restored(&repo, &manifest).await.unwrap(), live.content());
            prop_assert!(!is_lost);
            Ok(())
        })?;
    }
}
