//! Mount and unmount by `fusermount3`, for unprivileged users.
//!
//! A mount returns the descriptor of `/dev/fuse` through a socket pair, whose other end the program inherits.

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
/// Timeout of a mount or unmount.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum length of an error message of the program, in bytes.
const MAX_MESSAGE_LEN: u64 = 4096;

/// Returns the program with only `PATH` in its environment: this process's environment may contain secrets,
/// and the messages must be in English.
fn program() -> Command {
    let mut command = Command::new(PROGRAM);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
}

/// Mounts at an empty directory with these options.
pub(crate) fn mount(mountpoint: &Path, options: &str) -> Result<OwnedFd, FuseError> {
    let failed = |source| FuseError::Mount { path: mountpoint.to_owned(), source };
    let refused = |message| FuseError::Refused { path: mountpoint.to_owned(), message };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    ours.set_read_timeout(Some(TIMEOUT)).map_err(failed)?;
    let mut command = program();
    command.arg("-o").arg(options).arg("--").arg(mountpoint);
    // Standard input is the only descriptor that `Command` passes to a child without unsafe code.
    command.env("_FUSE_COMMFD", "0").stdin(OwnedFd::from(theirs));
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    // Closes this process's copy of the other end, so that `receive` sees the end of the child.
    drop(command);
    let received = receive(&ours);
    // The message of the program is more specific than a missing descriptor.
    wait(child).map_err(refused)?;
    received.map_err(|error| {
        // The mount exists, but cannot be served.
        let left = unmount(mountpoint, true).err().map(|left| format!("; {left}")).unwrap_or_default();
        refused(format!("{PROGRAM} passed no descriptor: {error}{left}"))
    })
}

/// Unmounts; with `force` also with open files.
pub(crate) fn unmount(mountpoint: &Path, force: bool) -> Result<(), FuseError> {
    let failed = |message: String| FuseError::Unmount { path: mountpoint.to_owned(), message };
    let mut command = program();
    command.arg("-u").args(force.then_some("-z")).arg("--").arg(mountpoint);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| failed(format!("{PROGRAM}: {error}")))?;
    wait(child).map_err(|message| match message.contains("busy") {
        true => FuseError::Busy { path: mountpoint.to_owned() },
        false => failed(message),
    })
}

/// Waits for the program. After a failure, returns its error output in one line.
fn wait(mut child: Child) -> Result<(), String> {
    let until = Instant::now() + TIMEOUT;
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if Instant::now() > until => {
                // Both fail only if the program has ended.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{PROGRAM} timed out"));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut output = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // Without a message, the error is the exit status.
        let _ = stderr.take(MAX_MESSAGE_LEN).read_to_end(&mut output);
    }
    let output = String::from_utf8_lossy(&output);
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Err(if lines.is_empty() { format!("{PROGRAM}: {status}") } else { lines.join("; ") })
}

/// Receives a descriptor, which is sent with one byte of data.
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
