//! Tests of complete daemons in this process: real sockets, real volumes, a local directory as the store.
//!
//! A crash at a step stops the task there as if the daemon had been killed; the next daemon on the same
//! directory must complete the task.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use blockd::{
    config::{Config, Intervals, WebhookConfig},
    daemon::Daemon,
};
use blockd_api::{
    Client, ClientError, ErrorCode,
    cloudsnaps::{BackupOptions, Cloudsnap, ListCloudsnaps, StartBackup, StartDelete, StartRestore},
    credentials::{Connection, CreateCredential, StoreConfig},
    lazy::{LazyRestored, StartLazyRestore},
    operations::*,
    snapshots::{CreateSnapshot, ListSnapshots, Snapshot},
    tasks::{BackupType, ListTasks, Task, TaskStage, WaitTask},
    volumes::{CreateVolume, ListVolumes, UpdateVolume},
};
use blockd_catalog::{DbError, SnapshotRow, TaskRow};
use blockd_engine::{engine::Engine, volumes::registry::EntryState};
use blockd_extent::SnapshotId;
use blockd_volume::{Volume, VolumeErrorKind};
use serde::Serialize;
use std::{fmt::Debug, path::Path, sync::Arc};
use uuid::Uuid;

mod copies;
mod crashes;
mod damaged_manifests;
mod deletions;
pub(crate) mod dying;
mod events;
mod failures;
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
mod rule_commands;
mod rules;
mod schedules;
mod silent;
mod strict;
mod task_limits;
mod unsuccessful;
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
        intervals: Intervals { metrics_retry_ms: 50, store_result_again_ms: 20, record_every_bytes: 1 << 20 },
        secrets: blockd::config::SecretsConfig { file_dir: dir.join("secrets"), ..Default::default() },
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

    /// Calls an operation, which must succeed.
    async fn call<I: Serialize + 'static, R>(&self, operation: Operation<(), I, R>, input: &I) -> R {
        self.client.call(operation, input).await.unwrap()
    }

    /// As [`call`](Self::call), on the object in its path.
    async fn call_at<P: PathParameter, I: Serialize + 'static, R>(
        &self,
        operation: Operation<P, I, R>,
        path: &P,
        input: &I,
    ) -> R {
        self.client.call_at(operation, path, input).await.unwrap()
    }

    /// Calls an operation, which must be refused.
    async fn refused<I: Serialize + 'static, R: Debug>(
        &self,
        code: ErrorCode,
        operation: Operation<(), I, R>,
        input: &I,
    ) {
        self.refused_at(code, operation, &(), input).await;
    }

    /// As [`refused`](Self::refused), on the object in its path.
    async fn refused_at<P: PathParameter, I: Serialize + 'static, R: Debug>(
        &self,
        code: ErrorCode,
        operation: Operation<P, I, R>,
        path: &P,
        input: &I,
    ) {
        assert_eq!(api_code(self.client.call_at(operation, path, input).await), code);
    }

    fn engine(&self) -> &Arc<Engine> {
        self.daemon.as_ref().unwrap().engine()
    }

    fn volume(&self, name: &str) -> Arc<Volume> {
        self.engine().registry.by_name(name).unwrap().volume().unwrap()
    }

    async fn create_volume(&self, name: &str) -> Arc<Volume> {
        let labels = "app=mysql,tier=db".parse().unwrap();
        let request =
            CreateVolume { name: name.parse().unwrap(), size_bytes: SIZE_BYTES, labels, group: None };
        self.call(CREATE_VOLUME, &request).await;
        self.volume(name)
    }

    fn credential(&self, name: &str, passphrase: Option<&str>) -> CreateCredential {
        CreateCredential {
            name: name.parse().unwrap(),
            provider: StoreConfig::Local { path: self.store.path().to_owned() },
            connection: Connection::default(),
            encryption_passphrase: passphrase.map(|text| blockd_api::Secret::new(text.into()).into()),
        }
    }

    async fn create_credential(&self) -> Uuid {
        self.call(CREATE_CREDENTIAL, &self.credential("nas", None)).await.uuid
    }

    async fn start_backup(&self, volume: &str, full: bool) -> Uuid {
        let request = StartBackup {
            options: BackupOptions { full, ..Default::default() },
            ..StartBackup::of(volume.parse().unwrap())
        };
        self.call(START_BACKUP, &request).await.task
    }

    /// Long polls until the task has ended.
    async fn wait(&self, task: Uuid) -> Task {
        let mut version = 0;
        loop {
            let wait = WaitTask { wait_ms: Some(10_000), since_version: Some(version) };
            let seen = self.call_at(GET_TASK, &task, &wait).await;
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
        let started = self.call(START_RESTORE, &request).await;
        self.done(started.task).await;
        self.volume(name)
    }

    /// Restores a cloud snapshot as a lazy volume.
    async fn restore_lazily(&self, snap: &str, name: &str, hydrate: bool) -> LazyRestored {
        let request = StartLazyRestore {
            snap: snap.parse().unwrap(),
            volume: Some(name.parse().unwrap()),
            cred_id: None,
            hydrate,
            on_store_loss: Default::default(),
            labels: None,
        };
        self.call(START_LAZY_RESTORE, &request).await
    }

    async fn list(&self) -> Vec<Cloudsnap> {
        let query = ListCloudsnaps { all: true, ..ListCloudsnaps::default() };
        let list = self.call(LIST_CLOUDSNAPS, &query).await;
        assert_eq!((list.damaged.len(), list.failed_credentials.len()), (0, 0), "{list:?}");
        list.cloudsnaps
    }

    fn sql(&self, statements: &str) {
        let run = |tx: &rusqlite::Transaction<'_>| Ok::<_, DbError>(tx.execute_batch(statements)?);
        self.engine().db.transaction(run).unwrap();
    }

    /// Lets the daemon die at a step.
    fn die_at(&self, step: &'static str) {
        let engine = self.engine();
        if step != dying::COMMITTED {
            return engine.host.failpoints.die_at(step);
        }
        let stopping = engine.host.stopping.clone();
        engine
            .host
            .failpoints
            .wrap_store(move |inner| Arc::new(dying::Dying { inner, stopping: stopping.clone() }));
    }

    /// Sets the action of the next pass of a step.
    fn meanwhile(&self, step: &'static str, action: impl FnOnce(&Engine) + Send + 'static) {
        let engine = Arc::clone(self.engine());
        self.engine().host.failpoints.once(step, move || action(&engine));
    }

    /// Waits for the crash at its step and the end of the tasks, and starts the next daemon.
    async fn die_and_start(&mut self) {
        self.engine().host.stopping.cancelled().await;
        self.stop().await;
        self.start().await;
    }

    /// Asserts that ended tasks left no snapshots, block sets or files.
    fn assert_tidy(&self) {
        let rows = self.engine().db.transaction(|tx| SnapshotRow::all(tx, None)).unwrap();
        assert_eq!(rows, vec![]);
        for entry in self.engine().registry.all() {
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
    host.call(CREATE_CREDENTIAL, &host.credential("nas", Some("correct horse"))).await;
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
    let seen = host.call_at(GET_VOLUME, &"data".parse().unwrap(), &()).await;
    assert_eq!(seen.last_backups[0].cloudsnap_id, ids[1]);
    assert_eq!(seen.last_backups[0].incrementals_since_full, 1);

    first.assert_is(&*host.restore(&ids[0], "one").await);
    model.assert_is(&*host.restore(&ids[1], "two").await);
    let restored = host.call_at(GET_VOLUME, &"two".parse().unwrap(), &()).await;
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
        host.done(host.call(START_DELETE, &request).await.task).await;
        host.refused(ErrorCode::CloudsnapNotFound, START_DELETE, &request).await;
    }
    first.assert_is(&*host.restore(&ids[0], "four").await);
    assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Full));
    host.assert_tidy();

    // Another host with the same credential sees and restores everything.
    let other = Host::with_store(Arc::clone(&host.store)).await;
    let wrong = other.credential("wrong", Some("incorrect horse"));
    other.refused(ErrorCode::WrongPassphrase, CREATE_CREDENTIAL, &wrong).await;
    let none = other.credential("none", None);
    other.refused(ErrorCode::PassphraseRequired, CREATE_CREDENTIAL, &none).await;
    other.call(CREATE_CREDENTIAL, &other.credential("nas", Some("correct horse"))).await;
    let list = other.list().await;
    assert_eq!(list.len(), 2);
    first.assert_is(&*other.restore(&list[0].id.to_string(), "here").await);
    model.assert_is(&*other.restore(&list[1].id.to_string(), "there").await);
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
