//! Questions on a terminal for what the options of `blockctl init` leave open.

use super::args::InitArgs;
use crate::failure::Failure;
use blockd_api::credentials::ProviderKind;
use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
};

/// Asks on stderr and reads lines from stdin, if both are terminals.
pub struct Questions {
    is_interactive: bool,
}

impl Questions {
    /// Returns questions for this process.
    pub fn new(json: bool) -> Self {
        Self { is_interactive: !json && io::stdin().is_terminal() && io::stderr().is_terminal() }
    }

    /// Fills what is missing of a location and its encryption.
    ///
    /// # Errors
    /// Something is missing and there is no terminal, or input ends.
    pub fn complete(&self, args: &mut InitArgs) -> Result<(), Failure> {
        if args.file.is_none() && args.settings.provider.is_none() {
            self.location(args)?;
        }
        if args.file.is_none() && args.is_encryption_open() {
            let file = self.answer(
                "New file for the recovery key, or - to store backups unencrypted",
                &format!("{}.recovery-key", args.name),
                "--new-recovery-key FILE, --encryption-passphrase-file FILE or --no-encryption",
            )?;
            match file.as_str() {
                "-" => args.no_encryption = true,
                _ => args.new_recovery_key = Some(file.into()),
            }
        }
        Ok(())
    }

    fn location(&self, args: &mut InitArgs) -> Result<(), Failure> {
        let settings = &mut args.settings;
        let needed = "--provider";
        match self.answer("Location of the backups: local or s3", "local", needed)?.as_str() {
            "local" => {
                settings.provider = Some(ProviderKind::Local);
                let dir = self.answer("Directory on the daemon's host", "/srv/backup", "--path DIR")?;
                settings.path = Some(PathBuf::from(dir));
            }
            "s3" => {
                settings.provider = Some(ProviderKind::S3);
                let ask =
                    |question: &str, default: &str, flag| self.answer(question, default, flag).map(Some);
                settings.s3_endpoint =
                    ask("Server, as host or host:port", "s3.amazonaws.com", "--s3-endpoint")?;
                settings.s3_region = ask("Region", "us-east-1", "--s3-region")?;
                settings.bucket = ask("Bucket", "", "--bucket")?;
                settings.s3_access_key = ask("Access key", "", "--s3-access-key")?;
                // A file, as a terminal would show the key.
                settings.s3_secret_key_file =
                    ask("File with the secret key", "", "--s3-secret-key-file")?.map(PathBuf::from);
            }
            other => {
                return Err(Failure::usage(format!(
                    "{other}: `init` asks for local and s3; give --provider and its options for others"
                )));
            }
        }
        Ok(())
    }

    /// Asks until there is an answer; an empty one stands for the default.
    fn answer(&self, question: &str, default: &str, flag: &str) -> Result<String, Failure> {
        if !self.is_interactive {
            return Err(Failure::usage(format!("there is no terminal to ask on: give {flag}")));
        }
        loop {
            let shown = if default.is_empty() { String::new() } else { format!(" [{default}]") };
            let mut stderr = io::stderr().lock();
            let mut line = String::new();
            let read = write!(stderr, "{question}{shown}: ")
                .and_then(|()| stderr.flush())
                .and_then(|()| io::stdin().lock().read_line(&mut line));
            match (read, line.trim()) {
                (Err(_) | Ok(0), _) => {
                    return Err(Failure::usage(format!("no answer to \"{question}\": give {flag}")));
                }
                (Ok(_), "") if default.is_empty() => {}
                (Ok(_), "") => return Ok(default.to_owned()),
                (Ok(_), answer) => return Ok(answer.to_owned()),
            }
        }
    }
}
