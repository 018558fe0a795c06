//! `blockctl credentials rekey`

use super::settings::parse_secret;
use crate::{
    confirm::YesArg,
    failure::{Exit, Failure},
    output::Context,
    secrets::{Sources, read_file},
    table::counted,
};
use blockd_api::{CredentialRef, Secret, SecretRef, credentials::RekeyCredential, operations};
use clap::Args;
use std::path::PathBuf;
use uuid::Uuid;

/// Additional help.
pub const REKEY_HELP: &str = "\
The new passphrase opens the whole repository, the old one nothing; no data is uploaded again. An \
attacker with a copy of the old key slots and the old passphrase still has the data key: \
--new-data-key creates another one for new backups. With the current passphrase alone, this \
host loads data keys that other hosts made.

The current passphrase is not needed if it is a reference (--encryption-passphrase-from of \
`create`); --new-encryption-passphrase-from makes it one, also with the same passphrase. With \
--new-encryption-passphrase-file the keys are stored on the host, sealed.

After --new-data-key, other hosts read with the new key once they open the location again (`rekey` \
with the passphrase alone does so), and refuse to write until they accept it: --accept-key with the \
id that `blockctl events` shows.

Examples:
  blockctl credentials rekey nas --encryption-passphrase-file old --new-encryption-passphrase-file new
  blockctl credentials rekey nas --encryption-passphrase-file pass --new-data-key
  blockctl credentials rekey nas --encryption-passphrase-file pass --accept-key 6b657900-0000-4000-8000-000000000001
  blockctl credentials rekey nas --encryption-passphrase-file pass --new-encryption-passphrase-from systemd:blockd-passphrase";

/// `credentials rekey`
#[derive(Debug, Args)]
pub struct RekeyArgs {
    /// Name or UUID of the credential
    #[arg(value_name = "CREDENTIALS")]
    pub credential: CredentialRef,
    /// Current passphrase; prefer a file
    #[arg(long, value_name = "TEXT", value_parser = parse_secret, conflicts_with = "encryption_passphrase_file")]
    pub encryption_passphrase: Option<Secret>,
    /// File with the current passphrase, - for stdin
    #[arg(long, value_name = "FILE")]
    pub encryption_passphrase_file: Option<PathBuf>,
    /// File with the new passphrase
    #[arg(long, value_name = "FILE")]
    pub new_encryption_passphrase_file: Option<PathBuf>,
    /// Reference to the new passphrase; its keys are removed from the host
    #[arg(long, value_name = "REF", conflicts_with = "new_encryption_passphrase_file")]
    pub new_encryption_passphrase_from: Option<SecretRef>,
    /// Create a data key for new backups
    #[arg(long)]
    pub new_data_key: bool,
    /// Accept this newest data key, made by another host
    #[arg(long, value_name = "KEY", conflicts_with = "new_data_key")]
    pub accept_key: Option<Uuid>,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
}

impl RekeyArgs {
    /// Returns the effects of the command; without one, it only loads data keys.
    fn consequence(&self) -> Option<String> {
        let has_new_passphrase =
            self.new_encryption_passphrase_file.is_some() || self.new_encryption_passphrase_from.is_some();
        let effects = [
            has_new_passphrase.then(|| "the old passphrase opens nothing anymore".to_owned()),
            self.new_data_key
                .then(|| "other hosts refuse to write until they accept the new data key".to_owned()),
            self.accept_key.map(|key| format!("new backups use data key {key}, made by another host")),
        ];
        let effects: Vec<String> = effects.into_iter().flatten().collect();
        (!effects.is_empty())
            .then(|| format!("Credential {} is rekeyed: {}.", self.credential, effects.join(", and ")))
    }
}

pub(super) async fn run(context: &Context<'_>, args: RekeyArgs) -> Exit {
    let Context { client, output } = context;
    let passphrase = Sources::new(
        "encryption passphrase",
        &args.encryption_passphrase,
        &args.encryption_passphrase_file,
        &None,
        "BLOCKD_ENCRYPTION_PASSPHRASE",
    );
    let passphrase = passphrase.read()?;
    if passphrase.is_none() {
        let credential = client.call_at(operations::GET_CREDENTIAL, &args.credential, &()).await?;
        if credential.encryption_key_from.is_none() {
            let message = "give the current passphrase: --encryption-passphrase-file FILE";
            return Err(Failure::usage(message));
        }
    }
    let consequence = args.consequence();
    let has_new_value = args.new_encryption_passphrase_file.is_some();
    let new_passphrase = args.new_encryption_passphrase_file.as_deref();
    let new_passphrase =
        new_passphrase.map(|path| read_file("new encryption passphrase", path)).transpose()?;
    let new_passphrase = match args.new_encryption_passphrase_from {
        Some(reference) => Some(reference.into()),
        None => new_passphrase.map(Into::into),
    };
    if let Some(consequence) = consequence {
        args.yes.confirm(output, &consequence)?;
    }
    let (new_data_key, accept_key) = (args.new_data_key, args.accept_key);
    let is_changed = new_passphrase.is_some() || new_data_key || accept_key.is_some();
    let request = RekeyCredential { passphrase, new_passphrase, new_data_key, accept_key };
    let rekeyed = client.call_at(operations::REKEY_CREDENTIAL, &args.credential, &request).await?;
    // A complete change that is repeated, or a current passphrase that nothing checked.
    let is_current = has_new_value && rekeyed.rewrapped == 0 && !new_data_key && accept_key.is_none();
    let exit = output.tell(&rekeyed, || {
        let keys = counted(rekeyed.data_keys, "data key");
        if is_current {
            return format!(
                "Credentials unchanged, UUID:{} (the new passphrase opens {keys} already)",
                rekeyed.credential_id
            );
        }
        if !is_changed {
            return format!("Credentials unchanged, UUID:{} ({keys} loaded)", rekeyed.credential_id);
        }
        format!(
            "Credentials rekeyed successfully, UUID:{} ({} with the new passphrase{}, {} in all)",
            rekeyed.credential_id,
            counted(rekeyed.rewrapped, "data key"),
            if rekeyed.new_data_key { ", a new data key for new backups" } else { "" },
            rekeyed.data_keys,
        )
    })?;
    if is_current {
        output.note("note: the current passphrase that you gave was not checked");
    }
    if rekeyed.foreign > 0 {
        let slots = counted(rekeyed.foreign, "key slot");
        output.note(format!("warning: {slots} open with neither passphrase and stay as they are"));
    }
    Ok(exit)
}
