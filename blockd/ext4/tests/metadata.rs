//! Tests of the metadata location against dumpe2fs.
use crate::common::{make, open, run, tool};
use std::{collections::BTreeSet, fs, path::Path};

/// The number behind `name` in what dumpe2fs says of the filesystem as a whole.
fn field(said: &str, name: &str) -> u64 {
    let line = said.lines().find(|line| line.starts_with(name)).unwrap();
    line[name.len()..].trim_start_matches(':').trim().parse().unwrap()
}

/// The number that begins behind `name`.
fn number_behind(text: &str, name: &str) -> Option<u64> {
    let rest = &text[text.find(name)? + name.len()..];
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn number_before(text: &str, name: &str) -> Option<u64> {
    let before = &text[..text.find(name)?];
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The blocks of inodes in use, bitmaps and group descriptors.
fn expected(image: &Path) -> BTreeSet<u64> {
    let said = run(tool("dumpe2fs").arg(image));
    let (block_len, inode_len) = (field(&said, "Block size"), field(&said, "Inode size"));
    let per_group = field(&said, "Inodes per group");
    let mut blocks = BTreeSet::new();
    let mut groups: Vec<String> = Vec::new();
    for line in said.lines() {
        if line.starts_with("Group ") && line.contains("(Blocks") {
            groups.push(String::new());
        }
        if let Some(group) = groups.last_mut() {
            group.push_str(line);
            group.push('\n');
        }
    }
    assert!(!groups.is_empty());
    for group in &groups {
        let unused = number_before(group, " unused inodes").unwrap_or(0);
        if unused == per_group {
            continue;
        }
        blocks.extend(number_behind(group, "Block bitmap at "));
        blocks.extend(number_behind(group, "Inode bitmap at "));
        let table = number_behind(group, "Inode table at ").unwrap();
        let len = ((per_group - unused) * inode_len).div_ceil(block_len);
        blocks.extend(table..table + len);
    }
    blocks
}

#[test]
fn metadata_is_where_dumpe2fs_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    for number in 0..120 {
        fs::create_dir_all(source.join(format!("{number}"))).unwrap();
        fs::write(source.join(format!("{number}/file")), vec![1; number * 100]).unwrap();
    }
    for options in [
        "-t ext2 -b 1024 -g 1024 -I 128",
        "-t ext3 -b 2048 -O has_journal,filetype,dir_index,sparse_super -I 256",
        "-t ext4 -b 4096 -O has_journal,extents,64bit,flex_bg,metadata_csum -I 256",
        "-t ext4 -b 1024 -g 1024 -O has_journal,extents,64bit,^flex_bg,metadata_csum,^resize_inode -I 256",
        "-t ext4 -b 1024 -g 512 -O extents,64bit,metadata_csum,meta_bg,^resize_inode,^sparse_super -I 256",
        "-t ext4 -b 1024 -g 1024 -O extents,^64bit,flex_bg,^metadata_csum,uninit_bg -I 256",
        "-t ext4 -b 1024 -C 16384 -O extents,64bit,flex_bg,metadata_csum,bigalloc -I 256",
    ] {
        let image = make(dir.path(), "image", options, Some(&source), 24 << 10);
        let fs = open(&image);
        let block_len = u64::from(fs.info().block_len_bytes);
        let ranges = fs.metadata(usize::MAX);
        assert_eq!(ranges[0].start, 0, "{options}");
        assert!(ranges.iter().all(|range| range.start < range.end && range.end <= fs.info().size_bytes));
        let found: BTreeSet<u64> =
            ranges.iter().flat_map(|range| range.start / block_len..range.end.div_ceil(block_len)).collect();
        let wanted = expected(&image);
        assert!(wanted.len() > 3, "{options}");
        let missing: Vec<_> = wanted.difference(&found).collect();
        assert!(missing.is_empty(), "{options}: {missing:?}");
        // The rest is the superblock, the descriptors and the journal.
        let most = 4096 / block_len + 64;
        assert!((found.len() - wanted.len()) as u64 <= most, "{options}: {}", found.len() - wanted.len());
        assert!(fs.metadata(3).len() <= 3);
    }
}
