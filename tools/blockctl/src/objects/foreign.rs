//! Objects of other systems: the storage section of KubeDB's snapshots, secrets, and kinds that have another
//! name here.

use super::{
    document::{Document, Problem},
    location_spec::{LocationSpec, S3Config},
    values::SecretSource,
};
use crate::{
    cli::credentials::{Provider, Settings},
    secrets::read_file,
};
use blockd_api::DailyLimit;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Kinds that belong to clusters, and their replacements.
const KINDS: [(&str, &str); 9] = [
    (
        "ApplicationBackup",
        "write VolumeBackup, with `volume`, `group` or `selectors` in the place of namespaces",
    ),
    (
        "ApplicationBackupSchedule",
        "write VolumeBackupSchedule, with `volume`, `group` or `selectors` in the place of namespaces",
    ),
    ("ApplicationRestore", "write VolumeRestore: `backupName` makes a volume with the name of the object"),
    ("ApplicationClone", "write VolumeClone, with `sourceVolume` in the place of sourceNamespace"),
    (
        "Snapshot",
        "write BackupLocation with the storage block (s3, gcs, azure, swift or local), and VolumeBackup for the backup itself",
    ),
    ("VolumeSnapshot", LOCAL_SNAPSHOTS),
    ("VolumeSnapshotSchedule", LOCAL_SNAPSHOTS),
    ("GroupVolumeSnapshot", LOCAL_SNAPSHOTS),
    (
        "Secret",
        "a secret is a directory with a file for each key (`secretConfig`, `storageSecretName`), or `file:` or `env:` in the place of a value",
    ),
];
const LOCAL_SNAPSHOTS: &str = "local snapshots are made by `blockctl snapshot create`, and by the `localSnapshots` of a VolumeBackupSchedule";
/// Fields of a storage section without a meaning outside of a cluster.
const IGNORED: [(&str, &str); 3] = [
    ("spec.databaseName", "a location is for all volumes; a VolumeBackup names one"),
    ("spec.resources", "blockd makes no pods; see limitUpload and limitDownload"),
    ("spec.local.volumeSource", "the directory is one of this host, and must exist"),
];

/// Returns the replacement of a kind that belongs to clusters.
pub fn replacement(kind: &str) -> Option<String> {
    let (_, replacement) = KINDS.iter().find(|(name, _)| *name == kind)?;
    Some(format!("{kind} is for clusters: {replacement}"))
}

/// Bucket, container or directory of a storage section.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bucket {
    #[serde(alias = "container", alias = "path")]
    bucket: String,
    endpoint: Option<String>,
    region: Option<String>,
    prefix: Option<String>,
}

/// Storage section of KubeDB's snapshots.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Storage {
    storage_secret_name: Option<PathBuf>,
    s3: Option<Bucket>,
    gcs: Option<Bucket>,
    azure: Option<Bucket>,
    swift: Option<Bucket>,
    local: Option<Bucket>,
    proxy: Option<String>,
    ca_certificate: Option<PathBuf>,
    limit_upload: Option<DailyLimit>,
    limit_download: Option<DailyLimit>,
    limit_time_zone: Option<String>,
    encryption_key: Option<SecretSource>,
}

/// Takes a storage section as a location.
///
/// # Errors
/// A field is invalid, or not exactly one store is given.
pub fn storage(document: &mut Document) -> Result<LocationSpec, Problem> {
    for (path, reason) in IGNORED {
        document.ignore(path, reason);
    }
    let storage: Storage = document.take("spec")?;
    let stores = [
        (Provider::S3, storage.s3),
        (Provider::Google, storage.gcs),
        (Provider::Azure, storage.azure),
        (Provider::Swift, storage.swift),
        (Provider::Local, storage.local),
    ];
    let mut given = stores.into_iter().filter_map(|(provider, bucket)| Some((provider, bucket?)));
    let (Some((provider, bucket)), None) = (given.next(), given.next()) else {
        return Err(document.problem("spec", "one of `s3`, `gcs`, `azure`, `swift` and `local` is expected"));
    };
    let Bucket { bucket, endpoint, region, prefix } = bucket;
    if provider == Provider::S3 && endpoint.is_none() {
        return Err(document.problem("spec", "s3: missing field `endpoint`"));
    }
    let s3 = (provider == Provider::S3).then(|| S3Config { endpoint, region, ..S3Config::default() });
    Ok(LocationSpec {
        provider,
        path: bucket,
        prefix,
        secret_config: storage.storage_secret_name,
        s3_config: s3,
        proxy: storage.proxy,
        ca_certificate: storage.ca_certificate,
        limit_upload: storage.limit_upload,
        limit_download: storage.limit_download,
        limit_time_zone: storage.limit_time_zone,
        encryption_key: storage.encryption_key,
        ..LocationSpec::default()
    })
}

/// Reads a secret: a directory with a file for each key, such as `kubectl create secret generic --from-file`
/// takes.
///
/// # Errors
/// The path is no directory.
pub fn read_secret_dir(settings: &mut Settings, dir: &Path) -> Result<(), String> {
    if !dir.is_dir() {
        let what = "is no directory: a secret is one, with a file for each of its keys";
        return Err(format!("secret {} {what}", dir.display()));
    }
    let file = |key: &str| Some(dir.join(key)).filter(|path| path.is_file());
    let text = |key: &str| Some(read_file("key of a secret", &file(key)?).ok()?.expose().to_owned());
    let either = |one: &str, other: &str| text(one).or_else(|| text(other));
    match settings.provider {
        Some(Provider::S3) => {
            settings.s3_access_key = either("AWS_ACCESS_KEY_ID", "accessKeyID");
            settings.s3_secret_key_file = file("AWS_SECRET_ACCESS_KEY").or_else(|| file("secretAccessKey"));
            settings.s3_region = text("region");
            settings.s3_endpoint = text("endpoint");
            settings.s3_disable_ssl = text("disableSSL").as_deref() == Some("true");
        }
        Some(Provider::Azure) => {
            settings.azure_account_name = either("AZURE_ACCOUNT_NAME", "storageAccountName");
            settings.azure_account_key_file = file("AZURE_ACCOUNT_KEY").or_else(|| file("storageAccountKey"));
        }
        Some(Provider::Google) => {
            settings.google_project_id = either("GOOGLE_PROJECT_ID", "projectID");
            settings.google_json_key_file =
                file("GOOGLE_SERVICE_ACCOUNT_JSON_KEY").or_else(|| file("accountKey"));
        }
        Some(Provider::Swift) => {
            settings.swift_auth_url = either("ST_AUTH", "OS_AUTH_URL");
            settings.swift_user = either("ST_USER", "OS_USERNAME");
            settings.swift_key_file = file("ST_KEY").or_else(|| file("OS_PASSWORD"));
            settings.swift_region = text("OS_REGION_NAME");
            settings.swift_tenant_name = text("OS_TENANT_NAME");
            settings.swift_tenant_id = text("OS_TENANT_ID");
            settings.swift_user_domain_name = text("OS_USER_DOMAIN_NAME");
            settings.swift_project_name = text("OS_PROJECT_NAME");
            settings.swift_project_domain_name = text("OS_PROJECT_DOMAIN_NAME");
            settings.swift_storage_url = text("OS_STORAGE_URL");
            settings.swift_token_file = file("OS_AUTH_TOKEN");
        }
        _ => {}
    }
    settings.encryption_passphrase_file = file("encryptionKey");
    Ok(())
}
