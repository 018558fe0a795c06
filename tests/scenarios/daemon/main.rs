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
    Client, ClientError, ErrorCode, VolumeRef,
    cloudsnaps::{
        BackupOptions, Cloudsnap, ListCloudsnaps, StartBackup, StartDelete, StartRestore, StartVerify,
    },
    credentials::{Connection, CreateCredential, StoreConfig},
    lazy::{LazyRestored, StartLazyRestore},
    operations::*,
    snapshots::{CreateSnapshot, ListSnapshots, Snapshot},
    tasks::{BackupType, ListTasks, Task, TaskStage, WaitTask},
    volumes::{CreateVolume, ListVolumes, UpdateVolume},
};
use blockd_catalog::{DbError, SnapshotRow, TaskRow};
use blockd_cloud::{CancelToken, ManifestKey};
use blockd_engine::{engine::Engine, volumes::registry::EntryState};
use blockd_extent::SnapshotId;
use blockd_volume::{Volume, VolumeErrorKind};
use fixtures::*;
use serde::Serialize;
use std::{
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use uuid::Uuid;

mod abandoned;
mod anomalies;
mod background_verification;
mod compression;
mod conditional_put;
mod costs;
mod crash_after_commit;
mod crashes;
mod credential_updates;
mod damaged_manifests;
mod damaged_packs;
mod deduplication;
mod deletions;
mod discarded_restores;
mod drill_groups;
mod drill_probes;
mod drills;
mod events;
mod existing_snapshots;
mod exposition;
mod external_secrets;
mod failures;
mod fixtures;
mod full_data_dir;
mod group_backups;
mod groups;
mod health;
mod id_prefixes;
mod key_slots;
mod known_damage;
mod layers;
mod leases;
mod local_snapshots;
mod locate;
mod metrics;
mod proofs;
mod rename;
mod repairs;
mod requests;
mod resume;
mod resumed_runs;
mod retention;
mod retention_overrides;
mod roles;
mod rule_commands;
mod rules;
mod schedules;
mod scrubs;
mod space;
mod store_timeouts;
mod synthetic_fulls;
mod task_limits;
mod webhooks;

const SIZE_BYTES: u64 = 64 << 20;
const BLOCK: u64 = 4096;

struct Host {
    daemon: Option<Daemon>,
    client: Client,
    dir: tempfile::TempDir,
    store: Arc<tempfile::TempDir>,
    /// Webhooks of the next daemon.
    webhooks: Vec<WebhookConfig>,
}

fn config(dir: &Path) -> Config {
    Config {
        data_dir: dir.join("data"),
        ring_threads: 1,
        nbd_workers: 2,
        cpu_threads: 2,
        verify_bytes_per_day: 0,
        scrub_bytes_per_day: 0,
        intervals: Intervals { metrics_retry_ms: 50, store_result_again_ms: 20, record_every_bytes: 1 << 20 },
        prices: costs::prices(),
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

    async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
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
        self.call(CREATE_VOLUME, &CreateVolume { labels, ..new_volume(name) }).await;
        self.volume(name)
    }

    async fn inspect_volume(&self, name: &str) -> blockd_api::volumes::Volume {
        self.call_at(GET_VOLUME, &name.parse().unwrap(), &()).await
    }

    async fn delete_volume(&self, name: &str) {
        self.call_at(DELETE_VOLUME, &name.parse().unwrap(), &Default::default()).await;
    }

    async fn take_snapshot(&self, volume: &str, request: &CreateSnapshot) -> Snapshot {
        self.call_at(CREATE_SNAPSHOT, &volume.parse().unwrap(), request).await
    }

    async fn delete_snapshot(&self, snapshot: &str) {
        self.call_at(DELETE_SNAPSHOT, &snapshot.parse().unwrap(), &Default::default()).await;
    }

    fn credential(&self, name: &str, passphrase: Option<&str>) -> CreateCredential {
        CreateCredential {
            name: name.parse().unwrap(),
            provider: StoreConfig::Local { path: self.store.path().to_owned() },
            connection: Connection::default(),
            encryption_passphrase: passphrase.map(|text| blockd_api::Secret::new(text.into()).into()),
            labels: Default::default(),
        }
    }

    async fn create_credential(&self) -> Uuid {
        self.call(CREATE_CREDENTIAL, &self.credential("nas", None)).await.credential_id
    }

    /// Creates a credential for another path.
    async fn create_credential_at(&self, name: &str, path: impl Into<PathBuf>) -> Uuid {
        let provider = StoreConfig::Local { path: path.into() };
        let request = CreateCredential { provider, ..self.credential(name, None) };
        self.call(CREATE_CREDENTIAL, &request).await.credential_id
    }

    /// Creates a repository with a passphrase, and a volume with a full backup in it.
    async fn encrypted_backup(&self) {
        self.call(CREATE_CREDENTIAL, &self.credential("nas", Some("first"))).await;
        self.create_volume("data").await;
        self.backup("data", true).await;
    }

    /// Starts a backup; a full one stores all data.
    async fn start_backup(&self, volume: &str, full: bool) -> Uuid {
        let options = BackupOptions { full, reupload: full, ..Default::default() };
        self.call(START_BACKUP, &StartBackup { options, ..backup_of(volume) }).await.items[0].task_id
    }

    /// Waits for the end of a task.
    async fn wait(&self, task: Uuid) -> Task {
        let mut version = 0;
        loop {
            let wait = WaitTask { wait_millis: Some(10_000), since_version: Some(version) };
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

    /// Makes a backup that must succeed.
    async fn run_backup(&self, request: &StartBackup) -> Task {
        self.done(self.call(START_BACKUP, request).await.items[0].task_id).await
    }

    async fn restore(&self, snap: &str, name: &str) -> Arc<Volume> {
        self.run_restore(&restore_as(snap, name)).await
    }

    /// Makes a restore that must succeed; returns the new volume.
    async fn run_restore(&self, request: &StartRestore) -> Arc<Volume> {
        let started = self.call(START_RESTORE, request).await;
        self.done(started.task_id).await;
        self.volume(started.volume_name.as_str())
    }

    /// Restores a cloud snapshot as a lazy volume.
    async fn restore_lazily(&self, snap: &str, name: &str, hydrate: bool) -> LazyRestored {
        let volume_name = Some(name.parse().unwrap());
        self.call(START_LAZY_RESTORE, &StartLazyRestore { volume_name, hydrate, ..lazy_restore(snap) }).await
    }

    /// Verifies cloud snapshots, and waits for the end.
    async fn verify(&self, request: &StartVerify) -> Task {
        self.wait(self.call(START_VERIFY, request).await.task_id).await
    }

    /// Deletes a cloud snapshot.
    async fn delete_cloudsnap(&self, request: &StartDelete) {
        self.done(self.call(START_DELETE, request).await.task_id).await;
    }

    async fn list(&self) -> Vec<Cloudsnap> {
        let query = ListCloudsnaps { all: true, ..ListCloudsnaps::default() };
        let list = self.call(LIST_CLOUDSNAPS, &query).await;
        assert_eq!((list.damaged.len(), list.failed_credentials.len()), (0, 0), "{list:?}");
        list.list.items
    }

    /// Returns the ids of the listed cloud snapshots.
    async fn ids(&self) -> Vec<String> {
        self.list().await.iter().map(|entry| entry.cloud_snapshot_id.to_string()).collect()
    }

    /// Returns the path of a manifest.
    fn manifest(&self, snap: &str) -> PathBuf {
        self.store.path().join(snap_id(snap).manifest_key())
    }

    /// Returns the paths of all packs.
    fn packs(&self) -> Vec<String> {
        walk(self.store.path()).into_iter().filter(|path| path.contains("/pack-")).collect()
    }

    /// Moves the store away, so that requests fail; returns its new path.
    fn hide_store(&self) -> PathBuf {
        move_away(self.store.path())
    }

    /// Reverts [`hide_store`](Self::hide_store).
    fn show_store(&self, away: &Path) {
        fs::rename(away, self.store.path()).unwrap();
    }

    /// Replaces a manifest by an empty file: reading its first byte fails, but not with "not found". Returns
    /// the path of the original.
    fn make_unreadable(&self, snap: &str) -> PathBuf {
        let (manifest, away) = (self.manifest(snap), self.store.path().join("away"));
        fs::rename(&manifest, &away).unwrap();
        fs::write(&manifest, []).unwrap();
        away
    }

    fn sql(&self, statements: &str) {
        let run = |tx: &rusqlite::Transaction<'_>| Ok::<_, DbError>(tx.execute_batch(statements)?);
        self.engine().db.transaction(run).unwrap();
    }

    /// Sets the step at which the daemon dies.
    fn die_at(&self, step: &'static str) {
        let engine = self.engine();
        if step != crash_after_commit::COMMITTED {
            return engine.host.failpoints.die_at(step);
        }
        let stopping = engine.host.stopping.clone();
        engine.host.failpoints.wrap_store(move |inner| {
            Arc::new(crash_after_commit::CrashingStore { inner, stopping: stopping.clone() })
        });
    }

    /// Sets the action of the next pass of a step.
    fn act_at(&self, step: &'static str, action: impl FnOnce(&Engine) + Send + 'static) {
        let engine = Arc::clone(self.engine());
        self.engine().host.failpoints.once(step, move || action(&engine));
    }

    /// Waits for the crash at its step.
    async fn crashed(&self) {
        self.engine().host.stopping.cancelled().await;
    }

    /// Waits for the crash at its step and the end of the tasks, and starts the next daemon.
    async fn die_and_start(&mut self) {
        self.crashed().await;
        self.restart().await;
    }

    /// Asserts that ended tasks left no snapshots, block sets or files.
    fn assert_tidy(&self) {
        let rows = self.engine().db.transaction(|tx| SnapshotRow::all(tx, None)).unwrap();
        assert_eq!(rows, vec![]);
        for entry in self.engine().registry.all() {
            assert_eq!(entry.volume().unwrap().snapshots().len(), 0, "{}", entry.name);
        }
        assert_eq!(fs::read_dir(self.dir.path().join("data/tasks")).unwrap().count(), 0);
    }
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
        // The search is slow in an unoptimised program.
        if content != self.0 {
            let differs = content.iter().zip(&self.0).position(|(a, b)| a != b);
            panic!("first different byte: {differs:?}");
        }
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
    assert!(full.uploaded_bytes >= 9 << 20 && full.freeze_stall_micros.is_some());
    assert_eq!((full.requests.get, full.requests.list + full.requests.head), (1, 0), "key slot");
    let first = model.clone();
    host.assert_tidy();

    model.write(&volume, 40 << 20, 3, 100_000);
    model.trim(&volume, 2 << 20, 1 << 20);
    let incremental = host.backup("data", false).await;
    assert_eq!(incremental.backup_type, Some(BackupType::Incremental));
    assert!(incremental.uploaded_bytes < 200_000, "{incremental:?}");
    assert_eq!((incremental.requests.put, incremental.requests.get), (3, 1), "manifest of the base");
    let ids = host.ids().await;
    assert_eq!(
        ids,
        [full.cloud_snapshot_id.clone().unwrap(), incremental.cloud_snapshot_id.clone().unwrap()]
    );
    assert!(ids[1].ends_with("-incr"));
    let seen = host.inspect_volume("data").await;
    assert_eq!(seen.last_backups[0].cloud_snapshot_id, ids[1]);
    assert_eq!(seen.last_backups[0].incrementals_since_full, 1);

    first.assert_is(&*host.restore(&ids[0], "one").await);
    model.assert_is(&*host.restore(&ids[1], "two").await);
    let restored = host.inspect_volume("two").await;
    assert_eq!(restored.labels.to_string(), "app=mysql,tier=db");

    // After a clean stop the chain continues, and only written blocks are dirty.
    host.restart().await;
    let volume = host.volume("data");
    model.write(&volume, 5 * BLOCK, 4, 1);
    let third = host.backup("data", false).await;
    assert_eq!((third.backup_type, third.dirty_bytes), (Some(BackupType::Incremental), BLOCK));
    let third_id = third.cloud_snapshot_id.unwrap();

    // Deleting an incremental backup leaves the others intact; deleting the tip makes the next backup full.
    for (id, next) in [(&ids[1], BackupType::Incremental), (&third_id, BackupType::Full)] {
        let request = delete_of(id);
        if next == BackupType::Full {
            model.assert_is(&*host.restore(id, "three").await);
        }
        host.delete_cloudsnap(&request).await;
        host.refused(ErrorCode::CloudsnapNotFound, START_DELETE, &request).await;
    }
    first.assert_is(&*host.restore(&ids[0], "four").await);
    assert_eq!(host.backup("data", false).await.backup_type, Some(BackupType::Full));
    host.assert_tidy();

    // Another host with the same credential lists and restores all cloud snapshots.
    let other = Host::with_store(Arc::clone(&host.store)).await;
    let wrong = other.credential("wrong", Some("incorrect horse"));
    other.refused(ErrorCode::WrongPassphrase, CREATE_CREDENTIAL, &wrong).await;
    let none = other.credential("none", None);
    other.refused(ErrorCode::PassphraseRequired, CREATE_CREDENTIAL, &none).await;
    other.call(CREATE_CREDENTIAL, &other.credential("nas", Some("correct horse"))).await;
    let ids = other.ids().await;
    assert_eq!(ids.len(), 2);
    first.assert_is(&*other.restore(&ids[0], "here").await);
    model.assert_is(&*other.restore(&ids[1], "there").await);
}
