//! Cloud snapshots as read-only NBD exports, named `cloud:` and the id.

use super::browser::Browser;
use crate::access;
use blockd_cloud::{CloudSnapshotId, SnapshotReader};
use blockd_extent::BlockSource;
use blockd_nbd::{
    Access, BlockDevice, Client, DeviceError, DeviceErrorKind, ExportError, ExportInfo, OnFetched, Progress,
    StatusExtent,
    constants::{BASE_ALLOCATION, STATE_HOLE, STATE_ZERO},
};
use std::{
    io,
    sync::{Arc, Weak},
};
use tokio::runtime::Handle;

/// Prefix of the export names; no volume name has it.
const PREFIX: &str = "cloud:";
/// Maximum number of ranges examined for one block status reply.
const MAX_RANGES: usize = 1 << 16;

/// NBD exports of the cloud snapshots of all credentials.
#[derive(Clone, Debug)]
pub struct CloudExports {
    browser: Weak<Browser>,
    runtime: Handle,
}

impl CloudExports {
    /// Creates the exports of this daemon. Must be called in the runtime.
    pub fn new(browser: &Arc<Browser>) -> Self {
        Self { browser: Arc::downgrade(browser), runtime: Handle::current() }
    }

    /// Returns true if a name has the prefix of these exports.
    pub fn has_prefix(name: &str) -> bool {
        name.starts_with(PREFIX)
    }

    fn snapshot(
        &self,
        name: &str,
        access: &access::Access,
        client: &Client,
    ) -> Result<(SnapshotReader, String), ExportError> {
        let unavailable = |reason: String| ExportError::Unavailable { reason };
        let id: CloudSnapshotId =
            name.strip_prefix(PREFIX).and_then(|id| id.parse().ok()).ok_or(ExportError::Unknown)?;
        // A repository also contains snapshots of other clusters and of renamed volumes, which the access
        // lists of volumes do not cover.
        access.check_listed(name, client)?;
        let browser = self.browser.upgrade().ok_or_else(|| unavailable("the daemon is stopping".into()))?;
        match browser.open_cloudsnap(&self.runtime, &id, None) {
            Ok((snapshot, manifest)) => {
                // A client without access to the volume has no access to its snapshots.
                access.check(&manifest.description.volume_name, client)?;
                let taken = blockd_api::format_time(manifest.description.created);
                let text =
                    format!("cloud snapshot of volume {}, taken {taken}", manifest.description.volume_name);
                Ok((snapshot, text))
            }
            Err(error) if blockd_engine::cloud_snapshots::is_not_found(&error) => Err(ExportError::Unknown),
            Err(error) => Err(unavailable(error.to_api().message)),
        }
    }

    /// Opens an export. Blocks.
    pub fn open(
        &self,
        name: &str,
        access: &access::Access,
        client: &Client,
    ) -> Result<Arc<dyn BlockDevice>, ExportError> {
        let (image, _) = self.snapshot(name, access, client)?;
        Ok(Arc::new(CloudDevice { image, runtime: self.runtime.clone() }))
    }

    /// Describes an export. Blocks.
    pub fn describe(&self, name: &str, access: &access::Access, client: &Client) -> Option<ExportInfo> {
        let (image, description) = self.snapshot(name, access, client).ok()?;
        Some(ExportInfo {
            name: name.to_owned(),
            description,
            size_bytes: image.size_bytes(),
            read_only: true,
        })
    }
}

struct CloudDevice {
    image: SnapshotReader,
    runtime: Handle,
}

fn device_error(error: &io::Error) -> DeviceError {
    let kind = match error.kind() {
        io::ErrorKind::InvalidInput => DeviceErrorKind::InvalidInput,
        _ => DeviceErrorKind::Io,
    };
    DeviceError::new(kind, error.to_string())
}

impl CloudDevice {
    /// Starts a fetch that calls `then` at its end. Returns `then` without one.
    fn start(
        &self,
        fetch: Option<impl Future<Output = io::Result<()>> + Send + 'static>,
        then: OnFetched,
    ) -> Option<OnFetched> {
        let Some(fetch) = fetch else { return Some(then) };
        self.runtime.spawn(async move {
            let fetched = fetch.await.map_err(|error| device_error(&error));
            // It executes the request, which may block.
            tokio::task::spawn_blocking(move || then(fetched));
        });
        None
    }
}

impl BlockDevice for CloudDevice {
    fn may_be_remote(&self) -> bool {
        true
    }

    fn source_key(&self) -> u128 {
        let id = self.image.id();
        id.cluster.as_u128()
            ^ u128::from(id.volume.as_u64())
            ^ u128::from(id.snapshot.as_u64()).rotate_left(64)
    }

    fn prefetch_async(
        &self,
        access: Access,
        offset_bytes: u64,
        len_bytes: u64,
        then: OnFetched,
    ) -> Option<OnFetched> {
        let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
        match access {
            Access::Status => self.start(self.image.fetch_missing_index(offset_bytes, len), then),
            Access::Read | Access::Write => self.start(self.image.fetch_missing(offset_bytes, len), then),
        }
    }

    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn try_read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        let read = self.image.try_read_at(offset_bytes, buf).map_err(|error| device_error(&error))?;
        Ok(if read { Progress::Done } else { Progress::WouldBlock })
    }

    fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<Progress, DeviceError> {
        self.image.read_at(offset_bytes, buf).map_err(|error| device_error(&error))?;
        Ok(Progress::Done)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn block_status(
        &self,
        context: &str,
        offset_bytes: u64,
        len_bytes: u64,
        max_extents: usize,
        extents: &mut Vec<StatusExtent>,
    ) -> Result<(), DeviceError> {
        if context != BASE_ALLOCATION {
            let message =
                format!("block status failed on {context}: the export has no such metadata context");
            return Err(DeviceError::new(DeviceErrorKind::InvalidInput, message));
        }
        let (mut at, end, first) = (offset_bytes, offset_bytes + len_bytes, extents.len());
        for _ in 0..MAX_RANGES {
            if at >= end {
                break;
            }
            let range = match self.image.try_range_at(at).map_err(|error| device_error(&error))? {
                Some(range) => range,
                // The cache is full: it has dropped the prefetched page.
                None if at == offset_bytes => {
                    self.image.range_at(at).map_err(|error| device_error(&error))?
                }
                None => break,
            };
            let range_end = range.end_bytes.clamp(at + 1, end);
            let flags = if range.is_data { 0 } else { STATE_HOLE | STATE_ZERO };
            let found = extents.len() - first;
            match extents[first..].last_mut() {
                Some(last) if last.flags == flags => last.len_bytes += range_end - at,
                _ if found >= max_extents => break,
                _ => extents.push(StatusExtent { len_bytes: range_end - at, flags }),
            }
            at = range_end;
        }
        Ok(())
    }
}
