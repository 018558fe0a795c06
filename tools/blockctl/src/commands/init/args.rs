//! Arguments of `blockctl init`.

use crate::commands::{
    credentials::settings::Settings,
    schedules::retention_args::{RetainArgs, TimeArgs},
};
use blockd_api::CredentialName;
use clap::Args;
use std::path::PathBuf;

pub const INIT_HELP: &str = "\
Creates a backup location and a schedule for all volumes, backs up the volumes that have no backup \
there, and verifies these backups. On a terminal it asks for what the options leave open. It can be \
repeated: a location and a schedule with this name are used if they do the same, and agree with the \
options.

A recovery key is a random passphrase in a new file. Without it no backup can be restored after the \
loss of this host: keep a copy elsewhere.

Examples:
  blockctl init
  blockctl init nas --provider local --path /srv/backup --new-recovery-key ~/nas.key
  blockctl init s3 --file s3.toml --encryption-passphrase-file passphrase --daily 01:30 --max 30
  blockctl init nas --provider local --path /srv/backup --no-encryption --no-backup";

/// `init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Name of the backup location and of the schedule
    #[arg(default_value = "backups")]
    pub name: CredentialName,
    /// TOML or JSON file with options of the location, as for `credentials create`
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Encrypt the backups with a new recovery key, and write it to this file (mode 0600)
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = ["encryption_passphrase", "encryption_passphrase_file", "encryption_passphrase_from"],
    )]
    pub new_recovery_key: Option<PathBuf>,
    /// Store the backups unencrypted
    #[arg(
        long,
        conflicts_with_all = ["new_recovery_key", "encryption_passphrase", "encryption_passphrase_file", "encryption_passphrase_from"],
    )]
    pub no_encryption: bool,
    /// Only create location and schedule
    #[arg(long)]
    pub no_backup: bool,
    /// Times of the schedule; daily at 02:00 by default.
    #[command(flatten)]
    pub times: TimeArgs,
    /// Retention; 14 backups by default.
    #[command(flatten)]
    pub retain: RetainArgs,
    /// Backup location.
    #[command(flatten)]
    pub settings: Settings,
}
