//! Questions on a terminal for what the options of `blockctl init` leave open.

use super::{DAILY_AT, args::InitArgs};
use crate::{failure::Failure, secrets::read_file};
use blockd_api::{ClientError, ErrorCode, credentials::ProviderKind};
use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
};

/// Tells the user why the next question is asked.
fn say(line: &str) {
    // Without a reader there is no answer either.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

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
            self.encryption(args)?;
        }
        Ok(())
    }

    fn encryption(&self, args: &mut InitArgs) -> Result<(), Failure> {
        let file = self.answer(
            "New file for the recovery key, or - to store backups unencrypted",
            &format!("{}.recovery-key", args.name),
            "--new-recovery-key FILE, --encryption-passphrase-file FILE or --no-encryption",
        )?;
        match file.as_str() {
            "-" => args.no_encryption = true,
            _ => args.new_recovery_key = Some(file.into()),
        }
        Ok(())
    }

    /// Asks again for the encryption of a location that has backups with another one; returns false for other
    /// errors, and without a terminal.
    ///
    /// # Errors
    /// Input ends.
    pub fn encryption_of_backups(&self, args: &mut InitArgs, error: &Failure) -> Result<bool, Failure> {
        let Failure::Client(ClientError::Api(error)) = error else { return Ok(false) };
        if !self.is_interactive || args.file.is_some() {
            return Ok(false);
        }
        match error.code {
            ErrorCode::WrongPassphrase | ErrorCode::PassphraseRequired => {
                say(&error.message);
                let file = self.key_file()?;
                (args.new_recovery_key, args.no_encryption) = (None, false);
                let settings = &mut args.settings;
                (settings.encryption_passphrase, settings.encryption_passphrase_from) = (None, None);
                settings.encryption_passphrase_file = Some(file);
            }
            ErrorCode::RepositoryNotEncrypted if args.new_recovery_key.is_some() => {
                say(&error.message);
                args.new_recovery_key = None;
                self.encryption(args)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn key_file(&self) -> Result<PathBuf, Failure> {
        loop {
            let question = "File with the recovery key or passphrase of these backups";
            let file = PathBuf::from(self.answer(question, "", "--encryption-passphrase-file FILE")?);
            match read_file("passphrase", &file) {
                Ok(_) => return Ok(file),
                Err(error) => say(&error.to_string()),
            }
        }
    }

    /// Asks for the time of a new schedule.
    ///
    /// # Errors
    /// Input ends.
    pub fn schedule(&self, args: &mut InitArgs) -> Result<(), Failure> {
        if !self.is_interactive || args.times.rules(false).is_ok_and(|rules| !rules.is_empty()) {
            return Ok(());
        }
        let question = format!("Time of the daily backups ({})", args.times.zone());
        loop {
            args.times.daily = vec![self.answer(&question, DAILY_AT, "--daily")?];
            match args.times.rules(false) {
                Ok(_) => return Ok(()),
                Err(error) => say(&error.to_string()),
            }
        }
    }

    fn location(&self, args: &mut InitArgs) -> Result<(), Failure> {
        let settings = &mut args.settings;
        let kind = loop {
            match self.answer("Location of the backups: local or s3", "local", "--provider")?.as_str() {
                "local" => break ProviderKind::Local,
                "s3" => break ProviderKind::S3,
                other => say(&format!(
                    "{other}: `init` asks for local and s3; give --provider and its options for others"
                )),
            }
        };
        settings.provider = Some(kind);
        match kind {
            ProviderKind::Local => {
                let dir = self.answer("Directory on the daemon's host", "/srv/backup", "--path DIR")?;
                settings.path = Some(PathBuf::from(dir));
            }
            _ => {
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
