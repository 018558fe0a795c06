//! What the server serves: [`BlockDevice`] is one export's data, [`ExportCatalog`] finds it by name.

use std::fmt;
use std::sync::Arc;

use crate::constants::{NBD_EINVAL, NBD_EIO, NBD_ENOSPC, NBD_EPERM, NBD_ESHUTDOWN};

/// Whether a request was carried out at once or must go to a thread that may block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Carried out.
    Done,
    /// It would have to wait for storage or the network; nothing was done.
    WouldBlock,
}

/// One device behind one or more connections.
///
/// The server has checked every request before it gets here: ranges lie within `size_bytes()`, reads and
/// writes are 1 byte to 32 MiB long, a read-only device is never written. Requests run concurrently and in
/// any order, from any number of threads. The `Arc` of a device is held from the moment its connection enters
/// transmission until the connection is gone and its last request has finished; it may be dropped on any of
/// the server's threads, so dropping must not block.
///
/// Buffers given to [`read`](Self::read) and [`write`](Self::write) start at a multiple of 4096 in memory,
/// fit for direct I/O where offset and length are. Buffers of [`try_read`](Self::try_read) and
/// [`try_write`](Self::try_write) have no alignment.
pub trait BlockDevice: Send + Sync + 'static {
    /// Size in bytes; must not change while a connection holds the device.
    fn size_bytes(&self) -> u64;

    /// Whether writing commands are refused.
    fn is_read_only(&self) -> bool;

    /// Fills `buf` without waiting for storage or network, or returns [`Progress::WouldBlock`], after which
    /// the content of `buf` means nothing. Called on the thread that serves the sockets.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        let _ = (offset_bytes, buf);
        Ok(Progress::WouldBlock)
    }

    /// Fills `buf`; may block.
    ///
    /// # Errors
    /// When the data cannot be had; the client is told the kind.
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), DeviceError>;

    /// Writes `data` without waiting for storage or network, or does nothing and returns
    /// [`Progress::WouldBlock`]. Never called for a write with FUA. Called on the thread that serves the sockets.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<Progress, DeviceError> {
        let _ = (offset_bytes, data);
        Ok(Progress::WouldBlock)
    }

    /// Writes `data`; with `fua`, it is durable on return. May block.
    ///
    /// # Errors
    /// When the data could not be written; the client is told the kind.
    fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), DeviceError>;

    /// Makes durable every write that returned before this call, whichever connection it came from.
    ///
    /// # Errors
    /// When durability cannot be promised.
    fn flush(&self) -> Result<(), DeviceError>;

    /// The client no longer needs the range; what it reads as afterwards is the device's choice.
    ///
    /// # Errors
    /// When the device failed.
    fn trim(&self, offset_bytes: u64, len_bytes: u64, fua: bool) -> Result<(), DeviceError>;

    /// Makes the range read as zeroes; with `no_hole`, its space stays allocated.
    ///
    /// # Errors
    /// When the range could not be zeroed.
    fn write_zeroes(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
        no_hole: bool,
        fua: bool,
    ) -> Result<(), DeviceError>;
}

/// What kind of failure a device reports; decides the error number that the client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceErrorKind {
    /// The storage failed: `NBD_EIO`.
    Io,
    /// The storage is full: `NBD_ENOSPC`.
    NoSpace,
    /// The request makes no sense to the device: `NBD_EINVAL`.
    InvalidInput,
    /// The device does not allow it: `NBD_EPERM`.
    Permission,
    /// The device is being taken away: `NBD_ESHUTDOWN`.
    Shutdown,
}

impl DeviceErrorKind {
    /// The number that stands for this kind in a reply.
    pub(crate) fn nbd_errno(self) -> u32 {
        match self {
            Self::Io => NBD_EIO,
            Self::NoSpace => NBD_ENOSPC,
            Self::InvalidInput => NBD_EINVAL,
            Self::Permission => NBD_EPERM,
            Self::Shutdown => NBD_ESHUTDOWN,
        }
    }
}

/// A device could not carry a request out. The message is for the log: the protocol has room only for the kind.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct DeviceError {
    kind: DeviceErrorKind,
    message: String,
}

impl DeviceError {
    /// An error of `kind`, with one line that says what failed on what.
    pub fn new(kind: DeviceErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> DeviceErrorKind {
        self.kind
    }

    /// What failed, in one line.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether the same request may succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self.kind {
            DeviceErrorKind::Io | DeviceErrorKind::NoSpace | DeviceErrorKind::Shutdown => true,
            DeviceErrorKind::InvalidInput | DeviceErrorKind::Permission => false,
        }
    }
}

/// One export, as a client's list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Name to open it by, at most 4096 bytes.
    pub name: String,
    /// One line for people; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Whether writing commands are refused.
    pub read_only: bool,
}

/// Looks exports up. Called on threads that may block.
pub trait ExportCatalog: Send + Sync + 'static {
    /// The device that `name` stands for; the empty name is the default export.
    ///
    /// # Errors
    /// When there is none, or it cannot be had now; the client is told why.
    fn open(&self, name: &str) -> Result<Arc<dyn BlockDevice>, ExportError>;

    /// All exports that a client may see.
    fn list(&self) -> Vec<ExportInfo>;
}

/// Why an export cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// There is none of that name; for the empty name, there is no default export.
    #[error("no such export")]
    Unknown,
    /// It exists, but cannot be served now.
    #[error("the export cannot be served now: {reason}")]
    Unavailable {
        /// What prevents it, in one line that the client is shown.
        reason: String,
    },
}

impl ExportError {
    /// Whether the same name may open later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

impl fmt::Debug for dyn BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockDevice")
            .field("size_bytes", &self.size_bytes())
            .field("read_only", &self.is_read_only())
            .finish_non_exhaustive()
    }
}
