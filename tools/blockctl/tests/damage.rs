//! Damaged cloud snapshots in `status`, and the ends of failed restores.

use crate::support::{Fake, Reply, cloudsnap, list, ok, snap, task, volume};
use serde_json::{Value, json};

/// Time of the damage; recent, as it is in the future.
const FOUND: &str = "2126-01-01T12:00:00Z";
const LATER: &str = "2126-01-01T13:00:00Z";

fn event(id: u64, kind: &str, snapshot: &str) -> Value {
    json!({
        "eventId": id, "occurredAt": FOUND, "severity": if kind.ends_with("-done") { "info" } else { "error" },
        "kind": kind, "volumeName": "old", "credentialName": "nas", "taskId": null, "cloudSnapshotId": snapshot,
        "message": format!("{kind} of {snapshot}")
    })
}

/// Returns an entry of a cloud snapshot of volume 59 with a proof.
fn entry(suffix: &str, kind: &str, at: &str, sound: bool) -> Value {
    let mut entry = cloudsnap(suffix);
    (entry["cloudSnapshotId"], entry["volumeId"]) = (json!(snap(suffix)), json!("59"));
    (entry["credentialName"], entry["status"]) =
        (json!("nas"), json!(if sound { "Done" } else { "Damaged" }));
    entry["lastProof"] =
        json!({ "provenAt": at, "kind": kind, "sound": sound, "host": "db1", "version": "1.2.3" });
    entry
}

/// Returns the actions of the problems of events.
fn actions(volumes: &[Value], events: &[Value], tasks: &[Value], entries: &[Value]) -> Vec<String> {
    let snapshots = json!({
        "items": entries, "next": null, "damaged": [], "failedCredentials": [], "total": entries.len()
    });
    let replies: Vec<(&str, Reply)> = vec![
        ("GET /v1/volumes", ok(list(json!(volumes)))),
        ("GET /v1/events", ok(list(json!(events)))),
        ("GET /v1/tasks", ok(list(json!(tasks)))),
        ("GET /v1/cloudsnaps", ok(snapshots)),
    ];
    let status = Fake::with_defaults(replies).run("-j status --check").json();
    let problems = status["problems"].as_array().unwrap().iter();
    let of_events = problems.filter(|one| one["kind"] == "event");
    of_events.map(|one| one["action"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn damage_ends_with_a_proof_that_read_the_content() {
    let id = snap("59-61");
    let events = [event(1, "damage-found", &id), event(2, "verify-done", &id)];
    for (kind, at, sound, reported) in [
        ("deep", FOUND, false, 1),
        ("quick", LATER, true, 1),
        ("full", "2126-01-01T11:00:00Z", true, 1),
        ("full", LATER, true, 0),
    ] {
        let found = actions(&[volume("59", "db")], &events, &[], &[entry("59-61", kind, at, sound)]);
        assert_eq!(found.len(), reported, "{kind} {at} {sound} {found:?}");
    }
    assert_eq!(actions(&[], &events, &[], &[]).len(), 1, "the location cannot be listed");
}

#[test]
fn remedy_of_damage_keeps_the_only_copy() {
    let id = snap("59-61");
    let damage = |id: &str| [event(1, "damage-found", id)];
    let damaged = entry("59-61", "deep", FOUND, false);
    let here = [volume("59", "db")];
    let unread = entry("59-62", "quick", LATER, true);
    let sound = entry("59-62", "full", LATER, true);
    let delete = format!("blockctl cloudsnap delete {id}");
    let verify = format!("blockctl cloudsnap verify {}", snap("59-62"));
    let restore = format!("blockctl cloudsnap restore {id} --skip-damaged --volume NEW");
    for (volumes, newer, expected) in [
        (&here[..], None, "blockctl cloudsnap backup db --full --cred-id nas"),
        (&here[..], Some(&unread), &verify),
        (&here[..], Some(&sound), &delete),
        (&[], None, &restore),
        (&[], Some(&unread), &verify),
        (&[], Some(&sound), &delete),
    ] {
        let entries: Vec<Value> = [Some(&damaged), newer].into_iter().flatten().cloned().collect();
        assert_eq!(actions(volumes, &damage(&id), &[], &entries), [expected], "{entries:?}");
    }
    let foreign = "7e4d4b67-95d7-481e-aec5-14223ac55170/59-61";
    let found = actions(&here, &damage(foreign), &[], &[]);
    assert!(found.len() == 1 && found[0].contains("on its own host"), "{found:?}");
}

#[test]
fn failed_restore_ends_with_one_of_its_cloud_snapshot() {
    let failed = [event(1, "restore-failed", &snap("59-61"))];
    for (suffix, reported) in [("59-61", 0), ("59-62", 1)] {
        let mut done = task("Restore-Done", 1);
        (done["type"], done["volumeName"]) = (json!("restore"), json!("re2"));
        (done["cloudSnapshotId"], done["completedAt"]) = (json!(snap(suffix)), json!(LATER));
        assert_eq!(actions(&[], &failed, &[done], &[]).len(), reported, "{suffix}");
    }
}

#[test]
fn name_that_begins_the_id_of_another_task_is_refused() {
    const OTHER: &str = "ac9cca8c-e12a-4d35-81ad-985657757352";
    let (mut own, mut other) = (task("Backup-Active", 1), task("Backup-Active", 1));
    own["volumeName"] = json!("ac9c");
    (other["taskId"], other["volumeName"]) = (json!(OTHER), json!("db"));
    for command in ["cloudsnap stop ac9c", "cloudsnap stop ac9c --discard --yes"] {
        let fake = Fake::with_defaults(vec![
            ("GET /v1/tasks", ok(list(json!([other])))),
            ("GET /v1/tasks", ok(list(json!([own, other])))),
        ]);
        let ran = fake.run(command);
        let names_both = [OTHER, own["taskId"].as_str().unwrap()].iter().all(|id| ran.stderr.contains(id));
        assert!(ran.status == 2 && names_both && ran.stderr.contains("several match"), "{ran:?}");
        assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    }
}
