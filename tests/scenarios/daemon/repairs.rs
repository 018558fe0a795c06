//! Repairs of damaged cloud snapshots from the volume, from local snapshots, and from other locations.

mod full_backups;
mod locked;
mod unknown_keys;

use super::*;
use blockd_api::{
    CredentialRef,
    cloudsnaps::{CloudsnapStatus, InspectCloudsnap, MarkCloudsnap, StartRepair, VerifyDepth},
};
use std::{collections::HashSet, os::unix::fs::MetadataExt};

/// Offset in a pack of a byte of its second frame, which holds bytes 512 KiB to 1 MiB of the volume.
const IN_SECOND_FRAME: usize = 64 + (800 << 10);
const FRAME: u64 = 512 << 10;

pub(super) fn repair_of(snap: &str) -> StartRepair {
    let cloud_snapshot_id = snap.parse().unwrap();
    StartRepair { cloud_snapshot_id, credential: None, from: None, dry_run: false }
}

/// Returns the content of the full backup of [`Host::one_backup`].
fn first_backup() -> Model {
    let mut model = Model::new();
    model.0[..3 << 20].copy_from_slice(&pattern(1, 3 << 20));
    model
}

impl Host {
    async fn run_repair(&self, request: &StartRepair) -> Task {
        self.wait(self.call(START_REPAIR, request).await.task_id).await
    }

    /// Verifies all cloud snapshots; returns the damaged ones.
    async fn damaged_snapshots(&self, depth: VerifyDepth) -> Vec<String> {
        let task = self.verify(&StartVerify { depth, ..StartVerify::default() }).await;
        task.findings.unwrap().damaged_snapshots
    }

    /// Verifies all cloud snapshots of a location; returns the damaged ones.
    async fn damaged_snapshots_of(&self, credential: &CredentialRef) -> Vec<String> {
        let task = self
            .verify(&StartVerify { credential: Some(credential.clone()), ..StartVerify::default() })
            .await;
        task.findings.unwrap().damaged_snapshots
    }

    /// Deletes the repaired cloud snapshots, as the maintenance does.
    async fn delete_repaired(&self) {
        self.damaged_snapshots(VerifyDepth::Full).await;
        self.engine().repairs.delete_repaired().await.unwrap();
        let query = ListTasks::default();
        for task in self.call(LIST_TASKS, &query).await.items {
            if !task.state.stage.is_over() {
                self.done(task.task_id).await;
            }
        }
    }

    /// Returns the next action of the status for a damaged cloud snapshot.
    async fn action(&self, snap: &str) -> String {
        let found = self.call(GET_STATUS, &()).await.damaged_cloudsnaps.into_iter();
        found.filter(|one| one.cloud_snapshot_id == snap_id(snap)).map(|one| one.action).next().unwrap()
    }

    /// Returns the manifests in the store.
    fn manifests(&self) -> Vec<String> {
        walk(self.store.path()).into_iter().filter(|path| path.contains("/manifests/")).collect()
    }

    /// Returns the listed cloud snapshot that repairs another one.
    async fn repaired(&self, snap: &str) -> String {
        let id = Some(snap_id(snap));
        let found = self.list().await.into_iter().find(|entry| entry.repairs == id);
        found.unwrap().cloud_snapshot_id.to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_repairs_a_chain_that_replaces_the_damaged_one() {
    let host = Host::new().await;
    let (full, volume, mut model) = host.one_backup().await;
    let pack = host.packs().remove(0);
    let first = first_backup();
    let next = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    let second = model.clone();
    let refused = api_error(host.client.call(START_REPAIR, &repair_of(&full)).await);
    assert_eq!(refused.code, ErrorCode::InvalidRequest, "it is not known to be damaged");
    assert_eq!(host.events_of("repair-failed").await.len(), 0, "a refused request is no failed repair");
    flip_bit(&pack, IN_SECOND_FRAME);
    assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await.len(), 2);
    host.call(MARK_CLOUDSNAP, &MarkCloudsnap { pinned: Some(true), ..mark_of(&full) }).await;
    // The lost blocks stay as they are.
    model.write(&volume, 10 << 20, 5, 4096);

    let dry = host.run_repair(&StartRepair { dry_run: true, ..repair_of(&full) }).await;
    assert_eq!((dry.state.to_string().as_str(), host.manifests().len()), ("Repair-Done", 2), "{dry:?}");
    assert_eq!(dry.findings.unwrap().repaired_bytes, 2 * FRAME);
    assert_eq!(host.events_of("repair-done").await.len(), 0, "a dry run repairs nothing");
    let done = host.run_repair(&repair_of(&full)).await;
    assert_eq!(done.state.to_string(), "Repair-Done", "{done:?}");
    let verify = format!("blockctl cloudsnap verify {} --cred-id nas", host.repaired(&full).await);
    assert_eq!(host.action(&full).await, verify, "it is deleted after the repaired one was read");
    let all =
        host.verify(&StartVerify { credential: Some("nas".parse().unwrap()), ..Default::default() }).await;
    assert_eq!(all.state.stage, TaskStage::Done, "the damaged ones are replaced: {all:?}");
    assert!(all.note.unwrap().contains("2 damaged cloud snapshots are replaced"));
    assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await.len(), 2);
    // The later one shares the repair of the first.
    assert_eq!(done.findings.unwrap().repaired_bytes, FRAME);
    let listed = host.list().await;
    assert_eq!(listed.len(), 2, "one row for each point in time: {listed:?}");
    assert!(listed.iter().all(|entry| entry.status == CloudsnapStatus::Done && entry.repairs.is_some()));
    assert_eq!(listed.iter().map(|entry| entry.pinned).collect::<Vec<_>>(), [true, false]);
    let (new_full, new_next) = (host.repaired(&full).await, host.repaired(&next).await);
    // A repetition finds nothing to do.
    assert_eq!(host.run_repair(&repair_of(&full)).await.state.stage, TaskStage::Done);
    assert_eq!(host.manifests().len(), 4);
    host.delete_repaired().await;
    assert_eq!(host.manifests().len(), 2);
    let query = InspectCloudsnap { cloud_snapshot_id: snap_id(&full), credential: None };
    let replaced = api_error(host.client.call(INSPECT_CLOUDSNAP, &query).await);
    assert!(replaced.hint.unwrap().contains(&format!("{new_full} of the same point in time replaced it")));
    assert_eq!(host.call(GET_STATUS, &()).await.damaged_cloudsnaps, []);
    assert_eq!(host.damaged_snapshots(VerifyDepth::Deep).await, Vec::<String>::new());
    first.assert_is(&*host.restore(&new_full, "first").await);
    second.assert_is(&*host.restore(&new_next, "second").await);

    // The next backup is based on the repaired one, and uploads the changes only.
    let last = host.backup("data", false).await;
    assert_eq!((last.backup_type, last.dirty_bytes), (Some(BackupType::Incremental), 4096));
    model.assert_is(&*host.restore(&last.cloud_snapshot_id.unwrap(), "last").await);
    host.assert_tidy();
    // Another host reads them, without any record of the repair.
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.create_credential().await;
    second.assert_is(&*other.restore(&new_next, "second").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_without_a_source_are_named_and_nothing_is_stored() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let elsewhere = tempfile::tempdir().unwrap();
    host.create_credential_at("other", elsewhere.path()).await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let request = backup_to("data", &["nas", "other"]);
    let tasks = host.call(START_BACKUP, &request).await.items;
    let mut ids = Vec::new();
    for task in tasks {
        let done = host.done(task.task_id).await;
        ids.push((done.credential_name.unwrap().to_string(), done.cloud_snapshot_id.unwrap()));
    }
    let id = ids.into_iter().find(|(name, _)| name == "nas").unwrap().1;
    flip_bit(host.packs().remove(0), IN_SECOND_FRAME);
    let nas: CredentialRef = "nas".parse().unwrap();
    let other: CredentialRef = "other".parse().unwrap();
    let verify =
        StartVerify { cloud_snapshot_id: Some(snap_id(&id)), credential: Some(nas), ..Default::default() };
    assert_eq!(host.verify(&verify).await.state.stage, TaskStage::Failed);
    // One of the lost blocks changes.
    let at_backup = model.clone();
    model.write(&volume, FRAME + 8192, 9, 4096);
    let away = move_away(elsewhere.path());
    let failed = host.run_repair(&repair_of(&id)).await;
    fs::rename(away, elsewhere.path()).unwrap();
    assert_eq!(failed.error.as_ref().unwrap().code, ErrorCode::CloudsnapDamaged, "{failed:?}");
    let findings = failed.findings.unwrap();
    let lost = &findings.damage[0].affects[0];
    assert_eq!((lost.cloud_snapshot_id.as_str(), lost.lost_bytes), (id.as_str(), 4096));
    assert_eq!((lost.ranges[0].offset_bytes, lost.ranges[0].len_bytes), (FRAME + 8192, 4096));
    assert_eq!(host.manifests().len(), 1, "nothing is stored");
    assert_eq!(host.events_of("repair-failed").await.len(), 1);

    let done = host.run_repair(&StartRepair { from: Some(other), ..repair_of(&id) }).await;
    assert_eq!(done.state.to_string(), "Repair-Done", "{done:?}");
    let repaired = host.repaired(&id).await;
    at_backup.assert_is(&*host.restore(&repaired, "past").await);
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_snapshot_repairs_a_lost_index_and_manifest() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let id = host
        .run_backup(&StartBackup { keep_local: true, ..backup_of("data") })
        .await
        .cloud_snapshot_id
        .unwrap();
    let at_backup = model.clone();
    model.write(&volume, 0, 2, 2 << 20);
    drop(volume);
    let index = walk(host.store.path()).into_iter().find(|path| path.ends_with("/index")).unwrap();
    fs::remove_file(index).unwrap();
    flip_bit(host.manifest(&id), 90);
    assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await, std::slice::from_ref(&id));
    let done = host.run_repair(&repair_of(&id)).await;
    assert_eq!(done.state.to_string(), "Repair-Done", "{done:?}");
    let repaired = host.repaired(&id).await;
    assert!(!snap_id(&repaired).incremental, "no damaged object is needed");
    host.delete_repaired().await;
    assert_eq!(host.manifests().len(), 1);
    assert_eq!(host.damaged_snapshots(VerifyDepth::Deep).await, Vec::<String>::new());
    at_backup.assert_is(&*host.restore(&repaired, "past").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_survives_a_crash_at_any_step() {
    for step in ["repair planned", crash_after_commit::COMMITTED, "repair stored", "repair recorded"] {
        let mut host = Host::new().await;
        let (full, volume, _) = host.one_backup().await;
        drop(volume);
        flip_bit(host.packs().remove(0), IN_SECOND_FRAME);
        assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await.len(), 1);
        host.die_at(step);
        let task = host.call(START_REPAIR, &repair_of(&full)).await.task_id;
        host.die_and_start().await;
        host.done(task).await;
        let listed = host.list().await;
        assert_eq!(listed.len(), 1, "{step}: {listed:?}");
        let repaired = host.repaired(&full).await;
        host.delete_repaired().await;
        assert_eq!(host.manifests().len(), 1, "{step}");
        first_backup().assert_is(&*host.restore(&repaired, "copy").await);
        // After a commit in doubt, the repaired one is no base.
        let in_doubt = [crash_after_commit::COMMITTED, "repair stored"].contains(&step);
        let expected = if in_doubt { BackupType::Full } else { BackupType::Incremental };
        assert_eq!(host.backup("data", false).await.backup_type, Some(expected), "{step}");
        host.assert_tidy();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_repairs_each_finding_once() {
    let host = Host::new().await;
    let (full, volume, mut model) = host.one_backup().await;
    flip_bit(host.packs().remove(0), IN_SECOND_FRAME);
    assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await.len(), 1);
    model.write(&volume, FRAME, 9, 4096);
    let mut attempts = Default::default();
    for _ in 0..3 {
        host.engine().repairs.repair_next(&mut attempts).await.unwrap();
        for task in host.call(LIST_TASKS, &ListTasks::default()).await.items {
            host.wait(task.task_id).await;
        }
    }
    assert_eq!(host.events_of("repair-failed").await.len(), 1);
    // Damage that a later verification finds is tried again.
    assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await, [full]);
    host.engine().repairs.repair_next(&mut attempts).await.unwrap();
    let tasks = host.call(LIST_TASKS, &ListTasks::default()).await.items;
    assert_eq!(tasks.iter().filter(|task| task.kind == blockd_api::tasks::TaskKind::Repair).count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn repaired_backup_of_a_schedule_stays_under_its_retention() {
    let host = Host::new().await;
    let (snaps, schedule) = host.two_kept().await;
    host.lose_pack(&snaps[0]);
    assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await.len(), 2);
    assert_eq!(host.run_repair(&repair_of(&snaps[0])).await.state.stage, TaskStage::Done);
    let repaired = host.repaired(&snaps[1]).await;
    host.delete_repaired().await;
    assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await, Vec::<String>::new());
    host.keep(schedule, 1).await;
    eventually(async || match host.ids().await {
        ids if ids == [repaired.clone()] => Ok(()),
        ids => Err(ids),
    })
    .await;
}

/// A quick verification sees the missing pack, but not the damaged frame below it.
#[tokio::test(flavor = "multi_thread")]
async fn repair_after_a_quick_finding_rebuilds_all_damage() {
    let host = Host::new().await;
    let (full, volume, model) = host.one_backup().await;
    flip_bit(host.packs().remove(0), IN_SECOND_FRAME);
    let next = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    drop(volume);
    host.lose_pack(&next);
    assert_eq!(host.damaged_snapshots(VerifyDepth::Quick).await, std::slice::from_ref(&next));
    let done = host.run_repair(&repair_of(&next)).await;
    assert_eq!(done.state.to_string(), "Repair-Done", "{done:?}");
    let repaired = host.repaired(&next).await;
    model.assert_is(&*host.restore(&repaired, "copy").await);
    let damaged = host.call(GET_STATUS, &()).await.damaged_cloudsnaps;
    assert!(damaged.iter().any(|one| one.cloud_snapshot_id == snap_id(&full)), "{damaged:?}");
}

/// The damage that was found does not name blocks, so that only the index of the repair does.
#[tokio::test(flavor = "multi_thread")]
async fn resumed_repair_reads_all_of_its_blocks_back() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    Model::new().write(&volume, 0, 1, 1 << 20);
    drop(volume);
    let full = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    let index = walk(host.store.path()).into_iter().find(|path| path.ends_with("/index")).unwrap();
    fs::remove_file(index).unwrap();
    let drill = super::drills::drill_of(&full);
    assert_eq!(host.failed_drill(&drill).await.0, ErrorCode::CloudsnapDamaged);
    let before = host.packs();
    host.die_at("repair stored");
    let task = host.call(START_REPAIR, &repair_of(&full)).await.task_id;
    host.crashed().await;
    host.stop().await;
    let stored = host.packs().into_iter().find(|pack| !before.contains(pack)).unwrap();
    flip_bit(stored, IN_SECOND_FRAME);
    host.start().await;
    let failed = host.wait(task).await;
    let error = failed.error.unwrap();
    assert_eq!(error.code, ErrorCode::CloudsnapDamaged, "{error:?}");
    assert!(error.message.contains(&format!("{FRAME} stored bytes cannot be read back")), "{error:?}");
}

/// An outage may look like damage.
#[tokio::test(flavor = "multi_thread")]
async fn repair_of_a_passing_finding_changes_nothing() {
    let host = Host::new().await;
    let (full, _, _) = host.one_backup().await;
    let pack = host.packs().remove(0);
    let away = move_away(Path::new(&pack));
    assert_eq!(host.damaged_snapshots(VerifyDepth::Quick).await, std::slice::from_ref(&full));
    fs::rename(away, &pack).unwrap();
    let done = host.done(host.call(START_REPAIR, &repair_of(&full)).await.task_id).await;
    assert!(done.note.as_ref().unwrap().contains("nothing is damaged"), "{done:?}");
    assert_eq!((host.manifests().len(), host.call(GET_STATUS, &()).await.damaged_cloudsnaps), (1, vec![]));
}

/// The manifest is damaged after a lazy volume of another host was created.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_backup_that_another_host_leases_stays() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let id = host.backup("data", true).await.cloud_snapshot_id.unwrap();
    drop(volume);
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.create_credential().await;
    other.restore_lazily(&id, "lazy", false).await;
    flip_bit(host.manifest(&id), 90);
    assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await, std::slice::from_ref(&id));
    assert_eq!(host.run_repair(&repair_of(&id)).await.state.to_string(), "Repair-Done");
    let tasks = host.call(LIST_TASKS, &ListTasks::default()).await.items.len();
    host.delete_repaired().await;
    assert!(host.manifest(&id).exists());
    let after = host.call(LIST_TASKS, &ListTasks::default()).await.items;
    assert_eq!(after.len(), tasks + 1, "only the verification: {after:?}");
    model.assert_is(&other.volume("lazy"));
    other.delete_volume("lazy").await;
    eventually(async || match host.leases() {
        leases if leases.is_empty() => Ok(()),
        leases => Err(leases),
    })
    .await;
    host.delete_repaired().await;
    assert!(!host.manifest(&id).exists());
}

/// Another host, which has a copy in another location, repairs the same cloud snapshot between the plan of
/// this one and its commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hosts_that_repair_at_once_lose_nothing() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let copy = tempfile::tempdir().unwrap();
    host.create_credential_at("copy", copy.path()).await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    drop(volume);
    let mut full = String::new();
    for task in host.call(START_BACKUP, &backup_to("data", &["nas", "copy"])).await.items {
        let done = host.done(task.task_id).await;
        if done.credential_name.unwrap().as_str() == "nas" {
            full = done.cloud_snapshot_id.unwrap();
        }
    }
    flip_bit(host.packs().remove(0), IN_SECOND_FRAME);
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.create_credential().await;
    other.create_credential_at("copy", copy.path()).await;
    let nas: CredentialRef = "nas".parse().unwrap();
    let of_nas = || StartRepair { credential: Some(nas.clone()), ..repair_of(&full) };
    for host in [&host, &other] {
        assert!(host.damaged_snapshots_of(&nas).await.contains(&full));
    }
    let (planned, is_planned) = std::sync::mpsc::channel();
    let (go_on, may_go_on) = std::sync::mpsc::channel();
    host.act_at("repair planned", move |_| {
        planned.send(()).unwrap();
        may_go_on.recv().unwrap();
    });
    let task = host.call(START_REPAIR, &of_nas()).await.task_id;
    tokio::task::spawn_blocking(move || is_planned.recv().unwrap()).await.unwrap();
    other.done(other.call(START_REPAIR, &of_nas()).await.task_id).await;
    go_on.send(()).unwrap();
    host.done(task).await;
    for host in [&host, &other] {
        host.damaged_snapshots_of(&nas).await;
        host.engine().repairs.delete_repaired().await.unwrap();
        for task in host.call(LIST_TASKS, &ListTasks::default()).await.items {
            host.wait(task.task_id).await;
        }
    }
    assert_eq!(host.manifests().len(), 2, "one of each host; the original is gone");
    for host in [&host, &other] {
        assert_eq!(host.damaged_snapshots_of(&nas).await, Vec::<String>::new());
        for (number, snap) in host.ids().await.iter().enumerate() {
            model.assert_is(&*host.restore(snap, &format!("copy-{number}")).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_manifest_stays_known_after_a_dry_run() {
    let host = Host::new().await;
    let (full, _, _) = host.one_backup().await;
    flip_bit(host.manifest(&full), 90);
    assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await, std::slice::from_ref(&full));
    host.run_repair(&StartRepair { dry_run: true, ..repair_of(&full) }).await;
    assert_eq!(host.call(GET_STATUS, &()).await.damaged_cloudsnaps.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rotten_manifest_of_a_later_snapshot_stays_known() {
    let host = Host::new().await;
    let (full, _volume, _) = host.one_backup().await;
    let pack = host.packs().remove(0);
    let next = host.backup("data", false).await.cloud_snapshot_id.unwrap();
    host.list().await;
    flip_bit(pack, IN_SECOND_FRAME);
    flip_bit(host.manifest(&next), 90);
    // The listing takes the manifest from the cache: rotten bits do not change the object's version.
    let after = fs::metadata(host.manifest(&next)).unwrap();
    let version = format!("{}-{}-{}.{:09}", after.ino(), after.len(), after.ctime(), after.ctime_nsec());
    let key = snap_id(&next).manifest_key();
    host.sql(&format!("UPDATE catalog SET version = '{version}' WHERE key = '{key}'"));
    host.damaged_snapshots(VerifyDepth::Full).await;
    host.run_repair(&repair_of(&full)).await;
    let known = host.call(GET_STATUS, &()).await.damaged_cloudsnaps;
    let is_known = known.iter().any(|one| one.cloud_snapshot_id == snap_id(&next));
    assert!(is_known || !host.damaged_snapshots(VerifyDepth::Full).await.contains(&next), "{known:?}");
}

/// The volume is deleted, and there is no other location.
#[tokio::test(flavor = "multi_thread")]
async fn lost_blocks_of_a_repair_are_named_with_their_files() {
    let host = Host::new().await;
    let full = host.backed_up_files().await;
    host.delete_volume("data").await;
    flip_bit(host.packs().remove(0), IN_SECOND_FRAME + (4 << 20));
    assert_eq!(host.damaged_snapshots(VerifyDepth::Full).await, std::slice::from_ref(&full));
    let failed = host.run_repair(&repair_of(&full)).await;
    let [damage] = &failed.findings.as_ref().unwrap().damage[..] else { panic!("{failed:?}") };
    let image = fs::read(host.dir.path().join("image")).unwrap();
    let lost = damage.affects[0].ranges.iter().flat_map(|range| {
        image[range.offset_bytes as usize..][..range.len_bytes as usize].chunks(BLOCK as usize)
    });
    let lost: HashSet<&[u8]> = lost.collect();
    let mut expected = Vec::new();
    for file in fs::read_dir(host.dir.path().join("files/dir")).unwrap() {
        let file = file.unwrap();
        if fs::read(file.path()).unwrap().chunks(BLOCK as usize).any(|block| lost.contains(block)) {
            expected.push(format!("/dir/{}", file.file_name().to_str().unwrap()));
        }
    }
    expected.sort();
    let mut files: Vec<_> = damage.files.iter().map(ToString::to_string).collect();
    files.sort();
    assert!(files == expected && !files.is_empty(), "{damage:?}, not {expected:?}");
    let error = failed.error.unwrap();
    assert_eq!(error.code, ErrorCode::CloudsnapDamaged);
    assert!(error.message.ends_with(&format!("; files: {}", files.join(", "))), "{error:?}");
}
