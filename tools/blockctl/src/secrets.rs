//! Secrets from options, files, stdin and the environment, in that order, or references.

use crate::{
    failure::{EXIT_USAGE, Failure},
    table::printable,
};
use blockd_api::{Secret, SecretInput, SecretRef};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Maximum length of a secret, in bytes.
const MAX_SECRET_BYTES: u64 = 64 << 10;
/// Values read from files that are not secret.
const PUBLIC: [&str; 3] = ["CA certificate", "key of a secret", "value"];

/// Sources of a secret.
#[derive(Debug)]
pub struct Sources<'a> {
    /// Name for messages.
    pub what: &'static str,
    /// Value on the command line.
    pub flag: Option<&'a Secret>,
    /// File, or `-` for stdin.
    pub file: Option<&'a Path>,
    /// Reference, instead of a value.
    pub from: Option<&'a SecretRef>,
    /// Environment variable.
    pub variable: &'static str,
}

impl<'a> Sources<'a> {
    /// Names the sources of a setting.
    pub fn new(
        what: &'static str,
        flag: &'a Option<Secret>,
        file: &'a Option<PathBuf>,
        from: &'a Option<SecretRef>,
        variable: &'static str,
    ) -> Self {
        Self { what, flag: flag.as_ref(), file: file.as_deref(), from: from.as_ref(), variable }
    }

    /// Returns true with a source other than the variable.
    pub fn is_given(&self) -> bool {
        self.flag.is_some() || self.file.is_some() || self.from.is_some()
    }

    /// Reads the secret from the first source that has one.
    pub fn read(&self) -> Result<Option<Secret>, Failure> {
        if let Some(secret) = self.flag {
            return self.check(secret.clone(), "the command line").map(Some);
        }
        if let Some(path) = self.file {
            let stdin = path.as_os_str() == "-";
            let from = if stdin { "stdin".to_owned() } else { path.display().to_string() };
            let text = if stdin {
                read_text(io::stdin().lock())
            } else {
                File::open(path).and_then(|file| {
                    if !PUBLIC.contains(&self.what) && is_for_others(&file) {
                        // Errors of a closed stderr are ignored.
                        let _ = writeln!(
                            io::stderr().lock(),
                            "warning: others on this host can read the {} in {}: chmod 600 it",
                            self.what,
                            printable(&from)
                        );
                    }
                    read_text(file)
                })
            };
            let secret = text.map_err(|error| self.unreadable(&from, &error.to_string()))?;
            return self.check(secret, &from).map(Some);
        }
        match std::env::var(self.variable) {
            Ok(text) => self.check(Secret::new(text), self.variable).map(Some),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(self.unreadable(self.variable, "it is not UTF-8")),
        }
    }

    /// Returns the reference, or the secret from the first source that has one.
    pub fn input(&self) -> Result<Option<SecretInput>, Failure> {
        match self.from {
            // Exclusions between settings are not checked in files.
            Some(_) if self.flag.is_some() || self.file.is_some() => {
                let what = self.what;
                Err(Failure::usage(format!(
                    "the {what} is given both as a value and as a reference: drop one of them"
                )))
            }
            Some(reference) => Ok(Some(reference.clone().into())),
            None => Ok(self.read()?.map(SecretInput::Value)),
        }
    }

    fn check(&self, secret: Secret, from: &str) -> Result<Secret, Failure> {
        if secret.is_empty() {
            return Err(self.unreadable(from, "it is empty"));
        }
        Ok(secret)
    }

    fn unreadable(&self, from: &str, reason: &str) -> Failure {
        let message = format!("cannot read the {} from {from}: {reason}", self.what);
        Failure::local("unreadable_secret", EXIT_USAGE, message)
    }
}

/// Reads a file, or stdin for `-`.
///
/// # Errors
/// It cannot be read, or is empty.
pub fn read_file(what: &'static str, path: &Path) -> Result<Secret, Failure> {
    let sources = Sources { what, flag: None, file: Some(path), from: None, variable: "" };
    match sources.read()? {
        Some(text) => Ok(text),
        None => Err(sources.unreadable(&path.display().to_string(), "it is empty")),
    }
}

/// Returns true if users other than the owner can read a file.
fn is_for_others(file: &File) -> bool {
    file.metadata().is_ok_and(|file| file.is_file() && file.mode() & 0o044 != 0)
}

/// Reads a secret to the end, without one final line end.
fn read_text(source: impl Read) -> io::Result<Secret> {
    let mut text = String::with_capacity(1 << 10);
    source.take(MAX_SECRET_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_SECRET_BYTES {
        return Err(io::Error::other(format!("it is longer than {MAX_SECRET_BYTES} bytes")));
    }
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_line_end_is_dropped() {
        for (bytes, secret) in
            [("a b\n", "a b"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), (" a ", " a ")]
        {
            assert_eq!(read_text(bytes.as_bytes()).unwrap().expose(), secret);
        }
        assert!(read_text(&[0xff][..]).is_err());
        assert!(read_text(io::repeat(b'x')).is_err());
    }

    #[test]
    fn files_that_others_can_read_are_seen() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, is_seen) in [(0o600, false), (0o400, false), (0o640, true), (0o644, true), (0o604, true)] {
            file.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_for_others(file.as_file()), is_seen, "{mode:o}");
        }
    }

    #[test]
    fn empty_secret_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, "\n").unwrap();
        let sources = Sources {
            what: "passphrase",
            flag: None,
            file: Some(&path),
            from: None,
            variable: "BLOCKCTL_NO_SUCH_VARIABLE",
        };
        assert!(sources.read().unwrap_err().to_string().ends_with("it is empty"));
        let reference = "systemd:a".parse().unwrap();
        let both = Sources { from: Some(&reference), ..sources };
        assert_eq!(both.input().unwrap_err().exit_status(), 2);
        let sources = Sources { file: None, from: None, ..both };
        assert!(sources.read().unwrap().is_none() && sources.input().unwrap().is_none());
        let from = Sources { from: Some(&reference), ..sources };
        assert_eq!(from.input().unwrap().unwrap().reference(), Some(&reference));
    }
}
