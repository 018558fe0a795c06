//! Objects that commands find by a name or a prefix of an id.

use crate::support::{CLUSTER, Fake, TASK, cloudsnap, defaults, list, ok, reply, snap, task, volume};
use serde_json::{Value, json};

const OTHER_TASK: &str = "7f4f0a67-e12a-4d35-81ad-985657757352";

#[test]
fn clusters_are_selected_by_the_digits_of_lists() {
    let other = "2e4d9999-95d7-481e-aec5-14223ac55170";
    let (own, mut second) = (cloudsnap("59-61"), cloudsnap("59-62"));
    second["cloudSnapshotId"] = json!(format!("{other}/59-62"));
    let listed = json!({
        "items": [own, second], "next": null, "damaged": [], "failedCredentials": [], "total": 2,
    });
    let fake = Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(listed))]);
    let shown = fake.run("cs list").stdout;
    assert!(shown.contains("  HOST  ") && shown.contains("  2e4d9  "), "{shown}");
    let whole = other.replace('-', "").to_ascii_uppercase();
    for (given, cluster) in [
        ("2e4d4b67", CLUSTER),
        ("2e4d4b6795", CLUSTER),
        ("2E4D4B67-95", CLUSTER),
        ("2E4D9", other),
        (other, other),
        (whole.as_str(), other),
    ] {
        let ran = fake.run(&format!("cs list --cluster {given}"));
        let sent = fake.seen().pop().unwrap().line;
        let seen = fake.seen().into_iter().any(|seen| seen.line.contains(&format!("clusterId={cluster}")));
        assert!(ran.status == 0 && seen, "{given}: {sent} {ran:?}");
    }
    // A new host has no cloud snapshots.
    let none = json!({ "items": [], "next": null, "damaged": [], "failedCredentials": [], "total": 0 });
    let ran = Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(none))]).run("cs list --cluster 2e4d4b67");
    assert!(ran.status == 0 && (ran.stdout.clone() + &ran.stderr).contains("no cloud snapshots"), "{ran:?}");
    for (given, status, words) in [
        ("2e4d", 2, "give a longer prefix"),
        ("abcd", 4, "no cluster with cloud snapshots"),
        ("2e", 2, "its first 4 digits"),
    ] {
        let ran = fake.run(&format!("cs list --cluster {given}"));
        assert!(ran.status == status && ran.stderr.contains(words), "{given}: {ran:?}");
    }
}

#[test]
fn cluster_in_an_unreachable_location_is_not_missing() {
    let error = json!({ "code": "store_unreachable", "message": "no route to host", "hint": null });
    let failed = json!({ "credentialId": OTHER_TASK, "credentialName": "offsite", "error": error });
    let listed = json!({
        "items": [cloudsnap("59-61")], "next": null, "damaged": [], "failedCredentials": [failed], "total": 1,
    });
    let ran = Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(listed))]).run("cs list --cluster abcd");
    let status = i32::from(blockd_api::ErrorCode::StoreUnreachable.exit_status());
    let words = "search for cluster abcd failed at backup location offsite: no route to host";
    assert!(ran.status == status && ran.stderr.contains(words), "{ran:?}");
}

/// Daemon with a stopped and an active backup of volume `shop`.
fn with_tasks(first: &str, second: &str) -> Fake {
    let mut tasks = [task(first, 1), task(second, 1)];
    for task in &mut tasks {
        task["volumeName"] = json!("shop");
    }
    tasks[1]["taskId"] = json!(OTHER_TASK);
    tasks[1]["resumable"] = json!(second.ends_with("-Stopped"));
    let mut replies = defaults();
    replies.insert("GET /v1/tasks".to_owned(), list(json!(tasks)));
    for (id, task) in [TASK, OTHER_TASK].into_iter().zip(&tasks) {
        for step in ["stop", "resume"] {
            replies.insert(format!("POST /v1/tasks/{id}/{step}"), task.clone());
        }
    }
    Fake::start(replies.iter().map(|(line, body)| (line.as_str(), ok(body.clone()))).collect())
}

#[test]
fn tasks_are_named_by_their_volume() {
    for (line, first, second, sent) in [
        ("cs stop shop", "Backup-Done", "Backup-Active", format!("POST /v1/tasks/{OTHER_TASK}/stop")),
        ("cs resume shop", "Backup-Done", "Backup-Stopped", format!("POST /v1/tasks/{OTHER_TASK}/resume")),
    ] {
        let fake = with_tasks(first, second);
        let ran = fake.run(line);
        assert_eq!((ran.status, fake.changes()), (0, vec![sent]), "{line} {ran:?}");
    }
    let fake = with_tasks("Backup-Active", "Backup-Active");
    let ran = fake.run("cs stop shop");
    assert!(ran.status == 2 && ran.stderr.contains("2 tasks are of shop"), "{ran:?}");
    let ran = fake.run("logs shop");
    assert!(ran.status == 0 && ran.stdout.contains("started"), "{ran:?}");
    let ran = fake.run("cs stop nosuch");
    assert!(
        ran.status == 4 && ran.stderr.contains("is of a backup, cloud snapshot or volume of this name"),
        "{ran:?}"
    );
}

#[test]
fn group_of_stopped_backups_is_resumed() {
    let group = "0f0e8b1a-0000-4000-8000-000000000001";
    let mut tasks = [task("Backup-Stopped", 1), task("Backup-Stopped", 1)];
    for task in &mut tasks {
        (task["groupId"], task["resumable"]) = (json!(group), json!(true));
    }
    tasks[1]["taskId"] = json!(OTHER_TASK);
    let resume = [TASK, OTHER_TASK].map(|id| format!("POST /v1/tasks/{id}/resume"));
    let mut replies = vec![("GET /v1/tasks", ok(list(json!(tasks))))];
    replies.extend(resume.iter().zip(&tasks).map(|(line, task)| (line.as_str(), ok(task.clone()))));
    let fake = Fake::with_defaults(replies);
    let ran = fake.run("cs resume 0f0e8b1a");
    assert_eq!((ran.status, fake.changes()), (0, resume.to_vec()), "{ran:?}");
}

#[test]
fn resume_of_a_running_group_is_a_conflict() {
    let mut running = task("Backup-Active", 1);
    running["groupId"] = json!("0f0e8b1a-0000-4000-8000-000000000001");
    let fake = Fake::with_defaults(vec![("GET /v1/tasks", ok(list(json!([running]))))]);
    let ran = fake.run("cs resume 0f0e8b1a");
    assert!(ran.status == 5 && ran.stderr.contains("no backup of the group can be resumed"), "{ran:?}");
    assert_eq!(fake.changes(), [""; 0]);
}

/// Only the cloud snapshot has the name, and its task is older than another one.
#[test]
fn cloud_snapshots_name_their_tasks() {
    let [mut own, mut other] = [task("Backup-Done", 1), task("Backup-Done", 1)];
    other["taskId"] = json!(OTHER_TASK);
    for (task, id) in [(&mut own, snap("59-6111111111-incr")), (&mut other, snap("59-6222222222"))] {
        (task["cloudSnapshotId"], task["volumeName"], task["name"]) = (json!(id), json!("shop"), Value::Null);
    }
    let mut entries = [cloudsnap("59-6111111111-incr"), cloudsnap("60-6333333333")];
    (entries[0]["name"], entries[0]["volumeName"]) = (json!("before-upgrade"), json!("db"));
    (entries[1]["name"], entries[1]["volumeName"]) = (json!("far"), json!("db"));
    entries[1]["createdAt"] = json!("2019-01-15T00:00:00Z");
    let listed = json!({
        "items": entries, "next": null, "damaged": [], "failedCredentials": [], "total": 2,
    });
    let fake = || {
        let tasks = list(json!([other, own]));
        let route = "GET /v1/tasks";
        // The daemon knows ids alone.
        Fake::with_defaults(vec![
            (route, ok(list(json!([])))),
            (route, ok(tasks)),
            ("GET /v1/cloudsnaps", ok(listed.clone())),
        ])
    };
    let no_prefix = |tasks: Value| {
        Fake::with_defaults(vec![("GET /v1/tasks", ok(tasks)), ("GET /v1/cloudsnaps", ok(listed.clone()))])
    };
    let tasks = list(json!([other, own]));
    for name in ["before-upgrade", "db@latest", "db@2019-01-17", &snap("59-6111111111")] {
        let shown = no_prefix(tasks.clone()).run(&format!("-j cs status {name}")).json();
        let found: Vec<_> = shown["items"].as_array().unwrap().iter().map(|one| &one["taskId"]).collect();
        assert_eq!(found, [TASK], "{name}");
        let log = no_prefix(tasks.clone()).run(&format!("-j logs {name}")).json();
        assert_eq!(log["task"]["taskId"], TASK, "{name}");
    }
    let shown = fake().run("-j cs status 61111111").json();
    assert_eq!(shown["items"][0]["taskId"], TASK, "{shown}");
    let far = no_prefix(tasks).run("logs far");
    assert!(far.status == 4 && far.stderr.contains("no task of cloud snapshot"), "{far:?}");
    assert!(far.stderr.contains("`blockctl cloudsnap inspect far`"), "{far:?}");
}

#[test]
fn log_of_an_id_prefix_asks_for_it_once() {
    let fake = Fake::with_defaults(vec![("GET /v1/tasks", ok(list(json!([task("Backup-Done", 1)]))))]);
    assert_eq!(fake.run(&format!("logs {TASK}")).status, 0);
    let asked = fake.seen().into_iter().filter(|seen| seen.line.starts_with("GET /v1/tasks?"));
    assert_eq!(asked.count(), 1);
}

#[test]
fn log_names_the_schedule_of_a_task() {
    let mut scheduled = task("Backup-Done", 1);
    scheduled["owner"] = json!({ "kind": "schedule", "scheduleId": "078557a3-26c7-49b1-9822-34e6f816c2d1" });
    let ran = Fake::with_defaults(vec![("GET /v1/tasks", ok(list(json!([scheduled]))))]).run("logs 3f4f");
    assert!(ran.stdout.contains("by schedule nightly"), "{ran:?}");
}

#[test]
fn argument_names_a_volume_or_a_group() {
    let member = |id: &str, name: &str, group: Value| {
        let mut volume = volume(id, name);
        volume["group"] = group;
        volume
    };
    let volumes =
        [member("7", "db", Value::Null), member("8", "wal", json!("pg")), member("9", "shop", json!("shop"))];
    let fake = Fake::with_defaults(vec![("GET /v1/volumes", ok(list(json!(volumes))))]);
    let selected = |given: &str| {
        let ran = fake.run(&format!("cs sched create {given} --daily 21:00"));
        assert_eq!(ran.status, 0, "{given} {ran:?}");
        let sent = fake.seen().into_iter().rfind(|seen| seen.line == "POST /v1/schedules").unwrap();
        sent.body["selector"].clone()
    };
    assert_eq!(selected("db"), json!({ "volume": "db" }));
    assert_eq!(selected("pg"), json!({ "group": "pg" }));
    for line in ["cs sched create shop --daily 21:00", "rule assign pg shop"] {
        let ran = fake.run(line);
        let words = "shop is the name of a volume and of a group\nhint: --volume shop names the volume, --group shop the group";
        assert!(ran.status == 2 && ran.stderr.contains(words), "{line} {ran:?}");
    }
    assert_eq!(selected("--volume shop"), json!({ "volume": "shop" }));
    assert_eq!(selected("--group shop"), json!({ "group": "shop" }));
}

#[test]
fn time_zone_of_a_schedule_by_policy_is_refused() {
    let mut schedules = reply("GET /v1/schedules");
    let nightly = &mut schedules["items"][0];
    (nightly["policyName"], nightly["rules"], nightly["retain"]) = (json!("gold"), json!([]), json!({}));
    let fake = Fake::with_defaults(vec![("GET /v1/schedules", ok(schedules))]);
    let refused = fake.run("cs sched update nightly --time-zone Europe/Paris");
    assert!(refused.status == 2 && refused.stderr.contains("the times of policy gold"), "{refused:?}");
    // The days of a retention are those of the time zone.
    let changed = fake.run("cs sched update nightly --time-zone Europe/Paris --keep-daily 7");
    assert_eq!(changed.status, 0, "{changed:?}");
}
