//! Estimated costs beside those of the tasks, and tasks that end at their budget.

use super::{drills::drill_of, *};
use blockd::config::PriceTables;
use blockd_api::{
    cloudsnaps::{CollectGarbage, StartGroupBackup},
    costs::{CostEstimate, Money, Prices},
    drills::{StartDrill, StartGroupDrill},
    lazy::StartInPlace,
    tasks::{Requests, TaskLimits, TaskOwner, TaskStage},
};
use blockd_catalog::{CredentialRow, InPlaceRestore, RestoreTask, ScrubTask, TaskRow, TaskSpec};
use blockd_engine::repositories::preflight::with_client_cancellation;
use jiff::{SignedDuration, Timestamp};

/// Location with a price table.
const PRICED: &str = "priced";

/// Returns the price tables of all daemons.
pub(super) fn prices() -> PriceTables {
    let amount = |text: &str| text.parse().unwrap();
    let prices = Prices {
        currency: "EUR".into(),
        put_per_1000: amount("0.1"),
        egress_per_gib: amount("0.9"),
        storage_per_gib_month: amount("2"),
        ..Prices::default()
    };
    PriceTables::from([(PRICED.parse().unwrap(), prices)])
}

/// Costs of an estimate or a task: requests, uploaded and downloaded bytes.
type Costs = (Requests, u64, u64);

fn of_task(task: &Task) -> Costs {
    (task.requests, task.uploaded_bytes, task.downloaded_bytes)
}

fn of_estimate(estimate: &CostEstimate) -> Costs {
    (estimate.requests, estimate.upload_bytes, estimate.download_bytes)
}

fn assert_within_5_percent(estimated: Costs, made: Costs) {
    assert_eq!(estimated.0, made.0);
    for (estimated, made) in [(estimated.1, made.1), (estimated.2, made.2)] {
        assert!(estimated.abs_diff(made) * 20 <= made, "{estimated} bytes of {made}");
    }
}

impl Host {
    async fn estimated_restore(&self, snap: &str, in_place: Option<&str>) -> CostEstimate {
        match in_place {
            Some(volume) => {
                self.call(ESTIMATE_IN_PLACE, &in_place_restore(snap, volume)).await.items.remove(0)
            }
            None => self.call(ESTIMATE_RESTORE, &restore_of(snap)).await.items.remove(0),
        }
    }

    /// Estimates a backup, which must leave no trace, and makes it.
    pub(super) async fn estimated_backup(&self, request: &StartBackup) -> Task {
        let objects = walk(self.store.path());
        let estimated = self.call(ESTIMATE_BACKUP, request).await.items.remove(0);
        assert_eq!(walk(self.store.path()), objects, "an estimate stores nothing");
        assert!(self.volume("data").snapshots().is_empty(), "its snapshot is deleted");
        assert!(walk(&self.dir.path().join("data/tasks")).is_empty(), "its files are deleted");
        assert_eq!((estimated.added_bytes, estimated.price.is_some()), (estimated.upload_bytes, false));
        let made = self.run_backup(request).await;
        assert_within_5_percent(of_estimate(&estimated), of_task(&made));
        made
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_estimate_is_within_5_percent() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 4096, 1, 40 << 20);
    for at in 0..64 {
        volume.write((48 << 20) + at * BLOCK * 3, &[at as u8 + 1; BLOCK as usize], false).unwrap();
    }
    let full = host.estimated_backup(&backup_of("data")).await;
    assert_eq!((full.backup_type, full.requests.get), (Some(BackupType::Full), 1));
    // The estimate of the same changes again is the same, and the backup has all of them.
    model.write(&volume, 9 << 20, 3, 3 << 20);
    volume.write_zeroes(30 << 20, 1 << 20, false, false).unwrap();
    host.call(ESTIMATE_BACKUP, &backup_of("data")).await;
    let next = host.estimated_backup(&backup_of("data")).await;
    assert_eq!((next.backup_type, next.dirty_bytes), (Some(BackupType::Incremental), 4 << 20));
    // A synthetic full backup reads indexes.
    let options = BackupOptions { full: true, ..BackupOptions::default() };
    model.write(&volume, 1 << 20, 4, 100_000);
    let synthetic = host.estimated_backup(&StartBackup { options, ..backup_of("data") }).await;
    assert!(synthetic.requests.get > 1 && synthetic.uploaded_bytes < 1 << 20);
    host.assert_tidy();
}

/// Another host deletes the base: the backup finds that after its commit, and starts again.
#[tokio::test(flavor = "multi_thread")]
async fn estimate_without_its_base_has_both_attempts() {
    let host = Host::new().await;
    let (volume, mut model) = host.fill("data").await;
    host.create_credential().await;
    let base = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    model.write(&volume, 9 << 20, 3, 3 << 20);
    drop(volume);
    std::fs::remove_file(host.store.path().join(snap_id(&base).manifest_key())).unwrap();
    let made = host.estimated_backup(&backup_of("data")).await;
    assert_eq!(made.backup_type, Some(BackupType::Full));
    assert!(made.requests.delete >= 2 && made.requests.get >= 3, "{made:?}");
}

/// A slow location: a backup of more than an hour checks its objects after the commit.
#[tokio::test(flavor = "multi_thread")]
async fn estimate_of_a_long_backup_has_its_checks() {
    let host = Host::new().await;
    drop(host.fill("data").await);
    host.create_credential().await;
    let short = host.call(ESTIMATE_BACKUP, &backup_of("data")).await.items.remove(0);
    let uuid = host.engine().repositories.credential_rows().await.unwrap()[0].uuid;
    host.engine().db.transaction(|tx| CredentialRow::set_write_speed(tx, uuid, 1000)).unwrap();
    let long = host.call(ESTIMATE_BACKUP, &backup_of("data")).await.items.remove(0);
    assert_eq!(long.requests.get, short.requests.get + short.requests.put - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_runs_keep_the_catalog() {
    let host = Host::new().await;
    drop(host.fill("data").await);
    host.create_credential().await;
    let base = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let manifest = host.store.path().join(snap_id(&base).manifest_key());
    let content = std::fs::read(&manifest).unwrap();
    // The cached manifest is lost, too: the plan finds that the base is gone.
    host.sql("DELETE FROM catalog");
    std::fs::remove_file(&manifest).unwrap();
    host.call(COLLECT_GARBAGE, &CollectGarbage { dry_run: true, ..CollectGarbage::default() }).await;
    let full = host.call(ESTIMATE_BACKUP, &backup_of("data")).await.items.remove(0);
    assert!(full.basis.contains("gone from the store"), "{}", full.basis);
    std::fs::write(&manifest, content).unwrap();
    let next = host.backup("data", false).await;
    assert_eq!(next.backup_type, Some(BackupType::Incremental), "the next backup has its base");
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_runs_refuse_what_the_commands_refuse() {
    let host = Host::new().await;
    drop(host.fill("data").await);
    host.create_credential().await;
    let snap = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let refused = async |request: StartBackup, code| host.refused(code, ESTIMATE_BACKUP, &request).await;
    let options = BackupOptions { expires_at: Some(Timestamp::UNIX_EPOCH), ..BackupOptions::default() };
    refused(StartBackup { options, ..backup_of("data") }, ErrorCode::InvalidRequest).await;
    let options = BackupOptions { name: Some("kept".parse().unwrap()), ..BackupOptions::default() };
    let kept = StartBackup { options, keep_local: true, ..backup_of("data") };
    host.run_backup(&kept).await;
    refused(kept, ErrorCode::SnapshotExists).await;
    let limits = TaskLimits { max_cost: Some(Money::from_millionths(-1)), ..TaskLimits::NONE };
    refused(StartBackup { limits, ..backup_of("data") }, ErrorCode::InvalidRequest).await;
    host.refused(ErrorCode::InvalidRequest, START_BACKUP, &StartBackup { limits, ..backup_of("data") }).await;
    host.refused(ErrorCode::VolumeExists, ESTIMATE_RESTORE, &restore_as(&snap, "data")).await;
    host.call(CREATE_VOLUME, &CreateVolume { size_bytes: 1 << 20, ..new_volume("small") }).await;
    host.refused(ErrorCode::InvalidRequest, ESTIMATE_IN_PLACE, &in_place_restore(&snap, "small")).await;
    // Without prices, a limit of the cost is refused.
    for max in [-1, 1] {
        let limits = TaskLimits { max_cost: Some(Money::from_millionths(max)), ..TaskLimits::NONE };
        let code = ErrorCode::InvalidRequest;
        host.refused(code, ESTIMATE_RESTORE, &StartRestore { limits, ..restore_of(&snap) }).await;
        host.refused(code, ESTIMATE_IN_PLACE, &StartInPlace { limits, ..in_place_restore(&snap, "data") })
            .await;
        host.refused(code, ESTIMATE_DRILL, &StartDrill { limits, ..drill_of(&snap) }).await;
    }
    let probe = || Some("absent".parse().unwrap());
    let drill = StartDrill { probe: probe(), ..drill_of(&snap) };
    host.refused(ErrorCode::InvalidRequest, ESTIMATE_DRILL, &drill).await;
    let drills = StartGroupDrill { probe: probe(), ..group_drill_of("shop") };
    host.refused(ErrorCode::InvalidRequest, ESTIMATE_GROUP_DRILL, &drills).await;
}

fn group_drill_of(group: &str) -> StartGroupDrill {
    StartGroupDrill {
        group: group.parse().unwrap(),
        credential: None,
        files: None,
        seed: None,
        timeout_seconds: None,
        probe: None,
        accept_layout: false,
    }
}

/// Each estimate has a snapshot: one at a time, until its client disconnects.
#[tokio::test(flavor = "multi_thread")]
async fn estimates_of_a_volume_run_one_at_a_time() {
    let host = Host::new().await;
    drop(host.fill("data").await);
    host.create_credential().await;
    let running = Arc::clone(&host.engine().registry.by_name("data").unwrap().estimating).lock_owned().await;
    host.refused(ErrorCode::VolumeInUse, ESTIMATE_BACKUP, &backup_of("data")).await;
    drop(running);
    let engine = host.engine();
    let (client, estimate) =
        with_client_cancellation(async { engine.backups.estimate(&backup_of("data")).await });
    drop(client);
    assert_eq!(estimate.await.unwrap_err().to_api().code, ErrorCode::TaskStopped);
    assert!(host.volume("data").snapshots().is_empty(), "its snapshot is deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_is_estimated_beside_a_scrub() {
    let host = Host::new().await;
    drop(host.fill("data").await);
    host.create_credential().await;
    let snap = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let mut busy =
        TaskRow::new(TaskSpec::Scrub(ScrubTask::default()), Uuid::nil(), snap_id(&snap), TaskOwner::Daemon);
    (busy.volume, busy.state) = (Some(host.volume("data").id()), TaskStage::Active);
    host.engine().db.transaction(|tx| busy.put(tx)).unwrap();
    assert!(host.estimated_restore(&snap, Some("data")).await.requests.get > 0);
    let before = SnapshotId::from_u64(1);
    let restore = InPlaceRestore { before, discard: false, labels: Default::default() };
    busy.spec = TaskSpec::Restore(RestoreTask::InPlace(restore));
    host.engine().db.transaction(|tx| busy.put(tx)).unwrap();
    host.refused(ErrorCode::VolumeInUse, ESTIMATE_IN_PLACE, &in_place_restore(&snap, "data")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn estimates_of_a_group_are_those_of_its_volumes() {
    let host = Host::new().await;
    host.create_credential().await;
    let names = ["one", "two"];
    for name in names {
        let group = Some("shop".parse().unwrap());
        host.call(CREATE_VOLUME, &CreateVolume { group, ..new_volume(name) }).await;
        Model::new().write(&host.volume(name), 0, 1, 1 << 20);
    }
    let group = || StartGroupBackup { group: Some("shop".parse().unwrap()), ..Default::default() };
    let estimated = host.call(ESTIMATE_GROUP_BACKUP, &group()).await.items;
    for (name, estimate) in names.iter().zip(&estimated) {
        assert_eq!(estimate.volume_name.as_ref().unwrap().as_str(), *name);
        assert!(host.volume(name).snapshots().is_empty(), "its snapshot is deleted");
    }
    let started = host.call(START_GROUP_BACKUP, &group()).await.list.items;
    assert_eq!((estimated.len(), started.len()), (2, 2));
    for (estimate, member) in estimated.iter().zip(&started) {
        assert_eq!(of_estimate(estimate).0, host.done(member.task_ids[0]).await.requests);
    }
    let drills = host.call(ESTIMATE_GROUP_DRILL, &group_drill_of("shop")).await.items;
    let volumes: Vec<_> = drills.iter().filter_map(|one| one.volume_name.clone()).collect();
    assert_eq!(volumes.iter().map(|name| name.as_str()).collect::<Vec<_>>(), names);
}

/// In-place restores count the requests of all attempts, also those before the first write.
#[tokio::test(flavor = "multi_thread")]
async fn in_place_restore_counts_all_its_requests() {
    let host = Host::new().await;
    let (volume, mut model) = host.fill("data").await;
    host.create_credential().await;
    let snap = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let estimated = host.estimated_restore(&snap, Some("data")).await;
    let restore = async |limits| {
        let request = StartInPlace { limits, ..in_place_restore(&snap, "data") };
        host.wait(host.call(START_IN_PLACE, &request).await.task_id).await
    };
    let unchanged = restore(TaskLimits::NONE).await;
    assert_eq!(unchanged.requests, estimated.requests, "nothing differs");
    assert!(unchanged.requests.get > 0);
    let snapshots = host.volume("data").snapshots().len();
    let stopped = restore(budget(1)).await;
    assert_eq!(stopped.error.as_ref().unwrap().code, ErrorCode::BudgetExhausted);
    assert_eq!((stopped.requests.get, stopped.resumable), (1, false));
    // Nothing was written: no snapshot stays.
    assert_eq!(host.volume("data").snapshots().len(), snapshots);
    model.write(&volume, 5 << 20, 7, 2 << 20);
    drop(volume);
    let needed = host.estimated_restore(&snap, Some("data")).await.requests.get;
    let stopped = restore(budget(needed - 1)).await;
    assert_eq!((stopped.requests.get, stopped.resumable), (needed - 1, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_estimates_are_within_5_percent() {
    let host = Host::new().await;
    let (volume, mut model) = host.fill("data").await;
    host.create_credential().await;
    let full = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let first = model.clone();
    model.write(&volume, 5 << 20, 7, 2 << 20);
    let newest = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    for (number, snap) in [&full, &newest].into_iter().enumerate() {
        let estimated = host.estimated_restore(snap, None).await;
        let task = host.call(START_RESTORE, &restore_as(snap, &format!("copy-{number}"))).await.task_id;
        assert_within_5_percent(of_estimate(&estimated), of_task(&host.done(task).await));
    }
    // In place, only the blocks that may differ are read.
    model.write(&volume, 40 << 20, 8, 300_000);
    drop(volume);
    let estimated = host.estimated_restore(&full, Some("data")).await;
    let task = host.call(START_IN_PLACE, &in_place_restore(&full, "data")).await.task_id;
    let done = host.done(task).await;
    assert!(done.downloaded_bytes < 4 << 20, "{done:?}");
    assert_within_5_percent(of_estimate(&estimated), of_task(&done));
    first.assert_is(&host.volume("data"));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_estimate_is_that_of_the_collection() {
    let host = Host::new().await;
    let (_, volume, _) = host.stopped_backup().await;
    drop(volume);
    host.sql("DELETE FROM tasks");
    let packs = host.packs();
    let collect = async |dry_run, limits| {
        let request = CollectGarbage { dry_run, limits, ..CollectGarbage::default() };
        let later = || Timestamp::now() + SignedDuration::from_hours(9 * 24);
        host.engine().maintenance.collect_garbage_at(&request, later).await
    };
    // A collection ends before it exceeds its budget, and a repeated one continues.
    let refused = collect(false, budget(3)).await.unwrap_err().to_api();
    assert_eq!((refused.code, host.packs()), (ErrorCode::BudgetExhausted, packs.clone()));
    let estimated = collect(true, TaskLimits::NONE).await.unwrap();
    assert_eq!((estimated.garbage.len(), estimated.objects_deleted, host.packs()), (1, 0, packs.clone()));
    let collected = collect(false, TaskLimits::NONE).await.unwrap();
    assert_eq!(host.packs(), Vec::<String>::new());
    assert_within_5_percent(of_estimate(&estimated.costs), of_estimate(&collected.costs));
    assert_eq!(estimated.costs.freed_bytes, collected.costs.freed_bytes);
    assert!(estimated.costs.freed_bytes > 0 && estimated.costs.requests.delete >= packs.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn drill_estimate_is_bounded_then_measured() {
    let host = Host::new().await;
    let snap = host.backed_up_files().await;
    let estimate = StartDrill { files: None, ..drill_of(&snap) };
    let estimated = async || host.call(ESTIMATE_DRILL, &estimate).await.items.remove(0);
    let bound = estimated().await;
    assert!(bound.basis.starts_with("each frame"), "{}", bound.basis);
    let drill = async |limits| {
        let request = StartDrill { limits, files: None, ..drill_of(&snap) };
        host.wait(host.call(START_DRILL, &request).await.task_id).await
    };
    // A drill with other options is no measure.
    let small = StartDrill { files: Some(1), ..drill_of(&snap) };
    host.done(host.call(START_DRILL, &small).await.task_id).await;
    assert_eq!(estimated().await.basis, bound.basis);
    let like_small = host.call(ESTIMATE_DRILL, &small).await.items.remove(0);
    assert!(like_small.basis.starts_with("last drill"), "{}", like_small.basis);
    let first = drill(TaskLimits::NONE).await;
    assert!(bound.requests.get >= first.requests.get && bound.download_bytes >= first.downloaded_bytes);
    let estimated = estimated().await;
    assert!(estimated.basis.starts_with("last drill"), "{}", estimated.basis);
    let second = drill(TaskLimits::NONE).await;
    assert_eq!(estimated.requests.get, second.requests.get);
    assert_within_5_percent(
        (second.requests, estimated.upload_bytes, estimated.download_bytes),
        of_task(&second),
    );
    let results = host.drills().await.len();
    // Without the requests of its proof, a drill has no result either.
    for max in [second.requests.get / 2, second.requests.get + 1] {
        let stopped = drill(budget(max)).await;
        assert_eq!(stopped.error.unwrap().code, ErrorCode::BudgetExhausted);
        assert_eq!(host.drills().await.len(), results, "a drill without a result");
    }
    assert_eq!(drill(budget(second.requests.get + 2)).await.error, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_end_at_each_budget_and_resume() {
    let host = Host::new().await;
    let (volume, model) = host.fill("data").await;
    drop(volume);
    host.create_credential().await;
    let options = BackupOptions { full: true, reupload: true, ..BackupOptions::default() };
    let request = StartBackup { options, ..backup_of("data") };
    let needed = 1 + 2 + 2;
    for max in 0..=needed {
        let request = StartBackup { limits: budget(max), ..request.clone() };
        let task = host.call(START_BACKUP, &request).await.items[0].task_id;
        assert_eq!(host.resumed_after(task, max).await, max < needed, "{max} requests");
    }
    let snap = host.ids().await.remove(0);
    assert_eq!(host.list().await.len() as u64, needed + 1, "the key slot, 2 packs, the index, the manifest");
    let needed = 1 + 2;
    for max in 0..=needed {
        let name = format!("copy-{max}");
        let request = StartRestore { limits: budget(max), ..restore_as(&snap, &name) };
        let task = host.call(START_RESTORE, &request).await.task_id;
        assert_eq!(host.resumed_after(task, max).await, max < needed, "{max} requests");
        model.assert_is(&host.volume(&name));
    }
    // A budget of received bytes.
    let max_bytes = SIZE_BYTES * 3 / 4;
    let limits = TaskLimits { max_egress_bytes: Some(max_bytes), ..TaskLimits::NONE };
    let request = StartRestore { limits, ..restore_as(&snap, "half") };
    let task = host.wait(host.call(START_RESTORE, &request).await.task_id).await;
    assert_eq!(task.error.as_ref().unwrap().code, ErrorCode::BudgetExhausted);
    assert!(task.resumable && task.downloaded_bytes <= max_bytes);
}

fn budget(max_requests: u64) -> TaskLimits {
    TaskLimits { max_requests: Some(max_requests), ..TaskLimits::NONE }
}

impl Host {
    /// Waits for the end of a task with a budget, and resumes it with a higher one until it is done. Returns
    /// false if it needed none.
    async fn resumed_after(&self, task: Uuid, max: u64) -> bool {
        let ended = self.wait(task).await;
        let requests = &ended.requests;
        let made = requests.put + requests.get + requests.list + requests.delete;
        assert!(made <= max, "{made} requests");
        if ended.state.stage == TaskStage::Done {
            return false;
        }
        assert_eq!(ended.error.as_ref().unwrap().code, ErrorCode::BudgetExhausted, "{ended:?}");
        assert!(ended.resumable, "{ended:?}");
        self.call_at(LIMIT_TASK, &task, &budget(100)).await;
        self.call_at(RESUME_TASK, &task, &()).await;
        assert_eq!(self.done(task).await.resumed, 1);
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drill_that_reaches_its_budget_is_stopped() {
    let host = Host::new().await;
    let snap = host.backed_up_files().await;
    let request = StartDrill { limits: budget(3), ..drill_of(&snap) };
    let task = host.wait(host.call(START_DRILL, &request).await.task_id).await;
    let error = task.error.unwrap();
    assert!(error.code == ErrorCode::BudgetExhausted && !task.resumable, "{error:?}");
    assert!(error.hint.unwrap().contains("--max-requests"));
    assert_eq!(
        (host.events_of("drill-stopped").await.len(), host.events_of("drill-failed").await.len()),
        (1, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn cost_limit_needs_prices() {
    let host = Host::new().await;
    let (volume, _) = host.fill("data").await;
    drop(volume);
    host.create_credential().await;
    let limits = |amount: &str| TaskLimits { max_cost: Some(amount.parse().unwrap()), ..TaskLimits::NONE };
    let request = StartBackup { limits: limits("1"), ..backup_of("data") };
    host.refused(ErrorCode::InvalidRequest, START_BACKUP, &request).await;
    // The table of `PRICED` has 0.1 for 1,000 PUT, and 0.9 for a GiB.
    let directory = tempfile::tempdir().unwrap();
    host.create_credential_at(PRICED, directory.path()).await;
    let credentials = vec![PRICED.parse().unwrap()];
    let request = StartBackup { credentials, ..request };
    let estimate = host.call(ESTIMATE_BACKUP, &request).await.items.remove(0);
    let price = estimate.price.unwrap();
    assert_eq!(estimate.requests.put, 4);
    assert_eq!((price.requests, price.currency.as_str()), (Money::from_millionths(400), "EUR"));
    assert_eq!((price.egress, price.total), (Money::from_millionths(1), Money::from_millionths(401)));
    assert!(price.storage_per_month > Money::from_millionths(0));
    let short = StartBackup { limits: limits("0.000399"), ..request.clone() };
    let task = host.wait(host.call(START_BACKUP, &short).await.items[0].task_id).await;
    assert_eq!(task.error.unwrap().code, ErrorCode::BudgetExhausted);
    host.call_at(LIMIT_TASK, &task.task_id, &limits("0.01")).await;
    host.call_at(RESUME_TASK, &task.task_id, &()).await;
    host.done(task.task_id).await;
}
