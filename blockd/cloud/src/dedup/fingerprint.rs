//! Fingerprints: keyed hashes of blocks.

use crate::{CloudError, Repository, cipher::Cipher, error::random, keys::derived_bytes};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex};
use parking_lot::Mutex;
use std::{io, path::Path};

/// Length of the random part of the key, in bytes.
const LOCAL_LEN: usize = 32;

/// Key of the fingerprints of a host in a repository.
///
/// It is derived from the repository's data key and random bytes of the data directory. Neither the bucket
/// nor, with a passphrase, the directory alone permits a test for content.
pub struct FingerprintKey {
    cipher: Cipher,
    /// Identifies the key in files.
    check: [u8; 16],
}

impl std::fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FingerprintKey").finish_non_exhaustive()
    }
}

/// Fingerprint of a block: the tag of AES-256-GCM-SIV with the block as associated data. The hash in it is
/// universal, so that the creator of two blocks, who does not have the key, cannot make theirs equal: the
/// probability is below 2^-119.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fingerprint(pub u128);

impl Fingerprint {
    /// Returns the part that indexes use.
    pub fn prefix(self) -> u64 {
        self.0 as u64
    }
}

/// Block with its fingerprint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub block: BlockIndex,
    pub fingerprint: Fingerprint,
}

impl FingerprintKey {
    /// Derives the key of a repository from 32 bytes that are random and the same for all its files.
    #[must_use]
    pub fn derive(repo: &Repository, local: &[u8; LOCAL_LEN]) -> Self {
        let key = repo.key();
        let secret = derived_bytes(key, local, &[b"blockd fingerprint v1", key.key_id().as_bytes()]);
        let cipher = Cipher::with_key(&secret);
        let check = cipher.seal([0; 12], b"key", &mut []).unwrap_or_default();
        Self { cipher, check }
    }

    /// Derives the key from the random bytes of a file, which is created if it is missing or has another
    /// length.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(repo: &Repository, path: &Path) -> Result<Self, CloudError> {
        // Two first backups must not make two keys.
        static OPENING: Mutex<()> = Mutex::new(());
        let _opening = OPENING.lock();
        let failed = |what| move |source| CloudError::Journal { path: path.to_owned(), what, source };
        match std::fs::read(path) {
            Ok(bytes) => {
                if let Ok(local) = <[u8; LOCAL_LEN]>::try_from(&bytes[..]) {
                    return Ok(Self::derive(repo, &local));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("read")(source)),
        }
        let local = random()?;
        write_private(path, &local).map_err(failed("creation"))?;
        Ok(Self::derive(repo, &local))
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        Self { cipher: Cipher::with_key(&[7; 32]), check: [8; 16] }
    }

    pub(crate) fn check(&self) -> [u8; 16] {
        self.check
    }

    /// Returns the fingerprint of a block; `None` for one word repeated, such as zeroes: these blocks need
    /// no space in a frame, and would match everywhere.
    pub(crate) fn of(&self, content: &[u8]) -> Option<Fingerprint> {
        debug_assert_eq!(content.len() as u64, BLOCK_SIZE_BYTES);
        if content[8..] == content[..content.len() - 8] {
            return None;
        }
        let mut nonce = [0; 12];
        nonce[0] = 1;
        Some(Fingerprint(u128::from_le_bytes(self.cipher.seal(nonce, content, &mut [])?)))
    }
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let temporary = path.with_extension("new");
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OpenOptions;
    use blockd_testkit::store::MemoryStore;
    use std::sync::{Arc, Barrier};

    #[tokio::test]
    async fn first_backups_share_one_key() {
        let (store, dir) = (Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap());
        let repo = Repository::open(store, None, &OpenOptions::default()).await.unwrap();
        for round in 0..32 {
            let (path, start) = (dir.path().join(format!("key-{round}")), Barrier::new(4));
            let open = || {
                start.wait();
                FingerprintKey::open(&repo, &path).unwrap().check()
            };
            let checks = std::thread::scope(|scope| {
                let opening: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
                opening.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
            });
            let kept = FingerprintKey::open(&repo, &path).unwrap().check();
            assert_eq!(checks, [kept; 4]);
        }
    }
}
