//! Properties of volume files with arbitrary content; for fuzzing and tests only.
//!
//! The first byte of an input selects the file and whether its checksums are corrected: with wrong checksums
//! no parser would be reached.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what does not hold is to be found"
)]

use crate::{
    head::log::{HEADER_BYTES, HeadLog, Identity},
    layer::set::{LayerSet, SetIdentity},
    meta::Meta,
};
use blockd_extent::{BlockIndex, BlockSet, Epoch, Extent, VolumeId};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    fs::File,
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Identity of the logs in the inputs.
const HEAD: Identity = Identity { volume: VolumeId::from_u64(9), epoch: Epoch(2), blocks: 1 << 33 };

/// Parses `data` as one of the files of a volume and checks its properties.
///
/// # Panics
/// If a property is violated.
pub fn files(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else {
        return;
    };
    match kind % 5 {
        0 => meta(rest),
        1 => meta(&with_sum(rest)),
        2 => layer_set(rest),
        3 => layer_set(&with_sum(rest)),
        _ => head_log(rest),
    }
}

fn with_sum(body: &[u8]) -> Vec<u8> {
    [body, &xxh3_64(body).to_le_bytes()].concat()
}

fn meta(bytes: &[u8]) {
    let Ok(meta) = Meta::decode(bytes) else {
        return;
    };
    assert_eq!(Meta::decode(&meta.encode()).as_ref(), Ok(&meta), "what is written reads back");
    let head = meta.layers.first().expect("a head");
    assert!(head.open && head.size_bytes == meta.size_bytes && head.epoch < meta.next_epoch);
    assert!(meta.layers.iter().all(|layer| (1..=meta.size_bytes).contains(&layer.size_bytes)));
}

fn layer_set(bytes: &[u8]) {
    let word = |at: usize| {
        let raw = bytes.get(at..at + 8).and_then(|raw| raw.try_into().ok());
        u64::from_le_bytes(raw.unwrap_or_default())
    };
    // The identity in the input is accepted.
    let id = SetIdentity {
        volume: VolumeId::from_u64(word(16)),
        file: Epoch(word(24)),
        generation: (word(8) >> 32) as u32,
        blocks: word(32),
    };
    let Ok(set) = LayerSet::decode(bytes, id) else {
        return;
    };
    assert_eq!(LayerSet::decode(&set.encode(id), id).as_ref(), Ok(&set), "what is written reads back");
    assert!(set.held.last().is_none_or(|last| last.0 < id.blocks));
    assert_eq!(set.data().len_blocks() + set.zero.len_blocks(), set.held.len_blocks());
}

/// Creates a file in memory and the path to open it.
fn file_of(bytes: &[u8]) -> (File, PathBuf) {
    let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all(bytes).expect("written");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (file, path)
}

/// Builds a log: a valid header, then parts of a tag byte, a length of two bytes and that many bytes, as a
/// record's payload or raw.
fn head_log(mut pieces: &[u8]) {
    let (_empty, path) = file_of(&[]);
    drop(HeadLog::create(&path, HEAD).expect("an empty log"));
    let mut log = std::fs::read(&path).expect("the empty log");
    // Without the preallocated zeroes: nothing behind them would be read.
    log.truncate(HEADER_BYTES);
    let (mut expected, mut number, mut whole, mut certain) = (BlockSet::new(), 0_u64, true, true);
    while let [tag, low, high, rest @ ..] = pieces {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (payload, after) = rest.split_at(len);
        pieces = after;
        if tag % 4 == 0 {
            log.extend_from_slice(payload);
            // Only parsing shows whether this is, or starts, a record.
            certain &= payload.is_empty();
            continue;
        }
        // Some records have a wrong number.
        let own = if tag % 4 == 3 { u64::from(*tag) } else { number };
        let mut record = b"BREC".to_vec();
        record.extend_from_slice(&(len as u32).to_le_bytes());
        record.extend_from_slice(&own.to_le_bytes());
        let sum = xxh3_64_with_seed(&[&record, payload].concat(), HEAD.volume.as_u64() ^ HEAD.epoch.0);
        record.extend_from_slice(&sum.to_le_bytes());
        record.extend_from_slice(payload);
        log.extend_from_slice(&record);
        let inside = |set: &BlockSet| set.last().is_none_or(|last| last.0 < HEAD.blocks);
        match BlockSet::from_bytes(payload) {
            Ok(set) if whole && own == number && inside(&set) => {
                expected.union_with(&set);
                number += 1;
            }
            _ => whole = false,
        }
    }
    opens_to(&log, certain.then_some(&expected));
}

fn opens_to(log: &[u8], expected: Option<&BlockSet>) {
    let (_file, path) = file_of(log);
    let rescued = HeadLog::rescue(&path, HEAD);
    assert!(rescued.last().is_none_or(|last| last.0 < HEAD.blocks));
    let Ok((mut opened, held)) = HeadLog::open(&path, HEAD) else {
        return;
    };
    let mut lost = held.clone();
    lost.subtract(&rescued);
    assert!(lost.is_empty(), "what opens is rescued");
    assert!(expected.is_none_or(|expected| *expected == held), "every record before the torn end counts");
    assert!(held.last().is_none_or(|last| last.0 < HEAD.blocks));
    assert_eq!(reopen(&path), held, "opening changes nothing of what it says");
    let mut more = held;
    let added = Extent::new(BlockIndex(77), 3);
    more.insert_extent(added);
    opened.append(&BlockSet::from_iter([added])).expect("appended");
    assert_eq!(reopen(&path), more, "what is appended is found");
}

fn reopen(path: &Path) -> BlockSet {
    HeadLog::open(path, HEAD).expect("it opened before").1
}
