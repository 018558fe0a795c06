//! `apply`, `diff` and `get` of objects: what is asked of the daemon, in which order, and what is not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use std::path::PathBuf;
use support::{Fake, Reply, fail, ok, volume};

fn rule(name: &str, volumes: &[&str]) -> Value {
    json!({ "name": name, "quiesce": { "preCommand": "sync" }, "volumes": volumes, "groups": [], "schedules": [] })
}

fn world(rules: &[Value], schedules: &[Value]) -> Vec<(&'static str, Reply)> {
    vec![
        ("GET /v1/rules", ok(json!({ "rules": rules }))),
        ("GET /v1/credentials", ok(json!({ "credentials": [] }))),
        ("GET /v1/sched-policies", ok(json!({ "policies": [] }))),
        ("GET /v1/schedules", ok(json!({ "schedules": schedules }))),
        ("GET /v1/volumes", ok(json!({ "volumes": [volume("1", "a"), volume("2", "b")] }))),
        ("GET /v1/tasks", ok(json!({ "tasks": [] }))),
    ]
}

fn file(dir: &tempfile::TempDir, rules: &[(&str, &str)]) -> PathBuf {
    let path = dir.path().join("rules.yaml");
    let one = |(name, volumes): &(&str, &str)| {
        format!(
            "apiVersion: blockd/v1\nkind: Rule\nmetadata: {{name: {name}}}\nspec: {{preCommand: sync, volumes: [{volumes}]}}\n"
        )
    };
    std::fs::write(&path, rules.iter().map(one).collect::<Vec<_>>().join("---\n")).unwrap();
    path
}

fn changes(fake: &Fake) -> Vec<String> {
    let lines = fake.seen().into_iter().map(|seen| seen.line);
    lines.filter(|line| !line.starts_with("GET ")).collect()
}

#[test]
fn what_cannot_have_a_rule_is_told_before_anything_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let rules = [rule("pg", &["a"]), rule("other", &["b"])];
    for (volumes, words) in
        [("gone", "there is no volume gone"), ("a, b", "volume b has the rule other already")]
    {
        let path = file(&dir, &[("pg", volumes)]);
        for command in ["apply", "apply --dry-run", "diff"] {
            let fake = Fake::start(world(&rules, &[]));
            let ran = fake.run(&format!("{command} -f {}", path.display()));
            assert!(ran.status != 0 && ran.stderr.contains(words), "{command} {ran:?}");
            assert_eq!(changes(&fake), Vec::<String>::new());
        }
    }
    // Also not the rule itself.
    let fake = Fake::start(world(&[], &[]));
    let ran = fake.run(&format!("apply -f {}", file(&dir, &[("new", "gone")]).display()));
    assert!(ran.status != 0 && changes(&fake).is_empty(), "{ran:?}");
}

#[test]
fn volumes_get_a_rule_before_others_lose_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, &[("pg", "b")]);
    let mut script = world(&[rule("pg", &["a"])], &[]);
    script.push(("POST /v1/rules/pg/assign", fail(500, "internal", "no")));
    script.push(("POST /v1/rules/pg/unassign", ok(rule("pg", &[]))));
    let fake = Fake::start(script);
    let ran = fake.run(&format!("apply -f {}", path.display()));
    assert_ne!(ran.status, 0, "{ran:?}");
    assert_eq!(changes(&fake), ["POST /v1/rules/pg/assign"], "a keeps what it has");

    // From one rule to another one of the same call: never without one.
    let path = file(&dir, &[("pg", ""), ("other", "a")]);
    let mut script = world(&[rule("pg", &["a"]), rule("other", &[])], &[]);
    script.push(("POST /v1/rules/other/assign", ok(rule("other", &["a"]))));
    let fake = Fake::start(script);
    let ran = fake.run(&format!("apply -f {}", path.display()));
    assert_eq!((ran.status, changes(&fake)), (0, vec!["POST /v1/rules/other/assign".to_owned()]), "{ran:?}");
}

#[test]
fn schedules_without_a_name_are_left_out_of_what_is_to_be_applied() {
    const UUID: &str = "078557a3-26c7-49b1-9822-34e6f816c2d1";
    let schedule = |name: Option<&str>, uuid: &str| {
        json!({
            "uuid": uuid, "name": name, "selector": { "volume": "1" }, "credentials": [], "credentialNames": [],
            "rules": [{ "when": "daily @21:00" }], "schedule": "daily @21:00", "retain": { "keep_last": 7 }, "local": { "keep_last": 3 },
            "full": false, "jitterSeconds": 0, "priority": "normal", "paused": false,
            "created": "2019-01-16T21:51:53Z", "nextRun": null, "lastRun": null
        })
    };
    let schedules = [schedule(None, UUID), schedule(Some("nightly"), "178557a3-26c7-49b1-9822-34e6f816c2d1")];
    let fake = Fake::start(world(&[], &schedules));
    let ran = fake.run("get VolumeBackupSchedule -o yaml");
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.stdout.contains("name: nightly") && !ran.stdout.contains(UUID), "{ran:?}");
    assert!(ran.stderr.contains(UUID) && ran.stderr.contains("left out"), "{ran:?}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all.yaml");
    std::fs::write(&path, &ran.stdout).unwrap();
    let ran = fake.run(&format!("apply --dry-run -f {}", path.display()));
    assert_eq!(ran.status, 0, "{ran:?}");
    let ran = fake.run(&format!("get VolumeBackupSchedule {UUID} -o yaml"));
    assert!(ran.stdout.contains(UUID) && ran.stderr.contains("has no name"), "{ran:?}");
    assert!(fake.run("get VolumeBackupSchedule").stdout.contains(UUID));
}
