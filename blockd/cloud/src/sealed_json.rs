//! Sealed JSON objects, such as manifests. A header, a JSON body sealed for the object's key, and a tag.

use crate::{
    CloudError, FORMAT_VERSION,
    cipher::{Cipher, Domain, EncryptionMode, TAG_LEN_BYTES, nonce},
    keys::DataKey,
};
use blockd_store::{BlobStore, StoreErrorKind};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

/// Length of the header, in bytes.
const HEADER_LEN_BYTES: usize = 64;

/// Kind of sealed JSON objects.
pub(crate) struct SealedJson {
    /// Name in messages.
    pub noun: &'static str,
    /// First bytes of the object.
    pub magic: &'static [u8; 8],
    /// Domain of the nonce.
    pub domain: Domain,
    /// Purpose of the derived key.
    pub info: &'static [u8],
    /// Maximum length of an object in bytes.
    pub max_len_bytes: u64,
    /// Remedy for a body that is too long.
    pub too_long_hint: &'static str,
}

impl SealedJson {
    /// Encodes an object, sealed for its path with a fresh salt.
    pub fn encode(
        &self,
        body: &impl Serialize,
        path: &str,
        key: &DataKey,
        salt: &[u8; 32],
    ) -> Result<Vec<u8>, CloudError> {
        let failed = |detail: String| CloudError::Internal { what: "encoding a JSON object", detail };
        let body = serde_json::to_vec(body).map_err(|error| failed(format!("{path}: {error}")))?;
        let len = (HEADER_LEN_BYTES + body.len() + TAG_LEN_BYTES) as u64;
        if len > self.max_len_bytes {
            let Self { noun, max_len_bytes, too_long_hint, .. } = self;
            let what =
                format!("the {noun} has {len} bytes, at most {max_len_bytes} are read: {too_long_hint}");
            return Err(CloudError::InvalidRequest { what });
        }
        let mut out = Vec::with_capacity(len as usize);
        out.extend_from_slice(self.magic);
        out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        out.extend_from_slice(&[key.mode().byte(), 0]);
        out.extend_from_slice(&(body.len() as u32).to_le_bytes());
        out.extend_from_slice(key.key_id().as_bytes());
        out.extend_from_slice(salt);
        debug_assert_eq!(out.len(), HEADER_LEN_BYTES);
        out.extend_from_slice(&body);
        let aad = aad(&out[..HEADER_LEN_BYTES], path);
        let tag = Cipher::derived(key, salt, &[self.info])
            .seal(nonce(self.domain, 0), &aad, &mut out[HEADER_LEN_BYTES..])
            .ok_or_else(|| failed(format!("{path} is too long")))?;
        out.extend_from_slice(&tag);
        assert_eq!(out.len() as u64, len, "the length in the header is that of the object");
        Ok(out)
    }

    /// Decodes the object at a path.
    ///
    /// # Errors
    /// [`CloudError::Damaged`], [`CloudError::UnsupportedVersion`], [`CloudError::UnknownKey`].
    pub fn decode<T: DeserializeOwned>(
        &self,
        object: &[u8],
        path: &str,
        find_key: impl Fn(Uuid) -> Option<DataKey>,
    ) -> Result<T, CloudError> {
        let damaged = |at: usize, what: &str| CloudError::damaged(path, at as u64, what);
        let (header, sealed) = object
            .split_first_chunk::<HEADER_LEN_BYTES>()
            .ok_or_else(|| damaged(0, &format!("it is shorter than the header of a {}", self.noun)))?;
        if &header[..8] != self.magic {
            return Err(damaged(0, &format!("it does not begin as a {} does", self.noun)));
        }
        let version = u16::from_le_bytes([header[8], header[9]]);
        if version != FORMAT_VERSION {
            return Err(CloudError::UnsupportedVersion {
                object: path.to_owned(),
                found: version,
                supported: FORMAT_VERSION,
            });
        }
        let mode =
            EncryptionMode::from_byte(header[10]).ok_or_else(|| damaged(10, "unknown encryption mode"))?;
        if header[11] != 0 {
            return Err(damaged(11, "a reserved byte is not zero"));
        }
        let body_len = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
        let mut key_id = [0; 16];
        key_id.copy_from_slice(&header[16..32]);
        let mut salt = [0; 32];
        salt.copy_from_slice(&header[32..]);
        let key_id = Uuid::from_bytes(key_id);
        let key =
            find_key(key_id).ok_or_else(|| CloudError::UnknownKey { object: path.to_owned(), key_id })?;
        if key.mode() != mode {
            return Err(damaged(10, "its encryption mode is not that of its key"));
        }
        if sealed.len().checked_sub(TAG_LEN_BYTES) != Some(body_len) {
            return Err(damaged(12, "its length differs from its header (truncated or extended)"));
        }
        let mut sealed = sealed.to_vec();
        let (body, tag) = sealed
            .split_last_chunk_mut::<TAG_LEN_BYTES>()
            .ok_or_else(|| damaged(HEADER_LEN_BYTES, "it has no tag"))?;
        let cipher = Cipher::derived(&key, &salt, &[self.info]);
        if !cipher.open(nonce(self.domain, 0), &aad(header, path), body, tag) {
            return Err(damaged(
                HEADER_LEN_BYTES,
                "it does not open: it was altered, moved, or sealed with another key",
            ));
        }
        serde_json::from_slice(body).map_err(|error| {
            damaged(HEADER_LEN_BYTES, &format!("its body is invalid for this version: {error}"))
        })
    }

    /// Returns the error of an authentic body that violates the format.
    pub fn invalid(path: &str, what: &str) -> CloudError {
        CloudError::damaged(path, HEADER_LEN_BYTES as u64, what)
    }

    /// Reads the object at a path; `None` if there is none.
    ///
    /// # Errors
    /// [`CloudError::Damaged`] if it is too long; errors of the store.
    pub async fn get(&self, store: &dyn BlobStore, path: &str) -> Result<Option<Bytes>, CloudError> {
        match store.get(path, self.max_len_bytes).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind == StoreErrorKind::NotFound => Ok(None),
            Err(error) if error.kind == StoreErrorKind::TooLarge => {
                let Self { noun, max_len_bytes, .. } = self;
                let what = format!("it exceeds the maximum length of a {noun}, {max_len_bytes} bytes");
                Err(CloudError::damaged(path, 0, what))
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn aad(header: &[u8], path: &str) -> Vec<u8> {
    [header, path.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: SealedJson = SealedJson {
        noun: "sample",
        magic: b"BLKDTEST",
        domain: Domain::Proof,
        info: b"blockd sample v1",
        max_len_bytes: 1 << 10,
        too_long_hint: "shorten it",
    };

    #[test]
    fn object_opens_at_its_path_only() {
        for mode in [EncryptionMode::Checksummed, EncryptionMode::Aes256GcmSiv] {
            let key = DataKey::fixed(Uuid::from_u128(4), mode, [1; 32]);
            let object = KIND.encode(&7, "a/1", &key, &[2; 32]).unwrap();
            let read = |path: &str| KIND.decode::<u8>(&object, path, |_| Some(key.clone()));
            assert_eq!(read("a/1").unwrap(), 7);
            let error = read("a/2").unwrap_err();
            assert!(matches!(&error, CloudError::Damaged { key, .. } if key == "a/2"), "{error}");
        }
    }
}
