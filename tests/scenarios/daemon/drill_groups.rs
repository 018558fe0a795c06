//! Restore drills of consistency groups.

use super::*;
use blockd_api::{
    drills::{DrillOptions, StartGroupDrill},
    schedules::{CreateSchedule, RunState},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drills_of_a_group_read_one_point_in_time() {
    let host = Host::new().await;
    host.create_credential().await;
    host.grouped_volumes().await;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for point in [&mut first, &mut second] {
        let tasks = host.all_done(&host.backup_group(&["nas"]).await).await;
        point.extend(tasks.into_iter().map(|task| task.cloud_snapshot_id.unwrap()));
    }
    // A backup of one volume is no point of the group.
    host.backup("a", false).await;
    let request = StartGroupDrill {
        group: "shop".parse().unwrap(),
        credential: None,
        files: None,
        seed: Some(7),
        timeout_seconds: None,
    };
    let started = host.call(START_GROUP_DRILL, &request).await;
    let drilled: Vec<_> = started.list.items.iter().map(|one| one.cloud_snapshot_id.to_string()).collect();
    assert_eq!(drilled, second);
    for member in &started.list.items {
        assert_eq!(host.done(member.task_id).await.group_id, Some(started.group_id));
    }
    let by_schedule = CreateSchedule {
        selector: select_group("shop"),
        rules: vec![rule(NEVER)],
        drill: Some(DrillOptions::default()),
        ..CreateSchedule::default()
    };
    let runs = host.run_drills(&by_schedule).await;
    assert!(runs.len() == 3 && runs.iter().all(|run| run.state == RunState::Done), "{runs:?}");
    let mut drilled: Vec<_> =
        host.drills().await.iter().map(|one| one.cloud_snapshot_id.to_string()).collect();
    drilled.truncate(3);
    drilled.sort();
    second.sort();
    assert_eq!(drilled, second);
    // A point that lacks a volume is refused, even if an older one is complete.
    host.delete_cloudsnap(&delete_of(&second[0])).await;
    let error = host.client.call(START_GROUP_DRILL, &request).await.unwrap_err();
    assert!(error.to_string().contains(" lacks "), "{error}");
    host.refused(ErrorCode::CloudsnapNotFound, START_GROUP_DRILL, &request).await;
}
