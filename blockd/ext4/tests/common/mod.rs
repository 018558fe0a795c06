//! Images created by e2fsprogs, and comparison of their files with a directory of the host.
#![allow(dead_code, reason = "each test uses a part of this")]

use blockd_ext4::{FileKind, Filesystem, Inode, InodeNumber, ReadAt};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Image in a file. Counts the bytes read.
pub struct ImageFile {
    file: File,
    size_bytes: u64,
    pub read_bytes: Arc<AtomicU64>,
}

impl ImageFile {
    pub fn open(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        let size_bytes = file.metadata().unwrap().len();
        Self { file, size_bytes, read_bytes: Arc::default() }
    }
}

impl ReadAt for ImageFile {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_exact_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_bytes.fetch_add(buf.len() as u64, Relaxed);
        self.file.read_exact_at(buf, offset_bytes)
    }
}

/// Image in memory.
pub struct Bytes(pub Vec<u8>);

impl ReadAt for Bytes {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset_bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        buf.copy_from_slice(self.0.get(from..from + buf.len()).ok_or(io::ErrorKind::InvalidInput)?);
        Ok(())
    }
}

pub fn open(path: &Path) -> Filesystem {
    Filesystem::open(Arc::new(ImageFile::open(path))).unwrap()
}

/// Finds a program of e2fsprogs or util-linux, also outside of an unprivileged user's `PATH`.
pub fn tool(name: &str) -> Command {
    let dirs = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(|dir| Path::new(dir).join(name));
    let found = dirs.into_iter().find(|path| path.exists());
    let mut command = Command::new(found.expect("the Debian packages e2fsprogs and mount are installed"));
    command.stdin(Stdio::null());
    command
}

/// Runs a program, which must succeed, and returns its standard output.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stdout}{stderr}");
    stdout
}

pub fn debugfs(image: &Path, commands: &[String]) -> String {
    let script = image.with_extension("debugfs");
    fs::write(&script, commands.join("\n") + "\n").unwrap();
    run(tool("debugfs").arg("-w").arg("-f").arg(&script).arg(image))
}

/// Creates an image with these options of mke2fs, filled from a directory.
pub fn make(dir: &Path, name: &str, options: &str, source: Option<&Path>, size_kib: u64) -> PathBuf {
    let image = dir.join(name);
    let mut command = tool("mke2fs");
    // Ignores the host's defaults of mke2fs.
    command.env("MKE2FS_CONFIG", "/dev/null").args(["-q", "-F"]).args(options.split_whitespace());
    if let Some(source) = source {
        command.arg("-d").arg(source);
    }
    command.arg(&image).arg(format!("{size_kib}k"));
    run(&mut command);
    image
}

/// Returns pseudo-random bytes, reproducible by the seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub fn kind_of(meta: &fs::Metadata) -> FileKind {
    let kind = meta.file_type();
    match () {
        () if kind.is_file() => FileKind::Regular,
        () if kind.is_dir() => FileKind::Directory,
        () if kind.is_symlink() => FileKind::Symlink,
        () if kind.is_block_device() => FileKind::BlockDevice,
        () if kind.is_char_device() => FileKind::CharDevice,
        () if kind.is_fifo() => FileKind::Fifo,
        () => FileKind::Socket,
    }
}

/// Returns the extended attributes of a file of the host.
pub fn system_xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut found = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        found.insert(name.to_vec(), value[..len].to_vec());
    }
    found
}

/// Compared properties of a file, in addition to its content.
#[derive(Clone, Copy)]
pub struct Compare {
    /// Nanoseconds of times.
    pub nanoseconds: bool,
    /// Times of directories, which mke2fs changes when it fills an image.
    pub dir_times: bool,
    pub xattrs: bool,
    pub owners: bool,
    /// Allocated space of regular files.
    pub allocation: bool,
}

/// Reads a file with reads of various lengths.
pub fn content(fs: &Filesystem, inode: &Inode) -> Vec<u8> {
    let mut content = vec![0x55; inode.size_bytes as usize];
    let mut at = 0;
    for len in [1, 511, 4096, 70_001].into_iter().cycle() {
        let end = content.len().min(at + len);
        assert_eq!(fs.read(inode, at as u64, &mut content[at..end]).unwrap(), end - at);
        at = end;
        if at == content.len() {
            break;
        }
    }
    content
}

/// Compares a file with the host's, and recursively the files below. Returns the number of files.
pub fn compare(fs: &Filesystem, number: InodeNumber, system: &Path, how: Compare) -> usize {
    let inode = fs.inode(number).unwrap();
    let meta = fs::symlink_metadata(system).unwrap();
    let at = system.display();
    let mut count = 1;
    assert_eq!(inode.kind, kind_of(&meta), "{at}");
    assert_eq!(u32::from(inode.mode), meta.mode() & 0o7777, "{at}");
    if how.owners {
        assert_eq!((inode.uid, inode.gid), (meta.uid(), meta.gid()), "{at}");
    }
    let nanoseconds = if how.nanoseconds { meta.mtime_nsec() as u32 } else { inode.modified.nanoseconds };
    if how.dir_times || inode.kind != FileKind::Directory {
        let found = (inode.modified.seconds, inode.modified.nanoseconds);
        assert_eq!(found, (meta.mtime(), nanoseconds), "{at}: modified");
    }
    if how.xattrs {
        let found = fs.xattrs(&inode).unwrap();
        let found: BTreeMap<_, _> = found.into_iter().map(|xattr| (xattr.name, xattr.value)).collect();
        assert!(found == system_xattrs(system), "{at}: extended attributes {:?}", found.keys());
    }
    match inode.kind {
        FileKind::Regular => {
            assert_eq!(inode.size_bytes, meta.len(), "{at}");
            if how.allocation {
                assert_eq!(inode.allocated_bytes, meta.blocks() * 512, "{at}");
            }
            assert!(content(fs, &inode) == fs::read(system).unwrap(), "{at}: content");
        }
        FileKind::Symlink => {
            let target = fs::read_link(system).unwrap();
            assert_eq!(fs.read_link(&inode).unwrap(), target.as_os_str().as_bytes(), "{at}");
        }
        FileKind::BlockDevice | FileKind::CharDevice => {
            let device = inode.device.unwrap();
            let expected = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
            assert_eq!((device.major, device.minor), expected, "{at}");
        }
        FileKind::Directory => {
            let mut found: Vec<_> = fs
                .read_dir(&inode, 1 << 20)
                .unwrap()
                .into_iter()
                .filter(|entry| entry.name != b"lost+found")
                .map(|entry| (entry.name, entry.inode))
                .collect();
            found.sort();
            let mut expected: Vec<_> = fs::read_dir(system)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().as_bytes().to_vec())
                .filter(|name| name != b"lost+found")
                .collect();
            expected.sort();
            let names: Vec<_> = found.iter().map(|(name, _)| name.clone()).collect();
            assert_eq!(names, expected, "{at}");
            for (name, number) in found {
                assert_eq!(fs.lookup(&inode, &name).unwrap(), number, "{at}");
                count += compare(fs, number, &system.join(std::ffi::OsStr::from_bytes(&name)), how);
            }
        }
        _ => {}
    }
    count
}
