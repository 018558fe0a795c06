//! Files inside images of ext2, ext3 and ext4: in partitions, damaged, and during store outages.
use blockd_extent::BlockSource;
use blockd_fuse::inside::{FileKind, FileTree, ImageFiles, Xattr};
use blockd_testkit::Image;
use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::Duration,
};

/// Fake image with a switchable outage. Counts failed reads.
struct Outage {
    image: Image,
    is_active: AtomicBool,
    failed_reads: AtomicU64,
}

impl BlockSource for Outage {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.is_active.load(Relaxed) {
            self.failed_reads.fetch_add(1, Relaxed);
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.image.read_at(offset_bytes, buf)
    }
}

/// Fake image that records the offsets of reads, and holds the first read at one offset between two waits of
/// the test at the barrier.
struct Gated {
    image: Image,
    noted: Mutex<Vec<u64>>,
    held: Option<u64>,
    gate: Barrier,
}

impl Gated {
    fn new(bytes: Vec<u8>, held: Option<u64>) -> Self {
        Self { image: Image(bytes), noted: Mutex::default(), held, gate: Barrier::new(2) }
    }
}

impl BlockSource for Gated {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut noted = self.noted.lock().unwrap();
        let is_first = !noted.contains(&offset_bytes);
        noted.push(offset_bytes);
        drop(noted);
        if self.held == Some(offset_bytes) && is_first {
            self.gate.wait();
            self.gate.wait();
        }
        self.image.read_at(offset_bytes, buf)
    }
}

fn tool(name: &str) -> Command {
    let found = ["/usr/sbin", "/sbin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
    let found = found.into_iter().find(|path| path.exists());
    let mut command = Command::new(found.expect("the Debian package e2fsprogs"));
    command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
    command
}

/// Creates an image with some files; `kind` is ext2, ext3 or ext4.
fn make(kind: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (source, image) = (dir.path().join("source"), dir.path().join("image"));
    fs::create_dir_all(source.join("a/b")).unwrap();
    for number in 0..200 {
        fs::write(source.join(format!("a/b/{number}")), number.to_string().repeat(2000)).unwrap();
    }
    std::os::unix::fs::symlink("a/b", source.join("link")).unwrap();
    std::os::unix::fs::symlink("x/".repeat(100), source.join("long")).unwrap();
    let made =
        tool("mke2fs").args(["-q", "-F", "-t", kind, "-d"]).arg(&source).arg(&image).arg("12M").status();
    assert!(made.unwrap().success());
    for command in
        ["mknod device b 8 1", "mknod pipe p", "set_inode_field a uid 70000", "ea_set a user.note hello"]
    {
        assert!(tool("debugfs").args(["-w", "-R", command]).arg(&image).status().unwrap().success());
    }
    fs::read(image).unwrap()
}

fn open(bytes: Vec<u8>) -> ImageFiles {
    ImageFiles::open(Arc::new(Image(bytes))).unwrap()
}

fn check(files: &dyn FileTree, root: &str) {
    let path = |rest: &str| format!("{root}{rest}").into_bytes();
    let names: Vec<Vec<u8>> =
        files.read_dir(&path("/"), 1000).unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, [&b"a"[..], b"device", b"link", b"long", b"lost+found", b"pipe"]);
    assert_eq!(files.read_dir(&path("/a/b"), 200).unwrap().len(), 200);
    let refused = files.read_dir(&path("/a/b"), 199).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{refused}");
    let expected = "77".repeat(2000).into_bytes();
    assert_eq!(files.read(&path("/a/b/77"), 0, 1 << 20).unwrap(), expected);
    assert_eq!(files.read(&path("/a/b/77"), 3000, 10).unwrap(), expected[3000..3010]);
    assert_eq!(files.read(&path("/a/b/77"), 100, 10).unwrap(), expected[100..110]);
    assert_eq!(files.read(&path("/a/b/77"), 1 << 40, 10).unwrap(), b"");
    assert_eq!(files.read_link(&path("/link")).unwrap(), b"a/b");
    assert_eq!(files.read_link(&path("/long")).unwrap(), "x/".repeat(100).into_bytes());
    let stat = files.stat(&path("/a")).unwrap();
    assert_eq!((stat.kind, stat.uid), (FileKind::Directory, 70_000));
    assert!(stat.modified.unwrap().elapsed().unwrap() < Duration::from_secs(3600));
    assert_eq!(files.stat(&path("/device")).unwrap().kind, FileKind::BlockDevice);
    assert_eq!(files.stat(&path("/link")).unwrap().kind, FileKind::Symlink, "links are not followed");
    assert!(files.read(&path("/device"), 0, 1).is_err() && files.read(&path("/a"), 0, 1).is_err());
    assert_eq!(files.stat(&path("/nothing")).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(files.stat(&path("/device")).unwrap().device, Some((8, 1)));
    let xattrs = files.xattrs(&path("/a")).unwrap();
    assert_eq!(xattrs, [Xattr { name: b"user.note".to_vec(), value: b"hello".to_vec() }]);
    assert_eq!(files.xattrs(&path("/link")).unwrap(), []);
    assert!(files.read_dir(&path("/a/b/77"), 1000).is_err() && files.read_link(&path("/a")).is_err());
}

#[test]
fn ext2_ext3_and_ext4_are_read() {
    for kind in ["ext2", "ext3", "ext4"] {
        check(&open(make(kind)), "");
    }
}

#[test]
fn partitions_are_directories() {
    let part = make("ext4");
    let mut disk = vec![0; 1 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let entry = &mut disk[446..462];
    entry[4] = 0x83;
    entry[8..12].copy_from_slice(&2048u32.to_le_bytes());
    entry[12..].copy_from_slice(&(part.len() as u32 / 512).to_le_bytes());
    disk.extend_from_slice(&part);
    let files = open(disk);
    assert_eq!(files.read_dir(b"/", 1000).unwrap().len(), 1);
    check(&files, "/p1");
    for wrong in ["/p2", "/p01", "/p", "/q1", "/p1x"] {
        assert!(files.stat(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn unsupported_content_has_a_notice() {
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    let files = open(xfs);
    assert!(files.unreadable_reason(b"/").unwrap().unwrap().contains("XFS"));
    let notice = files.read(b"/NO-FILES.txt", 0, 1000).unwrap();
    let notice = String::from_utf8(notice).unwrap();
    assert!(notice.contains("XFS") && notice.contains("mount -o ro,loop,norecovery "), "{notice}");
    assert!(open(vec![0; 100]).unreadable_reason(b"/").unwrap().is_some());
}

/// Reads all reachable files, up to a limit.
fn explore(files: &dyn FileTree) {
    let mut left = vec![b"/".to_vec()];
    for _ in 0..60 {
        let Some(path) = left.pop() else { return };
        match files.stat(&path).map(|stat| stat.kind) {
            Ok(FileKind::Directory) => {
                for entry in files.read_dir(&path, 1000).unwrap_or_default() {
                    assert!(!entry.name.contains(&b'/') && !entry.name.contains(&0) && entry.name != b"..");
                    let mut below = path.clone();
                    below.push(b'/');
                    below.extend_from_slice(&entry.name);
                    left.push(below);
                }
            }
            Ok(FileKind::Symlink) => drop(files.read_link(&path)),
            Ok(_) => drop(files.read(&path, 0, 100_000)),
            Err(_) => {}
        }
    }
}

#[test]
fn damaged_images_are_errors_without_a_panic() {
    let good = make("ext4");
    // Metadata: the nonzero bytes of the first part.
    let offsets: Vec<usize> = (1024..good.len().min(3 << 20)).filter(|at| good[*at] != 0).collect();
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..16 {
        let mut image = good.clone();
        for _ in 0..1 + next() % 20 {
            // Preferably the superblock, which locates all other structures.
            let at = match next() % 3 {
                0 => 1024 + next() as usize % 512,
                _ => offsets[next() as usize % offsets.len()],
            };
            image[at] = next() as u8;
        }
        // Without the feature metadata_csum, so that checksums do not detect the damage.
        if round % 2 == 0 {
            let flags = 1024 + 0x64;
            image[flags + 1] &= !0x04;
        }
        explore(&open(image));
    }
}

#[test]
fn filesystem_claiming_huge_size_takes_no_memory() {
    let mut image = make("ext2");
    image[1024 + 4..1024 + 8].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(open(image).unreadable_reason(b"/").unwrap().unwrap().contains("larger"));
    let mut image = make("ext2");
    image[1024 + 32..1024 + 36].copy_from_slice(&0u32.to_le_bytes());
    assert!(open(image).unreadable_reason(b"/").unwrap().is_some());
}

/// During an outage, an operation fails after one read, reports no damage, and succeeds afterwards.
#[test]
fn store_outage_is_not_damage_and_not_cached() {
    let is_active = AtomicBool::new(true);
    let image = Arc::new(Outage { image: Image(make("ext4")), is_active, failed_reads: AtomicU64::new(0) });
    let open = || ImageFiles::open(image.clone());
    assert_eq!(open().err().unwrap().kind(), io::ErrorKind::TimedOut);
    image.is_active.store(false, Relaxed);
    let files = open().unwrap();
    assert_eq!(files.read_dir(b"/", 1000).unwrap().len(), 6);
    for text in ["/a/b", "/a/b/77", "/long"] {
        image.is_active.store(true, Relaxed);
        image.failed_reads.store(0, Relaxed);
        let path = text.as_bytes();
        let error = match text {
            "/a/b" => files.read_dir(path, 1000).unwrap_err(),
            "/long" => files.read_link(path).unwrap_err(),
            _ => files.read(path, 0, 100).unwrap_err(),
        };
        assert_eq!((error.kind(), image.failed_reads.load(Relaxed)), (io::ErrorKind::TimedOut, 1), "{text}");
        image.is_active.store(false, Relaxed);
        assert!(files.stat(path).is_ok(), "{text}");
    }
    check(&files, "");
}

#[test]
fn slow_image_does_not_delay_large_directories_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, make("ext4")).unwrap();
    let large = "set_inode_field a/b size 0x800000";
    assert!(tool("debugfs").args(["-w", "-R", large]).arg(&path).status().unwrap().success());
    let bytes = fs::read(path).unwrap();
    let noting = Arc::new(Gated::new(bytes.clone(), None));
    let files = ImageFiles::open(noting.clone()).unwrap();
    assert_eq!(files.stat(b"/a/b").unwrap().size_bytes, 8 << 20);
    let before = noting.noted.lock().unwrap().clone();
    let _ = files.read_dir(b"/a/b", 1000);
    // The first block of the directory.
    let held = noting.noted.lock().unwrap().iter().copied().find(|offset| !before.contains(offset));

    let slow = Arc::new(Gated::new(bytes.clone(), Some(held.unwrap())));
    std::thread::scope(|scope| {
        scope.spawn(|| drop(ImageFiles::open(slow.clone()).unwrap().read_dir(b"/a/b", 1000)));
        slow.gate.wait();
        let (done, listed) = mpsc::channel();
        scope.spawn(move || done.send(open(bytes).read_dir(b"/a/b", 1000)));
        let listed = listed.recv_timeout(Duration::from_secs(120));
        slow.gate.wait();
        drop(listed.expect("the listing of another image waited for the slow one"));
    });
}
