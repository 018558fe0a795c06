//! Interfaces of exports: [`BlockDevice`] serves the data of an export, [`ExportCatalog`] opens it by name.

use std::fmt;
use std::sync::Arc;

use crate::protocol::constants::{
    BASE_ALLOCATION, NBD_EINVAL, NBD_EIO, NBD_ENOSPC, NBD_ENOTSUP, NBD_EPERM, NBD_ESHUTDOWN,
};

/// Result of a read, or of a non-blocking write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Completed.
    Done,
    /// Completed; every byte of the range is zero. Only [`BlockDevice::try_read`] and [`BlockDevice::read`]
    /// return it, and may leave `buf` unchanged: clients with structured replies receive a hole without data.
    Zeroes,
    /// The request would wait for storage or network; it had no effect.
    WouldBlock,
}

/// Access of a request to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Write or zero.
    Write,
    /// Block status, of any length. The device may fetch the metadata of the start of the range only, and
    /// report the status of that.
    Status,
}

/// Completion callback of [`BlockDevice::prefetch_async`]: called once, when the data of a request is local
/// or its fetch has failed. It executes the request, so it may block as long as the request itself.
pub type OnFetched = Box<dyn FnOnce(Result<(), DeviceError>) + Send>;

/// Options of [`BlockDevice::write_zeroes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// Keep the space allocated.
    pub no_hole: bool,
    /// Fail with [`DeviceErrorKind::NotSupported`] if zeroing is not faster than writing zeroes.
    pub fast: bool,
    /// Force unit access: the zeroes are durable on return.
    pub fua: bool,
}

/// Byte range with one status in a metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Length in bytes, at least 1.
    pub len_bytes: u64,
    /// Status flags; for `base:allocation`, [`STATE_HOLE`](crate::protocol::constants::STATE_HOLE) and
    /// [`STATE_ZERO`](crate::protocol::constants::STATE_ZERO).
    pub flags: u32,
}

/// Client of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Peer of the connection, for logs: `unix`, `tcp://192.0.2.7:4321`.
    pub peer: String,
    /// Names in the verified certificate of the client; empty without one.
    pub certificate_names: Vec<String>,
    /// True for a client of a Unix socket, which admits only the server's user and root.
    pub is_local: bool,
}

/// Block device served to one or more connections.
///
/// The server validates requests: ranges are within `size_bytes()`, reads and writes are 1 byte to 64 MiB
/// long, read-only devices are never written. Requests run concurrently, in any order and on any number of
/// threads. The server holds the `Arc` of a device from the start of transmission until the connection and
/// its last request have ended. It may drop the `Arc` on any of its threads, so dropping must not block.
///
/// For request offsets that are multiples of 4096, buffers of [`read`](Self::read) and
/// [`write`](Self::write) are aligned to 4096 in memory, as required for direct I/O. Buffers of
/// [`try_read`](Self::try_read) and [`try_write`](Self::try_write) need not be aligned.
pub trait BlockDevice: Send + Sync + 'static {
    /// Returns the size in bytes. It may grow while connections hold the device, but never shrink. Requests
    /// beyond the negotiated size are served once the device has grown.
    fn size_bytes(&self) -> u64;

    /// Returns true if writes are refused.
    fn is_read_only(&self) -> bool;

    /// Reads into `buf` without waiting for storage or network, or returns [`Progress::WouldBlock`] with
    /// unspecified content of `buf`. Called on a ring thread, which serves sockets.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        let _ = (offset_bytes, buf);
        Ok(Progress::WouldBlock)
    }

    /// Starts to fetch remote data of a request without blocking, and keeps `then` until the request can be
    /// executed or the fetch has failed; any thread may call it. Returns `then` if no fetch is needed, which
    /// is the default.
    ///
    /// Waiting requests occupy no thread and count against the limits of their connection. If the client
    /// disconnects, the server ends them, and later calls of `then` have no effect.
    fn prefetch_async(
        &self,
        access: Access,
        offset_bytes: u64,
        len_bytes: u64,
        then: OnFetched,
    ) -> Option<OnFetched> {
        let _ = (access, offset_bytes, len_bytes);
        Some(then)
    }

    /// Returns true for a remote-backed device, whose [`prefetch_async`](Self::prefetch_async) may keep
    /// requests.
    fn may_be_remote(&self) -> bool {
        false
    }

    /// Returns the key of the remote data source: devices with the same key share a part of the server's
    /// in-flight budget. Called at the start of transmission for devices that [may be
    /// remote](Self::may_be_remote). By default all share one key.
    fn source_key(&self) -> u128 {
        0
    }

    /// Reads into `buf`; may block. Never returns [`Progress::WouldBlock`].
    ///
    /// # Errors
    /// The data cannot be read; the client receives the error number of the kind.
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError>;

    /// Writes `data` without waiting for storage or network, or returns [`Progress::WouldBlock`] without
    /// effect. Never called for FUA writes. Called on a ring thread, which serves sockets.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<Progress, DeviceError> {
        let _ = (offset_bytes, data);
        Ok(Progress::WouldBlock)
    }

    /// Writes `data`; with `fua` the data is durable on return. May block. The defaults of this method,
    /// [`trim`](Self::trim) and [`write_zeroes`](Self::write_zeroes) suit read-only devices: they fail with
    /// [`DeviceErrorKind::Permission`].
    ///
    /// # Errors
    /// The data cannot be written; the client receives the error number of the kind.
    fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), DeviceError> {
        let _ = (offset_bytes, data, fua);
        Err(DeviceError::read_only())
    }

    /// Returns the key of shared storage. One [`flush`](Self::flush) covers all devices with the same key, so
    /// the server coalesces their pending flushes. Without a key, the default, it coalesces flushes of one
    /// `Arc` only.
    fn flush_key(&self) -> Option<u128> {
        None
    }

    /// Makes every write that returned before this call durable, for all connections. May block.
    ///
    /// # Errors
    /// Some writes may not be durable.
    fn flush(&self) -> Result<(), DeviceError>;

    /// Discards a range, whose content is then unspecified; with `fua` durable on return. May block.
    ///
    /// # Errors
    /// The device failed.
    fn trim(&self, offset_bytes: u64, len_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        let _ = (offset_bytes, len_bytes, fua);
        Err(DeviceError::read_only())
    }

    /// Zeroes a range. May block.
    ///
    /// # Errors
    /// The range cannot be zeroed.
    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, flags: ZeroFlags) -> Result<(), DeviceError> {
        let _ = (offset_bytes, len_bytes, flags);
        Err(DeviceError::read_only())
    }

    /// Prefetches a range that the client intends to read (`NBD_CMD_CACHE`). May block. The default does
    /// nothing.
    ///
    /// # Errors
    /// The device failed.
    fn cache(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), DeviceError> {
        let _ = (offset_bytes, len_bytes);
        Ok(())
    }

    /// Returns the metadata contexts of [`block_status`](Self::block_status), each as `namespace:name` of at
    /// most 4096 bytes. May block. The default has only `base:allocation`. A name keeps its meaning while the
    /// device is held: a device with reusable names must bind them when it is opened.
    fn meta_contexts(&self) -> Vec<String> {
        vec![BASE_ALLOCATION.to_owned()]
    }

    /// Appends the status of a range in one metadata context: one to `max_extents` consecutive extents that
    /// start at `offset_bytes` and may end before the range. Adjacent extents with the same status should be
    /// merged. May block. The default reports allocated data.
    ///
    /// # Errors
    /// The context does not exist or no longer exists, or the device failed.
    fn block_status(
        &self,
        context: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        let _ = (context, offset_bytes, max_extents);
        extents.push(StatusExtent { len_bytes, flags: 0 });
        Ok(())
    }
}

/// Kind of a device failure; determines the error number of the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceErrorKind {
    /// The storage failed: `NBD_EIO`.
    Io,
    /// The storage is full: `NBD_ENOSPC`.
    NoSpace,
    /// The request is invalid for the device: `NBD_EINVAL`.
    InvalidInput,
    /// The device does not permit the request: `NBD_EPERM`.
    Permission,
    /// The device is being removed: `NBD_ESHUTDOWN`.
    Shutdown,
    /// The device does not support the request, such as a slow zeroing with `FAST_ZERO`: `NBD_ENOTSUP`.
    NotSupported,
}

impl DeviceErrorKind {
    /// All kinds.
    pub const ALL: [Self; 6] =
        [Self::Io, Self::NoSpace, Self::InvalidInput, Self::Permission, Self::Shutdown, Self::NotSupported];

    /// Returns the name of the error number, without the prefix of NBD.
    #[must_use]
    pub const fn errno_name(self) -> &'static str {
        match self {
            Self::Io => "EIO",
            Self::NoSpace => "ENOSPC",
            Self::InvalidInput => "EINVAL",
            Self::Permission => "EPERM",
            Self::Shutdown => "ESHUTDOWN",
            Self::NotSupported => "ENOTSUP",
        }
    }

    /// Returns the error number of this kind.
    pub(crate) fn nbd_errno(self) -> u32 {
        match self {
            Self::Io => NBD_EIO,
            Self::NoSpace => NBD_ENOSPC,
            Self::InvalidInput => NBD_EINVAL,
            Self::Permission => NBD_EPERM,
            Self::Shutdown => NBD_ESHUTDOWN,
            Self::NotSupported => NBD_ENOTSUP,
        }
    }
}

/// Failure of a device. Clients receive the error number of the kind. The server logs the message, for each
/// error number at most once a minute and connection; `ENOTSUP` only at level trace.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct DeviceError {
    kind: DeviceErrorKind,
    message: String,
}

impl DeviceError {
    /// Creates an error from its kind and a one-line message with operation, object and cause.
    pub fn new(kind: DeviceErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    fn read_only() -> Self {
        Self::new(DeviceErrorKind::Permission, "the device is read-only")
    }

    /// Returns the kind.
    #[must_use]
    pub fn kind(&self) -> DeviceErrorKind {
        self.kind
    }

    /// Returns the one-line message.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// Entry of an export list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Name, at most 4096 bytes.
    pub name: String,
    /// One-line description; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// True if the server refuses writes.
    pub read_only: bool,
}

/// Catalog of exports. Its methods are called on threads that may block.
pub trait ExportCatalog: Send + Sync + 'static {
    /// Opens the device of `name`; the empty name is the default export.
    ///
    /// # Errors
    /// The export does not exist, is not available or not accessible to the client, which receives the
    /// reason.
    fn open(&self, name: &str, client: &Client) -> Result<Arc<dyn BlockDevice>, ExportError>;

    /// Returns true for the name of an export whose opening may wait for the network, or for the recovery of
    /// a volume. Separate threads open these, so that they do not delay the opening of others. Called on a
    /// ring thread; must not block. By default no export waits.
    fn is_remote(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Returns all exports visible to the client.
    fn list(&self, client: &Client) -> Vec<ExportInfo>;

    /// Returns a page of [`list`](Self::list): at most `max` exports after the first `skip`, fewer only at
    /// the end. Override it for large catalogs.
    fn list_part(&self, client: &Client, skip: usize, max: usize) -> Vec<ExportInfo> {
        self.list(client).into_iter().skip(skip).take(max).collect()
    }

    /// Returns the entry of one export in [`list`](Self::list). By default the empty name also denotes the
    /// only export of a catalog. Override it for large catalogs.
    fn describe(&self, name: &str, client: &Client) -> Option<ExportInfo> {
        let mut list = self.list(client);
        let position = list.iter().position(|info| info.name == name);
        let only = (name.is_empty() && list.len() == 1).then_some(0);
        position.or(only).map(|index| list.swap_remove(index))
    }
}

/// Failure to open an export.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Unknown name, or no default export.
    #[error("no such export")]
    Unknown,
    /// The export exists, but is not available.
    #[error("the export is not available: {reason}")]
    Unavailable {
        /// One-line reason for the client.
        reason: String,
    },
    /// The client has no access to the export.
    #[error("access to the export is denied: {reason}")]
    Denied {
        /// One-line requirement for the client.
        reason: String,
    },
}

impl fmt::Debug for dyn BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockDevice")
            .field("size_bytes", &self.size_bytes())
            .field("read_only", &self.is_read_only())
            .finish_non_exhaustive()
    }
}
