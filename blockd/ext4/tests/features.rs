//! Images created by e2fsprogs with many combinations of features: the reader returns the files of their
//! source directory.
use crate::common::{Bytes, Compare, ImageFile, compare, debugfs, make, noise, open};
use blockd_ext4::{Device, ExtError, FileKind, Filesystem, InodeNumber, JournalState, Structure, Timestamp};
use std::{
    fs::{self, File},
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

/// Combinations of features: name, and options of mke2fs.
pub const SETS: [(&str, &str); 20] = [
    ("ext2, 1k", "-t ext2 -b 1024 -O ^resize_inode,^dir_index -I 128"),
    ("ext2, 4k", "-t ext2 -b 4096 -O ext_attr -I 256"),
    ("revision 0", "-t ext2 -b 1024 -r 0 -O none"),
    ("ext3, 2k", "-t ext3 -b 2048 -O ext_attr,has_journal,filetype,dir_index,sparse_super -I 256"),
    ("ext3, 1k, 128-byte inodes", "-t ext3 -b 1024 -O ext_attr,has_journal -I 128"),
    (
        "ext4, 1k",
        "-t ext4 -b 1024 -O ext_attr,extents,64bit,flex_bg,metadata_csum,extra_isize,huge_file,dir_nlink,dir_index -I 256",
    ),
    (
        "ext4, 2k",
        "-t ext4 -b 2048 -O ext_attr,extents,64bit,flex_bg,metadata_csum,extra_isize,huge_file -I 256",
    ),
    (
        "ext4, 4k",
        "-t ext4 -b 4096 -O ext_attr,ext_attr,has_journal,extents,64bit,flex_bg,metadata_csum,extra_isize,huge_file,dir_index -I 256",
    ),
    ("ext4, 64k", "-t ext4 -b 65536 -O ext_attr,extents,64bit,metadata_csum,extra_isize -I 512"),
    ("no extents", "-t ext4 -b 1024 -O ext_attr,^extents,^64bit,^flex_bg,metadata_csum,extra_isize -I 256"),
    ("no 64bit", "-t ext4 -b 1024 -O ext_attr,extents,^64bit,flex_bg,metadata_csum -I 256"),
    ("gdt_csum", "-t ext4 -b 1024 -O ext_attr,extents,^64bit,flex_bg,^metadata_csum,uninit_bg -I 256"),
    ("gdt_csum, 64bit", "-t ext4 -b 1024 -O ext_attr,extents,64bit,flex_bg,^metadata_csum,uninit_bg -I 256"),
    (
        "no flex_bg",
        "-t ext4 -b 1024 -g 1024 -O ext_attr,extents,64bit,^flex_bg,metadata_csum,^resize_inode -I 256",
    ),
    (
        "meta_bg",
        "-t ext4 -b 1024 -g 512 -O ext_attr,extents,64bit,flex_bg,metadata_csum,meta_bg,^resize_inode -I 256",
    ),
    (
        "meta_bg without sparse_super",
        "-t ext4 -b 1024 -g 512 -O ext_attr,extents,^64bit,metadata_csum,meta_bg,^resize_inode,^sparse_super -I 256",
    ),
    (
        "sparse_super2",
        "-t ext4 -b 1024 -g 512 -O ext_attr,extents,64bit,meta_bg,sparse_super2,^resize_inode,metadata_csum -I 256",
    ),
    ("inline_data", "-t ext4 -b 1024 -O ext_attr,extents,64bit,metadata_csum,inline_data,extra_isize -I 512"),
    ("bigalloc", "-t ext4 -b 1024 -C 16384 -O ext_attr,extents,64bit,flex_bg,metadata_csum,bigalloc -I 256"),
    (
        "large_dir, ea_inode, seed, casefold, quota",
        "-t ext4 -b 4096 -E encoding=utf8 -O ext_attr,extents,64bit,metadata_csum,metadata_csum_seed,large_dir,ea_inode,quota,project,casefold,verity,mmp -I 256",
    ),
];

/// Fills a directory with files, links, times and attributes that mke2fs copies.
fn fill(root: &Path) {
    fs::create_dir_all(root.join("dir/deeper/still")).unwrap();
    for number in 0..300 {
        let name = format!("dir/a file with a name that takes some room in its directory, number {number}");
        fs::write(root.join(name), noise(number, number as usize)).unwrap();
    }
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("dir/deeper/still/large"), noise(7, 1_500_003)).unwrap();
    for len in [1, 59, 60, 61, 100, 160, 250, 1024, 4096, 70_000] {
        fs::write(root.join(format!("len-{len}")), noise(len, len as usize)).unwrap();
    }
    let sparse = File::create(root.join("sparse")).unwrap();
    for at in [0u64, 5000, 100_000, 300_000, 1_000_000, 30_000_000] {
        sparse.write_all_at(&noise(at, 3000), at).unwrap();
    }
    for len in [1, 58, 59, 60, 61, 200, 1000] {
        std::os::unix::fs::symlink("x".repeat(len), root.join(format!("link-{len}"))).unwrap();
    }
    std::os::unix::fs::symlink("dir/deeper", root.join("way")).unwrap();
    fs::write(root.join(std::ffi::OsStr::from_bytes(b"\xff\xfe\n\x1b[31m")), b"odd").unwrap();
    fs::write(root.join("n".repeat(255)), b"long").unwrap();
    for (number, seconds) in [0u64, 1_000_000_000, 2_147_483_647].into_iter().enumerate() {
        let file = File::create(root.join(format!("time-{number}"))).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    }
    fs::write(root.join("with-xattrs"), b"x").unwrap();
    for (name, len) in [("user.a", 3), ("user.empty", 0), ("user.long", 700)] {
        let value = noise(len, len as usize);
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(root.join("with-xattrs"), name, &value, flags).unwrap();
    }
}

pub fn filled() -> (tempfile::TempDir, PathBuf) {
    // Not in /tmp: a tmpfs may lack user extended attributes.
    let dir = tempfile::Builder::new().tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = dir.path().join("source");
    fill(&source);
    (dir, source)
}

#[test]
fn feature_combinations_are_read() {
    let (dir, source) = filled();
    for (name, options) in SETS {
        println!("{name}");
        let image = make(dir.path(), "image", options, Some(&source), 24 << 10);
        let fs = open(&image);
        let how = Compare {
            nanoseconds: false,
            dir_times: false,
            xattrs: options.contains("ext_attr"),
            owners: true,
            allocation: false,
        };
        let count = compare(&fs, InodeNumber::ROOT, &source, how);
        assert!(count > 330, "{name}: {count}");
        let state = if options.contains("has_journal") || options.contains("-t ext3") {
            JournalState::Clean
        } else {
            JournalState::None
        };
        assert_eq!(fs.info().journal, state, "{name}");
    }
}

#[test]
fn unsupported_feature_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let image = make(dir.path(), "image", "-t ext2 -b 1024", None, 256);
    let refused = |at: u64, bytes: &[u8]| {
        let copy = dir.path().join("copy");
        fs::copy(&image, &copy).unwrap();
        File::options().write(true).open(&copy).unwrap().write_all_at(bytes, 1024 + at).unwrap();
        Filesystem::open(Arc::new(ImageFile::open(&copy))).unwrap_err()
    };
    assert!(refused(0x60, &[1, 0x10, 0, 0]).to_string().contains("compression and dirdata"));
    assert!(
        matches!(refused(0x60, &[0, 0, 0, 0x40]), ExtError::Unsupported { feature } if feature.contains("0x40000000"))
    );
    assert!(matches!(refused(0x38, &[0]), ExtError::NoFilesystem));
    for (at, bytes) in [(0x4, &[0xff; 4][..]), (0x18, &[7]), (0x20, &[0; 4]), (0x28, &[0; 4]), (0x58, &[129])]
    {
        let error = refused(at, bytes);
        assert!(
            matches!(error, ExtError::Damaged { structure: Structure::Superblock, .. }),
            "{at:#x}: {error}"
        );
        assert!(!error.is_retryable());
    }
    // An external journal that needs recovery.
    let compat = fs::read(&image).unwrap()[1024 + 0x5c] | 4;
    let copy = make(dir.path(), "external", "-t ext2 -b 1024", None, 256);
    let file = File::options().write(true).open(&copy).unwrap();
    for (at, byte) in [(0x5c, compat), (0x60, 0x6), (0xe4, 1)] {
        file.write_all_at(&[byte], 1024 + at).unwrap();
    }
    let error = Filesystem::open(Arc::new(ImageFile::open(&copy))).unwrap_err();
    assert!(error.to_string().contains("external journal"), "{error}");
    let names_device = || blockd_ext4::names_journal_device(&ImageFile::open(&copy)).unwrap();
    assert!(names_device());
    file.write_all_at(&[0; 4], 1024 + 0x4c).unwrap();
    assert!(names_device(), "the kernel opens it in revision 0, too");
    file.write_all_at(&[0], 1024 + 0xe4).unwrap();
    assert!(!names_device());
}

#[test]
fn paths_resolve_links_within_the_filesystem() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("a/b/c")).unwrap();
    fs::write(source.join("a/b/file"), b"found").unwrap();
    for (target, link) in [
        ("/a/b", "abs"),
        ("b/../b/c", "a/rel"),
        ("../../../..", "a/b/up"),
        ("loop", "loop"),
        ("loop/x", "loop2"),
    ] {
        std::os::unix::fs::symlink(target, source.join(link)).unwrap();
    }
    let fs = open(&make(dir.path(), "image", "-t ext4 -b 1024", Some(&source), 4096));
    let file = fs.resolve(b"/a/b/file").unwrap().number;
    for path in ["abs/file", "/abs/../b/file", "//a/./rel/../file", "/a/b/up/abs/file", "../../a/b/file"] {
        assert_eq!(fs.resolve(path.as_bytes()).unwrap().number, file, "{path}");
    }
    assert_eq!(fs.resolve(b"/abs").unwrap().kind, FileKind::Symlink, "the last link is not followed");
    assert!(matches!(fs.resolve(b"/loop/x"), Err(ExtError::TooManyLinks)));
    assert!(matches!(fs.resolve(b"/loop2/x"), Err(ExtError::TooManyLinks)));
    assert!(matches!(fs.resolve(b"/a/b/file/x"), Err(ExtError::NotADirectory)));
    assert!(matches!(fs.resolve(b"/a/nothing"), Err(ExtError::NotFound)));
}

#[test]
fn device_nodes_times_and_owners_set_by_debugfs_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let image = make(dir.path(), "image", "-t ext4 -b 1024 -I 256", None, 1024);
    let commands = [
        "mknod block b 8 1",
        "mknod wide c 260 60000",
        "mknod pipe p",
        "mkdir d",
        "sif d uid 70000",
        "sif d gid 4000000000",
        "sif pipe mode 010640",
        // Half a second after a time beyond 2038, and before 1970.
        "sif block mtime_lo 0x80000001",
        "sif block mtime_extra 0x77359401",
        "sif wide mtime_lo 0xfffffffe",
        "sif wide mtime_extra 0x77359400",
    ];
    debugfs(&image, &commands.map(str::to_owned));
    let fs = open(&image);
    let block = fs.resolve(b"/block").unwrap();
    assert_eq!(block.device, Some(Device { major: 8, minor: 1 }));
    assert_eq!(block.modified, Timestamp { seconds: 0x8000_0001, nanoseconds: 500_000_000 });
    let wide = fs.resolve(b"/wide").unwrap();
    assert_eq!((wide.kind, wide.device), (FileKind::CharDevice, Some(Device { major: 260, minor: 60_000 })));
    assert_eq!(wide.modified, Timestamp { seconds: -2, nanoseconds: 500_000_000 });
    let inode = fs.resolve(b"/d").unwrap();
    assert_eq!((inode.uid, inode.gid, inode.links), (70_000, 4_000_000_000, 2));
    let pipe = fs.resolve(b"/pipe").unwrap();
    assert_eq!((pipe.kind, pipe.mode, pipe.device), (FileKind::Fifo, 0o640, None));
}

#[test]
fn encrypted_directory_is_refused_alone() {
    let dir = tempfile::tempdir().unwrap();
    let image = make(dir.path(), "image", "-t ext4 -b 1024 -I 256 -O encrypt", None, 1024);
    let commands = ["mkdir secret", "mkdir open", "sif secret flags 0x80800"].map(str::to_owned);
    debugfs(&image, &commands);
    let fs = open(&image);
    let secret = fs.resolve(b"/secret").unwrap();
    assert!(secret.is_encrypted());
    assert!(matches!(fs.read_dir(&secret, 10), Err(ExtError::Unsupported { .. })));
    assert!(matches!(fs.resolve(b"/secret/x"), Err(ExtError::Unsupported { .. })));
    assert_eq!(fs.read_dir(&fs.resolve(b"/open").unwrap(), 10).unwrap(), []);
}

#[test]
fn flipped_bit_in_any_checksummed_metadata_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("many")).unwrap();
    for number in 0..200 {
        fs::write(source.join(format!("many/a name that is rather long {number}")), b"").unwrap();
    }
    // Every second block is a hole, so that the extents need a node outside of the inode.
    let file = File::create(source.join("holes")).unwrap();
    for index in 0..50u64 {
        file.write_all_at(&[7; 1024], index * 2048).unwrap();
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(source.join("holes"), "user.long", &[9; 600], flags).unwrap();
    let options = "-t ext4 -b 1024 -I 256 -O ext_attr,extents,metadata_csum,64bit,dir_index";
    let image = make(dir.path(), "image", options, Some(&source), 4096);
    let good = fs::read(&image).unwrap();
    let block_of = |command: &str| -> usize {
        let output = debugfs(&image, &[command.to_owned()]);
        let mut words = output.split_whitespace().rev();
        let number = words.find_map(|word| word.trim_end_matches(')').parse().ok());
        number.unwrap_or_else(|| unreachable!("{output}"))
    };
    let directory = block_of("bmap many 0") * 1024;
    let attributes = good.windows(600).position(|window| window == [9; 600]).unwrap() / 1024 * 1024;
    let node = good.chunks(1024).position(|block| block.starts_with(&[0x0a, 0xf3])).unwrap() * 1024;
    let walk = |image: Vec<u8>| -> Result<(), ExtError> {
        let fs = Filesystem::open(Arc::new(Bytes(image)))?;
        let many = fs.resolve(b"/many")?;
        assert_eq!(fs.read_dir(&many, 1000)?.len(), 200);
        let holes = fs.resolve(b"/holes")?;
        assert_eq!(fs.xattrs(&holes)?.len(), 1);
        fs.read(&holes, 0, &mut [0; 100_000])?;
        Ok(())
    };
    walk(good.clone()).unwrap();
    for (structure, at) in [
        ("superblock", 1024 + 0x78),
        ("group", 2048 + 0x10),
        ("directory", directory + 600),
        ("attributes", attributes + 700),
        ("node", node + 700),
        ("node", node + 14),
    ] {
        let mut image = good.clone();
        image[at] ^= 0x10;
        assert!(matches!(walk(image), Err(ExtError::Damaged { .. })), "{structure}");
    }
}
