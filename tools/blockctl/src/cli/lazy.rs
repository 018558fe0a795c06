//! Lazy and in-place modes of `blockctl cloudsnap restore`, and `blockctl cloudsnap clone`.

use super::cloudsnap::CredentialArg;
use crate::cloudsnap_ref::SnapRef;
use blockd_api::{Labels, VolumeName, VolumeRef, lazy::StoreLoss};
use clap::Args;

/// Help of `cloudsnap clone`.
pub const CLONE_HELP: &str = "\
The clone exists at once, independent of its size: it fetches data on read, and keeps it. It needs the \
cloud snapshot as long as it exists, so this daemon refuses to delete that. Another host does not \
know of the clone; if it deletes the cloud snapshot, reads of missing data fail. `cloudsnap \
restore --lazy` fetches all data.

Examples:
  blockctl cloudsnap clone --snap ID --volume db-test
  blockctl cs clone -s ID -v db-test --on-store-loss error";

/// Restore mode.
#[derive(Debug, Args)]
pub struct LazyArgs {
    /// Create the volume at once; fetch data on read and in the background
    #[arg(long, conflicts_with_all = ["limit_upload", "limit_download"])]
    pub lazy: bool,
    /// Reads of missing data while the store is unreachable
    #[arg(long, value_name = "stall|error", requires = "lazy")]
    pub on_store_loss: Option<StoreLoss>,
    /// Restore into this unused volume, fetching only the difference
    #[arg(long, value_name = "VOLUME", conflicts_with_all = ["volume", "lazy", "label", "no_labels"])]
    pub in_place: Option<VolumeRef>,
    /// Keep no snapshot of the previous state
    #[arg(long, requires = "in_place")]
    pub discard: bool,
}

/// Labels of a new volume.
#[derive(Debug, Default, Args)]
pub struct NewLabelsArgs {
    /// Labels of the new volume [default: those of the original]
    #[arg(long, value_name = "K=V,…")]
    label: Option<Labels>,
    /// Create the new volume without labels
    #[arg(long, conflicts_with = "label")]
    no_labels: bool,
}

impl NewLabelsArgs {
    /// Returns the given labels; `None` for those of the original.
    pub fn labels(self) -> Option<Labels> {
        if self.no_labels { Some(Labels::default()) } else { self.label }
    }
}

/// `cloudsnap clone`
#[derive(Debug, Args)]
pub struct CloneArgs {
    /// Id of the cloud snapshot
    #[arg(short, long, value_name = "ID")]
    pub snap: SnapRef,
    /// Name of the new volume [default: generated]
    #[arg(short, long, value_name = "NAME")]
    pub volume: Option<VolumeName>,
    /// Reads of missing data while the store is unreachable
    #[arg(long, value_name = "stall|error", default_value = "stall")]
    pub on_store_loss: StoreLoss,
    /// Labels of the new volume.
    #[command(flatten)]
    pub labels: NewLabelsArgs,
    /// Credential option.
    #[command(flatten)]
    pub credential: CredentialArg,
}
