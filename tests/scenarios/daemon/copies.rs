//! A backup that was interrupted, on a store where nothing tells its daemon from a copy of it.

use super::*;

impl Host {
    /// From now on the store of the only credential is taken for one that cannot create an object only if it
    /// is absent.
    pub(super) fn store_replaces_objects(&self) {
        self.sql("UPDATE credentials SET capabilities = json_set(capabilities, '$.conditional_put', json('false'))");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_backup_is_abandoned_without_conditional_put() {
    for (step, goes_on) in [
        ("backup accepted", false),
        ("backup frozen", false),
        ("backup planned", false),
        ("backup stored", true),
    ] {
        let mut host = Host::new().await;
        let volume = host.create_volume("data").await;
        host.create_credential().await;
        host.store_replaces_objects();
        let mut model = Model::new();
        model.write(&volume, 0, 1, 3 << 20);
        host.backup("data", false).await;
        model.write(&volume, 1 << 20, 2, 1 << 20);

        host.die_at(step);
        let task = host.start_backup("data", false).await;
        host.engine().host.stopping.cancelled().await;
        drop(volume);
        host.die_and_start().await;
        let task = host.wait(task).await;
        assert_eq!(task.resumed, 1, "{step}");
        if goes_on {
            assert_eq!(task.state.stage, TaskStage::Done, "{step}: {task:?}");
        } else {
            assert_eq!(task.state.stage, TaskStage::Failed, "{step}: {task:?}");
            let error = task.error.as_ref().unwrap();
            assert_eq!(error.code, ErrorCode::StoreFailed);
            assert!(error.message.contains("create-if-absent"), "{error}");
        }
        // What is listed is what the tasks say, and the next backup carries what a failed one should have.
        assert_eq!(host.list().await.len(), 1 + usize::from(goes_on), "{step}");
        let next = host.backup("data", false).await;
        assert_eq!(next.backup_type, Some(BackupType::Incremental), "{step}");
        // A found manifest is no base: it is unknown how often it was put.
        assert_eq!(next.bytes_dirty, 1 << 20, "{step}");
        host.assert_tidy();
        model.assert_is(&*host.restore(&next.source_volume.unwrap(), "copy").await);
        host.stop().await;
    }
}
