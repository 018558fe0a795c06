//! Verification finds each damage that affects a restore, names it, and lists the lost blocks of each
//! snapshot; a restore can skip it.
use crate::common::{BLOCK, Noise, requests, run, set, with_slot};
use blockd_cloud::{
    BlockCheck, CancelToken, CloudSnapshotId, EncryptionMode, Manifest, ManifestKey, NoCache, Progress,
    Repository, RestoreOptions, RestoreRequest, VerifyDepth, VerifyOptions, VerifyReport, restore, verify,
};
use blockd_extent::{BlockIndex, BlockSet, Extent};
use blockd_store::{RetryPolicy, task_store};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::MemoryStore;
use std::{collections::BTreeMap, io, sync::Arc};

const SIZE: u64 = 100_000 * BLOCK as u64;
const DEPTHS: [VerifyDepth; 3] = [VerifyDepth::Quick, VerifyDepth::Full, VerifyDepth::Deep];

struct Sample {
    store: Arc<MemoryStore>,
    repo: Repository,
    live: MemoryVolume,
    full: Manifest,
    incremental: Manifest,
}

/// Blocks of a frame.
const FRAME: u64 = 128;
/// Stored bytes of a frame of noise.
const FRAME_LEN: usize = FRAME as usize * BLOCK + 33;

/// A full backup of three frames, and an incremental that replaces the first and frees block 140.
async fn sample() -> Sample {
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    let live = MemoryVolume::default();
    let mut noise = Noise(3);
    (0..3 * FRAME).for_each(|block| live.set(block, &noise.block()));
    let data = BlockSet::from_iter([Extent::new(BlockIndex(0), 3 * FRAME)]);
    let full = run(&repo, spec(1, SIZE, data, set([]), None), &live).await.unwrap().manifest;
    (0..FRAME).for_each(|block| live.set(block, &noise.block()));
    live.clear(140);
    let spec = spec(2, SIZE, set(0..FRAME), set([140]), Some(&full));
    let incremental = run(&repo, spec, &live).await.unwrap().manifest;
    Sample { store, repo, live, full, incremental }
}

impl Sample {
    fn ids(&self) -> [CloudSnapshotId; 2] {
        [self.full.id(), self.incremental.id()]
    }

    fn pack_of(&self, manifest: &Manifest) -> String {
        format!("blockd/data/{}/{}/{}/pack-00000000", manifest.cluster, manifest.volume, manifest.snapshot)
    }

    fn spoil(&self, key: &str, at: usize) {
        let mut body = self.store.objects()[key].to_vec();
        body[at] ^= 4;
        self.store.insert(key, body);
    }

    async fn verify(&self, ids: &[CloudSnapshotId], depth: VerifyDepth) -> VerifyReport {
        let options = VerifyOptions { depth, ..VerifyOptions::default() };
        let progress = Arc::new(Progress::new(requests()));
        let cancel = CancelToken::new();
        let report =
            verify(&self.repo, ids, &options, &|_| None, &NoCache, progress.clone(), &cancel).await.unwrap();
        let seen = progress.snapshot();
        assert_eq!(seen.bytes_processed, seen.bytes_total);
        report
    }
}

fn damaged(report: &VerifyReport, id: CloudSnapshotId) -> Vec<Extent> {
    let found = report.snapshots.iter().find(|snapshot| snapshot.id == id).unwrap();
    assert_eq!(found.is_sound(), found.damaged.is_empty());
    found.damaged.extents().collect()
}

#[tokio::test]
async fn sound_backup_is_verified_with_one_read() {
    let sample = sample().await;
    for depth in DEPTHS {
        let report = sample.verify(&sample.ids(), depth).await;
        assert_eq!((report.findings_total, report.deltas, report.objects), (0, 2, 4), "{depth:?}");
        assert!(report.snapshots.iter().all(|snapshot| snapshot.is_sound()));
        let blocks = match depth {
            VerifyDepth::Quick => 0,
            // The delta that both share is read once.
            VerifyDepth::Full => 3 * FRAME + FRAME,
            // Visible blocks of each, without the freed one.
            VerifyDepth::Deep => 6 * FRAME - 1,
        };
        assert_eq!(report.block_bytes, blocks * BLOCK as u64, "{depth:?}");
        let digests: Vec<_> = report.snapshots.iter().filter_map(|snapshot| snapshot.digest).collect();
        assert_eq!(digests.len(), if depth == VerifyDepth::Deep { 2 } else { 0 });
        assert!(digests.windows(2).all(|pair| pair[0] != pair[1]));
    }
}

#[tokio::test]
async fn damaged_frame_is_named_with_the_lost_extents() {
    // The second frame of the full one: both see it, but for the block that was freed.
    let sample = sample().await;
    let pack = sample.pack_of(&sample.full);
    sample.spoil(&pack, 64 + FRAME_LEN + 100);
    assert_eq!(sample.verify(&sample.ids(), VerifyDepth::Quick).await.findings_total, 0);
    for depth in [VerifyDepth::Full, VerifyDepth::Deep] {
        let report = sample.verify(&sample.ids(), depth).await;
        assert_eq!(report.findings.len(), 1, "{depth:?}: {:?}", report.findings);
        let finding = &report.findings[0];
        assert_eq!((finding.object.as_str(), finding.offset_bytes), (pack.as_str(), 64 + FRAME_LEN as u64));
        assert!(finding.what.contains("does not open"), "{}", finding.what);
        let both = [Extent::new(BlockIndex(FRAME), 12), Extent::new(BlockIndex(141), FRAME - 13)];
        assert_eq!(damaged(&report, sample.full.id()), [Extent::new(BlockIndex(FRAME), FRAME)]);
        assert_eq!(damaged(&report, sample.incremental.id()), both);
    }
    // A verification of one reports the other as well.
    let report = sample.verify(&sample.ids()[..1], VerifyDepth::Full).await;
    let told: Vec<_> = report.findings[0].affects.iter().map(|affected| affected.id).collect();
    assert_eq!((report.snapshots.len(), told.len()), (1, 2));
    assert!(sample.ids().iter().all(|id| told.contains(id)));

    // The first frame of the full one is hidden from the incremental.
    let sample = self::sample().await;
    sample.spoil(&sample.pack_of(&sample.full), 70);
    let report = sample.verify(&sample.ids(), VerifyDepth::Full).await;
    assert_eq!(damaged(&report, sample.full.id()), [Extent::new(BlockIndex(0), FRAME)]);
    assert_eq!(damaged(&report, sample.incremental.id()), []);
    // A deep verification of the incremental alone finds nothing.
    let report = sample.verify(&[sample.incremental.id()], VerifyDepth::Deep).await;
    assert_eq!(report.findings_total, 0);
}

#[tokio::test]
async fn many_deltas_of_a_volume_are_listed_at_once() {
    let sample = sample().await;
    let mut newest = sample.incremental.clone();
    for snapshot in 3..=10 {
        let next = spec(snapshot, SIZE, set([snapshot]), set([]), Some(&newest));
        newest = run(&sample.repo, next, &sample.live).await.unwrap().manifest;
    }
    let found = async |ids: &[CloudSnapshotId]| {
        let (store, requests) = task_store(sample.repo.store().clone(), RetryPolicy::default());
        let options = VerifyOptions { depth: VerifyDepth::Quick, ..VerifyOptions::default() };
        let (repo, progress) = (sample.repo.with_store(store), Arc::new(Progress::new(requests.clone())));
        let cancel = CancelToken::new();
        let report = verify(&repo, ids, &options, &|_| None, &NoCache, progress, &cancel).await.unwrap();
        (report.deltas, requests.snapshot().list, report.findings_total)
    };
    assert_eq!(found(&sample.ids()).await, (2, 2, 0));
    assert_eq!(found(&[newest.id()]).await, (10, 1, 0));
    // Its number begins like that of the first one.
    sample.store.remove(&sample.pack_of(&newest)).unwrap();
    let (deltas, _, findings) = found(&[newest.id()]).await;
    assert_eq!((deltas, findings), (10, 1));
}

#[tokio::test]
async fn missing_or_truncated_objects_are_found_by_a_listing() {
    for depth in DEPTHS {
        for cut in [None, Some(0), Some(1000)] {
            let sample = sample().await;
            let pack = sample.pack_of(&sample.incremental);
            let body = sample.store.remove(&pack).unwrap();
            if let Some(len) = cut {
                sample.store.insert(&pack, body.slice(..len));
            }
            let report = sample.verify(&sample.ids(), depth).await;
            assert_eq!((report.deltas, report.objects), (2, 4), "{depth:?} {cut:?}");
            assert!(report.findings.iter().all(|finding| finding.object == pack), "{depth:?} {cut:?}");
            assert_eq!(damaged(&report, sample.incremental.id()), [Extent::new(BlockIndex(0), FRAME)]);
            assert_eq!(damaged(&report, sample.full.id()), []);
        }
        // A foreign object has the size of the missing one.
        let sample = sample().await;
        let pack = sample.pack_of(&sample.incremental);
        let body = sample.store.remove(&pack).unwrap();
        sample.store.insert(&pack.replace("pack-00000000", "pack-00000007"), body);
        let report = sample.verify(&sample.ids(), depth).await;
        assert_eq!((report.deltas, report.objects), (2, 4), "{depth:?}");
        assert!(report.findings.iter().any(|finding| finding.object == pack), "{depth:?}");
        assert_eq!(damaged(&report, sample.incremental.id()), [Extent::new(BlockIndex(0), FRAME)]);
        // The index: blocks below it are unknown.
        let sample = self::sample().await;
        let index = sample.pack_of(&sample.full).replace("pack-00000000", "index");
        sample.store.remove(&index).unwrap();
        let report = sample.verify(&sample.ids(), depth).await;
        assert_eq!((report.deltas, report.objects), (2, 4), "{depth:?}");
        assert!(report.findings.iter().any(|finding| finding.object == index), "{depth:?}");
        assert!(!damaged(&report, sample.full.id()).is_empty());
        assert!(!damaged(&report, sample.incremental.id()).is_empty());
        // A manifest.
        let sample = self::sample().await;
        let key = sample.full.id().manifest_key();
        sample.spoil(&key, 80);
        let report = sample.verify(&sample.ids(), depth).await;
        assert_eq!(report.findings.len(), 1);
        assert_eq!(report.findings[0].object, key);
        let sound: Vec<_> = report.snapshots.iter().map(|snapshot| snapshot.is_sound()).collect();
        assert_eq!(sound, [false, true]);
    }
}

/// Compares with the content of a volume.
struct Against {
    live: MemoryVolume,
    differing: parking_lot::Mutex<Vec<u64>>,
}

impl BlockCheck for Against {
    fn blocks(&self, start: BlockIndex, data: &[u8]) -> io::Result<()> {
        for (n, block) in data.chunks(BLOCK).enumerate() {
            let at = start.0 + n as u64;
            if self.live.block(at) != block {
                self.differing.lock().push(at);
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn content_comparison_reports_each_difference() {
    let sample = sample().await;
    sample.live.set(77, &[1; BLOCK]);
    let against = Arc::new(Against { live: sample.live.fork(), differing: Default::default() });
    let options = VerifyOptions { depth: VerifyDepth::Deep, ..VerifyOptions::default() };
    let check: Arc<dyn BlockCheck> = against.clone();
    let (progress, cancel) = (Arc::new(Progress::new(requests())), CancelToken::new());
    let of = |id: &CloudSnapshotId| (*id == sample.incremental.id()).then(|| check.clone());
    let ids = sample.ids();
    let report = verify(&sample.repo, &ids, &options, &of, &NoCache, progress, &cancel);
    assert_eq!(report.await.unwrap().findings_total, 0);
    assert_eq!(*against.differing.lock(), [77]);
}

#[tokio::test]
async fn restore_skips_damage_and_lists_the_missing_extents() {
    let sample = sample().await;
    let pack = sample.pack_of(&sample.full);
    sample.spoil(&pack, 64 + 2 * FRAME_LEN + 9);
    let restore = async |skip_damaged| {
        let target = Arc::new(MemoryVolume::default());
        let request = RestoreRequest { skip_damaged, ..RestoreRequest::default() };
        let (progress, cancel) = (Arc::new(Progress::new(requests())), CancelToken::new());
        let options = RestoreOptions::default();
        let done =
            restore(&sample.repo, &sample.incremental, target.clone(), &request, &options, progress, &cancel);
        done.await.map(|summary| (summary.damage, target.content()))
    };
    let error = restore(false).await.unwrap_err();
    assert!(error.to_string().contains(&pack), "{error}");
    let (damage, content) = restore(true).await.unwrap();
    assert_eq!(damage.blocks.extents().collect::<Vec<_>>(), [Extent::new(BlockIndex(2 * FRAME), FRAME)]);
    assert_eq!((damage.parts.len(), damage.parts[0].offset_bytes), (1, 64 + 2 * FRAME_LEN as u64));
    let mut expected: BTreeMap<_, _> = sample.live.content();
    expected.retain(|block, _| !(2 * FRAME..3 * FRAME).contains(block));
    assert_eq!(content, expected);
}
