//! Sequential reads of `disk.img` through FUSE, compared with a passthrough filesystem of the same crate:
//! `tools/bench fuse`.
//!
//! Both have two request threads and hold the data in memory: `disk.img` as decoded frames of a snapshot, the
//! passthrough file in the page cache. The page cache of the FUSE files is dropped before each round; the
//! rounds alternate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a benchmark fails by panicking")]

use blockd_cloud::{CacheOptions, OpenOptions, Repository, SnapshotCache, SnapshotReader};
use blockd_extent::{BLOCK_SIZE_BYTES, BlockIndex, BlockSet, BlockSource, Extent};
use blockd_fuse::{Catalog, MountOptions, SnapshotEntry, SnapshotKey};
use blockd_testkit::{
    cloud::{FAST_KDF, MemoryVolume, back_up, spec},
    store::MemoryStore,
};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig,
    LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, Request,
    Session,
};
use rustix::fs::Advice;
use std::{
    cell::RefCell,
    ffi::OsStr,
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const MIB: usize = 1 << 20;
const BLOCK: usize = BLOCK_SIZE_BYTES as usize;
const TTL: Duration = Duration::from_secs(3600);
const FILE_INO: u64 = 2;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Filesystem with one file of another filesystem.
struct Passthrough {
    file: File,
    len_bytes: u64,
}

impl Passthrough {
    fn attr(&self, ino: u64) -> FileAttr {
        let is_file = ino == FILE_INO;
        FileAttr {
            ino: INodeNo(ino),
            size: if is_file { self.len_bytes } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_file { FileType::RegularFile } else { FileType::Directory },
            perm: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Passthrough {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let _ = config.set_max_background(64);
        if let Err(max) = config.set_max_readahead(MIB as u32) {
            let _ = config.set_max_readahead(max);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == "file" {
            true => reply.entry(&TTL, &self.attr(FILE_INO), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino.0));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(1), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buf| {
            buf.resize(size as usize, 0);
            match self.file.read_at(buf, offset) {
                Ok(len) => reply.data(&buf[..len]),
                Err(_) => reply.error(Errno::EIO),
            }
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}

struct One {
    entries: Arc<Vec<SnapshotEntry>>,
    snapshot: SnapshotReader,
}

impl Catalog for One {
    fn snapshots(&self) -> Arc<Vec<SnapshotEntry>> {
        self.entries.clone()
    }

    fn open(&self, _: &SnapshotKey) -> io::Result<Arc<dyn BlockSource>> {
        Ok(Arc::new(self.snapshot.clone()))
    }

    fn manifest_json(&self, _: &SnapshotKey) -> io::Result<Vec<u8>> {
        Ok(b"{}".to_vec())
    }
}

/// Returns content that compresses to about half.
fn content(len: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
        bytes.extend_from_slice(b"as usual");
    }
    bytes
}

/// Backs up content and opens the cloud snapshot.
async fn snapshot(bytes: &[u8], dir: Option<&Path>, memory_bytes: u64) -> SnapshotReader {
    let store = Arc::new(MemoryStore::default());
    let options = OpenOptions { kdf: FAST_KDF };
    let repo = Repository::open(store, Some("bench"), &options).await.unwrap();
    let volume = MemoryVolume::default();
    bytes.chunks(BLOCK).zip(0..).for_each(|(block, number)| volume.set(number, block));
    let size_bytes = bytes.len() as u64;
    let data = BlockSet::from_iter([Extent::new(BlockIndex(0), size_bytes / BLOCK_SIZE_BYTES)]);
    let spec = spec(1, size_bytes, data, BlockSet::new(), None);
    let manifest = back_up(&repo, spec, Arc::new(volume)).await.unwrap();
    let dir = dir.map(Path::to_owned);
    let cache = SnapshotCache::open(CacheOptions { dir, memory_bytes, ..CacheOptions::default() }).unwrap();
    cache.snapshot(&repo, &manifest).await.unwrap()
}

fn mount_ours(snapshot: SnapshotReader, at: &Path) -> blockd_fuse::Mounted {
    let entry = SnapshotEntry {
        key: SnapshotKey("one".into()),
        volume: "vol".into(),
        id: "1".into(),
        created: SystemTime::now(),
        size_bytes: snapshot.size_bytes(),
        data_bytes: snapshot.size_bytes(),
    };
    let catalog = One { entries: Arc::new(vec![entry]), snapshot };
    blockd_fuse::mount(Arc::new(catalog), at, MountOptions::default()).unwrap()
}

/// Reads a file sequentially without its page cache; returns the rate in bytes per second.
fn rate(path: &Path) -> f64 {
    let mut file = File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    let mut buf = vec![0; MIB];
    let (began, mut len) = (Instant::now(), 0);
    loop {
        match file.read(&mut buf).unwrap() {
            0 => return len as f64 / began.elapsed().as_secs_f64(),
            read => len += read,
        }
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let (rounds, mib) = (numbers.next().unwrap_or(15), numbers.next().unwrap_or(256));
    let dir = tempfile::tempdir().unwrap();
    let bytes = content(mib * MIB);
    let source = dir.path().join("source");
    std::fs::write(&source, &bytes).unwrap();

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (memory_bytes, cache_dir) = (2 * bytes.len() as u64, dir.path().join("cache"));
    let in_memory = runtime.block_on(snapshot(&bytes, None, memory_bytes));
    let on_disk = runtime.block_on(snapshot(&bytes, Some(&cache_dir), 16 << 20));
    let _guard = runtime.enter();
    let (ours_dir, disk_dir, other_dir) =
        (dir.path().join("ours"), dir.path().join("disk"), dir.path().join("other"));
    let ours = mount_ours(in_memory, &ours_dir);
    let from_disk = mount_ours(on_disk, &disk_dir);
    std::fs::create_dir(&other_dir).unwrap();
    let passthrough = Passthrough { file: File::open(&source).unwrap(), len_bytes: bytes.len() as u64 };
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName("passthrough".into())];
    config.n_threads = Some(2);
    config.clone_fd = true;
    let other = Session::new(passthrough, &other_dir, &config).unwrap().spawn().unwrap();
    let meta = std::fs::metadata(&other_dir).unwrap();
    let bdi = format!("{}:{}", rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    if let Err(error) = std::fs::write(format!("/sys/class/bdi/{bdi}/read_ahead_kb"), "1024") {
        println!("the kernel's readahead is only 128 KiB: {error}");
    }

    let image = |dir: &Path| dir.join("vol/latest/disk.img");
    let files = [
        ("a passthrough filesystem, from the page cache", other_dir.join("file")),
        ("disk.img, from memory", image(&ours_dir)),
        ("disk.img, from the cache on disk", image(&disk_dir)),
    ];
    for (what, path) in &files {
        let mut found = Vec::new();
        File::open(path).unwrap().read_to_end(&mut found).unwrap();
        assert!(found == bytes, "wrong content of {what}");
    }
    let mut rates = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        for ((_, path), rates) in files.iter().zip(&mut rates) {
            rates.push(rate(path));
        }
    }
    let medians = rates.map(median);
    println!("sequential reads of {mib} MiB, 1 MiB at a time; median of {rounds} rounds");
    for ((what, _), rate) in files.iter().zip(medians) {
        println!("{:>8.0} MB/s  {:>5.2} x  {what}", rate / 1e6, rate / medians[0]);
    }
    let is_met = medians[1..].iter().all(|&rate| rate >= 2e9 || rate >= medians[0]);
    println!("goal, 2000 MB/s or the rate of the passthrough: {}", if is_met { "met" } else { "NOT MET" });
    drop((ours, from_disk));
    drop(other);
}
