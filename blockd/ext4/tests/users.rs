//! Files that use parts of an image.

use crate::common::{make, open};
use std::{fs, ops::Range};

/// Finds the block of an image that starts with a text.
fn block_of(image: &[u8], text: &[u8], block_len: usize) -> Range<u64> {
    let at = image.chunks(block_len).position(|block| block.starts_with(text)).unwrap() * block_len;
    at as u64..(at + block_len) as u64
}

#[test]
fn files_with_blocks_in_a_range_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("etc/deep")).unwrap();
    for number in 0..20 {
        let text = format!("file {number:02} {}", "x".repeat(5000));
        fs::write(source.join(format!("etc/deep/{number}")), text).unwrap();
    }
    fs::hard_link(source.join("etc/deep/3"), source.join("other")).unwrap();
    for (options, version) in [("", "ext2"), ("-O extents", "ext4")] {
        let path = make(dir.path(), "image", &format!("{options} -b 1024"), Some(&source), 16384);
        let (fs, image) = (open(&path), fs::read(&path).unwrap());
        assert_eq!(fs.version(), version);
        let ranges = [block_of(&image, b"file 07", 1024), block_of(&image, b"file 03", 1024)];
        let mut users = fs.users_of(&ranges, 10, &mut || true);
        users.found.sort();
        let found: Vec<_> =
            users.found.iter().map(|(index, path)| (*index, std::str::from_utf8(path).unwrap())).collect();
        assert_eq!(found, [(0, "/etc/deep/7"), (1, "/etc/deep/3"), (1, "/other")], "{version}");
        assert!(!users.is_incomplete);
        // The superblock is no file's, and the image's end is free.
        let others = [0..1024, image.len() as u64 - 1024..image.len() as u64];
        assert_eq!(fs.users_of(&others, 10, &mut || true).found, []);
        let mut steps = 0;
        let cut = fs.users_of(&ranges, 10, &mut || {
            steps += 1;
            steps < 5
        });
        assert!(cut.is_incomplete && steps <= 10, "{steps}");
        let whole = 0..image.len() as u64;
        let all = fs.users_of(std::slice::from_ref(&whole), 4, &mut || true);
        assert_eq!((all.found.len(), all.is_incomplete), (4, true));
    }
}
