use super::{hook::label, schedule::ScheduleSpec, *};
use blockd_api::credentials::{AzureAuth, ProviderRequest, SwiftAuth};

const REFUSED: &str = include_str!("../../tests/objects/refused.txt");
const ACCEPTED: &str = include_str!("../../tests/objects/accepted.txt");

fn parse_in(dir: &Path, text: &str) -> Result<Vec<Object>, Vec<String>> {
    parse(text, "test.yaml", dir).map_err(|found| found.iter().map(ToString::to_string).collect())
}

fn problems(text: &str) -> Vec<String> {
    parse_in(Path::new("/dir"), text).unwrap_err()
}

fn text_of(kind: &str, body: &str) -> String {
    format!("apiVersion: blockd/v1\nkind: {kind}\nmetadata: {{name: x}}\n{body}\n")
}

fn object(kind: Kind, body: &str) -> Object {
    parse_in(Path::new("/dir"), &text_of(&kind.to_string(), body)).unwrap().remove(0)
}

fn provider(object: Object) -> ProviderRequest {
    let Body::Location(location) = object.body else { panic!("{object:?}") };
    location.request(&"x".parse().unwrap()).unwrap().provider
}

/// Returns kind, expectation and content of each case.
fn cases(text: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    text.split("\n=== ").skip(1).map(|case| {
        let (head, body) = case.split_once('\n').unwrap_or((case, ""));
        let (kind, expected) = head.split_once(" =>").unwrap();
        (kind, expected.trim(), body)
    })
}

#[test]
fn kinds_have_several_names() {
    for text in ["VolumeBackup", "volumebackups", "vb", "VB"] {
        assert_eq!(text.parse(), Ok(Kind::VolumeBackup), "{text}");
    }
    assert_eq!("schedulepolicies".parse(), Ok(Kind::SchedulePolicy));
    for kind in Kind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    assert!("Volume".parse::<Kind>().unwrap_err().to_string().contains("VolumeRestore or VolumeClone"));
}

#[test]
fn invalid_object_is_refused_with_line_and_field() {
    for (kind, expected, body) in cases(REFUSED) {
        let found = problems(&text_of(kind, body));
        let is_it = match expected.strip_suffix('…') {
            Some(beginning) => found[0].starts_with(beginning),
            None => found[0] == expected,
        };
        assert!(found.len() == 1 && is_it, "{body}: {found:?}");
        assert!(!found[0].contains("planted") && !found[0].contains("4711"), "{found:?}");
    }
    let message = problems(&text_of("Rule", "spec: {freezeFs: true}").replace("blockd/v1", "v2"));
    assert_eq!(message, ["line 1: apiVersion: unknown version \"v2\": write blockd/v1"]);
}

#[test]
fn views_round_trip_without_secrets() {
    for (kind, expected, body) in cases(ACCEPTED) {
        let first = object(kind.parse().unwrap(), body);
        if !expected.is_empty() {
            assert_eq!(view(&first.body), serde_json::from_str::<Value>(expected).unwrap(), "{body}");
        }
        assert!(!format!("{first:?}").contains("planted") && !first.view().to_string().contains("planted"));
        // The daemon reports no scheme of an endpoint, and how a restore was made.
        let again = parse_in(Path::new("/dir"), &yaml(&first.view())).unwrap().remove(0);
        if kind != "BackupLocation" {
            assert_eq!(first.view(), again.view());
        }
        if kind != "BackupLocation" && kind != "VolumeRestore" {
            assert_eq!(format!("{:?}", first.body), format!("{:?}", again.body));
        }
    }
}

#[test]
fn first_error_of_each_object_is_reported() {
    let two = format!("{}---\n{}", text_of("VolumeClone", "spec: {}"), text_of("VolumeClone", "spec: []"));
    let found = problems(&two);
    assert!(found.len() == 2 && found[1].starts_with("line 9: spec: a list is not expected"), "{found:?}");
    assert!(problems("a: [\n")[0].starts_with("line 1: invalid YAML: "));
    assert_eq!(problems("# nothing\n"), ["line 1: no objects"]);
    assert_eq!(problems("[1]"), ["line 1: a mapping is expected"]);
    assert_eq!(problems("apiVersion: blockd/v1\nkind: BackupLocation\n"), ["line 1: metadata: missing"]);
    let one = text_of("VolumeClone", "spec: {sourceVolume: v}");
    let twice = problems(&format!("{one}---\n{one}"));
    assert_eq!(twice, ["line 6: metadata.name: VolumeClone/x is in line 1 already"]);
}

#[test]
fn unsupported_cluster_kinds_name_their_replacement() {
    let found = problems(
        "apiVersion: stork.libopenstorage.org/v1alpha1
kind: ApplicationBackup
metadata: {name: backup, namespace: mysql-app}
spec: {backupLocation: mysql, namespaces: [mysql-app]}
---
apiVersion: v1
kind: Secret
metadata: {name: s3secret}
stringData: {secretAccessKey: planted}
",
    );
    for (found, expected) in found.iter().zip([
        "line 2: kind: ApplicationBackup is for clusters: write VolumeBackup",
        "line 7: kind: Secret is for clusters: a secret is a directory",
    ]) {
        assert!(found.starts_with(expected) && !found.contains("planted"), "{found}");
    }
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn location_with_missing_field_is_refused() {
    let body = "location: {type: azure, path: container}\n";
    let Body::Location(location) = object(Kind::BackupLocation, body).body else { panic!() };
    let error = location.request(&"offsite".parse().unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("BackupLocation/offsite: --provider azure needs"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("azureConfig")), "{error:?}");
}

/// Checks the policy of the custom resources that the fields are named after.
#[test]
fn policy_of_custom_resource_is_accepted() {
    let (_, _, body) = cases(ACCEPTED).next().unwrap();
    let text = text_of("SchedulePolicy", body).replace("blockd/v1", "stork.libopenstorage.org/v1alpha1");
    let Body::Policy(rules) = parse_in(Path::new(""), &text).unwrap().remove(0).body else { panic!() };
    let whens: Vec<String> = rules.0.iter().map(|rule| rule.when.to_string()).collect();
    assert_eq!(whens, ["periodic 60min", "daily @22:14", "weekly Thursday@22:13", "monthly 14@20:05"]);
    assert!(rules.0.iter().all(|rule| rule.retain.as_ref().is_some_and(|keep| keep.keep_last == 5)));
    let rules = |when: &str| {
        policy::Rules::of(&[blockd_api::schedules::Rule { when: when.parse().unwrap(), retain: None }])
    };
    assert_eq!(rules("periodic 60 Europe/Berlin"), rules("periodic 60"));
    assert_ne!(rules("daily 01:00 Europe/Berlin"), rules("daily 01:00"));
}

#[test]
fn location_of_custom_resource_becomes_credential() {
    let made = |body: &str| {
        let Body::Location(location) = object(Kind::BackupLocation, body).body else { panic!("{body}") };
        location.request(&"x".parse().unwrap()).unwrap()
    };
    let s3 = made(
        "location:\n  type: s3\n  path: bucket-name\n  sync: true\n  s3Config:\n    region: eu-west-1\n    accessKeyID: A\n    \
         secretAccessKey: planted\n    endpoint: \"http://h:9010\"\n    disableSSL: true\n",
    );
    let ProviderRequest::S3 { endpoint, region, bucket, access_key, secret_key, disable_ssl, .. } =
        s3.provider
    else {
        panic!("not S3")
    };
    assert_eq!((endpoint.as_str(), region.as_str(), bucket.as_str()), ("h:9010", "eu-west-1", "bucket-name"));
    assert_eq!((access_key.as_deref(), disable_ssl), (Some("A"), true));
    assert_eq!(secret_key.unwrap().value().unwrap().expose(), "planted");
    let azure = made(
        "location: {type: azure, path: c, azureConfig: {storageAccountName: a, storageAccountKey: k}, encryptionKey: p}",
    );
    assert_eq!(azure.encryption_passphrase.unwrap().value().unwrap().expose(), "p");
    assert!(matches!(azure.provider, ProviderRequest::Azure { auth: AzureAuth::AccountKey { .. }, .. }));
    let swift = made(
        "location: {type: swift, path: c, swiftConfig: {authURL: \"https://h/auth/v1.0\", user: u, key: k}}",
    );
    assert!(matches!(swift.provider, ProviderRequest::Swift { auth: SwiftAuth::V1 { .. }, .. }));
    let local = made("location: {type: local, path: below, limitUpload: 20MiB}");
    assert_eq!(local.connection.limit_upload_bytes_per_s, Some(20 << 20));
    assert_eq!(local.provider, ProviderRequest::Local { path: PathBuf::from("/dir/below") });
}

#[test]
fn storage_blocks_of_snapshots_are_understood() {
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
    let made = |blocks: &str| {
        let body = format!("spec: {{storageSecretName: secret, {blocks}}}");
        let text = text_of("BackupLocation", &body).replace("blockd/v1", "kubedb.com/v1alpha1");
        provider(parse_in(dir.path(), &text).unwrap().remove(0))
    };
    let ProviderRequest::S3 { endpoint, bucket, access_key, secret_key, .. } =
        made("s3: {endpoint: s3.amazonaws.com, bucket: kubedb-qa, prefix: \"\"}")
    else {
        panic!("not S3")
    };
    assert_eq!((endpoint.as_str(), bucket.as_str()), ("s3.amazonaws.com", "kubedb-qa"));
    assert_eq!((access_key.as_deref(), secret_key.unwrap().value().unwrap().expose()), (Some("A"), "S"));
    let ProviderRequest::Azure { account, container, .. } = made("azure: {container: c}") else { panic!() };
    assert_eq!((account.as_str(), container.as_str()), ("acct", "c"));
    let ProviderRequest::Google { project, .. } = made("gcs: {bucket: b}") else { panic!("not Google") };
    assert_eq!(project.as_deref(), Some("proj"));
    let ProviderRequest::Swift { auth, .. } = made("swift: {container: c}") else { panic!("not Swift") };
    assert!(matches!(auth, SwiftAuth::V3 { .. }));
    assert_eq!(made("local: {path: /repo}"), ProviderRequest::Local { path: PathBuf::from("/repo") });
}

/// Checks the storage blocks of KubeDB's own examples, with the metadata that `kubectl get` shows.
#[test]
fn ignored_fields_become_warnings_with_lines() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("secret")).unwrap();
    let ignored = |text: &str| {
        let object = parse_in(dir.path(), text).unwrap().remove(0);
        let warnings: Vec<String> = object.warnings.iter().map(ToString::to_string).collect();
        (view(&object.body)["prefix"].as_str().map(ToOwned::to_owned), warnings)
    };
    for (block, prefix, count) in [
        ("s3: {endpoint: 's3.amazonaws.com', bucket: kubedb-qa, prefix: demo}", Some("demo"), 2),
        ("gcs: {bucket: bucket-for-snapshot, prefix: /demo/}", Some("demo"), 2),
        ("azure: {container: bucket-for-snapshot, prefix: demo}", Some("demo"), 2),
        ("swift: {container: bucket-for-snapshot, prefix: demo}", Some("demo"), 2),
        ("local: {path: /repo, volumeSource: {emptyDir: {}}}", None, 3),
    ] {
        let secret = if count == 2 { "  storageSecretName: secret\n" } else { "" };
        let (found, warnings) = ignored(&format!(
            "apiVersion: kubedb.com/v1alpha1\nkind: BackupLocation\nmetadata:\n  creationTimestamp: 2017-06-28T12:14:48Z\n  name: local-snapshot\n  namespace: default\n  resourceVersion: \"2000\"\n  selfLink: /apis/x\n  uid: 617e3487-5bfb-11e7-bb52-08002711f4aa\n  labels:\n    kubedb.com/kind: Postgres\nspec:\n  databaseName: postgres-db\n{secret}  {block}\n  resources:\n    requests:\n      memory: \"64Mi\"\n      cpu: \"250m\"\n"
        ));
        assert_eq!((found.as_deref(), warnings.len()), (prefix, count), "{block}: {warnings:?}");
        assert!(warnings[0].starts_with("line 13: spec.databaseName: this is ignored"), "{warnings:?}");
    }
    let spec = "spec:\n  schedulePolicyName: p\n  template:\n    spec:\n      backupLocation: mysql\n      volume: db\n      reclaimPolicy: Delete";
    let (_, warnings) = ignored(&text_of("VolumeBackupSchedule", spec));
    assert!(warnings[0].starts_with("line 10: spec.template.spec.reclaimPolicy: this is ignored"));
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
        assert_eq!(provider(object), ProviderRequest::Local { path: kept });
    }
}

#[test]
fn schedule_becomes_request() {
    let request = |spec: &ScheduleSpec| spec.request(&"nightly".parse().unwrap());
    let update = |wanted: &ScheduleSpec, is: &ScheduleSpec| schedule::update(&request(is), request(wanted));
    let parsed: Vec<ScheduleSpec> = cases(ACCEPTED)
        .filter_map(|(kind, _, body)| match object(kind.parse().unwrap(), body).body {
            Body::Schedule(schedule) => Some(*schedule),
            _ => None,
        })
        .collect();
    let [one, gold, ruled, local, located] = parsed.as_slice() else { panic!("{parsed:?}") };
    let made = request(one);
    assert_eq!(made.name.as_ref().map(ObjectName::as_str), Some("nightly"));
    assert_eq!(made.cred_ids.len(), 2);
    assert_eq!((made.retain.keep_last, made.rules.len(), made.paused), (7, 1, true));
    let made = request(gold);
    assert!(made.retain.keeps_all() && made.full && made.rules.is_empty());
    assert_eq!(made.selector.label.unwrap().labels().to_string(), "app=shop,tier=db");
    assert_eq!((made.jitter_seconds.max_s, made.priority.as_str()), (9, "high"));
    // One of the two hooks names the rule, and an empty field none.
    let rule = request(ruled).rule;
    assert_eq!(rule.as_ref().map(|rule| rule.as_str()), Some("pg"));
    let with = |spec: &str| match object(Kind::VolumeBackupSchedule, spec).body {
        Body::Schedule(schedule) => *schedule,
        other => panic!("{other:?}"),
    };
    let unruled =
        with("spec: {schedulePolicyName: gold, template: {spec: {backupLocation: nas, volume: db}}}");
    assert_eq!((update(ruled, &unruled).rule, update(&unruled, ruled).rule), (Some(rule), Some(None)));
    let made = request(local);
    assert_eq!(made.local.as_ref().map(ToString::to_string).as_deref(), Some("last=24,daily=3"));
    assert!(made.cred_ids.is_empty());
    let made = request(located);
    let retain_at: Vec<String> =
        made.retain_at.iter().map(|at| format!("{} {}", at.cred_id, at.retain)).collect();
    assert_eq!(retain_at, ["a all", "b last=2,monthly=12"]);
    assert_eq!(update(located, located).retain_at, None);
    let without = with(
        "spec: {schedulePolicyName: gold, retain: {all: true, timeZone: Asia/Tokyo}, template: {spec: {volume: db, backupLocation: [a, b]}}}",
    );
    assert_eq!(update(located, &without).retain_at.map(|at| at.len()), Some(2));
    assert_eq!(update(&without, located).retain_at, Some(Vec::new()));
    // Only differing fields are changed.
    let other = with(
        "spec: {schedulePolicyName: gold, priority: high, jitterSeconds: 1, template: {spec: {backupLocation: nas, selectors: {app: shop, tier: db}, full: true}}}",
    );
    let changed = update(gold, &other);
    assert_eq!(changed.jitter_seconds.map(|jitter| jitter.max_s), Some(9));
    assert!(changed.rules.is_none() && changed.policy.is_none() && changed.paused.is_none());
    assert!(schedule::fixed(&request(&other), &request(gold)).is_empty());
    assert_eq!(
        schedule::fixed(&request(gold), &request(one)),
        ["spec.template.spec.backupLocation", "spec.template.spec.volume", "spec.schedulePolicyName"]
    );
}

#[test]
fn backup_rule_and_clone_become_requests() {
    let spec = "spec: {backupLocation: nas, group: shop, full: true, reclaimPolicy: Delete}";
    let Body::Backup(backup) = object(Kind::VolumeBackup, spec).body else { panic!("no backup") };
    let request = backup.request(&"b".parse().unwrap());
    assert!(request.full && backup.reclaim_policy == backup::ReclaimPolicy::Delete);
    assert_eq!((request.group.unwrap().as_str(), request.name.unwrap().as_str()), ("shop", "b"));
    assert!(request.volumes.is_empty());

    let Body::Rule(hook) = object(Kind::Rule, "spec: {preCommand: x, timeout: 2m}").body else { panic!() };
    assert_eq!((hook.quiesce().unwrap().command_timeout_s, &hook.volumes), (Some(120), &None));
    let Body::Rule(hook) = object(Kind::Rule, "spec: {preCommand: x, volumes: v, groups: g}").body else {
        panic!()
    };
    let targets: Vec<String> = hook.targets().iter().flatten().flatten().map(label).collect();
    assert_eq!(targets, ["volume v", "group g"]);

    let spec = "spec: {sourceVolume: db, destinationVolume: db2}";
    let Body::Clone(mut clone) = object(Kind::VolumeClone, spec).body else { panic!("no clone") };
    let origin = clone.snapshot(clone.snapshot_name().unwrap()).to_string();
    assert_ne!(clone.snapshot_name(), clone.snapshot_name(), "an existing snapshot may be old");
    assert!(clone.is_of(&origin) && !clone.is_of("db@mine") && !clone.is_of(&format!("x{origin}")));
    clone.snapshot = Some("mine".parse().unwrap());
    assert!(clone.is_of("db@mine") && !clone.is_of(&origin));
}

#[test]
fn example_file_is_parsed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/objects.yaml");
    let found = read(&path).unwrap();
    let kinds: std::collections::BTreeSet<Kind> = found.iter().map(|object| object.kind).collect();
    assert_eq!(kinds.len(), Kind::ALL.len());
}
