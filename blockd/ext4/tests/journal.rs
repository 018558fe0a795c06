//! Journals that need recovery: the reader returns the same data as a copy replayed by e2fsck.
use crate::common::{ImageFile, content, debugfs, make, noise, open, run, tool};
use blockd_ext4::{ExtError, Filesystem, JournalState};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

const BLOCK: usize = 1024;
const FILE_BLOCKS: usize = 64;

/// Journal options of `debugfs`, and options of mke2fs.
const KINDS: [(&str, &str); 5] = [
    ("", "-t ext4 -b 1024 -I 256 -O has_journal,extents,^64bit,^metadata_csum"),
    ("", "-t ext4 -b 1024 -I 256 -O has_journal,extents,64bit,^metadata_csum"),
    ("-c -v 2", "-t ext4 -b 1024 -I 256 -O has_journal,extents,^64bit,metadata_csum"),
    ("-c -v 3", "-t ext4 -b 1024 -I 256 -O has_journal,extents,64bit,metadata_csum"),
    ("", "-t ext3 -b 1024 -I 256 -O has_journal,^64bit"),
];

struct Fixture {
    dir: tempfile::TempDir,
    image: PathBuf,
    /// Physical blocks of the file `data`.
    blocks: Vec<u64>,
}

fn fixture(options: &str) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("data"), noise(1, BLOCK * FILE_BLOCKS)).unwrap();
    let image = make(dir.path(), "image", options, Some(&source), 16 << 10);
    let output = debugfs(&image, &["blocks data".to_owned()]);
    let all: Vec<u64> = output.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // On ext3 the list includes the indirect block.
    let file = fs::read(&image).unwrap();
    let expected = noise(1, BLOCK * FILE_BLOCKS);
    let blocks: Vec<u64> = expected
        .chunks(BLOCK)
        .map(|chunk| *all.iter().find(|block| &file[**block as usize * BLOCK..][..BLOCK] == chunk).unwrap())
        .collect();
    Fixture { dir, image, blocks }
}

/// Transaction: written blocks of `data` with their bytes, and revoked blocks.
struct Transaction {
    writes: Vec<(usize, Vec<u8>)>,
    revokes: Vec<usize>,
    committed: bool,
}

fn transaction(seed: u64, writes: &[usize], revokes: &[usize]) -> Transaction {
    let writes = writes
        .iter()
        .map(|index| {
            let mut bytes = noise(seed * 1000 + *index as u64, BLOCK);
            // Some start with the journal's magic number, which is escaped.
            if index % 3 == 0 {
                bytes[..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
            }
            (*index, bytes)
        })
        .collect();
    Transaction { writes, revokes: revokes.to_vec(), committed: true }
}

impl Fixture {
    fn write_journal(&self, kind: &str, transactions: &[Transaction]) {
        let mut commands = vec![format!("jo {kind}")];
        for (number, transaction) in transactions.iter().enumerate() {
            let list = |indexes: &mut dyn Iterator<Item = usize>| {
                indexes.map(|index| self.blocks[index].to_string()).collect::<Vec<_>>().join(",")
            };
            // A separate transaction: debugfs cannot commit one that both writes and revokes.
            if !transaction.revokes.is_empty() {
                let blocks = list(&mut transaction.revokes.iter().copied());
                commands.push(format!("jw -r {blocks}"));
            }
            let path = self.dir.path().join(format!("blocks-{number}"));
            let bytes = transaction.writes.iter().flat_map(|(_, bytes)| bytes.iter().copied());
            fs::write(&path, bytes.collect::<Vec<u8>>()).unwrap();
            let blocks = list(&mut transaction.writes.iter().map(|(index, _)| *index));
            let commit = if transaction.committed { "" } else { "-c " };
            commands.push(format!("jw {commit}-b {blocks} {}", path.display()));
        }
        commands.push("jc".to_owned());
        debugfs(&self.image, &commands);
    }

    /// Returns a copy replayed by e2fsck.
    fn replayed_by_e2fsck(&self) -> Vec<u8> {
        let copy = self.dir.path().join("replayed");
        fs::copy(&self.image, &copy).unwrap();
        // The exit status reports the changes.
        let output = tool("e2fsck").args(["-y", "-E", "journal_only"]).arg(&copy).output().unwrap();
        assert!(output.status.code().is_some_and(|code| code < 4), "{output:?}");
        data(&copy)
    }
}

fn data(image: &Path) -> Vec<u8> {
    let fs = open(image);
    content(&fs, &fs.resolve(b"/data").unwrap())
}

#[test]
fn journal_replay_matches_e2fsck() {
    for (kind, options) in KINDS {
        let fixture = fixture(options);
        let mut last = transaction(5, &[0, 1, 2], &[]);
        last.committed = false;
        fixture.write_journal(
            kind,
            &[
                transaction(1, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], &[]),
                transaction(2, &[3, 20, 21], &[4, 5, 6]),
                // Revoked in one transaction and written in a later one.
                transaction(3, &[5, 33], &[21]),
                transaction(4, &(30..60).collect::<Vec<_>>(), &[0]),
                last,
            ],
        );
        let fs = open(&fixture.image);
        let JournalState::Replayed { transactions, blocks, damaged, fast_commits: false } = fs.info().journal
        else {
            unreachable!("{kind} {options}: {:?}", fs.info())
        };
        assert!(transactions == 7 && !damaged, "{kind} {options}: {transactions}");
        assert!(blocks >= 37, "{kind} {options}: {blocks}");
        let found = data(&fixture.image);
        let expected = fixture.replayed_by_e2fsck();
        let differ: Vec<usize> = (0..FILE_BLOCKS)
            .filter(|at| found[at * BLOCK..][..BLOCK] != expected[at * BLOCK..][..BLOCK])
            .collect();
        assert_eq!(differ, [0; 0], "{kind} {options}");
        // The replay had the expected effect.
        assert!(expected[..BLOCK] == noise(1, BLOCK), "revoked");
        assert!(expected[3 * BLOCK..][4..BLOCK] == noise(2003, BLOCK)[4..], "written twice");
        assert!(expected[5 * BLOCK..][..BLOCK] == noise(3005, BLOCK), "revoked and written again");
    }
}

/// Returns the byte offset of the block of the image with this content.
fn find(image: &[u8], bytes: &[u8]) -> usize {
    image.chunks(BLOCK).position(|block| block == bytes).unwrap() * BLOCK
}

#[test]
fn damaged_journal_block_is_not_applied() {
    for (kind, options) in &KINDS[2..4] {
        let fixture = fixture(options);
        fixture.write_journal(kind, &[transaction(1, &[1, 2, 4], &[])]);
        let mut image = fs::read(&fixture.image).unwrap();
        let at = find(&image, &noise(1002, BLOCK));
        image[at + 500] ^= 1;
        fs::write(&fixture.image, image).unwrap();
        let fs = open(&fixture.image);
        let inode = fs.resolve(b"/data").unwrap();
        let mut block = vec![0; BLOCK];
        assert!(matches!(fs.read(&inode, 2 * BLOCK as u64, &mut block), Err(ExtError::Damaged { .. })));
        fs.read(&inode, BLOCK as u64, &mut block).unwrap();
        assert!(block == noise(1001, BLOCK));
    }
}

#[test]
fn damaged_transaction_ends_journal() {
    for (kind, options) in &KINDS[2..4] {
        let fixture = fixture(options);
        fixture.write_journal(
            kind,
            &[transaction(1, &[1], &[]), transaction(2, &[2], &[]), transaction(3, &[4], &[])],
        );
        let mut image = fs::read(&fixture.image).unwrap();
        // The descriptor block of the second transaction precedes its data block.
        let at = find(&image, &noise(2002, BLOCK)) - BLOCK;
        image[at + 100] ^= 1;
        fs::write(&fixture.image, image).unwrap();
        assert!(matches!(
            open(&fixture.image).info().journal,
            JournalState::Replayed { damaged: true, transactions: 1 | 2, .. }
        ));
        let found = data(&fixture.image);
        assert!(found[BLOCK..2 * BLOCK] == noise(1001, BLOCK), "{kind}");
        let before = noise(1, BLOCK * FILE_BLOCKS);
        assert!(found[2 * BLOCK..5 * BLOCK] == before[2 * BLOCK..5 * BLOCK], "{kind}");
    }
}

#[test]
fn superblock_in_journal_replaces_primary_superblock() {
    let fixture = fixture(KINDS[0].1);
    let mut superblock = fs::read(&fixture.image).unwrap()[BLOCK..2 * BLOCK].to_vec();
    superblock[0x78..0x80].copy_from_slice(b"renamed\0");
    let path = fixture.dir.path().join("superblock");
    fs::write(&path, superblock).unwrap();
    debugfs(&fixture.image, &["jo".to_owned(), format!("jw -b 1 {}", path.display()), "jc".to_owned()]);
    assert_eq!(open(&fixture.image).info().label, b"renamed");
}

#[test]
fn invalid_journal_is_an_error() {
    let fixture = fixture(KINDS[3].1);
    fixture.write_journal("-c -v 3", &[transaction(1, &[1], &[])]);
    let image = fs::read(&fixture.image).unwrap();
    let superblock = image
        .chunks(BLOCK)
        .position(|block| block.starts_with(&0xc03b_3998_u32.to_be_bytes()) && block[4..8] == [0, 0, 0, 4])
        .unwrap();
    let file = File::options().write(true).open(&fixture.image).unwrap();
    file.write_all_at(&[0xff], superblock as u64 * BLOCK as u64 + 0x40).unwrap();
    let error = Filesystem::open(Arc::new(ImageFile::open(&fixture.image))).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
    run(tool("dumpe2fs").arg("-h").arg(&fixture.image));
}

#[test]
fn unreplayed_fast_commits_are_reported() {
    // A fast commit area needs a ring of at least 1024 blocks.
    let fixture = fixture(&format!("{} -J size=2", KINDS[3].1));
    fixture.write_journal("-c -v 3", &[transaction(1, &[1], &[])]);
    let mut image = fs::read(&fixture.image).unwrap();
    let fast = |image: &[u8]| {
        fs::write(&fixture.image, image).unwrap();
        match open(&fixture.image).info().journal {
            JournalState::Replayed { fast_commits, .. } => fast_commits,
            other => unreachable!("{other:?}"),
        }
    };
    assert!(!fast(&image));
    let magic = 0xc03b_3998_u32.to_be_bytes();
    let at =
        image.chunks(BLOCK).position(|block| block.starts_with(&magic) && block[7] == 4).unwrap() * BLOCK;
    let number = |image: &[u8], offset: usize| {
        u32::from_be_bytes(image[at + offset..at + offset + 4].try_into().unwrap())
    };
    // The fast commit area takes the end of the ring; the journal is contiguous.
    let (len, sequence) = (number(&image, 0x10), number(&image, 0x18));
    let area = 3;
    image[at + 0x28 + 3] |= 0x20;
    image[at + 0x54..at + 0x58].copy_from_slice(&u32::to_be_bytes(area));
    let superblock = &mut image[at..at + 1024];
    superblock[0xfc..0x100].fill(0);
    let sum = crc32c(superblock);
    superblock[0xfc..0x100].copy_from_slice(&sum.to_be_bytes());
    assert!(!fast(&image), "empty fast commit area");
    let head = at + (len - area + 1) as usize * BLOCK;
    for (tid, expected) in [(sequence, false), (sequence + 1, true), (sequence + 2, false)] {
        image[head..head + 4].copy_from_slice(&[9, 0, 8, 0]);
        image[head + 8..head + 12].copy_from_slice(&tid.to_le_bytes());
        assert_eq!(fast(&image), expected, "{tid}");
    }
}

/// Returns the CRC-32C as the journal stores it: initial value all ones, no final inversion.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| sum >> 1 ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}
