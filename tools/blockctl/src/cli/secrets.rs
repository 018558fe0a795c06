//! `blockctl secrets …`

use blockd_api::SecretRef;
use clap::{Args, Subcommand};

const LIST_HELP: &str = "\
Each of them is fetched now. The secret itself is never shown; credentials whose secrets blockd stores, sealed, are not listed.

Examples:
  blockctl secrets list
  blockctl -j secrets list";

const CHECK_HELP: &str = "\
Exit status 0 says that blockd can have it, 1 that it cannot, with the reason.

Examples:
  blockctl secrets check vault:secret/blockd/s3#secret_key
  blockctl secrets check systemd:blockd-passphrase
  blockctl secrets check file:/etc/blockd/secrets/s3";

const STATUS_HELP: &str = "\
Exit status 1 says that the Vault of the configuration is of no use now. A token is renewed by blockd; where it cannot be, \
it says until when the token is good.

Examples:
  blockctl secrets status
  blockctl -j secrets status";

/// What to do with secrets that lie elsewhere.
#[derive(Debug, Subcommand)]
pub enum SecretsCommand {
    /// List the secrets that blockd fetches itself, who needs them, and whether they can be had
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List,
    /// Say whether blockd can have a secret
    #[command(visible_alias = "validate", after_help = CHECK_HELP)]
    Check(CheckArgs),
    /// Say how those do who keep secrets: Vault, systemd, files
    #[command(visible_alias = "s", after_help = STATUS_HELP)]
    Status,
}

/// `secrets check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// systemd:NAME, file:/ABSOLUTE/PATH or vault:MOUNT/PATH#FIELD
    #[arg(value_name = "REF")]
    pub reference: SecretRef,
}

#[cfg(test)]
mod tests {
    use crate::cli::tests::parse;

    #[test]
    fn references_are_checked_where_they_are_typed() {
        for line in
            ["secrets list", "secrets status", "secrets validate systemd:a", "secrets check vault:a/b#c"]
        {
            assert!(parse(line).is_ok(), "{line}");
        }
        for line in ["secrets", "secrets check", "secrets check planted", "secrets check systemd:../x"] {
            assert_eq!(parse(line).map(drop).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
