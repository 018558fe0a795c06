//! Interface to the kernel's nbd driver, which tests replace by a fake.

use crate::{AttachOptions, Dialed, KernelError};
use std::{
    fmt::Debug,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

/// Nbd driver.
pub trait Driver: Debug + Send + Sync {
    /// Opens a session.
    ///
    /// # Errors
    /// [`KernelError::NoModule`] if the driver is not loaded; or netlink cannot be used.
    fn open(&self) -> Result<Box<dyn DriverSession>, KernelError>;
}

/// Session with the driver.
pub trait DriverSession {
    /// Returns the numbers of the driver's family and of its group of notifications. They change when the
    /// driver is unloaded and loaded again, and a [`Watch`] from before hears nothing any more.
    fn numbers(&self) -> (u16, Option<u32>);

    /// Attaches connections as a device, the one with this index or a free one, and returns its index. The
    /// kernel keeps the sockets.
    ///
    /// # Errors
    /// The device is in use, or the kernel refuses.
    fn connect(
        &mut self,
        index: Option<u32>,
        dialed: &Dialed,
        read_only: bool,
        options: &AttachOptions,
    ) -> Result<u32, KernelError>;

    /// Gives a device these sockets in place of dead ones. The kernel closes those that are not needed: as
    /// many as it has connections can be given at any time.
    ///
    /// # Errors
    /// The device is not connected, belongs to another backend, or the kernel refuses.
    fn reconnect(&mut self, index: u32, backend: &str, sockets: &[OwnedFd]) -> Result<(), KernelError>;

    /// Sets the size of a device.
    ///
    /// # Errors
    /// As for [`reconnect`](Self::reconnect).
    fn resize(&mut self, index: u32, backend: &str, size_bytes: u64) -> Result<(), KernelError>;

    /// Disconnects a device, also in use.
    ///
    /// # Errors
    /// The device does not exist, or the kernel refuses.
    fn disconnect(&mut self, index: u32) -> Result<(), KernelError>;

    /// Subscribes to dead connections.
    ///
    /// # Errors
    /// The kernel has no such notifications, or refuses them to this process.
    fn watch(&self) -> Result<Box<dyn Watch>, KernelError>;
}

/// Notifications of dead connections.
pub trait Watch: Send {
    /// Waits for notifications up to a timeout, or until `wake` is readable; returns devices that lost a
    /// connection. `None` means lost notifications: any device may have lost one.
    ///
    /// # Errors
    /// The socket failed.
    fn wait(&mut self, timeout: Duration, wake: BorrowedFd<'_>) -> Result<Option<Vec<u32>>, KernelError>;
}
