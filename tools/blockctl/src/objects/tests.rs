use super::*;
use blockd_api::credentials::{AzureAuth, CreateCredential, ProviderRequest, SwiftAuth};

fn objects(text: &str) -> Vec<Object> {
    parse(text, "test.yaml", Path::new("/dir")).unwrap_or_else(|problems| panic!("{problems:?}"))
}

fn object(kind: Kind, body: &str) -> Object {
    let head = format!("apiVersion: blockd/v1\nkind: {kind}\nmetadata: {{name: x}}\n");
    objects(&(head + body)).remove(0)
}

fn problems(text: &str) -> Vec<String> {
    parse(text, "test.yaml", Path::new("/dir")).unwrap_err().iter().map(ToString::to_string).collect()
}

fn credential(body: &str) -> CreateCredential {
    match object(Kind::BackupLocation, body).body {
        Body::Location(location) => location.request(&"x".parse().unwrap()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn kinds_have_several_names() {
    for text in ["VolumeBackup", "volumebackups", "vb", "VB"] {
        assert_eq!(text.parse(), Ok(Kind::VolumeBackup), "{text}");
    }
    assert_eq!("schedulepolicies".parse(), Ok(Kind::SchedulePolicy));
    for kind in Kind::ALL {
        assert_eq!(kind.as_str().parse(), Ok(kind));
    }
    assert!("Volume".parse::<Kind>().unwrap_err().to_string().contains("VolumeRestore or VolumeClone"));
}

#[test]
fn first_error_of_each_object_is_reported_with_line_and_path() {
    let file = |kind: &str, body: &str| {
        format!("apiVersion: blockd/v1\nkind: {kind}\nmetadata: {{name: x}}\n{body}\n")
    };
    for (kind, body, expected) in [
        (
            "SchedulePolicy",
            "policy:\n  interval:\n    intervalMinutes: 60\n    retain: many",
            "line 7: policy.interval.retain: invalid value",
        ),
        (
            "SchedulePolicy",
            "policy:\n  daily: {time: \"1:00\", retain: 0}",
            "line 5: policy.daily.retain: invalid value: integer `0`, expected a whole",
        ),
        (
            "SchedulePolicy",
            "policy: {daily: {time: \"25:00\"}}",
            "line 4: policy: daily: \"25:00\" cannot be the time",
        ),
        (
            "SchedulePolicy",
            "policy: {weekly: [{day: Someday, time: \"1:00\"}]}",
            "line 4: policy: weekly: \"Someday\" cannot be the weekday",
        ),
        ("SchedulePolicy", "policy: {monthly: {date: 14}}", "line 4: policy: monthly: missing field `time`"),
        (
            "SchedulePolicy",
            "policy: {daily: {time: \"1:00\", day: Mon}}",
            "line 4: policy: daily: unknown field `day`",
        ),
        ("SchedulePolicy", "policy:\n  hourly: {}", "unknown field `hourly`, expected one of"),
        ("SchedulePolicy", "policy: {}", "line 4: policy: give interval, daily"),
        ("SchedulePolicy", "rules: {}", "line 1: policy: missing"),
        ("VolumeClone", "spec: {sourceVolume: v}\nsepc: 1", "line 5: sepc: unknown field"),
        ("VolumeBackup", "spec:\n  backupLocation: nas\n  namespaces: [mysql]", "unknown field `namespaces`"),
        (
            "VolumeBackup",
            "spec:\n  backupLocation: nas",
            "line 4: spec: one of `volume`, `group` and `selectors`",
        ),
        (
            "VolumeBackup",
            "spec: {backupLocation: [a, b], volume: v}",
            "line 4: spec: one `backupLocation` is expected",
        ),
        ("VolumeBackup", "spec: {volume: v}", "line 4: spec: one `backupLocation` is expected"),
        (
            "VolumeBackup",
            "spec: {backupLocation: a, volume: -x}",
            "line 4: spec.volume: the volume name \"-x\"",
        ),
        ("Pod", "", "line 2: kind: unknown kind `Pod`: expected BackupLocation"),
    ] {
        let found = problems(&file(kind, body));
        assert!(found.len() == 1 && found[0].contains(expected), "{body}: {found:?}");
    }
    let schedule = |spec: &str| {
        problems(&file(
            "VolumeBackupSchedule",
            &format!("spec:\n  template: {{spec: {{backupLocation: a, volume: v}}}}\n{spec}"),
        ))
    };
    assert_eq!(
        schedule(""),
        ["line 4: spec.schedulePolicyName: `schedulePolicyName` or `schedule` is expected"]
    );
    let found = schedule("  schedulePolicyName: p\n  priority: highest");
    assert!(found[0].starts_with("line 7: spec.priority: unknown variant `highest`"), "{found:?}");
    let two = format!("{}---\n{}", file("VolumeClone", "spec: {}"), file("VolumeClone", "spec: []"));
    let found = problems(&two);
    assert!(found.len() == 2 && found[1].starts_with("line 9: spec: a list is not expected"), "{found:?}");
    let version = problems("apiVersion: v2\nkind: Rule\nmetadata: {name: x}\nspec: {freezeFs: true}\n");
    assert_eq!(version, ["line 1: apiVersion: unknown version \"v2\": write blockd/v1"]);
    assert!(problems("a: [\n")[0].starts_with("line 1: invalid YAML: "));
}

#[test]
fn unsupported_cluster_kinds_name_their_replacement() {
    let text = "\
apiVersion: stork.libopenstorage.org/v1alpha1
kind: ApplicationBackup
metadata: {name: backup, namespace: mysql-app}
spec: {backupLocation: mysql, namespaces: [mysql-app]}
---
apiVersion: v1
kind: Secret
metadata: {name: s3secret}
stringData: {secretAccessKey: planted}
";
    let told = problems(text);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("line 2: kind: ApplicationBackup is for clusters: write VolumeBackup"),
        "{told:?}"
    );
    assert!(told[1].starts_with("line 7: kind: Secret is for clusters: a secret is a directory"), "{told:?}");
    assert!(!told.concat().contains("planted"));
}

#[test]
fn location_with_missing_field_is_refused() {
    let body = "location: {type: azure, path: container}\n";
    let Body::Location(location) = object(Kind::BackupLocation, body).body else { panic!() };
    let error = location.request(&"offsite".parse().unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("BackupLocation/offsite: --provider azure needs"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("azureConfig")), "{error:?}");
}

#[test]
fn files_without_objects_or_with_one_twice_are_refused() {
    assert_eq!(problems("# nothing\n"), ["line 1: no objects"]);
    let one = "apiVersion: blockd/v1\nkind: VolumeClone\nmetadata: {name: a}\nspec: {sourceVolume: v}\n";
    assert_eq!(
        problems(&format!("{one}---\n{one}")),
        ["line 6: metadata.name: VolumeClone/a is in line 1 already"]
    );
    assert_eq!(problems("[1]"), ["line 1: a mapping is expected"]);
}

/// The policy of the custom resources that the fields are named after.
#[test]
fn policy_of_custom_resource_is_accepted() {
    let text = "\
apiVersion: stork.libopenstorage.org/v1alpha1
kind: SchedulePolicy
metadata:
  name: backupSchedule
policy:
  interval:
    intervalMinutes: 60
    retain: 5
  daily:
    time: \"10:14PM\"
    retain: 5
  weekly:
    day: \"Thursday\"
    time: \"10:13PM\"
    retain: 5
  monthly:
    date: 14
    time: \"8:05PM\"
    retain: 5
";
    let object = objects(text).remove(0);
    let Body::Policy(rules) = &object.body else { panic!("{object:?}") };
    let told: Vec<String> = rules.to_api().iter().map(|rule| rule.when.to_string()).collect();
    assert_eq!(told, ["periodic 60min", "daily @22:14", "weekly Thursday@22:13", "monthly 14@20:05"]);
    assert!(rules.to_api().iter().all(|rule| rule.retain.as_ref().is_some_and(|keep| keep.keep_last == 5)));
    assert_eq!(
        object.view()["policy"],
        json!({
            "interval": { "intervalMinutes": 60, "retain": 5 },
            "daily": { "time": "22:14", "retain": 5 },
            "weekly": { "day": "Thursday", "time": "22:13", "retain": 5 },
            "monthly": { "date": 14, "time": "20:05", "retain": 5 }
        })
    );
}

#[test]
fn rules_round_trip() {
    for body in [
        "policy: {interval: {intervalMinutes: 15}}",
        "policy: {timeZone: Europe/Berlin, daily: [{time: \"01:00\", retain: 3}, {time: \"13:00\"}], interval: {intervalMinutes: 60}}",
        "policy: {daily: {time: \"01:00\", timeZone: Asia/Tokyo}, weekly: {day: Sun, time: \"3:00\"}}",
        "policy: {cron: {expression: 30 2 * * 1-5, retain: {last: 2, weekly: 4, timeZone: Europe/Berlin}}}",
        "policy: {calendar: {expression: \"Mon..Fri *-*-* 02:30\", retain: all}}",
    ] {
        let first = object(Kind::SchedulePolicy, body);
        let again = objects(&yaml(&first.view())).remove(0);
        let (Body::Policy(rules), Body::Policy(same)) = (&first.body, &again.body) else {
            panic!("{first:?}")
        };
        assert_eq!(rules, same, "{}", yaml(&first.view()));
        assert_eq!(first.view(), again.view());
    }
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
fn location_of_custom_resource_becomes_credential() {
    let made = credential(
        "location:\n  type: s3\n  path: bucket-name\n  sync: true\n  s3Config:\n    region: eu-west-1\n    accessKeyID: A\n    \
         secretAccessKey: planted\n    endpoint: \"http://h:9010\"\n    disableSSL: true\n",
    );
    let ProviderRequest::S3 { endpoint, region, bucket, access_key, secret_key, disable_ssl, .. } =
        made.provider
    else {
        panic!("not S3")
    };
    assert_eq!((endpoint.as_str(), region.as_str(), bucket.as_str()), ("h:9010", "eu-west-1", "bucket-name"));
    assert_eq!((access_key.as_deref(), disable_ssl), (Some("A"), true));
    assert_eq!(secret_key.unwrap().value().unwrap().expose(), "planted");
    let made = credential(
        "location: {type: azure, path: c, azureConfig: {storageAccountName: a, storageAccountKey: k}, encryptionKey: p}",
    );
    assert_eq!(made.encryption_passphrase.unwrap().value().unwrap().expose(), "p");
    assert!(matches!(made.provider, ProviderRequest::Azure { auth: AzureAuth::AccountKey { .. }, .. }));
    let made = credential(
        "location: {type: swift, path: c, swiftConfig: {authURL: \"https://h/auth/v1.0\", user: u, key: k}}",
    );
    assert!(matches!(made.provider, ProviderRequest::Swift { auth: SwiftAuth::V1 { .. }, .. }));
    let made = credential("location: {type: local, path: below, limitUpload: 20MiB}");
    assert_eq!(made.connection.limit_upload_bytes_per_s, Some(20 << 20));
    let ProviderRequest::Local { path } = made.provider else { panic!("not local") };
    assert_eq!(path, Path::new("/dir/below"));
}

#[test]
fn no_view_has_a_secret() {
    let object = object(
        Kind::BackupLocation,
        "location: {type: s3, path: b, encryptionKey: planted, s3Config: {endpoint: \"https://e/\", accessKeyID: A, secretAccessKey: planted}}",
    );
    assert_eq!(
        object.view()["location"],
        json!({
            "type": "s3", "path": "b", "encrypted": true,
            "s3Config": { "endpoint": "e", "accessKeyID": "A", "disableSSL": false }
        })
    );
    assert!(!format!("{object:?}").contains("planted"));
}

#[test]
fn storage_blocks_of_snapshots_are_understood() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::create_dir(&secret).unwrap();
    for (key, value) in [
        ("AWS_ACCESS_KEY_ID", "A"),
        ("AWS_SECRET_ACCESS_KEY", "S"),
        ("AZURE_ACCOUNT_NAME", "acct"),
        ("AZURE_ACCOUNT_KEY", "K"),
        ("GOOGLE_PROJECT_ID", "proj"),
        ("GOOGLE_SERVICE_ACCOUNT_JSON_KEY", "{}"),
        ("OS_AUTH_URL", "https://h/v3"),
        ("OS_USERNAME", "u"),
        ("OS_PASSWORD", "P"),
        ("OS_PROJECT_NAME", "proj"),
    ] {
        std::fs::write(secret.join(key), value).unwrap();
    }
    let made = |blocks: &str| {
        let text = format!(
            "apiVersion: kubedb.com/v1alpha1\nkind: BackupLocation\nmetadata: {{name: x}}\nspec: {{storageSecretName: secret, {blocks}}}\n"
        );
        match parse(&text, "f", dir.path()).unwrap().remove(0).body {
            Body::Location(location) => location.request(&"x".parse().unwrap()).unwrap().provider,
            other => panic!("{other:?}"),
        }
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
    let ProviderRequest::Local { path } = made("local: {path: /repo}") else { panic!("not local") };
    assert_eq!(path, Path::new("/repo"));
}

/// The storage blocks of KubeDB's own examples, and what `kubectl get` shows with them.
#[test]
fn storage_blocks_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    for secret in ["s3-secret", "gcs-secret", "azure-secret", "swift-secret"] {
        std::fs::create_dir(dir.path().join(secret)).unwrap();
    }
    let resources = "  resources:\n    requests:\n      memory: \"64Mi\"\n      cpu: \"250m\"\n";
    for (block, prefix, ignored) in [
        (
            "  storageSecretName: s3-secret\n  s3:\n    endpoint: 's3.amazonaws.com'\n    bucket: kubedb-qa\n    prefix: demo\n",
            Some("demo"),
            2,
        ),
        (
            "  storageSecretName: gcs-secret\n  gcs:\n    bucket: bucket-for-snapshot\n    prefix: /demo/\n",
            Some("demo"),
            2,
        ),
        (
            "  storageSecretName: azure-secret\n  azure:\n    container: bucket-for-snapshot\n    prefix: demo\n",
            Some("demo"),
            2,
        ),
        (
            "  storageSecretName: swift-secret\n  swift:\n    container: bucket-for-snapshot\n    prefix: demo\n",
            Some("demo"),
            2,
        ),
        ("  local:\n    path: /repo\n    volumeSource:\n      emptyDir: {}\n", None, 3),
    ] {
        let text = format!(
            "apiVersion: kubedb.com/v1alpha1\nkind: BackupLocation\nmetadata:\n  creationTimestamp: 2017-06-28T12:14:48Z\n  name: local-snapshot\n  namespace: default\n  resourceVersion: \"2000\"\n  selfLink: /apis/x\n  uid: 617e3487-5bfb-11e7-bb52-08002711f4aa\n  labels:\n    kubedb.com/kind: Postgres\nspec:\n  databaseName: postgres-db\n{block}{resources}"
        );
        let object =
            parse(&text, "f", dir.path()).unwrap_or_else(|told| panic!("{block}: {told:?}")).remove(0);
        let told: Vec<String> = object.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), ignored, "{told:?}");
        assert!(told[0].starts_with("line 13: spec.databaseName: this is ignored"), "{told:?}");
        assert_eq!(object.view()["location"]["prefix"].as_str(), prefix, "{block}");
    }
    let text = "kind: VolumeBackupSchedule\napiVersion: blockd/v1\nmetadata: {name: x}\nspec:\n  schedulePolicyName: p\n  template:\n    spec:\n      backupLocation: mysql\n      volume: db\n      reclaimPolicy: Delete\n";
    let object = parse(text, "f", dir.path()).unwrap().remove(0);
    let told = object.warnings[0].to_string();
    assert!(told.starts_with("line 10: spec.template.spec.reclaimPolicy: this is ignored"), "{told}");
}

#[test]
fn relative_directory_matches_stored_one() {
    let here = std::env::current_dir().unwrap();
    for (dir, path, kept) in
        [("", "backups", here.join("backups")), ("/dir", "./backups", PathBuf::from("/dir/backups"))]
    {
        let text = format!(
            "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {{name: x}}\nlocation: {{type: local, path: {path}}}\n"
        );
        let Body::Location(location) = parse(&text, "f", Path::new(dir)).unwrap().remove(0).body else {
            panic!()
        };
        assert_eq!(view(&location.spec)["path"], kept.to_str().unwrap());
        let ProviderRequest::Local { path } = location.request(&"x".parse().unwrap()).unwrap().provider
        else {
            panic!()
        };
        assert_eq!(path, kept);
    }
}

#[test]
fn invalid_location_is_refused() {
    let head = "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {name: x}\n";
    for (body, told) in [
        (
            "spec: {s3: {bucket: b}, gcs: {bucket: b}}",
            "spec: one of `s3`, `gcs`, `azure`, `swift` and `local` is expected",
        ),
        ("location: {type: tape, path: b}", "location.type: unknown variant `tape`, expected one of"),
        ("location: {type: s3, path: b}", "location: missing field `s3Config`"),
        (
            "location: {type: local, path: b, s3Config: {endpoint: e}}",
            "location: s3Config does not belong to a location of this type",
        ),
        ("location: {type: s3, path: b, secretConfig: gone}", "location: secret /dir/gone is no directory"),
        (
            "location: {type: local, path: b, limitUpload: much}",
            "location.limitUpload: \"much\" is not a size",
        ),
        ("{}", "metadata"),
        ("location: {type: local, path: b}\nspec: {local: {path: b}}", "line 4: location: unknown field"),
    ] {
        let text = if body == "{}" {
            "apiVersion: blockd/v1\nkind: BackupLocation\n".to_owned()
        } else {
            format!("{head}{body}\n")
        };
        let found = problems(&text);
        assert!(found.iter().any(|problem| problem.contains(told)), "{body}: {found:?}");
    }
}

#[test]
fn schedule_becomes_request() {
    let with = |spec: &str| match object(Kind::VolumeBackupSchedule, spec).body {
        Body::Schedule(schedule) => *schedule,
        other => panic!("{other:?}"),
    };
    let one = with(
        "spec: {schedule: {daily: {time: \"21:00\"}}, suspend: true, template: {spec: {backupLocation: [nas, offsite], volume: db}}}",
    );
    let request = one.create(&"nightly".parse().unwrap());
    assert_eq!(request.name.as_ref().map(ObjectName::as_str), Some("nightly"));
    assert_eq!(request.cred_ids.len(), 2);
    assert_eq!((request.retain.keep_last, request.rules.len(), request.paused), (7, 1, true));
    let gold = with(
        "spec: {schedulePolicyName: gold, priority: high, jitterSeconds: 9, template: {spec: {backupLocation: nas, selectors: {app: shop, tier: db}, full: true}}}",
    );
    let request = gold.create(&"nightly".parse().unwrap());
    assert!(request.retain.keeps_all() && request.full && request.rules.is_empty());
    assert_eq!(request.selector.label.unwrap().labels().to_string(), "app=shop,tier=db");
    assert_eq!((request.jitter_seconds.max_s, request.priority.as_str()), (9, "high"));
    // A rule is named as it is elsewhere, and nothing stands for none.
    let ruled = with(
        "spec: {schedulePolicyName: gold, template: {spec: {backupLocation: nas, volume: db, preExecRule: pg, postExecRule: }}}",
    );
    let rule = ruled.create(&"nightly".parse().unwrap()).rule;
    assert_eq!(rule.as_ref().map(|rule| rule.as_str()), Some("pg"));
    let unruled =
        with("spec: {schedulePolicyName: gold, template: {spec: {backupLocation: nas, volume: db}}}");
    assert_eq!((ruled.update(&unruled).rule, unruled.update(&ruled).rule), (Some(rule), Some(None)));
    let two = "apiVersion: blockd/v1\nkind: VolumeBackup\nmetadata: {name: a}\nspec:\n  {backupLocation: nas, volume: db, preExecRule: a, postExecRule: b}\n";
    assert_eq!(problems(two), ["line 4: spec: postExecRule: a rule has both hooks: name a, or leave it out"]);
    let local = with(
        "spec: {schedulePolicyName: gold, localSnapshots: {retain: {last: 24, daily: 3}}, template: {spec: {volume: db}}}",
    );
    let request = local.create(&"nightly".parse().unwrap());
    assert_eq!(request.local.as_ref().map(ToString::to_string).as_deref(), Some("last=24,daily=3"));
    assert!(request.cred_ids.is_empty());
    let located = |retain_at: &str| {
        with(&format!(
            "spec: {{schedulePolicyName: gold, {retain_at} retain: {{all: true, timeZone: Asia/Tokyo}}, template: {{spec: {{volume: db, backupLocation: [a, b]}}}}}}"
        ))
    };
    let places = located(
        "retainAt: [{backupLocation: b, retain: {last: 2, monthly: 12, timeZone: Europe/Berlin}}, {backupLocation: a, retain: all}],",
    );
    let request = places.create(&"nightly".parse().unwrap());
    let told: Vec<String> =
        request.retain_at.iter().map(|at| format!("{} {}", at.cred_id, at.retain)).collect();
    assert_eq!(told, ["a all", "b last=2,monthly=12"]);
    assert_eq!(places.update(&places.clone()).retain_at, None);
    let without = located("");
    assert_eq!(places.update(&without).retain_at.map(|places| places.len()), Some(2));
    assert_eq!(without.update(&places).retain_at, Some(Vec::new()));
    // Only differing fields are changed.
    let other = with(
        "spec: {schedulePolicyName: gold, priority: high, jitterSeconds: 1, template: {spec: {backupLocation: nas, selectors: {app: shop, tier: db}, full: true}}}",
    );
    let update = gold.update(&other);
    assert_eq!(update.jitter_seconds.map(|jitter| jitter.max_s), Some(9));
    assert!(update.rules.is_none() && update.policy.is_none() && update.paused.is_none());
    assert!(gold.fixed(&other).is_empty());
    assert_eq!(
        one.fixed(&gold),
        ["spec.template.spec.backupLocation", "spec.template.spec.volume", "spec.schedulePolicyName"]
    );
    for spec in [&one, &gold, &ruled, &local, &places] {
        let text = yaml(&document(Kind::VolumeBackupSchedule, "nightly", &view(spec)));
        let Body::Schedule(again) = objects(&text).remove(0).body else { panic!("{text}") };
        assert_eq!(*again, *spec, "{text}");
    }
}

#[test]
fn retention_of_unknown_location_is_refused() {
    let found = |retain_at: &str| {
        problems(&format!(
            "apiVersion: blockd/v1\nkind: VolumeBackupSchedule\nmetadata: {{name: x}}\nspec:\n  schedulePolicyName: gold\n  retainAt:\n    - {retain_at}\n  template: {{spec: {{volume: db, backupLocation: [a, b]}}}}\n"
        ))
    };
    for (retain_at, expected) in [
        (
            "{backupLocation: c, retain: 1}",
            "line 7: spec.retainAt[0].backupLocation: this schedule makes no backups in c",
        ),
        ("{backupLocation: a}", "line 7: spec.retainAt[0]: missing field `retain`"),
        ("{retain: 1}", "line 7: spec.retainAt[0]: missing field `backupLocation`"),
        (
            "{backupLocation: b, retain: {last: 1, all: true}}",
            "line 7: spec.retainAt[0].retain: `all` and numbers exclude each other",
        ),
        (
            "{backupLocation: b, retain: {hourly: 0}}",
            "line 7: spec.retainAt[0].retain: no period is named: write `all` to keep all backups",
        ),
        (
            "{backupLocation: b, retain: 1}\n    - {backupLocation: b, retain: 2}",
            "line 8: spec.retainAt[1].backupLocation: b is listed twice",
        ),
    ] {
        assert_eq!(found(retain_at), [expected]);
    }
}

#[test]
fn quiesce_rules_round_trip() {
    for body in [
        "spec: {preCommand: hold begin, postCommand: \"a: b\\n# c\", user: postgres, timeout: 2m, onFailure: continue, freezeFs: true, volumes: [b, a, b], groups: [shop]}",
        "spec: {freezeFs: true, volumes: [], groups: shop}",
        "spec: {postCommand: \"true\"}",
    ] {
        let first = object(Kind::Rule, body);
        let text = yaml(&first.view());
        let again = objects(&text).remove(0);
        let (Body::Rule(hook), Body::Rule(same)) = (&first.body, &again.body) else { panic!("{first:?}") };
        assert_eq!(hook, same, "{text}");
    }
    let Body::Rule(hook) = object(Kind::Rule, "spec: {preCommand: x, timeout: 2m}").body else { panic!() };
    assert_eq!((hook.quiesce.command_timeout_s, hook.volumes), (Some(120), None));
    for (spec, expected) in [
        ("preCommand: ' '", "line 4: spec: the pre-command is empty"),
        ("preCommand: x, user: -x", "line 4: spec: \"-x\" is no name of a user"),
        ("preCommand: x, timeout: 11m", "line 4: spec: 660 s is no time for a command: give 1 s to 600 s"),
        ("preCommand: x, onFailure: never", "line 4: spec.onFailure: unknown variant `never`"),
        ("freezeFs: maybe", "line 4: spec.freezeFs: invalid type: string \"maybe\", expected a boolean"),
        (
            "freezeFs: true, volumes: [a b]",
            "line 4: spec.volumes[0]: the volume name \"a b\" has the character ' '",
        ),
        ("freezeFs: true, preExec: y", "unknown field `preExec`"),
        ("user: postgres", "line 4: spec: `preCommand`, `postCommand` or `freezeFs` is required"),
    ] {
        let found = problems(&format!(
            "apiVersion: blockd/v1\nkind: Rule\nmetadata: {{name: x}}\nspec: {{{spec}}}\n"
        ));
        assert!(found.len() == 1 && found[0].contains(expected), "{spec}: {found:?}");
    }
}

#[test]
fn backup_and_restore_become_requests() {
    let Body::Backup(backup) = object(
        Kind::VolumeBackup,
        "spec: {backupLocation: nas, group: shop, full: true, reclaimPolicy: Delete}",
    )
    .body
    else {
        panic!("no backup")
    };
    let request = backup.request(&"b".parse().unwrap());
    assert!(
        request.full && backup.reclaim_policy == backup::ReclaimPolicy::Delete && request.volumes.is_empty()
    );
    assert_eq!(request.group.unwrap().as_str(), "shop");
    assert_eq!(request.name.unwrap().as_str(), "b");

    let id = "2e4d4b67-95d7-481e-aec5-14223ac55170/1-2";
    let restored =
        object(Kind::VolumeRestore, &format!("spec: {{backupLocation: nas, cloudSnapID: {id}, lazy: true}}"));
    assert_eq!(
        restored.view()["spec"],
        json!({ "backupLocation": "nas", "cloudSnapID": id, "destinationVolume": "x" })
    );
    let cloned = object(Kind::VolumeClone, "spec: {sourceVolume: db, destinationVolume: db2}");
    let Body::Clone(clone) = &cloned.body else { panic!("no clone") };
    let taken = [clone.snapshot_name().unwrap(), clone.snapshot_name().unwrap()];
    assert_ne!(taken[0], taken[1], "one that is there may be old");
    let origin = clone.snapshot(taken[0].clone()).to_string();
    assert!(clone.is_of(&origin) && !clone.is_of("db@mine") && !clone.is_of(&format!("x{origin}")));
    assert_eq!(cloned.view()["spec"], json!({ "sourceVolume": "db", "destinationVolume": "db2" }));
    let given = {
        let mut given = clone.clone();
        given.snapshot = Some("mine".parse().unwrap());
        given
    };
    assert!(given.is_of("db@mine") && !given.is_of(&origin));

    for (spec, expected) in [
        ("backupLocation: nas, backupName: b, cloudSnapID: CLOUDSNAP", "line 4: spec.backupName: one of"),
        ("backupName: b", "line 4: spec: missing field `backupLocation`"),
        (
            "backupLocation: nas, backupName: b, replacePolicy: Delete",
            "line 4: spec.replacePolicy: an existing volume is not replaced",
        ),
        (
            "backupLocation: nas, backupName: b, lazy: true, skipDamaged: true",
            "line 4: spec.skipDamaged: a lazy volume",
        ),
    ] {
        let head = "apiVersion: blockd/v1\nkind: VolumeRestore\nmetadata: {name: x}\n";
        let found = problems(&format!("{head}spec: {{{}}}\n", spec.replace("CLOUDSNAP", id)));
        assert!(found.len() == 1 && found[0].contains(expected), "{spec}: {found:?}");
    }
}

#[test]
fn example_file_is_parsed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/objects.yaml");
    let found = read(&path).unwrap();
    let kinds: std::collections::BTreeSet<Kind> = found.iter().map(Object::kind).collect();
    assert_eq!(kinds.len(), Kind::ALL.len());
}

#[test]
fn proxy_with_password_is_refused_unquoted() {
    let file = |proxy: &str| {
        let head = "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {name: x}\n";
        format!("{head}location:\n  type: local\n  path: /b\n  proxy: {proxy}\n")
    };
    let found = problems(&file("http://me:planted-secret@proxy:3128/"));
    assert_eq!(
        found,
        ["line 4: location: proxy: a user or password in the URL would be shown: leave it out"]
    );
    assert_eq!(problems(&file("me:planted-secret@proxy:3128")).len(), 1);
    let fine =
        object(Kind::BackupLocation, "location: {type: local, path: /b, proxy: 'http://proxy:3128/@'}");
    assert_eq!(fine.view()["location"]["proxy"], "http://proxy:3128/@");
}

#[test]
fn secret_sources_are_accepted_and_not_shown() {
    let parse_secret = |text: &str| {
        parse(
            &format!(
                "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {{name: x}}\nlocation:\n  type: local\n  path: /b\n  encryptionKey: {text}\n"
            ),
            "f",
            Path::new("/dir"),
        )
    };
    for (text, reference) in [
        ("{command: /x/y}", "command:/x/y"),
        ("{systemd: pass}", "systemd:pass"),
        ("{from: 'file:/x/y'}", "file:/x/y"),
    ] {
        let object = parse_secret(text).unwrap().remove(0);
        assert_eq!(object.view()["location"]["encryptionKey"]["from"], reference);
    }
    for text in ["plain", "{file: key}", "{file: /abs}"] {
        let object = parse_secret(text).unwrap().remove(0);
        assert!(
            object.view()["location"].get("encryptionKey").is_none()
                && object.view()["location"]["encrypted"] == true
        );
    }
    for (text, expected) in [
        (
            "{env: BLOCKCTL_NO_SUCH_VARIABLE}",
            "line 4: location: encryptionKey: the environment variable BLOCKCTL_NO_SUCH_VARIABLE is empty or unset",
        ),
        (
            "{}",
            "line 7: location.encryptionKey: one of `file`, `env`, `systemd`, `command` and `from` is expected",
        ),
        ("{command: planted}", "line 7: location.encryptionKey: after file: and command: comes"),
        ("{command: /x, systemd: x}", "line 7: location.encryptionKey: one of"),
        ("4711", "line 7: location.encryptionKey: a secret is text: write it in quotes"),
    ] {
        let found = parse_secret(text).unwrap_err().remove(0).to_string();
        assert!(
            found.starts_with(expected) && !found.contains("planted") && !found.contains("4711"),
            "{found}"
        );
    }
}
