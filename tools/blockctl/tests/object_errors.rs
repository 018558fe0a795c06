//! Mistakes in files of objects: each error names the place and the next action.

use crate::{
    objects::world,
    support::{Fake, Ran, Reply, list, ok, reply},
};
use serde_json::json;
use std::fs;

/// Runs `apply` on a file.
fn apply(text: &str) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.yaml");
    fs::write(&path, text).unwrap();
    Fake::start(world(&[], &[])).run(&format!("apply --dry-run -f {}", path.display()))
}

#[test]
fn mistake_has_a_place_and_a_next_action() {
    const STORK: &str = "apiVersion: stork.libopenstorage.org/v1alpha1\nkind: ";
    for (text, place, hint) in [
        (
            format!(
                "{STORK}SchedulePolicy\nmetadata: {{name: p}}\npolicy:\n  interval:\n    intervalMinutes: '60'\n"
            ),
            "line 6: policy.interval.intervalMinutes: ",
            "write a number without quotes",
        ),
        (
            format!("{STORK}ApplicationBackup\nmetadata: {{name: b}}\nspec: {{namespace: [a]}}\n"),
            "line 4: spec.namespace: unknown field, `namespaces` is expected",
            "correct the field",
        ),
        (
            format!("{STORK}ApplicationBackups\nmetadata: {{name: b}}\n"),
            "line 2: kind: unknown kind `ApplicationBackups` of stork",
            "`apiVersion` and `kind` are",
        ),
        (
            format!(
                "{STORK}BackupLocation\nmetadata: {{name: l}}\nlocation:\n  type: s3\n  path: b\n  secretConfig: keys\n"
            ),
            "line 7: location.secretConfig: there is no Secret/keys",
            "apply the secret in the same call",
        ),
        (
            "apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\ndata: {accessKeyID: '?'}\n---\n"
                .to_owned()
                + STORK
                + "BackupLocation\nmetadata: {name: l}\nlocation: {type: s3, path: b, secretConfig: keys}\n",
            "line 4: data.accessKeyID: base64 is expected",
            "encode the value with `base64 -w0`",
        ),
        (
            "apiVersion: v1\nkind: List\nitems: []\n".to_owned(),
            "line 2: kind: unknown kind `List`",
            "write its items",
        ),
        (
            format!("{STORK}Rule\nmetadata:\n\tname: r\n"),
            "line 4: invalid YAML: tabs",
            "fields are indented with spaces",
        ),
        ("apiversion: blockd/v1\nKind: Rule\n".to_owned(), "line 1: kind: missing", "correct the field"),
        (String::new(), "line 1: no objects", "write documents with"),
        (
            "apiVersion: blockd/v1\nkind: VolumeBackup\nmetadata: {name: 2024}\nspec: {volume: a}\n"
                .to_owned(),
            "line 3: metadata.name: ",
            "write the value in quotes",
        ),
    ] {
        let ran = apply(&text);
        let lines: Vec<&str> = ran.stderr.lines().collect();
        assert!(ran.status == 2 && lines.len() == 2, "{ran:?}");
        assert!(lines[0].starts_with("error: ") && lines[0].contains(place), "{place}: {ran:?}");
        assert!(lines[1].starts_with("hint: ") && lines[1].contains(hint), "{hint}: {ran:?}");
    }
}

#[test]
fn rule_without_volumes_has_a_warning() {
    let rule = |labels: &str| {
        apply(&format!(
            "apiVersion: stork.libopenstorage.org/v1\nkind: Rule\nmetadata: {{name: r}}\nrules:\n- podSelector: {{{labels}}}\n  actions: [{{type: command, value: sync}}]\n"
        ))
    };
    let words = "line 4: rules: no volume has these labels: the rule is assigned to none";
    assert!(rule("app: none").stderr.contains(words), "{:?}", rule("app: none"));
    assert!(!rule("").stderr.contains("no volume"));
}

#[test]
fn failing_location_of_a_backup_is_named_by_its_field() {
    let error = json!({ "code": "store_unreachable", "message": "no answer", "settings": ["s3-endpoint"] });
    let fake = Fake::with_defaults(vec![
        ("GET /v1/credentials", ok(list(json!([reply("GET /v1/credentials/nas")])))),
        ("GET /v1/cloudsnaps", Reply::Json(502, json!({ "error": error }))),
    ]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.yaml");
    for (kind, spec) in [
        ("VolumeBackup", "{volume: NewVol, backupLocation: nas}"),
        ("VolumeRestore", "{backupName: b, destinationVolume: new, backupLocation: nas}"),
    ] {
        let text = format!(
            "apiVersion: blockd/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec:\n  {}\n",
            &spec[1..spec.len() - 1].replace(", ", "\n  ")
        );
        fs::write(&path, text).unwrap();
        let ran = fake.run(&format!("apply -f {}", path.display()));
        assert!(ran.stderr.contains(": spec.backupLocation: "), "{ran:?}");
        assert!(ran.stderr.contains("hint: check the location in `spec.backupLocation`\n"), "{ran:?}");
        assert!(!ran.stderr.contains("--s3-endpoint"), "{ran:?}");
    }
}
