//! Maintenance of the stores: garbage collection, expiry of resumable tasks, checks of abandoned backups, and
//! background verification.

mod compare;
pub mod plan;
mod proof_age;
mod replaced;
pub mod verify_requests;
pub mod verify_task;

use crate::{
    backup::{doubts::Failing, work::BackupWork},
    cloud_snapshots::{delete_requests::Deletions, retention_overrides::RecentListings},
    error::{ENDLESS_HINT, ServiceError},
    events::EventLog,
    health::{self, ComponentHealth},
    host::{Admission, Host},
    leases::Leases,
    proofs::Proofs,
    repair::{RepairAttempts, Repairs},
    repositories::Repositories,
    restore::lazy::LazyVolumes,
    schedules::retention_checks::RetentionChecks,
    scrub::Scrubs,
    tasks::{Tasks, runner::Runner},
    volumes::registry::Registry,
};
use blockd_api::{status::VerificationPlan, tasks::TaskKind};
use blockd_catalog::{CredentialRow, Db, VerifyTask};
use blockd_cloud::{CloudError, CloudSnapshotId, VerifyDepth};
use blockd_schedule::{Jitter, Turn};
use blockd_store::StoreErrorKind;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::Instant;
use uuid::Uuid;

/// Interval of maintenance passes.
const PASS_INTERVAL: Duration = Duration::from_secs(60);
/// Interval of the exchange of proofs with the locations.
const EXCHANGE_INTERVAL: Duration = Duration::from_secs(3600);
/// Maximum delay of the first collection, and of the first exchange after a start: hosts that start together,
/// such as after a power failure, do not list the prefixes of one bucket together.
const SPREAD: Jitter = Jitter { max_s: 3600 };
/// Minimum time between two verifications of a cloud snapshot, regardless of the budget.
const VERIFY_AGAIN_AFTER: SignedDuration = SignedDuration::from_hours(24);
/// Interval between computations of the plan.
const PLAN_LIFETIME: SignedDuration = SignedDuration::from_hours(1);
/// Lifetime of a recorded attempt: longer than a round through all stores.
const ATTEMPTS_KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);

/// Garbage collection and background verification.
pub struct Maintenance {
    pub(crate) admission: Arc<Admission>,
    pub(crate) backup_work: Arc<BackupWork>,
    pub(crate) checks: Arc<RetentionChecks>,
    pub(crate) db: Arc<Db>,
    pub(crate) deletions: Arc<Deletions>,
    pub(crate) events: Arc<EventLog>,
    pub(crate) health: Arc<ComponentHealth>,
    pub(crate) host: Arc<Host>,
    pub(crate) lazy: Arc<LazyVolumes>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) proofs: Arc<Proofs>,
    pub(crate) registry: Arc<Registry>,
    /// Plan of the background verification.
    pub(crate) plan: Mutex<Option<VerificationPlan>>,
    pub(crate) repairs: Arc<Repairs>,
    pub(crate) repositories: Arc<Repositories>,
    pub(crate) runner: Arc<Runner>,
    pub(crate) scrubs: Arc<Scrubs>,
    pub(crate) tasks: Arc<Tasks>,
}

/// Start times of the last verification attempts. An attempt that fails without finding damage leaves no
/// proof, so that the same cloud snapshot would be selected in every pass.
pub type Attempts = HashMap<(Uuid, CloudSnapshotId), Timestamp>;

/// Conditions of the next verification.
pub struct Due {
    /// Turn.
    pub turn: Turn,
    /// Chains that were read since are left out.
    pub before: Timestamp,
    /// Chains that were not read since are overdue.
    pub overdue: Timestamp,
}

/// Runs the maintenance.
pub async fn run(maintenance: Arc<Maintenance>) {
    // Not at once: a start has more urgent work.
    let (collection, exchange) = first_delays(maintenance.host.cluster, gc_interval(&maintenance));
    let (mut collect_at, mut exchange_at) = (Instant::now() + collection, Instant::now() + exchange);
    let mut pace = Pace::default();
    let mut expired = RecentListings::default();
    let mut failing = Failing::default();
    let mut repaired = RepairAttempts::default();
    check_drills(&maintenance).await;
    loop {
        tokio::time::sleep(PASS_INTERVAL).await;
        if let Err(error) = maintenance.lazy.renew_leases(Timestamp::now()).await {
            tracing::warn!(%error, "renewing leases failed");
        }
        if let Err(error) = maintenance.runner.abandon_expired(Timestamp::now()).await {
            tracing::warn!(%error, "abandoning expired tasks failed");
        }
        if let Err(error) = maintenance.backup_work.check_doubts(Timestamp::now(), &mut failing).await {
            tracing::warn!(%error, "checking abandoned backups failed");
        }
        if let Err(error) = maintenance.deletions.delete_expired(Timestamp::now, &mut expired).await {
            tracing::warn!(%error, "deleting expired cloud snapshots failed");
        }
        if Instant::now() >= exchange_at {
            exchange_at = Instant::now() + EXCHANGE_INTERVAL;
            if let Err(error) = maintenance.proofs.exchange().await {
                tracing::warn!(%error, "exchanging proofs failed");
            }
            if let Err(error) = maintenance.leases.import_all().await {
                tracing::warn!(%error, "importing leases failed");
            }
        }
        if let Err(error) = maintenance.check_proof_ages(Timestamp::now()).await {
            tracing::warn!(%error, "checking the age of proofs failed");
        }
        check_drills(&maintenance).await;
        if maintenance.host.settings.gc_every_hours > 0 && Instant::now() >= collect_at {
            collect_at = Instant::now() + gc_interval(&maintenance);
            collect(&maintenance).await;
        }
        if let Err(error) = maintenance.verify_next(&mut pace).await {
            tracing::warn!(%error, "starting a background verification failed");
        }
        if let Err(error) = maintenance.repairs.repair_next(&mut repaired).await {
            tracing::warn!(%error, "starting a repair of a cloud snapshot failed");
        }
        maintenance.scrubs.report_damage();
        if let Err(error) = maintenance.scrubs.continue_in_background().await {
            tracing::warn!(%error, "starting a background scrub failed");
        }
    }
}

async fn check_drills(maintenance: &Maintenance) {
    if let Err(error) = maintenance.check_drills().await {
        tracing::warn!(%error, "checking the results of drills failed");
    }
}

/// Returns the delays of the first collection and of the first exchange of a host after a start.
fn first_delays(cluster: Uuid, gc_interval: Duration) -> (Duration, Duration) {
    let delay = Duration::from_secs(SPREAD.delay_s(cluster.as_u128()).into());
    (gc_interval.min(Duration::from_secs(3600)) + delay, delay)
}

fn gc_interval(maintenance: &Maintenance) -> Duration {
    Duration::from_secs(u64::from(maintenance.host.settings.gc_every_hours) * 3600)
}

async fn collect(maintenance: &Arc<Maintenance>) {
    let credentials = match maintenance.repositories.credential_rows().await {
        Ok(credentials) => credentials,
        Err(error) => {
            tracing::warn!(%error, "garbage collection failed");
            return;
        }
    };
    for credential in credentials {
        let of = credential.uuid.to_string();
        let Err(error) = maintenance.collect_garbage_of(&credential, false, Timestamp::now).await else {
            maintenance.health.clear(health::GARBAGE, &of);
            continue;
        };
        tracing::warn!(credential = %credential.name, %error, "garbage collection failed");
        if is_endless(&error) {
            let what = format!("garbage collection failed on credential {}: {error}", credential.name);
            maintenance.health.note(health::GARBAGE, &of, what, error.cloud_hint().unwrap_or(ENDLESS_HINT));
        }
    }
}

/// Returns true if a store listed more than a collection reads.
fn is_endless(error: &ServiceError) -> bool {
    match error {
        ServiceError::Cloud(error) => {
            matches!(**error, CloudError::TooManyDeltas { .. } | CloudError::CollectionTimeout { .. })
        }
        ServiceError::Store(error) => error.kind == StoreErrorKind::TooLarge,
        _ => false,
    }
}

/// Progress of the background verification.
#[derive(Default)]
pub struct Pace {
    attempts: Attempts,
    turn: Turn,
    /// Time at which the budget allows the next verification.
    next: Option<Instant>,
    /// Time for reading everything, and when it was computed.
    period: Option<(SignedDuration, Timestamp)>,
}

impl Maintenance {
    /// Starts the next verification that the plan and its budget allow, unless one is running.
    ///
    /// # Errors
    /// The database or a store fails.
    pub async fn verify_next(self: &Arc<Self>, pace: &mut Pace) -> Result<(), ServiceError> {
        let now = Timestamp::now();
        let period = match pace.period {
            Some((period, at)) if now - PLAN_LIFETIME < at && at <= now => period,
            _ => {
                let period = self.update_plan().await?;
                pace.period = Some((period, now));
                period
            }
        };
        let Some(budget) = self.verify_budget() else { return Ok(()) };
        let is_verifying =
            self.tasks.unfinished_tasks().await?.iter().any(|task| task.kind() == TaskKind::Verify);
        if is_verifying || pace.next.is_some_and(|next| Instant::now() < next) {
            return Ok(());
        }
        pace.attempts.retain(|_, at| *at > now - ATTEMPTS_KEPT && *at <= now);
        let due = Due { turn: pace.turn, before: now - VERIFY_AGAIN_AFTER, overdue: now - period };
        for credential in rotated(self.repositories.credential_rows().await?) {
            if let Some((chain, turn)) = self.next_to_verify(&credential, &due, &pace.attempts).await? {
                pace.attempts.insert((credential.uuid, chain.newest), now);
                let what = VerifyTask { depth: VerifyDepth::Full, all: false, background: true };
                self.begin_verify(&credential, Some(chain.newest), what).await?;
                pace.turn = turn;
                let pause = Duration::try_from(budget.time_for(0, chain.costs.requests)).unwrap_or_default();
                pace.next = Instant::now().checked_add(pause);
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Rotates the credentials, so that one with many cloud snapshots does not starve the others.
fn rotated(mut credentials: Vec<CredentialRow>) -> Vec<CredentialRow> {
    if !credentials.is_empty() {
        let minute = Timestamp::now().as_second().unsigned_abs() / PASS_INTERVAL.as_secs();
        let first = minute % credentials.len() as u64;
        credentials.rotate_left(first as usize);
    }
    credentials
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_one_start_spread_their_listings() {
        let (mut collections, mut exchanges) = ([0_u32; 60], [0_u32; 60]);
        for host in 0..6_000_u128 {
            let (collection, exchange) = first_delays(Uuid::from_u128(host), Duration::from_secs(24 * 3600));
            collections[(collection.as_secs() / 60 - 60).min(59) as usize] += 1;
            exchanges[(exchange.as_secs() / 60).min(59) as usize] += 1;
        }
        let busiest = collections.iter().chain(&exchanges).max();
        assert!(busiest < Some(&200), "{collections:?} {exchanges:?}");
        let (collection, _) = first_delays(Uuid::nil(), Duration::from_secs(600));
        assert!(collection <= Duration::from_secs(600 + 3600));
    }
}
