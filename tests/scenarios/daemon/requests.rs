//! Tests of the requests of backups, and of missing objects that they did not check.

use super::*;
use blockd_api::cloudsnaps::InspectCloudsnap;
use blockd_catalog::Chain;
use std::{fs, os::unix::fs::MetadataExt, path::PathBuf, time::Instant};

impl Host {
    fn manifests(&self) -> Vec<String> {
        walk(&self.store.path().join("blockd/manifests"))
    }

    fn chain_tip(&self) -> Option<String> {
        let chains = self.engine().db.transaction(|tx| Chain::all(tx, None)).unwrap();
        chains.first().map(|chain| chain.cloudsnap.to_string())
    }

    /// Puts an empty directory where the store is, as a disk that is not mounted leaves it.
    fn unmount(&self) -> PathBuf {
        let away = self.store.path().with_extension("away");
        fs::rename(self.store.path(), &away).unwrap();
        fs::create_dir(self.store.path()).unwrap();
        away
    }

    /// From now on the directory that is there has the device and the inode of the one that was.
    fn replace_spelling(&self, credential: Uuid) {
        let found = fs::metadata(self.store.path()).unwrap();
        let proven = (Instant::now(), Some((found.dev(), found.ino())));
        self.engine().repositories.proven.lock().insert(credential, proven);
    }

    fn mount(&self, away: &Path) {
        fs::remove_dir_all(self.store.path()).unwrap();
        fs::rename(away, self.store.path()).unwrap();
    }
}

fn packs(task: &Task) -> u64 {
    task.bytes_dirty.div_ceil(256 * 32 * BLOCK)
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_makes_three_requests_beside_its_packs() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 40 << 20);
    let full = host.backup("data", false).await;
    let asked = |task: &Task| {
        let requests = &task.requests;
        (requests.put - packs(task), requests.get, requests.list + requests.head + requests.delete)
    };
    assert_eq!((packs(&full), asked(&full)), (2, (2, 1, 0)), "index and manifest; the key slot");
    for len in [1, 34 << 20] {
        model.write(&volume, 0, len as u64, len);
        let next = host.backup("data", false).await;
        assert_eq!(next.backup_type, Some(BackupType::Incremental));
        assert_eq!(asked(&next), (2, 1, 0), "index and manifest; the base, once it is committed: {next:?}");
    }
    // Once a day and after a start it is looked whether the place is the one that was opened.
    host.engine().repositories.forget_proofs();
    model.write(&volume, 0, 7, 1);
    assert_eq!(asked(&host.backup("data", false).await), (2, 2, 0));
    model.write(&volume, 0, 8, 1);
    assert_eq!(asked(&host.backup("data", false).await), (2, 1, 0));
    // What this host does not remember is fetched.
    host.sql("DELETE FROM catalog");
    model.write(&volume, 0, 9, 1);
    let last = host.backup("data", false).await;
    assert_eq!((last.backup_type, asked(&last)), (Some(BackupType::Incremental), (2, 2, 0)));
    model.assert_is(&*host.restore(&last.source_volume.unwrap(), "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn incremental_without_its_base_becomes_a_full_backup() {
    for dies_at in [None, Some("backup restarted as full"), Some("backup planned")] {
        let mut host = Host::new().await;
        let (base, volume, mut model) = host.one_backup().await;
        let frozen = model.clone();
        if dies_at != Some("backup planned") {
            fs::remove_file(host.store.path().join("blockd/manifests").join(&base)).unwrap();
        }
        dies_at.iter().for_each(|step| host.die_at(step));
        let task = host.start_backup("data", false).await;
        let resumed = u64::from(dies_at.is_some());
        if let Some(step) = dies_at {
            host.engine().host.stopping.cancelled().await;
            model.write(&volume, 9 << 20, 3, 1 << 20);
            drop(volume);
            host.stop().await;
            if step == "backup planned" {
                // Deleted and removed from the cache while the daemon was down: the kept plan has no base.
                fs::remove_file(host.store.path().join("blockd/manifests").join(&base)).unwrap();
                rusqlite::Connection::open(host.dir.path().join("data/blockd.db"))
                    .unwrap()
                    .execute_batch("DELETE FROM catalog")
                    .unwrap();
            }
            host.start().await;
        }
        let full = host.done(task).await;
        assert_eq!((full.backup_type, full.resumed), (Some(BackupType::Full), resumed), "{dies_at:?}");
        let id = full.source_volume.unwrap();
        let listed: Vec<_> = host.list().await.iter().map(|entry| entry.id.to_string()).collect();
        assert_eq!(listed, [id.as_str()], "what was on the base is not there: {dies_at:?}");
        assert_eq!(host.chain_tip().as_deref(), Some(id.as_str()));
        host.assert_tidy();
        frozen.assert_is(&*host.restore(&id, "copy").await);
        let next = host.backup("data", false).await;
        assert_eq!(next.backup_type, Some(BackupType::Incremental));
        model.assert_is(&*host.restore(&next.source_volume.unwrap(), "last").await);
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn incremental_is_refused_in_another_directory() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let credential = host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 3 << 20);
    let base = host.backup("data", false).await.source_volume.unwrap();
    model.write(&volume, 1 << 20, 2, 1 << 20);

    let away = host.unmount();
    let failed = host.wait(host.start_backup("data", false).await).await;
    assert_eq!((failed.state.to_string().as_str(), failed.resumable), ("Backup-Failed", false));
    assert!(walk(host.store.path()).is_empty(), "{:?}", walk(host.store.path()));
    assert_eq!(host.chain_tip().as_deref(), Some(base.as_str()), "nothing is forgotten");

    // Nor if it has the device and the inode of the one before, as disks may that take turns at one mount
    // point.
    host.replace_spelling(credential);
    let failed = host.wait(host.start_backup("data", false).await).await;
    assert_eq!((failed.state.to_string().as_str(), failed.resumable), ("Backup-Failed", false), "{failed:?}");
    assert!(walk(host.store.path()).is_empty(), "{:?}", walk(host.store.path()));
    assert_eq!((host.manifests(), host.chain_tip()), (Vec::new(), Some(base.clone())));

    host.mount(&away);
    let done = host.backup("data", false).await;
    assert_eq!(done.backup_type, Some(BackupType::Incremental));
    model.assert_is(&*host.restore(&done.source_volume.unwrap(), "copy").await);
    assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Incremental));
    host.assert_tidy();
}

/// Two disks with a repository each, and the wrong one is mounted: nothing is stored on it.
#[tokio::test(flavor = "multi_thread")]
async fn swapped_repository_directory_is_detected_before_uploads() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let credential = host.create_credential().await;
    let other = Host::new().await;
    let foreign = other.create_volume("data").await;
    other.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 3 << 20);
    Model::new().write(&foreign, 0, 2, 1 << 20);
    let base = host.backup("data", false).await.source_volume.unwrap();
    other.backup("data", false).await;
    model.write(&volume, 1 << 20, 3, 1 << 20);

    let swap = |one: &Path, two: &Path| {
        let between = one.with_extension("between");
        fs::rename(one, &between).unwrap();
        fs::rename(two, one).unwrap();
        fs::rename(&between, two).unwrap();
    };
    swap(host.store.path(), other.store.path());
    host.replace_spelling(credential);
    let before = walk(host.store.path());
    let failed = host.wait(host.start_backup("data", false).await).await;
    assert_eq!((failed.state.to_string().as_str(), failed.resumable), ("Backup-Failed", false), "{failed:?}");
    let error = failed.error.unwrap();
    assert!(error.message.contains("blockd/keys/"), "{error:?}");
    assert_eq!(walk(host.store.path()), before, "nothing was stored in the other repository");
    assert_eq!(host.chain_tip().as_deref(), Some(base.as_str()), "nothing is forgotten");

    swap(host.store.path(), other.store.path());
    let done = host.backup("data", false).await;
    assert_eq!(done.backup_type, Some(BackupType::Incremental));
    model.assert_is(&*host.restore(&done.source_volume.unwrap(), "copy").await);
    host.assert_tidy();
}

/// A backup started in one repository is not stored in another one: it resumes when the repository returns.
#[tokio::test(flavor = "multi_thread")]
async fn interrupted_backup_waits_for_its_directory() {
    let mut host = Host::new().await;
    let (_, volume, model) = host.one_backup().await;
    host.die_at(dying::COMMITTED);
    let task = host.start_backup("data", false).await;
    host.engine().host.stopping.cancelled().await;
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
    model.assert_is(&*host.restore(&done.source_volume.unwrap(), "copy").await);
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_cloud_snapshot_is_searched_in_all_locations() {
    let (host, other) = (Host::new().await, tempfile::tempdir().unwrap());
    host.create_credential().await;
    let unknown = format!("{}/1-2", host.engine().host.cluster);
    let query = InspectCloudsnap { id: unknown.parse().unwrap(), cred_id: None };
    let inspect = || host.client.call(INSPECT_CLOUDSNAP, &query);
    let message = inspect().await.unwrap_err().to_string();
    assert!(!message.contains("any of the stores"), "{message}");
    host.second_credential(&other).await;
    let error = inspect().await.unwrap_err();
    assert!(error.to_string().ends_with("in any of the stores of nas, offsite"), "{error}");
    assert_eq!(api_code(inspect().await), ErrorCode::CloudsnapNotFound);
}
