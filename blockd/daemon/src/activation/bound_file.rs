//! Which file a bound unix socket is, as the kernel tells whoever asks for a socket's diagnosis
//! (`sock_diag`).

use rustix::{
    fs::{fstat, major, minor, stat, statfs},
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt},
};
use std::{io, os::fd::AsFd, path::Path, time::Duration};

/// `SOCK_DIAG_BY_FAMILY`, the request and its answer.
const BY_FAMILY: u16 = 20;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;
/// `UDIAG_SHOW_VFS`, and the attribute that it brings: inode and device.
const SHOW_VFS: u32 = 2;
const VFS: u16 = 1;
const HEADER_BYTES: usize = 16;
const MESSAGE_BYTES: usize = 16;
/// The kernel answers at once.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Filesystems on which a file has other numbers for those who ask for it by its path: btrfs and overlayfs.
const OTHER_NUMBERS: [i64; 2] = [0x9123_683e, 0x794c_7630];

/// Whether the path leads to this bound socket.
///
/// # Errors
/// The kernel does not tell.
pub(super) fn is_at(socket: &impl AsFd, path: &Path) -> io::Result<bool> {
    let found = stat(path)?;
    #[allow(clippy::cast_possible_wrap, clippy::unnecessary_cast, reason = "its type depends on the machine")]
    if OTHER_NUMBERS.contains(&(statfs(path)?.f_type as i64)) {
        return Ok(true);
    }
    let (inode, device) = place_of(socket)?;
    // The kernel's own form of a device number; of an inode's it tells the lower half.
    let device_there = major(found.st_dev) << 20 | minor(found.st_dev);
    Ok((inode, device) == (found.st_ino as u32, device_there))
}

fn place_of(socket: &impl AsFd) -> io::Result<(u32, u32)> {
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
    answer_of(answer.get(..taken).unwrap_or_default())
}

fn request(number: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + 24);
    bytes.extend(((HEADER_BYTES + 24) as u32).to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 8]);
    // Family and protocol, all states, which socket, what of it, and no cookie.
    bytes.extend([AddressFamily::UNIX.as_raw() as u8, 0, 0, 0]);
    for word in [u32::MAX, number, SHOW_VFS, u32::MAX, u32::MAX] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes
}

fn answer_of(answer: &[u8]) -> io::Result<(u32, u32)> {
    let cut = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut short");
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
        // To the next multiple of four; an attribute is no shorter than its own head.
        at += usize::from(length).max(4).next_multiple_of(4);
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the kernel says nothing of where the socket is"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_is_told_from_another_one_in_its_place() {
        // Where files have the numbers that the kernel tells.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let (path, link) = (dir.path().join("a.sock"), dir.path().join("link"));
        let first = UnixListener::bind(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        match is_at(&first, &path) {
            Err(error) => return eprintln!("NOT TESTED: {error}"),
            Ok(is_it) => assert!(is_it && is_at(&first, &link).unwrap()),
        }
        std::fs::rename(&path, dir.path().join("b.sock")).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        assert!(!is_at(&first, &path).unwrap() && is_at(&second, &path).unwrap());
        assert!(is_at(&first, &dir.path().join("b.sock")).unwrap());
        let name = <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(
            dir.path().as_os_str().as_encoded_bytes(),
        );
        let nowhere = UnixListener::bind_addr(&name.unwrap());
        assert!(is_at(&nowhere.unwrap(), &path).is_err());
    }

    #[test]
    fn cut_answers_are_no_answers() {
        for len in 0..40 {
            assert!(answer_of(&[0; 40][..len]).is_err(), "{len}");
        }
    }
}
