//! Reconciliation of rows and files at the start: interrupted operations are completed or undone.
//!
//! A volume whose row and metadata agree stays closed until its first use
//! ([`Closed`](crate::volumes::registry::Closed)), unless the start uses it; all others are opened.

use crate::{
    data_dir::DataDir,
    restore::full::remove_incomplete,
    volumes::registry::{EntryState, Registry, VolumeEntry},
};
use blockd_api::tasks::TaskKind;
use blockd_catalog::{
    AttachmentRow, Db, DbError, LazyRow, SnapshotRow, SnapshotState, TaskRow, VolumeRow, VolumeState,
};
use blockd_extent::VolumeId;
use blockd_volume::{ClosedVolume, OpenOptions, Recovery, Volume, VolumeError, VolumeErrorKind};
use rusqlite::Transaction;
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use uuid::Uuid;

/// Opens the volumes and reconciles the rest. A volume that cannot be opened is in the registry with its
/// error.
///
/// # Errors
/// The database fails.
pub fn reconcile(db: &Db, data_dir: &DataDir, options: &OpenOptions) -> Result<Registry, DbError> {
    let (volumes, snapshots, unfinished, used) = db.transaction(|tx| -> Result<_, DbError> {
        // Resumable tasks need the same as running ones.
        let tasks = TaskRow::unfinished(tx)?.into_iter().chain(TaskRow::resumable(tx)?);
        Ok((VolumeRow::all(tx)?, SnapshotRow::all(tx, None)?, tasks.collect::<Vec<_>>(), used(tx)?))
    })?;
    let registry = Registry::default();
    let mut to_open = Vec::new();
    for row in volumes {
        let being_restored =
            unfinished.iter().any(|task| task.kind() == TaskKind::Restore && task.volume == Some(row.id));
        match row.state {
            VolumeState::Up => to_open.push(row),
            VolumeState::Restoring if being_restored => {
                registry.insert(VolumeEntry::new(&row, EntryState::Restoring));
            }
            VolumeState::Creating | VolumeState::Deleting | VolumeState::Restoring => {
                remove_volume(db, data_dir, &row, &registry)?;
            }
        }
    }
    let snapshots = Snapshots::by_volume(&snapshots);
    for (row, found) in find_all(data_dir, &to_open, options, &snapshots, &used) {
        let state = match found {
            Ok(Found::Closed(closed)) => EntryState::Closed(Arc::new(closed.into())),
            Ok(Found::Open(volume)) => {
                if volume.size_bytes() != row.size_bytes {
                    db.transaction(|tx| VolumeRow::grow(tx, row.id, volume.size_bytes()))?;
                }
                reconcile_snapshots(db, &row, &volume, snapshots.of(row.id))?;
                EntryState::Up(volume)
            }
            Err(error) => {
                tracing::error!(volume = %row.id, name = %row.name, %error, "opening the volume failed");
                EntryState::Failed(error.to_string())
            }
        };
        let entry = VolumeEntry::new(&row, state);
        for snapshot in snapshots.of(row.id) {
            entry.show_snapshot(snapshot);
        }
        registry.insert(entry);
    }
    remove_leftover_tasks(data_dir, &unfinished);
    report_unknown_files(data_dir, &registry);
    Ok(registry)
}

/// Removes a volume after an interrupted creation, restore or deletion, which no client saw succeed.
fn remove_volume(db: &Db, data_dir: &DataDir, row: &VolumeRow, registry: &Registry) -> Result<(), DbError> {
    match remove_incomplete(&data_dir.volume_dir(row.id)) {
        Ok(()) => {
            tracing::info!(volume = %row.id, name = %row.name, "incomplete volume removed");
            db.transaction(|tx| VolumeRow::remove(tx, row.id))
        }
        Err(error) => {
            tracing::error!(volume = %row.id, name = %row.name, %error, "removing an incomplete volume failed");
            registry
                .insert(VolumeEntry::new(row, EntryState::Failed(format!("its removal failed: {error}"))));
            Ok(())
        }
    }
}

/// Snapshots by volume.
struct Snapshots<'a>(HashMap<VolumeId, Vec<&'a SnapshotRow>>);

impl<'a> Snapshots<'a> {
    fn by_volume(rows: &'a [SnapshotRow]) -> Self {
        let mut by_volume: HashMap<_, Vec<_>> = HashMap::new();
        for row in rows {
            by_volume.entry(row.volume).or_default().push(row);
        }
        Self(by_volume)
    }

    fn of(&self, volume: VolumeId) -> &[&'a SnapshotRow] {
        self.0.get(&volume).map_or(&[], Vec::as_slice)
    }
}

/// Volume that this start found.
enum Found {
    Closed(ClosedVolume),
    Open(Arc<Volume>),
}

type FoundVolume = (VolumeRow, Result<Found, VolumeError>);

/// Number of volumes opened concurrently: each waits mostly for its disk, and their syncs combine.
const MAX_CONCURRENT_OPENS: usize = 32;

/// Reads the metadata of volumes, and opens those with something to reconcile, on several threads.
fn find_all(
    data_dir: &DataDir,
    rows: &[VolumeRow],
    options: &OpenOptions,
    snapshots: &Snapshots<'_>,
    used: &HashSet<VolumeId>,
) -> Vec<FoundVolume> {
    let threads = MAX_CONCURRENT_OPENS.min(rows.len());
    let next = AtomicUsize::new(0);
    let find_some = || {
        let mut found = Vec::new();
        while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            let dir = data_dir.volume_dir(row.id);
            let is_used = used.contains(&row.id);
            found.push((row.clone(), find(&dir, row, options, snapshots.of(row.id), is_used)));
        }
        found
    };
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(find_some)).collect();
        let mut all = find_some();
        for thread in others {
            match thread.join() {
                Ok(found) => all.extend(found),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

/// Reads the metadata of a volume, and opens it if it differs from its rows or this start uses it.
fn find(
    dir: &Path,
    row: &VolumeRow,
    options: &OpenOptions,
    snapshots: &[&SnapshotRow],
    is_used: bool,
) -> Result<Found, VolumeError> {
    let closed = ClosedVolume::read(dir, options)?;
    // It may be larger: it grew before its row was written.
    if closed.id() != row.id || closed.size_bytes() < row.size_bytes {
        let what = format!(
            "the directory holds volume {} of {} bytes instead of the expected one",
            closed.id(),
            closed.size_bytes()
        );
        return Err(VolumeError::Damaged { path: dir.to_owned(), what });
    }
    let is_known = |id| snapshots.iter().any(|row| row.id == id && row.state == SnapshotState::Ready);
    let agrees = closed.size_bytes() == row.size_bytes
        && closed.snapshots().len() == snapshots.len()
        && closed.snapshots().iter().all(|found| is_known(found.id));
    // The option for a power loss is of this start only.
    let is_deferrable = agrees && options.recovery == Recovery::Auto;
    // An open makes the metadata durable, before rows are changed after it.
    if !is_deferrable || closed.may_have_loss() {
        return closed.open().map(Found::Open);
    }
    match is_used.then(|| closed.open()) {
        Some(Ok(volume)) => Ok(Found::Open(volume)),
        Some(Err(error)) if error.kind() == VolumeErrorKind::Damaged => Err(error),
        // The next use repeats an open that failed for another reason.
        Some(Err(_)) | None => Ok(Found::Closed(closed)),
    }
}

/// Returns the volumes that the start uses: those with a kernel device, and lazy ones.
fn used(tx: &Transaction<'_>) -> Result<HashSet<VolumeId>, DbError> {
    let attached = AttachmentRow::all(tx)?.into_iter().map(|row| row.volume);
    Ok(attached.chain(LazyRow::all(tx)?.into_iter().map(|row| row.volume)).collect())
}

/// Undoes snapshots in creation, and deletes those in deletion and unknown ones.
fn reconcile_snapshots(
    db: &Db,
    row: &VolumeRow,
    volume: &Volume,
    rows: &[&SnapshotRow],
) -> Result<(), DbError> {
    for snapshot in rows {
        if snapshot.state == SnapshotState::Ready {
            if !volume.snapshots().iter().any(|info| info.id == snapshot.id) {
                tracing::error!(volume = %row.id, snapshot = %snapshot.id, name = %snapshot.name, "the snapshot is missing from its volume");
                db.transaction(|tx| SnapshotRow::remove(tx, snapshot.id))?;
            }
            continue;
        }
        match volume.delete_snapshot(snapshot.id) {
            Err(error) if error.kind() != VolumeErrorKind::NotFound => {
                tracing::warn!(volume = %row.id, snapshot = %snapshot.id, %error, "removing the snapshot failed; the next start retries");
            }
            _ => db.transaction(|tx| SnapshotRow::remove(tx, snapshot.id))?,
        }
    }
    for info in volume.snapshots() {
        if rows.iter().any(|snapshot| snapshot.id == info.id) {
            continue;
        }
        tracing::warn!(volume = %row.id, snapshot = %info.id, "removing a snapshot that is not in the database");
        if let Err(error) = volume.delete_snapshot(info.id) {
            tracing::warn!(volume = %row.id, snapshot = %info.id, %error, "removing the snapshot failed; the next start retries");
        }
    }
    Ok(())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn remove_leftover_tasks(data_dir: &DataDir, unfinished: &[TaskRow]) {
    let kept: BTreeSet<Uuid> = unfinished.iter().map(|task| task.id).collect();
    let dir = data_dir.tasks_dir();
    for name in names(&dir) {
        if name.parse::<Uuid>().is_ok_and(|id| !kept.contains(&id))
            && let Err(error) = blockd_files::remove_dir(&dir.join(&name))
        {
            tracing::warn!(task = name, %error, "removing the files of an ended task failed");
        }
    }
}

/// Reports and keeps files of unknown volumes, as they may be the only copy, and removes leftovers of
/// interrupted removals and restores.
fn report_unknown_files(data_dir: &DataDir, registry: &Registry) {
    let dir = data_dir.volumes_dir();
    for name in names(&dir) {
        let (id, kind) = name.split_once('.').unwrap_or((&name, ""));
        let id = id.parse().ok();
        if id.and_then(|id| registry.by_id(id)).is_some() {
            continue;
        }
        let path = dir.join(&name);
        if id.is_some() && matches!(kind, "deleted" | "restoring") {
            match blockd_files::remove_dir(&path) {
                Ok(()) => tracing::info!(path = %path.display(), "leftovers of a volume removed"),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "removing leftovers of a volume failed");
                }
            }
        } else {
            tracing::warn!(path = %path.display(), "files of a volume that is not in the database are kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_catalog::AttachmentState;
    use blockd_extent::{Epoch, SnapshotId};
    use jiff::Timestamp;

    const SIZE_BYTES: u64 = 1 << 20;

    struct Host {
        dir: tempfile::TempDir,
        db: Db,
    }

    impl Host {
        fn data_dir(&self) -> DataDir {
            DataDir::new(self.dir.path().to_owned())
        }

        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("volumes")).unwrap();
            std::fs::create_dir(dir.path().join("tasks")).unwrap();
            let db = Db::open(&dir.path().join("blockd.db")).unwrap();
            Self { dir, db }
        }

        fn row(&self, number: u64, name: &str, state: VolumeState) -> VolumeId {
            let id = VolumeId::from_u64(number);
            let row = VolumeRow { state, ..VolumeRow::new(id, name.parse().unwrap(), SIZE_BYTES) };
            self.db.transaction::<_, DbError>(|tx| row.insert(tx)).unwrap();
            id
        }

        fn files(&self, id: VolumeId) -> Arc<Volume> {
            Volume::create(&self.data_dir().volume_dir(id), id, SIZE_BYTES).unwrap()
        }

        fn snapshot(&self, volume: VolumeId, number: u64, state: SnapshotState) {
            let row = SnapshotRow {
                id: SnapshotId::from_u64(number),
                volume,
                name: format!("s{number}").parse().unwrap(),
                created: Timestamp::UNIX_EPOCH,
                state,
                internal: false,
                epoch: Epoch(1),
                dirty_bytes: 0,
                freeze_stall_micros: 0,
                taken_with: None,
                quiesce: None,
                pinned: false,
            };
            self.db.transaction::<_, DbError>(|tx| row.insert(tx)).unwrap();
        }

        fn start(&self) -> Registry {
            reconcile(&self.db, &self.data_dir(), &OpenOptions::default()).unwrap()
        }

        fn rows(&self) -> (Vec<VolumeRow>, Vec<SnapshotRow>) {
            self.db
                .transaction::<_, DbError>(|tx| Ok((VolumeRow::all(tx)?, SnapshotRow::all(tx, None)?)))
                .unwrap()
        }
    }

    #[test]
    fn reconcile_finishes_interrupted_work_and_serves_the_rest() {
        let host = Host::new();
        let up = host.row(1, "up", VolumeState::Up);
        drop(host.files(up));
        let creating = host.row(2, "creating", VolumeState::Creating);
        drop(host.files(creating));
        host.row(3, "creating-without-files", VolumeState::Creating);
        let deleting = host.row(4, "deleting", VolumeState::Deleting);
        drop(host.files(deleting));
        let restoring = host.row(5, "restoring-without-task", VolumeState::Restoring);
        std::fs::create_dir(host.dir.path().join("volumes/5.restoring")).unwrap();
        host.row(6, "lost", VolumeState::Up);

        let registry = host.start();
        assert!(matches!(registry.by_name("up").unwrap().view().state, EntryState::Closed(_)));
        let EntryState::Failed(reason) = registry.by_name("lost").unwrap().view().state else {
            panic!("it is served")
        };
        assert!(reason.contains("volumes/6"), "{reason}");
        assert_eq!(registry.all().len(), 2);
        let names: Vec<_> = host.rows().0.iter().map(|row| row.name.to_string()).collect();
        assert_eq!(names, ["lost", "up"]);
        for id in [creating, deleting, restoring] {
            assert!(!host.data_dir().volume_dir(id).exists());
        }
        assert!(!host.dir.path().join("volumes/5.restoring").exists());
    }

    #[test]
    fn snapshots_of_rows_and_disk_agree_afterwards() {
        let host = Host::new();
        let id = host.row(1, "data", VolumeState::Up);
        let volume = host.files(id);
        for (number, state) in [
            (11, Some(SnapshotState::Ready)),
            (12, Some(SnapshotState::Creating)),
            (13, Some(SnapshotState::Deleting)),
            (14, None),
        ] {
            volume.freeze(SnapshotId::from_u64(number)).unwrap();
            if let Some(state) = state {
                host.snapshot(id, number, state);
            }
        }
        host.snapshot(id, 15, SnapshotState::Creating);
        host.snapshot(id, 16, SnapshotState::Deleting);
        host.snapshot(id, 17, SnapshotState::Ready);
        drop(volume);

        let registry = host.start();
        let EntryState::Up(volume) = registry.by_name("data").unwrap().view().state else {
            panic!("it is not up")
        };
        let left: Vec<_> = volume.snapshots().iter().map(|info| info.id.as_u64()).collect();
        assert_eq!(left, [11]);
        let rows: Vec<_> = host.rows().1.iter().map(|row| row.id.as_u64()).collect();
        assert_eq!(rows, [11]);
        drop(volume);
        drop(registry);
        // The next start finds nothing to change, and shows the snapshot of the closed volume.
        let entry = host.start().by_name("data").unwrap();
        assert!(matches!(entry.view().state, EntryState::Closed(_)));
        assert_eq!(entry.snapshots().iter().map(|point| point.epoch).collect::<Vec<_>>(), [Epoch(1)]);
    }

    #[test]
    fn grown_volume_and_recorded_loss_are_opened_by_the_start() {
        let host = Host::new();
        let (grown, lost) = (host.row(1, "grown", VolumeState::Up), host.row(2, "lost", VolumeState::Up));
        host.files(grown).grow(2 * SIZE_BYTES).unwrap();
        drop(host.files(lost));
        let dir = host.data_dir().volume_dir(lost);
        let map = names(&dir).into_iter().find(|name| name.ends_with(".map")).unwrap();
        std::fs::remove_file(dir.join(map)).unwrap();
        drop(Volume::open(&dir, &OpenOptions::default()).unwrap());

        let registry = host.start();
        for entry in registry.all() {
            assert!(entry.view().volume().is_some(), "{}", entry.name);
        }
        // The option for a power loss is of one start only.
        let lost_power = OpenOptions { recovery: Recovery::AfterPowerLoss, ..OpenOptions::default() };
        drop(registry);
        let registry = reconcile(&host.db, &host.data_dir(), &lost_power).unwrap();
        assert!(registry.by_name("grown").unwrap().view().volume().is_some());
        assert_eq!(host.rows().0.iter().map(|row| row.size_bytes).sum::<u64>(), 3 * SIZE_BYTES);
    }

    #[test]
    fn volume_with_a_device_is_opened_by_the_start() {
        let host = Host::new();
        let (attached, other) =
            (host.row(1, "attached", VolumeState::Up), host.row(2, "other", VolumeState::Up));
        drop((host.files(attached), host.files(other)));
        let row = AttachmentRow {
            volume: attached,
            state: AttachmentState::Attached,
            device: Some(0),
            pinned: false,
            read_only: false,
            persistent: true,
            timeout_s: 1,
            dead_timeout_s: 1,
            connections: 1,
            block_size_bytes: 4096,
        };
        host.db.transaction::<_, DbError>(|tx| row.put(tx)).unwrap();
        let registry = host.start();
        assert!(registry.by_name("attached").unwrap().view().volume().is_some());
        assert!(registry.by_name("other").unwrap().view().volume().is_none());
    }

    #[test]
    fn files_of_ended_tasks_are_removed_unknown_volumes_kept() {
        let host = Host::new();
        let task = host.dir.path().join("tasks").join(Uuid::new_v4().to_string());
        std::fs::create_dir(&task).unwrap();
        let unknown = VolumeId::from_u64(9);
        drop(host.files(unknown));
        let volumes = host.dir.path().join("volumes");
        for name in ["7.deleted", "8.restoring", "notes.deleted"] {
            std::fs::create_dir(volumes.join(name)).unwrap();
        }
        host.start();
        assert!(!task.exists());
        assert!(!volumes.join("7.deleted").exists() && !volumes.join("8.restoring").exists());
        assert!(volumes.join("notes.deleted").exists());
        assert!(host.data_dir().volume_dir(unknown).exists());
    }

    #[test]
    fn files_of_another_volume_are_not_served() {
        let host = Host::new();
        host.row(1, "data", VolumeState::Up);
        let other = VolumeId::from_u64(2);
        drop(Volume::create(&host.data_dir().volume_dir(VolumeId::from_u64(1)), other, SIZE_BYTES).unwrap());
        let registry = host.start();
        assert!(matches!(registry.by_name("data").unwrap().view().state, EntryState::Failed(_)));
    }
}
