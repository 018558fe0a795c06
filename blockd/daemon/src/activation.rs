//! Sockets of the control API that systemd made and passes on.
//!
//! Whoever connects while the daemon is not there yet, or is being restarted, waits in such a socket in place
//! of being refused, and starts the daemon where it does not run. A socket is known by its address: that of
//! the daemon's own socket, or of a group's; and it must be the very one that lies there. What cannot be used
//! is closed, with a line in the log: volumes are served all the same.

mod place;

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

/// What was passed has been taken.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Why a passed descriptor is not used.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// The variables, or the descriptors that they tell of, are not what systemd passes.
    #[error("LISTEN_PID, LISTEN_FDS: {source}")]
    Protocol {
        /// What is wrong.
        source: std::io::Error,
    },
    /// Whoever connects to the path reaches another socket.
    #[error("{} is another socket than the one that systemd passed: restart the socket unit", path.display())]
    Other {
        /// The address of the socket.
        path: PathBuf,
    },
    /// It is nothing that listens.
    #[error("descriptor {descriptor} is no listening unix stream socket with a path")]
    Kind {
        /// Its number, as it was passed.
        descriptor: usize,
    },
    /// Whoever connects to the path does not reach the passed socket.
    #[error("{} is no socket any more: restart the socket unit", path.display())]
    Gone {
        /// The address of the socket.
        path: PathBuf,
    },
    /// Nothing of the configuration has this address.
    #[error("nothing is configured to be served at {}", path.display())]
    Unknown {
        /// The address of the socket.
        path: PathBuf,
    },
}

/// Listening sockets from systemd that nobody uses yet.
#[derive(Debug, Default)]
pub struct Passed {
    listeners: Vec<(PathBuf, UnixListener)>,
    problems: Vec<PassedError>,
}

impl Passed {
    /// Takes what was passed to this process, once: afterwards nothing is left. Must be called before
    /// anything else opens files: a descriptor is told by its number.
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
            // SAFETY: the number was given to this process for it to own, it was found to be open, and nobody
            // has opened anything that could have got it. It is taken once.
            this.add(nth, unsafe { OwnedFd::from_raw_fd(raw) });
        }
        this
    }

    fn add(&mut self, descriptor: usize, socket: OwnedFd) {
        match listener(socket) {
            Some((path, _)) if !is_socket(&path) => self.problems.push(PassedError::Gone { path }),
            // Where the kernel does not tell, an address that fits is believed.
            Some((path, listener)) if matches!(place::is_at(&listener, &path), Ok(false)) => {
                self.problems.push(PassedError::Other { path });
            }
            Some(passed) => self.listeners.push(passed),
            None => self.problems.push(PassedError::Kind { descriptor }),
        }
    }

    /// The socket with this address, if there is one.
    pub(crate) fn at(&mut self, path: &Path) -> Option<UnixListener> {
        let wanted = std::fs::symlink_metadata(path).ok();
        let is_it = |passed: &Path| passed == path || is_same(passed, wanted.as_ref());
        let nth = self.listeners.iter().position(|(passed, _)| is_it(passed))?;
        Some(self.listeners.swap_remove(nth).1)
    }

    /// What was passed in vain, when everything that was wanted is taken.
    pub(crate) fn into_problems(self) -> impl Iterator<Item = PassedError> {
        let unknown = self.listeners.into_iter().map(|(path, _)| PassedError::Unknown { path });
        self.problems.into_iter().chain(unknown)
    }
}

/// The socket, ready for use, and its address; none if it is anything else.
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
    fn a_socket_is_known_by_its_address_whatever_leads_there() {
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
        assert!(passed.at(&path).is_none(), "it is given once");
        assert!(passed.at(&real.join("b.sock")).is_some());
        assert_eq!(passed.into_problems().count(), 0);
    }

    #[test]
    fn a_socket_in_whose_place_another_one_lies_is_told() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("a.sock");
        let first = UnixListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = UnixListener::bind(&path).unwrap();
        if place::is_at(&second, &path).is_err() {
            return eprintln!("NOT TESTED: the kernel does not tell where sockets are");
        }
        let mut passed = passed(vec![first.into(), second.into()]);
        assert!(passed.at(&path).is_some());
        let problems: Vec<String> = passed.into_problems().map(|problem| problem.to_string()).collect();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].contains("a.sock is another socket than the one that systemd passed"),
            "{problems:?}"
        );
    }

    #[test]
    fn what_cannot_be_served_is_told() {
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
            assert_eq!(*problem, format!("descriptor {nth} is no listening unix stream socket with a path"));
        }
        assert!(
            problems[4].ends_with("gone.sock is no socket any more: restart the socket unit"),
            "{problems:?}"
        );
        assert!(problems[5].ends_with("other.sock"), "{problems:?}");
        assert_eq!(problems.len(), 6);
    }
}
