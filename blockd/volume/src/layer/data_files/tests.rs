use super::*;
use std::sync::Arc;
use storage::{Op, Storage};

#[test]
fn write_is_split_at_multiples_of_the_maximum() {
    let lens_of = |mut at: u64, mut len: usize| {
        let mut lens = Vec::new();
        while len > 0 {
            let written = write_len(at, len);
            lens.push(written);
            at += written as u64;
            len -= written;
        }
        lens
    };
    assert_eq!(lens_of(0, 4096), [4096]);
    assert_eq!(lens_of(4096, 65536), [61440, 4096]);
    assert_eq!(lens_of(65536, 131_072), [65536, 65536]);
    assert_eq!(lens_of(65535, 3), [1, 2]);
}

#[test]
fn long_write_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let files = DataFiles::create(&dir.path().join("d"), 1 << 20).unwrap();
    let data: Vec<u8> = (0..300_001u32).map(|i| (i % 251) as u8).collect();
    files.write(12_345, &data).unwrap();
    let mut back = vec![0; data.len()];
    files.read(12_345, &mut back).unwrap();
    assert!(back == data);
}

#[test]
fn range_across_segments_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("d");
    let size = SEGMENT_BYTES + (1 << 20);
    let files = DataFiles::create(&base, size).unwrap();
    let data: Vec<u8> = (0..8192u32).map(|i| i as u8 | 1).collect();
    files.write(SEGMENT_BYTES - 4096, &data).unwrap();
    let mut back = vec![0; 8192];
    files.read(SEGMENT_BYTES - 4096, &mut back).unwrap();
    assert_eq!(back, data);
    files.punch(SEGMENT_BYTES - 4096, 8192, true).unwrap();
    files.read(SEGMENT_BYTES - 4096, &mut back).unwrap();
    assert!(back.iter().all(|&byte| byte == 0));
    drop(files);
    assert!(DataFiles::open(&base, size).is_ok());
    std::fs::OpenOptions::new().write(true).open(&base).unwrap().set_len(5).unwrap();
    let message = DataFiles::open(&base, size).err().unwrap().to_string();
    assert!(message.contains("length is 5 bytes"), "{message}");
}

#[test]
fn holes_are_found_across_a_segment_boundary() {
    let dir = tempfile::tempdir().unwrap();
    let size = SEGMENT_BYTES + (1 << 20);
    let files = DataFiles::create(&dir.path().join("d"), size).unwrap();
    let (first, second) = (1 << 20, SEGMENT_BYTES + (1 << 19));
    for at in [first, second] {
        files.write(at, &[1; 4096]).unwrap();
    }
    // A filesystem may report more data than was written.
    let holes = files.holes(size, 10).unwrap();
    let is_hole = |at: u64| holes.iter().any(|hole| hole.contains(&at));
    assert!(is_hole(0) && is_hole(SEGMENT_BYTES - 4096) && is_hole(SEGMENT_BYTES) && is_hole(size - 1));
    assert!(!is_hole(first) && !is_hole(first + 4095) && !is_hole(second));
    let limited = files.holes(size, 1).unwrap();
    assert_eq!((limited.len(), limited[0].clone()), (1, 0..first));
}

#[test]
fn extended_files_are_truncated_without_commit() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("d");
    drop(DataFiles::create(&base, 8192).unwrap());
    let longer = SEGMENT_BYTES + 4096;
    let files = DataFiles::extend(&base, 8192, longer).unwrap();
    files.write(SEGMENT_BYTES - 5, &[7; 10]).unwrap();
    let mut back = vec![1; 20];
    files.read(SEGMENT_BYTES - 10, &mut back).unwrap();
    assert_eq!(back, [[0; 5], [7; 5], [7; 5], [0; 5]].concat());
    drop(files);
    DataFiles::open(&base, 8192).unwrap();
    assert_eq!(base.metadata().unwrap().len(), 8192);
    // Data of the previous attempt must not reappear.
    let files = DataFiles::extend(&base, 8192, longer).unwrap();
    files.read(SEGMENT_BYTES - 10, &mut back).unwrap();
    assert_eq!(back, [0; 20]);
}

/// Fake storage that counts and fails all syncs.
struct FailingSyncs(std::sync::atomic::AtomicUsize);

impl Storage for FailingSyncs {
    fn file_at(&self, _: &Path) -> Option<usize> {
        None
    }

    fn perform(
        &self,
        _: &Path,
        _: Option<usize>,
        op: Op<'_>,
        kernel: &mut dyn FnMut() -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        if !matches!(op, Op::Sync) {
            return kernel();
        }
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Err(rustix::io::Errno::IO.into())
    }
}

#[test]
fn sync_continues_after_a_failed_segment() {
    let dir = tempfile::tempdir().unwrap();
    let failing = Arc::new(FailingSyncs(Default::default()));
    storage::attach_storage(dir.path(), failing.clone());
    let paths = ["d", "d.1"].map(|name| dir.path().join(name));
    let segment = |path: &PathBuf| Segment::new(File::create(path).unwrap(), path.clone()).unwrap();
    let files = DataFiles { segments: paths.iter().map(segment).collect() };
    let error = files.sync().unwrap_err();
    storage::detach_storage(dir.path());
    assert!(matches!(error, VolumeError::Io { path, .. } if path == paths[0]));
    assert_eq!(failing.0.load(std::sync::atomic::Ordering::Relaxed), 2);
}
