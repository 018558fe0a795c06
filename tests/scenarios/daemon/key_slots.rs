//! Key slots that are damaged, missing, or hold another key than the host expects.

use super::{credential_updates::put_secret, *};
use blockd_api::{
    CredentialRef, Secret, SecretInput,
    cloudsnaps::{CloudsnapStatus, VerifyDepth},
    credentials::RekeyCredential,
    events::Severity,
};
use blockd_testkit::store::Fault;

/// The directories of both copies of the key slots.
const KEY_SLOTS: [&str; 2] = ["keys", "keys-copy"];

impl Host {
    /// Moves both copies of all key slots out of the store.
    pub(super) fn move_key_slots(&self, to: &Path) {
        fs::create_dir(to).unwrap();
        for name in KEY_SLOTS {
            fs::rename(self.store.path().join("blockd").join(name), to.join(name)).unwrap();
        }
    }

    /// Removes key slots from the store and from the database.
    pub(super) fn lose_slots(&self, slots: &[PathBuf]) {
        slots.iter().for_each(|slot| fs::remove_file(slot).unwrap());
        self.sql("UPDATE credentials SET key_slots = x''");
    }

    /// Moves both copies of all key slots back into the store.
    pub(super) fn restore_key_slots(&self, from: &Path) {
        for name in KEY_SLOTS {
            fs::rename(from.join(name), self.store.path().join("blockd").join(name)).unwrap();
        }
    }
}

/// Returns the files of all key slots.
pub(super) fn slots(host: &Host) -> Vec<PathBuf> {
    KEY_SLOTS
        .iter()
        .flat_map(|dir| walk(&host.store.path().join("blockd").join(dir)))
        .map(Into::into)
        .collect()
}

fn read_slots(host: &Host) -> Vec<Vec<u8>> {
    slots(host).iter().map(|slot| fs::read(slot).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_key_slot_fails_verification_and_is_repaired() {
    let host = Host::new().await;
    host.encrypted_backup().await;
    let slots = slots(&host);
    assert_eq!(slots.len(), 2);
    for slot in &slots {
        let intact = fs::read(slot).unwrap();
        flip_bit(slot, 90);
        let failed = host.verify(&StartVerify { depth: VerifyDepth::Quick, ..Default::default() }).await;
        let (error, findings) = (failed.error.unwrap(), failed.findings.unwrap());
        assert_eq!(error.code, ErrorCode::CloudsnapDamaged);
        let name = slot.strip_prefix(host.store.path()).unwrap().to_str().unwrap();
        assert!(error.message.contains(name), "{error:?}");
        assert_eq!((findings.damage[0].object.as_str(), findings.damaged_snapshots.len()), (name, 0));
        assert_eq!(fs::read(slot).unwrap(), intact);
        let event = host.events_of("key-slot-damaged").await.pop().unwrap();
        assert!(event.message.contains(name) && event.message.ends_with("repaired"), "{event:?}");
    }
    let events = host.events_of("key-slot-damaged").await;
    assert!(
        events.len() == 2 && events.iter().all(|event| event.severity == Severity::Warning),
        "{events:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn problem_of_a_key_slot_ends_with_its_repair() {
    let (mut host, faults) = Host::with_faults().await;
    let (uuid, repository) = {
        let opened = host.engine().repositories.opened.lock();
        let (uuid, (repository, _)) = opened.iter().next().unwrap();
        (*uuid, repository.clone())
    };
    let has_problem = || host.engine().health.problems().iter().any(|problem| problem.kind == "key-slot");
    flip_bit(slots(&host).remove(0), 90);
    faults.fail_writes(Fault::BeforeApply);
    host.engine().repositories.prove_location(uuid, &repository).await.unwrap();
    assert!(has_problem());
    faults.heal();
    host.call_at(VALIDATE_CREDENTIAL, &CredentialRef::Id(uuid), &()).await;
    assert!(!has_problem());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_without_any_key_slot_uploads_it_again() {
    let mut host = Host::new().await;
    host.encrypted_backup().await;
    let intact = read_slots(&host);
    host.move_key_slots(&host.store.path().join("aside"));
    host.restart().await;
    host.backup("data", true).await;
    assert_eq!(read_slots(&host), intact);
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.call(CREATE_CREDENTIAL, &other.credential("nas", Some("first"))).await;
    assert_eq!(other.list().await.len(), 2);
}

/// Creates a credential with an external passphrase, so that its keys are opened at each start.
pub(super) async fn create_with_external_passphrase(host: &Host) -> CredentialRef {
    let mut request = host.credential("nas", None);
    request.encryption_passphrase = Some(SecretInput::From(put_secret(host, "passphrase", "first")));
    host.call(CREATE_CREDENTIAL, &request).await;
    "nas".parse().unwrap()
}

/// Returns a request that loads the keys of other hosts.
pub(super) fn load_keys() -> RekeyCredential {
    RekeyCredential { passphrase: Some(Secret::new("first".into())), new_data_key: false, ..new_data_key() }
}

/// Returns a request for a new data key with the passphrase.
pub(super) fn rotate_key() -> RekeyCredential {
    RekeyCredential { new_data_key: true, ..load_keys() }
}

pub(super) async fn rekey(host: &Host, nas: &CredentialRef, request: RekeyCredential) {
    host.engine().credentials.rekey_credential(nas, request).await.unwrap();
}

/// Returns the id of the stored key for new backups.
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
    let nas = create_with_external_passphrase(&host).await;
    host.create_volume("data").await;
    let first = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    rekey(&host, &nas, rotate_key()).await;
    // This host made the key: it needs no acceptance.
    host.backup("data", true).await;
    let newest = pinned(&host).await;
    let of_newest = slots(&host).into_iter().filter(|slot| slot.ends_with(newest.to_string()));
    host.lose_slots(&of_newest.collect::<Vec<_>>());
    host.restart().await;
    let message = refused_backup(&host).await;
    assert!(message.contains(&newest.to_string()) && message.contains("--accept-key"), "{message}");
    refused_backup(&host).await;
    let events = host.events_of("write-key-refused").await;
    assert!(events.len() == 1 && events[0].severity == Severity::Error, "{events:?}");
    assert!(events[0].message.contains(&newest.to_string()), "{events:?}");
    let refused = host.engine().credentials.validate_credential(&nas).await.unwrap_err();
    assert_eq!(refused.to_api().code, ErrorCode::WriteKeyRefused);
    host.restore(&first, "copy").await;
    rekey(&host, &nas, rotate_key()).await;
    host.backup("data", true).await;
    assert_ne!(pinned(&host).await, newest);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_another_host_is_used_once_accepted() {
    let mut host = Host::new().await;
    let nas = create_with_external_passphrase(&host).await;
    host.create_volume("data").await;
    host.backup("data", true).await;
    let before = pinned(&host).await;
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.call(CREATE_CREDENTIAL, &other.credential("nas", Some("first"))).await;
    rekey(&other, &nas, rotate_key()).await;
    let made = pinned(&other).await;
    host.restart().await;
    let message = refused_backup(&host).await;
    assert!(message.contains(&made.to_string()) && message.contains(&before.to_string()), "{message}");
    // Loading the keys of other hosts accepts none for new backups.
    rekey(&host, &nas, load_keys()).await;
    refused_backup(&host).await;
    let accept = |key| RekeyCredential { accept_key: Some(key), ..load_keys() };
    host.engine().credentials.rekey_credential(&nas, accept(before)).await.unwrap_err();
    rekey(&host, &nas, accept(made)).await;
    host.backup("data", true).await;
    host.restart().await;
    host.backup("data", true).await;
    assert_eq!(pinned(&host).await, made);
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_under_a_key_of_another_host_restores_after_a_rekey() {
    let host = Host::new().await;
    host.encrypted_backup().await;
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.call(CREATE_CREDENTIAL, &other.credential("nas", Some("first"))).await;
    let nas = "nas".parse().unwrap();
    rekey(&other, &nas, rotate_key()).await;
    other.create_volume("data").await;
    let theirs = other.backup("data", true).await.cloud_snapshot_id.unwrap();
    let error = api_error(host.client.call(START_RESTORE, &restore_as(&theirs, "copy")).await);
    assert_eq!(error.code, ErrorCode::WrongPassphrase, "{error}");
    assert!(error.hint.is_some_and(|hint| hint.contains("credentials rekey")));
    rekey(&host, &nas, load_keys()).await;
    host.restore(&theirs, "copy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_under_an_unknown_key_is_unreadable() {
    let host = Host::new().await;
    host.call(CREATE_CREDENTIAL, &host.credential("nas", Some("first"))).await;
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.call(CREATE_CREDENTIAL, &other.credential("nas", Some("first"))).await;
    other.create_volume("data").await;
    let nas: CredentialRef = "nas".parse().unwrap();
    rekey(&other, &nas, rotate_key()).await;
    let snap = other.backup("data", true).await.cloud_snapshot_id.unwrap();
    let list = host.call(LIST_CLOUDSNAPS, &ListCloudsnaps::default()).await;
    let [one] = &list.damaged[..] else { panic!("{list:?}") };
    assert_eq!((one.cloud_snapshot_id.as_str(), one.credential_name.as_str()), (snap.as_str(), "nas"));
    assert_eq!((one.status, one.stored_at.is_some()), (CloudsnapStatus::Unreadable, true), "{one:?}");
    assert!(one.hint.as_ref().unwrap().contains("credentials rekey"), "{one:?}");
    rekey(&host, &nas, load_keys()).await;
    assert_eq!(host.ids().await, [snap]);
}
