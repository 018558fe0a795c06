//! Documents of other systems.

use super::*;

/// Documents of Stork: a backup of a namespace, and its restore on this or another host.
const BACKUP: &str = "apiVersion: stork.libopenstorage.org/v1alpha1\nkind: ApplicationBackup\n\
    metadata: {name: backup, namespace: mysql-app}\nspec: {backupLocation: mysql, namespaces: [mysql-app], reclaimPolicy: Delete}\n---\n";
const RESTORE: &str = "apiVersion: stork.libopenstorage.org/v1alpha1\nkind: ApplicationRestore\n\
    metadata: {name: restore, namespace: mysql-app}\nspec: {backupName: backup, backupLocation: mysql, MORE}\n---\n";
const CLONE: &str = "apiVersion: stork.libopenstorage.org/v1alpha1\nkind: ApplicationClone\n\
    metadata: {name: clone-mysql}\nspec: {sourceNamespace: mysql-app, destinationNamespace: clone-mysql}\n---\n";

fn stork_location(dir: &Path) -> String {
    format!(
        "apiVersion: stork.libopenstorage.org/v1alpha1\nkind: BackupLocation\nmetadata: {{name: mysql, namespace: mysql-app}}\nlocation: {{type: local, path: {dir:?}, sync: true}}\n---\n"
    )
}

fn volume_names(ctl: &Ctl) -> Vec<String> {
    let listed = ctl.json(&["volume", "list"]);
    let listed = listed["items"].as_array().unwrap();
    let mut names: Vec<String> = listed.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn namespace_is_backed_up_restored_and_cloned() {
    let bed = Bed::new();
    let (a, b) = (bed.daemon("a").start(), bed.daemon("b").start());
    let (a, b) = (a.ctl(), b.ctl());
    let dir = bed.store("shared").dir().to_owned();
    let folder = bed.path("stork");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("1-location.yaml"), stork_location(&dir)).unwrap();
    fs::write(folder.join("2-backup.yml"), BACKUP).unwrap();
    fs::write(folder.join("notes.txt"), "no object").unwrap();
    let folder = folder.to_str().unwrap();
    // No volume has the label.
    let error = a.fails(&["apply", "-f", folder], 4);
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("spec.namespaces") && message.contains("--label +namespace=mysql-app"),
        "{message}"
    );

    for volume in ["data", "log"] {
        a.json(&["volume", "create", volume, "--size", "4MiB", "--label", "namespace=mysql-app"]);
    }
    let done = a.run(&["apply", "-f", folder, "--wait"]);
    for line in ["VolumeBackup/backup started", "VolumeBackup/backup done: volume data backed up"] {
        assert!(done.code == 0 && done.stdout.contains(line), "{line}: {done:?}");
    }
    assert!(results(&a.json(&["apply", "-f", folder])).iter().all(|line| line.ends_with(" unchanged")));
    let table = a.run(&["get", "applicationbackup", "-n", "mysql-app"]).stdout;
    let row = table.lines().nth(1).unwrap();
    assert!(
        row.contains("Successful") && row.contains(" 2/2 ") && table.lines().all(|line| line.len() <= 80),
        "{table}"
    );
    assert_eq!(a.run(&["get", "applicationbackup", "-n", "other"]).stdout, "");

    // On another host, volumes get their names back, or those of the mapped namespace.
    b.add_local("mysql", &dir, None);
    let restore = |more: &str| file(bed.dir(), "restore.yaml", &RESTORE.replace("MORE", more));
    b.json(&["apply", "--wait", "-f", &restore("replacePolicy: Retain")]);
    let to_dev = |more: &str| {
        let text = RESTORE.replace("name: restore", "name: to-dev").replace("MORE", more);
        file(bed.dir(), "to-dev.yaml", &text)
    };
    b.json(&["apply", "--wait", "-f", &to_dev("namespaceMapping: {mysql-app: dev}")]);
    assert_eq!(volume_names(&b), ["data", "data-dev", "log", "log-dev"]);
    assert_eq!(b.json(&["volume", "inspect", "data-dev"])["labels"]["namespace"], "dev");
    let found = b.json(&["get", "applicationrestore", "to-dev"]);
    assert_eq!(found["spec"]["destinationVolume"], serde_json::json!(["data-dev", "log-dev"]));
    let again = to_dev("namespaceMapping: {mysql-app: dev}, replacePolicy: Delete");
    assert_eq!(results(&b.json(&["apply", "-f", &again])), ["VolumeRestore/to-dev unchanged"]);

    // On the same host, existing volumes stay or are restored into, once.
    let kept = restore("replacePolicy: Retain");
    assert_eq!(results(&a.json(&["apply", "-f", &kept])), ["VolumeRestore/restore unchanged"]);
    let replaced = restore("namespaceMapping: {mysql-app: mysql-app}, replacePolicy: Delete");
    assert_eq!(results(&a.json(&["apply", "--wait", "-f", &replaced])), ["VolumeRestore/restore started"]);
    assert_eq!(results(&a.json(&["apply", "-f", &replaced])), ["VolumeRestore/restore unchanged"]);
    assert!(a.json(&["volume", "inspect", "log"])["labels"]["restored-from"].is_string());

    let clone = file(bed.dir(), "clone.yaml", CLONE);
    assert_eq!(results(&a.json(&["apply", "-f", &clone])), ["VolumeClone/clone-mysql created"]);
    assert_eq!(results(&a.json(&["apply", "-f", &clone])), ["VolumeClone/clone-mysql unchanged"]);
    assert_eq!(volume_names(&a), ["data", "data-clone-mysql", "log", "log-clone-mysql"]);
    let kept = a.run(&["delete", "-f", &clone]).stdout;
    assert_eq!(kept, "VolumeClone/clone-mysql deleted, volumes kept: data-clone-mysql, log-clone-mysql\n");
    for volume in ["data-clone-mysql", "log-clone-mysql"] {
        a.json(&["volume", "delete", volume]);
    }
    assert_eq!(results(&a.json(&["delete", "-f", &clone])), ["VolumeClone/clone-mysql not there"]);

    // The description has the events.
    let described = a.json(&["describe", "applicationbackup", "backup"]);
    let events = described["items"][0]["events"].to_string();
    assert!(events.contains("backup-done"), "{described:#}");
}

#[test]
fn background_rule_holds_until_the_snapshot_is_taken() {
    let bed = Bed::new();
    let daemon = bed.daemon("a").start();
    let ctl = daemon.ctl();
    ctl.json(&["volume", "create", "data", "--size", "4MiB", "--label", "app=mysql"]);
    let log = bed.path("log");
    let rule = |name: &str, action: &str| {
        format!(
            "apiVersion: stork.libopenstorage.org/v1alpha1\nkind: Rule\nmetadata: {{name: {name}}}\nrules:\n- podSelector: {{app: mysql}}\n  actions:\n  - type: command\n    {action}\n---\n"
        )
    };
    let log = log.display();
    let text = rule(
        "pre",
        &format!("background: true\n    value: 'echo begin >>{log}; ${{WAIT_CMD}}; echo end >>{log}'"),
    ) + &rule(
        "post",
        &format!("value: 'while ! grep -q end {log}; do sleep 0.05; done; echo after >>{log}'"),
    ) + "apiVersion: stork.libopenstorage.org/v1alpha1\nkind: GroupVolumeSnapshot\nmetadata: {name: group}\nspec: {preExecRule: pre, postExecRule: post, pvcSelector: {matchLabels: {app: mysql}}}\n";
    let all = file(bed.dir(), "rules.yaml", &text);
    let created = ["Rule/pre created", "VolumeSnapshot/group created"];
    assert_eq!(results(&ctl.json(&["apply", "-f", &all])), created);
    assert_eq!(fs::read_to_string(bed.path("log")).unwrap(), "begin\nend\nafter\n");
    let again = results(&ctl.json(&["apply", "-f", &all]));
    assert!(again.iter().all(|line| line.ends_with(" unchanged")), "{again:?}");
    let shown = ctl.run(&["get", "volumesnapshots", "group"]).stdout;
    assert!(shown.contains("group"), "{shown}");
    assert_eq!(results(&ctl.json(&["delete", "-f", &all]))[0], "VolumeSnapshot/group deleted");
}

#[test]
fn scheduled_backups_are_restored_by_their_schedule() {
    let bed = Bed::new();
    let (a, b) = (bed.daemon("a").start(), bed.daemon("b").start());
    let (a, b) = (a.ctl(), b.ctl());
    let dir = bed.store("shared").dir().to_owned();
    a.add_local("mysql", &dir, None);
    for volume in ["data", "log"] {
        a.json(&["volume", "create", volume, "--size", "4MiB", "--label", "namespace=shop"]);
    }
    let velero = |kind: &str, name: &str, spec: &str| {
        format!("apiVersion: velero.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
    };
    let schedule =
        velero("Schedule", "nightly", "schedule: '0 1 * * *', template: {includedNamespaces: [shop]}");
    a.json(&["apply", "-f", &file(bed.dir(), "schedule.yaml", &schedule)]);
    let run = ["cloudsnap", "schedules", "run-now", "nightly", "--wait"];
    a.json(&run);
    let listed = get(&a, "vb");
    let name = listed[0]["metadata"]["name"].as_str().unwrap();
    let time = name.strip_prefix("nightly-20").unwrap_or_else(|| panic!("{listed:#?}"));
    assert!(listed.len() == 1 && time.len() == 15, "{listed:#?}");
    // Nothing is deleted: two volumes have a backup of the name.
    let error = a.fails(&["delete", "vb", name], 2);
    assert!(error["message"].as_str().unwrap().contains("--volume"), "{error}");

    // The location is new to the host, too.
    let restore = stork_location(&dir)
        + &velero("Restore", "back", "scheduleName: nightly, namespaceMapping: {shop: test}");
    let restore = file(bed.dir(), "restore.yaml", &restore);
    let ran = b.run(&["apply", "--wait", "-f", &restore]);
    assert!(ran.code == 0 && ran.stderr.contains("the points in time of data, log are up to "), "{ran:?}");
    assert_eq!(volume_names(&b), ["data-test", "log-test"]);
    a.json(&run);
    assert_eq!(results(&b.json(&["apply", "-f", &restore]))[1], "VolumeRestore/back unchanged");
    // Lists show the name as HOST/NAME, with the first digits of the host's id.
    let printed = b.run(&["get", "vb", "-o", "wide"]).stdout;
    let name = printed.lines().nth(1).unwrap().split_whitespace().next().unwrap();
    let one = velero("Restore", "one", &format!("backupName: {name}, namespaceMapping: {{shop: one}}"));
    let ran = b.run(&["apply", "--wait", "-f", &file(bed.dir(), "one.yaml", &one)]);
    assert_eq!(volume_names(&b), ["data-one", "data-test", "log-one", "log-test"], "{ran:?}");
}
