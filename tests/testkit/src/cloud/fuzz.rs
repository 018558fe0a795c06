//! Fuzz entry points for the objects of a repository.
//!
//! The first byte of an input selects the kind of object, and whether this module seals it: the parsers run
//! only behind valid seals. [`objects`] takes all kinds but proofs and leases; [`manifests`],
//! [`proofs`], [`leases`], [`frame_tables`] and [`key_slots`] one each; [`fingerprint_files`] takes files of
//! a data directory.
#![allow(clippy::expect_used, clippy::panic, reason = "a violated property must be found")]

use super::{
    forge::{self, Domain, ForgedDelta, OBJECT_HEADER_LEN, SALT, data_key},
    snapshots::plain_manifest,
};
use crate::store::MemoryStore;
use blockd_cloud::{
    CloudSnapshotId, DataKey, Delta, EncryptionMode, IndexRef, KdfParams, KnownKeys, LeaseId, Manifest,
    ManifestKey, ProofId, ProofKind, Repository, SnapshotReader, parse_fingerprint_file,
};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Extent, MAX_VOLUME_BYTES, SnapshotId, VolumeId};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

const ID: CloudSnapshotId = CloudSnapshotId {
    cluster: Uuid::from_u128(1),
    volume: VolumeId::from_u64(2),
    snapshot: SnapshotId::from_u64(3),
    incremental: false,
};
/// The proof under which all inputs are stored.
const PROOF: ProofId = ProofId {
    cloudsnap: ID,
    proven_unix_ms: 1_700_000_400_000,
    kind: ProofKind::Full,
    host: Uuid::from_u128(9),
};
/// The lease under which all inputs are stored.
const LEASE: LeaseId = LeaseId { cloudsnap: ID, host: Uuid::from_u128(9), volume: VolumeId::from_u64(7) };
const KEY: u128 = 4;
const DELTA: ForgedDelta = ForgedDelta { id: ID, key_id: Uuid::from_u128(KEY) };
/// Source of references, with data blocks that are zero.
const SOURCE: ForgedDelta = ForgedDelta {
    id: CloudSnapshotId { snapshot: SnapshotId::from_u64(5), ..ID },
    key_id: Uuid::from_u128(KEY),
};
const SOURCE_BLOCKS: u64 = 64;
const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
const FRAME_BLOCKS: usize = 128;
const PACK_FRAMES: u32 = 64;
/// Lengths of the header, of each source and of each entry of an index root.
const ROOT_HEADER_LEN: usize = 64;
const ROOT_SOURCE_LEN: usize = 32;
const ROOT_ENTRY_LEN: usize = 60;
/// Limits: pages and sources of a root, and blocks read of each page.
const MAX_PAGES: usize = 8;
const MAX_SOURCES: usize = 4;
const MAX_READ_BLOCKS: u64 = 64;
/// Maximum parameters of opened key slots; larger ones may need a gigabyte of memory.
const CHEAP: KdfParams = KdfParams { m_kib: 64, t: 2, p: 2 };

/// Reads `data` as an object of a repository.
///
/// # Panics
/// If a property is violated.
pub fn objects(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 8 {
        0 => manifest(rest.to_vec()),
        1 | 2 => manifest(forge::manifest(&ID, DELTA.key_id, rest)),
        3 => frame_tables(rest),
        4 => frame(rest),
        5 => key_slot(rest),
        6 => key_slot(&[rest, &xxh3_64(rest).to_le_bytes()].concat()),
        _ => names(rest),
    }
}

/// Reads `data` as a manifest, as given or sealed.
///
/// # Panics
/// If a property is violated.
pub fn manifests(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 3 {
        0 => manifest(rest.to_vec()),
        _ => manifest(forge::manifest(&ID, DELTA.key_id, rest)),
    }
}

/// Reads `data` as a proof, as given or sealed.
///
/// # Panics
/// If a property is violated.
pub fn proofs(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let (store, repo) = repository();
    let read = |object: Vec<u8>| {
        store.insert(&PROOF.key(), object);
        block_on(repo.proof(&PROOF))
    };
    let object = match kind % 3 {
        0 => rest.to_vec(),
        _ => forge::proof(&PROOF, DELTA.key_id, rest),
    };
    let Ok(proof) = read(object) else { return };
    let proof = proof.expect("it is stored");
    assert_eq!(proof.id(), PROOF);
    assert!(proof.host_name.len() < 256 && proof.version.len() < 256);
    let again =
        forge::proof(&PROOF, DELTA.key_id, &serde_json::to_vec(&proof).expect("a proof is serializable"));
    assert_eq!(read(again).expect("a written proof is readable"), Some(proof));
}

/// Reads `data` as a lease, as given or sealed.
///
/// # Panics
/// If a property is violated.
pub fn leases(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let (store, repo) = repository();
    let read = |object: Vec<u8>| {
        store.insert(&LEASE.key(), object);
        block_on(repo.lease(&LEASE))
    };
    let object = match kind % 3 {
        0 => rest.to_vec(),
        _ => forge::lease(&LEASE, DELTA.key_id, rest),
    };
    let Ok(lease) = read(object) else { return };
    let lease = lease.expect("it is stored");
    assert_eq!(lease.id(), LEASE);
    assert!(lease.host_name.len() < 256);
    let again =
        forge::lease(&LEASE, DELTA.key_id, &serde_json::to_vec(&lease).expect("a lease is serializable"));
    assert_eq!(read(again).expect("a written lease is readable"), Some(lease));
}

/// Reads `data` as a key slot, as given and with a valid checksum.
///
/// # Panics
/// If a property is violated.
pub fn key_slots(data: &[u8]) {
    key_slot(data);
    key_slot(&[data, &xxh3_64(data).to_le_bytes()].concat());
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    runtime.expect("runtime").block_on(work)
}

fn repository() -> (Arc<MemoryStore>, Repository) {
    let store = Arc::new(MemoryStore::default());
    let key = data_key(KEY, EncryptionMode::Checksummed, [0; 32]);
    let opened = Repository::from_saved_keys(store.clone(), vec![key], &KnownKeys::default());
    (store, opened.expect("repository"))
}

fn manifest(object: Vec<u8>) {
    let (store, repo) = repository();
    let read = |object: Vec<u8>| {
        store.insert(&ID.manifest_key(), object);
        block_on(repo.manifest(&ID))
    };
    let Ok(manifest) = read(object) else { return };
    assert_eq!(manifest.id(), ID);
    let again = forge::object_of(&manifest, DELTA.key_id).expect("a manifest is serializable");
    assert_eq!(read(again).expect("a written manifest is readable"), manifest);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the length was checked"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the length was checked"))
}

/// Returns the entries of the pages in a root.
fn entries(root: &[u8]) -> usize {
    let sources = (u32_at(root, 60) as usize).saturating_mul(ROOT_SOURCE_LEN);
    sources.saturating_add(ROOT_HEADER_LEN).min(root.len())
}

/// Stores the index of a delta: this root, and this page for each entry that is not empty. Returns the
/// manifest of the snapshot.
fn put_index(store: &MemoryStore, of: &ForgedDelta, mut root: Vec<u8>, page: &[u8]) -> Manifest {
    let mut object = of.header(b"BLKDINDX");
    let first = entries(&root);
    for (number, entry) in (0..).zip(root[first..].chunks_exact_mut(ROOT_ENTRY_LEN)) {
        let offset = object.len() as u64;
        if u32_at(entry, 32) != 0 {
            object.extend(of.sealed(Domain::IndexPage, number, page.len() as u64, page));
            entry[32..36].copy_from_slice(&(object.len() as u32 - offset as u32).to_le_bytes());
            entry[44..].copy_from_slice(&object[object.len() - 16..]);
        }
        entry[36..44].copy_from_slice(&offset.to_le_bytes());
    }
    let stored = of.sealed(Domain::IndexRoot, 0, root.len() as u64, &root);
    let (root_offset_bytes, root_len_bytes) = (object.len() as u64, stored.len() as u64);
    object.extend(&stored);
    let index = IndexRef {
        len_bytes: object.len() as u64,
        root_offset_bytes,
        root_len_bytes,
        root_sha256: Sha256::digest(&stored).into(),
    };
    store.insert(&of.object("index"), object);
    let plain = plain_manifest(of.id, of.key_id);
    let delta = Delta {
        index,
        salt: SALT,
        frames: u64_at(&root, 24),
        data_blocks: u64_at(&root, 32),
        zero_blocks: u64_at(&root, 40),
        reference_blocks: u64_at(&root, 48),
        pack_count: u32_at(&root, 56),
        ..plain.delta
    };
    Manifest { size_bytes: u64_at(&root, 0), pack_count: delta.pack_count, delta, ..plain }
}

/// Returns the root of a delta with one page and no references.
fn root_of(frames: u64, blocks: u64) -> Vec<u8> {
    let mut root = (blocks * BLOCK_SIZE_BYTES).to_le_bytes().to_vec();
    for number in [BLOCK as u32, FRAME_BLOCKS as u32, PACK_FRAMES, 1] {
        root.extend(number.to_le_bytes());
    }
    // Frames, data, zero and reference blocks.
    for number in [frames, blocks, 0, 0] {
        root.extend(number.to_le_bytes());
    }
    // Packs and sources.
    root.extend([1u32, 0].map(u32::to_le_bytes).as_flattened());
    // First and last block of the page and its first frame.
    root.extend([0, blocks, 0].map(u64::to_le_bytes).as_flattened());
    // Its blocks and references; length, offset and tag, which `put_index` sets.
    root.extend([blocks as u32, 0].map(u32::to_le_bytes).as_flattened());
    root.extend([1; 28]);
    root
}

/// Returns a page with data blocks only, in frames of these lengths.
fn page_of(blocks: u64, lens: &[u32]) -> Vec<u8> {
    let set = BlockSet::from_iter([Extent::new(BlockIndex(0), blocks)]).to_bytes();
    let (zero, references) = (BlockSet::new().to_bytes(), 0u32.to_le_bytes());
    let numbers = [set.len(), zero.len(), references.len(), lens.len(), OBJECT_HEADER_LEN];
    let numbers = numbers.map(|number| (number as u32).to_le_bytes());
    let lens: Vec<u8> = lens.iter().flat_map(|len| len.to_le_bytes()).collect();
    [numbers.as_flattened(), &set, &zero, &references, &lens].concat()
}

/// Reads the first blocks of each page of a root; returns those of the first page.
fn read(repo: &Repository, manifest: &Manifest, root: &[u8]) -> Option<Vec<u8>> {
    block_on(async {
        let reader = SnapshotReader::open(repo, manifest).await.ok()?;
        let mut first = None;
        for entry in root[entries(root)..].chunks_exact(ROOT_ENTRY_LEN) {
            let (start, end) = (u64_at(entry, 0), u64_at(entry, 8));
            assert!(start < end, "the reader accepted a root with empty pages");
            let extent = Extent::new(BlockIndex(start), (end - start).min(MAX_READ_BLOCKS));
            let blocks = reader.read_blocks(extent).await;
            if let Ok(blocks) = &blocks {
                assert_eq!(blocks.len(), extent.len_blocks as usize * BLOCK);
            }
            first = first.or(Some(blocks.ok()));
        }
        first.flatten()
    })
}

/// Reads `data` as an index root and a page with frame tables: the length of the root in two bytes, the root,
/// and the page.
///
/// # Panics
/// If a property is violated.
pub fn frame_tables(data: &[u8]) {
    let [low, high, rest @ ..] = data else {
        return;
    };
    let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let (root, page) = rest.split_at(len);
    let max_len = ROOT_HEADER_LEN + MAX_SOURCES * ROOT_SOURCE_LEN + MAX_PAGES * ROOT_ENTRY_LEN;
    if !(ROOT_HEADER_LEN..=max_len).contains(&len) || !(1..=MAX_VOLUME_BYTES).contains(&u64_at(root, 0)) {
        return;
    }
    let (store, repo) = repository();
    let source = put_index(&store, &SOURCE, root_of(2, SOURCE_BLOCKS), &page_of(SOURCE_BLOCKS, &[0, 0]));
    let manifest = put_index(&store, &DELTA, root.to_vec(), page);
    let manifest = Manifest { sources: vec![source.delta], ..manifest };
    read(&repo, &manifest, root);
}

/// Reads `data` as a frame: its number of blocks, and its content, which is sealed.
fn frame(data: &[u8]) {
    let Some((blocks, content)) = data.split_first() else {
        return;
    };
    let blocks = usize::from(*blocks) % FRAME_BLOCKS + 1;
    let plain_len = (blocks * BLOCK) as u64;
    let (store, repo) = repository();
    let stored = DELTA.sealed(Domain::Frame, 0, plain_len, content);
    store.insert(&DELTA.object("pack-00000000"), [DELTA.header(b"BLKDPACK"), stored.clone()].concat());
    let (root, page) = (root_of(1, blocks as u64), page_of(blocks as u64, &[stored.len() as u32]));
    let manifest = put_index(&store, &DELTA, root.clone(), &page);
    let Some(read) = read(&repo, &manifest, &root) else { return };
    let zero_mask = u32_at(content, 1);
    for (i, block) in read.chunks_exact(BLOCK).enumerate() {
        assert!(zero_mask & (1 << i) == 0 || block.iter().all(|byte| *byte == 0), "block {i} is not zero");
    }
}

fn key_slot(bytes: &[u8]) {
    let known = KnownKeys { write_key: None, slots: KnownKeys::decode_slots(bytes) };
    if known.slots.is_empty() {
        return;
    }
    assert!(KnownKeys::decode_slots(&known.encode_slots()) == known.slots);
    let cheap =
        u32_at(bytes, 28) <= CHEAP.m_kib && u32_at(bytes, 32) <= CHEAP.t && u32_at(bytes, 36) <= CHEAP.p;
    let passphrase = (bytes[10] != 0).then_some("passphrase");
    if bytes.len() != 144 || (passphrase.is_some() && !cheap) {
        return;
    }
    let key_id = Uuid::from_slice(&bytes[12..28]).expect("16 bytes");
    let store = Arc::new(MemoryStore::default());
    for folder in ["keys", "keys-copy"] {
        store.insert(&format!("blockd/{folder}/{key_id}"), bytes.to_vec());
    }
    if let Ok(repo) = block_on(Repository::open_existing(store, passphrase, &KnownKeys::default())) {
        assert_eq!(repo.keys().len(), 1);
        assert_eq!(repo.keys()[0].key_id(), key_id);
    }
}

/// Reads `bytes` as a saved data key and as the text of an id.
fn names(bytes: &[u8]) {
    if let Ok(key) = DataKey::from_bytes(bytes) {
        assert_eq!(key.to_bytes()[..], *bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some(id) = ProofId::from_key(text) {
        assert_eq!(id.key(), text, "the key of a proof is unique");
    }
    if let Some(id) = LeaseId::from_key(text) {
        assert_eq!(id.key(), text, "the key of a lease is unique");
    }
    if let Ok(id) = text.parse::<CloudSnapshotId>() {
        assert_eq!(id.to_string(), text, "the text of an id is unique");
        assert_eq!(CloudSnapshotId::from_manifest_key(&id.manifest_key()), Some(id));
    }
}

/// Fingerprint files: arbitrary bytes, or bytes with the magic and the checksums of a file.
///
/// # Panics
/// If a property is violated.
pub fn fingerprint_files(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    let mut file = rest.to_vec();
    if kind % 3 > 0 {
        forge::fingerprint_file(&mut file);
    }
    if let Ok(entries) = parse_fingerprint_file(&file) {
        assert_eq!(file[96..100], (entries as u32).to_le_bytes(), "all entries of the header are read");
    }
}
