//! Key slots that are damaged, missing, or of another key than the host expects.

use super::{updates::put, *};
use blockd_api::{
    CredentialRef, Secret, SecretInput,
    cloudsnaps::{StartVerify, VerifyDepth},
    credentials::RekeyCredential,
};
use std::fs;

/// The directories of both copies of the key slots.
const KEY_SLOTS: [&str; 2] = ["keys", "keys-copy"];

impl Host {
    /// Moves both copies of all key slots out of the store.
    pub(super) fn move_key_slots(&self, to: &Path) {
        std::fs::create_dir(to).unwrap();
        for name in KEY_SLOTS {
            std::fs::rename(self.store.path().join("blockd").join(name), to.join(name)).unwrap();
        }
    }

    /// Puts them back.
    pub(super) fn upload_key_slots(&self, from: &Path) {
        for name in KEY_SLOTS {
            std::fs::rename(from.join(name), self.store.path().join("blockd").join(name)).unwrap();
        }
    }
}

/// The files of all key slots.
fn slots(host: &Host) -> Vec<std::path::PathBuf> {
    KEY_SLOTS
        .iter()
        .flat_map(|dir| walk(&host.store.path().join("blockd").join(dir)))
        .map(Into::into)
        .collect()
}

/// Severity and message of all events of a kind.
async fn events(host: &Host, kind: &str) -> Vec<(String, String)> {
    let events = host.call(LIST_EVENTS, &Default::default()).await.events;
    let of_kind = events.into_iter().filter(|event| event.kind == kind);
    of_kind.map(|event| (event.severity.to_string(), event.message)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_damaged_key_slot_fails_repairs_and_tells() {
    let host = Host::new().await;
    host.call(CREATE_CREDENTIAL, &host.credential("nas", Some("first"))).await;
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
        let failed = host.wait(host.call(START_VERIFY, &request).await.task).await;
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
    host.call(CREATE_CREDENTIAL, &host.credential("nas", Some("first"))).await;
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
    other.call(CREATE_CREDENTIAL, &other.credential("nas", Some("first"))).await;
    assert_eq!(other.list().await.len(), 2);
}

/// A credential whose passphrase lies in a file, so that its keys are opened at each start.
pub(super) async fn create_reopened(host: &Host) -> CredentialRef {
    let mut request = host.credential("nas", None);
    request.encryption_passphrase = Some(SecretInput::From(put(host, "passphrase", "first")));
    host.call(CREATE_CREDENTIAL, &request).await;
    "nas".parse().unwrap()
}

fn rekey() -> RekeyCredential {
    let passphrase = Some(Secret::new("first".into()));
    RekeyCredential { passphrase, new_passphrase: None, new_data_key: false, accept_key: None }
}

/// The key that a host writes under, as it is stored.
async fn pinned(host: &Host) -> Uuid {
    host.engine().repositories.credential_rows().await.unwrap().pop().unwrap().write_key.key_id
}

async fn refused_backup(host: &Host) -> String {
    let failed = host.wait(host.start_backup("data", true).await).await;
    let error = failed.error.unwrap();
    assert_eq!(error.code, ErrorCode::WriteKeyRefused, "{error:?}");
    error.message
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_without_the_newest_key_slot_is_refused() {
    let mut host = Host::new().await;
    let nas = create_reopened(&host).await;
    host.create_volume("data").await;
    let first = host.backup("data", true).await.source_volume.unwrap();
    host.engine()
        .credentials
        .rekey_credential(&nas, RekeyCredential { new_data_key: true, ..rekey() })
        .await
        .unwrap();
    // Made here, so it needs no acceptance.
    host.backup("data", true).await;
    let newest = pinned(&host).await;
    let of_newest = slots(&host).into_iter().filter(|slot| slot.ends_with(newest.to_string()));
    of_newest.for_each(|slot| fs::remove_file(slot).unwrap());
    host.sql("UPDATE credentials SET key_slots = x''");
    host.stop().await;
    host.start().await;
    let message = refused_backup(&host).await;
    assert!(message.contains(&newest.to_string()) && message.contains("--accept-key"), "{message}");
    refused_backup(&host).await;
    let told = events(&host, "write-key-refused").await;
    assert!(told.len() == 1 && told[0].0 == "error" && told[0].1.contains(&newest.to_string()), "{told:?}");
    let refused = host.engine().credentials.validate_credential(&nas).await.unwrap_err();
    assert_eq!(refused.to_api().code, ErrorCode::WriteKeyRefused);
    host.restore(&first, "copy").await;
    host.engine()
        .credentials
        .rekey_credential(&nas, RekeyCredential { new_data_key: true, ..rekey() })
        .await
        .unwrap();
    host.backup("data", true).await;
    assert_ne!(pinned(&host).await, newest);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_another_host_is_used_once_accepted() {
    let mut host = Host::new().await;
    let nas = create_reopened(&host).await;
    host.create_volume("data").await;
    host.backup("data", true).await;
    let before = pinned(&host).await;
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.call(CREATE_CREDENTIAL, &other.credential("nas", Some("first"))).await;
    other
        .engine()
        .credentials
        .rekey_credential(&nas, RekeyCredential { new_data_key: true, ..rekey() })
        .await
        .unwrap();
    let made = pinned(&other).await;
    host.stop().await;
    host.start().await;
    let message = refused_backup(&host).await;
    assert!(message.contains(&made.to_string()) && message.contains(&before.to_string()), "{message}");
    // A look for the keys of other hosts accepts none.
    host.engine().credentials.rekey_credential(&nas, rekey()).await.unwrap();
    refused_backup(&host).await;
    let accept = |key| RekeyCredential { accept_key: Some(key), ..rekey() };
    host.engine().credentials.rekey_credential(&nas, accept(before)).await.unwrap_err();
    host.engine().credentials.rekey_credential(&nas, accept(made)).await.unwrap();
    host.backup("data", true).await;
    host.stop().await;
    host.start().await;
    host.backup("data", true).await;
    assert_eq!(pinned(&host).await, made);
}
