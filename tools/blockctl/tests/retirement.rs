//! Deletion of all cloud snapshots of a volume.

use crate::support::{Fake, TASK, cloudsnap, fail, ok, snap, task};
use serde_json::{Value, json};

/// Daemon with two cloud snapshots of volume 59, and one of a former volume and of another host.
fn fake(pinned: bool, is_present: bool) -> Fake {
    let other_host = "7e4d4b67-95d7-481e-aec5-14223ac55170/59-64";
    let entries = [snap("59-61"), snap("59-62-incr"), snap("60-63"), other_host.to_owned()].map(|id| {
        let mut one = cloudsnap("59-61");
        one["volumeId"] = json!(id.split(['/', '-']).nth(5).unwrap());
        (one["volumeName"], one["cloudSnapshotId"], one["pinned"]) = (json!("db"), json!(id), json!(pinned));
        one
    });
    let listed =
        json!({ "items": entries, "next": null, "damaged": [], "failedCredentials": [], "total": 4 });
    let present = match is_present {
        true => ok(crate::support::volume("59", "db")),
        false => fail(404, "volume_not_found", "there is no such volume"),
    };
    let task_route = format!("GET /v1/tasks/{TASK}");
    Fake::with_defaults(vec![
        ("GET /v1/cloudsnaps", ok(listed)),
        ("GET /v1/volumes/db", present),
        (&task_route, ok(task("Delete-Done", 2))),
    ])
}

/// Returns the ids of the deletions that were requested.
fn deleted(fake: &Fake) -> Vec<Value> {
    let seen = fake.seen().into_iter().filter(|seen| seen.line == "POST /v1/cloudsnaps/delete");
    seen.map(|seen| seen.body["cloudSnapshotId"].clone()).collect()
}

#[test]
fn all_cloud_snapshots_of_one_volume_are_deleted() {
    let own = [json!(snap("59-61")), json!(snap("59-62-incr"))];
    for volume in ["db", "59"] {
        let fake = fake(false, true);
        let ran = fake.run(&format!("cs delete --src {volume} --yes"));
        assert_eq!((ran.status, deleted(&fake).as_slice()), (0, &own[..]), "{ran:?}");
        assert_eq!(ran.stdout.matches("Cloudsnap deleted successfully").count(), 2, "{ran:?}");
    }
    let json = fake(false, true).run("-j cs delete --src db --yes").json();
    assert_eq!(json["items"].as_array().map(Vec::len), Some(2));
}

#[test]
fn refused_deletions_of_a_volume_delete_nothing() {
    for (fake, line, status, words) in [
        (fake(false, true), "cs delete --src db", 2, "without --yes"),
        (fake(true, true), "cs delete --src db --yes", 5, "is pinned"),
        (fake(false, false), "cs delete --src db --yes", 2, "2 former volumes had the name db: 59, 60"),
        (fake(false, true), "cs delete --src db db@latest", 2, "cannot be used with"),
        (fake(false, true), "cs delete --src 61 --yes", 0, "Volume 61 has no cloud snapshots of this host"),
    ] {
        let ran = fake.run(line);
        assert!(ran.status == status && (ran.stdout.clone() + &ran.stderr).contains(words), "{line} {ran:?}");
        assert!(deleted(&fake).is_empty(), "{line}");
    }
}
