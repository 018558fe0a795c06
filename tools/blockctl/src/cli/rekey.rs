//! `blockctl credentials rekey`

use super::credentials::parse_secret;
use blockd_api::{CredentialRef, Secret, SecretRef};
use clap::Args;
use std::path::PathBuf;
use uuid::Uuid;

/// What its `--help` says besides.
pub const REKEY_HELP: &str = "\
A new passphrase opens everything that is stored, and the old one nothing any more; nothing is stored again. Who has a \
copy of the old key slots and knows the old passphrase still has the data key: --new-data-key gives new backups \
another one. Without either, this host finds the data keys that other hosts made.

The passphrase that holds now need not be given where blockd finds it itself (--encryption-passphrase-from of `create`), \
and --new-encryption-passphrase-from lets it do so from now on, also with the same passphrase. \
With --new-encryption-passphrase-file the keys are stored on the host, sealed.

After --new-data-key, other hosts read with the new key once they open the place again (`rekey` without options does so), and refuse to \
write until it is accepted there: --accept-key with the id that `blockctl events` shows.

Examples:
  blockctl credentials rekey nas --encryption-passphrase-file old --new-encryption-passphrase-file new
  blockctl credentials rekey nas --encryption-passphrase-file pass --new-data-key
  blockctl credentials rekey nas --encryption-passphrase-file pass --accept-key 6b657900-0000-4000-8000-000000000001
  blockctl credentials rekey nas --encryption-passphrase-file pass --new-encryption-passphrase-from systemd:blockd-passphrase";

/// `credentials rekey`
#[derive(Debug, Args)]
pub struct RekeyArgs {
    /// Name or UUID of the credentials
    #[arg(value_name = "CREDENTIALS")]
    pub credential: CredentialRef,
    /// The passphrase that holds now; a file is better
    #[arg(long, value_name = "TEXT", value_parser = parse_secret, conflicts_with = "encryption_passphrase_file")]
    pub encryption_passphrase: Option<Secret>,
    /// File with the passphrase that holds now, - for stdin
    #[arg(long, value_name = "FILE")]
    pub encryption_passphrase_file: Option<PathBuf>,
    /// File with the passphrase that is to hold
    #[arg(long, value_name = "FILE")]
    pub new_encryption_passphrase_file: Option<PathBuf>,
    /// Where blockd finds the passphrase that is to hold; then the keys that it opens are not stored on the host any more
    #[arg(long, value_name = "REF", conflicts_with = "new_encryption_passphrase_file")]
    pub new_encryption_passphrase_from: Option<SecretRef>,
    /// Give new backups a data key of their own
    #[arg(long)]
    pub new_data_key: bool,
    /// Write new backups under this newest data key, which another host made
    #[arg(long, value_name = "KEY", conflicts_with = "new_data_key")]
    pub accept_key: Option<Uuid>,
}

#[cfg(test)]
mod tests {
    use crate::cli::{Cli, Command, credentials::CredentialsCommand, tests::parse};

    #[test]
    fn it_is_taken_as_people_type_it() {
        let line = "credentials rekey nas --encryption-passphrase-file a --new-encryption-passphrase-file b --new-data-key";
        let Ok(Cli { command: Command::Credentials(CredentialsCommand::Rekey(args)), .. }) = parse(line)
        else {
            panic!()
        };
        assert!(args.new_data_key && args.new_encryption_passphrase_file.is_some());
        let accept = "credentials rekey nas --accept-key 6b657900-0000-4000-8000-000000000001";
        assert!(parse(accept).is_ok() && parse(&format!("{accept} --new-data-key")).is_err());
        assert!(parse("credentials rekey").is_err());
    }
}
