//! Files and folders as the disk knows them: what is durable, and what came since.

use super::Rng;
use std::{collections::BTreeMap, ffi::OsString};

const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4096;

/// One file or folder.
pub(super) enum Node {
    /// For each name all that it stood for since the folder was last synced; the first is durable, the last
    /// one is seen.
    Dir(BTreeMap<OsString, Vec<Option<usize>>>),
    File(FileNode),
}

/// A file's content.
#[derive(Default)]
pub(super) struct FileNode {
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// Pages in memory are taken for clean that the disk does not have: a sync failed.
    pub(super) is_stale: bool,
}

/// A change of content that no sync has covered yet.
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

    /// What the file is when everything reaches the disk.
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

    /// A sync failed: some of the changes are on disk, and nobody will write the others any more.
    pub(super) fn lose(&mut self, rng: &mut Rng) {
        self.durable = self.survivor(rng);
        self.pending.clear();
        self.is_stale = true;
    }

    /// What may be on disk at this moment: each sector, and the length, as it was at some time since the last
    /// sync.
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
        let any = |rng: &mut Rng| match rng.below(3) {
            0 => 0,
            1 => newest,
            _ => rng.below(newest as u64 + 1) as usize,
        };
        let whole = any(rng);
        // All of it at one time, or each page, or each sector at its own.
        let unit_bytes = [None, Some(PAGE_BYTES), Some(SECTOR_BYTES)][rng.below(3) as usize];
        let versions: Vec<usize> = match unit_bytes {
            None => vec![whole],
            Some(unit_bytes) => (0..longest.div_ceil(unit_bytes).max(1)).map(|_| any(rng)).collect(),
        };
        let unit_bytes = unit_bytes.unwrap_or(usize::MAX);
        let len = lens[if unit_bytes == usize::MAX { whole } else { any(rng) }];
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

    /// Changes those sectors of which `chosen` says so.
    fn apply_where(&self, content: &mut [u8], chosen: impl Fn(usize) -> bool) {
        let (start, end) = match self {
            Self::Write { offset_bytes, data } => (*offset_bytes, offset_bytes + data.len()),
            Self::Zero { offset_bytes, len_bytes } => (*offset_bytes, offset_bytes + len_bytes),
            // What is cut off does not come back when the file is made longer again.
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
