//! `blockctl credentials rekey`

use super::args::parse_secret;
use blockd_api::{CredentialRef, Secret, SecretRef};
use clap::Args;
use std::path::PathBuf;
use uuid::Uuid;

/// Additional help.
pub const REKEY_HELP: &str = "\
The new passphrase opens the whole repository, the old one nothing; no data is uploaded again. An \
attacker with a copy of the old key slots and the old passphrase still has the data key: \
--new-data-key creates another one for new backups. Without options, this host loads data keys \
that other hosts made.

The current passphrase is not needed if it is a reference (--encryption-passphrase-from of \
`create`); --new-encryption-passphrase-from makes it one, also with the same passphrase. With \
--new-encryption-passphrase-file the keys are stored on the host, sealed.

After --new-data-key, other hosts read with the new key once they open the location again (`rekey` \
without options does so), and refuse to write until they accept it: --accept-key with the id that \
`blockctl events` shows.

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
}
