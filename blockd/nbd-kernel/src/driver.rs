//! Interface to the kernel's nbd driver, which a fake can replace in tests.

use crate::{AttachOptions, Dialed, KernelError};
use std::{
    fmt::Debug,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

/// The nbd driver.
pub trait Driver: Debug + Send + Sync {
    /// Opens a session.
    ///
    /// # Errors
    /// [`KernelError::NoModule`] if the driver is not loaded; otherwise netlink failed.
    fn open(&self) -> Result<Box<dyn DriverSession>, KernelError>;
}

/// Netlink session with the driver.
pub trait DriverSession {
    /// Returns the ids of the driver's netlink family and of its multicast group. They change when the driver
    /// is reloaded, after which an earlier [`Watch`] receives no notifications.
    fn family_ids(&self) -> (u16, Option<u32>);

    /// Attaches connections to the device with this index, or to a free device, and returns its index. The
    /// kernel holds the sockets open.
    ///
    /// # Errors
    /// [`KernelError::Busy`] if the device is in use, or the kernel refuses the request.
    fn connect(
        &mut self,
        index: Option<u32>,
        dialed: &Dialed,
        read_only: bool,
        options: &AttachOptions,
    ) -> Result<u32, KernelError>;

    /// Replaces the dead connections of a device with these sockets. The kernel drops surplus sockets, so a
    /// caller may pass as many as the device has connections.
    ///
    /// # Errors
    /// [`KernelError::NoDevice`] if the device is not connected or has another backend, or the kernel refuses
    /// the request.
    fn reconnect(&mut self, index: u32, backend: &str, sockets: &[OwnedFd]) -> Result<(), KernelError>;

    /// Sets the size of a device, in bytes.
    ///
    /// # Errors
    /// As for [`reconnect`](Self::reconnect).
    fn resize(&mut self, index: u32, backend: &str, size_bytes: u64) -> Result<(), KernelError>;

    /// Disconnects a device, even if it is in use.
    ///
    /// # Errors
    /// [`KernelError::NoDevice`] if the device does not exist, or the kernel refuses the request.
    fn disconnect(&mut self, index: u32) -> Result<(), KernelError>;

    /// Subscribes to notifications of dead connections.
    ///
    /// # Errors
    /// The driver has no multicast group, or the kernel refuses the subscription.
    fn watch(&self) -> Result<Box<dyn Watch>, KernelError>;
}

/// Notifications of dead connections.
pub trait Watch: Send {
    /// Waits for a notification, until the timeout or until `wake` is readable; returns the devices with a
    /// dead connection. `None` means that notifications were lost, so any device may have a dead connection.
    ///
    /// # Errors
    /// The socket failed.
    fn wait(&mut self, timeout: Duration, wake: BorrowedFd<'_>) -> Result<Option<Vec<u32>>, KernelError>;
}
