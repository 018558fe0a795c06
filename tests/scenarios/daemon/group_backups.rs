//! Backups of several volumes: of one instant or not at all, whenever the daemon dies.

use super::*;
use blockd_api::{
    cloudsnaps::{GroupBackupStarted, StartGroupBackup},
    schedules::{CreateSchedule, ListRuns, Rule, RunState, Selector},
};
use std::collections::{BTreeMap, BTreeSet};

const NAMES: [&str; 3] = ["a", "b", "c"];

impl Host {
    pub(super) async fn grouped_volumes(&self) {
        for name in NAMES {
            let group = Some("shop".parse().unwrap());
            let labels = Default::default();
            let request = CreateVolume { name: name.parse().unwrap(), size_bytes: SIZE_BYTES, labels, group };
            self.call(CREATE_VOLUME, &request).await;
        }
    }

    pub(super) async fn second_credential(&self, dir: &tempfile::TempDir) {
        let provider = StoreConfig::Local { path: dir.path().to_owned() };
        let request = CreateCredential { provider, ..self.credential("offsite", None) };
        self.call(CREATE_CREDENTIAL, &request).await;
    }

    pub(super) async fn backup_group(&self, places: &[&str]) -> GroupBackupStarted {
        let mut places = places.iter().map(|name| name.parse().unwrap());
        let request = StartGroupBackup {
            group: Some("shop".parse().unwrap()),
            cred_id: places.next(),
            also: places.collect(),
            ..StartGroupBackup::default()
        };
        self.call(START_GROUP_BACKUP, &request).await
    }

    pub(super) async fn ended(&self, started: &GroupBackupStarted) -> Vec<Task> {
        let mut ended = Vec::new();
        for task in started.members.iter().flat_map(|member| &member.tasks) {
            ended.push(self.wait(*task).await);
        }
        ended
    }

    /// The instants that are in the stores, and how many cloud snapshots there are of each.
    async fn instants(&self) -> BTreeMap<jiff::Timestamp, usize> {
        let mut instants = BTreeMap::new();
        for entry in self.list().await {
            *instants.entry(entry.timestamp).or_default() += 1;
        }
        instants
    }
}

/// Writes increasing numbers to the volumes in turn until it is stopped.
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
    host.second_credential(&other).await;
    host.grouped_volumes().await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = count_up(NAMES.map(|name| host.volume(name)).to_vec(), Arc::clone(&stop));
    let started = host.backup_group(&["nas", "offsite"]).await;
    let tasks = host.ended(&started).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    assert_eq!(tasks.len(), 6);
    assert!(tasks.iter().all(|task| task.state.stage == TaskStage::Done), "{tasks:?}");
    assert_eq!(host.instants().await.into_values().collect::<Vec<_>>(), [6]);
    // What was written first is in it if what was written later is.
    let mut numbers = Vec::new();
    for member in &started.members {
        let task = host.wait(member.tasks[0]).await;
        let then = format!("{}-then", member.volume);
        let request = StartRestore {
            volume: Some(then.parse().unwrap()),
            cred_id: Some("nas".parse().unwrap()),
            ..StartRestore::of(task.source_volume.unwrap().parse().unwrap())
        };
        let restore = host.call(START_RESTORE, &request).await;
        host.done(restore.task).await;
        numbers.push(number_in(&host.volume(&then)));
    }
    assert!(numbers[0] - numbers[2] <= 1, "{numbers:?} are not of one instant");
    assert!(numbers.is_sorted_by(|first, then| first >= then), "{numbers:?} are not of one instant");
    host.assert_tidy();
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_backup_has_one_point_in_time_after_a_crash() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.grouped_volumes().await;
    let mut instants = 0;
    for step in ["backup accepted", "group frozen", "backup frozen", "backup planned", "backup stored"] {
        host.die_at(step);
        let started = host.backup_group(&["nas"]).await;
        host.die_and_start().await;
        for task in host.ended(&started).await {
            assert_eq!((task.state.stage, &task.error), (TaskStage::Done, &None), "{step}");
        }
        instants += 1;
        let found = host.instants().await;
        assert_eq!(found.len(), instants, "{step}");
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
    std::fs::create_dir(host.volume("b").dir().join("layer-0000000000000002.data")).unwrap();
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
    host.second_credential(&other).await;
    host.grouped_volumes().await;
    let schedule = CreateSchedule {
        selector: Selector { group: Some("shop".parse().unwrap()), ..Selector::default() },
        cred_ids: vec!["nas".parse().unwrap(), "offsite".parse().unwrap()],
        rules: vec![Rule { when: "calendar 2199-01-01 00:00".parse().unwrap(), retain: None }],
        ..CreateSchedule::default()
    };
    let schedule = host.call(CREATE_SCHEDULE, &schedule).await;
    for round in 1..=2 {
        let begun = host.call_at(RUN_SCHEDULE, &schedule.uuid, &()).await.runs;
        assert_eq!(begun.len(), 6);
        let is_over = |state| !matches!(state, RunState::Queued | RunState::Active);
        let mut runs = Vec::new();
        for _ in 0..2400 {
            runs = host.call(LIST_RUNS, &ListRuns::default()).await.runs;
            if runs.iter().all(|run| is_over(run.state)) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let states: BTreeSet<_> = runs.iter().map(|run| run.state.as_str()).collect();
        assert_eq!(states, BTreeSet::from(["done"]), "{runs:?}");
        let instants = host.instants().await;
        assert_eq!(instants.into_values().collect::<Vec<_>>(), vec![6; round]);
    }
    host.stop().await;
}
