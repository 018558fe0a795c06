//! Names of files with damaged blocks, in ext2, ext3 and ext4, also in partitions.
//!
//! A search walks the filesystem. Its time and result are bounded.

use blockd_api::{browse::FilePath, tasks::DamageFinding};
use blockd_cloud::CancelToken;
use blockd_extent::{BlockSource, Extent};
use blockd_fuse::inside;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Maximum number of named files.
const MAX_FILES: usize = 100;
/// Maximum number of files in a message.
const MAX_NAMED: usize = 5;
/// Maximum time of a search.
const MAX_TIME: Duration = Duration::from_secs(10);
/// Maximum number of extents whose files are searched.
pub(crate) const MAX_EXTENTS: usize = 256;

/// Returns the files of an image with data in extents, by the index that stands with each extent: `count`
/// lists, empty if no filesystem is known. Blocks.
pub(crate) fn files_with(
    image: &Arc<dyn BlockSource>,
    extents: &[(usize, Extent)],
    count: usize,
    cancel: &CancelToken,
) -> Vec<Vec<FilePath>> {
    let mut files = vec![Vec::new(); count];
    let end = Instant::now() + MAX_TIME;
    let mut may_continue = || Instant::now() < end && !cancel.is_cancelled();
    for found in inside::filesystems(image).unwrap_or_default() {
        let start = found.offset_bytes();
        let parts = extents.iter().take(MAX_EXTENTS).filter_map(|(owner, extent)| {
            let end = (extent.offset_bytes() + extent.len_bytes()).checked_sub(start).filter(|end| *end > 0);
            Some((*owner, extent.offset_bytes().saturating_sub(start)..end?))
        });
        let (owners, ranges): (Vec<_>, Vec<_>) = parts.unzip();
        if ranges.is_empty() || found.other.is_some() {
            continue;
        }
        let Ok(filesystem) = found.open() else { continue };
        let room = MAX_FILES.saturating_sub(files.iter().map(Vec::len).sum());
        let dir = found.partition.map(|number| format!("/p{number}")).unwrap_or_default();
        for (index, path) in filesystem.users_of(&ranges, room, &mut may_continue).found {
            let path = FilePath::from_bytes([dir.as_bytes(), path.as_slice()].concat());
            let of: &mut Vec<FilePath> = &mut files[owners[index]];
            if !of.contains(&path) {
                of.push(path);
            }
        }
    }
    files
}

/// Names the first files of findings, for a message; empty without any.
pub(crate) fn first_files(findings: &[DamageFinding]) -> String {
    let mut files: Vec<_> =
        findings.iter().flat_map(|finding| &finding.files).map(ToString::to_string).collect();
    files.sort_unstable();
    files.dedup();
    let more = files.len().saturating_sub(MAX_NAMED);
    files.truncate(MAX_NAMED);
    match (files.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!("; files: {}", files.join(", ")),
        (false, more) => format!("; files: {} and {more} more", files.join(", ")),
    }
}
