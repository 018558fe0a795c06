//! Restores of cloud snapshots.

use crate::attachments::Attachments;
use crate::credentials::Repositories;
use crate::engine::Admission;
use crate::lazy::LazyVolumes;
use crate::lazy::in_place::InPlaceWork;
use crate::registry::Registry;
use crate::tasks::Tasks;
use crate::tasks::stop::Runner;
use blockd_catalog::Db;
use std::sync::Arc;
/// Restores.
pub struct Restores {
    pub(crate) admission: Arc<Admission>,
    pub(crate) attachments: Arc<Attachments>,
    pub(crate) db: Arc<Db>,
    pub(crate) in_place_work: Arc<InPlaceWork>,
    pub(crate) lazy: Arc<LazyVolumes>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) tasks: Arc<Tasks>,
}

impl std::fmt::Debug for Restores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restores").finish_non_exhaustive()
    }
}
