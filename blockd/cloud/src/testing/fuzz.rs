//! Fuzz entry points for the objects of a bucket.
//!
//! The first byte of an input selects the object, and whether it is sealed here: behind seals that do not
//! open, no parser would be reached. [`objects`] takes all kinds; [`manifests`], [`frame_tables`] and
//! [`key_slots`] take one each.

use crate::{
    CloudSnapshotId, EncryptionMode, FORMAT_VERSION, KdfParams, Manifest, ManifestKey,
    frame::{BLOCK, FRAME_BLOCKS, FrameReader, MAX_STORED_LEN},
    index::{Page, Root},
    keys::{DataKey, KeySlot},
    names::DeltaId,
    pack::OBJECT_HEADER_LEN,
    seal::{Cipher, Domain, Sealer, nonce},
};
use blockd_extent::{SnapshotId, VolumeId};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

const ID: CloudSnapshotId = CloudSnapshotId {
    cluster: Uuid::from_u128(1),
    volume: VolumeId::from_u64(2),
    snapshot: SnapshotId::from_u64(3),
    incremental: false,
};
/// Opening a key slot may take a gigabyte of memory; that of one that asks for more than this is not tried.
const CHEAP: KdfParams = KdfParams { m_kib: 64, t: 2, p: 2 };

fn key(mode: EncryptionMode) -> DataKey {
    DataKey::fixed(Uuid::from_u128(4), mode, [9; 32])
}

/// Reads `data` as one of the objects of a bucket.
///
/// # Panics
/// If something does not hold.
pub fn objects(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 8 {
        0 => manifest(rest, EncryptionMode::Checksummed),
        1 => manifest(&sealed_manifest(rest, EncryptionMode::Checksummed), EncryptionMode::Checksummed),
        2 => manifest(&sealed_manifest(rest, EncryptionMode::Aes256GcmSiv), EncryptionMode::Aes256GcmSiv),
        3 => index(rest),
        4 => frame(rest),
        5 => key_slot(rest),
        6 => key_slot(&[rest, &xxh3_64(rest).to_le_bytes()].concat()),
        _ => names(rest),
    }
}

/// Reads `data` as a manifest: as it is, or sealed here in either way.
///
/// # Panics
/// If something does not hold.
pub fn manifests(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 3 {
        0 => manifest(rest, EncryptionMode::Checksummed),
        1 => manifest(&sealed_manifest(rest, EncryptionMode::Checksummed), EncryptionMode::Checksummed),
        _ => manifest(&sealed_manifest(rest, EncryptionMode::Aes256GcmSiv), EncryptionMode::Aes256GcmSiv),
    }
}

/// Reads `data` as the root of an index and a page, the table of its frames.
///
/// # Panics
/// If something does not hold.
pub fn frame_tables(data: &[u8]) {
    index(data);
}

/// Reads `data` as a key slot: as it is, and with the checksum that it should have.
///
/// # Panics
/// If something does not hold.
pub fn key_slots(data: &[u8]) {
    key_slot(data);
    key_slot(&[data, &xxh3_64(data).to_le_bytes()].concat());
}

/// The object of a manifest with this body.
fn sealed_manifest(body: &[u8], mode: EncryptionMode) -> Vec<u8> {
    let (key, salt) = (key(mode), [6; 32]);
    let mut object = b"BLKDMNFT".to_vec();
    object.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    object.extend_from_slice(&[mode.byte(), 0]);
    object.extend_from_slice(&(body.len() as u32).to_le_bytes());
    object.extend_from_slice(key.key_id().as_bytes());
    object.extend_from_slice(&salt);
    let aad = [&object, ID.manifest_key().as_bytes()].concat();
    let mut sealed = body.to_vec();
    let cipher = Cipher::derived(&key, &salt, &[b"blockd manifest v1"]);
    let tag = cipher.seal(nonce(Domain::Manifest, 0), &aad, &mut sealed).expect("less than 64 GiB");
    [&object[..], &sealed, &tag].concat()
}

fn manifest(object: &[u8], mode: EncryptionMode) {
    let key = key(mode);
    let find = |id| (id == key.key_id()).then(|| key.clone());
    let Ok(manifest) = Manifest::decode(object, &ID, find) else {
        return;
    };
    assert_eq!(manifest.id(), ID);
    let again = manifest.encode(&key, &[8; 32]).expect("it was not too long");
    assert_eq!(Manifest::decode(&again, &ID, find).expect("it was just written"), manifest);
}

/// A length of two bytes, a root so long, and the bytes of a page.
fn index(data: &[u8]) {
    let [low, high, rest @ ..] = data else {
        return;
    };
    let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let (root_bytes, page_bytes) = rest.split_at(len);
    let Ok(root) = Root::parse(root_bytes) else {
        return;
    };
    assert_eq!(root.encode(), root_bytes, "there is one way to write a root");
    for place in &root.pages {
        let Ok(page) = Page::parse(page_bytes, place) else {
            continue;
        };
        assert_eq!(page.frames.len() as u64, place.frames());
        assert_eq!(page.data.len_blocks(), u64::from(place.data_blocks));
        let mut both = page.data.clone();
        both.intersect_with(&page.zero);
        assert!(both.is_empty());
        for frame in &page.frames {
            assert!(frame.offset_bytes as usize >= OBJECT_HEADER_LEN);
            assert!(frame.len_bytes as usize <= MAX_STORED_LEN);
        }
    }
}

/// A number of blocks and a frame's content, which is sealed here.
fn frame(data: &[u8]) {
    let Some((blocks, content)) = data.split_first() else {
        return;
    };
    let blocks = usize::from(*blocks) % FRAME_BLOCKS + 1;
    let delta = DeltaId { cluster: ID.cluster, volume: ID.volume, snapshot: ID.snapshot };
    let sealer = Sealer::new(&key(EncryptionMode::Checksummed), &delta, &[5; 32]);
    let mut stored = content.to_vec();
    sealer.seal(Domain::Frame, 7, (blocks * BLOCK) as u64, &mut stored, 0);
    // What an earlier frame left in the buffers must not show.
    let mut reader = FrameReader::default();
    let Ok(frame) = reader.open(&sealer, 7, blocks, &stored) else {
        return;
    };
    for i in 0..blocks {
        let is_zero = frame.zero_mask & (1 << i) != 0;
        assert_eq!(frame.block(i).map(<[u8]>::len), (!is_zero).then_some(BLOCK), "block {i}");
    }
}

fn key_slot(bytes: &[u8]) {
    let mut id = [0; 16];
    if let Some(raw) = bytes.get(12..28) {
        id.copy_from_slice(raw);
    }
    let object = format!("blockd/keys/{}", Uuid::from_bytes(id));
    let Ok(slot) = KeySlot::parse(&object, bytes) else {
        return;
    };
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (m_kib, t, p) = (number(28), number(32), number(36));
    if slot.mode == EncryptionMode::Checksummed {
        let key = slot.open_plain().expect("it needs no passphrase");
        assert_eq!(DataKey::from_bytes(&key.to_bytes()).expect("it was just written").key_id(), slot.key_id);
    } else {
        assert!(slot.open_plain().is_none());
        if m_kib <= CHEAP.m_kib && t <= CHEAP.t && p <= CHEAP.p {
            let _ = slot.open("passphrase").expect("within the bounds");
        }
    }
}

/// A saved data key, and the text of an id.
fn names(bytes: &[u8]) {
    if let Ok(key) = DataKey::from_bytes(bytes) {
        assert_eq!(key.to_bytes()[..], *bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(id) = text.parse::<CloudSnapshotId>() {
        assert_eq!(id.to_string(), text, "an id has one text");
        assert_eq!(CloudSnapshotId::from_manifest_key(&id.manifest_key()), Some(id));
    }
    // Garbage is recognized by its name.
    if let Some(delta) = DeltaId::of_object(text) {
        assert!(text.starts_with(&delta.prefix()), "an object of a delta lies below it");
    }
}
