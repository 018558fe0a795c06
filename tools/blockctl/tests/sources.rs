//! Sources of restores: the backups and volumes that documents select.

use crate::{
    happens_once::{in_place_task, of_rr, planned},
    plans::{backup, labelled, run_on, with_volumes},
    restores::{OTHER_CLUSTER, restored, with_backup},
    support::{CLUSTER, Fake, Ran, snap, task, volume},
};
use serde_json::{Value, json};

/// Runs `apply` on a document.
fn apply(fake: &Fake, text: &str) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restore.yaml");
    std::fs::write(&path, text).unwrap();
    fake.run(&format!("apply -f {}", path.display()))
}

/// Starts a daemon with a backup of two namespaces.
fn of_two_namespaces() -> Fake {
    with_backup(&[("1", "va"), ("2", "vb")], &[(CLUSTER, "1", "va", "a"), (CLUSTER, "2", "vb", "b")])
}

#[test]
fn mapping_of_stork_selects_its_namespaces() {
    let document = |mapping: &str| {
        format!(
            "apiVersion: stork.libopenstorage.org/v1alpha1\nkind: ApplicationRestore\nmetadata: {{name: back}}\nspec:\n  backupName: before\n  backupLocation: nas\n  replacePolicy: Delete\n  namespaceMapping: {{{mapping}}}\n"
        )
    };
    let pair = |id: &str, volume: &str| (snap(&format!("{id}-61")), volume.to_owned());
    for (mapping, volumes) in [
        ("a: test", vec![pair("1", "va-test")]),
        // Existing volumes are named by id.
        ("b: b", vec![pair("2", "2")]),
        ("", vec![pair("1", "1"), pair("2", "2")]),
        ("a: a, b: b", vec![pair("1", "1"), pair("2", "2")]),
    ] {
        assert_eq!(restored(&of_two_namespaces(), &document(mapping)), volumes, "{mapping}");
    }
    let fake = of_two_namespaces();
    let ran = apply(&fake, &document("other: other"));
    let words = "restore.yaml: line 8: spec.namespaceMapping: VolumeBackup/before has no volume with the selected labels: its volumes are va (namespace=a), vb (namespace=b)";
    assert!(ran.status == 4 && ran.stderr.contains(words), "{ran:?}");
    // The backup is made by the same call.
    let backup = "apiVersion: blockd/v1\nkind: VolumeBackup\nmetadata: {name: before}\nspec: {backupLocation: nas, volume: va}\n---\n";
    let fake = with_backup(&[("1", "va")], &[]);
    let ran = apply(&fake, &format!("{backup}{}", document("other: other")));
    let words = "line 13: spec.namespaceMapping: VolumeBackup/before has no volume with the selected labels";
    assert!(ran.status == 4 && ran.stderr.contains(words), "{ran:?}");
}

#[test]
fn mapping_of_velero_selects_no_namespaces() {
    let text = "apiVersion: velero.io/v1\nkind: Restore\nmetadata: {name: back}\nspec: {backupName: before, existingResourcePolicy: update, namespaceMapping: {a: test}}\n";
    let volumes = [(snap("1-61"), "va-test".to_owned()), (snap("2-61"), "2".to_owned())];
    assert_eq!(restored(&of_two_namespaces(), text), volumes);
}

fn stork(backup: &str) -> String {
    format!(
        "apiVersion: stork.libopenstorage.org/v1alpha1\nkind: ApplicationRestore\nmetadata: {{name: back}}\nspec: {{backupLocation: nas, backupName: {backup}}}\n"
    )
}

#[test]
fn names_of_lists_select_backups() {
    let cluster = OTHER_CLUSTER.split('-').next().unwrap();
    let of = |cluster: &str, suffix: &str, volume: &str| (format!("{cluster}/{suffix}"), volume.to_owned());
    let mut unnamed = backup("59-6178111822", "", ("59", "db"));
    unnamed["name"] = json!("backup-3f4f0a67-e12a-4d35-81ad-985657757352");
    let mut others = backup("7-71", "monday", ("7", "mail"));
    others["cloudSnapshotId"] = json!(format!("{OTHER_CLUSTER}/7-71"));
    let backups =
        [unnamed, backup("60-62", "monday", ("60", "log")), backup("61-63", "monday", ("61", "acc")), others];
    let id = snap("59-6178111822");
    for (name, found) in [
        ("61781118", vec![of(CLUSTER, "59-6178111822", "db")]),
        ("\"61781118\"", vec![of(CLUSTER, "59-6178111822", "db")]),
        (id.as_str(), vec![of(CLUSTER, "59-6178111822", "db")]),
        ("monday", vec![of(CLUSTER, "60-62", "log"), of(CLUSTER, "61-63", "acc")]),
        (snap("61-63").as_str(), vec![of(CLUSTER, "61-63", "acc")]),
        (format!("{cluster}/monday").as_str(), vec![of(OTHER_CLUSTER, "7-71", "mail")]),
        (format!("{}/monday", &cluster[..4]).as_str(), vec![of(OTHER_CLUSTER, "7-71", "mail")]),
    ] {
        let fake = with_volumes(&[], &backups, &[]);
        assert_eq!(restored(&fake, &stork(name)), found, "{name}");
    }
    let fake = with_volumes(&[], &backups, &[]);
    let spec = "backupLocation: nas, backupName: 61781118, destinationVolume: new";
    let ran = run_on(&fake, "apply", &[("VolumeRestore", "rr", spec)]);
    assert_eq!((ran.status, fake.changes()), (0, vec!["POST /v1/cloudsnaps/restore".to_owned()]), "{ran:?}");
    let ran = apply(&fake, &stork("4711"));
    assert!(
        ran.status == 4 && ran.stderr.contains("spec.backupName: there is no VolumeBackup/4711"),
        "{ran:?}"
    );
}

/// Returns a backup of the schedule `nightly` of a day: suffix of the id, volume, second of its snapshot.
fn nightly(day: u32, suffix: &str, volume: (&str, &str), second: u32) -> Value {
    let mut found = backup(suffix, &format!("nightly-201901{day:02}220000"), volume);
    found["createdAt"] = json!(format!("2019-01-{day:02}T22:00:{second:02}Z"));
    found["trigger"] = json!("Scheduled");
    found
}

/// The volumes `db` and `log` of a schedule.
const DB: (&str, &str) = ("59", "db");
const LOG: (&str, &str) = ("60", "log");
/// Restore of a schedule in a document of Velero.
const VELERO: &str =
    "apiVersion: velero.io/v1\nkind: Restore\nmetadata: {name: back}\nspec:\n  scheduleName: nightly\n";

/// Returns two runs of a schedule, and a manual backup with a similar name.
fn runs() -> Vec<Value> {
    let mut manual = nightly(18, "59-63", DB, 0);
    manual["trigger"] = json!("Manual");
    vec![nightly(16, "59-61", DB, 0), nightly(16, "60-62", LOG, 7), nightly(15, "59-60", DB, 0), manual]
}

#[test]
fn restore_by_schedule_takes_its_newest_backup() {
    let newest = [(snap("59-61"), "db".to_owned()), (snap("60-62"), "log".to_owned())];
    assert_eq!(restored(&with_volumes(&[], &runs(), &[]), VELERO), newest);
    let warning = "restore.yaml: line 5: spec.scheduleName: the points in time of db, log are up to 7s apart: a group of volumes has one\n";
    let ran = apply(&with_volumes(&[], &runs(), &[]), VELERO);
    assert!(ran.stderr.contains(warning), "{ran:?}");
    // A manual run has milliseconds.
    let mut manual = nightly(16, "59-64", DB, 0);
    manual["name"] = json!("nightly-20190116220000123");
    let fake = with_volumes(&[], &[runs(), vec![manual]].concat(), &[]);
    assert_eq!(restored(&fake, VELERO), [(snap("59-64"), "db".to_owned())]);
    // The name of the schedule is none of a backup.
    let ran = apply(&with_volumes(&[], &runs(), &[]), &stork("nightly"));
    let words = "there is no VolumeBackup/nightly in BackupLocation/nas\nhint: the newest backup of the schedule nightly is nightly-20190116220000; `scheduleName: nightly`";
    assert!(ran.status == 4 && ran.stderr.contains(words), "{ran:?}");
}

#[test]
fn restore_by_schedule_happens_once() {
    for (suffix, listed, tasks, result) in [
        ("59-60", runs(), vec![], "unchanged"),
        // Retention deleted the backup of the restore.
        ("59-59", runs(), vec![], "unchanged"),
        ("59-60", runs(), vec![in_place_task("Restore-Stopped", "59-60", of_rr("59-60"))], "resumed"),
    ] {
        let labels = if tasks.is_empty() { of_rr(suffix) } else { json!({}) };
        let fake = with_volumes(&[labelled("1", "db", labels), volume("2", "other")], &listed, &tasks);
        let spec = "scheduleName: nightly, sourceVolume: db, destinationVolume: db, replacePolicy: Delete";
        assert_eq!(planned(&fake, spec), result, "{suffix}");
    }
}

#[test]
fn unfinished_backup_of_a_schedule_is_none_for_restores() {
    let mut failed = task("Backup-Failed", 1);
    (failed["name"], failed["volumeId"], failed["volumeName"]) =
        (json!("nightly-20190117220000"), json!("60"), json!("log"));
    let later = nightly(17, "59-62", DB, 0);
    let listed = [runs(), vec![later]].concat();
    let newest = [(snap("59-61"), "db".to_owned()), (snap("60-62"), "log".to_owned())];
    assert_eq!(restored(&with_volumes(&[], &listed, &[failed]), VELERO), newest);
    // The task is forgotten, or of another host.
    let ran = apply(&with_volumes(&[], &listed, &[]), VELERO);
    let warning = "spec.scheduleName: nightly-20190117220000 lacks volume log; the newest backup of the schedule with it is nightly-20190116220000\n";
    assert!(ran.status == 0 && ran.stderr.contains(warning), "{ran:?}");
}

#[test]
fn schedule_without_a_backup_is_an_error_with_the_way() {
    let of_host = |mut one: Value, host: &str| {
        let suffix = one["cloudSnapshotId"].as_str().unwrap().split('/').nth(1).unwrap().to_owned();
        one["cloudSnapshotId"] = json!(format!("{host}/{suffix}"));
        one
    };
    let own_and_other =
        [nightly(15, "59-60", DB, 0), of_host(nightly(16, "7-61", ("7", "db"), 0), OTHER_CLUSTER)];
    let fake = with_volumes(&[], &own_and_other, &[]);
    assert_eq!(restored(&fake, VELERO), [(snap("59-60"), "db".to_owned())]);
    let other = "1e4d4b67-95d7-481e-aec5-14223ac55170";
    let of_two_hosts = [OTHER_CLUSTER, other].map(|host| of_host(nightly(16, "7-61", ("7", "db"), 0), host));
    let none = "there is no finished backup of a schedule nightly\nhint: ";
    for (listed, status, words) in [
        (Vec::new(), 4, format!("{none}`blockctl get VolumeBackup` lists the backups")),
        (
            of_two_hosts.to_vec(),
            2,
            "several hosts have backups of a schedule nightly: 1e4d4b67, fe431d7d\nhint: ".to_owned(),
        ),
    ] {
        let ran = apply(&with_volumes(&[], &listed, &[]), VELERO);
        let words = format!("restore.yaml: line 5: spec.scheduleName: {words}");
        assert!(ran.status == status && ran.stderr.contains(&words), "{ran:?}");
    }
    let named = format!("{}/nightly-20190116220000", &OTHER_CLUSTER[..8]);
    let fake = with_volumes(&[], &of_two_hosts, &[]);
    assert_eq!(restored(&fake, &stork(&named)), [(format!("{OTHER_CLUSTER}/7-61"), "db".to_owned())]);
}

#[test]
fn equal_short_ids_select_no_backup() {
    let listed = [("59-6178111822", DB), ("60-6178111833", LOG)].map(|(suffix, of)| {
        let mut one = backup(suffix, "", of);
        one["name"] = json!("backup-3f4f0a67-e12a-4d35-81ad-985657757352");
        one
    });
    let ran = apply(&with_volumes(&[], &listed, &[]), &stork("61781118"));
    assert!(ran.status == 2 && ran.stderr.contains("VolumeBackup/61781118 is ambiguous"), "{ran:?}");
    assert!(ran.stderr.contains("name its cloudSnapshotId"), "{ran:?}");
}
