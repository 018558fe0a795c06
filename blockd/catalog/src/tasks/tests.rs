//! Tests of the rows of tasks.

use super::super::{Db, NewEvent};
use super::*;
use blockd_api::roles::Role;

fn task(second: i64, state: TaskStage) -> TaskRow {
    let cloudsnap = CloudSnapshotId {
        cluster: Uuid::new_v4(),
        volume: VolumeId::from_u64(1),
        snapshot: SnapshotId::from_u64(2),
        incremental: true,
    };
    let owner = TaskOwner::Caller { name: "ops".into(), role: Role::Operator, uid: Some(7) };
    TaskRow {
        state,
        volume: Some(VolumeId::from_u64(1)),
        snapshot: Some(SnapshotId::from_u64(u64::MAX)),
        created: Timestamp::from_second(second).unwrap(),
        detail: TaskDetail { bytes_total: 7, note: Some("x".into()), ..TaskDetail::default() },
        ..TaskRow::new(TaskSpec::Backup(BackupTask::default()), Uuid::new_v4(), cloudsnap, owner)
    }
}

#[test]
fn stored_specs_keep_their_kind() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("blockd.db")).unwrap();
    let group_freeze =
        Some(GroupFreeze { id: Uuid::new_v4(), name: Some("shop".parse().unwrap()), volume_count: 3 });
    let in_place = InPlaceRestore {
        before: SnapshotId::from_u64(u64::MAX),
        discard: true,
        labels: "a=1".parse().unwrap(),
    };
    let verify = VerifyTask { depth: VerifyDepth::Deep, all: true, background: false };
    let specs = [
        TaskSpec::Backup(BackupTask {
            options: BackupOptions { expires_at: Some(Timestamp::UNIX_EPOCH), ..BackupOptions::default() },
            group_freeze,
            schedule: Some(Uuid::new_v4()),
            keep_local: Some("daily".parse().unwrap()),
            existing: true,
            ..BackupTask::default()
        }),
        TaskSpec::Restore(RestoreTask::NewVolume { skip_damaged: true }),
        TaskSpec::Restore(RestoreTask::LazyVolume),
        TaskSpec::Restore(RestoreTask::InPlace(in_place)),
        TaskSpec::Delete(DeleteTask { force: true, ..DeleteTask::default() }),
        TaskSpec::Verify(verify),
        TaskSpec::Drill(DrillTask {
            files: 9,
            seed: 7,
            timeout_s: 60,
            group: Some(Uuid::new_v4()),
            others: vec![MemberDrill { id: Uuid::new_v4(), volume: "log".into() }],
            probe: Some("db".parse().unwrap()),
            accept_layout: true,
        }),
    ];
    db.transaction::<_, DbError>(|tx| {
        for spec in specs {
            let row = TaskRow { spec, ..task(0, TaskStage::Pending) };
            row.put(tx)?;
            assert_eq!(TaskRow::find(tx, row.id)?.as_ref(), Some(&row));
            let sql = "SELECT kind FROM tasks WHERE id = ?1";
            let kind: String = tx.query_row(sql, [row.id.to_string()], |row| row.get(0))?;
            assert_eq!(kind, row.kind().as_str());
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn rows_read_back_and_old_ones_are_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&dir.path().join("blockd.db")).unwrap();
    db.transaction::<_, DbError>(|tx| {
        let tasks: Vec<_> = (0..5).map(|n| task(n, TaskStage::Done)).collect();
        let active = task(0, TaskStage::Active);
        for task in tasks.iter().chain([&active]) {
            task.put(tx)?;
        }
        assert_eq!(TaskRow::find(tx, tasks[0].id)?, Some(tasks[0].clone()));
        TaskRow { state: TaskStage::Active, ..tasks[4].clone() }.put_progress(tx)?;
        let mut stopped = task(0, TaskStage::Stopped);
        stopped.detail.resumable = true;
        stopped.put(tx)?;
        TaskRow::prune(tx, 2)?;
        assert_eq!(TaskRow::resumable(tx)?, vec![stopped.clone()]);
        assert_eq!(TaskRow::all(tx)?.len(), 4);
        stopped.detail.resumable = false;
        stopped.put(tx)?;
        TaskRow::prune(tx, 2)?;
        assert_eq!(TaskRow::all(tx)?, vec![tasks[4].clone(), tasks[3].clone(), active.clone()]);
        assert_eq!(TaskRow::unfinished(tx)?, vec![active]);
        Ok(())
    })
    .unwrap();
}

#[test]
fn verification_of_all_names_the_location() {
    let of = |all| {
        let spec = TaskSpec::Verify(VerifyTask { depth: VerifyDepth::Full, all, background: false });
        let mut row = TaskRow { spec, ..task(0, TaskStage::Done) };
        row.detail.credential_name = "nas".into();
        (NewEvent::of_task(&row, row.created).message, row.cloudsnap)
    };
    assert_eq!(of(true).0, "verify of all cloud snapshots at nas done");
    let (message, id) = of(false);
    assert_eq!(message, format!("verify of {id} done"));
}
