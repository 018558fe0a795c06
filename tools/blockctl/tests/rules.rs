//! Rules of objects and their volumes.

use crate::{
    objects::{rule, rules_file, world},
    support::{Fake, fail, list, ok, volume},
    terminal::on_terminal,
};
use serde_json::{Value, json};

#[test]
fn invalid_rule_target_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rules = [rule("pg", &["a"]), rule("other", &["b"])];
    for (volumes, words) in
        [("gone", "there is no volume gone"), ("a, b", "volume b has the rule other already")]
    {
        let path = rules_file(&dir, &[("pg", volumes)]);
        for command in ["apply", "apply --dry-run", "diff"] {
            let fake = Fake::start(world(&rules, &[]));
            let ran = fake.run(&format!("{command} -f {}", path.display()));
            assert!(ran.status != 0 && ran.stderr.contains(words), "{command} {ran:?}");
            assert_eq!(fake.changes(), Vec::<String>::new());
        }
    }
    // Also not the rule itself.
    let fake = Fake::start(world(&[], &[]));
    let ran = fake.run(&format!("apply -f {}", rules_file(&dir, &[("new", "gone")]).display()));
    assert!(ran.status != 0 && fake.changes().is_empty(), "{ran:?}");
}

#[test]
fn volumes_get_a_rule_before_others_lose_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = rules_file(&dir, &[("pg", "b")]);
    let mut script = world(&[rule("pg", &["a"])], &[]);
    script.push(("POST /v1/rules/pg/assign", fail(500, "internal", "no")));
    script.push(("POST /v1/rules/pg/unassign", ok(rule("pg", &[]))));
    let fake = Fake::start(script);
    let ran = fake.run(&format!("apply -f {}", path.display()));
    assert_ne!(ran.status, 0, "{ran:?}");
    assert_eq!(fake.changes(), ["POST /v1/rules/pg/assign"], "a keeps its rule");

    // From one rule to another one of the same call: never without one.
    let path = rules_file(&dir, &[("pg", ""), ("other", "a")]);
    let mut script = world(&[rule("pg", &["a"]), rule("other", &[])], &[]);
    script.push(("POST /v1/rules/other/assign", ok(rule("other", &["a"]))));
    let fake = Fake::start(script);
    let ran = fake.run(&format!("apply -f {}", path.display()));
    assert_eq!((ran.status, fake.changes()), (0, vec!["POST /v1/rules/other/assign".to_owned()]), "{ran:?}");
}

#[test]
fn rules_of_one_volume_are_refused_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rules.yaml");
    let mut labelled = volume("1", "a");
    labelled["labels"] = json!({ "app": "mysql" });
    let daemon = |rules: &[Value]| {
        let mut script = world(rules, &[]);
        script.retain(|(line, _)| *line != "GET /v1/volumes");
        script.push(("GET /v1/volumes", ok(list(json!([labelled])))));
        Fake::start(script)
    };
    let foreign = |name: &str| {
        format!(
            "apiVersion: stork.libopenstorage.org/v1alpha1\nkind: Rule\nmetadata: {{name: {name}}}\nrules:\n- podSelector: {{app: mysql}}\n  actions: [{{type: command, value: sync}}]\n---\n"
        )
    };
    let native = |name: &str| {
        format!(
            "apiVersion: blockd/v1\nkind: Rule\nmetadata: {{name: {name}}}\nspec: {{preCommand: sync, volumes: [a]}}\n---\n"
        )
    };
    let hint = "omit `podSelector` of one: it runs for the objects that name it";
    for (texts, hint) in [
        ([foreign("pre"), foreign("other")], hint),
        ([foreign("other"), foreign("pre")], hint),
        ([native("pre"), native("other")], "leave it out of one of the rules"),
    ] {
        std::fs::write(&path, texts.concat()).unwrap();
        for (command, status) in [("apply", 5), ("apply --dry-run", 5), ("diff", 1)] {
            let fake = daemon(&[rule("pre", &["a"])]);
            let ran = fake.run(&format!("{command} -f {}", path.display()));
            assert!(ran.status == status && ran.stderr.contains(hint), "{command} {ran:?}");
            assert!(ran.stderr.contains(": volume a is one of Rule/"), "{command} {ran:?}");
            assert_eq!(fake.changes(), Vec::<String>::new());
        }
    }
    // Alone, the rule that has the volume is named.
    std::fs::write(&path, foreign("other")).unwrap();
    let ran = daemon(&[rule("pre", &["a"])]).run(&format!("apply -f {}", path.display()));
    let words = "volume a has the rule pre already: unassign that first (`blockctl rule unassign pre --volume a`)\nhint: name both rules";
    assert!(ran.status == 5 && ran.stderr.contains(words), "{ran:?}");
}

#[test]
fn group_without_members_loses_its_rule_by_name() {
    let mut assigned = rule("pg", &["a"]);
    assigned["groups"] = json!(["empty", "a"]);
    let daemon = || {
        Fake::with_defaults(vec![
            ("GET /v1/volumes", ok(list(json!([volume("1", "a"), volume("2", "b")])))),
            ("GET /v1/rules/pg", ok(assigned.clone())),
            ("POST /v1/rules/pg/unassign", ok(assigned.clone())),
        ])
    };
    // A volume of the rule comes first; a volume that it lacks is reported by the daemon.
    for (given, sent) in [
        ("empty", json!({ "group": "empty" })),
        ("a", json!({ "volume": "a" })),
        ("b", json!({ "volume": "b" })),
    ] {
        let fake = daemon();
        let ran = fake.run(&format!("rule unassign pg {given}"));
        let body = fake.seen().pop().unwrap().body;
        assert_eq!((ran.status, body), (0, sent), "{given} {ran:?}");
    }
}

#[test]
fn used_rule_is_refused_before_the_question() {
    let fake = Fake::with_defaults(Vec::new());
    let ran = on_terminal(&fake, "rule delete pg", "y\n");
    assert!(ran.stdout.contains("rule pg is assigned to db, group shop, schedule nightly"), "{ran:?}");
    assert!(!ran.stdout.contains("[y/N]") && fake.changes().is_empty(), "{ran:?}");
    assert_eq!(ran.status, i32::from(blockd_api::ErrorCode::RuleInUse.exit_status()));
    // A rule without users is deleted.
    let free = Fake::with_defaults(vec![("GET /v1/rules/pg", ok(rule("pg", &[])))]);
    let ran = on_terminal(&free, "rule delete pg", "y\n");
    assert!(ran.stdout.contains("[y/N]") && free.changes() == ["DELETE /v1/rules/pg"], "{ran:?}");
}
