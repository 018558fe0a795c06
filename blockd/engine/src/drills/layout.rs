//! Comparison of the filesystems of a cloud snapshot with those of an earlier drill of its volume: a lost
//! partition table or superblock is no inconsistency of the content that remains.

use blockd_api::format_time;
use blockd_catalog::DrillRow;
use blockd_fuse::inside::FoundFilesystem;
use std::collections::BTreeMap;

/// Next action after a failure of the step.
pub(super) const HINT: &str = "check the partition table and the filesystems of the volume; after an intended change, run the drill again with --accept-layout";

/// Filesystems of the newest earlier drill that passed.
pub(super) struct Reference {
    filesystems: Vec<String>,
    found_by: String,
}

impl Reference {
    pub fn of(drill: DrillRow) -> Self {
        let found_by = format!(
            "the drill of {} found it in the backup of {}",
            format_time(drill.ended),
            format_time(drill.report.created)
        );
        Self { filesystems: drill.report.filesystems, found_by }
    }

    /// Returns a finding for each kind that has fewer filesystems now. Their partitions may differ.
    pub fn missing(&self, found: &[FoundFilesystem]) -> Vec<String> {
        let now = counts(found.iter().map(|one| one.other.unwrap_or(EXT)));
        let before = counts(self.filesystems.iter().map(|name| kind(name)));
        let missing = before.into_iter().filter_map(|(kind, before)| {
            let now = now.get(kind).copied().unwrap_or(0);
            let names = self.filesystems.iter().filter(|name| self::kind(name) == kind);
            let names: Vec<_> = names.map(String::as_str).collect();
            (now < before).then(|| match (before, &*names) {
                (1, [only]) => format!("{only} is missing: {}", self.found_by),
                _ => format!(
                    "{} of {before} are missing ({}): {}",
                    before - now,
                    names.join(", "),
                    self.found_by
                ),
            })
        });
        missing.collect()
    }
}

/// Kind of ext2, ext3 and ext4, which are converted into each other.
const EXT: &str = "an ext filesystem";

/// Returns the kind of a described filesystem.
fn kind(name: &str) -> &str {
    match name.split_once(" on partition ").map_or(name, |(kind, _)| kind) {
        ext if ext.starts_with("an ext") => EXT,
        other => other,
    }
}

fn counts<'a>(kinds: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, usize> {
    let mut counts = BTreeMap::new();
    kinds.for_each(|kind| *counts.entry(kind).or_insert(0) += 1);
    counts
}
