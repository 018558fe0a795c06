//! Tests of damaged repositories, made from the golden ones, and of their error messages.
use crate::common::{open, requests};
use blockd_cloud::{
    CancelToken, EncryptionMode, ManifestFilter, NoCache, Progress, VerifyDepth, VerifyOptions, verify,
};
use blockd_testkit::store::MemoryStore;
use std::{fs, path::Path, sync::Arc};

const PASSPHRASE: &str = "correct horse battery staple";

/// Damage of an object.
#[derive(Clone, Copy)]
enum Damage {
    Missing,
    Flip(usize),
    /// Offset from the end.
    FlipLast(usize),
    Cut(usize),
    Version(u16),
    /// Content of another object of the same kind.
    Swapped(&'static str),
}

fn golden(mode: EncryptionMode) -> MemoryStore {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(mode.name());
    let store = MemoryStore::default();
    let mut pending = vec![root.clone()];
    while let Some(at) = pending.pop() {
        for path in fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => pending.push(path),
                false => {
                    let key = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                    store.insert(&key, fs::read(&path).unwrap());
                }
            }
        }
    }
    store
}

fn find(store: &MemoryStore, part: &str) -> String {
    store.objects().into_keys().find(|key| key.contains(part)).unwrap_or_else(|| panic!("no {part}"))
}

fn spoil(store: &MemoryStore, part: &str, damage: Damage) -> String {
    let key = find(store, part);
    let mut body = store.remove(&key).unwrap().to_vec();
    match damage {
        Damage::Missing => return key,
        Damage::Flip(at) => body[at] ^= 1,
        Damage::FlipLast(from_end) => {
            let at = body.len() - from_end;
            body[at] ^= 1;
        }
        Damage::Cut(len) => body.truncate(len),
        Damage::Version(version) => body[8..10].copy_from_slice(&version.to_le_bytes()),
        Damage::Swapped(other) => {
            let other = find(store, other);
            body = store.objects()[&other].to_vec();
        }
    }
    store.insert(&key, body);
    key
}

/// All messages about a repository.
async fn said(store: Arc<MemoryStore>, mode: EncryptionMode) -> Vec<String> {
    let passphrase = (mode == EncryptionMode::Aes256GcmSiv).then_some(PASSPHRASE);
    let repo = match open(store, passphrase).await {
        Ok(repo) => repo,
        Err(error) => return vec![error.to_string()],
    };
    let listed = repo.list_manifests(&ManifestFilter::default(), &NoCache).await.unwrap();
    let ids: Vec<_> = listed.into_iter().filter_map(|listed| listed.id).collect();
    let options = VerifyOptions { depth: VerifyDepth::Full, ..VerifyOptions::default() };
    let (progress, cancel) = (Arc::new(Progress::new(requests())), CancelToken::new());
    let report = verify(&repo, &ids, &options, &|_| None, &NoCache, progress, &cancel).await.unwrap();
    let findings = report.findings.into_iter();
    let found = findings.map(|found| format!("{} at {}: {}", found.object, found.offset_bytes, found.what));
    // Copies that the open of the repository repaired.
    found.chain(repo.take_slot_findings().iter().map(ToString::to_string)).collect()
}

const FULL: &str = "951325819047337067/";
const FULL_MANIFEST: &str = "-951325819047337067";

#[tokio::test]
async fn damages_have_distinct_names() {
    let fixtures: &[(&str, &str, Damage, &str)] = &[
        ("a pack is gone", "067/pack-", Damage::Missing, "the object is missing"),
        ("a pack is cut", "067/pack-", Damage::Cut(1000), "the object has 1000 bytes"),
        ("a pack is empty", "067/pack-", Damage::Cut(0), "the object has 0 bytes"),
        ("a bit in a frame", "067/pack-", Damage::FlipLast(1), "the frame does not open"),
        (
            "a bit in a pack's magic",
            "067/pack-",
            Damage::Flip(0),
            "it does not begin as its kind of object does",
        ),
        ("a bit in a pack's number", "067/pack-", Damage::Flip(12), "its header names another pack"),
        ("a bit in a pack's key id", "067/pack-", Damage::Flip(20), "its header names another key"),
        ("a pack of another snapshot", "067/pack-", Damage::Swapped("068/pack-"), "were stored"),
        ("an index is gone", "067/index", Damage::Missing, "the object is missing"),
        (
            "a bit in a root",
            "067/index",
            Damage::FlipLast(1),
            "its root is not the one that the manifest names",
        ),
        (
            "an index of another snapshot",
            "067/index",
            Damage::Swapped("068/index"),
            "its header names another snapshot",
        ),
        ("a bit in a page", "067/index", Damage::Flip(70), "does not open"),
        ("a manifest is cut", FULL_MANIFEST, Damage::Cut(90), "truncated or extended"),
        ("a manifest is short", FULL_MANIFEST, Damage::Cut(10), "shorter than the header of a manifest"),
        ("a bit in a manifest", FULL_MANIFEST, Damage::FlipLast(30), "does not open"),
        (
            "a bit in a manifest's magic",
            FULL_MANIFEST,
            Damage::Flip(1),
            "it does not begin as a manifest does",
        ),
        ("a manifest of a later version", FULL_MANIFEST, Damage::Version(99), "has format version 99"),
        ("a manifest under an unknown key", FULL_MANIFEST, Damage::Flip(18), "not among the opened keys"),
        ("a key slot is cut", "blockd/keys/", Damage::Cut(143), "a key slot has 144 bytes, this has 143"),
        (
            "a bit in a key slot",
            "blockd/keys/",
            Damage::Flip(40),
            "the checksum of the key slot does not match",
        ),
        ("a key slot is gone", "blockd/keys/", Damage::Missing, "the object is missing; repaired"),
    ];
    let mut wrong = Vec::new();
    for mode in [EncryptionMode::Aes256GcmSiv, EncryptionMode::Checksummed] {
        assert_eq!(said(Arc::new(golden(mode)), mode).await, Vec::<String>::new(), "{mode}");
        assert!(find(&golden(mode), FULL).starts_with("blockd/data/"));
        for (what, part, damage, expected) in fixtures {
            let store = golden(mode);
            let key = spoil(&store, part, *damage);
            let said = said(Arc::new(store), mode).await;
            if !said.iter().any(|message| message.contains(expected)) {
                wrong.push(format!("{mode}, {what}: {expected:?} is not among {said:#?}"));
            }
            let named = said.iter().any(|message| message.contains(&key));
            assert!(named, "{mode}, {what}: {key} is not named in {said:#?}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
