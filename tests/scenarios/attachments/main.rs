//! Tests of in-process daemons with a fake nbd driver: real sockets and volumes, devices that are files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod fake;

use blockd::{activation::Passed, config::Config, daemon::Daemon};
use blockd_api::{
    ApiError, ErrorCode, VolumeRef,
    attachments::{AttachVolume, Attachment, DetachVolume, NbdDevice},
    volumes::{CreateVolume, UpdateVolume},
};
use blockd_catalog::{AttachmentRow, AttachmentState, DbError};
use blockd_engine::engine::Engine;
use fake::FakeDriver;
use std::sync::Arc;

const SIZE_BYTES: u64 = 8 << 20;

struct Host {
    daemon: Option<Daemon>,
    kernel: Arc<FakeDriver>,
    dir: tempfile::TempDir,
}

fn named(name: &str) -> VolumeRef {
    name.parse().unwrap()
}

impl Host {
    async fn new() -> Self {
        let mut host = Self { daemon: None, kernel: FakeDriver::new(), dir: tempfile::tempdir().unwrap() };
        host.start().await;
        host
    }

    async fn start(&mut self) {
        let config = Config {
            data_dir: self.dir.path().join("data"),
            ring_threads: 1,
            nbd_workers: 2,
            cpu_threads: 2,
            ..Config::default()
        };
        let daemon = Daemon::start_with(self.kernel.system(), Passed::default(), config, false).await;
        self.daemon = Some(daemon.unwrap());
    }

    async fn restart(&mut self) {
        self.daemon.take().unwrap().stop().await.unwrap();
        self.start().await;
    }

    fn engine(&self) -> &Arc<Engine> {
        self.daemon.as_ref().unwrap().engine()
    }

    async fn create(&self, name: &str) {
        let request = CreateVolume {
            name: name.parse().unwrap(),
            size_bytes: SIZE_BYTES,
            labels: Default::default(),
            group: None,
        };
        self.engine().volumes.create_volume(request).await.unwrap();
    }

    async fn update(&self, name: &str, request: UpdateVolume) {
        self.engine().volumes.update_volume(&named(name), request).await.unwrap();
    }

    async fn grow(&self, name: &str, size_bytes: u64) {
        self.update(name, UpdateVolume { size_bytes: Some(size_bytes), ..UpdateVolume::default() }).await;
    }

    async fn acknowledge_discarded_writes(&self, name: &str) {
        let request = UpdateVolume { acknowledge_discarded_writes: true, ..UpdateVolume::default() };
        self.update(name, request).await;
    }

    async fn attach_with(&self, name: &str, request: AttachVolume) -> Result<Attachment, ApiError> {
        self.engine().devices.attach_volume(&named(name), request).await.map_err(|error| error.to_api())
    }

    async fn attach(&self, name: &str) -> Result<u32, ApiError> {
        let attached = self.attach_with(name, AttachVolume::default()).await?;
        Ok(attached.device.unwrap().index())
    }

    async fn detach(&self, name: &str, force: bool) -> Result<(), ApiError> {
        let detached = self.engine().devices.detach_volume(&named(name), &DetachVolume { force }).await;
        detached.map(|_| ()).map_err(|error| error.to_api())
    }

    /// Returns the volume's attachment as the API reports it.
    fn seen(&self, name: &str) -> Option<Attachment> {
        let entry = self.engine().registry.by_name(name).unwrap();
        self.engine().attachments.describe(entry.id)
    }

    /// Returns the volume's device, if it is connected.
    fn device(&self, name: &str) -> Option<u32> {
        self.seen(name).filter(|seen| seen.connected)?.device.map(NbdDevice::index)
    }

    fn rows(&self) -> Vec<AttachmentRow> {
        self.engine().db.transaction(AttachmentRow::all).unwrap()
    }

    fn change_rows(&self, change: impl Fn(&mut AttachmentRow)) {
        for mut row in self.rows() {
            change(&mut row);
            self.engine().db.transaction(|tx| row.put(tx)).unwrap();
        }
    }

    fn sql(&self, statements: &str) {
        let run = |tx: &rusqlite::Transaction<'_>| Ok::<_, DbError>(tx.execute_batch(statements)?);
        self.engine().db.transaction(run).unwrap();
    }
}

fn backend(host: &Host, name: &str) -> String {
    let entry = host.engine().registry.by_name(name).unwrap();
    host.engine().attachments.backend(entry.id)
}

/// Makes the next start find that writes of a volume were discarded.
fn lose_map(host: &Host, name: &str) {
    let entry = host.engine().registry.by_name(name).unwrap();
    let dir = entry.volume().unwrap().dir().to_owned();
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "map") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn device_older_than_a_loss_is_disconnected() {
    let mut host = Host::new().await;
    host.create("lost").await;
    host.create("kept").await;
    let lost = host.attach("lost").await.unwrap();
    let kept = host.attach("kept").await.unwrap();
    lose_map(&host, "lost");
    host.restart().await;
    assert_eq!((host.device("lost"), host.device("kept")), (None, Some(kept)));
    let problem = host.seen("lost").unwrap().problem.unwrap();
    assert!(problem.contains(&format!("nbd{lost}")) && problem.contains("discarded"), "{problem}");
    let refused = host.attach("lost").await.unwrap_err();
    assert!(refused.message.contains("--acknowledge-discarded-writes"), "{refused:?}");
    host.acknowledge_discarded_writes("lost").await;
    host.attach("lost").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mounted_device_older_than_a_loss_counts_as_disconnected() {
    let mut host = Host::new().await;
    host.create("lost").await;
    let lost = host.attach("lost").await.unwrap();
    host.kernel.mount(lost, true);
    lose_map(&host, "lost");
    host.restart().await;
    // The kernel shows the device until it is unmounted.
    let seen = host.seen("lost").unwrap();
    assert!(!seen.connected, "{seen:?}");
    assert!(seen.problem.is_some_and(|problem| problem.contains("discarded")));
    host.acknowledge_discarded_writes("lost").await;
    let refused = host.attach("lost").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::DeviceInUse, "{refused}");
    host.kernel.mount(lost, false);
    assert_eq!(host.attach("lost").await, Ok(lost));
}

/// The kernel refuses the disconnect: the device waits for connections, and must not get any.
#[tokio::test(flavor = "multi_thread")]
async fn stale_device_gets_no_sockets_when_its_volume_grows() {
    let mut host = Host::new().await;
    host.create("lost").await;
    host.create("kept").await;
    let lost = host.attach("lost").await.unwrap();
    lose_map(&host, "lost");
    host.kernel.refuse("disconnect", true);
    host.kernel.take_done();
    host.restart().await;
    host.kernel.wait_for(&format!("refused: disconnect {lost}"));
    // A failed resize is repeated with new connections.
    host.kernel.refuse("resize", true);
    host.grow("lost", SIZE_BYTES * 2).await;
    let kept = host.attach("kept").await.unwrap();
    host.grow("kept", SIZE_BYTES * 2).await;
    host.kernel.wait_for(&format!("reconnect {kept}"));
    assert!(!host.kernel.take_done().contains(&format!("reconnect {lost}")));
    // A detach repeats the disconnect.
    host.detach("lost", false).await.unwrap_err();
    host.kernel.refuse("disconnect", false);
    host.detach("lost", false).await.unwrap();
    host.kernel.wait_for(&format!("disconnect {lost}"));
    assert_eq!(host.seen("lost"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn force_detached_device_is_never_attached_again() {
    let mut host = Host::new().await;
    host.create("data").await;
    assert_eq!(host.attach("data").await, Ok(0));
    host.kernel.mount(0, true);
    assert_eq!(host.detach("data", false).await.unwrap_err().code, ErrorCode::DeviceInUse);
    host.detach("data", true).await.unwrap();
    assert_eq!(host.seen("data"), None);
    let refused = host.attach("data").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::DeviceInUse);
    assert!(refused.message.contains("/dev/nbd0 is mounted at /mnt: unmount"), "{refused}");
    host.kernel.mount(0, false);
    assert_eq!(host.attach("data").await, Ok(0));

    // A leftover device of a daemon without that check, or one opened later, is distinguished by the row.
    let backend = backend(&host, "data");
    host.kernel.put(3, &backend, SIZE_BYTES);
    host.restart().await;
    assert_eq!(host.device("data"), Some(0));
    host.kernel.put(1, "another", SIZE_BYTES);
    host.change_rows(|row| row.device = Some(1));
    host.restart().await;
    assert_eq!(host.device("data"), None);
    let problem = host.seen("data").unwrap().problem.unwrap();
    assert!(problem.contains("/dev/nbd0, /dev/nbd3 all claim"), "{problem}");
    // For an unfinished attach or detach, no other device is selected.
    for state in [AttachmentState::Attaching, AttachmentState::Detaching] {
        host.kernel.vanish(3);
        host.kernel.put(3, &backend, SIZE_BYTES);
        host.change_rows(|row| row.state = state);
        host.restart().await;
        assert_eq!(host.seen("data"), None, "{state:?}");
        let row = AttachmentRow { state, ..row(&host) };
        host.engine().db.transaction(|tx| row.put(tx)).unwrap();
    }
}

/// Trigger that makes storing a finished attachment fail.
const NO_END: &str = "CREATE TRIGGER no_end BEFORE INSERT ON attachments WHEN NEW.state = 'attached'
    BEGIN SELECT RAISE(ABORT, 'the disk is full'); END";

#[tokio::test(flavor = "multi_thread")]
async fn unrecorded_device_is_detached_or_kept_in_memory() {
    let mut host = Host::new().await;
    host.create("data").await;
    host.sql(NO_END);
    assert_eq!(host.attach("data").await.unwrap_err().code, ErrorCode::Internal);
    assert_eq!((host.kernel.connected(), host.seen("data"), host.rows()), (vec![], None, vec![]));

    host.kernel.refuse("disconnect", true);
    assert_eq!(host.attach("data").await.unwrap_err().code, ErrorCode::Internal);
    assert_eq!((host.kernel.connected(), host.device("data")), (vec![0], Some(0)));
    host.sql("DROP TRIGGER no_end");
    host.restart().await;
    assert_eq!((host.device("data"), host.rows().len()), (Some(0), 1));
    host.kernel.refuse("disconnect", false);
    host.detach("data", false).await.unwrap();
    assert_eq!((host.kernel.connected(), host.rows()), (vec![], vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_detach_resumes_only_if_the_device_is_unused() {
    let mut host = Host::new().await;
    host.create("data").await;
    assert_eq!(host.attach("data").await, Ok(0));
    host.change_rows(|row| row.state = AttachmentState::Detaching);
    host.kernel.mount(0, true);
    host.restart().await;
    assert_eq!((host.device("data"), host.kernel.connected()), (Some(0), vec![0]));
    assert_eq!(host.rows()[0].state, AttachmentState::Attached);

    host.change_rows(|row| row.state = AttachmentState::Detaching);
    host.kernel.mount(0, false);
    host.kernel.take_done();
    host.restart().await;
    assert_eq!(host.kernel.take_done(), ["reconnect 0", "disconnect 0"]);
    assert_eq!((host.seen("data"), host.rows()), (None, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn row_that_cannot_be_stored_does_not_block_other_volumes() {
    let mut host = Host::new().await;
    for name in ["one", "two", "three"] {
        host.create(name).await;
        host.attach(name).await.unwrap();
    }
    host.change_rows(|row| row.state = AttachmentState::Attaching);
    host.kernel.vanish(0);
    host.sql(NO_END);
    host.sql("CREATE TRIGGER no_removal BEFORE DELETE ON attachments BEGIN SELECT RAISE(ABORT, 'the disk is full'); END");
    host.restart().await;
    assert_eq!((host.device("one"), host.device("two"), host.device("three")), (None, Some(1), Some(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_device_is_not_given_to_another_volume_after_boot() {
    let mut host = Host::new().await;
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        host.create(name).await;
    }
    for name in names {
        let device = (name == "c").then(|| NbdDevice::new(40));
        let request = AttachVolume { persistent: true, device, ..AttachVolume::default() };
        host.attach_with(name, request).await.unwrap();
    }
    // Rows are in the order of random volume ids; all but one request the same device.
    host.change_rows(|row| row.device = Some(40));
    for index in [0, 1, 2, 3, 40] {
        host.kernel.vanish(index);
    }
    host.restart().await;
    assert_eq!(host.device("c"), Some(40));
    for name in names {
        assert!(host.device(name).is_some(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn device_that_fails_to_reconnect_at_start_is_retried() {
    let mut host = Host::new().await;
    host.create("data").await;
    host.attach("data").await.unwrap();
    // State left by a daemon that died before it could store the device.
    host.change_rows(|row| {
        *row = AttachmentRow { state: AttachmentState::Attaching, device: None, ..row.clone() }
    });
    host.kernel.take_done();
    host.kernel.refuse("reconnect", true);
    host.restart().await;
    let rows: Vec<_> = host.rows().into_iter().map(|row| (row.state, row.device)).collect();
    assert_eq!(rows, [(AttachmentState::Attached, Some(0))]);
    host.kernel.wait_for("refused: reconnect 0");
    host.kernel.refuse("reconnect", false);
    host.kernel.wait_for("reconnect 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn reconnect_thread_subscribes_again_after_a_driver_reload() {
    let host = Host::new().await;
    for name in ["one", "two", "three", "four"] {
        host.create(name).await;
    }
    host.attach("one").await.unwrap();
    host.attach("two").await.unwrap();
    assert_eq!(host.kernel.watches(), 1);
    host.kernel.reload();
    host.kernel.set_broken(true);
    host.attach("three").await.unwrap();
    assert_eq!(host.kernel.watches(), 2);
    // The new subscription fails at once, and its thread ends.
    host.kernel.set_broken(false);
    while host.engine().attachments.is_reconnecting() {
        std::thread::yield_now();
    }
    host.attach("four").await.unwrap();
    assert_eq!(host.kernel.watches(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn device_follows_the_growth_of_its_volume() {
    const LARGER_BYTES: u64 = SIZE_BYTES * 2;
    const LARGEST_BYTES: u64 = SIZE_BYTES * 3;
    let mut host = Host::new().await;
    host.create("data").await;
    // The volume grows after the kernel got its size, and before the device is recorded.
    let engine = Arc::clone(host.engine());
    host.kernel.on_connect(move || {
        let entry = engine.registry.by_name("data").unwrap();
        entry.volume().unwrap().grow(LARGER_BYTES).unwrap();
        engine.registry.announce_size(&entry);
    });
    host.attach("data").await.unwrap();
    assert_eq!(host.kernel.size_bytes(0), LARGER_BYTES);

    // A refused resize is retried.
    host.kernel.take_done();
    host.kernel.refuse("resize", true);
    host.grow("data", LARGEST_BYTES).await;
    host.kernel.wait_for(&format!("refused: resize 0 {LARGEST_BYTES}"));
    host.kernel.refuse("resize", false);
    host.kernel.wait_for(&format!("resize 0 {LARGEST_BYTES}"));
    assert_eq!(host.kernel.size_bytes(0), LARGEST_BYTES);

    // The device never shrinks, and is not resized twice.
    host.kernel.take_done();
    let entry = host.engine().registry.by_name("data").unwrap();
    host.engine().attachments.resized(&host.engine().registry, entry.id);
    drop(entry);
    assert_eq!(host.kernel.take_done(), Vec::<String>::new());
    host.restart().await;
    assert_eq!(host.kernel.size_bytes(0), LARGEST_BYTES);
}

/// Returns a row of volume `data` as stored by a request without a device.
fn row(host: &Host) -> AttachmentRow {
    AttachmentRow {
        volume: host.engine().registry.by_name("data").unwrap().id,
        state: AttachmentState::Attached,
        device: Some(1),
        pinned: false,
        read_only: false,
        persistent: false,
        timeout_s: 30,
        dead_timeout_s: 600,
        connections: 2,
        block_size_bytes: 4096,
    }
}
