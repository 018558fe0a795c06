//! System calls that freeze and thaw a filesystem.

#![allow(unsafe_code, reason = "freeze and thaw ioctls")]

use crate::{
    filesystems::{Freezer, FreezerError, Thawed},
    holder::Handle,
    mounted::Mounted,
};
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags},
    ioctl::{NoArg, Opcode, ioctl, opcode},
};
use std::io;

/// `FIFREEZE`.
const FREEZE: Opcode = opcode::read_write::<std::ffi::c_int>(b'X', 119);
/// `FITHAW`.
const THAW: Opcode = opcode::read_write::<std::ffi::c_int>(b'X', 120);

/// Freezer of the host's kernel.
#[derive(Debug)]
pub(crate) struct Kernel;

/// Filesystem by a descriptor, which is independent of later mounts at its path.
#[derive(Debug)]
pub(crate) struct OpenFilesystem(OwnedFd);

impl OpenFilesystem {
    /// Opens a mount.
    ///
    /// # Errors
    /// It cannot be opened, or another filesystem is mounted there.
    pub(crate) fn at(mount: &Mounted) -> Result<Self, FreezerError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&mount.path, flags, Mode::empty()).map_err(io::Error::from)?;
        match rustix::fs::fstat(&directory).map_err(io::Error::from)?.st_dev == mount.device {
            true => Ok(Self(directory)),
            false => Err(FreezerError::OtherFilesystem),
        }
    }
}

impl Handle for OpenFilesystem {
    fn sync(&self) -> Result<(), FreezerError> {
        Ok(rustix::fs::syncfs(&self.0).map_err(io::Error::from)?)
    }

    fn freeze(&self) -> Result<(), FreezerError> {
        // SAFETY: the kernel ignores the argument of FIFREEZE and writes nothing through it.
        let request = unsafe { NoArg::<FREEZE>::new() };
        // SAFETY: the request is one that takes any open file of a filesystem and no memory.
        Ok(unsafe { ioctl(&self.0, request) }.map_err(io::Error::from)?)
    }

    fn thaw(&self) -> Result<Thawed, FreezerError> {
        // SAFETY: the kernel ignores the argument of FITHAW and writes nothing through it.
        let request = unsafe { NoArg::<THAW>::new() };
        // SAFETY: the request is one that takes any open file of a filesystem and no memory.
        match unsafe { ioctl(&self.0, request) } {
            // The filesystem is not frozen.
            Err(rustix::io::Errno::INVAL) => Ok(Thawed::Before),
            other => Ok(other.map(|()| Thawed::Now).map_err(io::Error::from)?),
        }
    }
}

impl Freezer for Kernel {
    fn sync(&self, mount: &Mounted) -> Result<(), FreezerError> {
        OpenFilesystem::at(mount)?.sync()
    }

    fn freeze(&self, mount: &Mounted) -> Result<(), FreezerError> {
        OpenFilesystem::at(mount)?.freeze()
    }

    fn thaw(&self, mount: &Mounted) -> Result<Thawed, FreezerError> {
        OpenFilesystem::at(mount)?.thaw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ioctl_numbers_match_the_kernel() {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
        assert_eq!((FREEZE, THAW), (0xC004_5877, 0xC004_5878));
    }

    /// Filesystems that cannot be frozen, such as `/proc`, return an error.
    #[test]
    fn unfreezable_filesystem_is_an_error() {
        use rustix::io::Errno;
        let error = Kernel.freeze(&Mounted::at("/proc".into()).unwrap()).unwrap_err();
        let refusals = [Errno::OPNOTSUPP, Errno::PERM, Errno::NOTTY];
        assert!(error.errno().is_some_and(|errno| refusals.contains(&errno)), "{error}");
        let nowhere = Mounted { path: "/nowhere".into(), device: 1 };
        assert_eq!(Kernel.freeze(&nowhere).unwrap_err().errno(), Some(Errno::NOENT));
    }

    #[test]
    fn other_filesystem_at_the_mount_point_is_not_thawed() {
        let mut mount = Mounted::at("/proc".into()).unwrap();
        mount.device += 1;
        assert!(matches!(Kernel.sync(&mount), Err(FreezerError::OtherFilesystem)));
        assert!(matches!(Kernel.freeze(&mount), Err(FreezerError::OtherFilesystem)));
        assert!(matches!(Kernel.thaw(&mount), Err(FreezerError::OtherFilesystem)));
    }
}
