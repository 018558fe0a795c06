//! Backups that are given up after their commit and before it was known whether that is whole, and what is built on those
//! that are in doubt.

use super::{dying::COMMITTED, *};
use crate::db::Doubt;
use blockd_api::{lazy::StartLazyRestore, tasks::StopTask};
use jiff::{SignedDuration, Timestamp};
use std::{fs, path::PathBuf, time::Duration};

/// Longer than any request of a backup that was given up may still be under way.
const LATER: SignedDuration = SignedDuration::from_hours(2);

impl Host {
    fn manifest_of(&self, snap: &str) -> PathBuf {
        self.store.path().join("blockd/manifests").join(snap)
    }

    fn doubts(&self) -> Vec<Doubt> {
        self.core().db.transaction(Doubt::given_up).unwrap()
    }

    /// A full backup, and a volume that was written to since.
    async fn one_backup(&self) -> (String, Arc<Volume>, Model) {
        let volume = self.create_volume("data").await;
        self.create_credential().await;
        let mut model = Model::new();
        model.write(&volume, 0, 1, 3 << 20);
        let base = self.backup("data", false).await.source_volume.unwrap();
        model.write(&volume, 1 << 20, 2, 1 << 20);
        (base, volume, model)
    }

    /// Until all that was given up has been looked at.
    async fn all_looked_at(&self) {
        let looked_at = async {
            while self.doubts().iter().any(|doubt| !doubt.looked_at) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), looked_at).await.expect("nobody looks at it");
    }
}

/// The question for the base has no answer, and before somebody resumes the backup the next night comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_the_next_one_gives_up_is_taken_back_unless_it_is_whole() {
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
        assert!(host.manifest_of(&left).is_file(), "it is listed");
        fs::remove_file(&place).unwrap();
        if !is_gone {
            fs::rename(&away, &place).unwrap();
        }

        model.write(&volume, 5 << 20, 3, 1 << 20);
        if by_hand {
            host.client.stop_task(task, &StopTask { discard: true }).await.unwrap();
            host.all_looked_at().await;
        }
        let next = host.backup("data", false).await;
        host.all_looked_at().await;
        assert_eq!(host.manifest_of(&left).is_file(), !is_gone, "what is broken is not listed");
        let expected = if is_gone { BackupType::Full } else { BackupType::Incremental };
        assert_eq!(next.backup_type, Some(expected));
        let next = next.source_volume.unwrap();
        let mut expected = if is_gone { vec![next.clone()] } else { vec![base, left.clone(), next.clone()] };
        let mut listed: Vec<_> = host.list().await.iter().map(|entry| entry.id.to_string()).collect();
        expected.sort();
        listed.sort();
        assert_eq!(listed, expected);
        if !is_gone {
            frozen.assert_is(&*host.restore(&left, "left").await);
        }
        model.assert_is(&*host.restore(&next, "copy").await);
        host.assert_tidy();

        // A request that put it comes to its end long after.
        let late = host.manifest_of(&left);
        if is_gone {
            fs::copy(host.manifest_of(&next), &late).unwrap();
            host.core().settle_given_up(Timestamp::now()).await.unwrap();
            assert!(late.is_file(), "it is not asked for all the time");
            // It cannot be read under this name: it is not for this daemon to say what it is.
            host.core().settle_given_up(Timestamp::now() + LATER).await.unwrap();
            assert_eq!(host.doubts().len(), 1);
            fs::remove_file(&late).unwrap();
        }
        host.core().settle_given_up(Timestamp::now() + LATER).await.unwrap();
        assert_eq!(host.doubts(), vec![]);
    }
}

/// The daemon died between the commit and the question, and the store was away when it came back.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_may_have_committed_is_looked_at_when_it_is_given_up() {
    let mut host = Host::new().await;
    let (base, volume, model) = host.one_backup().await;
    *host.core().dies_at.lock() = Some(COMMITTED);
    let task = host.start_backup("data", false).await;
    host.core().stopping.cancelled().await;
    drop(volume);
    host.stop().await;
    let away = host.store.path().with_extension("away");
    fs::rename(host.store.path(), &away).unwrap();
    host.start().await;
    let failed = host.wait(task).await;
    assert!(failed.resumable, "{failed:?}");
    let left = failed.source_volume.unwrap();
    fs::rename(&away, host.store.path()).unwrap();
    assert!(host.manifest_of(&left).is_file(), "it was committed");
    fs::remove_file(host.manifest_of(&base)).unwrap();
    let next = host.backup("data", false).await.source_volume.unwrap();
    host.all_looked_at().await;
    assert!(!host.manifest_of(&left).exists(), "nobody is shown what cannot be restored");
    model.assert_is(&*host.restore(&next, "copy").await);
    host.assert_tidy();
}

/// The store is away when it is given up, and the daemon is started anew before it is back.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_is_looked_at_when_the_store_is_back() {
    let mut host = Host::new().await;
    let (base, volume, _) = host.one_backup().await;
    *host.core().dies_at.lock() = Some(COMMITTED);
    let task = host.start_backup("data", false).await;
    host.core().stopping.cancelled().await;
    drop(volume);
    host.stop().await;
    let away = host.store.path().with_extension("away");
    fs::rename(host.store.path(), &away).unwrap();
    host.start().await;
    let left = host.wait(task).await.source_volume.unwrap();
    host.client.stop_task(task, &StopTask { discard: true }).await.unwrap();
    host.core().settle_given_up(Timestamp::now()).await.unwrap();
    // An empty directory in the place of the store says nothing either.
    fs::create_dir(host.store.path()).unwrap();
    host.core().settle_given_up(Timestamp::now() + LATER).await.unwrap();
    fs::remove_dir(host.store.path()).unwrap();
    host.stop().await;
    host.start().await;
    assert!(host.doubts().iter().any(|doubt| !doubt.looked_at && doubt.cloudsnap.to_string() == left));
    fs::rename(&away, host.store.path()).unwrap();
    fs::remove_file(host.manifest_of(&base)).unwrap();
    host.core().settle_given_up(Timestamp::now()).await.unwrap();
    assert!(!host.manifest_of(&left).exists());
    assert!(host.doubts().iter().all(|doubt| doubt.looked_at));
}

/// The same for a credential that is forgotten: nobody can look later.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_with_its_credential_is_looked_at_before() {
    let mut host = Host::new().await;
    let (base, volume, _) = host.one_backup().await;
    *host.core().dies_at.lock() = Some(COMMITTED);
    let task = host.start_backup("data", false).await;
    host.core().stopping.cancelled().await;
    drop(volume);
    host.stop().await;
    let away = host.store.path().with_extension("away");
    fs::rename(host.store.path(), &away).unwrap();
    host.start().await;
    let left = host.wait(task).await.source_volume.unwrap();
    fs::rename(&away, host.store.path()).unwrap();
    fs::remove_file(host.manifest_of(&base)).unwrap();
    host.client.delete_credential(&"nas".parse().unwrap()).await.unwrap();
    assert!(!host.manifest_of(&left).exists());
    assert_eq!(host.doubts(), vec![]);
}

/// The manifest was deleted when the backup began anew; the request that had put it is carried out once more after that.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_comes_late_under_a_name_that_was_given_up_goes() {
    let host = Host::new().await;
    let (base, _volume, model) = host.one_backup().await;
    // What the late request brings, as a backup on the same base puts it under a name of its own.
    let lost = host.backup("data", false).await.source_volume.unwrap();
    let body = fs::read(host.manifest_of(&lost)).unwrap();
    host.sql(&format!("UPDATE chains SET cloudsnap = '{base}'"));
    for snap in [&base, &lost] {
        fs::remove_file(host.manifest_of(snap)).unwrap();
    }
    let full = host.backup("data", false).await;
    assert_eq!(full.backup_type, Some(BackupType::Full), "it began anew");
    let doubts = host.doubts();
    assert!(doubts.len() == 1 && doubts[0].looked_at && doubts[0].cloudsnap.incremental, "{doubts:?}");

    // The name of the manifest is bound to its content, so the one that is late has to be that of the row.
    host.sql(&format!("UPDATE doubts SET cloudsnap = '{lost}'"));
    fs::write(host.manifest_of(&lost), body).unwrap();
    host.core().settle_given_up(Timestamp::now()).await.unwrap();
    assert!(host.manifest_of(&lost).is_file(), "it was looked for once");
    host.core().settle_given_up(Timestamp::now() + LATER).await.unwrap();
    assert!(!host.manifest_of(&lost).exists(), "it lacks its base");
    assert_eq!(host.doubts(), vec![]);
    model.assert_is(&*host.restore(&full.source_volume.unwrap(), "copy").await);
}

/// Whoever deletes it on another host may take it away once more, with what is made on it by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_begins_as_a_backup_in_doubt_does_not_build_on_it() {
    for dies_at in [None, Some("backup in the store")] {
        let mut host = Host::new().await;
        let (_, volume, mut model) = host.one_backup().await;
        *host.core().dies_at.lock() = dies_at;
        let task = host.start_backup("data", false).await;
        drop(volume);
        if dies_at.is_some() {
            host.core().stopping.cancelled().await;
            host.die_and_start().await;
        }
        let snap = host.done(task).await.source_volume.unwrap();
        let request = StartLazyRestore {
            snap: snap.parse().unwrap(),
            volume: Some("clone".parse().unwrap()),
            cred_id: None,
            hydrate: false,
            on_store_loss: Default::default(),
        };
        host.client.start_lazy_restore(&request).await.unwrap();
        model.write(&host.volume("clone"), 7 << 20, 5, 1 << 20);
        let first = host.backup("clone", false).await;
        let expected = if dies_at.is_some() { BackupType::Full } else { BackupType::Incremental };
        assert_eq!(first.backup_type, Some(expected), "{dies_at:?}");
        model.assert_is(&*host.restore(&first.source_volume.unwrap(), "copy").await);
        host.stop().await;
    }
}

/// The first backup of a volume that began as a snapshot of another one builds on that one's chain. Its plan has to say so, wherever
/// the run is cut off that made it.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_backup_of_a_lazy_volume_goes_on_where_it_was_cut_off() {
    for step in ["backup frozen", "backup planned", COMMITTED, "backup in the store"] {
        for forgets in [false, true] {
            let mut host = Host::new().await;
            let (_, volume, mut model) = host.one_backup().await;
            let origin = volume.id();
            drop(volume);
            let snap = host.backup("data", false).await.source_volume.unwrap();
            let request = StartLazyRestore {
                snap: snap.parse().unwrap(),
                volume: Some("clone".parse().unwrap()),
                cred_id: None,
                hydrate: false,
                on_store_loss: Default::default(),
            };
            host.client.start_lazy_restore(&request).await.unwrap();
            let clone = host.volume("clone");
            model.write(&clone, 7 << 20, 5, 1 << 20);
            let frozen = model.clone();

            *host.core().dies_at.lock() = Some(step);
            let task = host.start_backup("clone", false).await;
            host.core().stopping.cancelled().await;
            if step != "backup frozen" {
                model.write(&clone, 20 << 20, 6, 100_000);
            }
            drop(clone);
            host.stop().await;
            if forgets {
                // The row is as old as the task: nobody stored what was planned, and what this host knew of the store is gone.
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
