//! Objects of one call that make the same volume.

use crate::{
    plans::{backup, labelled, run_on, with_volumes},
    support::{snap, volume},
};
use serde_json::json;

#[test]
fn two_objects_of_one_volume_are_refused() {
    let shop = json!({ "namespace": "shop" });
    let mut good = backup("59-61", "good", ("59", "db"));
    good["labels"] = shop.clone();
    let backups = [good, backup("59-62", "later", ("59", "db"))];
    let fake = with_volumes(&[labelled("59", "db", shop)], &backups, &[]);
    let of = |name: &str, rest: &str| format!("backupLocation: nas, backupName: {name}, {rest}");
    let into =
        |name: &str, policy: &str| of(name, &format!("destinationVolume: db, replacePolicy: {policy}"));
    let all =
        |name: &str, policy: &str| of(name, &format!("namespaceMapping: {{}}, replacePolicy: {policy}"));
    let coming = ("VolumeBackup", "new", "backupLocation: nas, volume: db");
    let clone = ("VolumeClone", "sourceVolume: db, destinationVolume: copy".to_owned());
    let new = ("VolumeRestore", of("good", "destinationVolume: copy"));
    let mapped = ("VolumeRestore", of("good", "namespaceMapping: {shop: dev}"));
    let clones = ("VolumeClone", "sourceNamespace: shop, destinationNamespace: dev".to_owned());
    for (first, second, is_refused) in [
        (("VolumeRestore", all("good", "Delete")), ("VolumeRestore", all("later", "Delete")), true),
        (("VolumeRestore", all("good", "Delete")), ("VolumeRestore", all("later", "Retain")), true),
        (("VolumeRestore", into("good", "Delete")), ("VolumeRestore", into("good", "Delete")), true),
        (("VolumeRestore", all("good", "Delete")), ("VolumeRestore", into("later", "Delete")), true),
        (("VolumeRestore", all("new", "Delete")), ("VolumeRestore", into("good", "Delete")), true),
        (("VolumeRestore", into("good", "Retain")), ("VolumeRestore", into("later", "Delete")), true),
        (("VolumeRestore", into("good", "Retain")), ("VolumeRestore", into("later", "Retain")), true),
        (new.clone(), clone.clone(), true),
        (clone.clone(), clone, true),
        (mapped, clones, true),
        (("VolumeRestore", all("good", "Retain")), ("VolumeRestore", all("later", "Retain")), false),
    ] {
        let objects = [coming, (first.0, "a", &first.1), (second.0, "b", &second.1)];
        for command in ["diff", "apply --dry-run", "apply"] {
            if !is_refused && command == "apply" {
                continue;
            }
            let ran = run_on(&fake, command, &objects);
            let kind = second.0;
            let is_told = ran.stderr.contains(&format!("{kind}/b and {}/a, in ", first.0));
            assert_eq!((ran.status == 2, is_told), (is_refused, is_refused), "{objects:?} {ran:?}");
        }
    }
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
}

#[test]
fn renamed_volume_of_another_restore_is_refused() {
    let backups = [backup("59-61", "good", ("59", "db")), backup("59-62", "later", ("59", "db"))];
    let of_a = json!({ "restored-by": "a", "restored-from": snap("59-61") });
    let fake = with_volumes(&[volume("59", "db"), labelled("1", "moved", of_a)], &backups, &[]);
    let objects = [
        ("VolumeRestore", "a", "backupLocation: nas, backupName: good, destinationVolume: acc"),
        (
            "VolumeRestore",
            "b",
            "backupLocation: nas, backupName: later, destinationVolume: moved, replacePolicy: Delete",
        ),
    ];
    for command in ["diff", "apply --dry-run", "apply"] {
        let ran = run_on(&fake, command, &objects);
        let is_told = ran.stderr.contains("both make volume moved");
        assert_eq!((ran.status, is_told), (2, true), "{ran:?}");
    }
    assert!(fake.changes().is_empty(), "{:?}", fake.changes());
}
