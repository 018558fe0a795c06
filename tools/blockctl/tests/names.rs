//! Cloud snapshots, schedules and tasks by name, prefix or point in time; completion of names.

use crate::support::{CLUSTER, Fake, Reply, cloudsnap, fail, list, ok, reply, snap, task, volume};
use serde_json::{Value, json};

pub(crate) const OTHER: &str = "7e4d4b67-95d7-481e-aec5-14223ac55170";

pub(crate) fn entry(id: &str, time: &str, name: &str) -> Value {
    let mut entry = cloudsnap("59-61");
    (entry["cloudSnapshotId"], entry["createdAt"]) = (json!(id), json!(time));
    (entry["volumeName"], entry["name"]) = (json!("db"), json!(name));
    entry
}

/// Starts a daemon with these cloud snapshots, whose first credential is the default.
pub(crate) fn fake(entries: &[Value]) -> Fake {
    Fake::with_defaults(fake_list(entries))
}

fn fake_list(entries: &[Value]) -> Vec<(&'static str, Reply)> {
    let list = json!({ "items": entries, "next": null, "damaged": [], "failedCredentials": [], "total": entries.len() });
    let mut credentials = reply("GET /v1/credentials");
    credentials["items"][0]["isDefault"] = json!(true);
    vec![("GET /v1/cloudsnaps", ok(list)), ("GET /v1/credentials", ok(credentials))]
}

/// Returns the restored cloud snapshot.
pub(crate) fn restored(fake: &Fake, line: &str) -> Result<String, String> {
    let ran = fake.run(line);
    let sent = fake.seen().into_iter().rev().find(|seen| seen.line.starts_with("POST "));
    match (ran.status, sent) {
        (0, Some(sent)) => Ok(sent.body["cloudSnapshotId"].as_str().unwrap().to_owned()),
        _ => Err(ran.stderr),
    }
}

#[test]
fn points_in_time_select_the_newest_before_them() {
    let ids =
        ["59-1111111111111111111", "59-2222222222222222222-incr", "59-3333333333333333333-incr"].map(snap);
    let mut entries = [
        entry(&ids[0], "2026-11-20T20:59:10Z", "before-upgrade"),
        entry(&ids[1], "2026-11-20T21:00:30Z", "snap-2"),
        entry(&ids[2], "2026-11-21T21:00:30Z", "snap-3"),
    ];
    entries[2]["status"] = json!("Damaged");
    let fake = fake(&entries);
    for (line, id) in [
        ("cs restore db --latest", &ids[1]),
        ("cs restore db@latest", &ids[1]),
        ("cs restore --snap db@2026-11-20T21:00", &ids[1]),
        ("cs restore db --at 2026-11-20T20:59Z", &ids[0]),
        ("cs restore before-upgrade", &ids[0]),
        ("cs restore 22222222", &ids[1]),
        ("cs restore pqr9-cl1/59-2222222222222222222", &ids[1]),
        ("cs clone db@2026-11-20", &ids[1]),
        ("cs drill run db", &ids[1]),
    ] {
        assert_eq!(restored(&fake, line).as_ref(), Ok(id), "{line}");
    }
    let early = fake.run("cs restore db --at 2026-11-19");
    assert_eq!(early.status, 4);
    assert!(early.stderr.contains("hint: its oldest is of 2026-11-20T20:59Z"), "{early:?}");
    let volume = fake.run("cs restore db");
    assert!(volume.status == 4 && volume.stderr.contains("db@latest"), "{volume:?}");
    let both = fake.run("cs restore db@latest --at 2026-11-19");
    assert!(both.status == 2 && both.stderr.contains("need the name or id of a volume"), "{both:?}");
}

#[test]
fn candidates_of_ambiguous_names_are_listed() {
    let here = snap("59-1111111111111111111");
    let there = format!("{OTHER}/59-1111111122222222222");
    let entries = [entry(&here, "2026-11-20T21:00:30Z", "x"), entry(&there, "2026-11-21T21:00:30Z", "x")];
    let prefix = fake(&entries).run("cs inspect 11111111");
    assert_eq!(prefix.status, 2);
    assert!(prefix.stderr.contains(&here) && prefix.stderr.contains(&there), "{prefix:?}");
    let cluster = fake(&[entry(&there, "2026-11-21T21:00:30Z", "x"), entries[0].clone()])
        .run("cs inspect pqr9-cl1/59-1111111");
    assert!(cluster.status == 2 && cluster.stderr.contains("the UUID of the cluster"), "{cluster:?}");
    // Backups of this host have priority; those of two other hosts are listed.
    assert_eq!(restored(&fake(&entries), "cs restore db --latest"), Ok(here.clone()));
    let third = here.replace(CLUSTER, "8e4d4b67-95d7-481e-aec5-14223ac55170");
    let foreign = [entry(&there, "2026-11-21T21:00:30Z", "x"), entry(&third, "2026-11-20T21:00:30Z", "x")];
    let told = restored(&fake(&foreign), "cs restore db --latest").unwrap_err();
    assert!(told.contains(&there) && told.contains(&third) && told.contains("2 hosts"), "{told}");
}

#[test]
fn copy_of_the_default_credential_is_preferred() {
    let [here, there] = ["59-1111111111111111111", "59-2222222222222222222"].map(snap);
    let [mut first, mut second] =
        [&here, &there].map(|id| entry(id, "2026-11-20T21:00:30Z", "before-upgrade"));
    second["credentialId"] = json!(OTHER);
    let lines = ["cs restore before-upgrade", "cs restore db@latest", "cs clone before-upgrade"];
    for line in lines {
        assert_eq!(restored(&fake(&[first.clone(), second.clone()]), line).as_ref(), Ok(&here), "{line}");
    }
    // Neither is of the default credential: the newest copy.
    first["credentialId"] = json!(OTHER);
    second["completedAt"] = json!("2026-11-20T22:00:30Z");
    assert_eq!(restored(&fake(&[first.clone(), second.clone()]), lines[0]).as_ref(), Ok(&there));
    second["status"] = json!("Damaged");
    assert_eq!(restored(&fake(&[first, second]), lines[0]), Ok(here));
}

#[test]
fn changes_of_one_copy_need_its_id_or_location() {
    let ids = ["59-1111111111111111111", "59-2222222222222222222"].map(snap);
    let mut entries = ids.each_ref().map(|id| entry(id, "2026-11-20T21:00:30Z", "before-upgrade"));
    entries[1]["credentialId"] = json!(OTHER);
    for line in ["cs pin before-upgrade", "cs expire db@latest --at 30d", "cs delete --yes before-upgrade"] {
        let ran = fake(&entries).run(line);
        assert!(ran.status == 2 && ran.stderr.contains("--cred-id"), "{line} {ran:?}");
    }
    // Two points in time of one name.
    entries[1]["createdAt"] = json!("2026-11-21T21:00:30Z");
    let ran = fake(&entries).run("cs inspect before-upgrade");
    assert!(ran.status == 2 && ran.stderr.contains(&ids[0]) && ran.stderr.contains(&ids[1]), "{ran:?}");
}

#[test]
fn unsearched_locations_leave_only_complete_ids() {
    let id = snap("59-61");
    let mut damaged = entry(&id, "2026-11-20T21:00:30Z", "x");
    damaged["status"] = json!("Damaged");
    let error = json!({ "code": "store_unreachable", "message": "no route to host", "hint": null });
    let failed = json!({ "credentialId": OTHER, "credentialName": "offsite", "error": error });
    let entries = [entry(&id, "2026-11-20T21:00:30Z", "nightly"), damaged];
    let list =
        json!({ "items": entries, "next": null, "damaged": [], "failedCredentials": [failed], "total": 2 });
    let fake = Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(list))]);
    let unreachable = blockd_api::ErrorCode::StoreUnreachable.exit_status();
    for line in
        ["cs restore db@latest", "cs restore db --at 2026-11-21", "cs restore nightly", "cs inspect 2e4d4b67"]
    {
        let ran = fake.run(line);
        assert_eq!(ran.status, i32::from(unreachable), "{line} {ran:?}");
        assert!(
            ran.stderr.contains("offsite: no route to host") && ran.stderr.contains("--cred-id"),
            "{ran:?}"
        );
    }
    assert_eq!(restored(&fake, &format!("cs restore {id}")), Ok(id));
}

/// Returns backups of volume 60, which had the name once, and of volume 59, which has it now.
fn backups_of_a_reused_name() -> [Value; 2] {
    let [old, new] = ["60-1111111111111111111", "59-2222222222222222222"].map(snap);
    let mut entries = [entry(&old, "2026-11-20T21:00:30Z", "x"), entry(&new, "2026-11-21T21:00:30Z", "y")];
    entries[0]["volumeId"] = json!("60");
    entries
}

#[test]
fn points_of_a_reused_name_are_of_the_present_volume() {
    let entries = backups_of_a_reused_name();
    let [old, new] = entries.each_ref().map(|one| one["cloudSnapshotId"].as_str().unwrap().to_owned());
    assert_eq!(restored(&fake(&entries), "cs restore db --latest"), Ok(new));
    let early = fake(&entries).run("cs restore db --at 2026-11-20");
    assert_eq!(early.status, 4, "{early:?}");
    for words in
        ["volumes that had this name have 1 cloud snapshot", "60 (host 2e4d4b67, newest 2026-11-20T21:00Z)"]
    {
        assert!(early.stderr.contains(words), "{early:?}");
    }
    assert!(early.stderr.contains("hint: its oldest is of 2026-11-21T21:00Z"), "{early:?}");
    let listed = fake(&entries).run("cs list db");
    assert_eq!(fake(&entries).run("cs list --src db").stderr, listed.stderr);
    assert!(listed.stderr.contains("2 volumes have or had the name db"), "{listed:?}");
    // The present volume has no backup.
    assert_eq!(restored(&fake(&entries[..1]), "cs restore db --latest"), Ok(old));
    // No volume has the name.
    let mut absent = fake_list(&entries);
    absent.push(("GET /v1/volumes/db", fail(404, "volume_not_found", "there is no volume db")));
    let told = restored(&Fake::with_defaults(absent), "cs restore db --latest").unwrap_err();
    assert!(told.contains("2 volumes named db have backups"), "{told}");
}

#[test]
fn changes_by_a_name_spare_backups_of_other_volumes() {
    let entries = backups_of_a_reused_name();
    for line in [
        "cs restore db --latest --in-place db --yes",
        "cs delete db@latest --yes",
        "cs expire db@latest --at 30d",
    ] {
        let fake = fake(&entries[..1]);
        let ran = fake.run(line);
        assert!(ran.status == 4 && ran.stderr.contains("give the id of one"), "{line} {ran:?}");
        assert!(fake.seen().iter().all(|seen| seen.line.starts_with("GET ")), "{line}");
    }
}

#[test]
fn events_and_tasks_follow_the_id_of_a_volume() {
    // Volume 59 was called old; its present name belonged to volume 60.
    let events = [("59", "old"), ("60", "db")].map(|(id, name)| {
        json!({
            "eventId": 1, "occurredAt": "2026-11-20T21:00:30Z", "severity": "error", "kind": "run-failed", "volumeId": id,
            "volumeName": name, "credentialName": null, "taskId": null, "message": format!("about {id}")
        })
    });
    let tasks = [("59", "old"), ("60", "db")].map(|(id, name)| {
        let mut task = task("Backup-Done", 1);
        (task["volumeId"], task["volumeName"]) = (json!(id), json!(name));
        task
    });
    let (none, events) = (list(json!([])), list(json!(events)));
    for (line, named) in
        [("--volume db", "59"), ("--volume 59", "59"), ("--volume old", "59"), ("-v 60", "60")]
    {
        let fake = Fake::with_defaults(vec![
            ("GET /v1/events", ok(events.clone())),
            ("GET /v1/events", ok(none.clone())),
            ("GET /v1/tasks", ok(list(json!(tasks)))),
        ]);
        let shown = fake.run(&format!("-j events {line}")).json();
        let found: Vec<_> = shown["items"].as_array().unwrap().iter().map(|one| &one["volumeId"]).collect();
        assert_eq!(found, [named], "{line}");
        let shown = fake.run(&format!("-j cs status {line}")).json();
        let found: Vec<_> = shown["items"].as_array().unwrap().iter().map(|one| &one["volumeId"]).collect();
        assert_eq!(found, [named], "{line}");
    }
}

#[test]
fn schedules_are_found_by_name() {
    let fake = Fake::with_defaults(Vec::new());
    assert_eq!(fake.run("cs sched pause nightly").status, 0);
    let unknown = fake.run("cs sched pause monthly");
    assert_eq!(unknown.status, 4);
    assert!(unknown.stderr.contains("the schedules are nightly, 178557a3"), "{unknown:?}");
}

#[test]
fn labels_are_advised_against_schedules_by_labels() {
    for (id, is_advised) in
        [("078557a3-26c7-49b1-9822-34e6f816c2d1", false), ("178557a3-26c7-49b1-9822-34e6f816c2d1", true)]
    {
        let mut started = reply("POST /v1/cloudsnaps/restore");
        started["schedules"] = json!([{ "scheduleId": id, "scheduleName": "daily" }]);
        let fake = Fake::with_defaults(vec![("POST /v1/cloudsnaps/restore", ok(started))]);
        let told = fake.run(&format!("cs restore {}", snap("59-61-incr"))).stderr;
        assert!(told.contains("new is backed up by the schedule daily from now on"), "{told}");
        assert_eq!(told.contains("--no-labels"), is_advised, "{told}");
    }
}

#[test]
fn prefixes_that_are_too_short_are_named() {
    let ran = fake(&[entry(&snap("59-61"), "2026-11-20T21:00:30Z", "x")]).run("cs inspect 2e4d");
    assert!(ran.status == 4 && ran.stderr.contains("at least 6 characters"), "{ran:?}");
}

#[test]
fn history_finds_a_schedule_with_a_hexadecimal_name() {
    let mut schedules = reply("GET /v1/schedules");
    schedules["items"][0]["name"] = json!("cafe");
    let fake = Fake::with_defaults(vec![("GET /v1/schedules", ok(schedules))]);
    for (given, query) in [
        ("cafe", "scheduleId=078557a3-26c7-49b1-9822-34e6f816c2d1"),
        ("caf", "scheduleIdPrefix=caf"),
        ("1785", "scheduleIdPrefix=1785"),
    ] {
        assert_eq!(fake.run(&format!("cs history --uuid {given}")).status, 0);
        let seen = fake.seen();
        let runs = seen.iter().rev().find(|seen| seen.line.starts_with("GET /v1/schedule-runs")).unwrap();
        assert!(runs.line.contains(query), "{given} {runs:?}");
    }
}

#[test]
fn all_credentials_are_verified_and_collected() {
    let fake = Fake::with_defaults(Vec::new());
    assert_eq!(fake.run("cs verify --all --quick").status, 0);
    let sent: Vec<Value> =
        fake.seen().into_iter().filter(|seen| seen.line.starts_with("POST ")).map(|seen| seen.body).collect();
    assert_eq!(sent.len(), 5);
    assert_eq!((&sent[0]["credential"], &sent[0]["depth"]), (&json!("nas"), &json!("quick")));
    let collected = fake.run("-j cs gc --all --dry-run");
    assert_eq!(collected.json()["items"].as_array().map(Vec::len), Some(5), "{collected:?}");
}

#[test]
fn location_that_fails_does_not_stop_the_others() {
    const VERIFY: &str = "POST /v1/cloudsnaps/verify";
    const GC: &str = "POST /v1/cloudsnaps/gc";
    let refused = || fail(502, "store_unreachable", "no reply from h:1");
    let started = |line| ok(reply(line));
    let replies = [VERIFY, GC].map(|line| [(line, started(line)), (line, refused()), (line, started(line))]);
    let fake = Fake::with_defaults(replies.concat());
    let names = ["nas", "my-s3-cred"];
    let verify = fake.run("cs verify --all");
    assert!(verify.status == 1 && verify.stdout.lines().count() == 4, "{verify:?}");
    assert!(
        names.iter().any(|name| verify.stderr.contains(&format!("{name}: no reply from h:1"))),
        "{verify:?}"
    );
    let collected = fake.run("-j cs gc --all --dry-run");
    assert_eq!((collected.status, collected.json()["items"].as_array().map(Vec::len)), (1, Some(4)));
    assert!(collected.stderr.contains("no reply from h:1"), "{collected:?}");
}

/// Returns the candidates for the last word of a line.
pub(crate) fn completed(fake: &Fake, words: &[&str]) -> Vec<String> {
    let mut command = fake.command("--");
    let output = command.args(words).env("BLOCKCTL_COMPLETE", "fish").output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    shown.lines().filter_map(|line| line.split('\t').next()).map(ToOwned::to_owned).collect()
}

#[test]
fn names_are_completed_by_the_daemon() {
    let fake = Fake::with_defaults(Vec::new());
    for (words, name) in [
        (&["blockctl", "volume", "inspect", "New"][..], "NewVol"),
        (&["blockctl", "snapshot", "inspect", "db@m"], "db@monday"),
        (&["blockctl", "cloudsnap", "backup", "db", "--cred-id", "my"], "my-s3-cred"),
        (&["blockctl", "cloudsnap", "schedules", "pause", "nig"], "nightly"),
        (&["blockctl", "sched-policy", "inspect", "g"], "gold"),
        (&["blockctl", "rule", "inspect", "p"], "pg"),
        (&["blockctl", "cloudsnap", "restore", "db"], "db@latest"),
        (&["blockctl", "cloudsnap", "stop", "3f"], "3f4f0a67"),
    ] {
        let shown = completed(&fake, words);
        assert!(shown.iter().any(|one| one == name), "{words:?}: {shown:?}");
    }
    let mut typed = fake.command("--");
    typed.env("BLOCKCTL_COMPLETE", "fish").env("BLOCKD_SOCKET", "/nonexistent/blockd.sock");
    typed.args(["blockctl", &format!("--socket={}", fake.socket().display()), "volume", "inspect", "New"]);
    let shown = String::from_utf8(typed.output().unwrap().stdout).unwrap();
    assert!(shown.contains("NewVol"), "{shown}");
    let mut nowhere = fake.command("--");
    nowhere.args(["blockctl", "volume", "inspect", "N"]).env("BLOCKCTL_COMPLETE", "fish");
    nowhere.env("BLOCKD_SOCKET", "/nonexistent/blockd.sock");
    let output = nowhere.output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn history_of_a_name_has_the_runs_of_former_volumes() {
    let mut runs = reply("GET /v1/schedule-runs");
    let first = &mut runs["items"][0];
    (first["volumeId"], first["volumeName"]) = (json!("59"), json!("db"));
    runs["items"].as_array_mut().unwrap().truncate(1);
    // `db` was renamed, and another volume has its name, or none.
    for (present, name, status, found) in [
        (Some("60"), "db", 0, 1),
        (None, "db", 0, 1),
        (Some("59"), "old-db", 0, 1),
        (Some("60"), "new", 0, 0),
        (None, "nosuch", 4, 0),
    ] {
        let route = format!("GET /v1/volumes/{name}");
        let volume = match present {
            Some(id) => ok(crate::support::volume(id, name)),
            None => fail(404, "volume_not_found", "there is no such volume"),
        };
        let fake =
            Fake::with_defaults(vec![(route.as_str(), volume), ("GET /v1/schedule-runs", ok(runs.clone()))]);
        let ran = fake.run(&format!("-j cloudsnap history --src {name}"));
        let items = ran.json()["items"].as_array().map_or(0, Vec::len);
        assert_eq!((ran.status, items), (status, found), "{name} {present:?} {ran:?}");
    }
}

#[test]
fn schedules_of_hexadecimal_names_are_found() {
    let mut schedules = reply("GET /v1/schedules");
    schedules["items"][0]["name"] = json!("DB");
    let id = schedules["items"][0]["scheduleId"].as_str().unwrap();
    let route = format!("PATCH /v1/schedules/{id}");
    for wanted in ["DB", "0785", "078557A3"] {
        let fake = Fake::with_defaults(vec![("GET /v1/schedules", ok(schedules.clone()))]);
        let ran = fake.run(&format!("cs sched pause {wanted}"));
        assert_eq!((ran.status, fake.changes()), (0, vec![route.clone()]), "{wanted} {ran:?}");
    }
}

#[test]
fn words_before_select_the_candidates() {
    let mut backup = task("Backup-Done", 1);
    backup["name"] = json!("before-upgrade");
    let mut failed = task("Backup-Failed", 1);
    failed["name"] = json!("before-failure");
    let [mut deleted, mut deletion] = [task("Backup-Done", 1), task("Delete-Done", 1)];
    deleted["name"] = json!("before-deletion");
    for one in [&mut deleted, &mut deletion] {
        one["cloudSnapshotId"] = json!(snap("59-9"));
    }
    let mut snapshots = reply("GET /v1/snapshots")["items"].take();
    let mut other = snapshots[0].clone();
    (other["volumeName"], other["volumeId"], other["name"]) = (json!("web"), json!("60"), json!("may"));
    snapshots.as_array_mut().unwrap().push(other);
    let mut made = volume("60", "web");
    made["labels"] = json!({"restored-by": "again"});
    let fake = Fake::with_defaults(vec![
        ("GET /v1/tasks", ok(list(json!([backup, failed, deleted, deletion])))),
        ("GET /v1/snapshots", ok(list(snapshots))),
        ("GET /v1/volumes", ok(list(json!([made])))),
    ]);
    for (line, wanted) in [
        ("cloudsnap restore bef", &["before-upgrade"][..]),
        ("cloudsnap restore --snap w", &["web@latest"]),
        ("snapshot restore db --snapshot m", &["monday"]),
        ("snapshot restore web m", &["may"]),
        ("snapshot diff db monday t", &["tuesday"]),
        ("snapshot restore w", &["web"]),
        ("volume uri web@", &["web@may"]),
        ("volume clone db m", &[]),
        ("volume clone new web", &["web@may"]),
        ("get volumeb", &["volumebackup", "volumebackupschedule"]),
        ("describe VolumeR", &["VolumeRestore"]),
        ("get al", &["all"]),
        ("get applicationr", &["applicationrestore"]),
        ("delete al", &[]),
        ("get vb,ru", &["vb,rule"]),
        ("get vb bef", &["before-upgrade"]),
        ("describe rule p", &["pg"]),
        ("get VolumeSnapshot m", &["may", "monday"]),
        ("delete vbs nig", &["nightly"]),
        ("get vr a", &["again"]),
        ("get vc a", &[]),
        ("get all go", &["gold"]),
        ("anomaly acknowledge 7", &["7f3c2a10"]),
        ("anomaly acknowledge d", &["db"]),
        ("volume update db --anomaly-policy o", &["off", "observe"]),
        ("volume update db --read-only o", &["on", "off"]),
        ("cloudsnap list w", &["web"]),
    ] {
        let words: Vec<&str> = std::iter::once("blockctl").chain(line.split(' ')).collect();
        assert_eq!(completed(&fake, &words), wanted, "{line}");
    }
}

#[test]
fn local_snapshots_are_named_in_each_form() {
    let mut first = reply("GET /v1/snapshots")["items"][0].take();
    (first["volumeName"], first["volumeId"]) = (json!("db"), json!("59"));
    (first["name"], first["createdAt"]) = (json!("monday"), json!("2026-11-20T21:00:00Z"));
    let mut second = first.clone();
    (second["name"], second["createdAt"]) = (json!("tuesday"), json!("2026-11-21T21:00:00Z"));
    let mut third = first.clone();
    (third["name"], third["createdAt"]) = (json!("2026-11-20"), json!("2026-11-19T21:00:00Z"));
    let snapshots = list(json!([first, second, third]));
    for (line, wanted) in [
        ("snapshot restore db --snapshot monday", "db@monday"),
        ("snapshot restore db monday", "db@monday"),
        ("snapshot restore db@monday", "db@monday"),
        ("snapshot restore db@latest", "db@tuesday"),
        ("snapshot restore db latest", "db@tuesday"),
        ("snapshot restore db@2026-11-20T22:00", "db@monday"),
        ("snapshot restore db@2026-11-20", "db@2026-11-20"),
        ("snapshot restore 61", "61"),
        ("volume clone new --from db@monday", "db@monday"),
        ("volume clone new db@monday", "db@monday"),
        ("volume clone new db@latest", "db@tuesday"),
        ("volume clone new 61", "61"),
        ("cloudsnap backup db@monday", "db@monday"),
        ("cloudsnap backup db@latest", "db@tuesday"),
        ("cloudsnap backup --volume db@2026-11-20T22:00", "db@monday"),
    ] {
        let fake = Fake::with_defaults(vec![
            ("GET /v1/snapshots", ok(snapshots.clone())),
            ("GET /v1/snapshots/61", ok(first.clone())),
        ]);
        let ran = fake.run(line);
        let sent = fake.seen().into_iter().rev().find(|seen| seen.line.starts_with("POST "));
        let sent = sent.unwrap_or_else(|| panic!("{line} {ran:?}"));
        assert_eq!(sent.body["snapshot"], json!(wanted), "{line} {ran:?}");
    }
    let fake = Fake::with_defaults(vec![
        ("GET /v1/snapshots", ok(snapshots)),
        ("GET /v1/snapshots/61", ok(first)),
        ("DELETE /v1/snapshots/db@2026-11-20", ok(reply("DELETE /v1/snapshots/db@monday"))),
        ("GET /v1/volumes/61", fail(404, "volume_not_found", "there is no volume 61")),
    ]);
    for (line, status, words) in [
        ("snapshot restore db", 2, "db@latest is the newest"),
        ("snapshot restore db@monday monday", 2, "given twice"),
        ("snapshot delete db@latest", 2, "without --yes"),
        ("snapshot delete db@2026-11-20", 0, "deleted"),
        ("snapshot inspect db@2026-11-18", 4, "there is no snapshot db@2026-11-18"),
        ("volume uri 61", 0, "nbd"),
        ("volume uri 62", 4, "there is no such volume"),
        ("snapshot diff db@monday", 0, ""),
        ("cs sched pause --name nightly", 0, ""),
    ] {
        let ran = fake.run(line);
        assert!(ran.status == status && (ran.stdout.clone() + &ran.stderr).contains(words), "{line} {ran:?}");
    }
}
