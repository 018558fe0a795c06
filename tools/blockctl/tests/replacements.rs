//! Restores that replace the content of volumes.

use crate::{
    happens_once::{REPLACING, db, planned},
    plans::{backup, labelled, run_on, with_volumes},
    support::snap,
};
use serde_json::json;

#[test]
fn volume_without_the_origin_of_the_backup_needs_yes_in_scripts() {
    let (db, good) = db();
    let by_other = json!({ "restored-by": "other" });
    let of_same = json!({ "restored-from": snap("59-60") });
    let of_other = json!({ "restored-by": "rr2", "restored-from": snap("60-60") });
    let object = [("VolumeRestore", "rr", REPLACING)];
    for (labels, is_unrelated) in
        [(json!({ "app": "new" }), true), (of_other, true), (by_other, false), (of_same, false)]
    {
        let volumes = [labelled("1", "acc", labels.clone()), db.clone()];
        let fake = with_volumes(&volumes, std::slice::from_ref(&good), &[]);
        assert_eq!(planned(&fake, REPLACING), "created");
        let ran = run_on(&fake, "apply", &object);
        if !is_unrelated {
            assert_eq!(fake.changes(), ["POST /v1/cloudsnaps/restore-in-place"], "{labels} {ran:?}");
            continue;
        }
        let words = "VolumeRestore/rr: its backup is of another volume, db, 4 GiB, not of the existing acc\nhint: `--yes` replaces";
        assert!(ran.status == 5 && ran.stderr.contains(words), "{labels} {ran:?}");
        assert!(fake.changes().is_empty(), "{:?}", fake.changes());
        run_on(&fake, "apply --yes", &object);
        assert_eq!(fake.changes(), ["POST /v1/cloudsnaps/restore-in-place"], "{labels}");
    }
    // The volume of the backup.
    let into_db = REPLACING.replace("acc", "db");
    let fake = with_volumes(&[db], &[good], &[]);
    run_on(&fake, "apply", &[("VolumeRestore", "rr", &into_db)]);
    assert_eq!(fake.changes(), ["POST /v1/cloudsnaps/restore-in-place"]);
}

#[test]
fn replacing_restore_without_a_volume_warns_about_its_name() {
    let (db, good) = db();
    let spec = |more: &str| format!("backupLocation: nas, backupName: good, replacePolicy: Delete{more}");
    let words = "line 4: spec.replacePolicy: nothing is replaced: without `destinationVolume`, the restore is into volume rr, named after it";
    let existing = labelled("1", "rr", json!({ "restored-from": snap("59-60") }));
    for (volumes, more, is_told) in [
        (vec![db.clone()], "", true),
        (vec![db.clone()], ", destinationVolume: rr", false),
        (vec![db.clone(), existing], "", false),
        (vec![db], ", namespaceMapping: {}", false),
    ] {
        let fake = with_volumes(&volumes, std::slice::from_ref(&good), &[]);
        for command in ["diff", "apply --dry-run", "apply"] {
            let ran = run_on(&fake, command, &[("VolumeRestore", "rr", &spec(more))]);
            assert_eq!(ran.stderr.contains(words), is_told, "{command} {more} {ran:?}");
        }
    }
    // Into its own volume, several times.
    let listed = [backup("59-61", "good", ("59", "rr"))];
    let fake = with_volumes(&[labelled("59", "rr", json!({}))], &listed, &[]);
    assert!(!run_on(&fake, "diff", &[("VolumeRestore", "rr", &spec(""))]).stderr.contains(words));
}
