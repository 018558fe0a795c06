//! Documents and commands of other systems, as their users have them: the table `migration/table.txt`.

use crate::support::{Fake, Ran, list, ok, reply, snap, volume};
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

const TABLE: &str = include_str!("migration/table.txt");

/// Case of the table.
struct Case<'a> {
    system: &'a str,
    theirs: String,
    here: &'a str,
    status: i32,
    line: &'a str,
    /// Parts of stdout and stderr.
    parts: Vec<(char, &'a str)>,
}

fn cases() -> Vec<Case<'static>> {
    let case = |text: &'static str| {
        let mut lines = text.lines();
        let head: Vec<&str> = lines.next().unwrap().split('|').map(str::trim).collect();
        let [system, theirs, here, status] = head[..] else { panic!("{head:?}") };
        let line = lines.next().unwrap();
        let theirs = if system == "pxctl" { format!("`pxctl {line}`") } else { theirs.to_owned() };
        let parts = lines.map(|line| (line.chars().next().unwrap(), &line[2..])).collect();
        Case { system, theirs, here, status: status.parse().unwrap(), line, parts }
    };
    TABLE.split("\n=== ").skip(1).map(case).collect()
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/migration")
}

fn labelled(id: &str, name: &str, labels: &Value) -> Value {
    let mut found = volume(id, name);
    found["labels"] = labels.clone();
    found
}

/// Returns a list with one object, whose name the documents refer to.
fn named(of: &str, name: &str) -> Value {
    let mut found = reply(of)["items"].take();
    found[0]["name"] = json!(name);
    found
}

/// Starts a daemon with the cloud snapshot that the case names.
fn daemon_of_pxctl(case: &Case<'_>) -> Fake {
    let mut found = reply("GET /v1/cloudsnaps");
    (found["damaged"], found["failedCredentials"]) = (json!([]), json!([]));
    if case.line.contains("pqr9-cl1") {
        let numbers = case.line.rsplit_once('/').unwrap().1;
        found["items"][0]["cloudSnapshotId"] = json!(snap(numbers));
    }
    Fake::with_defaults(vec![("GET /v1/cloudsnaps", ok(found))])
}

/// Starts a daemon with the volumes of the documents and, unless the case makes locations, with locations
/// and a backup of another host.
fn daemon(case: &Case<'_>) -> Fake {
    let mysql = json!({ "app": "mysql", "namespace": "mysql-app" });
    let volumes = [
        labelled("59", "mysql-data", &mysql),
        labelled("61", "mysql-log", &mysql),
        labelled("63", "other", &json!({ "namespace": "mysql" })),
        labelled("65", "postgres-db", &json!({})),
    ];
    let (mut policies, mut rules) = (json!([]), json!([]));
    if case.line.contains("volumesnapshotschedule-") {
        rules = named("GET /v1/rules", "testRule");
    }
    let mut lists = vec![
        ("GET /v1/volumes", ok(list(json!(volumes)))),
        ("GET /v1/rules", ok(list(rules))),
        ("GET /v1/schedules", ok(list(json!([])))),
        ("GET /v1/snapshots", ok(list(json!([])))),
        ("PATCH /v1/volumes/mysql-data", ok(labelled("59", "mysql-data", &mysql))),
        ("POST /v1/volumes/mysql-data/clone", ok(volume("67", "clone"))),
        ("POST /v1/volumes/mysql-log/clone", ok(volume("69", "clone"))),
        ("POST /v1/volumes/mysql-data/snapshots", ok(reply("POST /v1/volumes/db/snapshots"))),
        ("POST /v1/credentials/default/default", ok(reply("GET /v1/credentials/nas"))),
        ("POST /v1/rules/mysql-presnap-rule/assign", ok(reply("POST /v1/rules"))),
    ];
    if case.system == "pxctl" {
        return daemon_of_pxctl(case);
    }
    let words = ["location", "/snapshot-", "velero"];
    let makes_locations = words.iter().any(|word| case.line.contains(word));
    if makes_locations && !case.line.contains("velero/") {
        lists.push(("GET /v1/credentials", ok(list(json!([])))));
        lists.push(("GET /v1/sched-policies", ok(list(json!([])))));
        lists.push(("GET /v1/tasks", ok(list(json!([])))));
        return Fake::with_defaults(lists);
    }
    let credential = |name: &str| {
        let mut found = reply("GET /v1/credentials/nas");
        found["name"] = json!(name);
        found
    };
    let name = if case.line.contains("velero") { "default" } else { "mysql" };
    let is_location = case.line.contains("location.yaml");
    let credentials: Vec<Value> = (!is_location).then(|| credential(name)).into_iter().collect();
    let backup = |number: &str, volume: &str| {
        let mut found = reply("GET /v1/cloudsnaps")["items"][0].take();
        (found["cloudSnapshotId"], found["volumeName"]) = (json!(snap(number)), json!(volume));
        found["volumeId"] = json!(number.split('-').next());
        (found["labels"], found["credentialName"]) = (mysql.clone(), json!(name));
        let (name, trigger) = match case.line.contains("restore-scheduled") {
            true => ("a-20190116220000", "Scheduled"),
            false => ("backup", "Manual"),
        };
        (found["name"], found["trigger"]) = (json!(name), json!(trigger));
        found
    };
    let cloudsnaps = if case.line.contains("applicationbackup-") || case.line.contains("velero/backup") {
        Vec::new()
    } else {
        vec![backup("59-71", "mysql-data"), backup("67-73", "mysql-new")]
    };
    if case.line.contains("schedule-") {
        policies = named("GET /v1/sched-policies", "testpolicy");
    }
    lists.push(("GET /v1/credentials", ok(list(json!(credentials)))));
    lists.push(("GET /v1/tasks", ok(list(json!([])))));
    lists.push(("GET /v1/sched-policies", ok(list(policies))));
    let list = json!({
        "items": cloudsnaps, "next": null, "damaged": [], "failedCredentials": [], "total": cloudsnaps.len()
    });
    lists.push(("GET /v1/cloudsnaps", ok(list)));
    Fake::with_defaults(lists)
}

/// Returns requests and output without what differs between runs.
fn transcript(case: &Case<'_>, fake: &Fake, ran: &Ran) -> String {
    let mut text = format!("$ blockctl {}\n", case.line);
    for seen in fake.seen().iter().filter(|seen| !seen.line.starts_with("GET ")) {
        let mut body = seen.body.clone();
        if body["expiresAt"].is_string() {
            body["expiresAt"] = json!("EXPIRES");
        }
        text += &format!("> {} {}\n", seen.line, without_clone_id(&body.to_string()));
    }
    text += &ran.stdout;
    ran.stderr.lines().for_each(|line| text += &format!("! {line}\n"));
    text + &format!("[exit status {}]\n\n", ran.status)
}

/// Replaces the random id of a snapshot that is taken for a clone.
fn without_clone_id(text: &str) -> String {
    let mut parts = text.split("clone-");
    let mut found = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let id: String = part.chars().take(36).collect();
        let is_id = uuid::Uuid::try_parse(&id).is_ok();
        found += "clone-";
        found += if is_id { "ID" } else { "" };
        found += if is_id { &part[36..] } else { part };
    }
    found
}

#[test]
fn documents_and_commands_of_other_systems_work() {
    let mut text = String::new();
    let mut failed = Vec::new();
    for case in cases() {
        let fake = daemon(&case);
        let mut command = fake.command(case.line);
        let ran = Ran::of(command.current_dir(folder()).output().unwrap());
        let mut rest = [ran.stdout.as_str(), ran.stderr.as_str()];
        let mut has = |(stream, part): &(char, &str)| {
            let rest = &mut rest[usize::from(*stream == '!')];
            let found = rest.split_once(part);
            *rest = found.map_or("", |(_, after)| after);
            found.is_some()
        };
        let missing: Vec<_> = case.parts.iter().filter(|part| !has(part)).collect();
        if ran.status != case.status || !missing.is_empty() {
            failed.push(format!("{}: {missing:?} {ran:#?}", case.line));
        }
        if case.system != "pxctl" {
            text += &transcript(&case, &fake, &ran);
        }
    }
    insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
        insta::assert_snapshot!("migration", text);
    });
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn migration_page_has_the_rows_of_all_cases() {
    let page = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/migration.md");
    let page = fs::read_to_string(page).unwrap();
    let rows: Vec<String> =
        cases().iter().map(|case| format!("| {} | {} |", case.theirs, case.here)).collect();
    let missing: Vec<&String> = rows.iter().filter(|row| !page.contains(row.as_str())).collect();
    assert!(missing.is_empty(), "docs/migration.md lacks these rows:\n{missing:#?}");
    let tables = page.split("\n## ").filter(|section| {
        ["Portworx", "Stork", "KubeDB", "Velero"].iter().any(|system| section.starts_with(system))
    });
    let is_row = |line: &&str| line.starts_with("| ") && !line.ends_with("| blockd |");
    let shown: Vec<&str> = tables.flat_map(str::lines).filter(is_row).collect();
    let unknown: Vec<&&str> = shown.iter().filter(|line| !rows.iter().any(|row| row == **line)).collect();
    assert!(unknown.is_empty(), "no case shows these rows of docs/migration.md:\n{unknown:#?}");
}

#[test]
fn secrets_of_documents_are_not_printed() {
    for case in cases().iter().filter(|case| case.line.contains("secret") || case.line.contains("location")) {
        let fake = daemon(case);
        for line in [case.line.to_owned(), case.line.replace("apply", "diff")] {
            let ran = Ran::of(fake.command(&line).current_dir(folder()).output().unwrap());
            for secret in
                ["b7D9pA3214Vafo8432023ajksndas43242kjsnfdk", "wJalrXUtnFEMI", "aws-secret", "testKey"]
            {
                assert!(!format!("{ran:?}").contains(secret), "{ran:?}");
            }
        }
    }
}
