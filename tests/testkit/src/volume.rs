//! Volumes with one file of arbitrary content.
//!
//! The first byte of an input selects the file and whether its checksum is corrected: the parsers run only
//! behind a valid one.
#![allow(clippy::panic, clippy::expect_used, reason = "a violated property must be found")]

use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, Epoch, Extent, SnapshotId, VolumeId};
use blockd_volume::{OpenOptions, Recovery, Salvage, Volume};
use std::{path::Path, sync::Arc};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const ID: VolumeId = VolumeId::from_u64(9);
const BLOCKS: u64 = 1 << 28;
/// Epoch of the first head.
const FIRST: Epoch = Epoch(1);
const LOG_HEADER_BYTES: usize = 64;

/// Replaces a file of a volume by `data`, and opens, checks and salvages the volume.
///
/// # Panics
/// If a property is violated.
pub fn volume_files(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 5 {
        0 => meta(rest),
        1 => meta(&with_sum(rest)),
        2 => layer_set(rest),
        3 => layer_set(&with_sum(&of_first_layer(rest))),
        _ => head_log(rest),
    }
}

fn with_sum(body: &[u8]) -> Vec<u8> {
    [body, &xxh3_64(body).to_le_bytes()].concat()
}

/// Runs `test` on a closed volume with a frozen layer of two blocks.
fn with_volume(test: impl FnOnce(&Path)) {
    let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    let dir = root.path().join("v");
    let volume = Volume::create(&dir, ID, BLOCKS * BLOCK_SIZE_BYTES).expect("a volume");
    volume.write(0, &[1; 8192], false).expect("written");
    volume.freeze(SnapshotId::from_u64(1)).expect("frozen");
    volume.close().expect("closed");
    drop(volume);
    test(&dir);
}

/// Examines a directory without opening the volume.
fn examine(dir: &Path) {
    let _ = Volume::read_identity(dir);
    let _ = Volume::check_files(dir);
    if let Ok(salvage) = Salvage::open(dir, &OpenOptions::default()) {
        let latest = salvage.latest();
        assert!(latest.unproven_bytes() <= latest.size_bytes() && latest.data_bytes() <= latest.size_bytes());
    }
}

/// Opens the volume as after a power loss, without its live maps.
fn open(dir: &Path) -> Option<Arc<Volume>> {
    Volume::open(dir, &OpenOptions { recovery: Recovery::AfterPowerLoss, serves_remote: false }).ok()
}

fn meta(bytes: &[u8]) {
    with_volume(|dir| {
        std::fs::write(dir.join("volume.meta"), bytes).expect("written");
        examine(dir);
        let identity = Volume::read_identity(dir);
        if let Some(volume) = open(dir) {
            assert_eq!(identity.ok(), Some((volume.id(), volume.size_bytes())));
            drop(volume);
            assert!(open(dir).is_some(), "an opened volume opens again");
        }
    });
}

/// Sets the identity of the frozen layer in the header of a set.
fn of_first_layer(bytes: &[u8]) -> Vec<u8> {
    let identity = [0, ID.as_u64(), FIRST.0, BLOCKS].map(u64::to_le_bytes).concat();
    let mut bytes = bytes.to_vec();
    if let Some(identity_field) = bytes.get_mut(12..40) {
        identity_field.copy_from_slice(&identity[4..]);
    }
    bytes
}

fn layer_set(bytes: &[u8]) {
    with_volume(|dir| {
        std::fs::write(dir.join("layer-0000000000000001.g0.set"), bytes).expect("written");
        examine(dir);
        let Some(volume) = open(dir) else { return };
        let changes = volume.changes(None, FIRST).expect("the blocks of the layer");
        assert!(changes.data.last().is_none_or(|last| last.0 < BLOCKS));
        assert_eq!(volume.check().findings, Vec::<String>::new(), "an opened volume passes the check");
    });
}

/// Builds a log: a valid header, then parts with a tag byte, a length of two bytes and that many bytes, which
/// are the payload of a record or raw.
fn head_log(mut parts: &[u8]) {
    with_volume(|dir| {
        let (head, path) = (2, dir.join("layer-0000000000000002.log"));
        let mut log = std::fs::read(&path).expect("the empty log");
        // Without the preallocated zeroes, which end the log.
        log.truncate(LOG_HEADER_BYTES);
        let (mut expected, mut number, mut is_valid, mut is_known) = (BlockSet::new(), 0_u64, true, true);
        while let [tag, low, high, rest @ ..] = parts {
            let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
            let (payload, after) = rest.split_at(len);
            parts = after;
            if tag % 4 == 0 {
                log.extend_from_slice(payload);
                // Only parsing shows whether this is, or starts, a record.
                is_known &= payload.is_empty();
                continue;
            }
            // Some records have a wrong number.
            let own = if tag % 4 == 3 { u64::from(*tag) } else { number };
            let mut record = b"BREC".to_vec();
            record.extend_from_slice(&(len as u32).to_le_bytes());
            record.extend_from_slice(&own.to_le_bytes());
            let sum = xxh3_64_with_seed(&[&record, payload].concat(), ID.as_u64() ^ head);
            record.extend_from_slice(&sum.to_le_bytes());
            record.extend_from_slice(payload);
            log.extend_from_slice(&record);
            let inside = |set: &BlockSet| set.last().is_none_or(|last| last.0 < BLOCKS);
            match BlockSet::from_bytes(payload) {
                Ok(set) if is_valid && own == number && inside(&set) => {
                    expected.union_with(&set);
                    number += 1;
                }
                _ => is_valid = false,
            }
        }
        std::fs::write(&path, &log).expect("written");
        examine(dir);
        let Some(volume) = open(dir) else { return };
        let dirty_bytes = volume.stats().head_dirty_bytes;
        assert!(!is_known || dirty_bytes == expected.len_bytes(), "the log is read up to its torn end");
        drop(volume);
        let volume = open(dir).expect("the volume opens again");
        assert_eq!(volume.stats().head_dirty_bytes, dirty_bytes);
        volume.write(77 * BLOCK_SIZE_BYTES, &[1; 3 * BLOCK_SIZE_BYTES as usize], true).expect("appended");
        drop(volume);
        let volume = open(dir).expect("the volume opens after an append");
        let frozen = volume.freeze(SnapshotId::from_u64(2)).expect("frozen");
        let changes = volume.changes(Some(FIRST), frozen.epoch).expect("the blocks of the log");
        let mut found = changes.data;
        found.union_with(&changes.zero);
        let added = Extent::new(BlockIndex(77), 3);
        assert!(found.contains_extent(added), "appended blocks are dirty");
        expected.insert_extent(added);
        assert!(!is_known || found == expected, "the dirty set is that of the log");
    });
}
