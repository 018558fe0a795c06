//! A filesystem below one volume's data directory that shuts down, as ext4 and XFS do after a failed metadata
//! write. Skipped where filesystems cannot be mounted.

use crate::harness::{
    MIB, Nbd, Setup, assert_same,
    nbd::{Failure, command, errno},
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

fn flush(client: &mut Nbd) -> Result<(), Failure> {
    client.call(command::FLUSH, 0, 0, 0, &[])
}

/// The volume fails with EIO; the daemon lives, and goes on with the last flush after the next mount.
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
    match flush(&mut client) {
        Err(Failure::Refused(errno::EIO)) => {}
        other => panic!("a flush on a filesystem that was shut down: {other:?}"),
    }
    // On pages that the kernel has not mapped or has made read-only again.
    for block in [1, 5000, 9000] {
        let written = client.call(command::WRITE, 0, block * 4096, 4096, &[3; 4096]);
        assert!(matches!(written, Err(Failure::Refused(errno::EIO))), "block {block}: {written:?}");
    }
    assert_eq!(daemon.ctl().volume("vol")["state"], "failed");
    drop(client);
    let setup = daemon.kill();
    mount.end().unwrap();
    let mount = Mount::of(&image, &data_dir).unwrap();
    let daemon = setup.start();
    let mut client = daemon.nbd("vol");
    assert_same("the last flush", &client.read(0, 4096), &[1; 4096]);
    let flushed = flush(&mut client);
    assert!(matches!(flushed, Err(Failure::Refused(errno::EIO))), "a client that reconnects: {flushed:?}");
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
