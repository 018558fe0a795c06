//! Secrets on this host: systemd credentials and files.

use crate::{error::ReferenceError, sealing::SYSTEMD_CREDENTIAL};
use std::{
    fs::File,
    io::{ErrorKind, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Maximum size of a secret, in bytes, as in `blockctl`.
pub(super) const MAX_SECRET_BYTES: u64 = 64 << 10;

/// Directories of secrets on this host.
#[derive(Debug)]
pub(super) struct Local {
    /// Directory of systemd credentials.
    pub systemd_dir: Option<PathBuf>,
    /// Directory of secret files and programs.
    pub file_dir: PathBuf,
}

impl Local {
    /// Reads a systemd credential; blocks.
    pub fn credential(&self, name: &str) -> Result<Zeroizing<String>, ReferenceError> {
        // Otherwise an API user who creates credentials could send the daemon's key to a store of their own.
        if name == SYSTEMD_CREDENTIAL {
            return Err(ReferenceError::Own { what: format!("the credential {name}") });
        }
        let dir = self.systemd_dir.as_ref();
        let dir = dir.ok_or_else(|| ReferenceError::NoCredentials { name: name.to_owned() })?;
        let path = dir.join(name);
        if !path.exists() {
            return Err(ReferenceError::NoCredential { name: name.to_owned() });
        }
        // systemd restricts the directory to the service; the shown mode is that of its access list.
        read(&path, false)
    }

    /// Reads a file; blocks.
    pub fn file(&self, path: &Path) -> Result<Zeroizing<String>, ReferenceError> {
        read(&self.beneath(path)?, true)
    }

    /// Resolves a path below the directory of secrets, without links; blocks.
    pub fn beneath(&self, path: &Path) -> Result<PathBuf, ReferenceError> {
        let real = |path: &Path| {
            let failed = |error: std::io::Error| file_error(path, &error);
            path.canonicalize().map_err(failed)
        };
        let (found, dir) = (real(path)?, real(&self.file_dir)?);
        if !found.starts_with(&dir) {
            return Err(ReferenceError::Outside { path: path.to_owned(), dir: self.file_dir.clone() });
        }
        Ok(found)
    }
}

fn file_error(path: &Path, error: &std::io::Error) -> ReferenceError {
    let what = match error.kind() {
        ErrorKind::NotFound => return ReferenceError::NoFile { path: path.to_owned() },
        ErrorKind::PermissionDenied => {
            "permission denied: the file must belong to the user that blockd runs as".to_owned()
        }
        _ => error.to_string(),
    };
    ReferenceError::File { path: path.to_owned(), what }
}

/// Reads a text without one trailing line end.
fn read(path: &Path, check_mode: bool) -> Result<Zeroizing<String>, ReferenceError> {
    let failed = |error: std::io::Error| file_error(path, &error);
    // Does not wait for the writer of a FIFO.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(nonblock).open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(ReferenceError::File { path: path.to_owned(), what: "it is not a regular file".into() });
    }
    let mode = found.mode() & 0o7777;
    if check_mode && mode & 0o007 != 0 {
        return Err(ReferenceError::Exposed { path: path.to_owned(), mode });
    }
    if found.len() > MAX_SECRET_BYTES {
        return Err(ReferenceError::Unusable { what: "is longer than 64 KiB" });
    }
    // Sized to avoid a reallocation, which would leave an unerased copy.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET_BYTES as usize + 1));
    file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    secret_of(&bytes)
}

/// Returns the text of a secret without one trailing line end.
pub(super) fn secret_of(bytes: &[u8]) -> Result<Zeroizing<String>, ReferenceError> {
    if bytes.len() as u64 > MAX_SECRET_BYTES {
        return Err(ReferenceError::Unusable { what: "is longer than 64 KiB" });
    }
    let text =
        std::str::from_utf8(bytes).map_err(|_| ReferenceError::Unusable { what: "is not UTF-8 text" })?;
    let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
    if text.is_empty() {
        return Err(ReferenceError::Unusable { what: "is empty" });
    }
    Ok(Zeroizing::new(text.to_owned()))
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
        Local { systemd_dir: Some(dir.to_owned()), file_dir: dir.to_owned() }
    }

    #[test]
    fn credentials_of_systemd_are_read_but_not_the_daemons_own() {
        let dir = tempfile::tempdir().unwrap();
        let local = local(dir.path());
        put(&dir.path().join("pass"), b"correct horse\n", 0o444);
        assert_eq!(local.credential("pass").unwrap().as_str(), "correct horse");
        assert!(local.credential("none").unwrap_err().to_string().contains("LoadCredential=none:FILE"));
        put(&dir.path().join("blockd.key"), b"planted", 0o400);
        let error = local.credential("blockd.key").unwrap_err().to_string();
        assert!(error.contains("blockd's own") && !error.contains("planted"), "{error}");
        let without = Local { systemd_dir: None, ..local };
        assert!(without.credential("pass").unwrap_err().to_string().contains("no credentials"));
    }

    #[test]
    fn secret_files_must_be_private_and_in_their_directory() {
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
        assert!(refused(&dir.path().join("link")).contains("is not below"));
        assert!(refused(&dir.path().join("gone")).contains("does not exist"));
        assert!(refused(dir.path()).contains("not a regular file"));
        for (content, mode, word) in [
            (b"planted".as_slice(), 0o604, "chmod 600"),
            (b"", 0o600, "empty"),
            (b"\n", 0o600, "empty"),
            (b"planted\xff", 0o600, "UTF-8"),
            (vec![b'p'; MAX_SECRET_BYTES as usize + 1].as_slice(), 0o600, "64 KiB"),
        ] {
            put(&path, content, mode);
            assert!(refused(&path).contains(word), "{word}");
        }
    }
}
