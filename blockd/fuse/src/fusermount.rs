//! `fusermount3`, which mounts and unmounts for unprivileged users.
//!
//! To mount, it gets one end of a socket pair, and sends the descriptor of `/dev/fuse` through it, from which
//! the server reads.

use crate::FuseError;
use rustix::{
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags},
};
use std::{
    io::{self, IoSliceMut, Read},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PROGRAM: &str = "fusermount3";
/// Timeout.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The most of what it says that is passed on, in bytes.
const MAX_SAID: u64 = 4096;

/// The program with nothing but the search path in its environment, which may hold secrets. So its messages
/// are in English.
fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
}

/// Mounts at an empty directory, by these options.
pub(crate) fn mount(mountpoint: &Path, options: &str) -> Result<OwnedFd, FuseError> {
    let failed = |source| FuseError::Mount { path: mountpoint.to_owned(), source };
    let refused = |said| FuseError::Refused { path: mountpoint.to_owned(), said };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    let mut command = program();
    command.arg("-o").arg(options).arg("--").arg(mountpoint);
    // The standard input is the one descriptor that a child is given without more ado.
    command.env("_FUSE_COMMFD", "0").stdin(OwnedFd::from(theirs));
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    // With it goes this process's copy of the other end: if the child ends without a word, that is seen.
    drop(command);
    let received = receive(&ours);
    // What it says tells more than that it sent nothing.
    end(child).map_err(refused)?;
    received.map_err(|error| {
        // It is mounted without a possible server.
        let left = unmount(mountpoint, true).err().map(|left| format!("; {left}")).unwrap_or_default();
        refused(format!("{PROGRAM} gave no descriptor: {error}{left}"))
    })
}

/// Unmounts; with `force` also with open files.
pub(crate) fn unmount(mountpoint: &Path, force: bool) -> Result<(), FuseError> {
    let failed = |said: String| FuseError::Unmount { path: mountpoint.to_owned(), said };
    let mut command = program();
    command.arg("-u").args(force.then_some("-z")).arg("--").arg(mountpoint);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| failed(format!("{PROGRAM}: {error}")))?;
    end(child).map_err(|said| match said.contains("busy") {
        true => FuseError::Busy { path: mountpoint.to_owned() },
        false => failed(said),
    })
}

/// Waits for it, and gives what it said if it failed, in one line.
fn end(mut child: Child) -> Result<(), String> {
    let until = Instant::now() + TIMEOUT;
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if Instant::now() > until => {
                // It may have ended just now.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{PROGRAM} takes too long"));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // What it says is for people; without it there is still the status.
        let _ = stderr.take(MAX_SAID).read_to_end(&mut said);
    }
    let said = String::from_utf8_lossy(&said);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Err(if lines.is_empty() { format!("{PROGRAM}: {status}") } else { lines.join("; ") })
}

/// The one descriptor that comes with one byte.
fn receive(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        let mut buffers = [IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let first = descriptors.next().and_then(|mut descriptors| descriptors.next());
    first.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
