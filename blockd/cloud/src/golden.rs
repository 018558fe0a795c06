//! Golden files of the format: a small repository of each kind, compared byte for byte.
//!
//! With `BLOCKD_BLESS_GOLDEN` set, the tests write the files instead; the files of a released format version
//! never change.

use crate::{
    BackupSpec, CancelToken, CloudSnapshotId, Compression, CompressionLevel, DataKey, DrillOutcome,
    DrillReport, DrillStage, DrillStep, EncryptionMode, KdfParams, KnownKeys, Lease, Manifest,
    ManifestFilter, ManifestKey, MemoryJournal, NoCache, OpenOptions, Progress, Proof, ProofKind, References,
    Repair, RepairSource, Repository, SnapshotDescription, SnapshotReader, UploadOptions, backup, keys,
    unchanged_since,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent, SnapshotId, VolumeId};
use blockd_store::BlobStore;
use blockd_testkit::{cloud::MemoryVolume, store::MemoryStore};
use jiff::Timestamp;
use std::{collections::BTreeMap, fs, path::PathBuf, sync::Arc};
use uuid::Uuid;

const PASSPHRASE: &str = "correct horse battery staple";
const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
const KDF: KdfParams = KdfParams { m_kib: 64, t: 2, p: 1 };

/// Kind of a repository: its encryption, and a second snapshot of the same volume or of a volume of another
/// host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    mode: EncryptionMode,
    crosses_volumes: bool,
}

pub(crate) const KINDS: [Kind; 4] = [
    Kind { mode: EncryptionMode::Checksummed, crosses_volumes: false },
    Kind { mode: EncryptionMode::Aes256GcmSiv, crosses_volumes: false },
    Kind { mode: EncryptionMode::Checksummed, crosses_volumes: true },
    Kind { mode: EncryptionMode::Aes256GcmSiv, crosses_volumes: true },
];

impl Kind {
    fn dir(self) -> PathBuf {
        let more = if self.crosses_volumes { "-across-volumes" } else { "" };
        let name = format!("{}{more}", self.mode.name());
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
    }

    fn passphrase(self) -> Option<&'static str> {
        (self.mode == EncryptionMode::Aes256GcmSiv).then_some(PASSPHRASE)
    }

    fn cluster_and_volume(self, generation: u64) -> (Uuid, VolumeId) {
        match self.crosses_volumes && generation > 1 {
            false => (
                Uuid::from_u128(0x3a1a_b4d5_9bc2_4c70_9b4e_0a2b_2d3d_8f10),
                VolumeId::from_u64(590_114_184_663_672_482),
            ),
            true => (
                Uuid::from_u128(0x7c2f_00e1_51aa_4d0e_8a3d_6f1b_94c0_2277),
                VolumeId::from_u64(7_120_990_031_114_823_905),
            ),
        }
    }
}

pub(crate) fn files(kind: Kind) -> MemoryStore {
    let store = MemoryStore::default();
    let root = kind.dir();
    let mut pending = vec![root.clone()];
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                let key = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                store.insert(&key, fs::read(&path).unwrap());
            }
        }
    }
    store
}

fn key(mode: EncryptionMode) -> DataKey {
    let mut secret = [0; 32];
    if mode == EncryptionMode::Aes256GcmSiv {
        secret = std::array::from_fn(|i| i as u8);
    }
    DataKey::fixed(
        Uuid::from_u128(0x6b65_7900_0000_4000_8000_0000_0000_0000 | u128::from(mode.byte())),
        mode,
        secret,
    )
}

/// Block contents of each kind that the format tells apart: repeating, noise, zero.
fn volume(generation: u64) -> MemoryVolume {
    let live = MemoryVolume::default();
    let mut state = 0x0123_4567_89ab_cdefu64;
    for block in 10..50u64 {
        let content: Vec<u8> = match block % 8 {
            0 => vec![0; BLOCK],
            3 => (0..BLOCK / 8)
                .flat_map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (state ^ (state >> 29)).to_le_bytes()
                })
                .collect(),
            _ => vec![block as u8; BLOCK],
        };
        live.set(block, &content);
    }
    if generation == 2 {
        live.set(11, &[0xaa; BLOCK]);
        live.set(1000, &[0xbb; BLOCK]);
        (20..24).for_each(|block| live.clear(block));
    }
    live
}

/// Proofs of each kind: sound ones of the first generation, and one of damage of the second one.
fn proofs(first: CloudSnapshotId, second: CloudSnapshotId) -> Vec<Proof> {
    let proof = |cloudsnap, kind| Proof {
        cloudsnap,
        kind,
        proven: Timestamp::from_second(1_700_000_400).unwrap(),
        host: Uuid::from_u128(0x9d0e_5b7a_33c1_4e52_8f60_41d2_7ab3_c5e9),
        host_name: "db1".into(),
        version: "1.2.3".into(),
        location: Uuid::from_u128(0x51c3_0d64_8e2f_4b1a_a7d9_0c6e_15f8_2b37),
        sound: true,
        drill: None,
    };
    let step = |stage, elapsed_ms, note: &str| DrillStep {
        stage,
        outcome: if stage == DrillStage::Probe { DrillOutcome::Skipped } else { DrillOutcome::Passed },
        elapsed_ms,
        note: note.to_owned(),
    };
    let drill = DrillReport {
        steps: vec![
            step(DrillStage::Open, 41, ""),
            step(DrillStage::FirstByte, 83, ""),
            step(DrillStage::Mount, 215, ""),
            step(DrillStage::Check, 970, "12 inodes, 3 directories"),
            step(DrillStage::Probe, 970, "no probe command"),
        ],
        fetched_bytes: 1_234_567,
        requests: 21,
        filesystems: vec!["ext4 on partition 1".into()],
        files: 9,
        files_bytes: 65_536,
        ..DrillReport::new(Timestamp::from_second(1_700_000_300).unwrap(), 7)
    };
    vec![
        proof(first, ProofKind::Deep),
        Proof { drill: Some(drill), ..proof(first, ProofKind::Drill) },
        proof(first, ProofKind::Quick),
        Proof { sound: false, ..proof(second, ProofKind::Full) },
    ]
}

/// Returns a lease of the second generation.
fn lease(cloudsnap: CloudSnapshotId) -> Lease {
    Lease {
        cloudsnap,
        host: Uuid::from_u128(0x9d0e_5b7a_33c1_4e52_8f60_41d2_7ab3_c5e9),
        volume: VolumeId::from_u64(4_415_809_921_375_060_118),
        host_name: "db1".into(),
        renewed: Timestamp::from_second(1_700_000_500).unwrap(),
    }
}

async fn write(kind: Kind) -> MemoryStore {
    let mode = kind.mode;
    let store = Arc::new(MemoryStore::default());
    let repo = Repository::from_saved_keys(store.clone(), vec![key(mode)], &KnownKeys::default()).unwrap();
    let times = keys::SlotTimes { created_unix_s: 1_700_000_000, generation: 0 };
    let slot = keys::encode_slot(&key(mode), kind.passphrase(), KDF, b"sixteen byte slt", times).unwrap();
    for prefix in ["blockd/keys/", "blockd/keys-copy/"] {
        store.insert(&format!("{prefix}{}", key(mode).key_id()), slot.clone());
    }
    let (mut base, mut ids): (Option<Manifest>, Vec<CloudSnapshotId>) = (None, Vec::new());
    for generation in 1..=2u64 {
        let (data, zero) = match generation {
            1 => (BlockSet::from_iter([Extent::new(BlockIndex(10), 40)]), BlockSet::new()),
            _ => (
                [11, 1000].map(|block| Extent::new(BlockIndex(block), 1)).into_iter().collect(),
                BlockSet::from_iter([Extent::new(BlockIndex(20), 4)]),
            ),
        };
        let (cluster, volume_id) = kind.cluster_and_volume(generation);
        let spec = BackupSpec {
            cluster,
            volume: volume_id,
            snapshot: SnapshotId::from_u64(951_325_819_047_337_066 + generation),
            description: SnapshotDescription {
                volume_name: "golden".into(),
                snapshot_name: format!("generation-{generation}"),
                labels: BTreeMap::from([("tier".into(), "gold".into())]),
                backup_labels: BTreeMap::new(),
                created: Timestamp::from_second(1_700_000_000 + generation as i64).unwrap(),
                trigger: "Manual".into(),
                freeze_stall_micros: 21,
            },
            size_bytes: (2 << 40) + 8192,
            started: Timestamp::now(),
            data,
            zero,
            base,
            references: References::default(),
            donors: Vec::new(),
            deduplicated: BlockSet::new(),
            synthetic: false,
            repair: None,
            delta_salt: [generation as u8; 32],
        };
        let progress = Arc::new(Progress::new(Arc::default()));
        let (reader, journal) = (Arc::new(volume(generation)), Arc::new(MemoryJournal::default()));
        let level = if generation == 1 { CompressionLevel::Zstd(3) } else { CompressionLevel::Lz4 };
        let compression = Compression::Fixed(level);
        let options = UploadOptions { compression, ..UploadOptions::default() };
        let cancel = CancelToken::new();
        let done = backup(&repo, Arc::new(spec), reader, journal, &options, progress, &cancel).await.unwrap();
        // Replaces the times and the random salt of the manifest.
        let time = |second| Timestamp::from_second(second).unwrap();
        let (started, finished) = (time(1_700_000_100), time(1_700_000_200));
        let manifest = Manifest { started, finished, ..done };
        let salt = [0x50 + generation as u8; 32];
        store.insert(&manifest.id().manifest_key(), manifest.encode(&key(mode), &salt).unwrap());
        ids.push(manifest.id());
        base = Some(manifest);
    }
    for proof in proofs(ids[0], ids[1]) {
        store.insert(&proof.id().key(), proof.encode(&key(mode), &[0x60; 32]).unwrap());
    }
    let lease = lease(ids[1]);
    store.insert(&lease.id().key(), lease.encode(&key(mode), &[0x70; 32]).unwrap());
    store.fork()
}

#[tokio::test]
async fn written_objects_equal_the_golden_files() {
    for kind in KINDS {
        let written = write(kind).await.objects();
        if std::env::var_os("BLOCKD_BLESS_GOLDEN").is_some() {
            for (key, body) in &written {
                let path = kind.dir().join(key);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, body).unwrap();
            }
        }
        let golden = files(kind).objects();
        assert_eq!(written.keys().collect::<Vec<_>>(), golden.keys().collect::<Vec<_>>());
        for (key, body) in &written {
            let at = body.iter().zip(&golden[key]).position(|(a, b)| a != b);
            assert!(*body == golden[key], "{kind:?}: {key} differs from byte {at:?} on");
        }
    }
}

#[tokio::test]
async fn golden_files_are_readable() {
    for kind in KINDS {
        let files = files(kind);
        let objects = files.objects();
        let store: Arc<dyn BlobStore> = Arc::new(files);
        let repo = Repository::open(store, kind.passphrase(), &OpenOptions::default()).await.unwrap();
        let listed = repo.list_manifests(&ManifestFilter::default(), &NoCache).await.unwrap();
        assert_eq!(listed.len(), 2);
        let [first, second] = [0, 1].map(|generation: usize| listed[generation].id.unwrap());
        let found = repo.list_proofs(&ManifestFilter::default()).await.unwrap();
        let found = repo.read_proofs(found).await.into_iter().map(|(_, proof)| proof.unwrap());
        assert_eq!(found.collect::<Vec<_>>(), proofs(first, second));
        let leases = repo.list_leases(&ManifestFilter::default()).await.unwrap();
        assert_eq!(repo.lease(&leases[0].id).await.unwrap(), Some(lease(second)));
        for (generation, listed) in (1..).zip(listed) {
            assert_eq!(
                objects[&listed.key][8..10],
                crate::FORMAT_VERSION.to_le_bytes(),
                "{kind:?}, {generation}"
            );
            let manifest = listed.manifest.unwrap();
            assert_eq!(manifest.description.snapshot_name, format!("generation-{generation}"));
            let reader = SnapshotReader::open(&repo, &manifest).await.unwrap();
            let read = reader.read_blocks(Extent::new(BlockIndex(0), 1100)).await.unwrap();
            let expected = volume(generation);
            for (number, block) in (0..).zip(read.chunks_exact(BLOCK)) {
                assert!(block == expected.block(number), "{kind:?}, {generation}: block {number} differs");
            }
        }
    }
}

/// The repair of the second generation, whose objects are beside those of both generations.
#[tokio::test]
async fn repaired_snapshot_equals_its_golden_files() {
    for kind in &KINDS[..2] {
        let before = files(*kind);
        let store = Arc::new(before.fork());
        let repo = Repository::open(store.clone(), kind.passphrase(), &OpenOptions::default()).await.unwrap();
        let listed = repo.list_manifests(&ManifestFilter::default(), &NoCache).await.unwrap();
        let damaged = listed[1].manifest.as_ref().unwrap();
        let blocks: BlockSet =
            [11, 20, 40].map(|block| Extent::new(BlockIndex(block), 1)).into_iter().collect();
        let mut repair = Repair::plan(&repo, damaged, &blocks, &[]).await.unwrap();
        let data = [11, 40].map(|block| Extent::new(BlockIndex(block), 1)).into_iter().collect();
        repair.add_source(RepairSource { blocks, data, reader: Arc::new(volume(2)) });
        let id = SnapshotId::from_u64(951_325_819_047_337_070);
        let (spec, reader) = repair.into_backup(id, Timestamp::now(), [7; 32]).unwrap();
        let (progress, journal) =
            (Arc::new(Progress::new(Arc::default())), Arc::new(MemoryJournal::default()));
        let (options, cancel) = (UploadOptions::default(), CancelToken::new());
        let done = backup(&repo, Arc::new(spec), reader, journal, &options, progress, &cancel).await.unwrap();
        let time = |second| Timestamp::from_second(second).unwrap();
        let manifest = Manifest { started: time(1_700_000_500), finished: time(1_700_000_600), ..done };
        assert_eq!(manifest.repairs, Some(damaged.id()));
        store.insert(&manifest.id().manifest_key(), manifest.encode(&key(kind.mode), &[0x57; 32]).unwrap());
        compare_new(*kind, "repaired", &before, &store);
        let reader = SnapshotReader::open(&repo, &manifest).await.unwrap();
        let read = reader.read_blocks(Extent::new(BlockIndex(0), 1100)).await.unwrap();
        let expected = volume(2);
        assert!((0..).zip(read.chunks_exact(BLOCK)).all(|(number, block)| block == expected.block(number)));
    }
}

/// A synthetic full backup based on the second generation, whose objects are beside those of both.
#[tokio::test]
async fn synthetic_full_equals_its_golden_files() {
    for kind in &KINDS[..2] {
        let before = files(*kind);
        let store = Arc::new(before.fork());
        let repo = Repository::open(store.clone(), kind.passphrase(), &OpenOptions::default()).await.unwrap();
        let listed = repo.list_manifests(&ManifestFilter::default(), &NoCache).await.unwrap();
        let base = listed[1].manifest.as_ref().unwrap().clone();
        let (live, data) = (volume(2), BlockSet::from_iter([Extent::new(BlockIndex(12), 1)]));
        live.set(12, &[0xcc; BLOCK]);
        let spec = BackupSpec {
            cluster: base.cluster,
            volume: base.volume,
            snapshot: SnapshotId::from_u64(951_325_819_047_337_069),
            description: SnapshotDescription {
                snapshot_name: "synthetic".into(),
                ..base.description.clone()
            },
            size_bytes: base.size_bytes,
            started: Timestamp::now(),
            references: unchanged_since(&repo, &base, &data, |_| false).await.unwrap().references,
            data,
            zero: BlockSet::new(),
            base: Some(base),
            donors: Vec::new(),
            deduplicated: BlockSet::new(),
            synthetic: true,
            repair: None,
            delta_salt: [8; 32],
        };
        store_and_compare(*kind, (&before, &store), spec, &live, [0x58; 32]).await;
    }
}

/// An incremental on the second generation with references to its own blocks and to those of its base.
#[tokio::test]
async fn deduplicated_backup_equals_its_golden_files() {
    for kind in &KINDS[..2] {
        let before = files(*kind);
        let store = Arc::new(before.fork());
        let repo = Repository::open(store.clone(), kind.passphrase(), &OpenOptions::default()).await.unwrap();
        let listed = repo.list_manifests(&ManifestFilter::default(), &NoCache).await.unwrap();
        let base = listed[1].manifest.as_ref().unwrap().clone();
        let set = |start, len| BlockSet::from_iter([Extent::new(BlockIndex(start), len)]);
        let live = volume(2);
        (60..64).for_each(|block| live.set(block, &[block as u8; BLOCK]));
        (70..74).for_each(|block| live.set(block, &[block as u8 - 10; BLOCK]));
        (80..82).for_each(|block| live.set(block, &live.block(block - 69)));
        let snapshot = SnapshotId::from_u64(951_325_819_047_337_071);
        let own = crate::names::DeltaId { cluster: base.cluster, volume: base.volume, snapshot };
        let (second, first) = (base.delta.id(), base.chain[0].id());
        let groups = BTreeMap::from([
            ((own, -10), set(70, 4)),
            ((second, -69), set(80, 1)),
            ((first, -69), set(81, 1)),
        ]);
        let spec = BackupSpec {
            cluster: base.cluster,
            volume: base.volume,
            snapshot,
            description: SnapshotDescription {
                snapshot_name: "deduplicated".into(),
                ..base.description.clone()
            },
            size_bytes: base.size_bytes,
            started: Timestamp::now(),
            references: References::new(groups, base.deltas(), Some(own)).unwrap(),
            donors: Vec::new(),
            deduplicated: [set(70, 4), set(80, 2)].iter().flat_map(BlockSet::extents).collect(),
            data: set(60, 4),
            zero: BlockSet::new(),
            base: Some(base),
            synthetic: false,
            repair: None,
            delta_salt: [9; 32],
        };
        store_and_compare(*kind, (&before, &store), spec, &live, [0x59; 32]).await;
    }
}

/// Makes a backup of a volume, compares its objects with golden files of its name, and reads it.
async fn store_and_compare(
    kind: Kind,
    (before, store): (&MemoryStore, &Arc<MemoryStore>),
    spec: BackupSpec,
    live: &MemoryVolume,
    salt: [u8; 32],
) {
    let repo = Repository::open(store.clone(), kind.passphrase(), &OpenOptions::default()).await.unwrap();
    let name = spec.description.snapshot_name.clone();
    let (progress, journal) = (Arc::new(Progress::new(Arc::default())), Arc::new(MemoryJournal::default()));
    let (options, cancel) = (UploadOptions::default(), CancelToken::new());
    let reader = Arc::new(live.fork());
    let done = backup(&repo, Arc::new(spec), reader, journal, &options, progress, &cancel).await.unwrap();
    let time = |second| Timestamp::from_second(second).unwrap();
    let manifest = Manifest { started: time(1_700_000_700), finished: time(1_700_000_800), ..done };
    store.insert(&manifest.id().manifest_key(), manifest.encode(&key(kind.mode), &salt).unwrap());
    compare_new(kind, &name, before, store);
    let reader = SnapshotReader::open(&repo, &manifest).await.unwrap();
    let read = reader.read_blocks(Extent::new(BlockIndex(0), 1100)).await.unwrap();
    assert!((0..).zip(read.chunks_exact(BLOCK)).all(|(number, block)| block == live.block(number)));
}

/// Compares the objects that were stored in addition to others with golden files.
fn compare_new(kind: Kind, name: &str, before: &MemoryStore, after: &MemoryStore) {
    let dir = PathBuf::from(format!("{}-{name}", kind.dir().display()));
    let mut written = after.objects();
    written.retain(|key, _| !before.objects().contains_key(key));
    assert_eq!(written.len(), 3, "pack, index and manifest");
    for (key, body) in written {
        let path = dir.join(&key);
        if std::env::var_os("BLOCKD_BLESS_GOLDEN").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &body).unwrap();
        }
        assert!(fs::read(path).unwrap() == body, "{kind:?}: {key} differs");
    }
}

/// Key slots for tests of other files: name, id and secret of the key, mode, passphrase, creation time.
const SLOTS: [(&str, u128, u8, EncryptionMode, &str, u64); 4] = [
    ("none", 0x4b4b, 0x42, EncryptionMode::Checksummed, "", 0),
    ("aes-256-gcm-siv", 0x4b4b, 0x42, EncryptionMode::Aes256GcmSiv, "passphrase", 0),
    ("older", 1, 7, EncryptionMode::Aes256GcmSiv, "correct horse", 1),
    ("newer", 2, 7, EncryptionMode::Aes256GcmSiv, "correct horse", 1 << 40),
];

#[test]
fn slot_files_hold_the_slots_of_their_keys() {
    let fast = KdfParams { m_kib: 8, t: 1, p: 1 };
    for (name, id, secret, mode, passphrase, created_unix_s) in SLOTS {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/slots").join(name);
        let passphrase = (mode == EncryptionMode::Aes256GcmSiv).then_some(passphrase);
        let times = keys::SlotTimes { created_unix_s, generation: 0 };
        let key = DataKey::fixed(Uuid::from_u128(id), mode, [secret; 32]);
        let slot = keys::encode_slot(&key, passphrase, fast, &[7; 16], times).unwrap();
        if std::env::var_os("BLOCKD_BLESS_GOLDEN").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &slot).unwrap();
        }
        assert!(fs::read(path).unwrap() == slot, "{name}");
    }
}
