//! Sources of restores: the backups and volumes that documents select.

use crate::{
    restores::{restored, with_backup},
    support::{CLUSTER, Fake, Ran, snap},
};

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
