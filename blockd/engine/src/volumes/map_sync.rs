//! Periodic sync of the live maps of all volumes.
//!
//! A writeback error of a map is repaired from memory as long as this process lives. Found early, it costs
//! nothing; the next process can only fall back to the last flush.

use crate::volumes::registry::{EntryState, Registry};
use blockd_volume::VolumeErrorKind;
use std::{sync::Arc, time::Duration};

/// Interval of the syncs. Longer than the kernel's own writeback (30 s), so that most find the map written.
const SYNC_EVERY: Duration = Duration::from_secs(60);

/// Syncs the maps periodically.
pub async fn run(registry: Arc<Registry>) {
    loop {
        tokio::time::sleep(SYNC_EVERY).await;
        let registry = Arc::clone(&registry);
        if let Err(error) = tokio::task::spawn_blocking(move || sync_all(&registry)).await {
            tracing::error!(%error, "sync of the live maps panicked");
        }
    }
}

fn sync_all(registry: &Registry) {
    for entry in registry.all() {
        let EntryState::Up(volume) = entry.view().state else { continue };
        if let Err(error) = volume.sync_maps()
            && !matches!(error.kind(), VolumeErrorKind::Closed | VolumeErrorKind::Failed)
        {
            tracing::error!(volume = %entry.id, %error, "sync of the live map failed");
        }
    }
}
