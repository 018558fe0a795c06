//! Everything that the control API can be asked for, in one table: the daemon lets callers do what it says.

use crate::{paths, roles::Role};

/// The method of a request.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Method {
    /// Asks, and changes nothing.
    Get,
    /// Makes or does something.
    Post,
    /// Changes something.
    Patch,
    /// Takes something away.
    Delete,
}

impl Method {
    /// As it stands in a request.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

/// Something that the control API can be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Its method.
    pub method: Method,
    /// Its route pattern, one of [`paths`].
    pub path: &'static str,
    /// The least role that may do it.
    pub role: Role,
    /// What it does, in a few words.
    pub summary: &'static str,
}

const fn of(role: Role, method: Method, path: &'static str, summary: &'static str) -> Operation {
    Operation { method, path, role, summary }
}

use Method::{Delete, Get, Patch, Post};
use Role::{Admin, Operator, ReadOnly};

/// All operations.
pub const OPERATIONS: &[Operation] = &[
    of(ReadOnly, Get, paths::STATUS, "What the daemon says of itself"),
    of(ReadOnly, Get, paths::EVENTS, "What happened that people should know of"),
    of(ReadOnly, Get, paths::METRICS, "Metrics in Prometheus' text format"),
    of(ReadOnly, Get, paths::HEALTHZ, "Whether the daemon answers"),
    of(ReadOnly, Get, paths::READYZ, "Whether the daemon does its work"),
    of(ReadOnly, Get, paths::VOLUMES, "List volumes"),
    of(Operator, Post, paths::VOLUMES, "Make a volume"),
    of(ReadOnly, Get, paths::VOLUME, "One volume"),
    of(Operator, Patch, paths::VOLUME, "Let a volume grow; the rest of it is for admins"),
    of(Admin, Delete, paths::VOLUME, "Delete a volume and its local snapshots"),
    of(Operator, Post, paths::VOLUME_ATTACH, "Make a volume a device of the kernel"),
    of(Operator, Post, paths::VOLUME_DETACH, "Take a volume's device away; by force is for admins"),
    of(Operator, Post, paths::VOLUME_SNAPSHOTS, "Freeze a volume"),
    of(Operator, Post, paths::VOLUME_CHECK, "Check everything of a volume but its data"),
    of(Operator, Post, paths::VOLUME_CLONE, "Make a volume of another one's snapshot"),
    of(ReadOnly, Get, paths::VOLUME_DIFF, "What changed from a snapshot to another one, or to now"),
    of(Admin, Post, paths::VOLUME_ROLLBACK, "Roll a volume back to a snapshot"),
    of(ReadOnly, Get, paths::SNAPSHOTS, "List local snapshots"),
    of(Operator, Post, paths::SNAPSHOT_GROUP, "Freeze several volumes at one instant"),
    of(ReadOnly, Get, paths::SNAPSHOT, "One local snapshot"),
    of(Admin, Delete, paths::SNAPSHOT, "Delete a local snapshot"),
    of(ReadOnly, Get, paths::CREDENTIALS, "List credentials, without their secrets"),
    of(Admin, Post, paths::CREDENTIALS, "Prove that a store works, and keep the way to it"),
    of(ReadOnly, Get, paths::CREDENTIAL, "One credential, without its secrets"),
    of(Admin, Delete, paths::CREDENTIAL, "Forget a credential"),
    of(Operator, Post, paths::CREDENTIAL_VALIDATE, "Prove again that a store works"),
    of(Admin, Post, paths::CREDENTIAL_REKEY, "Change the passphrase or the data key"),
    of(Admin, Post, paths::CREDENTIAL_LIMITS, "Change how much may go to and from a store in a second"),
    of(ReadOnly, Get, paths::CLOUDSNAPS, "List cloud snapshots"),
    of(Operator, Post, paths::CLOUDSNAP_BACKUP, "Back a volume up"),
    of(Operator, Post, paths::CLOUDSNAP_BACKUP_GROUP, "Back several volumes up from one instant"),
    of(ReadOnly, Get, paths::CLOUDSNAP_INSPECT, "One cloud snapshot in full"),
    of(Operator, Post, paths::CLOUDSNAP_RESTORE, "Restore a cloud snapshot into a new volume"),
    of(Operator, Post, paths::CLOUDSNAP_RESTORE_LAZY, "Make a volume that fetches what is read"),
    of(Admin, Post, paths::CLOUDSNAP_RESTORE_IN_PLACE, "Roll a volume back to a cloud snapshot"),
    of(Admin, Post, paths::CLOUDSNAP_DELETE, "Delete a cloud snapshot"),
    of(Operator, Post, paths::CLOUDSNAP_VERIFY, "Verify a cloud snapshot"),
    of(Admin, Post, paths::CLOUDSNAP_GC, "Delete what abandoned backups left in a store"),
    of(Operator, Get, paths::CLOUDSNAP_FILES, "List files inside a cloud snapshot"),
    of(Operator, Get, paths::CLOUDSNAP_FILE, "A piece of a file inside a cloud snapshot"),
    of(ReadOnly, Get, paths::BROWSE_MOUNTS, "List mounts of snapshots"),
    of(Admin, Post, paths::BROWSE_MOUNTS, "Mount snapshots as files on the daemon's host"),
    of(Admin, Post, paths::BROWSE_UNMOUNT, "Take a mount of snapshots away"),
    of(ReadOnly, Get, paths::SCHEDULES, "List schedules"),
    of(Admin, Post, paths::SCHEDULES, "Make a schedule"),
    of(ReadOnly, Get, paths::SCHEDULE, "One schedule"),
    of(Admin, Patch, paths::SCHEDULE, "Change, pause or resume a schedule"),
    of(Admin, Delete, paths::SCHEDULE, "Delete a schedule"),
    // Its retention may delete what is older.
    of(Admin, Post, paths::SCHEDULE_RUN, "Run a schedule now"),
    of(ReadOnly, Get, paths::SCHEDULE_RETENTION, "What a schedule's retention keeps and deletes"),
    of(ReadOnly, Get, paths::SCHEDULE_HISTORY, "List the runs of schedules"),
    of(ReadOnly, Get, paths::POLICIES, "List schedule policies"),
    of(Admin, Post, paths::POLICIES, "Make a schedule policy"),
    of(ReadOnly, Get, paths::POLICY, "One schedule policy"),
    of(Admin, Patch, paths::POLICY, "Change a schedule policy"),
    of(Admin, Delete, paths::POLICY, "Delete a schedule policy"),
    of(ReadOnly, Get, paths::TASKS, "List tasks"),
    of(ReadOnly, Get, paths::TASK, "One task, now or when it has changed"),
    of(Operator, Post, paths::TASK_STOP, "Stop a task; what deletes or goes back is for admins"),
    of(Operator, Post, paths::TASK_LIMIT, "Change how much a task may move in a second"),
    of(Operator, Post, paths::TASK_RESUME, "Take a task up again; what deletes or goes back is for admins"),
];

/// The least role for a request of this method at this route pattern; `None` if there is no such operation.
#[must_use]
pub fn role_for(method: &str, path: &str) -> Option<Role> {
    // Whoever may have the whole answer may have its head.
    let method = if method == "HEAD" { "GET" } else { method };
    OPERATIONS.iter().find(|one| one.method.as_str() == method && one.path == path).map(|one| one.role)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_is_there_once_and_who_may_only_read_changes_nothing() {
        let mut seen = HashSet::new();
        for one in OPERATIONS {
            assert!(seen.insert((one.method, one.path)), "{one:?} is there twice");
            assert!(!one.summary.is_empty() && !one.summary.ends_with('.'), "{one:?}");
            assert!(one.role > ReadOnly || one.method == Get, "{one:?}");
        }
        assert_eq!(role_for("DELETE", paths::VOLUME), Some(Admin));
        assert_eq!(role_for("HEAD", paths::STATUS), Some(ReadOnly));
        assert_eq!(role_for("PUT", paths::VOLUME), None);
        // What volumes hold is for those who may restore it.
        assert_eq!(role_for("GET", paths::CLOUDSNAP_FILE), Some(Operator));
    }
}
