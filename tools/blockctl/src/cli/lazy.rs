//! What `blockctl cloudsnap restore` can do beside filling a new volume, and `blockctl cloudsnap clone`.

use super::cloudsnap::CredentialArg;
use crate::snap::SnapRef;
use blockd_api::{Labels, VolumeName, VolumeRef, lazy::StoreLoss};
use clap::Args;

/// Help of `cloudsnap clone`.
pub const CLONE_HELP: &str = "\
The copy is there at once, whatever its size: it fetches what is read, and keeps it. It needs the cloud \
snapshot as long as it exists, so that this cannot be deleted before: by this blockd. One on another host \
knows nothing of the copy and deletes what it is told to; reads of what was not fetched fail then. To get \
all of it, use `cloudsnap restore --lazy`.

Examples:
  blockctl cloudsnap clone --snap ID --volume db-test
  blockctl cs clone -s ID -v db-test --on-store-loss error";

/// How a restore goes on.
#[derive(Debug, Args)]
pub struct LazyArgs {
    /// Make the volume at once, fetch what is read first, and the rest in the background
    #[arg(long, conflicts_with_all = ["limit_upload", "limit_download"])]
    pub lazy: bool,
    /// What becomes of reads of what is not fetched yet while the store is gone
    #[arg(long, value_name = "stall|error", requires = "lazy")]
    pub on_store_loss: Option<StoreLoss>,
    /// Make this volume again what it was, fetching only what differs; nobody may use it meanwhile
    #[arg(long, value_name = "VOLUME", conflicts_with_all = ["volume", "lazy", "label", "no_labels"])]
    pub in_place: Option<VolumeRef>,
    /// Do not keep what the volume was before as a snapshot
    #[arg(long, requires = "in_place")]
    pub discard: bool,
}

/// The labels of a volume that is made.
#[derive(Debug, Default, Args)]
pub struct NewLabelsArgs {
    /// Labels of the new volume, in place of those that the old one had
    #[arg(long, value_name = "K=V,…")]
    label: Option<Labels>,
    /// Give the new volume no labels: no schedule means it by them
    #[arg(long, conflicts_with = "label")]
    no_labels: bool,
}

impl NewLabelsArgs {
    /// Those that were given; none if those of the old volume are wanted.
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
    /// Name of the volume to be made; blockd chooses one without it
    #[arg(short, long, value_name = "NAME")]
    pub volume: Option<VolumeName>,
    /// What becomes of reads of what is not fetched yet while the store is gone
    #[arg(long, value_name = "stall|error", default_value = "stall")]
    pub on_store_loss: StoreLoss,
    /// Its labels.
    #[command(flatten)]
    pub labels: NewLabelsArgs,
    /// Where it is kept.
    #[command(flatten)]
    pub credential: CredentialArg,
}
