//! Objects whose documents name no location.

use crate::{
    plans::{backup, run_on},
    support::{Fake, Reply, fail, list, ok, reply, snap, volume},
};
use serde_json::{Value, json};

const IDS: [&str; 3] = [
    "078557a3-26c7-49b1-9822-34e6f816c2d1",
    "178557a3-26c7-49b1-9822-34e6f816c2d1",
    "278557a3-26c7-49b1-9822-34e6f816c2d1",
];
const UNREACHABLE: i32 = blockd_api::ErrorCode::StoreUnreachable.exit_status() as i32;

/// Returns the locations `l1` to `l3`, as many as given; the last one is the default.
fn locations(count: usize) -> Vec<Value> {
    let location = |index: usize| {
        let mut one = reply("GET /v1/credentials/nas");
        (one["name"], one["credentialId"]) = (json!(format!("l{}", index + 1)), json!(IDS[index]));
        (one["path"], one["prefix"]) = (json!(format!("/l{}", index + 1)), json!(null));
        one["isDefault"] = json!(index + 1 == count);
        one
    };
    (0..count).map(location).collect()
}

/// Returns a listing of the backup `bk` of volume `db` in a location, from 1; of none, if it is 0.
fn stored(location: usize) -> Reply {
    let mut one = backup(&format!("59-6{location}"), "bk", ("59", "db"));
    one["labels"] = json!({});
    if location > 0 {
        one["credentialId"] = json!(IDS[location - 1]);
        one["credentialName"] = json!(format!("l{location}"));
    }
    let items: Vec<Value> = (location > 0).then_some(one).into_iter().collect();
    let total = items.len();
    ok(json!({ "items": items, "next": null, "damaged": [], "failedCredentials": [], "total": total }))
}

fn unreachable() -> Reply {
    fail(502, "store_unreachable", "no route to host")
}

/// Starts a daemon with a location for each of the listings.
fn daemon(listings: &[Reply]) -> Fake {
    let mut replies = vec![
        ("GET /v1/credentials", ok(list(json!(locations(listings.len()))))),
        ("GET /v1/volumes", ok(list(json!([volume("59", "db")])))),
        ("GET /v1/schedules", ok(list(json!([])))),
        ("GET /v1/tasks", ok(list(json!([])))),
    ];
    replies.extend(listings.iter().map(|listing| ("GET /v1/cloudsnaps", listing.clone())));
    Fake::with_defaults(replies)
}

const DELETED: (&str, &str, &str) = ("VolumeBackup", "bk", "volume: db, reclaimPolicy: Delete");

#[test]
fn deletion_of_a_backup_in_two_locations_is_refused() {
    let fake = daemon(&[stored(1), stored(2)]);
    let ran = run_on(&fake, "delete --yes", &[DELETED]);
    let words = "VolumeBackup/bk is ambiguous (it is in l1 and in l2): name one in `backupLocation`";
    assert!(ran.status == 2 && ran.stderr.contains(words), "{ran:?}");
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    // Named, it is deleted there.
    let named = ("VolumeBackup", "bk", "volume: db, reclaimPolicy: Delete, backupLocation: l1");
    let ran = run_on(&daemon(&[stored(1), stored(2)]), "delete --dry-run", &[named]);
    assert_eq!(ran.stdout, "VolumeBackup/bk deleted from BackupLocation/l1 (dry run)\n", "{ran:?}");
    // In one location, that need not be the default.
    let fake = daemon(&[stored(1), stored(0)]);
    let ran = run_on(&fake, "-j delete --dry-run", &[DELETED]);
    assert_eq!(ran.json()["items"][0]["backupLocation"], "l1", "{ran:?}");
}

/// Returns a listing of one cloud snapshot in a location, from 1, with the id of that location.
fn copy(location: usize, location_id: &str) -> Reply {
    let mut listing = stored(location);
    if let Reply::Json(_, body) = &mut listing {
        body["items"][0]["cloudSnapshotId"] = json!(snap("59-61"));
        body["items"][0]["locationId"] = json!(location_id);
    }
    listing
}

#[test]
fn copies_of_one_cloud_snapshot_are_not_deleted_in_turn() {
    let id = snap("59-61");
    let copies = || daemon(&[copy(1, IDS[0]), copy(2, IDS[1])]);
    let fake = copies();
    let ran = run_on(&fake, "delete --yes", &[DELETED]);
    let words = "VolumeBackup/bk is ambiguous (it is in l1 and in l2): name one in `backupLocation`";
    assert!(ran.status == 2 && ran.stderr.contains(words), "{ran:?}");
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    for name in ["bk", &id] {
        let fake = copies();
        let ran = fake.run(&format!("delete vb {name} --yes"));
        let words = format!("({id} of db in l1, {id} of db in l2): add --location\n");
        assert!(ran.status == 2 && ran.stderr.contains(&words), "{ran:?}");
        assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    }
    // Two credentials of one location have one copy.
    let aliases = || daemon(&[copy(1, IDS[0]), copy(2, IDS[0])]);
    let deleted = "deleted from BackupLocation/l1 (dry run)\n";
    let ran = run_on(&aliases(), "delete --dry-run", &[DELETED]);
    assert_eq!(ran.stdout, format!("VolumeBackup/bk {deleted}"), "{ran:?}");
    for name in ["bk", &id] {
        let ran = aliases().run(&format!("delete vb {name} --dry-run"));
        assert_eq!(ran.stdout, format!("VolumeBackup/{name} {deleted}"), "{ran:?}");
    }
}

#[test]
fn deletion_without_all_locations_is_refused() {
    for listings in [[unreachable(), stored(0)], [unreachable(), stored(2)]] {
        let fake = daemon(&listings);
        let ran = run_on(&fake, "delete --yes", &[DELETED]);
        let words = "VolumeBackup/bk: BackupLocation/l1 cannot be listed: no route to host";
        assert!(ran.status == UNREACHABLE && ran.stderr.contains(words), "{ran:?}");
        assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    }
}

#[test]
fn backup_in_an_unreachable_location_is_not_repeated() {
    let object = [("VolumeBackup", "bk", "volume: db")];
    let words = "VolumeBackup/bk: BackupLocation/l1 cannot be listed: no route to host";
    for (command, status) in [("apply", UNREACHABLE), ("apply --dry-run", UNREACHABLE), ("diff", 1)] {
        let fake = daemon(&[unreachable(), stored(0)]);
        let ran = run_on(&fake, command, &object);
        assert!(ran.status == status && ran.stderr.contains(words), "{command}: {ran:?}");
        assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    }
    // It is in another one.
    let ran = run_on(&daemon(&[unreachable(), stored(2)]), "apply", &object);
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "VolumeBackup/bk unchanged\n"), "{ran:?}");
}

#[test]
fn backup_stays_in_its_location_beside_a_new_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("objects.yaml");
    let text = "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {name: l2}\nlocation: {type: local, path: /l2, default: true}\n---\n\
                apiVersion: blockd/v1\nkind: VolumeBackup\nmetadata: {name: bk}\nspec: {volume: db}\n";
    std::fs::write(&path, text).unwrap();
    let ran = daemon(&[stored(1)]).run(&format!("apply --dry-run -f {}", path.display()));
    let lines = "BackupLocation/l2 created (dry run)\nVolumeBackup/bk unchanged (dry run)\n";
    assert_eq!((ran.status, ran.stdout.as_str()), (0, lines), "{ran:?}");
}

#[test]
fn schedule_keeps_all_its_locations() {
    let mut schedule = reply("GET /v1/schedules")["items"][0].take();
    schedule["credentialIds"] = json!([IDS[1], IDS[0]]);
    schedule["selector"] = json!({ "volumeId": "59", "volumeName": "db" });
    (schedule["local"], schedule["retainAt"]) = (json!(null), json!([]));
    let fake = Fake::with_defaults(vec![
        ("GET /v1/credentials", ok(list(json!(locations(3))))),
        ("GET /v1/volumes", ok(list(json!([volume("59", "db")])))),
        ("GET /v1/schedules", ok(list(json!([schedule])))),
    ]);
    let shown = fake.run("get VolumeBackupSchedule nightly -o yaml").stdout;
    let of = "      backupLocation:\n      - l2\n      - l1\n";
    assert!(shown.contains(of), "{shown}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("schedule.yaml");
    std::fs::write(&path, shown.replace(of, "")).unwrap();
    for command in ["diff", "apply"] {
        let ran = fake.run(&format!("{command} -f {}", path.display()));
        assert!(ran.status == 0 && fake.changes().is_empty(), "{command}: {ran:?}");
    }
}

#[test]
fn backup_in_an_unreachable_location_is_not_missing() {
    let id = snap("59-69");
    for line in ["get vb gone", "describe vb gone", &format!("get vb {id}")] {
        let ran = daemon(&[unreachable(), stored(0)]).run(line);
        let words = "BackupLocation/l1 cannot be listed: no route to host";
        assert!(ran.status == UNREACHABLE && ran.stderr.contains(words), "{line}: {ran:?}");
    }
    // One that is found needs no other location, and neither does one that no location has.
    assert_eq!(daemon(&[unreachable(), stored(2)]).run("get vb bk").status, 0);
    assert_eq!(daemon(&[stored(1), stored(0)]).run("get vb gone").status, 4);
}
