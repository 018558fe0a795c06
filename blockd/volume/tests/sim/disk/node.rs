//! Files and directories of the simulated disk: durable state and later changes.

use super::Rng;
use std::{collections::BTreeMap, ffi::OsString};

const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4096;

/// File or directory.
pub(super) enum Node {
    /// For each name, its bindings since the last sync of the directory: the first is durable, the last is
    /// visible.
    Dir(BTreeMap<OsString, Vec<Option<usize>>>),
    File(FileNode),
}

/// Content of a file.
#[derive(Default)]
pub(super) struct FileNode {
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// After a failed sync, the kernel treats pages that the disk lacks as clean.
    pub(super) is_stale: bool,
}

/// Unsynced change of content.
pub(super) enum Change {
    Write { offset_bytes: usize, data: Vec<u8> },
    Zero { offset_bytes: usize, len_bytes: usize },
    SetLen(usize),
}

impl FileNode {
    pub(super) fn new(durable: Vec<u8>) -> Self {
        Self { durable, ..Self::default() }
    }

    pub(super) fn push(&mut self, change: Change) {
        self.pending.push(change);
    }

    /// Returns the content with all changes.
    pub(super) fn newest(&self) -> Vec<u8> {
        let mut content = self.durable.clone();
        for change in &self.pending {
            change.apply(&mut content);
        }
        content
    }

    pub(super) fn sync(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            change.apply(&mut self.durable);
        }
    }

    /// Applies a failed sync: a random part of the changes reaches the disk, the rest is lost.
    pub(super) fn lose(&mut self, rng: &mut Rng) {
        self.durable = self.survivor(rng);
        self.pending.clear();
        self.is_stale = true;
    }

    /// Returns a possible content on disk: each sector, and the length, at a random time since the last sync.
    pub(super) fn survivor(&self, rng: &mut Rng) -> Vec<u8> {
        let newest = self.pending.len();
        if newest == 0 {
            return self.durable.clone();
        }
        let mut lens = vec![self.durable.len()];
        for change in &self.pending {
            let len = lens.last().copied().unwrap_or_default();
            lens.push(change.len_after(len));
        }
        let longest = lens.iter().copied().max().unwrap_or_default();
        let any_version = |rng: &mut Rng| match rng.below(3) {
            0 => 0,
            1 => newest,
            _ => rng.below(newest as u64 + 1) as usize,
        };
        let whole = any_version(rng);
        // One time for the whole file, for each page, or for each sector.
        let unit_bytes = [None, Some(PAGE_BYTES), Some(SECTOR_BYTES)][rng.below(3) as usize];
        let versions: Vec<usize> = match unit_bytes {
            None => vec![whole],
            Some(unit_bytes) => (0..longest.div_ceil(unit_bytes).max(1)).map(|_| any_version(rng)).collect(),
        };
        let unit_bytes = unit_bytes.unwrap_or(usize::MAX);
        let len = lens[if unit_bytes == usize::MAX { whole } else { any_version(rng) }];
        let mut content = self.durable.clone();
        content.resize(longest, 0);
        for (number, change) in self.pending.iter().enumerate() {
            change.apply_where(&mut content, |at| versions[at / unit_bytes] > number);
        }
        content.resize(len, 0);
        content
    }
}

impl Change {
    fn len_after(&self, len: usize) -> usize {
        match self {
            Self::Write { offset_bytes, data } => len.max(offset_bytes + data.len()),
            Self::Zero { .. } => len,
            Self::SetLen(new) => *new,
        }
    }

    fn apply(&self, content: &mut Vec<u8>) {
        let len = self.len_after(content.len());
        content.resize(len.max(content.len()), 0);
        self.apply_where(content, |_| true);
        content.resize(len, 0);
    }

    /// Applies a change to the sectors that `chosen` selects by offset.
    fn apply_where(&self, content: &mut [u8], chosen: impl Fn(usize) -> bool) {
        let (start, end) = match self {
            Self::Write { offset_bytes, data } => (*offset_bytes, offset_bytes + data.len()),
            Self::Zero { offset_bytes, len_bytes } => (*offset_bytes, offset_bytes + len_bytes),
            // Truncated data does not return when the file grows again.
            Self::SetLen(len) => (*len, content.len()),
        };
        let end = end.min(content.len());
        let mut at = start;
        while at < end {
            let to = ((at / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
            if chosen(at) {
                match self {
                    Self::Write { data, .. } => {
                        content[at..to].copy_from_slice(&data[at - start..to - start]);
                    }
                    Self::Zero { .. } | Self::SetLen(_) => content[at..to].fill(0),
                }
            }
            at = to;
        }
    }
}
