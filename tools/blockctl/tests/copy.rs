//! Copies from snapshots into directories that other users change concurrently.

use crate::support::{Fake, Ran, Reply, fail, ok, snap};
use serde_json::{Value, json};
use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    sync::{Arc, Barrier},
};

fn entry(path: &str, kind: &str) -> Value {
    json!({
        "path": path, "kind": kind, "sizeBytes": 0, "mode": 0o755, "uid": u32::MAX, "gid": u32::MAX, "modifiedAt": null,
    })
}

fn list(path: &str, kind: &str, entries: &[Value]) -> Value {
    json!({ "file": entry(path, kind), "items": entries, "next": null })
}

#[test]
fn directory_swapped_for_a_link_between_files_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (into, outside) = (dir.path().join("into"), dir.path().join("outside"));
    fs::create_dir(&into).unwrap();
    fs::create_dir(&outside).unwrap();
    let swapped = Arc::new(Barrier::new(2));
    let files = "GET /v1/cloudsnaps/files";
    let entries = [entry("/d/after", "file"), entry("/d/sub", "directory"), entry("/d/before", "file")];
    let mut answers = vec![
        (files, ok(list("/d", "directory", &[]))),
        (files, ok(list("/d", "directory", &entries))),
        (files, ok(list("/d/before", "file", &[]))),
        (files, Reply::Together(Arc::clone(&swapped), list("/d/sub", "directory", &[]))),
        (files, ok(list("/d/sub", "directory", &[]))),
    ];
    let no_data = json!({ "sizeBytes": 0, "items": [], "next": null });
    answers.push(("GET /v1/cloudsnaps/file/ranges", ok(no_data)));
    let fake = Fake::start(answers);
    let line = format!("cloudsnap cp --snap {} /d {}", snap("59-61"), into.display());
    let child = fake.command(&line).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let is_awaited = |line: String| line.contains("sub") && line.contains("entries=true");
    while !is_awaited(fake.arrival()) {}
    fs::rename(into.join("d"), into.join("moved")).unwrap();
    symlink(&outside, into.join("d")).unwrap();
    swapped.wait();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{ran:?}");
    assert_eq!(ran.status, 0, "{ran:?}");
    let mut names: Vec<_> =
        fs::read_dir(into.join("moved")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["after", "before", "sub"]);
}

#[test]
fn image_is_read_from_a_path_that_is_not_utf8() {
    let fake = Fake::start(Vec::new());
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join(OsStr::from_bytes(b"\xff.img"));
    fs::write(&image, b"QFI\xfb\0\0\0\x03").unwrap();
    let ran = Ran::of(fake.command("volume create db --from-image").arg(image).output().unwrap());
    assert!(ran.stderr.contains("is a qcow2 image"), "{ran:?}");
}

#[test]
fn copy_onto_an_existing_file_is_a_conflict_with_its_options() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("fstab"), "mine").unwrap();
    let files = ("GET /v1/cloudsnaps/files", ok(list("/etc/fstab", "file", &[])));
    let fake = Fake::start(vec![files]);
    let line = format!("cloudsnap cp --snap {} /etc/fstab {}", snap("59-61"), dir.path().display());
    let ran = fake.run(&line);
    assert_eq!(ran.status, 5, "{ran:?}");
    assert!(ran.stderr.contains("exists already") && ran.stderr.contains("--skip-existing"), "{ran:?}");
    assert_eq!(fs::read(dir.path().join("fstab")).unwrap(), b"mine");
}

/// Copies a directory of a file that can be read, and of others; returns the run and the names that it made.
fn copy_beside_damage(options: &str, failure: Reply) -> (Ran, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let files = "GET /v1/cloudsnaps/files";
    let ranges = "GET /v1/cloudsnaps/file/ranges";
    // The last entry is copied first.
    let entries = [
        entry("/d/whole", "file"),
        entry("/d/sub", "directory"),
        entry("/d/torn", "file"),
        entry("/d/link", "symlink"),
        entry("/d/inode", "damaged"),
    ];
    let fake = Fake::start(vec![
        (files, ok(list("/d", "directory", &[]))),
        (files, ok(list("/d", "directory", &entries))),
        (ranges, failure),
        (files, fail(502, "cloudsnap_damaged", "read failed on /d/sub")),
        (ranges, ok(json!({ "sizeBytes": 0, "items": [], "next": null }))),
        (files, ok(list("/d/whole", "file", &[]))),
    ]);
    let ran =
        fake.run(&format!("{options} cloudsnap cp --snap {} /d {}", snap("59-61"), dir.path().display()));
    let names = fs::read_dir(dir.path().join("d")).unwrap();
    (ran, names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect())
}

#[test]
fn copy_goes_on_after_files_that_cannot_be_read() {
    let torn = || fail(502, "cloudsnap_damaged", "read failed on /d/torn: pack 7 is damaged");
    let (ran, names) = copy_beside_damage("", torn());
    assert_eq!((ran.status, names), (1, vec!["whole".to_owned()]), "{ran:?}");
    let summary = "Copied 1 file, 0 links, 1 directory (0 B); 4 not copied, as they cannot be read\n";
    assert_eq!(ran.stdout, summary);
    for cause in ["/d/sub", "/d/torn: pack 7 is damaged", "/d/link", "/d/inode"] {
        assert!(ran.stderr.contains(cause), "{cause} {ran:?}");
    }
    let (ran, _) = copy_beside_damage("-j", torn());
    let document = ran.json();
    let listed = document["unreadableFiles"].as_array().unwrap();
    assert_eq!((ran.status, &document["unreadable"], listed.len()), (1, &json!(4), 4), "{document:#}");

    // A failure of the store ends the copy.
    let (ran, names) = copy_beside_damage("", fail(502, "store_unauthorized", "the store refuses the key"));
    assert_eq!((ran.status, names), (1, Vec::new()), "{ran:?}");
    assert!(ran.stderr.contains("the store refuses the key"), "{ran:?}");
}

#[test]
fn missing_path_of_the_catalog_needs_an_option() {
    let missing = || fail(404, "file_not_found", "there is no such file");
    let routes = ["GET /v1/cloudsnaps/files", "GET /v1/cloudsnaps/file/ranges", "GET /v1/cloudsnaps/file"];
    let fake = Fake::start(routes.map(|route| (route, missing())).into());
    let (id, to) = (snap("59-61"), tempfile::tempdir().unwrap());
    for (line, path) in [
        (format!("cs cat {id}"), "/100%25.txt"),
        (format!("cs cp {id}"), "/100%25.txt"),
        (format!("cs catalog {id} --path"), "/100%25"),
    ] {
        let to = if line.contains(" cp ") { to.path().to_str().unwrap() } else { "" };
        let hint = |path: &str, option: &str| {
            let ran = fake.run(&format!("{line} {path} {to} {option}"));
            assert_eq!(ran.status, 4, "{ran:?}");
            ran.stderr.contains("hint: add --escaped")
        };
        assert!(hint(path, ""), "{line}");
        assert!(!hint(path, "--escaped") && !hint("/plain", ""), "{line}");
    }
}

/// A damaged directory hides no other one; one that the store refuses ends the command.
#[test]
fn listing_goes_on_past_damaged_directories() {
    let files = "GET /v1/cloudsnaps/files";
    let (from, to) = (snap("59-61"), snap("59-62"));
    let top = ["/d/inode", "/d/sub", "/d/torn"];
    let top = top.map(|path| entry(path, if path == "/d/inode" { "damaged" } else { "directory" }));
    let torn = || fail(502, "cloudsnap_damaged", "read failed on /d/sub: pack 7 is damaged");
    let last = |name: &str| ok(list("/d/torn", "directory", &[entry(name, "file")]));
    let whole = || (files, ok(list("/d", "directory", &top)));
    let run = |answers: Vec<(&'static str, Reply)>, line: &str| Fake::start(answers).run(line);
    let catalog_then = |rest: Vec<(&'static str, Reply)>, line: &str| {
        run([(files, ok(list("/d", "directory", &[]))), whole()].into_iter().chain(rest).collect(), line)
    };

    let line = format!("cloudsnap catalog {from} --path /d");
    let below = || vec![(files, torn()), (files, last("/d/torn/a"))];
    let ran = catalog_then(below(), &line);
    assert_eq!(ran.status, 1, "{ran:?}");
    assert!(ran.stdout.contains("/d/torn/a"), "{ran:?}");
    for cause in ["pack 7 is damaged", "/d/inode", "2 files or directories cannot be read"] {
        assert!(ran.stderr.contains(cause), "{ran:?}");
    }
    let ran = catalog_then(below(), &format!("-j {line}"));
    let document = ran.json();
    let paths: Vec<_> =
        document["unreadableFiles"].as_array().unwrap().iter().map(|one| &one["path"]).collect();
    assert_eq!((ran.status, paths), (1, vec![&json!("/d/inode"), &json!("/d/sub")]), "{document:#}");
    let denied = vec![(files, fail(502, "store_unauthorized", "read failed on /d/sub: access denied"))];
    let ran = catalog_then(denied, &line);
    assert!(ran.status == 1 && ran.stderr.contains("access denied") && !ran.stderr.contains("not listed"));

    let answers = vec![
        whole(),
        whole(),
        (files, ok(list("/d/sub", "directory", &[]))),
        (files, torn()),
        (files, last("/d/torn/a")),
        (files, last("/d/torn/b")),
    ];
    let ran = run(answers, &format!("cloudsnap diff {from} {to} --path /d"));
    assert_eq!((ran.status, ran.stdout.as_str()), (1, "- /d/torn/a\n+ /d/torn/b\n"), "{ran:?}");
    assert!(ran.stderr.contains("pack 7 is damaged"), "{ran:?}");
    let same = || ok(list("/d", "directory", &[entry("/d/sub", "directory")]));
    let sub = || (files, ok(list("/d/sub", "directory", &[])));
    let ran = run(
        vec![(files, same()), (files, same()), sub(), (files, torn())],
        &format!("cloudsnap diff {from} {to} --path /d"),
    );
    assert_eq!((ran.status, ran.stdout.as_str()), (1, ""), "{ran:?}");
    for words in ["no changes in the files that can be read\n", "1 file or directory cannot be read"] {
        assert!(ran.stderr.contains(words), "{ran:?}");
    }
}
