//! Shutdown of the filesystem below the data directory, as by ext4 and XFS after a failed metadata write.
//! Skipped where filesystems cannot be mounted.

use crate::harness::{
    MIB, Setup, assert_same,
    nbd::{command, errno, refused},
    process::{both, die_with_parent},
    replay::filesystem::{Filesystem, Mount, with_mounts},
};
use std::{path::Path, process::Command};

fn shut_down(mount: &Path) {
    let mut command = Command::new("xfs_io");
    let output = die_with_parent(command.args(["-x", "-c", "shutdown"]).arg(mount)).output();
    let output = output.expect("xfs_io: install the Debian package xfsprogs");
    assert!(output.status.success(), "{}", both(&output));
}

/// Checks that the volume fails with EIO, that the daemon survives, and that the next mount has the last
/// flush.
fn shutdown_fails_the_volume_only(filesystem: Filesystem, dir: &Path) {
    let image = dir.join("fs.img");
    filesystem.make(&image);
    let setup = Setup::new(&dir.join("live"));
    let data_dir = setup.data_dir();
    let mount = Mount::of(&image, &data_dir).unwrap();
    let daemon = setup.start();
    daemon.ctl().create_volume("vol", "64MiB");
    let mut client = daemon.nbd("vol");
    client.write(0, &[1; 4096]);
    client.flush();
    client.write(0, &[2; 4096]);
    client.write(32 * MIB, &[2; 4096]);
    shut_down(&data_dir);
    assert_eq!(refused(client.try_flush()), errno::EIO, "a flush after the shutdown");
    // The kernel has not mapped these pages, or has made them read-only.
    for block in [1, 5000, 9000] {
        let written = client.call(command::WRITE, 0, block * 4096, 4096, &[3; 4096]);
        assert_eq!(refused(written), errno::EIO, "block {block}");
    }
    assert_eq!(daemon.ctl().volume("vol")["state"], "failed");
    drop(client);
    let setup = daemon.kill();
    mount.end().unwrap();
    let mount = Mount::of(&image, &data_dir).unwrap();
    let daemon = setup.start();
    let mut client = daemon.nbd("vol");
    assert_same("the last flush", &client.read(0, 4096), &[1; 4096]);
    assert_eq!(refused(client.try_flush()), errno::EIO, "the first flush of a reconnected client");
    drop(client);
    drop(daemon.kill());
    mount.end().unwrap();
}

#[test]
fn shutdown_of_xfs_fails_the_volume_only() {
    with_mounts("shutdown_of_xfs_fails_the_volume_only", Filesystem::Xfs, |dir, _| {
        shutdown_fails_the_volume_only(Filesystem::Xfs, dir);
    });
}

#[test]
fn shutdown_of_ext4_fails_the_volume_only() {
    with_mounts("shutdown_of_ext4_fails_the_volume_only", Filesystem::Ext4, |dir, _| {
        shutdown_fails_the_volume_only(Filesystem::Ext4, dir);
    });
}
