//! `blockctl credentials …`

use crate::commands::limits;
use blockd_api::{CredentialName, CredentialRef, DailyLimit, Secret, SecretRef};
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;
use std::{convert::Infallible, path::PathBuf};

const CREATE_HELP: &str = "\
The daemon writes, reads and deletes a small object to verify a new credential. Secrets are stored \
encrypted and never shown. A secret on the command line is visible to other users of the host and \
stays in the shell's history: prefer a file, `-` for stdin, or the environment. One line end at \
the end of a file is dropped. All options can be in a file (--file), which should have mode 0600.

With --…-from the daemon stores no secret but reads it on use: systemd:NAME is a credential of its \
unit, file:/PATH a file below secrets.file_dir, command:/PATH a program there that prints the \
secret (for example a script around `bao kv get`). `blockctl credentials validate` shows whether \
it can be read.

The list shows whether the store supports create-if-absent, as tested; Swift and some S3 servers \
do not.

Examples:
  blockctl credentials create nas --provider local --path /srv/backup
  blockctl credentials create safe --provider local --path /srv/backup \\
      --encryption-passphrase-file ~/.blockd-passphrase
  blockctl credentials create s3 --provider s3 --s3-endpoint s3.amazonaws.com \\
      --s3-region us-east-1 --bucket my-bucket --prefix hosts/a --s3-access-key AKIA… --s3-secret-key-file ./key
  AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… blockctl credentials create weed \\
      --provider s3 --s3-endpoint 127.0.0.1:8333 --s3-disable-ssl --bucket bkt
  blockctl credentials create az --provider azure --azure-account-name acct --bucket backups \\
      --azure-account-key-file ./key
  blockctl credentials create gs --provider google --google-project-id px-test \\
      --google-json-key-file px-test.json --bucket backups
  ST_AUTH=https://swift/auth/v1.0 ST_USER=acct:me ST_KEY=… blockctl credentials create sw \\
      --provider swift --bucket backups
  blockctl credentials create elsewhere --provider s3 --s3-endpoint s3.amazonaws.com --bucket b \\
      --s3-access-key AKIA… --s3-secret-key-from command:/etc/blockd/secrets/s3-key \\
      --encryption-passphrase-from systemd:blockd-passphrase
  blockctl credentials create offsite --file offsite.toml";

const INSPECT_HELP: &str = "\
Examples:
  blockctl credentials inspect nas
  blockctl -j cred inspect nas";

const LIST_HELP: &str = "\
Examples:
  blockctl credentials list
  blockctl -j cred list";

const VALIDATE_HELP: &str = "\
Examples:
  blockctl credentials validate nas
  blockctl cred validate af563a4d-afd7-48df-90f7-8e8f9414ff77";

const DELETE_HELP: &str = "\
Stored backups stay; a credential with the same location and passphrase can list and restore them. \
The whole UUID or the name is required.

Examples:
  blockctl credentials delete nas";

/// Subcommands of `credentials`.
#[derive(Debug, Subcommand)]
pub enum CredentialsCommand {
    /// Create a credential for a backup location
    #[command(visible_alias = "c", after_help = CREATE_HELP)]
    Create(Box<CreateArgs>),
    /// List credentials
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List,
    /// Show a credential without its secrets
    #[command(visible_alias = "i", after_help = INSPECT_HELP)]
    Inspect(OneCredential),
    /// Verify that a credential works
    #[command(visible_alias = "v", after_help = VALIDATE_HELP)]
    Validate(OneCredential),
    /// Rotate keys or change access to the same location
    #[command(visible_alias = "u", after_help = super::update::UPDATE_HELP)]
    Update(Box<super::update::UpdateArgs>),
    /// Change the passphrase or the data key
    #[command(after_help = super::rekey::REKEY_HELP)]
    Rekey(super::rekey::RekeyArgs),
    /// Change the bandwidth limits of a credential
    #[command(after_help = limits::CREDENTIALS_LIMIT_HELP)]
    Limit(limits::CredentialLimitArgs),
    /// Delete a credential; backups stay
    #[command(visible_alias = "d", after_help = DELETE_HELP)]
    Delete(OneCredential),
}

/// Storage provider.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    #[default]
    Local,
    S3,
    Azure,
    Google,
    Swift,
}

/// `credentials create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the credential
    pub name: CredentialName,
    /// TOML or JSON file with any option below, named without leading dashes; options on the command line win
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Settings that the file may hold too.
    #[command(flatten)]
    pub settings: Settings,
}

/// Settings of a store, on the command line or in a file.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Settings {
    /// Provider: a directory on the daemon's host, or an object store
    #[arg(long, value_enum)]
    pub provider: Option<Provider>,
    /// Bucket or container, which must exist (s3, azure, google, swift)
    #[arg(long, value_name = "BUCKET")]
    pub bucket: Option<String>,
    /// Prefix of all objects, such as hosts/a; part of the location
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// Use the instance role or managed identity instead of a key (s3, azure, google)
    #[arg(long)]
    pub use_iam: bool,
    /// Directory for the backups (local)
    #[arg(long, value_name = "DIR", help_heading = "Local")]
    pub path: Option<PathBuf>,
    /// Server, as host or host:port (s3)
    #[arg(long, value_name = "HOST:PORT", help_heading = "S3")]
    pub s3_endpoint: Option<String>,
    /// Access key [env: AWS_ACCESS_KEY_ID] (s3)
    #[arg(long, value_name = "KEY", help_heading = "S3")]
    pub s3_access_key: Option<String>,
    /// Secret key [env: AWS_SECRET_ACCESS_KEY] (s3)
    #[arg(long, value_name = "KEY", value_parser = parse_secret, conflicts_with = "s3_secret_key_file", help_heading = "S3")]
    pub s3_secret_key: Option<Secret>,
    /// File with the secret key, - for stdin (s3)
    #[arg(long, value_name = "FILE", help_heading = "S3")]
    pub s3_secret_key_file: Option<PathBuf>,
    /// Reference to the secret key: systemd:NAME, file:/PATH or command:/PATH (s3)
    #[arg(long, value_name = "REF", conflicts_with_all = ["s3_secret_key", "s3_secret_key_file"], help_heading = "S3")]
    pub s3_secret_key_from: Option<SecretRef>,
    /// Region [default: us-east-1] (s3)
    #[arg(long, value_name = "REGION", help_heading = "S3")]
    pub s3_region: Option<String>,
    /// Role to assume, such as arn:aws:iam::123456789012:role/backup (s3)
    #[arg(long, value_name = "ARN", help_heading = "S3")]
    pub s3_role_arn: Option<String>,
    /// STS external ID for AssumeRole (s3)
    #[arg(long, value_name = "ID", requires = "s3_role_arn", help_heading = "S3")]
    pub s3_external_id: Option<String>,
    /// STS endpoint, if not Amazon's or the bucket's (s3)
    #[arg(long, value_name = "HOST:PORT", requires = "s3_role_arn", help_heading = "S3")]
    pub s3_sts_endpoint: Option<String>,
    /// Storage class of new objects, such as STANDARD_IA (s3)
    #[arg(long, value_name = "CLASS", help_heading = "S3")]
    pub s3_storage_class: Option<String>,
    /// Use plain HTTP (s3)
    #[arg(long, help_heading = "S3")]
    pub s3_disable_ssl: bool,
    /// Address the bucket as BUCKET.HOST, not HOST/BUCKET (s3)
    #[arg(long, help_heading = "S3")]
    pub disable_path_style: bool,
    /// Storage account [env: AZURE_STORAGE_ACCOUNT] (azure)
    #[arg(long, value_name = "NAME", help_heading = "Azure")]
    pub azure_account_name: Option<String>,
    /// Account key [env: AZURE_STORAGE_KEY] (azure)
    #[arg(long, value_name = "KEY", value_parser = parse_secret, help_heading = "Azure")]
    pub azure_account_key: Option<Secret>,
    /// File with the account key, - for stdin (azure)
    #[arg(long, value_name = "FILE", conflicts_with = "azure_account_key", help_heading = "Azure")]
    pub azure_account_key_file: Option<PathBuf>,
    /// Reference to the account key (azure)
    #[arg(long, value_name = "REF", conflicts_with_all = ["azure_account_key", "azure_account_key_file"], help_heading = "Azure")]
    pub azure_account_key_from: Option<SecretRef>,
    /// Shared access signature: the query of a SAS URL [env: AZURE_STORAGE_SAS_TOKEN] (azure)
    #[arg(long, value_name = "QUERY", value_parser = parse_secret, help_heading = "Azure")]
    pub azure_sas_token: Option<Secret>,
    /// File with the shared access signature, - for stdin (azure)
    #[arg(long, value_name = "FILE", conflicts_with = "azure_sas_token", help_heading = "Azure")]
    pub azure_sas_token_file: Option<PathBuf>,
    /// Reference to the shared access signature (azure)
    #[arg(long, value_name = "REF", conflicts_with_all = ["azure_sas_token", "azure_sas_token_file"], help_heading = "Azure")]
    pub azure_sas_token_from: Option<SecretRef>,
    /// Client id of the managed identity, with --use-iam (azure)
    #[arg(long, value_name = "ID", help_heading = "Azure")]
    pub azure_client_id: Option<String>,
    /// Custom endpoint, URL or host:port (azure)
    #[arg(long, value_name = "HOST:PORT", help_heading = "Azure")]
    pub azure_endpoint: Option<String>,
    /// Project (google)
    #[arg(long, value_name = "ID", help_heading = "Google")]
    pub google_project_id: Option<String>,
    /// Key file of a service account, - for stdin [env: GOOGLE_APPLICATION_CREDENTIALS] (google)
    #[arg(long, value_name = "FILE", help_heading = "Google")]
    pub google_json_key_file: Option<PathBuf>,
    /// Reference to the service account key, JSON (google)
    #[arg(long, value_name = "REF", conflicts_with_all = ["google_json_key_file"], help_heading = "Google")]
    pub google_json_key_from: Option<SecretRef>,
    /// Custom endpoint, URL or host:port (google)
    #[arg(long, value_name = "HOST:PORT", help_heading = "Google")]
    pub google_endpoint: Option<String>,
    /// Version of the auth service: 1, 2 or 3 [default: by the other options] (swift)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=3), help_heading = "Swift")]
    pub swift_auth_version: Option<u8>,
    /// URL of the auth service [env: ST_AUTH, OS_AUTH_URL] (swift)
    #[arg(long, value_name = "URL", help_heading = "Swift")]
    pub swift_auth_url: Option<String>,
    /// User [env: ST_USER, OS_USERNAME] (swift)
    #[arg(long, value_name = "USER", help_heading = "Swift")]
    pub swift_user: Option<String>,
    /// Key or password of the user [env: ST_KEY, OS_PASSWORD] (swift)
    #[arg(long, value_name = "KEY", value_parser = parse_secret, help_heading = "Swift")]
    pub swift_key: Option<Secret>,
    /// File with the key or password, - for stdin (swift)
    #[arg(long, value_name = "FILE", conflicts_with = "swift_key", help_heading = "Swift")]
    pub swift_key_file: Option<PathBuf>,
    /// Reference to the key or password (swift)
    #[arg(long, value_name = "REF", conflicts_with_all = ["swift_key", "swift_key_file"], help_heading = "Swift")]
    pub swift_key_from: Option<SecretRef>,
    /// Region in Keystone's catalog [env: OS_REGION_NAME] (swift)
    #[arg(long, value_name = "REGION", help_heading = "Swift")]
    pub swift_region: Option<String>,
    /// Tenant, by name, for Keystone v2 [env: OS_TENANT_NAME] (swift)
    #[arg(long, value_name = "NAME", help_heading = "Swift")]
    pub swift_tenant_name: Option<String>,
    /// Tenant, by id, for Keystone v2 [env: OS_TENANT_ID] (swift)
    #[arg(long, value_name = "ID", help_heading = "Swift")]
    pub swift_tenant_id: Option<String>,
    /// Domain of the user, for Keystone v3 [env: OS_USER_DOMAIN_NAME] (swift)
    #[arg(long, value_name = "NAME", help_heading = "Swift")]
    pub swift_user_domain_name: Option<String>,
    /// Project, for Keystone v3 [env: OS_PROJECT_NAME] (swift)
    #[arg(long, value_name = "NAME", help_heading = "Swift")]
    pub swift_project_name: Option<String>,
    /// Domain of the project, for Keystone v3 [env: OS_PROJECT_DOMAIN_NAME] (swift)
    #[arg(long, value_name = "NAME", help_heading = "Swift")]
    pub swift_project_domain_name: Option<String>,
    /// URL of the account, with a token [env: OS_STORAGE_URL] (swift)
    #[arg(long, value_name = "URL", help_heading = "Swift")]
    pub swift_storage_url: Option<String>,
    /// Token, valid until it expires [env: OS_AUTH_TOKEN] (swift)
    #[arg(long, value_name = "TOKEN", value_parser = parse_secret, help_heading = "Swift")]
    pub swift_token: Option<Secret>,
    /// File with the token, - for stdin (swift)
    #[arg(long, value_name = "FILE", conflicts_with = "swift_token", help_heading = "Swift")]
    pub swift_token_file: Option<PathBuf>,
    /// Reference to the token (swift)
    #[arg(long, value_name = "REF", conflicts_with_all = ["swift_token", "swift_token_file"], help_heading = "Swift")]
    pub swift_token_from: Option<SecretRef>,
    /// PEM file of additional CA certificates
    #[arg(long, value_name = "FILE", help_heading = "Connection")]
    pub ca_certificate: Option<PathBuf>,
    /// Proxy, http://HOST:PORT without a password [default: the daemon's environment]
    #[arg(long, value_name = "URL", help_heading = "Connection")]
    pub proxy: Option<String>,
    /// Use the proxy of HTTPS_PROXY in this environment
    #[arg(long, conflicts_with = "proxy", help_heading = "Connection")]
    pub use_proxy: bool,
    /// Upload limit of all tasks in bytes per second: 20MiB, or 20MiB@08:00-18:00,100MiB by time of day
    #[arg(long, value_name = "LIMIT", help_heading = "Connection")]
    pub limit_upload: Option<DailyLimit>,
    /// Download limit of all tasks in bytes per second
    #[arg(long, value_name = "LIMIT", help_heading = "Connection")]
    pub limit_download: Option<DailyLimit>,
    /// Time zone of the limits, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE", help_heading = "Connection")]
    pub limit_time_zone: Option<String>,
    /// Passphrase that encrypts the backups [env: BLOCKD_ENCRYPTION_PASSPHRASE]
    #[arg(
        long,
        value_name = "TEXT",
        value_parser = parse_secret,
        conflicts_with = "encryption_passphrase_file",
        help_heading = "Encryption"
    )]
    pub encryption_passphrase: Option<Secret>,
    /// File with the passphrase, - for stdin
    #[arg(long, value_name = "FILE", help_heading = "Encryption")]
    pub encryption_passphrase_file: Option<PathBuf>,
    /// Reference to the passphrase; its keys are not stored on the host either
    #[arg(long, value_name = "REF", conflicts_with_all = ["encryption_passphrase", "encryption_passphrase_file"], help_heading = "Encryption")]
    pub encryption_passphrase_from: Option<SecretRef>,
}

/// Settings by name.
type Given<'a> = Vec<(&'static str, &'a dyn Setting)>;

/// Setting of any type.
pub trait Setting {
    /// Returns true if the setting was given.
    fn is_given(&self) -> bool;
}

impl<T> Setting for Option<T> {
    fn is_given(&self) -> bool {
        self.is_some()
    }
}

impl Setting for bool {
    fn is_given(&self) -> bool {
        *self
    }
}

/// Fills missing settings from a second source.
trait Merge: Setting {
    fn merge(&mut self, other: Self);
}

impl<T> Merge for Option<T> {
    fn merge(&mut self, other: Self) {
        if self.is_none() {
            *self = other;
        }
    }
}

impl Merge for bool {
    fn merge(&mut self, other: Self) {
        *self |= other;
    }
}

/// A secret with a source on the command line ignores other sources in the file.
macro_rules! one_source {
    ($typed:ident, $file:ident: $($source:ident),+) => {
        if [$($typed.$source.is_given()),+].contains(&true) {
            $($file.$source = None;)+
        }
    };
}

/// Single list of the settings of each provider.
macro_rules! settings {
    (all: $($all:ident),+; $($group:ident: $($field:ident = $flag:literal),+;)+) => {
        impl Settings {
            /// Fills missing settings from a file. A secret with a source on the command line ignores other
            /// sources in the file.
            pub fn complete(&mut self, mut file: Self) {
                one_source!(self, file: s3_secret_key, s3_secret_key_file, s3_secret_key_from);
                one_source!(self, file: azure_account_key, azure_account_key_file, azure_account_key_from);
                one_source!(self, file: azure_sas_token, azure_sas_token_file, azure_sas_token_from);
                one_source!(self, file: google_json_key_file, google_json_key_from);
                one_source!(self, file: swift_key, swift_key_file, swift_key_from);
                one_source!(self, file: swift_token, swift_token_file, swift_token_from);
                one_source!(self, file: encryption_passphrase, encryption_passphrase_file, encryption_passphrase_from);
                $(self.$all.merge(file.$all);)+
                $($(self.$field.merge(file.$field);)+)+
            }

            $(
                /// Returns the settings of this group.
                pub fn $group(&self) -> Given<'_> {
                    vec![$(($flag, &self.$field)),+]
                }
            )+
        }
    };
}

settings! {
    all: provider, prefix, encryption_passphrase, encryption_passphrase_file, encryption_passphrase_from, limit_upload, limit_download, limit_time_zone;
    network:
        bucket = "--bucket",
        ca_certificate = "--ca-certificate",
        proxy = "--proxy",
        use_proxy = "--use-proxy";
    identity:
        use_iam = "--use-iam";
    local:
        path = "--path";
    s3:
        s3_endpoint = "--s3-endpoint",
        s3_access_key = "--s3-access-key",
        s3_secret_key = "--s3-secret-key",
        s3_secret_key_file = "--s3-secret-key-file",
        s3_secret_key_from = "--s3-secret-key-from",
        s3_region = "--s3-region",
        s3_role_arn = "--s3-role-arn",
        s3_external_id = "--s3-external-id",
        s3_sts_endpoint = "--s3-sts-endpoint",
        s3_storage_class = "--s3-storage-class",
        s3_disable_ssl = "--s3-disable-ssl",
        disable_path_style = "--disable-path-style";
    azure:
        azure_account_name = "--azure-account-name",
        azure_account_key = "--azure-account-key",
        azure_account_key_file = "--azure-account-key-file",
        azure_account_key_from = "--azure-account-key-from",
        azure_sas_token = "--azure-sas-token",
        azure_sas_token_file = "--azure-sas-token-file",
        azure_sas_token_from = "--azure-sas-token-from",
        azure_client_id = "--azure-client-id",
        azure_endpoint = "--azure-endpoint";
    google:
        google_project_id = "--google-project-id",
        google_json_key_file = "--google-json-key-file",
        google_json_key_from = "--google-json-key-from",
        google_endpoint = "--google-endpoint";
    swift:
        swift_auth_version = "--swift-auth-version",
        swift_auth_url = "--swift-auth-url",
        swift_user = "--swift-user",
        swift_key = "--swift-key",
        swift_key_file = "--swift-key-file",
        swift_key_from = "--swift-key-from",
        swift_region = "--swift-region",
        swift_tenant_name = "--swift-tenant-name",
        swift_tenant_id = "--swift-tenant-id",
        swift_user_domain_name = "--swift-user-domain-name",
        swift_project_name = "--swift-project-name",
        swift_project_domain_name = "--swift-project-domain-name",
        swift_storage_url = "--swift-storage-url",
        swift_token = "--swift-token",
        swift_token_file = "--swift-token-file",
        swift_token_from = "--swift-token-from";
}

/// Credential argument.
#[derive(Debug, Args)]
pub struct OneCredential {
    /// Name or UUID of the credential
    pub credential: CredentialRef,
}

pub(super) fn parse_secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use crate::cli::Cli;
    use clap::Parser;

    #[test]
    fn secrets_are_not_in_debug_output() {
        let cli = Cli::try_parse_from(
            "blockctl cred c n --provider s3 --s3-secret-key hunter2 --encryption-passphrase hunter3"
                .split(' '),
        )
        .unwrap();
        assert!(!format!("{cli:?}").contains("hunter"));
    }
}
