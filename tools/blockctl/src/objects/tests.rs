use super::*;
use blockd_api::credentials::{AzureAuth, CreateCredential, ProviderRequest, SwiftAuth};
use std::collections::BTreeMap;

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
    assert!("Volume".parse::<Kind>().unwrap_err().to_string().contains("VolumeRestore and VolumeClone"));
}

#[test]
fn errors_are_reported_by_path_and_line() {
    let text = "\
apiVersion: v2
kind: SchedulePolicy
metadata:
  name: gold
  nmae: x
policy:
  interval: {intervalMinutes: 60, retain: many}
  daily: {time: \"25:00\", retain: 0}
  weekly: [{day: Someday, time: \"1:00\"}]
  monthly: {date: 14}
  hourly: {}
---
kind: VolumeBackupSchedule
apiVersion: blockd/v1
metadata: {name: nightly}
spec:
  schedule:
    interval: {intervalMinutes: 5, retain: 2.5}
  retain: {hourly: 3, never: 1}
  priority: highest
  template:
    spec:
      namespaces: [mysql]
      reclaimPolicy: Delete
---
kind: Pod
apiVersion: blockd/v1
metadata: {name: -x}
";
    assert_eq!(
        problems(text),
        [
            "line 1: apiVersion: \"v2\" is not known: write blockd/v1",
            "line 5: metadata.nmae: there is no such field: there are annotations, creationTimestamp, finalizers, generation, labels, managedFields, name, namespace, resourceVersion, selfLink, uid",
            "line 7: policy.interval.retain: \"many\" is no whole number from 1 on",
            "line 8: policy.daily.retain: \"0\" is no whole number from 1 on",
            "line 8: policy.daily: \"25:00\" cannot be the time of a schedule: give HH:MM from 00:00 to 23:59, or 12:00AM to 11:59PM",
            "line 9: policy.weekly[0]: \"Someday\" cannot be the weekday of a schedule: give Monday to Sunday, or Mon to Sun",
            "line 10: policy.monthly.time: this is missing",
            "line 11: policy.hourly: there is no such field: there are calendar, cron, daily, interval, monthly, timeZone, weekly",
            "line 17: spec.priority: \"highest\" is none of low, normal and high",
            "line 18: spec.schedule.interval.retain: \"2.5\" is no whole number from 1 on",
            "line 19: spec.retain.never: there is no such field: there are all, daily, hourly, last, monthly, timeZone, weekly, yearly",
            "line 23: spec.template.spec.backupLocation: this is missing",
            "line 23: spec.template.spec.volume: one of volume, group and selectors is expected",
            "line 23: spec.template.spec.namespaces: there are none here: name a volume, a group, or labels of volumes in selectors",
            "line 26: kind: `Pod` is no kind of object: there are BackupLocation, SchedulePolicy, Rule, VolumeBackup, VolumeBackupSchedule, VolumeRestore and VolumeClone",
            "line 28: metadata.name: the name \"-x\" must begin with a letter or a digit",
        ]
    );
}

#[test]
fn kinds_of_clusters_are_told_what_stands_for_them() {
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
    assert_eq!(problems("# nothing\n"), ["line 1: there is no object in it"]);
    let one = "apiVersion: blockd/v1\nkind: VolumeClone\nmetadata: {name: a}\nspec: {sourceVolume: v}\n";
    assert_eq!(
        problems(&format!("{one}---\n{one}")),
        ["line 6: metadata.name: VolumeClone/a is in line 1 already"]
    );
    assert_eq!(problems("[1]"), ["line 1: fields are expected here"]);
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
fn rules_are_written_as_they_are_read() {
    for body in [
        "policy: {interval: {intervalMinutes: 15}}",
        "policy: {timeZone: Europe/Berlin, daily: [{time: \"01:00\", retain: 3}, {time: \"13:00\"}], interval: {intervalMinutes: 60}}",
        "policy: {daily: {time: \"01:00\", timeZone: Asia/Tokyo}, weekly: {day: Sun, time: \"3:00\"}}",
        "policy: {cron: {expression: 30 2 * * 1-5, retain: {last: 2, weekly: 4, timeZone: Europe/Berlin}}}",
        "policy: {calendar: {expression: \"Mon..Fri *-*-* 02:30\", retain: all}}",
    ] {
        let first = object(Kind::SchedulePolicy, body);
        let again = objects(&emit::yaml(&first.view())).remove(0);
        let (Body::Policy(rules), Body::Policy(same)) = (&first.body, &again.body) else {
            panic!("{first:?}")
        };
        assert_eq!(rules, same, "{}", emit::yaml(&first.view()));
        assert_eq!(first.view(), again.view());
    }
}

#[test]
fn minutes_are_the_same_in_every_time_zone() {
    let rules = |when: &str| {
        rules::Rules::of(&[blockd_api::schedules::Rule { when: when.parse().unwrap(), retain: None }])
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
fn storage_blocks_are_taken_as_they_are_shown() {
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
        assert_eq!(location.view()["path"], kept.to_str().unwrap());
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
            "spec.s3: one of s3, gcs, azure, swift and local is expected, and there are 2",
        ),
        ("location: {type: tape, path: b}", "location.type: \"tape\" is no kind of store"),
        ("location: {type: s3, path: b}", "location.s3Config: this is missing"),
        (
            "location: {type: local, path: b, s3Config: {endpoint: e}}",
            "location.s3Config: this is not for a location of type local",
        ),
        (
            "location: {type: s3, path: b, secretConfig: gone}",
            "location.secretConfig: /dir/gone is no directory",
        ),
        (
            "location: {type: local, path: b, limitUpload: much}",
            "location.limitUpload: \"much\" is not a size",
        ),
        ("{}", "metadata"),
        ("location: {type: local, path: b}\nspec: {}", "location: one of `location` and `spec` is expected"),
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
    assert_eq!((request.retain.keep_last, request.rules.len(), one.suspend), (7, 1, true));
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
    assert_eq!(ruled.rule.as_ref().map(|rule| rule.as_str()), Some("pg"));
    assert_eq!(ruled.create(&"nightly".parse().unwrap()).rule, ruled.rule);
    assert_eq!(
        ruled.update(&schedule::Scheduled { rule: None, ..ruled.clone() }).rule,
        Some(ruled.rule.clone())
    );
    let two = "apiVersion: blockd/v1\nkind: VolumeBackup\nmetadata: {name: a}\nspec:\n  {backupLocation: nas, volume: db, preExecRule: a, postExecRule: b}\n";
    assert_eq!(
        problems(two),
        [
            "line 5: spec.postExecRule: a rule has the command before and the one after: name a here as well, or nothing"
        ]
    );
    let local = with(
        "spec: {schedulePolicyName: gold, localSnapshots: {retain: {last: 24, daily: 3}}, template: {spec: {volume: db}}}",
    );
    assert_eq!(local.local.as_ref().map(ToString::to_string).as_deref(), Some("last=24,daily=3"));
    assert!(local.create(&"nightly".parse().unwrap()).cred_ids.is_empty());
    let places = with(
        "spec: {schedulePolicyName: gold, retainAt: [{backupLocation: b, retain: {last: 2, monthly: 12, timeZone: Europe/Berlin}}, {backupLocation: a, retain: all}], retain: {all: true, timeZone: Asia/Tokyo}, template: {spec: {volume: db, backupLocation: [a, b]}}}",
    );
    let told: Vec<String> =
        places.retain_at().iter().map(|at| format!("{} {}", at.cred_id, at.retain)).collect();
    assert_eq!(told, ["a all", "b last=2,monthly=12"]);
    assert_eq!(places.update(&places.clone()).retain_at, None);
    let without = schedule::Scheduled { retain_at: BTreeMap::new(), ..places.clone() };
    assert_eq!(places.update(&without).retain_at.map(|places| places.len()), Some(2));
    assert_eq!(without.update(&places).retain_at, Some(Vec::new()));
    // Only what differs is changed.
    let other = schedule::Scheduled { jitter_s: 1, ..gold.clone() };
    let update = gold.update(&other);
    assert_eq!(update.jitter_seconds.map(|jitter| jitter.max_s), Some(9));
    assert!(update.rules.is_none() && update.policy.is_none() && update.paused.is_none());
    assert!(gold.fixed(&other).is_empty());
    assert_eq!(
        one.fixed(&gold),
        ["spec.template.spec.backupLocation", "spec.template.spec.volume", "spec.schedulePolicyName"]
    );
    for spec in [&one, &gold, &ruled, &local, &places] {
        let text = emit::yaml(&document(Kind::VolumeBackupSchedule, "nightly", "spec", &spec.view()));
        let Body::Schedule(again) = objects(&text).remove(0).body else { panic!("{text}") };
        assert_eq!(*again, *spec, "{text}");
    }
}

#[test]
fn retention_of_unknown_location_is_refused() {
    let head = "apiVersion: blockd/v1\nkind: VolumeBackupSchedule\nmetadata: {name: x}\n";
    let told = problems(&format!(
        "{head}spec:\n  schedulePolicyName: gold\n  retainAt:\n    - {{backupLocation: c, retain: 1}}\n    - {{backupLocation: a}}\n    - {{retain: 1}}\n    - {{backupLocation: b, retain: {{last: 1, all: true}}}}\n    - {{backupLocation: b, retain: 1}}\n  template: {{spec: {{volume: db, backupLocation: [a, b]}}}}\n"
    ));
    assert_eq!(
        told,
        [
            "line 7: spec.retainAt[0].backupLocation: nothing is backed up to c by this schedule: name one of its places",
            "line 8: spec.retainAt[1].retain: this is missing",
            "line 9: spec.retainAt[2].backupLocation: this is missing",
            "line 10: spec.retainAt[3].retain: this keeps all, and only some: leave out `all`, or the numbers",
            "line 11: spec.retainAt[4].backupLocation: b is there already",
        ]
    );
}

#[test]
fn rules_around_freezes_are_written_as_they_are_read() {
    for body in [
        "spec: {preCommand: hold begin, postCommand: \"a: b\\n# c\", user: postgres, timeout: 2m, onFailure: continue, freezeFs: true, volumes: [b, a, b], groups: [shop]}",
        "spec: {freezeFs: true, volumes: [], groups: shop}",
        "spec: {postCommand: \"true\"}",
    ] {
        let first = object(Kind::Rule, body);
        let text = emit::yaml(&first.view());
        let again = objects(&text).remove(0);
        let (Body::Rule(hook), Body::Rule(same)) = (&first.body, &again.body) else { panic!("{first:?}") };
        assert_eq!(hook, same, "{text}");
    }
    let Body::Rule(hook) = object(Kind::Rule, "spec: {preCommand: x, timeout: 2m}").body else { panic!() };
    assert_eq!((hook.quiesce.command_timeout_s, hook.volumes), (Some(120), None));
    let head = "apiVersion: blockd/v1\nkind: Rule\nmetadata: {name: x}\n";
    assert_eq!(
        problems(&format!(
            "{head}spec:\n  preCommand: \" \"\n  user: -x\n  timeout: 11m\n  onFailure: never\n  freezeFs: maybe\n  volumes: [a b]\n  preExec: y\n"
        )),
        [
            "line 5: spec.preCommand: the pre-command is empty: give a command for /bin/sh, or leave it away",
            "line 6: spec.user: \"-x\" is no name of a user",
            "line 7: spec.timeout: 660 s is no time for a command: give 1 s to 600 s",
            "line 8: spec.onFailure: \"never\" is neither abort nor continue",
            "line 9: spec.freezeFs: \"maybe\" is neither true nor false",
            "line 10: spec.volumes[0]: the volume name \"a b\" has the character ' ': only A-Z a-z 0-9 . _ - are allowed",
            "line 11: spec.preExec: there is no such field: there are freezeFs, groups, onFailure, postCommand, preCommand, timeout, user, volumes",
        ]
    );
    assert_eq!(
        problems(&format!("{head}spec: {{user: postgres}}\n")),
        ["line 4: spec: a rule needs something to do: give preCommand, postCommand or freezeFs"]
    );
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
    assert!(request.full && backup.reclaim && request.volumes.is_empty());
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
    let given = clone::Clone { snapshot: Some("mine".parse().unwrap()), ..clone.clone() };
    assert!(given.is_of("db@mine") && !given.is_of(&origin));

    let head = "apiVersion: blockd/v1\nkind: VolumeRestore\nmetadata: {name: x}\n";
    assert_eq!(
        problems(&format!("{head}spec: {{backupName: b, cloudSnapID: {id}, replacePolicy: Delete}}\n")),
        [
            "line 4: spec.backupName: one of backupName and cloudSnapID is expected",
            "line 4: spec.backupLocation: this is missing",
            "line 4: spec.replacePolicy: a volume that is there is not replaced by an object: see `blockctl cloudsnap restore --in-place`",
        ]
    );
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
    assert_eq!(found, ["line 7: location.proxy: a user or password in it would be shown: leave it out"]);
    assert_eq!(problems(&file("me:planted-secret@proxy:3128")).len(), 1);
    let fine =
        object(Kind::BackupLocation, "location: {type: local, path: /b, proxy: 'http://proxy:3128/@'}");
    assert_eq!(fine.view()["location"]["proxy"], "http://proxy:3128/@");
}
