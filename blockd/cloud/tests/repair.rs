//! Repair of damaged snapshots: with any damage and any sources, a repaired snapshot has its whole content,
//! or the blocks without a source are named.
use crate::common::{BLOCK, CHECKED, CLUSTER, Noise, open, requests, restored, run, set, with_slot};
use blockd_cloud::{
    BackupSpec, CancelToken, CloudError, CloudSnapshotId, EncryptionMode, GarbageOptions, Manifest,
    ManifestKey, MemoryJournal, NoCache, Progress, Repair, RepairSource, Repository, SnapshotReader,
    UploadOptions, VerifyDepth, VerifyOptions, backup, collect_garbage, delete_snapshot, differing_blocks,
    verify,
};
use blockd_extent::{BlockIndex, BlockSet, BlockSource, Extent, SnapshotId};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

const TIB_BLOCKS: u64 = 1 << 28;
const SIZE: u64 = (TIB_BLOCKS + 1000) * BLOCK as u64;

/// Change of a generation: extent of blocks, 0 for zeroes, 1 for a trim, otherwise data.
type Step = (u64, u64, u8);

/// A snapshot with its content.
struct Made {
    manifest: Manifest,
    volume: MemoryVolume,
}

fn step() -> impl Strategy<Value = Step> {
    let start = prop_oneof![0u64..600, TIB_BLOCKS - 100..TIB_BLOCKS + 300];
    (start, 1u64..100, 0u8..6)
}

/// Makes a chain of snapshots. The full one has two packs and two index pages.
async fn chain(repo: &Repository, generations: &[Vec<Step>]) -> Vec<Made> {
    let (live, mut noise) = (MemoryVolume::default(), Noise(7));
    let mut made: Vec<Made> = Vec::new();
    for (number, steps) in generations.iter().enumerate() {
        let (mut data, mut zero) = (BlockSet::new(), BlockSet::new());
        if made.is_empty() {
            data.insert_extent(Extent::new(BlockIndex(0), 8300));
            data.insert_extent(Extent::new(BlockIndex(TIB_BLOCKS), 40));
            data.blocks().step_by(50).for_each(|block| live.set(block.0, &noise.block()));
        }
        for &(start, len, kind) in steps {
            let extent = Extent::new(BlockIndex(start), len);
            for block in start..start + len {
                match kind {
                    0 => live.set(block, &[0; BLOCK]),
                    1 => live.clear(block),
                    _ => live.set(block, &noise.block()),
                }
            }
            let (into, out) = if kind == 1 { (&mut zero, &mut data) } else { (&mut data, &mut zero) };
            into.insert_extent(extent);
            out.remove_extent(extent);
        }
        let base = made.last().map(|made| &made.manifest);
        let spec = spec(number as u64 + 1, SIZE, data, zero, base);
        let manifest = run(repo, spec, &live).await.unwrap().manifest;
        made.push(Made { manifest, volume: live.fork() });
    }
    made
}

/// Alters an object of a delta: removes it, cuts it, or flips a bit.
fn damage(store: &MemoryStore, at: prop::sample::Index, how: u8, place: prop::sample::Index) {
    let objects: Vec<_> = store.objects().into_iter().filter(|(key, _)| key.contains("/data/")).collect();
    let (key, body) = &objects[at.index(objects.len())];
    let place = place.index(body.len());
    match how {
        0 => drop(store.remove(key)),
        1 => store.insert(key, body.slice(..place)),
        _ => {
            let mut body = body.to_vec();
            body[place] ^= 0x10;
            store.insert(key, body);
        }
    }
}

async fn damaged_blocks(repo: &Repository, ids: &[CloudSnapshotId]) -> BTreeMap<CloudSnapshotId, BlockSet> {
    let options = VerifyOptions { depth: VerifyDepth::Full, ..VerifyOptions::default() };
    let (progress, cancel) = (Arc::new(Progress::new(requests())), CancelToken::new());
    let report = verify(repo, ids, &options, &|_| None, &NoCache, progress, &cancel).await.unwrap();
    report.snapshots.into_iter().map(|one| (one.id, one.damaged)).collect()
}

async fn store_repair(repo: &Repository, repair: Repair, id: u64) -> Result<Manifest, CloudError> {
    let (spec, reader) =
        repair.into_backup(SnapshotId::from_u64(id), Timestamp::now(), [id as u8; 32]).unwrap();
    store_spec(repo, spec, reader).await
}

async fn store_spec(
    repo: &Repository,
    spec: BackupSpec,
    reader: Arc<dyn BlockSource>,
) -> Result<Manifest, CloudError> {
    let (journal, progress) = (Arc::new(MemoryJournal::default()), Arc::new(Progress::new(requests())));
    let (options, cancel) = (UploadOptions::default(), CancelToken::new());
    backup(repo, Arc::new(spec), reader, journal, &options, progress, &cancel).await
}

fn whole(blocks: BlockSet, volume: &MemoryVolume) -> RepairSource {
    let data = volume.content().keys().map(|block| Extent::new(BlockIndex(*block), 1)).collect();
    RepairSource { data, blocks, reader: Arc::new(volume.fork()) }
}

/// Reads of the first and the last block of each extent fail.
async fn assert_unreadable(repo: &Repository, manifest: &Manifest, blocks: &BlockSet) {
    let Ok(reader) = SnapshotReader::open(repo, manifest).await else { return };
    for extent in blocks.extents().take(50) {
        for block in [extent.start.0, extent.end().0 - 1] {
            let read = reader.read_blocks(Extent::new(BlockIndex(block), 1)).await;
            assert!(matches!(read, Err(CloudError::Damaged { .. })), "block {block} of {}", manifest.id());
        }
    }
}

/// The content is complete for restores and for random reads, and the verification finds no damage.
async fn assert_sound(repo: &Repository, made: &Made) {
    let manifest = repo.manifest(&made.manifest.id()).await.unwrap();
    let expected = made.volume.content();
    assert!(restored(repo, &manifest).await.unwrap() == expected, "{} differs", manifest.id());
    let damaged = damaged_blocks(repo, &[manifest.id()]).await;
    assert!(damaged[&manifest.id()].is_empty(), "{damaged:?}");
    let reader = SnapshotReader::open(repo, &manifest).await.unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut read = Vec::new();
        for start in [0, 500, TIB_BLOCKS - 90] {
            let mut buf = vec![0; 300 * BLOCK];
            reader.read_at(start * BLOCK as u64, &mut buf).unwrap();
            read.push((start, buf));
        }
        read
    });
    for (start, buf) in read.await.unwrap() {
        for (block, content) in (start..).zip(buf.chunks_exact(BLOCK)) {
            let zeroes = vec![0; BLOCK];
            assert!(expected.get(&block).map_or(&zeroes[..], |block| block) == content, "block {block}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 60, ..ProptestConfig::default() })]
    #[test]
    fn repaired_snapshots_are_whole_or_name_their_losses(
        generations in prop::collection::vec(prop::collection::vec(step(), 0..6), 1..=4),
        damages in prop::collection::vec((any::<prop::sample::Index>(), 0u8..5, any::<prop::sample::Index>()), 1..4),
        copy_damage in prop::option::of((any::<prop::sample::Index>(), 0u8..5, any::<prop::sample::Index>())),
        (has_volume, has_copy, encrypted) in any::<(bool, bool, bool)>(),
        unproven in prop::collection::vec((0u64..600, 1u64..300), 0..3),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mode = if encrypted { EncryptionMode::Aes256GcmSiv } else { EncryptionMode::Checksummed };
            let store = Arc::new(MemoryStore::default());
            let repo = with_slot(&store, mode);
            let made = chain(&repo, &generations).await;
            let ids: Vec<_> = made.iter().map(|made| made.manifest.id()).collect();
            let copy = Arc::new(store.fork());
            damages.iter().for_each(|(at, how, place)| damage(&store, *at, *how, *place));
            if let Some((at, how, place)) = copy_damage {
                damage(&copy, at, how, place);
            }
            let copy = repo.with_store(copy);
            let mut proven = BlockSet::from_iter([Extent::whole(SIZE)]);
            unproven.iter().for_each(|(start, len)| proven.remove_extent(Extent::new(BlockIndex(*start), *len)));
            let (lost, copy_lost) = (damaged_blocks(&repo, &ids).await, damaged_blocks(&copy, &ids).await);
            let (mut repairs, mut now): (Vec<Manifest>, Vec<Made>) = (Vec::new(), Vec::new());
            for made in &made {
                let id = made.manifest.id();
                if lost[&id].is_empty() {
                    now.push(Made { manifest: made.manifest.clone(), volume: made.volume.fork() });
                    continue;
                }
                let mut repair = Repair::plan(&repo, &made.manifest, &lost[&id], &repairs).await.unwrap();
                let mut left = lost[&id].clone();
                if has_volume {
                    repair.add_source(whole(proven.clone(), &made.volume));
                    left.subtract(&proven);
                }
                if has_copy {
                    repair.add_snapshot(&copy, &made.manifest).await.unwrap();
                    left.intersect_with(&copy_lost[&id]);
                }
                repair.add_readable(&repo).await.unwrap();
                let mut unexpected = repair.missing().clone();
                unexpected.subtract(&left);
                prop_assert!(unexpected.is_empty(), "{}: {:?}", id, unexpected);
                if repairs.is_empty() {
                    assert_unreadable(&repo, &made.manifest, repair.missing()).await;
                }
                if repair.missing().is_empty() {
                    let manifest = store_repair(&repo, repair, id.snapshot.as_u64() + 100).await.unwrap();
                    prop_assert_eq!(manifest.repairs, Some(id));
                    prop_assert_eq!(manifest.description.created, made.manifest.description.created);
                    repairs.push(manifest.clone());
                    now.push(Made { manifest, volume: made.volume.fork() });
                }
            }
            // The damaged ones are deleted, with all that no other one needs, and garbage is collected.
            for repair in &repairs {
                let id = repair.repairs.unwrap();
                delete_snapshot(&repo, &id, &[], &NoCache, CHECKED).await.unwrap();
            }
            let later = Timestamp::now() + SignedDuration::from_hours(24 * 30);
            let options = GarbageOptions {
                now: later,
                protected: BTreeSet::new(),
                host: CLUSTER,
                backing: BTreeSet::new(),
            };
            collect_garbage(&repo, &options, &NoCache).await.unwrap();
            for made in &now {
                assert_sound(&repo, made).await;
            }
            Ok(())
        })?;
    }
}

/// A store with a full snapshot and two incrementals, and its repository.
async fn sample() -> (Arc<MemoryStore>, Repository, Vec<Made>) {
    let store = Arc::new(MemoryStore::default());
    let repo = open(store.clone(), Some("correct horse")).await.unwrap();
    let made = chain(&repo, &[vec![], vec![(5, 10, 2)], vec![(40, 10, 2)]]).await;
    (store, repo, made)
}

fn index_of(manifest: &Manifest) -> String {
    let id = manifest.id();
    format!("blockd/data/{}/{}/{}/index", id.cluster, id.volume, id.snapshot)
}

#[tokio::test(flavor = "multi_thread")]
async fn later_snapshots_share_the_repair_of_their_base() {
    let (store, repo, made) = sample().await;
    store.remove(&index_of(&made[0].manifest));
    let ids: Vec<_> = made.iter().map(|made| made.manifest.id()).collect();
    let lost = damaged_blocks(&repo, &ids).await;
    let mut repairs: Vec<Manifest> = Vec::new();
    for made in &made {
        let id = made.manifest.id();
        let mut repair = Repair::plan(&repo, &made.manifest, &lost[&id], &repairs).await.unwrap();
        assert_eq!(repair.wanted().is_empty(), !repairs.is_empty(), "{id}");
        repair.add_source(whole(BlockSet::from_iter([Extent::whole(SIZE)]), &made.volume));
        repairs.push(store_repair(&repo, repair, id.snapshot.as_u64() + 100).await.unwrap());
    }
    assert!(!repairs[0].id().incremental && repairs[0].chain.is_empty(), "no delta below it is needed");
    assert_eq!(repairs[2].delta.data_blocks, 0);
    assert!(
        repairs[2].chain.contains(&repairs[0].delta) && !repairs[2].chain.contains(&made[0].manifest.delta)
    );
    // Another host reads them after all damaged ones are gone.
    for made in &made {
        let id = made.manifest.id();
        delete_snapshot(&repo, &id, &[], &NoCache, CHECKED).await.unwrap();
    }
    let other = open(store.clone(), Some("correct horse")).await.unwrap();
    for (manifest, made) in repairs.into_iter().zip(made) {
        assert_sound(&other, &Made { manifest, volume: made.volume }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_fails_if_a_needed_snapshot_is_deleted() {
    let (store, repo, made) = sample().await;
    let damaged = &made[1];
    let blocks = set([5, 6]);
    for gone in [0, 1] {
        let store = Arc::new(store.fork());
        let repo = repo.with_store(store.clone());
        // The repair of the full one is used by that of the incremental.
        let mut of_full = Repair::plan(&repo, &made[0].manifest, &set([1]), &[]).await.unwrap();
        of_full.add_source(whole(set([1]), &made[0].volume));
        let of_full = store_repair(&repo, of_full, 101).await.unwrap();
        let mut repair =
            Repair::plan(&repo, &damaged.manifest, &blocks, std::slice::from_ref(&of_full)).await.unwrap();
        repair.add_source(whole(blocks.clone(), &damaged.volume));
        let needed = [of_full.id(), damaged.manifest.id()][gone];
        store.remove(&needed.manifest_key());
        let error = store_repair(&repo, repair, 102).await.unwrap_err();
        assert!(matches!(error, CloudError::NeededDeleted { needed } if needed == needed), "{error}");
        assert!(!store.objects().keys().any(|key| key.contains("-102")), "its manifest is deleted again");
    }
}

/// Each request fails once, before or after its effect: the damaged snapshot stays, and the next repair
/// succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn interrupted_repair_leaves_only_garbage() {
    let (store, repo, made) = sample().await;
    let damaged = &made[1];
    let manifests = |store: &MemoryStore| {
        store.objects().into_keys().filter(|key| key.contains("/manifests/")).collect::<Vec<_>>()
    };
    let before = manifests(&store);
    for fault in [Fault::BeforeApply, Fault::AfterApply] {
        let mut failures = 0;
        for at in 0..4 {
            let store = Arc::new(store.fork());
            let faulty = Arc::new(FaultStore::new(store.clone()));
            let mut repair = Repair::plan(&repo, &damaged.manifest, &set([5, 6]), &[]).await.unwrap();
            repair.add_source(whole(set([5, 6]), &damaged.volume));
            faulty.fail_at(at, fault);
            let stored = store_repair(&repo.with_store(faulty), repair, 103).await;
            let repo = repo.with_store(store.clone());
            if stored.is_err() {
                failures += 1;
                assert_eq!(manifests(&store), before, "{fault:?} at {at}");
                let mut repair = Repair::plan(&repo, &damaged.manifest, &set([5, 6]), &[]).await.unwrap();
                repair.add_source(whole(set([5, 6]), &damaged.volume));
                store_repair(&repo, repair, 104).await.unwrap();
            }
            let id = CloudSnapshotId {
                snapshot: SnapshotId::from_u64(if stored.is_err() { 104 } else { 103 }),
                ..damaged.manifest.id()
            };
            let manifest = repo.manifest(&id).await.unwrap();
            assert_sound(&repo, &Made { manifest, volume: damaged.volume.fork() }).await;
        }
        // Pack, index and manifest; the check of the damaged one is repeated.
        assert!((2..=3).contains(&failures), "{failures} failures {fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_of_unreadable_indexes_count_as_differing() {
    let (store, repo, made) = sample().await;
    let [full, middle, last] = [0, 1, 2].map(|at| &made[at].manifest);
    let expected = set((5..15).chain(40..50));
    for (one, other) in [(full, last), (last, full)] {
        assert_eq!(differing_blocks(&repo, one, other).await.unwrap(), Some(expected.clone()));
    }
    store.remove(&index_of(middle));
    let all = differing_blocks(&repo, last, full).await.unwrap().unwrap();
    assert!(all.contains_extent(Extent::whole(SIZE)));
    let mut foreign = full.clone();
    foreign.delta.salt = [9; 32];
    assert_eq!(differing_blocks(&repo, last, &foreign).await.unwrap(), None);
}
