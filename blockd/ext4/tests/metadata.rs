//! Location of metadata, compared with dumpe2fs.
use crate::common::{make, open, run, tool};
use std::{collections::BTreeSet, fs, path::Path};

/// Returns the number after `name` in the output of dumpe2fs.
fn field(output: &str, name: &str) -> u64 {
    let line = output.lines().find(|line| line.starts_with(name)).unwrap();
    line[name.len()..].trim_start_matches(':').trim().parse().unwrap()
}

/// Returns the number that follows `name`.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = &text[text.find(name)? + name.len()..];
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn number_before(text: &str, name: &str) -> Option<u64> {
    let before = &text[..text.find(name)?];
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Returns the blocks of inodes in use and of bitmaps.
fn expected(image: &Path) -> BTreeSet<u64> {
    let output = run(tool("dumpe2fs").arg(image));
    let (block_len, inode_len) = (field(&output, "Block size"), field(&output, "Inode size"));
    let per_group = field(&output, "Inodes per group");
    let mut blocks = BTreeSet::new();
    let mut groups: Vec<String> = Vec::new();
    for line in output.lines() {
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
        blocks.extend(number_after(group, "Block bitmap at "));
        blocks.extend(number_after(group, "Inode bitmap at "));
        let table = number_after(group, "Inode table at ").unwrap();
        let len = ((per_group - unused) * inode_len).div_ceil(block_len);
        blocks.extend(table..table + len);
    }
    blocks
}

#[test]
fn metadata_ranges_match_dumpe2fs() {
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
        let expected = expected(&image);
        assert!(expected.len() > 3, "{options}");
        let missing: Vec<_> = expected.difference(&found).collect();
        assert!(missing.is_empty(), "{options}: {missing:?}");
        // The rest is the superblock, the descriptors and the journal.
        let rest = found.len() - expected.len();
        assert!(rest as u64 <= 4096 / block_len + 64, "{options}: {rest}");
        assert!(fs.metadata(3).len() <= 3);
    }
}
