//! What the server serves: [`BlockDevice`] is one export's data, [`ExportCatalog`] finds it by name.

use std::fmt;
use std::sync::Arc;

use crate::constants::{
    BASE_ALLOCATION, NBD_EINVAL, NBD_EIO, NBD_ENOSPC, NBD_ENOTSUP, NBD_EPERM, NBD_ESHUTDOWN,
};

/// Whether a request was carried out at once or must go to a thread that may block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Carried out.
    Done,
    /// Carried out; every byte of the range reads as zero. Only [`BlockDevice::try_read`] and
    /// [`BlockDevice::read`] may say so, and may then leave `buf` as it was: a client that knows holes is
    /// sent no data at all.
    Zeroes,
    /// It would have to wait for storage or the network; nothing was done.
    WouldBlock,
}

/// What a request is about to do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read it.
    Read,
    /// Write or zero it.
    Write,
}

/// Called once, when what a request needs is near or cannot be had. May block as long as the request itself.
pub type WhenNear = Box<dyn FnOnce(Result<(), DeviceError>) + Send>;

/// How [`BlockDevice::write_zeroes`] is to be carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// The range's space stays allocated.
    pub no_hole: bool,
    /// Refuse with [`DeviceErrorKind::NotSupported`] rather than take as long as a write of zeroes would.
    pub fast: bool,
    /// Durable on return.
    pub fua: bool,
}

/// A run of bytes with the same status in one metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Its length in bytes, at least 1.
    pub len_bytes: u64,
    /// What the context says of it; for `base:allocation`, [`STATE_HOLE`](crate::constants::STATE_HOLE) and
    /// [`STATE_ZERO`](crate::constants::STATE_ZERO).
    pub flags: u32,
}

/// Who asks for an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Where the connection comes from, for logs: `unix`, `tcp://192.0.2.7:4321`.
    pub peer: String,
    /// The names in the certificate that the client has proved to hold; empty without one.
    pub certificate_names: Vec<String>,
    /// It came through a unix socket, which lets in only the server's own user and root.
    pub is_local: bool,
}

/// One device behind one or more connections.
///
/// The server has checked every request before it gets here: ranges lie within `size_bytes()`, reads and
/// writes are 1 byte to 64 MiB long, a read-only device is never written. Requests run concurrently and in
/// any order, from any number of threads. The `Arc` of a device is held from the moment its connection enters
/// transmission until the connection is gone and its last request has finished; it may be dropped on any of
/// the server's threads, so dropping must not block.
///
/// Buffers given to [`read`](Self::read) and [`write`](Self::write) start at a multiple of 4096 in memory if
/// the client's request begins at one, fit for direct I/O where offset and length are. Buffers of
/// [`try_read`](Self::try_read) and [`try_write`](Self::try_write) have no alignment.
pub trait BlockDevice: Send + Sync + 'static {
    /// Size in bytes. It may grow while connections hold the device, but never shrink: requests beyond the
    /// size that a client was told are served as soon as the device has grown.
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

    /// Brings near what a request needs, if that is so far away (across a network) that no thread should be
    /// kept waiting for it: then `then` is kept, and called from any thread when the request can be carried
    /// out, or with the reason why it cannot. Otherwise `then` is given back, which is what happens by
    /// default. Must not block.
    ///
    /// The server keeps what waits so in its own books, within a connection's bounds, and serves all others
    /// meanwhile. If the client goes, it ends what waits by itself, and nothing comes of calling `then`.
    fn bring_near(
        &self,
        access: Access,
        offset_bytes: u64,
        len_bytes: u64,
        then: WhenNear,
    ) -> Option<WhenNear> {
        let _ = (access, offset_bytes, len_bytes);
        Some(then)
    }

    /// Whether [`bring_near`](Self::bring_near) may ever keep a request; spares others the trouble.
    fn may_be_far(&self) -> bool {
        false
    }

    /// Where what is far away comes from: devices with the same key wait for the same, and may together have
    /// only a part of what the server may have in flight. Asked for when a connection enters transmission, of
    /// devices that [may be far](Self::may_be_far). By default they are all held to be one.
    fn source_key(&self) -> u128 {
        0
    }

    /// Fills `buf`; may block. Never returns [`Progress::WouldBlock`].
    ///
    /// # Errors
    /// When the data cannot be had; the client is told the kind.
    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError>;

    /// Writes `data` without waiting for storage or network, or does nothing and returns
    /// [`Progress::WouldBlock`]. Never called for a write with FUA. Called on the thread that serves the
    /// sockets.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn try_write(&self, offset_bytes: u64, data: &[u8]) -> Result<Progress, DeviceError> {
        let _ = (offset_bytes, data);
        Ok(Progress::WouldBlock)
    }

    /// Writes `data`; with `fua`, it is durable on return. May block. By default it is refused, and so are
    /// [`trim`](Self::trim) and [`write_zeroes`](Self::write_zeroes): a read-only device has none of them.
    ///
    /// # Errors
    /// When the data could not be written; the client is told the kind.
    fn write(&self, offset_bytes: u64, data: &[u8], fua: bool) -> Result<(), DeviceError> {
        let _ = (offset_bytes, data, fua);
        Err(DeviceError::read_only())
    }

    /// Devices with the same key share their storage, and a [`flush`](Self::flush) of one answers for all of
    /// them: flushes that wait, of whichever connections, are carried out as one. By default only those of
    /// the same `Arc` are.
    fn flush_key(&self) -> Option<u128> {
        None
    }

    /// Makes durable every write that returned before this call, whichever connection it came from.
    ///
    /// # Errors
    /// When durability cannot be promised.
    fn flush(&self) -> Result<(), DeviceError>;

    /// The client no longer needs the range; what it reads as afterwards is the device's choice.
    ///
    /// # Errors
    /// When the device failed.
    fn trim(&self, offset_bytes: u64, len_bytes: u64, fua: bool) -> Result<(), DeviceError> {
        let _ = (offset_bytes, len_bytes, fua);
        Err(DeviceError::read_only())
    }

    /// Makes the range read as zeroes.
    ///
    /// # Errors
    /// When the range could not be zeroed.
    fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64, flags: ZeroFlags) -> Result<(), DeviceError> {
        let _ = (offset_bytes, len_bytes, flags);
        Err(DeviceError::read_only())
    }

    /// The client will read the range soon: brings it near, as far as that pays. May block. Does nothing by
    /// default.
    ///
    /// # Errors
    /// When the device failed.
    fn cache(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), DeviceError> {
        let _ = (offset_bytes, len_bytes);
        Ok(())
    }

    /// The metadata contexts that [`block_status`](Self::block_status) knows, each as `namespace:name`, at
    /// most 4096 bytes long. May block. By default only `base:allocation`. A name means the same thing for as
    /// long as the device is held: a device whose names can be reused binds them when it is opened.
    fn meta_contexts(&self) -> Vec<String> {
        vec![BASE_ALLOCATION.to_owned()]
    }

    /// Appends the status of the range in one metadata context: runs in ascending order, which begin at
    /// `offset_bytes` and lie within the range. It may stop before the end, but not before the first run, and
    /// appends at most `max_extents`. Neighbours of the same status should be one run. May block. By default
    /// all of the range is data.
    ///
    /// # Errors
    /// When the context is not, or no longer, known, or the device failed.
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
    /// The device cannot do that in the way that was asked for: `NBD_ENOTSUP`.
    NotSupported,
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
            Self::NotSupported => NBD_ENOTSUP,
        }
    }
}

/// A device could not carry a request out. The message is for the log: the protocol has room only for the
/// kind.
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

    fn read_only() -> Self {
        Self::new(DeviceErrorKind::Permission, "the device is read-only")
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
            DeviceErrorKind::InvalidInput | DeviceErrorKind::Permission | DeviceErrorKind::NotSupported => {
                false
            }
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
    fn open(&self, name: &str, client: &Client) -> Result<Arc<dyn BlockDevice>, ExportError>;

    /// All exports that the client may see.
    fn list(&self, client: &Client) -> Vec<ExportInfo>;

    /// A part of [`list`](Self::list), which a client is sent part by part: at most `max` exports behind the
    /// first `skip`, fewer only at the end. To be implemented by a catalog that may have many.
    fn list_part(&self, client: &Client, skip: usize, max: usize) -> Vec<ExportInfo> {
        self.list(client).into_iter().skip(skip).take(max).collect()
    }

    /// One export's entry in [`list`](Self::list); for the empty name, that of the default export, if it is
    /// in it. To be implemented by a catalog that may have many.
    fn describe(&self, name: &str, client: &Client) -> Option<ExportInfo> {
        let mut list = self.list(client);
        let position = list.iter().position(|info| info.name == name);
        let only = (name.is_empty() && list.len() == 1).then_some(0);
        position.or(only).map(|index| list.swap_remove(index))
    }
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
    /// This client may not have it.
    #[error("this client may not open the export: {reason}")]
    Denied {
        /// What it would take, in one line that the client is shown.
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
