//! State of `/dev/nbdN` devices: backend, size, mounts and other users, from `/sys`, `/proc` and the device.

use crate::KernelError;
use crate::driver::{Driver, DriverSession};
use crate::netlink::KernelDriver;
use blockd_extent::NbdDevice;
use blockd_files::{Mount, mounts_of_root};
use rustix::{
    fs::{AtFlags, Mode, OFlags, StatxFlags},
    io::Errno,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Host system: its root directory and nbd driver, which tests replace.
#[derive(Clone, Debug)]
pub struct System {
    root: PathBuf,
    driver: Arc<dyn Driver>,
    disconnect_timeout: Duration,
}

impl Default for System {
    fn default() -> Self {
        Self { root: "/".into(), driver: Arc::new(KernelDriver), disconnect_timeout: DISCONNECT_TIMEOUT }
    }
}

impl System {
    /// Creates a system from its root directory, driver and disconnect timeout.
    pub fn new(root: PathBuf, driver: Arc<dyn Driver>, disconnect_timeout: Duration) -> Self {
        Self { root, driver, disconnect_timeout }
    }

    /// Returns the timeout for a device to release its connections after a disconnect.
    pub fn disconnect_timeout(&self) -> Duration {
        self.disconnect_timeout
    }

    /// Opens a session with the driver.
    ///
    /// # Errors
    /// See [`Driver::open`].
    pub fn open_driver(&self) -> Result<Box<dyn DriverSession>, KernelError> {
        self.driver.open()
    }

    fn block(&self, device: NbdDevice) -> PathBuf {
        self.root.join("sys/block").join(device.name())
    }

    /// Returns the connected devices by backend identifier. A backend may have several devices: one that was
    /// disconnected while open is listed until it is closed.
    pub fn backends(&self) -> BTreeMap<String, BTreeSet<NbdDevice>> {
        let entries = std::fs::read_dir(self.root.join("sys/block")).into_iter().flatten().flatten();
        let devices = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<NbdDevice>().ok());
        let mut backends = BTreeMap::<_, BTreeSet<_>>::new();
        for device in devices {
            if let Some(backend) = self.backend(device) {
                backends.entry(backend).or_default().insert(device);
            }
        }
        backends
    }

    /// Returns the backend identifier of a connected device.
    pub fn backend(&self, device: NbdDevice) -> Option<String> {
        let dir = self.block(device);
        // After a disconnect, the kernel removes `pid` before `backend`.
        if !dir.join("pid").exists() {
            return None;
        }
        Some(std::fs::read_to_string(dir.join("backend")).ok()?.trim().to_owned())
    }

    /// Returns true if the device is connected, to any backend.
    pub fn is_connected(&self, device: NbdDevice) -> bool {
        self.block(device).join("pid").exists()
    }

    /// Returns the size of a device, in bytes.
    pub fn size_bytes(&self, device: NbdDevice) -> Option<u64> {
        let sectors: u64 =
            std::fs::read_to_string(self.block(device).join("size")).ok()?.trim().parse().ok()?;
        sectors.checked_mul(512)
    }

    /// Returns the name and sysfs directory of a device and its partitions.
    fn parts(&self, device: NbdDevice) -> Vec<(String, PathBuf)> {
        let dir = self.block(device);
        let mut parts = vec![(device.name(), dir.clone())];
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if let Ok(name) = entry.file_name().into_string()
                && name.starts_with(&device.name())
            {
                parts.push((name, entry.path()));
            }
        }
        parts
    }

    /// Returns the mounts in the namespace of this process; none if they cannot be read.
    fn mounts(&self) -> Vec<Mount> {
        mounts_of_root(&self.root).unwrap_or_default()
    }

    /// Returns one mount point of each mounted filesystem on a device and its partitions, preferably one that
    /// no other mount covers.
    pub fn filesystems(&self, device: NbdDevice) -> Vec<MountPoint> {
        let mounts = self.mounts();
        let best_of = |(name, dir): (String, PathBuf)| {
            let number = std::fs::read_to_string(dir.join("dev")).unwrap_or_default();
            let found = mount_points(&mounts, number.trim(), &format!("/dev/{name}"));
            found.into_iter().min_by_key(|place| place.is_hidden)
        };
        self.parts(device).into_iter().filter_map(best_of).collect()
    }

    /// Returns descriptions of the users of a device and its partitions: mounts, swap and stacked devices.
    pub fn users(&self, device: NbdDevice) -> Vec<String> {
        let parts = self.parts(device);
        let mounts = self.mounts();
        let swaps = std::fs::read_to_string(self.root.join("proc/swaps")).unwrap_or_default();
        let mut users = Vec::new();
        for (name, dir) in parts {
            let path = format!("/dev/{name}");
            let number = std::fs::read_to_string(dir.join("dev")).unwrap_or_default();
            for place in mount_points(&mounts, number.trim(), &path) {
                users.push(format!("{path} is mounted at {}", place.path.display()));
            }
            if swaps.lines().any(|line| line.split_whitespace().next() == Some(&path)) {
                users.push(format!("{path} is used for swap"));
            }
            for holder in std::fs::read_dir(dir.join("holders")).into_iter().flatten().flatten() {
                users.push(format!("{} is on {path}", Path::new("/dev").join(holder.file_name()).display()));
            }
        }
        users
    }

    /// Opens a device exclusively, which prevents mounts while the descriptor is open. `None` if the device
    /// is mounted or another process has claimed it.
    ///
    /// # Errors
    /// The device cannot be opened for another reason.
    pub fn claim(&self, device: NbdDevice) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::open(self.root.join("dev").join(device.name()), flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::BUSY) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Mount point of a filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Path of the mount point.
    pub path: PathBuf,
    /// True if another mount covers the path.
    pub is_hidden: bool,
}

/// Returns the mount points of a device, found by its number or, for filesystems with their own device
/// numbers such as btrfs, by its path.
fn mount_points(mounts: &[Mount], number: &str, path: &str) -> Vec<MountPoint> {
    let is_on_device = |mount: &&Mount| {
        let (major, minor) = mount.device;
        (!number.is_empty() && number == format!("{major}:{minor}")) || mount.source == *path
    };
    let found = mounts.iter().filter(is_on_device);
    let point = |mount: &Mount| {
        let path = mount.mount_point.clone();
        MountPoint { is_hidden: is_covered(&path, mount.id), path }
    };
    found.map(point).collect()
}

/// Returns true if the path resolves to another mount. Returns false if the kernel does not report mount ids.
fn is_covered(path: &Path, mount_id: u64) -> bool {
    let found = rustix::fs::statx(rustix::fs::CWD, path, AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID);
    let Ok(found) = found else { return false };
    let has_mount_id = StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID);
    has_mount_id && mount_id != found.stx_mnt_id
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let system = System { root: dir.path().to_owned(), ..System::default() };
        (dir, system)
    }

    #[test]
    fn device_users_include_mounts_swap_and_holders() {
        let (_dir, system) = system(&[
            ("sys/block/nbd3/dev", "43:96\n"),
            ("sys/block/nbd3/holders/dm-0", ""),
            ("sys/block/nbd3/nbd3p1/dev", "43:97\n"),
            ("sys/block/nbd3/nbd3p1/partition", "1\n"),
            (
                "proc/self/mountinfo",
                "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 43:97 / /mnt/my\\040data rw shared:1 - ext4 /dev/nbd3p1 rw\n\
                 31 22 0:44 / /btr rw - btrfs /dev/nbd3 rw\n\
                 33 22 43:97 /sub /bound rw - ext4 /dev/nbd3p1 rw\n32 22 43:9 / /other rw - ext4 /dev/nbd0 rw\n",
            ),
            (
                "proc/swaps",
                "Filename Type Size Used Priority\n/dev/nbd30 partition 1 0 -2\n/dev/nbd3p1 partition 1 0 -2\n",
            ),
        ]);
        let mut users = system.users(NbdDevice::new(3));
        users.sort();
        assert_eq!(
            users,
            [
                "/dev/dm-0 is on /dev/nbd3",
                "/dev/nbd3 is mounted at /btr",
                "/dev/nbd3p1 is mounted at /bound",
                "/dev/nbd3p1 is mounted at /mnt/my data",
                "/dev/nbd3p1 is used for swap",
            ]
        );
        assert!(system.users(NbdDevice::new(4)).is_empty());
        let mut filesystems: Vec<_> =
            system.filesystems(NbdDevice::new(3)).into_iter().map(|place| place.path).collect();
        filesystems.sort();
        assert_eq!(filesystems, [Path::new("/btr"), Path::new("/mnt/my data")]);
    }

    /// The last mount of `/` is visible; an invented mount at `/` is covered by it.
    #[test]
    fn covered_mount_point_is_marked_hidden() {
        let own = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let id = own.lines().rfind(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        let id: u64 = id.split(' ').next().unwrap().parse().unwrap();
        let line = |id: u64, place: &str| format!("{id} 1 43:0 / {place} rw - ext4 /dev/nbd0 rw\n");
        let found = |mountinfo: &str| {
            let (_dir, system) =
                system(&[("sys/block/nbd0/dev", "43:0\n"), ("proc/self/mountinfo", mountinfo)]);
            system.filesystems(NbdDevice::new(0))
        };
        let place = |path: &str, is_hidden| vec![MountPoint { path: path.into(), is_hidden }];
        assert_eq!(found(&line(id, "/")), place("/", false));
        assert_eq!(found(&line(id + 1, "/")), place("/", true));
        assert_eq!(found(&(line(id + 1, "/") + &line(7, "/is/not/there"))), place("/is/not/there", false));
    }

    #[test]
    fn disconnected_device_has_no_backend() {
        let (_dir, system) = system(&[
            ("sys/block/nbd0/backend", "me:1\n"),
            ("sys/block/nbd1/backend", "me:2\n"),
            ("sys/block/nbd1/pid", "77\n"),
            ("sys/block/nbd1/size", "2048\n"),
            ("sys/block/sda/size", "1\n"),
        ]);
        let of_me = |number, index| (format!("me:{number}"), BTreeSet::from([NbdDevice::new(index)]));
        assert_eq!(system.backends(), BTreeMap::from([of_me(2, 1)]));
        assert_eq!(system.size_bytes(NbdDevice::new(1)), Some(1 << 20));
        assert_eq!(system.backend(NbdDevice::new(0)), None);
    }
}
