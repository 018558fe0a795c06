//! Tests of this module.

use super::{location::Temporary, *};
use crate::{TransferMemory, backends::direct::write_file};
use rustix::{fs::CWD, io::Errno};
use std::fs::File;

fn walk(dir: &std::path::Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        names.push(entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            names.extend(walk(&entry.path()));
        }
    }
    names
}

#[test]
fn error_of_a_full_directory_has_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let location = LocalStore::open(dir.path()).unwrap().location("PUT", "a/b").unwrap();
    let old = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
    File::open(dir.path()).unwrap().set_times(old).unwrap();
    let failed = |errno: Errno| location.with_time_if_full(location.io(errno.into()));
    let before = jiff::Timestamp::now().as_second();
    for errno in [Errno::NOSPC, Errno::DQUOT] {
        let error = failed(errno);
        assert_eq!(error.kind, StoreErrorKind::NoSpace);
        let told = error.store_time_unix_s.unwrap().get();
        // The kernel's coarse clock may be a tick behind.
        assert!((before - 1..=jiff::Timestamp::now().as_second()).contains(&told), "{told}");
    }
    assert_eq!(failed(Errno::ACCESS).store_time_unix_s, None);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn missing_store_directory_is_named_in_the_error() {
    let error = LocalStore::open("/nonexistent/backups").unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::BucketMissing);
    assert!(error.to_string().contains("/nonexistent/backups"), "{error}");
}

#[tokio::test]
async fn removed_store_directory_is_not_recreated() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("disk");
    fs::create_dir(&root).unwrap();
    let store = LocalStore::open(&root).unwrap();
    fs::remove_dir(&root).unwrap();
    let error = store.put("a/b", Bytes::from_static(b"x"), PutMode::Overwrite).await.unwrap_err();
    assert_eq!(error.kind, StoreErrorKind::BucketMissing);
    assert!(!root.exists());
    assert_eq!(store.list("").await.unwrap_err().kind, StoreErrorKind::BucketMissing);
}

#[tokio::test]
async fn symbolic_link_on_the_way_is_refused() {
    let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = LocalStore::open(dir.path()).unwrap();
    fs::write(outside.path().join("victim"), "content").unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("data")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("victim"), dir.path().join("object")).unwrap();
    let body = || Bytes::from_static(b"x");
    let failures = [
        store.put("data/new", body(), PutMode::Overwrite).await.unwrap_err(),
        store.put("data/new", body(), PutMode::CreateIfAbsent).await.unwrap_err(),
        store.multipart_start("data/new").await.unwrap_err(),
        store.get("data/victim", 100).await.unwrap_err(),
        store.get("object", 100).await.unwrap_err(),
        store.get_range("object", 0, 1).await.unwrap_err(),
        store.delete("data/victim").await.unwrap_err(),
    ];
    for error in failures {
        assert_eq!(error.kind, StoreErrorKind::Misconfigured, "{error}");
    }
    assert_eq!(store.list("").await.unwrap(), []);
    assert_eq!(store.remove_unfinished("", i64::MAX, false).await.unwrap(), 0);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    // A link is not an object: it is replaced.
    store.put("object", body(), PutMode::Overwrite).await.unwrap();
    assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"content");
    assert_eq!(store.get("object", 100).await.unwrap(), b"x"[..]);
}

#[tokio::test]
async fn fifo_in_the_place_of_an_object_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let fifo = dir.path().join("object");
    rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, open_at::FILE_MODE, 0).unwrap();
    // Opening it in the usual way would wait for a writer, for ever.
    assert!(store.get("object", 100).await.unwrap_err().to_string().contains("not a regular file"));
    assert!(store.get_range("object", 0, 1).await.is_err());
    assert_eq!(store.list("").await.unwrap(), []);
}

#[tokio::test]
async fn files_and_directories_are_for_their_owner_only() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    store.put("a/b/new", Bytes::from_static(b"x"), PutMode::CreateIfAbsent).await.unwrap();
    let upload = store.multipart_start("a/b/parts").await.unwrap();
    let tag = store.multipart_put("a/b/parts", &upload, 0, Bytes::from_static(b"x")).await.unwrap();
    store.multipart_complete("a/b/parts", &upload, &[tag]).await.unwrap();
    let root = open_at::open_root(dir.path()).unwrap();
    let temporary = Temporary::create(&root).unwrap();
    temporary.publish("other", PutMode::Overwrite).unwrap();
    for (name, mode) in
        [("a", 0o700), ("a/b", 0o700), ("a/b/new", 0o600), ("a/b/parts", 0o600), ("other", 0o600)]
    {
        assert_eq!(fs::metadata(dir.path().join(name)).unwrap().mode() & 0o777, mode, "{name}");
    }
}

#[tokio::test]
async fn pages_of_a_listing_hold_each_object_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    // '-' sorts before '/', so that keys and paths have two orders.
    for at in ["a", "a-b", "a.b", "ab"] {
        fs::create_dir(dir.path().join(at)).unwrap();
        (0..6000).for_each(|number| fs::write(dir.path().join(format!("{at}/{number}")), "").unwrap());
    }
    fs::write(dir.path().join("a0"), "").unwrap();
    let (mut keys, mut page, mut pages) = (Vec::new(), None::<String>, 0);
    loop {
        let found = store.list_page("a", page.as_deref()).await.unwrap();
        keys.extend(found.objects.into_iter().map(|object| object.key));
        pages += 1;
        page = found.next;
        if page.is_none() {
            break;
        }
    }
    let listed = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!((listed, keys.len(), pages), (24_001, 24_001, 3));
    assert_eq!(store.list("a/").await.unwrap().len(), 6000);
    assert_eq!(store.list("a/59").await.unwrap().len(), 111);
}

#[tokio::test]
async fn unfinished_uploads_and_empty_directories_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    for key in ["data/kept/object", "data/gone/deep/object", "other/gone/object"] {
        store.put(key, Bytes::from_static(b"x"), PutMode::Overwrite).await.unwrap();
    }
    for key in ["data/gone/deep/object", "other/gone/object"] {
        assert!(store.delete(key).await.unwrap());
    }
    store.multipart_start("data/kept/large").await.unwrap();
    fs::write(dir.path().join("data/kept/.tmp-1"), b"x").unwrap();
    fs::write(dir.path().join("data/kept/.other"), b"x").unwrap();
    assert_eq!(store.remove_unfinished("data/", 0, false).await.unwrap(), 0, "all of it is young");
    assert_eq!(store.remove_unfinished("data/", i64::MAX, true).await.unwrap(), 2);
    assert!(dir.path().join("data/gone/deep").is_dir(), "a dry run removed something");
    assert_eq!(store.remove_unfinished("data/", i64::MAX, false).await.unwrap(), 2);
    assert!(!dir.path().join("data/gone").exists() && dir.path().join("other/gone").is_dir());
    let mut left = walk(&dir.path().join("data"));
    left.sort();
    assert_eq!(left, [".other", "kept", "object"]);
}

#[tokio::test]
async fn temporary_files_are_never_listed() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    store.multipart_start("d/object").await.unwrap();
    fs::write(dir.path().join("d/.tmp-1"), b"x").unwrap();
    assert_eq!(store.list("").await.unwrap(), []);
}

#[test]
fn fallback_without_o_tmpfile_publishes_once() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("object");
    for (content, mode, works) in [
        (&b"one"[..], PutMode::CreateIfAbsent, true),
        (b"two", PutMode::CreateIfAbsent, false),
        (b"three", PutMode::Overwrite, true),
    ] {
        let root = open_at::open_root(dir.path()).unwrap();
        let temporary = Temporary::create(&root).unwrap();
        write_file(&temporary.file, content).unwrap();
        assert_eq!(temporary.publish("object", mode).is_ok(), works);
    }
    assert_eq!(fs::read(&to).unwrap(), b"three");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn pieces_are_read_one_after_the_other() {
    const PIECE_BYTES: u64 = 256 << 10;
    let dir = tempfile::tempdir().unwrap();
    let store = LocalStore::open(dir.path()).unwrap();
    let body = Bytes::from(vec![7; 4 * PIECE_BYTES as usize]);
    store.put("object", body, PutMode::Overwrite).await.unwrap();
    let memory = TransferMemory::new(4 * PIECE_BYTES as usize);
    let seen = memory.clone();
    let ends = (1..=4).map(|piece| piece * PIECE_BYTES).collect();
    let pieces = Pieces::new(memory, ends, move |_, content| {
        assert_eq!((content.len() as u64, seen.reserved_bytes() as u64), (PIECE_BYTES, PIECE_BYTES));
    });
    assert_eq!(store.get_pieces("object", 0, &pieces).await.unwrap(), Received(4 * PIECE_BYTES));
}
