//! Backups that are given up after their commit and before it was known whether that is whole, and what is
//! built on those that are in doubt.

use super::{dying::COMMITTED, *};
use blockd_api::{events::ListEvents, tasks::StopTask};
use blockd_catalog::Doubt;
use blockd_cloud::CloudSnapshotId;
use blockd_engine::backup::doubts::Failing;
use jiff::{SignedDuration, Timestamp};
use std::{fs, path::PathBuf};

/// Longer than any request of a backup that was given up may still be under way.
const LATER: SignedDuration = SignedDuration::from_hours(2);

impl Host {
    fn manifest_of(&self, snap: &str) -> PathBuf {
        self.store.path().join("blockd/manifests").join(snap)
    }

    fn doubts(&self) -> Vec<Doubt> {
        self.engine().db.transaction(Doubt::abandoned).unwrap()
    }

    /// A full backup, and a volume that was written to since.
    pub(super) async fn one_backup(&self) -> (String, Arc<Volume>, Model) {
        let volume = self.create_volume("data").await;
        self.create_credential().await;
        let mut model = Model::new();
        model.write(&volume, 0, 1, 3 << 20);
        let base = self.backup("data", false).await.source_volume.unwrap();
        model.write(&volume, 1 << 20, 2, 1 << 20);
        (base, volume, model)
    }

    /// Dies at the commit of a backup and starts without its store. Returns the task and where the store is.
    async fn restart_committing_without_store(&mut self, volume: Arc<Volume>) -> (Uuid, PathBuf) {
        self.die_at(COMMITTED);
        let task = self.start_backup("data", false).await;
        self.engine().host.stopping.cancelled().await;
        drop(volume);
        self.stop().await;
        let away = self.store.path().with_extension("away");
        fs::rename(self.store.path(), &away).unwrap();
        self.start().await;
        (task, away)
    }

    /// Runs the maintenance pass of a time.
    async fn check_once(&self, now: Timestamp) {
        self.engine().backup_work.check_doubts(now, &mut Failing::default()).await.unwrap();
    }

    /// Deletes its objects, as a deletion does that saw no other user.
    fn lose(&self, snap: &str) {
        fs::remove_file(self.manifest_of(snap)).unwrap();
        let id: CloudSnapshotId = snap.parse().unwrap();
        let (cluster, volume, snapshot) = (id.cluster, id.volume, id.snapshot);
        fs::remove_dir_all(self.store.path().join(format!("blockd/data/{cluster}/{volume}/{snapshot}")))
            .unwrap();
    }

    /// Returns the result of a cloud snapshot in the listing.
    async fn result_of(&self, snap: &str) -> Option<String> {
        let listed = self.list().await;
        let found = listed.into_iter().find(|listed| listed.id.to_string() == snap).expect("it is listed");
        found.metadata.verify_result
    }
}

const SOUND: Option<&str> = Some("Sound");
const DAMAGED: Option<&str> = Some("Damaged");

/// The base check has no answer, and the next scheduled backup comes before a resume.
#[tokio::test(flavor = "multi_thread")]
async fn abandoned_backup_is_listed_as_damaged_unless_complete() {
    for (is_gone, by_hand) in [(false, false), (true, false), (true, true)] {
        let host = Host::new().await;
        let (base, volume, mut model) = host.one_backup().await;
        let (place, away) = (host.manifest_of(&base), host.store.path().join("away"));
        fs::rename(&place, &away).unwrap();
        // Reading its first byte fails, but not because it is gone.
        fs::write(&place, []).unwrap();
        let task = host.start_backup("data", false).await;
        let failed = host.wait(task).await;
        assert!(failed.resumable, "{failed:?}");
        let frozen = model.clone();
        let left = failed.source_volume.unwrap();
        fs::rename(&away, &place).unwrap();
        assert_eq!(host.result_of(&left).await, None);
        if is_gone {
            host.lose(&base);
        }

        model.write(&volume, 5 << 20, 3, 1 << 20);
        if by_hand {
            host.call_at(STOP_TASK, &task, &StopTask { discard: true }).await;
        }
        let next = host.backup("data", false).await;
        host.check_once(Timestamp::now()).await;
        let expected = if is_gone { BackupType::Full } else { BackupType::Incremental };
        assert_eq!(next.backup_type, Some(expected));
        let result = host.result_of(&left).await;
        assert_eq!(result.as_deref(), if is_gone { DAMAGED } else { SOUND });
        let damage = host.call(LIST_EVENTS, &ListEvents::default()).await.events;
        let damage = damage.iter().filter(|event| event.cloudsnap.as_deref() == Some(&left));
        let damage = damage.filter(|event| event.kind == "damage-found").count();
        assert_eq!(damage, usize::from(is_gone), "it is reported once");
        if !is_gone {
            frozen.assert_is(&*host.restore(&left, "left").await);
        }
        let next = next.source_volume.unwrap();
        model.assert_is(&*host.restore(&next, "copy").await);

        // The deletion of the base, or a request that put the manifest, comes to its end long after.
        if !is_gone {
            host.lose(&base);
            host.check_once(Timestamp::now()).await;
            assert_eq!(host.result_of(&left).await.as_deref(), SOUND, "it is not asked for all the time");
        }
        host.check_once(Timestamp::now() + LATER).await;
        assert_eq!(host.result_of(&left).await.as_deref(), DAMAGED);
        assert_eq!(host.doubts(), vec![], "no check is left");
    }
}

/// The store is unreachable when the backup is abandoned, and the daemon restarts before it returns.
#[tokio::test(flavor = "multi_thread")]
async fn abandoned_backup_is_verified_after_an_outage() {
    let mut host = Host::new().await;
    let (base, volume, _) = host.one_backup().await;
    let (task, away) = host.restart_committing_without_store(volume).await;
    let left = host.wait(task).await.source_volume.unwrap();
    host.call_at(STOP_TASK, &task, &StopTask { discard: true }).await;
    host.check_once(Timestamp::now()).await;
    // An empty directory in the place of the store says nothing either.
    fs::create_dir(host.store.path()).unwrap();
    host.check_once(Timestamp::now() + LATER).await;
    fs::remove_dir(host.store.path()).unwrap();
    host.stop().await;
    host.start().await;
    assert!(host.doubts().iter().any(|doubt| !doubt.checked && doubt.cloudsnap.to_string() == left));
    fs::rename(&away, host.store.path()).unwrap();
    host.lose(&base);
    // A store that failed is left alone for a while.
    let mut failing = Failing::default();
    let inside = host.store.path().join("blockd");
    fs::rename(&inside, &away).unwrap();
    host.engine().backup_work.check_doubts(Timestamp::now(), &mut failing).await.unwrap();
    fs::rename(&away, &inside).unwrap();
    host.engine().backup_work.check_doubts(Timestamp::now(), &mut failing).await.unwrap();
    assert_eq!((failing.len(), host.result_of(&left).await), (1, None));
    host.check_once(Timestamp::now()).await;
    assert_eq!(host.result_of(&left).await.as_deref(), DAMAGED);
    assert!(host.doubts().iter().all(|doubt| doubt.checked));
}

/// The manifest was deleted when the backup restarted; its put request is executed again after that.
#[tokio::test(flavor = "multi_thread")]
async fn late_manifest_of_an_abandoned_backup_is_verified() {
    let host = Host::new().await;
    let (base, _volume, model) = host.one_backup().await;
    // What the late request brings, as a backup on the same base puts it under a name of its own.
    let lost = host.backup("data", false).await.source_volume.unwrap();
    let body = fs::read(host.manifest_of(&lost)).unwrap();
    host.sql(&format!("UPDATE chains SET cloudsnap = '{base}'"));
    fs::remove_file(host.manifest_of(&lost)).unwrap();
    host.lose(&base);
    let full = host.backup("data", false).await;
    assert_eq!(full.backup_type, Some(BackupType::Full), "it restarted");
    let doubts = host.doubts();
    assert!(doubts.len() == 1 && doubts[0].checked && doubts[0].cloudsnap.incremental, "{doubts:?}");

    // The name of the manifest is bound to its content, so the one that is late has to be that of the row.
    host.sql(&format!("UPDATE doubts SET cloudsnap = '{lost}'"));
    fs::write(host.manifest_of(&lost), body).unwrap();
    host.check_once(Timestamp::now()).await;
    assert_eq!(host.result_of(&lost).await, None, "it was looked for once");
    host.check_once(Timestamp::now() + LATER).await;
    assert_eq!(host.result_of(&lost).await.as_deref(), DAMAGED, "it lacks its base");
    assert_eq!(host.doubts(), vec![]);
    model.assert_is(&*host.restore(&full.source_volume.unwrap(), "copy").await);
}

/// A deletion on another host may remove it again, with backups based on it.
#[tokio::test(flavor = "multi_thread")]
async fn volume_of_a_doubtful_backup_starts_with_a_full_backup() {
    for dies_at in [None, Some("backup stored")] {
        let mut host = Host::new().await;
        let (_, volume, mut model) = host.one_backup().await;
        dies_at.iter().for_each(|step| host.die_at(step));
        let task = host.start_backup("data", false).await;
        drop(volume);
        if dies_at.is_some() {
            host.engine().host.stopping.cancelled().await;
            host.die_and_start().await;
        }
        let snap = host.done(task).await.source_volume.unwrap();
        host.restore_lazily(&snap, "clone", false).await;
        model.write(&host.volume("clone"), 7 << 20, 5, 1 << 20);
        let first = host.backup("clone", false).await;
        let expected = if dies_at.is_some() { BackupType::Full } else { BackupType::Incremental };
        assert_eq!(first.backup_type, Some(expected), "{dies_at:?}");
        model.assert_is(&*host.restore(&first.source_volume.unwrap(), "copy").await);
        host.stop().await;
    }
}

/// The first backup of a lazy volume is based on its backing snapshot. The plan must record that, wherever
/// its run is interrupted.
#[tokio::test(flavor = "multi_thread")]
async fn first_backup_of_a_lazy_volume_resumes() {
    for step in ["backup frozen", "backup planned", COMMITTED, "backup stored"] {
        for forgets in [false, true] {
            let mut host = Host::new().await;
            let (_, volume, mut model) = host.one_backup().await;
            let origin = volume.id();
            drop(volume);
            let snap = host.backup("data", false).await.source_volume.unwrap();
            host.restore_lazily(&snap, "clone", false).await;
            let clone = host.volume("clone");
            model.write(&clone, 7 << 20, 5, 1 << 20);
            let frozen = model.clone();

            host.die_at(step);
            let task = host.start_backup("clone", false).await;
            host.engine().host.stopping.cancelled().await;
            if step != "backup frozen" {
                model.write(&clone, 20 << 20, 6, 100_000);
            }
            drop(clone);
            host.stop().await;
            if forgets {
                // The row is as old as the task: the plan was not stored in it, and the manifest cache is
                // gone.
                let db = rusqlite::Connection::open(host.dir.path().join("data/blockd.db")).unwrap();
                db.execute_batch("DELETE FROM catalog; UPDATE tasks SET base = NULL WHERE state <> 'done'")
                    .unwrap();
            }
            host.start().await;
            let done = host.done(task).await;
            let case = format!("{step}, {forgets}: {done:?}");
            assert_eq!((done.backup_type, done.resumed), (Some(BackupType::Incremental), 1), "{case}");
            assert!(done.bytes_dirty <= 2 << 20, "it carries just what was written: {case}");
            let id = done.source_volume.unwrap();
            assert!(!id.contains(&origin.to_string()), "{case}");
            let frozen = if step == "backup frozen" { &model } else { &frozen };
            frozen.assert_is(&*host.restore(&id, "copy").await);
            let next = host.backup("clone", false).await;
            assert_eq!(next.backup_type, Some(BackupType::Incremental), "{case}");
            model.assert_is(&*host.restore(&next.source_volume.unwrap(), "next").await);
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
    let left = failed.source_volume.unwrap();
    fs::rename(&away, host.store.path()).unwrap();
    assert!(host.manifest_of(&left).is_file(), "it was committed");
    host.lose(&base);
    let next = host.backup("data", false).await.source_volume.unwrap();
    host.check_once(Timestamp::now()).await;
    assert_eq!(host.result_of(&left).await.as_deref(), DAMAGED);
    model.assert_is(&*host.restore(&next, "copy").await);
}
