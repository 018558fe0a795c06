//! `blockctl credentials update`

use super::credentials::parse_secret;
use blockd_api::{CredentialRef, Secret, SecretRef};
use clap::Args;
use std::path::PathBuf;

/// Additional help.
pub const UPDATE_HELP: &str = "\
Given options replace the stored ones; the others stay. The daemon first verifies that the store \
opens with them and holds the same repository; otherwise nothing changes. Tasks, mounts and lazy \
volumes continue with the new keys from their next request: the old keys can be revoked when this \
command returns.

A stored secret and a reference (--…-from) replace each other; so do a key and --use-iam. The \
encryption passphrase stays the same and only moves: to --encryption-passphrase-from REF, or back \
with --encryption-passphrase-file. `blockctl credentials rekey` changes it. Unlike `create`, this \
command reads nothing from the environment. An empty value removes --s3-role-arn, \
--s3-storage-class, --proxy or --ca-certificate.

The location (provider, bucket, server, account, directory) cannot change: create another \
credential for another location.

Examples:
  blockctl credentials update s3 --s3-access-key AKIA… --s3-secret-key-file ./new-key
  blockctl credentials update s3 --s3-secret-key-from command:/etc/blockd/secrets/s3-key
  blockctl credentials update az --azure-sas-token-file ./sas
  blockctl credentials update nas --encryption-passphrase-from systemd:blockd-passphrase
  blockctl credentials update s3 --proxy ''";

/// `credentials update`
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Name or UUID of the credential
    #[arg(value_name = "CREDENTIALS")]
    pub credential: CredentialRef,
    /// Use the instance role or managed identity instead of a key (s3, azure, google)
    #[arg(long)]
    pub use_iam: bool,
    /// Access key (s3)
    #[arg(long, value_name = "KEY", help_heading = "S3")]
    pub s3_access_key: Option<String>,
    /// Secret key (s3)
    #[arg(long, value_name = "KEY", value_parser = parse_secret, group = "s3_secret", help_heading = "S3")]
    pub s3_secret_key: Option<Secret>,
    /// File with the secret key, - for stdin (s3)
    #[arg(long, value_name = "FILE", group = "s3_secret", help_heading = "S3")]
    pub s3_secret_key_file: Option<PathBuf>,
    /// Reference to the secret key: systemd:NAME, file:/PATH or command:/PATH (s3)
    #[arg(long, value_name = "REF", group = "s3_secret", help_heading = "S3")]
    pub s3_secret_key_from: Option<SecretRef>,
    /// Role to assume, empty for none; replaces the next two options too (s3)
    #[arg(long, value_name = "ARN", help_heading = "S3")]
    pub s3_role_arn: Option<String>,
    /// STS external ID for AssumeRole (s3)
    #[arg(long, value_name = "ID", requires = "s3_role_arn", help_heading = "S3")]
    pub s3_external_id: Option<String>,
    /// STS endpoint, if not Amazon's or the bucket's (s3)
    #[arg(long, value_name = "HOST:PORT", requires = "s3_role_arn", help_heading = "S3")]
    pub s3_sts_endpoint: Option<String>,
    /// Storage class of new objects, empty for the bucket's default (s3)
    #[arg(long, value_name = "CLASS", help_heading = "S3")]
    pub s3_storage_class: Option<String>,
    /// Account key (azure)
    #[arg(long, value_name = "KEY", value_parser = parse_secret, group = "azure_secret", help_heading = "Azure")]
    pub azure_account_key: Option<Secret>,
    /// File with the account key, - for stdin (azure)
    #[arg(long, value_name = "FILE", group = "azure_secret", help_heading = "Azure")]
    pub azure_account_key_file: Option<PathBuf>,
    /// Reference to the account key (azure)
    #[arg(long, value_name = "REF", group = "azure_secret", help_heading = "Azure")]
    pub azure_account_key_from: Option<SecretRef>,
    /// Shared access signature: the query of a SAS URL (azure)
    #[arg(long, value_name = "QUERY", value_parser = parse_secret, group = "azure_secret", help_heading = "Azure")]
    pub azure_sas_token: Option<Secret>,
    /// File with the shared access signature, - for stdin (azure)
    #[arg(long, value_name = "FILE", group = "azure_secret", help_heading = "Azure")]
    pub azure_sas_token_file: Option<PathBuf>,
    /// Reference to the shared access signature (azure)
    #[arg(long, value_name = "REF", group = "azure_secret", help_heading = "Azure")]
    pub azure_sas_token_from: Option<SecretRef>,
    /// Client id of the managed identity, with --use-iam (azure)
    #[arg(long, value_name = "ID", requires = "use_iam", help_heading = "Azure")]
    pub azure_client_id: Option<String>,
    /// Key file of a service account, - for stdin (google)
    #[arg(long, value_name = "FILE", group = "google_secret", help_heading = "Google")]
    pub google_json_key_file: Option<PathBuf>,
    /// Reference to the service account key, JSON (google)
    #[arg(long, value_name = "REF", group = "google_secret", help_heading = "Google")]
    pub google_json_key_from: Option<SecretRef>,
    /// Key or password of the user (swift)
    #[arg(long, value_name = "KEY", value_parser = parse_secret, group = "swift_secret", help_heading = "Swift")]
    pub swift_key: Option<Secret>,
    /// File with the key or password, - for stdin (swift)
    #[arg(long, value_name = "FILE", group = "swift_secret", help_heading = "Swift")]
    pub swift_key_file: Option<PathBuf>,
    /// Reference to the key or password (swift)
    #[arg(long, value_name = "REF", group = "swift_secret", help_heading = "Swift")]
    pub swift_key_from: Option<SecretRef>,
    /// Token, instead of a user (swift)
    #[arg(long, value_name = "TOKEN", value_parser = parse_secret, group = "swift_secret", help_heading = "Swift")]
    pub swift_token: Option<Secret>,
    /// File with the token, - for stdin (swift)
    #[arg(long, value_name = "FILE", group = "swift_secret", help_heading = "Swift")]
    pub swift_token_file: Option<PathBuf>,
    /// Reference to the token (swift)
    #[arg(long, value_name = "REF", group = "swift_secret", help_heading = "Swift")]
    pub swift_token_from: Option<SecretRef>,
    /// PEM file of additional CA certificates, empty for none
    #[arg(long, value_name = "FILE", help_heading = "Connection")]
    pub ca_certificate: Option<String>,
    /// Proxy, http://HOST:PORT without a password, empty for the daemon's environment
    #[arg(long, value_name = "URL", help_heading = "Connection")]
    pub proxy: Option<String>,
    /// Current passphrase, to store the keys on the host, sealed; prefer a file
    #[arg(long, value_name = "TEXT", value_parser = parse_secret, group = "passphrase", help_heading = "Encryption")]
    pub encryption_passphrase: Option<Secret>,
    /// File with the current passphrase, - for stdin
    #[arg(long, value_name = "FILE", group = "passphrase", help_heading = "Encryption")]
    pub encryption_passphrase_file: Option<PathBuf>,
    /// Reference to the current passphrase; its keys are removed from the host
    #[arg(long, value_name = "REF", group = "passphrase", help_heading = "Encryption")]
    pub encryption_passphrase_from: Option<SecretRef>,
    /// Properties that cannot change.
    #[command(flatten)]
    pub place: Place,
}

/// Options of `create` that define the location, accepted only to be refused with a reason.
macro_rules! place {
    ($($field:ident = $flag:literal),+ $(,)?) => {
        #[derive(Debug, Default, Args)]
        pub struct Place {
            $(#[arg(long, hide = true, help = "Cannot be changed", num_args = 0..=1, default_missing_value = "")]
            $field: Option<String>,)+
        }

        impl Place {
            /// Returns the first given option.
            pub fn given(&self) -> Option<&'static str> {
                [$(($flag, &self.$field)),+].into_iter().find(|(_, given)| given.is_some()).map(|(flag, _)| flag)
            }
        }
    };
}

place! {
    provider = "--provider",
    bucket = "--bucket",
    path = "--path",
    s3_endpoint = "--s3-endpoint",
    s3_region = "--s3-region",
    s3_disable_ssl = "--s3-disable-ssl",
    disable_path_style = "--disable-path-style",
    azure_account_name = "--azure-account-name",
    azure_endpoint = "--azure-endpoint",
    google_project_id = "--google-project-id",
    google_endpoint = "--google-endpoint",
    swift_auth_version = "--swift-auth-version",
    swift_auth_url = "--swift-auth-url",
    swift_user = "--swift-user",
    swift_region = "--swift-region",
    swift_tenant_name = "--swift-tenant-name",
    swift_tenant_id = "--swift-tenant-id",
    swift_user_domain_name = "--swift-user-domain-name",
    swift_project_name = "--swift-project-name",
    swift_project_domain_name = "--swift-project-domain-name",
    swift_storage_url = "--swift-storage-url",
}
