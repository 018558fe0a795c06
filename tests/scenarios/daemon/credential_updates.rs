//! Updates of credentials: passphrases, references, and data keys that exist on one host only.

use super::{
    key_slots::{rekey, rotate_key, slots},
    *,
};
use blockd_api::{
    ApiError, CredentialRef, Labels, Secret, SecretInput, SecretRef,
    credential_update::UpdateCredential,
    credentials::{Credential, CredentialLimits, S3Access, S3Config, StoreAccess},
};
use blockd_cloud::{OpenOptions, Repository};
use blockd_testkit::store::{FakeHttpServer, HttpReply};
use std::os::unix::fs::PermissionsExt;

/// Writes a secret to a file; returns the reference to it.
pub(super) fn put_secret(host: &Host, name: &str, text: &str) -> SecretRef {
    let path = host.dir.path().join("secrets").join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    format!("file:{}", path.display()).parse().unwrap()
}

fn passphrase(input: impl Into<SecretInput>) -> UpdateCredential {
    UpdateCredential { encryption_passphrase: Some(input.into()), ..UpdateCredential::default() }
}

async fn update(host: &Host, request: UpdateCredential) -> Result<Credential, ApiError> {
    let nas: CredentialRef = "nas".parse().unwrap();
    host.engine().credentials.update_credential(&nas, request).await.map_err(|error| error.to_api())
}

/// Returns the sealed keys and the passphrase reference of the only credential.
async fn stored(host: &Host) -> (Vec<u8>, Option<SecretRef>) {
    let row = host.engine().repositories.credential_rows().await.unwrap().pop().unwrap();
    (row.data_keys, row.passphrase_from)
}

/// Returns the references of the only credential.
async fn references(host: &Host) -> Vec<SecretRef> {
    let row = host.engine().repositories.credential_rows().await.unwrap().pop().unwrap();
    blockd_engine::repositories::references::references_of(&row).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn passphrase_moved_outside_and_back_keeps_the_chain() {
    let mut host = Host::new().await;
    host.encrypted_backup().await;
    let next = async |host: &Host, seed| {
        let content = pattern(seed, 65_536);
        host.volume("data").write(0, &content, false).unwrap();
        let task = host.backup("data", false).await;
        assert_eq!(task.backup_type, Some(BackupType::Incremental));
    };

    let reference = put_secret(&host, "passphrase", "first");
    let nas: CredentialRef = "nas".parse().unwrap();
    let moved = host.call_at(UPDATE_CREDENTIAL, &nas, &passphrase(reference.clone())).await;
    assert_eq!(moved.encryption_key_from.as_ref(), Some(&reference));
    assert_eq!(stored(&host).await, (Vec::new(), Some(reference.clone())), "no key is stored on this host");
    assert_eq!(references(&host).await, std::slice::from_ref(&reference));
    next(&host, 1).await;
    host.restart().await;
    next(&host, 2).await;

    // Another file with the same passphrase; the first file is not needed any more.
    let other = put_secret(&host, "other", "first");
    update(&host, passphrase(other.clone())).await.unwrap();
    fs::remove_file(host.dir.path().join("secrets/passphrase")).unwrap();
    host.engine().credentials.validate_credential(&nas).await.unwrap();

    let back = update(&host, passphrase(Secret::new("first".into()))).await.unwrap();
    assert_eq!((back.encryption_key_from, references(&host).await), (None, vec![]));
    assert!(!stored(&host).await.0.is_empty());
    fs::remove_file(host.dir.path().join("secrets/other")).unwrap();
    next(&host, 3).await;
    host.restart().await;
    next(&host, 4).await;
    assert_eq!(host.list().await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_credential_update_changes_nothing() {
    let host = Host::new().await;
    host.call(CREATE_CREDENTIAL, &host.credential("nas", Some("first"))).await;
    let before = stored(&host).await;
    let another = put_secret(&host, "another", "planted-another");
    for wrong in [passphrase(another), passphrase(Secret::new("planted-another".into()))] {
        let error = update(&host, wrong).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::WrongPassphrase);
        assert_eq!(error.settings, ["encryption-passphrase"]);
        assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("credentials rekey nas")));
        assert!(
            error.message.ends_with("nothing was changed") && !error.message.contains("planted"),
            "{error}"
        );
    }
    let missing = format!("file:{}", host.dir.path().join("secrets/missing").display());
    let error = update(&host, passphrase(missing.parse::<SecretRef>().unwrap())).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::SecretUnavailable, "{error}");
    let keys = StoreAccess::S3(S3Access {
        access_key: Some("a".into()),
        secret_key: Some(Secret::new("planted".into()).into()),
        ..S3Access::default()
    });
    let request = UpdateCredential { access: Some(keys), ..UpdateCredential::default() };
    let error = update(&host, request).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidRequest, "{error}");
    let error = update(&host, UpdateCredential::default()).await.unwrap_err();
    assert!(error.message.contains("at least one flag"), "{error}");

    // Another repository with the same passphrase at the same path.
    let aside = host.store.path().join("aside");
    host.move_key_slots(&aside);
    let right = put_secret(&host, "right", "first");
    let error = update(&host, passphrase(right.clone())).await.unwrap_err();
    assert!(error.message.contains("does not hold the repository of credential nas"), "{error}");
    let store = blockd_store::LocalStore::open(host.store.path()).unwrap();
    Repository::open(Arc::new(store), Some("first"), &OpenOptions::default()).await.unwrap();
    let error = update(&host, passphrase(right.clone())).await.unwrap_err();
    assert!(error.message.contains("does not hold the repository of credential nas"), "{error}");
    assert_eq!(stored(&host).await, before);

    host.move_key_slots(&host.store.path().join("foreign"));
    host.restore_key_slots(&aside);
    update(&host, passphrase(right)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn local_keys_are_not_uploaded() {
    let host = Host::new().await;
    host.call(CREATE_CREDENTIAL, &host.credential("nas", Some("first"))).await;
    let slots = slots(&host);
    rekey(&host, &"nas".parse().unwrap(), rotate_key()).await;
    host.lose_slots(&slots);
    let before = stored(&host).await;
    let reference = put_secret(&host, "passphrase", "first");
    let error = update(&host, passphrase(reference)).await.unwrap_err();
    assert!(error.message.contains("1 data keys of credential nas exist on this host only"), "{error}");
    assert_eq!(stored(&host).await, before);
    // A passphrase stored in the database keeps all keys.
    update(&host, passphrase(Secret::new("first".into()))).await.unwrap();
    assert_eq!(host.open_keys(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn default_credential_is_used_where_none_is_named() {
    let (mut host, other) = (Host::new().await, tempfile::tempdir().unwrap());
    host.create_volume("data").await;
    let nas = host.create_credential().await;
    let offsite = host.create_credential_at("offsite", other.path()).await;
    let error = api_error(host.client.call(START_BACKUP, &backup_of("data")).await);
    assert_eq!(error.code, ErrorCode::CredentialRequired);
    assert!(error.message.contains("(nas, offsite)"), "{}", error.message);

    let name = "offsite".parse().unwrap();
    assert!(host.call_at(SET_DEFAULT_CREDENTIAL, &name, &()).await.is_default);
    for restarts in [false, true] {
        if restarts {
            host.restart().await;
        }
        assert_eq!(host.backup("data", false).await.credential_id, Some(offsite));
        let list = host.call(LIST_CREDENTIALS, &()).await.items;
        let defaults: Vec<_> =
            list.iter().filter(|one| one.is_default).map(|one| one.credential_id).collect();
        assert_eq!(defaults, [offsite]);
    }
    host.call_at(DELETE_CREDENTIAL, &name, &()).await;
    assert_eq!(host.backup("data", false).await.credential_id, Some(nas));
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_of_changes_name_the_default_credential() {
    let host = Host::new().await;
    for name in ["nas", "other"] {
        let mut request = host.credential(name, Some("first"));
        request.connection.prefix = Some(name.to_owned());
        host.call(CREATE_CREDENTIAL, &request).await;
    }
    let nas = "nas".parse().unwrap();
    host.call_at(SET_DEFAULT_CREDENTIAL, &nas, &()).await;
    let labels = UpdateCredential { labels: Some("app=db".parse().unwrap()), ..UpdateCredential::default() };
    for (name, is_default) in [("nas", true), ("other", false)] {
        let name = name.parse().unwrap();
        let replies = [
            host.call_at(LIMIT_CREDENTIAL, &name, &CredentialLimits::default()).await,
            host.call_at(VALIDATE_CREDENTIAL, &name, &()).await,
            host.call_at(UPDATE_CREDENTIAL, &name, &labels).await,
        ];
        assert!(replies.iter().all(|reply| reply.is_default == is_default), "{replies:?}");
    }
    let access = update(&host, passphrase(Secret::new("first".into()))).await.unwrap();
    assert!(access.is_default, "{access:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_change_without_access_to_the_store() {
    let mut host = Host::new().await;
    let labels = |text: &str| -> Labels { text.parse().unwrap() };
    let request = CreateCredential { labels: labels("namespace=shop"), ..host.credential("nas", None) };
    assert_eq!(host.call(CREATE_CREDENTIAL, &request).await.labels, request.labels);
    let name = "nas".parse().unwrap();
    let limited = host.call_at(LIMIT_CREDENTIAL, &name, &CredentialLimits::default()).await;
    assert_eq!(limited.labels, request.labels);
    fs::remove_dir_all(host.store.path()).unwrap();
    let update = UpdateCredential { labels: Some(labels("app=db")), ..UpdateCredential::default() };
    assert_eq!(Some(host.call_at(UPDATE_CREDENTIAL, &name, &update).await.labels), update.labels);
    host.restart().await;
    assert_eq!(host.call(LIST_CREDENTIALS, &()).await.items[0].labels, labels("app=db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn new_location_without_a_passphrase_has_a_warning() {
    let host = Host::new().await;
    let plain = host.call(CREATE_CREDENTIAL, &host.credential("plain", None)).await;
    assert!(plain.warnings.len() == 1 && plain.warnings[0].contains("unencrypted"), "{:?}", plain.warnings);
    assert!(!plain.warnings[0].contains("--"), "options are those of a client: {:?}", plain.warnings);
    assert_eq!(host.call(LIST_CREDENTIALS, &()).await.items[0].warnings, Vec::<String>::new());
    let other = Host::new().await;
    let encrypted = other.credential("encrypted", Some("correct horse"));
    assert_eq!(other.call(CREATE_CREDENTIAL, &encrypted).await.warnings, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_creation_names_its_new_bucket() {
    let host = Host::new().await;
    let server = FakeHttpServer::start(|request| match request.method.as_str() {
        "PUT" => HttpReply::status(200),
        _ => HttpReply::status(403).body("<Error><Code>AccessDenied</Code></Error>"),
    });
    let server = server.await;
    let access = S3Access {
        access_key: Some("key".into()),
        secret_key: Some(Secret::new("secret".into()).into()),
        ..S3Access::default()
    };
    let s3 = |bucket: &str| S3Config {
        endpoint: server.url(),
        region: "eu-central-1".into(),
        bucket: bucket.to_owned(),
        disable_ssl: true,
        disable_path_style: false,
        access: access.clone(),
    };
    let create = async |bucket| {
        let request =
            CreateCredential { provider: StoreConfig::S3(s3(bucket)), ..host.credential("s3", None) };
        let error =
            host.engine().credentials.create_credential(request).await.map_err(|error| error.to_api());
        error.unwrap_err().hint.unwrap_or_default()
    };
    let bucket = host.engine().host.cluster.to_string();
    let hint = create("").await;
    assert!(hint.contains(&format!("bucket {bucket} exists now")), "{hint}");
    let hint = create("given").await;
    assert!(!hint.contains("exists now"), "{hint}");
}
