//! Generic netlink client of the kernel's nbd driver. Each call waits for its acknowledgement.

#![allow(unsafe_code, reason = "socket option")]

use crate::{
    AttachOptions, Dialed,
    driver::{Driver, DriverSession, Watch},
    error::KernelError,
    family,
    wire::{Attributes, Message, messages},
};
use blockd_nbd::constants::NBD_FLAG_READ_ONLY;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink},
};
use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

/// Size of the receive buffer in bytes: the longest message is the status of all devices, 20 bytes each.
const DATAGRAM_LEN_BYTES: usize = 256 << 10;

/// Object of errors without a device.
const DRIVER: &str = "the nbd driver";

/// Driver of the running kernel.
#[derive(Debug)]
pub(crate) struct KernelDriver;

impl Driver for KernelDriver {
    fn open(&self) -> Result<Box<dyn DriverSession>, KernelError> {
        Ok(Box::new(Kernel::open()?))
    }
}

/// Netlink session with the kernel's nbd driver.
#[derive(Debug)]
struct Kernel {
    socket: OwnedFd,
    family: u16,
    group: Option<u32>,
    sequence: u32,
    datagram: Vec<u8>,
}

fn open_socket() -> Result<OwnedFd, KernelError> {
    let failed = |operation| move |errno: Errno| KernelError::Socket { operation, source: errno.into() };
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::GENERIC),
    )
    .map_err(failed("socket creation"))?;
    rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, 0)).map_err(failed("bind"))?;
    Ok(socket)
}

impl Kernel {
    /// Opens a session.
    ///
    /// # Errors
    /// [`KernelError::NoModule`] if the driver is not loaded; otherwise netlink failed.
    fn open() -> Result<Self, KernelError> {
        let socket = open_socket()?;
        let mut kernel =
            Self { socket, family: 0, group: None, sequence: 0, datagram: vec![0; DATAGRAM_LEN_BYTES] };
        let sequence = kernel.next_sequence();
        let found = kernel.call(&family::get_family(sequence), family::CONTROL_FAMILY, family::family);
        match found {
            Ok(Some((id, group))) => {
                kernel.family = id;
                kernel.group = group;
                Ok(kernel)
            }
            Ok(None) => Err(KernelError::Malformed { operation: "lookup", object: DRIVER.to_owned() }),
            Err(Failed::Errno(errno)) if errno == Errno::NOENT => Err(KernelError::NoModule),
            Err(failed) => Err(failed.during("lookup", || DRIVER.to_owned())),
        }
    }

    /// Returns the indexes of the connected devices.
    fn connected(&mut self) -> Result<Vec<u32>, Failed> {
        let sequence = self.next_sequence();
        let request = family::status(self.family, sequence);
        let devices = self.call(&request, self.family, |attributes| Some(family::devices(attributes)))?;
        let devices = devices.unwrap_or_default().into_iter();
        Ok(devices.filter_map(|(index, connected)| connected.then_some(index)).collect())
    }

    fn change(&mut self, request: &[u8], index: u32, operation: &'static str) -> Result<(), KernelError> {
        match self.call(request, self.family, |_| Some(())) {
            Ok(_) => Ok(()),
            Err(Failed::Errno(errno)) if is_no_device(errno, index, || self.connected().ok()) => {
                Err(KernelError::NoDevice { index })
            }
            Err(failed) => Err(failed.during(operation, || format!("/dev/nbd{index}"))),
        }
    }

    fn next_sequence(&mut self) -> u32 {
        // Unsolicited messages have the number 0.
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.sequence
    }

    /// Sends a request with the current sequence number, and waits for its acknowledgement; returns the last
    /// parsed reply.
    fn call<T>(
        &mut self,
        request: &[u8],
        family: u16,
        parse: impl Fn(Attributes<'_>) -> Option<T>,
    ) -> Result<Option<T>, Failed> {
        rustix::net::send(&self.socket, request, SendFlags::empty()).map_err(Failed::Send)?;
        let wanted = self.sequence;
        let mut reply = None;
        loop {
            let datagram = receive(&self.socket, &mut self.datagram, RecvFlags::empty())?;
            for message in messages(datagram) {
                match message {
                    Message::Outcome { sequence, errno } if sequence == wanted => {
                        return if errno == 0 {
                            Ok(reply)
                        } else {
                            Err(Failed::Errno(Errno::from_raw_os_error(errno)))
                        };
                    }
                    Message::Generic { sequence, family: from, attributes, .. }
                        if sequence == wanted && from == family =>
                    {
                        reply = parse(attributes);
                    }
                    // A leftover of an earlier, failed call.
                    _ => {}
                }
            }
        }
    }
}

impl DriverSession for Kernel {
    fn family_ids(&self) -> (u16, Option<u32>) {
        (self.family, self.group)
    }

    fn connect(
        &mut self,
        index: Option<u32>,
        dialed: &Dialed,
        read_only: bool,
        options: &AttachOptions,
    ) -> Result<u32, KernelError> {
        let flags = if read_only { dialed.flags | NBD_FLAG_READ_ONLY } else { dialed.flags };
        let sequence = self.next_sequence();
        let request =
            family::connect(self.family, sequence, index, dialed.size_bytes, flags, options, &dialed.sockets);
        let object = || index.map_or_else(|| "a free device".to_owned(), |index| format!("/dev/nbd{index}"));
        match self.call(&request, self.family, family::index) {
            Ok(Some(index)) => Ok(index),
            Ok(None) => Err(KernelError::Malformed { operation: "attach", object: object() }),
            Err(Failed::Errno(errno)) if errno == Errno::BUSY => index.map_or_else(
                || Err(Failed::Errno(errno).during("attach", object)),
                |index| Err(KernelError::Busy { index }),
            ),
            Err(failed) => Err(failed.during("attach", object)),
        }
    }

    fn reconnect(&mut self, index: u32, backend: &str, sockets: &[OwnedFd]) -> Result<(), KernelError> {
        let sequence = self.next_sequence();
        let request = family::reconfigure(self.family, sequence, index, backend, None, sockets);
        self.change(&request, index, "reconnect")
    }

    fn resize(&mut self, index: u32, backend: &str, size_bytes: u64) -> Result<(), KernelError> {
        let sequence = self.next_sequence();
        let request = family::reconfigure(self.family, sequence, index, backend, Some(size_bytes), &[]);
        self.change(&request, index, "resize")
    }

    fn disconnect(&mut self, index: u32) -> Result<(), KernelError> {
        let sequence = self.next_sequence();
        self.change(&family::disconnect(self.family, sequence, index), index, "detach")
    }

    fn watch(&self) -> Result<Box<dyn Watch>, KernelError> {
        let group = self.group.ok_or_else(|| KernelError::Malformed {
            operation: "lookup of the multicast group",
            object: DRIVER.to_owned(),
        })?;
        let socket = open_socket()?;
        join(&socket, group).map_err(|source| KernelError::Socket {
            operation: "subscription to dead connections",
            source,
        })?;
        Ok(Box::new(LinkWatch { socket, family: self.family, datagram: vec![0; 64 << 10] }))
    }
}

/// Returns true if the kernel reported a missing device. `EINVAL` means either that or an invalid request.
fn is_no_device(errno: Errno, index: u32, connected: impl FnOnce() -> Option<Vec<u32>>) -> bool {
    match errno {
        Errno::NODEV => true,
        Errno::INVAL => connected().is_some_and(|connected| !connected.contains(&index)),
        _ => false,
    }
}

/// Receives a datagram of the kernel, and skips those of other senders.
fn receive<'a>(socket: &OwnedFd, buffer: &'a mut [u8], flags: RecvFlags) -> Result<&'a [u8], Failed> {
    loop {
        let (_, len_bytes, from) = match rustix::net::recvfrom(socket, &mut *buffer, flags | RecvFlags::TRUNC)
        {
            Err(Errno::INTR) => continue,
            other => other.map_err(Failed::Receive)?,
        };
        let from_kernel = from
            .and_then(|from| netlink::SocketAddrNetlink::try_from(from).ok())
            .is_some_and(|from| from.pid() == 0);
        if !from_kernel {
            continue;
        }
        return buffer.get(..len_bytes).ok_or(Failed::Receive(Errno::MSGSIZE));
    }
}

enum Failed {
    Send(Errno),
    Receive(Errno),
    Errno(Errno),
}

impl Failed {
    fn during(self, operation: &'static str, object: impl FnOnce() -> String) -> KernelError {
        match self {
            Self::Send(errno) => KernelError::Socket { operation: "send", source: errno.into() },
            Self::Receive(errno) => KernelError::Socket { operation: "receive", source: errno.into() },
            Self::Errno(errno) if errno == Errno::PERM || errno == Errno::ACCESS => {
                KernelError::Denied { operation, object: object() }
            }
            Self::Errno(errno) => KernelError::Refused { operation, object: object(), source: errno.into() },
        }
    }
}

/// Subscription to notifications of dead connections.
#[derive(Debug)]
struct LinkWatch {
    socket: OwnedFd,
    family: u16,
    datagram: Vec<u8>,
}

impl Watch for LinkWatch {
    fn wait(&mut self, timeout: Duration, wake: BorrowedFd<'_>) -> Result<Option<Vec<u32>>, KernelError> {
        let failed =
            |errno: Errno| KernelError::Socket { operation: "wait for notifications", source: errno.into() };
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let notifications = PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN);
        let mut fds = [notifications, PollFd::from_borrowed_fd(wake, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        if fds.first().is_none_or(|fd| fd.revents().is_empty()) {
            return Ok(Some(Vec::new()));
        }
        // Without blocking: the datagram may be from another sender, which `receive` skips.
        let datagram = match receive(&self.socket, &mut self.datagram, RecvFlags::DONTWAIT) {
            Ok(datagram) => datagram,
            Err(Failed::Receive(Errno::AGAIN)) => return Ok(Some(Vec::new())),
            // The receive buffer of the socket overflowed.
            Err(Failed::Receive(Errno::NOBUFS)) => return Ok(None),
            Err(Failed::Receive(errno) | Failed::Send(errno) | Failed::Errno(errno)) => {
                return Err(failed(errno));
            }
        };
        let dead = messages(datagram).filter_map(|message| match message {
            Message::Generic { family, command: family::CMD_LINK_DEAD, attributes, .. }
                if family == self.family =>
            {
                family::index(attributes)
            }
            _ => None,
        });
        Ok(Some(dead.collect()))
    }
}

/// Joins a multicast group. Group ids above 32 do not fit into the bit mask of a netlink address.
fn join(socket: &OwnedFd, group: u32) -> io::Result<()> {
    // SAFETY: the option takes a pointer to four bytes, which live until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const group).cast(),
            libc::socklen_t::try_from(size_of_val(&group)).unwrap_or(4),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn einval_means_no_device_only_if_unconnected() {
        let connected = || Some(vec![1, 3]);
        assert!(is_no_device(Errno::NODEV, 1, connected));
        assert!(is_no_device(Errno::INVAL, 2, connected));
        assert!(!is_no_device(Errno::INVAL, 3, connected));
        assert!(!is_no_device(Errno::INVAL, 2, || None), "unknown state of the device");
        assert!(!is_no_device(Errno::BUSY, 2, connected));
    }

    #[test]
    fn message_of_another_sender_is_skipped() {
        let (ours, theirs) = (open_socket().unwrap(), open_socket().unwrap());
        let address = rustix::net::getsockname(&ours).unwrap();
        let address = netlink::SocketAddrNetlink::try_from(address).unwrap();
        let (wake, _kept) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut watch = LinkWatch { socket: ours, family: 0, datagram: vec![0; 4096] };
        if rustix::net::sendto(&theirs, b"from another sender", SendFlags::empty(), &address).is_err() {
            // Only the kernel may send to this socket.
            return;
        }
        assert_eq!(watch.wait(Duration::from_secs(60), wake.as_fd()).unwrap(), Some(Vec::new()));
    }

    #[test]
    fn session_opens_or_reports_the_missing_module() {
        match Kernel::open() {
            Ok(mut kernel) => {
                assert!(kernel.connected().is_ok());
            }
            Err(KernelError::NoModule) => {
                assert!(KernelError::NoModule.to_string().contains("modprobe nbd"));
            }
            Err(other) => panic!("{other}"),
        }
    }
}
