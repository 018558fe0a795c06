//! Changes of an external passphrase while its repository is open.

use super::{
    credential_updates::put_secret,
    key_slots::{create_with_external_passphrase, load_keys, rekey, slots},
    *,
};

impl Host {
    /// Drops the cached secrets, as happens after a few seconds.
    fn expire_secrets(&self) {
        self.engine().references.keep_only(&Default::default());
    }

    /// Returns the number of open data keys.
    pub(super) fn open_keys(&self) -> usize {
        self.engine().repositories.opened.lock().values().map(|(one, _)| one.keys().len()).sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passphrase_does_not_affect_open_repositories() {
    let host = Host::new().await;
    let nas = create_with_external_passphrase(&host).await;
    host.create_volume("data").await;
    host.backup("data", true).await;
    put_secret(&host, "passphrase", "another");
    host.expire_secrets();
    host.backup("data", true).await;
    let refused = host.engine().credentials.validate_credential(&nas).await.unwrap_err();
    assert_eq!(refused.to_api().code, ErrorCode::WrongPassphrase);
    host.backup("data", true).await;
    put_secret(&host, "passphrase", "first");
    host.expire_secrets();
    host.engine().credentials.validate_credential(&nas).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn open_keys_survive_a_rekey_without_the_secret() {
    let host = Host::new().await;
    let nas = create_with_external_passphrase(&host).await;
    let before = slots(&host);
    rekey(&host, &nas, new_data_key()).await;
    assert_eq!((before.len(), slots(&host).len(), host.open_keys()), (2, 4, 2), "{:?}", slots(&host));
    host.lose_slots(&before);
    fs::remove_file(host.dir.path().join("secrets/passphrase")).unwrap();
    host.expire_secrets();
    let _ = host.engine().credentials.rekey_credential(&nas, load_keys()).await;
    assert_eq!(host.open_keys(), 2);
}
