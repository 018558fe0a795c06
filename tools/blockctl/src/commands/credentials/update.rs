//! `blockctl credentials update`

use super::settings::{Defaults, Settings, is_changeable};
use crate::{failure::Failure, secrets::read_file};
use blockd_api::{CredentialRef, credential_update::UpdateCredential, credentials::ProviderKind};
use clap::{Arg, Args};

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
  blockctl credentials update s3 --proxy ''
  blockctl credentials update s3 --compression zstd:9";

/// `credentials update`
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Name or UUID of the credential
    #[arg(value_name = "CREDENTIALS")]
    pub credential: CredentialRef,
    /// New settings; those of the location are only parsed to be refused with a reason.
    #[command(flatten)]
    pub settings: Settings,
}

/// Makes an option of a new credential one of an update: hides those of the location, describes the others.
pub fn as_update(arg: Arg) -> Arg {
    let Some(option) = arg.get_long().map(ToOwned::to_owned) else { return arg };
    if !is_changeable(&option) {
        return arg.hide(true);
    }
    let help = match option.as_str() {
        "s3-role-arn" => "Role to assume, empty for none; replaces the next two options too (s3)",
        "s3-storage-class" => "Storage class of new objects, empty for the bucket's default (s3)",
        "swift-token" => "Token, instead of a user (swift)",
        "ca-certificate" => "PEM file of additional CA certificates, empty for none",
        "proxy" => "Proxy, http://HOST:PORT without a password, empty for the daemon's environment",
        "compression" => "Compression of new backups: auto, none, lz4 or zstd:1 to zstd:19",
        "deduplicate" => "Stored blocks that new backups share: off, volume or repository",
        "encryption-passphrase" => "Current passphrase, to store the keys on the host, sealed; prefer a file",
        "encryption-passphrase-file" => "File with the current passphrase, - for stdin",
        "encryption-passphrase-from" => {
            "Reference to the current passphrase; its keys are removed from the host"
        }
        _ => "",
    };
    let help = if help.is_empty() { without_variable(&arg) } else { help.to_owned() };
    let arg = arg.help(help);
    let is_of = |prefixes: [&str; 2]| prefixes.iter().any(|prefix| option.starts_with(prefix));
    if is_of(AZURE_KEYS) {
        arg.group("azure_secret")
    } else if is_of(["swift-key", "swift-token"]) {
        arg.group("swift_secret")
    } else if option == "azure-client-id" {
        arg.requires("use_iam")
    } else {
        arg
    }
}

/// Starts of the options with a key for Azure.
const AZURE_KEYS: [&str; 2] = ["azure-account-key", "azure-sas-token"];

/// Returns the help without the variable, as an update reads nothing from the environment.
fn without_variable(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let parts = help.split_once(" [env: ").and_then(|(before, rest)| Some((before, rest.split_once(']')?.1)));
    parts.map(|(before, after)| format!("{before}{after}")).unwrap_or(help)
}

/// Refuses options that an update cannot change.
///
/// # Errors
/// One is given.
pub fn refuse_unchangeable(settings: &Settings) -> Result<(), Failure> {
    let given = settings.given();
    let Some(option) = given.keys().find(|option| !is_changeable(option)) else { return Ok(()) };
    Err(Failure::usage(match option.as_str() {
        limit if limit.starts_with("limit-") => format!("--{limit} belongs to `blockctl credentials limit`"),
        "use-proxy" => "--use-proxy reads the environment: give --proxy".to_owned(),
        option => format!(
            "--{option} is part of the backup location, which cannot change: create credentials for another location (blockctl credentials create)"
        ),
    }))
}

/// Builds the request from the changeable settings, and reads secrets. `kept` is the current provider.
///
/// # Errors
/// A setting belongs to another provider; a secret cannot be read.
pub fn request(settings: &Settings, kept: ProviderKind) -> Result<UpdateCredential, Failure> {
    refuse_mixed(settings, kept)?;
    settings.refuse_foreign(kept, &format!("not to {kept}"))?;
    settings.refuse_two_on_stdin("files", None)?;
    let ca_certificates = match settings.ca_certificate.as_deref() {
        Some(path) if path.as_os_str().is_empty() => Some(String::new()),
        Some(path) => Some(read_file("CA certificate", path)?.expose().to_owned()),
        None => None,
    };
    let request = UpdateCredential {
        access: settings.access(kept)?,
        ca_certificates,
        proxy: settings.proxy.clone(),
        compression: settings.compression,
        deduplicate: settings.deduplicate,
        encryption_passphrase: settings.passphrase(Defaults::None)?,
        labels: None,
    };
    match request.is_empty() {
        true => Err(Failure::usage("no changes given: give at least one option (see --help)")),
        false => Ok(request),
    }
}

/// Refuses keys of several kinds, and an identity that the store does not have or that a key replaces.
fn refuse_mixed(settings: &Settings, kept: ProviderKind) -> Result<(), Failure> {
    let given = settings.given();
    let has = |prefix: &&str| given.keys().any(|option| option.starts_with(*prefix));
    if ["s3-", "azure-", "google-", "swift-"].iter().filter(|prefix| has(prefix)).count() > 1 {
        return Err(Failure::usage(format!(
            "keys of several kinds of stores are given, and these credentials are for {kept}"
        )));
    }
    match kept {
        ProviderKind::Local | ProviderKind::Swift if settings.use_iam => Err(Failure::usage(format!(
            "--use-iam is for s3, azure and google, and these credentials are for {kept}"
        ))),
        ProviderKind::Azure if settings.use_iam && AZURE_KEYS.iter().any(has) => {
            Err(Failure::usage("--use-iam and a key are both given: drop one of them"))
        }
        _ => Ok(()),
    }
}
