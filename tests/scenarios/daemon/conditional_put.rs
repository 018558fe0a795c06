//! Interrupted backups on a store without conditional put, where a copy of the daemon may run as well.

use super::*;

impl Host {
    /// Records that the store of the only credential has no conditional put.
    pub(super) fn disable_conditional_put(&self) {
        self.sql("UPDATE credentials SET capabilities = json_set(capabilities, '$.conditional_put', json('false'))");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_backup_is_abandoned_without_conditional_put() {
    for (step, resumes) in [
        ("backup accepted", false),
        ("backup frozen", false),
        ("backup planned", false),
        ("backup stored", true),
    ] {
        let mut host = Host::new().await;
        let volume = host.create_volume("data").await;
        host.create_credential().await;
        host.disable_conditional_put();
        let (_, model) = host.back_up_and_write(&volume).await;

        host.die_at(step);
        let task = host.start_backup("data", false).await;
        drop(volume);
        host.die_and_start().await;
        let task = host.wait(task).await;
        assert_eq!(task.resumed, 1, "{step}");
        if resumes {
            assert_eq!(task.state.stage, TaskStage::Done, "{step}: {task:?}");
        } else {
            assert_eq!(task.state.stage, TaskStage::Failed, "{step}: {task:?}");
            let error = task.error.as_ref().unwrap();
            assert_eq!(error.code, ErrorCode::StoreFailed);
            assert!(error.message.contains("create-if-absent"), "{error}");
        }
        // The next backup includes the blocks of a failed one.
        assert_eq!(host.list().await.len(), 1 + usize::from(resumes), "{step}");
        let next = host.backup("data", false).await;
        assert_eq!(next.backup_type, Some(BackupType::Incremental), "{step}");
        // A manifest found after the restart is not used as a base: the copy may have put it.
        assert_eq!(next.dirty_bytes, 1 << 20, "{step}");
        host.assert_tidy();
        model.assert_is(&*host.restore(&next.cloud_snapshot_id.unwrap(), "copy").await);
        host.stop().await;
    }
}

/// The packs of the resumed run may have other levels than those of a late put of the first one.
#[tokio::test(flavor = "multi_thread")]
async fn lost_journal_ends_a_backup_without_conditional_put() {
    for conditional_put in [false, true] {
        let host = Host::new().await;
        let (task, volume, model) = host.stopped_backup().await;
        if !conditional_put {
            host.disable_conditional_put();
        }
        let journal = host.dir.path().join(format!("data/tasks/{task}/journal"));
        fs::remove_file(&journal).unwrap();
        host.call_at(RESUME_TASK, &task, &()).await;
        let resumed = host.wait(task).await;
        if conditional_put {
            assert_eq!(resumed.state.stage, TaskStage::Done, "{resumed:?}");
            model.assert_is(&*host.restore(&resumed.cloud_snapshot_id.unwrap(), "copy").await);
            continue;
        }
        assert_eq!((resumed.state.stage, resumed.resumable), (TaskStage::Failed, false), "{resumed:?}");
        let message = resumed.error.unwrap().message;
        assert!(
            message.contains("journal is missing") && message.contains("start a new backup"),
            "{message}"
        );
        let next = host.backup("data", false).await;
        host.assert_tidy();
        model.assert_is(&*host.restore(&next.cloud_snapshot_id.unwrap(), "copy").await);
        drop(volume);
    }
}
