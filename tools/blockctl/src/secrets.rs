//! Secrets from flags, files, stdin and the environment, in that order; or where the daemon finds them itself.

use crate::failure::Failure;
use blockd_api::{Secret, SecretInput, SecretRef};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// The longest secret, in bytes.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// Where one secret can come from.
#[derive(Debug)]
pub struct Sources<'a> {
    /// What it is, for messages.
    pub what: &'static str,
    /// As it was typed.
    pub flag: Option<&'a Secret>,
    /// A file, or `-` for stdin.
    pub file: Option<&'a Path>,
    /// Where the daemon finds it, in place of all that.
    pub from: Option<&'a SecretRef>,
    /// The environment variable.
    pub variable: &'static str,
}

impl Sources<'_> {
    /// The secret from the first source that has one.
    pub fn read(&self) -> Result<Option<Secret>, Failure> {
        if let Some(secret) = self.flag {
            return self.check(secret.clone(), "the command line").map(Some);
        }
        if let Some(path) = self.file {
            let stdin = path.as_os_str() == "-";
            let from = if stdin { "stdin".to_owned() } else { path.display().to_string() };
            let text =
                if stdin { read_text(io::stdin().lock()) } else { File::open(path).and_then(read_text) };
            let secret = text.map_err(|error| self.unreadable(&from, &error.to_string()))?;
            return self.check(secret, &from).map(Some);
        }
        match std::env::var(self.variable) {
            Ok(text) => self.check(Secret::new(text), self.variable).map(Some),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(self.unreadable(self.variable, "it is not UTF-8")),
        }
    }

    /// Where the daemon finds it, or the secret from the first source that has one.
    pub fn input(&self) -> Result<Option<SecretInput>, Failure> {
        match self.from {
            // A file of settings says nothing of what excludes what.
            Some(_) if self.flag.is_some() || self.file.is_some() => {
                let what = self.what;
                Err(Failure::usage(format!(
                    "the {what} is given, and said to lie elsewhere: drop one of them"
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
        Failure::Secret { what: self.what, from: from.to_owned(), reason: reason.to_owned() }
    }
}

/// Reads what a file holds, `-` being stdin.
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

/// Reads a secret to the end; one line end there is not part of it.
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
    fn one_line_end_is_dropped() {
        for (bytes, secret) in
            [("a b\n", "a b"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), (" a ", " a ")]
        {
            assert_eq!(read_text(bytes.as_bytes()).unwrap().expose(), secret);
        }
        assert!(read_text(&[0xff][..]).is_err());
        assert!(read_text(io::repeat(b'x')).is_err());
    }

    #[test]
    fn an_empty_file_is_no_secret() {
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
