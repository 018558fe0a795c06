//! Interface to the kernel's nbd driver, which tests replace by a fake.

use crate::{AttachOptions, Dialed, Kernel, KernelError, LinkWatch};
use std::{
    fmt::Debug,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

/// Nbd driver.
pub trait Driver: Debug + Send + Sync {
    /// Opens a session; see [`Kernel::open`].
    fn open(&self) -> Result<Box<dyn DriverSession>, KernelError>;
}

/// Session with the driver.
pub trait DriverSession {
    /// Returns the numbers of the family and of its group; see [`Kernel::numbers`].
    fn numbers(&self) -> (u16, Option<u32>);
    /// Connects a device and returns its index; see [`Kernel::connect`].
    fn connect(
        &mut self,
        index: Option<u32>,
        dialed: &Dialed,
        read_only: bool,
        options: &AttachOptions,
    ) -> Result<u32, KernelError>;
    /// Replaces dead sockets; see [`Kernel::reconnect`].
    fn reconnect(&mut self, index: u32, backend: &str, sockets: &[OwnedFd]) -> Result<(), KernelError>;
    /// Sets the size; see [`Kernel::resize`].
    fn resize(&mut self, index: u32, backend: &str, size_bytes: u64) -> Result<(), KernelError>;
    /// Disconnects a device; see [`Kernel::disconnect`].
    fn disconnect(&mut self, index: u32) -> Result<(), KernelError>;
    /// Subscribes to dead connections; see [`Kernel::watch`].
    fn watch(&self) -> Result<Box<dyn Watch>, KernelError>;
}

/// Notifications of dead connections; see [`LinkWatch`].
pub trait Watch: Send {
    /// Waits for a dead connection, the timeout or `wake`; see [`LinkWatch::wait`].
    fn wait(&mut self, timeout: Duration, wake: BorrowedFd<'_>) -> Result<Option<Vec<u32>>, KernelError>;
}

/// Driver of the running kernel.
#[derive(Debug)]
pub struct KernelDriver;

impl Driver for KernelDriver {
    fn open(&self) -> Result<Box<dyn DriverSession>, KernelError> {
        Ok(Box::new(Kernel::open()?))
    }
}

impl DriverSession for Kernel {
    /// Returns the numbers of the family and of its group; see [`Kernel::numbers`].
    fn numbers(&self) -> (u16, Option<u32>) {
        Kernel::numbers(self)
    }

    fn connect(
        &mut self,
        index: Option<u32>,
        dialed: &Dialed,
        read_only: bool,
        options: &AttachOptions,
    ) -> Result<u32, KernelError> {
        Kernel::connect(self, index, dialed, read_only, options)
    }

    fn reconnect(&mut self, index: u32, backend: &str, sockets: &[OwnedFd]) -> Result<(), KernelError> {
        Kernel::reconnect(self, index, backend, sockets)
    }

    fn resize(&mut self, index: u32, backend: &str, size_bytes: u64) -> Result<(), KernelError> {
        Kernel::resize(self, index, backend, size_bytes)
    }

    fn disconnect(&mut self, index: u32) -> Result<(), KernelError> {
        Kernel::disconnect(self, index)
    }

    fn watch(&self) -> Result<Box<dyn Watch>, KernelError> {
        Ok(Box::new(Kernel::watch(self)?))
    }
}

impl Watch for LinkWatch {
    fn wait(&mut self, timeout: Duration, wake: BorrowedFd<'_>) -> Result<Option<Vec<u32>>, KernelError> {
        LinkWatch::wait(self, timeout, wake)
    }
}
