//! Tests of this module.

use super::*;

fn entry(name: &str, state: EntryState) -> Arc<VolumeEntry> {
    let row = VolumeRow::new(VolumeId::from_u64(7), name.parse().unwrap(), 4096);
    VolumeEntry::new(&row, state)
}

#[test]
fn connected_volume_is_not_deleted_and_accepts_no_clients() {
    let dir = tempfile::tempdir().unwrap();
    let volume = Volume::create(&dir.path().join("7"), VolumeId::from_u64(7), 1 << 20).unwrap();
    let entry = entry("data", EntryState::Up(volume));
    let (_, client) = entry.connect().unwrap();
    let error = entry.begin_delete().err().unwrap();
    assert_eq!(
        (error.code, error.message.contains("1 NBD connection or browse read:")),
        (ErrorCode::VolumeInUse, true)
    );
    drop(client);
    let before = entry.begin_delete().unwrap();
    assert!(matches!(before, EntryState::Up(_)));
    assert!(entry.connect().is_err());
    assert!(entry.begin_delete().is_err());
    entry.undo_delete(before);
    assert!(entry.connect().is_ok() && !entry.stop_merges.load(Ordering::Relaxed));
    let (_, client) = entry.connect().unwrap();
    assert_eq!(entry.begin_rollback().err().unwrap().code, ErrorCode::VolumeInUse);
    drop(client);
    let (_, mark) = entry.begin_rollback().unwrap();
    for refused in [entry.connect().err(), entry.begin_rollback().err(), entry.begin_delete().err()] {
        let refused = refused.unwrap();
        assert!(refused.code == ErrorCode::VolumeInUse && refused.message.contains("rolled back"));
    }
    drop(mark);
    assert!(entry.connect().is_ok());
}

#[test]
fn volume_in_creation_is_not_deleted() {
    let entry = entry("data", EntryState::Creating);
    assert_eq!(entry.begin_delete().err().unwrap().code, ErrorCode::VolumeInUse);
    assert_eq!(entry.connect().err().unwrap().code, ErrorCode::VolumeNotReady);
}

#[test]
fn names_are_reserved_once() {
    let registry = Registry::default();
    registry.reserve(&entry("data", EntryState::Restoring)).unwrap();
    let error = registry.reserve(&entry("data", EntryState::Restoring)).unwrap_err();
    assert_eq!(error.code, ErrorCode::VolumeExists);
    assert!(registry.find(&"7".parse().unwrap()).is_ok());
    assert!(registry.find(&"other".parse().unwrap()).is_err());
}

#[test]
fn former_name_is_reserved_until_the_rename_ends() {
    let registry = Registry::default();
    let former = entry("old", EntryState::Restoring);
    registry.reserve(&former).unwrap();
    let renamed = registry.rename(&former, "new".parse().unwrap()).unwrap();
    let other = entry("old", EntryState::Creating);
    assert_eq!(registry.reserve(&other).unwrap_err().code, ErrorCode::VolumeExists);
    registry.undo_rename(&renamed, &former);
    assert_eq!(names(&registry), ["old"]);

    registry.rename(&former, "new".parse().unwrap()).unwrap();
    registry.end_rename(&former);
    registry.reserve(&other).unwrap();
    // The former entry refers to neither name, and its removal removes its volume.
    let error = registry.rename(&former, "third".parse().unwrap()).unwrap_err();
    assert_eq!(error.code, ErrorCode::VolumeNotFound);
    assert_eq!(names(&registry), ["new", "old"]);
    registry.remove(&former);
    assert_eq!(names(&registry), ["old"]);
}

fn names(registry: &Registry) -> Vec<String> {
    registry.all().iter().map(|entry| entry.name.to_string()).collect()
}
