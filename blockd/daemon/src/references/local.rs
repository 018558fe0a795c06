//! Secrets on this host: credentials of systemd, and files.

use super::ReferenceError;
use crate::{config::Proof, secrets::SYSTEMD_CREDENTIAL};
use std::{
    collections::HashSet,
    fs::File,
    io::{ErrorKind, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// The longest secret, in bytes, as `blockctl` has it.
pub(super) const SECRET_MOST_BYTES: u64 = 64 << 10;

/// Where the secrets of this host are.
#[derive(Debug)]
pub(super) struct Local {
    /// Where systemd put credentials.
    pub systemd_dir: Option<PathBuf>,
    /// Below which directory files are taken from.
    pub file_dir: PathBuf,
    /// Credentials that prove to others who the daemon is.
    pub own: HashSet<String>,
}

impl Local {
    /// A credential of systemd; blocks.
    pub fn credential(&self, name: &str) -> Result<Zeroizing<String>, ReferenceError> {
        // Whoever may make credentials here could send it to a store of their own.
        if name == SYSTEMD_CREDENTIAL || self.own.contains(name) {
            return Err(ReferenceError::Own { what: format!("the credential {name}") });
        }
        self.any_credential(name)
    }

    fn any_credential(&self, name: &str) -> Result<Zeroizing<String>, ReferenceError> {
        let dir = self.systemd_dir.as_ref();
        let dir = dir.ok_or_else(|| ReferenceError::NoCredentials { name: name.to_owned() })?;
        let path = dir.join(name);
        if !path.exists() {
            return Err(ReferenceError::NoCredential { name: name.to_owned() });
        }
        // systemd keeps that directory to the service; the mode shown there is that of its access list.
        read(&path, false)
    }

    /// A file; blocks.
    pub fn file(&self, path: &Path) -> Result<Zeroizing<String>, ReferenceError> {
        let real = |path: &Path| {
            let failed = |error: std::io::Error| file_error(path, &error);
            path.canonicalize().map_err(failed)
        };
        let (found, dir) = (real(path)?, real(&self.file_dir)?);
        if !found.starts_with(&dir) {
            return Err(ReferenceError::Outside { path: path.to_owned(), dir: self.file_dir.clone() });
        }
        read(&found, true)
    }

    /// What proves to a Vault who asks, wherever it is; blocks.
    pub fn proof(&self, proof: &Proof) -> Result<Zeroizing<String>, ReferenceError> {
        let text = match proof {
            Proof::File(path) => read(path, true)?,
            Proof::Credential(name) => self.any_credential(name)?,
        };
        let text = Zeroizing::new(text.trim().to_owned());
        // It becomes a header.
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ReferenceError::Unusable { what: "that proves who asks must be one word" });
        }
        Ok(text)
    }
}

/// Where a proof is, for messages.
pub(super) fn place(proof: &Proof) -> String {
    match proof {
        Proof::File(path) => path.display().to_string(),
        Proof::Credential(name) => format!("systemd's credential {name}"),
    }
}

fn file_error(path: &Path, error: &std::io::Error) -> ReferenceError {
    let what = match error.kind() {
        ErrorKind::NotFound => return ReferenceError::NoFile { path: path.to_owned() },
        ErrorKind::PermissionDenied => {
            "blockd may not: it must belong to the user that blockd runs as".to_owned()
        }
        _ => error.to_string(),
    };
    ReferenceError::File { path: path.to_owned(), what }
}

/// Reads a text; one line end at its end is not part of it.
fn read(path: &Path, check_mode: bool) -> Result<Zeroizing<String>, ReferenceError> {
    let failed = |error: std::io::Error| file_error(path, &error);
    // Without waiting for whoever writes into a pipe.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblock).open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(ReferenceError::File { path: path.to_owned(), what: "it is no regular file".into() });
    }
    let mode = found.mode() & 0o7777;
    if check_mode && mode & 0o007 != 0 {
        return Err(ReferenceError::Exposed { path: path.to_owned(), mode });
    }
    if found.len() > SECRET_MOST_BYTES {
        return Err(ReferenceError::Unusable { what: "is longer than 64 KiB" });
    }
    // Not moved as it grows.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_MOST_BYTES as usize + 1));
    file.take(SECRET_MOST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    let text =
        std::str::from_utf8(&bytes).map_err(|_| ReferenceError::Unusable { what: "is no UTF-8 text" })?;
    let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
    usable(Zeroizing::new(text.to_owned()))
}

/// The text, if it can be a secret.
pub(super) fn usable(text: Zeroizing<String>) -> Result<Zeroizing<String>, ReferenceError> {
    if text.is_empty() {
        return Err(ReferenceError::Unusable { what: "is empty" });
    }
    if text.len() as u64 > SECRET_MOST_BYTES {
        return Err(ReferenceError::Unusable { what: "is longer than 64 KiB" });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn put(path: &Path, content: &[u8], mode: u32) {
        std::fs::write(path, content).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn local(dir: &Path) -> Local {
        Local {
            systemd_dir: Some(dir.to_owned()),
            file_dir: dir.to_owned(),
            own: HashSet::from(["vault-token".to_owned()]),
        }
    }

    #[test]
    fn credentials_of_systemd_are_read_but_not_the_daemons_own() {
        let dir = tempfile::tempdir().unwrap();
        let local = local(dir.path());
        put(&dir.path().join("pass"), b"correct horse\n", 0o444);
        assert_eq!(local.credential("pass").unwrap().as_str(), "correct horse");
        assert!(local.credential("none").unwrap_err().to_string().contains("LoadCredential=none:FILE"));
        for own in ["blockd.key", "vault-token"] {
            put(&dir.path().join(own), b"planted", 0o400);
            let error = local.credential(own).unwrap_err().to_string();
            assert!(error.contains("blockd's own") && !error.contains("planted"), "{error}");
        }
        assert_eq!(local.proof(&Proof::Credential("vault-token".into())).unwrap().as_str(), "planted");
        let without = Local { systemd_dir: None, ..local };
        assert!(without.credential("pass").unwrap_err().to_string().contains("no credentials"));
    }

    #[test]
    fn files_are_taken_from_one_directory_only_and_if_nobody_else_may_read_them() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let local = local(dir.path());
        let path = dir.path().join("key");
        put(&path, b"planted \r\n", 0o640);
        assert_eq!(local.file(&path).unwrap().as_str(), "planted ");
        put(&outside.path().join("key"), b"planted", 0o600);
        std::os::unix::fs::symlink(outside.path().join("key"), dir.path().join("link")).unwrap();
        let refused = |path: &Path| {
            let error = local.file(path).unwrap_err().to_string();
            assert!(!error.contains("planted") && !error.contains('\n'), "{error}");
            error
        };
        assert!(refused(&outside.path().join("key")).contains("secrets.file_dir"));
        assert!(refused(&dir.path().join("link")).contains("does not lie below"));
        assert!(refused(&dir.path().join("gone")).contains("it is not there"));
        assert!(refused(dir.path()).contains("no regular file"));
        for (content, mode, word) in [
            (b"planted".as_slice(), 0o604, "chmod 600"),
            (b"", 0o600, "empty"),
            (b"\n", 0o600, "empty"),
            (b"planted\xff", 0o600, "UTF-8"),
            (vec![b'p'; SECRET_MOST_BYTES as usize + 1].as_slice(), 0o600, "64 KiB"),
        ] {
            put(&path, content, mode);
            assert!(refused(&path).contains(word), "{word}");
        }
        put(&path, b"two words", 0o600);
        assert!(local.proof(&Proof::File(path)).unwrap_err().to_string().contains("one word"));
    }
}
