//! Deduplication: two volumes of one image, a restore by another host, deletions of the donor, and options.

use super::*;
use blockd_api::{
    CredentialRef, Deduplication, cloudsnaps::VerifyDepth, credential_update::UpdateCredential,
};
use std::collections::BTreeSet;
use tokio::sync::mpsc;

const IMAGE: usize = 16 << 20;
const CHANGE: usize = 64 << 10;

impl Host {
    async fn deduplicate(&self, deduplicate: Deduplication) {
        let nas: CredentialRef = "nas".parse().unwrap();
        let update = UpdateCredential { deduplicate: Some(deduplicate), ..UpdateCredential::default() };
        let updated = self.call_at(UPDATE_CREDENTIAL, &nas, &update).await;
        assert_eq!(updated.deduplicate, deduplicate);
    }

    /// Creates a volume with the image and a change.
    async fn image(&self, name: &str, change: u64) -> (Arc<Volume>, Model) {
        let (volume, mut model) = (self.create_volume(name).await, Model::new());
        model.write(&volume, 0, 1, IMAGE);
        if change > 0 {
            model.write(&volume, change << 20, 100 + change, CHANGE);
        }
        (volume, model)
    }

    async fn listed(&self, id: &str) -> Cloudsnap {
        self.list().await.into_iter().find(|one| one.cloud_snapshot_id.to_string() == id).unwrap()
    }

    /// Pauses the next pass of a step: the receiver tells that it is reached, the sender ends the pause.
    pub(super) fn pause_at(
        &self,
        step: &'static str,
    ) -> (mpsc::UnboundedReceiver<()>, std::sync::mpsc::Sender<()>) {
        let (reached, is_reached) = mpsc::unbounded_channel();
        let (proceed, may_proceed) = std::sync::mpsc::channel();
        self.act_at(step, move |_| {
            reached.send(()).unwrap();
            tokio::task::block_in_place(|| may_proceed.recv().unwrap());
        });
        (is_reached, proceed)
    }

    fn fingerprint_files(&self) -> Vec<String> {
        let files = walk(&self.dir.path().join("data/fingerprints"));
        files.into_iter().filter(|path| !path.ends_with("/key")).collect()
    }
}

fn id_of(task: Task) -> String {
    task.cloud_snapshot_id.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_one_image_share_blocks() {
    let host = Host::new().await;
    host.create_credential().await;
    let (_, one) = host.image("one", 0).await;
    let first = id_of(host.backup("one", false).await);
    let (volume, mut two) = host.image("two", 3).await;
    let task = host.backup("two", false).await;
    assert_eq!(task.dirty_bytes, IMAGE as u64);
    assert!(task.uploaded_bytes < 2 * CHANGE as u64, "{task:?}");
    let second = id_of(task);
    let listed = host.listed(&second).await;
    assert_eq!((listed.dirty_bytes, listed.referenced_bytes), (IMAGE as u64, (IMAGE - CHANGE) as u64));
    // An incremental whose content returns.
    two.write(&volume, 3 << 20, 7, CHANGE);
    host.backup("two", false).await;
    two.write(&volume, 3 << 20, 103, CHANGE);
    let returned = host.backup("two", false).await;
    assert!(returned.uploaded_bytes < 8 << 10, "{returned:?}");
    assert_eq!((returned.backup_type, returned.dirty_bytes), (Some(BackupType::Incremental), CHANGE as u64));
    let last = id_of(returned);
    assert_eq!(host.fingerprint_files().len(), 4);
    host.assert_tidy();

    // The donor's delta stays.
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.create_credential().await;
    other.delete_cloudsnap(&StartDelete { force: true, ..delete_of(&first) }).await;
    for (id, name) in [(&second, "second"), (&last, "last")] {
        let restored = other.restore(id, name).await;
        if name == "last" {
            two.assert_is(&restored);
        }
    }
    let lazy = other.restore_lazily(&last, "lazy", false).await;
    let (lazy, kept) = (other.volume(lazy.volume_name.as_str()), two.clone());
    tokio::task::spawn_blocking(move || kept.assert_is(&lazy)).await.unwrap();
    let verified = other
        .verify(&StartVerify { cloud_snapshot_id: None, depth: VerifyDepth::Full, credential: None })
        .await;
    assert_eq!(verified.state.stage, TaskStage::Done);
    // The host that made them finds the donor gone, and stores the rest.
    let (_, three) = host.image("three", 5).await;
    let third = host.backup("three", false).await;
    assert_eq!(third.backup_type, Some(BackupType::Full));
    three.assert_is(&*host.restore(&id_of(third), "third").await);
    drop(one);
}

#[tokio::test(flavor = "multi_thread")]
async fn sparse_image_is_referenced_as_long_as_its_volume_needs_it() {
    let host = Host::new().await;
    host.create_credential().await;
    host.image("one", 0).await;
    let image = id_of(host.backup("one", false).await);
    let (volume, mut two) = host.image("two", 0).await;
    host.backup("two", false).await;
    // An eighth of the image stays.
    two.write(&volume, 0, 7, IMAGE / 8 * 7);
    host.backup("two", false).await;
    let options = BackupOptions { full: true, ..BackupOptions::default() };
    let synthetic = StartBackup { options, ..backup_of("two") };
    let full = host.run_backup(&synthetic).await;
    assert_eq!((full.backup_type, full.dirty_bytes), (Some(BackupType::Full), 0));
    host.delete_cloudsnap(&delete_of(&image)).await;
    let full = host.run_backup(&synthetic).await;
    assert_eq!((full.backup_type, full.dirty_bytes), (Some(BackupType::Full), IMAGE as u64 / 32));
    two.assert_is(&*host.restore(&id_of(full), "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn estimate_knows_the_shared_blocks() {
    let host = Host::new().await;
    host.create_credential().await;
    host.image("one", 0).await;
    host.backup("one", false).await;
    host.image("data", 3).await;
    let made = host.estimated_backup(&backup_of("data")).await;
    assert!(made.uploaded_bytes < 2 * CHANGE as u64, "{made:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn donor_deleted_before_the_commit_restarts_the_backup() {
    let host = Host::new().await;
    host.create_credential().await;
    host.image("zero", 0).await;
    let kept = id_of(host.backup("zero", false).await);
    host.image("one", 0).await;
    let first = id_of(host.backup("one", false).await);
    let (volume, mut two) = host.image("two", 3).await;
    two.write(&volume, 20 << 20, 20, 1 << 20);
    let manifest = host.manifest(&first);
    // The next task begins with the volume's own chain.
    host.act_at("backup planned", move |_| fs::remove_file(&manifest).unwrap());
    let task = host.backup("two", false).await;
    assert!(task.uploaded_bytes > IMAGE as u64, "{task:?}");
    let id = id_of(task);
    // Another donor may be gone, too.
    assert_eq!(host.listed(&id).await.referenced_bytes, 0);
    assert_eq!(BTreeSet::from_iter(host.ids().await), BTreeSet::from([kept, id.clone()]));
    two.assert_is(&*host.restore(&id, "copy").await);
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn deduplicated_backup_survives_a_crash_at_any_step() {
    for step in ["backup planned", crash_after_commit::COMMITTED, "backup stored"] {
        let mut host = Host::new().await;
        host.create_credential().await;
        host.image("one", 0).await;
        host.backup("one", false).await;
        let (_, two) = host.image("two", 3).await;
        host.die_at(step);
        let task = host.call(START_BACKUP, &backup_of("two")).await.items[0].task_id;
        host.crashed().await;
        host.die_and_start().await;
        let done = host.done(task).await;
        assert!(done.uploaded_bytes < 4 * CHANGE as u64, "{step}: {done:?}");
        two.assert_is(&*host.restore(&id_of(done), "copy").await);
        host.assert_tidy();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scope_of_the_location_limits_deduplication() {
    let host = Host::new().await;
    host.create_credential().await;
    host.image("one", 0).await;
    host.backup("one", false).await;
    host.deduplicate(Deduplication::Volume).await;
    let (volume, mut two) = host.image("two", 0).await;
    assert!(host.backup("two", false).await.uploaded_bytes > IMAGE as u64);
    // The content of another place of the same volume.
    two.write(&volume, 32 << 20, 1, 4 << 20);
    assert!(host.backup("two", false).await.uploaded_bytes < 8 << 10);
    host.deduplicate(Deduplication::Off).await;
    two.write(&volume, 40 << 20, 1, 4 << 20);
    let last = host.backup("two", false).await;
    assert!(last.uploaded_bytes > 4 << 20);
    assert_eq!(host.fingerprint_files().len(), 3);
    two.assert_is(&*host.restore(&id_of(last), "copy").await);
    host.deduplicate(Deduplication::Repository).await;
    // A new copy refers to no other snapshot.
    let options = BackupOptions { full: true, reupload: true, ..BackupOptions::default() };
    let copy = host.run_backup(&StartBackup { options, ..backup_of("two") }).await;
    assert!(copy.uploaded_bytes > IMAGE as u64);
    let copy = id_of(copy);
    let listed = host.listed(&copy).await;
    assert!(listed.referenced_bytes > 4 << 20, "its own blocks: {listed:?}");
    for id in host.ids().await.into_iter().filter(|id| *id != copy) {
        host.delete_cloudsnap(&StartDelete { force: true, ..delete_of(&id) }).await;
    }
    assert_eq!(host.packs().len(), 1);
    two.assert_is(&*host.restore(&copy, "again").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_donor_is_no_source() {
    let host = Host::new().await;
    host.create_credential().await;
    host.image("one", 0).await;
    let first = id_of(host.backup("one", false).await);
    flip_bit(&host.packs()[0], 64 + (200 << 10));
    let cloud_snapshot_id = Some(first.parse().unwrap());
    let depth = VerifyDepth::Full;
    let verified = host.verify(&StartVerify { cloud_snapshot_id, depth, credential: None }).await;
    assert_eq!(verified.state.stage, TaskStage::Failed);
    let (_, two) = host.image("two", 0).await;
    let second = host.backup("two", false).await;
    assert!(second.uploaded_bytes > IMAGE as u64);
    two.assert_is(&*host.restore(&id_of(second), "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_damage_is_no_source() {
    let host = Host::new().await;
    host.create_credential().await;
    let (volume, mut model) = host.image("one", 0).await;
    let first = id_of(host.backup("one", false).await);
    let pack = host.packs().remove(0);
    model.write(&volume, 0, 9, IMAGE);
    host.backup("one", false).await;
    host.delete_cloudsnap(&StartDelete { force: true, ..delete_of(&first) }).await;
    flip_bit(&pack, 64 + (200 << 10));
    let all = StartVerify { cloud_snapshot_id: None, depth: VerifyDepth::Full, credential: None };
    let verified = host.verify(&all).await;
    assert_eq!(verified.state.stage, TaskStage::Done, "no cloud snapshot has damage: {verified:?}");
    model.write(&volume, 0, 1, IMAGE);
    let returned = host.backup("one", false).await;
    assert!(returned.uploaded_bytes > IMAGE as u64, "{returned:?}");
    model.assert_is(&*host.restore(&id_of(returned), "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_another_host_found_is_no_source() {
    let host = Host::new().await;
    host.create_credential().await;
    host.image("one", 0).await;
    let first = id_of(host.backup("one", false).await);
    flip_bit(&host.packs()[0], 64 + (200 << 10));
    let other = Host::with_store(Arc::clone(&host.store)).await;
    other.create_credential().await;
    let verified = other.verify_snapshot(&first, VerifyDepth::Full).await;
    assert_eq!(verified.state.stage, TaskStage::Failed);
    // A listing reads the results of other hosts.
    host.list().await;
    let (_, two) = host.image("two", 0).await;
    let second = host.backup("two", false).await;
    assert!(second.uploaded_bytes > IMAGE as u64, "{second:?}");
    two.assert_is(&*host.restore(&id_of(second), "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn donor_of_a_running_backup_is_not_deleted() {
    let host = Host::new().await;
    host.create_credential().await;
    host.image("one", 0).await;
    let first = id_of(host.backup("one", false).await);
    let (_, two) = host.image("two", 3).await;
    let (mut planned, proceed) = host.pause_at("backup planned");
    let task = host.start_backup("two", false).await;
    planned.recv().await.unwrap();
    let delete = StartDelete { force: true, ..delete_of(&first) };
    host.refused(ErrorCode::CloudsnapInUse, START_DELETE, &delete).await;
    proceed.send(()).unwrap();
    let done = host.done(task).await;
    assert!(done.uploaded_bytes < 2 * CHANGE as u64, "{done:?}");
    host.delete_cloudsnap(&delete).await;
    two.assert_is(&*host.restore(&id_of(done), "copy").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn resumed_backup_refers_to_no_content_damaged_since() {
    let mut host = Host::new().await;
    host.create_credential().await;
    host.image("one", 0).await;
    host.backup("one", false).await;
    let (_, two) = host.image("two", 3).await;
    host.die_at("backup planned");
    let task = host.start_backup("two", false).await;
    host.crashed().await;
    flip_bit(&host.packs()[0], 64 + (200 << 10));
    // As a verification does that finds this.
    let files = walk(&host.dir.path().join("data/fingerprints"));
    files.iter().filter(|path| !path.ends_with("/key")).for_each(|path| fs::remove_file(path).unwrap());
    host.die_and_start().await;
    let done = host.done(task).await;
    assert!(done.uploaded_bytes > IMAGE as u64, "{done:?}");
    let id = id_of(done);
    assert_eq!(host.listed(&id).await.referenced_bytes, 0);
    two.assert_is(&*host.restore(&id, "copy").await);
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_found_during_the_upload_is_not_referenced() {
    let host = Host::new().await;
    host.create_credential().await;
    host.image("one", 0).await;
    let first = id_of(host.backup("one", false).await);
    let (_, two) = host.image("two", 3).await;
    let (mut planned, proceed) = host.pause_at("backup planned");
    let task = host.start_backup("two", false).await;
    planned.recv().await.unwrap();
    flip_bit(&host.packs()[0], 64 + (200 << 10));
    let verified = host.verify_snapshot(&first, VerifyDepth::Full).await;
    assert_eq!(verified.state.stage, TaskStage::Failed);
    proceed.send(()).unwrap();
    let done = host.done(task).await;
    let id = id_of(done);
    assert_eq!(host.listed(&id).await.referenced_bytes, 0);
    assert_eq!(BTreeSet::from_iter(host.ids().await), BTreeSet::from([first, id.clone()]));
    two.assert_is(&*host.restore(&id, "copy").await);
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn fingerprints_are_usable_once_the_backup_is_recorded() {
    let host = Host::new().await;
    host.create_credential().await;
    host.image("one", 0).await;
    let dir = host.dir.path().join("data/fingerprints");
    host.act_at("backup stored", move |_| assert!(walk(&dir).iter().all(|path| path.ends_with("/key"))));
    host.backup("one", false).await;
    assert_eq!(host.fingerprint_files().len(), 1);
}

/// A source with a lost index would be found by the content of the volume.
#[tokio::test(flavor = "multi_thread")]
async fn full_backup_after_a_lost_index_refers_to_nothing() {
    let host = Host::new().await;
    host.create_credential().await;
    let (volume, mut model) = host.image("one", 0).await;
    host.backup("one", false).await;
    let index = walk(host.store.path()).into_iter().find(|path| path.ends_with("/index")).unwrap();
    model.write(&volume, 5 << 20, 9, CHANGE);
    host.backup("one", false).await;
    fs::remove_file(index).unwrap();
    let options = BackupOptions { full: true, ..BackupOptions::default() };
    let task = host.run_backup(&StartBackup { options, ..backup_of("one") }).await;
    assert!(task.uploaded_bytes >= IMAGE as u64, "{task:?}");
    let id = id_of(task);
    assert_eq!(host.listed(&id).await.referenced_bytes, 0);
    model.assert_is(&*host.restore(&id, "copy").await);
}
