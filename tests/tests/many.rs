//! Listings of thousands of snapshots.

use crate::harness::{Bed, Daemon, fuse::FuseMount, wait_until};
use blockd_cloud::{OpenOptions, Repository};
use blockd_store::LocalStore;
use blockd_testkit::cloud::{FAST_KDF, put_many_snapshots};
use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
};

const VOLUMES: u64 = 5;
const EACH: u64 = 1_000;
const ALL: u64 = VOLUMES * EACH;

/// Returns the numbers of list and get requests to the store.
fn requests(daemon: &Daemon) -> (u64, u64) {
    let mut socket = UnixStream::connect(daemon.socket()).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: blockd\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let count = |request: &str| -> u64 {
        let name = "blockd_store_request_duration_seconds_count";
        let is_it = |line: &&str| line.starts_with(name) && line.contains(&format!("request=\"{request}\""));
        let line = text.lines().find(is_it).unwrap_or_else(|| panic!("no {name} of {request}: {text}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    (count("list"), count("get"))
}

/// Counts the snapshots of all volumes, with the metadata of each, as `ls -l` does.
fn count_snapshots(dir: &Path) -> u64 {
    let mut found = 0;
    for volume in fs::read_dir(dir).unwrap() {
        let volume = volume.unwrap().path();
        // A file explains an incomplete list.
        if !volume.is_dir() {
            continue;
        }
        for snapshot in fs::read_dir(volume).unwrap() {
            let meta = fs::symlink_metadata(snapshot.unwrap().path()).unwrap();
            found += u64::from(meta.is_dir());
        }
    }
    found
}

#[test]
fn thousands_of_snapshots_are_listed_with_three_requests() {
    let bed = Bed::new();
    let store = bed.store("store");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(LocalStore::open(store.dir()).unwrap());
        let options = OpenOptions { kdf: FAST_KDF };
        let repo = Repository::open(store, None, &options).await.unwrap();
        put_many_snapshots(&repo, VOLUMES, EACH).await.unwrap();
    });
    // The mount does not refresh its lists during the test.
    let setup = || bed.daemon("one").config("[browse]").config("refresh_ms = 3600000");
    let daemon = setup().start();
    let ctl = daemon.ctl();
    ctl.add_local("nas", store.dir(), None);
    let listed = || {
        let list = ctl.json(&["cloudsnap", "list"]);
        u64::try_from(list["items"].as_array().unwrap().len()).unwrap()
    };
    let began = requests(&daemon);
    assert_eq!(listed(), ALL);
    let first = requests(&daemon);
    assert_eq!((first.0 - began.0, first.1 - began.1), (3, ALL), "each manifest is read once");
    assert_eq!(listed(), ALL);
    let second = requests(&daemon);
    assert_eq!((second.0 - first.0, second.1 - first.1), (3, 0), "a second listing reads no manifest");

    let mount = FuseMount(bed.path("mnt"));
    ctl.json(&["browse", "mount", mount.dir()]);
    // The first reader waits for the list for a limited time and may see less.
    wait_until("the list", || count_snapshots(&mount.0) == ALL);
    assert_eq!(count_snapshots(&mount.0), ALL);
    let newest = mount.0.join("volume-3/latest");
    let newest = fs::read_link(newest).unwrap().into_os_string().into_string().unwrap();
    assert!(newest.starts_with("19700211T150000.000000Z-1000"), "{newest}");
    assert!(
        fs::metadata(mount.0.join("volume-3/19700101T000000.000000Z-1/disk.img")).unwrap().len() == 1 << 40
    );
    let third = requests(&daemon);
    assert_eq!((third.0 - second.0, third.1 - second.1), (1, 0), "one listing for all lookups");
    drop(mount);

    // The next daemon reads no manifest.
    drop(daemon.stop());
    let daemon = setup().start();
    let ctl = daemon.ctl();
    let list = ctl.json(&["cloudsnap", "list", "--max", "3"]);
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
    let (lists, reads) = requests(&daemon);
    assert_eq!((lists, reads), (3, 0));
}
