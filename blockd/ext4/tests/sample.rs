//! Samples of files.
use crate::common::{content, make, noise, open};
use blockd_ext4::{FileKind, InodeNumber};
use std::{collections::BTreeSet, fs};

#[test]
fn random_files_are_all_regular_files_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("dir")).unwrap();
    let mut lengths = BTreeSet::new();
    for number in 0..40 {
        fs::write(source.join(format!("dir/{number}")), vec![1; number + 1]).unwrap();
        lengths.insert(number as u64 + 1);
    }
    std::os::unix::fs::symlink("x".repeat(70), source.join("link")).unwrap();
    for (options, version) in [("", "ext2"), ("-j", "ext3"), ("-O extents,uninit_bg -g 1024", "ext4")] {
        let fs = open(&make(dir.path(), "image", &format!("{options} -N 512 -b 1024"), Some(&source), 16384));
        assert_eq!(fs.version(), version);
        let mut found = BTreeSet::new();
        for bytes in noise(3, 8 * 40_000).chunks_exact(8) {
            let random = u64::from_le_bytes(bytes.try_into().unwrap());
            let Some(inode) = fs.random_file(random).unwrap() else { continue };
            assert!(inode.kind == FileKind::Regular && inode.number > InodeNumber(10));
            if found.insert(inode.size_bytes) {
                assert_eq!(content(&fs, &inode), vec![1; inode.size_bytes as usize]);
            }
        }
        assert_eq!(found, lengths, "{options}");
    }
}
