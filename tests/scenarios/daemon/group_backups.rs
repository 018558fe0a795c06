//! Group backups: one point in time or none, also after a crash.

use super::*;
use blockd_api::{
    cloudsnaps::{GroupBackupStarted, StartGroupBackup},
    schedules::{CreateSchedule, RunState},
};
use blockd_schedule::Retention;
use std::collections::BTreeMap;

const NAMES: [&str; 3] = ["a", "b", "c"];

impl Host {
    /// Creates three volumes in the group `shop`.
    pub(super) async fn grouped_volumes(&self) {
        for name in NAMES {
            let group = Some("shop".parse().unwrap());
            self.call(CREATE_VOLUME, &CreateVolume { group, ..new_volume(name) }).await;
        }
    }

    pub(super) async fn backup_group(&self, credentials: &[&str]) -> GroupBackupStarted {
        let credentials = credentials.iter().map(|name| name.parse().unwrap());
        let request = StartGroupBackup {
            group: Some("shop".parse().unwrap()),
            credentials: credentials.collect(),
            ..StartGroupBackup::default()
        };
        self.call(START_GROUP_BACKUP, &request).await
    }

    /// Waits for the end of all tasks.
    pub(super) async fn ended(&self, started: &GroupBackupStarted) -> Vec<Task> {
        let mut ended = Vec::new();
        for task in started.list.items.iter().flat_map(|member| &member.task_ids) {
            ended.push(self.wait(*task).await);
        }
        ended
    }

    /// Waits for all tasks, which must succeed.
    pub(super) async fn all_done(&self, started: &GroupBackupStarted) -> Vec<Task> {
        let ended = self.ended(started).await;
        for task in &ended {
            assert_eq!((task.state.stage, &task.error), (TaskStage::Done, &None), "{task:?}");
        }
        ended
    }

    /// Returns the number of cloud snapshots by point in time.
    async fn points_in_time(&self) -> BTreeMap<jiff::Timestamp, usize> {
        let mut points = BTreeMap::new();
        for entry in self.list().await {
            *points.entry(entry.created_at).or_default() += 1;
        }
        points
    }
}

/// Writes increasing numbers to the volumes in turn until `stop` is set.
fn count_up(
    volumes: Vec<Arc<Volume>>,
    stop: Arc<std::sync::atomic::AtomicBool>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for number in 1_u64.. {
            for volume in &volumes {
                volume.write(0, &number.to_le_bytes(), false).unwrap();
            }
            if stop.load(std::sync::atomic::Ordering::Relaxed) {
                return;
            }
        }
    })
}

fn number_in(volume: &Volume) -> u64 {
    let mut bytes = [0; 8];
    volume.read(0, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_backup_has_one_point_in_time_in_each_location() {
    let (mut host, other) = (Host::new().await, tempfile::tempdir().unwrap());
    host.create_credential().await;
    host.create_credential_at("offsite", other.path()).await;
    host.grouped_volumes().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = count_up(NAMES.map(|name| host.volume(name)).to_vec(), Arc::clone(&stop));
    let started = host.backup_group(&["nas", "offsite"]).await;
    let tasks = host.all_done(&started).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    assert_eq!(tasks.len(), 6);
    assert_eq!(host.points_in_time().await.into_values().collect::<Vec<_>>(), [6]);
    // Later writes are in the backup only with earlier ones.
    let mut numbers = Vec::new();
    for member in &started.list.items {
        let task = host.wait(member.task_ids[0]).await;
        let then = format!("{}-then", member.volume_name);
        let credential = Some("nas".parse().unwrap());
        let request = StartRestore { credential, ..restore_as(&task.cloud_snapshot_id.unwrap(), &then) };
        numbers.push(number_in(&*host.run_restore(&request).await));
    }
    assert!(numbers[0] - numbers[2] <= 1, "not one point in time: {numbers:?}");
    assert!(numbers.is_sorted_by(|first, then| first >= then), "not one point in time: {numbers:?}");
    host.assert_tidy();
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_backup_has_one_point_in_time_after_a_crash() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.grouped_volumes().await;
    let mut points = 0;
    for step in ["backup accepted", "group frozen", "backup frozen", "backup planned", "backup stored"] {
        host.die_at(step);
        let started = host.backup_group(&["nas"]).await;
        host.die_and_start().await;
        host.all_done(&started).await;
        points += 1;
        let found = host.points_in_time().await;
        assert_eq!(found.len(), points, "{step}");
        assert!(found.values().all(|count| *count == NAMES.len()), "{step}: {found:?}");
        host.assert_tidy();
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_freeze_of_a_member_backs_up_no_other() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.grouped_volumes().await;
    fs::create_dir(host.volume("b").dir().join("layer-0000000000000002.data")).unwrap();
    let started = host.backup_group(&["nas"]).await;
    for task in host.ended(&started).await {
        let reason = task.error.map(|error| error.message).unwrap_or_default();
        assert_eq!(task.state.stage, TaskStage::Failed);
        assert!(reason.contains("failed on volume b"), "{reason}");
    }
    assert_eq!(host.list().await.len(), 0);
    host.assert_tidy();
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_schedule_freezes_once_for_all_locations() {
    let (mut host, other) = (Host::new().await, tempfile::tempdir().unwrap());
    host.create_credential().await;
    host.create_credential_at("offsite", other.path()).await;
    host.grouped_volumes().await;
    let schedule = CreateSchedule {
        selector: select_group("shop"),
        credentials: vec!["nas".parse().unwrap(), "offsite".parse().unwrap()],
        rules: vec![rule(NEVER)],
        ..CreateSchedule::default()
    };
    let schedule = host.call(CREATE_SCHEDULE, &schedule).await;
    for round in 1..=2 {
        let begun = host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await.items;
        assert_eq!(begun.len(), 6);
        let runs = host.settled().await;
        assert!(runs.iter().all(|run| run.state == RunState::Done), "{runs:?}");
        assert_eq!(host.points_in_time().await.into_values().collect::<Vec<_>>(), vec![6; round]);
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_snapshots_of_group_backups_have_its_name() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.grouped_volumes().await;
    let group = Some("shop".parse().unwrap());
    let request = StartGroupBackup { group, keep_local: true, ..StartGroupBackup::default() };
    let started = host.call(START_GROUP_BACKUP, &request).await;
    host.all_done(&started).await;
    let of_group = ListSnapshots { group: Some("shop".parse().unwrap()), ..ListSnapshots::default() };
    assert_eq!(host.call(LIST_SNAPSHOTS, &of_group).await.items.len(), 3);

    let schedule = CreateSchedule {
        selector: select_group("shop"),
        credentials: vec!["nas".parse().unwrap()],
        rules: vec![rule(NEVER)],
        local: Some(Retention::max(1).unwrap()),
        ..CreateSchedule::default()
    };
    let schedule = host.call(CREATE_SCHEDULE, &schedule).await;
    host.call_at(RUN_SCHEDULE, &schedule.schedule_id, &Default::default()).await;
    host.settled().await;
    assert_eq!(host.call(LIST_SNAPSHOTS, &of_group).await.items.len(), 6);
    host.stop().await;
}
