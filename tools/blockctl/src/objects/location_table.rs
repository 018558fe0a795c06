//! Table of the fields of backup locations.

use crate::commands::credentials::settings::is_changeable;

/// Directory with a file for each key of a secret, as `kubectl create secret generic --from-file` takes it.
pub const SECRET_DIR: &str = "secret-dir";
/// Fields without a meaning here; backups of other hosts are always visible.
pub const IGNORED: &str = "ignored";
/// Claim that backups are encrypted.
pub const ENCRYPTED: &str = "encrypted";
/// Provider.
pub const STORE_TYPE: &str = "provider";
/// Fields of all systems: setting, path in Stork's custom resource, paths in KubeDB's storage section (`*` is
/// any of its sections), and keys of a secret directory.
pub const FIELDS: &[(&str, &str, &str, &str)] = &[
    (STORE_TYPE, "type", "", ""),
    ("path", "path", "*.path *.bucket *.container", ""),
    ("prefix", "prefix", "*.prefix", ""),
    (SECRET_DIR, "secretConfig", "storageSecretName", ""),
    (ENCRYPTED, "encrypted", "", ""),
    ("encryption-passphrase", "encryptionKey", "encryptionKey", "encryptionKey"),
    ("proxy", "proxy", "proxy", ""),
    ("ca-certificate", "caCertificate", "caCertificate", ""),
    ("limit-upload", "limitUpload", "limitUpload", ""),
    ("limit-download", "limitDownload", "limitDownload", ""),
    ("limit-time-zone", "limitTimeZone", "limitTimeZone", ""),
    ("s3-endpoint", "s3Config.endpoint", "s3.endpoint", "endpoint"),
    ("s3-region", "s3Config.region", "s3.region", "region"),
    ("s3-access-key", "s3Config.accessKeyID", "", "AWS_ACCESS_KEY_ID accessKeyID"),
    ("s3-secret-key", "s3Config.secretAccessKey", "", "AWS_SECRET_ACCESS_KEY secretAccessKey"),
    ("use-iam", "s3Config.useIAM", "", ""),
    ("s3-disable-ssl", "s3Config.disableSSL", "", "disableSSL"),
    ("disable-path-style", "s3Config.disablePathStyle", "", ""),
    ("s3-storage-class", "s3Config.storageClass", "", ""),
    ("s3-role-arn", "s3Config.roleARN", "", ""),
    ("s3-external-id", "s3Config.externalID", "", ""),
    ("s3-sts-endpoint", "s3Config.stsEndpoint", "", ""),
    ("azure-account-name", "azureConfig.storageAccountName", "", "AZURE_ACCOUNT_NAME storageAccountName"),
    ("azure-account-key", "azureConfig.storageAccountKey", "", "AZURE_ACCOUNT_KEY storageAccountKey"),
    ("azure-sas-token", "azureConfig.sasToken", "", ""),
    ("use-iam", "azureConfig.useManagedIdentity", "", ""),
    ("azure-endpoint", "azureConfig.endpoint", "", ""),
    ("azure-client-id", "azureConfig.clientID", "", ""),
    ("google-project-id", "googleConfig.projectID", "", "GOOGLE_PROJECT_ID projectID"),
    ("google-json-key", "googleConfig.accountKey", "", "GOOGLE_SERVICE_ACCOUNT_JSON_KEY accountKey"),
    ("use-iam", "googleConfig.useIAM", "", ""),
    ("google-endpoint", "googleConfig.endpoint", "", ""),
    ("swift-auth-version", "swiftConfig.authVersion", "", ""),
    ("swift-auth-url", "swiftConfig.authURL", "", "ST_AUTH OS_AUTH_URL"),
    ("swift-user", "swiftConfig.user", "", "ST_USER OS_USERNAME"),
    ("swift-key", "swiftConfig.key", "", "ST_KEY OS_PASSWORD"),
    ("swift-token", "swiftConfig.token", "", "OS_AUTH_TOKEN"),
    ("swift-region", "swiftConfig.region", "", "OS_REGION_NAME"),
    ("swift-project-name", "swiftConfig.project", "", "OS_PROJECT_NAME"),
    ("swift-tenant-name", "swiftConfig.tenantName", "", "OS_TENANT_NAME"),
    ("swift-tenant-id", "swiftConfig.tenantID", "", "OS_TENANT_ID"),
    ("swift-user-domain-name", "swiftConfig.userDomainName", "", "OS_USER_DOMAIN_NAME"),
    ("swift-project-domain-name", "swiftConfig.projectDomainName", "", "OS_PROJECT_DOMAIN_NAME"),
    ("swift-storage-url", "swiftConfig.storageURL", "", "OS_STORAGE_URL"),
    (IGNORED, "sync", "*.endpoint *.region", ""),
];
/// Fields of a storage section without a meaning outside of a cluster.
pub const IGNORED_FIELDS: [(&str, &str); 3] = [
    ("spec.databaseName", "a location is for all volumes; a VolumeBackup names one"),
    ("spec.resources", "blockd makes no pods; see limitUpload and limitDownload"),
    ("spec.local.volumeSource", "the directory is one of this host, and must exist"),
];
/// Settings that the daemon does not report.
pub const UNREPORTED: &str = "ca-certificate s3-sts-endpoint azure-client-id swift-auth-version swift-tenant-name swift-tenant-id \
    swift-user-domain-name swift-project-domain-name swift-storage-url";

/// System whose fields a location has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Custom resource of Stork, and ours.
    Stork,
    /// Storage section of KubeDB.
    KubeDb,
}

impl Dialect {
    /// Returns the field of the content.
    pub const fn root(self) -> &'static str {
        if matches!(self, Self::Stork) { "location" } else { "spec" }
    }

    /// Returns the fields with fields of their own.
    pub const fn sections(self) -> &'static [&'static str] {
        match self {
            Self::Stork => &["s3Config", "azureConfig", "googleConfig", "swiftConfig"],
            Self::KubeDb => &["s3", "gcs", "azure", "swift", "local"],
        }
    }

    /// Returns all paths with their settings.
    pub fn fields(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        FIELDS.iter().flat_map(move |(setting, stork, kubedb, _)| {
            let paths = if self == Self::Stork { stork } else { kubedb };
            paths.split_whitespace().map(|path| (*setting, path))
        })
    }
}

/// Returns true for the path of a field that describes access.
pub fn is_access(path: &str) -> bool {
    FIELDS.iter().any(|(setting, field, ..)| {
        let rest = path.strip_prefix("location.").and_then(|path| path.strip_prefix(field));
        let is_it = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        is_it && *setting != ENCRYPTED && is_changeable(setting)
    })
}
