//! `blockctl credentials …`

use blockd_api::{CredentialName, CredentialRef, Secret};
use clap::{Args, Subcommand, ValueEnum};
use std::{convert::Infallible, path::PathBuf};

const CREATE_HELP: &str = "\
Creating credentials proves that they work: blockd writes, reads and deletes a small object there. \
Secrets are stored encrypted and never shown. A secret on the command line can be seen by other \
users of the host and stays in the shell's history: better give a file, `-` to read it from stdin, \
or the variable. One line end at the end of a file is dropped.

Examples:
  blockctl credentials create nas --provider local --path /srv/backup
  blockctl credentials create safe --provider local --path /srv/backup \\
      --encryption-passphrase-file ~/.blockd-passphrase
  blockctl credentials create s3 --provider s3 --s3-endpoint s3.amazonaws.com \\
      --s3-region us-east-1 --bucket my-bucket --s3-access-key AKIA… --s3-secret-key-file ./key
  AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=… blockctl credentials create weed \\
      --provider s3 --s3-endpoint 127.0.0.1:8333 --s3-disable-ssl --bucket bkt";

const LIST_HELP: &str = "\
Examples:
  blockctl credentials list
  blockctl -j cred list";

const VALIDATE_HELP: &str = "\
Examples:
  blockctl credentials validate nas
  blockctl cred validate af563a4d-afd7-48df-90f7-8e8f9414ff77";

const DELETE_HELP: &str = "\
What is in the store stays; with the same place and passphrase it can be listed and restored again.

Examples:
  blockctl credentials delete nas";

/// What to do with credentials.
#[derive(Debug, Subcommand)]
pub enum CredentialsCommand {
    /// Create credentials for a place where backups go
    #[command(visible_alias = "c", after_help = CREATE_HELP)]
    Create(Box<CreateArgs>),
    /// List credentials, without their secrets
    #[command(visible_alias = "l", after_help = LIST_HELP)]
    List,
    /// Prove that credentials still work
    #[command(visible_alias = "v", after_help = VALIDATE_HELP)]
    Validate(OneCredential),
    /// Forget credentials
    #[command(visible_alias = "d", after_help = DELETE_HELP)]
    Delete(OneCredential),
}

/// Kind of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Provider {
    Local,
    S3,
}

/// `credentials create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Name of the credentials
    pub name: CredentialName,
    /// Where backups go: a directory on the host of blockd, or a bucket of an S3 server
    #[arg(long, value_enum)]
    pub provider: Provider,
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
    /// Region, us-east-1 without it (s3)
    #[arg(long, value_name = "REGION", help_heading = "S3")]
    pub s3_region: Option<String>,
    /// Bucket, which must exist (s3)
    #[arg(long, value_name = "BUCKET", help_heading = "S3")]
    pub bucket: Option<String>,
    /// Talk plain HTTP (s3)
    #[arg(long, help_heading = "S3")]
    pub s3_disable_ssl: bool,
    /// Address the bucket as BUCKET.HOST, not HOST/BUCKET (s3)
    #[arg(long, help_heading = "S3")]
    pub disable_path_style: bool,
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
}

/// Credentials
#[derive(Debug, Args)]
pub struct OneCredential {
    /// Name or UUID of the credentials
    pub credential: CredentialRef,
}

fn parse_secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use crate::cli::tests::parse;

    #[test]
    fn flags_exclude_each_other() {
        for line in [
            "cred create n --provider s3 --s3-secret-key a --s3-secret-key-file b",
            "creds create n --provider local --encryption-passphrase a --encryption-passphrase-file b",
            "credentials create n --provider tape",
            "credentials create --provider local --path /x",
            "credentials create n --path /x",
            "credentials create af563a4d-afd7-48df-90f7-8e8f9414ff77 --provider local --path /x",
        ] {
            assert_eq!(parse(line).map(drop).unwrap_err().exit_code(), 2, "{line}");
        }
        assert!(parse("cred c --provider=local n --path=/x").is_ok());
    }

    #[test]
    fn secrets_are_not_in_debug_output() {
        let cli =
            parse("cred c n --provider s3 --s3-secret-key hunter2 --encryption-passphrase hunter3").unwrap();
        assert!(!format!("{cli:?}").contains("hunter"));
    }
}
