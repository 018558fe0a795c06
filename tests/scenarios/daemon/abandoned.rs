//! Backups that are abandoned after their commit and before the check of their base, and backups based on
//! them.

use super::{crash_after_commit::COMMITTED, resume::DISCARD, *};
use blockd_catalog::Doubt;
use blockd_cloud::CloudSnapshotId;
use blockd_engine::backup::doubts::Failing;
use jiff::{SignedDuration, Timestamp};

/// Longer than a request of an abandoned backup can be in flight.
const LATER: SignedDuration = SignedDuration::from_hours(2);

impl Host {
    fn doubts(&self) -> Vec<Doubt> {
        self.engine().db.transaction(Doubt::abandoned).unwrap()
    }

    /// Makes a full backup of a new volume, and writes to the volume after it.
    pub(super) async fn one_backup(&self) -> (String, Arc<Volume>, Model) {
        let volume = self.create_volume("data").await;
        self.create_credential().await;
        let (base, model) = self.back_up_and_write(&volume).await;
        (base, volume, model)
    }

    /// Makes a full backup of the volume `data`, and writes to it after it.
    pub(super) async fn back_up_and_write(&self, volume: &Volume) -> (String, Model) {
        let mut model = Model::new();
        model.write(volume, 0, 1, 3 << 20);
        let base = self.backup("data", false).await.cloud_snapshot_id.unwrap();
        model.write(volume, 1 << 20, 2, 1 << 20);
        (base, model)
    }

    /// Dies at the commit of a backup and starts without the store. Returns the task and the path of the
    /// store.
    async fn restart_committing_without_store(&mut self, volume: Arc<Volume>) -> (Uuid, PathBuf) {
        self.die_at(COMMITTED);
        let task = self.start_backup("data", false).await;
        self.crashed().await;
        drop(volume);
        self.stop().await;
        let away = self.hide_store();
        self.start().await;
        (task, away)
    }

    /// Runs a maintenance pass at a given time.
    async fn check_once(&self, now: Timestamp) {
        self.engine().backup_work.check_doubts(now, &mut Failing::default()).await.unwrap();
    }

    /// Deletes all objects of a cloud snapshot.
    fn lose(&self, snap: &str) {
        fs::remove_file(self.manifest(snap)).unwrap();
        let CloudSnapshotId { cluster, volume, snapshot, .. } = snap_id(snap);
        fs::remove_dir_all(self.store.path().join(format!("blockd/data/{cluster}/{volume}/{snapshot}")))
            .unwrap();
    }

    /// Returns the listed verification result of a cloud snapshot.
    async fn result_of(&self, snap: &str) -> Option<bool> {
        let listed = self.list().await;
        let found = listed
            .into_iter()
            .find(|listed| listed.cloud_snapshot_id.to_string() == snap)
            .expect("it is listed");
        found.last_proof.as_ref().map(|last| last.sound)
    }
}

const SOUND: Option<bool> = Some(true);
const DAMAGED: Option<bool> = Some(false);

/// The check of the base fails, and the next scheduled backup precedes a resume.
#[tokio::test(flavor = "multi_thread")]
async fn abandoned_backup_is_listed_as_damaged_unless_complete() {
    for (is_deleted, by_hand) in [(false, false), (true, false), (true, true)] {
        let host = Host::new().await;
        let (base, volume, mut model) = host.one_backup().await;
        let away = host.make_unreadable(&base);
        let task = host.start_backup("data", false).await;
        let failed = host.wait(task).await;
        assert!(failed.resumable, "{failed:?}");
        let frozen = model.clone();
        let abandoned = failed.cloud_snapshot_id.unwrap();
        fs::rename(&away, host.manifest(&base)).unwrap();
        assert_eq!(host.result_of(&abandoned).await, None);
        if is_deleted {
            host.lose(&base);
        }

        model.write(&volume, 5 << 20, 3, 1 << 20);
        if by_hand {
            host.call_at(STOP_TASK, &task, &DISCARD).await;
        }
        let next = host.backup("data", false).await;
        host.check_once(Timestamp::now()).await;
        let expected = if is_deleted { BackupType::Full } else { BackupType::Incremental };
        assert_eq!(next.backup_type, Some(expected));
        let result = host.result_of(&abandoned).await;
        assert_eq!(result, if is_deleted { DAMAGED } else { SOUND });
        let damage = host.events_of("damage-found").await;
        let damage =
            damage.iter().filter(|event| event.cloud_snapshot_id.as_deref() == Some(&abandoned)).count();
        assert_eq!(damage, usize::from(is_deleted), "it is reported once");
        if !is_deleted {
            frozen.assert_is(&*host.restore(&abandoned, "left").await);
        }
        let next = next.cloud_snapshot_id.unwrap();
        model.assert_is(&*host.restore(&next, "copy").await);

        // The deletion of the base, or the PUT of the manifest, ends long after.
        if !is_deleted {
            host.lose(&base);
            host.check_once(Timestamp::now()).await;
            assert_eq!(host.result_of(&abandoned).await, SOUND, "it is verified once until then");
        }
        host.check_once(Timestamp::now() + LATER).await;
        assert_eq!(host.result_of(&abandoned).await, DAMAGED);
        assert_eq!(host.doubts(), vec![], "no check is pending");
    }
}

/// The store is unreachable when the backup is abandoned, and the daemon restarts before it returns.
#[tokio::test(flavor = "multi_thread")]
async fn abandoned_backup_is_verified_after_an_outage() {
    let mut host = Host::new().await;
    let (base, volume, _) = host.one_backup().await;
    let (task, away) = host.restart_committing_without_store(volume).await;
    let abandoned = host.wait(task).await.cloud_snapshot_id.unwrap();
    host.call_at(STOP_TASK, &task, &DISCARD).await;
    host.check_once(Timestamp::now()).await;
    // An empty directory at the path of the store proves nothing.
    fs::create_dir(host.store.path()).unwrap();
    host.check_once(Timestamp::now() + LATER).await;
    fs::remove_dir(host.store.path()).unwrap();
    host.restart().await;
    assert!(host.doubts().iter().any(|doubt| !doubt.checked && doubt.cloudsnap.to_string() == abandoned));
    host.show_store(&away);
    host.lose(&base);
    // A store that failed is not checked again in the same pass.
    let mut failing = Failing::default();
    let inside = host.store.path().join("blockd");
    fs::rename(&inside, &away).unwrap();
    host.engine().backup_work.check_doubts(Timestamp::now(), &mut failing).await.unwrap();
    fs::rename(&away, &inside).unwrap();
    host.engine().backup_work.check_doubts(Timestamp::now(), &mut failing).await.unwrap();
    assert_eq!((failing.len(), host.result_of(&abandoned).await), (1, None));
    host.check_once(Timestamp::now()).await;
    assert_eq!(host.result_of(&abandoned).await, DAMAGED);
    assert!(host.doubts().iter().all(|doubt| doubt.checked));
}

/// The backup restarted and deleted its manifest; the store executes a delayed PUT of that manifest later.
#[tokio::test(flavor = "multi_thread")]
async fn late_manifest_of_an_abandoned_backup_is_verified() {
    let host = Host::new().await;
    let (base, _volume, model) = host.one_backup().await;
    // Content of the delayed PUT: the manifest of another backup on the same base.
    let lost = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let body = fs::read(host.manifest(&lost)).unwrap();
    host.sql(&format!("UPDATE chains SET cloudsnap = '{base}'"));
    fs::remove_file(host.manifest(&lost)).unwrap();
    host.lose(&base);
    let full = host.backup("data", false).await;
    assert_eq!(full.backup_type, Some(BackupType::Full), "it restarted");
    let doubts = host.doubts();
    assert!(doubts.len() == 1 && doubts[0].checked && doubts[0].cloudsnap.incremental, "{doubts:?}");

    // The name of a manifest is bound to its content: the row gets the name of the other backup.
    host.sql(&format!("UPDATE doubts SET cloudsnap = '{lost}'"));
    fs::write(host.manifest(&lost), body).unwrap();
    host.check_once(Timestamp::now()).await;
    assert_eq!(host.result_of(&lost).await, None, "it was checked once");
    host.check_once(Timestamp::now() + LATER).await;
    assert_eq!(host.result_of(&lost).await, DAMAGED, "it lacks its base");
    assert_eq!(host.doubts(), vec![]);
    model.assert_is(&*host.restore(&full.cloud_snapshot_id.unwrap(), "copy").await);
}

/// A deletion on another host may make the backup and those based on it incomplete.
#[tokio::test(flavor = "multi_thread")]
async fn volume_of_a_doubtful_backup_starts_with_a_full_backup() {
    for dies_at in [None, Some("backup stored")] {
        let mut host = Host::new().await;
        let (_, volume, mut model) = host.one_backup().await;
        dies_at.iter().for_each(|step| host.die_at(step));
        let task = host.start_backup("data", false).await;
        drop(volume);
        if dies_at.is_some() {
            host.die_and_start().await;
        }
        let snap = host.done(task).await.cloud_snapshot_id.unwrap();
        host.restore_lazily(&snap, "clone", false).await;
        model.write(&host.volume("clone"), 7 << 20, 5, 1 << 20);
        let first = host.backup("clone", false).await;
        let expected = if dies_at.is_some() { BackupType::Full } else { BackupType::Incremental };
        assert_eq!(first.backup_type, Some(expected), "{dies_at:?}");
        model.assert_is(&*host.restore(&first.cloud_snapshot_id.unwrap(), "copy").await);
        host.stop().await;
    }
}

/// The first backup of a lazy volume is based on its backing snapshot. The plan must record that at each
/// step.
#[tokio::test(flavor = "multi_thread")]
async fn first_backup_of_a_lazy_volume_resumes() {
    for step in ["backup frozen", "backup planned", COMMITTED, "backup stored"] {
        for forgets in [false, true] {
            let mut host = Host::new().await;
            let (_, volume, mut model) = host.one_backup().await;
            let origin = volume.id();
            drop(volume);
            let snap = host.backup("data", false).await.cloud_snapshot_id.unwrap();
            host.restore_lazily(&snap, "clone", false).await;
            let backing = host.inspect_volume("clone").await.last_backups.remove(0);
            assert_eq!((&backing.cloud_snapshot_id, backing.incrementals_since_full), (&snap, 1));
            let clone = host.volume("clone");
            model.write(&clone, 7 << 20, 5, 1 << 20);
            let frozen = model.clone();

            host.die_at(step);
            let task = host.start_backup("clone", false).await;
            host.crashed().await;
            if step != "backup frozen" {
                model.write(&clone, 20 << 20, 6, 100_000);
            }
            drop(clone);
            host.stop().await;
            if forgets {
                // As if the plan had not been stored in the row; the manifest cache is lost.
                let db = rusqlite::Connection::open(host.dir.path().join("data/blockd.db")).unwrap();
                db.execute_batch("DELETE FROM catalog; UPDATE tasks SET base = NULL WHERE state <> 'done'")
                    .unwrap();
            }
            host.start().await;
            let done = host.done(task).await;
            let case = format!("{step}, {forgets}: {done:?}");
            assert_eq!((done.backup_type, done.resumed), (Some(BackupType::Incremental), 1), "{case}");
            assert!(done.dirty_bytes <= 2 << 20, "only written blocks are uploaded: {case}");
            let id = done.cloud_snapshot_id.unwrap();
            assert!(!id.contains(&origin.to_string()), "{case}");
            let frozen = if step == "backup frozen" { &model } else { &frozen };
            frozen.assert_is(&*host.restore(&id, "copy").await);
            let next = host.backup("clone", false).await;
            assert_eq!(next.backup_type, Some(BackupType::Incremental), "{case}");
            model.assert_is(&*host.restore(&next.cloud_snapshot_id.unwrap(), "next").await);
            host.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn abandoned_run_with_a_possible_commit_is_verified() {
    let mut host = Host::new().await;
    let (base, volume, model) = host.one_backup().await;
    let (task, away) = host.restart_committing_without_store(volume).await;
    let failed = host.wait(task).await;
    assert!(failed.resumable, "{failed:?}");
    let abandoned = failed.cloud_snapshot_id.unwrap();
    host.show_store(&away);
    assert!(host.manifest(&abandoned).is_file(), "it was committed");
    host.lose(&base);
    let next = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    host.check_once(Timestamp::now()).await;
    assert_eq!(host.result_of(&abandoned).await, DAMAGED);
    model.assert_is(&*host.restore(&next, "copy").await);
}
