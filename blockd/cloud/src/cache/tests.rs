//! Tests of this module.

use super::*;
use crate::{ManifestFilter, NoCache, OpenOptions, golden};
use blockd_testkit::store::{Fault, FaultStore};
use std::pin::pin;

#[tokio::test(start_paused = true)]
async fn unanswered_page_request_holds_up_no_other_reader() {
    let store = Arc::new(FaultStore::new(Arc::new(golden::files(golden::KINDS[0]))));
    let repo = Repository::open(store.clone(), None, &OpenOptions::default()).await.unwrap();
    let listed = repo.list_manifests(&ManifestFilter::default(), &NoCache).await.unwrap();
    let manifest = listed[0].manifest.as_ref().unwrap();
    // It keeps no whole index, so that each page takes a request.
    let cache = SnapshotCache::new(CacheOptions::default(), None, MAX_PAGES_BYTES, 0, 1).shared;
    let delta = cache.delta(&repo, &manifest.delta, 0).await.unwrap();
    store.fail_at(store.operations(), Fault::Hang);
    let mut first = pin!(cache.page(&delta, 0));
    assert!(futures::poll!(&mut first).is_pending());
    // Without the bound it fails with a timeout.
    assert!(cache.page(&delta, 0).await.unwrap().is_some());
    assert!(futures::poll!(&mut first).is_pending());
}
