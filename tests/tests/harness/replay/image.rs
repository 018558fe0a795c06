//! Sparse content of a disk in memory.

use crate::harness::BLOCK;
use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

const PAGE: usize = BLOCK as usize;
type Page = [u8; PAGE];

/// Content of a disk. Copies share their pages.
#[derive(Clone, Default)]
pub struct Image {
    size_bytes: u64,
    /// Pages by their number; missing pages are zeroes.
    pages: BTreeMap<u64, Arc<Page>>,
}

impl Image {
    /// Reads the content of a file.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let mut image = Self { size_bytes: file.metadata()?.len(), pages: BTreeMap::new() };
        let mut page = [0; PAGE];
        let mut at = 0;
        while at < image.size_bytes {
            // Holes are skipped.
            let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) else { break };
            let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start))?;
            at = start / BLOCK * BLOCK;
            while at < end {
                file.read_exact_at(&mut page, at)?;
                image.write(at, &page);
                at += BLOCK;
            }
        }
        Ok(image)
    }

    /// Returns the size, in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Reads a range.
    pub fn read(&self, offset_bytes: u64, buf: &mut [u8]) {
        for (number, within, part) in parts(offset_bytes, buf.len()) {
            let to = &mut buf[part];
            match self.pages.get(&number) {
                Some(page) => to.copy_from_slice(&page[within..within + to.len()]),
                None => to.fill(0),
            }
        }
    }

    /// Writes a range.
    pub fn write(&mut self, offset_bytes: u64, data: &[u8]) {
        for (number, within, part) in parts(offset_bytes, data.len()) {
            let from = &data[part];
            if from == &[0; PAGE][..from.len()] && !self.pages.contains_key(&number) {
                continue;
            }
            let page = self.pages.entry(number).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..within + from.len()].copy_from_slice(from);
        }
    }

    /// Zeroes a range.
    pub fn zero(&mut self, offset_bytes: u64, len_bytes: u64) {
        let (mut at, end) = (offset_bytes, offset_bytes + len_bytes);
        while at < end {
            let to = ((at / BLOCK + 1) * BLOCK).min(end);
            if to - at == BLOCK {
                self.pages.remove(&(at / BLOCK));
            } else {
                self.write(at, &[0; PAGE][..(to - at) as usize]);
            }
            at = to;
        }
    }

    /// Writes the content to a sparse file, which replaces an older one.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let file = File::create(path)?;
        file.set_len(self.size_bytes)?;
        let mut extent = Vec::new();
        let mut extent_at = 0;
        for (&number, page) in &self.pages {
            let at = number * BLOCK;
            if extent_at + extent.len() as u64 != at {
                file.write_all_at(&extent, extent_at)?;
                extent.clear();
                extent_at = at;
            }
            extent.extend_from_slice(&page[..]);
        }
        file.write_all_at(&extent, extent_at)
    }
}

/// Splits a range at page boundaries: page number, offset in the page, and part of the range.
fn parts(offset_bytes: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset_bytes + done as u64;
        let within = (at % BLOCK) as usize;
        let part = done..len.min(done + PAGE - within);
        done = part.end;
        Some((at / BLOCK, within, part))
    })
}
