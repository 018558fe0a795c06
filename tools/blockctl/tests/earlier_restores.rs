//! Restores of several objects into one volume: each happens once, also after another one.

use crate::{
    happens_once::{INTO_ACC, REPLACING, db, in_place_task, of_rr, of_shop, planned},
    plans::{backup, labelled, run_on, with_volumes},
    support::{Fake, TASK, list, ok, snap, volume},
};
use serde_json::{Value, json};

#[test]
fn restore_of_another_object_happens() {
    let (db, good) = db();
    let by_other = json!({ "restored-by": "other", "restored-from": snap("59-61") });
    let without_object = json!({ "restored-from": snap("59-61") });
    let all = "backupLocation: nas, backupName: good, namespaceMapping: {}";
    for (name, labels) in [("acc", &by_other), ("acc", &without_object), ("db", &by_other)] {
        let mut volumes = vec![labelled("1", name, labels.clone())];
        volumes.extend((name == "acc").then(|| db.clone()));
        let fake = with_volumes(&volumes, std::slice::from_ref(&good), &[]);
        let kept = if name == "acc" { INTO_ACC } else { all };
        assert_eq!(planned(&fake, &format!("{kept}, replacePolicy: Delete")), "created", "{labels}");
        assert_eq!(planned(&fake, kept), "unchanged", "{labels}");
        let told = run_on(&fake, "apply", &[("VolumeRestore", "rr", kept)]).stderr;
        let note = format!(
            "note: VolumeRestore/rr: volume {name} exists and is kept; `replacePolicy: Delete` restores into it\n"
        );
        assert_eq!(told, note);
    }
}

#[test]
fn restore_before_that_of_another_object_is_not_repeated() {
    let (db, good) = db();
    let replaced = json!({ "restored-by": "rr" });
    let labels =
        json!({ "restored-before": "aa:rr", "restored-by": "other", "restored-from": snap("59-62") });
    // Its own content is not that of the other restore.
    let later = backup("59-62", "later", ("59", "db"));
    for (name, labels) in [("acc", &labels), ("moved", &labels), ("acc", &replaced)] {
        let volumes = [labelled("1", name, labels.clone()), db.clone()];
        for tasks in [vec![], vec![in_place_task("Restore-Stopped", "59-62", json!({ "restored-by": "x" }))]]
        {
            let fake = with_volumes(&volumes, &[good.clone(), later.clone()], &tasks);
            for spec in [INTO_ACC, REPLACING] {
                assert_eq!(planned(&fake, spec), "unchanged", "{name} {spec}");
                let told = run_on(&fake, "apply", &[("VolumeRestore", "rr", spec)]).stderr;
                let note = format!(
                    "note: VolumeRestore/rr: volume {name} has other content since this restore, and is kept; \
                     to restore into it again: `blockctl delete VolumeRestore rr`, then apply this with \
                     `replacePolicy: Delete`\n"
                );
                assert!(told.ends_with(&note), "{told}");
            }
        }
    }
    // Another name has not happened.
    let fake = with_volumes(&[labelled("1", "acc", labels), db], &[good], &[]);
    let shown = run_on(&fake, "-j diff", &[("VolumeRestore", "a", REPLACING)]).json();
    assert_eq!(shown["items"][0]["result"], "created", "{shown:#}");
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
}

#[test]
fn restore_without_room_for_earlier_names_is_refused() {
    let (db, good) = db();
    let long = "x".repeat(128);
    let labels = json!({ "restored-before": long, "restored-by": format!("{long}2") });
    let fake = with_volumes(&[labelled("1", "acc", labels), db], &[good], &[]);
    assert_eq!(planned(&fake, REPLACING), "refused");
    let ran = run_on(&fake, "apply", &[("VolumeRestore", "rr", REPLACING)]);
    let hint = "hint: `blockctl delete VolumeRestore NAME` removes the name of an earlier restore";
    assert!(ran.stderr.contains("restored-before") && ran.stderr.contains(hint), "{ran:?}");
}

/// Starts a daemon with volumes, which it also returns by their ids, and tasks.
fn with_each(volumes: &[Value], tasks: &[Value]) -> Fake {
    let lines = volumes.iter().map(|one| format!("/v1/volumes/{}", one["volumeId"].as_str().unwrap()));
    let lines: Vec<_> = lines.map(|path| (format!("GET {path}"), format!("PATCH {path}"))).collect();
    let mut answers =
        vec![("GET /v1/volumes", ok(list(json!(volumes)))), ("GET /v1/tasks", ok(list(json!(tasks))))];
    for ((get, patch), one) in lines.iter().zip(volumes) {
        answers.extend([(get.as_str(), ok(one.clone())), (patch.as_str(), ok(one.clone()))]);
    }
    Fake::with_defaults(answers)
}

#[test]
fn deleted_restore_is_forgotten() {
    let volumes = [
        labelled("1", "acc", of_rr("59-61")),
        labelled("2", "log", json!({ "app": "db", "restored-before": "rr:aa", "restored-by": "other" })),
        labelled("3", "rest", json!({ "restored-by": "other", "restored-from": snap("59-61") })),
    ];
    let fake = with_each(&volumes, &[]);
    let tried = fake.run("delete vr rr --dry-run").stdout;
    assert_eq!(tried, "VolumeRestore/rr deleted, volumes kept: acc, log (dry run)\n");
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    let deleted = run_on(&fake, "delete", &[("VolumeRestore", "rr", INTO_ACC)]).stdout;
    assert_eq!(deleted, "VolumeRestore/rr deleted, volumes kept: acc, log\n");
    let sent: Vec<_> = fake.seen().into_iter().filter(|seen| seen.line.starts_with("PATCH ")).collect();
    let labels: Vec<_> = sent.iter().map(|seen| (seen.line.as_str(), &seen.body["labels"])).collect();
    let (first, second) = (
        json!({ "restored-from": snap("59-61") }),
        json!({ "app": "db", "restored-before": "aa", "restored-by": "other" }),
    );
    assert_eq!(labels, [("PATCH /v1/volumes/1", &first), ("PATCH /v1/volumes/2", &second)]);

    let left = with_each(&[labelled("1", "acc", first)], &[]);
    assert_eq!(left.run("get vr -o name").stdout, "");
    assert_eq!(left.run("delete vr rr").status, 4);
}

#[test]
fn deletion_of_an_unfinished_restore_names_its_task() {
    for (state, labels) in [("Restore-Active", of_rr("59-60")), ("Restore-Stopped", json!({}))] {
        let tasks = [in_place_task(state, "59-61", of_rr("59-61"))];
        let fake = with_each(&[labelled("1", "acc", labels)], &tasks);
        let ran = run_on(&fake, "delete", &[("VolumeRestore", "rr", REPLACING)]);
        assert_eq!(ran.stdout, "VolumeRestore/rr still being made: acc\n");
        let warning = format!(
            "warning: VolumeRestore/rr: task {TASK} restores volume acc: \
             `blockctl cloudsnap stop --name {TASK} --discard` abandons it\n"
        );
        assert_eq!(ran.stderr, warning);
        assert!(fake.changes().is_empty(), "{:?}", fake.changes());
    }
}

#[test]
fn volumes_that_a_finished_restore_lacks_are_warned_about() {
    let all = "backupLocation: nas, backupName: good, namespaceMapping: {shop: dev}";
    let into_new = "backupLocation: nas, backupName: good, destinationVolume: new";
    let made = || vec![labelled("1", "db-dev", of_rr("59-61")), volume("59", "db")];
    let again = [of_shop("59-62", ("59", "db")), of_shop("60-62", ("60", "wal"))];
    for (spec, backups, status, warning) in [
        (all, vec![], 0, "makes no more volumes: there is no VolumeBackup/good in BackupLocation/nas"),
        (all, again.to_vec(), 1, "is of an earlier backup and makes no wal-dev: give a new one another name"),
        (into_new, vec![], 1, "has volume db-dev and makes no new: give a new one another name"),
    ] {
        let fake = with_volumes(&made(), &backups, &[]);
        assert_eq!(planned(&fake, spec), "unchanged");
        for command in ["apply", "diff"] {
            let ran = run_on(&fake, command, &[("VolumeRestore", "rr", spec)]);
            assert!(ran.stderr.contains(&format!("warning: VolumeRestore/rr {warning}\n")), "{ran:?}");
            assert_eq!(ran.status, if command == "diff" { status } else { 0 }, "{ran:?}");
        }
    }
}
