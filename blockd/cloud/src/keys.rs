//! Data keys, and the key slots that store them in a repository.
//!
//! A slot holds one random data key, wrapped by a key that Argon2id derives from the passphrase. Each creator
//! of a repository writes its own slot under a random name, so that concurrent creators do not conflict.

use crate::{
    CloudError, FORMAT_VERSION,
    cipher::{Cipher, Domain, EncryptionMode, TAG_LEN_BYTES, nonce},
    error::random,
};
use argon2::{Algorithm, Argon2, Params, Version};
use hkdf::Hkdf;
use sha2::Sha256;
use std::fmt;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"BLKDKEYS";
/// Length of a key slot, in bytes.
pub(crate) const SLOT_LEN_BYTES: usize = 144;
const HEADER_LEN_BYTES: usize = 72;
const WRAPPED_END: usize = HEADER_LEN_BYTES + 32;
/// Offset of the proof that a holder of the data key wrote the slot.
const PROOF_AT: usize = WRAPPED_END + TAG_LEN_BYTES;
const CHECKSUM_AT: usize = PROOF_AT + TAG_LEN_BYTES;
const _: () = assert!(CHECKSUM_AT + 8 == SLOT_LEN_BYTES, "a slot ends with its checksum");

const KDF_NONE: u8 = 0;
const KDF_ARGON2ID: u8 = 1;
/// Maximum cost of opening a slot: 1 GiB, 16 passes, 16 lanes.
const MAX_KDF: KdfParams = KdfParams { m_kib: 1 << 20, t: 16, p: 16 };

/// Data key: all keys of deltas and manifests are derived from it.
#[derive(Clone)]
pub struct DataKey {
    key_id: Uuid,
    mode: EncryptionMode,
    secret: Zeroizing<[u8; 32]>,
}

impl DataKey {
    fn new(mode: EncryptionMode) -> Result<Self, CloudError> {
        let secret = match mode {
            EncryptionMode::Checksummed => Zeroizing::new([0; 32]),
            EncryptionMode::Aes256GcmSiv => Zeroizing::new(random()?),
        };
        let key_id = uuid::Builder::from_random_bytes(random()?).into_uuid();
        Ok(Self { key_id, mode, secret })
    }

    /// Creates a key with given bytes, for tests.
    #[cfg(test)]
    pub fn fixed(key_id: Uuid, mode: EncryptionMode, secret: [u8; 32]) -> Self {
        Self { key_id, mode, secret: Zeroizing::new(secret) }
    }

    /// Returns the id of the key, which its slot and all objects sealed with it contain.
    pub fn key_id(&self) -> Uuid {
        self.key_id
    }

    /// Returns the encryption mode.
    pub fn mode(&self) -> EncryptionMode {
        self.mode
    }

    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Returns the key as bytes, **in clear**: callers must encrypt them before they store them.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(50));
        bytes.extend_from_slice(&[1, self.mode.byte()]);
        bytes.extend_from_slice(self.key_id.as_bytes());
        bytes.extend_from_slice(&*self.secret);
        debug_assert!(Self::from_bytes(&bytes).is_ok_and(|key| *key.secret == *self.secret));
        bytes
    }

    /// Decodes the result of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    /// [`CloudError::InvalidRequest`] if the bytes are invalid.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CloudError> {
        let parse = || {
            let (head, rest) = bytes.split_first_chunk::<2>()?;
            let (key_id, rest) = rest.split_first_chunk::<16>()?;
            let secret: [u8; 32] = rest.try_into().ok()?;
            let mode = EncryptionMode::from_byte(head[1]).filter(|_| head[0] == 1)?;
            Some(Self { key_id: Uuid::from_bytes(*key_id), mode, secret: Zeroizing::new(secret) })
        };
        parse().ok_or_else(|| CloudError::InvalidRequest {
            what: "the saved data key is damaged: open the repository again with its passphrase".into(),
        })
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKey")
            .field("key_id", &self.key_id)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Cipher {
    /// Creates the cipher of a key derived from the data key, a salt and its purpose.
    pub fn derived(key: &DataKey, salt: &[u8; 32], info: &[&[u8]]) -> Self {
        match key.mode() {
            EncryptionMode::Checksummed => Self::Checksum,
            EncryptionMode::Aes256GcmSiv => Self::with_key(&derived_bytes(key, salt, info)),
        }
    }
}

/// Derives 32 bytes from the data key, a salt and their purpose. Without a passphrase the data key is known:
/// the result is then as secret as the salt.
pub(crate) fn derived_bytes(key: &DataKey, salt: &[u8; 32], info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut derived = Zeroizing::new([0; 32]);
    let hkdf = Hkdf::<Sha256>::new(Some(salt), key.secret());
    #[allow(clippy::expect_used, reason = "HKDF gives up to 255 * 32 bytes, this is 32")]
    hkdf.expand_multi_info(info, &mut *derived).expect("32 bytes are never too many");
    derived
}

/// Cost parameters of Argon2id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KdfParams {
    /// Memory, in KiB.
    pub m_kib: u32,
    /// Passes over it.
    pub t: u32,
    /// Lanes.
    pub p: u32,
}

impl Default for KdfParams {
    fn default() -> Self {
        Self { m_kib: 64 << 10, t: 3, p: 1 }
    }
}

impl KdfParams {
    /// Minimum cost, without any protection: for tests only.
    #[cfg(test)]
    pub const fn fast_for_tests() -> Self {
        Self { m_kib: 8, t: 1, p: 1 }
    }

    fn within_bounds(self) -> bool {
        let Self { m_kib, t, p } = self;
        let least = p.checked_mul(8).is_some_and(|least| m_kib >= least);
        least && m_kib <= MAX_KDF.m_kib && (1..=MAX_KDF.t).contains(&t) && (1..=MAX_KDF.p).contains(&p)
    }

    /// Derives the key that wraps the data key.
    fn derive(self, passphrase: &str, salt: &[u8; 16]) -> Result<Zeroizing<[u8; 32]>, CloudError> {
        let failed = |e: argon2::Error| CloudError::Internal { what: "Argon2id", detail: e.to_string() };
        if !self.within_bounds() {
            return Err(CloudError::InvalidRequest {
                what: "the Argon2id parameters are out of bounds: at most 1 GiB, 16 passes, 16 lanes".into(),
            });
        }
        let params = Params::new(self.m_kib, self.t, self.p, Some(32)).map_err(failed)?;
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), salt, &mut *key)
            .map_err(failed)?;
        Ok(key)
    }
}

/// Key slot with a valid checksum. Holders of the data key detect a forged one with `is_of`.
#[derive(Clone)]
pub struct KeySlot {
    pub(crate) key_id: Uuid,
    pub(crate) mode: EncryptionMode,
    pub(crate) created_unix_s: u64,
    /// Number of passphrase changes since the key was created.
    pub(crate) generation: u64,
    pub(crate) kdf: KdfParams,
    salt: [u8; 16],
    bytes: [u8; SLOT_LEN_BYTES],
}

impl PartialEq for KeySlot {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for KeySlot {}

impl fmt::Debug for KeySlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySlot")
            .field("key_id", &self.key_id)
            .field("created_unix_s", &self.created_unix_s)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl KeySlot {
    /// Decodes a slot that a host remembers.
    ///
    /// # Errors
    /// [`CloudError::Damaged`], [`CloudError::UnsupportedVersion`].
    pub(crate) fn from_saved(bytes: &[u8]) -> Result<Self, CloudError> {
        let key_id = bytes.get(12..28).and_then(|id| Uuid::from_slice(id).ok()).unwrap_or_default();
        Self::parse(&format!("saved key slot {key_id}"), bytes)
    }

    /// Returns the stored form of the slot.
    pub(crate) fn bytes(&self) -> &[u8; SLOT_LEN_BYTES] {
        &self.bytes
    }

    /// Returns true if a holder of the data key wrote the slot. Needs no passphrase. In mode 0 it proves no
    /// more than the checksum.
    pub(crate) fn is_of(&self, key: &DataKey) -> bool {
        let proof = proof(key, &self.salt, &self.bytes[..PROOF_AT]);
        key.key_id == self.key_id
            && key.mode == self.mode
            && proof.is_some_and(|proof| proof == self.bytes[PROOF_AT..CHECKSUM_AT])
    }

    /// Decodes a slot.
    ///
    /// # Errors
    /// [`CloudError::Damaged`], [`CloudError::UnsupportedVersion`].
    pub(crate) fn parse(object: &str, bytes: &[u8]) -> Result<Self, CloudError> {
        let damaged = |at: usize, what: &str| CloudError::damaged(object, at as u64, what);
        let whole: &[u8; SLOT_LEN_BYTES] = bytes.try_into().map_err(|_| {
            damaged(0, &format!("a key slot has {SLOT_LEN_BYTES} bytes, this has {}", bytes.len()))
        })?;
        if &whole[..8] != MAGIC {
            return Err(damaged(0, "it does not begin as a key slot does"));
        }
        if whole[CHECKSUM_AT..] != xxh3_64(&whole[..CHECKSUM_AT]).to_le_bytes() {
            return Err(damaged(CHECKSUM_AT, "the checksum of the key slot does not match"));
        }
        let u32_at = |at: usize| u32::from_le_bytes([whole[at], whole[at + 1], whole[at + 2], whole[at + 3]]);
        let version = u16::from_le_bytes([whole[8], whole[9]]);
        if version != FORMAT_VERSION {
            return Err(CloudError::UnsupportedVersion {
                object: object.to_owned(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        let mode = EncryptionMode::from_byte(whole[10]).ok_or_else(|| damaged(10, "unknown mode"))?;
        let kdf = KdfParams { m_kib: u32_at(28), t: u32_at(32), p: u32_at(36) };
        match (mode, whole[11]) {
            (EncryptionMode::Checksummed, KDF_NONE) => {}
            (EncryptionMode::Aes256GcmSiv, KDF_ARGON2ID) if kdf.within_bounds() => {}
            (EncryptionMode::Aes256GcmSiv, KDF_ARGON2ID) => {
                return Err(damaged(28, "the Argon2id parameters are out of bounds"));
            }
            _ => return Err(damaged(11, "unknown key derivation")),
        }
        let array16 = |at: usize| {
            let mut out = [0; 16];
            out.copy_from_slice(&whole[at..at + 16]);
            out
        };
        let u64_at = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&whole[at..at + 8]);
            u64::from_le_bytes(number)
        };
        let key_id = Uuid::from_bytes(array16(12));
        if !object.ends_with(&key_id.to_string()) {
            return Err(damaged(12, "the key slot has another key id than its name"));
        }
        Ok(Self {
            key_id,
            mode,
            created_unix_s: u64_at(56),
            generation: u64_at(64),
            kdf,
            salt: array16(40),
            bytes: *whole,
        })
    }

    /// Returns the data key, or `None` if the passphrase is wrong. Runs Argon2id, so it takes long.
    pub(crate) fn open(&self, passphrase: &str) -> Result<Option<DataKey>, CloudError> {
        let kek = self.kdf.derive(passphrase, &self.salt)?;
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(&self.bytes[HEADER_LEN_BYTES..WRAPPED_END]);
        let mut tag = [0; TAG_LEN_BYTES];
        tag.copy_from_slice(&self.bytes[WRAPPED_END..PROOF_AT]);
        let aad = &self.bytes[..HEADER_LEN_BYTES];
        let opened = Cipher::with_key(&kek).open(nonce(Domain::DataKey, 0), aad, &mut *secret, &tag);
        let key = DataKey { key_id: self.key_id, mode: self.mode, secret };
        Ok((opened && self.is_of(&key)).then_some(key))
    }

    /// Returns the data key of a slot without a passphrase.
    pub(crate) fn open_plain(&self) -> Option<DataKey> {
        let secret = Zeroizing::new([0; 32]);
        let key = DataKey { key_id: self.key_id, mode: self.mode, secret };
        (self.mode == EncryptionMode::Checksummed && self.is_of(&key)).then_some(key)
    }
}

/// Returns the tag over a slot, under a key derived from the data key and the salt of the slot.
fn proof(key: &DataKey, salt: &[u8; 16], covered: &[u8]) -> Option<[u8; TAG_LEN_BYTES]> {
    let mut long_salt = [0; 32];
    long_salt[..16].copy_from_slice(salt);
    let cipher = Cipher::derived(key, &long_salt, &[b"blockd key slot v1", key.key_id.as_bytes()]);
    cipher.seal(nonce(Domain::KeySlot, 0), covered, &mut [])
}

/// Creates a data key and its slot.
pub(crate) fn create_slot(
    passphrase: Option<&str>,
    kdf: KdfParams,
    created_unix_s: u64,
) -> Result<(DataKey, Vec<u8>), CloudError> {
    let mode = if passphrase.is_some() { EncryptionMode::Aes256GcmSiv } else { EncryptionMode::Checksummed };
    let key = DataKey::new(mode)?;
    let salt = random()?;
    let bytes = encode_slot(&key, passphrase, kdf, &salt, SlotTimes { created_unix_s, generation: 0 })?;
    Ok((key, bytes))
}

/// Creation time of a key and generation of its slot.
#[derive(Clone, Copy)]
pub(crate) struct SlotTimes {
    pub created_unix_s: u64,
    pub generation: u64,
}

pub(crate) fn encode_slot(
    key: &DataKey,
    passphrase: Option<&str>,
    kdf: KdfParams,
    salt: &[u8; 16],
    times: SlotTimes,
) -> Result<Vec<u8>, CloudError> {
    let salt = if passphrase.is_some() { salt } else { &[0; 16] };
    let mut out = Vec::with_capacity(SLOT_LEN_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.push(key.mode.byte());
    out.push(if passphrase.is_some() { KDF_ARGON2ID } else { KDF_NONE });
    out.extend_from_slice(key.key_id.as_bytes());
    match passphrase {
        None => out.resize(56, 0),
        Some(_) => {
            for number in [kdf.m_kib, kdf.t, kdf.p] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(salt);
        }
    }
    out.extend_from_slice(&times.created_unix_s.to_le_bytes());
    out.extend_from_slice(&times.generation.to_le_bytes());
    assert_eq!(out.len(), HEADER_LEN_BYTES);
    assert_eq!(passphrase.is_some(), key.mode == EncryptionMode::Aes256GcmSiv, "a slot of another mode");
    match passphrase {
        None => out.resize(PROOF_AT, 0),
        Some(passphrase) => {
            let kek = kdf.derive(passphrase, salt)?;
            let mut wrapped = Zeroizing::new(*key.secret);
            let tag = Cipher::with_key(&kek)
                .seal(nonce(Domain::DataKey, 0), &out, &mut *wrapped)
                .ok_or(CloudError::Internal { what: "wrapping the data key", detail: "too long".into() })?;
            out.extend_from_slice(&*wrapped);
            out.extend_from_slice(&tag);
        }
    }
    assert_eq!(out.len(), PROOF_AT);
    let proof = proof(key, salt, &out)
        .ok_or(CloudError::Internal { what: "sealing the key slot", detail: "too long".into() })?;
    out.extend_from_slice(&proof);
    let checksum = xxh3_64(&out).to_le_bytes();
    out.extend_from_slice(&checksum);
    assert!(
        KeySlot::from_saved(&out).is_ok_and(|slot| slot.is_of(key)),
        "the slot does not decode to itself"
    );
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(key: &DataKey) -> String {
        format!("blockd/keys/{}", key.key_id)
    }

    #[test]
    fn key_slot_opens_with_its_passphrase_only() {
        let (key, bytes) = create_slot(Some("correct horse"), KdfParams::fast_for_tests(), 42).unwrap();
        let slot = KeySlot::parse(&object(&key), &bytes).unwrap();
        assert_eq!(slot.created_unix_s, 42);
        let opened = slot.open("correct horse").unwrap().unwrap();
        assert_eq!(opened.secret(), key.secret());
        assert!(slot.open("wrong horse").unwrap().is_none());
        assert!(slot.open_plain().is_none());
        assert!(!bytes.windows(32).any(|window| window == key.secret()), "the key is stored in clear");
    }

    #[test]
    fn flipped_bit_in_a_key_slot_is_detected() {
        for passphrase in [Some("p"), None] {
            let (key, bytes) = create_slot(passphrase, KdfParams::fast_for_tests(), 1).unwrap();
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(KeySlot::parse(&object(&key), &flipped).is_err(), "bit {bit}");
                // An attacker can fix the checksum; then only the tag of the wrapped key detects the change.
                let end = bytes.len() - 8;
                if bit / 8 < end && passphrase.is_some() {
                    let checksum = xxh3_64(&flipped[..end]).to_le_bytes();
                    flipped[end..].copy_from_slice(&checksum);
                    if let Ok(slot) = KeySlot::parse(&object(&key), &flipped) {
                        // Costly parameters are bounded, but a test need not pay for them.
                        let cheap = slot.kdf.m_kib <= 1 << 10 && slot.kdf.t <= 4;
                        assert!(!cheap || slot.open("p").unwrap().is_none(), "bit {bit}");
                    }
                }
            }
            for len in 0..bytes.len() {
                assert!(KeySlot::parse(&object(&key), &bytes[..len]).is_err());
            }
        }
    }

    #[test]
    fn slot_altered_with_right_checksum_is_not_of_its_key() {
        let (key, bytes) = create_slot(Some("p"), KdfParams::fast_for_tests(), 1).unwrap();
        assert!(KeySlot::from_saved(&bytes).unwrap().is_of(&key));
        for bit in 0..CHECKSUM_AT * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let checksum = xxh3_64(&altered[..CHECKSUM_AT]).to_le_bytes();
            altered[CHECKSUM_AT..].copy_from_slice(&checksum);
            assert!(KeySlot::from_saved(&altered).map_or(true, |slot| !slot.is_of(&key)), "bit {bit}");
        }
        let other = DataKey { secret: Zeroizing::new([9; 32]), ..key };
        assert!(!KeySlot::from_saved(&bytes).unwrap().is_of(&other));
    }

    #[test]
    fn key_slot_under_another_name_is_refused() {
        let (_, bytes) = create_slot(None, KdfParams::default(), 1).unwrap();
        let error = KeySlot::parse(&format!("blockd/keys/{}", Uuid::from_u128(5)), &bytes).err().unwrap();
        assert!(error.to_string().contains("another key id than its name"), "{error}");
    }

    #[test]
    fn saved_keys_round_trip_and_hide_their_bytes() {
        let (key, _) = create_slot(Some("p"), KdfParams::fast_for_tests(), 1).unwrap();
        let back = DataKey::from_bytes(&key.to_bytes()).unwrap();
        assert_eq!((back.key_id, back.mode, back.secret()), (key.key_id, key.mode, key.secret()));
        assert!(DataKey::from_bytes(&key.to_bytes()[1..]).is_err());
        let shown = format!("{key:?}");
        assert!(!shown.contains("secret"), "{shown}");
    }
}
