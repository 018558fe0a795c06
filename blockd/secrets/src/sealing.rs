//! Encryption of secrets in the database: store secrets and repository keys.
//!
//! Each secret is sealed with AES-256-GCM-SIV under the daemon's key, bound to its credential and purpose, so
//! that a row copied over another one does not open. The key is 32 random bytes in `DIR/secret.key`, or
//! `blockd.key` in systemd's credentials directory.
//!
//! Layout of a sealed secret (little-endian where numbers are):
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `BLKS` |
//! | 4 | 2 | version, 1 |
//! | 6 | 2 | zero |
//! | 8 | 8 | fingerprint of the key: the first bytes of the sealing of nothing, with nonce zero, under it |
//! | 16 | 12 | nonce, random |
//! | 28 | n + 16 | ciphertext and tag; associated data: bytes 0 to 16, credential uuid (16), purpose |

use aes_gcm_siv::{
    Aes256GcmSiv, Key, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use parking_lot::Mutex;
use std::{
    fs::OpenOptions,
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};
use uuid::Uuid;
use zeroize::Zeroizing;

const MAGIC: &[u8; 4] = b"BLKS";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
const KEY_BYTES: usize = 32;
/// Name of the key in systemd's credentials directory.
pub const SYSTEMD_CREDENTIAL: &str = "blockd.key";

/// Purpose of a sealed secret, which is part of its associated data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// The secret key of an object store account.
    StoreSecret,
    /// The opened keys of the repository in the store.
    DataKeys,
}

impl Purpose {
    fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::StoreSecret => b"store secret",
            Self::DataKeys => b"data keys",
        }
    }
}

/// Error of sealing or opening a secret.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SecretsError {
    /// The key file cannot be used.
    #[error("the key of stored secrets, {}, is unusable: {what}", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// Cause.
        what: String,
    },
    /// The key file cannot be created.
    #[error("create failed on the key of stored secrets, {}: {source}", path.display())]
    Create {
        /// The key file.
        path: PathBuf,
        /// Cause reported by the system.
        source: Arc<std::io::Error>,
    },
    /// There are sealed secrets, but no key.
    #[error("{} is missing, so the secrets of this credential cannot be decrypted: put the file back, or set all secrets again (blockctl credentials update)", path.display())]
    KeyLost {
        /// Expected path of the key.
        path: PathBuf,
    },
    /// The secret was sealed with another key.
    #[error("the secrets of this credential were sealed with another key than {}: put the old key back, or set all secrets again (blockctl credentials update)", path.display())]
    KeyChanged {
        /// Path of the key.
        path: PathBuf,
    },
    /// The sealed bytes were not written for this credential.
    #[error(
        "the stored secrets of credential {credential} are damaged ({what}): set all secrets again (blockctl credentials update)"
    )]
    Damaged {
        /// Credential.
        credential: Uuid,
        /// Failed check.
        what: &'static str,
    },
    /// Random bytes are unavailable.
    #[error("reading random bytes failed: {0}")]
    Random(String),
}

impl SecretsError {
    /// Returns true if a retry can succeed.
    pub fn is_retryable(&self) -> bool {
        false
    }
}

/// Fills a buffer with random bytes of the operating system.
///
/// # Errors
/// Random bytes are unavailable.
pub fn fill_random(bytes: &mut [u8]) -> Result<(), SecretsError> {
    getrandom::fill(bytes).map_err(|error| SecretsError::Random(error.to_string()))
}

struct SealingKey {
    cipher: Aes256GcmSiv,
    fingerprint: [u8; 8],
}

impl SealingKey {
    fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        let cipher = Aes256GcmSiv::new(&Key::<Aes256GcmSiv>::from(*bytes));
        let nothing = Payload { msg: &[], aad: b"blockd key fingerprint" };
        let tag = cipher.encrypt(&Nonce::from([0; NONCE_BYTES]), nothing).unwrap_or_default();
        let mut fingerprint = [0; 8];
        for (to, from) in fingerprint.iter_mut().zip(&tag) {
            *to = *from;
        }
        Self { cipher, fingerprint }
    }
}

enum SealingKeyState {
    Ready(Box<SealingKey>),
    /// No key file yet: it is created for the first secret.
    Absent,
    Unusable(SecretsError),
}

/// Sealer of secrets. Problems with the key fail only its use, so that volumes are served without it.
pub struct Secrets {
    path: PathBuf,
    state: Mutex<SealingKeyState>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secrets").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Secrets {
    /// Loads the key from `systemd_dir` (the value of `CREDENTIALS_DIRECTORY`) if it has one, else from the
    /// data directory.
    pub fn load(data_dir: &Path, systemd_dir: Option<&Path>) -> Self {
        if let Some(path) = systemd_dir.map(|dir| dir.join(SYSTEMD_CREDENTIAL))
            && path.exists()
        {
            // systemd restricts the directory to the service; the mode shown is that of its access list.
            let state = read_key(&path, false)
                .map_or_else(SealingKeyState::Unusable, |key| SealingKeyState::Ready(Box::new(key)));
            return Self { path, state: Mutex::new(state) };
        }
        let path = data_dir.join("secret.key");
        let state = if path.exists() {
            read_key(&path, true)
                .map_or_else(SealingKeyState::Unusable, |key| SealingKeyState::Ready(Box::new(key)))
        } else {
            SealingKeyState::Absent
        };
        Self { path, state: Mutex::new(state) }
    }

    /// Returns a problem of the key for the log at the start.
    pub fn problem(&self) -> Option<SecretsError> {
        match &*self.state.lock() {
            SealingKeyState::Unusable(error) => Some(error.clone()),
            _ => None,
        }
    }

    /// Fails if there is no key. For callers with sealed secrets, for which a new key is useless.
    ///
    /// # Errors
    /// The key is missing or unusable.
    pub fn must_not_be_new(&self) -> Result<(), SecretsError> {
        match &*self.state.lock() {
            SealingKeyState::Ready(_) => Ok(()),
            SealingKeyState::Unusable(error) => Err(error.clone()),
            SealingKeyState::Absent => Err(SecretsError::KeyLost { path: self.path.clone() }),
        }
    }

    /// Seals a secret of a credential. Creates a missing key file.
    ///
    /// # Errors
    /// The key is unusable or cannot be created.
    pub fn seal(&self, credential: Uuid, purpose: Purpose, secret: &[u8]) -> Result<Vec<u8>, SecretsError> {
        let mut state = self.state.lock();
        if matches!(*state, SealingKeyState::Absent) {
            *state = SealingKeyState::Ready(Box::new(make_key(&self.path)?));
        }
        let key = match &*state {
            SealingKeyState::Ready(key) => key,
            SealingKeyState::Unusable(error) => return Err(error.clone()),
            SealingKeyState::Absent => return Err(SecretsError::KeyLost { path: self.path.clone() }),
        };
        let mut sealed = Vec::with_capacity(HEADER_BYTES + NONCE_BYTES + secret.len() + 16);
        sealed.extend_from_slice(MAGIC);
        sealed.extend_from_slice(&VERSION.to_le_bytes());
        sealed.extend_from_slice(&[0; 2]);
        sealed.extend_from_slice(&key.fingerprint);
        let mut nonce = [0; NONCE_BYTES];
        fill_random(&mut nonce)?;
        let aad = associated_data(&sealed, credential, purpose);
        let body = key
            .cipher
            .encrypt(&Nonce::from(nonce), Payload { msg: secret, aad: &aad })
            .map_err(|_| SecretsError::Damaged { credential, what: "too long to be sealed" })?;
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(&body);
        Ok(sealed)
    }

    /// Opens a sealed secret of a credential.
    ///
    /// # Errors
    /// The key is missing, different or unusable, or the bytes were not sealed for this credential.
    pub fn open(
        &self,
        credential: Uuid,
        purpose: Purpose,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
        let damaged = |what| SecretsError::Damaged { credential, what };
        let (header, rest) = sealed.split_at_checked(HEADER_BYTES).ok_or_else(|| damaged("too short"))?;
        let (nonce, body) = rest.split_at_checked(NONCE_BYTES).ok_or_else(|| damaged("too short"))?;
        if header[..4] != *MAGIC || header[4..8] != [1, 0, 0, 0] {
            return Err(damaged("not a sealed secret of version 1"));
        }
        let state = self.state.lock();
        let key = match &*state {
            SealingKeyState::Ready(key) => key,
            SealingKeyState::Unusable(error) => return Err(error.clone()),
            SealingKeyState::Absent => return Err(SecretsError::KeyLost { path: self.path.clone() }),
        };
        if header[8..16] != key.fingerprint {
            return Err(SecretsError::KeyChanged { path: self.path.clone() });
        }
        let aad = associated_data(header, credential, purpose);
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().map_err(|_| damaged("too short"))?;
        let plain = key
            .cipher
            .decrypt(&Nonce::from(nonce), Payload { msg: body, aad: &aad })
            .map_err(|_| damaged("they do not authenticate"))?;
        Ok(Zeroizing::new(plain))
    }
}

fn associated_data(header: &[u8], credential: Uuid, purpose: Purpose) -> Vec<u8> {
    [header, credential.as_bytes(), purpose.as_bytes()].concat()
}

fn read_key(path: &Path, check_mode: bool) -> Result<SealingKey, SecretsError> {
    let bad = |what: String| SecretsError::Key { path: path.to_owned(), what };
    let file = std::fs::File::open(path).map_err(|error| bad(error.to_string()))?;
    let meta = file.metadata().map_err(|error| bad(error.to_string()))?;
    if check_mode && meta.mode() & 0o077 != 0 {
        return Err(bad(format!("others may read it (mode {:04o}): chmod 600 it", meta.mode() & 0o7777)));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| bad(error.to_string()))?;
    let key: Zeroizing<[u8; KEY_BYTES]> = Zeroizing::new(
        bytes.as_slice().try_into().map_err(|_| bad(format!("it must be exactly {KEY_BYTES} bytes long")))?,
    );
    Ok(SealingKey::new(&key))
}

/// Creates the key under a temporary name and links it when it is durable: a crash leaves no partial key.
fn make_key(path: &Path) -> Result<SealingKey, SecretsError> {
    let bad = |error: std::io::Error| SecretsError::Create { path: path.to_owned(), source: error.into() };
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    fill_random(key.as_mut_slice())?;
    let temporary = path.with_extension("key.new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(bad(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(bad)?;
    file.write_all(key.as_slice()).map_err(bad)?;
    file.sync_all().map_err(bad)?;
    // A link, unlike a rename, does not replace an existing key.
    std::fs::hard_link(&temporary, path).map_err(bad)?;
    std::fs::remove_file(&temporary).map_err(bad)?;
    if let Some(dir) = path.parent() {
        blockd_files::sync_dir(dir).map_err(bad)?;
    }
    Ok(SealingKey::new(&key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const SECRET: &[u8] = b"wJalrXUtnFEMI";

    #[test]
    fn sealed_secret_opens_with_its_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let id = Uuid::new_v4();
        let sealed = Secrets::load(dir.path(), None).seal(id, Purpose::StoreSecret, SECRET).unwrap();
        assert!(!sealed.windows(SECRET.len()).any(|window| window == SECRET));
        let path = dir.path().join("secret.key");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);

        let again = Secrets::load(dir.path(), None);
        assert_eq!(again.open(id, Purpose::StoreSecret, &sealed).unwrap().as_slice(), SECRET);
        assert!(matches!(
            again.open(Uuid::new_v4(), Purpose::StoreSecret, &sealed),
            Err(SecretsError::Damaged { .. })
        ));
        assert!(matches!(again.open(id, Purpose::DataKeys, &sealed), Err(SecretsError::Damaged { .. })));

        std::fs::write(&path, [7; 32]).unwrap();
        let other = Secrets::load(dir.path(), None);
        assert!(matches!(
            other.open(id, Purpose::StoreSecret, &sealed),
            Err(SecretsError::KeyChanged { .. })
        ));
        std::fs::remove_file(&path).unwrap();
        let none = Secrets::load(dir.path(), None);
        assert!(matches!(none.open(id, Purpose::StoreSecret, &sealed), Err(SecretsError::KeyLost { .. })));
        assert!(!path.exists(), "looking must not make a key");
    }

    #[test]
    fn no_flipped_bit_and_no_cut_opens() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::load(dir.path(), None);
        let id = Uuid::new_v4();
        let sealed = secrets.seal(id, Purpose::DataKeys, SECRET).unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(secrets.open(id, Purpose::DataKeys, &bad).is_err(), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(secrets.open(id, Purpose::DataKeys, &sealed[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn world_readable_key_is_refused_on_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret.key");
        std::fs::write(&path, [7; 32]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let secrets = Secrets::load(dir.path(), None);
        let error = secrets.seal(Uuid::nil(), Purpose::DataKeys, SECRET).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        assert!(secrets.problem().is_some());
    }

    #[test]
    fn systemd_key_is_preferred() {
        let dir = tempfile::tempdir().unwrap();
        let systemd = tempfile::tempdir().unwrap();
        std::fs::write(systemd.path().join(SYSTEMD_CREDENTIAL), [9; 32]).unwrap();
        let secrets = Secrets::load(dir.path(), Some(systemd.path()));
        let sealed = secrets.seal(Uuid::nil(), Purpose::DataKeys, SECRET).unwrap();
        assert!(!dir.path().join("secret.key").exists());
        std::fs::write(systemd.path().join(SYSTEMD_CREDENTIAL), [9; 31]).unwrap();
        let short = Secrets::load(dir.path(), Some(systemd.path()));
        let error = short.open(Uuid::nil(), Purpose::DataKeys, &sealed).unwrap_err().to_string();
        assert!(error.contains("exactly 32 bytes"), "{error}");
    }

    #[test]
    fn stored_layout_is_stable() {
        // Sealed once with the key 0x07 repeated, by the layout in the module's head.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret.key");
        std::fs::write(&path, [7; 32]).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let golden = include_bytes!("../tests/golden/sealed-secret-v1.bin");
        let secrets = Secrets::load(dir.path(), None);
        assert_eq!(
            secrets.open(Uuid::from_u128(1), Purpose::StoreSecret, golden).unwrap().as_slice(),
            SECRET
        );
    }
}
