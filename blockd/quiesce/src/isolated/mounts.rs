//! Mount namespace and priority of an isolated command.

#![allow(unsafe_code, reason = "mount namespace of one thread, system call without a wrapper")]

use rustix::{
    process::setpriority_process,
    thread::{UnshareFlags, unshare_unsafe},
};
use std::io;

const MAX_NICE: i32 = 19;

/// Runs a function on a thread with the lowest processor priority and a private mount namespace, whose mounts
/// are read-only. Its children inherit both.
///
/// # Errors
/// The kernel refuses: the function did not run. The function failed.
pub(super) fn on_isolated_thread<T: Send>(run: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let isolated = || {
        // SAFETY: the thread ends here, and no other one shares its filesystem attributes afterwards.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
            .map_err(|errno| failed("new mount namespace", errno))?;
        make_read_only().map_err(|error| failed("read-only mounts", error))?;
        setpriority_process(None, MAX_NICE).map_err(|errno| failed("lowest priority", errno))?;
        run()
    };
    std::thread::scope(|scope| {
        let starter = std::thread::Builder::new().name("isolation".into()).spawn_scoped(scope, isolated)?;
        starter.join().map_err(|_| io::Error::other("the starting thread panicked"))?
    })
}

fn failed(what: &str, error: impl Into<io::Error>) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Makes all mounts of this namespace read-only and private, or none. Paths would miss hidden mounts, and
/// those that root cannot look up.
fn make_read_only() -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let flags = libc::AT_RECURSIVE;
    // SAFETY: the path is a string with a zero byte, and the attributes are on the stack, with their size;
    // the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{chroot, geteuid};

    #[test]
    fn refused_read_only_mounts_start_nothing() {
        if !geteuid().is_root() {
            return eprintln!("=== SKIPPED: read-only mounts: only root creates namespaces ===");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let refused = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                // SAFETY: only this thread, which ends here, has the other root directory.
                unsafe { unshare_unsafe(UnshareFlags::FS) }.unwrap();
                // The kernel refuses a root directory that is no mount.
                chroot(path).unwrap();
                on_isolated_thread(|| -> io::Result<()> { panic!("it must not run") })
            });
            inside.join().unwrap()
        });
        let error = refused.unwrap_err();
        assert!(error.to_string().starts_with("read-only mounts: "), "{error}");
    }
}
