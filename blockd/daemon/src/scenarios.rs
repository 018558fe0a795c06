//! Tests of complete daemons in this process: real sockets, real volumes, a local directory as the store.
//!
//! A crash at a step stops the task there as if the daemon had been killed; the next daemon on the same
//! directory must complete the task.

use crate::{
    config::{Config, WebhookConfig},
    core::Core,
    daemon::Daemon,
    registry::EntryState,
};
use blockd_api::{
    Client, ClientError, ErrorCode,
    cloudsnaps::{BackupOptions, Cloudsnap, ListCloudsnaps, StartBackup, StartDelete, StartRestore},
    credentials::{Connection, CreateCredential, ProviderRequest},
    operations::*,
    snapshots::{CreateSnapshot, ListSnapshots, Snapshot},
    tasks::{BackupType, ListTasks, Task, TaskStage, WaitTask},
    volumes::{CreateVolume, ListVolumes, UpdateVolume},
};
use blockd_catalog::{DbError, SnapshotRow, TaskRow, TaskState};
use blockd_extent::SnapshotId;
use blockd_volume::{Volume, VolumeErrorKind};
use std::{path::Path, sync::Arc};
use uuid::Uuid;

mod copies;
mod deletions;
pub(crate) mod dying;
mod events;
mod given_up;
mod group_backups;
mod groups;
mod health;
mod id_prefixes;
mod key_slots;
mod layers;
mod local_copies;
mod locate;
mod metrics;
mod other_hosts;
mod requests;
mod retention;
mod retention_overrides;
mod roles;
mod rules;
mod schedules;
mod silent;
mod undone;
mod updates;
mod webhooks;

const SIZE_BYTES: u64 = 64 << 20;
const BLOCK: u64 = 4096;

struct Host {
    daemon: Option<Daemon>,
    client: Client,
    dir: tempfile::TempDir,
    store: Arc<tempfile::TempDir>,
    /// Webhooks from the next start on.
    webhooks: Vec<WebhookConfig>,
}

fn config(dir: &Path) -> Config {
    Config {
        data_dir: dir.join("data"),
        ring_threads: 1,
        nbd_workers: 2,
        cpu_threads: 2,
        verify_bytes_per_day: 0,
        secrets: crate::config::SecretsConfig { file_dir: dir.join("secrets"), ..Default::default() },
        ..Config::default()
    }
}

impl Host {
    async fn new() -> Self {
        Self::with_store(Arc::new(tempfile::tempdir().unwrap())).await
    }

    async fn with_store(store: Arc<tempfile::TempDir>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::new(dir.path().join("data/blockd.sock"));
        let mut host = Self { daemon: None, client, dir, store, webhooks: Vec::new() };
        host.start().await;
        host
    }

    async fn start(&mut self) {
        let config = Config { webhook: self.webhooks.clone(), ..config(self.dir.path()) };
        self.daemon = Some(Daemon::start(config, false).await.unwrap());
    }

    async fn stop(&mut self) {
        self.daemon.take().unwrap().stop().await.unwrap();
    }

    fn core(&self) -> &Arc<Core> {
        self.daemon.as_ref().unwrap().core()
    }

    fn volume(&self, name: &str) -> Arc<Volume> {
        self.core().registry.by_name(name).unwrap().volume().unwrap()
    }

    async fn create_volume(&self, name: &str) -> Arc<Volume> {
        let labels = "app=mysql,tier=db".parse().unwrap();
        let request =
            CreateVolume { name: name.parse().unwrap(), size_bytes: SIZE_BYTES, labels, group: None };
        self.client.call(CREATE_VOLUME, &request).await.unwrap();
        self.volume(name)
    }

    fn credential(&self, name: &str, passphrase: Option<&str>) -> CreateCredential {
        CreateCredential {
            name: name.parse().unwrap(),
            provider: ProviderRequest::Local { path: self.store.path().to_owned() },
            connection: Connection::default(),
            encryption_passphrase: passphrase.map(|text| blockd_api::Secret::new(text.into()).into()),
        }
    }

    async fn create_credential(&self) -> Uuid {
        self.client.call(CREATE_CREDENTIAL, &self.credential("nas", None)).await.unwrap().uuid
    }

    async fn start_backup(&self, volume: &str, full: bool) -> Uuid {
        let request = StartBackup {
            options: BackupOptions { full, ..Default::default() },
            ..StartBackup::of(volume.parse().unwrap())
        };
        self.client.call(START_BACKUP, &request).await.unwrap().task
    }

    /// Long polls until the task has ended.
    async fn wait(&self, task: Uuid) -> Task {
        let mut version = 0;
        loop {
            let wait = WaitTask { wait_ms: Some(10_000), since_version: Some(version) };
            let seen = self.client.call_at(GET_TASK, &task, &wait).await.unwrap();
            if seen.state.stage.is_over() {
                return seen;
            }
            assert!(seen.version >= version);
            version = seen.version;
        }
    }

    async fn done(&self, task: Uuid) -> Task {
        let task = self.wait(task).await;
        assert_eq!((task.state.stage, &task.error), (TaskStage::Done, &None), "{task:?}");
        task
    }

    async fn backup(&self, volume: &str, full: bool) -> Task {
        self.done(self.start_backup(volume, full).await).await
    }

    async fn restore(&self, snap: &str, name: &str) -> Arc<Volume> {
        let request =
            StartRestore { volume: Some(name.parse().unwrap()), ..StartRestore::of(snap.parse().unwrap()) };
        let started = self.client.call(START_RESTORE, &request).await.unwrap();
        self.done(started.task).await;
        self.volume(name)
    }

    async fn list(&self) -> Vec<Cloudsnap> {
        let query = ListCloudsnaps { all: true, ..ListCloudsnaps::default() };
        let list = self.client.call(LIST_CLOUDSNAPS, &query).await.unwrap();
        assert_eq!((list.damaged.len(), list.failed_credentials.len()), (0, 0), "{list:?}");
        list.cloudsnaps
    }

    fn sql(&self, statements: &str) {
        let run = |tx: &rusqlite::Transaction<'_>| Ok::<_, DbError>(tx.execute_batch(statements)?);
        self.core().db.transaction(run).unwrap();
    }

    /// Waits for the crash at its step and the end of the tasks, and starts the next daemon.
    async fn die_and_start(&mut self) {
        self.core().stopping.cancelled().await;
        self.stop().await;
        self.start().await;
    }

    /// Asserts that ended tasks left no snapshots, block sets or files.
    fn assert_tidy(&self) {
        let rows = self.core().db.transaction(|tx| SnapshotRow::all(tx, None)).unwrap();
        assert_eq!(rows, vec![]);
        for entry in self.core().registry.all() {
            assert_eq!(entry.volume().unwrap().snapshots().len(), 0, "{}", entry.name);
        }
        assert_eq!(std::fs::read_dir(self.dir.path().join("data/tasks")).unwrap().count(), 0);
    }
}

/// Some content that differs from block to block, and compresses badly.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A volume's expected content.
#[derive(Clone)]
struct Model(Vec<u8>);

impl Model {
    fn new() -> Self {
        Self(vec![0; SIZE_BYTES as usize])
    }

    fn write(&mut self, volume: &Volume, offset: u64, seed: u64, len: usize) {
        let data = pattern(seed, len);
        volume.write(offset, &data, false).unwrap();
        self.0[offset as usize..][..len].copy_from_slice(&data);
    }

    fn trim(&mut self, volume: &Volume, offset: u64, len: u64) {
        volume.write_zeroes(offset, len, false, false).unwrap();
        self.0[offset as usize..][..len as usize].fill(0);
    }

    fn assert_is(&self, volume: &Volume) {
        assert_eq!(volume.size_bytes(), self.0.len() as u64);
        let mut content = vec![0; self.0.len()];
        volume.read(0, &mut content).unwrap();
        let differs = content.iter().zip(&self.0).position(|(a, b)| a != b);
        assert_eq!(differs, None, "the first byte that differs");
    }
}

fn api_code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ErrorCode {
    match result.unwrap_err() {
        ClientError::Api(error) => {
            assert!(!error.message.contains('\n'), "{}", error.message);
            error.code
        }
        other => panic!("{other}"),
    }
}

/// Removes the space figures of snapshots, which a creation does not report.
fn as_made(mut snapshots: Vec<Snapshot>) -> Vec<Snapshot> {
    for snapshot in &mut snapshots {
        assert!(snapshot.exclusive_bytes.is_some() && snapshot.shared_bytes.is_some());
        (snapshot.exclusive_bytes, snapshot.shared_bytes) = (None, None);
    }
    snapshots
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_and_restore_round_trip() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.client.call(CREATE_CREDENTIAL, &host.credential("nas", Some("correct horse"))).await.unwrap();
    let mut model = Model::new();
    model.write(&volume, 1000, 1, 9 << 20);
    model.write(&volume, SIZE_BYTES - 5000, 2, 5000);

    let full = host.backup("data", false).await;
    assert_eq!(full.backup_type, Some(BackupType::Full));
    assert!(full.bytes_uploaded >= 9 << 20 && full.freeze_stall_micros.is_some());
    assert_eq!((full.requests.get, full.requests.list + full.requests.head), (1, 0), "the key slot");
    let first = model.clone();
    host.assert_tidy();

    model.write(&volume, 40 << 20, 3, 100_000);
    model.trim(&volume, 2 << 20, 1 << 20);
    let incremental = host.backup("data", false).await;
    assert_eq!(incremental.backup_type, Some(BackupType::Incremental));
    assert!(incremental.bytes_uploaded < 200_000, "{incremental:?}");
    assert_eq!((incremental.requests.put, incremental.requests.get), (3, 1), "its base, afterwards");
    let ids: Vec<String> = host.list().await.iter().map(|entry| entry.id.to_string()).collect();
    assert_eq!(ids, [full.source_volume.clone().unwrap(), incremental.source_volume.clone().unwrap()]);
    assert!(ids[1].ends_with("-incr"));
    let seen = host.client.call_at(GET_VOLUME, &"data".parse().unwrap(), &()).await.unwrap();
    assert_eq!(seen.last_backups[0].cloudsnap_id, ids[1]);
    assert_eq!(seen.last_backups[0].incrementals_since_full, 1);

    first.assert_is(&*host.restore(&ids[0], "one").await);
    model.assert_is(&*host.restore(&ids[1], "two").await);
    let restored = host.client.call_at(GET_VOLUME, &"two".parse().unwrap(), &()).await.unwrap();
    assert_eq!(restored.labels.to_string(), "app=mysql,tier=db");

    // After a clean stop the chain continues, and only written blocks are dirty.
    host.stop().await;
    host.start().await;
    let volume = host.volume("data");
    model.write(&volume, 5 * BLOCK, 4, 1);
    let third = host.backup("data", false).await;
    assert_eq!((third.backup_type, third.bytes_dirty), (Some(BackupType::Incremental), BLOCK));
    let third_id = third.source_volume.unwrap();

    // Deleting in the middle of the chain takes nothing from the others; deleting its tip makes the next one
    // full.
    for (id, next) in [(&ids[1], BackupType::Incremental), (&third_id, BackupType::Full)] {
        let request = StartDelete::of(id.parse().unwrap());
        if next == BackupType::Full {
            model.assert_is(&*host.restore(id, "three").await);
        }
        host.done(host.client.call(START_DELETE, &request).await.unwrap().task).await;
        assert_eq!(api_code(host.client.call(START_DELETE, &request).await), ErrorCode::CloudsnapNotFound);
    }
    first.assert_is(&*host.restore(&ids[0], "four").await);
    assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Full));
    host.assert_tidy();

    // Another host with the same credential sees and restores everything.
    let other = Host::with_store(Arc::clone(&host.store)).await;
    let wrong = other.credential("wrong", Some("incorrect horse"));
    assert_eq!(api_code(other.client.call(CREATE_CREDENTIAL, &wrong).await), ErrorCode::WrongPassphrase);
    let none = other.credential("none", None);
    assert_eq!(api_code(other.client.call(CREATE_CREDENTIAL, &none).await), ErrorCode::PassphraseRequired);
    other.client.call(CREATE_CREDENTIAL, &other.credential("nas", Some("correct horse"))).await.unwrap();
    let list = other.list().await;
    assert_eq!(list.len(), 2);
    first.assert_is(&*other.restore(&list[0].id.to_string(), "here").await);
    model.assert_is(&*other.restore(&list[1].id.to_string(), "there").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_survives_a_crash_at_any_step() {
    for step in [
        "backup accepted",
        "backup frozen",
        "backup planned",
        dying::COMMITTED,
        "backup in the store",
        "backup committed",
    ] {
        let mut host = Host::new().await;
        let volume = host.create_volume("data").await;
        host.create_credential().await;
        let mut model = Model::new();
        model.write(&volume, 0, 1, 3 << 20);
        host.backup("data", false).await;
        model.write(&volume, 1 << 20, 2, 1 << 20);
        let frozen = model.clone();

        *host.core().dies_at.lock() = Some(step);
        let task = host.start_backup("data", false).await;
        host.core().stopping.cancelled().await;
        if step != "backup accepted" {
            // The point in time is fixed: later writes are not in it.
            model.write(&volume, 30 << 20, 3, 1 << 20);
        }
        drop(volume);
        host.die_and_start().await;
        let done = host.done(task).await;
        assert_eq!(done.backup_type, Some(BackupType::Incremental), "{step}");
        let committed = step == "backup committed";
        assert_eq!(done.resumed, u64::from(!committed), "{step}");
        host.assert_tidy();
        let id = done.source_volume.unwrap();
        assert_eq!(host.list().await.len(), 2, "{step}");
        frozen.assert_is(&*host.restore(&id, "copy").await);

        // The next one builds on it, unless its commit was in doubt: then on the one before, and carries both
        // changes.
        let in_doubt = [dying::COMMITTED, "backup in the store"].contains(&step);
        let next = host.backup("data", false).await;
        assert_eq!(next.backup_type, Some(BackupType::Incremental), "{step}");
        assert_eq!(next.bytes_dirty > 1 << 20, in_doubt, "{step}: {}", next.bytes_dirty);
        assert!(next.bytes_dirty <= 2 << 20, "{step}: {}", next.bytes_dirty);
        model.assert_is(&*host.restore(&next.source_volume.unwrap(), "next").await);
    }
}

/// Trigger that refuses to store ends of tasks, like a full disk of the database.
const NO_END: &str = "CREATE TRIGGER no_end BEFORE INSERT ON tasks WHEN NEW.state IN ('done', 'failed')
    BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";

#[tokio::test(flavor = "multi_thread")]
async fn stored_backup_is_protected_until_it_is_recorded() {
    for restart in [false, true] {
        let mut host = Host::new().await;
        let volume = host.create_volume("data").await;
        host.create_credential().await;
        let mut model = Model::new();
        model.write(&volume, 0, 1, 1 << 20);
        let base = host.backup("data", false).await.source_volume.unwrap();
        model.write(&volume, 1 << 20, 2, 1 << 20);

        host.sql(NO_END);
        let task = host.start_backup("data", false).await;
        let mut seen = host.client.call_at(GET_TASK, &task, &WaitTask::default()).await.unwrap();
        while seen.phase != "done" {
            let wait = WaitTask { wait_ms: Some(10_000), since_version: Some(seen.version) };
            seen = host.client.call_at(GET_TASK, &task, &wait).await.unwrap();
        }
        assert_eq!((seen.state.stage, seen.error), (TaskStage::Active, None));
        let made = seen.source_volume.unwrap();
        for id in [&base, &made] {
            let request = StartDelete::of(id.parse().unwrap());
            assert_eq!(api_code(host.client.call(START_DELETE, &request).await), ErrorCode::CloudsnapInUse);
        }
        drop(volume);
        if restart {
            host.stop().await;
            host.start().await;
        }
        host.sql("DROP TRIGGER no_end");
        let done = host.done(task).await;
        assert_eq!((done.resumed, done.source_volume.as_ref()), (u64::from(restart), Some(&made)));
        assert_eq!(host.list().await.len(), 2);
        model.assert_is(&*host.restore(&made, "copy").await);
        assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Incremental));
        host.assert_tidy();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_task_runs_until_its_result_is_stored() {
    let host = Host::new().await;
    host.create_volume("data").await;
    host.create_credential().await;
    let away = host.store.path().with_extension("away");
    std::fs::rename(host.store.path(), &away).unwrap();
    host.sql(NO_END);
    let task = host.start_backup("data", false).await;
    let again = StartBackup::of("data".parse().unwrap());
    assert_eq!(api_code(host.client.call(START_BACKUP, &again).await), ErrorCode::VolumeInUse);
    host.sql("DROP TRIGGER no_end");
    assert_eq!(host.wait(task).await.state.stage, TaskStage::Failed);
    host.assert_tidy();
    std::fs::rename(&away, host.store.path()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn task_in_the_database_protects_its_snapshots() {
    let host = Host::new().await;
    host.create_volume("data").await;
    host.create_credential().await;
    let task = host.backup("data", false).await;
    let id: blockd_cloud::CloudSnapshotId = task.source_volume.unwrap().parse().unwrap();
    let snapshot = SnapshotId::from_u64(77);
    let store = |state| {
        let find = task.name;
        host.core().db.transaction(move |tx| {
            let mut row = TaskRow::find(tx, find)?.unwrap();
            row.id = Uuid::from_u128(5);
            row.state = state;
            row.snapshot = Some(snapshot);
            row.cloudsnap.snapshot = snapshot;
            row.base = Some(id);
            row.put(tx)
        })
    };
    store(TaskState::Active).unwrap();
    let delete = StartDelete::of(id.to_string().parse().unwrap());
    assert_eq!(api_code(host.client.call(START_DELETE, &delete).await), ErrorCode::CloudsnapInUse);
    assert_eq!(
        api_code(host.client.call_at(DELETE_VOLUME, &"data".parse().unwrap(), &Default::default()).await),
        ErrorCode::VolumeInUse
    );
    assert_eq!(
        api_code(host.client.call_at(DELETE_CREDENTIAL, &"nas".parse().unwrap(), &()).await),
        ErrorCode::CredentialInUse
    );
    store(TaskState::Failed).unwrap();
    host.done(host.client.call(START_DELETE, &delete).await.unwrap().task).await;
    host.client.call_at(DELETE_VOLUME, &"data".parse().unwrap(), &Default::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_database_write_is_undone() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let name = "data".parse().unwrap();
    host.sql(
        "CREATE TRIGGER not_ready BEFORE UPDATE ON snapshots WHEN NEW.state = 'ready'
         BEGIN SELECT RAISE(ABORT, 'the disk is full'); END;
         CREATE TRIGGER not_deleting BEFORE UPDATE ON volumes WHEN NEW.state = 'deleting'
         BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    );
    let refused = host.client.call_at(CREATE_SNAPSHOT, &name, &CreateSnapshot::default()).await;
    assert_eq!(api_code(refused), ErrorCode::Internal);
    host.assert_tidy();
    assert_eq!(
        api_code(host.client.call_at(DELETE_VOLUME, &name, &Default::default()).await),
        ErrorCode::Internal
    );
    let entry = host.core().registry.by_name("data").unwrap();
    assert!(entry.attach().is_ok());
    assert!(!entry.stop_upkeep.load(std::sync::atomic::Ordering::Relaxed));
    host.sql("DROP TRIGGER not_ready; DROP TRIGGER not_deleting");
    drop((volume, entry));
    host.client.call_at(DELETE_VOLUME, &name, &Default::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn unrecorded_volume_leaves_no_files() {
    let host = Host::new().await;
    host.sql(
        "CREATE TRIGGER not_up BEFORE UPDATE ON volumes WHEN NEW.state = 'up'
         BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    );
    let request = CreateVolume {
        name: "data".parse().unwrap(),
        size_bytes: SIZE_BYTES,
        labels: Default::default(),
        group: None,
    };
    assert_eq!(api_code(host.client.call(CREATE_VOLUME, &request).await), ErrorCode::Internal);
    assert_eq!(std::fs::read_dir(host.dir.path().join("data/volumes")).unwrap().count(), 0);
    host.sql("DROP TRIGGER not_up");
    host.client.call(CREATE_VOLUME, &request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_in_deletion_refuses_writes() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 5000);
    let name = "data".parse().unwrap();
    host.sql(
        "CREATE TRIGGER no_change BEFORE UPDATE ON volumes BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    );
    assert_eq!(
        api_code(host.client.call_at(DELETE_VOLUME, &name, &Default::default()).await),
        ErrorCode::Internal
    );
    let seen = host.client.call_at(GET_VOLUME, &name, &()).await.unwrap();
    assert!(seen.state_reason.unwrap().contains("restart blockd to see"));
    assert!(volume.write(0, &[1], false).is_err());
    drop(volume);
    host.sql("DROP TRIGGER no_change");
    // The row is unchanged: the volume exists with all writes.
    host.stop().await;
    host.start().await;
    model.assert_is(&host.volume("data"));
    host.client.call_at(DELETE_VOLUME, &name, &Default::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn growth_is_answered_if_its_row_fails_and_leaves_merges() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    let sizes = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let told = Arc::clone(&sizes);
    host.core().registry.on_resized(Box::new(move |_, size_bytes| told.lock().push(size_bytes)));
    let name = "data".parse().unwrap();
    let grow = |times| UpdateVolume { size_bytes: Some(SIZE_BYTES * times), ..UpdateVolume::default() };
    host.sql(
        "CREATE TRIGGER no_change BEFORE UPDATE ON volumes BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    );
    assert_eq!(api_code(host.client.call_at(UPDATE_VOLUME, &name, &grow(2)).await), ErrorCode::Internal);
    assert_eq!(*sizes.lock(), [SIZE_BYTES * 2]);
    host.sql("DROP TRIGGER no_change");
    for times in [2, 3] {
        Model::new().write(&volume, times * BLOCK, times, 10);
        host.client.call_at(UPDATE_VOLUME, &name, &grow(times)).await.unwrap();
    }
    assert_eq!(*sizes.lock(), [2, 2, 3].map(|times| SIZE_BYTES * times));
    let merged = async {
        while volume.stats().layers > 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), merged).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_survives_a_crash_at_any_step() {
    for step in ["restore accepted", "restore in place", "restore committed"] {
        let mut host = Host::new().await;
        let volume = host.create_volume("data").await;
        host.create_credential().await;
        let mut model = Model::new();
        model.write(&volume, 7, 1, 3 << 20);
        let id = host.backup("data", false).await.source_volume.unwrap();
        drop(volume);

        *host.core().dies_at.lock() = Some(step);
        let request = StartRestore::of(id.parse().unwrap());
        let started = host.client.call(START_RESTORE, &request).await.unwrap();
        assert_eq!(started.volume.as_str(), "data-restored-1");
        host.die_and_start().await;
        host.done(started.task).await;
        model.assert_is(&host.volume("data-restored-1"));
        assert_eq!(host.client.call(LIST_VOLUMES, &ListVolumes::default()).await.unwrap().volumes.len(), 2);
        host.assert_tidy();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_survives_a_crash_at_any_step() {
    for step in ["delete accepted", "delete out of the store"] {
        let mut host = Host::new().await;
        let volume = host.create_volume("data").await;
        host.create_credential().await;
        Model::new().write(&volume, 0, 1, 3 << 20);
        let id = host.backup("data", false).await.source_volume.unwrap();
        drop(volume);
        *host.core().dies_at.lock() = Some(step);
        let request = StartDelete::of(id.parse().unwrap());
        let task = host.client.call(START_DELETE, &request).await.unwrap().task;
        host.die_and_start().await;
        host.done(task).await;
        assert_eq!(host.list().await, vec![]);
        let data = host.store.path().join("blockd/data");
        let left = walk(&data);
        assert_eq!(left, Vec::<String>::new(), "{step}");
        assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Full));
        host.assert_tidy();
    }
}

fn walk(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.path().is_dir() {
            true => walk(&entry.path()),
            false => vec![entry.path().display().to_string()],
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_reported_and_leave_no_files() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    let backup = StartBackup::of("data".parse().unwrap());
    assert_eq!(api_code(host.client.call(START_BACKUP, &backup).await), ErrorCode::CredentialRequired);
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let id = host.backup("data", false).await.source_volume.unwrap();

    // A damaged pack fails the restore, which leaves no volume.
    let pack = walk(host.store.path()).into_iter().find(|path| path.contains("/pack-")).unwrap();
    let good = std::fs::read(&pack).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(&pack, &bad).unwrap();
    let request =
        StartRestore { volume: Some("copy".parse().unwrap()), ..StartRestore::of(id.parse().unwrap()) };
    let failed = host.wait(host.client.call(START_RESTORE, &request).await.unwrap().task).await;
    assert_eq!(failed.state.to_string(), "Restore-Failed");
    let error = failed.error.unwrap();
    assert!(error.code == ErrorCode::CloudsnapDamaged && error.message.contains("pack-"), "{error:?}");
    assert!(host.core().registry.by_name("copy").is_none());
    host.assert_tidy();
    std::fs::write(&pack, &good).unwrap();

    // A store that is gone fails the backup; the volume and the chain are as before.
    let away = host.store.path().with_extension("away");
    std::fs::rename(host.store.path(), &away).unwrap();
    let failed = host.wait(host.start_backup("data", false).await).await;
    assert_eq!(failed.state.to_string(), "Backup-Failed");
    assert!(failed.error.unwrap().message.contains(host.store.path().to_str().unwrap()));
    host.assert_tidy();
    std::fs::rename(&away, host.store.path()).unwrap();
    assert_eq!(host.list().await.len(), 1);
    assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Incremental));

    // The base is gone from the store: the next one is full.
    let tip = host.backup("data", false).await.source_volume.unwrap();
    std::fs::remove_file(host.store.path().join("blockd/manifests").join(&tip)).unwrap();
    let full = host.backup("data", false).await;
    assert_eq!(full.backup_type, Some(BackupType::Full));
    model.assert_is(&*host.restore(&full.source_volume.unwrap(), "copy").await);

    // Names, sizes, ids.
    let taken = CreateVolume {
        name: "data".parse().unwrap(),
        size_bytes: 1 << 20,
        labels: Default::default(),
        group: None,
    };
    assert_eq!(api_code(host.client.call(CREATE_VOLUME, &taken).await), ErrorCode::VolumeExists);
    let odd = CreateVolume {
        name: "odd".parse().unwrap(),
        size_bytes: 4097,
        labels: Default::default(),
        group: None,
    };
    assert_eq!(api_code(host.client.call(CREATE_VOLUME, &odd).await), ErrorCode::InvalidRequest);
    assert!(host.core().registry.by_name("odd").is_none());
    let zero = CreateVolume {
        name: "zero".parse().unwrap(),
        size_bytes: 0,
        labels: Default::default(),
        group: None,
    };
    assert_eq!(api_code(host.client.call(CREATE_VOLUME, &zero).await), ErrorCode::InvalidRequest);
    assert_eq!(
        api_code(host.client.call_at(GET_VOLUME, &"none".parse().unwrap(), &()).await),
        ErrorCode::VolumeNotFound
    );
    let unknown = format!("{}/1-2", Uuid::nil());
    let request = StartRestore::of(unknown.parse().unwrap());
    assert_eq!(api_code(host.client.call(START_RESTORE, &request).await), ErrorCode::CloudsnapNotFound);
    assert_eq!(
        api_code(host.client.call_at(GET_TASK, &Uuid::nil(), &WaitTask::default()).await),
        ErrorCode::TaskNotFound
    );
    let missing = CreateCredential {
        name: "missing".parse().unwrap(),
        provider: ProviderRequest::Local { path: "/nonexistent/store".into() },
        connection: Connection::default(),
        encryption_passphrase: None,
    };
    assert_eq!(api_code(host.client.call(CREATE_CREDENTIAL, &missing).await), ErrorCode::BucketMissing);
    drop(volume);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_in_use_are_not_deleted() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 1 << 20);
    let id = host.backup("data", false).await.source_volume.unwrap();

    let entry = host.core().registry.by_name("data").unwrap();
    let (_, attachment) = entry.attach().unwrap();
    assert_eq!(
        api_code(host.client.call_at(DELETE_VOLUME, &"data".parse().unwrap(), &Default::default()).await),
        ErrorCode::VolumeInUse
    );
    drop(attachment);

    // A task that is paused at a step counts as running.
    *host.core().dies_at.lock() = Some("backup planned");
    let task = host.start_backup("data", false).await;
    host.core().stopping.cancelled().await;
    let again = StartBackup::of("data".parse().unwrap());
    let core = Arc::clone(host.core());
    let code = |error: crate::error::ServiceError| error.to_api().code;
    assert_eq!(code(core.start_backup(&again).await.unwrap_err()), ErrorCode::VolumeInUse);
    assert_eq!(
        code(core.delete_volume(&"data".parse().unwrap(), true).await.unwrap_err()),
        ErrorCode::VolumeInUse
    );
    assert_eq!(
        code(core.delete_credential(&"nas".parse().unwrap()).await.unwrap_err()),
        ErrorCode::CredentialInUse
    );
    let delete = StartDelete::of(id.parse().unwrap());
    assert_eq!(code(core.start_delete(&delete).await.unwrap_err()), ErrorCode::CloudsnapInUse);
    drop((core, entry, volume));
    host.die_and_start().await;
    host.done(task).await;

    // Now all of it may be deleted; stored backups stay.
    host.client.call_at(DELETE_VOLUME, &"data".parse().unwrap(), &Default::default()).await.unwrap();
    assert_eq!(std::fs::read_dir(host.dir.path().join("data/volumes")).unwrap().count(), 0);
    assert_eq!(host.list().await.len(), 2);
    host.client.call_at(DELETE_CREDENTIAL, &"nas".parse().unwrap(), &()).await.unwrap();
    host.create_credential().await;
    model.assert_is(&*host.restore(&id, "data").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_listed_and_deleted_by_name_and_id() {
    let host = Host::new().await;
    let volume = host.create_volume("data").await;
    Model::new().write(&volume, 0, 1, 10_000);
    let by_name = CreateSnapshot { name: Some("monday".parse().unwrap()), ..Default::default() };
    let first = host.client.call_at(CREATE_SNAPSHOT, &"data".parse().unwrap(), &by_name).await.unwrap();
    assert_eq!(first.dirty_bytes, 3 * BLOCK);
    assert_eq!(
        api_code(host.client.call_at(CREATE_SNAPSHOT, &"data".parse().unwrap(), &by_name).await),
        ErrorCode::SnapshotExists
    );
    let second = host
        .client
        .call_at(CREATE_SNAPSHOT, &"data".parse().unwrap(), &CreateSnapshot::default())
        .await
        .unwrap();
    let list = host.client.call(LIST_SNAPSHOTS, &ListSnapshots::default()).await.unwrap().snapshots;
    assert_eq!(as_made(list), [first, second.clone()]);
    host.client.call_at(DELETE_SNAPSHOT, &"data@monday".parse().unwrap(), &Default::default()).await.unwrap();
    host.client
        .call_at(DELETE_SNAPSHOT, &second.id.to_string().parse().unwrap(), &Default::default())
        .await
        .unwrap();
    assert_eq!(
        api_code(
            host.client.call_at(DELETE_SNAPSHOT, &"data@monday".parse().unwrap(), &Default::default()).await
        ),
        ErrorCode::SnapshotNotFound
    );
    let seen = host.client.call_at(GET_VOLUME, &"data".parse().unwrap(), &()).await.unwrap();
    assert_eq!(seen.snapshot_count, 0);
    host.assert_tidy();
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_volume_does_not_block_the_others() {
    let mut host = Host::new().await;
    let good = host.create_volume("good").await;
    let bad = host.create_volume("bad").await;
    let mut model = Model::new();
    model.write(&good, 0, 1, 5000);
    let dir = host.core().volume_dir(bad.id());
    drop((good, bad));
    host.stop().await;
    std::fs::rename(&dir, dir.with_extension("hidden")).unwrap();
    host.start().await;
    model.assert_is(&host.volume("good"));
    assert!(matches!(host.core().registry.by_name("bad").unwrap().view().state, EntryState::Failed(_)));
    let seen = host.client.call_at(GET_VOLUME, &"bad".parse().unwrap(), &()).await.unwrap();
    assert!(seen.state_reason.unwrap().contains(dir.to_str().unwrap()));
    assert_eq!(host.client.call(GET_STATUS, &()).await.unwrap().counts.volumes_failed, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_key_invalidates_credentials_only() {
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    host.backup("data", false).await;
    drop(volume);
    host.stop().await;
    std::fs::write(host.dir.path().join("data/secret.key"), [3; 32]).unwrap();
    host.start().await;
    host.volume("data").write(0, &[1], false).unwrap();
    let failed = host.wait(host.start_backup("data", false).await).await;
    let error = failed.error.unwrap();
    assert!(error.code == ErrorCode::SecretUnavailable && error.message.contains("nas"), "{error:?}");
    assert_eq!(
        api_code(host.client.call(LIST_CLOUDSNAPS, &ListCloudsnaps::default()).await),
        ErrorCode::SecretUnavailable
    );
    host.client.call_at(DELETE_CREDENTIAL, &"nas".parse().unwrap(), &()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn second_daemon_is_refused_and_tasks_survive_a_restart() {
    let mut host = Host::new().await;
    let error = Daemon::start(config(host.dir.path()), false).await.unwrap_err().to_string();
    assert!(error.contains("in use by another blockd"), "{error}");
    host.create_volume("data").await;
    host.create_credential().await;
    let task = host.backup("data", true).await;
    host.stop().await;
    host.start().await;
    let query = ListTasks { name: Some(task.name.to_string()[..8].to_owned()) };
    let tasks = host.client.call(LIST_TASKS, &query).await.unwrap().tasks;
    assert_eq!(tasks, [task]);
}

#[tokio::test(flavor = "multi_thread")]
async fn grown_volume_is_backed_up_incrementally_and_restored() {
    const GROWN_BYTES: u64 = SIZE_BYTES + (9 << 20) + BLOCK;
    let mut host = Host::new().await;
    let volume = host.create_volume("data").await;
    host.create_credential().await;
    let mut model = Model::new();
    model.write(&volume, 0, 1, 3 << 20);
    model.write(&volume, SIZE_BYTES - BLOCK, 2, BLOCK as usize);
    let before = model.clone();
    let full = host.backup("data", false).await.source_volume.unwrap();
    // Dirtied before the growth and after the backup: the incremental must carry it as well.
    model.write(&volume, 5 << 20, 3, 10_000);

    let sizes = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let told = Arc::clone(&sizes);
    let listener = move |entry: &crate::registry::VolumeEntry, size| told.lock().push((entry.id, size));
    host.core().registry.on_resized(Box::new(listener));
    let update = |size_bytes, read_only| UpdateVolume { size_bytes, read_only, ..Default::default() };
    let name = "data".parse().unwrap();
    let seen = host.client.call_at(UPDATE_VOLUME, &name, &update(Some(GROWN_BYTES), None)).await.unwrap();
    assert_eq!((seen.size_bytes, sizes.lock().clone()), (GROWN_BYTES, vec![(volume.id(), GROWN_BYTES)]));
    for wrong in [Some(SIZE_BYTES), Some(GROWN_BYTES + 1), Some(0), Some(u64::MAX), None] {
        let refused = host.client.call_at(UPDATE_VOLUME, &name, &update(wrong, None)).await;
        assert_eq!(api_code(refused), ErrorCode::InvalidRequest, "{wrong:?}");
    }
    model.0.resize(GROWN_BYTES as usize, 0);
    model.assert_is(&volume);
    model.write(&volume, SIZE_BYTES - 100, 4, 5000);
    model.write(&volume, GROWN_BYTES - BLOCK, 5, BLOCK as usize);
    let task = host.backup("data", false).await;
    assert_eq!(task.backup_type, Some(BackupType::Incremental));
    let grown = task.source_volume.unwrap();
    model.assert_is(&*host.restore(&grown, "grown").await);
    before.assert_is(&*host.restore(&full, "before").await);

    // The row is behind the volume if the daemon dies between the two.
    drop(volume);
    host.sql(&format!("UPDATE volumes SET size_bytes = {SIZE_BYTES}, read_only = 1 WHERE name = 'data'"));
    host.stop().await;
    host.start().await;
    let seen = host.client.call_at(GET_VOLUME, &name, &()).await.unwrap();
    assert_eq!((seen.size_bytes, seen.read_only, seen.state_reason), (GROWN_BYTES, true, None));
    model.assert_is(&host.volume("data"));
    let seen = host.client.call_at(UPDATE_VOLUME, &name, &update(None, Some(false))).await.unwrap();
    assert!(!seen.read_only);
    model.write(&host.volume("data"), GROWN_BYTES - 2 * BLOCK, 6, BLOCK as usize);
    let task = host.backup("data", false).await;
    assert_eq!(task.backup_type, Some(BackupType::Incremental));
    model.assert_is(&*host.restore(&task.source_volume.unwrap(), "again").await);
    host.assert_tidy();
}
