//! File identity of a bound Unix socket, from the kernel's socket diagnostics (`sock_diag`).

use rustix::{
    fs::{fstat, major, minor, stat, statfs},
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt},
};
use std::{io, os::fd::AsFd, path::Path, time::Duration};

/// `SOCK_DIAG_BY_FAMILY`, the type of request and reply.
const BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;
/// `UDIAG_SHOW_VFS`, and the attribute that it requests: inode and device.
const SHOW_VFS: u32 = 2;
const VFS: u16 = 1;
const HEADER_BYTES: usize = 16;
const MESSAGE_BYTES: usize = 16;
/// Timeout of the reply; the kernel responds at once.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Filesystems whose files have other inode or device numbers in `stat`: btrfs and overlayfs.
const UNSTABLE_NUMBERS: [i64; 2] = [0x9123_683e, 0x794c_7630];

/// Returns true if the path leads to this bound socket.
///
/// # Errors
/// The kernel does not report the file.
pub(super) fn is_bound_at(socket: &impl AsFd, path: &Path) -> io::Result<bool> {
    let found = stat(path)?;
    #[allow(clippy::cast_possible_wrap, clippy::unnecessary_cast, reason = "its type depends on the machine")]
    if UNSTABLE_NUMBERS.contains(&(statfs(path)?.f_type as i64)) {
        return Ok(true);
    }
    let (inode, device) = bound_file_of(socket)?;
    // The kernel's internal encoding of the device number; of the inode number it reports the lower half.
    let device_there = major(found.st_dev) << 20 | minor(found.st_dev);
    Ok((inode, device) == (found.st_ino as u32, device_there))
}

fn bound_file_of(socket: &impl AsFd) -> io::Result<(u32, u32)> {
    let number = u32::try_from(fstat(socket)?.st_ino).map_err(|_| Errno::OVERFLOW)?;
    let diagnosis = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    sockopt::set_socket_timeout(&diagnosis, sockopt::Timeout::Recv, Some(TIMEOUT))?;
    rustix::net::connect(&diagnosis, &netlink::SocketAddrNetlink::new(0, 0))?;
    rustix::net::send(&diagnosis, &request(number), SendFlags::empty())?;
    let mut answer = [0; 1024];
    let (taken, _) = rustix::net::recv(&diagnosis, &mut answer, RecvFlags::empty())?;
    parse_reply(answer.get(..taken).unwrap_or_default())
}

fn request(number: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + 24);
    bytes.extend(((HEADER_BYTES + 24) as u32).to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 8]);
    // Family and protocol, all states, the socket, the attributes, and no cookie.
    bytes.extend([AddressFamily::UNIX.as_raw() as u8, 0, 0, 0]);
    for word in [u32::MAX, number, SHOW_VFS, u32::MAX, u32::MAX] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

fn parse_reply(answer: &[u8]) -> io::Result<(u32, u32)> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's reply is truncated");
    let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    if half(4).ok_or_else(cut)? == ERROR {
        let error = word(HEADER_BYTES).ok_or_else(cut)?.cast_signed();
        return Err(io::Error::from_raw_os_error(error.saturating_neg()));
    }
    let mut at = HEADER_BYTES + MESSAGE_BYTES;
    while let (Some(length), Some(kind)) = (half(at), half(at + 2)) {
        if kind == VFS {
            return word(at + 4).zip(word(at + 8)).ok_or_else(cut);
        }
        // Attributes are aligned to four bytes; one is at least as long as its header.
        at += usize::from(length).max(4).next_multiple_of(4);
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the kernel does not report the file of the socket"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn replaced_socket_is_distinguished_from_the_original() {
        // tmpfs, whose files have the numbers that the kernel reports.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (path, link) = (dir.path().join("a.sock"), dir.path().join("link"));
        let first = UnixListener::bind(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        match is_bound_at(&first, &path) {
            Err(error) => return eprintln!("NOT TESTED: {error}"),
            Ok(is_it) => assert!(is_it && is_bound_at(&first, &link).unwrap()),
        }
        std::fs::rename(&path, dir.path().join("b.sock")).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        assert!(!is_bound_at(&first, &path).unwrap() && is_bound_at(&second, &path).unwrap());
        assert!(is_bound_at(&first, &dir.path().join("b.sock")).unwrap());
        let name = <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(
            dir.path().as_os_str().as_encoded_bytes(),
        );
        let nowhere = UnixListener::bind_addr(&name.unwrap());
        assert!(is_bound_at(&nowhere.unwrap(), &path).is_err());
    }

    #[test]
    fn truncated_reply_is_an_error() {
        for len in 0..40 {
            assert!(parse_reply(&[0; 40][..len]).is_err(), "{len}");
        }
    }
}
