//! Key slots that are damaged, missing, or of another key than the host expects.

use super::*;
use blockd_api::cloudsnaps::{StartVerify, VerifyDepth};
use std::fs;

/// The files of all key slots.
fn slots(host: &Host) -> Vec<std::path::PathBuf> {
    let files = walk(host.store.path()).into_iter().filter(|path| path.starts_with("blockd/keys"));
    files.map(|path| host.store.path().join(path)).collect()
}

/// Severity and message of all events of a kind.
async fn events(host: &Host, kind: &str) -> Vec<(String, String)> {
    let events = host.client.list_events(&Default::default()).await.unwrap().events;
    let of_kind = events.into_iter().filter(|event| event.kind == kind);
    of_kind.map(|event| (event.severity.to_string(), event.message)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_damaged_key_slot_fails_repairs_and_tells() {
    let host = Host::new().await;
    host.client.create_credential(&host.credential("nas", Some("first"))).await.unwrap();
    host.create_volume("data").await;
    host.backup("data", true).await;
    let slots = slots(&host);
    assert_eq!(slots.len(), 2);
    for slot in &slots {
        let whole = fs::read(slot).unwrap();
        let mut damaged = whole.clone();
        damaged[90] ^= 1;
        fs::write(slot, damaged).unwrap();
        let request = StartVerify { depth: VerifyDepth::Quick, ..StartVerify::default() };
        let failed = host.wait(host.client.start_verify(&request).await.unwrap().task).await;
        let (error, findings) = (failed.error.unwrap(), failed.findings.unwrap());
        assert_eq!(error.code, ErrorCode::CloudsnapDamaged);
        let name = slot.strip_prefix(host.store.path()).unwrap().to_str().unwrap();
        assert!(error.message.contains(name), "{error:?}");
        assert_eq!((findings.damage[0].object.as_str(), findings.damaged_snapshots.len()), (name, 0));
        assert_eq!(fs::read(slot).unwrap(), whole, "the host repaired it");
        let told = events(&host, "key-slot-damaged").await;
        assert!(
            told.last().is_some_and(|(_, text)| text.contains(name) && text.ends_with("repaired")),
            "{told:?}"
        );
    }
    let severities: Vec<_> = events(&host, "key-slot-damaged").await.into_iter().map(|one| one.0).collect();
    assert_eq!(severities, ["warning", "warning"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_without_any_key_slot_puts_it_back() {
    let mut host = Host::new().await;
    host.client.create_credential(&host.credential("nas", Some("first"))).await.unwrap();
    host.create_volume("data").await;
    host.backup("data", true).await;
    let whole: Vec<_> = slots(&host).iter().map(|slot| fs::read(slot).unwrap()).collect();
    host.move_key_slots(&host.store.path().join("gone"));
    host.stop().await;
    host.start().await;
    host.backup("data", true).await;
    let back: Vec<_> = slots(&host).iter().map(|slot| fs::read(slot).unwrap()).collect();
    assert_eq!(back, whole);
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.client.create_credential(&other.credential("nas", Some("first"))).await.unwrap();
    assert_eq!(other.list().await.len(), 2);
}
