//! Cloud snapshots that retention must not delete, or must not count as good, because of tasks, lazy volumes
//! and doubts.

use crate::tasks::needs::{Untyped, needed_by, untyped};
use blockd_api::tasks::TaskKind;
use blockd_catalog::{Aliases, Chain, DbError, Doubt, LazyRow, TaskRow};
use blockd_cloud::CloudSnapshotId;
use blockd_schedule::Condition;
use rusqlite::Transaction;
use std::collections::HashSet;
use uuid::Uuid;

/// Cloud snapshot in a repository.
type Named = (Uuid, Untyped);

/// Cloud snapshots in use and in doubt, for each credential of their repositories.
#[derive(Debug)]
pub struct Uses {
    in_use: HashSet<Named>,
    in_doubt: HashSet<Named>,
}

impl Uses {
    /// Reads them from the database. Resumable tasks count as well.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(tx: &Transaction<'_>) -> Result<Self, DbError> {
        let (aliases, chains) = (Aliases::all(tx)?, Chain::all(tx, None)?);
        let mut uses = Self { in_use: HashSet::new(), in_doubt: HashSet::new() };
        let under = |credential, id: Untyped| {
            aliases.credentials(credential).map(move |credential| (credential, id)).collect::<Vec<_>>()
        };
        for row in LazyRow::all(tx)? {
            uses.in_use.extend(under(row.credential, untyped(&row.cloudsnap)));
        }
        for task in TaskRow::unfinished(tx)?.into_iter().chain(TaskRow::resumable(tx)?) {
            let own = || under(task.credential, untyped(&task.cloudsnap));
            match task.kind() {
                // Retention retries a failed deletion.
                TaskKind::Delete if task.state.is_over() => uses.in_doubt.extend(own()),
                TaskKind::Delete => uses.in_use.extend(own()),
                TaskKind::Backup
                | TaskKind::Restore
                | TaskKind::Repair
                | TaskKind::Verify
                | TaskKind::Drill => {
                    let needed = needed_by(&task, &chains).into_iter();
                    uses.in_use.extend(needed.flat_map(|id| under(task.credential, id)));
                }
                TaskKind::Scrub => {}
            }
        }
        for doubt in Doubt::all(tx)? {
            uses.in_doubt.extend(under(doubt.credential, untyped(&doubt.cloudsnap)));
        }
        Ok(uses)
    }

    /// Returns the condition of a listed cloud snapshot.
    pub fn condition(&self, credential: Uuid, id: &CloudSnapshotId) -> Condition {
        let name = (credential, untyped(id));
        match (self.in_use.contains(&name), self.in_doubt.contains(&name)) {
            (true, _) => Condition::InUse,
            (false, true) => Condition::InDoubt,
            (false, false) => Condition::Done,
        }
    }
}
