//! Tests of deduplication: several volumes against a model, lost and damaged fingerprint files, and deletions
//! of the snapshots that name the sources.

mod figures;
mod repairs;
mod simulation;
use crate::common::{BLOCK, CHECKED, Noise, requests, restored, run, run_with, set, with_slot};
use blockd_cloud::{
    BackupSpec, CancelToken, CloudError, CloudSnapshotId, DedupRequest, Deduplicated, Delta, EncryptionMode,
    FingerprintKey, GarbageOptions, Manifest, ManifestKey, MemoryJournal, NoCache, Progress, References,
    Repository, Unchanged, VerifyDepth, VerifyOptions, check_base, collect_garbage, dedup_sources,
    deduplicate, delete_snapshot, fingerprint_file_name, fingerprint_file_of, parse_fingerprint_file,
    unchanged_since, verify,
};
use blockd_extent::{BlockIndex, BlockSet, Extent, VolumeId};
use blockd_testkit::cloud::{MemoryVolume, spec};
use blockd_testkit::store::{Fault, FaultStore, MemoryStore};
use jiff::Timestamp;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};
use tempfile::TempDir;

const BLOCKS: u64 = 6000;
const SIZE: u64 = BLOCKS * BLOCK as u64;

/// A host with its fingerprint files.
struct Host {
    store: Arc<MemoryStore>,
    repo: Repository,
    dir: TempDir,
}

impl Host {
    fn new(mode: EncryptionMode) -> Self {
        let store = Arc::new(MemoryStore::default());
        store.set_clock(1000);
        let repo = with_slot(&store, mode);
        Self { store, repo, dir: TempDir::new().unwrap() }
    }

    fn path(&self, delta: &Delta) -> PathBuf {
        self.dir.path().join(fingerprint_file_name(delta))
    }

    /// Deduplicates a backup; the new file gets its name.
    fn deduplicated(&self, spec: BackupSpec, live: &MemoryVolume, donors: &[Manifest]) -> BackupSpec {
        self.deduplicated_but(spec, live, donors, &BlockSet::new())
    }

    /// Does the same without references from some blocks.
    fn deduplicated_but(
        &self,
        spec: BackupSpec,
        live: &MemoryVolume,
        donors: &[Manifest],
        again: &BlockSet,
    ) -> BackupSpec {
        let sources = dedup_sources(spec.base.as_ref(), donors, |delta| self.path(delta));
        let path = self.dir.path().join(format!("{}-{}", spec.volume, spec.snapshot));
        let key = FingerprintKey::open(&self.repo, &self.dir.path().join("key")).unwrap();
        let (id, salt) = (spec.id(), spec.delta_salt);
        let request = DedupRequest { id, salt, data: &spec.data, again, sources: &sources, path: &path };
        let found = deduplicate(&request, &key, live, &CancelToken::new()).unwrap();
        let mut all = found.data.clone();
        all.union_with(&found.references.blocks());
        assert_eq!(all, spec.data);
        let deduplicated = found.references.blocks();
        let Deduplicated { data, references, donors, .. } = found.with(spec.references.clone());
        BackupSpec { data, references, donors, deduplicated, ..spec }
    }
}

fn of_volume(volume: u64, spec: BackupSpec) -> BackupSpec {
    BackupSpec { volume: VolumeId::from_u64(volume), ..spec }
}

fn noise_volume(seed: u64, blocks: std::ops::Range<u64>) -> MemoryVolume {
    let (live, mut noise) = (MemoryVolume::default(), Noise(seed));
    blocks.for_each(|block| live.set(block, &noise.block()));
    live
}

async fn findings(repo: &Repository, ids: &[CloudSnapshotId], depth: VerifyDepth) -> usize {
    let options = VerifyOptions { depth, ..VerifyOptions::default() };
    let (progress, cancel) = (Arc::new(Progress::new(requests())), CancelToken::new());
    let report = verify(repo, ids, &options, &|_| None, &NoCache, progress, &cancel).await.unwrap();
    report.findings.len()
}

#[derive(Clone, Debug)]
struct Generation {
    volume: u64,
    kind: u8,
    writes: Vec<(u64, u64)>,
    /// From a volume and block to a block.
    copies: Vec<(u64, u64, u64, u64)>,
    trims: Vec<(u64, u64)>,
    returns: Option<prop::sample::Index>,
    delete: Option<prop::sample::Index>,
    by_collection: bool,
}

fn generation() -> impl Strategy<Value = Generation> {
    let at = 0..BLOCKS - 400;
    let writes = prop::collection::vec((at.clone(), 1u64..300), 0..4);
    let copies = prop::collection::vec((1u64..4, at.clone(), at.clone(), 1u64..400), 0..6);
    let trims = prop::collection::vec((at, 1u64..200), 0..2);
    let index = || prop::option::of(any::<prop::sample::Index>());
    let all = (1u64..4, 0u8..5, writes, copies, trims, index(), index(), any::<bool>());
    all.prop_map(|(volume, kind, writes, copies, trims, returns, delete, by_collection)| Generation {
        volume,
        kind,
        writes,
        copies,
        trims,
        returns,
        delete,
        by_collection,
    })
}

/// Volume with its last backup.
#[derive(Default)]
struct Live {
    volume: MemoryVolume,
    newest: Option<Manifest>,
}

type Content = BTreeMap<u64, Box<[u8]>>;

/// Changes a volume; returns the data and zero blocks that changed.
fn change(
    all: &BTreeMap<u64, Live>,
    old: &[(Manifest, Content)],
    noise: &mut Noise,
    one: &Generation,
) -> [BlockSet; 2] {
    let live = &all[&one.volume].volume;
    let (mut data, mut zero) = (BlockSet::new(), BlockSet::new());
    for (start, len) in &one.writes {
        (*start..start + len).for_each(|block| live.set(block, &noise.block()));
        data.insert_extent(Extent::new(BlockIndex(*start), *len));
    }
    for (volume, from, to, len) in &one.copies {
        let from = (0..*len).map(|n| all[volume].volume.block(from + n).to_vec()).collect::<Vec<_>>();
        (*to..).zip(&from).for_each(|(block, content)| live.set(block, content));
        data.insert_extent(Extent::new(BlockIndex(*to), *len));
    }
    if let Some((_, content)) = one.returns.filter(|_| !old.is_empty()).map(|at| at.get(old)) {
        for (block, content) in content.range(1000..2500) {
            live.set(*block, content);
            data.insert(BlockIndex(*block));
        }
    }
    for (start, len) in &one.trims {
        (*start..start + len).for_each(|block| live.clear(block));
        data.remove_extent(Extent::new(BlockIndex(*start), *len));
        zero.insert_extent(Extent::new(BlockIndex(*start), *len));
    }
    [data, zero]
}

async fn planned(
    host: &Host,
    all: &BTreeMap<u64, Live>,
    n: u64,
    one: &Generation,
    [data, zero]: [BlockSet; 2],
) -> BackupSpec {
    let base = all[&one.volume].newest.as_ref();
    let planned = match (base, one.kind) {
        (Some(base), 0 | 1) => {
            let mut changed = data.clone();
            changed.union_with(&zero);
            let Unchanged { references, again } =
                unchanged_since(&host.repo, base, &changed, |_| false).await.unwrap();
            let mut data = data;
            data.union_with(&again);
            BackupSpec { references, synthetic: true, ..spec(n, SIZE, data, zero, Some(base)) }
        }
        (Some(_), 2) | (None, _) => spec(n, SIZE, set(0..BLOCKS), set([]), None),
        (base, _) => spec(n, SIZE, data, zero, base),
    };
    of_volume(one.volume, planned)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, ..ProptestConfig::default() })]
    #[test]
    fn deduplicated_backups_restore_like_a_model(
        generations in prop::collection::vec(generation(), 2..=10),
        encrypted: bool,
        seed: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mode = if encrypted { EncryptionMode::Aes256GcmSiv } else { EncryptionMode::Checksummed };
            let (host, mut noise) = (Host::new(mode), Noise(seed | 1));
            let mut all: BTreeMap<u64, Live> = (1..4).map(|volume| (volume, Live::default())).collect();
            (0..3000).for_each(|block| all[&1].volume.set(block, &noise.block()));
            let mut made: Vec<(Manifest, Content)> = Vec::new();
            for (n, one) in (1..).zip(&generations) {
                let changed = change(&all, &made, &mut noise, one);
                let planned = planned(&host, &all, n, one, changed).await;
                let donors: Vec<Manifest> = made.iter().rev().map(|(manifest, _)| manifest.clone()).collect();
                let live = &all[&one.volume].volume;
                let deduplicated = host.deduplicated(planned, live, &donors);
                let named: Vec<CloudSnapshotId> = deduplicated.owners().collect();
                prop_assert!(named.len() <= 8);
                let manifest = run(&host.repo, deduplicated, live).await.unwrap().manifest;
                made.push((manifest.clone(), live.content()));
                all.get_mut(&one.volume).unwrap().newest = Some(manifest);
                let newest = |id| all.values().any(|live| live.newest.as_ref().is_some_and(|one| one.id() == id));
                let old: Vec<usize> = (0..made.len()).filter(|at| !newest(made[*at].0.id())).collect();
                if let Some(gone) = one.delete.filter(|_| !old.is_empty()) {
                    let (gone, _) = made.remove(*gone.get(&old));
                    delete(&host, &gone, one.by_collection).await;
                }
            }
            for (manifest, expected) in &made {
                let manifest = host.repo.manifest(&manifest.id()).await.unwrap();
                prop_assert!(restored(&host.repo, &manifest).await.unwrap() == *expected, "{}", manifest.id());
            }
            let ids: Vec<_> = made.iter().map(|(manifest, _)| manifest.id()).collect();
            for depth in [VerifyDepth::Quick, VerifyDepth::Full] {
                prop_assert_eq!(findings(&host.repo, &ids, depth).await, 0);
            }
            Ok(())
        })?;
    }
}

async fn delete(host: &Host, gone: &Manifest, by_collection: bool) {
    if by_collection {
        host.store.remove(&gone.id().manifest_key()).unwrap();
        let now = Timestamp::from_second(1000 + 9 * 24 * 3600).unwrap();
        let options = GarbageOptions { now, ..GarbageOptions::default() };
        collect_garbage(&host.repo, &options, &NoCache).await.unwrap();
    } else {
        delete_snapshot(&host.repo, &gone.id(), &[], &NoCache, CHECKED).await.unwrap();
    }
}

/// Host with a backup of 3000 blocks of noise on volume 1.
async fn sample() -> (Host, MemoryVolume, Manifest) {
    let host = Host::new(EncryptionMode::Aes256GcmSiv);
    let live = noise_volume(3, 0..3000);
    let first = host.deduplicated(of_volume(1, spec(1, SIZE, set(0..3000), set([]), None)), &live, &[]);
    let first = run(&host.repo, first, &live).await.unwrap().manifest;
    assert_eq!((first.delta.data_blocks, first.delta.reference_blocks), (3000, 0));
    (host, live, first)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_content_of_one_backup_is_stored_once() {
    let (host, live, _) = sample().await;
    (0..1000).for_each(|block| live.set(4000 + block, &live.block(500 + block)));
    (5500..5600).for_each(|block| live.set(block, &[0xff; BLOCK]));
    let blocks = set((0..3000).chain(4000..5000).chain(5500..5600));
    let spec = of_volume(1, spec(2, SIZE, blocks, set([]), None));
    let spec = host.deduplicated(spec, &live, &[]);
    let manifest = run(&host.repo, spec, &live).await.unwrap().manifest;
    // Blocks of one repeated word need no space: they are data.
    assert_eq!((manifest.delta.data_blocks, manifest.delta.reference_blocks), (3100, 1000));
    assert_eq!((manifest.dirty_bytes, manifest.sources.len()), (4100 * BLOCK as u64, 0));
    assert!(restored(&host.repo, &manifest).await.unwrap() == live.content());
    // Damage of a block affects those that refer to it.
    let pack = format!("blockd/data/{}/1/2/pack-00000000", manifest.cluster);
    let mut body = host.store.objects()[&pack].to_vec();
    body[64 + 20 * 32 * BLOCK] ^= 1;
    host.store.insert(&pack, body);
    let options = VerifyOptions { depth: VerifyDepth::Full, ..VerifyOptions::default() };
    let (progress, cancel) = (Arc::new(Progress::new(requests())), CancelToken::new());
    let ids = [manifest.id()];
    let report = verify(&host.repo, &ids, &options, &|_| None, &NoCache, progress, &cancel).await.unwrap();
    let damaged = &report.snapshots[0].damaged;
    assert_eq!(*damaged, set((512..640).chain(4012..4140)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returning_blocks_refer_to_the_old_delta() {
    let (host, live, first) = sample().await;
    let old: Vec<Vec<u8>> = (0..500).map(|block| live.block(block).to_vec()).collect();
    let mut noise = Noise(11);
    (0..500).for_each(|block| live.set(block, &noise.block()));
    let next = of_volume(1, spec(2, SIZE, set(0..500), set([]), Some(&first)));
    let next = run(&host.repo, host.deduplicated(next, &live, &[]), &live).await.unwrap().manifest;
    assert_eq!(next.delta.data_blocks, 500);
    // Single blocks at their former place, and a run elsewhere.
    for (block, content) in (0..).zip(&old).step_by(5) {
        live.set(block, content);
    }
    (0..100).for_each(|block| live.set(5000 + block, &old[300 + block as usize]));
    live.set(4000, &old[7]);
    let changed = set((0..500).step_by(5).chain(5000..5100).chain([4000]));
    let third = of_volume(1, spec(3, SIZE, changed, set([]), Some(&next)));
    let third = run(&host.repo, host.deduplicated(third, &live, &[]), &live).await.unwrap().manifest;
    // A single block elsewhere is stored again.
    assert_eq!((third.delta.data_blocks, third.delta.reference_blocks), (1, 200));
    assert!(third.sources.is_empty(), "the sources are in the chain");
    assert!(restored(&host.repo, &third).await.unwrap() == live.content());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clones_share_blocks_and_survive_their_donor() {
    let (host, live, first) = sample().await;
    let (clone, mut noise) = (live.fork(), Noise(5));
    (0..3000).step_by(20).for_each(|block| clone.set(block, &noise.block()));
    let second = of_volume(2, spec(2, SIZE, set(0..3000), set([]), None));
    let second = host.deduplicated(second, &clone, std::slice::from_ref(&first));
    assert_eq!(second.donors, [first.id()]);
    let second = run(&host.repo, second, &clone).await.unwrap();
    assert_eq!(second.requests.get, 1, "the donor is requested after the commit");
    let second = second.manifest;
    // The first three runs, of 57 blocks, are too few for a request.
    assert_eq!((second.delta.data_blocks, second.delta.reference_blocks), (207, 2793));
    assert_eq!(second.sources, std::slice::from_ref(&first.delta));
    let next = of_volume(2, spec(3, SIZE, set([1]), set([]), Some(&second)));
    let next = run(&host.repo, next, &clone).await.unwrap().manifest;
    let report = delete_snapshot(&host.repo, &first.id(), &[], &NoCache, CHECKED).await.unwrap();
    assert_eq!(report.deltas_deleted, 0);
    for manifest in [&second, &next] {
        assert!(restored(&host.repo, manifest).await.unwrap() == clone.content());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_names_snapshots_of_other_volumes() {
    let (host, live, first) = sample().await;
    let mut noise = Noise(9);
    let second = of_volume(2, spec(2, SIZE, set(0..3000), set([]), None));
    let second = host.deduplicated(second, &live, std::slice::from_ref(&first));
    let second = run(&host.repo, second, &live).await.unwrap().manifest;
    let pack = format!("blockd/data/{}/1/1/pack-00000000", first.cluster);
    let mut body = host.store.objects()[&pack].to_vec();
    *body.last_mut().unwrap() ^= 1;
    host.store.insert(&pack, body);
    let options = VerifyOptions { depth: VerifyDepth::Full, ..VerifyOptions::default() };
    let (progress, cancel, ids) = (Arc::new(Progress::new(requests())), CancelToken::new(), [first.id()]);
    let report = verify(&host.repo, &ids, &options, &|_| None, &NoCache, progress, &cancel).await.unwrap();
    assert_eq!(report.others.len(), 1);
    assert_eq!((report.others[0].id, &report.others[0].blocks), (second.id(), &report.snapshots[0].damaged));
    assert_eq!(report.damaged_objects, [pack.clone()].into());
    // Damage that a newer delta hides is known, too.
    let damaged = report.snapshots[0].damaged.clone();
    damaged.blocks().for_each(|block| live.set(block.0, &noise.block()));
    let newer = run(&host.repo, spec(3, SIZE, damaged, set([]), Some(&first)), &live).await.unwrap().manifest;
    for id in [second.id(), first.id()] {
        delete_snapshot(&host.repo, &id, &[], &NoCache, CHECKED).await.unwrap();
    }
    let (progress, ids) = (Arc::new(Progress::new(requests())), [newer.id()]);
    let report = verify(&host.repo, &ids, &options, &|_| None, &NoCache, progress, &cancel).await.unwrap();
    assert!(report.snapshots[0].is_sound());
    assert_eq!(report.damaged_objects, [pack.clone()].into());
    assert_eq!(fingerprint_file_of(&pack), Some(fingerprint_file_name(&first.delta)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_takes_itself_back_without_its_donor() {
    for by_collection in [false, true] {
        let (host, live, first) = sample().await;
        let second = of_volume(2, spec(2, SIZE, set(0..3000), set([]), None));
        let second = host.deduplicated(second, &live, std::slice::from_ref(&first));
        delete(&host, &first, by_collection).await;
        let error = run(&host.repo, second, &live).await.err().unwrap();
        assert!(matches!(error, CloudError::NeededDeleted { needed } if needed == first.id()), "{error}");
        assert!(host.store.objects().keys().all(|key| !key.starts_with("blockd/manifests/")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn donor_deleted_after_the_commit_keeps_its_delta() {
    let (host, live, first) = sample().await;
    let second = of_volume(2, spec(2, SIZE, set(0..3000), set([]), None));
    let second = host.deduplicated(second, &live, std::slice::from_ref(&first));
    let second = run(&host.repo, second, &live).await.unwrap().manifest;
    delete(&host, &first, true).await;
    assert!(restored(&host.repo, &second).await.unwrap() == live.content());
    // A resumed check of the commit finds the donor gone.
    let error = check_base(host.store.as_ref(), &second, first.id()).await.unwrap_err();
    assert!(matches!(error, CloudError::NeededDeleted { .. }), "{error}");
}

fn damage(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusable_fingerprint_files_only_cost_space() {
    let (host, live, first) = sample().await;
    let path = host.path(&first.delta);
    let intact = std::fs::read(&path).unwrap();
    assert_eq!(parse_fingerprint_file(&intact), Ok(3000));
    let stored = |snapshot| {
        let second = of_volume(2, spec(snapshot, SIZE, set(0..3000), set([]), None));
        host.deduplicated(second, &live, std::slice::from_ref(&first)).data.len_blocks()
    };
    assert_eq!(stored(2), 0);
    // In the header, in the second chunk, and at the end.
    for (at, expected) in [(0, 3000), (20, 3000), (104 + 24 * 1500, 1024), (usize::MAX, 3000)] {
        damage(&path, at);
        assert!(parse_fingerprint_file(&std::fs::read(&path).unwrap()).is_err());
        assert!(stored(3) >= expected, "byte {at}");
        std::fs::write(&path, &intact).unwrap();
    }
    std::fs::write(&path, &intact[..intact.len() - 1]).unwrap();
    assert_eq!(stored(4), 3000);
    assert!(!path.exists(), "it is unusable for all backups");
    assert_eq!(stored(5), 3000);
    // The file of a backup that had the same name, but other content.
    std::fs::write(&path, &intact).unwrap();
    let mut other = first.clone();
    other.delta.salt = [9; 32];
    let second = of_volume(2, spec(6, SIZE, set(0..3000), set([]), None));
    assert_eq!(host.deduplicated(second, &live, &[other]).data.len_blocks(), 3000);
    // Another key.
    std::fs::write(host.dir.path().join("key"), [1; 32]).unwrap();
    assert_eq!(stored(7), 3000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn donors_are_few_and_have_long_runs() {
    let host = Host::new(EncryptionMode::Checksummed);
    let mut donors = Vec::new();
    for n in 1..=10 {
        let live = noise_volume(n, 0..1100);
        let spec = host.deduplicated(of_volume(n, spec(n, SIZE, set(0..1100), set([]), None)), &live, &[]);
        donors.push(run(&host.repo, spec, &live).await.unwrap().manifest);
    }
    // 63 blocks of one, and 100 of each other.
    let live = noise_volume(99, 0..3000);
    for n in 1..=10u64 {
        let other = noise_volume(n, 0..1100);
        let len = if n == 1 { 63 } else { 100 };
        (0..len).for_each(|block| live.set(n * 200 + block, &other.block(block)));
    }
    let spec = of_volume(20, spec(20, SIZE, set(0..3000), set([]), None));
    let spec = host.deduplicated(spec, &live, &donors);
    assert_eq!((spec.donors.len(), spec.deduplicated.len_blocks()), (7, 700));
    assert!(!spec.donors.contains(&donors[0].id()));
    let manifest = run(&host.repo, spec, &live).await.unwrap().manifest;
    assert!(restored(&host.repo, &manifest).await.unwrap() == live.content());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_backup_resumes_with_its_references() {
    let (host, live, first_of) = sample().await;
    let clone = noise_volume(77, 0..BLOCKS);
    (0..2000).for_each(|block| clone.set(block, &live.block(block)));
    (3000..4000).for_each(|block| clone.set(1000 + block, &clone.block(2000 + block - 3000)));
    let base = of_volume(2, spec(2, SIZE, set(0..BLOCKS), set([]), None));
    let spec = host.deduplicated(base, &clone, std::slice::from_ref(&first_of));
    assert!(spec.deduplicated.len_blocks() > 2900);
    let clean = Arc::new(host.store.fork());
    let repo = host.repo.with_store(clean.clone());
    let done = run(&repo, spec.clone(), &clone).await.unwrap();
    assert_eq!((done.requests.put, done.requests.get), (3, 1), "a pack, the index, the manifest; the donor");
    for fault in [Fault::BeforeApply, Fault::AfterApply] {
        for operation in 0..done.requests.total() {
            let label = format!("{fault:?} at {operation}");
            let inner = Arc::new(host.store.fork());
            let faults = Arc::new(FaultStore::new(inner.clone()));
            let (repo, journal) = (host.repo.with_store(faults.clone()), Arc::new(MemoryJournal::default()));
            faults.fail_from(operation, fault);
            let reader = Arc::new(clone.fork());
            let cancel = CancelToken::new();
            let first = run_with(&repo, spec.clone(), reader.clone(), journal.clone(), &cancel);
            let error = tokio::time::timeout(std::time::Duration::from_secs(2), first).await;
            assert!(error.is_err() || error.unwrap().is_err(), "{label}");
            faults.heal();
            // As the plan's file has it.
            let bytes = spec.references.to_bytes();
            let references =
                References::from_bytes(&bytes, spec.id(), std::slice::from_ref(&first_of)).unwrap();
            assert_eq!(references, spec.references);
            let again = BackupSpec { references, ..spec.clone() };
            let resumed = run_with(&repo, again, reader, journal, &cancel).await.unwrap().manifest;
            assert!(restored(&repo, &resumed).await.unwrap() == clone.content(), "{label}");
            let packs = |store: &MemoryStore| -> Vec<_> {
                store.objects().into_iter().filter(|(key, _)| key.contains("/data/")).collect()
            };
            assert!(packs(&inner) == packs(&clean), "{label}");
        }
    }
}
