//! Width of lists, the protection in `status`, and hints about missing objects.

use crate::support::{CLUSTER, Fake, TASK, cloudsnap, defaults, fail, list, ok, reply, snap, task};
use serde_json::{Value, json};

/// Maximum width of a list.
const COLUMNS: usize = 80;

/// Name of 30 characters.
const LONG_NAME: &str = "database-of-the-shop-in-berlin";

/// Replaces names, ids and sizes in a reply by long ones.
fn stretch(key: &str, value: &mut Value) {
    const NAMES: [&str; 10] = [
        "name",
        "volumeName",
        "snapshotName",
        "credentialName",
        "ruleName",
        "group",
        "groups",
        "volumeNames",
        "credentials",
        "user",
    ];
    match value {
        Value::Object(fields) => fields.iter_mut().for_each(|(key, value)| stretch(key, value)),
        Value::Array(items) => items.iter_mut().for_each(|item| stretch(key, item)),
        Value::String(text) if key == "cloudSnapshotId" => {
            let (id, incremental) =
                text.split_once("-incr").map_or((text.as_str(), ""), |(id, _)| (id, "-incr"));
            let snapshot = id.rsplit('-').next().unwrap_or_default();
            *text = format!("{CLUSTER}/590114184663672482-95{snapshot}13258190473370{incremental}");
        }
        Value::String(text) if NAMES.contains(&key) => *text = LONG_NAME.to_owned(),
        Value::String(text)
            if ["reason", "message", "cause", "stateReason", "output", "error"].contains(&key) =>
        {
            *text = "the store is full, and other hosts still write to it, day and night, without a pause"
                .to_owned();
        }
        Value::String(text) if key == "mountpoint" => *text = format!("/mnt/{LONG_NAME}/{LONG_NAME}"),
        Value::String(text) if key == "target" => *text = format!("/usr/local/bin/{LONG_NAME}"),
        Value::String(text) if key == "state" && text == "Backup-Active" => {
            *text = "Restore-Stopped".to_owned();
        }
        Value::Number(number) if key.ends_with("Bytes") && key != "blockSizeBytes" => {
            *number = 999_999_999_999_u64.into();
        }
        _ => {}
    }
}

/// Daemon with long names, ids and sizes.
fn stretched() -> Fake {
    let mut replies = defaults();
    let operation = json!({ "requests": 0, "latencyMicros": 0, "inFlight": 123 });
    let busy = json!({ "requests": 99_999, "latencyMicros": 99_999_000_000_u64, "inFlight": 123 });
    let sample = |at: u64, operation: &Value| {
        let volume = json!({
            "volumeId": "59", "name": "db", "up": true, "connections": 1, "dirtyBytes": 1, "readBytes": at << 32,
            "writtenBytes": at << 32, "read": operation, "write": operation, "flush": operation, "discard": operation,
        });
        json!({
            "daemonRunId": TASK, "monotonicMicros": 1_000_000 * (1 + at), "volumes": [volume],
            "tasks": [task("Backup-Active", 1)],
        })
    };
    let samples = [sample(0, &operation), sample(1, &busy)];
    let affected = json!({ "cloudSnapshotId": snap("59-61"), "lostBytes": 1, "ranges": [{ "offsetBytes": 1, "lenBytes": 1 }] });
    let object = format!("blockd/data/{CLUSTER}/590114184663672482/951325819047337066/pack-00000000");
    let damage = json!({ "object": object, "offsetBytes": 1, "cause": "altered", "affects": [affected] });
    let mut verified = task("Verify-Failed", 2);
    verified["findings"] = json!({
        "snapshots": 2, "damagedSnapshots": [snap("59-61")], "objects": 3, "blockBytes": 1, "comparedBytes": 0,
        "damage": [damage, damage], "damageTotal": 2,
    });
    replies.insert(format!("GET /v1/tasks/{TASK}"), verified);
    // A stopped restore that cannot be resumed has made nothing.
    replies.get_mut("GET /v1/tasks").unwrap()["items"][0]["resumable"] = json!(true);
    let mut answers: Vec<(String, Value)> =
        replies.into_iter().filter(|(line, _)| line != "GET /v1/activity").collect();
    answers.extend(samples.map(|sample| ("GET /v1/activity".to_owned(), sample)));
    answers.iter_mut().for_each(|(line, body)| {
        // The counters of the samples are cumulative.
        if line != "GET /v1/activity" {
            stretch("", body);
        } else {
            body["volumes"][0]["name"] = json!(LONG_NAME);
            body["volumes"][0]["dirtyBytes"] = json!(999_999_999_999_u64);
            stretch("", &mut body["tasks"]);
        }
    });
    Fake::start(answers.iter().map(|(line, body)| (line.as_str(), ok(body.clone()))).collect())
}

/// Returns true for a line with the cause of a problem, which is complete.
fn is_cause(line: &str) -> bool {
    line.starts_with("- ") || line.starts_with("    ")
}

#[test]
fn lists_fit_into_80_columns() {
    let schedule = "078557a3-26c7-49b1-9822-34e6f816c2d1";
    let mut failures = Vec::new();
    for (line, has_names) in [
        ("volume list", true),
        ("snapshot list", true),
        ("snapshot diff db monday", false),
        ("credentials list", true),
        ("cloudsnap list", true),
        ("cloudsnap status", true),
        ("cloudsnap status 3f4f", true),
        ("cloudsnap history", true),
        ("cloudsnap schedules list", true),
        (&format!("cloudsnap schedules retention {schedule}"), false),
        ("cloudsnap gc --dry-run", false),
        ("cloudsnap verify --wait", false),
        ("rule list", true),
        ("sched-policy list", false),
        ("anomaly list", true),
        ("browse list", false),
        ("events", false),
        ("status", false),
        ("top --once --interval 0.1", true),
        ("get all", false),
        ("get bl", false),
        ("get vb", false),
        ("get vbs", false),
        ("get vr", false),
    ] {
        let ran = stretched().run(line);
        let lines = ran.stdout.lines().filter(|line| !is_cause(line));
        // The line of a started task has its complete id.
        let lines = lines.filter(|line| !line.contains(" started successfully with id: "));
        let widest = lines.clone().map(|line| line.chars().count()).max().unwrap_or_default();
        if lines.count() < 2 || widest > COLUMNS {
            failures.push(format!("{line}: {widest}\n{}{}", ran.stdout, ran.stderr));
        }
        if has_names {
            let wide = stretched().run(&format!("{line} -o wide")).stdout;
            if wide.contains('…') || !wide.contains(LONG_NAME) {
                failures.push(format!("{line} -o wide\n{wide}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Returns a proof of the content.
fn proof(is_sound: bool) -> Value {
    json!({
        "provenAt": "2024-01-17T03:00:00Z", "kind": "full", "sound": is_sound, "host": "db1", "version": "1.2.3",
    })
}

/// Returns the narrow list of cloud snapshots, and of an unreadable one.
fn narrow_list(items: &[Value], has_damaged: bool) -> String {
    let damaged = json!({ "cloudSnapshotId": snap("59-63"), "status": "Damaged", "credentialId": TASK, "credentialName": "nas", "reason": "a bit is flipped" });
    let damaged: Vec<Value> = has_damaged.then_some(damaged).into_iter().collect();
    let listed = json!({
        "items": items, "next": null, "damaged": damaged, "failedCredentials": [], "total": items.len(),
    });
    Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(listed))]).run("cloudsnap list").stdout
}

#[test]
fn list_of_backups_shows_given_names_and_states_that_differ() {
    let list_of = |names: [&str; 2], has_damaged: bool| {
        let items = ["61", "62"].iter().zip(names).map(|(id, name)| {
            let mut one = cloudsnap(&format!("59-{id}"));
            one["name"] = json!(name);
            one
        });
        narrow_list(&items.collect::<Vec<_>>(), has_damaged)
    };
    let generated = format!("backup-{TASK}");
    let long = "n".repeat(60);
    for (has_damaged, first, last) in [
        (false, "CREATED            SIZE   LOCATION", ""),
        (true, "CREATED            LOCATION", "  STATUS "),
    ] {
        let named = list_of(["before", &generated], has_damaged);
        let lines: Vec<&str> = named.lines().collect();
        assert!(
            lines[0].contains(first) && lines[0].ends_with(&format!("  LAST-PROOF{last}  NAME")),
            "{named}"
        );
        assert!(!named.contains("HOST"), "all are of this host: {named}");
        assert!(lines[1].ends_with("  before") && lines[2].ends_with("  -"), "{named}");
        assert_eq!(
            (named.contains("Done"), named.contains("Damaged")),
            (has_damaged, has_damaged),
            "{named}"
        );
        let cut = list_of([&long, "b"], has_damaged);
        assert!(cut.contains("nn…nn") && cut.lines().all(|line| line.chars().count() <= COLUMNS), "{cut}");
        let unnamed = list_of([&generated, &generated], has_damaged);
        let header = unnamed.lines().next().unwrap();
        assert!(
            header.contains(first) && header.ends_with(&format!("  LAST-PROOF{}", last.trim_end())),
            "{unnamed}"
        );
    }
}

#[test]
fn list_of_backups_fits_with_names_and_states() {
    for name in ["", "before"] {
        for has_damaged in [false, true] {
            let mut one = cloudsnap("59-61");
            one["lastProof"] = proof(true);
            stretch("", &mut one);
            one["name"] = json!(name);
            let mut of_other_host = one.clone();
            of_other_host["cloudSnapshotId"] = json!("7e4d4b67-95d7-481e-aec5-14223ac55170/59-61");
            let shown = narrow_list(&[one.clone()], has_damaged);
            assert!(shown.contains(name) && shown.contains("d full"), "{shown}");
            for shown in [shown, narrow_list(&[one, of_other_host], has_damaged)] {
                assert!(shown.lines().all(|line| line.chars().count() <= COLUMNS), "{shown}");
            }
        }
    }
}

#[test]
fn list_of_backups_shows_the_last_proof() {
    let proven = |id: &str, last: Value| {
        let mut one = cloudsnap(id);
        one["lastProof"] = last;
        one
    };
    let mut items = vec![proven("59-61", proof(true)), proven("59-62", Value::Null)];
    let shown = narrow_list(&items, false);
    let proofs: Vec<&str> = shown.lines().map(|line| line.rsplit("  ").next().unwrap()).collect();
    assert!(proofs[1].ends_with("d full") && proofs[2] == "-", "{shown}");
    let mut damaged = proven("59-64", proof(false));
    damaged["status"] = json!("Damaged");
    items.push(damaged);
    let shown = narrow_list(&items, true);
    let rows: Vec<&str> = shown.lines().collect();
    assert!(
        rows[1].contains("d full ") && rows[3].contains("  damaged ") && rows[3].ends_with("Damaged"),
        "{shown}"
    );
    // Nothing is known of the content of an unreadable one.
    assert!(rows[4].ends_with("Damaged") && !rows[4].contains("damaged"), "{shown}");
}

#[test]
fn long_cells_of_objects_are_shortened() {
    let (mut rule, name) = (reply("GET /v1/rules")["items"][0].take(), "n".repeat(60));
    (rule["name"], rule["quiesce"]["preCommand"]) = (json!(name), json!("p".repeat(60)));
    let fake = Fake::with_defaults(vec![("GET /v1/rules", ok(list(json!([rule]))))]);
    let shown = fake.run("get Rule").stdout;
    let widths: Vec<usize> = shown.lines().map(|line| line.chars().count()).collect();
    assert!(widths.iter().all(|width| *width <= COLUMNS) && shown.contains("ppp…ppp"), "{shown}");
    let wide = fake.run("get Rule -o wide").stdout;
    assert!(wide.contains(&name) && wide.contains(&"p".repeat(60)), "{wide}");
}

/// The ages in the output follow the clock.
#[test]
fn status_shows_protection_and_problems() {
    let fake = Fake::with_defaults(Vec::new());
    let shown = fake.run("status").stdout;
    assert!(shown.contains("Health         : ") && shown.contains("- volume e is not served"), "{shown}");
    let row = |volume: &str| {
        let line = shown.lines().find(|line| line.starts_with(&format!("{volume} "))).unwrap_or_default();
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let db = row("db");
    assert_eq!(
        (db[1].as_str(), db[2].as_str(), db.last().unwrap().as_str()),
        ("nightly", "local", "missed"),
        "{shown}"
    );
    assert_eq!(row("mood").last().unwrap(), "no schedule", "{shown}");
    assert!(shown.lines().any(|line| line.starts_with("db3 ") && line.contains("1.5 GiB")), "{shown}");
    let nas = row("nas");
    assert_eq!((nas[1].as_str(), nas[2].as_str()), ("12", "3 GiB"), "{shown}");
    assert!(nas[3].ends_with("d ago") && row("s3").last().unwrap() == "-", "{shown}");
    let document = fake.run("-j status").json();
    assert_eq!(document["volumeSpace"][0]["usedBytes"], 1_610_612_736, "{document:#}");
    assert_eq!(document["locations"][0]["storedBytes"], 3_221_225_472_u64, "{document:#}");
    let protection = document["protection"].as_array().unwrap();
    assert!(
        protection.iter().any(|one| one["volumeName"] == "mood" && one["objective"] == "no-schedule"),
        "{document:#}"
    );

    let check = fake.run("status --check");
    assert_eq!(check.status, 1);
    assert!(
        check.stdout.lines().any(|line| line.starts_with("no schedule selects volume mood: blockctl")),
        "{check:?}"
    );
    let calm = Fake::with_defaults(vec![
        ("GET /v1/volumes", ok(list(json!([])))),
        ("GET /v1/schedules", ok(list(json!([])))),
        ("GET /v1/tasks", ok(list(json!([])))),
    ]);
    let check = calm.run("status --check");
    assert_eq!((check.status, check.stdout.as_str()), (0, "no problems\n"), "{check:?}");
}

#[test]
fn missing_objects_and_refused_plans_have_a_hint() {
    let fake = Fake::with_defaults(Vec::new());
    for line in ["get vb nope", "delete BackupLocation nope"] {
        let ran = fake.run(line);
        let words = format!(
            "hint: `blockctl get {}` lists",
            if line.contains("vb") { "VolumeBackup" } else { "BackupLocation" }
        );
        assert!(ran.status == 4 && ran.stderr.contains(&words), "{ran:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restore.yaml");
    let text = "apiVersion: blockd/v1\nkind: VolumeRestore\nmetadata: {name: r}\nspec: {backupName: nope, destinationVolume: new}\n";
    std::fs::write(&path, text).unwrap();
    let ran = fake.run(&format!("diff -f {}", path.display()));
    assert!(ran.stderr.contains("hint: `blockctl get VolumeBackup` lists the backups"), "{ran:?}");
}

#[test]
fn empty_retention_plan_is_a_note() {
    const ROUTE: &str = "GET /v1/schedules/078557a3-26c7-49b1-9822-34e6f816c2d1/retention";
    let mut plan = reply(ROUTE);
    plan["items"] = json!([]);
    let ran = Fake::with_defaults(vec![(ROUTE, ok(plan))]).run("cs sched retention nightly");
    assert_eq!((ran.status, ran.stdout.as_str(), ran.stderr.as_str()), (0, "", "no backups\n"));
}

/// List with filters: route, command, fields of name and time of its entries, and its orders.
type FilteredList = (&'static str, &'static str, &'static str, &'static str, &'static str);

const FILTERED: [FilteredList; 10] = [
    ("GET /v1/anomalies", "anomaly list", "volumeName", "detectedAt", "started name"),
    ("GET /v1/volumes", "volume list", "name", "createdAt", "name size used created"),
    ("GET /v1/snapshots", "snapshot list", "name", "createdAt", "volume created name size"),
    ("GET /v1/cloudsnaps", "cloudsnap list", "name", "createdAt", "created name volume size location"),
    ("GET /v1/tasks", "cloudsnap status", "name", "startedAt", "started name volume status size"),
    ("GET /v1/schedules", "cloudsnap schedules list", "name", "createdAt", "created name volume next"),
    ("GET /v1/schedule-runs", "cloudsnap history", "scheduleName", "startedAt", "started name volume status"),
    ("GET /v1/credentials", "credentials list", "name", "createdAt", "created name"),
    ("GET /v1/sched-policies", "sched-policy list", "name", "", ""),
    ("GET /v1/rules", "rule list", "name", "", ""),
];

#[test]
fn list_with_filters_has_the_selected_entries() {
    for (route, line, name, time, sorts) in FILTERED {
        let mut replies = defaults();
        let body = replies.get_mut(route).unwrap();
        let mut first = body["items"][0].take();
        let mut entry = |called: &str, at: &str, volume: &str| {
            first[name] = json!(called);
            if !time.is_empty() {
                (first[time], first["volumeId"]) = (json!(at), json!(volume));
            }
            if first.get("selector").is_some() {
                first["selector"] = json!({ "volumeId": volume, "volumeName": "db" });
            }
            first.clone()
        };
        let entries =
            [entry("beta", "2026-11-20T21:00:00Z", "59"), entry("alpha", "2026-11-22T21:00:00Z", "60")];
        body["items"] = json!(entries);
        let volumes = ["59", "60"].map(|id| {
            let mut volume = crate::support::volume(id, if id == "59" { "beta" } else { "alpha" });
            volume["labels"] = if id == "59" { json!({ "app": "web" }) } else { json!({}) };
            volume["createdAt"] =
                json!(if id == "59" { "2026-11-20T21:00:00Z" } else { "2026-11-22T21:00:00Z" });
            volume
        });
        replies.insert("GET /v1/volumes".to_owned(), list(json!(volumes)));
        let fake =
            Fake::start(replies.iter().map(|(line, body)| (line.as_str(), ok(body.clone()))).collect());
        let found = |options: &str| {
            let ran = fake.run(&format!("-j {line} {options}"));
            assert_eq!(ran.status, 0, "{line} {options} {ran:?}");
            let items = ran.json()["items"].as_array().cloned().unwrap();
            items.iter().map(|one| one[name].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(found("--name alp*"), ["alpha"], "{line}");
        if time.is_empty() {
            continue;
        }
        assert_eq!(found("--since 2026-11-21"), ["alpha"], "{line}");
        assert_eq!(found("--until 2026-11-21"), ["beta"], "{line}");
        for sort in sorts.split(' ') {
            assert_eq!(found(&format!("--sort {sort}")).len(), 2, "{line} {sort}");
        }
        if line != "volume list" {
            assert_eq!(found("--sort name"), ["alpha", "beta"], "{line}");
        }
        match line {
            "credentials list" => {}
            // The daemon selects by these labels.
            "volume list" | "cloudsnap list" => {
                found("--label app=web");
                let seen = fake.seen();
                assert!(seen.iter().any(|seen| seen.line.starts_with(route) && seen.line.contains("label=")));
            }
            _ => assert_eq!(found("--label app=web"), ["beta"], "{line}"),
        }
    }
}

#[test]
fn tasks_are_found_by_the_name_of_their_backup() {
    let mut tasks = ["before-upgrade", "cafe"].map(|name| {
        let mut task = task("Backup-Done", 1);
        task["name"] = json!(name);
        task
    });
    tasks[1]["taskId"] = json!("7f4f0a67-e12a-4d35-81ad-985657757352");
    for (given, by_id, found) in [
        ("before-upgrade", &[][..], 1),
        ("before-*", &[], 1),
        // It could begin an id, but begins none.
        ("cafe", &[], 1),
        ("3f4f", &tasks[..1], 1),
        ("*", &[], 2),
    ] {
        let mut replies = vec![("GET /v1/tasks", ok(list(json!(tasks))))];
        if given == "cafe" || given == "3f4f" {
            replies.insert(0, ("GET /v1/tasks", ok(list(json!(by_id)))));
        }
        let fake = Fake::with_defaults(replies);
        for option in ["", "--name "] {
            let ran = fake.run(&format!("-j cs status {option}{given}"));
            let items = ran.json()["items"].as_array().map(Vec::len);
            assert!(ran.status == 0 && items.is_some_and(|len| len >= found), "{given}: {ran:?}");
        }
    }
    let ran = Fake::with_defaults(vec![("GET /v1/tasks", ok(list(json!(tasks))))]).run("cs status nosuch");
    assert!(
        ran.status == 4 && ran.stderr.contains("of a backup, cloud snapshot or volume of this name"),
        "{ran:?}"
    );
}

#[test]
fn long_schedule_leaves_the_others_complete() {
    let mut schedules = reply("GET /v1/schedules");
    let long = "periodic 60, daily @21:00, weekly Sunday@03:00/2, monthly 14@20:05, and policy gold";
    schedules["items"][0]["schedule"] = json!(long);
    schedules["items"][1]["schedule"] = json!("daily @09:00");
    let ran = Fake::with_defaults(vec![("GET /v1/schedules", ok(schedules))]).run("cs sched list");
    assert!(ran.stdout.contains("  daily @09:00\n"), "{ran:?}");
    let below = ran.stdout.lines().skip(2).take_while(|line| line.starts_with("  "));
    assert_eq!(below.map(str::trim).collect::<Vec<_>>().join(" "), long, "{ran:?}");
    assert!(ran.stdout.lines().all(|line| line.chars().count() <= COLUMNS), "{ran:?}");
}

#[test]
fn wide_list_of_backups_has_names_and_labels() {
    let mut listed = reply("GET /v1/cloudsnaps");
    let first = &mut listed["items"][0];
    first["name"] = json!("before-upgrade");
    (first["labels"], first["backupLabels"]) = (json!({ "app": "web" }), json!({ "change": "1742" }));
    let ran = Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(listed))]).run("cs list -o wide");
    for words in ["LABELS", "before-upgrade", "app=web,change=1742"] {
        assert!(ran.stdout.contains(words), "{words}: {ran:?}");
    }
}

#[test]
fn schedule_without_volume_has_a_location() {
    let shown = Fake::with_defaults(Vec::new()).run("get vbs").stdout;
    let row = shown.lines().find(|line| line.starts_with("nightly ")).unwrap();
    assert!(row.contains(" nas "), "{shown}");
}

#[test]
fn empty_list_of_an_unknown_volume_is_an_error() {
    let none = json!({ "items": [], "next": null, "damaged": [], "failedCredentials": [], "total": 0 });
    for (line, route) in [("cs list db", "GET /v1/cloudsnaps"), ("cs drill list db", "GET /v1/drills")] {
        for (volume, status) in [
            (ok(crate::support::volume("60", "db")), 0),
            (fail(404, "volume_not_found", "there is no such volume"), 4),
        ] {
            let fake = Fake::with_defaults(vec![("GET /v1/volumes/db", volume), (route, ok(none.clone()))]);
            let ran = fake.run(line);
            assert_eq!(ran.status, status, "{line} {ran:?}");
        }
    }
}
