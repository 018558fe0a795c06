//! Identity, settings and lifetime of this run of the daemon.

use crate::{data_dir::DataDir, failpoints::Failpoints, settings::Settings};
use std::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// This run of the daemon on this host.
#[derive(Debug)]
pub struct Host {
    /// Cluster id of this host.
    pub cluster: Uuid,
    /// Id of this run of the daemon.
    pub run: Uuid,
    /// Name of this host.
    pub node: String,
    /// Start time.
    pub started: Instant,
    /// Data directory.
    pub data_dir: DataDir,
    /// Settings.
    pub settings: Settings,
    /// Cancelled when the daemon stops.
    pub stopping: CancellationToken,
    /// Steps at which tests act.
    pub failpoints: Failpoints,
}

/// Lock that is held while an operation is admitted that excludes another one, such as a task on a volume and
/// the deletion of the volume.
pub type Admission = tokio::sync::Mutex<()>;
