//! The system calls that freeze and thaw a filesystem.

use super::filesystems::{Freezer, Thawed};
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags},
    ioctl::{NoArg, Opcode, ioctl, opcode},
};
use std::{io, path::Path};

/// `FIFREEZE`.
const FREEZE: Opcode = opcode::read_write::<std::ffi::c_int>(b'X', 119);
/// `FITHAW`.
const THAW: Opcode = opcode::read_write::<std::ffi::c_int>(b'X', 120);

/// The kernel of this host.
#[derive(Debug)]
pub(crate) struct Kernel;

fn open(mount: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(mount, flags, Mode::empty())?)
}

impl Freezer for Kernel {
    fn sync(&self, mount: &Path) -> io::Result<()> {
        Ok(rustix::fs::syncfs(open(mount)?)?)
    }

    fn freeze(&self, mount: &Path) -> io::Result<()> {
        let directory = open(mount)?;
        // SAFETY: the kernel does not look at the argument of FIFREEZE, and writes nothing through it.
        let request = unsafe { NoArg::<FREEZE>::new() };
        // SAFETY: the request is one that takes any open file of a filesystem and no memory.
        Ok(unsafe { ioctl(directory, request) }?)
    }

    fn thaw(&self, mount: &Path) -> io::Result<Thawed> {
        let directory = open(mount)?;
        // SAFETY: the kernel does not look at the argument of FITHAW, and writes nothing through it.
        let request = unsafe { NoArg::<THAW>::new() };
        // SAFETY: the request is one that takes any open file of a filesystem and no memory.
        match unsafe { ioctl(directory, request) } {
            // It is not frozen.
            Err(rustix::io::Errno::INVAL) => Ok(Thawed::Before),
            other => Ok(other.map(|()| Thawed::Now)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_kernel() {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
        assert_eq!((FREEZE, THAW), (0xC004_5877, 0xC004_5878));
    }

    /// What cannot be frozen, such as `/proc`, is an error and no more.
    #[test]
    fn what_cannot_be_frozen_is_an_error() {
        let error = Kernel.freeze(Path::new("/proc")).unwrap_err();
        assert!(
            matches!(error.raw_os_error(), Some(code) if [
                rustix::io::Errno::OPNOTSUPP,
                rustix::io::Errno::PERM,
                rustix::io::Errno::NOTTY,
            ]
            .iter()
            .any(|errno| errno.raw_os_error() == code)),
            "{error}"
        );
        assert!(Kernel.freeze(Path::new("/nowhere")).is_err());
    }
}
