//! Locations as objects: their keys and their errors.

use crate::{
    objects::world,
    plans::backup,
    support::{Fake, Ran, Reply, list, ok, reply, volume},
};
use serde_json::{Value, json};

#[test]
fn location_with_new_keys_updates_credential() {
    let credential = json!({
        "credentialId": "178557a3-26c7-49b1-9822-34e6f816c2d1", "name": "s3", "provider": "s3", "path": null, "endpoint": "e:1",
        "region": "us-east-1", "bucket": "b", "accessKey": "OLD", "account": null, "project": null, "user": null,
        "auth": "access key", "sslEnabled": true, "pathStyle": true, "storageClass": null, "proxy": null,
        "limitUploadBytesPerSecond": null, "limitDownloadBytesPerSecond": null, "encrypted": false, "conditionalPut": true,
        "createdAt": "2019-01-16T21:51:53Z", "writeBytesPerSecond": null
    });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), "planted").unwrap();
    let apply = |config: &str, kept: &Value| {
        let path = dir.path().join("s3.yaml");
        let text = format!(
            "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {{name: s3}}\nlocation: {{type: s3, path: b, s3Config: {{endpoint: 'e:1', {config}}}}}\n"
        );
        std::fs::write(&path, text).unwrap();
        let mut script = world(&[], &[]);
        script.retain(|(line, _)| *line != "GET /v1/credentials");
        script.push(("GET /v1/credentials", ok(list(json!([kept])))));
        script.push(("PATCH /v1/credentials/s3", ok(kept.clone())));
        let fake = Fake::start(script);
        let ran = fake.run(&format!("apply -f {}", path.display()));
        let asked = fake.seen().into_iter().find(|seen| !seen.line.starts_with("GET ")).map(|seen| seen.body);
        (ran, asked)
    };
    // Another key, and what takes the place of one.
    for (config, access) in [
        (
            "accessKeyID: NEW, secretAccessKey: {file: key}",
            json!({ "type": "s3", "accessKey": "NEW", "secretKey": "planted", "useIam": false }),
        ),
        ("useIAM: true", json!({ "type": "s3", "useIam": true })),
        (
            "accessKeyID: OLD, secretAccessKey: {from: 'systemd:k'}",
            json!({ "type": "s3", "accessKey": "OLD", "secretKey": { "from": "systemd:k" }, "useIam": false }),
        ),
    ] {
        let (ran, asked) = apply(config, &credential);
        assert_eq!(ran.stdout, "BackupLocation/s3 configured\n", "{ran:?}");
        assert_eq!(asked.unwrap()["access"], access, "{config}");
    }
    // A key in a file replaces a reference.
    let mut with_reference = credential.clone();
    with_reference["storeKeyFrom"] = json!("systemd:k");
    let (ran, asked) = apply("accessKeyID: OLD, secretAccessKey: {file: key}", &with_reference);
    assert!(ran.status == 0 && asked.unwrap()["access"]["secretKey"] == "planted", "{ran:?}");
    // A secret that cannot be compared is reported; another location is refused.
    let (ran, asked) = apply("accessKeyID: OLD, secretAccessKey: {file: key}", &credential);
    assert!(ran.status == 0 && asked.is_none() && ran.stderr.contains("cannot be compared"), "{ran:?}");
    let (ran, asked) =
        apply("region: elsewhere, accessKeyID: NEW, secretAccessKey: {file: key}", &credential);
    assert!(ran.status == 5 && asked.is_none(), "{ran:?}");
    assert!(ran.stderr.contains("location.s3Config.region cannot be changed: give another"), "{ran:?}");
}

#[test]
fn location_errors_name_the_fields_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("location.yaml");
    let native = |config: &str| {
        format!(
            "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {{name: s3}}\nlocation: {{type: s3, path: b, s3Config: {{{config}}}}}\n"
        )
    };
    let velero = |credential: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: keys}}\nstringData: {{cloud: \"[default]\\naws_access_key_id=A\\naws_secret_access_key=S\\n\"}}\n---\n\
             apiVersion: velero.io/v1\nkind: BackupStorageLocation\nmetadata: {{name: s3}}\nspec:\n  provider: aws\n  objectStorage: {{bucket: b}}\n  config: {{region: eu}}\n{credential}"
        )
    };
    let swift = |keys: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: keys}}\nstringData: {{{keys}}}\n---\n\
             apiVersion: kubedb.com/v1alpha1\nkind: Snapshot\nmetadata: {{name: s}}\n\
             spec: {{databaseName: db, storageSecretName: keys, swift: {{container: c}}}}\n"
        )
    };
    let keys = "endpoint: 'e:1', accessKeyID: A, secretAccessKey: S";
    for (text, words) in [
        (native("accessKeyID: A"), "line 4: location: type s3 needs s3Config.endpoint"),
        (native("endpoint: 'e:1'"), "line 4: location: type s3 needs s3Config.accessKeyID, or"),
        (native(keys), "line 4: location: no answer"),
        (native(keys), "hint: check s3Config.endpoint, path and caCertificate"),
        (
            swift("OS_AUTH_URL: 'http://h/v3', OS_USERNAME: u, OS_PASSWORD: p, OS_TENANT_NAME: t"),
            "line 9: spec: type swift needs OS_PROJECT_NAME of Secret/keys",
        ),
        (
            swift("OS_USERNAME: u"),
            "storageSecretName: a secret with the access keys of the store is expected",
        ),
        (velero(""), "line 9: spec.credential: a secret with the access keys of the store is expected"),
        (
            velero("  credential: {name: keys}\n"),
            "hint: check spec.config.s3Url, spec.objectStorage.bucket and spec.objectStorage.caCert",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let mut script = world(&[], &[]);
        let body = json!({ "error": { "code": "store_unreachable", "message": "no answer", "settings": ["s3-endpoint", "bucket", "ca-certificate"] } });
        script.push(("POST /v1/credentials", Reply::Json(502, body)));
        let ran = Fake::start(script).run(&format!("apply -f {}", path.display()));
        assert!(ran.status != 0 && ran.stderr.contains(words), "{words}: {ran:?}");
    }
}

#[test]
fn dry_run_refuses_location_without_its_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("location.yaml");
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let native = |rest: &str| {
        format!("apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {{name: s3}}\nlocation: {rest}\n")
    };
    for (text, words) in [
        (native("{type: local, path: /b, encrypted: true}"), "encryptionKey: an encrypted location needs"),
        (native("{type: local, path: /b, encryptionKey: {file: gone}}"), "gone"),
        (native("{type: s3, path: b, s3Config: {endpoint: e}, secretConfig: gone}"), "there is no Secret/gone"),
        (native("{type: s3, path: b, s3Config: {endpoint: e}, secretConfig: empty}"), "s3Config.accessKeyID"),
        (
            "apiVersion: velero.io/v1\nkind: BackupStorageLocation\nmetadata: {name: s3}\nspec: {provider: aws, objectStorage: {bucket: b}}\n".to_owned(),
            "spec.credential: a secret with the access keys of the store is expected",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let run = |options: &str| Fake::start(world(&[], &[])).run(&format!("apply {options} -f {}", path.display()));
        let (tried, real) = (run("--dry-run"), run(""));
        assert!(tried.status == 2 && tried.stderr.contains(words), "{words}: {tried:?}");
        assert_eq!((tried.status, &tried.stderr), (real.status, &real.stderr));
    }
}

#[test]
fn hint_of_a_database_snapshot_names_its_fields() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot.yaml");
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\nstringData: {AWS_ACCESS_KEY_ID: A, AWS_SECRET_ACCESS_KEY: S}\n---\n\
                apiVersion: kubedb.com/v1alpha1\nkind: Snapshot\nmetadata: {name: s}\n\
                spec: {databaseName: db, storageSecretName: keys, s3: {endpoint: 'http://e:1', bucket: b}}\n";
    std::fs::write(&path, text).unwrap();
    let mut script = world(&[], &[]);
    let settings = ["s3-endpoint", "s3-disable-ssl", "bucket"];
    let body =
        json!({ "error": { "code": "store_unreachable", "message": "no answer", "settings": settings } });
    script.push(("POST /v1/credentials", Reply::Json(502, body)));
    let ran = Fake::start(script).run(&format!("apply -f {}", path.display()));
    assert!(ran.stderr.contains("hint: check spec.s3.endpoint and spec.s3.bucket\n"), "{ran:?}");
}

#[test]
fn hints_of_converted_documents_name_keys_of_secrets() {
    let velero = "apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\nstringData: {cloud: \"aws_access_key_id=A\\naws_secret_access_key=S\"}\n---\n\
        apiVersion: velero.io/v1\nkind: BackupStorageLocation\nmetadata: {name: s3}\nspec:\n  provider: aws\n  objectStorage: {bucket: b}\n  credential: {name: keys, key: cloud}\n";
    let kubedb = |keys: &str, store: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: keys}}\nstringData: {{{keys}}}\n---\n\
             apiVersion: kubedb.com/v1alpha1\nkind: Snapshot\nmetadata: {{name: s}}\nspec: {{databaseName: db, storageSecretName: keys, {store}}}\n"
        )
    };
    let swift = kubedb(
        "OS_AUTH_URL: 'http://h', OS_USERNAME: u, OS_PASSWORD: p, OS_TENANT_NAME: t",
        "swift: {container: c}",
    );
    let azure = kubedb("AZURE_ACCOUNT_NAME: a, AZURE_ACCOUNT_KEY: aw==", "azure: {container: c}");
    let s3 =
        kubedb("AWS_ACCESS_KEY_ID: A, AWS_SECRET_ACCESS_KEY: S", "s3: {endpoint: 'http://e:1', bucket: b}");
    for (text, settings, words) in [
        (
            velero,
            "s3-access-key s3-secret-key use-iam s3-role-arn",
            "check key cloud of Secret/keys; repeat it\n",
        ),
        (&swift, "swift-auth-url ca-certificate proxy", "check OS_AUTH_URL of Secret/keys; repeat it\n"),
        (
            &swift,
            "swift-auth-url swift-storage-url bucket",
            "check OS_AUTH_URL of Secret/keys, OS_STORAGE_URL of Secret/keys and spec.swift.container; repeat it\n",
        ),
        (
            &azure,
            "azure-account-name azure-account-key azure-sas-token use-iam",
            "check AZURE_ACCOUNT_NAME of Secret/keys and AZURE_ACCOUNT_KEY of Secret/keys; repeat it\n",
        ),
        (&s3, "bucket disable-path-style", "check spec.s3.bucket; repeat it\n"),
    ] {
        let ran = refused_by_store(text, settings);
        assert!(ran.stderr.contains(&format!("hint: {words}")), "{words}: {ran:?}");
    }
}

/// Applies a document whose location the daemon refuses for its settings.
fn refused_by_store(text: &str, settings: &str) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("location.yaml");
    std::fs::write(&path, text).unwrap();
    let mut script = world(&[], &[]);
    let settings: Vec<&str> = settings.split(' ').collect();
    let error = json!({ "code": "store_unreachable", "message": "no answer", "hint": "repeat it", "settings": settings });
    script.push(("POST /v1/credentials", Reply::Json(502, json!({ "error": error }))));
    Fake::start(script).run(&format!("apply -f {}", path.display()))
}

#[test]
fn missing_location_is_named_by_the_field_of_its_system() {
    let two = ["nas", "s3"].map(|name| {
        let mut found = reply("GET /v1/credentials/nas");
        found["name"] = json!(name);
        found
    });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("object.yaml");
    let apply = |text: &str, credentials: &[Value]| {
        std::fs::write(&path, text).unwrap();
        let lists = vec![("GET /v1/credentials", ok(list(json!(credentials))))];
        Fake::with_defaults(lists).run(&format!("apply --dry-run -f {}", path.display()))
    };
    const STORK: &str = "apiVersion: stork.libopenstorage.org/v1alpha1\nkind: ";
    let velero =
        "apiVersion: velero.io/v1\nkind: Backup\nmetadata: {name: x}\nspec: {includedNamespaces: [a]}\n";
    for (text, words) in [
        (velero.to_owned(), "line 4: spec.storageLocation: missing: name one of nas, s3"),
        (
            format!("{STORK}GroupVolumeSnapshot\nmetadata: {{name: x}}\nspec:\n  pvcSelector: {{matchLabels: {{app: a}}}}\n  options: {{portworx/snapshot-type: cloud}}\n"),
            "line 6: spec.options.portworx/cloud-cred-id: missing",
        ),
        (
            format!("{STORK}VolumeSnapshot\nmetadata:\n  name: x\n  annotations: {{portworx/snapshot-type: cloud}}\nspec: {{persistentVolumeClaimName: db}}\n").replace("stork.libopenstorage.org/v1alpha1", "volumesnapshot.external-storage.k8s.io/v1"),
            "line 5: metadata.annotations.portworx/cloud-cred-id: missing",
        ),
    ] {
        let ran = apply(&text, &two);
        assert!(ran.status == 4 && ran.stderr.contains(words), "{words}: {ran:?}");
    }
    // The default one needs no name.
    let [first, mut second] = two;
    second["isDefault"] = json!(true);
    assert!(!apply(velero, &[first, second]).stderr.contains("storageLocation"));
}

#[test]
fn default_location_is_set_once() {
    let location = |is_default: bool| {
        let mut found = reply("GET /v1/credentials/nas");
        if is_default {
            found["isDefault"] = json!(true);
        }
        found
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("location.yaml");
    let set = "POST /v1/credentials/nas/default";
    for (existing, changes) in [
        (vec![], vec!["POST /v1/credentials", set]),
        (vec![location(false)], vec![set]),
        (vec![location(true)], vec![]),
    ] {
        let shown = Fake::with_defaults(vec![("GET /v1/credentials", ok(list(json!([location(true)]))))]);
        let text = shown.run("get bsl nas -o yaml").stdout;
        assert!(text.contains("\n  default: true\n"), "{text}");
        std::fs::write(&path, text).unwrap();
        let fake = Fake::with_defaults(vec![
            ("GET /v1/credentials", ok(list(json!(existing)))),
            ("POST /v1/credentials", ok(location(false))),
            (set, ok(location(true))),
        ]);
        let ran = fake.run(&format!("apply -f {}", path.display()));
        assert!(ran.status == 0 && fake.changes() == changes, "{:?} {ran:?}", fake.changes());
    }
}

#[test]
fn change_of_the_default_location_names_the_former_one() {
    let [mut first, second] = ["offsite", "nas"].map(|name| {
        let mut found = reply("GET /v1/credentials/nas");
        found["name"] = json!(name);
        found
    });
    first["isDefault"] = json!(true);
    let now = reply("GET /v1/credentials/nas");
    let both = || {
        Fake::with_defaults(vec![
            ("GET /v1/credentials", ok(list(json!([first, second])))),
            ("POST /v1/credentials/nas/default", ok(now.clone())),
        ])
    };
    let note = "note: nas is the default backup location now, in place of offsite\n";
    let ran = both().run("credentials set-default nas");
    assert!(ran.status == 0 && ran.stderr == note, "{ran:?}");
    let mut shown = second.clone();
    shown["isDefault"] = json!(true);
    let shown = Fake::with_defaults(vec![("GET /v1/credentials", ok(list(json!([shown]))))]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("location.yaml");
    std::fs::write(&path, shown.run("get bsl nas -o yaml").stdout).unwrap();
    let ran = both().run(&format!("apply -f {}", path.display()));
    assert!(ran.status == 0 && ran.stderr.contains(note), "{ran:?}");
}

#[test]
fn second_default_location_of_a_call_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("locations.yaml");
    let location = |name: &str, default: bool| {
        format!(
            "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {{name: {name}}}\nlocation: {{type: local, path: /{name}, default: {default}}}\n"
        )
    };
    let mut kept = reply("GET /v1/credentials/nas");
    (kept["name"], kept["path"], kept["prefix"]) = (json!("a"), json!("/a"), json!(null));
    (kept["limitUploadBytesPerSecond"], kept["isDefault"]) = (json!(null), json!(true));
    let apply = |text: String| {
        std::fs::write(&path, text).unwrap();
        let fake = Fake::with_defaults(vec![("GET /v1/credentials", ok(list(json!([kept.clone()]))))]);
        let [diff, apply] =
            ["diff", "apply --dry-run"].map(|command| fake.run(&format!("{command} -f {}", path.display())));
        (diff, apply)
    };
    let (diff, ran) = apply(format!("{}---\n{}", location("a", true), location("b", true)));
    let words = "line 9: location.default: BackupLocation/a in line 1 is the default already";
    assert!(ran.status == 2 && ran.stderr.contains(words), "{ran:?}");
    assert_eq!(diff.status, 2, "{diff:?}");
    // It stays the default, until another one is.
    let (diff, ran) = apply(location("a", false));
    let words = "line 4: location.default: ignored: BackupLocation/a stays the default until";
    assert!(ran.status == 0 && ran.stdout.contains("unchanged") && ran.stderr.contains(words), "{ran:?}");
    assert!(diff.status == 0 && diff.stderr.contains(words), "{diff:?}");
    let (_, ran) = apply(format!("{}---\n{}", location("a", false), location("b", true)));
    assert!(ran.status == 0 && !ran.stderr.contains("ignored"), "{ran:?}");
}

#[test]
fn change_of_a_location_warns_of_its_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("location.yaml");
    let text = "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {name: nas}\n\
                location: {type: local, path: /a, default: false, limitUpload: 2MiB}\n";
    std::fs::write(&path, text).unwrap();
    let mut kept = reply("GET /v1/credentials/nas");
    (kept["path"], kept["prefix"], kept["isDefault"]) = (json!("/a"), json!(null), json!(true));
    let words = "line 4: location.default: ignored: BackupLocation/nas stays the default until";
    for (command, status) in [("diff", 1), ("apply --dry-run", 0), ("apply", 0)] {
        let fake = Fake::with_defaults(vec![
            ("GET /v1/credentials", ok(list(json!([kept])))),
            ("POST /v1/credentials/nas/limits", ok(kept.clone())),
        ]);
        let ran = fake.run(&format!("{command} -f {}", path.display()));
        assert!(ran.status == status && ran.stderr.contains(words), "{command}: {ran:?}");
        assert!(ran.stdout.contains("limitUpload") || ran.stdout.contains("configured"), "{ran:?}");
    }
}

#[test]
fn objects_keep_their_location_after_a_new_default() {
    const ID: [&str; 2] = ["078557a3-26c7-49b1-9822-34e6f816c2d1", "178557a3-26c7-49b1-9822-34e6f816c2d1"];
    let locations: Vec<Value> = [("l1", ID[0]), ("l2", ID[1])]
        .into_iter()
        .map(|(name, id)| {
            let mut one = reply("GET /v1/credentials/nas");
            (one["name"], one["credentialId"], one["isDefault"]) =
                (json!(name), json!(id), json!(name == "l2"));
            one
        })
        .collect();
    let mut schedule = reply("GET /v1/schedules")["items"][0].take();
    (schedule["credentialIds"], schedule["credentialNames"]) = (json!([ID[0]]), json!(["l1"]));
    schedule["selector"] = json!({ "volumeId": "9", "volumeName": "nine" });
    schedule["local"] = json!(null);
    let mut stored = backup("59-61", "bk", ("59", "db"));
    (stored["credentialId"], stored["credentialName"]) = (json!(ID[0]), json!("l1"));
    let listed = |items: &[Value]| {
        let total = items.len();
        ok(json!({ "items": items, "next": null, "damaged": [], "failedCredentials": [], "total": total }))
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("objects.yaml");
    let start = || {
        Fake::with_defaults(vec![
            ("GET /v1/credentials", ok(list(json!(locations)))),
            ("GET /v1/volumes", ok(list(json!([volume("59", "db"), volume("9", "nine")])))),
            ("GET /v1/schedules", ok(list(json!([schedule])))),
            ("GET /v1/tasks", ok(list(json!([])))),
            ("GET /v1/cloudsnaps", listed(std::slice::from_ref(&stored))),
            ("GET /v1/cloudsnaps", listed(&[])),
        ])
    };
    let of_schedule = start().run("get VolumeBackupSchedule nightly -o yaml").stdout;
    assert!(of_schedule.contains("backupLocation: l1\n"), "{of_schedule}");
    let without: Vec<&str> = of_schedule.lines().filter(|line| !line.contains("backupLocation")).collect();
    let text = format!(
        "apiVersion: blockd/v1\nkind: VolumeBackup\nmetadata: {{name: bk}}\nspec: {{volume: db}}\n---\n{}\n",
        without.join("\n")
    );
    std::fs::write(&path, text).unwrap();
    for command in ["diff", "apply"] {
        let fake = start();
        let ran = fake.run(&format!("{command} -f {}", path.display()));
        assert!(ran.status == 0 && fake.changes().is_empty(), "{command}: {ran:?}");
    }
}

#[test]
fn location_of_a_database_snapshot_is_refused_in_its_fields() {
    let mut kept = reply("GET /v1/credentials/nas");
    (kept["name"], kept["path"], kept["prefix"]) = (json!("local-repo"), json!("/repo"), json!(null));
    kept["limitUploadBytesPerSecond"] = json!(null);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("snapshot.yaml");
    let text = "apiVersion: kubedb.com/v1alpha1\nkind: Snapshot\nmetadata: {name: s}\nspec: {databaseName: db, local: {path: repo/}}\n";
    std::fs::write(&path, text).unwrap();
    let fake = Fake::with_defaults(vec![
        ("GET /v1/credentials", ok(list(json!([kept])))),
        ("POST /v1/credentials", ok(reply("GET /v1/credentials/nas"))),
    ]);
    let ran = fake.run(&format!("apply -f {}", path.display()));
    let words = "spec.local.path cannot be changed: delete this location first, its backups stay";
    assert!(ran.status == 5 && ran.stderr.contains(words), "{ran:?}");
    let new = Fake::with_defaults(vec![
        ("GET /v1/credentials", ok(list(json!([])))),
        ("POST /v1/credentials", ok(reply("GET /v1/credentials/nas"))),
    ]);
    let ran = new.run(&format!("apply -f {}", path.display()));
    assert!(ran.stderr.contains("stored unencrypted: spec.encryptionKey is not set"), "{ran:?}");
}

#[test]
fn settings_are_options_of_a_command_and_fields_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("location.yaml");
    let text = "apiVersion: blockd/v1\nkind: BackupLocation\nmetadata: {name: n}\nlocation: {type: local, path: /b}\n";
    std::fs::write(&path, text).unwrap();
    let settings = ["path", "bucket", "encryption-passphrase", "google-json-key"];
    let error = json!({ "code": "passphrase_required", "message": "no", "hint": null, "settings": settings });
    let fake = || {
        let mut script = world(&[], &[]);
        script.push(("POST /v1/credentials", Reply::Json(400, json!({ "error": error }))));
        Fake::start(script)
    };
    // Two settings are one field, and one belongs to another provider.
    let ran = fake().run(&format!("apply -f {}", path.display()));
    assert!(ran.stderr.contains("hint: check path and encryptionKey\n"), "{ran:?}");
    let ran = fake().run("credentials create n --provider local --path /b");
    let options = "hint: check --path, --bucket, --encryption-passphrase-file and --google-json-key-file\n";
    assert!(ran.stderr.contains(options), "{ran:?}");
}

#[test]
fn location_without_passphrase_has_a_hint() {
    const WORDS: &str = "hint: --encryption-passphrase-file encrypts the backups of a new credential";
    let run = |is_encrypted: bool| {
        let mut made = reply("POST /v1/credentials");
        made["encrypted"] = json!(is_encrypted);
        made["warnings"] = json!(["backups are stored in clear"]);
        Fake::with_defaults(vec![("POST /v1/credentials", ok(made))])
            .run("credentials create n --provider local --path /b")
    };
    let (clear, encrypted) = (run(false), run(true));
    assert!(clear.status == 0 && clear.stderr.contains(WORDS), "{clear:?}");
    assert!(encrypted.status == 0 && !encrypted.stderr.contains(WORDS), "{encrypted:?}");
}
