//! Chains of cloud snapshots for the background verification, and its plan.
//!
//! The costs are those of the manifests: a verification reads all objects of each delta of a chain once, and
//! proves all cloud snapshots of the chain with that.

use crate::{
    error::{ServiceError, blocking},
    maintenance::Maintenance,
};
use blockd_api::status::VerificationPlan;
use blockd_catalog::{Aliases, CredentialRow, DbError, DbManifestCache};
use blockd_cloud::{CloudSnapshotId, Delta, Manifest};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_schedule::{VerifyBudget, VerifyChain};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};
use uuid::Uuid;

const DAY_S: u64 = 24 * 3600;
/// Requests for the index and the listing of a delta.
const DELTA_REQUESTS: u64 = 2;
/// Requests for the key slots.
const SLOT_REQUESTS: u64 = 4;

/// Cloud snapshots that a verification reads together.
#[derive(Clone, Debug)]
pub struct SnapshotChain {
    /// The newest one: the deltas of all others are below its own.
    pub newest: CloudSnapshotId,
    /// All of them.
    pub ids: Vec<CloudSnapshotId>,
    pub(crate) packs: u64,
    /// Costs, without the times of proofs.
    pub(crate) costs: VerifyChain,
}

impl SnapshotChain {
    /// Returns the chain of a cloud snapshot whose manifest cannot be read.
    pub(crate) fn unreadable(id: CloudSnapshotId) -> Self {
        let costs =
            VerifyChain { newest: Timestamp::MIN, read: None, read_bytes: 0, requests: SLOT_REQUESTS };
        Self { newest: id, ids: vec![id], packs: 0, costs }
    }
}

/// Returns the name of a delta in its location.
fn name(delta: &Delta) -> (Uuid, VolumeId, SnapshotId) {
    (delta.cluster, delta.volume, delta.snapshot)
}

/// Groups the cloud snapshots of a location into chains.
pub(crate) fn chains(manifests: &[Manifest]) -> Vec<SnapshotChain> {
    let below: BTreeSet<_> = manifests.iter().flat_map(|one| &one.chain).map(name).collect();
    let owners: HashMap<_, CloudSnapshotId> =
        manifests.iter().map(|one| (name(&one.delta), one.id())).collect();
    let newest = manifests.iter().filter(|one| !below.contains(&name(&one.delta)));
    let chain = |newest: &Manifest| {
        let ids: Vec<_> = newest.layers().filter_map(|delta| owners.get(&name(delta)).copied()).collect();
        let sum = |of: fn(&Delta) -> u64| newest.deltas().map(of).fold(0, u64::saturating_add);
        let packs = sum(|delta| delta.pack_count.into());
        let deltas = sum(|_| 1);
        let requests =
            packs.saturating_add(deltas * DELTA_REQUESTS).saturating_add(ids.len() as u64 + SLOT_REQUESTS);
        let read_bytes = sum(|delta| delta.stored_bytes);
        let costs = VerifyChain { newest: newest.description.created, read: None, read_bytes, requests };
        SnapshotChain { newest: newest.id(), ids, packs, costs }
    };
    newest.map(chain).collect()
}

/// Returns the chain whose newest cloud snapshot is this one, or only itself if it is none. Blocks.
pub(crate) fn chain_of(
    catalog: &DbManifestCache,
    newest: CloudSnapshotId,
) -> Result<Vec<CloudSnapshotId>, DbError> {
    let found = chains(&catalog.all()?).into_iter().find(|chain| chain.newest == newest);
    Ok(found.map_or_else(|| vec![newest], |chain| chain.ids))
}

impl Maintenance {
    /// Returns the budget of the background verification; `None` if it is off.
    pub(crate) fn verify_budget(&self) -> Option<VerifyBudget> {
        let settings = &self.host.settings;
        let (bytes_per_day, requests_per_day) =
            (settings.verify_bytes_per_day, settings.verify_requests_per_day);
        (bytes_per_day > 0).then_some(VerifyBudget { bytes_per_day, requests_per_day })
    }

    /// Computes the plan of the background verification from the known manifests, without a request to a
    /// store; returns the time for reading everything.
    ///
    /// # Errors
    /// The database fails.
    pub async fn update_plan(&self) -> Result<SignedDuration, ServiceError> {
        let Some(budget) = self.verify_budget() else {
            *self.plan.lock() = None;
            return Ok(SignedDuration::ZERO);
        };
        let read = |tx: &rusqlite::Transaction<'_>| -> Result<_, DbError> {
            let aliases = Aliases::all(tx)?;
            let rows = CredentialRow::all(tx)?.into_iter().map(|row| row.uuid);
            Ok(rows.filter(|uuid| aliases.of_location(*uuid).first() == Some(uuid)).collect::<Vec<_>>())
        };
        let locations = self.db.run(read).await?;
        let db = Arc::clone(&self.db);
        let all = blocking(move || {
            let mut all = Vec::new();
            for credential in locations {
                all.extend(chains(&DbManifestCache::new(Arc::clone(&db), credential).all()?));
            }
            Ok::<_, ServiceError>(all)
        });
        let all = all.await?;
        let costs: Vec<VerifyChain> = all.iter().map(|chain| chain.costs).collect();
        let period = budget.period(&costs);
        *self.plan.lock() = Some(plan(&all, &costs, budget, self.host.settings.proof_max_age_days));
        Ok(period)
    }

    /// Returns the plan of the background verification; without a budget if it is off, and `None` before it
    /// was computed.
    pub fn verification_plan(&self) -> Option<VerificationPlan> {
        match self.verify_budget() {
            Some(_) => self.plan.lock().clone(),
            None => Some(VerificationPlan {
                proof_max_age_days: self.host.settings.proof_max_age_days,
                ..VerificationPlan::default()
            }),
        }
    }
}

fn plan(
    all: &[SnapshotChain],
    costs: &[VerifyChain],
    budget: VerifyBudget,
    max_age_days: u32,
) -> VerificationPlan {
    let max_age = SignedDuration::from_hours(24 * i64::from(max_age_days));
    let needed = budget.raised_to(costs, max_age).filter(|_| max_age_days > 0);
    let ids: BTreeSet<_> = all.iter().flat_map(|chain| &chain.ids).collect();
    VerificationPlan {
        cloud_snapshot_count: ids.len() as u64,
        pack_count: all.iter().map(|chain| chain.packs).fold(0, u64::saturating_add),
        read_bytes: costs.iter().map(|chain| chain.read_bytes).fold(0, u64::saturating_add),
        request_count: costs.iter().map(|chain| chain.requests).fold(0, u64::saturating_add),
        period_days: budget.period(costs).as_secs().unsigned_abs().div_ceil(DAY_S),
        bytes_per_day: budget.bytes_per_day,
        requests_per_day: budget.requests_per_day,
        proof_max_age_days: max_age_days,
        needed_bytes_per_day: needed.map(|needed| needed.bytes_per_day),
        needed_requests_per_day: needed.map(|needed| needed.requests_per_day),
    }
}
