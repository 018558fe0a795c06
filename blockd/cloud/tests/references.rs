//! Tests of references: synthetic full backups against a model, displaced references, and damage of sources.
use crate::common::{BLOCK, CHECKED, Noise, requests, restored, restored_with, run, set, with_slot};
use blockd_cloud::{
    BackupSpec, BackupType, CancelToken, CloudError, CloudSnapshotId, Delta, EncryptionMode, GarbageOptions,
    Manifest, ManifestKey, NoCache, Progress, References, Repository, SnapshotReader, Unchanged, VerifyDepth,
    VerifyOptions, VerifyReport, collect_garbage, delete_snapshot, unchanged_since, verify,
};
use blockd_extent::{BlockIndex, BlockSet, BlockSource, Extent, SnapshotId};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::MemoryStore;
use jiff::Timestamp;
use proptest::prelude::*;
use std::{collections::BTreeMap, sync::Arc};

const BLOCKS: u64 = 3000;
const SIZE: u64 = BLOCKS * BLOCK as u64;

/// Returns the specification of a synthetic full backup of these changes since a base.
async fn synthetic(
    repo: &Repository,
    snapshot: u64,
    data: BlockSet,
    zero: BlockSet,
    base: &Manifest,
) -> BackupSpec {
    let mut changed = data.clone();
    changed.union_with(&zero);
    let Unchanged { references, again } = unchanged_since(repo, base, &changed, |_| false).await.unwrap();
    let mut data = data;
    data.union_with(&again);
    BackupSpec { references, synthetic: true, ..spec(snapshot, SIZE, data, zero, Some(base)) }
}

async fn verified(repo: &Repository, ids: &[CloudSnapshotId], depth: VerifyDepth) -> VerifyReport {
    let options = VerifyOptions { depth, ..VerifyOptions::default() };
    let progress = Arc::new(Progress::new(requests()));
    let cancel = CancelToken::new();
    let report = verify(repo, ids, &options, &|_| None, &NoCache, progress.clone(), &cancel).await.unwrap();
    let seen = progress.snapshot();
    assert_eq!(seen.bytes_processed, seen.bytes_total);
    report
}

/// Reads a snapshot block by block, and in longer parts.
async fn read_at_random(repo: &Repository, manifest: &Manifest) -> Vec<u8> {
    let reader = SnapshotReader::open(repo, manifest).await.unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut content = vec![0; SIZE as usize];
        for (n, part) in content.chunks_mut(37 * BLOCK).enumerate() {
            reader.read_at((n * 37 * BLOCK) as u64, part).unwrap();
        }
        for block in (0..SIZE).step_by(11 * BLOCK) {
            let mut one = vec![1; BLOCK];
            reader.read_at(block, &mut one).unwrap();
            assert!(one == content[block as usize..block as usize + BLOCK]);
        }
        content
    });
    read.await.unwrap()
}

fn flat(content: &BTreeMap<u64, Box<[u8]>>) -> Vec<u8> {
    let mut flat = vec![0; SIZE as usize];
    for (block, bytes) in content {
        flat[*block as usize * BLOCK..][..BLOCK].copy_from_slice(bytes);
    }
    flat
}

#[derive(Clone, Debug)]
struct Generation {
    kind: u8,
    writes: Vec<(u64, u64, u8)>,
    trims: Vec<(u64, u64)>,
    delete: Option<prop::sample::Index>,
    by_collection: bool,
}

fn generation() -> impl Strategy<Value = Generation> {
    let writes = prop::collection::vec((0..BLOCKS - 300, 1u64..200, 0u8..3), 0..6);
    let trims = prop::collection::vec((0..BLOCKS - 300, 1u64..200), 0..2);
    let delete = prop::option::of(any::<prop::sample::Index>());
    let all = (0u8..5, writes, trims, delete, any::<bool>());
    all.prop_map(|(kind, writes, trims, delete, by_collection)| Generation {
        kind,
        writes,
        trims,
        delete,
        by_collection,
    })
}

/// Changes the volume; returns the changed data and zero blocks.
fn change(live: &MemoryVolume, noise: &mut Noise, one: &Generation) -> (BlockSet, BlockSet) {
    let (mut data, mut zero) = (BlockSet::new(), BlockSet::new());
    for (start, len, kind) in &one.writes {
        for block in *start..start + len {
            live.set(block, &if *kind == 0 { vec![0; BLOCK] } else { noise.block() });
        }
        data.insert_extent(Extent::new(BlockIndex(*start), *len));
    }
    for (start, len) in &one.trims {
        (*start..start + len).for_each(|block| live.clear(block));
        data.remove_extent(Extent::new(BlockIndex(*start), *len));
        zero.insert_extent(Extent::new(BlockIndex(*start), *len));
    }
    (data, zero)
}

async fn delete(repo: &Repository, store: &MemoryStore, gone: &Manifest, by_collection: bool) {
    if by_collection {
        store.remove(&gone.id().manifest_key()).unwrap();
        let now = Timestamp::from_second(1000 + 9 * 24 * 3600).unwrap();
        let options = GarbageOptions { now, ..GarbageOptions::default() };
        collect_garbage(repo, &options, &NoCache).await.unwrap();
    } else {
        delete_snapshot(repo, &gone.id(), &[], &NoCache, CHECKED).await.unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, ..ProptestConfig::default() })]
    #[test]
    fn synthetic_fulls_restore_like_a_model(
        generations in prop::collection::vec(generation(), 2..=8),
        encrypted: bool,
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mode = if encrypted { EncryptionMode::Aes256GcmSiv } else { EncryptionMode::Checksummed };
            let store = Arc::new(MemoryStore::default());
            store.set_clock(1000);
            let repo = with_slot(&store, mode);
            let (live, mut noise) = (MemoryVolume::default(), Noise(seed | 1));
            let mut made: Vec<(Manifest, _)> = Vec::new();
            for (n, one) in (1..).zip(&generations) {
                let (data, zero) = change(&live, &mut noise, one);
                let base = made.last().map(|(manifest, _)| manifest);
                let spec = match (base, one.kind) {
                    (Some(base), 0 | 1) => synthetic(&repo, n, data.clone(), zero, base).await,
                    (Some(_), 2) | (None, _) => spec(n, SIZE, set(0..BLOCKS), set([]), None),
                    (base, _) => spec(n, SIZE, data.clone(), zero, base),
                };
                let (is_synthetic, stored) = (spec.synthetic, spec.data.len_blocks());
                let manifest = run(&repo, spec, &live).await.unwrap().manifest;
                if is_synthetic {
                    prop_assert_eq!(manifest.delta.data_blocks, stored);
                    prop_assert!(manifest.chain.is_empty() && manifest.backup_type == BackupType::Full);
                }
                made.push((manifest, live.content()));
                if let Some(gone) = one.delete.filter(|_| made.len() > 1) {
                    // The newest one stays, as the base of the next one.
                    let (gone, _) = made.remove(gone.index(made.len() - 1));
                    delete(&repo, &store, &gone, one.by_collection).await;
                }
            }
            for (manifest, expected) in &made {
                let manifest = repo.manifest(&manifest.id()).await.unwrap();
                prop_assert!(restored(&repo, &manifest).await.unwrap() == *expected, "{}", manifest.id());
                prop_assert!(read_at_random(&repo, &manifest).await == flat(expected), "{}", manifest.id());
            }
            let ids: Vec<_> = made.iter().map(|(manifest, _)| manifest.id()).collect();
            for depth in [VerifyDepth::Quick, VerifyDepth::Full, VerifyDepth::Deep] {
                let report = verified(&repo, &ids, depth).await;
                prop_assert!(report.findings.is_empty(), "{depth}: {:?}", report.findings);
            }
            Ok(())
        })?;
    }
}

/// A full backup of 600 blocks of noise, an incremental that replaces the first 100, and a synthetic full
/// that replaces block 5.
async fn sample() -> (Arc<MemoryStore>, Repository, MemoryVolume, [Manifest; 3]) {
    let store = Arc::new(MemoryStore::default());
    let repo = with_slot(&store, EncryptionMode::Aes256GcmSiv);
    let (live, mut noise) = (MemoryVolume::default(), Noise(3));
    (0..600).for_each(|block| live.set(block, &noise.block()));
    let full = run(&repo, spec(1, SIZE, set(0..600), set([]), None), &live).await.unwrap().manifest;
    (0..100).for_each(|block| live.set(block, &noise.block()));
    let next = run(&repo, spec(2, SIZE, set(0..100), set([]), Some(&full)), &live).await.unwrap().manifest;
    live.set(5, &noise.block());
    let third = synthetic(&repo, 3, set([5]), set([]), &next).await;
    let third = run(&repo, third, &live).await.unwrap().manifest;
    (store, repo, live, [full, next, third])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synthetic_full_stores_the_change_only() {
    let (store, repo, live, [full, next, third]) = sample().await;
    assert!(third.stored_bytes < full.stored_bytes / 100, "{} bytes", third.stored_bytes);
    assert_eq!((third.delta.data_blocks, third.delta.reference_blocks), (1, 599));
    assert_eq!(third.sources, [full.delta.clone(), next.delta.clone()]);
    // Each index and each pack of the three deltas once.
    let (content, counts) = restored_with(&repo, &third).await.unwrap();
    assert_eq!((content, counts.get), (live.content(), 3 + 3));
    for gone in [&full, &next] {
        let report = delete_snapshot(&repo, &gone.id(), &[], &NoCache, CHECKED).await.unwrap();
        assert_eq!(report.deltas_deleted, 0);
    }
    assert_eq!(restored(&repo, &third).await.unwrap(), live.content());
    let report = delete_snapshot(&repo, &third.id(), &[], &NoCache, CHECKED).await.unwrap();
    assert_eq!(report.deltas_deleted, 3);
    assert!(store.objects().keys().all(|key| key.starts_with("blockd/keys")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sparse_source_is_stored_again_unless_it_stays() {
    let (_, repo, live, [full, next, _]) = sample().await;
    let mut noise = Noise(4);
    (100..500).for_each(|block| live.set(block, &noise.block()));
    let base = spec(4, SIZE, set(100..500), set([]), Some(&next));
    let base = run(&repo, base, &live).await.unwrap().manifest;
    let found = async |kept: &[&Manifest]| {
        let stays = |delta: &Delta| kept.iter().any(|manifest| manifest.delta == *delta);
        unchanged_since(&repo, &base, &set([]), stays).await.unwrap()
    };
    // The base references a sixth of the first backup. A 32nd of all blocks is stored again.
    let Unchanged { references, again } = found(&[&next]).await;
    assert_eq!((again, references.len_blocks()), (set(500..518), 582));
    assert_eq!(found(&[&full]).await.again, set([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synthetic_full_without_its_base_takes_itself_back() {
    let (store, repo, live, [full, next, third]) = sample().await;
    let spec = synthetic(&repo, 4, set([6]), set([]), &third).await;
    for gone in [&full, &next, &third] {
        delete_snapshot(&repo, &gone.id(), &[], &NoCache, CHECKED).await.unwrap();
    }
    let error = run(&repo, spec, &live).await.err().unwrap();
    assert!(matches!(error, CloudError::NeededDeleted { needed } if needed == third.id()), "{error}");
    assert!(store.objects().keys().all(|key| !key.starts_with("blockd/manifests/")));
}

fn pack_of(manifest: &Manifest) -> String {
    format!("blockd/data/{}/{}/{}/pack-00000000", manifest.cluster, manifest.volume, manifest.snapshot)
}

fn flip_last_bit(store: &MemoryStore, key: &str) {
    let mut body = store.objects()[key].to_vec();
    *body.last_mut().unwrap() ^= 1;
    store.insert(key, body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_a_source_names_all_its_snapshots() {
    let (store, repo, live, [full, next, third]) = sample().await;
    let fourth = spec(4, SIZE, set([590]), set([]), Some(&third));
    let fourth = run(&repo, fourth, &live).await.unwrap().manifest;
    // The last frame of the first backup: 512 to 599.
    flip_last_bit(&store, &pack_of(&full));
    let mut but_590 = set(512..600);
    but_590.subtract(&set([590]));
    for depth in [VerifyDepth::Full, VerifyDepth::Deep] {
        let report = verified(&repo, &[third.id()], depth).await;
        assert_eq!(report.snapshots[0].damaged, set(512..600), "{depth}");
        let others: BTreeMap<_, _> =
            report.others.iter().map(|other| (other.id, other.blocks.clone())).collect();
        let expected =
            [(full.id(), set(512..600)), (next.id(), set(512..600)), (fourth.id(), but_590.clone())];
        assert_eq!(others, BTreeMap::from(expected), "{depth}");
        assert_eq!(report.findings.len(), 1);
        assert_eq!(report.findings[0].object, pack_of(&full));
        assert_eq!(report.findings[0].affects.len(), 4);
    }
    // A missing index of a source affects the blocks that it provides.
    store.remove(&pack_of(&next).replace("pack-00000000", "index")).unwrap();
    let report = verified(&repo, &[third.id()], VerifyDepth::Full).await;
    let mut lost = set((0..100).chain(512..600));
    lost.subtract(&set([5]));
    assert_eq!(report.snapshots[0].damaged, lost);
    let reader = SnapshotReader::open(&repo, &third).await.unwrap();
    let sound = reader.read_blocks(Extent::new(BlockIndex(100), 400)).await.unwrap();
    assert!((100..).zip(sound.chunks_exact(BLOCK)).all(|(number, block)| block == live.block(number)));
    assert!(reader.read_blocks(Extent::new(BlockIndex(99), 1)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_of_sources_need_not_be_named() {
    let (_, repo, live, [full, next, third]) = sample().await;
    let mut noise = Noise(7);
    live.set(300, &noise.block());
    let spec_of = synthetic(&repo, 4, set([300]), set([]), &third).await;
    let fourth = run(&repo, spec_of, &live).await.unwrap().manifest;
    (0..100).for_each(|block| live.set(block, &noise.block()));
    let fifth = spec(5, SIZE, set(0..100), set([]), Some(&fourth));
    let fifth = run(&repo, fifth, &live).await.unwrap().manifest;
    let spec_of = synthetic(&repo, 6, set([1]), set([]), &fifth).await;
    let sixth = run(&repo, spec_of, &live).await.unwrap().manifest;
    // The delta of the fourth also refers to those of the second and third, which nothing shows any more.
    let named = [&full, &fourth, &fifth].map(|manifest| manifest.delta.clone());
    assert_eq!(sixth.sources, named);
    for depth in [VerifyDepth::Quick, VerifyDepth::Full, VerifyDepth::Deep] {
        let report = verified(&repo, &[sixth.id()], depth).await;
        assert!(report.findings.is_empty() && report.others.is_empty(), "{depth}: {report:?}");
    }
    for gone in [&fifth, &fourth, &third, &next] {
        delete_snapshot(&repo, &gone.id(), &[], &NoCache, CHECKED).await.unwrap();
    }
    assert!(restored(&repo, &sixth).await.unwrap() == live.content());
    assert!(verified(&repo, &[sixth.id()], VerifyDepth::Full).await.findings.is_empty());
}

/// References of blocks with a displacement to those of one source, as a host saves them.
fn displaced(source: &Manifest, groups: &[(i64, BlockSet)]) -> References {
    let mut bytes = 1u32.to_le_bytes().to_vec();
    bytes.extend(source.cluster.as_bytes());
    bytes.extend(source.volume.as_u64().to_le_bytes());
    bytes.extend(source.snapshot.as_u64().to_le_bytes());
    bytes.extend((groups.len() as u32).to_le_bytes());
    for (displacement, blocks) in groups {
        let blocks = blocks.to_bytes();
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(displacement.to_le_bytes());
        bytes.extend((blocks.len() as u32).to_le_bytes());
        bytes.extend(blocks);
    }
    let own = CloudSnapshotId { snapshot: SnapshotId::from_u64(99), ..source.id() };
    References::from_bytes(&bytes, own, std::slice::from_ref(source)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn displaced_references_read_the_blocks_of_their_source() {
    let (store, repo, live, [full, next, _]) = sample().await;
    // Blocks 2000 to 2049 and 1000 to 1099 repeat 550 to 599; 700 to 799 repeat 500 to 599.
    let groups =
        [(-1450, set(2000..2050)), (-500, set(1050..1100)), (-450, set(1000..1050)), (-200, set(700..800))];
    for (target, source) in
        (2000..2050).chain(1000..1050).map(|n| (n, 550 + n % 50)).chain((1050..1100).map(|n| (n, n - 500)))
    {
        live.set(target, &live.block(source));
    }
    (700..800).for_each(|block| live.set(block, &live.block(block - 200)));
    let references = displaced(&full, &groups);
    let more = BackupSpec { references, ..spec(8, SIZE, set([]), set([]), Some(&next)) };
    live.set(5, &restored(&repo, &next).await.unwrap()[&5]);
    let manifest = run(&repo, more, &live).await.unwrap().manifest;
    assert_eq!((manifest.delta.reference_blocks, manifest.sources.len()), (250, 0));
    assert!(restored(&repo, &manifest).await.unwrap() == live.content());
    assert!(read_at_random(&repo, &manifest).await == flat(&live.content()));
    // A synthetic full above takes the displacements over.
    let ninth = synthetic(&repo, 9, set([]), set([]), &manifest).await;
    let ninth = run(&repo, ninth, &live).await.unwrap().manifest;
    delete_snapshot(&repo, &manifest.id(), &[], &NoCache, CHECKED).await.unwrap();
    assert!(restored(&repo, &ninth).await.unwrap() == live.content());
    assert!(read_at_random(&repo, &ninth).await == flat(&live.content()));
    assert!(verified(&repo, &[ninth.id()], VerifyDepth::Full).await.findings.is_empty());

    flip_last_bit(&store, &pack_of(&full));
    let lost = set((512..600).chain(712..800).chain(1000..1100).chain(2000..2050));
    for depth in [VerifyDepth::Full, VerifyDepth::Deep] {
        let report = verified(&repo, &[ninth.id()], depth).await;
        assert_eq!(report.snapshots[0].damaged, lost, "{depth}");
        let affects = &report.findings[0].affects;
        assert_eq!(affects.iter().find(|affected| affected.id == full.id()).unwrap().blocks, set(512..600));
        assert_eq!(affects.iter().find(|affected| affected.id == ninth.id()).unwrap().blocks, lost);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn references_to_missing_blocks_are_damage() {
    let (_, repo, live, [full, ..]) = sample().await;
    // Block 600 is not in the source, and neither are those of a page that it does not have.
    for (snapshot, displacement) in [(8, 1), (9, 3000)] {
        let references = displaced(&full, &[(displacement, set([598, 599]))]);
        let spec = BackupSpec { references, synthetic: true, ..spec(snapshot, SIZE, set([]), set([]), None) };
        let manifest = run(&repo, spec, &live).await.unwrap().manifest;
        let error = restored(&repo, &manifest).await.unwrap_err();
        assert!(error.to_string().contains("its references name blocks that"), "{error}");
        let reader = SnapshotReader::open(&repo, &manifest).await.unwrap();
        let read = tokio::task::spawn_blocking(move || reader.read_at(599 * BLOCK as u64, &mut [0; BLOCK]));
        assert!(read.await.unwrap().unwrap_err().to_string().contains("its references name blocks that"));
        for depth in [VerifyDepth::Full, VerifyDepth::Deep] {
            let report = verified(&repo, &[manifest.id()], depth).await;
            assert!(report.snapshots[0].damaged.contains(BlockIndex(599)), "{depth}");
        }
    }
    let refused = |references| BackupSpec { references, ..spec(10, SIZE, set([5]), set([6]), None) };
    for blocks in [set([5]), set([6]), set([BLOCKS])] {
        let error = run(&repo, refused(displaced(&full, &[(0, blocks)])), &live).await.err().unwrap();
        assert!(matches!(error, CloudError::InvalidRequest { .. }), "{error}");
    }
    let twice = refused(displaced(&full, &[(0, set([8])), (1, set([8]))]));
    assert!(matches!(run(&repo, twice, &live).await.err(), Some(CloudError::InvalidRequest { .. })));
    let own = BackupSpec { snapshot: SnapshotId::from_u64(1), ..refused(displaced(&full, &[(0, set([8]))])) };
    assert!(matches!(run(&repo, own, &live).await.err(), Some(CloudError::InvalidRequest { .. })));
}
