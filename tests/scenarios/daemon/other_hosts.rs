//! Credentials whose passphrase lies in a file.

use super::{key_slots::create_reopened, updates::put, *};
use blockd_api::{Secret, credentials::RekeyCredential};
use std::time::Duration;

/// Time after which local secrets are read again.
const CACHED: Duration = Duration::from_millis(2_200);

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passphrase_does_not_affect_open_repositories() {
    let host = Host::new().await;
    let nas = create_reopened(&host).await;
    host.create_volume("data").await;
    host.done(host.start_backup("data", true).await).await;
    put(&host, "passphrase", "another");
    tokio::time::sleep(CACHED).await;
    host.done(host.start_backup("data", true).await).await;
    let refused = host.engine().credentials.validate_credential(&nas).await.unwrap_err();
    assert_eq!(refused.to_api().code, ErrorCode::WrongPassphrase);
    host.done(host.start_backup("data", true).await).await;
    put(&host, "passphrase", "first");
    tokio::time::sleep(CACHED).await;
    host.engine().credentials.validate_credential(&nas).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_keys_survive_a_rekey_without_the_secret() {
    let host = Host::new().await;
    let nas = create_reopened(&host).await;
    let slots = || {
        let files = walk(host.store.path()).into_iter();
        files.filter(|path| path.contains("key")).collect::<Vec<String>>()
    };
    let before = slots();
    let rekey =
        RekeyCredential { passphrase: None, new_passphrase: None, new_data_key: true, accept_key: None };
    host.engine().credentials.rekey_credential(&nas, rekey).await.unwrap();
    let keys =
        || host.engine().repositories.opened.lock().values().map(|(one, _)| one.keys().len()).sum::<usize>();
    assert_eq!((before.len(), slots().len(), keys()), (2, 4, 2), "{:?}", slots());
    before.iter().for_each(|slot| std::fs::remove_file(host.store.path().join(slot)).unwrap());
    host.sql("UPDATE credentials SET key_slots = x''");
    std::fs::remove_file(host.dir.path().join("secrets/passphrase")).unwrap();
    tokio::time::sleep(CACHED).await;
    let known = Some(Secret::new("first".into()));
    let without =
        RekeyCredential { passphrase: known, new_passphrase: None, new_data_key: false, accept_key: None };
    let _ = host.engine().credentials.rekey_credential(&nas, without).await;
    assert_eq!(keys(), 2);
}
