//! Tests of the table.

use super::*;
use crate::{cloudsnaps::ListCloudsnaps, tasks::StopTask};
use Method::Get;
use Role::{Admin, Operator, ReadOnly};
use std::collections::HashSet;
use uuid::Uuid;

#[test]
fn operations_of_operators_are_reviewed_for_deletions() {
    // Operators must not delete data, directly or indirectly. A new operation fails here until it has
    // been reviewed for that; if only some of its requests delete, the handler refuses those
    // (tests/scenarios/daemon/roles.rs).
    let deletes_nothing = [
        HAND_MOUNT.info.path,
        VALIDATE_CREDENTIAL.info.path,
        START_RESTORE.info.path,
        // Temporary snapshots of their own only.
        ESTIMATE_BACKUP.info.path,
        ESTIMATE_GROUP_BACKUP.info.path,
        ESTIMATE_RESTORE.info.path,
        ESTIMATE_DRILL.info.path,
        ESTIMATE_GROUP_DRILL.info.path,
        START_LAZY_RESTORE.info.path,
        // The daemon deletes the damaged one after an equal one is stored.
        START_REPAIR.info.path,
        START_VERIFY.info.path,
        START_DRILL.info.path,
        START_GROUP_DRILL.info.path,
        START_SCRUB.info.path,
        CREATE_GROUP_SNAPSHOT.info.path,
        CREATE_VOLUME.info.path,
        ATTACH_VOLUME.info.path,
        CHECK_VOLUME.info.path,
        CLONE_VOLUME.info.path,
        CREATE_SNAPSHOT.info.path,
    ];
    let refused_by_its_handler = [
        // An expiry date; kept backups of others.
        START_BACKUP.info.path,
        START_GROUP_BACKUP.info.path,
        MARK_CLOUDSNAP.info.path,
        // Unpinning.
        MARK_SNAPSHOT.info.path,
        // Tasks of others; deletions and in-place restores.
        STOP_TASK.info.path,
        RESUME_TASK.info.path,
        // Everything except growth; force.
        UPDATE_VOLUME.info.path,
        DETACH_VOLUME.info.path,
    ];
    let reviewed: HashSet<_> = deletes_nothing.into_iter().chain(refused_by_its_handler).collect();
    let changes = OPERATIONS.iter().filter(|one| one.role < Admin && one.method != Get);
    let open: HashSet<_> = changes.clone().map(|one| one.path).collect();
    assert_eq!(open, reviewed);
    assert!(changes.clone().all(|one| one.method != Method::Delete));
}

#[test]
fn operations_are_unique_and_read_only_role_reads() {
    let mut seen = HashSet::new();
    for one in OPERATIONS {
        assert!(seen.insert((one.method, one.path)), "{one:?} is listed twice");
        assert!(!one.summary.is_empty() && !one.summary.ends_with('.'), "{one:?}");
        assert!(one.role > ReadOnly || one.method == Get, "{one:?}");
    }
    assert_eq!(role_for("DELETE", UPDATE_VOLUME.info.path), Some(Admin));
    assert_eq!(role_for("HEAD", GET_STATUS.info.path), Some(ReadOnly));
    assert_eq!(role_for("PUT", UPDATE_VOLUME.info.path), None);
    // Content of volumes is for roles that may restore it.
    assert_eq!(role_for("GET", READ_FILE.info.path), Some(Operator));
}

fn address<P: PathParameter, I: Serialize + 'static, R>(
    operation: Operation<P, I, R>,
    path: &str,
    input: &I,
) -> String {
    operation.request(&P::parse(path).unwrap(), input).unwrap().0
}

#[test]
fn path_parameters_are_those_of_the_pattern() {
    for one in OPERATIONS {
        let has_one = (one.parameter)(&mut SchemaGenerator::default()).is_some();
        assert_eq!(usize::from(has_one), one.path.matches('{').count(), "{one:?}");
    }
    assert_eq!(address(GET_VOLUME, "db-1", &()), "/v1/volumes/db-1");
    assert_eq!(address(CHECK_VOLUME, "42", &()), "/v1/volumes/42/check");
    assert_eq!(address(GET_SNAPSHOT, "db@monday", &()), "/v1/snapshots/db@monday");
    assert_eq!(address(VALIDATE_CREDENTIAL, "nas", &()), "/v1/credentials/nas/validate");
}

#[test]
fn inputs_are_queries_or_bodies() {
    let query = ListCloudsnaps {
        label: Some("a=b c,d=e&f".parse().unwrap()),
        all: true,
        max: Some(3),
        ..Default::default()
    };
    assert_eq!(
        address(LIST_CLOUDSNAPS, "", &query),
        "/v1/cloudsnaps?all=true&label=a%3Db%20c%2Cd%3De%26f&max=3"
    );
    assert_eq!(address(LIST_CLOUDSNAPS, "", &ListCloudsnaps::default()), "/v1/cloudsnaps?all=false");
    let (path, body) = STOP_TASK.request(&Uuid::nil(), &StopTask { discard: true }).unwrap();
    assert_eq!((path.ends_with("/stop"), &body[..]), (true, &br#"{"discard":true}"#[..]));
    assert!(GET_STATUS.request(&(), &()).unwrap().1.is_empty());
}
