//! Ciphers of both encryption modes, and the nonces of sealed items.

use aes_gcm_siv::{
    Aes256GcmSiv, KeyInit,
    aead::{AeadInOut, inout::InOutBuf},
};
use serde::{Deserialize, Serialize};
use std::fmt;
use xxhash_rust::xxh3::Xxh3;

/// Length of the tag in bytes.
pub(crate) const TAG_LEN_BYTES: usize = 16;

/// Encryption mode of a repository.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncryptionMode {
    /// No passphrase: detects damage and misplaced items, but not manipulation.
    Checksummed,
    /// AES-256-GCM-SIV under a key that the passphrase protects.
    #[serde(rename = "aes-256-gcm-siv")]
    Aes256GcmSiv,
}

impl EncryptionMode {
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Checksummed => 0,
            Self::Aes256GcmSiv => 1,
        }
    }

    pub(crate) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Checksummed),
            1 => Some(Self::Aes256GcmSiv),
            _ => None,
        }
    }

    /// Returns the name in manifests: `none` or `aes-256-gcm-siv`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Checksummed => "none",
            Self::Aes256GcmSiv => "aes-256-gcm-siv",
        }
    }
}

impl fmt::Display for EncryptionMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Kind of a sealed item, which is part of its nonce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Domain {
    Frame = 1,
    IndexPage = 2,
    IndexRoot = 3,
    Manifest = 4,
    DataKey = 5,
    KeySlot = 6,
    Proof = 7,
    Lease = 8,
}

/// Returns the nonce of the `ordinal`-th item of its kind.
pub(crate) fn nonce(domain: Domain, ordinal: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&(domain as u32).to_le_bytes());
    nonce[4..].copy_from_slice(&ordinal.to_le_bytes());
    nonce
}

/// Cipher of either mode that seals bytes in place.
pub(crate) enum Cipher {
    Checksum,
    GcmSiv(Box<Aes256GcmSiv>),
}

impl Cipher {
    pub fn with_key(key: &[u8; 32]) -> Self {
        Self::GcmSiv(Box::new(Aes256GcmSiv::new(key.into())))
    }

    /// Seals `bytes` in place; returns the tag. `None` only above 64 GiB, far above any item.
    pub fn seal(&self, nonce: [u8; 12], aad: &[u8], bytes: &mut [u8]) -> Option<[u8; TAG_LEN_BYTES]> {
        match self {
            Self::Checksum => Some(checksum(aad, bytes)),
            Self::GcmSiv(cipher) => {
                cipher.encrypt_inout_detached(&nonce.into(), aad, bytes.into()).ok().map(Into::into)
            }
        }
    }

    /// Opens `bytes` in place; returns false if they, their location or the key differ from those of the
    /// seal.
    #[must_use]
    pub fn open(&self, nonce: [u8; 12], aad: &[u8], bytes: &mut [u8], tag: &[u8; TAG_LEN_BYTES]) -> bool {
        match self {
            Self::Checksum => checksum(aad, bytes) == *tag,
            Self::GcmSiv(cipher) => {
                cipher.decrypt_inout_detached(&nonce.into(), aad, bytes.into(), &(*tag).into()).is_ok()
            }
        }
    }

    /// [Opens](Self::open) `bytes` into `out`, which has their length.
    #[must_use]
    pub fn open_to(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        bytes: &[u8],
        out: &mut [u8],
        tag: &[u8; TAG_LEN_BYTES],
    ) -> bool {
        match (self, InOutBuf::new(bytes, out)) {
            (Self::GcmSiv(cipher), Ok(both)) => {
                cipher.decrypt_inout_detached(&nonce.into(), aad, both, &(*tag).into()).is_ok()
            }
            (Self::Checksum, Ok(mut both)) => {
                both.get_out().copy_from_slice(bytes);
                checksum(aad, bytes) == *tag
            }
            (_, Err(_)) => false,
        }
    }
}

fn checksum(aad: &[u8], bytes: &[u8]) -> [u8; TAG_LEN_BYTES] {
    let mut hasher = Xxh3::new();
    hasher.update(aad);
    hasher.update(bytes);
    hasher.digest128().to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cipher_matches_the_vectors_of_rfc_8452() {
        // Appendix C.2, the first vector with a plaintext.
        let mut key = [0; 32];
        key[0] = 1;
        let mut nonce = [0; 12];
        nonce[0] = 3;
        let mut bytes = [1, 0, 0, 0, 0, 0, 0, 0];
        let tag = Cipher::with_key(&key).seal(nonce, &[], &mut bytes).unwrap();
        assert_eq!(bytes, [0xc2, 0xef, 0x32, 0x8e, 0x5c, 0x71, 0xc8, 0x3b]);
        assert_eq!(tag[..4], [0x84, 0x31, 0x22, 0x13]);
    }
}
