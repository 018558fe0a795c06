//! Damaged images: operations end with a result or an error, without a panic.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod common;

use blockd_ext4::{
    ExtError, Filesystem, ReadAt,
    check::{Finding, Limits, Problem},
};
use blockd_testkit::ext4::explore;
use common::{Bytes, debugfs, make, noise};
use std::{
    fs::{self, File},
    io,
    ops::ControlFlow,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// Options of mke2fs. Most sets have no metadata checksums, which would detect the damage early.
const KINDS: [&str; 4] = [
    "-t ext2 -b 1024 -O ext_attr,filetype,sparse_super,dir_index -I 256",
    "-t ext4 -b 1024 -O ext_attr,extents,64bit,flex_bg,^metadata_csum,has_journal,ea_inode -J size=1 -I 256",
    "-t ext4 -b 1024 -O ext_attr,extents,^64bit,^metadata_csum,inline_data -I 512",
    "-t ext4 -b 1024 -O ext_attr,extents,64bit,metadata_csum,large_dir -I 256",
];

fn image(kind: &str) -> Vec<u8> {
    let dir = tempfile::Builder::new().tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("a/b")).unwrap();
    for number in 0..60 {
        fs::write(source.join(format!("a/b/some name {number}")), noise(number, 30)).unwrap();
    }
    fs::write(source.join("large"), noise(1, 300_000)).unwrap();
    let file = File::create(source.join("holes")).unwrap();
    for index in 0..40u64 {
        file.write_all_at(&[7; 1024], index * 3072).unwrap();
    }
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(source.join("holes"), "user.long", &[9; 600], flags).unwrap();
    rustix::fs::setxattr(source.join("large"), "user.short", &[9; 6], flags).unwrap();
    std::os::unix::fs::symlink("a/b", source.join("fast")).unwrap();
    std::os::unix::fs::symlink("x/".repeat(100), source.join("slow")).unwrap();
    let path: PathBuf = make(dir.path(), "image", kind, Some(&source), 4096);
    if kind.contains("has_journal") {
        // Writes and revocations of data blocks.
        let bytes = dir.path().join("bytes");
        fs::write(&bytes, noise(3, 8 * 1024)).unwrap();
        let commands = [
            "jo".to_owned(),
            format!("jw -b 1000,1001,1002,1003 -r 900,901 {}", bytes.display()),
            "jc".to_owned(),
        ];
        debugfs(&path, &commands);
    }
    fs::read(path).unwrap()
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

#[test]
fn damaged_images_are_errors_without_a_panic() {
    for (number, kind) in KINDS.into_iter().enumerate() {
        let good = image(kind);
        assert!(explore(good.clone()) >= 60, "{kind}");
        // Metadata and some data: the nonzero bytes of the first half.
        let offsets: Vec<usize> = (1024..good.len() / 2).filter(|at| good[*at] != 0).collect();
        let mut random = Random(0x1234_5678_9abc_def1 + number as u64);
        for _ in 0..250 {
            let mut image = good.clone();
            for _ in 0..1 + random.below(20) {
                // Preferably the superblock and the group descriptors, which locate all other structures.
                let at = match random.below(4) {
                    0 => 1024 + random.below(2048),
                    _ => offsets[random.below(offsets.len())],
                };
                image[at] = match random.below(3) {
                    0 => 0xff,
                    1 => image[at] ^ 1 << random.below(8),
                    _ => random.below(256) as u8,
                };
            }
            explore(image);
        }
    }
}

/// Fake image with a switchable outage.
struct Failing {
    image: Bytes,
    failing: AtomicBool,
}

impl ReadAt for Failing {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn read_exact_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.failing.load(Relaxed) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.image.read_exact_at(offset_bytes, buf)
    }
}

#[test]
fn image_error_is_returned_and_not_cached() {
    let source = Arc::new(Failing { image: Bytes(image(KINDS[1])), failing: AtomicBool::new(true) });
    let open = || Filesystem::open(source.clone());
    assert!(open().unwrap_err().is_retryable());
    source.failing.store(false, Relaxed);
    let fs = open().unwrap();
    source.failing.store(true, Relaxed);
    let error = fs.resolve(b"/a/b/some name 7").unwrap_err();
    assert!(error.is_retryable(), "{error}");
    source.failing.store(false, Relaxed);
    let inode = fs.resolve(b"/a/b/some name 7").unwrap();
    let mut buf = [0; 100];
    source.failing.store(true, Relaxed);
    assert!(fs.read(&inode, 0, &mut buf).unwrap_err().is_retryable());
    source.failing.store(false, Relaxed);
    assert_eq!(fs.read(&inode, 0, &mut buf).unwrap(), 30);
    assert_eq!(buf[..30], noise(7, 30));
}

#[test]
fn open_of_1_tib_filesystem_reads_less_than_64_kib() {
    let dir = tempfile::Builder::new().tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("image");
    File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let mut command = crate::common::tool("mke2fs");
    let options = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        "-O",
        "extents,64bit,bigalloc,sparse_super,filetype",
        "-C",
        "1m",
        "-N",
        "100000",
    ];
    crate::common::run(command.env("MKE2FS_CONFIG", "/dev/null").args(options).arg(&path));
    let source = crate::common::ImageFile::open(&path);
    let count = source.read_bytes.clone();
    let fs = Filesystem::open(Arc::new(source)).unwrap();
    assert_eq!(fs.info().size_bytes, 1 << 40);
    let root = fs.resolve(b"/").unwrap();
    assert!(fs.read_dir(&root, 100).unwrap().iter().any(|entry| entry.name == b"lost+found"));
    assert!(count.load(Relaxed) < 64 << 10, "{count:?}");
}

#[test]
fn blocks_shared_by_directories_are_checked_once() {
    let dir = tempfile::Builder::new().tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = dir.path().join("source");
    let names = (0..100).map(|number| format!("dir-{number}"));
    names.clone().for_each(|name| fs::create_dir_all(source.join(name)).unwrap());
    let path = make(dir.path(), "image", KINDS[2].replace(",inline_data", "").as_str(), Some(&source), 4096);
    // The only extent of each directory: its length and first block.
    let share = |name| [(4, 3000), (5, 1000)].map(|(at, value)| format!("sif /{name} block[{at}] {value}"));
    let mut commands: Vec<_> = names.clone().flat_map(share).collect();
    commands.extend(names.map(|name| format!("sif /{name} size {}", 3000 * 1024)));
    debugfs(&path, &commands);
    let fs = crate::common::open(&path);
    let report = fs.check(Limits::default(), &mut |_| ControlFlow::Continue(())).unwrap();
    let is_shared = |finding: &&Finding| finding.problem == Problem::ClaimedTwice { block: 1000 };
    assert!(report.findings.iter().filter(is_shared).count() > 90, "{report:?}");
    assert!(report.read_bytes < 8 << 20, "{report:?}");
}

#[test]
fn directory_cycle_is_reported_as_damage() {
    let dir = tempfile::Builder::new().tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("a/b")).unwrap();
    let path = make(dir.path(), "image", KINDS[3], Some(&source), 4096);
    debugfs(
        &path,
        &["ln /a /a/b/up".to_owned(), "ln /a/b /a/b/itself".to_owned(), "ln /a /beside".to_owned()],
    );
    let fs = crate::common::open(&path);
    for (path, is_valid) in [
        ("/a/b", true),
        ("/beside/b", true),
        ("/a/b/../b", true),
        ("/a/b/up", false),
        ("/a/b/itself/c", false),
    ] {
        let found = fs.resolve(path.as_bytes());
        assert_eq!(found.is_ok(), is_valid, "{path}");
        assert!(is_valid || matches!(found, Err(ExtError::Damaged { .. })), "{path}");
    }
    let (inode, ancestors) = fs.resolve_with_ancestors(b"/a/b").unwrap();
    let numbers = [fs.resolve(b"/").unwrap().number, fs.resolve(b"/a").unwrap().number];
    assert_eq!(
        (ancestors.as_slice(), inode.number),
        (&numbers[..], fs.resolve(b"/beside/b").unwrap().number)
    );
}

#[test]
fn invalid_acl_hides_no_other_attribute() {
    let dir = tempfile::Builder::new().tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "x").unwrap();
    let path = make(dir.path(), "image", KINDS[0], Some(&source), 4096);
    let set = |name: &str| format!("ea_set /file {name} abcdefgh");
    debugfs(&path, &[set("user.posix_acl_access"), set("user.note")]);
    let mut image = fs::read(&path).unwrap();
    // Changes the name index to that of access lists; the value is no valid list.
    let name = b"posix_acl_access";
    let at = image.windows(name.len()).position(|bytes| bytes == name).unwrap();
    image[at - 15] = 2;
    let names = |image: Vec<u8>| -> Vec<Vec<u8>> {
        let fs = Filesystem::open(Arc::new(Bytes(image))).unwrap();
        let inode = fs.resolve(b"/file").unwrap();
        fs.xattrs(&inode).unwrap().into_iter().map(|xattr| xattr.name).collect()
    };
    assert_eq!(names(image), [b"user.note".to_vec()]);
}

#[test]
fn directory_beyond_the_read_limit_is_unsupported() {
    let dir = tempfile::Builder::new().tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("large/below")).unwrap();
    let options =
        "-t ext4 -b 4096 -O extents,64bit,^metadata_csum,^has_journal -E nodiscard,lazy_itable_init=1";
    let path = make(dir.path(), "image", options, Some(&source), 2 << 20);
    for (size_bytes, is_sound) in [((1_u64 << 30) + 4096, true), (3 << 30, false)] {
        debugfs(&path, &[format!("sif /large size {size_bytes}")]);
        let fs = crate::common::open(&path);
        let large = fs.resolve(b"/large").unwrap();
        assert_eq!(large.size_bytes, size_bytes);
        for error in [fs.read_dir(&large, 10).unwrap_err(), fs.lookup(&large, b"below").unwrap_err()] {
            let is_limit = matches!(error, ExtError::Unsupported { .. });
            assert_eq!(is_limit, is_sound, "{size_bytes}: {error}");
            assert_eq!(matches!(error, ExtError::Damaged { .. }), !is_sound, "{size_bytes}: {error}");
        }
    }
}

/// The kernel accepts values of up to 16 MiB (`EXT4_XATTR_SIZE_MAX`) and has no limit of the sum.
#[test]
fn xattrs_beyond_the_read_limits_are_unsupported() {
    let dir = tempfile::Builder::new().tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("single"), "x").unwrap();
    fs::write(source.join("many"), "x").unwrap();
    // debugfs sets values of up to one block.
    let options = "-t ext4 -b 65536 -O ext_attr,extents,64bit,^metadata_csum,ea_inode -I 256";
    let path = make(dir.path(), "image", options, Some(&source), 64 << 10);
    let set = |file: &str, name: &str, len: usize| {
        let value = dir.path().join(format!("{name}.value"));
        fs::write(&value, noise(len as u64, len)).unwrap();
        format!("ea_set -f {} /{file} user.{name}", value.display())
    };
    let mut commands = vec![set("single", "enlarged", 65_536)];
    commands.extend((0..17).map(|number| set("many", &format!("n{number}"), 65_536 - number)));
    debugfs(&path, &commands);
    let xattrs = |file: &str| {
        let fs = crate::common::open(&path);
        fs.xattrs(&fs.resolve(file.as_bytes()).unwrap())
    };
    assert_eq!(xattrs("/single").unwrap()[0].value.len(), 65_536);
    assert!(matches!(xattrs("/many"), Err(ExtError::Unsupported { .. })), "{:?}", xattrs("/many").err());

    let image = fs::read(&path).unwrap();
    let name_at = image.windows(8).position(|bytes| bytes == b"enlarged").unwrap() as u64;
    let mut holder = [0; 4];
    holder.copy_from_slice(&image[name_at as usize - 12..][..4]);
    let holder = u32::from_le_bytes(holder);
    for (len, is_sound) in [(65_537_u32, true), (1 << 24, true), ((1 << 24) + 1, false)] {
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&len.to_le_bytes(), name_at - 8).unwrap();
        debugfs(&path, &[format!("sif <{holder}> size {len}")]);
        let error = xattrs("/single").unwrap_err();
        assert_eq!(matches!(error, ExtError::Unsupported { .. }), is_sound, "{len}: {error}");
        assert_eq!(matches!(error, ExtError::Damaged { .. }), !is_sound, "{len}: {error}");
    }
}
