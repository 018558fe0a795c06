//! `blockctl credentials …`

use super::{
    rekey::{REKEY_HELP, RekeyArgs},
    settings::Settings,
    update::{UPDATE_HELP, UpdateArgs, as_update},
};
use crate::{
    commands::{arguments::WideArg, limits, list_filter::ListFilter},
    confirm::YesArg,
};
use blockd_api::{CredentialName, CredentialRef, credentials::Credential};
use clap::{Args, Subcommand};
use std::path::PathBuf;

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
  blockctl credentials create vault --provider s3 --s3-endpoint s3.amazonaws.com --bucket b \\
      --s3-access-key AKIA… --s3-secret-key-from command:/etc/blockd/secrets/s3-key \\
      --encryption-passphrase-from systemd:blockd-passphrase
  blockctl credentials create offsite --file offsite.toml";

const INSPECT_HELP: &str = "\
Examples:
  blockctl credentials inspect nas
  blockctl -j cred inspect nas";

const LIST_HELP: &str = "\
--wide shows one table for each provider, with the columns of pxctl.

Examples:
  blockctl credentials list
  blockctl credentials list -o wide
  blockctl -j cred list";

const VALIDATE_HELP: &str = "\
Examples:
  blockctl credentials validate nas
  blockctl cred validate af563a4d-afd7-48df-90f7-8e8f9414ff77";

const SET_DEFAULT_HELP: &str = "\
Without a default, --cred-id is optional only if there is one credential.

Examples:
  blockctl credentials set-default nas";

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
    List(ListArgs),
    /// Show a credential without its secrets
    #[command(visible_alias = "i", after_help = INSPECT_HELP)]
    Inspect(OneCredential),
    /// Verify that a credential works
    #[command(visible_alias = "v", after_help = VALIDATE_HELP)]
    Validate(OneCredential),
    /// Rotate keys or change access to the same location
    #[command(visible_alias = "u", after_help = UPDATE_HELP, mut_args = as_update)]
    Update(Box<UpdateArgs>),
    /// Change the passphrase or the data key
    #[command(after_help = REKEY_HELP)]
    Rekey(RekeyArgs),
    /// Use a credential for commands without --cred-id
    #[command(after_help = SET_DEFAULT_HELP)]
    SetDefault(OneCredential),
    /// Change the bandwidth limits of a credential
    #[command(after_help = limits::CREDENTIALS_LIMIT_HELP)]
    Limit(limits::CredentialLimitArgs),
    /// Delete a credential; backups stay
    #[command(visible_alias = "d", after_help = DELETE_HELP)]
    Delete(DeleteArgs),
}

/// `credentials create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the credential
    pub name: CredentialName,
    /// TOML or JSON file with any option below, named without leading dashes; options on the command line win
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Settings that the file may also contain.
    #[command(flatten)]
    pub settings: Settings,
}

/// `credentials list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Filters and order.
    #[command(flatten)]
    pub filter: ListFilter<Credential>,
    /// Width option.
    #[command(flatten)]
    pub width: WideArg,
}

/// Credential argument.
#[derive(Debug, Args)]
pub struct OneCredential {
    /// Name or UUID of the credential
    pub credential: CredentialRef,
}

/// `credentials delete`
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Target.
    #[command(flatten)]
    pub target: OneCredential,
    /// Confirmation option.
    #[command(flatten)]
    pub yes: YesArg,
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
