//! Image of a cloud snapshot that a drill reads, until its timeout or a stop.

use crate::{
    data_dir::DataDir,
    error::{ServiceError, cloud_code},
    fingerprints,
};
use blockd_api::{ApiError, ErrorCode};
use blockd_cloud::{CancelToken, CloudError, SnapshotReader};
use blockd_extent::{BlockSet, BlockSource, DataRange, Extent};
use parking_lot::Mutex;
use std::{io, ops::Range, sync::Arc, time::Instant};

/// Next action after a timeout.
const TIMEOUT_HINT: &str = "run it with a longer --timeout, or raise drill_limit_bytes_per_s and drill_limit_requests_per_s in the configuration";

/// Reason why the image cannot be read.
#[derive(Clone, Debug)]
pub(super) enum ReadFailure {
    /// The task or the daemon stops.
    Stopped,
    /// The drill reached its timeout.
    TimedOut,
    /// The store failed, or an object is damaged.
    Cloud {
        error: Arc<CloudError>,
        /// Blocks of the read.
        read: Extent,
    },
}

impl ReadFailure {
    /// Deletes the fingerprints of a damaged delta.
    pub fn forget_damaged(&self, data_dir: &DataDir) {
        if let Self::Cloud { error, .. } = self {
            fingerprints::forget_unreadable(data_dir, error);
        }
    }

    /// Returns the finding of the drill, and the unreadable blocks if an object is damaged.
    ///
    /// # Errors
    /// The drill is stopped or reached its timeout, or the store fails: the drill has no result.
    pub fn finding(self) -> Result<(String, Option<BlockSet>), ServiceError> {
        match self {
            Self::Stopped => Err(ServiceError::Stopping),
            // It depends on this host and its link, and says nothing about the cloud snapshot.
            Self::TimedOut => {
                let message = "the drill reached its timeout: it has no result";
                let error = ApiError::new(ErrorCode::DrillTimeout, message);
                Err(ServiceError::Refused(error.with_hint(TIMEOUT_HINT)))
            }
            Self::Cloud { error, read } => match &*error {
                CloudError::Damaged { blocks, .. } => {
                    Ok((error.to_string(), Some(BlockSet::from_iter([blocks.unwrap_or(read)]))))
                }
                error => Err(ServiceError::refused(cloud_code(error), error.to_string())),
            },
        }
    }
}

/// Image of a cloud snapshot.
pub(super) struct DrillImage {
    reader: SnapshotReader,
    cancel: CancelToken,
    deadline: Instant,
    failure: Mutex<Option<ReadFailure>>,
}

impl DrillImage {
    pub fn new(reader: SnapshotReader, cancel: CancelToken, deadline: Instant) -> Self {
        Self { reader, cancel, deadline, failure: Mutex::default() }
    }

    /// Returns the first failure.
    pub fn failure(&self) -> Option<ReadFailure> {
        self.failure.lock().clone()
    }

    /// Returns true after a failure, a stop or the timeout.
    pub fn is_over(&self) -> bool {
        self.check().is_err() || self.failure.lock().is_some()
    }

    fn fail(&self, failure: ReadFailure) {
        self.failure.lock().get_or_insert(failure);
    }

    fn check(&self) -> io::Result<()> {
        if self.cancel.is_cancelled() {
            self.fail(ReadFailure::Stopped);
            return Err(io::ErrorKind::Interrupted.into());
        }
        if Instant::now() >= self.deadline {
            self.fail(ReadFailure::TimedOut);
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    fn note(&self, offset_bytes: u64, len: usize, error: &io::Error) {
        let error = error.get_ref().and_then(|error| error.downcast_ref::<Arc<CloudError>>());
        if let Some(error) = error {
            let read = Extent::touching(offset_bytes, len as u64);
            self.fail(ReadFailure::Cloud { error: Arc::clone(error), read });
        }
    }
}

impl BlockSource for DrillImage {
    fn size_bytes(&self) -> u64 {
        self.reader.size_bytes()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check()?;
        let read = self.reader.read_at(offset_bytes, buf);
        read.inspect_err(|error| self.note(offset_bytes, buf.len(), error))
    }

    fn range_at(&self, offset_bytes: u64) -> io::Result<DataRange> {
        self.check()?;
        self.reader.range_at(offset_bytes).inspect_err(|error| self.note(offset_bytes, 1, error))
    }

    fn will_need(&self, ranges: &[Range<u64>]) {
        if self.check().is_ok() {
            self.reader.will_need(ranges);
        }
    }
}
