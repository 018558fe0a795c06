//! Consistency checks agree with `e2fsck -fn`.
use crate::{
    common::{Bytes, debugfs, make, noise, open, tool},
    features::{SETS, filled},
};
use blockd_ext4::{
    ExtError, Filesystem, InodeNumber, ReadAt, Structure,
    check::{Limits, MAX_FINDINGS, Problem, Report, Unchecked},
};
use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    ops::{ControlFlow, Range},
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

fn check(fs: &Filesystem) -> Report {
    fs.check(Limits::default(), &mut |_| ControlFlow::Continue(())).unwrap()
}

fn text(report: &Report) -> String {
    report.findings.iter().map(|finding| format!("{finding}\n")).collect()
}

/// Returns the findings of `e2fsck -fn`; `None` for a sound image.
fn e2fsck(image: &Path) -> Option<String> {
    let output = tool("e2fsck").args(["-fn"]).arg(image).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (!output.status.success()).then_some(text)
}

/// Options in addition to those of the tests of features.
const MORE: [&str; 5] = [
    "-t ext4 -b 1024 -O ext_attr,extents,64bit,flex_bg,metadata_csum,orphan_file,has_journal,dir_index -J size=1 -I 256",
    "-t ext4 -b 4096 -O ext_attr,extents,64bit,flex_bg,metadata_csum,resize_inode,has_journal,dir_index -J size=4 -I 256",
    "-t ext4 -b 1024 -G 4 -g 1024 -O ext_attr,extents,64bit,flex_bg,metadata_csum,sparse_super2,inline_data -I 256",
    "-t ext4 -b 1024 -O ext_attr,extents,^64bit,flex_bg,^metadata_csum,has_journal,ea_inode -J size=1 -I 256",
    "-t ext3 -b 4096 -O ext_attr,has_journal,filetype,dir_index,sparse_super,resize_inode -J size=4 -I 256",
];

#[test]
fn sound_images_have_no_findings() {
    let (dir, source) = filled();
    for options in SETS.map(|(_, options)| options).into_iter().chain(MORE) {
        let image = make(dir.path(), "image", options, Some(&source), 24 << 10);
        // Adds what mke2fs does not create: an htree, and values of attributes in inodes.
        let _ = tool("e2fsck").args(["-fyD"]).arg(&image).output().unwrap();
        assert_eq!(e2fsck(&image), None, "{options}");
        let report = check(&open(&image));
        assert!(report.is_sound(), "{options}: {}", text(&report));
        assert!(report.directories >= 5 && report.inodes > 300, "{options}: {report:?}");
        assert_eq!(
            report.unchecked.contains(&Unchecked::Clusters),
            options.contains("bigalloc"),
            "{options}"
        );
    }
}

/// Bytes of all files: lost writes of file contents are no inconsistency.
const CONTENT: u8 = 0xa5;

/// Returns a filesystem before and after changes of all kinds of metadata.
fn states(dir: &Path, options: &str) -> (Vec<u8>, Vec<u8>) {
    let source = dir.join("source");
    fs::create_dir_all(source.join("many")).unwrap();
    let name = |number| format!("many/some longer name of a file {number}");
    for number in 0..120 {
        fs::write(source.join(name(number)), [CONTENT; 900]).unwrap();
    }
    fs::write(source.join("large"), vec![CONTENT; 300_000]).unwrap();
    let image = make(dir, "image", options, Some(&source), 4 << 10);
    let optimize = || {
        let status = tool("e2fsck").args(["-fyD"]).arg(&image).output().unwrap().status;
        assert!(status.code().is_some_and(|code| code < 4), "{options}");
        fs::read(&image).unwrap()
    };
    let before = optimize();
    let (small, scattered) = (dir.join("small"), dir.join("scattered"));
    fs::write(&small, [CONTENT; 3000]).unwrap();
    fs::write(&scattered, [CONTENT; 60_000]).unwrap();
    let mut commands: Vec<_> = (0..60).map(|number| format!("rm \"{}\"", name(2 * number))).collect();
    commands.push(format!("write {} scattered", scattered.display()));
    commands.extend(["rm large", "mkdir new", "mkdir new/below"].map(String::from));
    commands.extend((0..60).map(|number| format!("write {} new/file-{number}", small.display())));
    commands.push("symlink new/link many/again".to_owned());
    debugfs(&image, &commands);
    (before, optimize())
}

/// Checks the image without each write between two states in turn. Returns the number of those that e2fsck
/// finds.
fn lose_writes(options: &str) -> usize {
    const BLOCK: usize = 1024;
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = states(dir.path(), options);
    let file = File::options().write(true).open(dir.path().join("image")).unwrap();
    let mut found = 0;
    for (at, (old, new)) in (0..).step_by(BLOCK).zip(before.chunks(BLOCK).zip(after.chunks(BLOCK))) {
        if old == new || new.starts_with(&[CONTENT; 300]) {
            continue;
        }
        let mut bytes = after.clone();
        bytes[at..at + BLOCK].copy_from_slice(old);
        let findings = match Filesystem::open(Arc::new(Bytes(bytes))) {
            Ok(fs) => text(&check(&fs)),
            Err(error) => error.to_string(),
        };
        file.write_all_at(old, at as u64).unwrap();
        let oracle = e2fsck(&dir.path().join("image"));
        file.write_all_at(new, at as u64).unwrap();
        let block = at / BLOCK;
        assert_eq!(
            findings.is_empty(),
            oracle.is_none(),
            "{options}: block {block}: {findings}\ne2fsck: {oracle:?}"
        );
        found += usize::from(oracle.is_some());
    }
    found
}

#[test]
fn lost_writes_are_found_as_by_e2fsck() {
    for options in [SETS[0].1, SETS[5].1, SETS[11].1, SETS[17].1, MORE[0], MORE[2]] {
        let found = lose_writes(options);
        assert!(found >= 20, "{options}: {found}");
    }
}

type IsExpected = dyn Fn(&Problem) -> bool;

#[test]
fn planted_damage_is_found_as_by_e2fsck() {
    // Damage by debugfs, and the kind of its finding.
    let is_links = |problem: &Problem| matches!(problem, Problem::WrongCount { .. });
    let cases: [(&[&str], &IsExpected); 14] = [
        (&["sif /a/one links_count 3"], &is_links),
        (&["sif /a links_count 7"], &is_links),
        (&["freei /a/one"], &|problem| matches!(problem, Problem::InodesMarkedFree { count: 1, .. })),
        (&["seti <40>"], &|problem| matches!(problem, Problem::InodesNotUsed { count: 1, .. })),
        (&["setb 6000 7"], &|problem| matches!(problem, Problem::BlocksNotClaimed { first: 6000, count: 7 })),
        (&["unlink /a/one"], &|problem| *problem == Problem::Unreachable),
        (&["clri /a/one"], &|problem| matches!(problem, Problem::EntryOfFreeInode { .. })),
        (&["sif /a/one mode 0040644"], &|problem| matches!(problem, Problem::EntryOfWrongType { .. })),
        (&["ln /a/b /c/d"], &|problem| matches!(problem, Problem::SecondEntry { .. })),
        (&["set_bg 0 free_blocks_count 77", "set_bg 0 checksum calc"], &is_links),
        (&["ln /a /a/b/up", "unlink /a"], &|problem| *problem == Problem::Unreachable),
        (&["ln /c /a/c", "unlink /c"], &|problem| matches!(problem, Problem::WrongParent { .. })),
        (&["sif /a size 4194304"], &|problem| matches!(problem, Problem::Damaged { .. })),
        (&["sif /a/two size 7000"], &|problem| matches!(problem, Problem::Damaged { .. })),
    ];
    for options in [SETS[1].1, SETS[5].1, SETS[11].1] {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("a/b")).unwrap();
        fs::create_dir_all(source.join("c")).unwrap();
        fs::write(source.join("a/one"), noise(1, 5000)).unwrap();
        fs::write(source.join("a/two"), noise(2, 50_000)).unwrap();
        let image = make(dir.path(), "image", options, Some(&source), 32 << 10);
        let good = fs::read(&image).unwrap();
        for (commands, is_expected) in &cases {
            fs::write(&image, &good).unwrap();
            debugfs(&image, &commands.iter().map(|command| (*command).to_owned()).collect::<Vec<_>>());
            assert!(e2fsck(&image).is_some(), "{options} {commands:?}");
            let report = check(&open(&image));
            let is_found = report.findings.iter().any(|finding| is_expected(&finding.problem));
            assert!(is_found, "{options} {commands:?}: {}", text(&report));
        }
    }
}

#[test]
fn block_of_two_files_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("one"), noise(1, 900)).unwrap();
    fs::write(source.join("two"), noise(2, 900)).unwrap();
    let image = make(dir.path(), "image", SETS[0].1, Some(&source), 4096);
    let block: u64 =
        debugfs(&image, &["bmap one 0".to_owned()]).split_whitespace().last().unwrap().parse().unwrap();
    debugfs(&image, &[format!("sif two block[0] {block}")]);
    let report = check(&open(&image));
    let found = report.findings.iter().any(|finding| {
        matches!(finding.structure, Structure::Inode(_)) && finding.problem == Problem::ClaimedTwice { block }
    });
    assert!(found && e2fsck(&image).is_some(), "{}", text(&report));
}

#[test]
fn orphans_of_a_crash_are_no_finding() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("deleted"), noise(1, 90_000)).unwrap();
    let image = make(dir.path(), "image", SETS[5].1, Some(&source), 4096);
    let number = open(&image).resolve(b"/deleted").unwrap().number;
    let delete = ["sif /deleted links_count 0".to_owned(), "unlink /deleted".to_owned()];
    debugfs(&image, &delete);
    assert!(!check(&open(&image)).is_sound(), "no orphan yet");
    debugfs(&image, &[format!("ssv last_orphan {number}")]);
    let report = check(&open(&image));
    assert!(report.is_sound(), "{}", text(&report));
    debugfs(&image, &[format!("sif <{number}> dtime {number}")]);
    let report = check(&open(&image));
    assert!(report.findings.iter().any(|finding| finding.structure == Structure::Superblock), "a loop");
}

#[test]
fn check_ends_at_its_limits() {
    let (dir, source) = filled();
    let image = make(dir.path(), "image", SETS[5].1, Some(&source), 24 << 10);
    let fs = open(&image);
    let limited = |memory_bytes, read_bytes| {
        let limits = Limits { memory_bytes, read_bytes };
        fs.check(limits, &mut |_| ControlFlow::Continue(())).unwrap().unchecked
    };
    assert_eq!(limited(10, 1 << 30), [Unchecked::MemoryLimit]);
    assert_eq!(limited(8000, 1 << 30), [Unchecked::MemoryLimit]);
    assert_eq!(limited(1 << 30, 100_000), [Unchecked::ReadLimit]);
    let mut calls = 0;
    let cancelled = fs.check(Limits::default(), &mut |_| {
        calls += 1;
        if calls == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(cancelled, Err(ExtError::Cancelled)) && calls == 5);
    assert_eq!(check(&fs), check(&fs));
}

#[test]
fn findings_are_limited() {
    let (dir, source) = filled();
    let image = make(dir.path(), "image", SETS[0].1, Some(&source), 24 << 10);
    let commands: Vec<_> = (20..200).map(|number| format!("sif <{number}> links_count 9")).collect();
    debugfs(&image, &commands);
    let report = check(&open(&image));
    assert_eq!(report.findings.len(), MAX_FINDINGS);
    assert!(report.more_findings >= 70);
    let first = report.findings.iter().find(|finding| matches!(finding.structure, Structure::Inode(_)));
    assert_eq!(first.map(|finding| finding.structure), Some(Structure::Inode(InodeNumber(20))));
}

/// Image of a store that fetches blocks in round trips, 12 blocks at most in one.
struct Remote {
    image: Bytes,
    fetched: Mutex<HashSet<u64>>,
    trips: AtomicU64,
    ignores_announcements: bool,
}

impl Remote {
    /// Fetches the missing blocks of a range; returns their number.
    fn fetch(&self, range: Range<u64>) -> u64 {
        let mut fetched = self.fetched.lock().unwrap();
        (range.start / 4096..range.end.div_ceil(4096)).filter(|block| fetched.insert(*block)).count() as u64
    }
}

impl ReadAt for Remote {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn read_exact_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        // A read fetches its blocks concurrently.
        let missing = self.fetch(offset_bytes..offset_bytes + buf.len() as u64);
        self.trips.fetch_add(missing.min(1), Relaxed);
        self.image.read_exact_at(offset_bytes, buf)
    }

    fn will_need(&self, ranges: &[Range<u64>]) {
        if !self.ignores_announcements {
            let missing: u64 = ranges.iter().map(|range| self.fetch(range.clone())).sum();
            self.trips.fetch_add(missing.div_ceil(12), Relaxed);
        }
    }
}

#[test]
fn check_of_a_remote_image_takes_few_round_trips() {
    let (dir, source) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for number in 0..400 {
        let directory = source.path().join(format!("{number}"));
        fs::create_dir(&directory).unwrap();
        // Extents that do not fit in the inode.
        let sparse = File::create(directory.join("sparse")).unwrap();
        (0..6).for_each(|hole| sparse.write_all_at(&[1; 4096], hole << 16).unwrap());
    }
    let image = make(dir.path(), "image", "-t ext4 -b 4096 -g 1024", Some(source.path()), 64 << 10);
    let content = fs::read(&image).unwrap();
    let [with, without] = [false, true].map(|ignores_announcements| {
        let (image, fetched) = (Bytes(content.clone()), Mutex::default());
        let remote = Arc::new(Remote { image, fetched, trips: AtomicU64::new(0), ignores_announcements });
        let filesystem = Filesystem::open(Arc::clone(&remote) as _).unwrap();
        let report = check(&filesystem);
        assert!(report.is_sound() && report.directories > 400, "{}", text(&report));
        let blocks = remote.fetched.lock().unwrap().len();
        (remote.trips.load(Relaxed), blocks)
    });
    assert!(with.0 * 6 < without.0, "{with:?} of {without:?}");
    assert!(with.1 <= without.1, "blocks that the check does not read: {with:?} of {without:?}");
}
