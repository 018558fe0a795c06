//! Cloud snapshots that tasks need.

use blockd_api::tasks::TaskKind;
use blockd_catalog::{Chain, TaskRow};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::{SnapshotId, VolumeId};
use uuid::Uuid;

/// Cloud snapshot without its type, which a backup decides after its start.
pub(crate) type Untyped = (Uuid, VolumeId, SnapshotId);

/// Returns the id without the type.
pub(crate) fn untyped(id: &CloudSnapshotId) -> Untyped {
    (id.cluster, id.volume, id.snapshot)
}

/// Returns the cloud snapshots that must not be deleted before an unfinished or resumable task has ended.
/// `chains` are those of all volumes.
pub(crate) fn needed_by(task: &TaskRow, chains: &[Chain]) -> Vec<Untyped> {
    match task.kind() {
        TaskKind::Restore | TaskKind::Repair => vec![untyped(&task.cloudsnap)],
        TaskKind::Delete | TaskKind::Verify | TaskKind::Drill | TaskKind::Scrub => Vec::new(),
        TaskKind::Backup => {
            // A running task without a decision yet may use the tip of its chain as its base; an interrupted
            // one chooses its base when it resumes.
            let is_undecided = !task.state.is_over() && task.detail.backup_type.is_none();
            let is_possible_base = |chain: &&Chain| {
                is_undecided && Some(chain.volume) == task.volume && chain.credential == task.credential
            };
            // A resumed backup may revoke its commit if its base is missing.
            let bases = chains.iter().filter(is_possible_base).map(|chain| &chain.cloudsnap);
            bases.chain(&task.base).chain(&task.detail.donors).chain([&task.cloudsnap]).map(untyped).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockd_api::tasks::{TaskOwner, TaskStage};
    use blockd_catalog::{BackupTask, DeleteTask, RestoreTask, TaskSpec};
    use blockd_cloud::BackupType;
    use blockd_extent::Epoch;

    fn snap(number: u64) -> CloudSnapshotId {
        let (volume, snapshot) = (VolumeId::from_u64(1), SnapshotId::from_u64(number));
        CloudSnapshotId { cluster: Uuid::nil(), volume, snapshot, incremental: number > 1 }
    }

    fn task(spec: TaskSpec) -> TaskRow {
        let volume = Some(VolumeId::from_u64(1));
        TaskRow { volume, ..TaskRow::new(spec, Uuid::nil(), snap(9), TaskOwner::Daemon) }
    }

    #[test]
    fn backup_needs_its_base_from_before_the_decision() {
        let tip = |volume, credential, number| Chain {
            volume: VolumeId::from_u64(volume),
            credential: Uuid::from_u128(credential),
            epoch: Epoch(1),
            cloudsnap: snap(number),
            incrementals: 0,
            point_in_time: jiff::Timestamp::UNIX_EPOCH,
        };
        let chains = [tip(1, 0, 3), tip(1, 1, 4), tip(2, 0, 5)];
        let mut backup = task(TaskSpec::Backup(BackupTask::default()));
        let own = untyped(&snap(9));
        assert_eq!(needed_by(&backup, &chains), [untyped(&snap(3)), own]);
        (backup.base, backup.detail.backup_type) = (Some(snap(2)), Some(BackupType::Incremental));
        assert_eq!(needed_by(&backup, &chains), [untyped(&snap(2)), own]);
        (backup.base, backup.detail.backup_type) = (None, None);
        backup.state = TaskStage::Stopped;
        assert_eq!(needed_by(&backup, &chains), [own]);
        backup.detail.donors = vec![snap(7)];
        assert_eq!(needed_by(&backup, &chains), [untyped(&snap(7)), own]);
        let restore = task(TaskSpec::Restore(RestoreTask::LazyVolume));
        assert_eq!(needed_by(&restore, &chains), [own]);
        assert!(needed_by(&task(TaskSpec::Delete(DeleteTask::default())), &chains).is_empty());
    }
}
