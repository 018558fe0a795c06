//! Sealing: stored data is encrypted and authenticated, or at least checksummed, together with its location.
//!
//! Each delta has a key of its own, derived from the data key and a random salt, so that nonces need to be
//! unique only within a delta and encode the location of the sealed item. An item that was moved, or taken
//! from another delta or another version of this one, does not open.

use crate::{
    FORMAT_VERSION,
    cipher::{Cipher, Domain, TAG_LEN_BYTES, nonce},
    keys::DataKey,
    names::DeltaId,
};

/// Length of the associated data before the domain, which identifies the owner of an item.
const PLACE_LEN_BYTES: usize = 83;
const AAD_LEN_BYTES: usize = PLACE_LEN_BYTES + 20;
/// Version, mode, key, cluster, volume, snapshot, salt.
const _: () = assert!(PLACE_LEN_BYTES == 2 + 1 + 16 + 16 + 8 + 8 + 32);

/// Sealer of the items of one delta.
pub(crate) struct Sealer {
    cipher: Cipher,
    place: [u8; PLACE_LEN_BYTES],
}

impl Sealer {
    /// Creates the sealer of a delta from its data key and salt.
    pub fn new(key: &DataKey, delta: &DeltaId, salt: &[u8; 32]) -> Self {
        let volume = delta.volume.as_u64().to_le_bytes();
        let snapshot = delta.snapshot.as_u64().to_le_bytes();
        let info: [&[u8]; 4] = [b"blockd delta v1", delta.cluster.as_bytes(), &volume, &snapshot];
        let mut place = [0; PLACE_LEN_BYTES];
        place[..2].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        place[2] = key.mode().byte();
        place[3..19].copy_from_slice(key.key_id().as_bytes());
        place[19..35].copy_from_slice(delta.cluster.as_bytes());
        place[35..43].copy_from_slice(&volume);
        place[43..51].copy_from_slice(&snapshot);
        // For checksums, which have no key, to distinguish two attempts of a backup.
        place[51..].copy_from_slice(salt);
        Self { cipher: Cipher::derived(key, salt, &info), place }
    }

    fn aad(&self, domain: Domain, ordinal: u64, plain_len_bytes: u64) -> [u8; AAD_LEN_BYTES] {
        let mut aad = [0; AAD_LEN_BYTES];
        let (place, rest) = aad.split_at_mut(PLACE_LEN_BYTES);
        place.copy_from_slice(&self.place);
        rest[..4].copy_from_slice(&(domain as u32).to_le_bytes());
        rest[4..12].copy_from_slice(&ordinal.to_le_bytes());
        rest[12..].copy_from_slice(&plain_len_bytes.to_le_bytes());
        aad
    }

    /// Seals `out[from..]` in place and appends the tag.
    pub fn seal(&self, domain: Domain, ordinal: u64, plain_len_bytes: u64, out: &mut Vec<u8>, from: usize) {
        let aad = self.aad(domain, ordinal, plain_len_bytes);
        #[allow(clippy::expect_used, reason = "only more than 64 GiB cannot be sealed")]
        let tag = self.cipher.seal(nonce(domain, ordinal), &aad, &mut out[from..]).expect("less than 64 GiB");
        out.extend_from_slice(&tag);
    }

    /// Opens an item in place; returns the plain bytes without the tag.
    pub fn open<'a>(
        &self,
        domain: Domain,
        ordinal: u64,
        plain_len_bytes: u64,
        sealed: &'a mut [u8],
    ) -> Option<&'a mut [u8]> {
        let aad = self.aad(domain, ordinal, plain_len_bytes);
        let (bytes, tag) = sealed.split_last_chunk_mut::<TAG_LEN_BYTES>()?;
        self.cipher.open(nonce(domain, ordinal), &aad, bytes, tag).then_some(bytes)
    }

    /// Opens an item into `out`, whose memory is reused; returns the plain bytes.
    pub fn open_to<'a>(
        &self,
        domain: Domain,
        ordinal: u64,
        plain_len_bytes: u64,
        sealed: &[u8],
        out: &'a mut Vec<u8>,
    ) -> Option<&'a [u8]> {
        let aad = self.aad(domain, ordinal, plain_len_bytes);
        let (bytes, tag) = sealed.split_last_chunk::<TAG_LEN_BYTES>()?;
        out.resize(bytes.len(), 0);
        self.cipher.open_to(nonce(domain, ordinal), &aad, bytes, out, tag).then_some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EncryptionMode;
    use blockd_extent::{SnapshotId, VolumeId};
    use uuid::Uuid;

    fn delta(snapshot: u64) -> DeltaId {
        DeltaId {
            cluster: Uuid::from_u128(1),
            volume: VolumeId::from_u64(2),
            snapshot: SnapshotId::from_u64(snapshot),
        }
    }

    #[test]
    fn sealed_frame_opens_at_its_position_only() {
        for mode in [EncryptionMode::Checksummed, EncryptionMode::Aes256GcmSiv] {
            let key = DataKey::fixed(Uuid::from_u128(9), mode, [7; 32]);
            let sealer = Sealer::new(&key, &delta(3), &[1; 32]);
            let mut sealed = b"prefixcontent".to_vec();
            sealer.seal(Domain::Frame, 5, 100, &mut sealed, 6);
            let piece = sealed[6..].to_vec();
            assert_eq!(piece.len(), 7 + TAG_LEN_BYTES);
            assert_eq!(&sealed[..6], b"prefix");
            assert_eq!(piece[..7] == *b"content", mode == EncryptionMode::Checksummed);
            let opens = |sealer: &Sealer, domain, ordinal, len| {
                let (mut bytes, mut out) = (piece.clone(), vec![9; 50]);
                let opened = sealer.open(domain, ordinal, len, &mut bytes).map(|plain| plain.to_vec());
                assert_eq!(sealer.open_to(domain, ordinal, len, &piece, &mut out), opened.as_deref());
                opened
            };
            assert_eq!(opens(&sealer, Domain::Frame, 5, 100).as_deref(), Some(&b"content"[..]));
            assert_eq!(opens(&sealer, Domain::IndexPage, 5, 100), None);
            assert_eq!(opens(&sealer, Domain::Frame, 6, 100), None);
            assert_eq!(opens(&sealer, Domain::Frame, 5, 101), None);
            assert_eq!(opens(&Sealer::new(&key, &delta(4), &[1; 32]), Domain::Frame, 5, 100), None);
            let other = DataKey::fixed(Uuid::from_u128(8), mode, [7; 32]);
            assert_eq!(opens(&Sealer::new(&other, &delta(3), &[1; 32]), Domain::Frame, 5, 100), None);
            assert_eq!(opens(&Sealer::new(&key, &delta(3), &[2; 32]), Domain::Frame, 5, 100), None);
            if mode == EncryptionMode::Aes256GcmSiv {
                let other = DataKey::fixed(Uuid::from_u128(9), mode, [6; 32]);
                assert_eq!(opens(&Sealer::new(&other, &delta(3), &[1; 32]), Domain::Frame, 5, 100), None);
            }
            for at in 0..piece.len() * 8 {
                let mut flipped = piece.clone();
                flipped[at / 8] ^= 1 << (at % 8);
                assert!(sealer.open(Domain::Frame, 5, 100, &mut flipped).is_none(), "bit {at}");
            }
            assert!(sealer.open(Domain::Frame, 5, 100, &mut [0; 15]).is_none());
        }
    }
}
