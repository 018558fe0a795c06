//! Backups interrupted at each operation, by each fault: the stored objects are no snapshot, and the next run
//! resumes.
use crate::common::{BLOCK, fixed, restored, run, run_as, run_with, set};
use blockd_cloud::{
    BackupJournal, CancelToken, CloudError, CompressionLevel, EncryptionMode, FileJournal, JournalBinding,
    MemoryJournal, Repository, UploadOptions,
};
use blockd_extent::{BlockIndex, BlockSet, BlockSource, Extent};
use blockd_store::{BlobStore, LocalStore, StoreErrorKind};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

const SIZE: u64 = 200_000 * BLOCK as u64;

/// Compressible blocks of four packs, the third pack all zero.
fn volume() -> (MemoryVolume, BlockSet) {
    let live = MemoryVolume::default();
    let data = Extent::new(BlockIndex(50), 8192 * 4 - 100);
    for block in (data.start.0..data.end().0).filter(|block| block % 40 == 0) {
        if !(2 * 8192..3 * 8192).contains(&(block - 50)) {
            live.set(block, &[(block % 255) as u8 + 1; BLOCK]);
        }
    }
    (live, BlockSet::from_iter([data]))
}

fn journal(path: &Path, repo: &Repository, spec: &blockd_cloud::BackupSpec) -> Arc<FileJournal> {
    Arc::new(FileJournal::open(path, &JournalBinding::of(repo, spec)).unwrap())
}

fn manifests(store: &MemoryStore) -> usize {
    store.objects().keys().filter(|key| key.starts_with("blockd/manifests/")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_backup_resumes() {
    let (live, data) = volume();
    let expected = live.content();
    let clean = Arc::new(MemoryStore::default());
    let repo = fixed(clean.clone(), EncryptionMode::Aes256GcmSiv);
    let done = run(&repo, spec(7, SIZE, data.clone(), set([]), None), &live).await.unwrap();
    let operations = done.requests.total();
    assert_eq!(operations, 3 + 2, "three packs with bytes, the index, the manifest");

    for fault in [Fault::BeforeApply, Fault::AfterApply, Fault::NoSpace, Fault::Unauthorized] {
        // A full store stays full, and expired credentials stay invalid; other errors occur once or
        // permanently.
        let stays = matches!(fault, Fault::NoSpace | Fault::Unauthorized);
        let ways: &[bool] = if stays { &[true] } else { &[false, true] };
        for &network_gone in ways {
            for operation in 0..operations {
                let label = format!("{fault:?} at {operation}, gone: {network_gone}");
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("journal");
                let inner = Arc::new(MemoryStore::default());
                let faults = Arc::new(FaultStore::new(inner.clone()));
                let repo = fixed(faults.clone(), EncryptionMode::Aes256GcmSiv);
                let spec = spec(7, SIZE, data.clone(), set([]), None);
                match network_gone {
                    true => faults.fail_from(operation, fault),
                    false => faults.fail_at(operation, fault),
                }
                let reader = Arc::new(live.fork());
                let cancel = CancelToken::new();
                let first = journal(&path, &repo, &spec);
                let outcome = run_with(&repo, spec.clone(), reader, first, &cancel).await;
                let committed = operation == operations - 1 && fault == Fault::AfterApply;
                assert_eq!(manifests(&inner), usize::from(committed), "{label}");
                match outcome {
                    // The reply to the commit was lost, and the writer read the manifest.
                    Ok(_) => assert!(committed && !network_gone, "{label}"),
                    Err(error) => {
                        assert!(!committed || network_gone, "{label}: {error}");
                        let refused = fault == Fault::Unauthorized;
                        let says_why = matches!(&error, CloudError::Store(error) if (error.kind == StoreErrorKind::Unauthorized) == refused);
                        assert!(says_why, "{label}: {error}");
                    }
                }

                faults.heal();
                // A new process: only the file of the journal is left.
                let second = journal(&path, &repo, &spec);
                let kept = blockd_cloud::BackupJournal::completed(&*second);
                let reader = Arc::new(live.fork());
                let resumed = run_with(&repo, spec.clone(), reader.clone(), second, &cancel).await.unwrap();
                // Stored packs are neither read nor sent again.
                let read = reader.blocks_read().len_blocks();
                let full_packs = kept.iter().filter(|pack| **pack != 3).count() as u64;
                assert!(read <= data.len_blocks() - full_packs * 8192, "{label}: {read}");
                let sent = kept.iter().filter(|pack| **pack != 2).count() as u64;
                assert_eq!(resumed.requests.put, operations - sent, "{label}");
                assert_eq!(restored(&repo, &resumed.manifest).await.unwrap(), expected, "{label}");
                for (key, object) in inner.objects() {
                    if key.starts_with("blockd/data/") {
                        assert!(
                            clean.objects()[&key] == object,
                            "{label}: {key} differs from that of an uninterrupted run"
                        );
                    }
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packs_missing_on_resume_are_uploaded_again() {
    let (live, data) = volume();
    for gone in [vec![], vec![0], vec![0, 1, 3]] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let inner = Arc::new(MemoryStore::default());
        let faults = Arc::new(FaultStore::new(inner.clone()));
        let repo = fixed(faults.clone(), EncryptionMode::Aes256GcmSiv);
        let spec = spec(7, SIZE, data.clone(), set([]), None);
        let cancel = CancelToken::new();
        // All packs and the index are stored, the manifest is not.
        faults.fail_from(4, Fault::BeforeApply);
        let first = journal(&path, &repo, &spec);
        run_with(&repo, spec.clone(), Arc::new(live.fork()), first, &cancel).await.err().unwrap();
        faults.heal();
        for pack in &gone {
            let objects = inner.objects();
            let name = format!("/pack-{pack:08}");
            let key = objects.keys().find(|key| key.contains(&name)).unwrap();
            inner.delete(key).await.unwrap();
        }
        let second = journal(&path, &repo, &spec);
        let done = run_with(&repo, spec, Arc::new(live.fork()), second, &cancel).await.unwrap();
        // One request of each pack before the commit; and, because the first run reached the commit, one of
        // each pack and the index after it.
        assert_eq!((done.requests.get, done.requests.put), (3 + 4, gone.len() as u64 + 2), "{gone:?}");
        assert_eq!(restored(&repo, &done.manifest).await.unwrap(), live.content(), "{gone:?}");
    }
}

/// Cancels, or fails, in the middle of the reads.
struct Interrupting {
    live: MemoryVolume,
    cancel: Option<CancelToken>,
    at: Extent,
}

impl BlockSource for Interrupting {
    fn size_bytes(&self) -> u64 {
        self.live.size_bytes()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        if !Extent::touching(offset_bytes, buf.len() as u64).intersection(self.at).is_empty() {
            match &self.cancel {
                Some(cancel) => cancel.cancel(),
                None => return Err(io::Error::other("bad sector")),
            }
        }
        self.live.read_at(offset_bytes, buf)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_or_failed_backup_leaves_no_snapshot_and_resumes() {
    let (live, data) = volume();
    let at = Extent::new(BlockIndex(50 + 2 * 8192), 1);
    for cancelled in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (path, bucket) = (dir.path().join("journal"), dir.path().join("bucket"));
        std::fs::create_dir(&bucket).unwrap();
        let store: Arc<dyn BlobStore> = Arc::new(LocalStore::open(&bucket).unwrap());
        let repo = fixed(store.clone(), EncryptionMode::Checksummed);
        let spec = spec(7, SIZE, data.clone(), set([]), None);
        let cancel = CancelToken::new();
        let reader = Interrupting { live: live.fork(), cancel: cancelled.then(|| cancel.clone()), at };
        let first = journal(&path, &repo, &spec);
        let error = run_with(&repo, spec.clone(), Arc::new(reader), first, &cancel).await.err().unwrap();
        match cancelled {
            true => assert!(matches!(error, CloudError::Cancelled), "{error}"),
            false => {
                assert!(matches!(error, CloudError::ReadVolume { pack_no: 2, .. }), "{error}");
                assert!(error.to_string().contains("bad sector"), "{error}");
            }
        }
        assert!(store.list("blockd/manifests/").await.unwrap().is_empty());
        let second = journal(&path, &repo, &spec);
        let cancel = CancelToken::new();
        let done = run_with(&repo, spec, Arc::new(live.fork()), second, &cancel).await.unwrap();
        assert_eq!(restored(&repo, &done.manifest).await.unwrap(), live.content());
    }
}

#[tokio::test]
async fn journal_belongs_to_one_plan() {
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Checksummed);
    let spec_of = |blocks: &[u64]| spec(7, SIZE, set(blocks.iter().copied()), set([]), None);
    let binding = JournalBinding::of(&repo, &spec_of(&[1, 2]));
    assert_eq!(binding, JournalBinding::of(&repo, &spec_of(&[2, 1])));
    assert_ne!(binding, JournalBinding::of(&repo, &spec_of(&[1, 2, 3])));
    let mut salted = spec_of(&[1, 2]);
    salted.delta_salt[0] ^= 1;
    assert_ne!(binding, JournalBinding::of(&repo, &salted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_restore_is_reported_and_a_second_one_completes() {
    let (live, data) = volume();
    let faults = Arc::new(FaultStore::new(Arc::new(MemoryStore::default())));
    let repo = fixed(faults.clone(), EncryptionMode::Aes256GcmSiv);
    let done = run(&repo, spec(7, SIZE, data, set([]), None), &live).await.unwrap();
    let before = faults.operations();
    restored(&repo, &done.manifest).await.unwrap();
    let operations = faults.operations() - before;
    for fault in [Fault::BeforeApply, Fault::ShortBody, Fault::FlipBit] {
        for operation in 0..operations {
            faults.fail_at(faults.operations() + operation, fault);
            let error = restored(&repo, &done.manifest).await.expect_err("a restore that failed");
            if fault == Fault::FlipBit {
                assert!(matches!(error, CloudError::Damaged { .. }), "{error}");
            }
            faults.heal();
        }
    }
    assert_eq!(restored(&repo, &done.manifest).await.unwrap(), live.content());
}

/// A journal on a slow disk.
#[derive(Default)]
struct SlowJournal {
    journal: MemoryJournal,
    writes: AtomicUsize,
    completed: AtomicUsize,
}

impl BackupJournal for SlowJournal {
    fn completed(&self) -> Vec<u32> {
        self.journal.completed()
    }

    fn frame_lens(&self, pack_no: u32) -> Result<Option<Vec<u32>>, CloudError> {
        self.journal.frame_lens(pack_no)
    }

    fn level(&self, pack_no: u32) -> Option<CompressionLevel> {
        self.journal.level(pack_no)
    }

    fn record_level(&self, pack_no: u32, level: CompressionLevel) -> Result<(), CloudError> {
        self.journal.record_level(pack_no, level)
    }

    fn record(&self, pack_no: u32, level: CompressionLevel, frame_lens: &[u32]) -> Result<(), CloudError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_secs(1));
        self.journal.record(pack_no, level, frame_lens)?;
        self.completed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn record_commit(&self) -> Result<(), CloudError> {
        self.journal.record_commit()
    }

    fn may_be_committed(&self) -> bool {
        self.journal.may_be_committed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_backup_waits_for_writes_of_its_journal() {
    let (live, data) = volume();
    let faults = Arc::new(FaultStore::new(Arc::new(MemoryStore::default())));
    let repo = fixed(faults.clone(), EncryptionMode::Aes256GcmSiv);
    // The third upload begins after one of the others is recorded.
    let options = UploadOptions { upload_concurrency: 2, ..UploadOptions::default() };
    faults.fail_at(2, Fault::Unauthorized);
    let journal = Arc::new(SlowJournal::default());
    let spec = spec(7, SIZE, data, set([]), None);
    let failed = run_as(&repo, spec, Arc::new(live), journal.clone(), &options, &CancelToken::new()).await;
    assert!(failed.is_err());
    let writes = journal.writes.load(Ordering::SeqCst);
    assert!(writes > 0, "no pack was stored before the failure");
    assert_eq!(journal.completed.load(Ordering::SeqCst), writes);
}
