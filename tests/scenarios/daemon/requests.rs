//! Requests of backups, and missing objects and repositories that they detect.

use super::*;
use blockd_api::cloudsnaps::InspectCloudsnap;
use blockd_catalog::Chain;
use std::{os::unix::fs::MetadataExt, time::Instant};

impl Host {
    /// Asserts that a backup fails, stores nothing and can be resumed; returns its error message.
    async fn assert_backup_refused(&self, stored: &[String]) -> String {
        let failed = self.wait(self.start_backup("data", false).await).await;
        let state = failed.state.to_string();
        assert_eq!((state.as_str(), failed.resumable), ("Backup-Failed", true), "{failed:?}");
        assert_eq!(walk(self.store.path()), stored);
        failed.error.unwrap().message
    }

    fn chain_tip(&self) -> Option<String> {
        let chains = self.engine().db.transaction(|tx| Chain::all(tx, None)).unwrap();
        chains.first().map(|chain| chain.cloudsnap.to_string())
    }

    /// Replaces the store by an empty directory, as an unmount does.
    fn unmount(&self) -> PathBuf {
        let away = self.hide_store();
        fs::create_dir(self.store.path()).unwrap();
        away
    }

    /// Records device and inode of the present directory as those of the repository.
    fn record_identity(&self, credential: Uuid) {
        let found = fs::metadata(self.store.path()).unwrap();
        let proven = (Instant::now(), Some((found.dev(), found.ino())));
        self.engine().repositories.proven.lock().insert(credential, proven);
    }

    fn mount(&self, away: &Path) {
        fs::remove_dir_all(self.store.path()).unwrap();
        self.show_store(away);
    }
}

/// Returns the number of packs of a backup.
fn packs_of(task: &Task) -> u64 {
    task.dirty_bytes.div_ceil(64 * 128 * BLOCK)
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_makes_three_requests_besides_its_packs() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 40 << 20);
    let full = host.backup("data", false).await;
    let requests = |task: &Task| {
        let made = &task.requests;
        (made.put - packs_of(task), made.get, made.list + made.head + made.delete)
    };
    assert_eq!((packs_of(&full), requests(&full)), (2, (2, 1, 0)), "index and manifest; key slot");
    for len in [1, 34 << 20] {
        model.write(&volume, 0, 2 + len as u64, len);
        let next = host.backup("data", false).await;
        assert_eq!(next.backup_type, Some(BackupType::Incremental));
        assert_eq!(requests(&next), (2, 1, 0), "index and manifest; base, after the commit: {next:?}");
    }
    // Once a day and after a restart, the identity of the repository is checked.
    host.engine().repositories.forget_proofs();
    model.write(&volume, 0, 7, 1);
    assert_eq!(requests(&host.backup("data", false).await), (2, 2, 0));
    model.write(&volume, 0, 8, 1);
    assert_eq!(requests(&host.backup("data", false).await), (2, 1, 0));
    // The manifest of the base is fetched if it is not cached.
    host.sql("DELETE FROM catalog");
    model.write(&volume, 0, 9, 1);
    let last = host.backup("data", false).await;
    assert_eq!((last.backup_type, requests(&last)), (Some(BackupType::Incremental), (2, 2, 0)));
    model.assert_is(&*host.restore(&last.cloud_snapshot_id.unwrap(), "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn incremental_without_its_base_becomes_a_full_backup() {
    for dies_at in [None, Some("backup restarted"), Some("backup planned")] {
        let mut host = Host::new().await;
        let (base, volume, mut model) = host.one_backup().await;
        let frozen = model.clone();
        if dies_at != Some("backup planned") {
            fs::remove_file(host.manifest(&base)).unwrap();
        }
        dies_at.iter().for_each(|step| host.die_at(step));
        let task = host.start_backup("data", false).await;
        let resumed = u64::from(dies_at.is_some());
        if let Some(step) = dies_at {
            host.crashed().await;
            model.write(&volume, 9 << 20, 3, 1 << 20);
            drop(volume);
            host.stop().await;
            if step == "backup planned" {
                // Deleted and not cached any more while the daemon was down: the stored plan has no base.
                fs::remove_file(host.manifest(&base)).unwrap();
                rusqlite::Connection::open(host.dir.path().join("data/blockd.db"))
                    .unwrap()
                    .execute_batch("DELETE FROM catalog")
                    .unwrap();
            }
            host.start().await;
        }
        let full = host.done(task).await;
        assert_eq!((full.backup_type, full.resumed), (Some(BackupType::Full), resumed), "{dies_at:?}");
        assert_eq!(
            full.note.as_deref(),
            Some("a snapshot that the backup needed was deleted or damaged"),
            "{dies_at:?}"
        );
        let id = full.cloud_snapshot_id.unwrap();
        assert_eq!(host.ids().await, [id.as_str()], "the incremental backup is not listed: {dies_at:?}");
        assert_eq!(host.chain_tip().as_deref(), Some(id.as_str()));
        host.assert_tidy();
        frozen.assert_is(&*host.restore(&id, "copy").await);
        let next = host.backup("data", false).await;
        assert_eq!(next.backup_type, Some(BackupType::Incremental));
        model.assert_is(&*host.restore(&next.cloud_snapshot_id.unwrap(), "last").await);
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn incremental_is_refused_in_another_directory() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let credential = host.create_credential().await;
    let (base, model) = host.back_up_and_write(&volume).await;

    let away = host.unmount();
    host.assert_backup_refused(&[]).await;
    assert_eq!(host.chain_tip().as_deref(), Some(base.as_str()), "the chain is kept");

    // Nor with the same device and inode, as disks that alternate at one mount point may have.
    host.record_identity(credential);
    host.assert_backup_refused(&[]).await;
    assert_eq!(host.chain_tip().as_deref(), Some(base.as_str()));

    host.mount(&away);
    let done = host.backup("data", false).await;
    assert_eq!(done.backup_type, Some(BackupType::Incremental));
    model.assert_is(&*host.restore(&done.cloud_snapshot_id.unwrap(), "copy").await);
    assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Incremental));
    host.assert_tidy();
}

/// The disk of another repository is mounted at the path of the store.
#[tokio::test(flavor = "multi_thread")]
async fn swapped_repository_directory_is_detected_before_uploads() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let credential = host.create_credential().await;
    let other = Host::new().await;
    let foreign = other.create_volume("data").await;
    other.create_credential().await;
    Model::new().write(&foreign, 0, 2, 1 << 20);
    other.backup("data", false).await;
    let (base, model) = host.back_up_and_write(&volume).await;

    let swap = |one: &Path, two: &Path| {
        let between = one.with_extension("between");
        fs::rename(one, &between).unwrap();
        fs::rename(two, one).unwrap();
        fs::rename(&between, two).unwrap();
    };
    swap(host.store.path(), other.store.path());
    host.record_identity(credential);
    let before = walk(host.store.path());
    let message = host.assert_backup_refused(&before).await;
    assert!(message.contains("blockd/keys/"), "{message}");
    assert_eq!(host.chain_tip().as_deref(), Some(base.as_str()), "the chain is kept");

    swap(host.store.path(), other.store.path());
    let done = host.backup("data", false).await;
    assert_eq!(done.backup_type, Some(BackupType::Incremental));
    model.assert_is(&*host.restore(&done.cloud_snapshot_id.unwrap(), "copy").await);
    host.assert_tidy();
}

/// A backup started in one repository is not stored in another one; it resumes when its repository is mounted
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn interrupted_backup_waits_for_its_directory() {
    let mut host = Host::new().await;
    let (_, volume, model) = host.one_backup().await;
    host.die_at(crash_after_commit::COMMITTED);
    let task = host.start_backup("data", false).await;
    host.crashed().await;
    drop(volume);
    host.stop().await;
    let away = host.unmount();
    host.start().await;
    let failed = host.wait(task).await;
    assert_eq!((failed.state.to_string().as_str(), failed.resumable), ("Backup-Failed", true), "{failed:?}");
    assert!(walk(host.store.path()).is_empty(), "{:?}", walk(host.store.path()));
    host.mount(&away);
    host.call_at(RESUME_TASK, &task, &()).await;
    let done = host.done(task).await;
    assert_eq!(done.backup_type, Some(BackupType::Incremental));
    model.assert_is(&*host.restore(&done.cloud_snapshot_id.unwrap(), "copy").await);
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_cloud_snapshot_is_searched_in_all_locations() {
    let (host, other) = (Host::new().await, tempfile::tempdir().unwrap());
    host.create_credential().await;
    let unknown = format!("{}/1-2", host.engine().host.cluster);
    let query = InspectCloudsnap { cloud_snapshot_id: unknown.parse().unwrap(), credential: None };
    let inspect = || host.client.call(INSPECT_CLOUDSNAP, &query);
    let message = inspect().await.unwrap_err().to_string();
    assert!(!message.contains("any of the stores"), "{message}");
    host.create_credential_at("offsite", other.path()).await;
    let error = inspect().await.unwrap_err();
    assert!(error.to_string().ends_with("in any of the stores of nas, offsite"), "{error}");
    assert_eq!(api_code(inspect().await), ErrorCode::CloudsnapNotFound);
}
