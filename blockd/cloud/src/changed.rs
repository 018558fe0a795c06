//! Changed blocks between two snapshots of a chain, from the indexes of their deltas, without data.

use crate::{CloudError, Manifest, Repository, fetch::DeltaReader};
use blockd_extent::{BlockSet, SnapshotId};
use std::sync::Arc;

/// Returns the blocks in deltas after `since` up to the manifest's snapshot: all other blocks are equal.
/// `None` if `since` is not in the manifest's chain.
///
/// # Errors
/// [`CloudError::Damaged`]; [`CloudError::UnknownKey`]; errors of the store.
pub async fn changed_blocks(
    repo: &Repository,
    manifest: &Manifest,
    since: SnapshotId,
) -> Result<Option<BlockSet>, CloudError> {
    let Some(count) = manifest.layers().position(|delta| delta.snapshot == since) else { return Ok(None) };
    let mut changed = BlockSet::new();
    for delta in manifest.layers().take(count) {
        let reader = Arc::new(DeltaReader::open(repo, delta, &mut 0).await?);
        for number in 0..reader.root.pages.len() {
            if let Some(page) = reader.page(number).await? {
                changed.union_with(&page.data);
                changed.union_with(&page.zero);
                changed.union_with(&page.referenced);
            }
        }
    }
    debug_assert!(count > 0 || changed.is_empty(), "a snapshot differs from itself");
    Ok(Some(changed))
}
