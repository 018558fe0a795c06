//! Cloud snapshots that retention must not delete, or must not count as good, because of tasks, lazy volumes
//! and doubts.

use blockd_api::tasks::TaskKind;
use blockd_catalog::{Aliases, DbError, Doubt, LazyRow, TaskRow};
use blockd_cloud::CloudSnapshotId;
use blockd_extent::{SnapshotId, VolumeId};
use blockd_schedule::Condition;
use rusqlite::Transaction;
use std::collections::HashSet;
use uuid::Uuid;

/// Cloud snapshot in a repository. A task names its cloud snapshot before it decides on its type.
type Named = (Uuid, Uuid, VolumeId, SnapshotId);

fn named(credential: Uuid, id: &CloudSnapshotId) -> Named {
    (credential, id.cluster, id.volume, id.snapshot)
}

/// Cloud snapshots in use and in doubt, for each credential of their repositories.
#[derive(Debug)]
pub struct Uses {
    in_use: HashSet<Named>,
    in_doubt: HashSet<Named>,
}

impl Uses {
    /// Reads them from the database. Resumable tasks count as well: a resumed backup may revoke its commit if
    /// its base is missing.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Self, DbError> {
        let aliases = Aliases::all(tx)?;
        let mut uses = Self { in_use: HashSet::new(), in_doubt: HashSet::new() };
        let under = |credential, id: &CloudSnapshotId| {
            let id = *id;
            aliases.credentials(credential).map(move |credential| named(credential, &id)).collect::<Vec<_>>()
        };
        for row in LazyRow::all(tx)? {
            uses.in_use.extend(under(row.credential, &row.cloudsnap));
        }
        for task in TaskRow::unfinished(tx)?.into_iter().chain(TaskRow::resumable(tx)?) {
            let id = &task.cloudsnap;
            match task.kind() {
                TaskKind::Backup => {
                    let needed = task.base.iter().chain([id]);
                    uses.in_use.extend(needed.flat_map(|id| under(task.credential, id)));
                }
                // Retention retries a failed deletion.
                TaskKind::Delete if task.state.is_over() => {
                    uses.in_doubt.extend(under(task.credential, id));
                }
                TaskKind::Restore | TaskKind::Delete => uses.in_use.extend(under(task.credential, id)),
                TaskKind::Verify => {}
            }
        }
        for doubt in Doubt::all(tx)? {
            uses.in_doubt.extend(under(doubt.credential, &doubt.cloudsnap));
        }
        Ok(uses)
    }

    /// Returns the condition of a listed cloud snapshot.
    pub fn condition(&self, credential: Uuid, id: &CloudSnapshotId) -> Condition {
        let name = named(credential, id);
        match (self.in_use.contains(&name), self.in_doubt.contains(&name)) {
            (true, _) => Condition::InUse,
            (false, true) => Condition::InDoubt,
            (false, false) => Condition::Done,
        }
    }
}
