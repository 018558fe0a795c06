//! Tests of the offline check.

use crate::support::{paths_in, volume_dir};
use blockd_extent::{SnapshotId, VolumeId};
use blockd_volume::Volume;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Creates a volume with two frozen layers and a head, and crashes its process; returns the directory.
fn crashed_volume() -> (tempfile::TempDir, PathBuf) {
    let (root, dir) = volume_dir();
    let volume = Volume::create(&dir, VolumeId::from_u64(8), 4 << 20).unwrap();
    for round in 0..3u64 {
        volume.write(round * 8192, &[round as u8 + 1; 12288], true).unwrap();
        if round < 2 {
            volume.freeze(SnapshotId::from_u64(round + 1)).unwrap();
        }
    }
    volume.write(1 << 20, &[9; 4096], false).unwrap();
    volume.flush().unwrap();
    (root, dir)
}

/// Returns the content and modification time of each file.
fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    paths_in(dir)
        .into_iter()
        .map(|path| {
            let changed = path.metadata().unwrap().modified().unwrap();
            (path.clone(), (std::fs::read(path).unwrap(), changed))
        })
        .collect()
}

/// Returns the first file with this text in its path.
fn find_file(dir: &Path, contains: &str) -> PathBuf {
    paths_in(dir).into_iter().find(|path| path.to_string_lossy().contains(contains)).unwrap()
}

#[test]
fn offline_check_of_crashed_volume_is_clean() {
    let (_root, dir) = crashed_volume();
    std::fs::write(dir.join("layer-0000000000000009.g0.set"), b"unfinished").unwrap();
    let log = find_file(&dir, ".log");
    let whole = std::fs::read(&log).unwrap();
    // Preallocated zeroes follow the records.
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    std::fs::write(&log, [&whole[..end], b"BREC torn", &[0; 512]].concat()).unwrap();
    let before = files(&dir);
    let checked = Volume::check_files(&dir);
    assert_eq!(checked.findings, Vec::<String>::new());
    assert_eq!((checked.layers, checked.shared_layers, checked.intervals), (3, 0, 2));
    assert_eq!(checked.leftovers.len(), 2, "{:?}", checked.leftovers);
    assert!(checked.leftovers[0].contains("9 bytes"), "{:?}", checked.leftovers);
    assert!(checked.leftovers[1].contains("is unreferenced"), "{:?}", checked.leftovers);
    assert!(files(&dir) == before);
}

#[test]
fn missing_map_is_named() {
    let (_root, dir) = crashed_volume();
    let map = find_file(&dir, ".map");
    std::fs::remove_file(&map).unwrap();
    let findings = Volume::check_files(&dir).findings;
    assert_eq!(findings.len(), 1, "{findings:?}");
    let map = map.display().to_string();
    assert!(findings[0].starts_with(&map) && findings[0].contains("the next start discards"), "{findings:?}");
}

#[test]
fn damage_is_named() {
    type Damage = fn(&Path);
    let flip: Damage = |path| {
        let mut bytes = std::fs::read(path).unwrap();
        // In a log this byte belongs to the first of two records.
        let at = bytes.len().min(80) - 1;
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    let remove: Damage = |path| std::fs::remove_file(path).unwrap();
    let cut: Damage =
        |path| std::fs::File::options().write(true).open(path).unwrap().set_len(1 << 20).unwrap();
    let cases = [
        ("volume.meta", flip),
        ("volume.meta", remove),
        ("0001.data", cut),
        ("0002.data", remove),
        ("0001.g0.set", flip),
        ("0002.g0.set", remove),
        ("0003.log", flip),
        ("0003.log", remove),
    ];
    for (name, damage) in cases {
        let (_root, dir) = crashed_volume();
        let path = find_file(&dir, name);
        damage(&path);
        let findings = Volume::check_files(&dir).findings;
        let all_name_it = findings.iter().all(|line| line.contains(name));
        assert!(!findings.is_empty() && all_name_it, "{name}: {findings:?}");
    }
}
