//! Background verification: its order, its budget, and its plan.

use super::*;
use blockd_api::{status::VerificationPlan, tasks::TaskKind};
use blockd_catalog::{CredentialRow, VerifyTask};
use blockd_engine::maintenance::{Attempts, Due, Pace};
use blockd_schedule::Turn;
use jiff::Timestamp;

impl Host {
    /// Returns the cloud snapshots that the background verification would read together next.
    pub(super) async fn next_to_verify(
        &self,
        credential: &CredentialRow,
    ) -> Vec<blockd_cloud::CloudSnapshotId> {
        let due = Due { turn: Turn::New, before: later(), overdue: Timestamp::now() };
        let maintenance = &self.engine().maintenance;
        let next = maintenance.next_to_verify(credential, &due, &Attempts::new()).await.unwrap();
        next.map_or_else(Vec::new, |(chain, _)| chain.ids)
    }

    /// Restarts with a budget of the background verification.
    async fn restart_with_budget(&mut self, verify_bytes_per_day: u64, verify_requests_per_day: u64) {
        self.stop().await;
        let config = Config { verify_bytes_per_day, verify_requests_per_day, ..config(self.dir.path()) };
        self.daemon = Some(Daemon::start(config, false).await.unwrap());
    }

    async fn plan(&self) -> Option<VerificationPlan> {
        self.engine().maintenance.update_plan().await.unwrap();
        self.call(GET_STATUS, &()).await.verification
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn background_verification_proves_a_whole_chain() {
    let mut host = Host::new().await;
    let (first, volume, mut model) = host.one_backup().await;
    model.write(&volume, 0, 3, 1 << 20);
    let second = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    drop(volume);
    host.restart_with_budget(1 << 44, 10_000).await;
    let credential = host.engine().repositories.credential_rows().await.unwrap().remove(0);
    let chain = [snap_id(&second), snap_id(&first)];
    assert_eq!(host.next_to_verify(&credential).await, chain);
    let what = VerifyTask { depth: blockd_cloud::VerifyDepth::Full, all: false, background: true };
    let task = host.engine().maintenance.begin_verify(&credential, Some(chain[0]), what).await.unwrap();
    let task = host.done(task.task_id).await;
    assert_eq!(task.findings.unwrap().snapshots, 2);
    let proven = |listed: Vec<Cloudsnap>| listed.iter().filter(|one| one.last_proof.is_some()).count();
    assert_eq!(proven(host.list().await), 2);

    // A new backup comes first, although the other chain has older proofs.
    let full = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    assert_eq!(host.next_to_verify(&credential).await, [snap_id(&full)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_states_the_time_for_all_packs_and_its_budget() {
    let mut host = Host::new().await;
    let (_, volume, mut model) = host.one_backup().await;
    model.write(&volume, 0, 3, 1 << 20);
    host.backup("data", false).await;
    assert_eq!(host.plan().await.unwrap().bytes_per_day, 0, "the verification is off");
    host.restart_with_budget(1 << 30, 100).await;
    let plan = host.plan().await.unwrap();
    assert_eq!((plan.cloud_snapshot_count, plan.pack_count), (2, host.packs().len() as u64));
    let stored: u64 = host.call(GET_STATUS, &()).await.locations.iter().map(|one| one.stored_bytes).sum();
    assert_eq!((plan.read_bytes, plan.period_days, plan.needed_bytes_per_day), (stored, 1, None));
    drop(volume);
}

#[tokio::test(flavor = "multi_thread")]
async fn background_verification_keeps_its_request_budget() {
    let mut host = Host::new().await;
    let (_, volume, _) = host.one_backup().await;
    drop(volume);
    host.backup("data", true).await;
    let verifications = async |host: &Host| {
        let tasks = host.engine().tasks.unfinished_tasks().await.unwrap();
        for task in tasks.iter().filter(|task| task.kind() == TaskKind::Verify) {
            host.done(task.id).await;
        }
        host.list().await.iter().filter(|one| one.last_proof.is_some()).count()
    };
    for (requests_per_day, expected) in [(1, 1), (1 << 40, 2)] {
        host.restart_with_budget(1 << 44, requests_per_day).await;
        let mut pace = Pace::default();
        let mut proven = 0;
        for _ in 0..2 {
            host.engine().maintenance.verify_next(&mut pace).await.unwrap();
            proven = verifications(&host).await;
        }
        assert_eq!(proven, expected, "{requests_per_day} requests per day");
    }
}
