//! Request of `blockctl credentials update`.

use super::args::parse_secret;
use crate::{
    failure::Failure,
    secrets::{Sources, read_file},
};
use blockd_api::{
    CredentialRef, Secret, SecretInput, SecretRef,
    credential_update::{NewAccess, UpdateCredential},
    credentials::{AssumedRole, AzureAuth, ProviderKind},
};
use clap::Args;
use std::path::{Path, PathBuf};

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

/// Reads a secret, never from the environment: a leftover variable must not change a credential.
fn input(
    what: &'static str,
    flag: Option<&Secret>,
    file: Option<&PathBuf>,
    from: Option<&SecretRef>,
) -> Result<Option<SecretInput>, Failure> {
    match (flag, file, from) {
        (None, None, None) => Ok(None),
        _ => Sources { what, flag, file: file.map(PathBuf::as_path), from, variable: "", is_public: false }
            .input(),
    }
}

/// Builds the request from the options and reads secrets. `kept` is the current provider.
///
/// # Errors
/// An option cannot be changed or belongs to another provider; a secret cannot be read.
pub fn request(args: &UpdateArgs, kept: ProviderKind) -> Result<UpdateCredential, Failure> {
    if let Some(flag) = args.place.given() {
        return Err(Failure::usage(format!(
            "{flag} says where the backups are, and that cannot be changed: another place needs credentials of its own (blockctl credentials create)"
        )));
    }
    refuse_two_on_stdin(args)?;
    let ca_certificates = match args.ca_certificate.as_deref() {
        Some("") => Some(String::new()),
        Some(path) => Some(read_file("CA certificate", Path::new(path))?.expose().to_owned()),
        None => None,
    };
    let encryption_passphrase = input(
        "encryption passphrase",
        args.encryption_passphrase.as_ref(),
        args.encryption_passphrase_file.as_ref(),
        args.encryption_passphrase_from.as_ref(),
    )?;
    let request = UpdateCredential {
        access: access(args, kept)?,
        storage_class: args.s3_storage_class.clone(),
        ca_certificates,
        proxy: args.proxy.clone(),
        encryption_passphrase,
    };
    match request.is_empty() {
        true => Err(Failure::usage("nothing is to be changed: give at least one flag (see --help)")),
        false => Ok(request),
    }
}

fn refuse_two_on_stdin(args: &UpdateArgs) -> Result<(), Failure> {
    let files = [
        &args.s3_secret_key_file,
        &args.azure_account_key_file,
        &args.azure_sas_token_file,
        &args.google_json_key_file,
        &args.swift_key_file,
        &args.swift_token_file,
        &args.encryption_passphrase_file,
    ];
    let on_stdin = files.into_iter().flatten().filter(|path| path.as_os_str() == "-").count();
    let with_certificate = on_stdin + usize::from(args.ca_certificate.as_deref() == Some("-"));
    match with_certificate > 1 {
        true => Err(Failure::usage("two files cannot both be read from stdin: give a file for one of them")),
        false => Ok(()),
    }
}

/// Builds the access part of the request. The daemon checks providers; `--use-iam` belongs to several.
fn access(args: &UpdateArgs, kept: ProviderKind) -> Result<Option<NewAccess>, Failure> {
    let found = [s3(args, kept)?, azure(args, kept)?, google(args, kept)?, swift(args)?];
    let mut found = found.into_iter().flatten();
    let one = found.next();
    if found.next().is_some() {
        return Err(Failure::usage(format!(
            "keys of several kinds of stores are given, and these credentials are for {kept}"
        )));
    }
    if one.is_none() && args.use_iam {
        return Err(Failure::usage(format!(
            "--use-iam is for s3, azure and google, and these credentials are for {kept}"
        )));
    }
    Ok(one)
}

fn s3(args: &UpdateArgs, kept: ProviderKind) -> Result<Option<NewAccess>, Failure> {
    let secret_key = input(
        "S3 secret key",
        args.s3_secret_key.as_ref(),
        args.s3_secret_key_file.as_ref(),
        args.s3_secret_key_from.as_ref(),
    )?;
    let role = args.s3_role_arn.clone().map(|arn| AssumedRole {
        arn,
        external_id: args.s3_external_id.clone(),
        endpoint: args.s3_sts_endpoint.clone(),
    });
    let (access_key, use_iam) = (args.s3_access_key.clone(), args.use_iam);
    let is_given = access_key.is_some()
        || secret_key.is_some()
        || role.is_some()
        || (use_iam && kept == ProviderKind::S3);
    Ok(is_given.then_some(NewAccess::S3 { access_key, secret_key, use_iam, role }))
}

fn azure(args: &UpdateArgs, kept: ProviderKind) -> Result<Option<NewAccess>, Failure> {
    let account_key = input(
        "Azure account key",
        args.azure_account_key.as_ref(),
        args.azure_account_key_file.as_ref(),
        args.azure_account_key_from.as_ref(),
    )?;
    let sas = input(
        "Azure shared access signature",
        args.azure_sas_token.as_ref(),
        args.azure_sas_token_file.as_ref(),
        args.azure_sas_token_from.as_ref(),
    )?;
    let use_iam = args.use_iam && kept == ProviderKind::Azure;
    let auth = match (account_key, sas) {
        (None, None) => {
            use_iam.then(|| AzureAuth::ManagedIdentity { client_id: args.azure_client_id.clone() })
        }
        _ if use_iam => return Err(Failure::usage("--use-iam and a key are both given: drop one of them")),
        (Some(key), _) => Some(AzureAuth::AccountKey { key }),
        (None, Some(token)) => Some(AzureAuth::Sas { token }),
    };
    Ok(auth.map(|auth| NewAccess::Azure { auth }))
}

fn google(args: &UpdateArgs, kept: ProviderKind) -> Result<Option<NewAccess>, Failure> {
    let file = args.google_json_key_file.as_ref();
    let json_key = input("Google key file", None, file, args.google_json_key_from.as_ref())?;
    let is_given = json_key.is_some() || (args.use_iam && kept == ProviderKind::Google);
    Ok(is_given.then_some(NewAccess::Google { json_key, use_iam: args.use_iam }))
}

fn swift(args: &UpdateArgs) -> Result<Option<NewAccess>, Failure> {
    let key = input(
        "Swift key",
        args.swift_key.as_ref(),
        args.swift_key_file.as_ref(),
        args.swift_key_from.as_ref(),
    )?;
    let token = input(
        "Swift token",
        args.swift_token.as_ref(),
        args.swift_token_file.as_ref(),
        args.swift_token_from.as_ref(),
    )?;
    let is_given = key.is_some() || token.is_some();
    Ok(is_given.then_some(NewAccess::Swift { key, token }))
}
