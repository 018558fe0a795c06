use super::{reader::Reader, *};
use blockd_api::schedules::{CreateSchedule, UpdateSchedule};
use blockd_schedule::Jitter;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

const REFUSED: &str = include_str!("../../tests/objects/refused.txt");
const ACCEPTED: &str = include_str!("../../tests/objects/accepted.txt");

/// Case of a file: object, expectation, and for accepted ones the request and the warnings.
struct Case<'a> {
    text: String,
    expected: &'a str,
    request: &'a str,
    warnings: Vec<&'a str>,
}

fn cases(text: &str) -> impl Iterator<Item = Case<'_>> {
    text.split("\n=== ").skip(1).map(|case| {
        let (head, rest) = case.split_once('\n').unwrap_or((case, ""));
        let (kind, expected) = head.split_once(" =>").unwrap();
        let (version, kind) = kind.split_once(' ').unwrap_or((API_VERSION, kind));
        let (mut request, mut warnings, mut body) = ("", Vec::new(), rest);
        while let Some((line, rest)) = body.split_once('\n') {
            match line.split_at_checked(4) {
                Some((">>> ", line)) => request = line,
                Some(("!!! ", line)) => warnings.push(line),
                _ => break,
            }
            body = rest;
        }
        let text = text_of(kind, body).replace(API_VERSION, version);
        Case { text, expected: expected.trim(), request, warnings }
    })
}

fn text_of(kind: &str, body: &str) -> String {
    format!("apiVersion: {API_VERSION}\nkind: {kind}\nmetadata: {{name: x}}\n{body}\n")
}

fn parse_in(dir: &Path, text: &str) -> Result<Vec<Object>, Vec<String>> {
    let mut reader = Reader::default();
    reader.add(text, "test.yaml", dir);
    let found = reader.finish().map(|found| found.objects);
    found.map_err(|found| found.values().flatten().map(ToString::to_string).collect())
}

fn problems(text: &str) -> Vec<String> {
    parse_in(Path::new("/dir"), text).unwrap_err()
}

fn object(kind: Kind, body: &str) -> Object {
    parse_in(Path::new("/dir"), &text_of(&kind.to_string(), body)).unwrap().remove(0)
}

fn schedule(text: &str) -> CreateSchedule {
    let object = parse_in(Path::new("/dir"), text).unwrap().remove(0);
    let Body::Schedule(schedule) = object.body else { panic!("{object:?}") };
    schedule.request(&object.name)
}

fn request(object: &Object) -> Value {
    let name = &object.name;
    match &object.body {
        Body::Location(location) => {
            json!(location.request(&name.as_str().parse().unwrap(), &object.labels).unwrap())
        }
        Body::Policy(rules) => json!(rules.0),
        Body::Rule(hook) => json!(hook.quiesce().unwrap()),
        Body::Backup(backup) => json!(backup.request(name)),
        Body::Schedule(schedule) => json!(schedule.request(name)),
        Body::Drill(drill) => json!(drill.request(name)),
        Body::Snapshot(_) | Body::Restore(_) | Body::Clone(_) => Value::Null,
    }
}

/// Returns true if JSON has at least the given fields.
fn has(whole: &Value, part: &Value) -> bool {
    match part {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().all(|(name, part)| has(whole.get(name).unwrap_or(&Value::Null), part))
        }
        part => whole == part,
    }
}

/// Creates a directory with the secrets of all stores.
fn dir_with_secret() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    for key in "AWS_ACCESS_KEY_ID=A AWS_SECRET_ACCESS_KEY=S AZURE_ACCOUNT_NAME=acct AZURE_ACCOUNT_KEY=K \
        GOOGLE_PROJECT_ID=proj GOOGLE_SERVICE_ACCOUNT_JSON_KEY={} OS_AUTH_URL=https://h/v3 OS_USERNAME=u \
        OS_PASSWORD=P OS_PROJECT_NAME=proj"
        .split(' ')
    {
        let (key, value) = key.split_once('=').unwrap();
        std::fs::write(secret.join(key), value).unwrap();
    }
    dir
}

#[test]
fn kinds_have_several_names() {
    for text in [
        "VolumeBackup",
        "volumebackups",
        "vb",
        "VB",
        "applicationbackups.stork.libopenstorage.org",
        "snapshot",
    ] {
        assert_eq!(text.parse(), Ok(Kind::VolumeBackup), "{text}");
    }
    assert_eq!("schedulepolicies".parse(), Ok(Kind::SchedulePolicy));
    for kind in Kind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    assert!("Volume".parse::<Kind>().unwrap_err().contains("VolumeRestore or VolumeClone"));
}

#[test]
fn invalid_object_is_refused_with_line_and_field() {
    for Case { text, expected, .. } in cases(REFUSED) {
        let found = problems(&text);
        let is_it = match expected.strip_suffix('…') {
            Some(beginning) => found[0].starts_with(beginning),
            None => found[0] == expected,
        };
        assert!(found.len() == 1 && is_it, "{text}: {found:?}");
        assert!(!found[0].contains("planted") && !found[0].contains("4711"), "{found:?}");
    }
}

#[test]
fn accepted_object_has_view_and_request() {
    let dir = dir_with_secret();
    let json = |text: &str| -> Value {
        serde_json::from_str(&text.replace("DIR", dir.path().to_str().unwrap())).unwrap()
    };
    for Case { text, expected, request: wanted, warnings } in cases(ACCEPTED) {
        let first = parse_in(dir.path(), &text).unwrap_or_else(|found| panic!("{text}: {found:?}")).remove(0);
        assert!(expected.is_empty() || view(&first.body) == json(expected), "{text}: {}", first.view());
        assert!(wanted.is_empty() || has(&request(&first), &json(wanted)), "{text}: {:#}", request(&first));
        assert!(!format!("{first:?}").contains("planted") && !first.view().to_string().contains("planted"));
        let found: Vec<String> = first.warnings.iter().map(ToString::to_string).collect();
        let is_it = |(found, expected): (&String, &&str)| found.starts_with(*expected);
        assert!(found.len() == warnings.len() && found.iter().zip(&warnings).all(is_it), "{text}: {found:?}");
        // A view has no secrets, no schemes of endpoints, no time to live, and not the way of a restore.
        let again = parse_in(dir.path(), &yaml(&first.view())).unwrap().remove(0);
        let lasting = |object: &Object| {
            let mut request = request(object);
            request.as_object_mut().map(|fields| fields.remove("expiresAt"));
            request
        };
        if first.kind != Kind::BackupLocation {
            assert_eq!((first.view(), lasting(&first)), (again.view(), lasting(&again)));
        }
    }
}

#[test]
fn backup_has_labels_and_namespace_of_its_metadata() {
    let metadata = "{name: x, namespace: shop, labels: {app: db}}";
    let texts = [
        text_of("VolumeBackup", "spec: {volume: v}"),
        text_of("ApplicationBackup", "spec: {namespaces: [shop]}")
            .replace(API_VERSION, "stork.libopenstorage.org/v1"),
    ];
    for text in texts.map(|text| text.replace("{name: x}", metadata)) {
        let object = parse_in(Path::new("/dir"), &text).unwrap().remove(0);
        let labels = json!({ "app": "db", "namespace": "shop" });
        assert_eq!(request(&object)["labels"], labels, "{text}");
        assert_eq!(object.view()["metadata"]["labels"], labels, "{text}");
        assert!(object.warnings.is_empty(), "{:?}", object.warnings);
    }
    let text = text_of("VolumeBackup", "spec: {volume: v}").replace("{name: x}", "{name: x, labels: []}");
    assert!(problems(&text)[0].starts_with("line 3: metadata.labels: invalid type"), "{:?}", problems(&text));
}

#[test]
fn annotations_and_labels_are_kept() {
    let long = "x".repeat(300);
    let metadata =
        format!("{{name: x, labels: {{app: db}}, annotations: {{example.com/team: dba, long: {long}}}}}");
    let template = "spec: {schedulePolicyName: p, template: {spec: {volume: v}}}";
    let stork = text_of(
        "ApplicationBackupSchedule",
        "spec: {schedulePolicyName: p, template: {spec: {namespaces: [a]}}}",
    );
    let texts = [
        text_of("VolumeBackup", "spec: {volume: v}"),
        text_of("VolumeBackupSchedule", template),
        stork.replace(API_VERSION, "stork.libopenstorage.org/v1"),
    ];
    for text in texts.map(|text| text.replace("{name: x}", &metadata)) {
        let object = parse_in(Path::new("/dir"), &text).unwrap().remove(0);
        assert_eq!(
            request(&object)["labels"],
            json!({ "annotation/example.com/team": "dba", "app": "db" }),
            "{text}"
        );
        let kept =
            json!({ "name": "x", "labels": { "app": "db" }, "annotations": { "example.com/team": "dba" } });
        assert_eq!(object.view()["metadata"], kept, "{text}");
        let warnings: Vec<String> = object.warnings.iter().map(ToString::to_string).collect();
        let beginning = format!("line 3: {object}: metadata.annotations.long: ignored: ");
        assert!(warnings.len() == 1 && warnings[0].starts_with(&beginning), "{warnings:?}");
        let again = parse_in(Path::new("/dir"), &yaml(&object.view())).unwrap().remove(0);
        assert!(again.view() == object.view() && again.warnings.is_empty(), "{again:?}");
    }
    let rule = text_of("Rule", "rules: [{podSelector: {}, actions: [{type: command, value: sync}]}]");
    for text in [
        text_of("SchedulePolicy", "policy: {interval: {intervalMinutes: 15}}"),
        text_of("Rule", "spec: {preCommand: sync}"),
        text_of("BackupLocation", "location: {type: local, path: /b}"),
        rule.replace(API_VERSION, "stork.libopenstorage.org/v1"),
    ] {
        let metadata = "{name: x, namespace: shop, labels: {app: db}, annotations: {team: dba}}";
        let text = text.replace("{name: x}", metadata);
        let object = parse_in(Path::new("/dir"), &text).unwrap().remove(0);
        assert_eq!(object.labels.to_string(), "annotation/team=dba,app=db,namespace=shop", "{text}");
        let again = parse_in(Path::new("/dir"), &yaml(&object.view())).unwrap().remove(0);
        assert!(again.labels == object.labels && object.warnings.is_empty(), "{object:?}");
    }
    // Other objects have no labels.
    let text = text_of("VolumeClone", "spec: {sourceVolume: v}").replace("{name: x}", &metadata);
    let object = parse_in(Path::new("/dir"), &text).unwrap().remove(0);
    let warning = object.warnings[0].to_string();
    assert!(warning.contains("metadata.annotations (line 3), metadata.labels (line 3)"), "{warning}");
}

/// The scripts of a rule of Stork, whose command holds from the one until the other.
#[test]
fn held_command_ends_after_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let [log, ended] = ["log", "ended"].map(|name| dir.path().join(name));
    let value = format!("echo held >{}; ${{WAIT_CMD}}; echo released >{}", log.display(), ended.display());
    let text = text_of(
        "Rule",
        &format!("rules: [{{actions: [{{type: command, background: true, value: '{value}'}}]}}]"),
    )
    .replace(API_VERSION, "stork.libopenstorage.org/v1alpha1");
    let Body::Rule(hook) = parse_in(dir.path(), &text).unwrap().remove(0).body else { panic!("no rule") };
    let quiesce = hook.quiesce().unwrap();
    let run = |command: Option<String>| {
        let mut shell = std::process::Command::new("sh");
        shell
            .args(["-c", &command.unwrap()])
            .env("RUNTIME_DIRECTORY", dir.path())
            .env("BLOCKD_SNAPSHOT", "1-2");
        assert!(shell.status().unwrap().success());
    };
    // The reader of a pipe waits for its writer.
    assert!(std::process::Command::new("mkfifo").arg(&ended).status().unwrap().success());
    let (sender, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(std::fs::read_to_string(ended)));
    run(quiesce.pre_command);
    let hold = dir.path().join("x-0-1-2");
    assert!(hold.join("held").exists() && std::fs::read_to_string(&log).unwrap() == "held\n");
    assert!(end.try_recv().is_err(), "the command holds");
    run(quiesce.post_command);
    let released = end.recv_timeout(std::time::Duration::from_secs(60));
    assert_eq!(released.unwrap().unwrap(), "released\n");
    assert!(!hold.exists());
}

#[test]
fn first_error_of_each_object_is_reported() {
    let two = format!("{}---\n{}", text_of("VolumeClone", "spec: {}"), text_of("VolumeClone", "spec: []"));
    let found = problems(&two);
    assert!(found.len() == 2 && found[1].starts_with("line 9: spec: a list is not expected"), "{found:?}");
    assert!(problems("a: [\n")[0].starts_with("line 1: invalid YAML: "));
    let joined = text_of("VolumeClone", "spec: {}").repeat(2);
    let second = "line 5: invalid YAML: a second field `apiVersion`: separate documents with a line `---`";
    assert_eq!(problems(&joined), [second]);
    // Other fields begin no document.
    for (text, field) in [
        ("metadata: {name: a, name: b}\n", "name"),
        ("spec:\n  kind: a\n  kind: b\n", "kind"),
        ("spec: 1\nspec: 2\n", "spec"),
    ] {
        let found = problems(text);
        assert!(found.len() == 1 && found[0].ends_with(&format!(": a second field `{field}`")), "{found:?}");
    }
    assert_eq!(problems("# nothing\n"), ["line 1: no objects"]);
    assert_eq!(problems("[1]"), ["line 1: a mapping is expected"]);
    assert_eq!(problems("apiVersion: blockd/v1\nkind: BackupLocation\n"), ["line 1: metadata: missing"]);
    let one = text_of("VolumeClone", "spec: {sourceVolume: v}");
    let twice = problems(&format!("{one}---\n{one}"));
    assert_eq!(twice, ["line 6: metadata.name: VolumeClone/x is in line 1 already"]);
}

#[test]
fn minutes_are_the_same_in_every_time_zone() {
    let rules = |when: &str| {
        policy::Rules::of(&[blockd_api::schedules::Rule { when: when.parse().unwrap(), retain: None }])
    };
    assert_eq!(rules("periodic 60 Europe/Berlin"), rules("periodic 60"));
    assert_ne!(rules("daily 01:00 Europe/Berlin"), rules("daily 01:00"));
}

#[test]
fn relative_directory_matches_stored_one() {
    let here = std::env::current_dir().unwrap();
    for (dir, path, kept) in
        [("", "backups", here.join("backups")), ("/dir", "./backups", PathBuf::from("/dir/backups"))]
    {
        let text = text_of("BackupLocation", &format!("location: {{type: local, path: {path}}}"));
        let object = parse_in(Path::new(dir), &text).unwrap().remove(0);
        assert_eq!(object.view()["location"]["path"], kept.to_str().unwrap());
        assert_eq!(request(&object)["provider"], json!({ "type": "local", "path": kept }));
    }
}

#[test]
fn schedule_update_has_only_differing_fields() {
    let accepted: Vec<CreateSchedule> = cases(ACCEPTED)
        .filter(|case| case.text.contains("VolumeBackupSchedule"))
        .map(|case| schedule(&case.text))
        .collect();
    let [one, gold, ruled, _, located, ..] = accepted.as_slice() else { panic!("{accepted:?}") };
    let update = |wanted: &CreateSchedule, is: &CreateSchedule| schedule::update(is, wanted.clone());
    let rule = ruled.rule_name.clone();
    let unruled = CreateSchedule { rule_name: None, ..ruled.clone() };
    assert_eq!(
        (update(ruled, &unruled).rule_name, update(&unruled, ruled).rule_name),
        (Some(rule), Some(None))
    );
    assert_eq!(update(located, located).retain_at, None);
    let without = CreateSchedule { retain_at: Vec::new(), ..located.clone() };
    assert_eq!(update(located, &without).retain_at.map(|at| at.len()), Some(2));
    assert_eq!(update(&without, located).retain_at, Some(Vec::new()));
    let other = CreateSchedule { jitter_seconds: Some(Jitter { max_s: 1 }), ..gold.clone() };
    let expected =
        UpdateSchedule { jitter_seconds: Some(Some(Jitter { max_s: 9 })), ..UpdateSchedule::default() };
    assert_eq!(update(gold, &other), expected);
    assert!(schedule::fixed(&other, gold).is_empty());
    assert_eq!(
        schedule::fixed(gold, one),
        ["spec.template.spec.backupLocation", "spec.template.spec.volume", "spec.schedulePolicyName"]
    );
}

#[test]
fn rule_has_targets_and_clone_an_origin() {
    let spec = "spec: {preCommand: x, volumes: v}";
    let Body::Rule(hook) = object(Kind::Rule, spec).body else { panic!("no rule") };
    let [volumes, groups] =
        hook.targets().map(|list| list.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>()));
    assert_eq!((volumes, groups), (Some(vec!["volume v".to_owned()]), None));
    let spec = "spec: {sourceVolume: db, destinationVolume: db2}";
    let Body::Clone(mut clone) = object(Kind::VolumeClone, spec).body else { panic!("no clone") };
    let db = "db".parse().unwrap();
    let origin = volumes::snapshot_of(&db, clone.snapshot_name().unwrap()).to_string();
    assert_ne!(clone.snapshot_name(), clone.snapshot_name(), "an existing snapshot may be old");
    let is_of = |clone: &volumes::VolumeClone, origin: &str| clone.is_of(&db, origin);
    assert!(is_of(&clone, &origin) && !is_of(&clone, "db@mine") && !is_of(&clone, &format!("x{origin}")));
    clone.snapshot = Some("mine".parse().unwrap());
    assert!(is_of(&clone, "db@mine") && !is_of(&clone, &origin));
}

#[test]
fn example_file_is_parsed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/objects.yaml");
    let found = read_all(&[path]).unwrap().objects;
    let kinds: BTreeSet<Kind> = found.iter().map(|object| object.kind).collect();
    assert_eq!(kinds.len(), Kind::ALL.len());
}
