//! Socket activation: control API sockets created and passed by systemd.
//!
//! Clients that connect before the daemon is up, or during a restart, wait in the socket's backlog instead of
//! being refused, and start the daemon if it does not run. A socket is identified by its address, which is
//! that of the daemon's own socket or of a group's, and must be the one bound at that path. Other descriptors
//! are closed with a log line, and volumes are served nevertheless.

#![allow(unsafe_code, reason = "descriptors from systemd")]

mod bound_file;

use std::{
    fs::Metadata,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// Set once the descriptors have been taken.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Reasons why a passed descriptor is not used.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// The environment variables or the descriptors violate the protocol.
    #[error("LISTEN_PID, LISTEN_FDS: {source}")]
    Protocol {
        /// Cause.
        source: std::io::Error,
    },
    /// Another socket is bound at the path.
    #[error("the socket bound at {} is not the one passed by systemd: restart the socket unit", path.display())]
    Other {
        /// Address of the socket.
        path: PathBuf,
    },
    /// The descriptor is not a listening socket.
    #[error("descriptor {descriptor} is not a listening unix stream socket with a path")]
    Kind {
        /// Index of the descriptor.
        descriptor: usize,
    },
    /// The path of the socket no longer exists.
    #[error("the passed socket {} was removed: restart the socket unit", path.display())]
    Gone {
        /// Address of the socket.
        path: PathBuf,
    },
    /// No configured listener has this address.
    #[error("no listener is configured at {}", path.display())]
    Unknown {
        /// Address of the socket.
        path: PathBuf,
    },
}

/// Unused listening sockets from systemd.
#[derive(Debug, Default)]
pub struct Passed {
    listeners: Vec<(PathBuf, UnixListener)>,
    problems: Vec<PassedError>,
}

impl Passed {
    /// Takes the descriptors passed to this process; further calls return none. Must be called before any
    /// file is opened: the descriptors are identified by their numbers.
    pub fn take() -> Self {
        let mut this = Self::default();
        if TAKEN.swap(true, Ordering::SeqCst) {
            return this;
        }
        let descriptors = match sd_notify::listen_fds() {
            Ok(descriptors) => descriptors,
            Err(source) => {
                this.problems.push(PassedError::Protocol { source });
                return this;
            }
        };
        for (nth, raw) in descriptors.enumerate() {
            // SAFETY: the number was passed to this process for it to own, it refers to an open descriptor,
            // and no file was opened since that could have got it. It is taken once.
            this.add(nth, unsafe { OwnedFd::from_raw_fd(raw) });
        }
        this
    }

    fn add(&mut self, descriptor: usize, socket: OwnedFd) {
        match listener(socket) {
            Some((path, _)) if !is_socket(&path) => self.problems.push(PassedError::Gone { path }),
            // If the kernel does not report the bound file, a matching address is sufficient.
            Some((path, listener)) if matches!(bound_file::is_bound_at(&listener, &path), Ok(false)) => {
                self.problems.push(PassedError::Other { path });
            }
            Some(passed) => self.listeners.push(passed),
            None => self.problems.push(PassedError::Kind { descriptor }),
        }
    }

    /// Takes the socket with this address, if there is one.
    pub(crate) fn at(&mut self, path: &Path) -> Option<UnixListener> {
        let wanted = std::fs::symlink_metadata(path).ok();
        let is_it = |passed: &Path| passed == path || is_same(passed, wanted.as_ref());
        let nth = self.listeners.iter().position(|(passed, _)| is_it(passed))?;
        Some(self.listeners.swap_remove(nth).1)
    }

    /// Returns the problems, including the sockets that no listener has taken.
    pub(crate) fn into_problems(self) -> impl Iterator<Item = PassedError> {
        let unknown = self.listeners.into_iter().map(|(path, _)| PassedError::Unknown { path });
        self.problems.into_iter().chain(unknown)
    }
}

/// Returns the non-blocking listener and its path; `None` for any other descriptor.
fn listener(socket: OwnedFd) -> Option<(PathBuf, UnixListener)> {
    use rustix::net::{SocketType, sockopt};
    let is_stream = sockopt::socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM);
    if !is_stream || !sockopt::socket_acceptconn(&socket).is_ok_and(|listens| listens) {
        return None;
    }
    let listener = UnixListener::from(socket);
    let path = listener.local_addr().ok()?.as_pathname()?.to_owned();
    listener.set_nonblocking(true).ok()?;
    Some((path, listener))
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

fn is_same(path: &Path, other: Option<&Metadata>) -> bool {
    let found = std::fs::symlink_metadata(path).ok();
    found.zip(other).is_some_and(|(one, two)| (one.dev(), one.ino()) == (two.dev(), two.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    fn passed(sockets: Vec<OwnedFd>) -> Passed {
        let mut passed = Passed::default();
        sockets.into_iter().enumerate().for_each(|(nth, socket)| passed.add(nth, socket));
        passed
    }

    #[test]
    fn passed_socket_is_found_by_any_path_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, real) = (dir.path().join("a.sock"), dir.path().join("real"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        let behind_link = dir.path().join("link/b.sock");
        let mut passed = passed(vec![
            UnixListener::bind(&path).unwrap().into(),
            UnixListener::bind(&behind_link).unwrap().into(),
        ]);
        assert!(passed.at(&dir.path().join("c.sock")).is_none());
        assert!(passed.at(&path).is_some());
        assert!(passed.at(&path).is_none(), "a socket is taken once");
        assert!(passed.at(&real.join("b.sock")).is_some());
        assert_eq!(passed.into_problems().count(), 0);
    }

    #[test]
    fn socket_replaced_at_its_path_is_reported() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("a.sock");
        let first = UnixListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        if bound_file::is_bound_at(&second, &path).is_err() {
            return eprintln!("NOT TESTED: the kernel does not report the files of sockets");
        }
        let mut passed = passed(vec![first.into(), second.into()]);
        assert!(passed.at(&path).is_some());
        let problems: Vec<String> = passed.into_problems().map(|problem| problem.to_string()).collect();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("is not the one passed by systemd"), "{problems:?}");
    }

    #[test]
    fn unusable_descriptors_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let gone = UnixListener::bind(path("gone.sock")).unwrap();
        std::fs::remove_file(path("gone.sock")).unwrap();
        let (connected, _other) = UnixStream::pair().unwrap();
        let passed = passed(vec![
            std::fs::File::create(path("file")).unwrap().into(),
            UnixDatagram::bind(path("datagram.sock")).unwrap().into(),
            connected.into(),
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(),
            gone.into(),
            UnixListener::bind(path("other.sock")).unwrap().into(),
        ]);
        let problems: Vec<String> = passed.into_problems().map(|problem| problem.to_string()).collect();
        for (nth, problem) in problems.iter().take(4).enumerate() {
            assert_eq!(
                *problem,
                format!("descriptor {nth} is not a listening unix stream socket with a path")
            );
        }
        assert!(problems[4].ends_with("gone.sock was removed: restart the socket unit"), "{problems:?}");
        assert!(problems[5].ends_with("other.sock"), "{problems:?}");
        assert_eq!(problems.len(), 6);
    }
}
