//! Tests of restores: chains of incrementals against a model, and layouts across all boundaries.
use crate::common::{BLOCK, CHECKED, Noise, fixed, restored, run, run_with, set, with_slot};
use blockd_cloud::{
    BackupSpec, CloudError, EncryptionMode, Manifest, MemoryJournal, NoCache, SnapshotReader, changed_blocks,
    delete_snapshot,
};
use blockd_extent::{BlockIndex, BlockSet, Extent, SnapshotId};
use blockd_store::{BlobStore, LocalStore};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use proptest::prelude::*;
use std::sync::Arc;

const TIB_BLOCKS: u64 = 1 << 28;

/// One step of a generation: change of an extent.
#[derive(Clone, Debug)]
enum Step {
    Write { start: u64, len: u64, kind: u8 },
    Trim { start: u64, len: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let start = prop_oneof![0u64..3000, TIB_BLOCKS - 600..TIB_BLOCKS + 300];
    let write =
        (start.clone(), 1u64..200, 0u8..4).prop_map(|(start, len, kind)| Step::Write { start, len, kind });
    let trim = (start, 1u64..300).prop_map(|(start, len)| Step::Trim { start, len });
    prop_oneof![3 => write, 1 => trim]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, ..ProptestConfig::default() })]
    #[test]
    fn generations_restore_to_their_own_content(
        generations in prop::collection::vec(prop::collection::vec(step(), 0..12), 1..=9),
        encrypted: bool,
        gone in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mode = if encrypted { EncryptionMode::Aes256GcmSiv } else { EncryptionMode::Checksummed };
            let store = Arc::new(MemoryStore::default());
            let repo = with_slot(&store, mode);
            let live = MemoryVolume::default();
            let mut noise = Noise(seed | 1);
            let mut made = Vec::new();
            let size = (TIB_BLOCKS + 1000) * BLOCK as u64 - 1;
            for (generation, steps) in generations.iter().enumerate() {
                let (mut data, mut zero) = (BlockSet::new(), BlockSet::new());
                for step in steps {
                    match step {
                        Step::Write { start, len, kind } => {
                            for block in *start..start + len {
                                let content = match kind {
                                    0 => vec![0; BLOCK],
                                    1 => vec![(block % 255) as u8 + 1; BLOCK],
                                    _ => noise.block(),
                                };
                                live.set(block, &content);
                            }
                            data.insert_extent(Extent::new(BlockIndex(*start), *len));
                            zero.remove_extent(Extent::new(BlockIndex(*start), *len));
                        }
                        Step::Trim { start, len } => {
                            (*start..start + len).for_each(|block| live.clear(block));
                            zero.insert_extent(Extent::new(BlockIndex(*start), *len));
                            data.remove_extent(Extent::new(BlockIndex(*start), *len));
                        }
                    }
                }
                let base = made.last().map(|(manifest, _)| manifest);
                let spec = spec(generation as u64 + 1, size, data, zero, base);
                let manifest = run(&repo, spec, &live).await.unwrap().manifest;
                made.push((manifest, live.content()));
            }
            for gone in gone {
                if made.len() > 1 {
                    let (manifest, _) = made.remove(gone.index(made.len()));
                    delete_snapshot(&repo, &manifest.id(), &[], &NoCache, CHECKED).await.unwrap();
                }
            }
            for (manifest, expected) in &made {
                let manifest = repo.manifest(&manifest.id()).await.unwrap();
                prop_assert!(restored(&repo, &manifest).await.unwrap() == *expected, "{}", manifest.id());
                let reader = SnapshotReader::open(&repo, &manifest).await.unwrap();
                let extent = Extent::new(BlockIndex(TIB_BLOCKS - 300), 500);
                let read = reader.read_blocks(extent).await.unwrap();
                for (block, content) in (extent.start.0..).zip(read.chunks_exact(BLOCK)) {
                    let zeroes = vec![0; BLOCK];
                    prop_assert!(expected.get(&block).map_or(&zeroes[..], |b| b) == content, "block {}", block);
                }
            }
            Ok(())
        })?;
    }
}

/// Candidates over several pages and packs, most of them zero, with short frames in the middle of a pack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packs_cross_the_borders_of_pages() {
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    let live = MemoryVolume::default();
    let mut noise = Noise(3);
    // 77 blocks end the first terabyte with a short frame; 140,000 need two pages; a pack begins in one page
    // and ends in another at each border.
    let runs = [(TIB_BLOCKS - 77, 77), (TIB_BLOCKS, 140_000), (2 * TIB_BLOCKS + 5, 10_000)];
    let data: BlockSet = runs.iter().map(|(start, len)| Extent::new(BlockIndex(*start), *len)).collect();
    for block in data.blocks().map(|block| block.0).step_by(301) {
        live.set(block, &noise.block());
    }
    let size = (2 * TIB_BLOCKS + 100_000) * BLOCK as u64;
    let full = run(&repo, spec(1, size, data, BlockSet::new(), None), &live).await.unwrap();
    assert_eq!(full.manifest.delta.pack_count, (1u32 + 1024 + 70 + 79).div_ceil(64));
    assert_eq!(restored(&repo, &full.manifest).await.unwrap(), live.content());

    // A trim of half a terabyte costs no reads and few stored bytes.
    let trimmed = Extent::new(BlockIndex(TIB_BLOCKS), TIB_BLOCKS / 2);
    (trimmed.start.0..trimmed.start.0 + 140_000).for_each(|block| live.clear(block));
    let trim = spec(2, size, BlockSet::new(), BlockSet::from_iter([trimmed]), Some(&full.manifest));
    let trim = run(&repo, trim, &live).await.unwrap();
    assert!(trim.manifest.stored_bytes < 100_000, "{}", trim.manifest.stored_bytes);
    assert_eq!(restored(&repo, &trim.manifest).await.unwrap(), live.content());
    let reader = SnapshotReader::open(&repo, &trim.manifest).await.unwrap();
    let seen = reader.data_blocks(Extent::whole(size)).await.unwrap();
    assert_eq!(seen.intersection_len(trimmed), 0);
    assert_eq!(seen.len_blocks(), 77 + 10_000);
}

#[tokio::test]
async fn specs_that_make_no_sense_are_refused() {
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Checksummed);
    let live = MemoryVolume::default();
    let size = 100 * BLOCK as u64;
    let full = run(&repo, spec(1, size, set([1]), BlockSet::new(), None), &live).await.unwrap().manifest;
    let refused = async |spec, word: &str| {
        let error = run(&repo, spec, &live).await.err().unwrap();
        assert!(matches!(error, CloudError::InvalidRequest { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(spec(2, size, set([100]), BlockSet::new(), None), "beyond the end").await;
    refused(spec(2, size, BlockSet::new(), set([100]), None), "beyond the end").await;
    refused(spec(2, size, set([5]), set([5]), None), "block 5").await;
    refused(spec(1, size, set([5]), set([]), Some(&full)), "its own base").await;
    refused(spec(2, size - BLOCK as u64, set([5]), set([]), Some(&full)), "larger volume").await;
    // The same id again is another snapshot, and the first one stays.
    let mut again = spec(1, size, set([2]), BlockSet::new(), None);
    again.delta_salt = [99; 32];
    let error = run(&repo, again, &live).await.err().unwrap();
    assert!(matches!(error, CloudError::Conflict { .. }), "{error}");
}

/// Lazy volume, whose first backup is based on the cloud snapshot of another volume.
#[tokio::test]
async fn chain_across_volumes_keeps_the_deltas_it_needs() {
    let repo = with_slot(&Arc::new(MemoryStore::default()), EncryptionMode::Aes256GcmSiv);
    let live = MemoryVolume::default();
    let size = 100 * BLOCK as u64;
    live.set(7, &[1; BLOCK]);
    let full = run(&repo, spec(1, size, set([7]), set([]), None), &live).await.unwrap().manifest;
    live.set(8, &[2; BLOCK]);
    let second = run(&repo, spec(2, size, set([8]), set([]), Some(&full)), &live).await.unwrap().manifest;
    live.set(9, &[3; BLOCK]);
    let of_copy = |snapshot, block: u64, base: &Manifest| BackupSpec {
        cluster: uuid::Uuid::from_u128(99),
        volume: blockd_extent::VolumeId::from_u64(4),
        ..spec(snapshot, size, set([block]), set([]), Some(base))
    };
    let copy = run(&repo, of_copy(3, 9, &second), &live).await.unwrap().manifest;
    assert_eq!(restored(&repo, &copy).await.unwrap(), live.content());
    let since = |snapshot| changed_blocks(&repo, &copy, SnapshotId::from_u64(snapshot));
    assert_eq!(since(1).await.unwrap(), Some(set([8, 9])));
    assert_eq!(since(2).await.unwrap(), Some(set([9])));
    assert_eq!(since(3).await.unwrap(), Some(set([])));
    assert_eq!(since(4).await.unwrap(), None);
    // Both snapshots of the other volume are deleted; their deltas are still needed.
    for gone in [&full, &second] {
        let report = delete_snapshot(&repo, &gone.id(), &[], &NoCache, CHECKED).await.unwrap();
        assert_eq!(report.deltas_deleted, 0);
    }
    assert_eq!(restored(&repo, &copy).await.unwrap(), live.content());
    let report = delete_snapshot(&repo, &copy.id(), &[], &NoCache, CHECKED).await.unwrap();
    assert_eq!(report.deltas_deleted, 3);
    let left = repo.store().list("").await.unwrap();
    assert!(left.iter().all(|left| left.key.starts_with("blockd/keys")), "{left:?}");
}

#[tokio::test]
async fn grown_volume_restores_each_generation() {
    let repo = fixed(Arc::new(MemoryStore::default()), EncryptionMode::Checksummed);
    let live = MemoryVolume::default();
    live.set(99, &[1; BLOCK]);
    let full = run(&repo, spec(1, 100 * BLOCK as u64, set([99]), set([]), None), &live).await.unwrap();
    live.set(150, &[2; BLOCK]);
    let grown = spec(2, 200 * BLOCK as u64, set([150]), set([]), Some(&full.manifest));
    let grown = run(&repo, grown, &live).await.unwrap();
    assert_eq!(restored(&repo, &grown.manifest).await.unwrap(), live.content());
}

#[tokio::test]
async fn deltas_of_running_backups_are_kept() {
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Checksummed);
    let live = MemoryVolume::default();
    live.set(1, &[1; BLOCK]);
    let full =
        run(&repo, spec(1, 100 * BLOCK as u64, set([1]), set([]), None), &live).await.unwrap().manifest;
    let report =
        delete_snapshot(&repo, &full.id(), &[SnapshotId::from_u64(1)], &NoCache, CHECKED).await.unwrap();
    assert_eq!((report.deltas_deleted, report.kept), (0, vec![SnapshotId::from_u64(1)]));
    // The leftovers of an interrupted deletion are deleted with the known manifest.
    let report = blockd_cloud::delete_with_manifest(&repo, &full, &[], &NoCache, CHECKED).await.unwrap();
    assert_eq!((report.deltas_deleted, report.objects_deleted), (1, 2));
    assert!(store.objects().keys().all(|key| key.starts_with("blockd/keys")));
}

#[tokio::test]
async fn deleted_base_takes_the_incremental_back() {
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Checksummed);
    let live = MemoryVolume::default();
    live.set(1, &[1; BLOCK]);
    let full =
        run(&repo, spec(1, 100 * BLOCK as u64, set([1]), set([]), None), &live).await.unwrap().manifest;
    delete_snapshot(&repo, &full.id(), &[], &NoCache, CHECKED).await.unwrap();
    let incremental = spec(2, 100 * BLOCK as u64, set([2]), set([]), Some(&full));
    let journal = Arc::new(MemoryJournal::default());
    let cancel = blockd_cloud::CancelToken::new();
    let error = run_with(&repo, incremental, Arc::new(live.fork()), journal, &cancel).await.err().unwrap();
    assert!(matches!(error, CloudError::NeededDeleted { .. }), "{error}");
    assert!(store.objects().keys().all(|key| !key.starts_with("blockd/manifests/")));
}

/// Every other block of the first terabytes, made without setting each: the set's encoding has 8 KiB for
/// 65536 blocks.
fn every_other_block(tib: u32) -> BlockSet {
    let containers = tib << 12;
    let mut bitmap = [12346u32.to_le_bytes(), containers.to_le_bytes()].concat();
    for container in 0..containers {
        bitmap.extend_from_slice(&(container as u16).to_le_bytes());
        bitmap.extend_from_slice(&(32768u16 - 1).to_le_bytes());
    }
    for container in 0..containers {
        bitmap.extend_from_slice(&(8 + containers * 8 + container * 8192).to_le_bytes());
    }
    bitmap.resize(bitmap.len() + containers as usize * 8192, 0xaa);
    let head = [1u32, 0, bitmap.len() as u32].map(u32::to_le_bytes).concat();
    BlockSet::from_bytes(&[head, bitmap].concat()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_index_is_uploaded_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let memory: Arc<dyn BlobStore> = Arc::new(MemoryStore::default());
    let local: Arc<dyn BlobStore> = Arc::new(LocalStore::open(dir.path()).unwrap());
    let zero = every_other_block(3);
    assert!(zero.contains(BlockIndex(1)) && !zero.contains(BlockIndex(2)));
    for store in [memory, local] {
        let faults = Arc::new(FaultStore::new(store.clone()));
        let repo = fixed(faults.clone(), EncryptionMode::Aes256GcmSiv);
        let live = MemoryVolume::default();
        live.set(2, &[1; BLOCK]);
        live.set(3, &[2; BLOCK]);
        let full = run(&repo, spec(1, 3 << 40, set([2, 3]), set([]), None), &live).await.unwrap().manifest;
        live.clear(3);
        let next = || spec(2, 3 << 40, set([]), zero.clone(), Some(&full));
        faults.fail_at(faults.operations() + 3, Fault::BeforeApply);
        assert!(run(&repo, next(), &live).await.is_err());
        // The reply to the completion is lost, and the object exists.
        faults.fail_at(faults.operations() + 1 + 7, Fault::AfterApply);
        let done = run(&repo, next(), &live).await.unwrap();
        assert_eq!((done.requests.put, done.requests.multipart), (1, 1 + 7 + 1));
        assert_eq!(done.requests.get, 1 + 1, "one request of the object's end, and one of the base");
        assert!(done.manifest.delta.index.len_bytes > 96 << 20);
        assert_eq!(restored(&repo, &done.manifest).await.unwrap(), live.content());
    }
    let hidden = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().starts_with('.');
    let mut pending = vec![dir.path().to_owned()];
    while let Some(at) = pending.pop() {
        for entry in std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()) {
            assert!(!hidden(&entry), "the parts of the failed attempt are left: {}", entry.display());
            if entry.is_dir() {
                pending.push(entry);
            }
        }
    }
}
